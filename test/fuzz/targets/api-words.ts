/** What is said to the API: requests of the right shape with wrong names, of the wrong shape, and such as are hard to take. */

import { MIB } from '../../../src/util/units.ts';
import type { Draw } from '../draw.ts';
import { jsonText } from '../json.ts';

/** In their place stand the daemon's own names when an input runs: they differ from run to run. */
export const SNAPSHOT = '5ba9507e-0000-4000-8000-000000000000';
export const PLACE = '/PLACE';
export const TOKEN = 'TOKEN-OF-THE-DAEMON';

const ROUTES = [
  '/v1/disks',
  '/v1/disks/{name}',
  '/v1/disks/{name}/resize',
  '/v1/disks/{name}/rescan',
  '/v1/disks/{name}/cbt',
  '/v1/disks/{name}/cbt/map?offset={number}&length={number}',
  '/v1/disks/{name}/cbt/dirty',
  '/v1/disks/{name}/filters',
  '/v1/disks/{name}/filters/{name}',
  '/v1/disks/{name}/filters/{name}/ctl',
  '/v1/mounts',
  '/v1/mapped',
  '/v1/mapped/{name}',
  '/v1/mapped/{name}/load',
  '/v1/mapped/{name}/message',
  '/v1/remaps',
  '/v1/filters',
  '/v1/snapshots',
  '/v1/snapshots/{name}',
  '/v1/snapshots/{name}/storage',
  '/v1/snapshots/{name}/events',
  '/v1/prepared-snapshots',
  '/v1/prepared-snapshots/{name}/disks',
  '/v1/prepared-snapshots/{name}/take',
  '/v1/status',
  '/v1/{name}',
  '/openapi.json',
];
const METHODS = ['GET', 'POST', 'POST', 'POST', 'DELETE', 'PUT', 'PATCH', 'HEAD', 'OPTIONS'];
const NUMBERS = [0, 1, -1, 0.5, 2 ** 31, 2 ** 53, 1e308, 4096];
const SIZES = [0, 512, 4096, 2 ** 40, 4 * MIB - 512];
const NAMES = [
  `vm@${SNAPSHOT}`,
  `vm@${SNAPSHOT}+once`,
  SNAPSHOT,
  'vm/1',
  '../x',
  'a/b',
  'vm/../vm',
  '',
  '.',
  '..',
  'x'.repeat(300),
  '\u00fc',
  '\u202Evm',
  'vm\0',
  'vm\n',
  '-',
  '@',
  'vm',
  'other',
  '__proto__',
  'constructor',
  'blksnap',
  '0 8 zero',
  '0 8 linear vm 0',
  ':memory:',
  `${PLACE}/vm.img`,
  PLACE,
  `${PLACE}/text`,
  `${PLACE}/none`,
  `${PLACE}/other.img`,
  '/dev/null',
  '/proc/self/mem',
];
const FIELDS =
  'name path directory disk disks point storage limitBytes ranges offset length table text sector filter options';

function value(draw: Draw, depth = 0): unknown {
  switch (draw.below(depth > 2 ? 4 : 7)) {
    case 0:
      return draw.one(NUMBERS);
    case 1:
      return draw.one([null, true, false]);
    case 2:
    case 3:
      return draw.one(NAMES);
    case 4:
      return draw.list(3, () => value(draw, depth + 1));
    default:
      return object(draw, depth + 1);
  }
}

function object(draw: Draw, depth = 0): object {
  return Object.fromEntries(draw.list(5, () => [draw.one(FIELDS.split(' ')), value(draw, depth)]));
}

/** Of the right shape: what is wrong with it only the daemon can tell. */
function shaped(draw: Draw): object {
  const number = (): number => draw.one(SIZES);
  const name = (): string => draw.one(NAMES);
  return draw.one([
    () => ({ path: name(), name: name() }),
    () => ({ directory: name(), disk: name(), name: name() }),
    () => ({ disks: [name(), name()], storage: name(), limitBytes: number() }),
    () => ({ disks: [name()] }),
    () => ({ storage: name(), limitBytes: number() }),
    () => ({ ranges: [{ offset: number(), length: number() }] }),
    () => ({ filter: name(), options: value(draw) }),
    () => ({ command: name(), payload: value(draw) }),
    () => ({ name: name(), table: name() }),
    () => ({ disk: name(), offset: number(), length: number(), to: name(), at: number() }),
    () => ({ disk: name() }),
    () => ({ sector: number(), text: name() }),
  ])();
}

function body(draw: Draw): Uint8Array {
  if (draw.chance(0.01)) return Buffer.from(`{"name":"${'x'.repeat(8 * MIB)}"}`);
  return jsonText(draw, draw.chance(0.7) ? shaped(draw) : draw.chance(0.8) ? object(draw) : value(draw));
}

function route(draw: Draw): string {
  const odd = ['..', '%2e%2e%2f', '%ff', '%00', 'vm', SNAPSHOT];
  return draw
    .one(ROUTES)
    .replaceAll('{name}', () => (draw.chance(0.5) ? encodeURIComponent(draw.one(NAMES)) : draw.one(odd)))
    .replaceAll('{number}', () => String(draw.one(NUMBERS)));
}

/** A few requests on one connection; each with one of these proofs, if there are any. */
export function httpRequests(draw: Draw, proofs: readonly string[] | null): Uint8Array {
  const parts: Uint8Array[] = [];
  const count = draw.between(1, 3);
  for (let i = 1; i <= count; i++) {
    const content = body(draw);
    const length = draw.chance(0.95) ? content.length : draw.one([0, 1, -1, 2 ** 31, 'x', '1, 1']);
    const chunked = draw.chance(0.1);
    const headers = [
      `${draw.one(METHODS)} ${route(draw)} HTTP/1.${draw.chance(0.95) ? 1 : 0}`,
      'host: x',
      ...(proofs === null ? [] : [`authorization: ${draw.one(proofs)}`]),
      `content-type: ${draw.one(['application/json', 'application/json', 'application/json', 'text/plain', 'multipart/form-data'])}`,
      chunked ? 'transfer-encoding: chunked' : `content-length: ${length}`,
      `connection: ${i === count ? 'close' : 'keep-alive'}`,
      '\r\n',
    ];
    parts.push(Buffer.from(headers.join('\r\n')));
    if (chunked) parts.push(Buffer.from(`${content.length.toString(16)}\r\n`), content, Buffer.from('\r\n0\r\n\r\n'));
    else parts.push(content);
  }
  return Buffer.concat(parts);
}
