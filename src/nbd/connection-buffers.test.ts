/** The buffers of connections: large for the first ones, small for the rest, a quarter of the arena in all. */

import { expect, test } from 'vitest';
import { Arena } from '../io/arena.ts';
import { KIB, MIB } from '../util/units.ts';
import { ConnectionBuffers } from './connection-buffers.ts';
import { connectionLimit } from './limits.ts';

function arenaOf(size: number): Arena {
  return new Arena(new ArrayBuffer(size), 0);
}

test.each([
  [128 * MIB, 4096, 320],
  [128 * MIB, 256, 256],
  [16 * MIB, 256, 40],
  [MIB, 256, 4],
  [64 * KIB, 256, 1],
])('an arena of %i bytes, for at most %i clients, has room for %i', (size, most, limit) => {
  expect(connectionLimit(arenaOf(size), most)).toBe(limit);
});

test('small buffers follow when an eighth of the arena is lent, and large ones come back', () => {
  const arena = arenaOf(16 * MIB);
  const buffers = new ConnectionBuffers(arena);
  const lent = Array.from({ length: connectionLimit(arena, 256) }, () => buffers.lend()!);
  expect(lent.map(({ bytes }) => bytes)).toEqual([...Array(8).fill(256 * KIB), ...Array(32).fill(64 * KIB)]);
  expect(arena.lentBytes).toBe(4 * MIB);
  for (const buffer of lent) {
    expect(buffer.receiveBytes).toBeGreaterThan(2 * buffer.copyLimit);
    buffers.giveBack(buffer);
  }
  expect(arena.lentBytes).toBe(0);
  expect(buffers.lend()!.bytes).toBe(256 * KIB);
});

test('a small buffer is lent where there is no run for a large one, and none where the arena is full', () => {
  const arena = arenaOf(16 * MIB);
  const buffers = new ConnectionBuffers(arena);
  while (arena.allocate(128 * KIB) >= 0);
  expect(buffers.lend()).toBeNull();
  arena.release(0);
  expect(buffers.lend()!.bytes).toBe(64 * KIB);
});
