/** Operations that were done at once: their completions run later. Hot path. */

import type { Completion } from './reactor.ts';

export class DoneList {
  /** How many are to be ended. */
  length = 0;
  readonly #ended: (completion: Completion, result: number) => void;
  // Never emptied: an array that shrinks to nothing gives its memory back, and takes new one each turn.
  #completions: Array<Completion | null> = [];
  #results: number[] = [];
  #spareCompletions: Array<Completion | null> = [];
  #spareResults: number[] = [];

  constructor(ended: (completion: Completion, result: number) => void) {
    this.#ended = ended;
  }

  add(completion: Completion, result: number): void {
    this.#completions[this.length] = completion;
    this.#results[this.length] = result;
    this.length++;
  }

  /** Ends those that are here now. What they do at once comes with the next call. */
  end(): void {
    const completions = this.#completions;
    const results = this.#results;
    const count = this.length;
    this.#completions = this.#spareCompletions;
    this.#results = this.#spareResults;
    this.length = 0;
    for (let i = 0; i < count; i++) {
      const completion = completions[i]!;
      completions[i] = null;
      this.#ended(completion, results[i]!);
    }
    this.#spareCompletions = completions;
    this.#spareResults = results;
  }
}
