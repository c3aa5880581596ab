/** `npm run build`: makes dist/ of src/. The types by tsc, and the program as a few files with most packages in them:
 *  Node reads hundreds of small modules in as much time as the daemon takes for all else before it serves.
 *  koffi stays outside, whose native code comes in packages of its own; so does pino, which finds its parts by path. */

import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { build } from 'esbuild';
import { ROOT } from './prepare.mjs';

/** zod/mini apart from the zod that the daemon's API takes whole: modules that both use would be one file, and a command
 *  that reads a manifest spend more time on it than on all else before its work.
 *  @type {import('esbuild').Plugin} */
const zodMiniApart = {
  name: 'zod-mini-apart',
  setup({ onLoad, onResolve, resolve }) {
    const namespace = 'zod-mini';
    onResolve({ filter: /^zod\/(?:mini|locales)$/, namespace: 'file' }, async ({ path: name, importer, ...from }) => {
      const { resolveDir, kind } = from;
      const found = await resolve(name, { importer, resolveDir, kind, namespace: 'zod' });
      return { path: found.path, namespace, sideEffects: false };
    });
    onResolve({ filter: /./, namespace }, ({ path: name, importer }) => {
      return { path: path.resolve(path.dirname(importer), name), namespace, sideEffects: false };
    });
    onLoad({ filter: /./, namespace }, async ({ path: file }) => ({ contents: await readFile(file) }));
  },
};

const outdir = path.join(ROOT, 'dist');
rmSync(outdir, { recursive: true, force: true });
await build({
  absWorkingDir: ROOT,
  entryPoints: {
    'cli/main': 'src/cli/main.ts',
    'daemon/io-thread': 'src/daemon/io-thread.ts',
    'backup/pass-thread': 'src/backup/pass-thread.ts',
    index: 'src/index.ts',
  },
  outdir,
  chunkNames: 'chunks/[name]-[hash]',
  bundle: true,
  splitting: true,
  external: ['koffi', 'pino'],
  plugins: [zodMiniApart],
  format: 'esm',
  platform: 'node',
  target: 'node20.19',
  sourcemap: true,
  legalComments: 'linked',
  // What packages in CommonJS ask for.
  banner: {
    js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
  },
  logLevel: 'warning',
});
const tsc = path.join(ROOT, 'node_modules/typescript/bin/tsc');
const { status } = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], { cwd: ROOT, stdio: 'inherit' });
process.exitCode = status ?? 1;
