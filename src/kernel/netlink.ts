/** Generic netlink, as far as asking the kernel and hearing its answer goes. Synchronous: the kernel does what it is
 *  asked while the message is sent. Numbers are in the machine's byte order.
 *
 *  message: u32 length, u16 type, u16 flags, u32 sequence, u32 port; u8 command, u8 version, u16 0; attributes
 *  attribute: u16 length, u16 type, value, zeros up to a multiple of 4 */

import fs from 'node:fs';
import os from 'node:os';
import { netlinkSocket, receiveBytes, sendBytes } from '../io/control-sys.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';

const NETLINK_GENERIC = 16;
const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLA_F_NESTED = 0x8000;
const GENL_ID_CTRL = 16;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;

const HEADER = 20;
const TIMEOUT_SECONDS = 10;
const ANSWER_LIMIT = 64 * 1024;
const LITTLE_ENDIAN = os.endianness() === 'LE';

/** The attributes of an answer, by type; nested ones as they came. */
export type Attributes = ReadonlyMap<number, DataView>;

function padded(length: number): number {
  return Math.ceil(length / 4) * 4;
}

function attribute(type: number, value: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(padded(4 + value.length));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, 4 + value.length, LITTLE_ENDIAN);
  view.setUint16(2, type, LITTLE_ENDIAN);
  bytes.set(value, 4);
  return bytes;
}

export function u32Attribute(type: number, value: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, value, LITTLE_ENDIAN);
  return attribute(type, new Uint8Array(view.buffer));
}

export function u64Attribute(type: number, value: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, BigInt(value), LITTLE_ENDIAN);
  return attribute(type, new Uint8Array(view.buffer));
}

export function textAttribute(type: number, value: string): Uint8Array {
  return attribute(type, Buffer.from(`${value}\0`));
}

export function nestedAttribute(type: number, parts: readonly Uint8Array[]): Uint8Array {
  return attribute(type | NLA_F_NESTED, Buffer.concat(parts));
}

export function readU32(view: DataView | undefined): number | undefined {
  return view === undefined || view.byteLength < 4 ? undefined : view.getUint32(0, LITTLE_ENDIAN);
}

/** Errors: EBADMSG when they do not fit into their message. */
function parseAttributes(view: DataView): Attributes {
  const found = new Map<number, DataView>();
  for (let at = 0; at + 4 <= view.byteLength;) {
    const length = view.getUint16(at, LITTLE_ENDIAN);
    if (length < 4 || at + length > view.byteLength) {
      throw new BlksnapError(
        'EBADMSG',
        `The kernel sent an attribute of ${length} bytes where ${view.byteLength - at} are left`,
      );
    }
    const type = view.getUint16(at + 2, LITTLE_ENDIAN) & ~NLA_F_NESTED;
    found.set(type, new DataView(view.buffer, view.byteOffset + at + 4, length - 4));
    at += padded(length);
  }
  return found;
}

/** A socket on which one question follows another. */
export class GenericNetlink {
  readonly #fd: number;
  readonly #family: number;
  #sequence = 0;

  /** Errors: EOPNOTSUPP when the kernel does not know the family: its module is not loaded. */
  static open(family: string): GenericNetlink {
    const fd = netlinkSocket(NETLINK_GENERIC, TIMEOUT_SECONDS);
    if (fd < 0) throw errnoError(-fd, 'Cannot open a netlink socket');
    try {
      const control = new GenericNetlink(fd, GENL_ID_CTRL);
      const answer = control.ask(CTRL_CMD_GETFAMILY, [textAttribute(CTRL_ATTR_FAMILY_NAME, family)]);
      const id = answer.get(CTRL_ATTR_FAMILY_ID);
      if (id === undefined) throw new BlksnapError('EBADMSG', `The kernel gave no number for family "${family}"`);
      return new GenericNetlink(fd, id.getUint16(0, LITTLE_ENDIAN));
    } catch (cause) {
      fs.closeSync(fd);
      if (cause instanceof BlksnapError && cause.code === 'ENOENT') {
        throw new BlksnapError('EOPNOTSUPP', `The kernel does not know "${family}": its module is not loaded`, {
          cause,
        });
      }
      throw cause;
    }
  }

  private constructor(fd: number, family: number) {
    this.#fd = fd;
    this.#family = family;
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  /** The attributes of the answer; none where the kernel only says that it is done. Errors: what the kernel says. */
  ask(command: number, attributes: readonly Uint8Array[]): Attributes {
    this.#send(command, attributes);
    const buffer = new Uint8Array(ANSWER_LIMIT);
    let answer: Attributes = new Map();
    for (;;) {
      const received = receiveBytes(this.#fd, buffer);
      if (received < 0) throw errnoError(-received, 'The kernel gave no answer');
      for (let at = 0; at + 16 <= received;) {
        const view = new DataView(buffer.buffer, at, received - at);
        const length = view.getUint32(0, LITTLE_ENDIAN);
        if (length < 16 || length > received - at) throw new BlksnapError('EBADMSG', 'The kernel sent half a message');
        at += padded(length);
        if (view.getUint32(8, LITTLE_ENDIAN) !== this.#sequence) continue;
        if (view.getUint16(4, LITTLE_ENDIAN) !== NLMSG_ERROR) {
          answer = parseAttributes(
            new DataView(buffer.slice(view.byteOffset + HEADER, view.byteOffset + length).buffer),
          );
          continue;
        }
        const error = view.getInt32(16, LITTLE_ENDIAN);
        if (error === 0) return answer;
        throw errnoError(-error, 'The kernel refused');
      }
    }
  }

  #send(command: number, attributes: readonly Uint8Array[]): void {
    const header = new DataView(new ArrayBuffer(HEADER));
    const message = Buffer.concat([new Uint8Array(header.buffer), ...attributes]);
    const view = new DataView(message.buffer, message.byteOffset, message.length);
    view.setUint32(0, message.length, LITTLE_ENDIAN);
    view.setUint16(4, this.#family, LITTLE_ENDIAN);
    view.setUint16(6, NLM_F_REQUEST | NLM_F_ACK, LITTLE_ENDIAN);
    view.setUint32(8, ++this.#sequence, LITTLE_ENDIAN);
    view.setUint8(16, command);
    view.setUint8(17, 1);
    const sent = sendBytes(this.#fd, message);
    if (sent < 0) throw errnoError(-sent, 'Cannot ask the kernel');
  }
}
