/** Sums files of restore points: as an enemy would write them, with the checksum that the manifest asks for. A point
 *  whose sums do not cover its file is not sound. */

import fs from 'node:fs';
import { writeManifest, sumsFile } from '../../../src/backup/repository.ts';
import { assert } from '../../../src/util/assert.ts';
import { RangeChecksums } from '../../../src/util/checksum.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { RestorePoints } from '../restore-points.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

class SumsSubject implements FuzzSubject {
  readonly #points: RestorePoints;
  readonly #honest: string;

  constructor(points: RestorePoints) {
    this.#points = points;
    this.#honest = fs.readFileSync(points.sumsFileOf(points.manifest.points[1]!), 'utf8');
  }

  async run(input: Uint8Array): Promise<void> {
    const { diskPath, manifest } = this.#points;
    const [full, increment] = [manifest.points[0]!, manifest.points[1]!];
    const sums = checksumOf(Buffer.from(input).toString());
    const file = sumsFile(diskPath, increment.id, sums);
    fs.writeFileSync(file, input);
    writeManifest(diskPath, { ...manifest, points: [full, { ...increment, sums }] });
    const report = await this.#points.verify();
    assert(report?.sound !== true || this.#isHonest(input), 'sums that are sound are those of the file');
    await this.#points.settle();
    if (!this.#isHonest(input)) fs.rmSync(file);
  }

  #isHonest(input: Uint8Array): boolean {
    return Buffer.from(input).toString().trimEnd() === this.#honest.trimEnd();
  }

  close(): Promise<void> {
    return this.#points.close();
  }
}

function checksumOf(text: string): string {
  const bytes = Buffer.from(text);
  if (bytes.length === 0) return '0'.repeat(16);
  const whole = new RangeChecksums(bytes.length);
  whole.update(bytes);
  return whole.finish()[0]!;
}

function generate(draw: Draw): Uint8Array {
  const number = (): number | string =>
    draw.one([0, 327_680, 4_194_304, 65_536, 1, '99999999999999999999', '-1', ...EDGES]);
  const sums = draw.list(draw.chance(0.9) ? 8 : 20_000, () =>
    draw.one(['0123456789abcdef', '', 'x', 'ffffffffffffffff']),
  );
  return Buffer.from([`blksnap-sums ${draw.one([1, 1, 1, 2])} ${number()} ${number()}`, ...sums, ''].join('\n'));
}

export const sums: FuzzTarget = {
  name: 'sums',
  generate,
  open: async () => new SumsSubject(await RestorePoints.open()),
};
