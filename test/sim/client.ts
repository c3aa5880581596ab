/** A client process of the simulated machine: a reactor of its own, and the product's NBD client on exports of a world.
 *  It may leave, or vanish with requests under way. */

import { BioPool } from '../../src/block/bio.ts';
import type { SocketAddress } from '../../src/io/reactor.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import type { HeaderStyle } from '../../src/nbd/protocol.ts';
import type { Prng } from '../../src/util/prng.ts';
import { MIB } from '../../src/util/units.ts';
import { SimReactor } from './reactor.ts';
import type { World } from './world.ts';

/** Enough for a backup, its checks included. */
const ARENA_BYTES = 16 * MIB;

/** Old clients and new ones. Only those that are not the oldest can be told of contexts. */
export function drawStyle(random: Prng, contexts = false): HeaderStyle {
  if (random.chance(0.4)) return 'extended';
  return contexts || random.chance(0.5) ? 'structured' : 'simple';
}

export class SimClient {
  readonly reactor: SimReactor;
  readonly pool = new BioPool();
  /** By export. */
  readonly devices = new Map<string, NbdClient>();
  readonly #address: SocketAddress;
  readonly #served: Array<Promise<void>>;
  /** The server's ends of the connections, by export. */
  readonly #ends = new Map<string, Promise<void>>();
  readonly #world: World;
  #vanished = false;
  #tellVanished!: () => void;
  /** Resolves when the process vanishes. */
  readonly whenVanished: Promise<void>;

  static async start(world: World): Promise<SimClient> {
    const served: Array<Promise<void>> = [];
    const address = await world.serving.listen((ended) => served.push(ended));
    return new SimClient(world, address, served);
  }

  private constructor(world: World, address: SocketAddress, served: Array<Promise<void>>) {
    const { clock, weather } = world.machine;
    this.reactor = new SimReactor({ clock, weather, arenaBytes: ARENA_BYTES });
    this.#world = world;
    this.#address = address;
    this.#served = served;
    this.whenVanished = new Promise((resolve) => (this.#tellVanished = resolve));
  }

  /** Whether the connection to an export is lost. */
  broken(exportName: string): boolean {
    return this.devices.get(exportName)?.failure !== undefined;
  }

  get vanished(): boolean {
    return this.#vanished;
  }

  connect(exportName: string, how: { contexts?: readonly string[]; newestStyle: HeaderStyle }): Promise<NbdClient> {
    return NbdClient.connect({ address: this.#address, exportName, reactor: this.reactor, ...how });
  }

  /** Keeps a connection to the export for traffic. */
  async use(exportName: string, newestStyle: HeaderStyle): Promise<void> {
    const before = this.#served.length;
    this.devices.set(exportName, await this.connect(exportName, { newestStyle }));
    this.#ends.set(exportName, this.#served[before]!);
  }

  async leave(exportName: string): Promise<void> {
    await this.devices.get(exportName)?.close();
    this.devices.delete(exportName);
  }

  /** Resolves when the server has given back all that it had lent for the connection to an export, or is dead itself. */
  async gone(exportName: string): Promise<void> {
    await Promise.race([this.#ends.get(exportName), this.#world.whenDead]);
  }

  vanish(): void {
    this.#vanished = true;
    this.reactor.die();
    this.#tellVanished();
  }

  /** Leaves in order. Throws when something of its own is left. */
  async close(): Promise<void> {
    for (const device of this.devices.values()) await device.close();
    if (this.pool.lent !== 0) throw new Error(`leak: ${this.pool.lent} bios of a client`);
    const { lentBytes } = this.reactor.arena;
    if (lentBytes !== 0) throw new Error(`leak: ${lentBytes} bytes of a client's arena`);
    this.reactor.leave();
  }
}
