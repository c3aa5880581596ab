/** The arrows between layers, as ARCHITECTURE.md draws them: a layer imports only layers below it, siblings
 *  nothing of each other, files nothing in a circle. Imports of types count, except for circles inside a
 *  layer: types are gone at run time. */

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';

const SRC = path.join(import.meta.dirname, '../src');

/** Lowest first; layers in one row are siblings. */
const ROWS = [
  ['util'],
  ['io'],
  ['block'],
  ['nbd', 'dm', 'qcow2'],
  ['blksnap'],
  ['backup', 'kernel'],
  ['daemon'],
  ['api'],
  ['cli'],
];

/** Layers that must not reach all the way down: people's programs know the daemon by its API alone. */
const CUT_OFF: Record<string, readonly string[]> = {
  cli: ['daemon'],
};

/** The daemon as a process: no one but the command that runs it may load it, and only when it runs. */
const DAEMON_PROCESS = { file: 'api/run-daemon.ts', loader: 'cli/commands/daemon.ts' };

/** Packages that belong to some layers alone; all others may be used anywhere. */
const PACKAGE_OWNERS: Record<string, readonly string[]> = {
  koffi: ['io'],
  commander: ['cli'],
  hono: ['api'],
  '@hono/node-server': ['api'],
  '@hono/zod-openapi': ['api'],
  pino: ['daemon'],
};

interface Import {
  readonly from: string;
  readonly to: string;
  readonly dynamic: boolean;
  readonly typeOnly: boolean;
}

const STATIC = /^(?:import|export)\s+(type\s)?(?:[^'";]*?\sfrom\s+)?'([^']+)'/gm;
const DYNAMIC = /\bimport\(\s*'([^']+)'|\bnew URL\(\s*'([^']+)',\s*import\.meta\.url/g;

function importsOf(file: string): Import[] {
  const text = readFileSync(path.join(SRC, file), 'utf8');
  const resolve = (target: string): string => (target.startsWith('.') ? path.join(path.dirname(file), target) : target);
  const statics = [...text.matchAll(STATIC)].map((match) => ({
    from: file,
    to: resolve(match[2]!),
    dynamic: false,
    typeOnly: match[1] !== undefined,
  }));
  const dynamics = [...text.matchAll(DYNAMIC)].map((match) => ({
    from: file,
    to: resolve(match[1] ?? match[2]!),
    dynamic: true,
    typeOnly: false,
  }));
  const statements = text.match(/^import\b/gm)?.length ?? 0;
  expect(
    statics.filter(({ to }) => to !== '').length,
    `imports of ${file} that this test can read`,
  ).toBeGreaterThanOrEqual(statements);
  return [...statics, ...dynamics];
}

/** The package's public entry, above all layers: the one barrel there may be. */
const ENTRY = 'index.ts';

const layerOf = (file: string): string => file.split(path.sep)[0]!;
const rowOf = (layer: string): number => ROWS.findIndex((row) => row.includes(layer));

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
const product = files.filter((file) => !file.endsWith('.test.ts') && file !== ENTRY);
const imports = product.flatMap(importsOf);
const inside = imports.filter(({ to }) => product.includes(to));

/** Why the import is against the order, or undefined. */
function fault({ from, to, dynamic }: Import): string | undefined {
  const layer = layerOf(from);
  const target = layerOf(to);
  if (layer === target) return undefined;
  if (rowOf(target) >= rowOf(layer)) return `${target} is not below ${layer}`;
  if ((CUT_OFF[layer] ?? []).includes(target)) return `${layer} must not know ${target}`;
  const { file, loader } = DAEMON_PROCESS;
  return to === file && !(from === loader && dynamic) ? `only ${loader} may load it, with await import()` : undefined;
}

/** The first circle of value imports that can be reached from `start`, as a list of files. */
function findCircle(start: string, edges: ReadonlyMap<string, readonly string[]>, done: Set<string>): string[] | null {
  const trail: string[] = [];
  const visit = (file: string): string[] | null => {
    const seen = trail.indexOf(file);
    if (seen >= 0) return [...trail.slice(seen), file];
    if (done.has(file)) return null;
    trail.push(file);
    for (const next of edges.get(file) ?? []) {
      const circle = visit(next);
      if (circle !== null) return circle;
    }
    trail.pop();
    done.add(file);
    return null;
  };
  return visit(start);
}

describe('layers', () => {
  it('sees the code', () => {
    expect(product.length).toBeGreaterThan(20);
    expect(inside.length).toBeGreaterThan(product.length);
  });

  it('has every file in a known layer', () => {
    expect(product.filter((file) => rowOf(layerOf(file)) < 0)).toEqual([]);
  });

  it('imports only what is there', () => {
    const relative = imports.filter(({ to }) => to.endsWith('.ts') && !product.includes(to));
    expect(relative.map(({ from, to }) => `${from} -> ${to}`)).toEqual([]);
  });

  it('imports only layers below', () => {
    const faults = inside.map((one) => ({ ...one, why: fault(one) })).filter(({ why }) => why !== undefined);
    expect(faults.map(({ from, to, why }) => `${from} -> ${to}: ${why}`)).toEqual([]);
  });

  it('has no circles', () => {
    const edges = new Map<string, string[]>();
    for (const { from, to, typeOnly, dynamic } of inside) {
      if (!typeOnly && !dynamic) edges.set(from, [...(edges.get(from) ?? []), to]);
    }
    const done = new Set<string>();
    const circles = product.map((file) => findCircle(file, edges, done)).filter((circle) => circle !== null);
    expect(circles.map((circle) => circle.join(' -> '))).toEqual([]);
  });

  it('has no barrel files', () => {
    const barrels = product.filter((file) => /^export [^;]*\sfrom '/m.test(readFileSync(path.join(SRC, file), 'utf8')));
    expect(barrels).toEqual([]);
  });

  it('keeps packages in the layers that own them', () => {
    const strays = imports.filter(({ from, to }) => {
      const owners = PACKAGE_OWNERS[/^(?:@[^/]+\/)?[^/]+/.exec(to)?.[0] ?? ''];
      return owners !== undefined && !owners.includes(layerOf(from));
    });
    expect(strays.map(({ from, to }) => `${from} -> ${to}`)).toEqual([]);
  });
});
