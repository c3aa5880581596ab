/** Backups, prunes and a daemon on a file system that loses its power: what was recorded is replayed up to a flush, and up
 *  to places between flushes, mounted, and held against what had been promised by then.
 *
 *  - Every restore point whose backup had ended, and that no prune was to remove, is in the manifest.
 *  - All that the manifest names verifies.
 *  - The daemon starts; a backup of its disk, incremental or full, restores to what the disk is now: the change history
 *    called nothing unchanged that changed. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../../src/api/client.ts';
import { readManifest } from '../../src/backup/repository.ts';
import { verify } from '../../src/backup/verify.ts';
import { BioPool } from '../../src/block/bio.ts';
import { Embedded } from '../../src/blksnap/embedded.ts';
import { openReactor } from '../../src/io/open.ts';
import type { Prng } from '../../src/util/prng.ts';
import { MIB } from '../../src/util/units.ts';
import { Program, blksnap, sameFiles } from '../daemon/world.ts';
import { MOUNTED, PoweredMachine } from './machine.ts';
import type { FileSystem } from './machine.ts';
import type { WriteLog } from './write-log.ts';

const SIZE = 4 * MIB;
const STATE = path.join(MOUNTED, 'state');
const DISK = path.join(MOUNTED, 'vda.img');
const BACKUPS = path.join(MOUNTED, 'backups');
/** Where the storage of a persistent snapshot lies. */
const STORAGE = path.join(MOUNTED, 'storage');
const KEPT = 3;
const READY_TIMEOUT_MS = 240_000;

export interface PowerLossOptions {
  readonly fileSystem: FileSystem;
  readonly random: Prng;
  /** How long to record. */
  readonly recordMs: number;
  /** How many losses to look at. */
  readonly losses: number;
}

export interface PowerLossReport {
  readonly entries: number;
  readonly barriers: number;
  readonly losses: number;
  readonly points: number;
  /** Losses after which there was a change history to doubt. */
  readonly histories: number;
  readonly incrementals: number;
  /** Losses after which the persistent snapshot was known, and refused. */
  readonly refused: number;
}

/** What `backup --json` tells of a disk. */
interface Backup {
  readonly point: { readonly id: string; readonly kind: string };
}

/** Errors: the first promise that was not kept, with the place in the log. */
export async function losePower(options: PowerLossOptions): Promise<PowerLossReport> {
  const { random } = options;
  const machine = new PoweredMachine(options.fileSystem);
  await record(machine, options);
  const log = machine.stop();
  const report = { points: 0, histories: 0, incrementals: 0, refused: 0 };
  const places = placesOf(log, options);
  let from = 0;
  for (const to of places) {
    machine.advance(log, { from, to });
    from = to;
    const promised = promisedAt(log, to);
    try {
      await machine.booted(async () => {
        report.points += await checkBackups(promised);
        const found = fs.existsSync(path.join(STATE, 'state.json')) ? await afterLoss(random) : null;
        if (found === null) return;
        report.histories++;
        if (found.kind === 'incremental') report.incrementals++;
        report.refused += found.refused;
      });
    } catch (cause) {
      throw new Error(`power lost at entry ${to} of ${log.entries.length}: ${String(cause)}`, { cause });
    }
  }
  const barriers = log.entries.filter(({ barrier }) => barrier).length;
  log.close();
  return { entries: log.entries.length, barriers, losses: places.length, ...report };
}

/** Two of three right after a flush, where the most is promised; the others anywhere. */
function placesOf(log: WriteLog, { random, losses }: PowerLossOptions): number[] {
  const first = log.entries.findIndex(({ mark }) => mark === 'attached') + 1;
  const barriers = log.entries.flatMap(({ barrier }, index) => (barrier && index > first ? [index + 1] : []));
  const places = new Set([log.entries.length]);
  for (let i = 1; i < losses; i++) {
    const anywhere = first + random.below(log.entries.length - first);
    places.add(i % 3 === 0 ? anywhere : barriers[random.below(barriers.length)]!);
  }
  return [...places].toSorted((a, b) => a - b);
}

/** The points that must be there at a place of the log. */
function promisedAt(log: WriteLog, to: number): Set<string> {
  const points = new Set<string>();
  for (const { mark } of log.entries.slice(0, to)) {
    const [what, id] = mark?.split(':') ?? [];
    if (what === 'point') points.add(id!);
    if (what === 'prune') for (const old of [...points].slice(0, -KEPT)) points.delete(old);
  }
  return points;
}

async function startDaemon(...disks: readonly string[]): Promise<Program> {
  // The default portion of storage is more than this file system has.
  const daemon = new Program(['daemon', '--dir', STATE, '--storage-portion', '4M', ...disks]);
  const client = new Client({ dir: STATE });
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (;;) {
    try {
      await client.status();
      return daemon;
    } catch (cause) {
      if (!daemon.running || performance.now() > deadline) throw new Error(`no daemon: ${daemon.stderr}`, { cause });
      await sleep(50);
    }
  }
}

/** Runs a command that must succeed; what it prints. */
async function succeed(...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await blksnap(...args);
  if (code !== 0) throw new Error(`blksnap ${args.join(' ')}: exit code ${code}: ${stderr}`);
  return stdout;
}

async function record(machine: PoweredMachine, { random, recordMs }: PowerLossOptions): Promise<void> {
  fs.writeFileSync(DISK, '');
  fs.truncateSync(DISK, SIZE);
  const daemon = await startDaemon(DISK);
  const embedded = await Embedded.open();
  const disk = await embedded.openExport((await new Client({ dir: STATE }).disks())[0]!.uri);
  machine.mark('attached');
  fs.mkdirSync(STORAGE);
  await new Client({ dir: STATE }).createSnapshot({ disks: ['vda'], storage: STORAGE, persistent: true });
  const until = performance.now() + recordMs;
  let writing = true;
  const writer = (async () => {
    for (let i = 1; writing; i++) {
      const offset = 4096 * random.below(SIZE / 4096 - 16);
      await disk.write(offset, Buffer.alloc(4096 * (1 + random.below(16)), i & 0xff));
      if (random.chance(0.2)) await disk.flush();
      await sleep(random.below(20));
    }
  })();
  for (let round = 1; performance.now() < until; round++) {
    const said = await succeed('backup', 'vda', '--to', BACKUPS, '--limit', '32M', '--dir', STATE, '--json');
    machine.mark(`point:${(JSON.parse(said) as Backup).point.id}`);
    if (round % 4 === 0) {
      machine.mark('prune');
      await succeed('prune', BACKUPS, '--keep-last', String(KEPT));
    }
  }
  writing = false;
  await writer;
  await disk.close();
  await embedded.close();
  await daemon.signal('SIGKILL');
}

/** How many points there were. */
async function checkBackups(promised: ReadonlySet<string>): Promise<number> {
  if (!fs.existsSync(BACKUPS)) {
    if (promised.size > 0) throw new Error(`the backup directory is gone, with ${promised.size} points`);
    return 0;
  }
  const ids = promised.size === 0 ? [] : readManifest(BACKUPS, 'vda').points.map(({ id }) => id);
  const lost = [...promised].filter((id) => !ids.includes(id));
  if (lost.length > 0)
    throw new Error(`points that were finished are gone: ${lost.join(', ')}; there are ${ids.join(', ')}`);
  const reactor = await openReactor({ driver: 'portable', arenaBytes: 16 * MIB, cooperative: true });
  try {
    const { damage, points } = await verify({ directory: BACKUPS, reactor, pool: new BioPool() });
    if (damage.length > 0) throw new Error(`damage: ${JSON.stringify(damage)}`);
    return points.length;
  } catch (cause) {
    // A loss before the first point leaves none.
    if (promised.size === 0 && (cause as { readonly code?: string }).code === 'ENOENT') return 0;
    throw cause;
  } finally {
    await reactor.close();
  }
}

/** Backs up and restores. The kind of the backup, and how many persistent snapshots were refused; null when the daemon has
 *  no disk. */
async function afterLoss(random: Prng): Promise<{ readonly kind: string; readonly refused: number } | null> {
  const daemon = await startDaemon();
  const restored = `/tmp/power/restored-${random.below(1e9)}`;
  try {
    const client = new Client({ dir: STATE });
    const disks = await client.disks();
    if (disks.length === 0) return null;
    const snapshots = await client.snapshots();
    const back = snapshots.find(({ failure }) => failure === null);
    if (back !== undefined) throw new Error(`the persistent snapshot ${back.id} is back after the loss`);
    const said = await succeed('backup', 'vda', '--to', BACKUPS, '--limit', '32M', '--dir', STATE, '--json');
    const { kind } = (JSON.parse(said) as Backup).point;
    await succeed('restore', BACKUPS, '--disk', 'vda', '--to', restored);
    if (!sameFiles(DISK, restored)) throw new Error(`the ${kind} backup after the loss is not what the disk is`);
    return { kind, refused: snapshots.length };
  } finally {
    await daemon.signal('SIGKILL');
    fs.rmSync(restored, { force: true });
  }
}
