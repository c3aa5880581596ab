/** A small backup directory of one disk, made anew for every input: a full point, one that rests on it, and above the
 *  directory a file that is none of its business. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { makeDiskDirectory, pointFile, sumsFile, writeManifest } from '../../src/backup/repository.ts';
import { emptyManifest } from '../../src/backup/manifest.ts';
import type { Manifest, RestorePoint } from '../../src/backup/manifest.ts';
import { openPoint } from '../../src/backup/open-point.ts';
import { writePointFile } from '../../src/backup/point-file.ts';
import { verify } from '../../src/backup/verify.ts';
import type { VerifyReport } from '../../src/backup/verify.ts';
import { BioPool } from '../../src/block/bio.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { openReactor } from '../../src/io/open.ts';
import type { Reactor } from '../../src/io/reactor.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { expected } from './expected.ts';
import { settled } from './settled.ts';

export const DISK = 'vm';
const FULL = '20260101T000000Z-0001';
const INCREMENT = '20260102T000000Z-0002';
const SIZE = 256 * KIB;

export class RestorePoints {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-points-'));
  readonly repository = path.join(this.directory, 'backups');
  readonly diskPath: string;
  readonly reactor: Reactor;
  readonly #pool = new BioPool();
  manifest: Manifest = emptyManifest(DISK, null);

  static async open(): Promise<RestorePoints> {
    const made = new RestorePoints(await openReactor({ arenaBytes: 32 * MIB, cooperative: true }));
    await made.#make();
    return made;
  }

  private constructor(reactor: Reactor) {
    this.reactor = reactor;
    this.diskPath = makeDiskDirectory(this.repository, DISK);
    fs.writeFileSync(path.join(this.directory, 'secret'), 'nobody');
  }

  async #make(): Promise<void> {
    const device = new MemoryDevice(DISK, SIZE, this.reactor.arena);
    device.bytes.fill(7, 0, SIZE / 2);
    const points: RestorePoint[] = [];
    for (const id of [FULL, INCREMENT]) {
      const parent = id === FULL ? null : FULL;
      const { content } = await writePointFile(
        device,
        {
          diskPath: this.diskPath,
          id,
          file: pointFile(this.diskPath, id),
          parent,
          ranges: [{ offset: 0, length: parent === null ? SIZE : 64 * KIB }],
        },
        { reactor: this.reactor, pool: this.#pool },
      );
      points.push({
        id,
        createdAt: '2026-01-01T00:00:00.000Z',
        size: SIZE,
        generationId: 'g',
        changeNumber: points.length + 1,
        reason: 'asked for',
        bytesRead: SIZE,
        kind: parent === null ? 'full' : 'incremental',
        ...content,
      });
    }
    await device.close();
    this.manifest = { ...this.manifest, points };
    writeManifest(this.diskPath, this.manifest);
  }

  /** The point's sums file as it is. */
  sumsFileOf(point: RestorePoint): string {
    return sumsFile(this.diskPath, point.id, point.sums);
  }

  /** Null where it fails with an error of ours. */
  async verify(): Promise<VerifyReport | null> {
    return expected(() => verify({ directory: this.repository, reactor: this.reactor, pool: this.#pool }));
  }

  async openPoints(ids: readonly (string | undefined)[]): Promise<void> {
    for (const point of ids) {
      const context = { reactor: this.reactor, pool: this.#pool };
      const opened = await expected(() => openPoint({ directory: this.repository, disk: DISK, point }, context));
      await opened?.device.close();
    }
  }

  async settle(): Promise<void> {
    const { arena } = this.reactor;
    await settled('everything is given back', () => arena.lentBytes === 0 && this.#pool.lent === 0);
  }

  async close(): Promise<void> {
    await this.reactor.close();
    fs.rmSync(this.directory, { recursive: true });
  }
}
