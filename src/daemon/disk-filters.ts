/** The filters on an I/O thread's disks that the user put there: those of the modules that the daemon
 *  was started with. The tracker is not among them: it comes and goes with its disk. */

import { TRACKER_NAME } from '../blksnap/tracker.ts';
import type { Disk } from '../block/disk.ts';
import { FilterRegistry } from '../block/filter.ts';
import type { FilterHost, FilterModule } from '../block/filter.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { AttachedFilter } from './io-protocol.ts';

export class DiskFilters {
  readonly #kinds = new FilterRegistry();

  /** Errors: EEXIST for a name that two modules want, or the tracker's. */
  constructor(modules: readonly FilterModule[], host: FilterHost) {
    this.#kinds.register(TRACKER_NAME, () => {
      throw new BlksnapError('EINVAL', `Cannot attach filter "${TRACKER_NAME}": every attached disk has it`);
    });
    for (const module of modules) module.register(this.#kinds, host);
  }

  list(disks: readonly Disk[]): Array<{ readonly name: string; readonly disks: string[] }> {
    const own = disks.map(({ name }) => name).toSorted();
    return this.#kinds.list().map((kind) => (kind.name === TRACKER_NAME ? { name: TRACKER_NAME, disks: own } : kind));
  }

  /** Errors: ENOENT for an unknown kind; EALREADY; EBUSY for an altitude that is taken; what the filter fails with. */
  async attach(disk: Disk, { name, options }: AttachedFilter): Promise<void> {
    try {
      await this.#kinds.attach(name, disk, options);
    } catch (cause) {
      throw inWords(cause, `Cannot attach filter "${name}" to disk "${disk.name}"`);
    }
  }

  /** Errors: ENOENT; EBUSY for the tracker; what the filter fails with. */
  async detach(disk: Disk, name: string): Promise<void> {
    if (name === TRACKER_NAME) {
      throw new BlksnapError('EBUSY', `Cannot detach filter "${name}" from disk "${disk.name}": detach the disk`);
    }
    try {
      await this.#kinds.detach(name, disk);
    } catch (cause) {
      throw inWords(cause, `Cannot detach filter "${name}" from disk "${disk.name}"`);
    }
  }

  /** Errors: ENOENT; what the filter fails with. */
  async ctl(
    disk: Disk,
    name: string,
    { command, payload }: { readonly command: string; readonly payload: unknown },
  ): Promise<unknown> {
    const filter = disk.filter(name);
    if (filter === undefined) {
      throw new BlksnapError('ENOENT', `Cannot command filter "${name}" of disk "${disk.name}": it is not attached`);
    }
    try {
      return (await filter.ctl(command, payload)) ?? null;
    } catch (cause) {
      throw inWords(cause, `Command "${command}" of filter "${name}" failed`);
    }
  }
}

/** A filter may come with this package's error class from another copy of it, or with plain errors. */
function inWords(cause: unknown, action: string): BlksnapError {
  return cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
}
