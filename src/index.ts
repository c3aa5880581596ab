/** The package's public entry: `import … from 'blksnap'`.
 *
 *  - With a daemon: Client (the whole API), SnapshotSession, ChangeReader.
 *  - Without one: Embedded, with disks, snapshots and images in one's own process.
 *  - Filters of one's own: BlockFilter and what it works with (docs/filters.md). */

export { ChangeReader } from './api/change-reader.ts';
export type { ChangedRange } from './api/change-reader.ts';
export { Client } from './api/client.ts';
export type { CbtView, DiskView, EventView, FilterView, PreparedView, SnapshotView, StatusView } from './api/client.ts';
export { SnapshotSession } from './api/session.ts';
export { Embedded, EmbeddedDisk, EmbeddedSnapshot } from './blksnap/embedded.ts';
export type { EmbeddedOptions, OpenDiskOptions } from './blksnap/embedded.ts';
export type { SnapshotEvent } from './blksnap/events.ts';
export { DEFAULT_PARAMETERS, checkedParameters } from './blksnap/parameters.ts';
export type { Parameters } from './blksnap/parameters.ts';

export { DISCARD, FLUSH, FUA, READ, WRITE, WRITE_ZEROES, BioPool, BioQueue, changesData, runBio } from './block/bio.ts';
export type { Bio, BioOwner, BioSink, Op } from './block/bio.ts';
export { Bytes } from './block/bytes.ts';
export type { BlockDevice, Capabilities, Extent } from './block/device.ts';
export { Disk } from './block/disk.ts';
export { BlockFilter, FilterRegistry } from './block/filter.ts';
export type { FilterFactory, FilterHost, FilterModule } from './block/filter.ts';
export type { Completion, Reactor } from './io/reactor.ts';
export { BlksnapError, ERRNO } from './util/errors.ts';
export type { ErrorCode } from './util/errors.ts';
