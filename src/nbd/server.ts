/** The NBD server: listens, shakes hands, and keeps the connections.
 *
 *  A client can only harm itself: handshakes end after a time, connections and their memory are
 *  limited, and whoever breaks the protocol is dropped with a reason that `onDropped` hears. */

import type { BioPool } from '../block/bio.ts';
import type { Completion, Listener, ListenOptions, Reactor, SocketAddress, Stream } from '../io/reactor.ts';
import { assert } from '../util/assert.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { transmissionFlags } from './commands.ts';
import { Connection } from './connection.ts';
import type { ConnectionHost } from './connection.ts';
import type { ExportTable, NbdExport } from './export.ts';
import { negotiate } from './handshake.ts';
import type { Departure, HandshakeState, Session } from './handshake.ts';
import { ConnectionBuffers } from './connection-buffers.ts';
import { connectionLimit, DEFAULT_CONNECTIONS } from './limits.ts';
import { MemoryLine } from './memory-line.ts';
import { OWNER } from './peer.ts';
import type { Peer } from './peer.ts';
import { Wire } from './wire.ts';

const HANDSHAKE_LIMIT_MS = 30_000;
/** How long clients that hold memory may take, or send, less than 1 MiB while others wait for it. */
const STALL_LIMIT_MS = 10_000;
/** How long `close` and `dropExport` wait for clients to take their last replies. */
const GRACE_MS = 2_000;

/** A client in the midst of its handshake. Plain data, but for the descriptor: that is the taker's to close. */
export interface Visitor {
  readonly fd: number;
  readonly peer: Peer;
  readonly state: HandshakeState;
  /** What was received and is still to be read. */
  readonly received: Uint8Array;
}

/** A client whose export another server has. */
export interface HandedOver extends Visitor {
  readonly exportName: string;
}

export interface NbdListenOptions extends ListenOptions {
  /** Tells who has connected; default: the owner, who alone can open a unix socket of mode 0600. */
  readonly peer?: (stream: Stream) => Peer;
}

/** How a client came. */
interface Arrival {
  readonly peer: Peer;
  /** Where its handshake began elsewhere. */
  readonly visitor?: Visitor;
}

/** A client in transmission: who it is, and who is told of its end. */
interface Stay {
  readonly peer: Peer;
  readonly told: Array<() => void>;
}

export interface NbdServerOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly exports: ExportTable;
  readonly handshakeLimitMs?: number;
  /** Clients at once, unless the arena has room for fewer. */
  readonly maxConnections?: number;
  readonly stallLimitMs?: number;
  /** Hears why a connection was refused or dropped. */
  readonly onDropped?: (reason: string) => void;
  /** Takes clients to where their exports are, by `takeOver` there. Needed where the table knows of such. */
  readonly handOver?: (client: HandedOver) => void;
}

export class NbdServer implements ConnectionHost {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly line: MemoryLine;
  readonly buffers: ConnectionBuffers;
  readonly #exports: ExportTable;
  readonly #handshakeLimitMs: number;
  readonly #onDropped: (reason: string) => void;
  readonly #handOver: ((client: HandedOver) => void) | undefined;
  readonly #connectionLimit: number;
  readonly #listeners = new Set<Listener>();
  /** In the handshake. */
  readonly #arriving = new Set<Wire>();
  /** In transmission. */
  readonly #connections = new Map<Connection, Stay>();
  readonly #serving = new Set<Promise<void>>();
  /** Those of them that are the kernel's. */
  readonly #kernels = new Set<Connection>();
  #closed = false;

  constructor(options: NbdServerOptions) {
    this.reactor = options.reactor;
    this.pool = options.pool;
    this.#exports = options.exports;
    this.#handshakeLimitMs = options.handshakeLimitMs ?? HANDSHAKE_LIMIT_MS;
    this.#onDropped = options.onDropped ?? ((): void => {});
    this.#handOver = options.handOver;
    this.#connectionLimit = connectionLimit(options.reactor.arena, options.maxConnections ?? DEFAULT_CONNECTIONS);
    this.buffers = new ConnectionBuffers(options.reactor.arena);
    const stallLimitMs = options.stallLimitMs ?? STALL_LIMIT_MS;
    this.line = new MemoryLine(options.reactor, stallLimitMs, (sinceTick) => this.#dropStalling(sinceTick));
  }

  /** Clients in transmission. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Errors: EADDRINUSE, EACCES and the like. */
  async listen(address: SocketAddress, options: NbdListenOptions = {}): Promise<Listener> {
    const { peer = () => OWNER, ...how } = options;
    return this.#keep(await this.reactor.listen(address, how, (stream) => void this.serve(stream, peer(stream))));
  }

  /** Listens on a socket that was handed to the process. */
  async listenFd(fd: number): Promise<Listener> {
    return this.#keep(await this.reactor.listenFd(fd, (stream) => void this.serve(stream)));
  }

  #keep(listener: Listener): Listener {
    this.#listeners.add(listener);
    return listener;
  }

  /** Serves one client on a stream that is the server's from here on. Resolves when the connection
   *  has ended and everything lent for it is given back. Never rejects. */
  serve(stream: Stream, peer: Peer = OWNER): Promise<void> {
    return this.#receive(stream, { peer });
  }

  #receive(stream: Stream, arrival: Arrival): Promise<void> {
    const served = this.#serve(stream, arrival).finally(() => this.#serving.delete(served));
    this.#serving.add(served);
    return served;
  }

  /** As serve, of a client that began its handshake elsewhere. Errors: ENOMEM; the descriptor is then still open. */
  takeOver(client: Visitor): Promise<void> {
    return this.#receive(this.reactor.adopt(client.fd, client.fd), { peer: client.peer, visitor: client });
  }

  /** Serves an export to a client that knows all that a handshake would tell: the kernel, whose devices must not wait
   *  for a place among other clients. The descriptor is the server's. Errors: ENOENT, ENOMEM. */
  serveKernel(fd: number, exportName: string): { readonly ended: Promise<void> } {
    const stream = this.reactor.adopt(fd, fd);
    const served = this.#exports.find(exportName);
    if (served === undefined || this.#closed) {
      stream.close();
      throw new BlksnapError('ENOENT', `There is no export "${exportName}"`);
    }
    const flags = transmissionFlags(served.device, 'simple', false);
    const session = { served, style: 'simple', contexts: [], transmissionFlags: flags } as const;
    const connection = Connection.open(this, stream, session, new Uint8Array(0));
    if (connection === null) {
      stream.close();
      throw new BlksnapError('ENOMEM', 'No memory for one more connection: raise --arena');
    }
    this.#kernels.add(connection);
    const ended = this.#transmit(connection, OWNER).finally(() => {
      this.#kernels.delete(connection);
      this.#serving.delete(ended);
    });
    this.#serving.add(ended);
    return { ended };
  }

  async #serve(stream: Stream, { peer, visitor }: Arrival): Promise<void> {
    const refusal = this.#closed
      ? 'the server is closing'
      : this.#arriving.size + this.#connections.size - this.#kernels.size >= this.#connectionLimit
        ? `more than ${this.#connectionLimit} connections`
        : undefined;
    const wire = refusal === undefined ? Wire.open(this.reactor.arena, stream, visitor?.received) : null;
    if (wire === null) {
      this.#refuse(stream, refusal ?? 'no memory for one more handshake');
      return;
    }
    this.#arriving.add(wire);
    const exports = this.#visibleTo(peer);
    const agreed = await this.#shakeHands(wire, exports, visitor?.state ?? null);
    this.#arriving.delete(wire);
    if (agreed !== null && 'option' in agreed) {
      this.#depart(stream, { agreed, peer, received: wire.received });
      wire.release();
      return;
    }
    const connection = agreed === null ? null : this.#connect(stream, agreed, { peer, early: wire.received });
    wire.release();
    if (connection === null) stream.close();
    else await this.#transmit(connection, peer);
  }

  #visibleTo(peer: Peer): ExportTable {
    return this.#exports.visibleTo?.(peer) ?? this.#exports;
  }

  #depart(
    stream: Stream,
    { agreed, peer, received }: { readonly agreed: Departure; readonly peer: Peer; readonly received: Uint8Array },
  ): void {
    const { exportName, state, option } = agreed;
    assert(this.#handOver !== undefined, 'who knows of other servers can hand over');
    const fd = stream.release();
    assert(fd >= 0, 'the driver can give a descriptor up');
    this.#handOver({ fd, exportName, peer, state, received: new Uint8Array(Buffer.concat([option, received])) });
  }

  async #shakeHands(
    wire: Wire,
    exports: ExportTable,
    state: HandshakeState | null,
  ): Promise<Session | Departure | null> {
    let timedOut = false;
    const timeout: Completion = {
      complete: () => {
        timedOut = true;
        wire.close();
      },
    };
    const timer = this.reactor.timer(this.#handshakeLimitMs, timeout);
    try {
      const agreed = await negotiate(wire, exports, this.reactor.arena, state);
      wire.checkOpen();
      return agreed;
    } catch (cause) {
      this.#onDropped(
        timedOut ? `no end of the handshake in ${this.#handshakeLimitMs} ms` : toBlksnapError(cause).message,
      );
      return null;
    } finally {
      this.reactor.cancelTimer(timer);
    }
  }

  #connect(
    stream: Stream,
    session: Session,
    { peer, early }: { readonly peer: Peer; readonly early: Uint8Array },
  ): Connection | null {
    // The export, or the leave to use it, may have gone while its client was shaking hands.
    if (this.#closed || this.#visibleTo(peer).find(session.served.name) !== session.served) {
      this.#onDropped(`export "${session.served.name}" is gone`);
      return null;
    }
    const connection = Connection.open(this, stream, session, early);
    if (connection === null) this.#onDropped('no memory for one more connection');
    return connection;
  }

  #transmit(connection: Connection, peer: Peer): Promise<void> {
    return new Promise((resolve) => {
      this.#connections.set(connection, { peer, told: [resolve] });
      connection.start();
    });
  }

  #refuse(stream: Stream, reason: string): void {
    stream.close();
    this.#onDropped(reason);
  }

  connectionEnded(connection: Connection, reason: string | undefined): void {
    const { told } = this.#connections.get(connection)!;
    this.#connections.delete(connection);
    if (reason !== undefined) this.#onDropped(reason);
    for (const resolve of told) resolve();
  }

  /** Clients in transmission on the exports whose names fit; who uses a kernel's device, the kernel knows. */
  clientsOf(fits: (exportName: string) => boolean): number {
    return [...this.#connections.keys()].filter((one) => fits(one.served.name) && !this.#kernels.has(one)).length;
  }

  /** Ends the connections to an export that was taken out of the table. Resolves when their requests
   *  under way have ended and the device is no longer used. */
  async dropExport(served: NbdExport): Promise<void> {
    await this.#end([...this.#connections.keys()].filter((connection) => connection.served === served));
  }

  /** As dropExport, of the clients that may no longer use what they use. */
  async dropForbidden(): Promise<void> {
    const forbidden = [...this.#connections].filter(
      ([{ served }, { peer }]) => this.#visibleTo(peer).find(served.name) !== served,
    );
    await this.#end(forbidden.map(([connection]) => connection));
  }

  async #end(connections: readonly Connection[]): Promise<void> {
    const ended = connections.map(
      (connection) => new Promise<void>((resolve) => this.#connections.get(connection)!.told.push(resolve)),
    );
    for (const connection of connections) connection.shutDown();
    const grace = this.reactor.timer(GRACE_MS, {
      complete: () => {
        for (const connection of connections) connection.drop('the client did not take its last replies');
      },
    });
    await Promise.all(ended);
    // A reactor that is about to close must not wait for it.
    this.reactor.cancelTimer(grace);
  }

  /** Stops listening, answers what is under way, ends all connections. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const listener of this.#listeners) listener.close();
    for (const wire of this.#arriving) wire.close();
    await this.#end([...this.#connections.keys()]);
    await Promise.all(this.#serving);
  }

  /** Others wait for memory that these clients hold and do nothing about. */
  #dropStalling(sinceTick: number): void {
    for (const connection of this.#connections.keys()) {
      if (connection.waitingSince <= sinceTick)
        connection.drop('the client stood still while others waited for memory');
    }
  }
}
