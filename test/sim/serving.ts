/** The NBD server of a world, and what it offers: every disk, and every snapshot image twice (the second to be read
 *  once), with the contexts that an I/O thread gives them. */

import { Access } from '../../src/daemon/access.ts';
import { Exports } from '../../src/daemon/exports.ts';
import { imageContexts } from '../../src/daemon/image-contexts.ts';
import { READ_ONCE, ReadOnceImage } from '../../src/blksnap/read-once-image.ts';
import type { SnapshotImage } from '../../src/blksnap/image.ts';
import type { BioPool } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/device.ts';
import type { SocketAddress } from '../../src/io/reactor.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import type { SimReactor } from './reactor.ts';

export class Serving {
  readonly server: NbdServer;
  /** Why clients were dropped. */
  readonly dropped: string[] = [];
  readonly #reactor: SimReactor;
  readonly #exports = new Exports(new Access(), () => {});
  #listening = 0;

  constructor(reactor: SimReactor, pool: BioPool) {
    this.#reactor = reactor;
    const onDropped = (reason: string): void => void this.dropped.push(reason);
    this.server = new NbdServer({ reactor, pool, exports: this.#exports, onDropped });
  }

  /** An address of its own for one client. Its connections resolve when the server has let go of all that they had. */
  async listen(onConnection: (ended: Promise<void>) => void): Promise<SocketAddress> {
    const address = { kind: 'unix', path: `nbd-${this.#listening++}` } as const;
    await this.#reactor.listen(address, {}, (stream) => onConnection(this.server.serve(stream)));
    return address;
  }

  offer(device: BlockDevice): void {
    this.#exports.set(device.name, { name: device.name, description: '', device, contexts: () => [] });
  }

  offerImage(image: SnapshotImage): void {
    const contexts = (query: string): ReturnType<typeof imageContexts> => imageContexts(image, query);
    const once = new ReadOnceImage(image, `${image.name}${READ_ONCE}`);
    for (const device of [image, once])
      this.#exports.set(device.name, { name: device.name, description: '', device, contexts });
  }

  async withdrawImage({ name }: SnapshotImage): Promise<void> {
    await this.withdraw(name);
    await this.withdraw(`${name}${READ_ONCE}`);
  }

  offers(name: string): boolean {
    return this.#exports.find(name) !== undefined;
  }

  /** Ends an export and its connections. */
  async withdraw(name: string): Promise<void> {
    const served = this.#exports.find(name);
    this.#exports.delete(name);
    if (served !== undefined) await this.server.dropExport(served);
  }
}
