/** /dev/nbdN by the kernel's own NBD client, over one end of a socket pair whose other end an I/O thread serves: there
 *  is no handshake, and no address that others could use.
 *
 *  When the daemon dies the kernel sees the socket end, and holds requests until somebody gives it another one, for at
 *  most DEAD_SECONDS. Those that were under way it sends again after IO_TIMEOUT_MS. Devices are known by the kernel's
 *  `backend` attribute, which holds the id. Needs kernel 5.14. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { socketPair } from '../io/sys.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { GenericNetlink, nestedAttribute, readU32, textAttribute, u32Attribute, u64Attribute } from './netlink.ts';
import type { DeviceWish, KernelDeviceProvider } from './provider.ts';

// linux/nbd-netlink.h
const CMD_CONNECT = 1;
const CMD_DISCONNECT = 2;
const CMD_RECONFIGURE = 3;
const ATTR_INDEX = 1;
const ATTR_SIZE_BYTES = 2;
const ATTR_BLOCK_SIZE_BYTES = 3;
const ATTR_TIMEOUT = 4;
const ATTR_SERVER_FLAGS = 5;
const ATTR_SOCKETS = 7;
const ATTR_DEAD_CONN_TIMEOUT = 8;
const ATTR_BACKEND_IDENTIFIER = 10;
const SOCK_ITEM = 1;
const SOCK_FD = 1;

const SYS_BLOCK = '/sys/block';
/** How long requests wait for a daemon that died. */
const DEAD_SECONDS = 600;
/** After so long the kernel looks at a request anew, and sends it again when its connection was replaced. */
const IO_TIMEOUT_MS = 5000;
const ID_PREFIX = 'blksnap-';

/** What an I/O thread says of the export that it serves on a socket. */
export interface ServedSocket {
  readonly size: number;
  readonly blockSize: number;
  /** As NBD has them, for a client with simple replies. */
  readonly transmissionFlags: number;
}

/** Serves an export on a connected socket, as to a client that has the handshake behind it. The descriptor is the
 *  server's, also when this fails. */
export type ServeSocket = (exportName: string, fd: number) => Promise<ServedSocket>;

/** Tells whether the export is served, and as what. Errors: ENOENT. */
export type Describe = (exportName: string) => Promise<ServedSocket>;

export class NbdProvider implements KernelDeviceProvider {
  readonly via = 'nbd';
  readonly #serve: ServeSocket;
  readonly #describe: Describe;

  constructor(serve: ServeSocket, describe: Describe) {
    this.#serve = serve;
    this.#describe = describe;
  }

  obstacle({ load }: { readonly load: boolean }): BlksnapError | null {
    if (process.platform !== 'linux') return new BlksnapError('EOPNOTSUPP', 'Kernel devices need Linux');
    if (process.getuid?.() !== 0) {
      return new BlksnapError('EPERM', 'Only root can make kernel devices: run the daemon as root, or leave out --dev');
    }
    if (load && !fs.existsSync('/sys/module/nbd')) spawnSync('modprobe', ['nbd'], { stdio: 'ignore' });
    if (fs.existsSync('/sys/module/nbd')) return null;
    const next = load
      ? 'load it as `modprobe nbd` does, from the kernel package of your system'
      : '`modprobe nbd` does that';
    return new BlksnapError('EOPNOTSUPP', `The kernel's nbd module is not loaded: ${next}`);
  }

  async create(wish: DeviceWish, { preferred }: { readonly preferred: string | null }): Promise<string> {
    const wanted = preferred === null ? null : indexOf(preferred);
    const { index } = await this.#connect(wish, (served, socket) => {
      const attributes = [
        u64Attribute(ATTR_SIZE_BYTES, served.size),
        u64Attribute(ATTR_BLOCK_SIZE_BYTES, served.blockSize),
        u64Attribute(ATTR_SERVER_FLAGS, served.transmissionFlags),
        // 0: a slow server is no dead one.
        u64Attribute(ATTR_TIMEOUT, 0),
        u64Attribute(ATTR_DEAD_CONN_TIMEOUT, DEAD_SECONDS),
        textAttribute(ATTR_BACKEND_IDENTIFIER, backendOf(wish.id)),
        socket,
      ];
      const preferring = wanted === null || isConfigured(wanted) ? [] : [u32Attribute(ATTR_INDEX, wanted)];
      return readU32(ask(CMD_CONNECT, [...preferring, ...attributes]).get(ATTR_INDEX));
    });
    if (index === undefined)
      throw new BlksnapError('EBADMSG', 'Cannot make a kernel device: the kernel did not say which');
    try {
      return await settle(index);
    } catch (cause) {
      await this.remove(wish.id);
      throw toBlksnapError(cause, `Cannot use the new kernel device /dev/nbd${index}`);
    }
  }

  async reconnect(wish: DeviceWish): Promise<string | null> {
    const index = findIndex(wish.id);
    if (index === null) return null;
    await this.#connect(wish, (served, socket) => {
      ask(CMD_RECONFIGURE, [
        u32Attribute(ATTR_INDEX, index),
        u64Attribute(ATTR_SIZE_BYTES, served.size),
        u64Attribute(ATTR_BLOCK_SIZE_BYTES, served.blockSize),
        u64Attribute(ATTR_DEAD_CONN_TIMEOUT, DEAD_SECONDS),
        textAttribute(ATTR_BACKEND_IDENTIFIER, backendOf(wish.id)),
        socket,
      ]);
      return index;
    });
    return `/dev/nbd${index}`;
  }

  async resize(wish: DeviceWish): Promise<void> {
    const index = findIndex(wish.id);
    if (index === null) return;
    const { size, blockSize } = await this.#describe(wish.exportName);
    ask(CMD_RECONFIGURE, [
      u32Attribute(ATTR_INDEX, index),
      u64Attribute(ATTR_SIZE_BYTES, size),
      u64Attribute(ATTR_BLOCK_SIZE_BYTES, blockSize),
      textAttribute(ATTR_BACKEND_IDENTIFIER, backendOf(wish.id)),
    ]);
  }

  async remove(id: string): Promise<void> {
    const index = findIndex(id);
    if (index !== null) ask(CMD_DISCONNECT, [u32Attribute(ATTR_INDEX, index)]);
  }

  /** Makes a socket pair, has one end served, and gives the kernel the other. */
  async #connect(
    wish: DeviceWish,
    give: (served: ServedSocket, socket: Uint8Array) => number | undefined,
  ): Promise<{ index: number | undefined }> {
    const [ours, theirs] = socketPair();
    try {
      const served = await this.#serve(wish.exportName, ours);
      const item = nestedAttribute(SOCK_ITEM, [u32Attribute(SOCK_FD, theirs)]);
      return { index: give(served, nestedAttribute(ATTR_SOCKETS, [item])) };
    } catch (cause) {
      throw toBlksnapError(cause, `Cannot make a kernel device of "${wish.exportName}"`);
    } finally {
      // The kernel holds its end by now; where it does not, the server sees its client go.
      fs.closeSync(theirs);
    }
  }
}

function backendOf(id: string): string {
  return `${ID_PREFIX}${id}`;
}

function indexOf(path: string): number | null {
  const index = /^\/dev\/nbd(\d+)$/.exec(path)?.[1];
  return index === undefined ? null : Number(index);
}

function isConfigured(index: number): boolean {
  return fs.existsSync(`${SYS_BLOCK}/nbd${index}/pid`);
}

/** The device that the kernel knows by this id. */
function findIndex(id: string): number | null {
  const names = fs.readdirSync(SYS_BLOCK).filter((name) => /^nbd\d+$/.test(name));
  const name = names.find((one) => {
    try {
      return fs.readFileSync(`${SYS_BLOCK}/${one}/backend`, 'utf8').trim() === backendOf(id);
    } catch {
      // It has none, or has just gone.
      return false;
    }
  });
  return name === undefined ? null : Number(name.slice('nbd'.length));
}

function ask(command: number, attributes: readonly Uint8Array[]): ReturnType<GenericNetlink['ask']> {
  const netlink = GenericNetlink.open('nbd');
  try {
    return netlink.ask(command, attributes);
  } finally {
    netlink.close();
  }
}

/** Makes a new device ready: the timeout for requests of a daemon that died, and its partitions, which the kernel
 *  looks for when it is opened. */
async function settle(index: number): Promise<string> {
  fs.writeFileSync(`${SYS_BLOCK}/nbd${index}/queue/io_timeout`, String(IO_TIMEOUT_MS));
  const path = `/dev/nbd${index}`;
  const opened = await fs.promises.open(path, 'r');
  await opened.close();
  return path;
}
