/** The one table from error codes to exit codes, and what they mean to a caller. */

import type { ErrorCode } from '../util/errors.ts';

export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;

const EXIT = {
  EINVAL: EXIT_USAGE,
  EISDIR: EXIT_USAGE,
  ENOTDIR: EXIT_USAGE,
  ENAMETOOLONG: EXIT_USAGE,
  ECONNREFUSED: 3,
  EBADMSG: 4,
  ENOENT: 5,
  ESRCH: 5,
  EBUSY: 6,
  EEXIST: 6,
  EALREADY: 6,
  ENOSPC: 7,
  ECANCELED: 130,
} as const satisfies Partial<Record<ErrorCode, number>>;

export const EXIT_CODES_HELP = `Exit codes:
  0    done
  1    failed
  2    the command line or a value on it is wrong
  3    no daemon is running
  4    what was stored is damaged: a backup, or the daemon's state file
  5    there is no such file, disk, snapshot or restore point
  6    it is in use, or there already
  7    out of space
  130  cancelled`;

export function exitCodeOf(code: ErrorCode): number {
  return (EXIT as Partial<Record<ErrorCode, number>>)[code] ?? EXIT_FAILURE;
}
