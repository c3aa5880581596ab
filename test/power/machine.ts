/** The machine whose power is lost: a file system on a disk whose every write is logged (dm-log-writes over RAM disks), and
 *  that disk as it was at a place of the log. Runs as root in a kernel of its own. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { WriteLog } from './write-log.ts';

export const FILE_SYSTEMS = ['ext4', 'xfs'] as const;
export type FileSystem = (typeof FILE_SYSTEMS)[number];

/** Where the file system is, before the loss and after it: what runs on it sees the same paths. */
export const MOUNTED = '/tmp/power/mounted';
const REPLAYED = '/tmp/power/replayed';
const COPY = '/tmp/power/copy';
const BOOT_ID = '/proc/sys/kernel/random/boot_id';
const DISK_MIB = 304; // the least that mkfs.xfs takes is 300
const LOG_MIB = 600;
const [DISK, LOG, MAPPED] = ['/dev/ram0', '/dev/loop7', '/dev/mapper/logged'];

/** Runs a program; its output. Throws with its last words. */
function run(program: string, ...args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export class PoweredMachine {
  readonly #fileSystem: FileSystem;

  constructor(fileSystem: FileSystem) {
    this.#fileSystem = fileSystem;
    fs.mkdirSync(MOUNTED, { recursive: true });
    run('modprobe', 'brd', 'rd_nr=1', `rd_size=${DISK_MIB * 1024}`);
    for (const module of ['loop', 'dm-log-writes', fileSystem]) run('modprobe', module);
    fs.writeFileSync('/tmp/power/log', '');
    fs.truncateSync('/tmp/power/log', LOG_MIB * 2 ** 20);
    run('losetup', LOG, '/tmp/power/log');
    run('dmsetup', 'create', 'logged', '--table', `0 ${DISK_MIB * 2048} log-writes ${DISK} ${LOG}`);
    run(`mkfs.${fileSystem}`, '-q', MAPPED);
    this.mark('made');
    run('mount', MAPPED, MOUNTED);
  }

  /** Notes in the log that something is promised from here on. */
  mark(text: string): void {
    run('dmsetup', 'message', 'logged', '0', 'mark', text);
  }

  /** Ends the recording. Whatever runs on the file system must have ended. */
  stop(): WriteLog {
    run('umount', MOUNTED);
    run('dmsetup', 'remove', 'logged');
    run('losetup', '-d', LOG);
    run('modprobe', '-r', 'brd');
    fs.writeFileSync(REPLAYED, '');
    fs.truncateSync(REPLAYED, DISK_MIB * 2 ** 20);
    return new WriteLog('/tmp/power/log');
  }

  /** Brings the disk from one place of the log to a later one. */
  advance(log: WriteLog, range: { readonly from: number; readonly to: number }): void {
    const fd = fs.openSync(REPLAYED, 'r+');
    log.replay(fd, range);
    fs.closeSync(fd);
  }

  /** Boots after a loss at the present place: with a boot id of its own, and the file system as it comes up. */
  async booted(run_: () => Promise<void>): Promise<void> {
    run('cp', '--sparse=always', REPLAYED, COPY);
    fs.writeFileSync('/tmp/power/boot-id', `${crypto.randomUUID()}\n`);
    run('mount', '--bind', '/tmp/power/boot-id', BOOT_ID);
    run('mount', '-t', this.#fileSystem, '-o', 'loop', COPY, MOUNTED);
    try {
      await run_();
    } finally {
      run('umount', MOUNTED);
      run('umount', BOOT_ID);
      fs.rmSync(COPY);
    }
  }
}
