/** A peer at the level of bytes, for saying what no decent NBD client or server says. */

import net from 'node:net';
import { once } from 'node:events';
import { Message } from '../../src/nbd/wire.ts';

export class RawPeer {
  readonly socket: net.Socket;
  /** What came and was not read yet. */
  #pieces: Buffer[] = [];
  #available = 0;
  #ended = false;
  #wake: () => void = () => {};

  static async connect(path: string): Promise<RawPeer> {
    const socket = net.connect(path);
    await once(socket, 'connect');
    return new RawPeer(socket);
  }

  constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on('data', (data: Buffer) => {
      this.#pieces.push(data);
      this.#available += data.length;
      this.#wake();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket.on('end', end).on('close', end).on('error', end);
  }

  send(message: Message | Uint8Array): void {
    this.socket.write(message instanceof Message ? message.bytes : message);
  }

  /** The next bytes. Rejects when the stream ends first. */
  async read(length: number): Promise<Buffer> {
    while (this.#available < length) {
      if (this.#ended) throw new Error(`the stream ended with ${this.#available} of ${length} bytes`);
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const all = Buffer.concat(this.#pieces);
    this.#pieces = [all.subarray(length)];
    this.#available -= length;
    return all.subarray(0, length);
  }

  /** Waits for the end of the stream; what came before it. */
  async end(): Promise<Buffer> {
    while (!this.#ended) await new Promise<void>((resolve) => (this.#wake = resolve));
    return Buffer.concat(this.#pieces);
  }

  close(): void {
    this.socket.destroy();
  }
}

export interface RawReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** A client in the handshake and after it. */
export class RawClient extends RawPeer {
  static override async connect(path: string): Promise<RawClient> {
    const socket = net.connect(path);
    await once(socket, 'connect');
    return new RawClient(socket);
  }

  /** Reads the greeting and answers it. */
  async greet(flags = 3): Promise<Buffer> {
    const greeting = await this.read(18);
    this.send(new Message().u32(flags));
    return greeting;
  }

  option(option: number, data: Message = new Message(), length = data.bytes.length): void {
    this.send(new Message().text('IHAVEOPT').u32(option).u32(length).raw(data.bytes));
  }

  async reply(): Promise<RawReply> {
    const header = await this.read(20);
    const data = await this.read(header.readUInt32BE(16));
    return { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data };
  }

  /** Asks and reads all replies, the last of which is an ACK or an error. */
  async ask(option: number, data?: Message): Promise<RawReply[]> {
    this.option(option, data);
    const replies: RawReply[] = [];
    for (;;) {
      const reply = await this.reply();
      replies.push(reply);
      if (reply.type === 1 || reply.type >= 2 ** 31) return replies;
    }
  }

  /** Goes into transmission. */
  async go(name: string): Promise<void> {
    await this.ask(7, new Message().counted(name).u16(0));
  }

  /** A compact request. */
  request(
    command: number,
    offset: number,
    length: number,
    options: { flags?: number; cookie?: number; magic?: number } = {},
  ): void {
    const { flags = 0, cookie = 1, magic = 0x25609513 } = options;
    this.send(new Message().u32(magic).u16(flags).u16(command).u64(cookie).u64(offset).u32(length));
  }

  extended(command: number, offset: number, length: number, options: { flags?: number; cookie?: number } = {}): void {
    const { flags = 0, cookie = 1 } = options;
    this.send(new Message().u32(0x21e41c71).u16(flags).u16(command).u64(cookie).u64(offset).u64(length));
  }

  /** The error and the cookie of a simple reply. */
  async simple(): Promise<{ error: number; cookie: number }> {
    const header = await this.read(16);
    if (header.readUInt32BE(0) !== 0x67446698) throw new Error(`not a simple reply: ${header.toString('hex')}`);
    return { error: header.readUInt32BE(4), cookie: Number(header.readBigUInt64BE(8)) };
  }

  async chunk(): Promise<{ flags: number; type: number; cookie: number; offset: number; data: Buffer }> {
    const magic = (await this.read(4)).readUInt32BE(0);
    const extended = magic === 0x6e8a278c;
    if (!extended && magic !== 0x668e33ef) throw new Error(`not a chunk: 0x${magic.toString(16)}`);
    const rest = await this.read(extended ? 28 : 16);
    const length = extended ? Number(rest.readBigUInt64BE(20)) : rest.readUInt32BE(12);
    return {
      flags: rest.readUInt16BE(0),
      type: rest.readUInt16BE(2),
      cookie: Number(rest.readBigUInt64BE(4)),
      offset: extended ? Number(rest.readBigUInt64BE(12)) : -1,
      data: await this.read(length),
    };
  }
}
