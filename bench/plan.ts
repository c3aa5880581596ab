/** What to measure: which experiments and entrants, how often and how long. */

import { findProgram } from '../scripts/debian.mjs';
import { COPYING } from './experiments/copying.ts';
import { DAEMON } from './experiments/daemon.ts';
import { PLAIN } from './experiments/plain.ts';
import { FIRST_TOUCH, IMAGES } from './experiments/snapshot.ts';
import { WHILE_READING } from './experiments/while-reading.ts';
import type { Entrant, Experiment, Settings } from './measurement.ts';

const GIB = 1024 ** 3;

export const EXPERIMENTS: readonly Experiment[] = [
  ...PLAIN,
  ...FIRST_TOUCH,
  ...IMAGES,
  ...WHILE_READING,
  ...COPYING,
  ...DAEMON,
];

/** Whom --quick measures: ourselves and those that were never far from the best. */
const QUICK_ENTRANTS = new Set([
  'blksnap',
  'blksnap-serve',
  'blksnap-tracker',
  'blksnap-held',
  'blksnap-copied',
  'blksnap-daemon',
  'blksnap-nothing',
  'blksnap-nbdcopy',
  'blksnap-backup',
  'origin',
  'image-none',
  'image-half',
  'image-all',
  'nbdkit-file',
  'qemu-cbw-raw',
  'qemu-img-qcow2',
  'nbdcopy-raw',
]);

export interface Choice {
  readonly quick: boolean;
  readonly only?: string;
  readonly rounds?: string;
  readonly size?: string;
}

export interface Plan {
  readonly experiments: readonly Experiment[];
  readonly rounds: number;
  readonly settings: Settings;
  /** Every entrant of the chosen experiments runs, so that the result may be kept. */
  readonly complete: boolean;
  /** One line for each program that is not installed, with those who are left out for it. */
  readonly absences: readonly string[];
}

/** The names given to --only: of experiments or their groups, and of entrants. Errors: what is unknown. */
function parseNames(only: string): { readonly places: readonly string[]; readonly entrants: readonly string[] } {
  const given = only.split(',').filter((name) => name !== '');
  const entrants = new Set(EXPERIMENTS.flatMap((one) => one.entrants.map(({ name }) => name)));
  const places = new Set(EXPERIMENTS.flatMap(({ name, group }) => [name, group]));
  const unknown = given.filter((name) => !entrants.has(name) && !places.has(name));
  if (unknown.length > 0) {
    const groups = [...new Set(EXPERIMENTS.map(({ group }) => group))].join(', ');
    throw new Error(`Unknown: ${unknown.join(', ')}; --only takes groups (${groups}), experiments and entrants`);
  }
  return { places: given.filter((name) => places.has(name)), entrants: given.filter((name) => entrants.has(name)) };
}

export function makePlan({ quick, only = '', rounds, size }: Choice): Plan {
  const { places, entrants } = parseNames(only);
  const wanted = ({ name, group, quick: inQuick }: Experiment): boolean =>
    places.length > 0 ? places.includes(name) || places.includes(group) : !quick || inQuick;
  const runs = ({ name }: Entrant): boolean =>
    entrants.length > 0 ? entrants.includes(name) : !quick || QUICK_ENTRANTS.has(name);
  const absent = new Map<string, Set<string>>();
  const isPresent = (entrant: Entrant): boolean => {
    const missing = entrant.needs.filter((program) => findProgram(program) === undefined);
    for (const program of missing) absent.set(program, (absent.get(program) ?? new Set()).add(entrant.name));
    return missing.length === 0;
  };
  const experiments: Experiment[] = [];
  for (const one of EXPERIMENTS.filter(wanted)) {
    const present = one.entrants.filter((entrant) => runs(entrant) && isPresent(entrant));
    if (present.length > 0) experiments.push({ ...one, entrants: present });
  }
  return {
    experiments,
    rounds: Number(rounds ?? (quick ? 2 : 3)),
    settings: {
      quick,
      runMs: quick ? 400 : 800,
      diskBytes: Number(size ?? (quick ? 0.25 : 1)) * GIB,
      copyBytes: (quick ? 0.5 : 4) * GIB,
    },
    complete: entrants.length === 0,
    absences: [...absent].map(([program, who]) => `${program} is not installed; not measured: ${[...who].join(', ')}`),
  };
}
