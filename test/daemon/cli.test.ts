/** The command line: help, mistakes, JSON. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld, blksnap } from './world.ts';

let world: DaemonWorld;

beforeAll(async () => {
  world = new DaemonWorld();
  await world.start(world.image('vm.img', 4 * MIB));
});
afterAll(() => world.close());

describe('help', () => {
  it('lists the commands and the exit codes', async () => {
    const { code, stdout } = await blksnap('--help');
    expect(code).toBe(0);
    for (const word of ['daemon', 'attach', 'snapshot', 'backup', 'serve', 'Exit codes:'])
      expect(stdout).toContain(word);
  });

  it.each([
    'daemon',
    'attach',
    'detach',
    'mount',
    'list',
    'status',
    'cbt',
    'snapshot create',
    'snapshot list',
    'snapshot show',
    'snapshot events',
    'snapshot destroy',
    'backup',
    'backups',
    'restore',
    'verify',
    'prune',
    'serve',
    'version',
    'openapi',
  ])('of %s has an example, --dir and --json', async (command) => {
    const { code, stdout } = await blksnap(...command.split(' '), '--help');
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`Examples?:\n  \\$ blksnap ${command.split(' ')[0]!}`));
    expect(stdout).toContain('--dir <dir>');
    expect(stdout).toContain('--json');
  });
});

describe('a mistake', () => {
  it.each([
    [['atach', 'x'], 2, /unknown command 'atach'.*Did you mean attach\?/],
    [['snapshot', 'destory', 'x'], 2, /Did you mean destroy\?/],
    [['list', '--josn'], 2, /Did you mean --json\?/],
    [['restore', '/x', '--disk', 'a'], 2, /--to.*see `blksnap restore --help`/],
    [['snapshot', 'create'], 2, /'name'; see `blksnap snapshot create --help`/],
    [['snapshot', 'create', 'vm', '--limit', 'much'], 2, /Cannot read size "much": want/],
    [['snapshot', 'create', 'vm', '--limit', '1'], 2, /limit 1 bytes, want at least 4096/],
    [['snapshot', 'create', 'vm', '--limit', '0'], 2, /limit 0 bytes, want at least 4096/],
    [
      ['snapshot', 'create', 'vm', '--storage', '/dev/null'],
      2,
      /"\/dev\/null" as diff storage: want a directory, a new/,
    ],
    [['snapshot', 'create', 'vm', 'vm'], 2, /"vm" twice/],
    [['snapshot', 'create', 'none'], 5, /No disk "none": there are vm/],
    [['snapshot', 'show', 'none'], 5, /`blksnap snapshot list`/],
    [['snapshot', 'create', 'vm', '--storage', '/nonexistent/x'], 5, /ENOENT|no such/],
    [['prune', '/x', '--keep-last', 'all'], 2, /whole number; see/],
    [['daemon', '--io-threads', 'many'], 2, /--io-threads.*'many' is invalid\. Want a whole number; see/],
    [['snapshot', 'create', 'vm', '--freeze', 'true', '--freeze-timeout', '9'], 2, /give both --freeze and --thaw/],
    [['snapshot', 'create', 'vm', '--freeze-timeout', '0'], 2, /hooks\.timeoutMs: /],
    [['snapshot', 'create', 'vm', '--freeze-timeout', 'soon'], 2, /'soon' is invalid\. Want a whole number/],
    [['detach', 'none'], 5, /No disk "none"/],
    [['daemon', '--nbd', 'nowhere'], 2, /want host:port/],
    [['daemon', '--io', 'aio'], 2, /Allowed choices are uring, portable/],
    [['serve', '/x'], 2, /want one of --stdio, --socket PATH and --listen/],
    [['backups', '/nonexistent'], 5, /is not a backup directory/],
  ])('%j', async (args, wanted, words) => {
    const { code, stdout, stderr } = await world.cli(...args);
    expect([code, stdout]).toEqual([wanted, '']);
    expect(stderr).toMatch(words);
    expect(stderr).toMatch(/^blksnap: [^\n]+\n$/);
    const inJson = await world.cli(...args, '--json');
    expect(inJson.code).toBe(wanted);
    expect(JSON.parse(inJson.stderr)).toEqual({
      error: { code: expect.any(String), message: expect.stringMatching(words) },
    });
  });

  it('about the daemon names the command that starts one', async () => {
    const { code, stderr } = await blksnap('list', '--dir', world.file('elsewhere'));
    expect([code, stderr]).toEqual([
      3,
      `blksnap: no daemon at ${world.file('elsewhere')}; start one with \`blksnap daemon\`\n`,
    ]);
  });
});

describe('output', () => {
  it('is the version', async () => {
    const { stdout } = await blksnap('--version');
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    // As the kernel module's console tool has it: with a build.
    expect((await blksnap('version')).stdout).toBe(`${stdout.trim()}.0\n`);
  });

  it('is a table for people, JSON for programs', async () => {
    const { stdout } = await world.cli('list');
    expect(stdout.split('\n')[0]).toMatch(/^NAME +SIZE +STATE .*PATH +DEVICE +URI$/);
    expect(stdout).toMatch(/^vm +4\.00 MiB +attached .*vm\.img +- +nbd\+unix:\/\/\/vm\?socket=/m);
    expect(await world.json('list')).toMatchObject({ disks: [{ name: 'vm', size: 4 * MIB }] });
    expect(await world.json('status')).toMatchObject({ disks: 1, pid: world.daemon!.child.pid });
    expect(await world.json('cbt', 'vm')).toMatchObject({ blockSize: 65_536, changeNumber: 1 });
  });

  it('of a snapshot is its id and its images, and any beginning of an id will do', async () => {
    const { stdout } = await world.cli('snapshot', 'create', 'vm', '--storage', ':memory:');
    const [id, uri] = stdout.trim().split('\n');
    expect(uri).toContain(`/vm%40${id}?socket=`);
    expect((await world.cli('snapshot', 'list')).stdout).toMatch(new RegExp(`^${id} .* vm$`, 'm'));
    expect((await world.cli('snapshot', 'show', id!.slice(0, 6))).stdout).toMatch(/change number +1\nstate +good/);
    expect((await world.json('snapshot', 'destroy', id!.slice(0, 6)))['destroyed']).toBe(id);
    expect((await world.cli('snapshot', 'list')).stdout).toMatch(/^No snapshots\./);
  });

  it.each([[[]], [['--freeze', 'true', '--thaw', 'true']]])('of a snapshot with a time limit and %j', async (hooks) => {
    const limit = ['--storage', ':memory:', '--freeze-timeout', '5000'];
    const { id, freeze } = await world.json('snapshot', 'create', 'vm', ...limit, ...hooks);
    // Nothing is mounted.
    expect(freeze !== null).toBe(hooks.length > 0);
    await world.json('snapshot', 'destroy', id as string);
  });

  it('of openapi is the document', async () => {
    expect(await world.json('openapi')).toMatchObject({ openapi: '3.1.0', info: { title: 'blksnap' } });
  });
});
