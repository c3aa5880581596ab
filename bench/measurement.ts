/** The words of the benchmark. An experiment is one question (4 KiB random reads at queue depth 32, say); an entrant
 *  is one program that answers it; a sample is one answer. A new experiment or entrant is a row. */

/** Where an entrant works: `dir` is fresh and its own, and is removed afterwards. */
export interface Stage {
  readonly dir: string;
  /** The disk's file, without holes, of `diskBytes`. Its content may be overwritten. */
  readonly disk: string;
  readonly settings: Settings;
}

export interface Settings {
  readonly quick: boolean;
  readonly runMs: number;
  readonly diskBytes: number;
  /** Size of the disk that is backed up; half of it holds data. */
  readonly copyBytes: number;
}

/** What was measured, by metric. `value` is in the experiment's unit, `p50Us` and `p99Us` are latencies, `cpuUs` is
 *  CPU time of the server per request; others are the experiment's own. */
export interface Sample {
  readonly value: number;
  readonly [metric: string]: number;
}

export interface Entrant {
  readonly name: string;
  readonly title: string;
  /** Programs that must be installed. */
  readonly needs: readonly string[];
  measure(stage: Stage): Promise<Sample>;
}

/** `memory` is tmpfs where there is one. `disk` goes through the page cache, as every contender does by default. */
export type PlaceName = 'memory' | 'disk';

export interface Experiment {
  readonly name: string;
  readonly title: string;
  readonly group: string;
  readonly unit: string;
  readonly better: 'more' | 'less';
  readonly place: PlaceName;
  /** Part of --quick. */
  readonly quick: boolean;
  readonly entrants: readonly Entrant[];
}

/** All rounds of one entrant in one experiment. A round that failed is null, so that rounds stay aligned. */
export interface Series {
  readonly experiment: string;
  readonly entrant: string;
  readonly samples: ReadonlyArray<Sample | null>;
}
