/** The block statuses that one connection asks for, looked up one after the other: what a context answers is as long as it
 *  likes. Slow path. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { blockStatusReply } from './block-status.ts';
import type { SelectedContext } from './contexts.ts';
import type { MemoryLine } from './memory-line.ts';
import { CMD_FLAG_REQ_ONE, nbdError } from './protocol.ts';
import type { Request } from './request.ts';

export interface StatusRepliesOptions {
  readonly reactor: Reactor;
  readonly line: MemoryLine;
  /** With extended headers. */
  readonly extended: boolean;
  /** The request has its reply as a piece of memory, lent by the line, or its error. */
  readonly ready: (request: Request) => void;
}

export class StatusReplies {
  readonly #o: StatusRepliesOptions;
  /** Never rejects. */
  #last: Promise<void> = Promise.resolve();
  #stopped = false;

  constructor(options: StatusRepliesOptions) {
    this.#o = options;
  }

  begin(request: Request, contexts: readonly SelectedContext[]): void {
    this.#last = this.#last.then(() => this.#answer(request, contexts));
  }

  /** Nobody waits for the replies any more: those that were not begun end with an error. */
  stop(): void {
    this.#stopped = true;
  }

  async #answer(request: Request, contexts: readonly SelectedContext[]): Promise<void> {
    try {
      if (this.#stopped) throw new BlksnapError('ESHUTDOWN', 'The connection was dropped');
      const onlyOne = (request.flags & CMD_FLAG_REQ_ONE) !== 0;
      const reply = await blockStatusReply(request, contexts, this.#o.extended, onlyOne);
      const at = await this.#borrow(reply.length);
      this.#o.reactor.arena.bytes.set(reply, at);
      request.addPiece(at, reply.length);
    } catch (cause) {
      request.error = nbdError(toBlksnapError(cause).errno);
    }
    this.#o.ready(request);
  }

  async #borrow(length: number): Promise<number> {
    const { line, reactor } = this.#o;
    for (;;) {
      const at = line.allocateNow(length);
      if (at !== NO_MEMORY) return at;
      await new Promise<void>((resolve) => reactor.arena.whenFreed(resolve));
    }
  }
}
