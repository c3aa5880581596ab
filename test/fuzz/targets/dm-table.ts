/** Tables of mapped devices: text from the API. Either an error with the reason, or targets that say the same table again. */

import { BioPool } from '../../../src/block/bio.ts';
import { MemoryDevice } from '../../../src/block/memory-device.ts';
import { formatTable, parseTable, splitWords } from '../../../src/dm/table.ts';
import { makeTarget } from '../../../src/dm/target-types.ts';
import { openReactor } from '../../../src/io/open.ts';
import type { Reactor } from '../../../src/io/reactor.ts';
import { assert } from '../../../src/util/assert.ts';
import { BlksnapError } from '../../../src/util/errors.ts';
import { MIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

class TableSubject implements FuzzSubject {
  readonly #reactor: Reactor;
  readonly #pool = new BioPool();
  readonly #device: MemoryDevice;

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
    this.#device = new MemoryDevice('vm', MIB, reactor.arena);
  }

  async run(input: Uint8Array): Promise<void> {
    const text = Buffer.from(input).toString();
    try {
      const table = parseTable(text);
      const again = parseTable(formatTable(table));
      assert(JSON.stringify(again) === JSON.stringify(table), 'a table that is written is the one that was read');
      for (const line of table) this.#make(line);
    } catch (cause) {
      if (!(cause instanceof BlksnapError)) throw cause;
    }
  }

  #make(line: ReturnType<typeof parseTable>[number]): void {
    const target = makeTarget(line, { reactor: this.#reactor, pool: this.#pool });
    try {
      for (const { offset, length } of target.ports)
        assert(Number.isSafeInteger(offset + length) && offset >= 0 && length > 0, 'a port is a range');
      assert(target.runAt(0) >= 1, 'a bio may have a byte');
      for (const port of target.ports) port.device = this.#device;
      target.status();
      const said = parseTable(`${line.start} ${line.length} ${target.type} ${target.table()}`);
      makeTarget(said[0]!, { reactor: this.#reactor, pool: this.#pool }).close();
      for (const words of [line.args, splitWords(line.args.join(' '))]) this.#tell(target, words);
    } finally {
      target.close();
    }
  }

  #tell(target: ReturnType<typeof makeTarget>, words: readonly string[]): void {
    try {
      target.message(words);
    } catch (cause) {
      if (!(cause instanceof BlksnapError)) throw cause;
    }
  }

  async close(): Promise<void> {
    assert(this.#reactor.arena.lentBytes === 0 && this.#pool.lent === 0, 'nothing is left of any target');
    await this.#reactor.close();
  }
}

const NAMES = ['vm', '/dev/sda', 'a\\ b', '\\', 'x\\', '#', '-1', '\u2028', '__proto__', '0'];
const TARGETS = ['linear', 'striped', 'mirror', 'zero', 'error', 'delay', 'flakey', 'dust', 'none', 'constructor'];

function word(draw: Draw): string {
  switch (draw.below(4)) {
    case 0:
      return String(draw.one(EDGES));
    case 1:
      return draw.one(NAMES);
    case 2:
      return draw.one([
        'core',
        'disk',
        '1',
        '2',
        '3',
        'corrupt_bio_byte',
        'drop_writes',
        'error_writes',
        'r',
        'w',
        'enable',
      ]);
    default:
      return String(draw.below(20));
  }
}

function args(draw: Draw, target: string): string {
  const port = (): string => `${draw.one(NAMES)} ${draw.one([0, 8, ...EDGES])}`;
  switch (draw.chance(0.6) ? target : '') {
    case 'linear':
      return port();
    case 'striped':
      return `${draw.one([1, 2, 3, 0xffff_ffff])} ${draw.one([8, 16, 0, 7, ...EDGES])} ${draw.list(3, port).join(' ')}`;
    case 'mirror':
      return `core ${draw.one(['1 1024', '2 1024 nosync', '1 0'])} ${draw.between(0, 3)} ${draw.list(3, port).join(' ')}`;
    case 'delay':
      return `${port()} ${draw.one(EDGES)} ${draw.chance(0.5) ? `${port()} ${draw.below(9)}` : ''}`;
    case 'flakey':
      return `${port()} ${draw.below(4)} ${draw.below(4)} ${draw.list(6, () => word(draw)).join(' ')}`;
    case 'dust':
      return `${port()} ${draw.one([512, 4096, ...EDGES])}`;
    default:
      return draw.list(8, () => word(draw)).join(' ');
  }
}

function generate(draw: Draw): Uint8Array {
  let start = 0;
  const lines = draw.list(6, () => {
    const length = draw.chance(0.9) ? 8 * draw.between(1, 64) : draw.one(EDGES);
    const target = draw.one(TARGETS);
    const line = `${draw.chance(0.95) ? start : word(draw)} ${length} ${target} ${args(draw, target)}`;
    start += length;
    return line;
  });
  return Buffer.from(lines.join(draw.chance(0.9) ? '\n' : draw.one([' ', '\r\n', '\\\n', '\n\n#\n'])));
}

export const dmTable: FuzzTarget = {
  name: 'dm-table',
  generate,
  open: async () => new TableSubject(await openReactor({ arenaBytes: MIB, cooperative: true })),
};
