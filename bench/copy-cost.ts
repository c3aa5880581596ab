/** `node --import tsx bench/copy-cost.ts`: what the kernel takes for the copies of a first overwrite, by plain calls in one
 *  thread: the bound of what a snapshot may keep of the rate of large writes to a file in memory. */

import fs from 'node:fs';
import path from 'node:path';
import { spreadOf } from './statistics.ts';

const MIB = 1024 * 1024;
const COUNT = 512;
const ROUNDS = 5;

const directory = fs.mkdtempSync('/dev/shm/blksnap-copy-');
const open = (name: string): number => fs.openSync(path.join(directory, name), 'w+');
const data = Buffer.alloc(MIB, 1);

/** µs for each MiB. */
function timed(step: (offset: number) => void): number {
  const began = performance.now();
  for (let i = 0; i < COUNT; i++) step(i * MIB);
  return ((performance.now() - began) * 1000) / COUNT;
}

const took = { overwrite: [] as number[], read: [] as number[], store: [] as number[] };
try {
  const origin = open('origin');
  timed((offset) => void fs.writeSync(origin, data, 0, MIB, offset));
  for (let round = 0; round < ROUNDS; round++) {
    const storage = open(`storage-${round}`);
    took.overwrite.push(timed((offset) => void fs.writeSync(origin, data, 0, MIB, offset)));
    took.read.push(timed((offset) => void fs.readSync(origin, data, 0, MIB, offset)));
    took.store.push(timed((offset) => void fs.writeSync(storage, data, 0, MIB, offset)));
    fs.closeSync(storage);
    fs.rmSync(path.join(directory, `storage-${round}`));
  }
} finally {
  fs.rmSync(directory, { recursive: true });
}
for (const [what, values] of Object.entries(took)) {
  const { median, min, max } = spreadOf(values);
  console.log(`${what.padEnd(10)}${median.toFixed(0).padStart(5)} µs/MiB   (${min.toFixed(0)} – ${max.toFixed(0)})`);
}
