/** The API's shapes: what validates requests is what the OpenAPI document is made from. What the
 *  daemon hands out (daemon/views.ts) is checked against these by the compiler. */

import { z } from '@hono/zod-openapi';
import type {
  CbtView,
  DiskView,
  EventView,
  FailureView,
  FilterView,
  ImageView,
  KernelDeviceView,
  PreparedView,
  SnapshotView,
  StatusView,
} from '../daemon/views.ts';
import { VIAS } from '../kernel/provider.ts';
import { ERRNO } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import { shape } from './shape.ts';

const TIB = 2 ** 40;
/** Longest wait for events; a client asks again. */
export const MAX_WAIT_MS = 60_000;
/** Ranges that one request may mark. */
const MAX_RANGES = 65_536;

const errorCode = z.enum(Object.keys(ERRNO) as [ErrorCode, ...ErrorCode[]]);
const bytes = z.int().nonnegative();
const text = z.string().min(1).max(4096);

const failure = shape<FailureView>()(z.object({ code: errorCode, message: z.string() }).openapi('Failure'));

export const errorBody = z.object({ error: failure }).openapi('Error');

const copiesView = shape<StatusView['copies']>()(
  z
    .object({
      copiedChunks: z.int().openapi({ description: 'Chunks of 4 KiB that were stored' }),
      zeroChunks: z.int().openapi({ description: 'Read, and not stored: all zeros' }),
      holeChunks: z.int().openapi({ description: 'Neither read nor stored: in a hole' }),
      reads: z.int(),
      readBytes: bytes,
      storedBytes: bytes,
      heldWrites: z.int().openapi({ description: 'Writes that waited for a read' }),
      memoryWaits: z.int().openapi({ description: 'Writes that waited for copy memory' }),
      releasedChunks: z.int().openapi({ description: 'Freed, or never copied: readers were done with them' }),
      brokenImages: z.int().openapi({ description: 'Images that were lost' }),
    })
    .openapi('Copies'),
);

const parametersView = shape<StatusView['parameters']>()(
  z
    .object({
      trackingBlockMinShift: z.int(),
      trackingBlockMaxShift: z.int(),
      trackingBlockMaxCount: z.int(),
      copyUnitBytes: bytes,
      arenaBytes: bytes,
      copyMemoryBytes: bytes,
      cowTimeoutMs: z.int(),
      storagePortionBytes: bytes,
      maxSnapshots: z.int(),
      maxSnapshotsPerDisk: z.int(),
      maxConnections: z.int(),
    })
    .openapi('Parameters', { description: 'What the daemon was started with; docs/parameters.md' }),
);

export const statusView = shape<StatusView>()(
  z
    .object({
      version: z.string(),
      pid: z.int(),
      startedAt: z.iso.datetime(),
      runDirectory: z.string(),
      stateDirectory: z.string(),
      driver: z.string().openapi({ description: 'The I/O driver in use' }),
      driverReason: z.string().openapi({ description: 'Why it is not io_uring; empty when it is' }),
      ioThreads: z.int().openapi({ description: 'Threads that disks are spread over' }),
      nbdUri: z.string(),
      parameters: parametersView,
      copies: copiesView,
      disks: z.int(),
      failedDisks: z.int(),
      snapshots: z.int(),
      kernelDevices: z.int().openapi({ description: 'Disks and images that have a device in /dev' }),
      refusedSnapshots: z.int().openapi({ description: 'Persistent ones that could not be brought back' }),
    })
    .openapi('Status'),
);

export const cbtView = shape<CbtView>()(
  z
    .object({
      size: bytes,
      blockSize: bytes.openapi({ description: 'Bytes of one tracking block' }),
      blockCount: z.int(),
      generationId: z.string().openapi({ description: 'Changes whenever the history of changes is lost' }),
      changeNumber: z.int().openapi({ description: 'The number that changes are marked with now' }),
      reason: z.string().openapi({ description: 'Why this history began; empty when it goes on from before' }),
    })
    .openapi('ChangeTracking'),
);

const kernelDeviceView = shape<KernelDeviceView>()(
  z
    .object({
      path: z.string().nullable().openapi({ description: 'The node in /dev; null while the device is down' }),
      via: z.enum(VIAS),
      failure: failure.nullable(),
    })
    .openapi('KernelDevice'),
);

export const diskView = shape<DiskView>()(
  z
    .object({
      name: z.string(),
      kind: z.enum(['disk', 'mount', 'partition', 'mapped']),
      path: z.string(),
      point: z.string().nullable(),
      state: z.enum(['attached', 'failed']),
      failure: failure.nullable(),
      uri: z.string(),
      size: bytes,
      logicalBlockSize: z.int(),
      physicalBlockSize: z.int(),
      readOnly: z.boolean(),
      direct: z.boolean(),
      live: z.boolean().openapi({ description: 'A device-mapper volume that others use while it is attached' }),
      filters: z.array(z.string()),
      inFlight: z.int(),
      cbt: cbtView.nullable(),
      copies: copiesView.nullable(),
      partition: z
        .object({ disk: z.string(), number: z.int(), offset: bytes, type: z.string(), label: z.string() })
        .nullable(),
      partitionTable: z.object({ scheme: z.enum(['gpt', 'mbr']), warnings: z.array(z.string()) }).nullable(),
      kernelDevice: kernelDeviceView.nullable(),
    })
    .openapi('Disk'),
);

const filterView = shape<FilterView>()(z.object({ name: z.string(), disks: z.array(z.string()) }).openapi('Filter'));
export const filtersView = z.object({ filters: z.array(filterView) });

const imageView = shape<ImageView>()(
  z
    .object({
      disk: z.string(),
      uri: z.string(),
      readOnceUri: z.string().openapi({ description: 'For a reader that discards what it is done with' }),
      exportName: z.string(),
      size: bytes,
      generationId: z.string(),
      changeNumber: z.int().openapi({ description: "The snapshot's own number in that history" }),
      error: errorCode.nullable().openapi({ description: 'Why the image is lost' }),
      kernelDevice: kernelDeviceView.nullable(),
    })
    .openapi('Image'),
);

export const snapshotView = shape<SnapshotView>()(
  z
    .object({
      id: z.uuid(),
      createdAt: z.iso.datetime(),
      heldMs: z.number().openapi({ description: 'How long writes were held at the take' }),
      freeze: z
        .object({
          frozenMs: z.number().openapi({ description: 'From the start of the freeze to the end of the thaw' }),
          thawError: z.string().nullable(),
        })
        .nullable()
        .openapi({ description: 'How freezing file systems and the freeze hooks went; null without' }),
      storagePath: z.string(),
      places: z
        .array(z.object({ path: z.string(), limitBytes: bytes.nullable() }))
        .openapi({ description: 'Of its storage, in the order in which they are filled' }),
      usedBytes: bytes,
      limitBytes: bytes.nullable(),
      leaseMs: z.int().nullable().openapi({ description: 'It goes when nobody renews it for so long; null: it stays' }),
      persistent: z.boolean().openapi({ description: 'It outlives the daemon' }),
      failure: failure.nullable().openapi({ description: 'Why a persistent one could not be brought back' }),
      images: z.array(imageView),
    })
    .openapi('Snapshot'),
);

export const preparedView = shape<PreparedView>()(
  z
    .object({
      id: z.uuid().openapi({ description: 'The snapshot will have it' }),
      createdAt: z.iso.datetime(),
      disks: z.array(z.string()),
      storagePath: z.string(),
      limitBytes: bytes.nullable(),
    })
    .openapi('PreparedSnapshot'),
);

export const eventView = shape<EventView>()(
  z
    .object({
      sequence: z.int(),
      time: z.iso.datetime(),
      snapshotId: z.string(),
      disk: z.string().nullable(),
      code: z.enum(['lowSpace', 'noSpace', 'corrupted']),
      error: errorCode.nullable(),
      requestedBytes: bytes.nullable().openapi({
        description: 'Of noSpace, what the copy asked for; of lowSpace, the portion that is wanted',
      }),
      usedBytes: bytes,
      limitBytes: bytes.nullable(),
    })
    .openapi('Event'),
);

export const disksView = z.object({ disks: z.array(diskView) });
export const snapshotsView = z.object({ snapshots: z.array(snapshotView) });
export const preparedsView = z.object({ prepared: z.array(preparedView) });
export const nextEventView = z.object({ event: eventView.nullable() });
export const eventsView = z.object({ events: z.array(eventView) });

// --- requests -----------------------------------------------------------------------------------

export const nameParam = z.object({ name: text.openapi({ param: { name: 'name', in: 'path' } }) });
export const idParam = z.object({ id: text.openapi({ param: { name: 'id', in: 'path' } }) });

const deviceRequest = {
  kernelDevice: z
    .boolean()
    .optional()
    .openapi({ description: 'A device in /dev. Default: for block devices, where the kernel has what it takes' }),
  via: z.enum(VIAS).optional().openapi({ description: 'How. Default: the best that the kernel has' }),
};

export const attachRequest = z
  .strictObject({
    path: text.startsWith('/', 'want an absolute path'),
    name: text.optional().openapi({ description: "Default: the file's name without its extension" }),
    readOnly: z.boolean().optional(),
    direct: z.boolean().optional().openapi({ description: 'Past the page cache' }),
    mappable: z.boolean().optional().openapi({
      description: 'On the first I/O thread, where mapped devices are: tables and redirected ranges may use it',
    }),
    ...deviceRequest,
    force: z.boolean().optional().openapi({
      description: 'A volume in use: also where the machine or the daemon runs from it, or swaps to it',
    }),
  })
  .openapi('AttachRequest');

export const mountRequest = z
  .strictObject({
    directory: text.startsWith('/', 'want an absolute path'),
    disk: text,
    point: text.optional().openapi({ description: 'Default: the newest' }),
    name: text.optional().openapi({ description: "Default: the disk's name and -mount" }),
  })
  .openapi('MountRequest');

const storage = text.refine(
  (place) => place.startsWith('/') || place === ':memory:',
  'want an absolute path or :memory:',
);

/** What is too little, the storage says. */
const storageLimit = z
  .int()
  .nonnegative()
  .max(8192 * TIB);

export const snapshotRequest = z
  .strictObject({
    disks: z.array(text).min(1, 'name at least one disk').max(1024),
    storage: storage.optional().openapi({
      description: 'Where saved chunks go: a directory, a new or unused file, an unused block device, or :memory:',
    }),
    limitBytes: storageLimit.optional(),
    ...deviceRequest,
    leaseMs: z
      .int()
      .min(1000)
      .max(3_600_000)
      .optional()
      .openapi({ description: 'It is destroyed when nobody renews it for so long. Default: it stays' }),
    fsfreeze: z.boolean().optional().openapi({
      description: "Freeze file systems that are mounted on the disks' kernel devices. Default: true",
    }),
    persistent: z
      .boolean()
      .optional()
      .openapi({ description: 'It outlives the daemon; its images cannot be written, and its storage has a name' }),
    hooks: z
      .strictObject({
        freeze: text.optional(),
        thaw: text.optional(),
        timeoutMs: z.int().positive().max(3_600_000).optional(),
      })
      .refine(({ freeze, thaw }) => (freeze === undefined) === (thaw === undefined), 'want freeze and thaw, or neither')
      .optional()
      .openapi({
        description:
          'Shell commands that the daemon runs before and after the take; the thaw always runs. And how long file systems ' +
          'may be frozen, also without commands',
      }),
  })
  .openapi('SnapshotRequest');

export const storageRequest = z
  .strictObject({
    storage: storage.optional().openapi({ description: 'Another place; without it the limit is raised' }),
    limitBytes: storageLimit.optional().openapi({ description: 'Of that place, or without one the new limit in all' }),
  })
  .openapi('StorageRequest');

export const preparedRequest = snapshotRequest
  .omit({ hooks: true, leaseMs: true, persistent: true, kernelDevice: true, via: true, fsfreeze: true })
  .extend({ disks: z.array(text).max(1024).default([]) })
  .openapi('PrepareRequest');

export const clientParams = z.object({
  name: text.openapi({ param: { name: 'name', in: 'path' } }),
  client: text.openapi({ param: { name: 'client', in: 'path' } }),
});
export const clientRequest = z
  .strictObject({
    client: text.openapi({ description: "A certificate's CN, a pre-shared key's name, or uid:N" }),
  })
  .openapi('ClientRequest');
export const clientsView = z
  .object({
    clients: z.array(z.string()).nullable().openapi({
      description: 'Null where no rule says who may: then those who come without a name, where they can',
    }),
  })
  .openapi('Clients');

export const filterParams = z.object({
  name: text.openapi({ param: { name: 'name', in: 'path' } }),
  filter: text.openapi({ param: { name: 'filter', in: 'path' } }),
});

export const filterRequest = z
  .strictObject({ filter: text, options: z.unknown().optional().openapi({ description: "The filter's own" }) })
  .openapi('FilterRequest');

export const ctlRequest = z.strictObject({ command: text, payload: z.unknown().optional() }).openapi('FilterCommand');
export const ctlResult = z.object({ result: z.unknown() });

export const addDiskRequest = z.strictObject({ disk: text }).openapi('AddDiskRequest');

const range = z.strictObject({ offset: bytes, length: z.int().positive() });

export const dirtyRequest = z.strictObject({ ranges: z.array(range).min(1).max(MAX_RANGES) }).openapi('DirtyRequest');

export const mapQuery = z.object({
  offset: z.coerce.number().int().nonnegative().default(0),
  length: z.coerce.number().int().positive().optional(),
});

export const detachQuery = z.object({
  force: z.enum(['true', 'false']).default('false').openapi({ description: 'Cut clients off that are connected' }),
});

export const eventsQuery = z.object({
  after: z.coerce.number().int().nonnegative().default(0).openapi({ description: 'The last sequence number seen' }),
  timeoutMs: z.coerce.number().int().nonnegative().max(MAX_WAIT_MS).default(0),
});

export const waitQuery = z.object({ timeoutMs: z.coerce.number().int().nonnegative().max(MAX_WAIT_MS).default(0) });
