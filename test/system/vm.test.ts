/** The runner that gives tests a kernel of their own. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { requireVm } from '../requirements.ts';

const RUNNER = path.resolve(import.meta.dirname, '../../scripts/vm.mjs');

function vm(...words: string[]): Promise<{ code: unknown; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [RUNNER, ...words], (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : error.code, stdout, stderr }),
    );
  });
}

test('a command runs as root in another kernel, and leaves nothing on this machine', async (context) => {
  requireVm(context, 'uml');
  const file = path.join(os.tmpdir(), `blksnap-vm-test-${process.pid}`);
  const { code, stdout } = await vm(`touch ${file}; ls ${file}; uname -r; id -u; exit 3`);
  expect(code).toBe(3);
  expect(stdout.split('\n')).toMatchObject([file, expect.not.stringMatching(`^${os.release()}$`), '0', '']);
  expect(fs.existsSync(file)).toBe(false);
});

test('a machine ends at its limit', async (context) => {
  requireVm(context, 'uml');
  // Longer, where it takes longer to begin.
  for (let limit = 6, begun = false; !begun; limit *= 2) {
    const { code, stdout, stderr } = await vm('--limit', String(limit), 'echo begun; sleep 1000');
    expect([code, stderr]).toEqual([124, `The machine was ended after ${limit} s\n`]);
    expect(['', 'begun\n']).toContain(stdout);
    begun = stdout !== '';
  }
});

test('what cannot be run is refused', async () => {
  expect(await vm('--kernel', 'vax', 'true')).toMatchObject({ code: 2, stderr: expect.stringContaining('want') });
  expect(await vm()).toMatchObject({ code: 2 });
});
