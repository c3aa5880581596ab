/** The reactor contract, part four: commands to devices. Of devices that take any, /dev/null is always there: it answers
 *  every command with 0 (Linux 6.1 and newer). */

import fs from 'node:fs';
import { expect, it } from 'vitest';
import { ERRNO } from '../../src/util/errors.ts';
import { endsLater, reactorBench } from './reactor-bench.ts';
import type { OpenReactor } from './reactor-bench.ts';

/** More than a ring has entries. */
const MANY = 3000;

export function commandContract(open: OpenReactor): void {
  const bench = reactorBench(open);
  const argument = Uint32Array.of(1, 2, 3, 4);

  it('is told of a device without commands', async () => {
    const { reactor, file } = bench();
    const fd = file('a');
    expect(await endsLater((c) => reactor.command(fd, 0xc0107520, argument, c))).toBe(-ERRNO.EOPNOTSUPP);
  });

  it('does not count them as under way, and ends each once', async () => {
    const { reactor } = bench();
    const fd = fs.openSync('/dev/null', 'r+');
    const wanted = reactor.driver === 'uring' ? 0 : -ERRNO.EOPNOTSUPP;
    const ends: number[] = [];
    await new Promise<void>((resolve) => {
      const complete = (result: number): void => {
        ends.push(result);
        if (ends.length === MANY) resolve();
      };
      for (let i = 0; i < MANY; i++) reactor.command(fd, i, argument, { complete });
      if (reactor.driver === 'uring') expect(reactor.inFlight).toBe(0);
    });
    expect(new Set(ends)).toEqual(new Set([wanted]));
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(ends).toHaveLength(MANY);
    fs.closeSync(fd);
  });

  it('keeps them apart from reads that go on beside them', async () => {
    const { reactor, memory, bytes, file, run } = bench();
    const fd = fs.openSync('/dev/null', 'r+');
    const content = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);
    const source = file('a', content);
    const at = memory(4096);
    const commands = Array.from({ length: 50 }, () => run((c) => reactor.command(fd, 7, argument, c)));
    expect(await run((c) => reactor.read(source, at, 4096, 0, c))).toBe(4096);
    expect(bytes(at, 4096)).toEqual(content);
    await Promise.all(commands);
    fs.closeSync(fd);
  });
}
