/** Filters in a real daemon: by command line and API, under a real client's load, across restarts. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Client } from '../../src/api/client.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest, fio } from './daemon-under-test.ts';

const ROOT = path.join(import.meta.dirname, '../..');
const EXAMPLES = path.join(ROOT, 'examples');
const DOCUMENT = path.join(ROOT, 'docs/filters.md');
const TSC = path.join(ROOT, 'node_modules/.bin/tsc');
const MODULES = ['--filter-module', path.join(EXAMPLES, 'rate-limiter.mjs'), path.join(EXAMPLES, 'write-once.mjs')];
const SIZE = 64 * MIB;
let daemon: DaemonUnderTest;

beforeEach(() => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

test('the commands attach, command, show and detach a filter, and the daemon keeps it', async () => {
  await daemon.start(...MODULES);
  await daemon.disk('vm', SIZE);
  const kinds = 'FILTER        DISKS\nblksnap       vm\nrate-limiter  -\nwrite-once    -\n';
  expect(await daemon.cli('filter', 'list')).toBe(kinds);
  const options = '{"bytesPerSecond":1000000}';
  expect(await daemon.cli('filter', 'attach', 'vm', 'rate-limiter', '--options', options)).toBe(
    'vm: rate-limiter, blksnap\n',
  );
  expect(await daemon.cli('filter', 'attach', 'vm', 'write-once')).toBe('vm: write-once, rate-limiter, blksnap\n');
  expect(await daemon.cli('list')).toContain('write-once, rate-limiter, blksnap');
  await expect(daemon.cli('filter', 'attach', 'vm', 'write-once')).rejects.toMatchObject({ code: 6 });
  await expect(daemon.cli('filter', 'attach', 'vm', 'none')).rejects.toMatchObject({ code: 5 });
  await expect(daemon.cli('filter', 'attach', 'vm', 'rate-limiter', '--options', '{')).rejects.toMatchObject({
    code: 2,
  });
  await expect(daemon.cli('filter', 'detach', 'vm', 'blksnap')).rejects.toMatchObject({ code: 6 });
  await expect(daemon.cli('filter', 'ctl', 'vm', 'rate-limiter', 'no')).rejects.toMatchObject({ code: 2 });
  await daemon.cli('filter', 'detach', 'vm', 'write-once');
  await daemon.stop();

  await daemon.start(...MODULES);
  expect(await daemon.json('filter', 'ctl', 'vm', 'rate-limiter', 'stats')).toMatchObject({ bytesPerSecond: 1e6 });
  await daemon.stop();

  // Without its filter the disk must not be served: a guard that is gone in silence is none.
  await daemon.start();
  const { disks } = await daemon.json<{ disks: Array<{ state: string; failure: { message: string } }> }>('list');
  expect(disks).toMatchObject([
    { state: 'failed', failure: { message: expect.stringContaining('No filter "rate-limiter"') } },
  ]);
  await daemon.cli('filter', 'detach', 'vm', 'rate-limiter');
  await daemon.stop();
  await daemon.start();
  expect(await daemon.json('list')).toMatchObject({ disks: [{ state: 'attached', filters: ['blksnap'] }] });
});

test('a module that cannot be loaded keeps the daemon from starting, and it says why', async () => {
  await expect(daemon.start('--filter-module', './none.mjs')).rejects.toThrow(
    /Cannot load filter module ".\/none.mjs"/,
  );
  const notOne = path.join(import.meta.dirname, '../../scripts/debian.mjs');
  await expect(daemon.start('--filter-module', notOne)).rejects.toThrow(/exports no function `register`/);
});

test('a module is a package that is installed where the daemon starts', async () => {
  const place = daemon.path('node_modules/my-limiter');
  fs.mkdirSync(place, { recursive: true });
  fs.writeFileSync(path.join(place, 'package.json'), JSON.stringify({ name: 'my-limiter', exports: './filter.mjs' }));
  // The example imports the library by its name.
  fs.symlinkSync(ROOT, daemon.path('node_modules/blksnap'));
  fs.copyFileSync(path.join(EXAMPLES, 'rate-limiter.mjs'), path.join(place, 'filter.mjs'));
  await expect(daemon.start('--filter-module', 'my-limiter')).rejects.toThrow(/no such package/);
  await daemon.startIn(daemon.directory, '--filter-module', 'my-limiter');
  await daemon.disk('vm', SIZE);
  expect(await daemon.cli('filter', 'attach', 'vm', 'rate-limiter', '--options', '{"bytesPerSecond":1e6}')).toBe(
    'vm: rate-limiter, blksnap\n',
  );
});

test('a filter in TypeScript, the one of the documents, has its types checked, and runs', async () => {
  const [source] = /(?<=```ts\n)[^]*?(?=```)/.exec(fs.readFileSync(DOCUMENT, 'utf8'))!;
  fs.mkdirSync(daemon.path('node_modules'));
  fs.symlinkSync(ROOT, daemon.path('node_modules/blksnap'));
  const module = daemon.path('nothing.mts');
  fs.writeFileSync(module, source);
  // Node 22.18 and newer strip the types themselves; some before know of it, and do not.
  const { typescript } = process.features as { typescript?: string | false };
  if (typeof typescript !== 'string') {
    await expect(daemon.start('--filter-module', module)).rejects.toThrow(/compile it to JavaScript, or use Node/);
  } else {
    await daemon.start('--filter-module', module);
    await daemon.stop();
  }
  const strict = ['--strict', '--noEmitOnError', '--skipLibCheck', '--target', 'es2023', '--module', 'nodenext'];
  const types = ['--types', 'node', '--typeRoots', path.join(ROOT, 'node_modules/@types')];
  await promisify(execFile)(TSC, [...strict, ...types, module], { cwd: daemon.directory });
  await daemon.start('--filter-module', daemon.path('nothing.mjs'));
  await daemon.disk('vm', SIZE);
  expect(await daemon.cli('filter', 'attach', 'vm', 'nothing')).toBe('vm: nothing, blksnap\n');
  expect(await daemon.json('filter', 'ctl', 'vm', 'nothing', 'any')).toBeNull();
});

test(
  'fio verifies what it wrote while filters come and go, a thousand times',
  { timeout: 600_000 },
  async (context) => {
    requirePrograms(context, 'fio');
    await daemon.start(...MODULES);
    await daemon.disk('vm', SIZE);
    const client = new Client({ dir: daemon.state });
    for (let rounds = 0; rounds < 1000;) {
      const load = fio(
      daemon.uri('vm'),
      '--rw=randwrite', '--bsrange=4k-64k', '--iodepth=16', `--size=${SIZE}`, '--time_based', '--runtime=5',
      '--verify=crc32c', '--verify_fatal=1', '--serialize_overlap=1', '--verify_state_save=0', '--randrepeat=0',
    ); // prettier-ignore
      let running = true;
      void load.ended.then(() => (running = false));
      for (; running; rounds++) {
        await client.attachFilter('vm', 'rate-limiter', { bytesPerSecond: 500 * MIB });
        if (rounds % 10 === 0)
          await client.filterCtl('vm', {
            filter: 'rate-limiter',
            command: 'rate',
            payload: { bytesPerSecond: 300 * MIB },
          });
        await client.detachFilter('vm', 'rate-limiter');
      }
      const { code, output } = await load.ended;
      expect({ code, output }).toMatchObject({ code: 0 });
    }
    expect((await client.disk('vm')).filters).toEqual(['blksnap']);
  },
);
