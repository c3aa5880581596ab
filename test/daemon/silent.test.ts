/** A daemon that is there and says nothing, as one that is stopped or hung: commands say so, and Ctrl-C ends them. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld, Program } from './world.ts';

/** By then Ctrl-C has ended a command, however busy the machine is: it may take 5 s for what it has to clean up. */
const PATIENCE_MS = 120_000;
/** A lease of a minute, what comes before and after, and a machine that is busy. */
const TEST_LIMIT_MS = 600_000;

class SilentWorld extends DaemonWorld {
  readonly backups = this.file('backups');

  stopDaemon(): void {
    this.daemon!.child.kill('SIGSTOP');
  }

  wakeDaemon(): void {
    this.daemon!.child.kill('SIGCONT');
  }

  /** Files of restore points, whole or not. */
  files(): string[] {
    if (!fs.existsSync(this.backups)) return [];
    return fs
      .readdirSync(this.backups, { recursive: true, encoding: 'utf8' })
      .filter((name) => /qcow2|sums/.test(name));
  }

  async backupUnderWay(): Promise<Program> {
    const backup = new Program(['backup', 'vm', '--to', this.backups, '--dir', this.dir]);
    const size = (name: string): number =>
      fs.statSync(path.join(this.backups, name), { throwIfNoEntry: false })?.size ?? 0;
    while (backup.running && !this.files().some((name) => size(name) > MIB)) await sleep(5);
    return backup;
  }
}

function withDaemon(dataBytes: number, test: (world: SilentWorld) => Promise<void>): () => Promise<void> {
  return async () => {
    const world = new SilentWorld();
    try {
      await world.start(world.image('vm.img', 1024 * MIB, dataBytes));
      await test(world);
    } finally {
      world.wakeDaemon();
      await world.close();
    }
  };
}

/** Waits until the program has asked its daemon: one that is still starting would be killed by a signal. */
async function asking(program: Program): Promise<void> {
  const directory = `/proc/${program.child.pid}/fd`;
  const isSocket = (fd: string): boolean => fs.readlinkSync(path.join(directory, fd)).startsWith('socket:');
  const sockets = (): number => {
    try {
      return fs.readdirSync(directory).filter(isSocket).length;
    } catch {
      return 0; // Descriptors come and go.
    }
  };
  // Two are its outputs.
  while (program.running && sockets() < 3) await sleep(20);
}

/** What the command had to say when Ctrl-C was pressed. It must end by itself. */
async function interrupted(program: Program): Promise<{ code: number | null; stderr: string }> {
  const late = setTimeout(() => program.child.kill('SIGKILL'), PATIENCE_MS);
  const { code, stderr } = await program.signal('SIGINT');
  clearTimeout(late);
  return { code, stderr };
}

const CANCELLED = { code: 130, stderr: expect.stringMatching(/cancelled/i) };

describe.concurrent('a silent daemon', { timeout: TEST_LIMIT_MS }, () => {
  it(
    'does not keep a backup under way from ending by Ctrl-C, and nothing of it stays',
    withDaemon(512 * MIB, async (world) => {
      const backup = await world.backupUnderWay();
      world.stopDaemon();
      await sleep(500);
      expect(await interrupted(backup)).toEqual(CANCELLED);
      expect(world.files()).toEqual([]);

      world.wakeDaemon();
      // The wish to let the snapshot go is heard now; were it not, its lease would run out.
      while ((await world.client.snapshots()).length > 0) await sleep(50);
      expect((await world.cli('backup', 'vm', '--to', world.backups)).code).toBe(0);
    }),
  );

  it(
    'does not keep a backup that waits for its snapshot from ending by Ctrl-C',
    withDaemon(0, async (world) => {
      world.stopDaemon();
      const backup = new Program(['backup', 'vm', '--to', world.backups, '--dir', world.dir]);
      await asking(backup);
      await sleep(1000);
      expect(await interrupted(backup)).toEqual(CANCELLED);
      expect(world.files()).toEqual([]);
    }),
  );

  it(
    'is told of after half a minute, by commands that ask and those that follow; a backup under way gives it a minute',
    withDaemon(512 * MIB, async (world) => {
      const { id } = await world.client.createSnapshot({ disks: ['vm'] });
      const follower = new Program(['snapshot', 'events', id, '--follow', '--dir', world.dir]);
      const backup = await world.backupUnderWay();
      world.stopDaemon();
      const silent = { code: 1, stdout: '', stderr: expect.stringMatching(/does not answer: .*30 s.*stopped or hung/) };
      const [listed, followed, backedUp] = await Promise.all([world.cli('list'), follower.ended(), backup.ended()]);
      expect(listed).toEqual(silent);
      expect(followed).toEqual(silent);
      expect(backedUp).toMatchObject({ code: 1, stderr: expect.stringMatching(/untouched.*does not answer/) });
      expect(world.files()).toEqual([]);
    }),
  );
});
