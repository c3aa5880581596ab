/** What tests in a kernel of their own share: commands, block devices in memory, mounts. Ended by `Machine.dispose`. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { DaemonUnderTest } from '../system/daemon-under-test.ts';

const run = promisify(execFile);

/** Runs a command and returns what it prints. Rejects with its words when it fails. */
export async function sh(command: string, ...words: string[]): Promise<string> {
  return (await run(command, words, { maxBuffer: 64e6 })).stdout;
}

const RAM_DISKS = 4;
export const RAM_DISK_BYTES = 320 * 2 ** 20;

export class Machine {
  readonly daemon: DaemonUnderTest;
  readonly #mounts: string[] = [];

  private constructor(daemon: DaemonUnderTest) {
    this.daemon = daemon;
  }

  static start(...daemonOptions: string[]): Promise<Machine> {
    return Machine.startWith(new DaemonUnderTest(), ...daemonOptions);
  }

  /** Loads the modules; /dev/ram0 to /dev/ram3 are empty then. */
  static async startWith(daemon: DaemonUnderTest, ...daemonOptions: string[]): Promise<Machine> {
    await sh('modprobe', 'nbd');
    if (!fs.existsSync('/dev/ram0')) {
      await sh('modprobe', 'brd', `rd_nr=${RAM_DISKS}`, `rd_size=${RAM_DISK_BYTES / 1024}`);
    }
    for (let i = 0; i < RAM_DISKS; i++) await sh('blockdev', '--flushbufs', `/dev/ram${i}`);
    const machine = new Machine(daemon);
    await machine.daemon.start(...daemonOptions);
    return machine;
  }

  /** Attaches a block device; the path of its kernel device. */
  async attach(device: string, ...options: string[]): Promise<string> {
    const disk = await this.daemon.json<{ kernelDevice: { path: string } | null }>('attach', device, ...options);
    return disk.kernelDevice!.path;
  }

  /** Mounts a device at a new place, which it returns. */
  async mount(device: string, ...options: string[]): Promise<string> {
    const place = fs.mkdtempSync(path.join(this.daemon.directory, 'mnt-'));
    await sh('mount', ...options, device, place);
    this.#mounts.push(place);
    return place;
  }

  async umount(place: string): Promise<void> {
    await sh('umount', place);
    this.#mounts.splice(this.#mounts.indexOf(place), 1);
  }

  async sha256(device: string): Promise<string> {
    return (await sh('sha256sum', device)).split(' ')[0]!;
  }

  async dispose(): Promise<void> {
    for (const place of this.#mounts.toReversed()) await sh('umount', '--lazy', place);
    await this.daemon.stop();
    await this.daemon.dispose();
  }
}
