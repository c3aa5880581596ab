/** Backups of file systems that are mounted on /dev/ublkbN. */

import { afterAll, beforeAll, test } from 'vitest';
import { MIB } from '../../../src/util/units.ts';
import { expectBackupsOfMounted } from '../backups-of-mounted.ts';
import { Machine, sh } from '../machine.ts';
import { QuickDaemon } from '../quick-daemon.ts';

/** Emulated, a program of Node takes seconds to start. */
const LIMIT_MS = 600_000;

const daemon = new QuickDaemon();
let machine: Machine;

beforeAll(async () => {
  await sh('modprobe', 'ublk_drv');
  machine = await Machine.startWith(daemon);
}, LIMIT_MS);
afterAll(() => machine.dispose(), LIMIT_MS);

test.each([
  { kind: 'ext4', size: 64 * MIB, mkfs: ['mkfs.ext4', '-q', '-F'] },
  { kind: 'xfs', size: 320 * MIB, mkfs: ['mkfs.xfs', '-q', '-f'] },
])(
  'of a mounted $kind restore to what its images showed',
  async ({ mkfs, size }) => {
    await expectBackupsOfMounted({ machine, daemon, via: 'ublk', mkfs, size });
  },
  LIMIT_MS,
);
