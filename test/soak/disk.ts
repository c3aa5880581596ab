/** A disk of self-describing sectors behind a daemon, and a model of which write each sector comes from. */

import fs from 'node:fs';
import { Client, Embedded } from '../../src/index.ts';
import type { Bytes, SnapshotView } from '../../src/index.ts';
import { Prng } from '../../src/util/prng.ts';
import { MIB } from '../../src/util/units.ts';
import { DaemonUnderTest } from '../system/daemon-under-test.ts';
import { SECTOR, sectorsOf, sequencesIn } from './sectors.ts';

const SIZE = 8 * MIB;
export const SECTORS = SIZE / SECTOR;

/** A held snapshot: its image, and the sequence number that each of its sectors must have. */
export interface HeldImage {
  readonly id: string;
  readonly view: SnapshotView;
  readonly bytes: Bytes;
  readonly model: Uint32Array;
}

export class SoakDisk {
  readonly daemon = new DaemonUnderTest();
  readonly random: Prng;
  readonly client: Client;
  /** Of each sector, the last write that was sent. */
  readonly model = new Uint32Array(SECTORS).fill(1);
  live!: Bytes;
  #embedded!: Embedded;
  #sequence = 1;

  constructor(seed: number) {
    this.random = new Prng(seed);
    this.client = new Client({ dir: this.daemon.state });
  }

  async start(driver: string): Promise<void> {
    await this.daemon.start('--io', driver);
    const file = this.daemon.path('soak.img');
    fs.writeFileSync(file, sectorsOf(1, 0, SIZE));
    await this.client.attach({ path: file });
    this.#embedded = await Embedded.open();
    this.live = await this.#embedded.openExport(this.daemon.uri('soak'));
  }

  async stop(): Promise<void> {
    await this.#embedded.close();
    await this.daemon.dispose();
  }

  get sequence(): number {
    return this.#sequence;
  }

  /** Writes whole sectors and notes it in the model of what is written. */
  async write(bytes: Bytes, model: Uint32Array, sector: number, count: number): Promise<void> {
    const sequence = ++this.#sequence;
    model.fill(sequence, sector, sector + count);
    await bytes.write(sector * SECTOR, sectorsOf(sequence, sector * SECTOR, count * SECTOR));
  }

  async writeRandom(bytes = this.live, model: Uint32Array = this.model): Promise<void> {
    const count = 1 + this.random.below(64);
    await this.write(bytes, model, this.random.below(SECTORS - count), count);
  }

  /** Compares a range with the model it must follow. */
  async verify(
    bytes: Bytes,
    model: Uint32Array,
    range: { where: string; sector?: number; count?: number },
  ): Promise<void> {
    const { where, sector = 0, count = SECTORS } = range;
    const data = await bytes.read(sector * SECTOR, count * SECTOR);
    for (const [i, sequence] of sequencesIn(data, sector * SECTOR, where).entries()) {
      const wanted = model[sector + i];
      if (sequence !== wanted)
        throw new Error(`${where}: sector ${sector + i} is of write ${sequence}, want ${wanted}`);
    }
  }

  async take(storage?: string): Promise<HeldImage> {
    const view = await this.client.createSnapshot({ disks: ['soak'], ...(storage !== undefined && { storage }) });
    const bytes = await this.#embedded.openExport(view.images[0]!.uri);
    return { id: view.id, view, bytes, model: this.model.slice() };
  }

  async destroy(image: HeldImage): Promise<void> {
    await image.bytes.close();
    await this.client.destroySnapshot(image.id);
  }
}
