/** What a daemon remembers across restarts: the disks it serves and how they were attached.
 *  Change histories lie beside it, in files of their own. Written whole, by temporary name,
 *  sync and rename: a crash leaves the old file or the new one. */

import fs from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';

const STATE_VERSION = 1;

/** The same rule as for a disk's directory in a backup repository, so that every disk can be backed up. */
export const DISK_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

const diskStateSchema = z.strictObject({
  name: z.string().regex(DISK_NAME),
  path: z.string().min(1),
  readOnly: z.boolean(),
  direct: z.boolean(),
  filters: z.array(z.strictObject({ name: z.string().min(1), options: z.json() })).default([]),
});

const stateSchema = z.strictObject({
  version: z.literal(STATE_VERSION),
  disks: z.array(diskStateSchema),
});

export type DiskState = z.infer<typeof diskStateSchema>;

/** The disks of a state file; none when there is no file yet. Errors: EBADMSG when it cannot be
 *  understood: starting without its disks would lose their change history in silence. */
export function loadState(file: string): DiskState[] {
  let text: string;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw toBlksnapError(cause, 'Cannot read the state file');
  }
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw unusable(file, 'it is not JSON', cause);
  }
  const version = (content as { version?: unknown } | null)?.version;
  if (typeof version === 'number' && version > STATE_VERSION) {
    throw unusable(file, `it has version ${version}, this blksnap knows up to ${STATE_VERSION}`);
  }
  const parsed = stateSchema.safeParse(content);
  if (!parsed.success) throw unusable(file, z.prettifyError(parsed.error), parsed.error);
  return parsed.data.disks;
}

export function saveState(file: string, disks: readonly DiskState[]): void {
  const partial = `${file}.partial`;
  try {
    const fd = fs.openSync(partial, 'w', 0o600);
    try {
      fs.writeFileSync(fd, `${JSON.stringify({ version: STATE_VERSION, disks }, null, 2)}\n`);
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
    fs.renameSync(partial, file);
    const directory = fs.openSync(path.dirname(file), 'r');
    fs.fsyncSync(directory);
    fs.closeSync(directory);
  } catch (cause) {
    throw toBlksnapError(cause, 'Cannot write the state file');
  }
}

function unusable(file: string, why: string, cause?: unknown): BlksnapError {
  return new BlksnapError(
    'EBADMSG',
    `Cannot use the state file "${file}": ${why}; repair it, or move it away and attach the disks again`,
    { cause },
  );
}
