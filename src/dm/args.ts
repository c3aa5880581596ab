/** Takes the arguments of a table line one by one, and says what is wrong with them. */

import { BlksnapError } from '../util/errors.ts';
import { SECTOR, parseSectors } from './table.ts';
import { DevicePort } from './target.ts';

export class TargetArgs {
  readonly #target: string;
  readonly #words: readonly string[];
  #next = 0;

  constructor(target: string, words: readonly string[]) {
    this.#target = target;
    this.#words = words;
  }

  get left(): number {
    return this.#words.length - this.#next;
  }

  refuse(why: string): never {
    throw new BlksnapError('EINVAL', `Cannot make target "${this.#target} ${this.#words.join(' ')}": ${why}`);
  }

  word(what: string): string {
    const word = this.#words[this.#next++];
    if (word === undefined) this.refuse(`${what} is missing`);
    return word;
  }

  /** A whole number in decimal digits. */
  integer(what: string, range: { readonly min: number; readonly max: number }): number {
    const word = this.word(what);
    const value = /^\d{1,16}$/.test(word) ? Number(word) : NaN;
    if (value >= range.min && value <= range.max) return value;
    return this.refuse(`${what} is "${word}", want a whole number from ${range.min} to ${range.max}`);
  }

  /** `NAME SECTOR`: a device, and where in it the range of `length` bytes begins. */
  port(length: number): DevicePort {
    const name = this.word('a device');
    const word = this.word(`the start sector of device "${name}"`);
    const sector = parseSectors(word) ?? this.refuse(`the start on device "${name}" is "${word}", want a sector`);
    return new DevicePort(name, sector * SECTOR, length);
  }

  /** Nothing may be left. */
  end(): void {
    if (this.left > 0) this.refuse(`"${this.#words[this.#next]}" is one argument too many`);
  }
}
