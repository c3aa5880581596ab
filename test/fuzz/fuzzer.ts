/** Runs inputs against one target: those of the corpus, and new ones without end, all from one seed. */

import { bounded } from './bounds.ts';
import { readCorpus } from './corpus.ts';
import { Draw } from './draw.ts';
import { mutate } from './mutate.ts';
import type { FuzzSubject, FuzzTarget } from './target.ts';

/** The subject is opened anew from time to time: what adds up must not hide, and must not disturb either. */
const INPUTS_PER_SUBJECT = 2000;

export class Fuzzer {
  readonly #target: FuzzTarget;
  readonly #draw: Draw;
  readonly #corpus: readonly Uint8Array[];
  #subject: FuzzSubject | null = null;
  /** Inputs so far. */
  count = 0;

  constructor(target: FuzzTarget, seed: number) {
    this.#target = target;
    this.#draw = new Draw(seed);
    this.#corpus = readCorpus(target.name).map(({ bytes }) => bytes);
  }

  next(): Uint8Array {
    const draw = this.#draw;
    const fromCorpus = this.#corpus.length > 0 && draw.chance(0.5);
    const input = fromCorpus ? draw.one(this.#corpus) : this.#target.generate(draw);
    return fromCorpus || draw.chance(0.4) ? mutate(draw, input, this.#corpus) : input;
  }

  /** Rejects when the input did harm. */
  async run(input: Uint8Array): Promise<void> {
    if (this.count++ % INPUTS_PER_SUBJECT === 0) await this.close();
    this.#subject ??= await this.#target.open();
    await bounded(() => this.#subject!.run(input));
  }

  async close(): Promise<void> {
    const subject = this.#subject;
    this.#subject = null;
    await subject?.close();
  }
}
