/** What the machine offers to the tests beside this one. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { expect, test } from 'vitest';

test('has a kernel of its own, with the modules that block devices need', () => {
  expect(process.getuid?.()).toBe(0);
  for (const module of ['ublk_drv', 'nbd', 'brd', 'dm_mod', 'ext4', 'xfs']) {
    expect({ module, ...spawnSync('modprobe', [module], { encoding: 'utf8' }) }).toMatchObject({ status: 0 });
  }
  expect(fs.existsSync('/dev/ublk-control')).toBe(true);
});
