/** The NBD protocol's numbers: fixed newstyle handshake, and transmission with simple, structured
 *  and extended headers. Source: doc/proto.md of the NetworkBlockDevice project, and its branch
 *  extension-ext-header. All fields are big-endian. */

import { ERRNO } from '../util/errors.ts';

// --- handshake --------------------------------------------------------------------------------

/** 64-bit magics as pairs of 32 bits. */
export const INIT_MAGIC = [0x4e42444d, 0x41474943] as const; // NBDMAGIC
export const OPTION_MAGIC = [0x49484156, 0x454f5054] as const; // IHAVEOPT
export const OPTION_REPLY_MAGIC = [0x0003e889, 0x045565a9] as const;

/** Handshake flags; the client's answer uses the same bits. */
export const FLAG_FIXED_NEWSTYLE = 1;
export const FLAG_NO_ZEROES = 2;

export const OPT_EXPORT_NAME = 1;
export const OPT_ABORT = 2;
export const OPT_LIST = 3;
export const OPT_STARTTLS = 5;
export const OPT_INFO = 6;
export const OPT_GO = 7;
export const OPT_STRUCTURED_REPLY = 8;
export const OPT_LIST_META_CONTEXT = 9;
export const OPT_SET_META_CONTEXT = 10;
export const OPT_EXTENDED_HEADERS = 11;

export const REP_ACK = 1;
export const REP_SERVER = 2;
export const REP_INFO = 3;
export const REP_META_CONTEXT = 4;
const REP_ERROR = 2 ** 31;
export const REP_ERR_UNSUP = REP_ERROR + 1;
export const REP_ERR_POLICY = REP_ERROR + 2;
export const REP_ERR_INVALID = REP_ERROR + 3;
export const REP_ERR_TLS_REQD = REP_ERROR + 5;
export const REP_ERR_UNKNOWN = REP_ERROR + 6;
export const REP_ERR_SHUTDOWN = REP_ERROR + 7;
export const REP_ERR_TOO_BIG = REP_ERROR + 9;
export const REP_ERR_EXT_HEADER_REQD = REP_ERROR + 10;

export function isErrorReply(type: number): boolean {
  return type >= REP_ERROR;
}

export const INFO_EXPORT = 0;
export const INFO_NAME = 1;
export const INFO_DESCRIPTION = 2;
export const INFO_BLOCK_SIZE = 3;

/** Zeros that end the answer to OPT_EXPORT_NAME, unless both sides set NO_ZEROES. */
export const EXPORT_NAME_PADDING = 124;
/** No string of the protocol may be longer, bytes. */
export const STRING_LIMIT = 4096;
export const DEFAULT_PORT = 10809;

// --- transmission -----------------------------------------------------------------------------

/** Transmission flags. */
export const HAS_FLAGS = 1;
export const READ_ONLY = 1 << 1;
export const SEND_FLUSH = 1 << 2;
export const SEND_FUA = 1 << 3;
export const ROTATIONAL = 1 << 4;
export const SEND_TRIM = 1 << 5;
export const SEND_WRITE_ZEROES = 1 << 6;
export const SEND_DF = 1 << 7;
export const CAN_MULTI_CONN = 1 << 8;
export const SEND_CACHE = 1 << 10;
export const SEND_FAST_ZERO = 1 << 11;
export const BLOCK_STATUS_PAYLOAD = 1 << 12;

export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const REQUEST_SIZE = 28;
export const SIMPLE_REPLY_SIZE = 16;
export const STRUCTURED_REPLY_SIZE = 20;
/** Request and reply. */
export const EXTENDED_HEADER_SIZE = 32;

export const CMD_READ = 0;
export const CMD_WRITE = 1;
export const CMD_DISC = 2;
export const CMD_FLUSH = 3;
export const CMD_TRIM = 4;
export const CMD_CACHE = 5;
export const CMD_WRITE_ZEROES = 6;
export const CMD_BLOCK_STATUS = 7;

export const CMD_FLAG_FUA = 1;
export const CMD_FLAG_NO_HOLE = 1 << 1;
export const CMD_FLAG_DF = 1 << 2;
export const CMD_FLAG_REQ_ONE = 1 << 3;
export const CMD_FLAG_FAST_ZERO = 1 << 4;
export const CMD_FLAG_PAYLOAD_LEN = 1 << 5;

export const REPLY_FLAG_DONE = 1;
export const REPLY_NONE = 0;
export const REPLY_OFFSET_DATA = 1;
export const REPLY_OFFSET_HOLE = 2;
export const REPLY_BLOCK_STATUS = 5;
export const REPLY_BLOCK_STATUS_EXT = 6;
const REPLY_ERROR_BIT = 2 ** 15;
export const REPLY_ERROR = REPLY_ERROR_BIT + 1;

export function isErrorChunk(type: number): boolean {
  return (type & REPLY_ERROR_BIT) !== 0;
}

/** A payload of this size is never an attack, whatever was advertised. */
export const PAYLOAD_LIMIT = 2 ** 25;
/** More extents than this a status chunk must not hold. */
export const EXTENT_LIMIT = 2 ** 20;

/** Flags of the context base:allocation. */
export const BASE_ALLOCATION = 'base:allocation';
export const STATE_HOLE = 1;
export const STATE_ZERO = 2;

/** Which headers both sides use in transmission. */
export type HeaderStyle = 'simple' | 'structured' | 'extended';

export const NBD_OK = 0;
export const NBD_EPERM = 1;
export const NBD_EIO = 5;
const NBD_ENOMEM = 12;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOTSUP = 95;
export const NBD_ESHUTDOWN = 108;

/** The one table from errno to the numbers that NBD allows. */
export function nbdError(errno: number): number {
  switch (errno) {
    case 0:
      return NBD_OK;
    case ERRNO.EPERM:
    case ERRNO.EROFS:
    case ERRNO.EACCES:
      return NBD_EPERM;
    case ERRNO.ENOMEM:
      return NBD_ENOMEM;
    case ERRNO.EINVAL:
      return NBD_EINVAL;
    case ERRNO.ENOSPC:
    case ERRNO.EFBIG:
      return NBD_ENOSPC;
    case ERRNO.EOVERFLOW:
      return NBD_EOVERFLOW;
    case ERRNO.EOPNOTSUPP:
      return NBD_ENOTSUP;
    case ERRNO.ESHUTDOWN:
      return NBD_ESHUTDOWN;
    default:
      return NBD_EIO;
  }
}

/** And back: NBD's numbers are Linux's. What the protocol does not know counts as EINVAL. */
export function errnoOfNbd(error: number): number {
  switch (error) {
    case NBD_OK:
    case NBD_EPERM:
    case NBD_EIO:
    case NBD_ENOMEM:
    case NBD_EINVAL:
    case NBD_ENOSPC:
    case NBD_EOVERFLOW:
    case NBD_ENOTSUP:
    case NBD_ESHUTDOWN:
      return error;
    default:
      return ERRNO.EINVAL;
  }
}

/** An unsigned 64-bit field as a number: exact up to 2^53, and far above any size beyond. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}

/** `value` is a whole number up to 2^53. */
export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / 2 ** 32));
  view.setUint32(at + 4, value >>> 0);
}
