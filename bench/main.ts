/** `npm run bench`: how fast we serve a file beside other NBD servers, measured in one run.
 *
 *  fio, one connection over a unix socket, the disk's file in memory. For each workload the contenders take
 *  turns (A B C, A B C, …), each freshly started, so that whatever else the machine does hits all of them.
 *
 *      npm run bench -- [--quick] [--only NAME,…] [--rounds N] [--size GiB] [--json]
 *
 *  --only takes names of contenders and workloads. Results go to bench/results/latest.json.
 *  Ends with 1 when something could not be measured. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { findProgram } from '../scripts/debian.mjs';
import { styled } from '../scripts/prepare.mjs';
import { CONTENDERS } from './contenders.ts';
import type { Contender } from './contenders.ts';
import { runFio } from './fio.ts';
import type { Sample } from './fio.ts';
import { summarize, tableOf } from './report.ts';
import type { Summary } from './report.ts';
import { WORKLOADS } from './workloads.ts';
import type { Workload } from './workloads.ts';

interface Plan {
  readonly contenders: readonly Contender[];
  readonly workloads: readonly Workload[];
  readonly rounds: number;
  readonly runMs: number;
  readonly diskBytes: number;
}

const RESULTS = path.join(import.meta.dirname, 'results');
const failures: string[] = [];

function selected<T extends { readonly name: string }>(all: readonly T[], only: readonly string[]): readonly T[] {
  const chosen = all.filter(({ name }) => only.includes(name));
  return chosen.length > 0 ? chosen : all;
}

function makePlan(options: { quick: boolean; only?: string; rounds?: string; size?: string }): Plan {
  const only = (options.only ?? '').split(',').filter((name) => name !== '');
  const known = [...CONTENDERS, ...WORKLOADS].map(({ name }) => name);
  const unknown = only.filter((name) => !known.includes(name));
  if (unknown.length > 0) throw new Error(`Unknown: ${unknown.join(', ')}; --only takes ${known.join(', ')}`);
  const present = selected(CONTENDERS, only).filter((contender) => {
    const missing = contender.needs.filter((program) => findProgram(program) === undefined);
    if (missing.length > 0) failures.push(`${contender.name}: not measured, ${missing.join(', ')} is not installed`);
    return missing.length === 0;
  });
  return {
    contenders: present,
    workloads: selected(WORKLOADS, only),
    rounds: Number(options.rounds ?? (options.quick ? 1 : 5)),
    runMs: options.quick ? 1000 : 3000,
    diskBytes: Number(options.size ?? 1) * 1024 ** 3,
  };
}

/** A file without holes, of data that does not compress. */
function makeDisk(file: string, bytes: number): void {
  const block = Buffer.alloc(4 * 1024 * 1024);
  for (let at = 0; at < block.length; at += 4) block.writeUInt32LE((Math.imul(at + 1, 0x9e3779b1) ^ at) >>> 0, at);
  const fd = fs.openSync(file, 'w');
  for (let at = 0; at < bytes; at += block.length) fs.writeSync(fd, block, 0, Math.min(block.length, bytes - at), at);
  fs.closeSync(fd);
}

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

async function measure(contender: Contender, workload: Workload, plan: Plan, base: string): Promise<Sample> {
  const dir = fs.mkdtempSync(path.join(base, 'run-'));
  try {
    const server = await contender.start({ disk: path.join(base, 'disk.raw'), dir });
    try {
      return await runFio(workload, server.uri, plan.diskBytes, plan.runMs);
    } finally {
      await server.stop();
    }
  } finally {
    fs.rmSync(dir, { recursive: true, force: true });
  }
}

async function measureWorkload(workload: Workload, plan: Plan, base: string): Promise<Summary[]> {
  const samples = new Map<string, Sample[]>(plan.contenders.map(({ name }) => [name, []]));
  for (let round = 1; round <= plan.rounds; round++) {
    for (const contender of plan.contenders) {
      showProgress(`${workload.name} ${round}/${plan.rounds} ${contender.title}`);
      try {
        samples.get(contender.name)!.push(await measure(contender, workload, plan, base));
      } catch (error) {
        failures.push(`${contender.name}, ${workload.name}: ${(error as Error).message}`);
      }
    }
  }
  showProgress('');
  return summarize(workload, samples);
}

function machine(): Record<string, unknown> {
  return {
    date: new Date().toISOString(),
    commit: execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: RESULTS, encoding: 'utf8' }).trim(),
    cpu: os.cpus()[0]?.model ?? 'unknown',
    cpus: os.cpus().length,
    kernel: os.release(),
    node: process.version,
    fio: execFileSync('fio', ['--version'], { encoding: 'utf8' }).trim(),
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      rounds: { type: 'string' },
      size: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  if (findProgram('fio') === undefined) throw new Error('Cannot measure: fio is not installed (Debian package fio)');
  const plan = makePlan(values);
  const base = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'blksnap-bench-'));
  process.once('SIGINT', () => {
    fs.rmSync(base, { recursive: true, force: true });
    process.exit(130);
  });
  const titles = new Map(CONTENDERS.map(({ name, title }) => [name, title]));
  const results: Summary[] = [];
  fs.mkdirSync(RESULTS, { recursive: true });
  try {
    makeDisk(path.join(base, 'disk.raw'), plan.diskBytes);
    for (const workload of plan.workloads) {
      const summaries = await measureWorkload(workload, plan, base);
      results.push(...summaries);
      if (values.json) continue;
      console.log(styled('bold', workload.title));
      console.log(`${tableOf(workload, summaries, titles).join('\n')}\n`);
    }
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
  const { rounds, runMs, diskBytes } = plan;
  const report = `${JSON.stringify({ ...machine(), rounds, runMs, diskBytes, results, failures }, null, 2)}\n`;
  fs.writeFileSync(path.join(RESULTS, 'latest.json'), report);
  if (values.json) process.stdout.write(report);
  for (const failure of failures) console.error(styled('red', failure));
  process.exitCode = failures.length > 0 ? 1 : 0;
}

await main();
