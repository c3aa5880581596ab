/** A disk: a device that is served, with a name, a filter stack and a gate.
 *
 *      submit -> gate -> filter (highest altitude) -> … -> filter (lowest) -> device
 *
 *  Hot path: submit, bioLeft. The gate counts bios on their way; `freeze` holds new ones and
 *  resolves when the last has ended, `thaw` lets the held ones go in their order. Freezes nest.
 *  The stack changes only behind the gate, so no bio sees half a stack. */

import { assert } from '../util/assert.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { BioQueue } from './bio.ts';
import type { Bio, BioGate, BioSink } from './bio.ts';
import type { BlockDevice, Capabilities, Extent } from './device.ts';
import type { BlockFilter } from './filter.ts';

export class Disk implements BlockDevice, BioGate {
  readonly name: string;
  readonly device: BlockDevice;
  /** Highest altitude first. */
  #filters: BlockFilter[] = [];
  #top: BioSink;
  #inFlight = 0;
  #freezes = 0;
  #closed = false;
  readonly #held = new BioQueue();
  #drained: Array<() => void> = [];
  /** The change of the stack that is under way, or the last one; never rejects. */
  #lastChange: Promise<void> = Promise.resolve();

  constructor(name: string, device: BlockDevice) {
    this.name = name;
    this.device = device;
    this.#top = device;
  }

  get size(): number {
    return this.device.size;
  }
  get logicalBlockSize(): number {
    return this.device.logicalBlockSize;
  }
  get physicalBlockSize(): number {
    return this.device.physicalBlockSize;
  }
  get readOnly(): boolean {
    return this.device.readOnly;
  }
  get capabilities(): Capabilities {
    return this.device.capabilities;
  }
  get inFlight(): number {
    return this.#inFlight;
  }
  get frozen(): boolean {
    return this.#freezes > 0;
  }
  get filters(): readonly BlockFilter[] {
    return this.#filters;
  }

  filter(name: string): BlockFilter | undefined {
    return this.#filters.find((filter) => filter.name === name);
  }

  submit(bio: Bio): void {
    if (this.#freezes > 0) {
      this.#held.push(bio);
      return;
    }
    if (this.#closed) {
      bio.end(ERRNO.ESHUTDOWN);
      return;
    }
    this.#inFlight++;
    bio.gate = this;
    this.#top.submit(bio);
  }

  bioLeft(_bio: Bio): void {
    this.#inFlight--;
    if (this.#inFlight === 0 && this.#drained.length > 0) {
      const drained = this.#drained;
      this.#drained = [];
      for (const resolve of drained) resolve();
    }
  }

  /** Holds new bios; resolves when none is on its way. Every freeze needs its thaw, also when it was not awaited. */
  freeze(): Promise<void> {
    this.#freezes++;
    if (this.#inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#drained.push(resolve));
  }

  thaw(): void {
    assert(this.#freezes > 0, 'thaw without freeze');
    this.#freezes--;
    while (this.#freezes === 0) {
      const bio = this.#held.shift();
      if (bio === null) break;
      this.submit(bio);
    }
  }

  /** Puts the filter at its altitude, behind the gate. Whatever its `attach` throws leaves the disk as it was. */
  attachFilter(filter: BlockFilter): Promise<void> {
    return this.#changeStack(async () => {
      const index = this.#filters.findIndex((other) => other.altitude <= filter.altitude);
      const place = index < 0 ? this.#filters.length : index;
      if (this.#filters[place]?.altitude === filter.altitude) {
        throw new BlksnapError(
          'EBUSY',
          `Cannot attach filter "${filter.name}" to disk "${this.name}": altitude ${filter.altitude} is taken by "${this.#filters[place]?.name}"`,
        );
      }
      filter.below = this.#filters[place] ?? this.device;
      await filter.attach(this);
      this.#filters = this.#filters.toSpliced(place, 0, filter);
    });
  }

  /** Takes the filter out, behind the gate; nothing happens when it is not there. Errors: its `detach`'s. */
  detachFilter(filter: BlockFilter): Promise<void> {
    return this.#changeStack(async () => {
      if (!this.#filters.includes(filter)) return;
      await filter.detach();
      this.#filters = this.#filters.filter((other) => other !== filter);
    });
  }

  /** One change at a time, each behind the gate. */
  #changeStack(change: () => Promise<void>): Promise<void> {
    const changed = this.#lastChange.then(async () => {
      await this.freeze();
      try {
        await change();
        this.#link();
      } finally {
        this.thaw();
      }
    });
    this.#lastChange = changed.catch(() => {});
    return changed;
  }

  #link(): void {
    let below: BioSink = this.device;
    for (const filter of this.#filters.toReversed()) {
      filter.below = below;
      below = filter;
    }
    this.#top = below;
  }

  /** Takes over the size that the file or device below has now, behind the gate. Clients learn it when they
   *  connect again. Errors: EOPNOTSUPP where the size cannot change; EINVAL for one that a disk cannot have. */
  async resize(): Promise<number> {
    const { device } = this;
    await this.#changeStack(async () => {
      if (device.refreshSize === undefined) {
        throw new BlksnapError('EOPNOTSUPP', `Cannot resize disk "${this.name}": its size cannot change`);
      }
      const before = device.size;
      const size = device.refreshSize();
      if (size === before) return;
      for (const filter of this.#filters.toReversed()) filter.resized(size);
    });
    return device.size;
  }

  /** As the filters have it: one that redirects bios answers for where they go. */
  extents(offset: number, length: number): Promise<Extent[]> {
    let ask = (from: number, bytes: number): Promise<Extent[]> => this.device.extents(from, bytes);
    for (const filter of this.#filters.toReversed()) {
      const below = ask;
      ask = (from, bytes) => filter.extents(from, bytes, below);
    }
    return ask(offset, length);
  }

  /** Waits for the bios on their way, detaches every filter, closes the device. Later bios end with
   *  ESHUTDOWN. Errors: EBUSY when a filter cannot go; the disk then runs on. */
  async close(): Promise<void> {
    if (this.#closed) return;
    // Behind the gate from the start: no write may pass a filter that has just gone.
    await this.freeze();
    try {
      for (const filter of this.#filters) await this.detachFilter(filter);
      this.#closed = true;
    } finally {
      this.thaw();
    }
    await this.device.close();
  }
}
