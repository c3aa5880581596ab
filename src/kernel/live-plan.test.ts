/** The planner against a model of the kernel and of a daemon that dies: at every step of every plan, and at every step
 *  of the recovery from that. */

import { describe, expect, it } from 'vitest';
import { assert } from '../util/assert.ts';
import { planLive } from './live-plan.ts';
import type { LiveGoal, LiveObserved, LiveStep } from './live-plan.ts';

type Table = 'original' | `to ${number}`;

/** What outlives a daemon: tables, devices, the goal. And, in `servedBy`, what does not. */
class Model {
  live: Table = 'original';
  loaded: Table | null = null;
  backend = false;
  /** Kernel devices that exist: with a daemon, or waiting for one. */
  readonly devices = new Set<number>();
  /** The one that this daemon serves. */
  serves: number | null = null;
  /** Our devices as remembered. */
  readonly remembered = new Set<number>();
  #last = 0;

  observe(): LiveObserved {
    const { serves } = this;
    return {
      volume: this.#volume(serves),
      loaded: this.loaded !== null,
      backend: this.backend,
      served: serves !== null,
    };
  }

  #volume(serves: number | null): LiveObserved['volume'] {
    const to = this.#leadsTo(this.live);
    if (to === null || !this.remembered.has(to)) return 'own';
    return serves === null || serves === to ? 'ours' : 'astray';
  }

  #leadsTo(table: Table): number | null {
    return table === 'original' ? null : Number(table.slice(3));
  }

  take(step: LiveStep): void {
    const to = this.#leadsTo(this.live);
    switch (step) {
      case 'createBackend':
        assert(!this.backend, 'one backend');
        this.backend = true;
        return;
      case 'serve':
        assert(this.backend, 'a backend to serve');
        // One that waits for its daemon is connected again.
        this.serves = [...this.devices].at(-1) ?? ++this.#last;
        this.devices.add(this.serves);
        this.remembered.add(this.serves);
        return;
      case 'loadOurs':
        assert(this.serves !== null, 'a device to lead to');
        this.loaded = `to ${this.serves}`;
        return;
      case 'loadOriginal':
        assert(this.backend, 'a backend to read the table from');
        this.loaded = 'original';
        return;
      case 'swap':
        assert(this.loaded !== null, 'a table to swap in');
        assert(to === null || !this.devices.has(to) || this.serves === to, 'what is under way can end');
        this.live = this.loaded;
        this.loaded = null;
        return;
      case 'clear':
        this.loaded = null;
        return;
      case 'withdraw':
        assert(to === null || to !== this.serves, 'nothing leads to the device');
        if (this.serves !== null) this.devices.delete(this.serves);
        this.serves = null;
        return;
      case 'removeBackend':
        assert(this.serves === null, 'nobody has the backend open');
        assert(to === null, 'the original table is nowhere else');
        this.backend = false;
    }
  }

  /** Takes the steps to the goal, or as many as `limit`; whether the goal was reached. */
  run(goal: LiveGoal, limit = Infinity): boolean {
    let steps = planLive(goal, this.observe());
    for (let taken = 0; steps.length > 0; taken++) {
      if (taken >= limit) return false;
      const [step, ...rest] = steps;
      const wasOurs = this.observe().volume === 'ours';
      this.take(step!);
      steps = step === 'serve' && wasOurs ? planLive(goal, this.observe()) : rest;
    }
    return true;
  }

  /** The daemon dies. Its kernel device waits for the next, or is given up by the kernel. */
  die({ deviceLost }: { readonly deviceLost: boolean }): void {
    this.serves = null;
    if (deviceLost) this.devices.clear();
  }
}

function expectReached(model: Model, goal: LiveGoal): void {
  const { live, loaded, backend, serves } = model;
  if (goal === 'original') {
    expect({ live, loaded, backend, serves }).toEqual({ live: 'original', loaded: null, backend: false, serves: null });
  } else {
    expect({ live, loaded, backend }).toEqual({ live: `to ${serves}`, loaded: null, backend: true });
  }
}

const GOALS: readonly LiveGoal[] = ['attached', 'original'];
const LOSSES = [false, true];
/** More than any plan has. */
const STEPS = [...Array.from({ length: 10 }).keys()];

describe('live attach plans', () => {
  it('attach and detach', () => {
    const model = new Model();
    expect(planLive('attached', model.observe())).toEqual(['createBackend', 'serve', 'loadOurs', 'swap']);
    model.run('attached');
    expectReached(model, 'attached');
    expect(planLive('attached', model.observe())).toEqual([]);
    expect(planLive('original', model.observe())).toEqual(['loadOriginal', 'swap', 'withdraw', 'removeBackend']);
    model.run('original');
    expectReached(model, 'original');
    expect(planLive('original', model.observe())).toEqual([]);
  });

  /** first goal, cut, recovery to a goal, cut again, recovery to the last goal. */
  it('have a recovery from every step, also when it is cut short itself', () => {
    let cases = 0;
    for (const first of GOALS) {
      for (const second of GOALS) {
        for (const last of GOALS) {
          for (const cut of STEPS) {
            for (const cutAgain of STEPS) {
              for (const deviceLost of LOSSES) {
                for (const lostAgain of LOSSES) {
                  const model = new Model();
                  if (first === 'original') model.run('attached');
                  model.run(first, cut);
                  model.die({ deviceLost });
                  model.run(second, cutAgain);
                  model.die({ deviceLost: lostAgain });
                  model.run(last);
                  expectReached(model, last);
                  cases++;
                }
              }
            }
          }
        }
      }
    }
    expect(cases).toBe(8 * STEPS.length ** 2 * 4);
  });

  it('never pull the volume away from under the kernel device', () => {
    const model = new Model();
    model.run('attached');
    expect(() => model.take('removeBackend')).toThrow('nobody has the backend open');
    expect(() => model.take('withdraw')).toThrow('nothing leads to the device');
  });

  it('take an absent volume as one to tidy up after', () => {
    const observed = { volume: 'absent', loaded: false, backend: true, served: true } as const;
    for (const goal of GOALS) expect(planLive(goal, observed)).toEqual(['withdraw', 'removeBackend']);
  });
});
