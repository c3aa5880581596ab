/** What an I/O thread's NBD server offers: the exports on this thread, and the names of those on others. */

import type { ServedSocket } from '../kernel/nbd.ts';
import { transmissionFlags } from '../nbd/commands.ts';
import type { ExportTable, NbdExport } from '../nbd/export.ts';
import type { Peer } from '../nbd/peer.ts';
import type { Access } from './access.ts';
import { BlksnapError } from '../util/errors.ts';
import type { ExportChange } from './io-protocol.ts';

export class Exports implements ExportTable {
  readonly #onChange: (change: ExportChange) => void;
  readonly #access: Access;
  readonly #here = new Map<string, NbdExport>();
  /** Descriptions of those on other threads. */
  readonly #elsewhere = new Map<string, string>();

  /** `onChange` hears what comes and goes here. */
  constructor(access: Access, onChange: (change: ExportChange) => void) {
    this.#access = access;
    this.#onChange = onChange;
  }

  find(name: string): NbdExport | undefined {
    return this.#here.get(name);
  }

  list(): Iterable<Pick<NbdExport, 'name' | 'description'>> {
    return [...this.#here.values(), ...[...this.#elsewhere].map(([name, description]) => ({ name, description }))];
  }

  isElsewhere(name: string): boolean {
    return this.#elsewhere.has(name);
  }

  visibleTo(peer: Peer): ExportTable {
    const allows = (name: string): boolean => this.#access.allows(peer, name);
    return {
      find: (name) => (allows(name) ? this.find(name) : undefined),
      list: () => [...this.list()].filter(({ name }) => allows(name)),
      isElsewhere: (name) => allows(name) && this.isElsewhere(name),
    };
  }

  set(name: string, offered: NbdExport): void {
    this.#here.set(name, offered);
    this.#onChange({ name, description: offered.description });
  }

  delete(name: string): void {
    if (this.#here.delete(name)) this.#onChange({ name, description: null });
  }

  /** Errors: ENOENT. */
  get(name: string): NbdExport {
    const offered = this.#here.get(name);
    if (offered === undefined) throw new BlksnapError('ENOENT', `There is no export "${name}"`);
    return offered;
  }

  /** As the kernel's NBD client must know an export. Errors: ENOENT. */
  describe(name: string): ServedSocket {
    const { device } = this.get(name);
    return {
      size: device.size,
      blockSize: device.logicalBlockSize,
      transmissionFlags: transmissionFlags(device, 'simple', false),
    };
  }

  /** Hears of a change on another thread. */
  hear({ name, description }: ExportChange): void {
    if (description === null) this.#elsewhere.delete(name);
    else this.#elsewhere.set(name, description);
  }

  clear(): void {
    for (const name of this.#here.keys()) this.delete(name);
  }

  [Symbol.iterator](): Iterator<[string, NbdExport]> {
    return this.#here.entries();
  }
}
