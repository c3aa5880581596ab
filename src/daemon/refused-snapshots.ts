/** Persistent snapshots that could not be brought back: what they were, and why not. They are shown until somebody
 *  destroys them; until then their files stay as they are. */

import type { BlksnapError } from '../util/errors.ts';
import type { FoundJournal } from './journals.ts';
import type { SnapshotView } from './views.ts';

interface Refused {
  readonly journal: FoundJournal;
  readonly cause: BlksnapError;
}

export class RefusedSnapshots {
  readonly #byId = new Map<string, Refused>();

  get size(): number {
    return this.#byId.size;
  }

  add(journal: FoundJournal, cause: BlksnapError): void {
    this.#byId.set(journal.id, { journal, cause });
  }

  /** Undefined for one that is not here. */
  get(id: string): FoundJournal | undefined {
    return this.#byId.get(id)?.journal;
  }

  forget(id: string): void {
    this.#byId.delete(id);
  }

  list(): SnapshotView[] {
    return [...this.#byId.values()].map(view);
  }
}

function view({ journal: { id, path, plan }, cause: { code, message } }: Refused): SnapshotView {
  return {
    id,
    createdAt: new Date(plan?.plannedAt ?? 0).toISOString(),
    heldMs: 0,
    freeze: null,
    storagePath: plan?.place.path ?? path,
    places: plan === null ? [] : [{ path: plan.place.path, limitBytes: plan.place.limitBytes }],
    usedBytes: 0,
    limitBytes: plan?.place.limitBytes ?? null,
    leaseMs: null,
    persistent: true,
    failure: { code, message },
    images: [],
  };
}
