/** A thread's part of a pass over a restore point's file. Ends with one message. */

import { parentPort, workerData } from 'node:worker_threads';
import { toBlksnapError } from '../util/errors.ts';
import type { ThreadReport } from './file-pass.ts';
import { passRanges } from './pass-ranges.ts';
import type { Findings, PassJob } from './pass-ranges.ts';

function report(): ThreadReport {
  const findings: Findings = { wrong: [], unreadable: [] };
  try {
    passRanges(workerData as PassJob, findings);
    return findings;
  } catch (cause) {
    const { code, message } = toBlksnapError(cause);
    return { error: { code, message } };
  }
}

parentPort!.postMessage(report());
