import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { resolveFilterModule } from './filter-modules.ts';

let directory: string;
beforeEach(() => {
  directory = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-modules-')));
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

/** A package that is installed there; the URL of its module. */
function install(name: string, manifest: object): string {
  const place = path.join(directory, 'node_modules', name);
  fs.mkdirSync(place, { recursive: true });
  fs.writeFileSync(path.join(place, 'package.json'), JSON.stringify({ name, ...manifest }));
  fs.writeFileSync(path.join(place, 'filter.mjs'), 'export function register() {}');
  return pathToFileURL(path.join(place, 'filter.mjs')).href;
}

describe('a filter module', () => {
  it.each([
    { main: 'filter.mjs' },
    { exports: './filter.mjs' },
    { exports: { '.': './filter.mjs' } },
    { exports: { import: './filter.mjs' } },
    { exports: { '.': { types: './filter.d.ts', import: { node: './filter.mjs' } } } },
  ])('is a package: %o', (manifest) => {
    const url = install('@me/filter', manifest);
    const below = path.join(directory, 'a/b');
    fs.mkdirSync(below, { recursive: true });
    expect(resolveFilterModule('@me/filter', below)).toBe(url);
  });

  it('is a file before it is a package', () => {
    install('filter', { main: 'filter.mjs' });
    fs.writeFileSync(path.join(directory, 'filter'), '');
    expect(resolveFilterModule('filter', directory)).toBe(pathToFileURL(path.join(directory, 'filter')).href);
  });

  it('that is neither is refused, and so is a package without a module', () => {
    install('empty', { exports: { './other': './filter.mjs' } });
    for (const name of ['none', 'empty', './none.mjs']) {
      expect(() => resolveFilterModule(name, directory)).toThrow(
        expect.objectContaining({ code: 'ENOENT', message: expect.stringContaining(`"${name}"`) as string }),
      );
    }
  });
});
