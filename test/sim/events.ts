/** What is to happen in virtual time: a heap of events by time; at the same time, by a draw. */

export interface Event {
  timeUs: number;
  readonly tie: number;
  readonly run: () => void;
  /** Whose it is. */
  readonly process: object | null;
  cancelled: boolean;
}

function isBefore(a: Event, b: Event): boolean {
  return a.timeUs < b.timeUs || (a.timeUs === b.timeUs && a.tie < b.tie);
}

export class Events {
  readonly #heap: Event[] = [];

  get length(): number {
    return this.#heap.length;
  }

  push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  peek(): Event | undefined {
    while (this.#heap[0]?.cancelled === true) this.#pop();
    return this.#heap[0];
  }

  pop(): Event | undefined {
    return this.peek() === undefined ? undefined : this.#pop();
  }

  #pop(): Event {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (child >= heap.length || !isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }

  /** Takes out all that are of a process, in their order. */
  take(process: object): Event[] {
    const all = this.#heap.splice(0);
    for (const event of all) if (event.process !== process) this.push(event);
    return all
      .filter((event) => event.process === process && !event.cancelled)
      .sort((a, b) => (isBefore(a, b) ? -1 : 1));
  }
}
