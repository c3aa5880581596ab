/** What the qcow2 tests share: a reactor and a directory of their own, qemu's tools, and whole images in memory. */

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { BioPool, READ, runBio } from '../src/block/bio.ts';
import type { BlockDevice } from '../src/block/device.ts';
import { borrow } from '../src/io/files.ts';
import { openReactor } from '../src/io/open.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { openQcow2 } from '../src/qcow2/open.ts';
import { Qcow2Writer } from '../src/qcow2/writer.ts';
import type { Qcow2Result, Qcow2WriterOptions } from '../src/qcow2/writer.ts';
import type { Prng } from '../src/util/prng.ts';

const ARENA_BYTES = 32 * 2 ** 20;

/** What a cluster is written as. */
export type ClusterKind = 'nothing' | 'zero' | 'random' | 'text';

export class Bench {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'blksnap-qcow2-'));
  readonly pool = new BioPool();
  readonly reactor: Reactor;

  constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  static async open(): Promise<Bench> {
    return new Bench(await openReactor({ arenaBytes: ARENA_BYTES, cooperative: true }));
  }

  /** Fails when a test left memory or bios behind. */
  async close(): Promise<void> {
    rmSync(this.directory, { recursive: true, force: true });
    assert.equal(this.reactor.arena.lentBytes, 0, 'arena memory is still lent out');
    assert.equal(this.pool.lent, 0, 'bios are still lent out');
    await this.reactor.close();
  }

  path(name: string): string {
    return path.join(this.directory, name);
  }

  /** Reads the whole device, `step` bytes at a time, several reads under way at once. */
  async read(device: BlockDevice, step = 2 ** 20): Promise<Buffer> {
    const content = Buffer.alloc(device.size);
    const { arena } = this.reactor;
    const readAt = async (offset: number): Promise<void> => {
      const length = Math.min(step, device.size - offset);
      const at = await borrow(arena, length);
      arena.bytes.fill(0xa5, at, at + length);
      const status = await runBio(this.pool, device, { op: READ, offset, length, at });
      content.set(arena.bytes.subarray(at, at + length), offset);
      arena.release(at);
      assert.equal(status, 0, `read of ${length} at ${offset}`);
    };
    for (let offset = 0; offset < device.size; offset += 4 * step) {
      const starts = [0, 1, 2, 3].map((i) => offset + i * step).filter((start) => start < device.size);
      await Promise.all(starts.map((start) => readAt(start)));
    }
    return content;
  }

  /** Opens an image of ours or qemu's, reads it whole, closes it. */
  async readImage(file: string, step?: number): Promise<Buffer> {
    const device = await openQcow2(file, this);
    try {
      return await this.read(device, step);
    } finally {
      await device.close();
    }
  }

  /** Writes an image cluster by cluster from what it shall read as; `kinds` says how. Neighbours of one kind go out as
   *  one write, all of them at once. */
  async writeImage(
    file: string,
    options: Omit<Qcow2WriterOptions, 'reactor'> & { clusterBits: number },
    content: Buffer,
    kinds: readonly ClusterKind[],
  ): Promise<Qcow2Result> {
    const writer = await Qcow2Writer.create(file, { ...options, reactor: this.reactor });
    const clusterSize = 2 ** options.clusterBits;
    const lent: number[] = [];
    const writes: Array<Promise<void>> = [];
    for (let first = 0; first < kinds.length;) {
      let end = first + 1;
      while (end < kinds.length && kinds[end] === kinds[first]) end++;
      const offset = first * clusterSize;
      const length = Math.min(end * clusterSize, content.length) - offset;
      if (kinds[first] === 'zero') await writer.zero(offset, length);
      else if (kinds[first] !== 'nothing') {
        const at = await borrow(this.reactor.arena, length);
        lent.push(at);
        this.reactor.arena.bytes.set(content.subarray(offset, offset + length), at);
        writes.push(writer.write(offset, at, length));
      }
      first = end;
    }
    await Promise.all(writes);
    for (const at of lent) this.reactor.arena.release(at);
    return await writer.finish();
  }
}

/** Lays `kinds` over what is below: the content that the image shall read as. */
export function contentOf(
  below: Buffer | null,
  size: number,
  clusterSize: number,
  kinds: readonly ClusterKind[],
  random: Prng,
): Buffer {
  const content = Buffer.alloc(size);
  below?.copy(content, 0, 0, size);
  for (const [cluster, kind] of kinds.entries()) {
    const part = content.subarray(cluster * clusterSize, (cluster + 1) * clusterSize);
    if (kind === 'zero') part.fill(0);
    else if (kind === 'random') random.fill(part);
    else if (kind === 'text') part.fill(`line ${random.below(1000)}\n`);
  }
  return content;
}

export function qemuImg(...args: readonly string[]): string {
  return execFileSync('qemu-img', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export function qemuIo(file: string, ...commands: readonly string[]): string {
  return execFileSync('qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), file], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/** Fails unless qemu-img check finds nothing at all. */
export function assertSound(file: string): void {
  const report = JSON.parse(qemuImg('check', '--output=json', file)) as Record<string, unknown>;
  assert.deepEqual([report['corruptions'], report['leaks'], report['check-errors']], [undefined, undefined, 0]);
}
