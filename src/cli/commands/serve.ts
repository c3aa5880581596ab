/** serve: one disk over NBD, in this process: no daemon, no tracking, no snapshots. */

import fs from 'node:fs';
import { Option } from 'commander';
import type { Command } from 'commander';
import type { BlockDevice } from '../../block/device.ts';
import type { DriverName } from '../../io/open.ts';
import type { Reactor, SocketAddress } from '../../io/reactor.ts';
import { parseHostPort, refuseExposed } from '../../nbd/address.ts';
import type { NbdServer, Visitor } from '../../nbd/server.ts';
import type { ServerCredentials } from '../../nbd/tls-credentials.ts';
import type { TlsFront } from '../../nbd/tls-front.ts';
import type { NbdUri } from '../../nbd/uri.ts';
import { assert } from '../../util/assert.ts';
import { BlksnapError } from '../../util/errors.ts';
import { absolute, addCommand } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { onInterrupt } from '../interrupt.ts';
import { printJson, printLine } from '../output.ts';

interface ServeOptions extends CommonOptions {
  readonly stdio?: boolean;
  readonly socket?: string;
  readonly listen?: string;
  readonly readOnly?: boolean;
  readonly direct?: boolean;
  readonly io?: DriverName;
  readonly name?: string;
  readonly tlsCertificates?: string;
  readonly tlsVerifyPeer?: boolean;
  readonly tlsPsk?: string;
  readonly insecureTcp?: boolean;
}

/** The first descriptor that systemd hands over (sd_listen_fds(3)). */
const FIRST_LISTEN_FD = 3;

/** Where clients come from. */
type Place =
  | { readonly kind: 'stdio' }
  | { readonly kind: 'address'; readonly address: SocketAddress }
  | { readonly kind: 'activation'; readonly fds: readonly number[] };

export function addServeCommand(program: Command): void {
  addCommand(program, 'serve <path>', {
    summary: 'Serve one file or block device over NBD, without a daemon',
    more:
      'No change tracking and no snapshots: a plain NBD server until it is interrupted. ' +
      'Started by systemd socket activation (LISTEN_FDS), it serves on the sockets that it is given.',
    local: true,
    examples: [
      'serve disk.img --socket /tmp/disk.sock',
      'serve disk.img --listen 127.0.0.1:10809 --read-only',
      'serve disk.img        # by socket activation, as in: nbdinfo [ blksnap serve disk.img ]',
    ],
  })
    .option('--stdio', 'serve one client on standard input and output')
    .option('--socket <path>', 'listen on a unix socket')
    .option('--listen <address>', 'listen on host:port')
    .option('--read-only', 'refuse writes')
    .option('--direct', 'past the page cache (O_DIRECT)')
    .addOption(
      new Option('--io <driver>', 'the I/O driver (default: the best that works)').choices(['uring', 'portable']),
    )
    .option('--name <name>', "the export's name; a client that names none gets it too", '')
    .option('--tls-certificates <dir>', 'TLS with ca-cert.pem, server-cert.pem and server-key.pem (docs/security.md)')
    .option('--tls-verify-peer', 'only for clients with a certificate of the same authority')
    .option('--tls-psk <file>', 'TLS with pre-shared keys, as psktool writes them')
    .option('--insecure-tcp', 'listen without TLS where other machines can connect')
    .action(serve);
}

async function serve(path: string, options: ServeOptions): Promise<void> {
  const place = placeOf(options);
  const credentials = await credentialsOf(place, options);
  const { openReactor } = await import('../../io/open.ts');
  const { openDevice } = await import('../../block/open.ts');
  const { BioPool } = await import('../../block/bio.ts');
  const { NbdServer: Server } = await import('../../nbd/server.ts');

  const interrupt = onInterrupt();
  // TLS lives on Node's event loop, and the portable driver is the one that is at home there.
  const driver = options.io ?? (credentials === null ? undefined : 'portable');
  const reactor = await openReactor({ cooperative: true, ...(driver === undefined ? {} : { driver }) });
  let device: BlockDevice | null = null;
  let front: TlsFront | null = null;
  try {
    device = await openDevice(path, { reactor, readOnly: options.readOnly ?? false, direct: options.direct ?? false });
    const served = { name: options.name ?? '', description: absolute(path), device, contexts: () => [] };
    const exports = {
      find: (name: string) => (name === served.name || name === '' ? served : undefined),
      list: () => [served],
    };
    const onDropped = (reason: string): void => void process.stderr.write(`blksnap: dropped a client: ${reason}\n`);
    const server = new Server({ reactor, pool: new BioPool(), exports, onDropped });
    if (credentials !== null) front = await securedClients(server, { place, credentials, onDropped, options });
    const ending = front === null ? clientsServed(server, reactor, { place, options }) : forEver();
    await Promise.race([ending, aborted(interrupt.signal)]);
    await front?.close();
    await server.close();
  } finally {
    await front?.close();
    await device?.close();
    await reactor.close();
    interrupt.release();
    if (place.kind === 'stdio') refillStdio();
  }
}

/** Errors: EINVAL for TLS where no client can begin it, and for none where it is needed. */
async function credentialsOf(place: Place, options: ServeOptions): Promise<ServerCredentials | null> {
  const { tlsCertificates: certificates, tlsPsk: psk, tlsVerifyPeer: verifyPeer, insecureTcp } = options;
  const { loadServerCredentials } = await import('../../nbd/tls-credentials.ts');
  const credentials = loadServerCredentials({ certificates, psk, verifyPeer });
  if (place.kind === 'address') {
    refuseExposed(place.address, { tls: credentials !== null, insecure: insecureTcp ?? false });
  } else if (credentials !== null) {
    throw new BlksnapError('EINVAL', 'Cannot serve with TLS there: it needs --socket PATH or --listen host:port');
  }
  return credentials;
}

interface Secured {
  readonly place: Place;
  readonly credentials: ServerCredentials;
  readonly onDropped: (reason: string) => void;
  readonly options: ServeOptions;
}

async function securedClients(
  server: NbdServer,
  { place, credentials, onDropped, options }: Secured,
): Promise<TlsFront> {
  assert(place.kind === 'address', 'only there is TLS');
  const { TlsFront: Front } = await import('../../nbd/tls-front.ts');
  const onClient = (client: Visitor): void => void server.takeOver(client);
  const front = await Front.listen(place.address, { credentials, onClient, onDropped });
  await tellUri({ address: front.address, exportName: options.name ?? '', tls: {} }, options);
  return front;
}

async function tellUri(where: NbdUri, options: ServeOptions): Promise<void> {
  const { formatNbdUri } = await import('../../nbd/uri.ts');
  const uri = formatNbdUri(where);
  if (options.json) printJson({ uri });
  else printLine(uri);
}

/** The connection's end closed the standard descriptors, and libraries still use them at exit. */
function refillStdio(): void {
  for (;;) {
    const fd = fs.openSync('/dev/null', 'r+');
    if (fd <= 2) continue;
    fs.closeSync(fd);
    return;
  }
}

/** Errors: EINVAL when there is not exactly one place. */
function placeOf({ stdio, socket, listen }: ServeOptions): Place {
  const fds = activationFds();
  const places: Place[] = [
    ...(stdio === true ? [{ kind: 'stdio' } as const] : []),
    ...(socket === undefined ? [] : [{ kind: 'address', address: { kind: 'unix', path: absolute(socket) } } as const]),
    ...(listen === undefined ? [] : [{ kind: 'address', address: parseHostPort(listen) } as const]),
    ...(fds.length === 0 ? [] : [{ kind: 'activation', fds } as const]),
  ];
  if (places.length === 1) return places[0]!;
  const found = places.length === 0 ? 'nowhere to listen was given' : 'more than one place was given';
  throw new BlksnapError('EINVAL', `Cannot serve: ${found}; want one of --stdio, --socket PATH and --listen host:port`);
}

function activationFds(): number[] {
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  const count = Number(LISTEN_PID) === process.pid ? Number(LISTEN_FDS) : 0;
  return Number.isInteger(count) && count > 0
    ? Array.from({ length: count }, (_, index) => FIRST_LISTEN_FD + index)
    : [];
}

/** Resolves when no client can come any more: only standard input has an end. */
async function clientsServed(
  server: NbdServer,
  reactor: Reactor,
  { place, options }: { readonly place: Place; readonly options: ServeOptions },
): Promise<void> {
  switch (place.kind) {
    case 'stdio':
      return await server.serve(reactor.adopt(0, 1));
    case 'activation':
      for (const fd of place.fds) await server.listenFd(fd);
      return await forEver();
    case 'address': {
      const { address } = await server.listen(place.address);
      await tellUri({ address, exportName: options.name ?? '' }, options);
      return await forEver();
    }
  }
}

function forEver(): Promise<void> {
  return new Promise(() => {});
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
