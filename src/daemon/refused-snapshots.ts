/** Persistent snapshots that could not be brought back: what they were, and why not. They are shown until somebody
 *  destroys them; until then their files stay as they are. */

import type { BlksnapError } from '../util/errors.ts';
import type { FoundSnapshot } from './persistent-memo.ts';
import type { SnapshotView } from './views.ts';

interface Refused {
  readonly found: FoundSnapshot;
  readonly cause: BlksnapError;
}

export class RefusedSnapshots {
  readonly #byId = new Map<string, Refused>();

  get size(): number {
    return this.#byId.size;
  }

  add(found: FoundSnapshot, cause: BlksnapError): void {
    this.#byId.set(found.whole.id, { found, cause });
  }

  /** Undefined for one that is not here. */
  get(id: string): FoundSnapshot | undefined {
    return this.#byId.get(id)?.found;
  }

  forget(id: string): void {
    this.#byId.delete(id);
  }

  list(): SnapshotView[] {
    return [...this.#byId.values()].map(view);
  }
}

function view({ found: { whole, journals }, cause: { code, message } }: Refused): SnapshotView {
  const [first] = journals;
  const places = journals.flatMap(({ plan }) => (plan === null ? [] : [plan.place]));
  return {
    id: whole.id,
    createdAt: new Date(first?.plan?.plannedAt ?? 0).toISOString(),
    heldMs: 0,
    freeze: null,
    storagePath: places[0]?.path ?? first!.path,
    places: places.map(({ path, limitBytes }) => ({ path, limitBytes })),
    usedBytes: 0,
    limitBytes: places.reduce<number | null>(
      (sum, { limitBytes }) => (sum === null || limitBytes === null ? null : sum + limitBytes),
      places.length === 0 ? null : 0,
    ),
    leaseMs: null,
    persistent: true,
    failure: { code, message },
    images: [],
  };
}
