/** Everything that takes bytes from others. */

import type { FuzzTarget } from './target.ts';
import { api, apiOverTcp } from './targets/api.ts';
import { cbtMap } from './targets/cbt-map.ts';
import { dmTable } from './targets/dm-table.ts';
import { journal } from './targets/journal.ts';
import { manifest } from './targets/manifest.ts';
import { nbdClient } from './targets/nbd-client.ts';
import { nbdServer } from './targets/nbd-server.ts';
import { partitionTable } from './targets/partition-table.ts';
import { qcow2 } from './targets/qcow2.ts';
import { state } from './targets/state.ts';
import { sums } from './targets/sums.ts';
import { tlsFront } from './targets/tls-front.ts';

export const TARGETS: readonly FuzzTarget[] = [
  nbdServer,
  nbdClient,
  qcow2,
  manifest,
  sums,
  api,
  apiOverTcp,
  dmTable,
  partitionTable,
  cbtMap,
  state,
  journal,
  tlsFront,
];
