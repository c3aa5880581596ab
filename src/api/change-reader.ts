/** What changed on a disk, by the numbers of its snapshots: the basis of incremental backup.
 *
 *  ```ts
 *  import { ChangeReader, Client } from 'blksnap';
 *
 *  const client = new Client();
 *  const { name } = await client.attach({ path: `${process.cwd()}/disk.img` });
 *  const first = await client.createSnapshot({ disks: [name] });
 *  const since = first.images[0].changeNumber;
 *  await client.destroySnapshot(first.id);
 *  await client.markDirty(name, { ranges: [{ offset: 0, length: 512 }] });
 *
 *  const changes = await ChangeReader.open(client, name);
 *  console.log(changes.since(first.images[0].generationId, since)); // [{ offset: 0, length: 65536 }]
 *  await client.detach(name);
 *  ```
 *
 *  A copy of the map at one moment; while a snapshot of the disk is held, as of the newest take. */

import type { CbtView, Client } from './client.ts';

export interface ChangedRange {
  readonly offset: number;
  readonly length: number;
}

export class ChangeReader {
  readonly info: CbtView;
  /** One byte per tracking block: the number of the last period in which it changed. */
  readonly map: Uint8Array;

  /** Fails as Client.cbt. */
  static async open(client: Client, disk: string): Promise<ChangeReader> {
    for (;;) {
      const info = await client.cbt(disk);
      const map = await client.cbtMap(disk);
      // A history that was renewed between the two questions would lend its map to the wrong generation.
      if ((await client.cbt(disk)).generationId === info.generationId) return new ChangeReader(info, map);
    }
  }

  private constructor(info: CbtView, map: Uint8Array) {
    this.info = info;
    this.map = map;
  }

  /** The runs of bytes that changed after the snapshot with this number, in order.
   *  Null: that history is gone, and everything may have changed. */
  since(generationId: string, changeNumber: number): ChangedRange[] | null {
    const { blockSize, size } = this.info;
    if (generationId !== this.info.generationId) return null;
    const ranges: Array<{ offset: number; length: number }> = [];
    for (const [block, number] of this.map.entries()) {
      if (number <= changeNumber) continue;
      const offset = block * blockSize;
      const length = Math.min(blockSize, size - offset);
      const last = ranges.at(-1);
      if (last !== undefined && last.offset + last.length === offset) last.length += length;
      else ranges.push({ offset, length });
    }
    return ranges;
  }
}
