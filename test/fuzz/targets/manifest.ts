/** Manifests of a backup directory that somebody got hold of: as they are, and with the checksum that an enemy would give
 *  them. Nothing outside the directory is read or changed, and what is not there is not called restorable. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { findPoint, formatManifest } from '../../../src/backup/manifest.ts';
import { planPrune } from '../../../src/backup/prune-plan.ts';
import { listPoints, readManifest } from '../../../src/backup/repository.ts';
import { assert } from '../../../src/util/assert.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { jsonText } from '../json.ts';
import { expected } from '../expected.ts';
import { DISK, RestorePoints } from '../restore-points.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

class ManifestSubject implements FuzzSubject {
  readonly #points: RestorePoints;
  readonly #files: string[];

  constructor(points: RestorePoints) {
    this.#points = points;
    this.#files = this.#list();
  }

  async run(input: Uint8Array): Promise<void> {
    await this.#read(input);
    const sealed = seal(Buffer.from(input).toString());
    if (sealed !== null) await this.#read(Buffer.from(sealed));
  }

  async #read(bytes: Uint8Array): Promise<void> {
    const { repository, diskPath } = this.#points;
    fs.writeFileSync(path.join(diskPath, 'manifest.json'), bytes);
    await expected(() => listPoints(repository));
    const manifest = await expected(() => readManifest(repository, DISK));
    if (manifest !== null) {
      await expected(() => findPoint(manifest, 'none'));
      await expected(() => planPrune(manifest, 1));
      await expected(() => formatManifest(manifest));
      await this.#points.openPoints([undefined, ...manifest.points.slice(0, 4).map(({ id }) => id)]);
    }
    const report = await this.#points.verify();
    for (const { point: id, restorable } of report?.points ?? [])
      assert(!restorable || fs.existsSync(path.join(diskPath, `${id}.qcow2`)), 'what is restorable is there');
    await this.#points.settle();
    assert(this.#list().join('\n') === this.#files.join('\n'), 'reading leaves the files as they are');
  }

  #list(): string[] {
    return fs.readdirSync(this.#points.directory, { recursive: true, encoding: 'utf8' }).toSorted();
  }

  close(): Promise<void> {
    return this.#points.close();
  }
}

/** With the checksum over what it says; null where it says nothing. */
function seal(text: string): string | null {
  try {
    const { checksum: _old, ...body } = JSON.parse(text) as Record<string, unknown>;
    const checksum = createHash('sha256').update(JSON.stringify(body)).digest('hex');
    return JSON.stringify({ ...body, checksum });
  } catch {
    return null;
  }
}

const IDS = [
  '20260101T000000Z-0001',
  '20260102T000000Z-0002',
  '20260103T000000Z-0003',
  '../../secret',
  '',
  'x'.repeat(300),
];

function point(draw: Draw, index: number): object {
  const content = (): object => ({
    kind: draw.one(['full', 'incremental', 'differential', 'full', 'other']),
    parent: draw.one([null, null, ...IDS]),
    bytesStored: draw.one([0, 65_536, ...EDGES, -1]),
    fileBytes: draw.one([0, 327_680, ...EDGES, 2 ** 52]),
    sums: draw.one(['0123456789abcdef', 'x', '../../secret']),
  });
  return {
    id: draw.chance(0.8) ? IDS[index % 3] : draw.one(IDS),
    createdAt: draw.one(['2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z', 'today']),
    size: draw.one([262_144, 262_144, 0, 1, 2 ** 52]),
    generationId: draw.one(['g', null, '']),
    changeNumber: draw.one([1, null, -1]),
    reason: 'why',
    bytesRead: 0,
    ...content(),
    ...(draw.chance(0.3) ? { rewrite: content() } : {}),
  };
}

function generate(draw: Draw): Uint8Array {
  return jsonText(draw, {
    format: draw.chance(0.95) ? 'blksnap-manifest' : 'other',
    version: draw.one([1, 1, 1, 1, 1, 2, -1, '1']),
    disk: draw.chance(0.95) ? DISK : draw.one(['..', 'other', 'vm/1']),
    identity: draw.one([null, 'id', '']),
    points: draw.list(draw.chance(0.98) ? 4 : 3000, (index) => point(draw, index)),
    checksum: '0',
  });
}

export const manifest: FuzzTarget = {
  name: 'manifest',
  generate,
  open: async () => new ManifestSubject(await RestorePoints.open()),
};
