/** Tests of others that cannot pass with ours, and why: by suite. */

const BYTES =
  'wants reads and writes of single bytes; ours are of whole blocks of 512, which the server tells its clients';
const LIMIT = 'sends requests over 32 MiB, the limit that the server tells its clients';
const EMPTY = 'wants an export of no bytes; ours have at least one sector';

/** @type {Readonly<Record<string, ReadonlyMap<string, string>>>} */
export const KNOWN = {
  nbd: new Map([
    ['cfgsize', BYTES],
    ['integrityhuge', LIMIT],
  ]),
  libnbd: new Map([
    ['tests/errors-server-invalid-offset', BYTES],
    ['tests/aio-parallel.sh', BYTES],
    ['tests/aio-parallel-load.sh', BYTES],
    ['tests/synch-parallel.sh', BYTES],
    ['info/info-null.sh', EMPTY],
    ['info/info-map-base-allocation-zero.sh', EMPTY],
    ['info/info-packets.sh', 'expects the replies of an nbdkit without extended headers; ours has them'],
  ]),
  qemu: new Map(),
};
