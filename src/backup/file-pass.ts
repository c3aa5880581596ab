/** One pass over the file of a restore point: every range of it is read once, compared with its checksum and, where that
 *  is wanted, what it holds of the disk is written to a file from the same memory.
 *
 *  A large file is gone through by several threads at once, each in plain calls with a buffer that stays in its
 *  processor's cache: reading, adding up and writing take one another's time otherwise. */

import fs from 'node:fs';
import os from 'node:os';
import { Worker } from 'node:worker_threads';
import { checkGoingOn, whenAborted } from '../util/cancel.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { passRanges, progressOf, sharedNumbers, stop } from './pass-ranges.ts';
import type { CopyJob, Findings, PassJob } from './pass-ranges.ts';
import type { FileSums } from './sums.ts';

/** Starting threads takes as long as going through so much of a file. */
const THREADED_BYTES = 64 * MIB;
/** Two even for one processor: one waits for the disk while the other works. */
const MOST_THREADS = Math.max(2, Math.min(4, os.availableParallelism()));
const PROGRESS_INTERVAL_MS = 100;

export interface PassOptions {
  readonly sums: FileSums;
  readonly copy?: CopyJob | undefined;
  /** This one among them. Default: as the file's size asks for. */
  readonly threads?: number;
  /** Hears how many more bytes of the file, and of them for the disk, were dealt with. */
  readonly onBytes?: ((bytes: number, copied: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What a thread reports at its end. */
export type ThreadReport = Findings | { readonly error: { readonly code: ErrorCode; readonly message: string } };

/** Errors: ENOENT and the like for the file; what writing the copy fails with; ECANCELED. */
export async function passFile(file: string, { sums, copy, signal, ...options }: PassOptions): Promise<Findings> {
  const threads = options.threads ?? (sums.fileBytes < THREADED_BYTES ? 1 : MOST_THREADS);
  const fd = fs.openSync(file, 'r');
  try {
    const job: PassJob = { fd, sums, copy: copy ?? null, shared: sharedNumbers() };
    const meter = new Meter(job, options.onBytes);
    const findings = await passByThreads(job, threads, { meter, signal });
    meter.look();
    checkGoingOn(signal);
    return findings;
  } finally {
    fs.closeSync(fd);
  }
}

/** Tells what the threads have counted since the last look. */
class Meter {
  readonly #job: PassJob;
  readonly #onBytes: PassOptions['onBytes'];
  #read = 0;
  #copied = 0;

  constructor(job: PassJob, onBytes: PassOptions['onBytes']) {
    this.#job = job;
    this.#onBytes = onBytes;
  }

  look(): void {
    const { read, copied } = progressOf(this.#job);
    if (read > this.#read) this.#onBytes?.(read - this.#read, copied - this.#copied);
    this.#read = read;
    this.#copied = copied;
  }
}

/** Range by range, with a turn of the event loop between. */
async function passHere(job: PassJob, meter: Meter, signal: AbortSignal | undefined): Promise<Findings> {
  const findings: Findings = { wrong: [], unreadable: [] };
  while (!passRanges(job, findings, 1)) {
    meter.look();
    await new Promise<void>((resolve) => void setImmediate(resolve));
    checkGoingOn(signal);
  }
  return findings;
}

async function passByThreads(
  job: PassJob,
  threads: number,
  { meter, signal }: { readonly meter: Meter; readonly signal: AbortSignal | undefined },
): Promise<Findings> {
  const stopListening = whenAborted(signal, () => stop(job));
  const timer = setInterval(() => meter.look(), PROGRESS_INTERVAL_MS);
  try {
    // Not `all`: the files may be closed only when no thread uses them. This one begins while the others start.
    const here = passHere(job, meter, signal).catch((cause: unknown) => {
      stop(job);
      throw cause;
    });
    const others = Array.from({ length: threads - 1 }, () => passByThread(job));
    const ended = await Promise.allSettled([here, ...others]);
    const reports = ended.map((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason;
      return outcome.value;
    });
    return {
      wrong: reports.flatMap(({ wrong }) => wrong),
      unreadable: reports.flatMap(({ unreadable }) => unreadable),
    };
  } finally {
    clearInterval(timer);
    stopListening();
  }
}

/** A thread's findings. One that fails stops the others. */
function passByThread(job: PassJob): Promise<Findings> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(entry(), { workerData: job });
    let end = (): void => reject(new BlksnapError('ESHUTDOWN', 'A thread that reads the backup has ended'));
    const fail = (cause: BlksnapError): void => {
      stop(job);
      end = () => reject(cause);
    };
    worker.once('message', (report: ThreadReport) => {
      if ('error' in report) fail(new BlksnapError(report.error.code, report.error.message));
      else end = () => resolve(report);
    });
    worker.once('error', (cause) => fail(toBlksnapError(cause, 'A thread that reads the backup failed')));
    worker.once('exit', () => end());
  });
}

/** The thread's program: built, or by way of the loader that runs the sources in development. */
function entry(): URL {
  const built = import.meta.url.endsWith('.js');
  return new URL(built ? '../backup/pass-thread.js' : './pass-thread.dev.mjs', import.meta.url);
}
