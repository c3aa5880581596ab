/** mirror: the same data on several devices.
 *
 *      START LENGTH mirror core 1|2 REGION [sync|nosync] LEGS DEVICE SECTOR DEVICE SECTOR… [1 handle_errors]
 *
 *  REGION is in sectors. Unless `nosync` says that the legs are equal already, the first is copied to the others,
 *  region by region, while the device is in use (mirror-sync.ts). Reads go to the first leg that is well, and
 *  to the next when it fails; a region that is not copied yet is read and written on the first leg alone.
 *
 *  A leg that fails a write is out of use until the table is loaded anew: its data is old. A write fails only when
 *  no leg has taken it. Status: `LEGS DEVICE… SYNCED/REGIONS 1 AADS 1 core`, a letter for each leg: A well,
 *  D a write failed, S a copy failed, R a read failed. */

import { DISCARD, FAST_ZERO, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../block/bio.ts';
import type { Bio, BioOwner, BioPool } from '../../block/bio.ts';
import type { Extent } from '../../block/device.ts';
import { unreachable } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import { Ending } from '../../block/ending.ts';
import { RegionSync } from '../mirror-sync.ts';
import { SECTOR, quoteWord } from '../table.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetContext, TargetType } from '../target.ts';

const MAX_LEGS = 9;

type Health = 'A' | 'D' | 'S' | 'R';

/** One copy, and the owner of reads that are sent to it. */
export class Leg implements BioOwner {
  readonly port: DevicePort;
  health: Health = 'A';
  readonly #mirror: { readFailed(leg: Leg, bio: Bio): void };
  #owner: BioOwner | null = null;

  constructor(port: DevicePort, mirror: { readFailed(leg: Leg, bio: Bio): void }) {
    this.port = port;
    this.#mirror = mirror;
  }

  /** Whether what it holds may be trusted. */
  get current(): boolean {
    return this.health === 'A' || this.health === 'R';
  }

  read(bio: Bio): void {
    this.#owner = bio.owner;
    bio.owner = this;
    this.port.submit(bio);
  }

  bioEnded(bio: Bio): void {
    bio.owner = this.#owner!;
    bio.offset -= this.port.offset;
    if (bio.status === 0) bio.owner.bioEnded(bio);
    else this.#mirror.readFailed(this, bio);
  }
}

/** A change on its way to one leg. */
interface LegWrite {
  readonly leg: Leg;
  readonly bio: Bio;
}

class Mirror extends Target implements BioOwner {
  readonly type = 'mirror';
  readonly #pool: BioPool;
  readonly #legs: readonly Leg[];
  readonly #sync: RegionSync;
  readonly #head: string;
  readonly #tail: string;
  readonly #ending = new Ending();

  constructor(context: TargetContext, ports: readonly DevicePort[], options: MirrorOptions) {
    super(ports);
    this.#pool = context.pool;
    this.#legs = ports.map((port) => new Leg(port, this));
    this.#head = [
      'core',
      options.sync === null ? 1 : 2,
      options.regionBytes / SECTOR,
      ...(options.sync ?? '').split(' ').filter(Boolean),
    ].join(' ');
    this.#tail = options.handleErrors ? ' 1 handle_errors' : '';
    this.#sync = new RegionSync(context, this.#legs, {
      regionBytes: options.regionBytes,
      equal: options.sync === 'nosync',
      release: (bio) => this.submit(bio),
    });
  }

  table(): string {
    return `${this.#head} ${[this.ports.length, ...this.ports.map(({ words }) => words)].join(' ')}${this.#tail}`;
  }

  override status(): string {
    const names = this.ports.map(({ name }) => quoteWord(name));
    const health = this.#legs.map((leg) => leg.health).join('');
    return [this.#legs.length, ...names, this.#sync.progress, 1, health, 1, 'core'].join(' ');
  }

  /** A leg that could not zero fast would differ from one that could. */
  override get fastZero(): boolean {
    return false;
  }

  override runAt(offset: number): number {
    return this.#sync.runAt(offset);
  }

  submit(bio: Bio): void {
    switch (bio.op) {
      case READ:
        this.#read(bio);
        return;
      case FLUSH:
        this.#toLegs(bio, false);
        return;
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        if (!this.#possible(bio)) this.#ending.end(bio, ERRNO.EOPNOTSUPP);
        else if (!this.#sync.hold(bio)) this.#toLegs(bio, !this.#sync.copied(bio.offset));
        return;
      default:
        unreachable(bio.op);
    }
  }

  /** What one leg can and another cannot would make them differ. */
  #possible(bio: Bio): boolean {
    const able = (ability: 'discard' | 'writeZeroes'): boolean =>
      this.ports.every(({ device }) => device.capabilities[ability]);
    if (bio.op === DISCARD) return able('discard');
    return bio.op !== WRITE_ZEROES || ((bio.flags & FAST_ZERO) === 0 && able('writeZeroes'));
  }

  // --- reads ----------------------------------------------------------------------------------

  #read(bio: Bio): void {
    const legs = this.#legs;
    const only = this.#sync.copied(bio.offset) ? null : legs[0]!;
    const leg = only ?? legs.find(({ health }) => health === 'A') ?? legs.find(({ current }) => current);
    if (leg === undefined) this.#ending.end(bio, ERRNO.EIO);
    else leg.read(bio);
  }

  /** Tries the next leg that is well. */
  readFailed(leg: Leg, bio: Bio): void {
    if (leg.health === 'A') leg.health = 'R';
    const next = this.#legs.find(({ health }) => health === 'A');
    if (next !== undefined && this.#sync.copied(bio.offset)) next.read(bio);
    else this.#ending.end(bio, bio.status);
  }

  // --- changes and flushes --------------------------------------------------------------------

  #toLegs(bio: Bio, firstOnly: boolean): void {
    this.#sync.begin(bio, firstOnly);
    bio.status = ERRNO.EIO; // until a leg has taken it
    bio.waiting = 1;
    for (const leg of this.#legs) {
      if (!leg.current && !firstOnly) continue;
      bio.waiting++;
      const part = this.#pool.get(bio.op, bio.offset, bio.length, bio.at, bio.flags, this);
      part.tag = { leg, bio } satisfies LegWrite;
      leg.port.submit(part);
      if (firstOnly) break;
    }
    this.#partEnded(bio);
  }

  bioEnded(part: Bio): void {
    const { leg, bio } = part.tag as LegWrite;
    const { status } = part;
    this.#pool.put(part);
    if (status === 0) {
      if (bio.status === ERRNO.EIO) bio.status = 0;
    } else if (status === ERRNO.EOPNOTSUPP) bio.status = status;
    else leg.health = 'D';
    this.#partEnded(bio);
  }

  #partEnded(bio: Bio): void {
    if (--bio.waiting > 0) return;
    this.#sync.end(bio);
    this.#ending.end(bio, bio.status);
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    const leg = this.#sync.copied(offset) ? this.#legs.find(({ current }) => current) : this.#legs[0];
    return leg === undefined
      ? super.extents(offset, length)
      : leg.port.extents(offset, Math.min(length, this.runAt(offset)));
  }

  // --- life -----------------------------------------------------------------------------------

  override suspend(): Promise<void> {
    return this.#sync.stop();
  }

  override resume(): void {
    this.#sync.start();
  }

  override close(): void {
    this.#sync.close();
  }
}

interface MirrorOptions {
  readonly regionBytes: number;
  readonly sync: 'sync' | 'nosync' | null;
  readonly handleErrors: boolean;
}

export const mirror: TargetType = (args, context) => {
  const log = args.word('the type of log');
  if (log !== 'core') args.refuse(`the log is "${log}", want core: others need a device of their own`);
  const words = args.integer('the number of log arguments', { min: 1, max: 2 });
  const regionBytes = args.integer('the region size', { min: 1, max: 2 ** 31 }) * SECTOR;
  const sync = words === 2 ? args.word('sync or nosync') : null;
  if (sync !== null && sync !== 'sync' && sync !== 'nosync') args.refuse(`"${sync}" is neither sync nor nosync`);
  const legs = args.integer('the number of legs', { min: 2, max: MAX_LEGS });
  const ports = Array.from({ length: legs }, () => args.port(context.length));
  const handleErrors = args.left > 0;
  if (handleErrors) {
    args.integer('the number of features', { min: 1, max: 1 });
    const feature = args.word('a feature');
    if (feature !== 'handle_errors') args.refuse(`unknown feature "${feature}": known is handle_errors`);
  }
  args.end();
  return new Mirror(context, ports, { regionBytes, sync: sync as MirrorOptions['sync'], handleErrors });
};
