/** A small file system of its own, to be full. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

export const SMALL_SYSTEMS = ['tmpfs', 'ext4'] as const;

export class SmallPlace {
  readonly path: string;
  readonly #filler: string;

  /** Mounts it at `place`, which is made. Throws where that cannot be done. */
  constructor(kind: (typeof SMALL_SYSTEMS)[number], place: string, bytes: number) {
    fs.mkdirSync(place, { mode: 0o700 });
    this.path = place;
    this.#filler = path.join(place, 'filler');
    if (kind === 'tmpfs') {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes},mode=700`, 'tmpfs', place], { stdio: 'pipe' });
      return;
    }
    const image = `${place}.ext4`;
    fs.writeFileSync(image, '');
    fs.truncateSync(image, bytes);
    execFileSync('mkfs.ext4', ['-q', '-m', '0', image], { stdio: 'pipe' });
    execFileSync('mount', ['-o', 'loop', image, place], { stdio: 'pipe' });
  }

  /** Takes all space but `leaveBytes`. */
  fill(leaveBytes = 0): void {
    const fd = fs.openSync(this.#filler, 'a');
    try {
      for (const piece of [65_536, 4096, 512, 1]) {
        for (;;) {
          if (leaveBytes > 0 && freeBytes(this.path) <= leaveBytes + piece) break;
          if (fs.writeSync(fd, Buffer.alloc(piece)) < piece) break;
        }
      }
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOSPC') throw cause;
    } finally {
      fs.closeSync(fd);
    }
  }

  /** Gives all of it back. */
  empty(): void {
    fs.rmSync(this.#filler);
  }

  umount(): void {
    execFileSync('umount', ['--lazy', this.path]);
  }
}

function freeBytes(place: string): number {
  const { bavail, bsize } = fs.statfsSync(place);
  return bavail * bsize;
}
