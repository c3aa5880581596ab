/** docs/dm.md, run as it is written: every command must succeed, and the data be where the page says. /tmp becomes a
 *  directory of the test's own. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, expect, it } from 'vitest';

import { MIB } from '../src/util/units.ts';
import { DaemonUnderTest } from './system/daemon-under-test.ts';

const ROOT = path.join(import.meta.dirname, '..');
const daemon = new DaemonUnderTest();
afterEach(() => daemon.dispose());

function commands(): string {
  const text = fs.readFileSync(path.join(ROOT, 'docs/dm.md'), 'utf8');
  return [...text.matchAll(/^ {4}(.*)$/gm)].map(([, line]) => line).join('\n');
}

function byteAt(file: string, offset: number): number {
  const fd = fs.openSync(daemon.path(file), 'r');
  const byte = Buffer.alloc(1);
  fs.readSync(fd, byte, 0, 1, offset);
  fs.closeSync(fd);
  return byte[0]!;
}

it('runs the examples of docs/dm.md', async () => {
  await daemon.start();
  // `truncate` keeps what is there: each 100 MiB that the page moves has a byte of its own.
  fs.writeFileSync(daemon.path('vm.img'), Buffer.alloc(MIB, 1));
  fs.writeFileSync(daemon.path('more.img'), Buffer.alloc(101 * MIB, 2).fill(3, 100 * MIB));
  const script = `set -euo pipefail\n${commands().replaceAll('/tmp/', `${daemon.directory}/`)}\n`;
  const env = { ...process.env, PATH: `${ROOT}/bin:${process.env['PATH'] ?? ''}`, BLKSNAP_DIR: daemon.state };
  const { status, stdout, stderr } = spawnSync('bash', ['-c', script], { env, encoding: 'utf8', timeout: 240_000 });
  expect({ status, said: status === 0 ? '' : stdout + stderr }).toEqual({ status: 0, said: '' });
  // The second table swapped the halves of more.img, and new.img has what it showed.
  expect([0, 100, 200].map((offset) => byteAt('new.img', offset * MIB))).toEqual([1, 3, 2]);
  // The redirected range, which went there and came back.
  expect([byteAt('fast.img', 512 * MIB), byteAt('vm.img', 0)]).toEqual([1, 1]);
  expect(await daemon.cli('dm', 'table')).toBe(
    `fast: 0 2097152 linear ${daemon.path('fast.img')} 0\njoined: 0 614400 linear ${daemon.path('new.img')} 0\n`,
  );
});
