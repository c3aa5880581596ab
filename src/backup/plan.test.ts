import { describe, expect, test } from 'vitest';
import { emptyManifest } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { planBackup } from './plan.ts';
import type { BackupMode, SourceState } from './plan.ts';

const FULL: RestorePoint = {
  id: '20261120T000000Z-0001',
  createdAt: '2026-11-20T00:00:00Z',
  kind: 'full',
  parent: null,
  size: 2 ** 30,
  generationId: 'gen-1',
  changeNumber: 4,
  reason: '',
  bytesRead: 0,
  bytesStored: 0,
  fileBytes: 0,
  sums: '0123456789abcdef',
};
const INCREMENT: RestorePoint = {
  ...FULL,
  id: '20261121T000000Z-0002',
  kind: 'incremental',
  parent: FULL.id,
  changeNumber: 6,
};
const SOURCE: SourceState = { disk: 'vda', identity: 'disk-1', size: 2 ** 30, generationId: 'gen-1', changeNumber: 7 };

function manifestOf(points: RestorePoint[], identity: string | null = 'disk-1'): Manifest {
  return { ...emptyManifest('vda', identity), points };
}

const intact = (): null => null;

describe('what is stored', () => {
  const two = [FULL, INCREMENT];
  const untracked = { ...INCREMENT, generationId: null, changeNumber: null };
  test.each<[string, RestorePoint[], Partial<SourceState>, BackupMode, string, string | null, RegExp]>([
    ['nothing before', [], {}, 'auto', 'full', null, /first/],
    ['nothing before, differential wanted', [], {}, 'differential', 'full', null, /first/],
    ['a full before', [FULL], {}, 'auto', 'incremental', FULL.id, /changes since/],
    ['an increment before', two, {}, 'auto', 'incremental', INCREMENT.id, /changes since/],
    ['differential', two, {}, 'differential', 'differential', FULL.id, /changes since the full/],
    ['asked for', two, {}, 'full', 'full', null, /asked for/],
    ['another generation', two, { generationId: 'gen-2' }, 'auto', 'full', null, /began anew.*gen-2.*gen-1/],
    ['the same number', two, { changeNumber: 6 }, 'auto', 'full', null, /not newer.*6.*6/],
    ['a lower number', two, { changeNumber: 5 }, 'auto', 'full', null, /not newer/],
    ['a number between, differential', two, { changeNumber: 5 }, 'differential', 'differential', FULL.id, /./],
    ['grown', two, { size: 2 ** 31 }, 'auto', 'full', null, /size changed from 1073741824 to 2147483648/],
    ['not tracked', two, { generationId: null, changeNumber: null }, 'auto', 'full', null, /does not track/],
    ['not tracked before', [FULL, untracked], {}, 'auto', 'full', null, /did not track/],
    ['source cannot tell its identity', two, { identity: null }, 'auto', 'incremental', INCREMENT.id, /./],
  ])('%s', (_name, points, source, mode, kind, parent, reason) => {
    const plan = planBackup(manifestOf(points), { ...SOURCE, ...source }, { mode, damageOf: intact });
    expect([plan.kind, plan.parent?.id ?? null]).toEqual([kind, parent]);
    expect(plan.reason).toMatch(reason);
  });

  test('a chain that grew long is begun anew', () => {
    const points = [FULL];
    for (let n = 1; n < 200; n++) {
      points.push({
        ...INCREMENT,
        id: `20261121T000000Z-${String(n).padStart(4, '0')}`,
        parent: points.at(-1)!.id,
        changeNumber: 4,
      });
    }
    const kindAfter = (count: number): string =>
      planBackup(manifestOf(points.slice(0, count)), SOURCE, { mode: 'auto', damageOf: intact }).kind;
    expect([kindAfter(199), kindAfter(200)]).toEqual(['incremental', 'full']);
  });

  test('a damaged parent forces a full that says so', () => {
    const damageOf = (point: RestorePoint): string | null => (point === INCREMENT ? 'its file is gone' : null);
    expect(planBackup(manifestOf(two), SOURCE, { mode: 'auto', damageOf })).toEqual({
      kind: 'full',
      parent: null,
      reason: 'its file is gone',
    });
    expect(planBackup(manifestOf(two), SOURCE, { mode: 'differential', damageOf }).kind).toBe('differential');
  });
});

test('a disk that was moved is known by its change history', () => {
  const moved = { ...SOURCE, identity: 'elsewhere' };
  const planOf = (points: RestorePoint[], generationId: string | null): unknown =>
    planBackup(manifestOf(points), { ...moved, generationId }, { mode: 'auto', damageOf: intact });
  expect(planOf([FULL], 'gen-1')).toMatchObject({ kind: 'incremental', parent: FULL });
  const sinceAnother = { ...INCREMENT, generationId: 'gen-2' };
  expect(() => planOf([FULL, sinceAnother], 'gen-1')).toThrow(/another disk/);
  expect(() => planOf([{ ...FULL, generationId: null }], null)).toThrow(/another disk/);
});

describe('the directory of another disk is refused', () => {
  test.each<[string, Partial<SourceState>, BackupMode]>([
    ['by name', { disk: 'vdb' }, 'auto'],
    ['by identity', { identity: 'disk-2', generationId: 'gen-2' }, 'auto'],
    ['even when a full is asked for', { identity: 'disk-2', generationId: 'gen-2' }, 'full'],
  ])('%s', (_name, source, mode) => {
    const plan = (): unknown => planBackup(manifestOf([FULL]), { ...SOURCE, ...source }, { mode, damageOf: intact });
    expect(plan).toThrow(
      expect.objectContaining({
        code: 'EINVAL',
        message: expect.stringMatching(/another disk.*give another directory/),
      }),
    );
  });
});
