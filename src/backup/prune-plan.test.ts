import { expect, test } from 'vitest';
import { emptyManifest } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { planPrune } from './prune-plan.ts';

/** Points as `name<parent@number`, a generation after a slash: `c<b@3/g2`. */
function manifestOf(text: string): Manifest {
  const points = text.split(' ').map((word): RestorePoint => {
    const [, id, parent, number, generation] = /^(\w)(?:<(\w))?@(\d+)(?:\/(\w+))?$/.exec(word)!;
    return {
      id: id!,
      createdAt: '',
      kind: parent === undefined ? 'full' : 'incremental',
      parent: parent ?? null,
      size: 1 << 20,
      generationId: generation ?? 'g1',
      changeNumber: Number(number),
      reason: '',
      bytesRead: 0,
      bytesStored: 0,
      fileBytes: 0,
      sums: '',
    };
  });
  return { ...emptyManifest('vda', null), points };
}

test.each([
  ['nothing to remove', 'a@1 b<a@2', 2, '', ''],
  ['more to keep than there are', 'a@1 b<a@2', 9, '', ''],
  ['an increment becomes a full, those above it stay', 'a@1 b<a@2 c<b@3 d<c@4', 2, 'a b', 'c'],
  ['a full among the kept needs nothing', 'a@1 b<a@2 c@3 d<c@4', 2, 'a b', ''],
  [
    'differentials: the first a full, the others on the one before',
    'a@1 b<a@2 c<a@3 d<a@4 e<a@5',
    3,
    'a b',
    'c d<c e<d',
  ],
  ['a differential is put on the newest point between', 'a@1 b<a@2 c<b@3 d<a@4', 2, 'a b', 'c d<c'],
  ['histories are not mixed', 'a@1 b<a@2 c@1/g2 d<a@3', 3, 'a', 'b d<b'],
  ['nor is one trusted that began anew', 'a@1 b@1/g2 c<a@2', 2, 'a', 'c'],
])('%s', (_name, points, keepLast, removed, rewritten) => {
  const plan = planPrune(manifestOf(points), keepLast);
  expect(plan.remove.map(({ id }) => id).join(' ')).toBe(removed);
  expect(plan.rewrites.map(({ point, parent }) => point.id + (parent === null ? '' : `<${parent.id}`)).join(' ')).toBe(
    rewritten,
  );
});

test.each([0, -1, 1.5, Number.NaN])('keeping the last %d is refused', (keepLast) => {
  expect(() => planPrune(manifestOf('a@1'), keepLast)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
});
