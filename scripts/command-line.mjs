/** The command lines of the project's own programs. `--help` prints the comment that a program's file begins with; a mistake
 *  gets a sentence and the same text. Plain Node, no packages. */

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

/** @param {string} file */
function usageOf(file) {
  const [, comment = ''] = /\/\*\*([^]*?)\*\//.exec(readFileSync(file, 'utf8')) ?? [];
  return comment.replaceAll(/^ \* {0,2}/gm, '').trim();
}

/** As parseArgs. Does not return after `--help` (exit status 0) or a mistake (2).
 *  @template {import('node:util').ParseArgsConfig} Config
 *  @param {string} file the program
 *  @param {Config} config
 *  @returns {ReturnType<typeof parseArgs<Config>>} */
export function readCommandLine(file, config) {
  const options = { ...config.options, help: { type: /** @type {const} */ ('boolean'), short: 'h' } };
  try {
    const parsed = parseArgs({ ...config, options });
    if (!('help' in parsed.values)) return /** @type {ReturnType<typeof parseArgs<Config>>} */ (parsed);
    console.log(usageOf(file));
    process.exit(0);
  } catch (error) {
    console.error(`Cannot run: ${/** @type {Error} */ (error).message}\n\n${usageOf(file)}`);
    process.exit(2);
  }
}
