/** `npm run demo`: the whole way on a disk of 1 GiB that is written to all the while. A snapshot, a full
 *  backup, another snapshot, an incremental backup; both restored, and compared with the snapshots byte for byte.
 *
 *  All of it happens in a temporary directory that is deleted at the end. Ends with 0 when every comparison held. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { say, styled } from '../scripts/prepare.mjs';
import type { SnapshotView } from '../src/api/client.ts';
import type { RestorePoint } from '../src/backup/manifest.ts';
import { GIB, formatSeconds, formatSize } from '../src/util/units.ts';
import { COMPARER, isSame } from './compare.ts';
import { filesystemIsWhole, makeDisk } from './disk.ts';
import type { Latency } from './latency.ts';
import { blksnap, startDaemon, startWriter } from './processes.ts';
import type { Stoppable, Writer } from './processes.ts';
import { printTable } from './tables.ts';

const DISK_BYTES = GIB;
const NEEDED_BYTES = 3 * GIB;
const QUIET_MS = 4000;
/** Until the compiler has seen enough of the writer: nothing is counted. */
const WARM_UP_MS = 1500;

/** The writer's phases: what its latencies are counted to. */
const FREE = 'no snapshot held';
const HELD = 'snapshot held';
const BUSY = 'snapshot held, backup running';
const CHECKING = 'snapshots held, restore and compare running';

interface Place {
  readonly dir: string;
  readonly disk: string;
  readonly backups: string;
  readonly daemonDir: string;
}

interface Work {
  readonly what: string;
  readonly read: string;
  readonly stored: string;
  readonly seconds: number;
}

interface Verdict {
  readonly what: string;
  readonly held: boolean;
}

interface Stored {
  readonly point: RestorePoint;
  readonly seconds: number;
}

async function timed<T>(step: () => Promise<T>): Promise<{ result: T; seconds: number }> {
  const begun = performance.now();
  return { result: await step(), seconds: (performance.now() - begun) / 1000 };
}

async function takeSnapshot({ dir, daemonDir }: Place, writer: Writer): Promise<SnapshotView> {
  const args = ['snapshot', 'create', 'demo', '--storage', dir];
  const snapshot = (await blksnap(daemonDir, args)) as SnapshotView;
  writer.phase(HELD);
  say(`blksnap snapshot create: took it, and held all writes for ${formatSeconds(snapshot.heldMs / 1000)}`);
  return snapshot;
}

async function backUp({ backups, daemonDir }: Place, writer: Writer, { id }: SnapshotView): Promise<Stored> {
  writer.phase(BUSY);
  const args = ['backup', 'demo', '--to', backups, '--snapshot', id];
  const { result, seconds } = await timed(() => blksnap(daemonDir, args));
  writer.phase(HELD);
  const { point } = result as { readonly point: RestorePoint };
  say(`blksnap backup: ${point.kind}, ${formatSize(point.bytesRead)} read`);
  return { point, seconds };
}

/** Restores a point and holds it against the image of its snapshot. */
async function check(
  { dir, backups, daemonDir }: Place,
  { point }: Stored,
  { images }: SnapshotView,
): Promise<{ work: Work; verdicts: Verdict[] }> {
  const restored = path.join(dir, `${point.kind}.raw`);
  const args = ['restore', backups, '--disk', 'demo', '--point', point.id, '--to', restored];
  const { seconds } = await timed(() => blksnap(daemonDir, args));
  say(`blksnap restore: the ${point.kind} backup; comparing it with its snapshot`);
  const same = await isSame(images[0]!.uri, restored);
  const whole = filesystemIsWhole(restored);
  const stored = formatSize(fs.statSync(restored).blocks * 512);
  fs.rmSync(restored);
  return {
    work: { what: `restore of the ${point.kind}`, read: '', stored, seconds },
    verdicts: [
      {
        what: `the restored ${point.kind} backup is its snapshot, all ${formatSize(DISK_BYTES)} of it, ${COMPARER}`,
        held: same,
      },
      { what: `its filesystem is whole, by e2fsck`, held: whole },
    ],
  };
}

function workOf({ point, seconds }: Stored): Work {
  return {
    what: `${point.kind} backup`,
    read: formatSize(point.bytesRead),
    stored: formatSize(point.fileBytes),
    seconds,
  };
}

/** Runs the story. What must be stopped, whatever happens, is added to `running`. */
async function tell(place: Place, running: Stoppable[]): Promise<boolean> {
  say(`making a disk of ${formatSize(DISK_BYTES)} with an ext4 filesystem`);
  const { files, database } = makeDisk(place.disk, DISK_BYTES, place.dir);
  const data = formatSize(fs.statSync(place.disk).blocks * 512);
  say(`blksnap daemon, blksnap attach: serving it, with ${files} files, ${data} of data`);
  running.push(await startDaemon(place.daemonDir));
  const { uri } = (await blksnap(place.daemonDir, ['attach', place.disk, '--name', 'demo'])) as {
    readonly uri: string;
  };
  const writer = await startWriter(uri, database);
  running.push(writer);
  say(`a process writes to ${uri} from here on`);
  await sleep(WARM_UP_MS);
  writer.phase(FREE);
  await sleep(QUIET_MS);

  const first = await takeSnapshot(place, writer);
  await sleep(QUIET_MS);
  const full = await backUp(place, writer, first);
  await sleep(QUIET_MS / 2);
  const second = await takeSnapshot(place, writer);
  const increment = await backUp(place, writer, second);

  writer.phase(CHECKING);
  const checks = [await check(place, full, first), await check(place, increment, second)];
  const latencies = await writer.finish();
  const verdicts = checks.flatMap((one) => one.verdicts);
  report([workOf(full), workOf(increment), ...checks.map(({ work }) => work)], latencies, verdicts);
  return verdicts.every(({ held }) => held);
}

function report(
  work: readonly Work[],
  latencies: Readonly<Record<string, Latency>>,
  verdicts: readonly Verdict[],
): void {
  printTable(
    ['', 'read', 'stored', 'took'],
    work.map(({ what, read, stored, seconds }) => [what, read, stored, formatSeconds(seconds)]),
  );
  const micros = (us: number): string => (us < 1000 ? `${us.toFixed(0)} µs` : `${(us / 1000).toFixed(1)} ms`);
  printTable(
    ['write latency, 4 KiB', 'writes', 'p50', 'p99', 'max'],
    [FREE, HELD, BUSY].map((phase) => {
      const { writes, p50Us, p99Us, maxUs } = latencies[phase]!;
      return [phase, String(writes), micros(p50Us), micros(p99Us), micros(maxUs)];
    }),
  );
  console.log('');
  for (const { what, held } of verdicts) {
    console.log(`  ${held ? styled('green', '✓') : styled('red', '✗ NOT TRUE:')} ${what}`);
  }
}

function checkRoom(): void {
  const { bavail, bsize } = fs.statfsSync(os.tmpdir());
  if (bavail * bsize >= NEEDED_BYTES) return;
  const free = formatSize(bavail * bsize);
  throw new Error(
    `${os.tmpdir()} has ${free} free, up to ${formatSize(NEEDED_BYTES)} are needed; set TMPDIR to another place`,
  );
}

async function main(): Promise<void> {
  checkRoom();
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-demo-'));
  const place = {
    dir,
    disk: path.join(dir, 'disk.raw'),
    backups: path.join(dir, 'backups'),
    daemonDir: path.join(dir, 'daemon'),
  };
  const running: Stoppable[] = [];
  let cleaned: Promise<void> | undefined;
  const cleanUp = async (): Promise<void> => {
    for (const one of running.toReversed()) await one.stop();
    fs.rmSync(dir, { recursive: true, force: true });
  };
  const cleanUpOnce = (): Promise<void> => (cleaned ??= cleanUp());
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => void cleanUpOnce().then(() => process.exit(130)));
  }
  try {
    if (!(await tell(place, running))) process.exitCode = 1;
  } finally {
    await cleanUpOnce();
  }
  console.log(`\n  ${styled('dim', `${formatSeconds(process.uptime())}, and cleaned up.`)}`);
}

try {
  await main();
} catch (error) {
  console.error(`\n${styled('red', 'The demo failed:')} ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
