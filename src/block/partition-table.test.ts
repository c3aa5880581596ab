/** Partition tables as the usual programs make them, and as nobody should. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requirePrograms } from '../../test/requirements.ts';
import { crc32 } from '../util/crc32.ts';
import { MIB } from '../util/units.ts';
import { readPartitionTable } from './partition-table.ts';
import type { PartitionTable } from './partition-table.ts';

let directory: string;
beforeAll(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-partitions-'));
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

const SIZE = 40 * MIB;

function tableOf(bytes: Uint8Array, logicalBlockSize = 512): Promise<PartitionTable | null> {
  return readPartitionTable({ size: bytes.length, logicalBlockSize }, async (offset, length) => {
    expect(offset >= 0 && length > 0 && offset + length <= bytes.length, 'reads lie in the disk').toBe(true);
    return Uint8Array.from(bytes.subarray(offset, offset + length));
  });
}

/** What a program writes to an empty image. */
function made(program: string, args: readonly string[], input = ''): Buffer {
  const file = path.join(directory, 'image');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, SIZE);
  execFileSync(program, [...args, file], { input, stdio: ['pipe', 'ignore', 'pipe'] });
  return fs.readFileSync(file);
}

const places = (table: PartitionTable | null): Array<[number, number, number]> =>
  table!.partitions.map(({ number, offset, length }) => [number, offset / 512, length / 512]);

/** Made once: sgdisk waits for a second whenever it has written. */
let original: Buffer | null = null;
function sgdisk(): Buffer {
  const entries = [
    '-n',
    '1:2048:4095',
    '-c',
    '1:boot \u00e4',
    '-n',
    '3:8192:16383',
    '-t',
    '3:8200',
    '-n',
    '128:4096:8191',
  ];
  original ??= made('sgdisk', entries);
  return Buffer.from(original);
}

/** Recomputes the checksums of the primary GPT after a change, so that the change itself is what is found. */
function seal(disk: Buffer, block = 512): Buffer {
  const header = disk.subarray(block, 2 * block);
  const start = Number(header.readBigUInt64LE(72)) * block;
  const length = header.readUInt32LE(80) * header.readUInt32LE(84);
  header.writeUInt32LE(crc32(disk.subarray(start, start + length)), 88);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(crc32(header.subarray(0, 92)), 16);
  return disk;
}

describe('a GPT', () => {
  it('made by sgdisk is read with types and labels', async (context) => {
    requirePrograms(context, 'sgdisk');
    const table = await tableOf(sgdisk());
    expect(table).toMatchObject({ scheme: 'gpt', warnings: [] });
    expect(places(table)).toEqual([
      [1, 2048, 2048],
      [3, 8192, 8192],
      [128, 4096, 4096],
    ]);
    expect(table!.partitions[0]).toMatchObject({ label: 'boot \u00e4', type: '0fc63daf-8483-4772-8e79-3d69d8477de4' });
    expect(table!.partitions[1]!.type).toBe('0657fd6d-a4ab-43c4-84e5-0933c84b4f4f');
  });

  it('made by parted is read', async (context) => {
    requirePrograms(context, 'parted');
    const file = path.join(directory, 'parted');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, SIZE);
    execFileSync('parted', [
      '-s',
      file,
      'mklabel',
      'gpt',
      'mkpart',
      'a',
      '1MiB',
      '3MiB',
      'mkpart',
      'b',
      '4MiB',
      '100%',
    ]);
    const table = await tableOf(fs.readFileSync(file));
    expect(places(table).map(([number, start]) => [number, start])).toEqual([
      [1, 2048],
      [2, 8192],
    ]);
    expect(table!.partitions.map(({ label }) => label)).toEqual(['a', 'b']);
  });

  it('with blocks of 4 KiB is read on a device of either block size', async (context) => {
    requirePrograms(context, 'fdisk');
    const disk = made('fdisk', ['-b', '4096'], 'g\nn\n1\n256\n767\nn\n2\n1024\n1279\nw\n');
    for (const logicalBlockSize of [512, 4096]) {
      const table = await tableOf(disk, logicalBlockSize);
      expect(places(table)).toEqual([
        [1, 2048, 4096],
        [2, 8192, 2048],
      ]);
    }
  });

  it('is read from its backup when the primary is damaged, and says so', async (context) => {
    requirePrograms(context, 'sgdisk');
    const good = places(await tableOf(sgdisk()));
    for (const at of [512 + 40, 512 * 2 + 32, 512]) {
      const disk = sgdisk();
      disk[at]! ^= 1;
      const table = await tableOf(disk);
      expect(places(table)).toEqual(good);
      expect(table!.warnings.join()).toMatch(/backup GPT is used/);
    }
  });

  it('with a damaged backup is read, and says so', async (context) => {
    requirePrograms(context, 'sgdisk');
    const disk = sgdisk();
    disk.fill(0, disk.length - 512);
    const table = await tableOf(disk);
    expect(table!.partitions.length).toBe(3);
    expect(table!.warnings).toEqual([expect.stringMatching(/backup GPT header is damaged/)]);
  });

  it('with neither copy whole has no partitions, and says so', async (context) => {
    requirePrograms(context, 'sgdisk');
    const disk = sgdisk();
    disk.fill(0, 512, 1024);
    disk.fill(0, disk.length - 512);
    expect(await tableOf(disk)).toEqual({
      scheme: 'gpt',
      partitions: [],
      warnings: [expect.stringMatching(/neither copy/)],
    });
  });

  it('that was wiped stays wiped, although its backup is there', async (context) => {
    requirePrograms(context, 'sgdisk');
    const disk = sgdisk();
    disk.fill(0, 0, 34 * 512);
    expect(await tableOf(disk)).toBe(null);
  });

  it('on a disk that was cut off leaves out what is not there', async (context) => {
    requirePrograms(context, 'sgdisk');
    const table = await tableOf(sgdisk().subarray(0, 4 * MIB));
    expect(table!.partitions.map(({ number }) => number)).toEqual([1, 128]);
    expect(table!.warnings.join('\n')).toMatch(/beyond the disk[^]*partition 3 is left out/);
  });

  it('leaves out partitions that overlap, lie outside or run backwards', async (context) => {
    requirePrograms(context, 'sgdisk');
    const entry = (disk: Buffer, index: number): Buffer => disk.subarray(1024 + 128 * index, 1152 + 128 * index);
    const changes: Array<[first: bigint, last: bigint, words: RegExp]> = [
      [3000n, 9000n, /overlaps partition 1/],
      [1n, 100n, /usable are/],
      [82_000n, 90_000n, /usable are/],
      [9000n, 8000n, /usable are/],
      [2n ** 63n, 2n ** 64n - 1n, /usable are/],
    ];
    for (const [first, last, words] of changes) {
      const disk = sgdisk();
      entry(disk, 2).writeBigUInt64LE(first, 32);
      entry(disk, 2).writeBigUInt64LE(last, 40);
      const table = await tableOf(seal(disk));
      expect(table!.partitions.map(({ number }) => number)).toEqual([1, 128]);
      expect(table!.warnings.join()).toMatch(words);
    }
  });

  it('with larger entries is read', async (context) => {
    requirePrograms(context, 'sgdisk');
    const disk = sgdisk();
    const old = disk.subarray(1024, 1024 + 256).map((byte) => byte);
    disk.fill(0, 1024, 34 * 512);
    disk.set(old.subarray(0, 128), 1024);
    disk.set(old.subarray(0, 128), 1024 + 256);
    disk.writeBigUInt64LE(8192n, 1024 + 256 + 32);
    disk.writeBigUInt64LE(8199n, 1024 + 256 + 40);
    disk.writeUInt32LE(64, 512 + 80);
    disk.writeUInt32LE(256, 512 + 84);
    expect(places(await tableOf(seal(disk)))).toEqual([
      [1, 2048, 2048],
      [2, 8192, 8],
    ]);
  });
});

describe('an MBR', () => {
  const extended =
    'label: dos\nstart=2048,size=2048,type=83\nstart=8192,size=65536,type=5\nstart=10240,size=2048,type=82\nstart=14336,size=4096,type=83\n';

  it('made by sfdisk is read, with logical partitions', async (context) => {
    requirePrograms(context, 'sfdisk');
    const table = await tableOf(made('sfdisk', [], extended));
    expect(table).toMatchObject({ scheme: 'mbr', warnings: [] });
    expect(places(table)).toEqual([
      [1, 2048, 2048],
      [5, 10_240, 2048],
      [6, 14_336, 4096],
    ]);
    expect(table!.partitions.map(({ type }) => type)).toEqual(['0x83', '0x82', '0x83']);
  });

  it('with a chain that goes in circles ends, and says so', async (context) => {
    requirePrograms(context, 'sfdisk');
    const disk = made('sfdisk', [], extended);
    const first = 8192 * 512;
    disk.writeUInt32LE(0, first + 462 + 8);
    const table = await tableOf(disk);
    expect(table!.partitions.map(({ number }) => number)).toEqual([1, 5]);
    expect(table!.warnings).toEqual([expect.stringMatching(/goes back/)]);
  });

  it('with a chain that leads nowhere is read up to there, and says so', async (context) => {
    requirePrograms(context, 'sfdisk');
    const good = made('sfdisk', [], extended);
    // The second link, and the place of its partition, counted from it; both in sectors.
    const link = 8192 * 512 + 462 + 8;
    const second = 8192 * 512 + good.readUInt32LE(link) * 512;
    const changes: Array<[change: (disk: Buffer) => void, words: RegExp]> = [
      [(disk) => disk.writeUInt32LE(70_000, link), /lies outside/],
      [(disk) => disk.fill(0, second + 510, second + 512), /there is no boot record/],
      [(disk) => disk.writeUInt32LE(65_536, second + 446 + 12), /partition 6 is left out: it does not lie in its/],
    ];
    for (const [change, words] of changes) {
      const disk = Buffer.from(good);
      change(disk);
      const table = await tableOf(disk);
      expect(table!.partitions.map(({ number }) => number)).toEqual([1, 5]);
      expect(table!.warnings).toEqual([expect.stringMatching(words)]);
    }
  });

  it('is not seen in a boot sector of a file system', async () => {
    const disk = Buffer.alloc(MIB, 0x41);
    disk[510] = 0x55;
    disk[511] = 0xaa;
    expect(await tableOf(disk)).toBe(null);
    expect(await tableOf(Buffer.alloc(512))).toBe(null);
  });
});

describe('whatever a disk holds', () => {
  const check = async (disk: Uint8Array): Promise<void> => {
    const table = await tableOf(disk);
    let end = 0;
    for (const { offset, length } of (table?.partitions ?? []).toSorted((a, b) => a.offset - b.offset)) {
      expect(offset).toBeGreaterThanOrEqual(end);
      end = offset + length;
      expect(end).toBeLessThanOrEqual(disk.length);
    }
  };
  const change = fc.record({ at: fc.nat({ max: 2 * 34 * 512 - 1 }), value: fc.nat({ max: 255 }) });
  const place = (disk: Buffer, at: number): number => (at < 34 * 512 ? at : disk.length - 2 * 34 * 512 + at);

  it('no change of a byte makes it fail, and partitions lie apart in the disk', async (context) => {
    requirePrograms(context, 'sgdisk', 'sfdisk');
    const gpt = sgdisk();
    const mbr = made(
      'sfdisk',
      [],
      'label: dos\nstart=2048,size=2048\nstart=8192,size=65536,type=5\nstart=10240,size=2048\nstart=14336,size=4096\n',
    );
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 8 }), fc.boolean(), async (changes, sealed) => {
        for (const source of [gpt, mbr]) {
          const undo = changes.map(({ at }) => [place(source, at), source[place(source, at)]!] as const);
          const head = Buffer.from(source.subarray(512, 1024));
          for (const { at, value } of changes) source[place(source, at)] = value;
          const length = source.readUInt32LE(512 + 80) * source.readUInt32LE(512 + 84);
          if (sealed && source === gpt && length < MIB) seal(source);
          await check(source);
          head.copy(source, 512);
          for (const [at, value] of undo.toReversed()) source[at] = value;
        }
      }),
      { numRuns: 150 },
    );
  });

  it('noise behind the signatures neither', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ minLength: 4096, maxLength: 8192, size: 'max' }), async (noise) => {
        const disk = Buffer.from(noise.subarray(0, noise.length - (noise.length % 512)));
        disk[510] = 0x55;
        disk[511] = 0xaa;
        for (const at of [446, 462, 478, 494]) disk[at]! &= 0x80;
        await check(disk);
        disk.write('EFI PART', 512, 'latin1');
        disk.writeUInt32LE(92, 512 + 12);
        disk.writeBigUInt64LE(1n, 512 + 24);
        disk.writeUInt32LE(0, 512 + 16);
        disk.writeUInt32LE(crc32(disk.subarray(512, 512 + 92)), 512 + 16);
        await check(disk);
      }),
      { numRuns: 100 },
    );
  });
});
