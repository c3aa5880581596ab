/** The control thread's end of an I/O thread: starts it, calls it, hears its events.
 *
 *  A call is a message and a write to the descriptor that wakes the reactor; its answer comes back
 *  as a message. When the thread ends without being asked to, every call fails and `onExit` tells. */

import fs from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { assert, unreachable } from '../util/assert.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { HandedOver } from '../nbd/server.ts';
import type { Call, ExportChange, IoCallName, IoCalls, IoThreadOptions, IoThreadReady, Report } from './io-protocol.ts';

interface Pending {
  resolve(result: unknown): void;
  reject(cause: BlksnapError): void;
}

export interface IoThreadListener {
  event(event: SnapshotEvent): void;
  /** An export of the thread came or went. */
  exportChange(change: ExportChange): void;
  /** A client whose export is on another thread. */
  handOver(client: HandedOver): void;
  /** The kernel's connection to an export has ended. */
  kernelLeft(exportName: string): void;
  /** The thread ended by itself: a bug, or memory ran out. */
  died(cause: BlksnapError): void;
}

/** An eventfd counts what is written to it, in the machine's byte order. */
const ONE = new Uint8Array(new BigUint64Array([1n]).buffer);

export class IoThread {
  readonly ready: IoThreadReady;
  readonly #worker: Worker;
  readonly #listener: IoThreadListener;
  readonly #pending = new Map<number, Pending>();
  #lastId = 0;
  #stopping = false;
  #ended: BlksnapError | null = null;
  readonly #exited: Promise<void>;

  /** Errors: whatever keeps the thread from serving: EADDRINUSE, EOPNOTSUPP for a driver, … */
  static async start(options: IoThreadOptions, listener: IoThreadListener): Promise<IoThread> {
    const worker = new Worker(entry(), { workerData: options, trackUnmanagedFds: false });
    const exited = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
    const ready = await new Promise<IoThreadReady>((resolve, reject) => {
      worker.once('error', (cause) => reject(toBlksnapError(cause, 'Cannot start the I/O thread')));
      worker.once('message', (report: Report) => {
        if (report.kind === 'ready') resolve(report.ready);
        else if (report.kind === 'failed') reject(new BlksnapError(report.error.code, report.error.message));
        else reject(new BlksnapError('EPROTO', 'Cannot start the I/O thread: it spoke before it was ready'));
      });
    });
    worker.removeAllListeners('error');
    return new IoThread(worker, ready, listener, exited);
  }

  private constructor(worker: Worker, ready: IoThreadReady, listener: IoThreadListener, exited: Promise<void>) {
    this.#worker = worker;
    this.ready = ready;
    this.#listener = listener;
    this.#exited = exited;
    worker.on('message', (report: Report) => this.#hear(report));
    worker.on('error', (cause) => this.#end(toBlksnapError(cause, 'The I/O thread failed')));
    worker.on('exit', () => this.#end(new BlksnapError('ESHUTDOWN', 'The I/O thread has ended')));
  }

  call<Name extends IoCallName>(name: Name, args: IoCalls[Name]['args']): Promise<IoCalls[Name]['result']> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    // A thread that ends closes its wake descriptor, and the number may then be another file's.
    if (this.#stopping && name !== 'stop')
      return Promise.reject(new BlksnapError('ESHUTDOWN', 'The I/O thread is ending'));
    const id = ++this.#lastId;
    // First: what is nested too deeply to be copied throws, and nobody would wait for its answer.
    this.#worker.postMessage({ id, name, args } satisfies Call);
    const result = new Promise<unknown>((resolve, reject) => this.#pending.set(id, { resolve, reject }));
    if (this.ready.wakeFd >= 0) fs.writeSync(this.ready.wakeFd, ONE);
    return result;
  }

  /** Ends I/O in flight, closes every disk, and waits for the thread's end. Safe to call twice. */
  async stop(): Promise<void> {
    if (!this.#stopping && this.#ended === null) {
      this.#stopping = true;
      const [stopped] = await Promise.allSettled([this.call('stop', {}), this.#exited]);
      if (stopped.status === 'rejected') throw stopped.reason;
    }
    await this.#exited;
  }

  #hear(report: Report): void {
    switch (report.kind) {
      case 'result':
        this.#take(report.id).resolve(report.result);
        return;
      case 'error':
        this.#take(report.id).reject(new BlksnapError(report.error.code, report.error.message));
        return;
      case 'event':
        this.#listener.event(report.event);
        return;
      case 'exportChange':
        this.#listener.exportChange(report.change);
        return;
      case 'handOver':
        this.#listener.handOver(report.client);
        return;
      case 'kernelLeft':
        this.#listener.kernelLeft(report.exportName);
        return;
      case 'ready':
      case 'failed':
        assert(false, 'the I/O thread starts once');
        return;
      default:
        unreachable(report);
    }
  }

  #take(id: number): Pending {
    const pending = this.#pending.get(id);
    assert(pending !== undefined, 'an answer belongs to a call');
    this.#pending.delete(id);
    return pending;
  }

  #end(cause: BlksnapError): void {
    if (this.#ended !== null) return;
    this.#ended = cause;
    for (const pending of this.#pending.values()) pending.reject(cause);
    this.#pending.clear();
    if (!this.#stopping) this.#listener.died(cause);
  }
}

/** The thread's program: built, or by way of the loader that runs the sources in development. */
function entry(): URL {
  const built = import.meta.url.endsWith('.js');
  return new URL(built ? '../daemon/io-thread.js' : './io-thread.dev.mjs', import.meta.url);
}
