/** `node --import tsx bench/copy-cost.ts`: what the kernel takes for the copies of a first overwrite, by plain calls: the bound
 *  of what a snapshot may keep of the rate of large writes to a file in memory.
 *
 *  First call by call in one thread; then all that the kernel does for a write from a socket, without and with the copies,
 *  by as many processes at once as there are processors. No client and server on these processors are faster,
 *  however they divide the work. */

import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { socketPair } from '../src/io/sys.ts';
import { spreadOf } from './statistics.ts';

const MIB = 1024 * 1024;
const COUNT = 512;
const ROUNDS = 5;
/** What a socket takes at once. */
const PIECE = 64 * 1024;

const data = Buffer.alloc(MIB, 1);

/** µs for each MiB. */
function timed(step: (offset: number) => void): number {
  const began = performance.now();
  for (let i = 0; i < COUNT; i++) step(i * MIB);
  return ((performance.now() - began) * 1000) / COUNT;
}

/** One round of one process: both kinds of first overwrites, each when the parent says so. */
async function work(directory: string): Promise<void> {
  const pair = socketPair();
  const open = (name: string): number => fs.openSync(path.join(directory, `${name}-${process.pid}`), 'w+');
  const [origin, storage] = [open('origin'), open('storage')];
  const write = (offset: number): void => {
    for (let at = 0; at < MIB; at += PIECE) {
      fs.writeSync(pair[0], data, at, PIECE);
      for (let got = 0; got < PIECE;) got += fs.readSync(pair[1], data, at + got, PIECE - got, null);
    }
    fs.writeSync(origin, data, 0, MIB, offset);
  };
  const copy = (offset: number): void => {
    fs.readSync(origin, data, 0, MIB, offset);
    fs.writeSync(storage, data, 0, MIB, offset);
    write(offset);
  };
  timed(write);
  let told = once(process, 'message');
  process.send!('ready');
  for (const step of [write, copy]) {
    await told;
    told = once(process, 'message');
    process.send!(timed(step));
  }
  process.disconnect();
}

/** µs for each MiB in all, with all processors busy: without and with the copies. */
async function together(directory: string): Promise<{ plain: number; copied: number }> {
  const workers = os.cpus().map(() => fork(import.meta.filename, [directory]));
  const all = (): Promise<number[]> =>
    Promise.all(workers.map(async (one: ChildProcess) => Number(((await once(one, 'message')) as [unknown])[0])));
  const measure = async (): Promise<number> => {
    for (const one of workers) one.send('go');
    return Math.max(...(await all())) / workers.length;
  };
  const ends = workers.map((one) => once(one, 'exit'));
  await all();
  const plain = await measure();
  const copied = await measure();
  await Promise.all(ends);
  for (const name of fs.readdirSync(directory)) fs.rmSync(path.join(directory, name));
  return { plain, copied };
}

const took = {
  overwrite: [] as number[],
  read: [] as number[],
  store: [] as number[],
  'all processors, no copy': [] as number[],
  'all processors, copies': [] as number[],
};

async function main(directory: string): Promise<void> {
  const file = (name: string): number => fs.openSync(path.join(directory, name), 'w+');
  const origin = file('origin');
  timed((offset) => void fs.writeSync(origin, data, 0, MIB, offset));
  for (let round = 0; round < ROUNDS; round++) {
    const storage = file('storage');
    took.overwrite.push(timed((offset) => void fs.writeSync(origin, data, 0, MIB, offset)));
    took.read.push(timed((offset) => void fs.readSync(origin, data, 0, MIB, offset)));
    took.store.push(timed((offset) => void fs.writeSync(storage, data, 0, MIB, offset)));
    fs.closeSync(storage);
    fs.rmSync(path.join(directory, 'storage'));
  }
  fs.closeSync(origin);
  const kept: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const { plain, copied } = await together(directory);
    took['all processors, no copy'].push(plain);
    took['all processors, copies'].push(copied);
    kept.push(plain / copied);
  }
  for (const [what, values] of Object.entries(took)) {
    const { median, min, max } = spreadOf(values);
    console.log(`${what.padEnd(24)}${median.toFixed(0).padStart(5)} µs/MiB   (${min.toFixed(0)} – ${max.toFixed(0)})`);
  }
  const { median, min, max } = spreadOf(kept);
  console.log(
    `kept                    ${median.toFixed(2).padStart(5)}          (${min.toFixed(2)} – ${max.toFixed(2)})`,
  );
}

if (process.argv[2] !== undefined) {
  await work(process.argv[2]);
} else {
  const directory = fs.mkdtempSync('/dev/shm/blksnap-copy-');
  try {
    await main(directory);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}
