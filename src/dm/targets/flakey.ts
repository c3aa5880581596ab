/** flakey: a device that is well for a time, then unreliable for a time, over and over from the moment that
 *  its table is made.
 *
 *      START LENGTH flakey DEVICE SECTOR UP DOWN [FEATURES [FEATURE…]]
 *
 *  UP and DOWN are seconds; FEATURES is the number of words that follow:
 *
 *      error_reads     while down, reads fail
 *      error_writes    while down, writes, discards, zeroing and flushes fail
 *      drop_writes     while down, they end well and do nothing
 *      corrupt_bio_byte NTH r|w VALUE FLAGS
 *                      while down, byte NTH (from 1) of each read or write becomes VALUE; FLAGS must be 0
 *
 *  Without any, reads and writes both fail while down. Reads that another feature is for pass. */

import { FLUSH, READ, WRITE, changesData } from '../../block/bio.ts';
import type { Bio, BioOwner } from '../../block/bio.ts';
import { ERRNO } from '../../util/errors.ts';
import type { TargetArgs } from '../args.ts';
import { ByteCorruptor } from '../corruptor.ts';
import { Ending } from '../../block/ending.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetContext, TargetType } from '../target.ts';

const MAX_SECONDS = 2 ** 31 - 1;

interface Corruption {
  readonly nth: number;
  readonly direction: 'r' | 'w';
  readonly value: number;
}

interface Features {
  readonly errorReads: boolean;
  /** What becomes of changes while down. */
  readonly writes: 'pass' | 'error' | 'drop';
  readonly corruption: Corruption | null;
  /** As a table prints them, always in this order; empty: everything fails. */
  readonly words: readonly string[];
}

class Flakey extends Target implements BioOwner {
  readonly type = 'flakey';
  readonly #context: TargetContext;
  readonly #port: DevicePort;
  readonly #upMs: number;
  readonly #downMs: number;
  readonly #features: Features;
  readonly #startedMs: number;
  readonly #ending = new Ending();
  readonly #corruptor: ByteCorruptor | null;
  #owner: BioOwner | null = null;

  constructor(
    context: TargetContext,
    port: DevicePort,
    times: { readonly up: number; readonly down: number; readonly features: Features },
  ) {
    super([port]);
    this.#context = context;
    this.#port = port;
    this.#upMs = times.up * 1000;
    this.#downMs = times.down * 1000;
    this.#features = times.features;
    this.#startedMs = context.reactor.now();
    const { corruption } = times.features;
    this.#corruptor = corruption?.direction === 'w' ? new ByteCorruptor(context, port, corruption) : null;
  }

  table(): string {
    const { words } = this.#features;
    // The kernel's ends every feature, and their count, with a blank.
    return [this.#port.words, this.#upMs / 1000, this.#downMs / 1000, words.length, ...words, ''].join(' ');
  }

  get #down(): boolean {
    const elapsed = this.#context.reactor.now() - this.#startedMs;
    return elapsed % (this.#upMs + this.#downMs) >= this.#upMs;
  }

  submit(bio: Bio): void {
    if (!this.#down) this.#port.submit(bio);
    else if (bio.op === FLUSH || changesData(bio.op)) this.#change(bio);
    else this.#read(bio);
  }

  #read(bio: Bio): void {
    const { errorReads, corruption, words } = this.#features;
    if (errorReads || words.length === 0) {
      this.#ending.end(bio, ERRNO.EIO);
      return;
    }
    if (corruption?.direction === 'r') {
      this.#owner = bio.owner;
      bio.owner = this;
    }
    this.#port.submit(bio);
  }

  #change(bio: Bio): void {
    const { writes, words } = this.#features;
    if (words.length === 0 || writes === 'error') this.#ending.end(bio, ERRNO.EIO);
    else if (writes === 'drop') this.#ending.end(bio, 0);
    else if (bio.op === WRITE && this.#corruptor !== null) this.#corruptor.submit(bio);
    else this.#port.submit(bio);
  }

  /** A read whose data is to be corrupted. */
  bioEnded(bio: Bio): void {
    const { nth, value } = this.#features.corruption!;
    if (bio.status === 0 && bio.op === READ && nth <= bio.length) {
      this.#context.reactor.arena.bytes[bio.at + nth - 1] = value;
    }
    bio.owner = this.#owner!;
    bio.owner.bioEnded(bio);
  }

  override close(): void {
    this.#corruptor?.close();
  }
}

function takeFeatures(args: TargetArgs): Features {
  const count = args.left === 0 ? 0 : args.integer('the number of feature words', { min: 0, max: 7 });
  if (count !== args.left) args.refuse(`it says ${count} feature words, and has ${args.left}`);
  let errorReads = false;
  let writes: Features['writes'] = 'pass';
  let corruption: Corruption | null = null;
  const seen = new Set<string>();
  while (args.left > 0) {
    const name = args.word('a feature');
    if (seen.has(name)) args.refuse(`feature "${name}" is there twice`);
    seen.add(name);
    if (name === 'error_reads') errorReads = true;
    else if (name === 'error_writes' || name === 'drop_writes') {
      if (writes !== 'pass') args.refuse('error_writes and drop_writes exclude each other');
      writes = name === 'error_writes' ? 'error' : 'drop';
    } else if (name === 'corrupt_bio_byte') corruption = takeCorruption(args);
    else
      args.refuse(`unknown feature "${name}": known are error_reads, error_writes, drop_writes and corrupt_bio_byte`);
  }
  if (corruption?.direction === 'w' && writes !== 'pass') args.refuse('writes that do not happen cannot be corrupted');
  if (corruption?.direction === 'r' && errorReads) args.refuse('reads that fail cannot be corrupted');
  return { errorReads, writes, corruption, words: featureWords({ errorReads, writes, corruption }) };
}

function featureWords({ errorReads, writes, corruption }: Omit<Features, 'words'>): string[] {
  const words = errorReads ? ['error_reads'] : [];
  if (writes !== 'pass') words.push(`${writes}_writes`);
  if (corruption !== null)
    words.push('corrupt_bio_byte', String(corruption.nth), corruption.direction, String(corruption.value), '0');
  return words;
}

function takeCorruption(args: TargetArgs): Corruption {
  const nth = args.integer('the byte to corrupt', { min: 1, max: 2 ** 32 - 1 });
  const direction = args.word('the direction');
  if (direction !== 'r' && direction !== 'w') return args.refuse(`the direction is "${direction}", want r or w`);
  const value = args.integer("the byte's new value", { min: 0, max: 255 });
  args.integer('the flags', { min: 0, max: 0 });
  return { nth, direction, value };
}

export const flakey: TargetType = (args, context) => {
  const port = args.port(context.length);
  const up = args.integer('the up time in seconds', { min: 0, max: MAX_SECONDS });
  const down = args.integer('the down time in seconds', { min: 0, max: MAX_SECONDS });
  if (up + down === 0) args.refuse('up and down time are both 0');
  return new Flakey(context, port, { up, down, features: takeFeatures(args) });
};
