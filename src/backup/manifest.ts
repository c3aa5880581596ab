/** The manifest of one disk's backups: which restore points there are, and what each rests on.
 *
 *  It is the only truth about a disk's directory: a file that it does not name is a leftover of
 *  an interrupted run. It carries a checksum of itself, because a change number that rotted into
 *  another one would make an increment miss changes. Names are made from ids that the schema
 *  checks, so nothing read from a manifest can lead out of its directory.
 *  Does no I/O. */

import { createHash, randomBytes } from 'node:crypto';
import * as z from 'zod/mini';
import { en } from 'zod/locales';
import { brief } from '../util/brief.ts';
import { BlksnapError } from '../util/errors.ts';

z.config(en());

const MANIFEST_FORMAT = 'blksnap-manifest';
const MANIFEST_VERSION = 1;

/** A UTC time that sorts as text, and something random: `20261120T235900Z-7f3a`. */
const pointIdSchema = z.string().check(z.regex(/^\d{8}T\d{6}Z-[0-9a-f]{4}$/));
const countSchema = z.int().check(z.nonnegative());
const checksumSchema = z.string().check(z.regex(/^[0-9a-f]{16}$/));

/** A disk's name is its directory's name: a letter or digit first, so never hidden, `.` or `..`. */
export const diskNameSchema = z.string().check(z.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:\/[1-9]\d{0,3})?$/));

/** What is stored in a point's file, and how to tell that it is still the same. */
const contentFields = {
  kind: z.enum(['full', 'incremental', 'differential']),
  /** The point that this one's file is backed by; null for a full. */
  parent: z.nullable(pointIdSchema),
  /** Bytes of data in the file, and of the file itself. */
  bytesStored: countSchema,
  fileBytes: countSchema,
  /** xxHash64 of the sums file, which holds the checksums of the file's ranges. */
  sums: checksumSchema,
};

const pointSchema = z.strictObject({
  id: pointIdSchema,
  createdAt: z.iso.datetime(),
  /** Bytes of the disk. */
  size: z.int().check(z.positive()),
  /** The change history that the point belongs to, and its place in it; null when the source has none. */
  generationId: z.nullable(z.string().check(z.minLength(1))),
  changeNumber: z.nullable(countSchema),
  /** Why it is of this kind, in words. */
  reason: z.string(),
  /** Bytes read from the source. */
  bytesRead: countSchema,
  ...contentFields,
  /** A file with the same disk content is being put in this one's place: see repository.ts. */
  rewrite: z.optional(z.strictObject(contentFields)),
});

const manifestSchema = z
  .strictObject({
    format: z.literal(MANIFEST_FORMAT),
    version: z.literal(MANIFEST_VERSION),
    disk: diskNameSchema,
    /** What tells this disk from another of the same name; null when its source does not say. */
    identity: z.nullable(z.string().check(z.minLength(1))),
    /** Oldest first. */
    points: z.array(pointSchema),
  })
  .check(
    z.superRefine((manifest, context) => {
      const seen = new Set<string>();
      for (const point of manifest.points) {
        const complain = (message: string): void =>
          context.addIssue({ code: 'custom', message: `point ${point.id} ${message}` });
        if (seen.has(point.id)) complain('is there twice');
        for (const content of [point, ...(point.rewrite === undefined ? [] : [point.rewrite])]) {
          if ((content.kind === 'full') !== (content.parent === null)) complain('is a full with a parent, or has none');
          if (content.parent !== null && !seen.has(content.parent))
            complain(`rests on ${content.parent}, which is not before it`);
        }
        seen.add(point.id);
      }
    }),
  );

export type Manifest = z.infer<typeof manifestSchema>;
export type RestorePoint = z.infer<typeof pointSchema>;
export type PointContent = NonNullable<RestorePoint['rewrite']>;
export type PointKind = RestorePoint['kind'];

export function emptyManifest(disk: string, identity: string | null): Manifest {
  return { format: MANIFEST_FORMAT, version: MANIFEST_VERSION, disk, identity, points: [] };
}

/** Reads a manifest. `origin` names it in errors. Errors: EBADMSG when it is not one, is damaged or
 *  contradicts itself; EOPNOTSUPP when a newer version wrote it. */
export function parseManifest(text: string, origin: string): Manifest {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw unreadable(origin, 'it is not JSON', cause);
  }
  if (typeof content !== 'object' || content === null) throw unreadable(origin, 'it is not a JSON object');
  const { checksum, ...body } = content as Record<string, unknown>;
  if (body['format'] === MANIFEST_FORMAT && typeof body['version'] === 'number' && body['version'] > MANIFEST_VERSION) {
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot read "${origin}": it has version ${body['version']}, this blksnap knows up to ${MANIFEST_VERSION}; use a newer blksnap`,
    );
  }
  let actual: string;
  try {
    actual = checksumOf(body);
  } catch (cause) {
    throw unreadable(origin, 'it is nested too deeply', cause);
  }
  if (checksum !== actual) throw unreadable(origin, 'its checksum does not match its content');
  const parsed = manifestSchema.safeParse(body);
  if (!parsed.success) throw unreadable(origin, brief(z.prettifyError(parsed.error)), parsed.error);
  return parsed.data;
}

export function formatManifest(manifest: Manifest): string {
  return `${JSON.stringify({ ...manifest, checksum: checksumOf(manifest) }, null, 2)}\n`;
}

function checksumOf(body: object): string {
  return createHash('sha256').update(JSON.stringify(body)).digest('hex');
}

function unreadable(origin: string, why: string, cause?: unknown): BlksnapError {
  return new BlksnapError(
    'EBADMSG',
    `Cannot read "${origin}": ${why}. The .qcow2 files beside it can be read with qemu-img; to begin anew, move the directory away`,
    { cause },
  );
}

/** A new id: sorts by time, and is none of the points there are, which its file would replace. */
export function newPointId(time: Date, points: ReadonlyArray<{ readonly id: string }>): string {
  const stamp = time.toISOString().replace(/[-:]|\.\d+/g, '');
  for (;;) {
    const id = `${stamp}-${randomBytes(2).toString('hex')}`;
    if (!points.some((point) => point.id === id)) return id;
  }
}

/** The point of that id, or the newest when none is given. Errors: ENOENT, naming what there is. */
export function findPoint(manifest: Manifest, id?: string): RestorePoint {
  const point = id === undefined ? manifest.points.at(-1) : manifest.points.find((candidate) => candidate.id === id);
  if (point !== undefined) return point;
  if (id === undefined) throw new BlksnapError('ENOENT', `Disk "${manifest.disk}" has no restore points yet`);
  const known = brief(manifest.points.map((candidate) => candidate.id).join(', ')) || 'none';
  throw new BlksnapError('ENOENT', `Disk "${manifest.disk}" has no restore point "${id}"; it has: ${known}`);
}

/** The point and everything it rests on, the full last. */
export function chainOf(manifest: Manifest, point: RestorePoint): RestorePoint[] {
  const byId = new Map(manifest.points.map((candidate) => [candidate.id, candidate]));
  const chain = [point];
  for (let next = point.parent; next !== null;) {
    const parent = byId.get(next)!;
    chain.push(parent);
    next = parent.parent;
  }
  return chain;
}
