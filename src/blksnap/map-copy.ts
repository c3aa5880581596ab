/** The copy of a change map that a take freezes. Nearly all of it is made before the disk is frozen: what is marked from then on
 *  is noted, by pages, and copied once more between freeze and thaw. Hot path: note. */

const PAGE_BITS = 12;
const PAGE = 2 ** PAGE_BITS;

export class MapCopy {
  readonly #map: Uint8Array;
  readonly #target: Uint8Array;
  readonly #underWay: MapCopy[];
  /** Pages of the map that have changed since they were copied. */
  readonly #changed: Uint8Array;

  /** In `underWay` until it ends or is dropped: who changes the map notes that in all of these. */
  constructor(map: Uint8Array, target: Uint8Array, underWay: MapCopy[]) {
    this.#map = map;
    this.#target = target;
    this.#underWay = underWay;
    this.#changed = new Uint8Array(Math.ceil(map.length / PAGE));
    target.set(map);
    underWay.push(this);
  }

  isOf(map: Uint8Array): boolean {
    return map === this.#map;
  }

  /** These blocks, `last` among them, have changed. */
  note(first: number, last: number): void {
    for (let page = first >> PAGE_BITS; page <= last >> PAGE_BITS; page++) this.#changed[page] = 1;
  }

  /** Copies what has changed: from here on the target is the map of this moment. */
  end(): void {
    for (let page = this.#changed.indexOf(1); page >= 0; page = this.#changed.indexOf(1, page + 1))
      this.#target.set(this.#map.subarray(page * PAGE, (page + 1) * PAGE), page * PAGE);
    this.drop();
  }

  /** Nobody wants it any more. Safe to call twice. */
  drop(): void {
    const at = this.#underWay.indexOf(this);
    if (at >= 0) this.#underWay.splice(at, 1);
  }
}
