/** What an export allows: its transmission flags, and the check of every request before it is served. */

import { FAST_ZERO, FUA, NO_HOLE } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import {
  BLOCK_STATUS_PAYLOAD,
  CAN_MULTI_CONN,
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_FLAG_DF,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLAG_PAYLOAD_LEN,
  CMD_FLAG_REQ_ONE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  HAS_FLAGS,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_OK,
  nbdError,
  READ_ONLY,
  ROTATIONAL,
  SEND_CACHE,
  SEND_DF,
  SEND_FAST_ZERO,
  SEND_FLUSH,
  SEND_FUA,
  SEND_TRIM,
  SEND_WRITE_ZEROES,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';
import type { Request } from './request.ts';

/** The transmission flags of a device. All connections share one device and its cache, so a flush on
 *  one covers all (multi-conn). */
export function transmissionFlags(device: BlockDevice, style: HeaderStyle, hasContexts: boolean): number {
  const { flush, fua, discard, writeZeroes, rotational } = device.capabilities;
  let flags = HAS_FLAGS | CAN_MULTI_CONN | SEND_CACHE;
  if (flush) flags |= SEND_FLUSH;
  if (fua) flags |= SEND_FUA;
  if (rotational) flags |= ROTATIONAL;
  if (device.readOnly) flags |= READ_ONLY;
  else {
    if (discard) flags |= SEND_TRIM;
    if (writeZeroes) flags |= SEND_WRITE_ZEROES | SEND_FAST_ZERO;
  }
  if (style !== 'simple') flags |= SEND_DF;
  if (style === 'extended' && hasContexts) flags |= BLOCK_STATUS_PAYLOAD;
  return flags;
}

/** The fixed facts of a connection that requests are checked against. */
export interface CommandRules {
  readonly device: BlockDevice;
  readonly style: HeaderStyle;
  readonly transmissionFlags: number;
  readonly payloadLimit: number;
  readonly hasContexts: boolean;
}

/** Hot path. NBD_OK, or the error that the protocol asks for. `length` is the effect length. */
export function commandError(
  rules: CommandRules,
  command: number,
  flags: number,
  offset: number,
  length: number,
): number {
  const allowed = allowedFlags(rules, command);
  if (allowed < 0 || (flags & ~allowed) !== 0) return NBD_EINVAL;
  if (command === CMD_FLUSH) return offset === 0 && length === 0 ? NBD_OK : NBD_EINVAL;
  const { device } = rules;
  const changes = command === CMD_WRITE || command === CMD_WRITE_ZEROES || command === CMD_TRIM;
  if (changes && device.readOnly) return NBD_EPERM;
  if (length === 0) return NBD_EINVAL;
  if (offset > device.size || length > device.size - offset) {
    return command === CMD_WRITE || command === CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
  }
  // Asking for the status of part of a block does no harm; everything else would have to read, change and write.
  if (
    command !== CMD_BLOCK_STATUS &&
    (offset % device.logicalBlockSize !== 0 || length % device.logicalBlockSize !== 0)
  ) {
    return NBD_EINVAL;
  }
  return limitError(rules, command, flags, length);
}

function limitError(rules: CommandRules, command: number, flags: number, length: number): number {
  switch (command) {
    case CMD_READ:
      if (length <= rules.payloadLimit) return NBD_OK;
      return rules.style === 'simple' ? NBD_EINVAL : NBD_EOVERFLOW;
    case CMD_CACHE:
      return length <= rules.payloadLimit ? NBD_OK : NBD_EOVERFLOW;
    case CMD_WRITE:
      return length <= rules.payloadLimit ? NBD_OK : NBD_EINVAL;
    case CMD_WRITE_ZEROES:
      return (flags & CMD_FLAG_FAST_ZERO) !== 0 && !rules.device.capabilities.fastZero ? NBD_ENOTSUP : NBD_OK;
    default:
      return NBD_OK;
  }
}

/** The flags that a command may carry here, or -1 when the command is unknown or was not offered. */
function allowedFlags(rules: CommandRules, command: number): number {
  const offered = rules.transmissionFlags;
  const fua = (offered & SEND_FUA) !== 0 ? CMD_FLAG_FUA : 0;
  switch (command) {
    case CMD_READ:
      return fua | ((offered & SEND_DF) !== 0 ? CMD_FLAG_DF : 0);
    case CMD_WRITE:
      return fua | (rules.style === 'extended' ? CMD_FLAG_PAYLOAD_LEN : 0);
    case CMD_CACHE:
      return fua;
    case CMD_FLUSH:
      return (offered & SEND_FLUSH) !== 0 ? fua : -1;
    case CMD_TRIM:
      // A read-only export offers neither TRIM nor WRITE_ZEROES, and must say EPERM to both.
      return (offered & (SEND_TRIM | READ_ONLY)) !== 0 ? fua : -1;
    case CMD_WRITE_ZEROES:
      if ((offered & READ_ONLY) !== 0) return fua | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO;
      return (offered & SEND_WRITE_ZEROES) !== 0 ? fua | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO : -1;
    case CMD_BLOCK_STATUS:
      if (!rules.hasContexts) return -1;
      return fua | CMD_FLAG_REQ_ONE | ((offered & BLOCK_STATUS_PAYLOAD) !== 0 ? CMD_FLAG_PAYLOAD_LEN : 0);
    default:
      return -1;
  }
}

/** The flags of a request's bios. FUA says something about writes only, though clients may set it anywhere. */
export function bioFlags(request: Request): number {
  const fua = (request.flags & CMD_FLAG_FUA) !== 0 ? FUA : 0;
  switch (request.command) {
    case CMD_WRITE:
    case CMD_TRIM:
      return fua;
    case CMD_WRITE_ZEROES:
      return (
        fua |
        ((request.flags & CMD_FLAG_NO_HOLE) !== 0 ? NO_HOLE : 0) |
        ((request.flags & CMD_FLAG_FAST_ZERO) !== 0 ? FAST_ZERO : 0)
      );
    default:
      return 0;
  }
}

/** The NBD error for a bio's status. ENOTSUP is for fast zeroing alone; a trim is a hint and need not succeed. */
export function replyError(request: Request, status: number): number {
  const error = nbdError(status);
  if (error !== NBD_ENOTSUP || (request.flags & CMD_FLAG_FAST_ZERO) !== 0) return error;
  return request.command === CMD_TRIM ? NBD_OK : NBD_EINVAL;
}
