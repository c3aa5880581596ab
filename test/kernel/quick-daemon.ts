/** A daemon whose commands need no process each. */

import { DaemonUnderTest } from '../system/daemon-under-test.ts';
import { CommandLine } from './command-line.ts';

export class QuickDaemon extends DaemonUnderTest {
  readonly #commands = new CommandLine(this.state);

  override cli(...words: string[]): Promise<string> {
    return this.#commands.run(...words);
  }

  /** A command in a process of its own: one that changes its process, or lends it to the reactor. */
  process(...words: string[]): Promise<string> {
    return super.cli(...words);
  }

  override async dispose(): Promise<void> {
    this.#commands.end();
    await super.dispose();
  }
}
