/** The package's public entry: `import … from 'blksnap'`.
 *
 *  Filters of one's own: BlockFilter and what it works with (docs/filters.md). */

export { DISCARD, FLUSH, FUA, READ, WRITE, WRITE_ZEROES, BioPool, BioQueue, changesData, runBio } from './block/bio.ts';
export type { Bio, BioOwner, BioSink, Op } from './block/bio.ts';
export type { BlockDevice, Capabilities, Extent } from './block/device.ts';
export { Disk } from './block/disk.ts';
export { BlockFilter, FilterRegistry } from './block/filter.ts';
export type { FilterFactory, FilterHost, FilterModule } from './block/filter.ts';
export type { Completion, Reactor } from './io/reactor.ts';
export { BlksnapError, ERRNO } from './util/errors.ts';
export type { ErrorCode } from './util/errors.ts';
