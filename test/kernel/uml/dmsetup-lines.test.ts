/** What `blksnap dm` prints beside what the real dmsetup prints of the same tables, to the last blank. Numbers alone differ: a
 *  device that the kernel shows as MAJOR:MINOR is the word of the table here. So ours get the paths, and what they print is
 *  read with each path as its number. `error_reads` is missing: this kernel's flakey is older. */

import { spawnSync } from 'node:child_process';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { QuickDaemon } from '../quick-daemon.ts';
import { Machine, sh } from '../machine.ts';

const A = '/dev/ram0';
const B = '/dev/ram1';
const X = '/dev/mapper/x';
const NUMBERS = new Map([
  [A, '1:0'],
  [B, '1:1'],
]);

/** A command of dmsetup. With `input`, a table. Rejects when it fails. */
type Dm = (words: string[], input?: string) => Promise<string>;

let machine: Machine;

beforeAll(async () => {
  machine = await Machine.startWith(new QuickDaemon());
  for (const target of ['mod', 'zero', 'delay', 'flakey', 'dust', 'mirror']) await sh('modprobe', `dm-${target}`);
});
afterAll(() => machine.dispose());
afterEach(async () => {
  for (const dm of [kernel, ours]) await dm(['remove', 'x']).catch(() => {});
});

async function kernel(words: string[], input?: string): Promise<string> {
  const { status, stdout, stderr } = spawnSync('dmsetup', words, { encoding: 'utf8', input: input ?? '' });
  if (status !== 0) throw new Error(stderr);
  return stdout;
}

async function ours(words: string[], input?: string): Promise<string> {
  let said = await machine.daemon.cli('dm', ...words, ...(input === undefined ? [] : ['--table', input]));
  for (const [path, number] of NUMBERS) said = said.replaceAll(path, number);
  return said;
}

/** The words of a command's refusal differ; that it refuses does not. */
const answer = (dm: Dm, words: string[]): Promise<string> => dm(words).catch(() => 'refused');

/** What one of them prints of a table, when no mirror copies any more. */
async function linesOf(dm: Dm, table: string): Promise<string[]> {
  await dm(['create', 'x'], table);
  await expect.poll(() => dm(['status', 'x'])).not.toMatch(/mirror .* (\d+)\/(?!\1 )/);
  const lines = [await dm(['table', 'x']), await dm(['status', 'x'])];
  await dm(['remove', 'x']);
  return lines;
}

test.each([
  `0 8 linear ${A} 0\n8 8 linear ${B} 16`,
  `0 32 striped 2 8 ${A} 16 ${B} 0`,
  `0 24 striped 1 8 ${A} 0`,
  '0 8 zero\n8 16 error',
  `0 8 delay ${A} 0 5`,
  `0 8 delay ${A} 0 5 ${B} 8 60`,
  `0 8 delay ${A} 0 5 ${B} 8 60 ${B} 16 7`,
  `0 8 flakey ${A} 0 1 2`,
  `0 8 flakey ${A} 8 0 1 0`,
  `0 8 flakey ${A} 0 60 1 1 drop_writes`,
  `0 8 flakey ${A} 0 60 1 1 error_writes`,
  `0 8 flakey ${A} 0 60 1 5 corrupt_bio_byte 32 w 238 0`,
  `0 8 flakey ${A} 0 60 1 6 corrupt_bio_byte 32 r 238 0 drop_writes`,
  `0 64 dust ${A} 0 512`,
  `0 64 dust ${A} 8 1024`,
  `0 256 mirror core 1 8 2 ${A} 0 ${B} 0`,
  `0 256 mirror core 2 64 nosync 2 ${A} 0 ${B} 8 1 handle_errors`,
  `0 256 mirror core 2 64 sync 2 ${A} 0 ${B} 0`,
  `0 100 mirror core 1 8 2 ${A} 0 ${B} 0`,
])('%s', async (table) => {
  const wanted = await linesOf(kernel, table);
  expect(await linesOf(ours, table)).toEqual(wanted);
});

test('messages to dust, what they answer, and the status after each', async () => {
  const messages = [
    'addbadblock 3', 'addbadblock 3', 'addbadblock 4 2', 'addbadblock', 'addbadblock 999999', 'addbadblock x',
    'addbadblock 5 256', 'queryblock 3', 'queryblock 9', 'countbadblocks', 'listbadblocks', 'removebadblock 3',
    'removebadblock 3', 'clearbadblocks', 'clearbadblocks', 'listbadblocks', 'countbadblocks', 'enable', 'enable', 'quiet', 'quiet',
    'disable', 'Enable', 'enable now', 'nonsense',
  ]; // prettier-ignore
  const talk = async (dm: Dm): Promise<string[]> => {
    await dm(['create', 'x'], `0 64 dust ${A} 0 512`);
    const said: string[] = [];
    for (const message of messages) {
      said.push(`${message}: ${await answer(dm, ['message', 'x', '0', ...message.split(' ')])}`);
      said.push(await dm(['status', 'x']));
    }
    await dm(['remove', 'x']);
    return said;
  };
  const wanted = await talk(kernel);
  expect(await talk(ours)).toEqual(wanted);
});

test('live and inactive tables, of one device and of all', async () => {
  const swap = async (dm: Dm): Promise<string[]> => {
    const said: string[] = [];
    const look = async (): Promise<void> => {
      for (const words of ['table x', 'table', 'status x', 'status', 'table --inactive x', 'table --inactive'])
        said.push(`${words}: ${await answer(dm, words.split(' '))}`);
    };
    await dm(['create', 'x'], `0 8 linear ${A} 0`);
    for (const words of [
      ['suspend', 'x'],
      ['load', 'x'],
      ['resume', 'x'],
      ['remove', 'x'],
    ]) {
      await look();
      await dm(words, words[0] === 'load' ? '0 8 zero' : undefined);
    }
    await look();
    return said;
  };
  const wanted = await swap(kernel);
  expect(await swap(ours)).toEqual(wanted);
});

/** Reads or writes 4 KiB of device x, which may fail. */
const IO = {
  kernel: (op: 'read' | 'write', at: number): void => {
    const words = op === 'read' ? ['of=/dev/null', `if=${X}`, `skip=${at}`] : ['if=/dev/zero', `of=${X}`, `seek=${at}`];
    spawnSync('dd', [...words, 'bs=4096', 'count=1', `${op === 'read' ? 'i' : 'o'}flag=direct`]);
  },
  ours: (op: 'read' | 'write', at: number): void => {
    const words = ['-f', 'raw', '-c', `${op} ${at * 4096} 4096`, machine.daemon.uri('x')];
    spawnSync('qemu-io', words);
  },
};

test.each([
  { table: `0 32 striped 2 8 ${A} 0 BAD 0`, op: 'read' as const, at: 1, letters: 'AD' },
  { table: `0 32 striped 2 8 ${A} 0 BAD 0`, op: 'write' as const, at: 1, letters: 'AD' },
  { table: `0 256 mirror core 2 64 nosync 2 BAD 0 ${A} 0`, op: 'read' as const, at: 0, letters: 'RA' },
])('$letters after a failed $op of $table', async ({ table, op, at, letters }) => {
  const fail = async (dm: Dm, bad: string, io: typeof IO.ours): Promise<string[]> => {
    await dm(['create', 'bad'], '0 1024 error');
    try {
      await dm(['create', 'x'], table.replace('BAD', bad));
      io(op, at);
      const lines = [await dm(['table', 'x']), await dm(['status', 'x'])];
      await dm(['remove', 'x']);
      return lines.map((line) => line.replaceAll(/\b(bad|254:\d+)\b/g, 'BAD'));
    } finally {
      await dm(['remove', 'bad']);
    }
  };
  const wanted = await fail(kernel, '/dev/mapper/bad', IO.kernel);
  expect(wanted[1]).toContain(` ${letters}`);
  expect(await fail(ours, 'bad', IO.ours)).toEqual(wanted);
});
