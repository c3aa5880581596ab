/** One daemon per directory. */

import { lockFile } from '../io/lock-file.ts';
import type { FileLock } from '../io/lock-file.ts';

/** Errors: EBUSY, naming the process, when another daemon has the directory. */
export function lockDirectory(file: string): FileLock {
  return lockFile(file, {
    holder: String(process.pid),
    action: `Cannot lock the daemon's directory`,
    busy: (pid) =>
      `Cannot start: another daemon${pid === '' ? '' : ` (process ${pid})`} holds "${file}"; ` +
      'stop it, or give this one another --dir',
  });
}
