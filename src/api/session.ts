/** A snapshot for the time of a task: taken at the start, its events collected, destroyed at the end.
 *
 *  ```ts
 *  import { Client, SnapshotSession } from 'blksnap';
 *
 *  const client = new Client();
 *  const disk = await client.attach({ path: `${process.cwd()}/disk.img` });
 *  const session = await SnapshotSession.open(client, { disks: [disk.name] });
 *  try {
 *    console.log(session.image(disk.name).uri); // for any NBD client
 *  } finally {
 *    await session.close();
 *  }
 *  await client.detach(disk.name);
 *  ```
 *
 *  A session whose process is killed lets go of its snapshot all the same, a minute later.
 *  With `await using session = …` the last part goes by itself. */

import { BlksnapError } from '../util/errors.ts';
import { LEASE_MS, LeaseKeeper } from './lease.ts';
import type { Client, EventView, SnapshotView } from './client.ts';

type Image = SnapshotView['images'][number];

export class SnapshotSession {
  readonly snapshot: SnapshotView;
  /** What has happened to the snapshot so far, in order. */
  readonly events: EventView[] = [];
  readonly #client: Client;
  readonly #lease: LeaseKeeper | null;
  readonly #listening = new AbortController();
  readonly #heard: Promise<void>;
  #closed: Promise<void> | null = null;
  #waiting: Array<() => void> = [];

  /** Takes a snapshot. Fails as Client.createSnapshot. */
  static async open(client: Client, request: Parameters<Client['createSnapshot']>[0]): Promise<SnapshotSession> {
    return new SnapshotSession(
      client,
      await client.createSnapshot({ leaseMs: LEASE_MS, kernelDevice: false, ...request }),
    );
  }

  private constructor(client: Client, snapshot: SnapshotView) {
    this.#client = client;
    this.snapshot = snapshot;
    this.#lease =
      snapshot.leaseMs === null ? null : new LeaseKeeper(client, snapshot.id, { leaseMs: snapshot.leaseMs });
    this.#heard = this.#listen();
  }

  get id(): string {
    return this.snapshot.id;
  }

  /** Errors: ENOENT for a disk that is not in the snapshot. */
  image(disk: string): Image {
    const image = this.snapshot.images.find((one) => one.disk === disk);
    if (image === undefined) throw new BlksnapError('ENOENT', `Disk "${disk}" is not in snapshot "${this.id}"`);
    return image;
  }

  /** Errors: EIO when an image has been lost: what was read of it is worth nothing. */
  assertGood(): void {
    const lost = this.events.find(({ code }) => code === 'corrupted');
    if (lost !== undefined) {
      throw new BlksnapError(
        'EIO',
        `Image of disk "${lost.disk}" in snapshot "${this.id}" is lost: ${lost.error ?? 'unknown'}`,
      );
    }
  }

  /** Resolves at the next event, or when the session closes. */
  async changed(): Promise<void> {
    if (this.#closed === null) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Destroys the snapshot. Safe to call twice; a snapshot that somebody else destroyed is no failure. */
  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #end(): Promise<void> {
    this.#lease?.stop();
    try {
      await this.#client.destroySnapshot(this.id);
    } catch (cause) {
      if (!(cause instanceof BlksnapError && cause.code === 'ESRCH')) throw cause;
    } finally {
      this.#listening.abort();
      await this.#heard;
      this.#wake();
    }
  }

  async #listen(): Promise<void> {
    try {
      for await (const event of this.#client.follow(this.id, { signal: this.#listening.signal })) {
        this.events.push(event);
        this.#wake();
      }
    } catch {
      // The daemon is gone, and the snapshot with it: whoever reads the image sees that, and close() says so.
    }
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
