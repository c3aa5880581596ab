import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { CONTRACT_SIZE, describeDevice } from '../../test/contracts/device.ts';
import { NbdWorld } from '../../test/nbd/world.ts';
import { DISCARD, FLUSH, FUA, READ, runBio, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Op } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { chooseDriver } from '../io/open.ts';
import type { DriverName } from '../io/open.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { listExports, NbdClient } from './client.ts';

const drivers: DriverName[] = (await chooseDriver()).driver === 'uring' ? ['uring', 'portable'] : ['portable'];

describe.each(drivers)('the client with our server, %s driver', (driver) => {
  let world: NbdWorld;
  const clients: NbdClient[] = [];
  const connect = async (exportName: string, contexts?: readonly string[]): Promise<NbdClient> => {
    const { reactor, address } = world;
    const client = await NbdClient.connect({ reactor, address, exportName, ...(contexts && { contexts }) });
    clients.push(client);
    return client;
  };
  afterEach(async () => {
    for (const client of clients.splice(0)) await client.close();
    await world.close();
  });

  it('tells what the export is', async () => {
    world = await NbdWorld.open({ driver });
    world.addMemory('disk', 4 * MIB);
    world.addMemory('fixed', 512 * 3, { readOnly: true });
    const disk = await connect('disk');
    expect(disk).toMatchObject({
      size: 4 * MIB,
      logicalBlockSize: 512,
      readOnly: false,
      contexts: ['base:allocation'],
    });
    expect(disk.capabilities).toEqual({
      flush: true,
      fua: true,
      discard: true,
      writeZeroes: true,
      fastZero: true,
      rotational: false,
    });
    const fixed = await connect('fixed', []);
    expect(fixed).toMatchObject({ size: 1536, readOnly: true, contexts: [] });
    expect(await listExports(world.reactor, world)).toEqual([
      { name: 'disk', description: 'the device disk' },
      { name: 'fixed', description: 'the device fixed' },
    ]);
    await expect(connect('other')).rejects.toMatchObject({
      code: 'ENOENT',
      message: expect.stringContaining('other') as string,
    });
  });

  it('moves more than a request may carry, and much at once', async () => {
    world = await NbdWorld.open({ driver, arenaBytes: 32 * MIB });
    const device = world.addMemory('', 12 * MIB);
    const client = await connect('');
    const { arena } = world.reactor;
    const at = arena.allocate(8 * MIB);
    for (let i = 0; i < 8 * MIB; i++) arena.bytes[at + i] = (i >> 9) * 7;
    const wanted = arena.bytes.slice(at, at + 8 * MIB);
    expect(await runBio(world.pool, client, { op: WRITE, offset: MIB, length: 8 * MIB, at })).toBe(0);
    expect(Buffer.compare(device.bytes.subarray(MIB, 9 * MIB), wanted)).toBe(0);
    arena.bytes.fill(0, at, at + 8 * MIB);
    // In many pieces at once, small and large among each other.
    const reads: Promise<number>[] = [];
    for (let done = 0, i = 0; done < 8 * MIB; i++) {
      const length = Math.min(8 * MIB - done, [512, 128 * KIB, 4 * KIB, 33 * KIB, 700 * KIB][i % 5]!);
      reads.push(runBio(world.pool, client, { op: READ, offset: MIB + done, length, at: at + done }));
      done += length;
    }
    expect(new Set(await Promise.all(reads))).toEqual(new Set([0]));
    expect(Buffer.compare(arena.bytes.subarray(at, at + 8 * MIB), wanted)).toBe(0);
    arena.release(at);
  });

  it('gives the status of each context it asked for', async () => {
    world = await NbdWorld.open({ driver });
    const dirty = {
      name: 'qemu:dirty-bitmap:b',
      blockStatus: async (offset: number, length: number) => [
        { length: Math.min(length, 64 * KIB), flags: offset === 0 ? 1 : 0 },
        ...(length > 64 * KIB ? [{ length: length - 64 * KIB, flags: 0 }] : []),
      ],
    };
    const device = world.add('d', new MemoryDevice('d', MIB, world.reactor.arena), [dirty]);
    device.bytes[128 * KIB] = 1;
    const client = await connect('d', ['base:allocation', 'qemu:dirty-bitmap:b', 'qemu:dirty-bitmap:none']);
    expect(client.contexts).toEqual(['base:allocation', 'qemu:dirty-bitmap:b']);
    expect(await client.blockStatus('qemu:dirty-bitmap:b', 0, MIB)).toEqual([
      { length: 64 * KIB, flags: 1 },
      { length: MIB - 64 * KIB, flags: 0 },
    ]);
    const runs = await client.extents(0, MIB);
    expect(runs.reduce((sum, run) => sum + run.length, 0)).toBe(MIB);
    expect(runs[0]).toMatchObject({ length: 128 * KIB, zero: true });
    expect(runs[1]).toMatchObject({ zero: false });
    await expect(client.blockStatus('qemu:dirty-bitmap:none', 0, MIB)).rejects.toMatchObject({ code: 'EINVAL' });
  });

  it('ends bios with EIO when the server goes, and says why', async () => {
    world = await NbdWorld.open({ driver });
    world.addMemory('', MIB);
    const client = await connect('');
    await world.server.close();
    await expect.poll(() => client.failure?.code).toBe('ECONNRESET');
    const at = world.reactor.arena.allocate(4096);
    expect(await runBio(world.pool, client, { op: READ, offset: 0, length: 4096, at })).toBe(ERRNO.EIO);
    world.reactor.arena.release(at);
  });

  it('keeps to a plain array, whatever is done in whatever order', async () => {
    world = await NbdWorld.open({ driver });
    const device = world.addMemory('', MIB);
    const client = await connect('');
    const { arena } = world.reactor;
    const at = arena.allocate(256 * KIB);
    const operation = fc.record({
      op: fc.constantFrom<Op>(READ, WRITE, WRITE, WRITE_ZEROES, DISCARD, FLUSH),
      sector: fc.nat({ max: MIB / 512 - 1 }),
      sectors: fc.integer({ min: 1, max: 512 }),
      value: fc.integer({ min: 1, max: 255 }),
      fua: fc.boolean(),
    });
    const model = new Uint8Array(MIB);
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 30 }), async (operations) => {
        for (const { op, sector, sectors, value, fua } of operations) {
          const offset = sector * 512;
          const length = Math.min(sectors * 512, MIB - offset);
          if (op === WRITE) arena.bytes.fill(value, at, at + length);
          const flags = fua && op !== READ && op !== FLUSH ? FUA : 0;
          expect(await runBio(world.pool, client, { op, offset, length, at, flags })).toBe(0);
          if (op === WRITE) model.fill(value, offset, offset + length);
          if (op === WRITE_ZEROES) model.fill(0, offset, offset + length);
          if (op === DISCARD) model.set(device.bytes.subarray(offset, offset + length), offset);
          if (op === READ)
            expect(Buffer.compare(arena.bytes.subarray(at, at + length), model.subarray(offset, offset + length))).toBe(
              0,
            );
        }
        expect(Buffer.compare(device.bytes, model)).toBe(0);
      }),
      { numRuns: 25 },
    );
    arena.release(at);
  });
});

/** The client as a device: our server's export of a memory device keeps the device contract. */
for (const driver of drivers) {
  describeDevice(`NBD client, ${driver}`, async () => {
    const world = await NbdWorld.open({ driver, arenaBytes: 32 * MIB });
    world.addMemory('', CONTRACT_SIZE);
    const device = await NbdClient.connect({ reactor: world.reactor, address: world.address, exportName: '' });
    return { device, reactor: world.reactor, pool: world.pool, finish: () => world.close() };
  });
}
