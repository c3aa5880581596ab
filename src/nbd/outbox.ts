/** Messages of one connection on their way out (a server's replies, a client's requests): all that
 *  are ready leave in one send, as long as it is not large: its end is how a peer shows that it takes something, and a turn
 *  of the loop does one.
 *
 *  Hot path. The send is started in a microtask: those run when the completions of a turn are
 *  through, and also when a message comes from outside of a turn (a thawed disk, say). While a
 *  send is under way, messages gather for the next. */

import type { Completion, Stream } from '../io/reactor.ts';

/** A message: a header in a slot of its own, then pieces of arena memory. */
export class Outgoing {
  readonly headerAt: number;
  headerLength = 0;
  readonly pieceAt: number[] = [];
  readonly pieceLength: number[] = [];
  pieces = 0;
  /** Segments (header first) that were given to the stream. */
  queued = 0;
  /** Bytes of the next piece that were given to it. */
  queuedOfPiece = 0;
  /** Link of a queue or a free list. */
  next: this | null = null;

  constructor(headerAt: number) {
    this.headerAt = headerAt;
  }

  clear(): void {
    this.headerLength = 0;
    this.pieces = 0;
    this.queued = 0;
    this.queuedOfPiece = 0;
    this.next = null;
  }

  addPiece(at: number, length: number): void {
    this.pieceAt[this.pieces] = at;
    this.pieceLength[this.pieces] = length;
    this.pieces++;
  }
}

/** In any unit. */
export interface Clock {
  now(): number;
}

export interface OutboxHost<Message extends Outgoing> {
  /** Data bytes that one send takes at most. */
  readonly sendBytes: number;
  /** The message's memory is free again: sent, or given up. */
  messageLeft(message: Message): void;
  /** A send has ended: 0, or -errno. */
  sendEnded(result: number): void;
}

export class Outbox<Message extends Outgoing> implements Completion {
  readonly #clock: Clock;
  readonly #stream: Stream;
  readonly #host: OutboxHost<Message>;
  readonly #ready = new OutgoingQueue<Message>();
  readonly #sent = new OutgoingQueue<Message>();
  #flushing = false;
  #stopped = false;
  /** Data bytes that were given to the stream for the next send. */
  #queuedBytes = 0;
  /** When the send under way began; Infinity when there is none. */
  sendingSince = Infinity;
  readonly #flush = (): void => this.#send();

  constructor(clock: Clock, stream: Stream, host: OutboxHost<Message>) {
    this.#clock = clock;
    this.#stream = stream;
    this.#host = host;
  }

  get sending(): boolean {
    return this.sendingSince !== Infinity;
  }

  push(message: Message): void {
    this.#ready.push(message);
    this.#sendSoon();
  }

  /** The stream was closed: no send is started any more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Gives up what is not being sent. Only when no send is under way. */
  clear(): void {
    for (let message = this.#ready.shift(); message !== null; message = this.#ready.shift())
      this.#host.messageLeft(message);
  }

  #sendSoon(): void {
    if (this.#flushing || this.sending) return;
    this.#flushing = true;
    void resolved.then(this.#flush);
  }

  #send(): void {
    this.#flushing = false;
    if (this.sending || this.#stopped || this.#ready.head === null) return;
    for (
      let message: Message | null = this.#ready.head;
      message !== null && this.#queue(message);
      message = this.#ready.head
    ) {
      this.#sent.push(this.#ready.shift()!);
    }
    this.#queuedBytes = 0;
    this.sendingSince = this.#clock.now();
    this.#stream.send(this);
  }

  /** Gives the message to the stream; false when the send is full before its end. */
  #queue(message: Message): boolean {
    if (message.queued === 0) {
      if (message.headerLength > 0 && !this.#stream.queue(message.headerAt, message.headerLength)) return false;
      message.queued = 1;
    }
    for (; message.queued <= message.pieces; message.queued++) {
      const piece = message.queued - 1;
      const left = message.pieceLength[piece]! - message.queuedOfPiece;
      const length = Math.min(left, this.#host.sendBytes - this.#queuedBytes);
      if (length <= 0 || !this.#stream.queue(message.pieceAt[piece]! + message.queuedOfPiece, length)) return false;
      this.#queuedBytes += length;
      message.queuedOfPiece = length < left ? message.queuedOfPiece + length : 0;
      if (length < left) return false;
    }
    return true;
  }

  /** The send has ended. */
  complete(result: number): void {
    this.sendingSince = Infinity;
    for (let message = this.#sent.shift(); message !== null; message = this.#sent.shift())
      this.#host.messageLeft(message);
    if (result >= 0 && this.#ready.head !== null) this.#sendSoon();
    this.#host.sendEnded(Math.min(result, 0));
  }
}

const resolved = Promise.resolve();

/** First in, first out; linked through the messages. */
class OutgoingQueue<Message extends Outgoing> {
  head: Message | null = null;
  #tail: Message | null = null;

  push(message: Message): void {
    message.next = null;
    if (this.#tail === null) this.head = message;
    else this.#tail.next = message;
    this.#tail = message;
  }

  shift(): Message | null {
    const message = this.head;
    if (message === null) return null;
    this.head = message.next;
    if (this.head === null) this.#tail = null;
    message.next = null;
    return message;
  }
}
