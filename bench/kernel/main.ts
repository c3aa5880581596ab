/** `npm run bench -- --kernel uml|qemu [--rounds N] [--seconds S]`: block devices of the kernel beside each other, in one
 *  run of one kernel: a RAM disk, dm-snapshot over one, and ours over one. In turns, round by round; ratios are taken within
 *  a round. Prints a table for docs/kernel.md. Runs inside the machine that scripts/bench.mjs starts. */

import fs from 'node:fs';
import os from 'node:os';
import { readCommandLine } from '../../scripts/command-line.mjs';
import { withDaemon } from '../blksnap-server.ts';
import type { Daemon } from '../blksnap-server.ts';
import { runFio } from '../fio.ts';
import type { Sample, Series } from '../measurement.ts';
import { pairedRatios, spreadOf, valuesOf } from '../statistics.ts';
import { written } from '../table.ts';
import {
  dmSnapshot,
  EMULATED,
  loadUblk,
  makeRamDisks,
  MEASURED_BYTES,
  ours,
  overwriteAll,
  rawDevice,
  WARM_UP_BYTES,
} from './contenders.ts';
import type { Contender } from './contenders.ts';
import { WORKLOADS } from './workloads.ts';
import type { State, Workload } from './workloads.ts';

const RAM_DISKS = 5;
const WARM_UP_MS = 300;
/** All that a snapshot saves, at once: what is reserved on tmpfs takes memory. */
const STORAGE = ['--storage-portion', `${MEASURED_BYTES / 2 ** 20 + 32}M`];
const RANGE = { offset: 0, length: MEASURED_BYTES };
const WARM_UP_RANGE = { offset: MEASURED_BYTES, length: WARM_UP_BYTES };

const { values } = readCommandLine(import.meta.filename, {
  options: { rounds: { type: 'string', default: '3' }, seconds: { type: 'string', default: '1' } },
});
const workloads = WORKLOADS.filter(({ emulated }) => emulated || !EMULATED);
const rounds = Number(values.rounds);
const runMs = Number(values.seconds) * 1000;

async function contendersOf(daemon: Daemon): Promise<Contender[]> {
  await makeRamDisks(RAM_DISKS);
  const hasUblk = await loadUblk();
  const contenders = [
    rawDevice('/dev/ram0'),
    await dmSnapshot('/dev/ram1', '/dev/ram2', 8 * 1024),
    ...(EMULATED ? [] : [await dmSnapshot('/dev/ram1', '/dev/ram2', 64 * 1024)]),
    await ours(daemon, '/dev/ram3', 'nbd'),
    ...(hasUblk ? [await ours(daemon, '/dev/ram4', 'ublk')] : []),
  ];
  for (const { device } of contenders)
    for (const { job } of workloads)
      await runFio({ ...job, onePass: false }, { target: { device }, range: WARM_UP_RANGE, runMs: WARM_UP_MS });
  return contenders;
}

async function measure(contender: Contender, { job, unit }: Workload, state: State): Promise<Sample> {
  const image = state === 'plain' ? null : await contender.hold!();
  try {
    if (state === 'copied' || state === 'image-copied') await overwriteAll(contender.device);
    const target = { device: state.startsWith('image') ? image! : contender.device };
    const { iops, mibPerSecond } = await runFio(job, { target, range: RANGE, runMs });
    return { value: unit === 'IOPS' ? iops : mibPerSecond };
  } finally {
    if (image !== null) await contender.release!();
  }
}

/** All rounds of all contenders, in turns: for each state, contender by contender. */
async function measureAll(workload: Workload, contenders: readonly Contender[]): Promise<Map<State, Series[]>> {
  const samples = new Map<string, Sample[]>();
  for (let round = 0; round < rounds; round++) {
    for (const state of workload.states) {
      for (const contender of contenders.filter(({ hold }) => state === 'plain' || hold !== undefined)) {
        const key = `${state} ${contender.name}`;
        samples.set(key, [...(samples.get(key) ?? []), await measure(contender, workload, state)]);
      }
    }
  }
  const series = (state: State): Series[] =>
    contenders.map(({ name }) => ({
      experiment: state,
      entrant: name,
      samples: samples.get(`${state} ${name}`) ?? [],
    }));
  return new Map(workload.states.map((state) => [state, series(state)]));
}

function ratio(subject: Series, reference: Series): string {
  const { median, min, max } = spreadOf(pairedRatios(subject, reference, 'value'));
  return `${median.toFixed(2)} (${min.toFixed(2)} – ${max.toFixed(2)})`;
}

/** Plain: the rate, and the ratio to the first contender. Every other state: what is left of the contender's own plain rate. */
function rowsOf(
  { name, unit, states, published }: Workload,
  measured: ReadonlyMap<State, readonly Series[]>,
): string[] {
  const plain = measured.get('plain')!;
  return states.flatMap((state) => {
    const cells = measured.get(state)!.map((series, index) => {
      if (series.samples.length === 0) return '';
      const rate = written(spreadOf(valuesOf(series, 'value')).median);
      if (state === 'plain') return index === 0 ? rate : `${rate}: ${ratio(series, plain[0]!)}`;
      return `${rate}: **${ratio(series, plain[index]!)}**`;
    });
    return `| ${name}, ${unit}${state === 'plain' ? '' : `; ${state}`} | ${[...cells, published[state] ?? ''].join(' | ')} |`;
  });
}

if (process.env['BLKSNAP_TEST_KERNEL'] === undefined)
  throw new Error('Cannot measure here: want a kernel of its own; use npm run bench -- --kernel uml');
const dir = fs.mkdtempSync('/dev/shm/blksnap-bench-');
await withDaemon({ dir, options: STORAGE }, async (daemon) => {
  const contenders = await contendersOf(daemon);
  console.log(`Linux ${os.release()}, ${os.cpus().length} CPU, ${rounds} rounds of ${runMs} ms\n`);
  const columns = [...contenders.map(({ name }) => name), 'kernel blksnap, by its documents'];
  console.log(`| | ${columns.join(' | ')} |\n|---|${'---|'.repeat(columns.length)}`);
  for (const workload of workloads) console.log(rowsOf(workload, await measureAll(workload, contenders)).join('\n'));
  for (const { end } of contenders) await end();
});
