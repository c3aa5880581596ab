/** The handshake's end of a stream: fields in and out, through two small arena buffers.
 *
 *  Slow path; both server and client use it. What was received and not read when the handshake
 *  ends belongs to the transmission phase: see `received`. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Arena } from '../io/arena.ts';
import { completed } from '../io/reactor.ts';
import type { Stream } from '../io/reactor.ts';
import { assert } from '../util/assert.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';

/** Largest option (server) or option reply (client) that is read whole. */
export const WIRE_LIMIT = 16 * 1024;

export class Wire {
  readonly #arena: Arena;
  readonly #stream: Stream;
  readonly #in: number;
  readonly #out: number;
  #start = 0;
  #end = 0;
  #put = 0;
  #closed = false;
  /** Came on another thread, before the stream did; read first. */
  #early: Uint8Array;
  /** The peer has said something. */
  #heard = false;

  /** Null when the arena has no room for one more handshake. */
  static open(arena: Arena, stream: Stream, early: Uint8Array = new Uint8Array(0)): Wire | null {
    const input = arena.allocate(WIRE_LIMIT);
    if (input === NO_MEMORY) return null;
    const output = arena.allocate(WIRE_LIMIT);
    if (output !== NO_MEMORY) return new Wire(arena, stream, input, output, early);
    arena.release(input);
    return null;
  }

  private constructor(arena: Arena, stream: Stream, input: number, output: number, early: Uint8Array) {
    this.#arena = arena;
    this.#stream = stream;
    this.#in = input;
    this.#out = output;
    this.#early = early;
    this.#heard = early.length > 0;
  }

  /** Closes the stream, at any time; whoever waits or comes later gets ECANCELED. */
  close(): void {
    this.#closed = true;
    this.#stream.close();
  }

  /** Errors: ECANCELED after `close`. */
  checkOpen(): void {
    if (this.#closed) throw new BlksnapError('ECANCELED', 'The connection was closed');
  }

  /** Gives the buffers back. Not while `need` or `flush` is under way. */
  release(): void {
    this.#arena.release(this.#in);
    this.#arena.release(this.#out);
  }

  /** The bytes that came after what was read; valid until `release`. */
  get received(): Uint8Array {
    const here = this.#arena.bytes.subarray(this.#in + this.#start, this.#in + this.#end);
    return this.#early.length === 0 ? here : Buffer.concat([here, this.#early]);
  }

  /** Waits until `length` bytes can be read; false when the peer closed the stream at a message's
   *  boundary (only asked with `first`). Errors: ECONNRESET and the like. */
  async need(length: number, first = false): Promise<boolean> {
    assert(length <= WIRE_LIMIT, 'a message fits the buffer');
    if (this.#start + length > WIRE_LIMIT) {
      this.#arena.bytes.copyWithin(this.#in, this.#in + this.#start, this.#in + this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    while (this.#end - this.#start < length) {
      this.checkOpen();
      if (this.#takeEarly()) continue;
      const result = await completed((c) => this.#stream.receive(this.#in + this.#end, WIRE_LIMIT - this.#end, c));
      if (result === 0 && first && this.#end === this.#start) return false;
      if (result === 0) {
        const when = this.#heard
          ? 'in the middle of a message'
          : 'without a word: it takes no more clients, or has no descriptors left';
        throw new BlksnapError('ECONNRESET', `The peer closed the connection ${when}`);
      }
      if (result < 0) throw errnoError(-result, 'Cannot receive');
      this.#heard = true;
      this.#end += result;
    }
    return true;
  }

  #takeEarly(): boolean {
    const part = this.#early.subarray(0, WIRE_LIMIT - this.#end);
    this.#arena.bytes.set(part, this.#in + this.#end);
    this.#end += part.length;
    this.#early = this.#early.subarray(part.length);
    return part.length > 0;
  }

  /** Reads and forgets. */
  async skip(length: number): Promise<void> {
    for (let left = length; left > 0;) {
      const part = Math.min(left, WIRE_LIMIT);
      await this.need(part);
      this.#start += part;
      left -= part;
    }
  }

  u16(): number {
    this.#start += 2;
    return this.#arena.view.getUint16(this.#in + this.#start - 2);
  }

  u32(): number {
    this.#start += 4;
    return this.#arena.view.getUint32(this.#in + this.#start - 4);
  }

  u64(): number {
    const high = this.u32();
    return high * 2 ** 32 + this.u32();
  }

  /** A copy of the next bytes. */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    this.#start += length;
    return this.#arena.bytes.slice(this.#in + this.#start - length, this.#in + this.#start);
  }

  /** Adds bytes to what `flush` sends; sends by itself when the buffer is full. */
  async put(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      if (this.#put === WIRE_LIMIT) await this.flush();
      const part = bytes.subarray(done, done + WIRE_LIMIT - this.#put);
      this.#arena.bytes.set(part, this.#out + this.#put);
      this.#put += part.length;
      done += part.length;
    }
  }

  async flush(): Promise<void> {
    if (this.#put === 0) return;
    this.checkOpen();
    assert(this.#stream.queue(this.#out, this.#put), 'nothing else is queued');
    this.#put = 0;
    const result = await completed((c) => this.#stream.send(c));
    if (result < 0) throw errnoError(-result, 'Cannot send');
  }
}

/** Builds one message of big-endian fields. */
export class Message {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  #room(length: number): number {
    const at = this.#length;
    this.#length += length;
    if (this.#length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#length, 2 * this.#bytes.length));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return at;
  }

  u16(value: number): this {
    const at = this.#room(2);
    this.#view.setUint16(at, value);
    return this;
  }

  u32(value: number): this {
    const at = this.#room(4);
    this.#view.setUint32(at, value);
    return this;
  }

  u64(value: number): this {
    return this.u32(Math.floor(value / 2 ** 32)).u32(value >>> 0);
  }

  raw(bytes: Uint8Array): this {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
    return this;
  }

  text(text: string): this {
    return this.raw(encodeText(text));
  }

  /** A text with its length before it (32 bits). */
  counted(text: string): this {
    const bytes = encodeText(text);
    return this.u32(bytes.length).raw(bytes);
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
}

const encoder = new TextEncoder();

function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}
