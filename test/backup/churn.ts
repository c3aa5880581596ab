/** Backs up and prunes without end, until it is killed. Says what is done once it is done:
 *  `point <id> <sha256 of the disk>`, `pruned <ids>`. Arguments: backup directory, scratch directory, seed. */

import { createHash } from 'node:crypto';
import { prune } from '../../src/backup/prune.ts';
import { BackupWorld } from './world.ts';

const [repository, scratch, seed] = process.argv.slice(2);
process.env['TMPDIR'] = scratch;
const world = await BackupWorld.open(Number(seed), repository);
world.generationId = `generation-${seed}`;

for (let round = 1; ; round++) {
  world.scribble(10);
  const { point } = await world.backUp({ mode: round % 4 === 0 ? 'differential' : 'auto' });
  const sum = createHash('sha256').update(world.contents.get(point.id)!).digest('hex');
  console.log(`point ${point.id} ${sum}`);
  world.contents.clear();
  if (round % 3 === 0) {
    const { removed } = await prune({
      directory: world.repository,
      disk: 'vda',
      keepLast: 4,
      reactor: world.reactor,
      pool: world.pool,
    });
    console.log(`pruned ${removed.join(' ')}`);
  }
}
