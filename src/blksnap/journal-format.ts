/** The journal of a persistent snapshot, as it lies in its file: frames, one after another, little-endian.
 *
 *     0 magic u32          4 CRC-32 of all that follows u32    8 kind u32
 *    12 payload bytes u32  16 number of the frame, from 1, u32    20 zero u32    24 payload
 *
 *  Kinds: 1 a note (JSON, noteSchema), 2 rows, 3 a part of a disk's frozen change map (disk u32, offset u32, bytes).
 *
 *  A row is 24 bytes: 0 type u16 (1 stored, 2 zeros)   2 disk u16   4 chunks u32   8 first chunk u64
 *  16 position in its piece of storage u32   20 piece u32. What the first row says of a chunk counts: a chunk
 *  is saved once.
 *
 *  The first frame is the plan, the note `taken` ends what a snapshot needs to be one. A journal ends at the first frame
 *  that is not whole; how many there must be is noted in the change maps of its disks (cbt-map.ts). */

import { z } from 'zod';
import { crc32 } from '../util/crc32.ts';

const MAGIC = 0x314a4b42;
export const FRAME_HEADER = 24;
export const ROW_BYTES = 24;
/** Of a payload, at most. */
export const MAX_PAYLOAD = 256 * 1024;

export const KIND_NOTE = 1;
export const KIND_ROWS = 2;
export const KIND_MAP = 3;

export const ROW_STORED = 1;
export const ROW_ZERO = 2;

const id = z.uuid();
const bytes = z.int().nonnegative();
const disk = z.int().nonnegative().max(65_535);

const placeSchema = z.strictObject({
  path: z.string().min(1).max(4096),
  kind: z.enum(['file', 'device']),
  /** Made for the snapshot, and to be removed with it. */
  owned: z.boolean(),
  /** Null: none but the place itself. */
  limitBytes: bytes.nullable(),
});

const planSchema = z.strictObject({
  version: z.literal(1),
  id,
  /** Snapshots of one disk are in the order of their numbers. */
  order: bytes,
  plannedAt: bytes,
  disks: z
    .array(z.strictObject({ name: z.string().min(1).max(256), size: bytes.min(1), blockSize: bytes.min(1) }))
    .min(1)
    .max(1024),
  place: placeSchema,
  /** Its maker's own. */
  memo: z.json(),
});

const noteSchema = z.union([
  z.strictObject({ plan: planSchema }),
  z.strictObject({
    taken: z.strictObject({
      createdAt: bytes,
      heldMs: z.number().nonnegative(),
      disks: z.array(z.strictObject({ generationId: id, changeNumber: z.int().min(1).max(255) })),
    }),
  }),
  /** The next piece of storage. */
  z.strictObject({ place: placeSchema }),
  /** Of the last piece. */
  z.strictObject({ limitBytes: bytes.nullable() }),
  /** Somebody said that a range has changed. */
  z.strictObject({ dirty: z.strictObject({ disk, offset: bytes, length: bytes.min(1) }) }),
  /** The image of a disk was lost. */
  z.strictObject({ broken: z.strictObject({ disk, errno: z.int().min(1).max(4095) }) }),
]);

export type Note = z.infer<typeof noteSchema>;
export type PlanNote = z.infer<typeof planSchema>;
export type PlaceNote = z.infer<typeof placeSchema>;
export type TakenNote = Extract<Note, { taken: unknown }>['taken'];

export interface Row {
  readonly type: typeof ROW_STORED | typeof ROW_ZERO;
  readonly disk: number;
  readonly chunk: number;
  readonly count: number;
  readonly position: number;
  readonly piece: number;
}

/** Null for what is no note. */
export function parseNote(payload: Uint8Array): Note | null {
  try {
    return noteSchema.parse(JSON.parse(Buffer.from(payload).toString('utf8')));
  } catch {
    return null; // Damage has the same end as what is missing: the journal is not whole.
  }
}

/** Writes the header of a frame whose payload is there already. */
export function sealFrame(
  memory: DataView<ArrayBuffer>,
  at: number,
  frame: { readonly kind: number; readonly payloadBytes: number; readonly number: number },
): void {
  memory.setUint32(at, MAGIC, true);
  memory.setUint32(at + 8, frame.kind, true);
  memory.setUint32(at + 12, frame.payloadBytes, true);
  memory.setUint32(at + 16, frame.number, true);
  memory.setUint32(at + 20, 0, true);
  const length = FRAME_HEADER - 8 + frame.payloadBytes;
  memory.setUint32(at + 4, crc32(new Uint8Array(memory.buffer, memory.byteOffset + at + 8, length)), true);
}

/** Bytes of the frame that begins there, by its header; 0 for what is none. `number`: of the frame that is due. */
export function frameBytes(memory: DataView, at: number, number: number): number {
  if (memory.byteLength - at < FRAME_HEADER) return 0;
  const payloadBytes = memory.getUint32(at + 12, true);
  const known = memory.getUint32(at, true) === MAGIC && memory.getUint32(at + 16, true) === number;
  return known && payloadBytes <= MAX_PAYLOAD ? FRAME_HEADER + payloadBytes : 0;
}

/** The kind and payload of a frame that is there in full; null when it is damaged. */
export function openFrame(
  memory: DataView,
  at: number,
  length: number,
): { readonly kind: number; readonly payload: Uint8Array } | null {
  const body = new Uint8Array(memory.buffer, memory.byteOffset + at + 8, length - 8);
  if (crc32(body) !== memory.getUint32(at + 4, true)) return null;
  return { kind: memory.getUint32(at + 8, true), payload: body.subarray(FRAME_HEADER - 8) };
}

/** Hot path. */
export function putRow(memory: DataView, at: number, row: Row): void {
  memory.setUint16(at, row.type, true);
  memory.setUint16(at + 2, row.disk, true);
  memory.setUint32(at + 4, row.count, true);
  memory.setUint32(at + 8, row.chunk % 2 ** 32, true);
  memory.setUint32(at + 12, Math.floor(row.chunk / 2 ** 32), true);
  memory.setUint32(at + 16, row.position, true);
  memory.setUint32(at + 20, row.piece, true);
}

/** Null for what is no row. */
export function readRow(memory: DataView, at: number): Row | null {
  const type = memory.getUint16(at, true);
  if (type !== ROW_STORED && type !== ROW_ZERO) return null;
  return {
    type,
    disk: memory.getUint16(at + 2, true),
    count: memory.getUint32(at + 4, true),
    chunk: memory.getUint32(at + 8, true) + memory.getUint32(at + 12, true) * 2 ** 32,
    position: memory.getUint32(at + 16, true),
    piece: memory.getUint32(at + 20, true),
  };
}
