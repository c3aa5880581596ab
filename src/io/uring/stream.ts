/** A stream of the uring driver: a socket, or a pair of pipe ends.
 *
 *  Hot path. Segments to send are collected as struct iovec in one of two lists; `send` hands the
 *  list over and `queue` goes on with the other. Both lists and their msghdrs lie in the arena. */

import fs from 'node:fs';
import { assert } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import type { Completion, Stream } from '../reactor.ts';
import { peerUid, sendMessage, shutdownSocket } from '../sys.ts';
import { OP_READ, OP_RECV, OP_SENDMSG, OP_WRITEV } from './ring.ts';

const MSG_WAITALL = 0x100;
/** Larger sends may not fit into a socket's buffer. */
const SEND_AT_ONCE = 192 * 1024;
const MSG_NOSIGNAL = 0x4000;
const MSG_DONTWAIT = 0x40;
const IOV_SIZE = 16;
const MSGHDR_SIZE = 64; // 56, rounded up
/** Bytes of arena per list. */
const LIST_SIZE = 8192;
const LIST_SEGMENTS = (LIST_SIZE - MSGHDR_SIZE) / IOV_SIZE;

/** What the stream needs of its reactor. */
export interface StreamHost {
  readonly memory: { readonly address: number; readonly view: DataView };
  start(
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    opFlags: number,
    completion: Completion,
  ): void;
  finish(completion: Completion, result: number): void;
  cancel(completion: Completion): void;
  streamClosed(stream: UringStream, listsAt: number): void;
}

export const STREAM_MEMORY = 2 * LIST_SIZE;

class Receiving implements Completion {
  user: Completion | null = null;
  at = 0;
  length = 0;
  done = 0;
  all = false;
  readonly #stream: UringStream;

  constructor(stream: UringStream) {
    this.#stream = stream;
  }

  complete(result: number): void {
    this.#stream.received(result);
  }
}

class Sending implements Completion {
  user: Completion | null = null;
  /** Which list is on its way, and what of it is left. */
  list = 0;
  first = 0;
  count = 0;
  left = 0;
  total = 0;
  readonly #stream: UringStream;

  constructor(stream: UringStream) {
    this.#stream = stream;
  }

  complete(result: number): void {
    this.#stream.sent(result);
  }
}

export class UringStream implements Stream {
  readonly #host: StreamHost;
  readonly #readFd: number;
  readonly #writeFd: number;
  readonly #isSocket: boolean;
  readonly #listsAt: number;
  readonly #receiving = new Receiving(this);
  readonly #sending = new Sending(this);
  /** The list that `queue` fills. */
  #filling = 0;
  #queued = 0;
  #queuedBytes = 0;
  #closed = false;

  constructor(host: StreamHost, readFd: number, writeFd: number, isSocket: boolean, listsAt: number) {
    this.#host = host;
    this.#readFd = readFd;
    this.#writeFd = writeFd;
    this.#isSocket = isSocket;
    this.#listsAt = listsAt;
    const view = host.memory.view;
    for (const list of [0, 1]) {
      const header = listsAt + list * LIST_SIZE;
      for (let i = 0; i < MSGHDR_SIZE; i += 8) view.setBigUint64(header + i, 0n);
    }
  }

  receive(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, false, completion);
  }

  receiveAll(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, true, completion);
  }

  #receive(at: number, length: number, all: boolean, completion: Completion): void {
    const receiving = this.#receiving;
    assert(receiving.user === null, 'one receive at a time');
    if (this.#closed) return this.#host.finish(completion, -ERRNO.ECANCELED);
    receiving.user = completion;
    receiving.at = at;
    receiving.length = length;
    receiving.done = 0;
    receiving.all = all;
    this.#startReceive();
  }

  #startReceive(): void {
    const r = this.#receiving;
    const address = this.#host.memory.address + r.at + r.done;
    const length = r.length - r.done;
    if (this.#isSocket) {
      this.#host.start(OP_RECV, this.#readFd, address, length, 0, r.all ? MSG_WAITALL : 0, r);
    } else {
      this.#host.start(OP_READ, this.#readFd, address, length, -1, 0, r);
    }
  }

  received(result: number): void {
    const r = this.#receiving;
    if (result > 0) r.done += result;
    if (r.all && result > 0 && r.done < r.length && !this.#closed) {
      this.#startReceive();
      return;
    }
    const user = r.user!;
    r.user = null;
    if (this.#closed) {
      this.#closeWhenIdle();
      user.complete(-ERRNO.ECANCELED);
    } else {
      user.complete(result <= 0 ? result : r.done);
    }
  }

  queue(at: number, length: number): boolean {
    if (this.#queued === LIST_SEGMENTS) return false;
    const { address, view } = this.#host.memory;
    const iov = this.#listsAt + this.#filling * LIST_SIZE + MSGHDR_SIZE + this.#queued * IOV_SIZE;
    writePointer(view, iov, address + at);
    view.setUint32(iov + 8, length, true);
    view.setUint32(iov + 12, 0, true);
    this.#queued++;
    this.#queuedBytes += length;
    return true;
  }

  send(completion: Completion): void {
    const s = this.#sending;
    assert(s.user === null && this.#queued > 0, 'one send at a time, of something');
    if (this.#closed) return this.#host.finish(completion, -ERRNO.ECANCELED);
    s.user = completion;
    s.list = this.#filling;
    s.first = 0;
    s.count = this.#queued;
    s.left = s.total = this.#queuedBytes;
    this.#filling = 1 - this.#filling;
    this.#queued = 0;
    this.#queuedBytes = 0;
    this.#startSend();
  }

  #startSend(): void {
    const s = this.#sending;
    const { address, view } = this.#host.memory;
    const header = this.#listsAt + s.list * LIST_SIZE;
    const iov = header + MSGHDR_SIZE + s.first * IOV_SIZE;
    const count = s.count - s.first;
    if (!this.#isSocket) {
      this.#host.start(OP_WRITEV, this.#writeFd, address + iov, count, -1, 0, s);
      return;
    }
    writePointer(view, header + 16, address + iov); // msg_iov
    view.setUint32(header + 24, count, true); // msg_iovlen
    // Most sends fit into the socket's buffer: done at once, they spare a turn of the loop.
    const result =
      s.left <= SEND_AT_ONCE
        ? sendMessage(this.#writeFd, address + header, MSG_DONTWAIT | MSG_NOSIGNAL)
        : -ERRNO.EAGAIN;
    if (result === -ERRNO.EAGAIN)
      this.#host.start(OP_SENDMSG, this.#writeFd, address + header, 1, 0, MSG_WAITALL | MSG_NOSIGNAL, s);
    else this.#host.finish(s, result);
  }

  sent(result: number): void {
    const s = this.#sending;
    if (result > 0) s.left -= result;
    if (result > 0 && s.left > 0 && !this.#closed) {
      this.#skipSent(result);
      this.#startSend();
      return;
    }
    const user = s.user!;
    s.user = null;
    if (this.#closed) this.#closeWhenIdle();
    if (s.left === 0) user.complete(s.total);
    else user.complete(this.#closed ? -ERRNO.ECANCELED : result < 0 ? result : -ERRNO.EPIPE);
  }

  /** Moves the list's start past what a short send took. */
  #skipSent(bytes: number): void {
    const s = this.#sending;
    const { view } = this.#host.memory;
    let taken = bytes;
    for (; taken > 0; s.first++) {
      const iov = this.#listsAt + s.list * LIST_SIZE + MSGHDR_SIZE + s.first * IOV_SIZE;
      const length = view.getUint32(iov + 8, true);
      if (length > taken) {
        const data = view.getUint32(iov, true) + view.getUint32(iov + 4, true) * 2 ** 32 + taken;
        writePointer(view, iov, data);
        view.setUint32(iov + 8, length - taken, true);
        return;
      }
      taken -= length;
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#isSocket) shutdownSocket(this.#readFd);
    // Shutting down wakes socket operations; pipes need to be told.
    if (this.#receiving.user !== null) this.#host.cancel(this.#receiving);
    if (this.#sending.user !== null) this.#host.cancel(this.#sending);
    this.#closeWhenIdle();
  }

  release(): number {
    assert(this.#isSocket && !this.#closed, 'an open socket');
    assert(this.#receiving.user === null && this.#sending.user === null && this.#queued === 0, 'an idle stream');
    this.#closed = true;
    this.#host.streamClosed(this, this.#listsAt);
    return this.#readFd;
  }

  peerUid(): number {
    return this.#closed ? -1 : peerUid(this.#readFd);
  }

  /** The descriptor goes only when the kernel is done with it, so that its number cannot be reused under an operation. */
  #closeWhenIdle(): void {
    if (this.#receiving.user !== null || this.#sending.user !== null) return;
    fs.closeSync(this.#readFd);
    if (this.#writeFd !== this.#readFd) fs.closeSync(this.#writeFd);
    this.#host.streamClosed(this, this.#listsAt);
  }
}

function writePointer(view: DataView, at: number, address: number): void {
  view.setUint32(at, address >>> 0, true);
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
}
