/** The replies of one connection on their way out: all that are ready leave in one send.
 *
 *  Hot path. The send is started in a microtask: those run when the completions of a turn are
 *  through, and also when a reply comes from outside of a turn (a thawed disk, say). While a send
 *  is under way, replies gather for the next. */

import type { Completion, Reactor, Stream } from '../io/reactor.ts';
import { RequestQueue } from './request.ts';
import type { Request } from './request.ts';

export interface OutboxHost {
  /** The reply's memory is free again: sent, or given up. */
  replyLeft(request: Request): void;
  /** A send has ended: 0, or -errno. */
  sendEnded(result: number): void;
}

const resolved = Promise.resolve();

export class Outbox implements Completion {
  readonly #reactor: Reactor;
  readonly #stream: Stream;
  readonly #host: OutboxHost;
  readonly #ready = new RequestQueue();
  readonly #sent = new RequestQueue();
  #flushing = false;
  /** When the send under way began; Infinity when there is none. */
  sendingSinceMs = Infinity;
  readonly #flush = (): void => this.#send();

  constructor(reactor: Reactor, stream: Stream, host: OutboxHost) {
    this.#reactor = reactor;
    this.#stream = stream;
    this.#host = host;
  }

  get sending(): boolean {
    return this.sendingSinceMs !== Infinity;
  }

  /** Takes a request whose reply is complete: its header, then its pieces. */
  push(request: Request): void {
    this.#ready.push(request);
    this.#sendSoon();
  }

  /** Gives up what is not being sent. Only when no send is under way. */
  clear(): void {
    for (let request = this.#ready.shift(); request !== null; request = this.#ready.shift()) this.#host.replyLeft(request);
  }

  #sendSoon(): void {
    if (this.#flushing || this.sending) return;
    this.#flushing = true;
    void resolved.then(this.#flush);
  }

  #send(): void {
    this.#flushing = false;
    if (this.sending || this.#ready.head === null) return;
    for (let request: Request | null = this.#ready.head; request !== null && this.#queue(request); request = this.#ready.head) {
      this.#sent.push(this.#ready.shift()!);
    }
    this.sendingSinceMs = this.#reactor.now();
    this.#stream.send(this);
  }

  /** Gives the reply to the stream; false when the send is full before the reply's end. */
  #queue(request: Request): boolean {
    if (request.queued === 0) {
      if (request.headerLength > 0 && !this.#stream.queue(request.headerAt, request.headerLength)) return false;
      request.queued = 1;
    }
    for (; request.queued <= request.pieces; request.queued++) {
      const piece = request.queued - 1;
      if (!this.#stream.queue(request.pieceAt[piece]!, request.pieceLength[piece]!)) return false;
    }
    return true;
  }

  /** The send has ended. */
  complete(result: number): void {
    this.sendingSinceMs = Infinity;
    for (let request = this.#sent.shift(); request !== null; request = this.#sent.shift()) this.#host.replyLeft(request);
    if (result >= 0 && this.#ready.head !== null) this.#sendSoon();
    this.#host.sendEnded(Math.min(result, 0));
  }
}
