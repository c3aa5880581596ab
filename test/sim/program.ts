/** Runs a program: the steps that a seed draws, or those of them that are kept. Everything follows from the seed. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Prng } from '../../src/util/prng.ts';
import { SimClock } from './clock.ts';
import { drawStep, runStep } from './steps.ts';
import type { Step } from './steps.ts';
import { drawWeather } from './weather.ts';
import { World, newMachine } from './world.ts';

export interface Program {
  readonly seed: number;
  readonly steps: number;
  /** Only these steps, by their numbers. */
  readonly keep?: readonly number[];
}

export interface Outcome {
  /** Null when all held. */
  readonly failure: Error | null;
  /** Steps run, and the number of the one that failed. */
  readonly stepsRun: number;
  readonly failedAt: number;
  /** The same for two runs of one program, bit for bit. */
  readonly traceHash: number;
  readonly kinds: ReadonlyMap<number, Step>;
  /** What backups came to, and how often. */
  readonly counts: ReadonlyMap<string, number>;
}

export async function runProgram({ seed, steps, keep }: Program): Promise<Outcome> {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-sim-'));
  const numbers = keep ?? Array.from({ length: steps }, (_, i) => i);
  const kinds = new Map<number, Step>();
  const clock = new SimClock(new Prng(seed * 1000 + 1));
  let failedAt = -1;
  let world: World | null = null;
  let failure: Error | null = null;
  let late: Error | null = null;
  const stray = (error: unknown): void => void (late ??= error as Error);
  process.on('uncaughtException', stray).on('unhandledRejection', stray);
  const machine = newMachine(clock, drawWeather(seed), directory);
  try {
    clock.random = new Prng(seed * 1000 + 2);
    world = await World.start(machine);
    for (const number of numbers) {
      failedAt = number;
      const random = new Prng(seed * 2 ** 20 + number * 2 + 1);
      clock.random = new Prng(seed * 2 ** 20 + number * 2);
      const step = drawStep(random);
      kinds.set(number, step);
      world = await runStep(world, step, random);
      if (late !== null) throw late as Error;
    }
    failedAt = -1;
    await world.stop();
  } catch (error) {
    failure = error as Error;
  }
  process.off('uncaughtException', stray).off('unhandledRejection', stray);
  machine.depot.close();
  fs.rmSync(directory, { recursive: true });
  return { failure, stepsRun: kinds.size, failedAt, traceHash: clock.traceHash, kinds, counts: machine.depot.counts };
}
