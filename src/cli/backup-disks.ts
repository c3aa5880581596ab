/** The command `backup`: one snapshot of all the disks, a restore point of each, and the snapshot goes,
 *  however it ends. What is read comes over NBD from the snapshot's images. */

import fs from 'node:fs';
import os from 'node:os';
import type { BackupMode } from '../backup/plan.ts';
import { backUp } from '../backup/backup.ts';
import type { BackupResult } from '../backup/backup.ts';
import { openNbdSource } from '../backup/nbd-source.ts';
import type { Client, SnapshotView } from '../api/client.ts';
import { LEASE_MS, LeaseKeeper } from '../api/lease.ts';
import { runWhenIdle } from '../io/control-sys.ts';
import { ffiAvailable } from '../io/sys.ts';
import { NbdClient } from '../nbd/client.ts';
import { parseNbdUri } from '../nbd/uri.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { formatSeconds, formatSize } from '../util/units.ts';
import { connect } from './command.ts';
import type { CommonOptions } from './command.ts';
import { soonAfter } from './interrupt.ts';
import { printError, printLine } from './output.ts';
import { Progress } from './progress.ts';
import { withReactor } from './with-reactor.ts';
import type { IoContext } from './with-reactor.ts';
import { hooksOf, storagePlace } from './commands/snapshots.ts';
import type { HookOptions } from './commands/snapshots.ts';

export interface BackupOptions extends CommonOptions, HookOptions {
  readonly to: string;
  readonly full?: boolean;
  readonly differential?: boolean;
  readonly snapshot?: string;
  readonly storage?: string;
  readonly limit?: number;
}

/** How long a command that was interrupted, or has failed, waits for the daemon. */
const CLEAN_UP_MS = 5000;

/** Prints a line for each restore point: JSON or words. */
export async function backUpDisks(names: readonly string[], options: BackupOptions): Promise<void> {
  const mode = modeOf(options);
  giveWay();
  await withReactor(async (context) => {
    const client = await connect(options, soonAfter(context.signal, CLEAN_UP_MS));
    const { nbdSocket } = client;
    const identities = new Map<string, string>();
    for (const name of names) identities.set(name, (await client.disk(name)).path);
    const snapshot = await takenSnapshot(client, names, options);
    const silence = new AbortController();
    const lease = new LeaseKeeper(client, snapshot.id, { onSilence: (cause) => silence.abort(cause) });
    const signal = AbortSignal.any([context.signal, silence.signal]);
    const letGo = async (by: Client): Promise<void> => {
      lease.stop();
      if (options.snapshot === undefined) await by.destroySnapshot(snapshot.id);
    };
    try {
      for (const name of names) {
        const readOnce = options.snapshot === undefined && !sharesItsDisk(name, names);
        const job = { nbdSocket, snapshot, name, identity: identities.get(name) ?? null, mode, readOnce };
        const result = await backUpImage(client, job, { ...context, signal, options });
        report(name, snapshot, result, options.json ?? false);
      }
    } catch (cause) {
      // What went wrong first is what counts: the daemon may be gone or silent, and the snapshot goes by its lease then.
      await letGo(await connect(options, AbortSignal.timeout(CLEAN_UP_MS))).catch(() => {});
      throw cause;
    }
    await letGo(client);
  });
}

/** Whoever writes to the disks comes first, also to the processors. Where the system has no class for idle work, the
 *  priority is all there is. */
function giveWay(): void {
  os.setPriority(os.constants.priority.PRIORITY_LOW);
  if (!ffiAvailable()) return;
  for (const thread of fs.readdirSync('/proc/self/task')) runWhenIdle(Number(thread));
}

/** A disk and its partitions have one image between them. */
function sharesItsDisk(name: string, names: readonly string[]): boolean {
  const whole = (one: string): string => one.split('/', 1)[0]!;
  return names.filter((other) => whole(other) === whole(name)).length > 1;
}

function modeOf({ full, differential }: BackupOptions): BackupMode {
  if (full === true && differential === true) {
    throw new BlksnapError(
      'EINVAL',
      'Cannot make a backup both full and differential: give one of --full and --differential',
    );
  }
  return full === true ? 'full' : differential === true ? 'differential' : 'auto';
}

async function takenSnapshot(client: Client, names: readonly string[], options: BackupOptions): Promise<SnapshotView> {
  const hooks = hooksOf(options);
  if (options.snapshot !== undefined) return await client.snapshot(options.snapshot);
  const storage = storagePlace(options.storage);
  const snapshot = await client.createSnapshot({
    disks: [...names],
    storage,
    limitBytes: options.limit,
    leaseMs: LEASE_MS,
    hooks,
    fsfreeze: options.fsfreeze,
    kernelDevice: false,
  });
  const thawError = snapshot.freeze?.thawError ?? null;
  if (thawError !== null) printError(new Error(thawError), options.json ?? false);
  return snapshot;
}

interface Job {
  readonly nbdSocket: string;
  readonly snapshot: SnapshotView;
  readonly name: string;
  readonly identity: string | null;
  readonly mode: BackupMode;
  /** Nobody else reads the image: what is stored of it may go. */
  readonly readOnce: boolean;
}

async function backUpImage(
  client: Client,
  { nbdSocket, snapshot, name, identity, mode, readOnce }: Job,
  { reactor, pool, signal, options }: IoContext & { readonly options: BackupOptions },
): Promise<BackupResult> {
  const image = snapshot.images.find(({ disk }) => disk === name);
  if (image === undefined) {
    const disks = snapshot.images.map(({ disk }) => disk).join(', ');
    throw new BlksnapError('ENOENT', `Snapshot ${snapshot.id} has no image of disk "${name}": it is of ${disks}`);
  }
  const { exportName } = parseNbdUri(readOnce ? image.readOnceUri : image.uri);
  const address = { kind: 'unix', path: nbdSocket } as const;
  const { generationId, changeNumber } = image;
  const source = await openNbdSource({
    disk: name,
    identity,
    generationId,
    changeNumber,
    connect: (contexts) => NbdClient.connect({ reactor, address, exportName, contexts, signal }),
    discardsWith: readOnce ? pool : undefined,
  });
  const progress = new Progress(options.json ?? false);
  progress.start(`backing up ${name}`);
  try {
    return await backUp(source, { reactor, pool, signal, directory: options.to, mode, onProgress: progress.update });
  } catch (cause) {
    throw signal.aborted ? cause : await explained(client, snapshot.id, name, toBlksnapError(cause));
  } finally {
    progress.end();
    await source.close();
  }
}

/** A read error of an image says little when it is the snapshot that was lost. */
async function explained(client: Client, id: string, name: string, failure: BlksnapError): Promise<BlksnapError> {
  const now = await client.snapshot(id).catch(() => null);
  const error = now?.images.find(({ disk }) => disk === name)?.error ?? null;
  if (error === null) return failure;
  const why =
    error === 'ENOSPC' ? 'its storage is full; give it more with --limit, or another place with --storage' : error;
  return new BlksnapError(error, `${failure.message}. The snapshot's image was lost: ${why}`, { cause: failure });
}

function report(disk: string, snapshot: SnapshotView, { point, progress }: BackupResult, json: boolean): void {
  if (json) {
    process.stdout.write(`${JSON.stringify({ disk, snapshot: snapshot.id, point, progress })}\n`);
    return;
  }
  const work = `read ${formatSize(point.bytesRead)}, stored ${formatSize(point.fileBytes)} in ${formatSeconds(progress.seconds)}`;
  printLine(`${disk}: ${point.id}, ${point.kind} (${point.reason}): ${work}`);
}
