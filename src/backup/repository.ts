/** The layout of a backup directory, and how it changes without ever being broken.
 *
 *      DIR/blksnap-backups.json            says what the directory is
 *      DIR/<disk>/manifest.json            the restore points (manifest.ts)
 *      DIR/<disk>/<point>.qcow2            a point's data, backed by its parent's file
 *      DIR/<disk>/<point>-<sums>.sums      checksums of that file's ranges (sums.ts)
 *      DIR/<disk>/<point>.qcow2.partial    a point that is being written
 *      DIR/<disk>/<point>.qcow2.rewrite    a file that prune will put in the place of <point>.qcow2
 *      DIR/<disk>/.lock                    lock.ts
 *
 *  A point exists from the moment the manifest names it; its files are complete and synced before.
 *  A rewritten file must keep its name, since the files above name it. So prune (1) writes the
 *  new file beside the old, (2) says so in the manifest, (3) renames it into place, (4) makes
 *  the manifest final. Between 2 and 4, `readManifest` sees from the files themselves which of
 *  the two is in place: readers are right at every instant, and need no lock.
 *
 *  Reading needs no lock; every function that changes something wants the disk's lock held. */

import fs from 'node:fs';
import path from 'node:path';
import * as z from 'zod/mini';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readText } from '../util/read-text.ts';
import { MIB } from '../util/units.ts';
import { syncDirectory } from '../util/directories.ts';
import { PARTIAL, fileSize, makeDirectoryDurably, replaceFile } from '../util/durable.ts';
import { diskNameSchema, emptyManifest, formatManifest, parseManifest } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';

const MARKER_NAME = 'blksnap-backups.json';
const MANIFEST_NAME = 'manifest.json';
/** More than a hundred thousand points. */
const TEXT_LIMIT_BYTES = 64 * MIB;
const markerSchema = z.object({ format: z.literal('blksnap-backups'), version: z.literal(1) });
/** Every file that this program makes for a point, and nothing else. */
const POINT_FILE = /^\d{8}T\d{6}Z-[0-9a-f]{4}(?:\.qcow2(?:\.partial|\.rewrite)?|-[0-9a-f]{16}\.sums(?:\.partial)?)$/;

export function pointFile(diskPath: string, id: string): string {
  return path.join(diskPath, pointFileName(id));
}

/** The name by which the files above a point name it. */
export function pointFileName(id: string): string {
  return `${id}.qcow2`;
}

export function partialFile(diskPath: string, id: string): string {
  return pointFile(diskPath, id) + PARTIAL;
}

export function rewriteFile(diskPath: string, id: string): string {
  return `${pointFile(diskPath, id)}.rewrite`;
}

export function sumsFile(diskPath: string, id: string, sums: string): string {
  return path.join(diskPath, `${id}-${sums}.sums`);
}

/** The disk's directory, which need not exist. Errors: EINVAL for a name that cannot be one. */
export function diskPathOf(directory: string, disk: string): string {
  if (!diskNameSchema.safeParse(disk).success) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot use "${disk}" as a disk's name: want letters, digits, ".", "_" and "-", a letter or digit first, at most 128`,
    );
  }
  return path.join(directory, directoryName(disk));
}

/** The disks that have backups here, by name. Errors: ENOENT when this is no backup directory. */
export function diskNames(directory: string): string[] {
  checkMarker(directory);
  return fs
    .readdirSync(directory)
    .map((name) => name.replace('+', '/'))
    .filter(
      (disk) =>
        diskNameSchema.safeParse(disk).success &&
        fs.existsSync(path.join(directory, directoryName(disk), MANIFEST_NAME)),
    )
    .sort();
}

/** Partition `vm/1` is kept in `vm+1`: beside its disk, and no disk's name has a plus. */
function directoryName(disk: string): string {
  return disk.replace('/', '+');
}

function checkMarker(directory: string): void {
  const file = path.join(directory, MARKER_NAME);
  let text: string;
  try {
    text = readText(file, TEXT_LIMIT_BYTES);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw toBlksnapError(cause, `Cannot read "${file}"`);
    throw new BlksnapError(
      'ENOENT',
      `"${directory}" is not a backup directory: it has no ${MARKER_NAME}; \`blksnap backup\` makes one`,
    );
  }
  let content: unknown = null;
  try {
    content = JSON.parse(text);
  } catch {
    // Falls through to the schema's refusal.
  }
  if (!markerSchema.safeParse(content).success) {
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot use "${directory}": this blksnap does not know the format that "${file}" tells of`,
    );
  }
}

/** Makes the directory of a disk's backups where it is missing, and returns its path. */
export function makeDiskDirectory(directory: string, disk: string): string {
  const diskPath = diskPathOf(directory, disk);
  const marker = path.join(directory, MARKER_NAME);
  try {
    makeDirectoryDurably(directory);
    if (!fs.existsSync(marker)) {
      replaceFile(marker, `${JSON.stringify({ format: 'blksnap-backups', version: 1 })}\n`);
    }
    checkMarker(directory);
    makeDirectoryDurably(diskPath);
  } catch (cause) {
    throw cause instanceof BlksnapError
      ? cause
      : toBlksnapError(cause, `Cannot make the backup directory "${diskPath}"`);
  }
  return diskPath;
}

/** The manifest as the files bear it out. Errors: ENOENT when the disk has none; as parseManifest. */
export function readManifest(directory: string, disk: string): Manifest {
  const diskPath = diskPathOf(directory, disk);
  const file = path.join(diskPath, MANIFEST_NAME);
  let text: string;
  try {
    text = readText(file, TEXT_LIMIT_BYTES);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw toBlksnapError(cause, `Cannot read "${file}"`);
    const disks = diskNames(directory);
    throw new BlksnapError(
      'ENOENT',
      `"${directory}" has no backups of a disk "${disk}"; it has: ${disks.join(', ') || 'none'}`,
    );
  }
  const manifest = parseManifest(text, file);
  if (manifest.disk !== disk) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot use "${diskPath}": its manifest is of disk "${manifest.disk}", not "${disk}"; name the directory as the disk`,
    );
  }
  return { ...manifest, points: manifest.points.map((point) => settled(diskPath, point)) };
}

/** The point without its pending rewrite: as the new file, when that is the one in place. */
function settled(diskPath: string, point: RestorePoint): RestorePoint {
  const { rewrite, ...rest } = point;
  if (rewrite === undefined) return point;
  const waiting = fs.existsSync(rewriteFile(diskPath, point.id));
  const inPlace = !waiting && fileSize(pointFile(diskPath, point.id)) === rewrite.fileBytes;
  return inPlace ? { ...rest, ...rewrite } : rest;
}

/** The manifest of a disk that is about to be changed; a first, empty one is written where there is none.
 *  What an interrupted run left is settled and cleared away first. Errors: EEXIST when there are points
 *  without a manifest: they are somebody's backups. */
export function openManifest(diskPath: string, disk: string, identity: string | null): Manifest {
  if (fs.existsSync(path.join(diskPath, MANIFEST_NAME))) {
    const manifest = readManifest(path.dirname(diskPath), disk);
    clearLeftovers(diskPath, manifest);
    return manifest;
  }
  if (fs.readdirSync(diskPath).some((name) => POINT_FILE.test(name))) {
    throw new BlksnapError(
      'EEXIST',
      `Cannot use "${diskPath}": it has restore points but no ${MANIFEST_NAME}; move it away, or put its manifest back`,
    );
  }
  const manifest = emptyManifest(disk, identity);
  writeManifest(diskPath, manifest);
  return manifest;
}

export function writeManifest(diskPath: string, manifest: Manifest): void {
  replaceFile(path.join(diskPath, MANIFEST_NAME), formatManifest(manifest));
}

/** Writes down which rewrites took place, then removes every file of ours that no point has.
 *  In this order: a pending rewrite's file must not go while the manifest still tells of it. Nor may any while a power loss
 *  could bring back the manifest before: whoever wrote this one may have died before it was on stable storage. */
export function clearLeftovers(diskPath: string, manifest: Manifest): void {
  const text = formatManifest(manifest);
  if (fs.readFileSync(path.join(diskPath, MANIFEST_NAME), 'utf8') !== text) writeManifest(diskPath, manifest);
  const wanted = new Set(
    manifest.points.flatMap((point) => [
      pointFileName(point.id),
      path.basename(sumsFile(diskPath, point.id, point.sums)),
    ]),
  );
  const isOurs = (name: string): boolean => POINT_FILE.test(name) || name === MANIFEST_NAME + PARTIAL;
  const leftovers = fs.readdirSync(diskPath).filter((name) => isOurs(name) && !wanted.has(name));
  if (leftovers.length > 0) syncDirectory(diskPath);
  for (const name of leftovers) fs.unlinkSync(path.join(diskPath, name));
}

/** A disk's points, for people and programs that want a list. */
export interface DiskPoints {
  readonly disk: string;
  /** Oldest first. */
  readonly points: readonly RestorePoint[];
  /** Why the points cannot be told; null when they can. */
  readonly problem: string | null;
}

/** Every disk's restore points; one damaged manifest does not hide the other disks. Errors: ENOENT when this is no
 *  backup directory. */
export function listPoints(directory: string): DiskPoints[] {
  return diskNames(directory).map((disk) => {
    try {
      return { disk, points: readManifest(directory, disk).points, problem: null };
    } catch (cause) {
      return { disk, points: [], problem: toBlksnapError(cause).message };
    }
  });
}
