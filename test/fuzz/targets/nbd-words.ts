/** What hostile NBD clients say, from the protocol's grammar: handshakes, options, requests with every style of header. */

import { Message } from '../../../src/nbd/wire.ts';
import { KIB, MIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';

const NAMES = ['victim', 'fixed', '', 'none', 'x'.repeat(4097)];
const QUERIES = ['base:allocation', 'base:', 'test:stripes', 'test:', 'qemu:', '', 'z'.repeat(300)];
const OPTIONS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99];
const OPTION_STRUCTURED = 8;
const OPTION_GO = 7;
const OPTION_EXTENDED = 11;
const WRITE = 1;
const BLOCK_STATUS = 7;
const PAYLOAD_FLAG = 32;

function option(number: number, data: Message, length = data.bytes.length): Message {
  return new Message().text('IHAVEOPT').u32(number).u32(length).raw(data.bytes);
}

function anyOption(draw: Draw): Message {
  const number = draw.one(OPTIONS);
  const data = new Message();
  if (number === 6 || number === 7) {
    const asked = draw.list(4, () => draw.below(5));
    data.counted(draw.one(NAMES)).u16(draw.chance(0.9) ? asked.length : draw.one([0, 1, 0xffff]));
    for (const one of asked) data.u16(one);
  } else if (number === 9 || number === 10) {
    const queries = draw.list(4, () => draw.one(QUERIES));
    data.counted(draw.one(NAMES)).u32(draw.chance(0.9) ? queries.length : draw.one(EDGES));
    for (const query of queries) data.counted(query);
  } else if (draw.chance(0.2)) data.raw(draw.noise(draw.below(64)));
  return option(number, data, draw.chance(0.1) ? draw.one(EDGES) : data.bytes.length);
}

function request(draw: Draw, diskBytes: number, extended: boolean): Message {
  const command = draw.below(10);
  const length = draw.chance(0.3) ? draw.one(EDGES) : 512 * draw.between(1, 256);
  const far = draw.one(EDGES) * draw.one([1, MIB, 2 ** 32]);
  const offset = draw.chance(0.2) ? far : 512 * draw.below(diskBytes / 512);
  const byPayload = extended && command === BLOCK_STATUS && draw.chance(0.5);
  const hasPayload = command === WRITE || byPayload;
  let flags = draw.chance(0.7) ? 0 : draw.below(64);
  if (extended && hasPayload && draw.chance(0.9)) flags |= PAYLOAD_FLAG;
  const message = new Message()
    .u32(extended ? 0x21e41c71 : 0x25609513)
    .u16(flags)
    .u16(command)
    .u64(draw.below(1000))
    .u64(offset);
  const ids = byPayload ? draw.list(3, () => draw.below(4)) : [];
  const announced = byPayload ? 8 + 4 * ids.length : length;
  if (extended) message.u64(draw.chance(0.95) ? announced : draw.one(EDGES));
  else message.u32(announced);
  if (byPayload) {
    message.u64(length);
    for (const id of ids) message.u32(id);
  } else if (command === WRITE && draw.chance(0.9))
    message.raw(new Uint8Array(Math.min(length, 256 * KIB)).fill(command));
  return message;
}

/** All that one client sends, before it listens. */
export function conversation(draw: Draw, diskBytes: number): Uint8Array {
  const parts = [new Message().u32(draw.chance(0.95) ? draw.one([1, 3]) : draw.below(256))];
  parts.push(...draw.list(3, () => anyOption(draw)));
  const extended = draw.chance(0.4);
  if (draw.chance(0.9)) {
    const style = extended ? OPTION_EXTENDED : draw.chance(0.5) ? OPTION_STRUCTURED : null;
    if (style !== null) parts.push(option(style, new Message()));
    const name = draw.one(['victim', 'victim', 'fixed']);
    if (style !== null && draw.chance(0.7)) {
      const queries = draw.list(3, () => draw.one(['base:allocation', 'test:stripes', 'test:none']));
      const data = new Message().counted(name).u32(queries.length);
      for (const query of queries) data.counted(query);
      parts.push(option(10, data));
    }
    parts.push(option(OPTION_GO, new Message().counted(name).u16(0)));
  }
  parts.push(...draw.list(30, () => request(draw, diskBytes, extended)));
  return Buffer.concat(parts.map(({ bytes }) => bytes));
}
