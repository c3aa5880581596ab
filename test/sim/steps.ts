/** The steps that programs are made of. Each draws from a generator of its own, so that a program from which steps
 *  were left out does the rest as before. */

import type { Prng } from '../../src/util/prng.ts';
import { check } from './check.ts';
import { SimClient, drawStyle } from './client.ts';
import { harass } from './hostile.ts';
import { drawPlace } from './persistent.ts';
import { SlowFilter } from './slow-filter.ts';
import { askStatus } from './status.ts';
import { drawStorage, take } from './takes.ts';
import { Traffic, mayFail } from './traffic.ts';
import { World } from './world.ts';
import type { SimDisk } from './world.ts';

const CHUNK = 4096;
const SECTOR = 512;
const MOST_SNAPSHOTS = 4;
const MOST_CLIENTS = 3;
const MOST_CONNECTIONS = 12;
const MOST_TURNS = 400;
/** Of a place that soon is full. */
const FEW_PAGES = 20;

export const STEPS = [
  'traffic',
  'take',
  'destroy',
  'release',
  'dirty',
  'resize',
  'kill',
  'power',
  'quiet',
  'append',
  'clients',
  'backup',
  'filter',
  'hostile',
  'status',
  'spoil',
  'restart',
] as const;
export type Step = (typeof STEPS)[number];
const WEIGHTS: Record<Step, number> = {
  traffic: 40,
  take: 20,
  destroy: 10,
  release: 6,
  dirty: 3,
  resize: 5,
  kill: 3,
  power: 4,
  quiet: 6,
  append: 8,
  clients: 10,
  backup: 16,
  filter: 5,
  hostile: 8,
  status: 6,
  spoil: 4,
  restart: 3,
};

export function drawStep(random: Prng): Step {
  let left = random.below(STEPS.reduce((sum, step) => sum + WEIGHTS[step], 0));
  for (const step of STEPS) {
    left -= WEIGHTS[step];
    if (left < 0) return step;
  }
  return 'traffic';
}

/** Runs a step and checks everything. Returns the world, or the one after it. */
export async function runStep(world: World, step: Step, random: Prng): Promise<World> {
  switch (step) {
    case 'traffic':
      // Where snapshots outlive the daemon, it dies often.
      if (world.machine.weather.persistent > 0 && random.chance(0.25)) return await die(world, random, false);
      await traffic(world, random, 1 + random.below(30));
      break;
    case 'take':
      if (world.held.size < MOST_SNAPSHOTS) await traffic(world, random, random.below(8), 'take');
      break;
    case 'destroy':
      await traffic(world, random, random.below(8), 'destroy');
      break;
    case 'release':
      release(world, random);
      break;
    case 'dirty':
      await dirty(world, random);
      break;
    case 'resize':
      await resize(world, random);
      break;
    case 'kill':
    case 'power':
      return await die(world, random, step === 'power');
    case 'quiet':
      await quiet(world);
      break;
    case 'append':
      await append(world, random);
      break;
    case 'backup':
      for (let rounds = 1 + random.below(3); rounds > 0; rounds--) await backup(world, random);
      break;
    case 'filter':
    case 'hostile':
      await traffic(world, random, 4 + random.below(20), step);
      break;
    case 'status':
      await askStatus(world, random);
      break;
    case 'spoil':
      spoil(world, random);
      break;
    case 'restart':
      return await restart(world, random);
    case 'clients':
      await comeAndGo(world, random);
      break;
  }
  await check(world);
  return world;
}

type Among = 'take' | 'destroy' | 'backup' | 'filter' | 'hostile';

/** Starts operations, now and then with time between them, and at a random place among them something else. */
async function start(world: World, flow: Traffic, random: Prng, count: number, among?: Among): Promise<void> {
  const place = random.below(count + 1);
  for (let i = 0; i <= count; i++) {
    if (i === place && among === 'take') flow.run(take(world, random));
    if (i === place && among === 'destroy') destroy(world, flow, random);
    if (i === place && among === 'filter') flow.run(changeFilters(world, random));
    if (i === place && among === 'hostile') flow.runRemote(harass(world, random));
    if (i === place && among === 'backup') flow.runRemote(world.machine.depot.work(world, random));
    if (i < count) flow.start(random);
    if (random.chance(0.02)) vanish(world, random);
    if (random.chance(0.3)) for (let turns = random.below(20); turns > 0; turns--) await world.reactor.turn();
  }
}

async function traffic(world: World, random: Prng, count: number, among?: Among): Promise<void> {
  const flow = new Traffic(world);
  const giveBack = random.chance(world.machine.weather.hoggedArena) ? world.hog() : (): void => {};
  await start(world, flow, random, count, among);
  // Somebody who waits for memory is helped some time.
  const helped = new Promise<void>((resolve) =>
    world.reactor.after(random.below(5000), () => {
      giveBack();
      resolve();
    }),
  );
  await world.reactor.until(Promise.all([flow.ended(), helped]));
}

/** A backup, restore or prune among traffic, mostly of something new: that is what increments are made of. */
async function backup(world: World, random: Prng): Promise<void> {
  if (random.chance(0.7)) {
    if (world.held.size === MOST_SNAPSHOTS) await world.reactor.until(world.destroy([...world.held.keys()][0]!));
    await traffic(world, random, random.below(8), 'take');
  }
  await traffic(world, random, random.below(12), 'backup');
}

/** A client dies, whatever it is doing. */
function vanish({ clients }: World, random: Prng): void {
  const client = clients[random.below(Math.max(1, clients.length))];
  if (client === undefined) return;
  clients.splice(clients.indexOf(client), 1);
  client.vanish();
}

/** Clients come and go in order, and ask for what there is. */
async function comeAndGo(world: World, random: Prng): Promise<void> {
  const { reactor } = world;
  const names = [...world.disks.map(({ disk }) => disk.name), ...world.images.map(({ image }) => image.name)];
  if (world.clients.length === MOST_CLIENTS || random.chance(0.2)) {
    const leaving = world.clients.shift();
    if (leaving !== undefined) await reactor.until(leaving.close());
  }
  const client = await SimClient.start(world);
  world.clients.push(client);
  for (const name of names)
    if (random.chance(0.7) && world.serving.server.connections < MOST_CONNECTIONS)
      await reactor.until(client.use(name, drawStyle(random)));
  for (const each of world.clients)
    for (const name of each.devices.keys()) if (each.broken(name)) await reactor.until(each.leave(name));
}

function destroy(world: World, flow: Traffic, random: Prng): void {
  const all = [...world.held.keys()];
  const snapshot = all[random.below(Math.max(1, all.length))];
  if (snapshot !== undefined) flow.run(world.destroy(snapshot));
}

/** The storage of a snapshot gets another place, with traffic before and after the first is full. */
async function append(world: World, random: Prng): Promise<void> {
  if (world.machine.weather.storagePages === Infinity) {
    if (world.held.size === MOST_SNAPSHOTS) await world.reactor.until(world.destroy([...world.held.keys()][0]!));
    await world.reactor.until(take(world, random, FEW_PAGES));
  }
  // The newest is the one that copies go to.
  const snapshot = [...world.held.keys()].at(-1);
  if (snapshot === undefined) return;
  world.reactor.clock.calm++;
  const kept = world.kept.get(snapshot);
  const place = kept === undefined ? drawStorage(world, random) : drawPlace(world, kept, random);
  await world.reactor.until(world.set.append(snapshot.id, place)).catch((error: unknown) => {
    // A journal that has failed takes no more places.
    if (kept === undefined || !mayFail(world)) throw error;
  });
  world.reactor.clock.calm--;
  await traffic(world, random, 10 + random.below(20));
}

/** A reader is done with some of an image. */
function release(world: World, random: Prng): void {
  const { images } = world;
  const held = images[random.below(Math.max(1, images.length))];
  if (held === undefined || held.busy > 0) return;
  const chunks = Math.ceil(held.content.length / CHUNK);
  const first = random.below(chunks);
  const end = Math.min(chunks, first + 1 + random.below(40));
  const endByte = Math.min(end * CHUNK, held.content.length);
  held.image.release(first * CHUNK, endByte - first * CHUNK);
  // What outlives the daemon stays whole.
  if (held.image.readOnly) return;
  for (let chunk = first; chunk < end; chunk++) held.released.add(chunk);
}

/** Ranges that somebody says have changed are told as changed since every snapshot before. */
async function dirty(world: World, random: Prng): Promise<void> {
  const { model, tracker } = world.disks[random.below(world.disks.length)]!;
  const size = model.content.length;
  const offset = random.below(size);
  const length = 1 + random.below(size - offset);
  await world.reactor.until(tracker.markDirty([{ offset, length }]));
  const { map, blockSize, changeNumber } = tracker.cbt;
  for (let at = offset; at < offset + length; at = (Math.floor(at / blockSize) + 1) * blockSize) {
    if (map[Math.floor(at / blockSize)] !== changeNumber)
      throw new Error(`${model.name}: ${at} was marked dirty in vain`);
  }
}

/** Cuts or extends a disk. Only images that are larger than what is left may be lost. */
async function resize(world: World, random: Prng): Promise<void> {
  const owner: SimDisk = world.disks[random.below(world.disks.length)]!;
  const { model, file, disk, tracker } = owner;
  const before = model.content.length;
  const size = Math.min(
    400 * 1024,
    Math.max(64, Math.floor((before / SECTOR) * (0.7 + random.below(70) / 100))) * SECTOR,
  );
  await world.reactor.settle();
  const content = new Uint8Array(size);
  content.set(model.content.subarray(0, size));
  file.resize(size);
  model.restart(content);
  const { generationId } = tracker.cbt;
  await world.reactor.until(disk.resize());
  // Clients learn of it when they connect again.
  for (const client of world.clients) await world.reactor.until(client.leave(disk.name));
  if (disk.size !== size) throw new Error(`${model.name}: resized to ${disk.size}, want ${size}`);
  if (size !== before && tracker.cbt.generationId === generationId)
    throw new Error(`${model.name}: resized within one history`);
}

/** Sectors of a disk, or of what was saved of one, go bad. */
function spoil({ machine, places }: World, random: Prng): void {
  const files = [...machine.disks.map(({ file }) => file), ...places];
  const file = files[random.below(files.length)]!;
  if (!machine.weather.badSectors || file.size === 0) return;
  file.spoil(random.below(file.size), 1 + random.below(CHUNK));
}

/** A filter of somebody else's is attached to a disk, above or below the tracker, or goes. */
async function changeFilters({ disks, reactor }: World, random: Prng): Promise<void> {
  const { disk } = disks[random.below(disks.length)]!;
  const altitude = random.chance(0.5) ? 50 : 150;
  const there = disk.filters.find((filter) => filter.altitude === altitude);
  if (there === undefined) await disk.attachFilter(new SlowFilter(altitude, reactor));
  else await disk.detachFilter(there);
}

/** The daemon ends in order, leaving nothing behind, and is started again; somebody else may write in between. */
async function restart(world: World, random: Prng): Promise<World> {
  // What a sync has dropped is no clean end: in doubt when the machine stops then.
  const doubt = world.disks.some(({ model, file }) => model.unreliable || file.faults.sync > file.syncFaultsAtBoot);
  await world.stop();
  const power = world.machine.weather.persistent > 0 && random.chance(0.4);
  if (power) world.losePower(random);
  if (world.machine.weather.persistent === 0 || random.chance(0.5)) world.writeForeign(random);
  const next = await World.start(world.machine, power && doubt ? 'doubt' : '');
  await check(next);
  return next;
}

/** When nothing is under way, nothing may be held back. */
async function quiet(world: World): Promise<void> {
  await world.reactor.settle();
  const { pool, copyMemory } = world;
  if (pool.lent !== 0) throw new Error(`leak: ${pool.lent} bios are out while nothing is under way`);
  if (copyMemory.lentBytes !== 0)
    throw new Error(`leak: ${copyMemory.lentBytes} bytes of copy memory while nothing is under way`);
}

/** A large write to a hole, which a snapshot has just been taken of. */
async function writeToHole(world: World, flow: Traffic, random: Prng): Promise<void> {
  const owner = world.disks[random.below(world.disks.length)]!;
  const range = { offset: random.below(8) * CHUNK, length: (20 + random.below(8)) * CHUNK };
  if (range.offset + range.length > owner.model.content.length) return;
  flow.change(owner, range, { random, discards: true });
  await world.reactor.until(flow.ended());
  if (world.held.size < MOST_SNAPSHOTS) await world.reactor.until(take(world, random));
  flow.change(owner, range, { random, discards: false });
}

async function somethingEnds(world: World, flow: Traffic): Promise<void> {
  const before = flow.underWay;
  for (let turns = 0; turns < MOST_TURNS && flow.underWay >= before && before > 0; turns++) await world.reactor.turn();
}

/** The daemon is killed, or the machine stops, in the middle of traffic; then it is started again. */
async function die(world: World, random: Prng, power: boolean): Promise<World> {
  const flow = new Traffic(world);
  if (world.machine.weather.persistent > 0 && random.chance(0.4)) await writeToHole(world, flow, random);
  await start(
    world,
    flow,
    random,
    random.below(world.machine.weather.persistent > 0 ? 4 : 20),
    random.chance(0.3) ? 'take' : random.chance(0.3) ? 'destroy' : random.chance(0.5) ? 'backup' : undefined,
  );
  // As soon as something was answered is when it must have been recorded.
  if (world.machine.weather.persistent > 0 && random.chance(0.5)) await somethingEnds(world, flow);
  else for (let turns = random.below(40); turns > 0; turns--) await world.reactor.turn();
  flow.abandon();
  await world.die(power);
  // Its clients live on, and hear of it.
  await world.reactor.until(flow.remoteEnded());
  for (const client of world.clients) if (!client.vanished) await world.reactor.until(client.close());
  if (random.chance(0.3)) world.writeForeign(random);
  const next = await World.start(world.machine, power ? 'power' : '');
  await check(next);
  return next;
}
