/** docs/cli.md against the program: the same commands, options and exit codes. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';

import { EXIT_CODES_HELP } from '../src/cli/exit-codes.ts';

const ROOT = path.join(import.meta.dirname, '..');
const text = fs.readFileSync(path.join(ROOT, 'docs/cli.md'), 'utf8');

/** Options that every command has; the document says so once. */
const COMMON = new Set(['--dir', '--json', '--help']);
/** Options that every command has that asks a daemon. */
const OF_CLIENTS = ['--api', '--api-token', '--api-ca'];

/** Options by command, as the synopses say. */
const documented = new Map(
  [...text.matchAll(/^ {4}blksnap ([a-z_]+(?: [a-z]+)?)(.*)$/gm)].map(([, command, rest]) => [
    command!,
    new Set(rest!.match(/--[a-z-]+/g) ?? []),
  ]),
);

function help(command: string): string {
  return execFileSync(path.join(ROOT, 'bin/blksnap'), [...command.split(' '), '--help'], { encoding: 'utf8' });
}

function commandsIn(helpText: string): string[] {
  const lists = [...helpText.matchAll(/^Commands[^\n]*:\n([\s\S]*?)(?:\n\n|(?![\s\S]))/gm)].map(([, list]) => list!);
  return [...lists.join('\n').matchAll(/^ {2}([a-z_]+)/gm)].map(([, name]) => name!).filter((name) => name !== 'help');
}

function optionsIn(helpText: string): Set<string> {
  const list = /^Options:\n([\s\S]*?)(?:\n\n|(?![\s\S]))/m.exec(helpText)?.[1] ?? '';
  const names = [...list.matchAll(/^ {2}(?:-\w, )?(--[a-z-]+)/gm)].map(([, name]) => name!);
  const isClient = OF_CLIENTS.every((name) => names.includes(name));
  return new Set(names.filter((name) => !COMMON.has(name) && !(isClient && OF_CLIENTS.includes(name))));
}

describe('docs/cli.md', () => {
  it('names every command', () => {
    const program = execFileSync(path.join(ROOT, 'bin/blksnap'), ['--help'], { encoding: 'utf8' });
    const groups = commandsIn(program).map((name) => ({ name, inner: commandsIn(help(name)) }));
    const all = groups.flatMap(({ name, inner }) =>
      inner.length === 0 ? [name] : inner.map((one) => `${name} ${one}`),
    );
    expect([...documented.keys()].toSorted()).toEqual(all.toSorted());
  });

  it('every command has the options of a client, but those that do without a daemon', () => {
    const local = [...documented.keys()].filter((command) => !help(command).includes('--api-ca'));
    expect(local.toSorted()).toEqual([
      'backups',
      'daemon',
      'prune',
      'recover',
      'restore',
      'serve',
      'verify',
      'version',
    ]);
  });

  it.each([...documented.keys()])('names the options of %s', (command) => {
    expect(documented.get(command)).toEqual(optionsIn(help(command)));
  });

  it('names the exit codes', () => {
    const program = [...EXIT_CODES_HELP.matchAll(/^ +(\d+) +(.*)$/gm)].map(
      ([, code, meaning]) => `| ${code} | ${meaning} |`,
    );
    expect(program.length).toBeGreaterThan(5);
    for (const row of program) expect(text).toContain(row);
  });
});
