/** The copy of a change map that a take freezes. Nearly all of it is made before the disk is frozen: what is marked from then on
 *  is noted, by pages, and copied once more between freeze and thaw. Hot path: note. */

const PAGE_BITS = 12;
const PAGE = 2 ** PAGE_BITS;

export class MapCopy {
  readonly #map: Uint8Array;
  readonly #target: Uint8Array;
  readonly #left: () => void;
  /** Pages of the map that have changed since they were copied. */
  readonly #changed: Uint8Array;

  /** `left` is called when nothing more is to be noted. */
  constructor(map: Uint8Array, target: Uint8Array, left: () => void) {
    this.#map = map;
    this.#target = target;
    this.#left = left;
    this.#changed = new Uint8Array(Math.ceil(map.length / PAGE));
    target.set(map);
  }

  /** These blocks, `last` among them, have changed. */
  note(first: number, last: number): void {
    for (let page = first >> PAGE_BITS; page <= last >> PAGE_BITS; page++) this.#changed[page] = 1;
  }

  /** Copies what has changed: from here on the target is the map of this moment. */
  end(): void {
    for (let page = this.#changed.indexOf(1); page >= 0; page = this.#changed.indexOf(1, page + 1))
      this.#target.set(this.#map.subarray(page * PAGE, (page + 1) * PAGE), page * PAGE);
    this.#left();
  }

  /** Nobody wants it any more. */
  drop(): void {
    this.#left();
  }
}
