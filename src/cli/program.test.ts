/** The examples of the help: each is a command line that the program takes. */

import type { Command } from 'commander';
import { expect, test } from 'vitest';
import { separateValues } from './devices.ts';
import { buildProgram } from './program.ts';

function all(command: Command): Command[] {
  return [command, ...command.commands.flatMap(all)];
}

function examplesOf(command: Command): string[] {
  let help = '';
  command.configureOutput({ writeOut: (text) => (help += text) }).outputHelp();
  return [...help.matchAll(/^ {2}\$ blksnap (.*)$/gm)].map(([, line]) => line!);
}

/** As a shell splits them, without what it keeps for itself. */
function words(line: string): string[] {
  const found = line.replace(/ [>&#].*$/, '').match(/'[^']*'|"[^"]*"|\S+/g) ?? [];
  return found.map((word) => word.replace(/^(['"])(.*)\1$/, '$2'));
}

/** Parses it and does nothing. Errors: commander's. */
async function parse(line: string): Promise<string | null> {
  let ran: string | null = null;
  const program = buildProgram([], false);
  for (const command of all(program)) {
    command.configureOutput({ outputError: () => {} });
    if (command.commands.length === 0) command.action(() => void (ran = command.name()));
  }
  await program.parseAsync(separateValues(words(line)), { from: 'user' });
  return ran;
}

const leaves = all(buildProgram([], false)).filter(({ commands }) => commands.length === 0);
const examples = all(buildProgram([], false)).flatMap((command) =>
  examplesOf(command).map((line) => [line, command] as const),
);

test('every command has an example of its own', () => {
  const shown = new Set(examples.map(([, command]) => command.name()));
  expect(leaves.map((command) => command.name()).filter((name) => !shown.has(name))).toEqual([]);
});

test.each(examples)('%s', async (line, command) => {
  const ran = await parse(line);
  if (command.commands.length === 0) expect(ran).toBe(command.name());
  else expect(ran).not.toBeNull();
});
