/** The I/O thread's program: a reactor, the disks on it, and an ear for the control thread.
 *
 *  Runs on the reactor's loop: never waits for asynchronous node:fs or node:net. */

import { parentPort, workerData } from 'node:worker_threads';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { BioPool } from '../block/bio.ts';
import type { FilterModule } from '../block/filter.ts';
import { chooseDriver, openReactor } from '../io/open.ts';
import type { Notifier, Reactor } from '../io/reactor.ts';
import { assert } from '../util/assert.ts';
import { toBlksnapError } from '../util/errors.ts';
import { DiskFilters } from './disk-filters.ts';
import { loadFilterModules } from './filter-modules.ts';
import type { Call, ErrorReport, IoHandlers, IoThreadOptions, Report } from './io-protocol.ts';
import { IoService } from './io-service.ts';

assert(parentPort !== null, 'runs in a worker');
const port = parentPort;

function report(message: Report): void {
  port.postMessage(message);
}

function describe(cause: unknown): ErrorReport {
  const { code, message } = toBlksnapError(cause);
  return { code, message };
}

async function start(options: IoThreadOptions): Promise<void> {
  const filterModules = await loadFilterModules(options.filterModules);
  const choice = await chooseDriver();
  const reactor = await openReactor({
    ...(options.driver === null ? {} : { driver: options.driver }),
    arenaBytes: options.parameters.arenaBytes,
    slabBytes: Infinity,
  });
  const filters = await openFilters(filterModules, reactor);
  const onEvent = (event: SnapshotEvent): void => report({ kind: 'event', event });
  const service = new IoService({
    reactor,
    parameters: options.parameters,
    filters,
    onEvent,
    onExportChange: (change) => report({ kind: 'exportChange', change }),
    onHandOver: (client) => report({ kind: 'handOver', client }),
    onKernelLeft: (exportName) => report({ kind: 'kernelLeft', exportName }),
  });
  const notifier = reactor.onMessages(port, (message) => void answer(service.handlers, message as Call));
  stopped = async () => end(reactor, notifier);
  const driverReason = reactor.driver === 'uring' ? '' : options.driver === null ? choice.reason : 'asked for';
  report({ kind: 'ready', ready: { driver: reactor.driver, driverReason, wakeFd: notifier.wakeFd } });
}

/** A thread that cannot start must not stay. */
async function openFilters(modules: readonly FilterModule[], reactor: Reactor): Promise<DiskFilters> {
  try {
    return new DiskFilters(modules, { reactor, pool: new BioPool() });
  } catch (cause) {
    await reactor.close();
    throw cause;
  }
}

let stopped: () => Promise<void> = async () => {};

async function answer(handlers: IoHandlers, call: Call): Promise<void> {
  try {
    // The types of both ends come from IoCalls; the message in between has lost them.
    const handler = handlers[call.name] as (args: unknown) => Promise<unknown>;
    report({ kind: 'result', id: call.id, result: await handler(call.args) });
  } catch (cause) {
    report({ kind: 'error', id: call.id, error: describe(cause) });
  }
  if (call.name === 'stop') await stopped();
}

async function end(reactor: Reactor, notifier: Notifier): Promise<void> {
  notifier.close();
  await reactor.close();
}

try {
  await start(workerData as IoThreadOptions);
} catch (cause) {
  report({ kind: 'failed', error: describe(cause) });
}
