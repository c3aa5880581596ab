/** The plaintext part of a handshake that is to become TLS, both sides, over Node's sockets. As little as can be: what is
 *  not encrypted can be anybody's.
 *
 *  The server is in the protocol's mode FORCEDTLS: it takes STARTTLS and ABORT, and answers everything else with
 *  TLS_REQD. Of what is said here, only the flags of the greeting count later, which say nothing of exports. What comes on the heels of the
 *  STARTTLS option, or of its answer, would be read as if TLS had protected it (CVE-2021-3716, and CVE-2011-0411 before
 *  it): whoever sends it is cut off. */

import type net from 'node:net';
import { BlksnapError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { freshState } from './handshake.ts';
import type { HandshakeState } from './handshake.ts';
import {
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  INIT_MAGIC,
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_STARTTLS,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REP_ACK,
  REP_ERR_INVALID,
  REP_ERR_TLS_REQD,
} from './protocol.ts';
import { SocketReader } from './socket-reader.ts';
import { Message } from './wire.ts';

const FLAGS = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
/** Nobody has so much to say before TLS. */
const OPTION_COUNT_LIMIT = 32;
const OPTION_LIMIT = 16 * KIB;

/** The server's side. With what state the handshake goes on inside TLS; null when the client left in an orderly way.
 *  Errors: EPROTO, ECONNRESET and the like. */
export async function awaitStartTls(socket: net.Socket): Promise<HandshakeState | null> {
  const reader = new SocketReader(socket);
  try {
    socket.write(
      new Message().u32(INIT_MAGIC[0]).u32(INIT_MAGIC[1]).u32(OPTION_MAGIC[0]).u32(OPTION_MAGIC[1]).u16(FLAGS).bytes,
    );
    const flags = (await reader.read(4)).readUInt32BE();
    if ((flags & ~FLAGS) !== 0 || (flags & FLAG_FIXED_NEWSTYLE) === 0) {
      throw new BlksnapError('EPROTO', `The client set handshake flags 0x${flags.toString(16)}`);
    }
    for (let count = 0; count < OPTION_COUNT_LIMIT; count++) {
      const next = await serverOption(socket, reader);
      if (next !== 'next') return next === 'tls' ? freshState((flags & FLAG_NO_ZEROES) !== 0) : null;
    }
    throw new BlksnapError('EPROTO', `The client sent ${OPTION_COUNT_LIMIT} options and did not begin TLS`);
  } finally {
    reader.release();
  }
}

async function serverOption(socket: net.Socket, reader: SocketReader): Promise<'next' | 'tls' | 'left'> {
  const header = await reader.read(16);
  checkMagic(header, OPTION_MAGIC, 'The client sent no option where one was due');
  const option = header.readUInt32BE(8);
  const length = header.readUInt32BE(12);
  if (length > OPTION_LIMIT) {
    throw new BlksnapError(
      'EPROTO',
      `The client sent an option of ${length} bytes before TLS, want at most ${OPTION_LIMIT}`,
    );
  }
  await reader.read(length);
  switch (option) {
    case OPT_EXPORT_NAME:
      // The protocol has no error reply to this option.
      throw new BlksnapError('EACCES', 'The client asked for an export without TLS');
    case OPT_ABORT:
      answer(socket, option, REP_ACK);
      return 'left';
    case OPT_STARTTLS:
      if (length > 0) {
        answer(socket, option, REP_ERR_INVALID, `${length} bytes of data where none belong`);
        return 'next';
      }
      reader.checkEmpty('The client sent data after STARTTLS that TLS does not protect');
      answer(socket, option, REP_ACK);
      return 'tls';
    default:
      answer(socket, option, REP_ERR_TLS_REQD, 'this server wants TLS: send STARTTLS first');
      return 'next';
  }
}

function answer(socket: net.Socket, option: number, type: number, words = ''): void {
  const data = new Message().text(words).bytes;
  const [high, low] = OPTION_REPLY_MAGIC;
  socket.write(new Message().u32(high).u32(low).u32(option).u32(type).u32(data.length).raw(data).bytes);
}

/** The client's side: asks for TLS, and is back with the greeting's flags when the server has agreed. Never goes on
 *  without. Errors: EOPNOTSUPP when the server has no TLS; EPROTO, ECONNRESET and the like. */
export async function requestStartTls(socket: net.Socket): Promise<number> {
  const reader = new SocketReader(socket);
  try {
    const greeting = await reader.read(18);
    checkMagic(greeting, INIT_MAGIC, 'The peer does not greet as an NBD server');
    checkMagic(greeting.subarray(8), OPTION_MAGIC, 'The NBD server knows no options, and so no TLS');
    const flags = greeting.readUInt16BE(16) & FLAGS;
    if ((flags & FLAG_FIXED_NEWSTYLE) === 0) {
      throw new BlksnapError('EOPNOTSUPP', 'Cannot use TLS: the NBD server knows only the oldest handshake');
    }
    socket.write(new Message().u32(flags).u32(OPTION_MAGIC[0]).u32(OPTION_MAGIC[1]).u32(OPT_STARTTLS).u32(0).bytes);
    const reply = await reader.read(20);
    checkMagic(reply, OPTION_REPLY_MAGIC, 'The NBD server sent no reply to STARTTLS');
    const [option, type, length] = [reply.readUInt32BE(8), reply.readUInt32BE(12), reply.readUInt32BE(16)];
    if (option !== OPT_STARTTLS || type !== REP_ACK) {
      throw new BlksnapError('EOPNOTSUPP', `Cannot use TLS: the NBD server refused it (0x${type.toString(16)})`);
    }
    if (length > 0) throw new BlksnapError('EPROTO', `The NBD server agreed to TLS with ${length} bytes of data`);
    reader.checkEmpty('The NBD server sent data before TLS that nothing protects');
    return flags;
  } finally {
    reader.release();
  }
}

function checkMagic(bytes: Buffer, [high, low]: readonly [number, number], otherwise: string): void {
  if (bytes.readUInt32BE(0) !== high || bytes.readUInt32BE(4) !== low) {
    throw new BlksnapError('EPROTO', `${otherwise}: wrong magic number`);
  }
}
