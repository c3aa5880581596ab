/** The typed client of the API, over the daemon's unix socket, or over TCP with its token.
 *
 *      const client = new Client();
 *      const disk = await client.attach({ path: '/srv/vm.img' });
 *      const snapshot = await client.createSnapshot({ disks: [disk.name] });
 *
 *      const distant = new Client({ url: 'https://host:10811', tokenFile: '/etc/token', caFile: '/etc/ca-cert.pem' });
 *
 *  Every method fails with the BlksnapError that the daemon reported; ECONNREFUSED when none runs, ETIMEDOUT when it is silent. */

import http from 'node:http';
import https from 'node:https';
import type { z } from '@hono/zod-openapi';
import type {
  CbtView,
  DiskView,
  EventView,
  FilterView,
  MappedDevicesView,
  MappedView,
  PreparedView,
  SnapshotView,
  StatusView,
} from '../daemon/views.ts';
import { cancellation } from '../util/cancel.ts';
import { BlksnapError, ERRNO, toBlksnapError } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import type { mappedRequest, messageRequest, remapRequest, tableRequest, unmapRequest } from './dm-schema.ts';
import type {
  attachRequest,
  dirtyRequest,
  mountRequest,
  preparedRequest,
  snapshotRequest,
  storageRequest,
} from './schema.ts';
import { endWhenSilent } from './silence.ts';
import { openTransport } from './transport.ts';
import type { ClientOptions, Transport } from './transport.ts';

export type {
  CbtView,
  DiskView,
  EventView,
  FilterView,
  MappedDevicesView,
  MappedView,
  PreparedView,
  SnapshotView,
  StatusView,
};

interface Head {
  readonly method: string;
  readonly path: string;
  readonly headers?: http.OutgoingHttpHeaders;
  readonly signal?: AbortSignal;
}

interface Request {
  readonly method: string;
  readonly path: string;
  readonly body?: unknown;
  readonly accept?: string;
  readonly signal?: AbortSignal | undefined;
}

function mappedPath(name: string): string {
  return `/v1/mapped/${encodeURIComponent(name)}`;
}

const NOBODY_THERE = new Set(['ENOENT', 'ECONNREFUSED', 'ENOTDIR']);

export class Client {
  readonly #transport: Transport;
  readonly #signal: AbortSignal | undefined;

  /** Errors: as `openTransport`. */
  constructor(options: ClientOptions = {}) {
    this.#transport = openTransport(options);
    this.#signal = options.signal;
  }

  /** The daemon's NBD socket for its owner, where no TLS is asked for. Errors: EOPNOTSUPP over TCP. */
  get nbdSocket(): string {
    const { nbdSocket, place } = this.#transport;
    if (nbdSocket !== null) return nbdSocket;
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot read disks through the API at ${place}: run this on the daemon's machine, with --dir, or read them over NBD`,
    );
  }

  status(): Promise<StatusView> {
    return this.#json({ method: 'GET', path: '/v1/status' });
  }

  openApi(): Promise<object> {
    return this.#json({ method: 'GET', path: '/openapi.json' });
  }

  async disks(): Promise<DiskView[]> {
    return (await this.#json<{ disks: DiskView[] }>({ method: 'GET', path: '/v1/disks' })).disks;
  }

  disk(name: string): Promise<DiskView> {
    return this.#json({ method: 'GET', path: `/v1/disks/${encodeURIComponent(name)}` });
  }

  attach(body: z.input<typeof attachRequest>): Promise<DiskView> {
    return this.#json({ method: 'POST', path: '/v1/disks', body });
  }

  mount(body: z.input<typeof mountRequest>): Promise<DiskView> {
    return this.#json({ method: 'POST', path: '/v1/mounts', body });
  }

  /** Fails with EBUSY while clients are connected, unless `force` cuts them off. */
  async detach(name: string, { force = false }: { readonly force?: boolean } = {}): Promise<void> {
    await this.#bytes({ method: 'DELETE', path: `/v1/disks/${encodeURIComponent(name)}?force=${force}` });
  }

  /** Takes over the size that the disk's file or device has now. */
  resize(name: string): Promise<DiskView> {
    return this.#json({ method: 'POST', path: `/v1/disks/${encodeURIComponent(name)}/resize` });
  }

  /** Reads the disk's partition table anew: the disk and its partitions. */
  async rescan(name: string): Promise<DiskView[]> {
    const path = `/v1/disks/${encodeURIComponent(name)}/rescan`;
    return (await this.#json<{ disks: DiskView[] }>({ method: 'POST', path })).disks;
  }

  /** Who may use the disk beside its owner; null where no rule says. */
  async clients(disk: string): Promise<string[] | null> {
    return await this.#clients({ method: 'GET', path: `/v1/disks/${encodeURIComponent(disk)}/clients` });
  }

  /** By a certificate's CN, a pre-shared key's name, or `uid:N`. */
  async allow(disk: string, client: string): Promise<string[] | null> {
    const path = `/v1/disks/${encodeURIComponent(disk)}/clients`;
    return await this.#clients({ method: 'POST', path, body: { client } });
  }

  async disallow(disk: string, client: string): Promise<string[] | null> {
    const path = `/v1/disks/${encodeURIComponent(disk)}/clients/${encodeURIComponent(client)}`;
    return await this.#clients({ method: 'DELETE', path });
  }

  async #clients(request: Request): Promise<string[] | null> {
    return (await this.#json<{ clients: string[] | null }>(request)).clients;
  }

  cbt(name: string): Promise<CbtView> {
    return this.#json({ method: 'GET', path: `/v1/disks/${encodeURIComponent(name)}/cbt` });
  }

  async filters(): Promise<FilterView[]> {
    return (await this.#json<{ filters: FilterView[] }>({ method: 'GET', path: '/v1/filters' })).filters;
  }

  /** Puts a filter on a disk, while it is used. `options` are the filter's own: anything that JSON holds. */
  attachFilter(disk: string, filter: string, options?: unknown): Promise<DiskView> {
    return this.#json({
      method: 'POST',
      path: `/v1/disks/${encodeURIComponent(disk)}/filters`,
      body: { filter, options },
    });
  }

  async detachFilter(disk: string, filter: string): Promise<void> {
    await this.#bytes({
      method: 'DELETE',
      path: `/v1/disks/${encodeURIComponent(disk)}/filters/${encodeURIComponent(filter)}`,
    });
  }

  /** A command of the filter's own. */
  async filterCtl(
    disk: string,
    ctl: { readonly filter: string; readonly command: string; readonly payload?: unknown },
  ): Promise<unknown> {
    const { filter, ...body } = ctl;
    const path = `/v1/disks/${encodeURIComponent(disk)}/filters/${encodeURIComponent(filter)}/ctl`;
    return (await this.#json<{ result: unknown }>({ method: 'POST', path, body })).result;
  }

  /** One byte per tracking block. */
  cbtMap(name: string): Promise<Uint8Array> {
    return this.#bytes({ method: 'GET', path: `/v1/disks/${encodeURIComponent(name)}/cbt/map` });
  }

  async markDirty(name: string, body: z.input<typeof dirtyRequest>): Promise<void> {
    await this.#bytes({ method: 'POST', path: `/v1/disks/${encodeURIComponent(name)}/cbt/dirty`, body });
  }

  mapped(): Promise<MappedDevicesView> {
    return this.#json({ method: 'GET', path: '/v1/mapped' });
  }

  /** Makes a disk from a table over other disks and files. */
  createMapped(body: z.input<typeof mappedRequest>): Promise<DiskView> {
    return this.#json({ method: 'POST', path: '/v1/mapped', body });
  }

  async removeMapped(name: string): Promise<void> {
    await this.#bytes({ method: 'DELETE', path: mappedPath(name) });
  }

  /** Loads the inactive table; `resumeMapped` makes it the live one. */
  loadMapped(name: string, body: z.input<typeof tableRequest>): Promise<MappedView> {
    return this.#json({ method: 'POST', path: `${mappedPath(name)}/load`, body });
  }

  suspendMapped(name: string): Promise<MappedView> {
    return this.#json({ method: 'POST', path: `${mappedPath(name)}/suspend` });
  }

  resumeMapped(name: string): Promise<MappedView> {
    return this.#json({ method: 'POST', path: `${mappedPath(name)}/resume` });
  }

  /** The answer of the target at the sector, which may be empty. */
  async messageMapped(name: string, body: z.input<typeof messageRequest>): Promise<string> {
    return (await this.#json<{ answer: string }>({ method: 'POST', path: `${mappedPath(name)}/message`, body })).answer;
  }

  async remap(body: z.input<typeof remapRequest>): Promise<void> {
    await this.#bytes({ method: 'POST', path: '/v1/remaps', body });
  }

  async unmap(body: z.input<typeof unmapRequest>): Promise<void> {
    await this.#bytes({ method: 'DELETE', path: '/v1/remaps', body });
  }

  createSnapshot(body: z.input<typeof snapshotRequest>): Promise<SnapshotView> {
    return this.#json({ method: 'POST', path: '/v1/snapshots', body });
  }

  async snapshots(): Promise<SnapshotView[]> {
    return (await this.#json<{ snapshots: SnapshotView[] }>({ method: 'GET', path: '/v1/snapshots' })).snapshots;
  }

  snapshot(id: string): Promise<SnapshotView> {
    return this.#json({ method: 'GET', path: `/v1/snapshots/${encodeURIComponent(id)}` });
  }

  /** Gives a held snapshot more room: another place, or a higher limit in all. */
  appendStorage(id: string, body: z.input<typeof storageRequest>): Promise<SnapshotView> {
    return this.#json({ method: 'POST', path: `/v1/snapshots/${encodeURIComponent(id)}/storage`, body });
  }

  /** Begins the lease of a snapshot anew, where it was created with one. */
  renewSnapshot(id: string): Promise<SnapshotView> {
    return this.#json({ method: 'POST', path: `/v1/snapshots/${encodeURIComponent(id)}/renew` });
  }

  async destroySnapshot(id: string): Promise<void> {
    await this.#bytes({ method: 'DELETE', path: `/v1/snapshots/${encodeURIComponent(id)}` });
  }

  /** Gives out the id of a snapshot that is taken by `takeSnapshot`. */
  prepareSnapshot(body: z.input<typeof preparedRequest>): Promise<PreparedView> {
    return this.#json({ method: 'POST', path: '/v1/prepared-snapshots', body });
  }

  async preparedSnapshots(): Promise<PreparedView[]> {
    return (await this.#json<{ prepared: PreparedView[] }>({ method: 'GET', path: '/v1/prepared-snapshots' })).prepared;
  }

  /** Fails with EALREADY when the disk is in it. */
  addToSnapshot(id: string, disk: string): Promise<PreparedView> {
    return this.#json({
      method: 'POST',
      path: `/v1/prepared-snapshots/${encodeURIComponent(id)}/disks`,
      body: { disk },
    });
  }

  takeSnapshot(id: string): Promise<SnapshotView> {
    return this.#json({ method: 'POST', path: `/v1/prepared-snapshots/${encodeURIComponent(id)}/take` });
  }

  async forgetSnapshot(id: string): Promise<void> {
    await this.#bytes({ method: 'DELETE', path: `/v1/prepared-snapshots/${encodeURIComponent(id)}` });
  }

  /** Takes the next event out of the queue that all callers of this share; null when the time is over. */
  async nextEvent(id: string, options: { timeoutMs?: number; signal?: AbortSignal } = {}): Promise<EventView | null> {
    const path = `/v1/snapshots/${encodeURIComponent(id)}/events/next?timeoutMs=${options.timeoutMs ?? 0}`;
    return (await this.#json<{ event: EventView | null }>({ method: 'POST', path, signal: options.signal })).event;
  }

  /** The events after `after`; waits up to `timeoutMs` for the first. None when the time is over. */
  async events(
    id: string,
    options: { after?: number; timeoutMs?: number; signal?: AbortSignal } = {},
  ): Promise<EventView[]> {
    const query = new URLSearchParams({ after: String(options.after ?? 0), timeoutMs: String(options.timeoutMs ?? 0) });
    const path = `/v1/snapshots/${encodeURIComponent(id)}/events?${query.toString()}`;
    return (await this.#json<{ events: EventView[] }>({ method: 'GET', path, signal: options.signal })).events;
  }

  /** Events as they come, until the snapshot is destroyed or the signal aborts. */
  async *follow(id: string, options: { after?: number; signal?: AbortSignal } = {}): AsyncGenerator<EventView> {
    const path = `/v1/snapshots/${encodeURIComponent(id)}/events?after=${options.after ?? 0}`;
    const response = await this.#send({ method: 'GET', path, accept: 'text/event-stream', signal: options.signal });
    response.setEncoding('utf8');
    let buffered = '';
    try {
      for await (const piece of response) {
        const blocks = (buffered + String(piece)).split('\n\n');
        buffered = blocks.pop() ?? '';
        for (const block of blocks) {
          const data = /^data: (.*)$/m.exec(block)?.[1];
          if (data !== undefined) yield JSON.parse(data) as EventView;
        }
      }
    } catch (cause) {
      if (options.signal?.aborted !== true) throw this.#failure(cause, 'Lost the daemon');
    }
  }

  // --- transport ------------------------------------------------------------------------------

  async #json<T>(request: Request): Promise<T> {
    return JSON.parse(new TextDecoder().decode(await this.#bytes(request))) as T;
  }

  async #bytes(request: Request): Promise<Uint8Array> {
    const response = await this.#send(request);
    try {
      return await collect(response);
    } catch (cause) {
      throw this.#failure(cause, `The daemon at ${this.#transport.place} ended while it answered`);
    }
  }

  /** Resolves with a successful response. */
  async #send(request: Request): Promise<http.IncomingMessage> {
    const { method, path, body, accept, signal } = request;
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const headers = {
      ...(accept === undefined ? {} : { accept }),
      ...(payload === undefined
        ? {}
        : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
    };
    const signals = [signal, this.#signal].filter((one) => one !== undefined);
    const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const sent = this.#open({ method, path, headers, signal: AbortSignal.any(signals) });
      sent.once('response', resolve).on('error', (cause) => reject(this.#unreachable(cause)));
      sent.end(payload);
      const ask = (): http.ClientRequest => this.#open({ method: 'HEAD', path: '/' }).end();
      endWhenSilent(sent, { place: this.#transport.place, ask });
    });
    if (response.statusCode !== undefined && response.statusCode < 300) return response;
    throw reported(Buffer.from(await collect(response)).toString());
  }

  #open({ headers, ...head }: Head): http.ClientRequest {
    const { request, headers: own, isSecure } = this.#transport;
    return (isSecure ? https : http).request({ ...request, ...head, headers: { ...own, ...headers }, agent: false });
  }

  #unreachable(cause: NodeJS.ErrnoException): BlksnapError {
    if (NOBODY_THERE.has(cause.code ?? '')) {
      return new BlksnapError(
        'ECONNREFUSED',
        `no daemon at ${this.#transport.place}; start one with \`blksnap daemon\``,
        {
          cause,
        },
      );
    }
    const isCertificate = /CERT|SIGNATURE/.test(cause.code ?? '');
    const isCutOff = cause.code === 'ECONNRESET' || cause.code === 'EPIPE';
    const next = isCertificate
      ? "; name its authority's certificate with --api-ca"
      : cause.code === 'EACCES'
        ? ', which is for its owner alone'
        : isCutOff
          ? ', which ended the connection without an answer: it ends, or has no descriptors left (ulimit -n)'
          : '';
    return this.#failure(cause, `Cannot reach the daemon at ${this.#transport.place}${next}`);
  }

  /** `action` is for what the daemon has not said itself. */
  #failure(cause: unknown, action: string): BlksnapError {
    if ((cause as Error).name === 'AbortError') return cancellation(this.#signal);
    return cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

async function collect(response: http.IncomingMessage): Promise<Uint8Array> {
  const pieces: Buffer[] = [];
  for await (const piece of response) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

/** The error that an answer tells of. */
function reported(text: string): BlksnapError {
  try {
    const { code, message } = (JSON.parse(text) as { error: { code: string; message: string } }).error;
    return new BlksnapError(code in ERRNO ? (code as ErrorCode) : 'EIO', message);
  } catch {
    return new BlksnapError('EPROTO', `The daemon's answer cannot be understood: ${text.slice(0, 200)}`);
  }
}
