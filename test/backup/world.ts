/** A disk that changes, its snapshots, and a backup directory, for the tests of backup/: a seeded writer, a change map
 *  of the plainest kind, and the content of every snapshot that was backed up. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { backUp } from '../../src/backup/backup.ts';
import type { BackupOptions, BackupResult } from '../../src/backup/backup.ts';
import type { ByteRange } from '../../src/backup/ranges.ts';
import type { BackupSource } from '../../src/backup/source.ts';
import { restore } from '../../src/backup/restore.ts';
import { BioPool } from '../../src/block/bio.ts';
import { openDevice } from '../../src/block/open.ts';
import { openReactor } from '../../src/io/open.ts';
import type { Reactor } from '../../src/io/reactor.ts';
import { assert } from '../../src/util/assert.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { isZero } from '../../src/util/zeroes.ts';

const TRACKING_BLOCK = 64 * KIB;
/** No whole number of clusters, so that the last one is short. */
export const DISK_BYTES = 8 * MIB + 3 * 512;

export class BackupWorld {
  readonly directory: string;
  readonly repository: string;
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly disk = new Uint8Array(DISK_BYTES);
  /** By point: what the disk was. */
  readonly contents = new Map<string, Uint8Array>();
  generationId = 'generation-1';
  #changeNumber = 1;
  readonly #changedAt = new Uint8Array(Math.ceil(DISK_BYTES / TRACKING_BLOCK));
  readonly #random: Prng;
  #files = 0;

  /** `repository`: a backup directory that is there already. */
  static async open(seed = 1, repository?: string): Promise<BackupWorld> {
    return new BackupWorld(await openReactor({ cooperative: true, arenaBytes: 32 * MIB }), seed, repository);
  }

  private constructor(reactor: Reactor, seed: number, repository: string | undefined) {
    this.reactor = reactor;
    this.#random = new Prng(seed);
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-backup-'));
    this.repository = repository ?? path.join(this.directory, 'backups');
    this.scribble(40);
  }

  /** Also checks that nothing is still held. */
  async close(): Promise<void> {
    assert(this.pool.lent === 0, 'no bio is lent out at the end');
    assert(this.reactor.arena.lentBytes === 0, 'no memory is lent out at the end');
    await this.reactor.close();
    fs.rmSync(this.directory, { recursive: true });
  }

  get diskPath(): string {
    return path.join(this.repository, 'vda');
  }

  newPath(): string {
    return path.join(this.directory, `file-${this.#files++}`);
  }

  /** Writes data and zeros here and there. */
  scribble(writes: number): void {
    for (let i = 0; i < writes; i++) {
      const offset = 512 * this.#random.below(DISK_BYTES / 512);
      const length = Math.min(512 * (1 + this.#random.below(400)), DISK_BYTES - offset);
      const bytes = this.disk.subarray(offset, offset + length);
      if (this.#random.chance(0.3)) bytes.fill(0);
      else this.#random.fill(bytes);
      for (let block = Math.floor(offset / TRACKING_BLOCK); block * TRACKING_BLOCK < offset + length; block++) {
        this.#changedAt[block] = this.#changeNumber;
      }
    }
  }

  /** Freezes the disk into a sparse file. The source's device is the caller's to close. */
  async snapshot(): Promise<BackupSource & { readonly content: Uint8Array }> {
    const content = this.disk.slice();
    const changedAt = this.#changedAt.slice();
    const changeNumber = this.#changeNumber++;
    const file = this.newPath();
    const fd = fs.openSync(file, 'w');
    fs.ftruncateSync(fd, DISK_BYTES);
    for (let at = 0; at < DISK_BYTES; at += 4096) {
      const block = content.subarray(at, at + 4096);
      if (!isZero(block)) fs.writeSync(fd, block, 0, block.length, at);
    }
    fs.closeSync(fd);
    return {
      content,
      disk: 'vda',
      identity: 'disk-1',
      device: await openDevice(file, { reactor: this.reactor, readOnly: true }),
      generationId: this.generationId,
      changeNumber,
      changedSince: (since) => Promise.resolve(changedBlocks(changedAt, since)),
    };
  }

  /** Snapshots the disk and backs it up. */
  async backUp(options: Partial<BackupOptions> = {}): Promise<BackupResult> {
    const source = await this.snapshot();
    try {
      const result = await backUp(source, {
        directory: this.repository,
        reactor: this.reactor,
        pool: this.pool,
        ...options,
      });
      this.contents.set(result.point.id, source.content);
      return result;
    } finally {
      await source.device.close();
    }
  }

  /** Restores points, by default all that were made: those that are not what the disk was. */
  async wrongPoints(points: Iterable<string> = this.contents.keys()): Promise<string[]> {
    const wrong: string[] = [];
    for (const point of points) {
      const to = this.newPath();
      await restore({ directory: this.repository, disk: 'vda', point, to, reactor: this.reactor, pool: this.pool });
      if (Buffer.compare(fs.readFileSync(to), this.contents.get(point)!) !== 0) wrong.push(point);
      fs.unlinkSync(to);
    }
    return wrong;
  }

  /** Changes one byte of a point's file; returns the file. */
  damage(id: string, offset: number): string {
    const file = path.join(this.diskPath, `${id}.qcow2`);
    const fd = fs.openSync(file, 'r+');
    const byte = Buffer.alloc(1);
    fs.readSync(fd, byte, 0, 1, offset);
    byte[0]! ^= 1;
    fs.writeSync(fd, byte, 0, 1, offset);
    fs.closeSync(fd);
    return file;
  }

  /** The names in the disk's directory, without the lock. */
  files(): string[] {
    return fs.readdirSync(this.diskPath).filter((name) => name !== '.lock');
  }
}

function changedBlocks(changedAt: Uint8Array, since: number): ByteRange[] {
  const ranges: ByteRange[] = [];
  for (const [block, number] of changedAt.entries()) {
    const offset = block * TRACKING_BLOCK;
    if (number > since) ranges.push({ offset, length: Math.min(TRACKING_BLOCK, DISK_BYTES - offset) });
  }
  return ranges;
}
