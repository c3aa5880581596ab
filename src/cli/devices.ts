/** `--device` as the kernel module's console tool takes it, here a disk's name or its path. */

import fs from 'node:fs';
import type { Client, DiskView } from '../api/client.ts';
import { deviceNumber } from '../kernel/mapper-device.ts';
import { BlksnapError } from '../util/errors.ts';
import { absolute } from './command.ts';

/** Flags that take several values; with `=` the first of them hangs on the flag. */
const SEVERAL = /^--(?:device|ranges)=/;

/** `--device=a b` as `--device a b`: what the parser takes. */
export function separateValues(args: readonly string[]): string[] {
  return args.flatMap((arg) => {
    if (!SEVERAL.test(arg)) return [arg];
    const equals = arg.indexOf('=');
    return [arg.slice(0, equals), arg.slice(equals + 1)];
  });
}

/** Errors: EINVAL for none or several. */
export function oneDevice(devices: readonly string[] | undefined): string {
  const [device, ...more] = devices ?? [];
  if (device === undefined || more.length > 0) {
    throw new BlksnapError('EINVAL', `Cannot do that: want one --device, got ${devices?.length ?? 0}`);
  }
  return device;
}

async function findDisk(client: Client, device: string): Promise<DiskView | undefined> {
  const disks = await client.disks();
  const named = disks.find(({ name }) => name === device);
  if (named !== undefined) return named;
  const real = fs.existsSync(device) ? fs.realpathSync(device) : absolute(device);
  const number = deviceNumber(real);
  const isSame = (path: string): boolean => path === real || (number !== null && deviceNumber(path) === number);
  return disks.find(({ kind, path, kernelDevice }) => (kind === 'disk' && isSame(path)) || kernelDevice?.path === real);
}

/** Errors: ENOENT when it is not attached. */
export async function diskOf(client: Client, device: string): Promise<DiskView> {
  const disk = await findDisk(client, device);
  if (disk !== undefined) return disk;
  throw new BlksnapError(
    'ENOENT',
    `No disk "${device}": it is not attached; \`blksnap attach --device ${device}\` does that`,
  );
}

/** Attaches what is not attached yet. */
export async function ensureAttached(
  client: Client,
  device: string,
  how: Omit<Parameters<Client['attach']>[0], 'path'> = {},
): Promise<{ disk: DiskView; already: boolean }> {
  const found = await findDisk(client, device);
  if (found?.state === 'attached') return { disk: found, already: true };
  return { disk: await client.attach({ ...how, path: found?.path ?? absolute(device) }), already: false };
}
