/** Sockets of the simulator: two directions of bytes, each in order, delivered in pieces of any size after any time.
 *  A direction holds at most WINDOW bytes that nobody has received; then its sender waits. */

import type { Completion, Stream } from '../../src/io/reactor.ts';
import { assert } from '../../src/util/assert.ts';
import { ERRNO } from '../../src/util/errors.ts';
import type { Prng } from '../../src/util/prng.ts';

const WINDOW = 64 * 1024;
const LIST_SEGMENTS = 1024;
const SLOW_US = 60;

export interface StreamWorld {
  readonly random: Prng;
  readonly arena: { readonly bytes: Uint8Array };
  after(delayUs: number, run: () => void): unknown;
  started(): void;
  end(completion: Completion, result: number): void;
}

/** A connection between two processes. */
export function streamPair(one: StreamWorld, other: StreamWorld): [SimStream, SimStream] {
  const [there, back] = [new Direction(), new Direction()];
  return [new SimStream(one, back, there), new SimStream(other, there, back)];
}

class Direction {
  readonly #bytes = new Uint8Array(WINDOW);
  #head = 0;
  count = 0;
  /** No more will come; nobody will receive. */
  ended = false;
  deaf = false;
  onData: () => void = () => {};
  onRoom: () => void = () => {};

  /** There is room for it. */
  put(data: Uint8Array): void {
    const at = (this.#head + this.count) % WINDOW;
    const first = data.subarray(0, WINDOW - at);
    this.#bytes.set(first, at);
    this.#bytes.set(data.subarray(first.length), 0);
    this.count += data.length;
  }

  /** There is as much. */
  take(into: Uint8Array): void {
    const first = this.#bytes.subarray(this.#head, Math.min(WINDOW, this.#head + into.length));
    into.set(first);
    into.set(this.#bytes.subarray(0, into.length - first.length), first.length);
    this.#head = (this.#head + into.length) % WINDOW;
    this.count -= into.length;
  }
}

interface Segment {
  at: number;
  length: number;
}

export class SimStream implements Stream {
  readonly #world: StreamWorld;
  readonly #in: Direction;
  readonly #out: Direction;
  #receiver: { at: number; length: number; done: number; all: boolean; completion: Completion } | null = null;
  #queued: Segment[] = [];
  #sending: { segments: Segment[]; sent: number; completion: Completion } | null = null;
  #receiveDue = false;
  #sendDue = false;
  #closed = false;

  constructor(world: StreamWorld, inward: Direction, outward: Direction) {
    this.#world = world;
    this.#in = inward;
    this.#out = outward;
    inward.onData = () => this.#soonReceive();
    outward.onRoom = () => this.#soonSend();
  }

  receive(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, false, completion);
  }

  receiveAll(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, true, completion);
  }

  #receive(at: number, length: number, all: boolean, completion: Completion): void {
    assert(this.#receiver === null, 'one receive at a time');
    this.#world.started();
    this.#receiver = { at, length, done: 0, all, completion };
    this.#soonReceive();
  }

  #soonReceive(): void {
    if (this.#receiveDue || this.#receiver === null) return;
    this.#receiveDue = true;
    this.#world.after(this.#world.random.below(SLOW_US), () => {
      this.#receiveDue = false;
      this.#take();
    });
  }

  #take(): void {
    const receiver = this.#receiver;
    if (receiver === null) return;
    if (this.#closed) return this.#received(-ERRNO.ECANCELED);
    const from = this.#in;
    const most = Math.min(receiver.length - receiver.done, from.count);
    const count = most === 0 ? 0 : 1 + this.#world.random.below(most);
    from.take(this.#world.arena.bytes.subarray(receiver.at + receiver.done, receiver.at + receiver.done + count));
    receiver.done += count;
    if (count > 0) from.onRoom();
    if (receiver.done === receiver.length || (receiver.done > 0 && !receiver.all)) this.#received(receiver.done);
    else if (from.count > 0) this.#soonReceive();
    else if (from.ended) this.#received(0);
  }

  #received(result: number): void {
    const { completion } = this.#receiver!;
    this.#receiver = null;
    this.#world.end(completion, result);
  }

  queue(at: number, length: number): boolean {
    if (this.#queued.length === LIST_SEGMENTS) return false;
    this.#queued.push({ at, length });
    return true;
  }

  send(completion: Completion): void {
    assert(this.#sending === null && this.#queued.length > 0, 'one send at a time, of something');
    this.#world.started();
    this.#sending = { segments: this.#queued, sent: 0, completion };
    this.#queued = [];
    this.#soonSend();
  }

  #soonSend(): void {
    if (this.#sendDue || this.#sending === null) return;
    this.#sendDue = true;
    this.#world.after(this.#world.random.below(SLOW_US), () => {
      this.#sendDue = false;
      this.#give();
    });
  }

  #give(): void {
    const sending = this.#sending;
    if (sending === null) return;
    if (this.#closed) return this.#sent(-ERRNO.ECANCELED);
    if (this.#out.deaf) return this.#sent(-ERRNO.EPIPE);
    const to = this.#out;
    let room = to.count === WINDOW ? 0 : 1 + this.#world.random.below(WINDOW - to.count);
    while (room > 0 && sending.segments.length > 0) {
      const segment = sending.segments[0]!;
      const count = Math.min(room, segment.length);
      to.put(this.#world.arena.bytes.subarray(segment.at, segment.at + count));
      room -= count;
      sending.sent += count;
      segment.at += count;
      segment.length -= count;
      if (segment.length === 0) sending.segments.shift();
    }
    to.onData();
    if (sending.segments.length === 0) this.#sent(sending.sent);
    else if (to.count < WINDOW) this.#soonSend();
  }

  #sent(result: number): void {
    const { completion } = this.#sending!;
    this.#sending = null;
    this.#world.end(completion, result);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#in.deaf = true;
    this.#out.ended = true;
    this.#soonReceive();
    this.#soonSend();
    this.#in.onRoom();
    this.#out.onData();
  }

  /** There is no other reactor to adopt it. */
  release(): number {
    return -1;
  }

  peerUid(): number {
    return -1;
  }
}
