/** Runs tasks that share a key one after the other, in the order they came; others side by side. */
export class Serial {
  readonly #tails = new Map<string, Promise<unknown>>();

  /** Runs `task` when every earlier task with one of these keys has ended, well or not. */
  run<T>(keys: readonly string[], task: () => Promise<T>): Promise<T> {
    const before = keys.map((key) => this.#tails.get(key) ?? Promise.resolve());
    const result = Promise.allSettled(before).then(task);
    for (const key of keys) this.#tails.set(key, result);
    const forget = (): void => {
      for (const key of keys) if (this.#tails.get(key) === result) this.#tails.delete(key);
    };
    result.then(forget, forget);
    return result;
  }
}
