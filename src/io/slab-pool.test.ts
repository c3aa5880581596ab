import { expect, test } from 'vitest';
import { GIB, KIB, MIB } from '../util/units.ts';
import { NO_MEMORY } from './arena.ts';
import { openReactor } from './open.ts';
import type { DriverName } from './open.ts';
import { SLAB_BYTES, SlabPool, noSlabs } from './slab-pool.ts';

test('lends whole slabs, aligned in memory, each once', () => {
  const skew = 4096 - SLAB_BYTES;
  const pool = new SlabPool({ enable: () => true, discard: () => {} }, 3 * MIB, 3 * MIB + 3 * SLAB_BYTES, skew);
  const places = [pool.take(), pool.take(), pool.take()];
  expect(places).toEqual([4 * MIB + 4096, 6 * MIB + 4096, NO_MEMORY]);
  expect(pool.lentBytes).toBe(2 * SLAB_BYTES);
  pool.release(places[0]!);
  expect(pool.lentBytes).toBe(SLAB_BYTES);
  expect(pool.take()).toBe(places[0]);
  for (const at of places.slice(0, 2)) pool.release(at);
  expect(pool.lentBytes).toBe(0);
});

test('has none where the system has no memory for them', () => {
  expect(noSlabs().take()).toBe(NO_MEMORY);
  const asked: number[] = [];
  const enable = (at: number): boolean => asked.push(at) > 1;
  const pool = new SlabPool({ enable, discard: () => {} }, 0, 2 * SLAB_BYTES);
  expect([pool.take(), pool.take(), pool.take(), pool.take()]).toEqual([NO_MEMORY, 0, SLAB_BYTES, NO_MEMORY]);
  expect(asked).toEqual([0, 0, SLAB_BYTES]);
});

test('makes the next one ready while one is used', () => {
  const discarded: number[] = [];
  const pool = new SlabPool({ enable: () => true, discard: (at) => discarded.push(at) }, 0, 2 * SLAB_BYTES);
  const prepared: number[] = [];
  pool.prepare = (at) => prepared.push(at);
  pool.take();
  expect(prepared).toEqual([SLAB_BYTES]);
  pool.release(0);
  expect(discarded).toEqual([0, SLAB_BYTES]);
});

test.each<DriverName>(['uring', 'portable'])('%s: what was given back reads as zeros', async (driver) => {
  const reactor = await openReactor({ driver, arenaBytes: MIB, slabBytes: Infinity, cooperative: true });
  const { arena, slabs } = reactor;
  expect(arena.size).toBe(MIB);
  expect(arena.bytes.length).toBe(driver === 'uring' ? 4 * GIB : 2 * GIB - 4 * KIB);
  const at = slabs.take();
  expect((arena.address + at) % SLAB_BYTES).toBe(0);
  arena.bytes.fill(7, at, at + SLAB_BYTES);
  slabs.discard(at + 4096, 4096);
  expect([arena.bytes[at + 4095], arena.bytes[at + 4096], arena.bytes[at + 8192]]).toEqual([7, 0, 7]);
  slabs.release(at);
  expect(arena.bytes[at]).toBe(0);
  await reactor.close();
});
