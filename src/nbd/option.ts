/** What a client's options carry, read with every length checked. */

import { STRING_LIMIT } from './protocol.ts';

/** The option's data is malformed: answered with REP_ERR_INVALID and these words. */
export class InvalidOption extends Error {}

/** A cursor over the data of one option. */
class OptionData {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #take(length: number, what: string): number {
    if (length > this.#bytes.length - this.#at) throw new InvalidOption(`${what} goes beyond the option's data`);
    this.#at += length;
    return this.#at - length;
  }

  u16(what: string): number {
    return this.#view.getUint16(this.#take(2, what));
  }

  u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what));
  }

  text(length: number, what: string): string {
    const at = this.#take(length, what);
    return decodeText(this.#bytes.subarray(at, at + length), what);
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw new InvalidOption(`${this.#bytes.length - this.#at} bytes too many`);
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A string of the protocol: UTF-8, at most 4096 bytes, no NUL. */
export function decodeText(bytes: Uint8Array, what: string): string {
  if (bytes.length > STRING_LIMIT) throw new InvalidOption(`${what} is longer than ${STRING_LIMIT} bytes`);
  if (bytes.includes(0)) throw new InvalidOption(`${what} contains a NUL`);
  try {
    return decoder.decode(bytes);
  } catch {
    throw new InvalidOption(`${what} is not UTF-8`);
  }
}

export interface InfoQuery {
  readonly exportName: string;
  /** Information types asked for; unknown ones are to be ignored. */
  readonly wanted: ReadonlySet<number>;
}

/** OPT_INFO and OPT_GO. */
export function decodeInfoQuery(bytes: Uint8Array): InfoQuery {
  const data = new OptionData(bytes);
  const exportName = data.text(data.u32('the length of the name'), 'the export name');
  const count = data.u16('the number of requests');
  const wanted = new Set<number>();
  for (let i = 0; i < count; i++) wanted.add(data.u16('an information request'));
  data.end();
  return { exportName, wanted };
}

export interface ContextQuery {
  readonly exportName: string;
  readonly queries: readonly string[];
}

/** OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT. */
export function decodeContextQuery(bytes: Uint8Array): ContextQuery {
  const data = new OptionData(bytes);
  const exportName = data.text(data.u32('the length of the name'), 'the export name');
  const count = data.u32('the number of queries');
  const queries: string[] = [];
  for (let i = 0; i < count; i++) queries.push(data.text(data.u32('the length of a query'), 'a query'));
  data.end();
  return { exportName, queries };
}
