/** The lock of a disk's backup directory: one backup or prune at a time, on this machine or, where
 *  the file system carries locks, on others that share the directory. */

import os from 'node:os';
import path from 'node:path';
import { lockFile } from '../io/lock-file.ts';
import type { FileLock } from '../io/lock-file.ts';

/** Locks a disk's directory. `action` names what for: `backup`. Errors: EBUSY, naming the holder. */
export function lockDisk(diskPath: string, action: string): FileLock {
  return lockFile(path.join(diskPath, '.lock'), {
    holder: `${action} by process ${process.pid} on ${os.hostname()} since ${new Date().toISOString()}`,
    action: `Cannot lock the backup directory for ${action}`,
    busy: (holder) =>
      `Cannot start ${action} in "${diskPath}": it is in use (${holder || 'holder unknown'}); try again when it is done`,
  });
}
