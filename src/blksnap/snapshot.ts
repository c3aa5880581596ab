/** A snapshot: a set of origins frozen at one instant, with an image of each. */

import type { SnapshotEvent } from './events.ts';
import type { DiffStorage } from './diff-storage.ts';
import type { SnapshotImage } from './image.ts';
import type { Journal } from './journal.ts';

/** Oldest events are dropped above this. */
const MAX_EVENTS = 1000;

export class Snapshot {
  /** UUID. */
  readonly id: string;
  /** The take, milliseconds since 1970. */
  readonly createdAt: number;
  readonly images: readonly SnapshotImage[];
  readonly storage: DiffStorage;
  /** How long the take held writes back, milliseconds. */
  readonly heldMs: number;
  /** Of a snapshot that outlives the process; null for others. */
  readonly journal: Journal | null;
  readonly events: SnapshotEvent[] = [];

  constructor(options: {
    id: string;
    createdAt: number;
    images: readonly SnapshotImage[];
    storage: DiffStorage;
    heldMs: number;
    journal: Journal | null;
  }) {
    this.id = options.id;
    this.createdAt = options.createdAt;
    this.images = options.images;
    this.storage = options.storage;
    this.heldMs = options.heldMs;
    this.journal = options.journal;
  }

  image(disk: string): SnapshotImage | undefined {
    return this.images.find((image) => image.origin === disk);
  }

  addEvent(event: SnapshotEvent): void {
    this.events.push(event);
    if (this.events.length > MAX_EVENTS) this.events.shift();
  }
}
