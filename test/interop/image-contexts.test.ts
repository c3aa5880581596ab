/** What libnbd's own program is told about the changes in a snapshot's image. */

import { execFileSync } from 'node:child_process';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from '../system/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeEach(() => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

interface Taken {
  readonly images: ReadonlyArray<{
    readonly uri: string;
    readonly generationId: string;
    readonly changeNumber: number;
  }>;
}

/** nbdinfo's map: [offset, length, flags] of each extent. */
function map(uri: string, context: string): number[][] {
  const lines = execFileSync('nbdinfo', [`--map=${context}`, '--json', uri], { encoding: 'utf8' });
  const extents = JSON.parse(lines) as Array<{ offset: number; length: number; type: number }>;
  return extents.map(({ offset, length, type }) => [offset, length, type]);
}

test('nbdinfo shows the blocks that changed since the snapshot before, by both names', async (context) => {
  requirePrograms(context, 'nbdinfo', 'qemu-io');
  await daemon.start();
  await daemon.disk('vm', 8 * MIB);
  const first = (await daemon.json<Taken>('snapshot', 'create', 'vm')).images[0]!;
  execFileSync('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 64k', daemon.uri('vm')]);
  const { uri, generationId, changeNumber } = (await daemon.json<Taken>('snapshot', 'create', 'vm')).images[0]!;
  expect([generationId, changeNumber]).toEqual([first.generationId, first.changeNumber + 1]);
  const changed = [
    [0, MIB, 0],
    [MIB, 65_536, 1],
    [MIB + 65_536, 7 * MIB - 65_536, 0],
  ];
  expect(map(uri, `blksnap:changed:${generationId}:${first.changeNumber}`)).toEqual(changed);
  expect(map(uri, `qemu:dirty-bitmap:since-${first.changeNumber}`)).toEqual(changed);
  // Of a history that is gone nothing is known: there is no such context.
  expect(() => map(uri, `blksnap:changed:00000000-0000-0000-0000-000000000000:${first.changeNumber}`)).toThrow();
});
