/** The command line of blksnap without a process for each command: to start one takes a second and more in a kernel that
 *  is emulated. Commands run one after the other, through the program's own main module. Ended by `end`. */

import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';

interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export class CommandLine {
  readonly #child: ChildProcess;
  #last: Promise<unknown> = Promise.resolve();

  /** `state`: directory of the daemon that the commands speak to. */
  constructor(state: string) {
    const env = { ...process.env, BLKSNAP_DIR: state };
    this.#child = fork(path.join(import.meta.dirname, 'command-line-child.mjs'), { env, execArgv: [] });
  }

  /** What the command prints. Rejects as execFile does, with its exit code and its words, when it fails. */
  run(...words: string[]): Promise<string> {
    const ran = this.#last.then(() => this.#run(words));
    this.#last = ran.catch(() => {});
    return ran;
  }

  async #run(words: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.#answerTo(words);
    if (code === 0) return stdout;
    throw Object.assign(new Error(`Command failed: blksnap ${words.join(' ')}\n${stderr}`), { code, stdout, stderr });
  }

  async #answerTo(words: readonly string[]): Promise<Result> {
    const over = new AbortController();
    const answer = once(this.#child, 'message', over);
    const gone = once(this.#child, 'exit', over).then(() => {
      throw new Error('the process that runs commands has ended');
    });
    this.#child.send(words);
    try {
      const [result] = (await Promise.race([answer, gone])) as [Result];
      return result;
    } finally {
      over.abort();
    }
  }

  end(): void {
    this.#child.kill();
  }
}
