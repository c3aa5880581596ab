/** The demo's load, a process of its own: writes to a disk through NBD until it is told to end, and measures
 *  how long each write takes. 4 KiB at queue depth 1, ten writes every 10 ms; nine of ten fall into an eighth of the
 *  database, as they do in real ones.
 *
 *      node writer.mjs URI PLACES        PLACES: JSON, [{ offset, length }, …]
 *
 *  Messages in: { phase: NAME }, { end: true }. Messages out: { ready: true }, and at the end { phases } with the
 *  latencies of each phase. */

import { setTimeout as sleep } from 'node:timers/promises';

import { connect } from './nbd.mjs';

const WRITE_BYTES = 4096;
const BURST = 10;
const PAUSE_MS = 10;
const HOT_SHARE = 1 / 8;
const HOT_WRITES = 0.9;

const [uri = '', places = '[]'] = process.argv.slice(2);
/** @type {number[]} */
const blocks = JSON.parse(places).flatMap((/** @type {{ offset: number, length: number }} */ { offset, length }) =>
  Array.from({ length: length / WRITE_BYTES }, (_, index) => offset + index * WRITE_BYTES),
);
/** Latencies in microseconds by phase. @type {Map<string, number[]>} */
const phases = new Map();
let phase = 'start';
let ending = false;

process.on('message', (/** @type {{ phase?: string, end?: boolean }} */ message) => {
  phase = message.phase ?? phase;
  ending ||= message.end === true;
});

/** @param {number[]} list */
function summary(list) {
  const sorted = list.toSorted((a, b) => a - b);
  const at = (/** @type {number} */ share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  return { writes: sorted.length, p50Us: at(0.5), p99Us: at(0.99), maxUs: sorted.at(-1) };
}

const disk = await connect(uri);
const data = Buffer.alloc(WRITE_BYTES);
process.send?.({ ready: true });
for (let count = 0; !ending; count++) {
  const hot = Math.random() < HOT_WRITES ? HOT_SHARE : 1;
  const offset = blocks[Math.floor(Math.random() * blocks.length * hot)] ?? 0;
  data.fill(count & 0xff);
  data.writeDoubleLE(count);
  const list = phases.get(phase) ?? [];
  phases.set(phase, list);
  const begun = performance.now();
  await disk.write(offset, data);
  list.push((performance.now() - begun) * 1000);
  if (count % BURST === BURST - 1) await sleep(PAUSE_MS);
}
await disk.close();
process.send?.({ phases: Object.fromEntries([...phases].map(([name, list]) => [name, summary(list)])) });
process.disconnect?.();
