/** Mapped devices, ranges and redirected disks keep the device contract. */

import { expect } from 'vitest';
import { CONTRACT_SIZE, describeDevice } from '../../test/contracts/device.ts';
import type { DeviceUnderTest } from '../../test/contracts/device.ts';
import { MappedWorld } from '../../test/mapped.ts';
import type { BlockDevice } from '../block/device.ts';
import { Disk } from '../block/disk.ts';
import { RangeDevice } from '../block/range-device.ts';
import { RemapFilter } from '../block/remap-filter.ts';

const SECTORS = CONTRACT_SIZE / 512;

function opener(open: (world: MappedWorld) => Promise<BlockDevice>) {
  return async (): Promise<DeviceUnderTest> => {
    const world = await MappedWorld.open();
    for (const name of ['a', 'b', 'c']) world.memory(name, 2 * CONTRACT_SIZE);
    const device = await open(world);
    return {
      device,
      reactor: world.reactor,
      pool: world.pool,
      async finish() {
        await world.close();
        expect(world.reactor.inFlight).toBe(0);
      },
    };
  };
}

describeDevice(
  'linear',
  opener((world) => world.map(`0 ${SECTORS - 1} linear a 7`)),
);
describeDevice(
  'linear pieces in another order',
  opener((world) =>
    world.map(`0 3 linear a 2000\n3 1021 linear b 9\n1024 1 linear a 5\n1025 ${SECTORS - 1025} linear c 0`),
  ),
);
describeDevice(
  'striped',
  opener((world) => world.map(`0 ${SECTORS} striped 3 8 a 0 b 8 c 1`)),
);
describeDevice(
  'mirror, in sync',
  opener((world) => world.map(`0 ${SECTORS} mirror core 2 64 nosync 3 a 0 b 8 c 1`)),
);
describeDevice(
  'mirror, while it is copied',
  opener((world) => world.map(`0 ${SECTORS} mirror core 1 16 2 a 0 b 8`)),
);
describeDevice(
  'delay',
  opener((world) => world.map(`0 ${SECTORS} delay a 0 0 a 0 1`)),
);
describeDevice(
  'flakey and dust that are well',
  opener((world) => world.map(`0 1000 flakey a 0 1000 0\n1000 ${SECTORS - 1000} dust b 0 512`)),
);
describeDevice(
  'a mapped device over mapped devices',
  opener(async (world) => {
    world.devices.set('low', await world.map(`0 ${SECTORS} striped 2 16 a 0 b 0`));
    world.devices.set('disk', new Disk('d', await world.map(`0 ${SECTORS} linear c 0`)));
    return world.map(`0 1001 linear low 1\n1001 ${SECTORS - 1001} linear disk 1001`);
  }),
);
describeDevice(
  'a range of a disk',
  opener(async (world) => {
    const disk = new Disk('d', world.devices.get('a')!);
    return new RangeDevice('d/1', disk, { offset: 512, length: CONTRACT_SIZE, pool: world.pool });
  }),
);
describeDevice(
  'a disk with redirected ranges',
  opener(async (world) => {
    const disk = new Disk('d', await world.map(`0 ${SECTORS} linear a 0`));
    const filter = new RemapFilter(world);
    await disk.attachFilter(filter);
    const redirect = (offset: number, length: number, name: string, at: number): Promise<void> =>
      filter.redirect({ offset, length, device: world.devices.get(name)!, at }, { copy: true });
    await redirect(64 * 512, 1000 * 512, 'b', 512);
    await redirect(1064 * 512, 3 * 512, 'c', 0);
    await redirect(CONTRACT_SIZE - 512, 512, 'b', 0);
    const close = disk.close.bind(disk);
    disk.close = async () => {
      filter.release();
      await close();
    };
    return disk;
  }),
);
