/** Journals of persistent snapshots that rotted, or that somebody made: the snapshot comes back, or there is an error that
 *  says why; an image shows nothing but what its disk, its storage and zeros hold; only what carries the snapshot's own label
 *  is ever removed.
 *
 *  Frames are numbered and sealed anew before they are read, and PLACE stands for the directory, so that what was mutated gets
 *  beyond the checksum. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import type { SnapshotImage } from '../../../src/blksnap/image.ts';
import {
  FRAME_HEADER,
  KIND_MAP,
  KIND_NOTE,
  KIND_ROWS,
  MAX_PAYLOAD,
  ROW_BYTES,
  sealFrame,
} from '../../../src/blksnap/journal-format.ts';
import { openJournalFile } from '../../../src/blksnap/journal-place.ts';
import type { Tracker } from '../../../src/blksnap/tracker.ts';
import { assert } from '../../../src/util/assert.ts';
import { BlksnapError } from '../../../src/util/errors.ts';
import { KIB } from '../../../src/util/units.ts';
import { ID, PersistentCore, SIZE } from '../../persistent-core.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { expected } from '../expected.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const CHUNK = 4 * KIB;
const PLACE = '/PLACE';
const STORAGE = `blksnap-${ID}.diff`;
const BYSTANDER = 'bystander';
const OTHER_ID = '3f1f2f9a-0b7a-4c9e-8f5c-2f1c3e0d9a77';
/** More than the change map of the disk knows of. */
const FRAMES = 24;

class JournalSubject implements FuzzSubject {
  readonly #world: PersistentCore;
  /** Every file as the process before has left it. */
  readonly #files = new Map<string, Buffer>();
  readonly #chunks = new Set<string>();

  static async open(): Promise<JournalSubject> {
    const world = await PersistentCore.open();
    await world.laidDown();
    fs.writeFileSync(world.core.path(BYSTANDER), Buffer.alloc(64 * KIB, 'somebody else'));
    return new JournalSubject(world);
  }

  private constructor(world: PersistentCore) {
    this.#world = world;
    for (const name of ['a', 'a.map', STORAGE, BYSTANDER])
      this.#files.set(name, fs.readFileSync(world.core.path(name)));
    for (const bytes of [this.#files.get('a')!, this.#files.get(STORAGE)!, Buffer.alloc(CHUNK)]) {
      for (let at = 0; at < bytes.length; at += CHUNK) this.#chunks.add(digest(bytes.subarray(at, at + CHUNK)));
    }
  }

  async run(input: Uint8Array): Promise<void> {
    for (const name of ['a.map', STORAGE]) fs.writeFileSync(this.#world.core.path(name), this.#files.get(name)!);
    const file = this.#world.journal();
    fs.writeFileSync(file, sealed(input, this.#world.core.directory));
    const { set } = this.#world.core;
    const { tracker } = await this.#world.core.disk('a', SIZE);
    const options = { place: openJournalFile(file), tracker: (name: string) => diskCalled(name, tracker) };
    const restored = await expected(() => set.restore(options));
    for (const image of restored?.snapshot.images ?? []) await this.#checkImage(image);
    await this.#world.restart();
    this.#checkFiles();
    if (fs.existsSync(file)) await this.#world.core.set.discard({ place: openJournalFile(file) });
    assert(!fs.existsSync(file), 'the journal is gone');
    this.#checkFiles();
  }

  async #checkImage(image: SnapshotImage): Promise<void> {
    const { status, data } = await this.#world.core.read(image, 0, Math.min(image.size, SIZE));
    if (status !== 0) return;
    for (let at = 0; at + CHUNK <= data.length; at += CHUNK)
      assert(this.#chunks.has(digest(data.subarray(at, at + CHUNK))), 'an image shows what there was');
  }

  /** The journal and the storage may be gone, and the change map tells that nobody keeps the snapshot. */
  #checkFiles(): void {
    for (const name of ['a', BYSTANDER]) {
      const bytes = fs.readFileSync(this.#world.core.path(name));
      assert(bytes.equals(this.#files.get(name)!), 'nobody else is touched');
    }
  }

  async close(): Promise<void> {
    await this.#world.close();
  }
}

function digest(chunk: Buffer): string {
  return createHash('md5').update(chunk).digest('base64');
}

function diskCalled(name: string, tracker: Tracker): Tracker {
  if (name !== 'a') throw new BlksnapError('ENODEV', 'it is not here');
  return tracker;
}

/** The same frames, whole, at their places; what is no frame stays as it is, at the end. */
function sealed(input: Uint8Array, directory: string): Buffer {
  const bytes = Buffer.from(input);
  const frames: Buffer[] = [];
  let at = 0;
  while (bytes.length - at >= FRAME_HEADER) {
    const length = bytes.readUInt32LE(at + 12);
    if (length > MAX_PAYLOAD || at + FRAME_HEADER + length > bytes.length) break;
    const kind = bytes.readUInt32LE(at + 8);
    const payload = bytes.subarray(at + FRAME_HEADER, at + FRAME_HEADER + length);
    const named = Buffer.from(payload.toString('latin1').replaceAll(PLACE, directory), 'latin1');
    frames.push(frame(kind, kind === KIND_NOTE ? named : payload, frames.length + 1));
    at += FRAME_HEADER + length;
  }
  return Buffer.concat([...frames, bytes.subarray(at)]);
}

function frame(kind: number, payload: Uint8Array, number: number): Buffer<ArrayBuffer> {
  const bytes = Buffer.alloc(FRAME_HEADER + payload.length);
  bytes.set(payload, FRAME_HEADER);
  const memory = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  sealFrame(memory, 0, { kind, payloadBytes: payload.length, number });
  return bytes;
}

// --- a grammar ----------------------------------------------------------------------------------

/** How often a field is as it should be: of many fields, in some inputs all. */
let sane = 1;

function usual<T>(draw: Draw, value: T, others: readonly T[]): T {
  return draw.chance(sane) ? value : draw.one(others);
}

function place(draw: Draw): object {
  return {
    path: usual(draw, path.join(PLACE, STORAGE), [
      path.join(PLACE, BYSTANDER),
      path.join(PLACE, 'a'),
      PLACE,
      '/dev/null',
      '/proc/self/mem',
      'relative',
    ]),
    kind: usual(draw, 'file', ['device']),
    owned: draw.chance(0.8),
    limitBytes: usual<number | null>(draw, 2 ** 26, [null, 0, 2 ** 52]),
  };
}

function note(draw: Draw, disks: readonly object[]): object {
  const dirty = { disk: usual(draw, 0, [1, 65_535]), offset: draw.one(EDGES), length: 1 + draw.one(EDGES) };
  switch (draw.below(8)) {
    case 0:
      return { place: place(draw) };
    case 1:
      return { limitBytes: draw.one([null, 0, 2 ** 52]) };
    case 2:
      if (!draw.chance(0.2)) return { dirty };
      return { broken: { disk: usual(draw, 0, [1, 65_535]), errno: usual(draw, 28, [0, 4095, 5000]) } };
    case 3:
      return usual<object>(draw, { dirty }, [plan(draw, disks)]);
    default:
      return { dirty };
  }
}

function plan(draw: Draw, disks: readonly object[]): object {
  const memo = { for: 'test' };
  const id = usual(draw, ID, [OTHER_ID, 'x']);
  return { plan: { version: usual(draw, 1, [0, 2]), id, order: 1, plannedAt: 1, disks, place: place(draw), memo } };
}

function rows(draw: Draw): Buffer {
  const made = draw.list(40, () => {
    const row = Buffer.alloc(ROW_BYTES);
    row.writeUInt16LE(usual(draw, draw.between(1, 2), [0, 3, 0xffff]), 0);
    row.writeUInt16LE(usual(draw, 0, [1, 0xffff]), 2);
    row.writeUInt32LE(usual(draw, draw.between(1, 4), EDGES), 4);
    row.writeUInt32LE(usual(draw, draw.below(SIZE / CHUNK), EDGES), 8);
    row.writeUInt32LE(usual(draw, 0, EDGES), 12);
    row.writeUInt32LE(usual(draw, draw.between(1, 20), EDGES), 16);
    row.writeUInt32LE(usual(draw, 0, [1, 0xffff_ffff]), 20);
    return row;
  });
  return Buffer.concat([...made, draw.chance(0.01) ? Buffer.alloc(7) : Buffer.alloc(0)]);
}

function map(draw: Draw, disk: number, length: number): Buffer {
  const bytes = Buffer.alloc(8 + length, 1);
  bytes.writeUInt32LE(usual(draw, disk, [1, 0xffff_ffff]), 0);
  bytes.writeUInt32LE(usual(draw, 0, EDGES), 4);
  return bytes;
}

function generate(draw: Draw): Uint8Array {
  sane = draw.one([1, 0.998, 0.99, 0.9]);
  const names = usual(draw, ['a'], [['a', 'a'], ['b'], ['a', '__proto__'], []]);
  const blockSize = usual(draw, 64 * KIB, [1, 512, 4 * KIB, 2 ** 30]);
  const size = usual(draw, SIZE, [...EDGES, 2 ** 40, 2 ** 53 - 1]);
  const disks = names.map((name) => ({ name, size, blockSize }));
  const json = (value: object): [number, Uint8Array] => [KIND_NOTE, Buffer.from(JSON.stringify(value))];
  const generationId = usual(draw, OTHER_ID, ['', 'x']);
  const taken = { createdAt: 1, heldMs: 0.5, disks: names.map(() => ({ generationId, changeNumber: 1 })) };
  const blocks = Math.min(Math.ceil(size / blockSize), 8192);
  const frames: Array<[number, Uint8Array]> = [
    ...(draw.chance(0.97) ? [json(plan(draw, disks))] : []),
    ...names.map((_, disk): [number, Uint8Array] => [KIND_MAP, map(draw, disk, usual(draw, blocks, [0, blocks + 1]))]),
    ...(draw.chance(0.9) ? [json({ taken })] : []),
    ...draw.list(FRAMES, (): [number, Uint8Array] =>
      draw.chance(0.5) ? [KIND_ROWS, rows(draw)] : json(note(draw, disks)),
    ),
  ];
  while (frames.length < FRAMES) frames.push([KIND_ROWS, Buffer.alloc(0)]);
  return Buffer.concat(frames.map(([kind, payload], i) => frame(usual(draw, kind, [0, 4]), payload, i + 1)));
}

export const journal: FuzzTarget = { name: 'journal', generate, open: () => JournalSubject.open() };
