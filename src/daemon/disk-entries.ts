/** The disks that a daemon is to serve, by name: what is known of each, and remembered in the state file. */

import { assert } from '../util/assert.ts';
import { BlksnapError } from '../util/errors.ts';
import { noSuchDisk, wholeDisk } from './disk-names.ts';
import { failureOf } from './disk-view.ts';
import type { Entry } from './disk-view.ts';
import { keepFilters, keptFilters } from './kept-filters.ts';
import { isLive } from './live-disks.ts';
import { saveState } from './state.ts';
import type { DiskState, KeptFilter, LiveState } from './state.ts';

export class DiskEntries {
  readonly #stateFile: string;
  readonly #entries = new Map<string, Entry>();

  constructor(stateFile: string) {
    this.#stateFile = stateFile;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** How many should be served and are not. */
  get failed(): number {
    return [...this.#entries.values()].filter((entry) => failureOf(entry) !== null).length;
  }

  /** Those whose volumes are in use. */
  get liveNames(): Set<string> {
    const isOne = (entry: Entry): boolean => entry.kind === 'disk' && isLive(entry.state);
    return new Set([...this.#entries].filter(([, entry]) => isOne(entry)).map(([name]) => name));
  }

  get names(): string[] {
    return [...this.#entries.keys()];
  }

  find(name: string): Entry | undefined {
    return this.#entries.get(name);
  }

  /** Of a disk or partition. Errors: ENOENT. */
  get(name: string): Entry {
    const entry = this.#entries.get(wholeDisk(name));
    if (entry === undefined) throw this.missing(name);
    return entry;
  }

  missing(name: string): BlksnapError {
    return noSuchDisk(name, this.names);
  }

  /** A failed disk is free for another try at the same path. Errors: EALREADY, EEXIST. */
  checkFree(name: string, real: string | null): void {
    for (const [other, entry] of this.#entries) {
      if (entry.kind !== 'disk' || entry.state.path !== real) continue;
      // What is left of a volume's attach is its disk's: another one would take it away.
      if (entry.failure !== null && (other === name || !isLive(entry.state))) continue;
      throw new BlksnapError('EALREADY', `Cannot attach "${real}": it is attached already, as "${other}"`);
    }
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    if (entry.kind === 'disk' && entry.failure !== null && entry.state.path === real) return;
    const holder =
      entry.kind === 'disk' ? `"${entry.state.path}"` : entry.kind === 'mount' ? 'a mount' : 'a mapped device';
    throw new BlksnapError('EEXIST', `Cannot use name "${name}": ${holder} has it; give another with --name`);
  }

  /** The disk of a path that could not be attached, or had to be given up: it is tried again under its name. */
  failedAt(real: string): string | undefined {
    const isOne = (entry: Entry): boolean =>
      entry.kind === 'disk' && entry.failure !== null && entry.state.path === real;
    return [...this.#entries].find(([, entry]) => isOne(entry))?.[0];
  }

  /** Not remembered before `save`. */
  set(name: string, entry: Entry): void {
    this.#entries.set(name, entry);
  }

  delete(name: string): void {
    this.#entries.delete(name);
  }

  // --- what is remembered ---------------------------------------------------------------------

  /** Errors: those of writing the state file. */
  save(): void {
    const disks = [...this.#entries.values()].flatMap((entry) => (entry.kind === 'disk' ? [entry.state] : []));
    const mapped = [...this.#entries].flatMap(([name, entry]) =>
      entry.kind === 'mapped' && entry.filters.length > 0 ? [{ name, filters: [...entry.filters] }] : [],
    );
    saveState(this.#stateFile, { disks, mapped });
  }

  /** Another try at a failed disk must not lose its filters. */
  filtersOf(name: string, real: string): DiskState['filters'] {
    const entry = this.#entries.get(name);
    return entry?.kind === 'disk' && entry.state.path === real ? entry.state.filters : [];
  }

  /** Changes the filters that a disk comes back with. Errors: as `save`; they are then as before. */
  keepFilters(entry: Entry, filters: readonly KeptFilter[]): void {
    const before = keptFilters(entry);
    keepFilters(entry, filters);
    try {
      this.save();
    } catch (cause) {
      keepFilters(entry, before);
      throw cause;
    }
  }

  /** Changes what is remembered of a disk's volume. Errors: as `save`; it is then as before. */
  keepLive(name: string, live: LiveState): void {
    const entry = this.get(name);
    assert(entry.kind === 'disk', 'only a disk has a volume');
    const before = entry.state;
    entry.state = { ...before, live };
    try {
      this.save();
    } catch (cause) {
      entry.state = before;
      throw cause;
    }
  }
}
