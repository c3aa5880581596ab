/** `npm run demo`: the whole way on a disk of 1 GiB that is written to all the while. A snapshot, a full
 *  backup, another snapshot, an incremental backup; both restored, and compared with the snapshots byte for byte.
 *
 *  Needs nothing but Node and npm at the start, and can be run again. All of it happens in a temporary
 *  directory that is deleted at the end. Ends with 0 when every comparison held. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { canInstall, findProgram, installDebianPackages } from './debian.mjs';
import { filesystemIsWhole, makeDisk } from './demo/disk.mjs';
import { micros, printTable, size } from './demo/tables.mjs';
import { build, installPackages, say, styled } from './prepare.mjs';

const DISK_BYTES = 1024 ** 3;
const NEEDED_BYTES = 3 * DISK_BYTES;
const QUIET_MS = 4000;

const FREE = 'no snapshot held';
const HELD = 'snapshot held';
const BUSY = 'snapshot held, backup running';
const CHECK = 'restoring and comparing';

/** @typedef {{ what: string, held: boolean }} Verdict */
/** @typedef {{ what: string, read: number, stored: number, seconds: number }} Work */

function prepare() {
  if (findProgram('mkfs.ext4') === undefined || findProgram('debugfs') === undefined) {
    if (!canInstall()) throw new Error('mkfs.ext4 and debugfs are missing: sudo apt-get install e2fsprogs');
    say('installing the Debian package e2fsprogs');
    installDebianPackages(['e2fsprogs']);
  }
  installPackages();
  build();
  const { bavail, bsize } = fs.statfsSync(os.tmpdir());
  if (bavail * bsize < NEEDED_BYTES) {
    throw new Error(
      `${os.tmpdir()} has ${size(bavail * bsize)} free, the demo needs up to ${size(NEEDED_BYTES)}; set TMPDIR`,
    );
  }
}

/** Runs a step and measures it.
 *  @template T
 *  @param {() => Promise<T>} step
 *  @returns {Promise<{ result: T, seconds: number }>} */
async function timed(step) {
  const begun = performance.now();
  return { result: await step(), seconds: (performance.now() - begun) / 1000 };
}

/** Runs the story and returns what it showed.
 *  @param {string} dir
 *  @param {Array<() => Promise<void>>} cleanUp what must be ended, last first */
async function tell(dir, cleanUp) {
  const { blksnap, startDaemon, startWriter } = await import('./demo/processes.mjs');
  const { COMPARER, isSame } = await import('./demo/compare.mjs');
  const disk = path.join(dir, 'disk.raw');
  const backups = path.join(dir, 'backups');
  const state = path.join(dir, 'daemon');

  say(`making a disk of ${size(DISK_BYTES)} with an ext4 filesystem`);
  const { files, database } = makeDisk(disk, DISK_BYTES, dir);
  say(`serving it, ${files} files and ${size(fs.statSync(disk).blocks * 512)} of data: blksnap daemon, blksnap attach`);
  const daemon = await startDaemon(state);
  cleanUp.push(daemon.stop);
  const { uri } = await blksnap(state, ['attach', disk, '--name', 'demo']);
  const writer = await startWriter(uri, database);
  cleanUp.push(writer.stop);
  say(`a writer is at work from here on, in a process of its own, on ${uri}`);
  writer.phase(FREE);
  await sleep(QUIET_MS);

  /** @type {Work[]} */
  const work = [];
  const takeSnapshot = async () => {
    const snapshot = await blksnap(state, ['snapshot', 'create', 'demo', '--storage', dir]);
    say(`blksnap snapshot create: all writes held for ${snapshot.heldMs.toFixed(1)} ms`);
    writer.phase(HELD);
    return snapshot;
  };
  const backUp = async (/** @type {string} */ what, /** @type {string} */ id) => {
    say(`blksnap backup: ${what}`);
    writer.phase(BUSY);
    const { result, seconds } = await timed(() =>
      blksnap(state, ['backup', 'demo', '--to', backups, '--snapshot', id]),
    );
    writer.phase(HELD);
    const { point } = result;
    work.push({ what: `${point.kind} backup`, read: point.bytesRead, stored: point.bytesStored, seconds });
    return point.id;
  };

  const first = await takeSnapshot();
  await sleep(QUIET_MS);
  const full = await backUp('everything', first.id);
  await sleep(QUIET_MS / 2);
  const second = await takeSnapshot();
  const increment = await backUp('what has changed since', second.id);
  writer.phase(CHECK);

  /** @type {Verdict[]} */
  const verdicts = [];
  for (const [what, point, snapshot] of [
    ['full backup', full, first],
    ['incremental backup', increment, second],
  ]) {
    const restored = path.join(dir, `${point}.raw`);
    say(`blksnap restore: the ${what}; comparing it with its snapshot`);
    const args = ['restore', backups, '--disk', 'demo', '--point', point, '--to', restored];
    const { seconds } = await timed(() => blksnap(state, args));
    work.push({ what: `restore of the ${what}`, read: NaN, stored: fs.statSync(restored).blocks * 512, seconds });
    verdicts.push(
      {
        what: `${what}: restored = snapshot, ${size(DISK_BYTES)}, ${COMPARER}`,
        held: await isSame(snapshot.images[0].uri, restored),
      },
      { what: `${what}: its filesystem is whole, by e2fsck`, held: filesystemIsWhole(restored) },
    );
    fs.rmSync(restored);
  }
  for (const { id } of [second, first]) await blksnap(state, ['snapshot', 'destroy', id]);
  const latencies = await writer.finish();
  return { work, verdicts, latencies };
}

/** @param {Awaited<ReturnType<typeof tell>>} shown */
function report({ work, verdicts, latencies }) {
  const amount = (/** @type {number} */ bytes) => (Number.isNaN(bytes) ? '' : size(bytes));
  printTable(
    ['', 'read', 'stored', 'took'],
    work.map((one) => [one.what, amount(one.read), amount(one.stored), `${one.seconds.toFixed(1)} s`]),
  );
  printTable(
    ['write latency', 'writes', 'p50', 'p99', 'max'],
    [FREE, HELD, BUSY].flatMap((phase) => {
      const one = latencies[phase];
      return one === undefined
        ? []
        : [[phase, String(one.writes), micros(one.p50Us), micros(one.p99Us), micros(one.maxUs)]];
    }),
  );
  console.log('');
  for (const { what, held } of verdicts) {
    console.log(`  ${held ? styled('green', '✓') : styled('red', '✗ NOT TRUE:')} ${what}`);
  }
}

async function main() {
  prepare();
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-demo-'));
  /** @type {Array<() => Promise<void>>} */
  const cleanUp = [];
  let cleaning = false;
  const clean = async () => {
    if (cleaning) return;
    cleaning = true;
    for (const end of cleanUp.toReversed()) await end();
    fs.rmSync(dir, { recursive: true, force: true });
  };
  process.once('SIGINT', () => void clean().then(() => process.exit(130)));
  try {
    const shown = await tell(dir, cleanUp);
    report(shown);
    process.exitCode = shown.verdicts.every(({ held }) => held) ? 0 : 1;
  } finally {
    await clean();
  }
  const seconds = Math.round(process.uptime());
  console.log(`\n${styled('dim', `Done in ${seconds} s, cleaned up.`)}`);
}

await main().catch((/** @type {unknown} */ error) => {
  console.error(`\n${styled('red', 'The demo failed:')} ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
});
