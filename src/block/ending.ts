/** Ends bios on the spot without recursion: one that is ended while another's owner runs waits until that
 *  owner has returned, so that chains of bios never grow the stack. Hot path. */

import { BioQueue } from './bio.ts';
import type { Bio } from './bio.ts';

export class Ending {
  readonly #queue = new BioQueue();
  #running = false;

  end(bio: Bio, status: number): void {
    bio.status = status;
    this.#queue.push(bio);
    if (this.#running) return;
    this.#running = true;
    for (let next = this.#queue.shift(); next !== null; next = this.#queue.shift()) next.end(next.status);
    this.#running = false;
  }
}
