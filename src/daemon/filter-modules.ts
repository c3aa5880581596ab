/** Filters that are not ours: modules named on the command line, loaded into the I/O thread.
 *
 *  Loaded before the thread's reactor runs: importing takes asynchronous node:fs. */

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import type { FilterModule } from '../block/filter.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';

/** The URL of a module: a file, or a package that can be found from `directory`. Errors: ENOENT. */
export function resolveFilterModule(given: string, directory: string): string {
  const file = path.resolve(directory, given);
  if (fs.existsSync(file)) return pathToFileURL(file).href;
  try {
    return pathToFileURL(createRequire(path.join(directory, 'x.js')).resolve(given)).href;
  } catch (cause) {
    throw new BlksnapError(
      'ENOENT',
      `Cannot load filter module "${given}": there is no such file, and no such package for "${directory}"`,
      { cause },
    );
  }
}

/** Errors: EINVAL for a module that fails, or exports no `register`. */
export async function loadFilterModules(urls: readonly string[]): Promise<FilterModule[]> {
  const modules: FilterModule[] = [];
  for (const url of urls) {
    let loaded: { readonly register?: unknown };
    try {
      loaded = (await import(url)) as typeof loaded;
    } catch (cause) {
      throw new BlksnapError('EINVAL', `Cannot load filter module "${url}": ${toBlksnapError(cause).message}`, {
        cause,
      });
    }
    if (typeof loaded.register !== 'function') {
      throw new BlksnapError('EINVAL', `Cannot load filter module "${url}": it exports no function \`register\``);
    }
    modules.push(loaded as FilterModule);
  }
  return modules;
}
