/** A daemon that runs out of descriptors in the middle of whatever it is asked for: errors that say so, no descriptor and
 *  nothing of a disk lost, its clients served meanwhile, and all goes on when there are descriptors again. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { chooseDriver } from '../../src/io/open.ts';
import { Embedded } from '../../src/index.ts';
import type { Bytes } from '../../src/index.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { DaemonWorld, Program, sameFiles } from '../daemon/world.ts';
import type { Outcome } from '../daemon/world.ts';
import { requirePrograms } from '../requirements.ts';

/** Descriptors that an attach takes one after another, at most. */
const MOST = 6;
const NO_DESCRIPTORS = /EMFILE|no descriptors left/;

let world: DaemonWorld;
let embedded: Embedded;
let client: Bytes;
let written = 0;
beforeEach(async () => {
  world = new DaemonWorld();
  embedded = await Embedded.open({ driver: 'portable' });
});
afterEach(async () => {
  await embedded.close();
  await world.close();
});

function descriptors(): Set<number> {
  return new Set(fs.readdirSync(`/proc/${world.daemon!.child.pid}/fd`).map(Number));
}

/** Leaves the daemon so many more. */
function leave(spare: number): void {
  const open = descriptors();
  let limit = 0;
  for (let free = 0; free < spare || open.has(limit); limit++) if (!open.has(limit)) free++;
  setLimit(limit);
}

/** The soft limit: the hard one could not be raised again. */
function setLimit(limit: number): void {
  expect(spawnSync('prlimit', ['--pid', `${world.daemon!.child.pid}`, `--nofile=${limit}:`]).status).toBe(0);
}

/** Asks with ever more descriptors until it is done, and shows each time that nothing else suffers. Returns the errors. */
async function askWithFew(ask: () => Promise<unknown>, undo: () => Promise<unknown>): Promise<string[]> {
  const before = descriptors().size;
  const errors: string[] = [];
  for (let spare = 0; ; spare++) {
    expect(spare).toBeLessThanOrEqual(MOST);
    leave(spare);
    const error = await ask().then(
      () => null,
      (cause: unknown) => (cause as Error).message,
    );
    await client.write(0, Buffer.alloc(4 * KIB, ++written));
    expect((await client.read(0, 4 * KIB))[0]).toBe(written);
    setLimit(1024);
    if (error === null) break;
    expect(error).toMatch(NO_DESCRIPTORS);
    errors.push(error);
    await expect.poll(() => descriptors().size, { message: error }).toBe(before);
  }
  await undo();
  await expect.poll(() => descriptors().size).toBe(before);
  return errors;
}

async function backUp(): Promise<Outcome> {
  return await world.cli('backup', 'vda', '--to', world.file('backups'), '--json');
}

function kindOf({ code, stdout, stderr }: Outcome): string {
  if (code !== 0) throw new Error(stderr);
  return (JSON.parse(stdout) as { point: { kind: string } }).point.kind;
}

it.for(['uring', 'portable'])('attach, take and backup with few or no descriptors (%s)', async (io, context) => {
  requirePrograms(context, 'prlimit');
  const choice = await chooseDriver();
  context.skip(io === 'uring' && choice.driver !== 'uring', choice.reason);
  const image = world.image('vda.img', 16 * MIB, 4 * MIB);
  const other = world.image('vdb.img', 8 * MIB);
  await world.start(image, '--io', io);
  expect(kindOf(await backUp())).toBe('full');
  const disk = (await world.client.disks())[0]!;
  client = await embedded.openExport(disk.uri);

  const attach = await askWithFew(
    () => world.client.attach({ path: other }),
    () => world.client.detach('vdb'),
  );
  expect(attach.length).toBeGreaterThan(2);
  const take = await askWithFew(
    () => world.client.createSnapshot({ disks: ['vda'], storage: world.directory }),
    async () => await world.client.destroySnapshot((await world.client.snapshots())[0]!.id),
  );
  expect(take.length).toBeGreaterThan(0);
  expect((await world.client.disks()).map(({ name }) => name)).toEqual(['vda']);

  // A backup that cannot take its snapshot; and one whose connection waits until there is a descriptor for it.
  leave(1);
  const failed = await backUp();
  setLimit(1024);
  expect([failed.code === 0, failed.stderr]).toEqual([false, expect.stringMatching(NO_DESCRIPTORS)]);
  leave(2);
  const waiting = new Program(['backup', 'vda', '--to', world.file('backups'), '--json', '--dir', world.dir]);
  await sleep(2000);
  setLimit(1024);
  const waited = await waiting.ended();
  // Node accepts and closes, where io_uring lets a client wait.
  if (io === 'portable' && waited.code !== 0) expect(waited.stderr).toMatch(NO_DESCRIPTORS);
  else expect(kindOf(waited)).toBe('incremental');
  expect(kindOf(await backUp())).toBe('incremental');
  await world.json('restore', world.file('backups'), '--disk', 'vda', '--to', world.file('restored.img'));
  expect(sameFiles(image, world.file('restored.img'))).toBe(true);

  // It ends in order without any, and knows afterwards what has changed.
  await client.close();
  leave(0);
  expect((await world.stop()).code).toBe(0);
  await world.start('--io', io);
  expect(kindOf(await backUp())).toBe('incremental');
});
