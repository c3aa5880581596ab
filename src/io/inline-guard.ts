/** Decides whether I/O that normally ends in memory may run on the reactor's own thread.
 *
 *  Handing a small copy to a kernel worker costs several times the copy; but a call that has to wait
 *  (for a full page cache to be written back, a journal to commit) would hold up every disk of the
 *  thread. So calls run at once until one was slow; then none does for a while, longer each time. */

/** Larger copies are worth a worker, which runs on another processor. */
const INLINE_BYTES = 128 * 1024;
const SLOW_MS = 20;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 30_000;

export class InlineGuard {
  #resumeMs = 0;
  #pauseMs = FIRST_PAUSE_MS;

  allows(length: number, nowMs: number): boolean {
    return length <= INLINE_BYTES && nowMs >= this.#resumeMs;
  }

  /** Learns how long a turn with such calls took. */
  took(beganMs: number, endedMs: number): void {
    if (endedMs - beganMs < SLOW_MS) return;
    // A quiet time as long as the pause itself, and the next slow call counts as the first again.
    if (beganMs - this.#resumeMs > this.#pauseMs) this.#pauseMs = FIRST_PAUSE_MS;
    this.#resumeMs = endedMs + this.#pauseMs;
    this.#pauseMs = Math.min(this.#pauseMs * 2, LONGEST_PAUSE_MS);
  }
}
