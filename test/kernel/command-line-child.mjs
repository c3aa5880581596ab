/** Runs commands of blksnap one after the other in one process, each as a process of its own would: the program's main
 *  module is evaluated anew with its arguments, and what it prints and ends with goes back to the parent. Plain Node. */

import process from 'node:process';

const MAIN = new URL('../../dist/cli/main.js', import.meta.url).href;

/** Evaluates the program; what it printed, and its exit code.
 *  @param {readonly string[]} words
 *  @param {number} run makes the module a new one */
async function evaluate(words, run) {
  const said = { stdout: '', stderr: '' };
  const own = { stdout: process.stdout.write, stderr: process.stderr.write };
  for (const name of /** @type {const} */ (['stdout', 'stderr'])) {
    process[name].write = /** @param {string | Uint8Array} text */ (text) => {
      said[name] += String(text);
      return true;
    };
  }
  process.argv = [process.execPath, 'blksnap', ...words];
  try {
    await import(`${MAIN}?run=${run}`);
    return { ...said, code: Number(process.exitCode) };
  } finally {
    process.exitCode = 0;
    process.stdout.write = own.stdout;
    process.stderr.write = own.stderr;
    process.stdout.removeAllListeners('error');
  }
}

let run = 0;
process.on('message', (/** @type {string[]} */ words) => {
  void evaluate(words, run++).then((result) => process.send?.(result));
});
