/** Test projects. `unit` stands beside the code and is part of the gate; `frame` watches the form of the
 *  project itself; `system` spans files and talks to real clients, and runs in `npm test` alone; `kernel-uml` and `kernel-qemu`
 *  run inside a kernel of their own (scripts/test-kernel.mjs), and are skipped by name anywhere else. */

import { defineConfig } from 'vitest/config';

const KERNELS = ['uml', 'qemu'] as const;
/** Unit tests that take seconds each: not part of the gate, which must stay short, but of `npm test`. */
const LONG = [
  'src/api/{lease,mapped,partitions,retry}.test.ts',
  'src/backup/{backup,file-pass,prune,restore}.test.ts',
  'src/block/partition-table.test.ts',
  'src/blksnap/model.test.ts',
  'src/daemon/{barrier-take,freeze-hooks,io-thread-client}.test.ts',
  'src/dm/mapped-device.test.ts',
  'src/kernel/dmsetup.test.ts',
  'src/nbd/connection.test.ts',
];
const FRAME = ['test/tidy*.test.ts', 'test/layers.test.ts', 'test/comparison.test.ts', 'test/sim/mutations.test.ts'];

export default defineConfig({
  // What the examples import, from its sources.
  resolve: { alias: { blksnap: new URL('./src/index.ts', import.meta.url).pathname } },
  test: {
    reporters: ['./test/skip-reporter.ts', 'default'],
    // Vitest would leave one processor idle: half of a small machine.
    maxWorkers: '100%',
    // Of what hangs. What is only slow, on whatever machine, ends before.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } },
    coverage: { provider: 'v8', include: ['src/**/*.ts'], exclude: ['src/**/*.test.ts'] },
    projects: [
      { extends: true, test: { name: 'unit', include: ['src/**/*.test.ts'], exclude: LONG } },
      { extends: true, test: { name: 'long', include: LONG } },
      { extends: true, test: { name: 'frame', include: FRAME } },
      {
        extends: true,
        test: {
          name: 'system',
          include: ['test/**/*.test.ts'],
          exclude: [...FRAME, 'test/kernel/**'],
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
      ...KERNELS.map((kernel) => ({
        extends: true as const,
        test: {
          name: `kernel-${kernel}`,
          include: [`test/kernel/${kernel}/**/*.test.ts`],
          setupFiles: ['test/kernel/setup.ts'],
          // A program of Node takes seconds to start in there.
          testTimeout: 900_000,
          hookTimeout: 900_000,
        },
      })),
    ],
  },
});
