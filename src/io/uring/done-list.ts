/** Operations that were done at once: their completions run later in the turn. Hot path. */

import type { Completion } from '../reactor.ts';

export class DoneList {
  #completions: Completion[] = [];
  #results: number[] = [];
  #spareCompletions: Completion[] = [];
  #spareResults: number[] = [];

  get length(): number {
    return this.#completions.length;
  }

  add(completion: Completion, result: number): void {
    this.#completions.push(completion);
    this.#results.push(result);
  }

  /** Runs the completions, and those of what they do at once, but not without end. */
  end(rounds: number): void {
    for (let round = 0; round < rounds && this.length > 0; round++) {
      const completions = this.#completions;
      const results = this.#results;
      this.#completions = this.#spareCompletions;
      this.#results = this.#spareResults;
      for (let i = 0; i < completions.length; i++) completions[i]!.complete(results[i]!);
      completions.length = 0;
      results.length = 0;
      this.#spareCompletions = completions;
      this.#spareResults = results;
    }
  }
}
