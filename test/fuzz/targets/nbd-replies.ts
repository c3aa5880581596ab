/** Whether what an NBD server sent is well-formed, as far as that can be told without what it was asked: the greeting, option
 *  replies, and chunks. Behind a simple reply anything may be data. The end may be cut off. */

const OPTION_REPLY = 0x3e889045565a9n;
const SIMPLE = 0x67446698;
const STRUCTURED = 0x668e33ef;
const EXTENDED = 0x6e8a278c;
const GREETING_BYTES = 18;
const EXPORT_BYTES = 10;
const REPLY_ACK = 1;
const OPTION_EXPORT_NAME = 1;

/** Throws when it is not. */
export function checkServerWords(bytes: Buffer): void {
  if (bytes.length < GREETING_BYTES) return;
  if (bytes.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') throw new Error('the server did not greet');
  checkTransmission(bytes, endOfOptions(bytes));
}

/** Behind the option replies, and what EXPORT_NAME is answered with. */
function endOfOptions(bytes: Buffer): number {
  let at = GREETING_BYTES;
  while (at + 20 <= bytes.length && bytes.readBigUInt64BE(at) === OPTION_REPLY) {
    const type = bytes.readUInt32BE(at + 12);
    const length = bytes.readUInt32BE(at + 16);
    if (length > 16_384 || (type === REPLY_ACK && length > 0)) throw new Error(`an option reply of ${length} bytes`);
    if (bytes.readUInt32BE(at + 8) === OPTION_EXPORT_NAME) throw new Error('EXPORT_NAME was answered with a reply');
    at += 20 + length;
  }
  return isReply(bytes, at) ? at : at + EXPORT_BYTES;
}

function isReply(bytes: Buffer, at: number): boolean {
  return at + 4 > bytes.length || [SIMPLE, STRUCTURED, EXTENDED].includes(bytes.readUInt32BE(at));
}

function checkTransmission(bytes: Buffer, start: number): void {
  for (let at = start; at + 20 <= bytes.length;) {
    const magic = bytes.readUInt32BE(at);
    if (magic === SIMPLE) return;
    // The zeros behind EXPORT_NAME's answer, for clients that want them.
    if (magic === 0 && at === start) return;
    if (magic !== STRUCTURED && magic !== EXTENDED) throw new Error(`the server said 0x${magic.toString(16)} at ${at}`);
    const header = magic === EXTENDED ? 32 : 20;
    if (at + header > bytes.length) return;
    const length = magic === EXTENDED ? Number(bytes.readBigUInt64BE(at + 24)) : bytes.readUInt32BE(at + 16);
    checkChunk(bytes.readUInt16BE(at + 6), length);
    at += header + length;
  }
}

function checkChunk(type: number, length: number): void {
  const rules: Record<number, (length: number) => boolean> = {
    0: () => length === 0,
    1: () => length > 8,
    2: () => length === 12,
    5: () => length >= 12 && length % 8 === 4,
    6: () => length >= 24 && length % 16 === 8,
    0x8001: () => length >= 6,
  };
  if (rules[type]?.(length) !== true) throw new Error(`a chunk of type ${type} with ${length} bytes`);
}
