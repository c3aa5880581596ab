/** The demo's load, a process of its own: writes to a disk through NBD until it is told to end, and measures
 *  how long each write takes. 4 KiB at queue depth 1, ten writes every 10 ms; nine of ten fall into an
 *  eighth of the database, as they do in real ones.
 *
 *      writer.ts URI PLACES        PLACES: JSON, [{ offset, length }, …]
 *
 *  Messages in: { phase }, { end }. Messages out: { ready } when connected, { phases } at the end. */

import { setTimeout as sleep } from 'node:timers/promises';

import { Prng } from '../src/util/prng.ts';
import type { ByteRange } from './disk.ts';
import { latencyOf } from './latency.ts';
import type { Latency } from './latency.ts';
import { connect } from './nbd.ts';

export type ToWriter = { readonly phase: string } | { readonly end: true };
export type FromWriter = { readonly ready: true } | { readonly phases: Readonly<Record<string, Latency>> };

const SEED = 1;
const WRITE_BYTES = 4096;
const BURST = 10;
const PAUSE_MS = 10;
const HOT_SHARE = 1 / 8;
const HOT_WRITES = 0.9;

const [uri = '', places = '[]'] = process.argv.slice(2);
const offsets = (JSON.parse(places) as ByteRange[]).flatMap(({ offset, length }) =>
  Array.from({ length: length / WRITE_BYTES }, (_, index) => offset + index * WRITE_BYTES),
);
const random = new Prng(SEED);
const samplesUs = new Map<string, number[]>();
let phase = 'start';
let ending = false;

process.on('message', (message: ToWriter) => {
  if ('phase' in message) phase = message.phase;
  else ending = true;
});
// Whoever started us is gone: there is no one left to tell.
process.on('disconnect', () => process.exit(1));

function tell(message: FromWriter): void {
  process.send?.(message);
}

const disk = await connect(uri);
const data = Buffer.alloc(WRITE_BYTES);
tell({ ready: true });
for (let count = 0; !ending; count++) {
  const offset = offsets[random.below(random.chance(HOT_WRITES) ? offsets.length * HOT_SHARE : offsets.length)]!;
  data.fill(count & 0xff);
  data.writeDoubleLE(count);
  const list = samplesUs.get(phase) ?? [];
  samplesUs.set(phase, list);
  const begun = performance.now();
  await disk.write(offset, data);
  list.push((performance.now() - begun) * 1000);
  if (count % BURST === BURST - 1) await sleep(PAUSE_MS);
}
await disk.close();
tell({ phases: Object.fromEntries([...samplesUs].map(([name, list]) => [name, latencyOf(list)])) });
process.removeAllListeners('disconnect');
process.disconnect();
