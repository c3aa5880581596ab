/** The daemon's state files: a daemon that starts with them gets what they say, or an error that names the file. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { disksBelowMappings, loadMappedState } from '../../../src/daemon/mapped-state.ts';
import { DISK_NAME, loadState } from '../../../src/daemon/state.ts';
import { assert } from '../../../src/util/assert.ts';
import { BlksnapError } from '../../../src/util/errors.ts';
import { KIB } from '../../../src/util/units.ts';
import { jsonText } from '../json.ts';
import type { Draw } from '../draw.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const MESSAGE_BYTES = 16 * KIB;

class StateSubject implements FuzzSubject {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-state-'));

  async run(input: Uint8Array): Promise<void> {
    const file = path.join(this.#directory, 'state.json');
    fs.writeFileSync(file, input);
    const state = this.#expected(() => loadState(file));
    for (const { name } of [...(state?.disks ?? []), ...(state?.mapped ?? [])])
      assert(DISK_NAME.test(name), 'a disk has the name of one');
    for (const { name } of this.#expected(() => loadMappedState(file))?.devices ?? [])
      assert(DISK_NAME.test(name), 'a mapped device has the name of a disk');
    this.#expected(() => disksBelowMappings(file));
  }

  #expected<T>(load: () => T): T | null {
    try {
      return load();
    } catch (cause) {
      if (!(cause instanceof BlksnapError)) throw cause;
      assert(cause.message.length < MESSAGE_BYTES, 'a message can be read');
      assert(cause.message.includes('state.json'), 'a message names the file');
      return null;
    }
  }

  async close(): Promise<void> {
    fs.rmSync(this.#directory, { recursive: true });
  }
}

function disk(draw: Draw): object {
  return {
    name: draw.one(['vm', 'a.b', '../x', '', 'x'.repeat(200), '__proto__']),
    path: draw.one(['/srv/vm.img', '', '/', '\0']),
    readOnly: draw.chance(0.5),
    direct: draw.chance(0.5),
    ...(draw.chance(0.5) ? { filters: draw.list(3, () => filter(draw)) } : {}),
  };
}

function filter(draw: Draw): object {
  const partition = draw.one([null, 1, 0, -1, 1e300]);
  return { name: 'limit', options: { a: [draw.below(9)] }, ...(draw.chance(0.5) ? { partition } : {}) };
}

function generate(draw: Draw): Uint8Array {
  const version = draw.one([1, 1, 1, 1, 0, 2, '1', null]);
  const mapped = {
    version,
    devices: draw.list(3, () => ({ name: draw.one(['vm', '-']), table: draw.one(['0 8 zero', '', 'vm']) })),
    remaps: draw.list(3, () => ({ disk: 'vm', offset: draw.below(9), length: -1 + draw.below(9), to: 'x', at: 0.5 })),
  };
  const kept = draw.list(2, () => ({ name: draw.one(['m', '../x']), filters: draw.list(2, () => filter(draw)) }));
  const disks = draw.list(5, () => disk(draw));
  return jsonText(draw, draw.chance(0.5) ? { version, disks, ...(draw.chance(0.5) ? { mapped: kept } : {}) } : mapped);
}

export const state: FuzzTarget = { name: 'state', generate, open: async () => new StateSubject() };
