/** The queues of ublk devices that one I/O thread serves: what a provider's QueueServer comes to there. Slow path. */

import type { BioPool } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import type { Reactor } from '../io/reactor.ts';
import type { MemoryLine } from '../nbd/memory-line.ts';
import { BlksnapError } from '../util/errors.ts';
import type { QueueShape, ServedExport } from './ublk-protocol.ts';
import { UblkQueue } from './ublk-queue.ts';

export interface UblkQueuesOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly line: MemoryLine;
}

export class UblkQueues {
  readonly #o: UblkQueuesOptions;
  readonly #queues = new Map<number, UblkQueue>();

  constructor(options: UblkQueuesOptions) {
    this.#o = options;
  }

  /** Errors: as UblkQueue.open; EINVAL when one request may be more than there is memory for. */
  serve(device: BlockDevice, shape: QueueShape): ServedExport {
    const { id, maxIoBytes } = shape;
    if (maxIoBytes > this.#o.reactor.arena.size / 4) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot serve ublk device ${id}: its requests have up to ${maxIoBytes} bytes, more than a quarter of the arena ` +
          `(${this.#o.reactor.arena.size}); start the daemon with a larger --arena`,
      );
    }
    const queue = UblkQueue.open({ ...this.#o, ...shape, device });
    this.#queues.set(id, queue);
    void queue.ended.then(() => this.#queues.delete(id));
    return servedExport(device);
  }

  async ended(id: number): Promise<void> {
    await this.#queues.get(id)?.ended;
  }

  /** Bios of a device go to `device` from now on instead of `old`: its export was made another one. */
  redirect(old: BlockDevice, device: BlockDevice): void {
    for (const queue of this.#queues.values()) queue.redirect(old, device);
  }

  /** Leaves all devices to the next daemon, when their requests under way have ended. */
  async leave(): Promise<void> {
    await Promise.all([...this.#queues.values()].map((queue) => queue.leave()));
  }
}

export function servedExport(device: BlockDevice): ServedExport {
  const { size, logicalBlockSize, physicalBlockSize, readOnly, capabilities } = device;
  const { flush, fua, discard, writeZeroes, rotational } = capabilities;
  return { size, logicalBlockSize, physicalBlockSize, readOnly, flush, fua, discard, writeZeroes, rotational };
}
