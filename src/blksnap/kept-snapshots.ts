/** Which persistent snapshots have a copy of all that was overwritten since their takes, noted in the header of a change map.
 *
 *  96 slots of 32 bytes at 1024, little-endian: 0 the snapshot's id, 16 bytes (zeros: free)   16 whole frames of its journal f64
 *
 *  A slot that nobody claims after the map was opened is emptied before the first write: whoever wrote made no copies. */

const SLOTS = 1024;
const SLOTS_END = 4096;
const SLOT_BYTES = 32;
const FRAMES = 16;

export class KeptSnapshots {
  readonly #header: DataView;
  /** Whether what is noted here outlives the process. */
  readonly inFile: boolean;
  /** Places of slots, by snapshot. */
  readonly #claimed = new Map<string, number>();
  #hasOthers: boolean;

  /** `hasOthers`: the map was there before. */
  constructor(header: DataView, { inFile, hasOthers }: { readonly inFile: boolean; readonly hasOthers: boolean }) {
    this.#header = header;
    this.inFile = inFile;
    this.#hasOthers = hasOthers;
  }

  /** Notes that a snapshot has a copy of all that was overwritten since its take, in `frames` of its journal.
   *  False without a free slot. */
  keep(id: string, frames: number): boolean {
    if (this.#claimed.has(id)) return this.advance(id, frames);
    if (!this.inFile) return false;
    for (let at = SLOTS; at < SLOTS_END; at += SLOT_BYTES) {
      if (slotId(this.#header, at) !== null) continue;
      // In this order: killed in between, the snapshot must not be there with too few frames.
      this.#header.setFloat64(at + FRAMES, frames, true);
      const bytes = idBytes(id);
      for (let i = bytes.length - 1; i >= 0; i--) this.#header.setUint8(at + i, bytes[i]!);
      this.#claimed.set(id, at);
      return true;
    }
    return false;
  }

  /** So many frames are there to be found now. False for a snapshot without a slot. */
  advance(id: string, frames: number): boolean {
    const at = this.#claimed.get(id);
    if (at !== undefined) this.#header.setFloat64(at + FRAMES, frames, true);
    return at !== undefined;
  }

  /** The frames of a snapshot that was kept before the map was opened; null when it was not, or no longer is. */
  frames(id: string): number | null {
    const at = this.#slotOf(id);
    return at < 0 ? null : this.#header.getFloat64(at + FRAMES, true);
  }

  /** The snapshot is back, and gets its copies: its slot stays. False when it has none. */
  claim(id: string): boolean {
    const at = this.#slotOf(id);
    if (at >= 0) this.#claimed.set(id, at);
    return at >= 0;
  }

  /** Takes a claim back: the slot is as it was when the map was opened. */
  unclaim(id: string): void {
    this.#claimed.delete(id);
  }

  /** The snapshot no longer has a copy of everything: it will not come back. Cannot fail. */
  drop(id: string): void {
    const at = this.#slotOf(id);
    this.#claimed.delete(id);
    if (at >= 0) this.#clear(at);
  }

  /** There may be slots of snapshots that nobody has brought back. */
  get hasOthers(): boolean {
    return this.#hasOthers;
  }

  /** Nobody makes copies for these. */
  dropOthers(): void {
    this.#hasOthers = false;
    const claimed = new Set(this.#claimed.values());
    for (let at = SLOTS; at < SLOTS_END; at += SLOT_BYTES) if (!claimed.has(at)) this.#clear(at);
  }

  #slotOf(id: string): number {
    for (let at = SLOTS; at < SLOTS_END; at += SLOT_BYTES) if (slotId(this.#header, at) === id) return at;
    return -1;
  }

  #clear(at: number): void {
    for (let i = 0; i < FRAMES; i++) this.#header.setUint8(at + i, 0);
  }
}

/** Whose slot it is; null for a free one. */
function slotId(header: DataView, at: number): string | null {
  let hex = '';
  for (let i = 0; i < FRAMES; i++)
    hex += header
      .getUint8(at + i)
      .toString(16)
      .padStart(2, '0');
  if (/^0*$/.test(hex)) return null;
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

function idBytes(id: string): Uint8Array {
  return Uint8Array.from(Buffer.from(id.replaceAll('-', ''), 'hex'));
}
