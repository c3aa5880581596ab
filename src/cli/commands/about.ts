/** version, openapi: what this program and its API are. */

import type { Command } from 'commander';
import { VERSION } from '../../util/version.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine } from '../output.ts';

export function addAboutCommands(program: Command): void {
  addCommand(program, 'version', { summary: 'Print the version', local: true, examples: ['version'] }).action(version);
  addCommand(program, 'openapi', {
    summary: "Print the OpenAPI document of the daemon's API",
    examples: ['openapi > blksnap.json'],
  }).action(openApi);
}

function version(options: CommonOptions): void {
  if (options.json) printJson({ version: VERSION, node: process.versions.node });
  // Major, minor, revision, build: the form of the kernel module's console tool. We number no builds.
  else printLine(`${VERSION}.0`);
}

async function openApi(options: CommonOptions): Promise<void> {
  printJson(await (await connect(options)).openApi());
}
