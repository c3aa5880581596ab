/** An NBD export to read and write, through our own client. */

import { BioPool, READ, WRITE, runBio } from '../src/block/bio.ts';
import { openReactor } from '../src/io/open.ts';
import { NbdClient } from '../src/nbd/client.ts';
import { parseNbdUri } from '../src/nbd/uri.ts';

const ARENA_BYTES = 8 * 1024 * 1024;

export interface NbdDisk {
  readonly size: number;
  /** Fills `data`. */
  read(offset: number, data: Uint8Array): Promise<void>;
  write(offset: number, data: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

export async function connect(uri: string): Promise<NbdDisk> {
  // This driver lives in Node's own event loop, beside the messages and timers of the process.
  const reactor = await openReactor({ driver: 'portable', arenaBytes: ARENA_BYTES });
  const { arena } = reactor;
  const pool = new BioPool();
  const { address, exportName } = parseNbdUri(uri);
  const device = await NbdClient.connect({ reactor, address, exportName, contexts: [] });

  const transfer = async (op: typeof READ | typeof WRITE, offset: number, data: Uint8Array): Promise<void> => {
    const at = arena.allocate(data.length);
    try {
      if (op === WRITE) arena.bytes.set(data, at);
      const status = await runBio(pool, device, { op, offset, length: data.length, at });
      if (status !== 0) throw new Error(`${uri}: ${data.length} bytes at ${offset}: errno ${status}`);
      if (op === READ) data.set(arena.bytes.subarray(at, at + data.length));
    } finally {
      arena.release(at);
    }
  };

  return {
    size: device.size,
    read: (offset, data) => transfer(READ, offset, data),
    write: (offset, data) => transfer(WRITE, offset, data),
    close: async () => {
      await device.close();
      await reactor.close();
    },
  };
}
