/** What mapped devices and redirected ranges lie on: disks by name, files and kernel devices by absolute path.
 *
 *  Every use is a claim on a range, and no byte has two: whoever wrote it the one way would change the other's data
 *  without its tracker's knowledge. A claimed range of a disk can be read by clients, and written through its user alone. */

import fs from 'node:fs';
import type { BlockDevice } from '../block/device.ts';
import type { Disk } from '../block/disk.ts';
import { openDevice } from '../block/open.ts';
import type { LentDevice } from '../dm/mapping.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { wholeDisk } from './disk-names.ts';

/** A range of a device. Bytes. */
export interface Claim {
  /** `disk NAME` of a whole disk, or `path PATH`. */
  readonly root: string;
  readonly offset: number;
  readonly length: number;
}

export interface BackingHost {
  /** The disk or partition, and where it lies on its disk. Errors: ENOENT, EBUSY. */
  find(name: string): { readonly disk: Disk; readonly offset: number };
  /** The name of the disk that serves the file, if one does. */
  servedAs(path: string): string | undefined;
}

interface OpenFile {
  readonly device: BlockDevice;
  users: number;
}

export class Backings {
  readonly #reactor: Reactor;
  readonly #host: BackingHost;
  readonly #files = new Map<string, OpenFile>();

  constructor(reactor: Reactor, host: BackingHost) {
    this.#reactor = reactor;
    this.#host = host;
  }

  /** Errors: ENOENT; EINVAL for a path that is not absolute. */
  claim(name: string, offset: number, length: number): Claim {
    if (name.startsWith('/')) return { root: `path ${this.#path(name)}`, offset, length };
    return { root: `disk ${wholeDisk(name)}`, offset: this.#host.find(name).offset + offset, length };
  }

  /** Errors: ENOENT, EBUSY, and what opening the path fails with. */
  async lend(name: string): Promise<LentDevice> {
    if (!name.startsWith('/')) return { device: this.#host.find(name).disk, giveBack: async () => {} };
    const path = this.#path(name);
    const served = this.#host.servedAs(path);
    if (served !== undefined) {
      throw new BlksnapError('EBUSY', `Cannot map to "${name}": it is served as disk "${served}"; use that name`);
    }
    let file = this.#files.get(path);
    if (file === undefined) {
      file = { device: await openDevice(path, { reactor: this.#reactor }), users: 0 };
      this.#files.set(path, file);
    }
    file.users++;
    let given = false;
    return {
      device: file.device,
      giveBack: async () => {
        if (given) return;
        given = true;
        if (--file.users > 0) return;
        this.#files.delete(path);
        await file.device.close();
      },
    };
  }

  /** Two names of one file are one. */
  #path(name: string): string {
    try {
      return fs.realpathSync(name);
    } catch (cause) {
      throw toBlksnapError(cause, `Cannot map to "${name}"`);
    }
  }
}

export function overlap(one: Claim, other: Claim): boolean {
  return one.root === other.root && one.offset < other.offset + other.length && other.offset < one.offset + one.length;
}
