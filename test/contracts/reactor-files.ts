/** The reactor contract, part one: files. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { onTmpfs } from '../../src/io/files.ts';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_RESERVE, ALLOCATE_ZERO_RANGE } from '../../src/io/reactor.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { GIB, KIB, MIB } from '../../src/util/units.ts';
import { endsLater, reactorBench } from './reactor-bench.ts';
import type { OpenReactor } from './reactor-bench.ts';
import { requirePrograms } from '../requirements.ts';

const pattern = (length: number, seed = 7): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * seed + (i >> 8)) & 0xff);

export function fileContract(open: OpenReactor): void {
  describe('files', () => {
    const bench = reactorBench(open);

    it('reads what lies at an offset', async () => {
      const { reactor, memory, bytes, file, run } = bench();
      const content = pattern(3 * 4096);
      const fd = file('a', content);
      const at = memory(8192);
      expect(await run((c) => reactor.read(fd, at, 8192, 512, c))).toBe(8192);
      expect(bytes(at, 8192)).toEqual(content.subarray(512, 512 + 8192));
    });

    it('reports a short read at the end, and 0 past it', async () => {
      const { reactor, memory, bytes, file, run } = bench();
      const fd = file('a', pattern(1000));
      const at = memory(4096);
      bytes(at, 4096).fill(0xee);
      expect(await run((c) => reactor.read(fd, at, 4096, 900, c))).toBe(100);
      expect(bytes(at, 101)[100]).toBe(0xee);
      expect(await run((c) => reactor.read(fd, at, 4096, 1000, c))).toBe(0);
      expect(await run((c) => reactor.read(fd, at, 4096, 5000, c))).toBe(0);
    });

    it('writes beyond 4 GiB', async () => {
      const { reactor, dir, memory, bytes, file, run } = bench();
      const fd = file('sparse');
      const offset = 5 * GIB + 512;
      const at = memory(512);
      bytes(at, 512).set(pattern(512));
      expect(await run((c) => reactor.write(fd, at, 512, offset, false, c))).toBe(512);
      expect(fs.statSync(path.join(dir, 'sparse')).size).toBe(offset + 512);
      bytes(at, 512).fill(0);
      expect(await run((c) => reactor.read(fd, at, 512, offset, c))).toBe(512);
      expect(bytes(at, 512)).toEqual(pattern(512));
      const low = Buffer.alloc(512);
      fs.readSync(fd, low, 0, 512, offset % 2 ** 32);
      expect(low.every((byte) => byte === 0)).toBe(true);
    });

    it('reads and writes what is cached, small and large, never before the call returned', async () => {
      const { reactor, memory, bytes, file, run } = bench();
      const fd = file('cached', pattern(1000));
      const at = memory(1024 * 1024);
      for (const length of [512, 4096, 1024 * 1024]) {
        bytes(at, length).set(pattern(length));
        let returned = false;
        const write = run((c) => {
          reactor.writeCached(fd, at, length, 4096, {
            complete(result) {
              expect(returned).toBe(true);
              c.complete(result);
            },
          });
          returned = true;
        });
        expect(reactor.inFlight).toBe(1);
        expect(await write).toBe(length);
        bytes(at, length).fill(0);
        expect(await run((c) => reactor.readCached(fd, at, length, 4096, c))).toBe(length);
        expect(Buffer.compare(bytes(at, length), pattern(length))).toBe(0);
      }
      expect(await run((c) => reactor.readCached(fd, at, 4096, 4096 + 1024 * 1024 - 100, c))).toBe(100);
      expect(await run((c) => reactor.writeCached(-1, at, 512, 0, c))).toBe(-ERRNO.EBADF);
    });

    it('reads what is in the page cache, what is not, and what is in part', async (context) => {
      requirePrograms(context, 'dd', 'fincore');
      const { reactor, dir, memory, bytes, file } = bench();
      context.skip(onTmpfs(dir), 'needs a file system on a disk: TMPDIR is in memory');
      const content = pattern(8 * MIB + 100);
      const fd = file('a', content);
      fs.fsyncSync(fd);
      const at = memory(128 * KIB);
      const reads = async (offset: number, length: number): Promise<void> => {
        bytes(at, length).fill(0xee);
        const wanted = content.subarray(offset, offset + length);
        expect(await endsLater((c) => void reactor.readIfCached(fd, at, length, offset, c))).toBe(wanted.length);
        expect(Buffer.compare(bytes(at, wanted.length), wanted)).toBe(0);
      };
      const resident = (): number =>
        Number(execFileSync('fincore', ['--bytes', '--noheadings', '--output', 'RES', path.join(dir, 'a')]));
      const forget = (): void => {
        execFileSync('dd', [`if=${path.join(dir, 'a')}`, 'iflag=nocache', 'count=0', 'status=none']);
        expect(resident()).toBe(0);
      };
      await reads(4096, 4096);
      await reads(512, 128 * KIB);
      await reads(8 * MIB, 4096); // The end: 100 bytes.
      for (const length of [512, 4096, 128 * KIB]) {
        forget();
        await reads(MIB, length);
        await reads(MIB, length);
      }
      forget();
      fs.readSync(fd, Buffer.alloc(4096), 0, 4096, 0); // And what the kernel reads ahead.
      const known = resident();
      expect(known).toBeLessThan(8 * MIB);
      await reads(known - 4096, 64 * KIB);
    });

    it('reads a file that has no page cache, and says so', async () => {
      const { reactor, memory, bytes } = bench();
      const fd = fs.openSync('/proc/version', 'r');
      const at = memory(4096);
      const content = fs.readFileSync('/proc/version');
      let again = true;
      expect(await endsLater((c) => (again = reactor.readIfCached(fd, at, 4096, 0, c)))).toBe(content.length);
      expect([again, Buffer.compare(bytes(at, content.length), content)]).toEqual([false, 0]);
      fs.closeSync(fd);
    });

    it('gives others a turn beside cached writes that follow each other without a pause', async () => {
      const { reactor, memory, file, run } = bench();
      const fd = file('a');
      const at = memory(4096);
      let fired = false;
      void run((c) => void reactor.timer(1, c)).then(() => (fired = true));
      const limit = performance.now() + 2000;
      while (!fired && performance.now() < limit) await run((c) => reactor.writeCached(fd, at, 4096, 0, c));
      expect(fired).toBe(true);
    });

    it('writes durably', async () => {
      const { reactor, dir, memory, bytes, file, run } = bench();
      const fd = file('a');
      const at = memory(4096);
      bytes(at, 4096).fill(0x5a);
      expect(await run((c) => reactor.write(fd, at, 4096, 4096, true, c))).toBe(4096);
      expect(
        fs
          .readFileSync(path.join(dir, 'a'))
          .subarray(4096)
          .every((byte) => byte === 0x5a),
      ).toBe(true);
      expect(await run((c) => reactor.sync(fd, c))).toBe(0);
    });

    it('gathers segments into one write, in order', async () => {
      const { reactor, dir, memory, bytes, file, run } = bench();
      const fd = file('a', new Uint8Array(4096));
      const [a, b, c] = [memory(4096), memory(4096), memory(4096)];
      bytes(a, 100).fill(1);
      bytes(b, 4096).fill(2);
      bytes(c, 3).fill(3);
      const segments = Float64Array.of(b, 4096, a, 100, c, 3, a, 100);
      expect(await run((done) => reactor.writeGather(fd, segments, 4, 10, done))).toBe(4299);
      const written = fs.readFileSync(path.join(dir, 'a')).subarray(10);
      expect([
        written[0],
        written[4095],
        written[4096],
        written[4195],
        written[4196],
        written[4199],
        written[4298],
      ]).toEqual([2, 2, 1, 1, 3, 1, 1]);
      expect(written.length).toBe(4299);
    });

    it('scatters one read over segments, in order, and says how much there was', async () => {
      const { reactor, memory, bytes, file, run } = bench();
      const data = pattern(300_000);
      const fd = file('a', data);
      const at = memory(512 * 1024);
      for (const cached of [false, true]) {
        // The longer one is not read at once.
        for (const [first, second] of [
          [5000, 100],
          [100_000, 100_000],
        ] as const) {
          bytes(at, 512 * 1024).fill(0xee);
          const segments = Float64Array.of(at + 4096, 0, at + 256 * 1024, first, at + 3, second);
          const [count, total] = [3, first + second];
          expect(await run((c) => reactor.readScatter(fd, { segments, count }, 10, cached, c))).toBe(total);
          expect(Buffer.compare(bytes(at + 256 * 1024, first), data.subarray(10, 10 + first))).toBe(0);
          expect(Buffer.compare(bytes(at + 3, second), data.subarray(10 + first, 10 + total))).toBe(0);
          expect([bytes(at, 3)[2], bytes(at + 3 + second, 1)[0], bytes(at + 256 * 1024 + first, 1)[0]]).toEqual([
            0xee, 0xee, 0xee,
          ]);
          const end = data.length - first - 1;
          expect(await run((c) => reactor.readScatter(fd, { segments, count }, end, cached, c))).toBe(first + 1);
          expect(bytes(at + 3, 1)[0]).toBe(data.at(-1));
        }
        const none = { segments: Float64Array.of(at, 512), count: 1 };
        expect(await run((c) => reactor.readScatter(-1, none, 0, cached, c))).toBe(-ERRNO.EBADF);
      }
    });

    it('gathers 1024 segments', async () => {
      const { reactor, dir, memory, bytes, file, run } = bench();
      const fd = file('a');
      const at = memory(1024 * 512);
      bytes(at, 1024 * 512).set(pattern(1024 * 512));
      const segments = new Float64Array(2048);
      for (let i = 0; i < 1024; i++) segments.set([at + (1023 - i) * 512, 512], i * 2);
      expect(await run((c) => reactor.writeGather(fd, segments, 1024, 0, c))).toBe(1024 * 512);
      const written = fs.readFileSync(path.join(dir, 'a'));
      for (const i of [0, 1, 500, 1023]) {
        expect(written.subarray(i * 512, i * 512 + 512).equals(bytes(at + (1023 - i) * 512, 512))).toBe(true);
      }
    });

    it('keeps many operations under way apart', async () => {
      const { reactor, memory, bytes, file, run } = bench();
      const fd = file('a', new Uint8Array(MIB));
      const at = memory(MIB);
      for (let i = 0; i < 256; i++) bytes(at + i * 4096, 4096).fill(i);
      const writes = Array.from({ length: 256 }, (_, i) =>
        run((c) => reactor.write(fd, at + i * 4096, 4096, (255 - i) * 4096, false, c)),
      );
      expect(reactor.inFlight).toBe(256);
      expect(new Set(await Promise.all(writes))).toEqual(new Set([4096]));
      expect(reactor.inFlight).toBe(0);
      expect(await run((c) => reactor.read(fd, at, MIB, 0, c))).toBe(MIB);
      for (let i = 0; i < 256; i++) expect(bytes(at, MIB)[i * 4096 + 17]).toBe(255 - i);
    });

    it('takes a completion that starts the next operation', async () => {
      const { reactor, memory, file, run } = bench();
      const fd = file('a', new Uint8Array(64 * KIB));
      const at = memory(4096);
      let left = 2000;
      const end = await run((done) => {
        const chain = {
          complete(result: number): void {
            if (result !== 4096 || --left === 0) done.complete(result);
            else reactor.read(fd, at, 4096, (left % 16) * 4096, chain);
          },
        };
        reactor.read(fd, at, 4096, 0, chain);
      });
      expect([end, left]).toEqual([4096, 0]);
    });

    it('punches holes, zeroes ranges and reserves space', async () => {
      const { reactor, dir, file, run } = bench();
      const fd = file('a', pattern(MIB));
      const blocks = (): number => fs.statSync(path.join(dir, 'a')).blocks;
      const before = blocks();
      const punched = await run((c) => reactor.allocate(fd, ALLOCATE_PUNCH_HOLE, 64 * KIB, 256 * KIB, c));
      if (punched === -ERRNO.EOPNOTSUPP) return;
      expect(punched).toBe(0);
      expect(blocks()).toBeLessThan(before);
      const zeroed = await run((c) => reactor.allocate(fd, ALLOCATE_ZERO_RANGE, 512 * KIB, 4096, c));
      expect([0, -ERRNO.EOPNOTSUPP]).toContain(zeroed);
      const content = fs.readFileSync(path.join(dir, 'a'));
      const wanted = pattern(MIB);
      wanted.fill(0, 64 * KIB, 320 * KIB);
      if (zeroed === 0) wanted.fill(0, 512 * KIB, 516 * KIB);
      expect(content.equals(wanted)).toBe(true);
      expect(await run((c) => reactor.allocate(fd, ALLOCATE_RESERVE, MIB, MIB, c))).toBe(0);
      expect(fs.statSync(path.join(dir, 'a')).size).toBe(2 * MIB);
    });

    it('closes a file, never before the call returned', async () => {
      const { reactor, dir, file, run } = bench();
      file('a', pattern(512));
      const closed = fs.openSync(path.join(dir, 'a'), 'r');
      const link = `/proc/self/fd/${closed}`;
      const there = fs.readlinkSync(link);
      expect(await endsLater((c) => reactor.closeFile(closed, c))).toBe(0);
      expect(fs.existsSync(link) && fs.readlinkSync(link) === there).toBe(false);
      for (const fd of [-1, 999_999]) expect(await run((c) => reactor.closeFile(fd, c))).toBe(-ERRNO.EBADF);
    });

    // What it says of a device that fails: test/kernel/uml/failing-storage.test.ts.
    it('knows of no lost data where none was', async () => {
      const { reactor, dir, memory, run } = bench();
      const fd = fs.openSync(path.join(dir, 'kept'), 'w+');
      expect(await run((c) => reactor.write(fd, memory(4096), 4096, 0, false, c))).toBe(4096);
      expect(reactor.writebackError(fd)).toBe(0);
      fs.closeSync(fd);
      expect([-ERRNO.EBADF, 0]).toContain(reactor.writebackError(-1));
    });

    it('ends operations on a bad descriptor with EBADF', async () => {
      const { reactor, memory, run } = bench();
      const at = memory(4096);
      const segments = Float64Array.of(at, 512);
      for (const fd of [-1, 999_999]) {
        expect(await run((c) => reactor.read(fd, at, 512, 0, c))).toBe(-ERRNO.EBADF);
        expect(await run((c) => void reactor.readIfCached(fd, at, 512, 0, c))).toBe(-ERRNO.EBADF);
        expect(await run((c) => reactor.write(fd, at, 512, 0, false, c))).toBe(-ERRNO.EBADF);
        expect(await run((c) => reactor.write(fd, at, 512, 0, true, c))).toBe(-ERRNO.EBADF);
        expect(await run((c) => reactor.writeGather(fd, segments, 1, 0, c))).toBe(-ERRNO.EBADF);
        expect(await run((c) => reactor.sync(fd, c))).toBe(-ERRNO.EBADF);
        expect([-ERRNO.EBADF, -ERRNO.EOPNOTSUPP]).toContain(
          await run((c) => reactor.allocate(fd, ALLOCATE_RESERVE, 0, 512, c)),
        );
      }
    });

    it('refuses to write to a descriptor opened for reading', async () => {
      const { reactor, dir, memory, file, run } = bench();
      file('a', pattern(512));
      const fd = fs.openSync(path.join(dir, 'a'), 'r');
      const at = memory(512);
      expect(await run((c) => reactor.write(fd, at, 512, 0, false, c))).toBe(-ERRNO.EBADF);
      fs.closeSync(fd);
      expect(fs.readFileSync(path.join(dir, 'a')).equals(pattern(512))).toBe(true);
    });

    it('never completes before the starting call returns', async () => {
      const { reactor, memory, file } = bench();
      const fd = file('a', pattern(4096));
      const at = memory(4096);
      const segments = Float64Array.of(at, 512);
      expect(await endsLater((c) => reactor.read(fd, at, 512, 0, c))).toBe(512);
      expect(await endsLater((c) => reactor.read(-1, at, 512, 0, c))).toBe(-ERRNO.EBADF);
      expect(await endsLater((c) => reactor.write(fd, at, 512, 0, true, c))).toBe(512);
      expect(await endsLater((c) => reactor.writeGather(fd, segments, 1, 0, c))).toBe(512);
      expect(await endsLater((c) => reactor.beginWriteback(fd, 0, 512, c))).toBe(0);
      expect(await endsLater((c) => reactor.sync(fd, c))).toBe(0);
      await endsLater((c) => reactor.allocate(fd, ALLOCATE_RESERVE, 0, 512, c));
      await endsLater((c) => void reactor.timer(0, c));
    });
  });
}
