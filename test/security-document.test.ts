/** docs/security.md, run as it is written: every command must succeed. Programs in the background are ended at the end;
 *  /tmp becomes a directory of the test's own, and the ports free ones. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';

import { freePort } from './free-port.ts';
import { requirePrograms } from './requirements.ts';

const ROOT = path.join(import.meta.dirname, '..');

function commands(): string {
  const text = fs.readFileSync(path.join(ROOT, 'docs/security.md'), 'utf8');
  return [...text.matchAll(/^ {4}(.*)$/gm)].map(([, line]) => line).join('\n');
}

it('runs the how-to of docs/security.md', async (context) => {
  requirePrograms(context, 'openssl', 'nbdinfo', 'nbdcopy', 'nbdkit', 'nbd-client', 'qemu-img', 'curl');
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'security-'));
  try {
    const wait = 'for _ in $(seq 100); do blksnap status >/dev/null 2>&1 && break; sleep 0.1; done';
    let script = commands().replaceAll('/tmp/', `${dir}/`);
    script = script.replace(/^(blksnap daemon .*)&$/gm, `$1 2>${dir}/log &\n${wait}`);
    script = script.replace(/^(blksnap serve .*)&$/gm, `$1 >${dir}/uri &\nuntil [ -s ${dir}/uri ]; do sleep 0.1; done`);
    for (const port of new Set(script.match(/\b10[89]\d\d\b/g))) {
      script = script.replaceAll(port, String(await freePort()));
    }
    const whole = `set -eu\ntrap 'kill $(jobs -p); wait' EXIT\n${script}\n`;
    const env = { ...process.env, PATH: `${ROOT}/bin:${process.env['PATH'] ?? ''}:/usr/sbin` };
    const { status, stdout, stderr } = spawnSync('bash', ['-c', whole], { env, encoding: 'utf8', timeout: 240_000 });
    expect({ status, said: status === 0 ? '' : stdout + stderr }).toEqual({ status: 0, said: '' });
    expect(fs.readFileSync(`${dir}/copy.raw`).length).toBe(64 * 1024 * 1024);
    expect(stdout.match(/virtual size: 64 MiB/g)).toHaveLength(2);
    expect(stdout).toMatch(/^vm: /m);
    const key = /:(.*)/.exec(fs.readFileSync(`${dir}/psk/keys.psk`, 'utf8'))![1]!;
    expect(fs.readFileSync(`${dir}/log`, 'utf8') + stderr).not.toContain(key);
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
});
