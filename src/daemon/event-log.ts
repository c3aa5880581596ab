/** The events of the snapshots that are held, for any number of readers: each keeps its own place.
 *
 *  A reader names the last event it saw and gets the ones after it, at once or when they come.
 *  Bounded: the oldest events of a snapshot go first; its whole log goes with the snapshot. */

import { BlksnapError } from '../util/errors.ts';
import type { EventView } from './views.ts';

const EVENTS_KEPT = 1000;

interface Log {
  readonly events: EventView[];
  lastSequence: number;
  /** The last event that `next` gave out. */
  taken: number;
  waiting: Array<() => void>;
}

export interface Waiting {
  /** The last event seen; 0 for none. */
  readonly after: number;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

export class EventLog {
  readonly #logs = new Map<string, Log>();

  /** Snapshots that are held or prepared. */
  get size(): number {
    return this.#logs.size;
  }

  /** Nothing happens when the log is open: a prepared snapshot's is when it is taken. */
  open(snapshotId: string): void {
    if (this.#logs.has(snapshotId)) return;
    this.#logs.set(snapshotId, { events: [], lastSequence: 0, taken: 0, waiting: [] });
  }

  /** Ends the log: readers that wait hear ESRCH. */
  close(snapshotId: string): void {
    const log = this.#logs.get(snapshotId);
    this.#logs.delete(snapshotId);
    if (log !== undefined) wake(log);
  }

  push(event: Omit<EventView, 'sequence'>): void {
    const log = this.#logs.get(event.snapshotId);
    if (log === undefined) return;
    log.events.push({ sequence: ++log.lastSequence, ...event });
    if (log.events.length > EVENTS_KEPT) log.events.shift();
    wake(log);
  }

  /** The events after `after`; none when the time is over or the reader is gone.
   *  Errors: ESRCH when there is no such snapshot, or no more. */
  async wait(snapshotId: string, { after, timeoutMs, signal }: Waiting): Promise<EventView[]> {
    const untilMs = performance.now() + timeoutMs;
    for (;;) {
      const log = this.#logs.get(snapshotId);
      if (log === undefined)
        throw new BlksnapError('ESRCH', `No snapshot "${snapshotId}": it was destroyed, or never was`);
      const news = log.events.filter((event) => event.sequence > after);
      const leftMs = untilMs - performance.now();
      if (news.length > 0 || leftMs <= 0 || signal?.aborted === true) return news;
      await pause(log, leftMs, signal);
    }
  }

  /** The oldest event that `next` has not given out yet; null when the time is over or the reader is gone.
   *  Errors: as `wait`. */
  async next(snapshotId: string, waiting: Omit<Waiting, 'after'>): Promise<EventView | null> {
    const untilMs = performance.now() + waiting.timeoutMs;
    for (;;) {
      const after = this.#logs.get(snapshotId)?.taken ?? 0;
      const [event] = await this.wait(snapshotId, {
        ...waiting,
        after,
        timeoutMs: Math.max(0, untilMs - performance.now()),
      });
      if (event === undefined) return null;
      const log = this.#logs.get(snapshotId);
      // Another caller may have been woken by the same event, and been first.
      if (log === undefined || log.taken >= event.sequence) continue;
      log.taken = event.sequence;
      return event;
    }
  }
}

function wake(log: Log): void {
  const waiting = log.waiting;
  log.waiting = [];
  for (const resolve of waiting) resolve();
}

/** Until something happens to the log, the time is over, or the reader goes. */
function pause(log: Log, limitMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      log.waiting = log.waiting.filter((other) => other !== done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(limitMs, 2 ** 31 - 1));
    signal?.addEventListener('abort', done);
    log.waiting.push(done);
  });
}
