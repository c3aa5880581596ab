/** The partitions of an I/O thread's disks, each a disk of its own: `NAME/1`, …
 *
 *  A partition's bios go through its disk, gate and filters and all: there they are tracked and copied. So a
 *  partition has a gate and filters, but no tracker; what it tells of changes comes from its disk (partition-views.ts).
 *  The table is read when a disk is attached, and again when asked. */

import type { BioPool } from '../block/bio.ts';
import { READ, runBio } from '../block/bio.ts';
import { Disk } from '../block/disk.ts';
import { readPartitionTable } from '../block/partition-table.ts';
import type { Partition, PartitionTable } from '../block/partition-table.ts';
import { RangeDevice } from '../block/range-device.ts';
import { borrow } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { partitionName } from './disk-names.ts';
import type { KeptFilter } from './state.ts';

const READ_BYTES = 64 * KIB;

export interface PartitionDisk {
  readonly partition: Partition;
  readonly disk: Disk;
}

/** What is known of a disk's partition table. */
export interface TableInfo {
  /** Null where there is none. */
  readonly scheme: PartitionTable['scheme'] | null;
  /** What is wrong with it, and which partitions were left out. */
  readonly warnings: readonly string[];
}

export interface PartitionDisksOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly attachFilter: (disk: Disk, filter: KeptFilter) => Promise<void>;
  /** Offers the disk to clients. */
  readonly offer: (disk: Disk, description: string) => void;
  /** Ends that, and the connections that use it. */
  readonly drop: (name: string) => Promise<void>;
  /** Who keeps the disk from going; empty when nobody does. */
  readonly users: (name: string) => readonly string[];
}

export class PartitionDisks {
  readonly #o: PartitionDisksOptions;
  readonly #disks = new Map<string, PartitionDisk>();
  readonly #tables = new Map<Disk, TableInfo>();

  constructor(options: PartitionDisksOptions) {
    this.#o = options;
  }

  get(name: string): PartitionDisk | undefined {
    return this.#disks.get(name);
  }

  of(whole: Disk): PartitionDisk[] {
    return [...this.#disks.values()].filter(({ disk }) => disk.name.startsWith(`${whole.name}/`));
  }

  table(whole: Disk): TableInfo {
    return this.#tables.get(whole) ?? { scheme: null, warnings: [] };
  }

  /** Reads the table anew: partitions that are where they were stay as they are. Errors: EBUSY when one that is in use
   *  would have to go, and nothing has changed then; what a filter fails with, whose partition is not served then. */
  async scan(whole: Disk, filters: readonly KeptFilter[]): Promise<void> {
    const table = await this.#read(whole);
    const found = new Map((table?.partitions ?? []).map((one) => [partitionName(whole.name, one.number), one]));
    const gone = this.of(whole).filter(({ disk, partition }) => !samePlace(partition, found.get(disk.name)));
    for (const { disk } of gone) {
      const users = this.#o.users(disk.name);
      if (users.length === 0) continue;
      throw new BlksnapError(
        'EBUSY',
        `Cannot take over the partition table: "${disk.name}" is used by ${users.join(', ')}`,
      );
    }
    for (const { disk } of gone) await this.#remove(disk);
    this.#tables.set(whole, { scheme: table?.scheme ?? null, warnings: table?.warnings ?? [] });
    const failures: unknown[] = [];
    for (const [name, partition] of found) {
      const known = this.#disks.get(name);
      if (known === undefined) {
        const own = filters.filter(({ partition: number }) => number === partition.number);
        await this.#add(whole, partition, own).catch((cause: unknown) => failures.push(cause));
      } else {
        this.#disks.set(name, { partition, disk: known.disk });
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  async #add(whole: Disk, partition: Partition, filters: readonly KeptFilter[]): Promise<void> {
    const { number, offset, length } = partition;
    const name = partitionName(whole.name, number);
    const disk = new Disk(name, new RangeDevice(name, whole, { offset, length, pool: this.#o.pool }));
    try {
      for (const filter of filters) await this.#o.attachFilter(disk, filter);
    } catch (cause) {
      await disk.close();
      throw cause;
    }
    this.#disks.set(name, { partition, disk });
    this.#o.offer(disk, `partition ${number} of disk ${whole.name}`);
  }

  async #read(whole: Disk): Promise<PartitionTable | null> {
    const at = await borrow(this.#o.reactor.arena, READ_BYTES);
    try {
      return await readPartitionTable(whole, (offset, length) => this.#readBytes(whole, { offset, length, at }));
    } catch (cause) {
      return {
        scheme: 'mbr',
        partitions: [],
        warnings: [`the partition table cannot be read: ${toBlksnapError(cause).message}`],
      };
    } finally {
      this.#o.reactor.arena.release(at);
    }
  }

  async #readBytes(
    whole: Disk,
    { offset, length, at }: { offset: number; length: number; at: number },
  ): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; done += READ_BYTES) {
      const part = Math.min(READ_BYTES, length - done);
      const status = await runBio(this.#o.pool, whole, { op: READ, offset: offset + done, length: part, at });
      if (status !== 0) throw errnoError(status, `Cannot read ${part} bytes at ${offset + done}`);
      bytes.set(this.#o.reactor.arena.bytes.subarray(at, at + part), done);
    }
    return bytes;
  }

  /** Closes the partitions of a disk that goes. */
  async forget(whole: Disk): Promise<void> {
    this.#tables.delete(whole);
    for (const { disk } of this.of(whole)) await this.#remove(disk);
  }

  async #remove(disk: Disk): Promise<void> {
    await this.#o.drop(disk.name);
    await disk.close();
    this.#disks.delete(disk.name);
  }
}

function samePlace(one: Partition, other: Partition | undefined): boolean {
  return other !== undefined && other.offset === one.offset && other.length === one.length;
}
