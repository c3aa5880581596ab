/** Who would wait for themselves if the daemon stood in a volume's write path: the daemon, whose files lie on it, and
 *  the machine, whose programs or swap do. */

import fs from 'node:fs';
import { underlyingPath } from '../blksnap/underlying.ts';
import { unescapeField } from '../io/sysfs.ts';
import { BlksnapError } from '../util/errors.ts';

export interface VolumeUsersOptions {
  /** For messages. */
  readonly volume: string;
  /** MAJOR:MINOR. */
  readonly number: string;
  /** What the daemon writes. */
  readonly directories: readonly string[];
  /** Take the risk of a machine that hangs when the daemon does. */
  readonly force: boolean;
}

/** Errors: EBUSY, naming what lies on the volume: never for what the daemon writes, for the rest without `force`. */
export function refuseOwnVolume({ volume, number, directories, force }: VolumeUsersOptions): void {
  const refuse = (what: string, next: string): never => {
    throw new BlksnapError('EBUSY', `Cannot attach "${volume}" while it is in use: ${what}; ${next}`);
  };
  for (const directory of directories) {
    if (liesOn(directory, number)) {
      refuse(
        `the daemon's own directory "${directory}" lies on it, and would wait for itself`,
        'run the daemon with --dir on another volume',
      );
    }
  }
  if (force) return;
  const programs = ['/', process.execPath, import.meta.dirname].find((place) => liesOn(place, number));
  const risk = 'a daemon that hangs would hang the machine; --force attaches it nevertheless';
  if (programs !== undefined) refuse(`"${programs}", which the machine or the daemon runs from, lies on it`, risk);
  const swap = swaps().find((place) => liesOn(place, number));
  if (swap !== undefined) refuse(`the machine swaps to "${swap}" on it`, risk);
}

function liesOn(path: string, number: string): boolean {
  return fs.existsSync(path) && underlyingPath(path).all.has(`device ${number}`);
}

/** The first column of /proc/swaps, below its heading. */
function swaps(): string[] {
  const text = fs.existsSync('/proc/swaps') ? fs.readFileSync('/proc/swaps', 'utf8') : '';
  const lines = text.split('\n').slice(1);
  return lines.map((line) => unescapeField(line.split(/\s/)[0]!)).filter((path) => path !== '');
}
