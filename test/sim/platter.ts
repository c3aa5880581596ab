/** A real directory as one that may lose its power, or its user: the files in it are the page cache, and what was synced
 *  of files and directories is the platter.
 *
 *  Synced is what fs.fsyncSync was called for: it is replaced, and so is every call that changes the directory, so that
 *  the process that calls can die before any of them. */

import fs from 'node:fs';
import path from 'node:path';
import type { Prng } from '../../src/util/prng.ts';

const SECTOR = 512;
/** The calls that change something, by path or by descriptor. */
const CALLS = [
  'openSync',
  'mkdirSync',
  'renameSync',
  'unlinkSync',
  'rmSync',
  'writeFileSync',
  'writeSync',
  'ftruncateSync',
  'fsyncSync',
] as const;

interface Synced {
  /** Keeps the inode's number from being used again. */
  readonly fd: number;
  readonly content: Buffer;
}

export class Platter {
  readonly #root: string;
  readonly #files = new Map<number, Synced>();
  /** Names to inodes. */
  readonly #directories = new Map<string, Map<string, number>>();
  readonly #real = new Map<string, unknown>();
  #callsLeft = Infinity;
  #die: () => void = () => {};

  constructor(root: string) {
    this.#root = root;
    const calls = fs as unknown as Record<string, (...args: unknown[]) => unknown>;
    for (const name of CALLS) {
      const real = calls[name]!.bind(fs);
      this.#real.set(name, calls[name]);
      calls[name] = (...args) => {
        if (this.#isInside(args[0])) this.#called(name);
        return name === 'fsyncSync' && this.#isInside(args[0]) ? this.#sync(args[0] as number) : real(...args);
      };
    }
  }

  /** The process that calls dies before its next call but `calls`; its later ones fail. */
  dieAfter(calls: number, die: () => void): void {
    this.#callsLeft = calls;
    this.#die = die;
  }

  /** Nobody dies; calls succeed. */
  live(): void {
    this.#callsLeft = Infinity;
  }

  #called(name: string): void {
    if (this.#callsLeft === 0) this.#die();
    if (this.#callsLeft-- <= 0) throw new Error(`${name} by a dead process`);
  }

  #isInside(target: unknown): boolean {
    if (typeof target === 'string') return target.startsWith(this.#root);
    return typeof target === 'number' && this.#pathOf(target).startsWith(this.#root);
  }

  #pathOf(fd: number): string {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  }

  #sync(fd: number): void {
    const stat = fs.fstatSync(fd);
    if (stat.isDirectory()) {
      const directory = this.#pathOf(fd);
      this.#directories.set(directory, inodesIn(directory));
      return;
    }
    this.#forget(stat.ino);
    const own = fs.openSync(`/proc/self/fd/${fd}`, 'r');
    this.#files.set(stat.ino, { fd: own, content: fs.readFileSync(own) });
  }

  #forget(ino: number): void {
    const old = this.#files.get(ino);
    if (old !== undefined) fs.closeSync(old.fd);
    this.#files.delete(ino);
  }

  /** Closes what a dead process had open. */
  closeFiles(): void {
    const own = new Set([...this.#files.values()].map(({ fd }) => fd));
    for (const name of fs.readdirSync('/proc/self/fd')) {
      const fd = Number(name);
      if (!own.has(fd) && this.#isInside(fd)) fs.closeSync(fd);
    }
  }

  /** Of names that changed since their directory was synced, some are as before; of files, some sectors. */
  losePower(random: Prng): void {
    this.live();
    for (const directory of [this.#root, ...subdirectories(this.#root)]) {
      const names = this.#namesAfter(directory, random);
      const contents = [...names].map(([name, ino]) => [name, this.#contentAfter(directory, ino, random)] as const);
      for (const name of inodesIn(directory).keys()) fs.unlinkSync(path.join(directory, name));
      for (const [name, content] of contents) fs.writeFileSync(path.join(directory, name), content);
    }
    for (const ino of this.#files.keys()) this.#forget(ino);
    // What is there now stays.
    for (const directory of [this.#root, ...subdirectories(this.#root)]) {
      for (const name of inodesIn(directory).keys()) this.#syncPath(path.join(directory, name));
      this.#syncPath(directory);
    }
  }

  #syncPath(file: string): void {
    const fd = fs.openSync(file, 'r');
    this.#sync(fd);
    fs.closeSync(fd);
  }

  /** Names that share a file, before or now, change together: a rename is one thing. */
  #namesAfter(directory: string, random: Prng): Map<string, number> {
    const now = inodesIn(directory);
    const before = this.#directories.get(directory) ?? new Map<string, number>();
    const after = new Map<string, number>();
    const left = new Set([...before.keys(), ...now.keys()].sort());
    for (const first of left) {
      const group = new Set([first]);
      for (const name of group) {
        const files = new Set([before.get(name), now.get(name)]);
        for (const other of left) {
          const shares = [before.get(other), now.get(other)].some((ino) => ino !== undefined && files.has(ino));
          if (shares) group.add(other);
        }
      }
      const kept = random.chance(0.5) ? before : now;
      for (const name of group) {
        left.delete(name);
        const ino = kept.get(name);
        if (ino !== undefined) after.set(name, ino);
      }
    }
    return after;
  }

  #contentAfter(directory: string, ino: number, random: Prng): Buffer {
    const synced = this.#files.get(ino);
    const name = [...inodesIn(directory)].find(([, other]) => other === ino)?.[0];
    const now =
      name !== undefined
        ? fs.readFileSync(path.join(directory, name))
        : synced === undefined
          ? Buffer.alloc(0)
          : readAll(synced.fd);
    const before = synced?.content ?? Buffer.alloc(0);
    if (now.equals(before)) return before;
    const content = Buffer.alloc(random.chance(0.5) ? before.length : now.length);
    before.copy(content);
    const share = random.below(100) / 100;
    for (let at = 0; at < content.length; at += SECTOR)
      if (random.chance(share)) now.copy(content, at, at, Math.min(at + SECTOR, content.length));
    return content;
  }

  close(): void {
    Object.assign(fs, Object.fromEntries(this.#real));
    for (const ino of this.#files.keys()) this.#forget(ino);
  }
}

function readAll(fd: number): Buffer {
  const content = Buffer.alloc(fs.fstatSync(fd).size);
  fs.readSync(fd, content, 0, content.length, 0);
  return content;
}

/** The files of a directory. */
function inodesIn(directory: string): Map<string, number> {
  const entries = fs.readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(entries.map(({ name }) => [name, fs.statSync(path.join(directory, name)).ino]));
}

function subdirectories(directory: string): string[] {
  const entries = fs.readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return entries.map(({ name }) => path.join(directory, name)).sort();
}
