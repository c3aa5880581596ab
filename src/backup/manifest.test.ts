import { describe, expect, test } from 'vitest';
import { chainOf, emptyManifest, findPoint, formatManifest, newPointId, parseManifest } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';

const SUMS = '0123456789abcdef';

function point(id: string, parent: string | null): RestorePoint {
  return {
    id,
    createdAt: '2026-11-20T23:59:00Z',
    kind: parent === null ? 'full' : 'incremental',
    parent,
    size: 1 << 20,
    generationId: 'g',
    changeNumber: 1,
    reason: 'asked for',
    bytesRead: 0,
    bytesStored: 0,
    fileBytes: 0,
    sums: SUMS,
  };
}

const A = '20261120T235900Z-000a';
const B = '20261120T235900Z-000b';
const C = '20261121T000000Z-000c';

function manifestOf(...points: RestorePoint[]): Manifest {
  return { ...emptyManifest('vda', 'disk-1'), points };
}

describe('a manifest', () => {
  test('comes back as it was written', () => {
    const manifest = manifestOf(point(A, null), point(B, A));
    expect(parseManifest(formatManifest(manifest), 'm')).toEqual(manifest);
  });

  test('that was altered is refused, even where it still is a valid manifest', () => {
    const text = formatManifest(manifestOf(point(A, null)));
    const altered = text.replace('"changeNumber": 1', '"changeNumber": 3');
    expect(altered).not.toBe(text);
    expect(() => parseManifest(altered, 'm')).toThrow(/checksum does not match/);
    expect(() => parseManifest(text.slice(0, -10), 'm')).toThrow(/not JSON/);
  });

  test('of a newer version asks for a newer program', () => {
    const newer = { ...manifestOf(), version: 2 } as unknown as Manifest;
    expect(() => parseManifest(formatManifest(newer), 'm')).toThrow(expect.objectContaining({ code: 'EOPNOTSUPP' }));
  });

  test.each([
    ['../../etc/passwd', null, /id/],
    ['20261120T235900Z-000a/..', null, /id/],
    [B, C, /not before it/],
    [B, B, /not before it/],
    [A, null, /there twice/],
  ])('with point %s on %s is refused', (id, parent, complaint) => {
    const text = formatManifest(manifestOf(point(A, null), point(id, parent)));
    expect(() => parseManifest(text, 'm')).toThrow(complaint);
  });

  test('with a disk name that leads elsewhere is refused', () => {
    const text = formatManifest({ ...manifestOf(), disk: '../vdb' });
    expect(() => parseManifest(text, 'm')).toThrow(expect.objectContaining({ code: 'EBADMSG' }));
  });
});

test('a chain ends with the full', () => {
  const manifest = manifestOf(point(A, null), point(B, A), point(C, B));
  expect(chainOf(manifest, manifest.points[2]!).map(({ id }) => id)).toEqual([C, B, A]);
});

test('points are found by id, the newest by default', () => {
  const manifest = manifestOf(point(A, null), point(B, A));
  expect(findPoint(manifest).id).toBe(B);
  expect(findPoint(manifest, A).id).toBe(A);
  expect(() => findPoint(manifest, C)).toThrow(new RegExp(`has no restore point "${C}"; it has: ${A}, ${B}`));
  expect(() => findPoint(manifestOf())).toThrow(/no restore points yet/);
});

test('ids sort by time', () => {
  const earlier = newPointId(new Date('2026-11-20T23:59:00.999Z'), []);
  const later = newPointId(new Date('2026-11-20T23:59:01.000Z'), []);
  expect(earlier).toMatch(/^20261120T235900Z-[0-9a-f]{4}$/);
  expect(earlier < later).toBe(true);
});

test('a new id is none of those there are', () => {
  const time = new Date('2026-11-20T23:59:00Z');
  const evenOnes = Array.from({ length: 2 ** 15 }, (_, i) => ({
    id: `20261120T235900Z-${(2 * i).toString(16).padStart(4, '0')}`,
  }));
  for (let i = 0; i < 20; i++) expect(newPointId(time, evenOnes)).toMatch(/[13579bdf]$/);
});
