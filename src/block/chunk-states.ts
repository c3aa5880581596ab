/** One small number per chunk, 0 at first. Takes memory only for regions where one was set. */

const PAGE_CHUNKS = 4096;

export class ChunkStates {
  readonly #pages: Array<Uint8Array | null>;
  readonly #counts = new Float64Array(256);

  constructor(chunks: number) {
    this.#pages = new Array<Uint8Array | null>(Math.ceil(chunks / PAGE_CHUNKS)).fill(null);
  }

  get(chunk: number): number {
    const page = this.#pages[Math.floor(chunk / PAGE_CHUNKS)]!;
    return page === null ? 0 : page[chunk % PAGE_CHUNKS]!;
  }

  set(chunk: number, state: number): void {
    const index = Math.floor(chunk / PAGE_CHUNKS);
    const page = (this.#pages[index] ??= new Uint8Array(PAGE_CHUNKS));
    this.#counts[page[chunk % PAGE_CHUNKS]!]!--;
    this.#counts[state]!++;
    page[chunk % PAGE_CHUNKS] = state;
  }

  /** How many chunks have the state (not 0). */
  count(state: number): number {
    return this.#counts[state]!;
  }
}
