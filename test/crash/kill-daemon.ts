/** A daemon that is killed again and again while fio writes to its disk and verifies, sometimes with a snapshot held, and
 *  between the kills a backup of that disk. After each kill the daemon starts again, has the disk, and has no snapshot; the next
 *  backup, which the change history makes incremental, restores to the disk's very bytes. */

import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Prng } from '../../src/util/prng.ts';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld, sameFiles } from '../daemon/world.ts';
import { fio } from '../system/daemon-under-test.ts';

const SIZE = 32 * MIB;
const LIFE_MS = 1500;
/** However slow the machine is. */
const LEAST_KILLS = 3;

export interface KillReport {
  readonly kills: number;
  readonly incrementals: number;
}

interface Backup {
  readonly point: { readonly kind: string };
}

/** Errors: the first thing that is not as promised, with the round. */
export async function killDaemons(random: Prng, goOn: () => boolean): Promise<KillReport> {
  const world = new DaemonWorld();
  const report = { kills: 0, incrementals: 0 };
  try {
    const image = world.image('vda.img', SIZE, SIZE / 2);
    await world.start(image);
    await backedUp(world, image);
    while (report.kills < LEAST_KILLS || goOn()) {
      await workThenKill(world, random);
      report.kills++;
      await world.start();
      if ((await world.client.snapshots()).length > 0) throw new Error('a snapshot outlived its daemon');
      if ((await backedUp(world, image)) !== 'full') report.incrementals++;
    }
    await world.json('verify', world.file('backups'));
    return report;
  } catch (cause) {
    throw new Error(`after kill ${report.kills}: ${String(cause)}`, { cause });
  } finally {
    await world.close();
  }
}

async function workThenKill(world: DaemonWorld, random: Prng): Promise<void> {
  const [disk] = await world.client.disks();
  if (disk === undefined) throw new Error('the disk is gone');
  const words =
    '--rw=randrw --bsrange=512-64k --blockalign=512 --iodepth=16 --time_based --runtime=60 ' +
    '--verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0';
  const work = fio(disk.uri, ...words.split(' '), `--size=${SIZE}`, `--randseed=${random.below(1e9)}`);
  if (random.chance(0.5)) await world.client.createSnapshot({ disks: ['vda'] });
  await sleep(random.below(LIFE_MS));
  await world.stop('SIGKILL');
  const { output } = await work.ended;
  if (/verify(?: failed|: bad)/.test(output)) throw new Error(`fio read what it had not written: ${output}`);
}

/** Backs the disk up and restores it; the kind of the backup. Nobody writes meanwhile. */
async function backedUp(world: DaemonWorld, image: string): Promise<string> {
  const restored = world.file('restored.img');
  const { point } = (await world.json('backup', 'vda', '--to', world.file('backups'))) as unknown as Backup;
  await world.json('restore', world.file('backups'), '--disk', 'vda', '--to', restored);
  if (!sameFiles(image, restored)) throw new Error(`the ${point.kind} backup is not what the disk is`);
  fs.unlinkSync(restored);
  await world.json('prune', world.file('backups'), '--keep-last', '3');
  return point.kind;
}
