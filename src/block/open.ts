/** Opens whatever a path names as a block device: an image file or a kernel device. */

import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { BlockDevice } from './device.ts';
import { openFileDevice } from './file-device.ts';
import type { OpenDeviceOptions } from './file-device.ts';
import { openHostDevice } from './host-device.ts';

/** Errors: see openFileDevice and openHostDevice; EISDIR, EINVAL for what is neither. */
export async function openDevice(path: string, options: OpenDeviceOptions): Promise<BlockDevice> {
  const stat = statOf(path);
  if (stat.isFile()) return openFileDevice(path, options);
  if (stat.isBlockDevice()) return openHostDevice(path, options);
  if (stat.isDirectory()) {
    throw new BlksnapError(
      'EISDIR',
      `Cannot open "${path}" as a disk: it is a directory, want a file or a block device`,
    );
  }
  throw new BlksnapError('EINVAL', `Cannot open "${path}" as a disk: want a file or a block device`);
}

function statOf(path: string): fs.Stats {
  try {
    return fs.statSync(path);
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot open "${path}"`);
  }
}
