/** A core on real files that ends and begins again, with persistent snapshots, for tests. */

import fs from 'node:fs';
import { createJournalFile, openJournalFile } from '../src/blksnap/journal-place.ts';
import type { Snapshot } from '../src/blksnap/snapshot.ts';
import type { Tracker } from '../src/blksnap/tracker.ts';
import { BlksnapError } from '../src/util/errors.ts';
import { MIB } from '../src/util/units.ts';
import { Core } from './core.ts';

export const SIZE = 4 * MIB;
export const ID = '7b1a6f1e-9a53-4b0e-8a37-1f2f9a6f2f10';

export class PersistentCore {
  core: Core;

  static async open(): Promise<PersistentCore> {
    return new PersistentCore(await Core.open());
  }

  private constructor(core: Core) {
    this.core = core;
  }

  journal(id = ID): string {
    return this.core.path(`snapshots/${id}.journal`);
  }

  async take(
    trackers: readonly Tracker[],
    options: { id?: string; storage?: string; limitBytes?: number } = {},
  ): Promise<Snapshot> {
    const { id = ID, storage: path = this.core.directory, limitBytes = 64 * MIB } = options;
    const persistent = { open: () => createJournalFile(this.journal(id)), memo: { for: 'test' } };
    return await this.core.set.create(trackers, { path, limitBytes }, { id, persistent });
  }

  /** The process ends in order, and another begins with its files. */
  async restart(): Promise<void> {
    this.core = await this.core.restart();
  }

  async restore(trackers: readonly Tracker[], id = ID): Promise<Snapshot> {
    const tracker = (name: string): Tracker => {
      const found = trackers.find(({ disk }) => disk.name === name);
      if (found === undefined) throw new BlksnapError('ENODEV', 'it is not here');
      return found;
    };
    const restored = await this.core.set.restore({ place: openJournalFile(this.journal(id)), tracker });
    if (restored === null) throw new Error('the take did not come to its end');
    return restored.snapshot;
  }

  /** A snapshot of disk "a" with copies of some of it, laid down; the process has ended. What the disk was at the take. */
  async laidDown(): Promise<Buffer> {
    const { disk, tracker, file } = await this.core.disk('a', SIZE);
    const old = fs.readFileSync(file);
    await this.take([tracker]);
    for (let i = 0; i < 8; i++) await this.core.write(disk, i * 262_144 + 512, 12_288, i + 1);
    await this.restart();
    return old;
  }

  close(): Promise<void> {
    return this.core.close();
  }
}
