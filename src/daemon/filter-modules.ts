/** Filters that are not ours: modules named on the command line, loaded into the I/O thread.
 *
 *  Loaded before the thread's reactor runs: importing takes asynchronous node:fs. */

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import type { FilterModule } from '../block/filter.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readText } from '../util/read-text.ts';
import { MIB } from '../util/units.ts';

const MANIFEST_BYTES = MIB;
/** What Node takes for `import`; the first is not a condition but the package itself. */
const IMPORT_CONDITIONS = new Set(['.', 'node', 'import', 'module-sync', 'default']);

/** The URL of a module: a file, or a package that can be found from `directory`. Errors: ENOENT. */
export function resolveFilterModule(given: string, directory: string): string {
  const file = path.resolve(directory, given);
  if (fs.existsSync(file)) return pathToFileURL(file).href;
  try {
    const require = createRequire(path.join(directory, 'x.js'));
    const module = modulePathOf(require.resolve.paths(given) ?? [], given) ?? require.resolve(given);
    return pathToFileURL(module).href;
  } catch (cause) {
    throw new BlksnapError(
      'ENOENT',
      `Cannot load filter module "${given}": there is no such file, and no such package for "${directory}"`,
      { cause },
    );
  }
}

/** Where a package has its module for `import`, which `require` does not find when that is all it has. */
function modulePathOf(places: readonly string[], name: string): string | null {
  const place = places.map((one) => path.join(one, name)).find((one) => fs.existsSync(path.join(one, 'package.json')));
  if (place === undefined) return null;
  const manifest = JSON.parse(readText(path.join(place, 'package.json'), MANIFEST_BYTES)) as { exports?: unknown };
  const exported = importTarget(manifest.exports);
  return exported === null ? null : fs.realpathSync(path.join(place, exported));
}

/** Of a manifest's exports, or a part of them (Node.js, "Packages: conditional exports"). */
function importTarget(exported: unknown): string | null {
  if (typeof exported === 'string') return exported;
  if (typeof exported !== 'object' || exported === null || Array.isArray(exported)) return null;
  for (const [condition, target] of Object.entries(exported)) {
    if (!IMPORT_CONDITIONS.has(condition)) continue;
    const found = importTarget(target);
    if (found !== null) return found;
  }
  return null;
}

/** Errors: EINVAL for a module that fails, or exports no `register`. */
export async function loadFilterModules(urls: readonly string[]): Promise<FilterModule[]> {
  const modules: FilterModule[] = [];
  for (const url of urls) {
    let loaded: { readonly register?: unknown };
    try {
      loaded = (await import(url)) as typeof loaded;
    } catch (cause) {
      throw new BlksnapError('EINVAL', `Cannot load filter module "${url}": ${reasonOf(cause)}`, { cause });
    }
    if (typeof loaded.register !== 'function') {
      throw new BlksnapError('EINVAL', `Cannot load filter module "${url}": it exports no function \`register\``);
    }
    modules.push(loaded as FilterModule);
  }
  return modules;
}

function reasonOf(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException;
  const unstripped = code === 'ERR_UNKNOWN_FILE_EXTENSION' && /"\.m?ts"/.test(message);
  return unstripped
    ? `Node ${process.version} takes no TypeScript; compile it to JavaScript, or use Node 22.18 or newer`
    : toBlksnapError(cause).message;
}
