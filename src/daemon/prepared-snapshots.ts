/** Snapshots that have been asked for and not taken yet: an id, a growing list of disks, and where
 *  their storage will be. Plain memory of the control thread: no disk is touched before the take. */

import crypto from 'node:crypto';
import { BlksnapError } from '../util/errors.ts';
import type { PreparedView } from './views.ts';

export interface Prepared {
  readonly id: string;
  readonly createdAt: Date;
  readonly disks: string[];
  readonly storagePath: string;
  readonly limitBytes: number | null;
}

export class PreparedSnapshots {
  readonly #byId = new Map<string, Prepared>();

  get size(): number {
    return this.#byId.size;
  }

  /** Oldest first. */
  list(): PreparedView[] {
    return [...this.#byId.values()].map(view);
  }

  has(id: string): boolean {
    return this.#byId.has(id);
  }

  /** Errors: EINVAL for a disk named twice. */
  create(request: Pick<Prepared, 'storagePath' | 'limitBytes'> & { readonly disks: readonly string[] }): PreparedView {
    const { disks, storagePath, limitBytes } = request;
    const twice = disks.find((name, index) => disks.indexOf(name) !== index);
    if (twice !== undefined) {
      throw new BlksnapError('EINVAL', `Cannot prepare a snapshot of disk "${twice}" twice: name it once`);
    }
    const prepared = { id: crypto.randomUUID(), createdAt: new Date(), disks: [...disks], storagePath, limitBytes };
    this.#byId.set(prepared.id, prepared);
    return view(prepared);
  }

  /** Errors: ESRCH; EALREADY when the disk is in it. */
  add(id: string, disk: string): PreparedView {
    const prepared = this.#get(id);
    if (prepared.disks.includes(disk)) {
      throw new BlksnapError('EALREADY', `Cannot add disk "${disk}" to snapshot "${id}": it is in it already`);
    }
    prepared.disks.push(disk);
    return view(prepared);
  }

  /** Takes it out of the list, to be taken or forgotten. Errors: ESRCH. */
  remove(id: string): Prepared {
    const prepared = this.#get(id);
    this.#byId.delete(id);
    return prepared;
  }

  /** Puts one back whose take failed. */
  restore(prepared: Prepared): void {
    this.#byId.set(prepared.id, prepared);
  }

  #get(id: string): Prepared {
    const prepared = this.#byId.get(id);
    if (prepared === undefined) {
      throw new BlksnapError('ESRCH', `No prepared snapshot "${id}": it was taken, destroyed, or never was`);
    }
    return prepared;
  }
}

function view({ id, createdAt, disks, storagePath, limitBytes }: Prepared): PreparedView {
  return { id, createdAt: createdAt.toISOString(), disks: [...disks], storagePath, limitBytes };
}
