/** Virtual time of one simulated machine, for all of its processes: what is to happen, in what order, and what has.
 *
 *  Nothing happens by itself: `until` turns the loop, and one seed gives one order of events, bit for bit. */

import type { Prng } from '../../src/util/prng.ts';
import { Events } from './events.ts';
import type { Event } from './events.ts';
import type { SimReactor } from './reactor.ts';
import type { SimStream } from './stream.ts';

/** Virtual time that nothing may wait longer than. */
const LIVENESS_US = 120_000_000;
/** As often somebody may be between two things without the machine: a pass over a file yields after each of its ranges. */
const IDLE_ROUNDS = 100;

/** A process of the machine: it hears of the end of a turn in which something of its own ended. */
export interface SimProcess {
  turnEnded(): void;
}

/** Somebody of `process` listens: `accept` makes the connection, and returns the caller's end of it. */
interface SimListener {
  readonly process: SimProcess;
  readonly accept: (caller: SimReactor) => SimStream;
}

export class SimClock {
  random: Prng;
  /** No fault strikes while this is above 0: checks want to know the truth. */
  calm = 0;
  /** Of everything that ended, in its order: two runs are the same when these are. */
  traceHash = 0x811c9dc5;
  readonly processes = new Set<SimProcess>();
  /** By address. */
  readonly listeners = new Map<string, SimListener>();
  /** Memory of processes that are gone: making it anew for each would take longer than all they do. */
  readonly spareMemory: ArrayBuffer[] = [];
  readonly #events = new Events();
  #nowUs = 0;
  readonly #haltedUntilUs = new WeakMap<SimProcess, number>();

  constructor(random: Prng) {
    this.random = random;
  }

  get nowUs(): number {
    return this.#nowUs;
  }

  /** Turns the loop until the promise is settled. Throws when nothing is left that could settle it, or when it takes
   *  longer than anything may. */
  async until<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const settle = (): void => void (settled = true);
    promise.then(settle, settle);
    const limitUs = this.#nowUs + LIVENESS_US;
    await macrotask();
    for (let idle = 0; !settled;) {
      idle = (await this.turn()) ? 0 : idle + 1;
      if (idle === IDLE_ROUNDS) throw new Error('liveness: something waits, and nothing is under way');
      if (idle > 0) await macrotask();
      if (this.#nowUs > limitUs) throw new Error(`liveness: something waits for ${LIVENESS_US / 1e6} virtual seconds`);
    }
    return promise;
  }

  /** Turns until nothing is under way. */
  async settle(): Promise<void> {
    const limitUs = this.#nowUs + LIVENESS_US;
    while (await this.turn())
      if (this.#nowUs > limitUs) throw new Error(`liveness: no rest within ${LIVENESS_US / 1e6} virtual seconds`);
  }

  /** One turn: all that is due at the earliest time. False when there is nothing. */
  async turn(): Promise<boolean> {
    const first = this.#events.peek();
    if (first === undefined) return false;
    this.#nowUs = first.timeUs;
    for (let event = this.#events.peek(); event?.timeUs === first.timeUs; event = this.#events.peek()) {
      this.#events.pop();
      event.run();
    }
    for (const process of this.processes) process.turnEnded();
    await macrotask();
    return true;
  }

  after(process: SimProcess | null, delayUs: number, run: () => void): Event {
    const haltedUntilUs = process === null ? 0 : (this.#haltedUntilUs.get(process) ?? 0);
    const timeUs = Math.max(this.#nowUs + Math.floor(delayUs), haltedUntilUs);
    const event = { timeUs, tie: this.random.u32(), run, process, cancelled: false };
    // The dead begin nothing.
    if (process === null || this.processes.has(process)) this.#events.push(event);
    return event;
  }

  /** A process stands still: a stopped machine, say. What falls into that time happens afterwards. */
  halt(process: SimProcess, forUs: number): void {
    const untilUs = this.#nowUs + forUs;
    this.#haltedUntilUs.set(process, untilUs);
    for (const event of this.#events.take(process)) {
      event.timeUs = Math.max(event.timeUs, untilUs);
      this.#events.push(event);
    }
  }

  /** A process has ended. */
  remove(process: SimProcess): void {
    this.processes.delete(process);
    for (const [address, listener] of this.listeners) if (listener.process === process) this.listeners.delete(address);
  }

  /** A process is gone: each thing that it had under way may still happen, or not. */
  abandon(process: SimProcess): void {
    this.remove(process);
    for (const event of this.#events.take(process)) if (this.random.chance(0.5)) event.run();
  }

  note(...values: readonly number[]): void {
    for (const value of values) {
      this.traceHash = Math.imul(this.traceHash ^ (value >>> 0), 0x01000193);
      this.traceHash = Math.imul(this.traceHash ^ Math.floor(value / 2 ** 32), 0x01000193) >>> 0;
    }
  }
}

/** Comes after all microtasks: what promises do is over by then. */
export function macrotask(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
