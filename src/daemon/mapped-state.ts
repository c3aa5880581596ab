/** What is remembered of mapped devices across restarts: their live tables, and which ranges of disks are redirected.
 *  Not remembered: inactive tables, suspensions, and what targets were told by messages.
 *
 *  Written by the I/O thread, synchronously, before the first bio goes a new way: a crash must not bring an old table
 *  back once data has gone where the new one says. */

import path from 'node:path';
import { z } from 'zod';
import { wholeDisk } from './disk-names.ts';
import { loadJson, saveJson } from './json-file.ts';
import type { DaemonPaths } from './paths.ts';
import { DISK_NAME } from './state.ts';

const bytes = z.int().nonnegative();

const mappedStateSchema = z.strictObject({
  version: z.literal(1),
  /** In an order in which they can be made. */
  devices: z.array(z.strictObject({ name: z.string().regex(DISK_NAME), table: z.string().min(1) })),
  remaps: z.array(z.strictObject({ disk: z.string(), offset: bytes, length: bytes, to: z.string(), at: bytes })),
});

export type MappedState = z.infer<typeof mappedStateSchema>;

const ADVICE = 'repair it, or move it away and make the mapped devices again';

export function mappedStateFile(paths: DaemonPaths): string {
  return path.join(paths.state, 'mapped.json');
}

/** What may be disks that mappings lie on, or whose ranges they take: every word of the tables. Errors: EBADMSG. */
export function disksBelowMappings(file: string): Set<string> {
  const { devices, remaps } = loadMappedState(file);
  const words = devices.flatMap(({ table }) => table.split(/\s+/));
  return new Set([...words.map(wholeDisk), ...remaps.map(({ disk }) => disk)]);
}

/** Errors: EBADMSG when the file cannot be understood. */
export function loadMappedState(file: string): MappedState {
  return loadJson(file, mappedStateSchema, ADVICE) ?? { version: 1, devices: [], remaps: [] };
}

export function saveMappedState(file: string, state: MappedState): void {
  saveJson(file, state);
}
