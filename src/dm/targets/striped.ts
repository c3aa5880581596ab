/** striped: chunks that go round over devices of equal share.
 *
 *      START LENGTH striped STRIPES CHUNK DEVICE SECTOR [DEVICE SECTOR]…
 *
 *  CHUNK is in sectors; the length is a multiple of STRIPES × CHUNK. Status: `STRIPES DEVICE… 1 AAD`, with D for
 *  a device that has failed a bio. */

import { FLUSH } from '../../block/bio.ts';
import type { Bio, BioOwner, BioPool } from '../../block/bio.ts';
import type { Extent } from '../../block/device.ts';
import { ERRNO } from '../../util/errors.ts';
import { SECTOR, quoteWord } from '../table.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetContext, TargetType } from '../target.ts';

const MAX_STRIPES = 1024;

/** Hears the ends of one device's bios. */
class Stripe implements BioOwner {
  readonly port: DevicePort;
  failures = 0;
  #owner: BioOwner | null = null;

  constructor(port: DevicePort) {
    this.port = port;
  }

  submit(bio: Bio): void {
    this.#owner = bio.owner;
    bio.owner = this;
    this.port.submit(bio);
  }

  bioEnded(bio: Bio): void {
    // A device that never could do it has not failed.
    if (bio.status !== 0 && bio.status !== ERRNO.EOPNOTSUPP) this.failures++;
    bio.owner = this.#owner!;
    bio.owner.bioEnded(bio);
  }
}

class Striped extends Target implements BioOwner {
  readonly type = 'striped';
  readonly #stripes: readonly Stripe[];
  readonly #chunk: number;
  readonly #pool: BioPool;

  constructor(context: TargetContext, chunk: number, ports: readonly DevicePort[]) {
    super(ports);
    this.#pool = context.pool;
    this.#chunk = chunk;
    this.#stripes = ports.map((port) => new Stripe(port));
  }

  table(): string {
    return [this.#stripes.length, this.#chunk / SECTOR, ...this.ports.map(({ words }) => words)].join(' ');
  }

  override status(): string {
    const health = this.#stripes.map(({ failures }) => (failures > 0 ? 'D' : 'A')).join('');
    return [this.#stripes.length, ...this.ports.map(({ name }) => quoteWord(name)), 1, health].join(' ');
  }

  override runAt(offset: number): number {
    return this.#chunk - (offset % this.#chunk);
  }

  submit(bio: Bio): void {
    if (bio.op === FLUSH) {
      this.#flush(bio);
      return;
    }
    const chunk = Math.floor(bio.offset / this.#chunk);
    const stripe = this.#stripes[chunk % this.#stripes.length]!;
    bio.offset = this.#place(bio.offset);
    stripe.submit(bio);
  }

  /** Where an offset lies in its stripe. */
  #place(offset: number): number {
    const chunk = Math.floor(offset / this.#chunk);
    return Math.floor(chunk / this.#stripes.length) * this.#chunk + (offset % this.#chunk);
  }

  #flush(bio: Bio): void {
    bio.status = 0;
    bio.waiting = this.#stripes.length;
    for (const { port } of this.#stripes) {
      const part = this.#pool.get(FLUSH, 0, 0, 0, 0, this);
      part.tag = bio;
      port.submit(part);
    }
  }

  /** A part of a flush. */
  bioEnded(part: Bio): void {
    const bio = part.tag as Bio;
    if (part.status !== 0) bio.status = part.status;
    this.#pool.put(part);
    if (--bio.waiting === 0) bio.end(bio.status);
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    const { port } = this.#stripes[Math.floor(offset / this.#chunk) % this.#stripes.length]!;
    return port.extents(this.#place(offset), Math.min(length, this.runAt(offset)));
  }
}

export const striped: TargetType = (args, context) => {
  const count = args.integer('the number of stripes', { min: 1, max: MAX_STRIPES });
  const chunk = args.integer('the chunk size', { min: 1, max: 2 ** 32 - 1 }) * SECTOR;
  if (context.length % (count * chunk) !== 0) {
    args.refuse(
      `its length of ${context.length / SECTOR} sectors is no multiple of ${count} chunks of ${chunk / SECTOR}`,
    );
  }
  const ports = Array.from({ length: count }, () => args.port(context.length / count));
  args.end();
  return new Striped(context, chunk, ports);
};
