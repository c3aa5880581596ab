/** The README's tour, run as it is written: every command must succeed. The daemon's terminal becomes a job in
 *  the background, and /tmp a directory of the test's own. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';

import { requirePrograms } from './requirements.ts';

const ROOT = path.join(import.meta.dirname, '..');

function tour(): string {
  const text = fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8');
  const section = /^## Five minutes\n([\s\S]*?)^## /m.exec(text)?.[1] ?? '';
  return [...section.matchAll(/^ {4}(.*)$/gm)].map(([, line]) => line).join('\n');
}

function scriptOf(commands: string, dir: string): string {
  const daemon = `blksnap daemon 2>${dir}/log & DAEMON=$!
trap 'kill $DAEMON; wait $DAEMON' EXIT
for _ in $(seq 100); do blksnap status >${dir}/status 2>&1 && break; sleep 0.1; done`;
  return `set -eu\n${commands.replaceAll('/tmp/', `${dir}/`).replace(/^blksnap daemon$/m, daemon)}\n`;
}

it("runs the README's tour", (context) => {
  requirePrograms(context, 'qemu-io');
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'tour-'));
  try {
    const script = scriptOf(tour(), dir);
    expect(script).toContain('DAEMON=');
    const env = { ...process.env, PATH: `${ROOT}/bin:${process.env['PATH'] ?? ''}` };
    const { status, stdout, stderr } = spawnSync('bash', ['-c', script], { env, encoding: 'utf8', timeout: 240_000 });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/incremental/);
    // qemu-io says so, and still ends with 0 in some versions.
    expect(stdout).not.toMatch(/verification failed/i);
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
});
