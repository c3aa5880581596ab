/** A backup or prune that is killed at any moment costs nothing that was finished. */

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readManifest } from '../../src/backup/repository.ts';
import { restore } from '../../src/backup/restore.ts';
import { verify } from '../../src/backup/verify.ts';
import { assert } from '../../src/util/assert.ts';
import { Prng } from '../../src/util/prng.ts';
import { BackupWorld } from './world.ts';

const ROUNDS = 6;
const CHURN = fileURLToPath(new URL('./churn.ts', import.meta.url));

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
  const signal = await new Promise((resolve) => child.once('close', (_code, by) => resolve(by)));
  assert(signal === 'SIGKILL', 'the churn goes on until it is killed');
  return said.split('\n').slice(0, -1);
}

/** The points that do not restore to what they were. */
async function wrongPoints(
  world: BackupWorld,
  points: readonly string[],
  sums: ReadonlyMap<string, string>,
): Promise<string[]> {
  const wrong: string[] = [];
  for (const id of points) {
    const to = world.newPath();
    await restore({
      directory: world.repository,
      disk: 'vda',
      point: id,
      to,
      reactor: world.reactor,
      pool: world.pool,
    });
    if (createHash('sha256').update(fs.readFileSync(to)).digest('hex') !== sums.get(id)) wrong.push(id);
    fs.unlinkSync(to);
  }
  return wrong;
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
    const report = await verify({ directory: repository, reactor: world.reactor, pool: world.pool });
    expect(report.damage).toEqual([]);
    const there = readManifest(repository, 'vda').points.map(({ id }) => id);
    // A kill may come between a prune and its report: but the churn prunes right after it has reported three.
    expect(there).toEqual(expect.arrayContaining([...sums.keys()].slice(-3)));
    expect(
      await wrongPoints(
        world,
        there.filter((id) => sums.has(id)),
        sums,
      ),
    ).toEqual([]);
  }
  await world.close();
});
