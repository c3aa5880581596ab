/** A table that is ready for bios: its targets, and the devices they map to.
 *
 *  Made in two steps, so that nothing is opened for a table that is wrong: `planMapping` makes the targets, which
 *  name the ranges that they want; `openMapping` gets the devices and checks that everything fits.
 *  Hot path: indexAt. */

import type { BioPool } from '../block/bio.ts';
import type { BlockDevice, Capabilities } from '../block/device.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import { SECTOR, formatTable } from './table.ts';
import type { TableLine } from './table.ts';
import { makeTarget } from './target-types.ts';
import type { Target } from './target.ts';

export interface MappingContext {
  readonly reactor: Reactor;
  readonly pool: BioPool;
}

/** A device that a table may use until it is given back. */
export interface LentDevice {
  readonly device: BlockDevice;
  /** Safe to call twice. */
  giveBack(): Promise<void>;
}

/** Targets that have no devices yet. */
export interface MappingPlan {
  readonly table: readonly TableLine[];
  readonly targets: readonly Target[];
}

/** Errors: EINVAL. */
export function planMapping(table: readonly TableLine[], context: MappingContext): MappingPlan {
  const targets: Target[] = [];
  try {
    for (const line of table) targets.push(makeTarget(line, context));
  } catch (cause) {
    for (const target of targets) target.close();
    throw cause;
  }
  return { table, targets };
}

/** Gets the devices by `lend`, each once. Errors: those of `lend`; EINVAL for a range outside its device or off its
 *  blocks. What was lent is then given back. */
export async function openMapping(plan: MappingPlan, lend: (name: string) => Promise<LentDevice>): Promise<Mapping> {
  const lent = new Map<string, LentDevice>();
  try {
    for (const port of plan.targets.flatMap(({ ports }) => ports)) {
      let device = lent.get(port.name);
      if (device === undefined) lent.set(port.name, (device = await lend(port.name)));
      port.device = device.device;
    }
    return new Mapping(plan, [...lent.values()]);
  } catch (cause) {
    for (const target of plan.targets) target.close();
    for (const device of lent.values()) await device.giveBack();
    throw cause;
  }
}

export class Mapping {
  readonly targets: readonly Target[];
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  /** Bytes: where each target starts, and at last where the last one ends. */
  readonly starts: Float64Array;
  readonly #table: readonly TableLine[];
  readonly #lent: readonly LentDevice[];
  #closed = false;

  constructor({ table, targets }: MappingPlan, lent: readonly LentDevice[]) {
    const last = table.at(-1)!;
    const devices = lent.map(({ device }) => device);
    const all = (ability: keyof Capabilities): boolean => devices.every(({ capabilities }) => capabilities[ability]);
    this.targets = targets;
    this.size = (last.start + last.length) * SECTOR;
    this.starts = Float64Array.from([...table.map(({ start }) => start * SECTOR), this.size]);
    this.logicalBlockSize = Math.max(SECTOR, ...devices.map(({ logicalBlockSize }) => logicalBlockSize));
    this.physicalBlockSize = Math.max(SECTOR, ...devices.map(({ physicalBlockSize }) => physicalBlockSize));
    this.readOnly = devices.some(({ readOnly }) => readOnly);
    this.capabilities = {
      flush: all('flush'),
      fua: all('fua'),
      discard: all('discard') && !this.readOnly,
      writeZeroes: all('writeZeroes') && !this.readOnly,
      fastZero: all('fastZero') && targets.every(({ fastZero }) => fastZero),
      rotational: devices.some(({ capabilities }) => capabilities.rotational),
    };
    this.#table = table;
    this.#lent = lent;
    this.#checkFit();
  }

  #checkFit(): void {
    const block = this.logicalBlockSize;
    for (const [index, target] of this.targets.entries()) {
      const line = formatTable([this.#table[index]!]);
      const refuse = (why: string): never => {
        throw new BlksnapError('EINVAL', `Cannot use table line "${line}": ${why}`);
      };
      for (const { name, offset, length, device } of target.ports) {
        if (offset + length > device.size) {
          refuse(
            `it ends at sector ${(offset + length) / SECTOR} of "${name}", which has ${Math.floor(device.size / SECTOR)}`,
          );
        }
        if (offset % block !== 0)
          refuse(`sector ${offset / SECTOR} of "${name}" is not on a boundary of ${block} bytes`);
      }
      if (this.starts[index + 1]! % block !== 0) refuse(`it does not end on a boundary of ${block} bytes`);
      const run = target.runAt(0);
      if (Number.isFinite(run) && run % block !== 0) refuse(`its pieces are no multiple of ${block} bytes`);
    }
  }

  /** The place in `targets` of the one that holds the offset. */
  indexAt(offset: number): number {
    const { starts } = this;
    let low = 0;
    let high = this.targets.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (starts[middle]! <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Each target's line: as a table, or with what it tells of itself. One that has nothing to tell ends in a blank, as
   *  dmsetup prints it. */
  lines(kind: 'table' | 'status'): string[] {
    return this.targets.map((target, index) => {
      const { start, length } = this.#table[index]!;
      return `${start} ${length} ${target.type} ${target[kind]()}`;
    });
  }

  /** No bio is under way. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const target of this.targets) target.close();
    for (const device of this.#lent) await device.giveBack();
  }
}
