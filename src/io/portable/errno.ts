/** From Node's system errors back to Linux error numbers. */

import { ERRNO } from '../../util/errors.ts';
import type { ErrorCode } from '../../util/errors.ts';

/** -errno of a system error. Numbers differ between platforms, codes do not; an unknown one is -EIO. */
export function negativeErrno(error: NodeJS.ErrnoException): number {
  const { code, errno } = error;
  if (process.platform === 'linux' && errno !== undefined && errno < 0 && errno > -4096) return errno;
  return code !== undefined && code in ERRNO ? -ERRNO[code as ErrorCode] : -ERRNO.EIO;
}
