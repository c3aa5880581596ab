import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { DEFAULT_PARAMETERS } from '../blksnap/parameters.ts';
import { chooseDriver } from '../io/open.ts';
import { MIB } from '../util/units.ts';
import { IoThread } from './io-thread-client.ts';

const usable = (await chooseDriver()).driver;

describe.each(['uring', 'portable'] as const)('the I/O thread on the %s driver', (driver) => {
  let directory: string;
  let image: string;

  beforeEach((context) => {
    context.skip(driver === 'uring' && usable !== 'uring', 'io_uring does not work here');
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-io-'));
    image = path.join(directory, 'disk.img');
    fs.writeFileSync(image, '');
    fs.truncateSync(image, 4 * MIB);
  });
  afterEach(() => fs.rmSync(directory, { recursive: true, force: true }));

  async function start(): Promise<{ io: IoThread; events: SnapshotEvent[]; deaths: Error[] }> {
    const events: SnapshotEvent[] = [];
    const deaths: Error[] = [];
    const io = await IoThread.start(
      { driver, parameters: DEFAULT_PARAMETERS, filterModules: [] },
      {
        event: (event) => events.push(event),
        died: (cause) => deaths.push(cause),
        exportChange: () => {},
        handOver: () => {},
        kernelLeft: () => {},
      },
    );
    return { io, events, deaths };
  }

  const attachment = (name: string) => ({
    name,
    path: image,
    readOnly: false,
    direct: false,
    cbtPath: null,
    filters: [],
  });

  it('answers calls, passes errors on, and ends when asked to', async () => {
    const { io, deaths } = await start();
    expect(io.ready.driver).toBe(driver);
    const disk = await io.call('attach', attachment('d'));
    expect(disk).toMatchObject({ name: 'd', size: 4 * MIB, filters: ['blksnap'], cbt: { changeNumber: 1 } });
    await expect(io.call('attach', attachment('e'))).rejects.toMatchObject({ code: 'EBUSY' });
    expect((await io.call('disks', {})).map(({ name }) => name)).toEqual(['d']);
    await io.stop();
    await io.stop();
    expect(deaths).toEqual([]);
    await expect(io.call('disks', {})).rejects.toMatchObject({ code: 'ESHUTDOWN' });
  });

  it('takes a snapshot of a disk and marks what is told to have changed', async () => {
    const { io } = await start();
    await io.call('attach', attachment('d'));
    await io.call('cbtMarkDirty', { name: 'd', ranges: [{ offset: 100_000, length: 1 }] });
    const snapshot = await io.call('createSnapshot', { disks: ['d'], storagePath: ':memory:', limitBytes: MIB });
    expect(snapshot).toMatchObject({ limitBytes: MIB, images: [{ disk: 'd', changeNumber: 1, error: null }] });
    expect([...(await io.call('cbtMap', { name: 'd', offset: 0, length: 4 }))]).toEqual([0, 1, 0, 0]);
    await expect(io.call('detach', { name: 'd' })).rejects.toThrow(/is held; destroy it first/);
    await io.call('destroySnapshot', { id: snapshot.id });
    await io.call('detach', { name: 'd' });
    await io.stop();
  });

  it('takes connections', async () => {
    const { io } = await start();
    const address = await io.call('listen', {
      address: { kind: 'tcp', host: '127.0.0.1', port: 0 },
      clients: 'nameless',
    });
    expect(address.kind === 'tcp' && address.port > 0).toBe(true);
    await expect(io.call('listen', { address, clients: 'nameless' })).rejects.toMatchObject({ code: 'EADDRINUSE' });
    await io.stop();
  });
});
