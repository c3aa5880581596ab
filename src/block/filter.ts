/** Filters: elements of a disk's stack that see every bio, and the registry of their kinds. */

import { BlksnapError } from '../util/errors.ts';
import type { Reactor } from '../io/reactor.ts';
import type { Bio, BioPool, BioSink } from './bio.ts';
import type { Extent } from './device.ts';
import type { Disk } from './disk.ts';

/** One filter on one disk. `submit` passes the bio on (`this.below.submit(bio)`), completes it
 *  (`bio.end`), holds it for later, or redirects it to another device. */
export abstract class BlockFilter implements BioSink {
  abstract readonly name: string;
  /** Place in the stack: a higher filter sees a bio first. */
  abstract readonly altitude: number;
  /** What lies under this filter. Set by the disk while it is attached. */
  below!: BioSink;

  abstract submit(bio: Bio): void;

  /** As BlockDevice.extents. A filter that redirects or changes data must answer for what it does to it. */
  extents(
    offset: number,
    length: number,
    below: (offset: number, length: number) => Promise<Extent[]>,
  ): Promise<Extent[]> {
    return below(offset, length);
  }

  /** Called behind the disk's gate, before the first bio. An error here leaves the disk as it was. */
  abstract attach(disk: Disk): Promise<void>;
  /** Called behind the disk's gate, after the last bio. Errors: EBUSY when it cannot go now. */
  abstract detach(): Promise<void>;
  /** Hears that the disk has another size now. Called behind its gate, lowest filter first; must not fail. */
  resized(_size: number): void {}
  /** A command of the filter's own. Errors: EINVAL for one it does not know. */
  abstract ctl(command: string, payload: unknown): Promise<unknown>;
}

/** Makes a filter of one kind. `options` comes from the user: check it. */
export type FilterFactory = (options: unknown) => BlockFilter;

/** What a filter may work with besides its bios: timers and I/O of the thread, and bios of its own. */
export interface FilterHost {
  readonly reactor: Reactor;
  readonly pool: BioPool;
}

/** What a module of filters exports: `register` makes their kinds known. */
export interface FilterModule {
  register(registry: FilterRegistry, host: FilterHost): void;
}

interface Kind {
  readonly factory: FilterFactory;
  readonly attached: Map<BlockFilter, Disk>;
}

/** A disk that is closed detaches its filters without asking the registry. */
function forgetDetached(kind: Kind): void {
  for (const [filter, disk] of kind.attached) {
    if (!disk.filters.includes(filter)) kind.attached.delete(filter);
  }
}

/** The kinds of filters by name. A kind cannot go while one of its filters is attached. */
export class FilterRegistry {
  readonly #kinds = new Map<string, Kind>();

  register(name: string, factory: FilterFactory): void {
    if (this.#kinds.has(name)) throw new BlksnapError('EEXIST', `Cannot register filter "${name}": the name is taken`);
    this.#kinds.set(name, { factory, attached: new Map() });
  }

  /** The names of all kinds, and the disks that have each. */
  list(): Array<{ readonly name: string; readonly disks: string[] }> {
    return [...this.#kinds].map(([name, kind]) => {
      forgetDetached(kind);
      return { name, disks: [...kind.attached.values()].map((disk) => disk.name).toSorted() };
    });
  }

  /** Errors: ENOENT; EBUSY while a disk has one. */
  unregister(name: string): void {
    const kind = this.#kind(name);
    forgetDetached(kind);
    if (kind.attached.size > 0) {
      throw new BlksnapError('EBUSY', `Cannot unregister filter "${name}": attached to ${kind.attached.size} disks`);
    }
    this.#kinds.delete(name);
  }

  /** Attaches a new filter of the kind. Errors: ENOENT unknown kind; EALREADY when the disk has one. */
  async attach(name: string, disk: Disk, options: unknown): Promise<BlockFilter> {
    const kind = this.#kind(name);
    if (disk.filter(name) !== undefined) {
      throw new BlksnapError(
        'EALREADY',
        `Cannot attach filter "${name}" to disk "${disk.name}": it is attached already`,
      );
    }
    const filter = kind.factory(options);
    if (filter.name !== name) {
      throw new BlksnapError('EINVAL', `Cannot attach filter "${name}": its factory made one named "${filter.name}"`);
    }
    await disk.attachFilter(filter);
    forgetDetached(kind);
    kind.attached.set(filter, disk);
    return filter;
  }

  /** Errors: ENOENT when the disk has no such filter; EBUSY when it cannot go now. */
  async detach(name: string, disk: Disk): Promise<void> {
    const filter = disk.filter(name);
    if (filter === undefined) {
      throw new BlksnapError('ENOENT', `Cannot detach filter "${name}" from disk "${disk.name}": it is not attached`);
    }
    await disk.detachFilter(filter);
    this.#kinds.get(name)?.attached.delete(filter);
  }

  #kind(name: string): Kind {
    const kind = this.#kinds.get(name);
    if (kind === undefined) {
      throw new BlksnapError(
        'ENOENT',
        `No filter "${name}": known are ${[...this.#kinds.keys()].join(', ') || 'none'}`,
      );
    }
    return kind;
  }
}
