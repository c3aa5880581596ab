/** The backups of a run: the product's backup, restore, verify and prune, each in a process that may die at any moment, in
 *  a real directory that may lose its power; and beside it what every restore point must hold. */

import fs from 'node:fs';
import path from 'node:path';
import { backUp } from '../../src/backup/backup.ts';
import type { BackupMode } from '../../src/backup/plan.ts';
import { openNbdSource } from '../../src/backup/nbd-source.ts';
import { openPoint } from '../../src/backup/open-point.ts';
import { prune } from '../../src/backup/prune.ts';
import { readManifest } from '../../src/backup/repository.ts';
import { restore } from '../../src/backup/restore.ts';
import { verify } from '../../src/backup/verify.ts';
import { READ, runBio } from '../../src/block/bio.ts';
import { READ_ONCE } from '../../src/blksnap/read-once-image.ts';
import type { Prng } from '../../src/util/prng.ts';
import { SimClient, drawStyle } from './client.ts';
import { macrotask } from './clock.ts';
import { Platter } from './platter.ts';
import { expectBytes, mayFail } from './traffic.ts';
import type { SimImage, World } from './world.ts';

const MOST_POINTS = 6;
const CHUNK = 4096;
/** Calls of the file system after which a process may die. */
const MOST_CALLS = 40;

interface Known {
  readonly id: string;
  readonly content: Uint8Array;
}

/** What a process was doing: with `added` and `removed`, what it may have changed when it died. */
interface Work {
  readonly disk: string;
  readonly added: Uint8Array | null;
  readonly keepLast: number;
}

export class Depot {
  /** How often each kind of thing came to its end. */
  readonly counts = new Map<string, number>();
  readonly #directory: string;
  readonly #restored: string;
  readonly #platter: Platter;
  /** By disk, oldest first. */
  readonly #known = new Map<string, Known[]>();
  /** Of a disk on which processes died: its points before, which a power loss may bring back until its directory is synced. */
  readonly #before = new Map<string, Known[][]>();
  #busy = false;
  #changed = false;

  constructor(directory: string) {
    this.#directory = path.join(directory, 'backups');
    this.#restored = path.join(directory, 'restored');
    fs.mkdirSync(this.#directory);
    fs.mkdirSync(this.#restored);
    this.#platter = new Platter(this.#directory);
  }

  close(): void {
    this.#platter.close();
  }

  /** The machine has stopped, and all processes with it. */
  losePower(random: Prng): void {
    this.#changed = true;
    this.#platter.losePower(random);
    for (const [disk, lists] of this.#before) {
      const ids = this.#ids(disk).join();
      const back = lists.find((list) => list.map(({ id }) => id).join() === ids);
      if (back !== undefined) this.#known.set(disk, back);
    }
    this.#before.clear();
  }

  /** Backs up, restores, verifies or prunes something. Does nothing while another process does. */
  async work(world: World, random: Prng): Promise<void> {
    const images = world.images.filter(({ uncertain }) => uncertain.size === 0);
    const held = random.chance(0.7) ? images.at(-1) : images[random.below(Math.max(1, images.length))];
    const kind = random.below(10);
    const disks = [...this.#known].filter(([, points]) => points.length > 0).map(([disk]) => disk);
    const disk = disks[random.below(Math.max(1, disks.length))];
    if (this.#busy) return;
    this.#busy = true;
    this.#changed = true;
    try {
      if (disk === undefined || kind < 6) {
        if (held !== undefined) await this.#backUp(world, held, random);
      } else if (kind < 8) await this.#restore(world, disk, random);
      else await this.#prune(world, disk, random);
    } finally {
      this.#busy = false;
    }
  }

  // --- one process ----------------------------------------------------------------------------

  /** Runs something in a process of its own, which may die. What it resolves with; null when it has failed or died, for
   *  a reason. */
  async #run<T>(
    world: World,
    work: Work,
    {
      random,
      mayFail: excused,
      act,
    }: {
      readonly random: Prng;
      readonly mayFail: () => boolean;
      readonly act: (process: SimClient) => Promise<T>;
    },
  ): Promise<T | null> {
    const process = await SimClient.start(world);
    world.workers.add(process);
    if (random.chance(0.1)) this.#platter.dieAfter(random.below(MOST_CALLS), () => process.vanish());
    if (random.chance(0.1)) world.machine.clock.after(null, random.below(30_000), () => process.vanish());
    let result: T | null = null;
    try {
      result = await Promise.race([act(process), process.whenVanished.then(() => null)]);
    } catch (cause) {
      if (!process.vanished && !world.dead && !excused() && !this.#weathered(world)) throw cause;
    }
    // What was on its way out of calls that failed comes to its end, while calls still fail.
    await macrotask();
    this.#platter.live();
    world.workers.delete(process);
    if (process.vanished) {
      this.#platter.closeFiles();
      this.#afterDeath(work);
      return null;
    }
    await process.close();
    return result;
  }

  #weathered({ machine }: World): boolean {
    const { backupReadError, backupWriteError, backupSyncError } = machine.weather;
    return backupReadError + backupWriteError + backupSyncError > 0;
  }

  #count(what: string): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + 1);
  }

  #pointsOf(disk: string): Known[] {
    const points = this.#known.get(disk) ?? [];
    this.#known.set(disk, points);
    return points;
  }

  #ids(disk: string): string[] {
    if (!fs.existsSync(path.join(this.#directory, disk, 'manifest.json'))) return [];
    return readManifest(this.#directory, disk).points.map(({ id }) => id);
  }

  /** All that was there is there; of what the process was adding or removing, any part. */
  #afterDeath({ disk, added, keepLast }: Work): void {
    const known = this.#pointsOf(disk);
    const ids = this.#ids(disk);
    for (const { id } of known.slice(-keepLast))
      if (!ids.includes(id)) throw new Error(`restore point ${id} of ${disk} is lost`);
    const fresh = ids.filter((id) => !known.some((point) => point.id === id));
    if (fresh.length > (added === null ? 0 : 1))
      throw new Error(`${fresh.length} restore points of ${disk} from nowhere`);
    const kept = known.filter(({ id }) => ids.includes(id));
    this.#before.set(disk, [...(this.#before.get(disk) ?? []), known]);
    this.#known.set(disk, [...kept, ...fresh.map((id) => ({ id, content: added! }))]);
    this.#count('died');
  }

  // --- kinds of work --------------------------------------------------------------------------

  async #backUp(world: World, held: SimImage, random: Prng): Promise<void> {
    const { image, owner, generationId, changeNumber, released } = held;
    const disk = owner.model.name;
    const once = random.chance(0.2);
    const mode: BackupMode = random.chance(0.6) ? 'auto' : random.chance(0.7) ? 'differential' : 'full';
    const wasReleased = released.size > 0;
    held.busy++;
    // Nobody promises anything of chunks that a reader may be done with.
    if (once) for (let chunk = 0; chunk * CHUNK < held.content.length; chunk++) released.add(chunk);
    const content = held.content.slice();
    const name = once ? image.name + READ_ONCE : image.name;
    const newestStyle = drawStyle(random, true);
    const result = await this.#run(
      world,
      { disk, added: content, keepLast: Infinity },
      {
        random,
        mayFail: () => wasReleased || image.corrupted !== 0 || !world.serving.offers(image.name) || mayFail(world),
        act: async (process) => {
          const { reactor, pool } = process;
          const source = await openNbdSource({
            disk,
            identity: null,
            generationId,
            changeNumber,
            connect: (contexts) => process.connect(name, { contexts, newestStyle }),
            discardsWith: once ? pool : undefined,
          });
          try {
            return await backUp(source, { reactor, pool, directory: this.#directory, mode });
          } finally {
            await source.close();
          }
        },
      },
    ).finally(() => held.busy--);
    if (result === null) return;
    this.#before.delete(disk);
    this.#pointsOf(disk).push({ id: result.point.id, content });
    world.reactor.note(result.point.bytesStored, result.point.bytesRead);
    this.#count(result.point.kind);
  }

  async #restore(world: World, disk: string, random: Prng): Promise<void> {
    const points = this.#pointsOf(disk);
    const { id, content } = points[random.below(points.length)]!;
    const to = path.join(this.#restored, 'disk');
    const result = await this.#run(
      world,
      { disk, added: null, keepLast: Infinity },
      {
        random,
        mayFail: () => false,
        act: ({ reactor, pool }) => restore({ directory: this.#directory, disk, point: id, to, reactor, pool }),
      },
    );
    if (result !== null) this.#count('restored');
    const isThere = fs.existsSync(to);
    if (result !== null && !isThere) throw new Error(`restore of ${id} made nothing`);
    if (isThere) expectBytes(`${id} restored`, fs.readFileSync(to), content, 0);
    fs.rmSync(to, { force: true });
    fs.rmSync(`${to}.partial`, { force: true });
  }

  async #prune(world: World, disk: string, random: Prng): Promise<void> {
    const keepLast = 1 + random.below(3);
    const points = this.#pointsOf(disk);
    const result = await this.#run(
      world,
      { disk, added: null, keepLast },
      {
        random,
        mayFail: () => false,
        act: ({ reactor, pool }) => prune({ directory: this.#directory, disk, keepLast, reactor, pool }),
      },
    );
    if (result === null) return;
    if (points.length > keepLast) this.#before.delete(disk);
    this.#known.set(disk, points.slice(-keepLast));
    this.#count(result.rewritten.length > 0 ? 'pruned, with files written anew' : 'pruned');
  }

  // --- the check ------------------------------------------------------------------------------

  /** Every restore point that was there is there, and holds every byte. Without faults of the machine. */
  async check(world: World): Promise<void> {
    if (this.#busy || !this.#changed) return;
    this.#changed = false;
    for (const [disk, known] of this.#known) {
      const ids = this.#ids(disk);
      if (known.map(({ id }) => id).join() !== ids.join())
        throw new Error(`${disk} has the restore points ${ids.join()}, want ${known.map(({ id }) => id).join()}`);
      for (const { id, content } of known) await this.#checkPoint(world, disk, { id, content });
      if (known.length > MOST_POINTS) this.#known.set(disk, await this.#shed(world, disk, known));
    }
  }

  async #checkPoint(world: World, disk: string, { id, content }: Known): Promise<void> {
    const { pool, reactor } = world;
    const { clock, arena } = reactor;
    const { device } = await clock.until(openPoint({ directory: this.#directory, disk, point: id }, { pool, reactor }));
    const { size } = device;
    const at = arena.allocate(size);
    const status = await clock.until(runBio(pool, device, { op: READ, offset: 0, length: size, at }));
    const got = arena.bytes.slice(at, at + size);
    arena.release(at);
    await clock.until(device.close());
    if (status !== 0 || size !== content.length) throw new Error(`${id} of ${disk}: ${size} bytes, errno ${status}`);
    expectBytes(`${id} of ${disk}`, got, content, 0);
  }

  /** There are enough of them: all must be sound, and the older ones go. */
  async #shed(world: World, disk: string, known: readonly Known[]): Promise<Known[]> {
    const { pool, reactor } = world;
    const directory = this.#directory;
    const report = await reactor.until(verify({ directory, disk, pool, reactor }));
    if (!report.sound || report.points.length !== known.length)
      throw new Error(`${disk}: verify finds ${JSON.stringify(report.damage)}`);
    this.#count('verified');
    await reactor.until(prune({ directory, disk, keepLast: 2, pool, reactor }));
    return known.slice(-2);
  }
}
