/** dust: a device with bad blocks, which messages make and mend.
 *
 *      START LENGTH dust DEVICE SECTOR BLOCK_SIZE
 *
 *  BLOCK_SIZE is in bytes, a power of two. Reads of a bad block fail while that is enabled; a write to one mends it,
 *  after as many failures as were asked for. Block 0 is the device's first, not the target's. Messages:
 *
 *      addbadblock BLOCK [FAILURES]   removebadblock BLOCK   queryblock BLOCK
 *      countbadblocks   clearbadblocks   listbadblocks   enable   disable   quiet */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../block/bio.ts';
import type { Bio } from '../../block/bio.ts';
import { unreachable } from '../../util/assert.ts';
import { BlksnapError, ERRNO } from '../../util/errors.ts';
import { Ending } from '../../block/ending.ts';
import { SECTOR, parseSectors, quoteWord } from '../table.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetType } from '../target.ts';

const MAX_BLOCK = 2 ** 30;
const MAX_FAILURES = 255;

class Dust extends Target {
  readonly type = 'dust';
  readonly #port: DevicePort;
  readonly #blockSize: number;
  /** Bad blocks, and how many writes each still fails before one mends it. */
  readonly #bad = new Map<number, number>();
  #enabled = false;
  #quiet = false;
  readonly #ending = new Ending();

  constructor(port: DevicePort, blockSize: number) {
    super([port]);
    this.#port = port;
    this.#blockSize = blockSize;
  }

  table(): string {
    return `${this.#port.words} ${this.#blockSize}`;
  }

  override status(): string {
    const mode = this.#enabled ? 'fail_read_on_bad_block' : 'bypass';
    return `${quoteWord(this.#port.name)} ${mode} ${this.#quiet ? 'quiet' : 'verbose'}`;
  }

  submit(bio: Bio): void {
    if (this.#enabled && this.#bad.size > 0 && this.#fails(bio)) this.#ending.end(bio, ERRNO.EIO);
    else this.#port.submit(bio);
  }

  #fails(bio: Bio): boolean {
    switch (bio.op) {
      case READ:
        return this.#anyBad(bio);
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        return this.#mend(bio);
      case FLUSH:
        return false;
      default:
        return unreachable(bio.op);
    }
  }

  #first(bio: Bio): number {
    return Math.floor((this.#port.offset + bio.offset) / this.#blockSize);
  }
  #last(bio: Bio): number {
    return Math.floor((this.#port.offset + bio.offset + bio.length - 1) / this.#blockSize);
  }

  #anyBad(bio: Bio): boolean {
    const [first, last] = [this.#first(bio), this.#last(bio)];
    for (const block of this.#bad.keys()) if (block >= first && block <= last) return true;
    return false;
  }

  /** Mends the blocks that are written. True when one of them fails the write once more. */
  #mend(bio: Bio): boolean {
    const [first, last] = [this.#first(bio), this.#last(bio)];
    let fails = false;
    for (const [block, failures] of this.#bad) {
      if (block < first || block > last) continue;
      if (failures === 0) this.#bad.delete(block);
      else this.#bad.set(block, failures - 1);
      fails ||= failures > 0;
    }
    return fails;
  }

  override message(words: readonly string[]): string {
    const [name, ...rest] = words;
    const block = rest.length > 0 ? this.#block(rest[0]!) : 0;
    switch (`${name?.toLowerCase()} ${rest.length}`) {
      case 'addbadblock 1':
        return this.#add(block, 0);
      case 'addbadblock 2':
        return this.#add(block, parseFailures(rest[1]!));
      case 'removebadblock 1':
        if (!this.#bad.delete(block)) throw refused(`block ${block} not found in badblocklist`);
        return '';
      case 'queryblock 1':
        return `dust_query_block: block ${block} ${this.#bad.has(block) ? 'found' : 'not found'} in badblocklist`;
      case 'countbadblocks 0':
        return `countbadblocks: ${this.#bad.size} badblock(s) found`;
      case 'clearbadblocks 0':
        return this.#clear();
      case 'listbadblocks 0':
        return this.#bad.size === 0
          ? 'No blocks in badblocklist'
          : [...this.#bad.keys()].sort((a, b) => a - b).join('\n');
      case 'enable 0':
      case 'disable 0':
        this.#enabled = name!.toLowerCase() === 'enable';
        return '';
      case 'quiet 0':
        this.#quiet = !this.#quiet;
        return '';
      default:
        throw refused(`unrecognized message "${words.join(' ')}"`);
    }
  }

  #block(word: string): number {
    const block = parseSectors(word) ?? -1;
    const count = Math.floor(this.#port.device.size / this.#blockSize);
    if (block < 0 || block >= count) throw refused(`"${word}" is no block, want a number below ${count}`);
    return block;
  }

  #add(block: number, count: number): string {
    if (this.#bad.has(block)) throw refused(`block ${block} already in badblocklist`);
    this.#bad.set(block, count);
    return '';
  }

  #clear(): string {
    const had = this.#bad.size > 0;
    this.#bad.clear();
    return had ? 'dust_clear_badblocks: badblocks cleared' : 'dust_clear_badblocks: no badblocks found';
  }
}

function parseFailures(word: string): number {
  const count = /^\d{1,3}$/.test(word) ? Number(word) : NaN;
  if (!(count <= MAX_FAILURES)) throw refused(`"${word}" failures are asked for, want 0 to ${MAX_FAILURES}`);
  return count;
}

function refused(why: string): BlksnapError {
  return new BlksnapError('EINVAL', `Target "dust" refuses the message: ${why}`);
}

export const dust: TargetType = (args, context) => {
  const port = args.port(context.length);
  const blockSize = args.integer('the block size in bytes', { min: SECTOR, max: Math.min(MAX_BLOCK, context.length) });
  if (!Number.isInteger(Math.log2(blockSize))) args.refuse(`the block size is ${blockSize}, want a power of two`);
  args.end();
  return new Dust(port, blockSize);
};
