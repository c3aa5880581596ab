/** Which clients may see and use which disks, with their partitions and the images of their snapshots.
 *
 *  The owner may use every disk. A client with a name may use the disks that were allowed to it. Clients without names,
 *  who come over TCP where nobody asks for any, may use the disks of which no rule says who may. */

import type { Peer } from '../nbd/peer.ts';

/** Names of clients by disk. */
export type AccessRules = Readonly<Record<string, readonly string[]>>;

/** The disk that an export is about: itself, or that of a partition or an image (`vm/1`, `vm@ID`). */
function diskOf(exportName: string): string {
  return exportName.split(/[/@]/, 1)[0]!;
}

export class Access {
  #rules: ReadonlyMap<string, ReadonlySet<string>> = new Map();

  set(rules: AccessRules): void {
    this.#rules = new Map(Object.entries(rules).map(([disk, clients]) => [disk, new Set(clients)]));
  }

  allows(peer: Peer, exportName: string): boolean {
    const clients = this.#rules.get(diskOf(exportName));
    switch (peer.kind) {
      case 'owner':
        return true;
      case 'nameless':
        return clients === undefined;
      case 'named':
        return clients?.has(peer.name) ?? false;
    }
  }
}
