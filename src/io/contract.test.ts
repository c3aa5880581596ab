/** Both drivers keep the reactor contract. */

import { describe, expect, it } from 'vitest';
import { reactorContract } from '../../test/contracts/reactor.ts';
import { MIB } from '../util/units.ts';
import { chooseDriver, openReactor } from './open.ts';

const arenaBytes = 32 * MIB;
const choice = await chooseDriver();

describe('portable', () => reactorContract(() => openReactor({ driver: 'portable', arenaBytes })));

describe('uring', () => {
  if (choice.driver === 'uring') reactorContract(() => openReactor({ driver: 'uring', arenaBytes, cooperative: true }));
  else it('keeps the reactor contract', (context) => context.skip(choice.reason));
});

describe('openReactor', () => {
  it('takes the driver that works here', async () => {
    const reactor = await openReactor({ arenaBytes: MIB, cooperative: true });
    expect(reactor.driver).toBe(choice.driver);
    expect(choice.driver === 'uring').toBe(choice.reason === '');
    await reactor.close();
  });

  it('takes the one that is asked for', async () => {
    const reactor = await openReactor({ driver: 'portable', arenaBytes: MIB });
    expect(reactor.driver).toBe('portable');
    await reactor.close();
  });
});
