/** What the reactor contract's tests share: one reactor and one directory per test, and a count at the end
 *  of what was not given back. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect } from 'vitest';
import type { Completion, Reactor } from '../../src/io/reactor.ts';
import { completed } from '../../src/io/reactor.ts';

export type OpenReactor = () => Promise<Reactor>;

export interface Bench {
  readonly reactor: Reactor;
  readonly dir: string;
  /** Arena memory for the test, given back at its end. */
  memory(length: number): number;
  bytes(at: number, length: number): Uint8Array;
  /** A file of the test's directory; its descriptor is closed at the end. */
  file(name: string, content?: Uint8Array): number;
  run(start: (completion: Completion) => void): Promise<number>;
}

export function openDescriptors(): number {
  return fs.readdirSync('/proc/self/fd').length;
}

/** Registers set-up and clean-up; the returned getter gives the running test's bench. */
export function reactorBench(open: OpenReactor): () => Bench {
  let bench: Bench & { finish(): Promise<void> };
  let descriptorsBefore = 0;
  beforeEach(async () => {
    descriptorsBefore = openDescriptors();
    bench = await makeBench(open);
  });
  afterEach(async () => {
    await bench.finish();
    // Node closes some descriptors a turn later.
    await expect.poll(openDescriptors, { interval: 5 }).toBeLessThanOrEqual(descriptorsBefore);
  });
  return () => bench;
}

async function makeBench(open: OpenReactor): Promise<Bench & { finish(): Promise<void> }> {
  const reactor = await open();
  const { arena } = reactor;
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-reactor-'));
  const places: number[] = [];
  const files: number[] = [];
  return {
    reactor,
    dir,
    memory(length) {
      const at = arena.allocate(length);
      expect(at).toBeGreaterThanOrEqual(0);
      places.push(at);
      return at;
    },
    bytes: (at, length) => arena.bytes.subarray(at, at + length),
    file(name, content = new Uint8Array(0)) {
      const file = path.join(dir, name);
      fs.writeFileSync(file, content);
      const fd = fs.openSync(file, 'r+');
      files.push(fd);
      return fd;
    },
    run: completed,
    async finish() {
      for (const at of places) arena.release(at);
      for (const fd of files) fs.closeSync(fd);
      await expect.poll(() => reactor.inFlight, { interval: 1 }).toBe(0);
      await expect.poll(() => arena.lentBytes, { interval: 1 }).toBe(0);
      await reactor.close();
      fs.rmSync(dir, { recursive: true });
    },
  };
}

/** Starts an operation and says whether it ended before the starting call returned. */
export async function endsLater(start: (completion: Completion) => void): Promise<number> {
  let returned = false;
  const result = await completed((completion) => {
    start({
      complete(value) {
        expect(returned).toBe(true);
        completion.complete(value);
      },
    });
    returned = true;
  });
  return result;
}
