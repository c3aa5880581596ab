/** Change map files that rotted, or that somebody made: either a new history, or one that keeps its own rules. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { CbtMap } from '../../../src/blksnap/cbt-map.ts';
import { assert } from '../../../src/util/assert.ts';
import { BlksnapError } from '../../../src/util/errors.ts';
import { MIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const DEVICE_BYTES = MIB;
const HEADER_BYTES = 4096;
const BLOCKS = 16;

class MapSubject implements FuzzSubject {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-map-'));

  async run(input: Uint8Array): Promise<void> {
    const file = path.join(this.#directory, 'x.map');
    fs.writeFileSync(file, input);
    for (const originPath of [null, this.#directory]) this.#open(file, originPath);
  }

  #open(file: string, originPath: string | null): void {
    let map: CbtMap;
    try {
      map = CbtMap.open({ path: file, deviceSize: DEVICE_BYTES, originPath });
    } catch (cause) {
      if (cause instanceof BlksnapError) return;
      throw cause;
    }
    assert(/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(map.generationId), 'a generation id is a UUID');
    assert(map.changeNumber >= 1 && map.changeNumber <= 255, 'a change number is 1 to 255');
    assert(
      map.map.length === BLOCKS && map.map.every((number) => number <= map.changeNumber),
      'no block is of the future',
    );
    assert(map.reason === '' || map.map.every((number) => number === 0), 'a new history knows no change');
    map.mark(0, 4096, 1);
    map.advance();
    map.close();
  }

  async close(): Promise<void> {
    fs.rmSync(this.#directory, { recursive: true });
  }
}

function generate(draw: Draw): Uint8Array {
  const bytes = Buffer.alloc(HEADER_BYTES + draw.one([BLOCKS, BLOCKS, BLOCKS, BLOCKS - 1, BLOCKS + 1, 0]));
  bytes.write('BLKSNCBT', 'latin1');
  const usual = (value: number): number => (draw.chance(0.95) ? value : draw.one(EDGES));
  bytes.writeUInt32LE(usual(1), 8);
  bytes.writeUInt32LE(usual(16), 12);
  bytes.writeBigUInt64LE(BigInt(usual(DEVICE_BYTES)), 16);
  const number = draw.one([1, 2, 7, 254, 255, 256, 0, 0xffff_ffff]);
  bytes.writeUInt32LE(number, 24);
  bytes.writeUInt32LE(draw.one([0, 1, 1, 2]), 28);
  bytes.write(draw.chance(0.9) ? '0b5f11b3-0b7a-4c9e-8f5c-2f1c3e0d9a77' : 'x'.repeat(36), 32, 'latin1');
  bytes.write(fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').slice(0, 36), 72, 'latin1');
  bytes.writeUInt32LE(draw.one([0, 0, 1, 2]), 112);
  for (let at = HEADER_BYTES; at < bytes.length; at++)
    bytes[at] = draw.below(draw.chance(0.95) ? Math.min(256, number + 1) : 256);
  return bytes;
}

export const cbtMap: FuzzTarget = { name: 'cbt-map', generate, open: async () => new MapSubject() };
