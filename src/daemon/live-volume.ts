/** One volume that is attached while in use: observes the kernel, and takes the steps of the plan
 *  (`src/kernel/live-plan.ts`). What it remembers is durable before the step that relies on it.
 *
 *  The original table is never written anywhere but into the kernel when it holds keys: the backend has it, as long as
 *  the volume does not. */

import { bootId } from '../blksnap/origin-identity.ts';
import { backendUuid } from '../blksnap/underlying.ts';
import {
  clearTable,
  createPrivate,
  hasLoadedTable,
  liveTable,
  loadTable,
  removeMapping,
  swapTable,
} from '../kernel/dmsetup.ts';
import { planLive } from '../kernel/live-plan.ts';
import type { LiveGoal, LiveObserved, LiveStep } from '../kernel/live-plan.ts';
import { findMapperDevice, logicalBlockSizeOf } from '../kernel/mapper-device.ts';
import type { MapperDevice } from '../kernel/mapper-device.ts';
import { hidesKeys, tableBytes, tableTarget, tableTo } from '../kernel/volume-table.ts';
import { unreachable } from '../util/assert.ts';
import { BlksnapError } from '../util/errors.ts';
import type { Log } from './log.ts';
import type { LiveState } from './state.ts';

/** What is under way in the volume has so long to end. */
const SWAP_TIMEOUT_MS = 30_000;

/** How a backend is served. */
export interface LiveServing {
  /** MAJOR:MINOR of the kernel device by which this daemon serves the backend; null when it does not. */
  device(): string | null;
  /** Attaches the backend's node as a disk, and makes its kernel device, or connects the one that waits. */
  serve(node: string): Promise<void>;
  /** Undoes what there is of that. */
  withdraw(): Promise<void>;
  /** Durable when it returns. */
  remember(live: LiveState): void;
}

export function newLiveState(volume: MapperDevice): LiveState {
  const { name, uuid, number } = volume;
  const backend = `blksnap-${number.replace(':', '-')}`;
  return { goal: 'original', volume: name, uuid, backend, bootId: bootId(), table: '', devices: [] };
}

export class LiveVolume {
  #state: LiveState;
  readonly #serving: LiveServing;
  readonly #log: Log;

  constructor(state: LiveState, serving: LiveServing, log: Log) {
    this.#state = state;
    this.#serving = serving;
    this.#log = log;
  }

  get state(): LiveState {
    return this.#state;
  }

  /** Sets where recovery leads from now on. */
  aim(goal: LiveGoal): void {
    this.#remember({ goal });
  }

  /** Takes all steps to the goal. Errors: that of the first step that fails; nothing is suspended then, the volume has
   *  one of its two tables, and another call goes on from there. ENODEV to attach a volume that is not there. */
  async reach(goal: LiveGoal): Promise<void> {
    let observed = await this.#observe();
    if (goal === 'attached' && observed.volume === 'absent') throw this.#absent();
    let steps = planLive(goal, observed);
    for (let step = steps.shift(); step !== undefined; step = steps.shift()) {
      this.#log.debug({ volume: this.#state.volume, step }, 'live attach');
      await this.#take(step);
      if (step !== 'serve' || observed.volume !== 'ours') continue;
      observed = await this.#observe();
      steps = planLive(goal, observed);
    }
  }

  /** Whether the volume's table leads to the kernel device that this daemon serves. */
  async isAttached(): Promise<boolean> {
    const { volume, served } = await this.#observe();
    return volume === 'ours' && served;
  }

  async #observe(): Promise<LiveObserved> {
    const device = this.#volume();
    return {
      volume: device === null ? 'absent' : await this.#leadsTo(device),
      loaded: device !== null && (await hasLoadedTable(device.name)),
      backend: findMapperDevice(this.#state.backend) !== null,
      served: this.#serving.device() !== null,
    };
  }

  /** Another volume of the name is another volume. */
  #volume(): MapperDevice | null {
    const device = findMapperDevice(this.#state.volume);
    return device === null || device.uuid !== this.#state.uuid ? null : device;
  }

  async #leadsTo({ name }: MapperDevice): Promise<LiveObserved['volume']> {
    const { devices } = this.#state;
    const target = tableTarget(await liveTable(name));
    // Numbers of devices that an earlier run of the machine had say nothing.
    if (target === null || this.#state.bootId !== bootId() || !devices.includes(target)) return 'own';
    const served = this.#serving.device();
    return served === null || served === target ? 'ours' : 'astray';
  }

  async #take(step: LiveStep): Promise<void> {
    const { volume, backend } = this.#state;
    switch (step) {
      case 'createBackend':
        return await this.#createBackend();
      case 'serve':
        return await this.#serve();
      case 'loadOurs':
        return await this.#loadOurs();
      case 'loadOriginal':
        return await this.#loadOriginal();
      case 'swap':
        return await this.#swap();
      case 'clear':
        return await clearTable(volume);
      case 'withdraw':
        return await this.#serving.withdraw();
      case 'removeBackend':
        return await removeMapping(backend);
      default:
        return unreachable(step);
    }
  }

  async #createBackend(): Promise<void> {
    const { volume, backend } = this.#state;
    const device = this.#volume();
    if (device === null) throw this.#absent();
    const uuid = backendUuid(device.number);
    if ((await this.#leadsTo(device)) !== 'own') {
      await createPrivate(backend, { uuid, table: this.#rememberedTable() });
      return;
    }
    this.#remember({ table: await liveTable(volume), bootId: bootId(), devices: [] });
    const table = await liveTable(volume, { keys: true });
    await createPrivate(backend, { uuid, table });
    if ((await liveTable(backend, { keys: true })) === table) return;
    await removeMapping(backend);
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot attach "${volume}" while it is in use: its table is another one when it is loaded again`,
    );
  }

  /** Somebody has removed the backend. */
  #rememberedTable(): string {
    const { volume, backend, table } = this.#state;
    if (!hidesKeys(table)) return table;
    throw new BlksnapError(
      'ENODEV',
      `Cannot bring volume "${volume}" back: device "${backend}", which had its table, is gone, and the table had keys ` +
        'that are not kept; close the volume and open it again',
    );
  }

  async #serve(): Promise<void> {
    const { backend, devices } = this.#state;
    const device = findMapperDevice(backend);
    if (device === null) throw new BlksnapError('ENODEV', `Cannot serve device "${backend}": it is gone`);
    await this.#serving.serve(device.node);
    const number = this.#serving.device();
    if (number !== null && devices.at(-1) !== number) {
      this.#remember({ devices: [...devices.filter((one) => one !== number), number] });
    }
  }

  /** What a filesystem knows of its device must stay true. */
  async #loadOurs(): Promise<void> {
    const { volume } = this.#state;
    const device = this.#volume();
    const number = this.#serving.device();
    if (device === null || number === null) throw this.#absent();
    const size = logicalBlockSizeOf(number);
    if (size !== device.logicalBlockSize) {
      throw new BlksnapError(
        'EOPNOTSUPP',
        `Cannot attach "${volume}" while it is in use: its logical block size is ${device.logicalBlockSize}, ` +
          `that of the kernel device for it ${size ?? 'unknown'}; nothing has changed`,
      );
    }
    await loadTable(volume, tableTo(number, tableBytes(this.#state.table)));
  }

  async #loadOriginal(): Promise<void> {
    const { volume, backend, table } = this.#state;
    if ((await liveTable(backend)) !== table) {
      throw new BlksnapError(
        'ESTALE',
        `Cannot bring volume "${volume}" back: the table of device "${backend}" is not the one that was taken over`,
      );
    }
    await loadTable(volume, await liveTable(backend, { keys: true }));
  }

  /** A table that could not be swapped in must not wait for somebody else's swap. */
  async #swap(): Promise<void> {
    const { volume } = this.#state;
    try {
      await swapTable(volume, { timeoutMs: SWAP_TIMEOUT_MS });
    } catch (cause) {
      await clearTable(volume);
      throw cause;
    }
  }

  #absent(): BlksnapError {
    const { volume, uuid } = this.#state;
    const which = uuid === '' ? `"${volume}"` : `"${volume}" (${uuid})`;
    return new BlksnapError('ENODEV', `There is no volume ${which} now; make it, then attach it again`);
  }

  #remember(change: Partial<LiveState>): void {
    const state = { ...this.#state, ...change };
    this.#serving.remember(state);
    this.#state = state;
  }
}
