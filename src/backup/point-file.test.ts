import { expect, test } from 'vitest';
import { Bench } from '../../test/qcow2-images.ts';
import { BioPool } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { KIB, MIB } from '../util/units.ts';
import { writePointFile } from './point-file.ts';
import type { ByteRange } from './ranges.ts';

const SIZE = 200 * MIB;
const BLOCK = 64 * KIB;

test('all of the disk is told to be done: the last gap at the start, others with what comes after them', async () => {
  const bench = await Bench.open();
  try {
    const device = new MemoryDevice('disk', SIZE, bench.reactor.arena);
    const ranges = [MIB, 10 * MIB, 70 * MIB, 120 * MIB].map((offset) => ({ offset, length: BLOCK }));
    for (const { offset, length } of ranges) device.bytes.fill(1, offset, offset + length);
    const done: ByteRange[] = [];
    const onDone = async (range: ByteRange): Promise<void> => void done.push(range);
    const point = { diskPath: bench.path(''), id: 'point', file: bench.path('point.qcow2'), parent: 'full', ranges };
    const { content } = await writePointFile(device, point, { reactor: bench.reactor, pool: new BioPool(), onDone });
    expect(content.bytesStored).toBe(4 * BLOCK);
    expect(done).toEqual([
      { offset: 120 * MIB + BLOCK, length: 80 * MIB - BLOCK },
      { offset: 0, length: MIB + BLOCK },
      { offset: MIB + BLOCK, length: 9 * MIB },
      { offset: 10 * MIB + BLOCK, length: 60 * MIB },
      { offset: 70 * MIB + BLOCK, length: 50 * MIB },
    ]);
  } finally {
    await bench.close();
  }
});
