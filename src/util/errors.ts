/** The one error class of the project, and the one table of error numbers.
 *  Everything below the API speaks errno numbers (0 is success); everything that a person or
 *  a program may see carries a stable code. Programming mistakes are not errors but failed
 *  assertions: see assert.ts. */

/** Linux error numbers by code: the ones this project raises or passes on (asm-generic/errno). */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EMFILE: 24,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  EPIPE: 32,
  ERANGE: 34,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  EOVERFLOW: 75,
  EPROTO: 71,
  EBADMSG: 74,
  EILSEQ: 84,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ECONNRESET: 104,
  ECONNREFUSED: 111,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  EALREADY: 114,
  ESTALE: 116,
  ECANCELED: 125,
} as const;

export type ErrorCode = keyof typeof ERRNO;

const codeByErrno = new Map<number, ErrorCode>(
  Object.entries(ERRNO).map(([code, errno]) => [errno, code as ErrorCode]),
);

/** The code of an error number; numbers outside the table are EIO. */
export function codeOfErrno(errno: number): ErrorCode {
  return codeByErrno.get(errno) ?? 'EIO';
}

/** An expected failure. `message` names the action, the actual and the wanted value, and where it
 *  helps the next step: `Cannot attach disk "a": size 1000 is not a multiple of 512`. */
export class BlksnapError extends Error {
  override readonly name = 'BlksnapError';
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
  }

  get errno(): number {
    return ERRNO[this.code];
  }
}

const MORE_FILES = '; let the process have more (ulimit -n, LimitNOFILE=)';

/** Wraps whatever was thrown (a Node system error, a BlksnapError, anything) into a BlksnapError.
 *  `action` comes before the cause's own words: `Cannot open "x": ENOENT: no such file…`. */
export function toBlksnapError(cause: unknown, action?: string): BlksnapError {
  if (cause instanceof BlksnapError && action === undefined) return cause;
  const given = (cause as { code?: unknown }).code;
  const code = given === 'ENOTSUP' ? 'EOPNOTSUPP' : given; // one number on Linux, and Node takes the other name
  const known = typeof code === 'string' && code in ERRNO ? (code as ErrorCode) : 'EIO';
  const own = cause instanceof Error ? cause.message : String(cause);
  const words = known === 'EMFILE' && !own.includes(MORE_FILES) ? own + MORE_FILES : own;
  return new BlksnapError(known, action === undefined ? words : `${action}: ${words}`, { cause });
}

/** The error for a failed operation that reported an error number. */
export function errnoError(errno: number, action: string): BlksnapError {
  const code = codeOfErrno(errno);
  return new BlksnapError(code, `${action}: ${code}${code === 'EIO' && errno !== 5 ? ` (errno ${errno})` : ''}`);
}
