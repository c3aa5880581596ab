/** A backup or prune that is killed at any moment costs nothing that was finished. */

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readManifest } from '../../src/backup/repository.ts';
import { restore } from '../../src/backup/restore.ts';
import { verify } from '../../src/backup/verify.ts';
import { Prng } from '../../src/util/prng.ts';
import { BackupWorld } from './world.ts';

const ROUNDS = 6;
const CHURN = path.join(import.meta.dirname, 'churn.ts');

let directory: string;
beforeEach(() => void (directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-kill-'))));
afterEach(() => fs.rmSync(directory, { recursive: true }));

/** Runs the churn for a while after its first point, kills it, and returns what it said. */
async function churnAndKill(repository: string, seed: number, lifeMs: number): Promise<string[]> {
  const scratch = path.join(directory, `scratch-${seed}`);
  fs.mkdirSync(scratch);
  const child = spawn(process.execPath, ['--import', 'tsx', CHURN, repository, scratch, String(seed)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  let timer: NodeJS.Timeout | undefined;
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text;
    timer ??= setTimeout(() => child.kill('SIGKILL'), lifeMs);
  });
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
    child.once('close', (...end) => resolve(end)),
  );
  expect({ code, signal }).toEqual({ code: null, signal: 'SIGKILL' });
  return said.split('\n').slice(0, -1);
}

/** Every point that was reported and not pruned is there, and restores to what it was. */
async function expectKept(world: BackupWorld, sums: ReadonlyMap<string, string>): Promise<void> {
  const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
  expect(report.damage).toEqual([]);
  const there = readManifest(world.repository, 'vda').points.map(({ id }) => id);
  // A kill may come between a prune and its report: but the churn prunes right after it has reported three.
  expect(there).toEqual(expect.arrayContaining([...sums.keys()].slice(-3)));
  for (const id of there.filter((point) => sums.has(point))) {
    const to = world.newPath();
    await restore({
      directory: world.repository,
      disk: 'vda',
      point: id,
      to,
      reactor: world.reactor,
      pool: world.pool,
    });
    expect(createHash('sha256').update(fs.readFileSync(to)).digest('hex'), id).toBe(sums.get(id));
    fs.unlinkSync(to);
  }
}

test('killed at any moment, finished points stay', async () => {
  const seed = Date.now() % 1e6;
  console.log(`seed ${seed}`);
  const random = new Prng(seed);
  const repository = path.join(directory, 'backups');
  const world = await BackupWorld.open(seed, repository);
  const sums = new Map<string, string>();
  for (let round = 0; round < ROUNDS; round++) {
    for (const line of await churnAndKill(repository, seed + round, random.below(600))) {
      const [what, ...words] = line.split(' ');
      if (what === 'point') sums.set(words[0]!, words[1]!);
      else for (const id of words) sums.delete(id);
    }
    await expectKept(world, sums);
  }
  await world.close();
});
