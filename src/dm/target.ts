/** The contract between a mapped device and the targets of its table.
 *
 *  A target owns a range of the mapped device. It gets bios that are its own to change and resubmit: copies whose
 *  offset counts from the target's start, and whose owner is the mapped device. A target ends each exactly
 *  once, by submitting it on to a device, or by `end`, from wherever it likes. To hear a bio's end it puts
 *  itself into `bio.owner`, and hands the bio to the owner before.
 *
 *  Hot path: submit. Constructing a target checks its arguments and names the devices it wants; they are
 *  opened after that, so that a table is understood whole before anything is touched. */

import type { Bio, BioPool } from '../block/bio.ts';
import { FLUSH } from '../block/bio.ts';
import type { BlockDevice, Extent } from '../block/device.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import type { TargetArgs } from './args.ts';
import { SECTOR, quoteWord } from './table.ts';

/** A range of a device that a target maps to. */
export class DevicePort {
  /** As the table has it: the name of a disk, or a path. */
  readonly name: string;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
  /** Set before the first bio. */
  device!: BlockDevice;

  constructor(name: string, offset: number, length: number) {
    this.name = name;
    this.offset = offset;
    this.length = length;
  }

  /** Sends a bio on whose offset counts from the port's start. */
  submit(bio: Bio): void {
    if (bio.op !== FLUSH) bio.offset += this.offset;
    this.device.submit(bio);
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    return this.device.extents(this.offset + offset, length);
  }

  /** `NAME SECTOR`, as tables have it. */
  get words(): string {
    return `${quoteWord(this.name)} ${this.offset / SECTOR}`;
  }
}

export interface TargetContext {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Bytes of the target. */
  readonly length: number;
}

export abstract class Target {
  abstract readonly type: string;
  /** The ranges it maps to; empty for targets without a device. */
  readonly ports: readonly DevicePort[];
  constructor(ports: readonly DevicePort[]) {
    this.ports = ports;
  }

  /** The arguments, as a table has them. */
  abstract table(): string;
  /** What `status` prints after the target's name; may be empty. */
  status(): string {
    return '';
  }

  /** How many bytes from `offset` on one bio may have, at least 1. */
  runAt(_offset: number): number {
    return Infinity;
  }
  abstract submit(bio: Bio): void;
  /** As BlockDevice.extents, from the target's start. */
  async extents(_offset: number, length: number): Promise<Extent[]> {
    return [{ length, hole: false, zero: false }];
  }

  /** Answers a message, '' where there is nothing to say. Errors: EINVAL. */
  message(words: readonly string[]): string {
    throw new BlksnapError('EINVAL', `Target "${this.type}" does not understand "${words.join(' ')}"`);
  }

  /** False where zeroing may be slower than the devices promise. */
  get fastZero(): boolean {
    return true;
  }

  /** Bios are held from now on: lets go of every bio that it keeps back itself, and ends what it does of its own. */
  async suspend(): Promise<void> {}
  /** Bios come again. Also called before the very first. */
  resume(): void {}
  /** The table goes; no bio is under way. Safe to call twice. */
  close(): void {}
}

/** Makes a target of one line. Errors: EINVAL for arguments that are wrong. */
export type TargetType = (args: TargetArgs, context: TargetContext) => Target;
