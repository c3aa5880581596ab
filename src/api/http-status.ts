/** The one table from error codes to HTTP status. Codes that are not in it are the server's own trouble: 500. */

import type { ErrorCode } from '../util/errors.ts';

const STATUS = {
  EINVAL: 400,
  ENAMETOOLONG: 400,
  ENOTDIR: 400,
  EISDIR: 400,
  ERANGE: 400,
  EACCES: 403,
  EPERM: 403,
  EROFS: 403,
  ENOENT: 404,
  ESRCH: 404,
  ENODEV: 409,
  EBUSY: 409,
  EEXIST: 409,
  EALREADY: 409,
  ESTALE: 409,
  EFBIG: 413,
  EBADMSG: 422,
  EOPNOTSUPP: 422,
  EMFILE: 503,
  ESHUTDOWN: 503,
  ENOSPC: 507,
} as const satisfies Partial<Record<ErrorCode, number>>;

export type ErrorStatus = (typeof STATUS)[keyof typeof STATUS] | 500;

export function httpStatus(code: ErrorCode): ErrorStatus {
  return (STATUS as Partial<Record<ErrorCode, ErrorStatus>>)[code] ?? 500;
}
