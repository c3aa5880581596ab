/** What a daemon remembers across restarts: the disks it serves, how they were attached, and filters.
 *  Change histories lie beside it, in files of their own. Written whole, by temporary name,
 *  sync and rename: a crash leaves the old file or the new one. */

import fs from 'node:fs';
import { z } from 'zod';
import { BlksnapError } from '../util/errors.ts';
import { loadJson, saveJson } from './json-file.ts';

const STATE_VERSION = 1;
const ADVICE = 'repair it, or move it away and attach the disks again';

/** The same rule as for a disk's directory in a backup repository, so that every disk can be backed up. */
export const DISK_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** A volume that was attached while in use (docs/live-attach.md). What is remembered holds before the step that needs it. */
const liveStateSchema = z.strictObject({
  /** Where recovery leads: `original` until an attach is done, and from the begin of a detach. */
  goal: z.enum(['attached', 'original']),
  /** Names, as device-mapper has them, and the volume's UUID there. */
  volume: z.string().min(1),
  uuid: z.string(),
  backend: z.string().min(1),
  /** Tables and devices are of one run of the machine. */
  bootId: z.string(),
  /** The original table; zeros stand for keys. */
  table: z.string(),
  /** MAJOR:MINOR of every kernel device that the volume's table may lead to; the last one is the newest. */
  devices: z.array(z.string()),
});

const keptFilterSchema = z.strictObject({
  name: z.string().min(1),
  options: z.json(),
  /** Null: it is on the whole disk. */
  partition: z.int().positive().nullable().default(null),
});

const diskStateSchema = z.strictObject({
  name: z.string().regex(DISK_NAME),
  path: z.string().min(1),
  readOnly: z.boolean(),
  direct: z.boolean(),
  mappable: z.boolean().default(false),
  filters: z.array(keptFilterSchema).default([]),
  live: liveStateSchema.nullable().default(null),
});

const stateSchema = z.strictObject({
  version: z.literal(STATE_VERSION),
  disks: z.array(diskStateSchema),
  /** Filters of mapped devices, whose tables are in a file of their own (mapped-state.ts). */
  mapped: z
    .array(z.strictObject({ name: z.string().regex(DISK_NAME), filters: z.array(keptFilterSchema) }))
    .default([]),
});

export type KeptFilter = z.infer<typeof keptFilterSchema>;
export type DiskState = z.infer<typeof diskStateSchema>;
export type State = Omit<z.infer<typeof stateSchema>, 'version'>;
export type LiveState = z.infer<typeof liveStateSchema>;

/** What a state file remembers; nothing when there is no file yet. Errors: EBADMSG when it cannot be
 *  understood: starting without its disks would lose their change history in silence. */
export function loadState(file: string): State {
  if (!fs.existsSync(file)) return { disks: [], mapped: [] };
  const content = loadJson(file, z.unknown(), ADVICE);
  const version = (content as { version?: unknown } | null)?.version;
  if (typeof version === 'number' && version > STATE_VERSION) {
    throw new BlksnapError(
      'EBADMSG',
      `Cannot use the state file "${file}": it has version ${version}, this blksnap knows up to ${STATE_VERSION}; ${ADVICE}`,
    );
  }
  const { disks, mapped } = loadJson(file, stateSchema, ADVICE)!;
  return { disks, mapped };
}

export function saveState(file: string, state: State): void {
  saveJson(file, { version: STATE_VERSION, ...state });
}
