/** Who may use which disks, as told by `blksnap allow`: remembered across restarts, and made known to the I/O threads
 *  (src/daemon/access.ts says what a rule means). Rules go with their disk, so that another one of the same name does
 *  not inherit them. */

import path from 'node:path';
import { z } from 'zod';
import { isClientName } from '../nbd/peer.ts';
import { BlksnapError } from '../util/errors.ts';
import type { IoThreads } from './io-threads.ts';
import { loadJson, saveJson } from './json-file.ts';
import type { Log } from './log.ts';
import type { DaemonPaths } from './paths.ts';
import type { Serial } from './serial.ts';
import { DISK_NAME } from './state.ts';

const rulesSchema = z.strictObject({
  version: z.literal(1),
  disks: z.record(z.string().regex(DISK_NAME), z.array(z.string().min(1))),
});

const ADVICE = 'repair it, or move it away and allow the clients again';

export interface ClientRulesOptions {
  readonly io: Pick<IoThreads, 'call'>;
  readonly paths: DaemonPaths;
  readonly log: Log;
  readonly serial: Serial;
  readonly remembered: RememberedRules;
}

export type RememberedRules = ReadonlyMap<string, readonly string[]>;

/** Errors: EBADMSG for a file that cannot be understood: starting without it might let the wrong ones in. */
export function loadRules(paths: DaemonPaths): RememberedRules {
  return new Map(Object.entries(loadJson(rulesFile(paths), rulesSchema, ADVICE)?.disks ?? {}));
}

function rulesFile(paths: DaemonPaths): string {
  return path.join(paths.state, 'clients.json');
}

export class ClientRules {
  readonly #o: ClientRulesOptions;
  #disks: RememberedRules;

  constructor(options: ClientRulesOptions) {
    this.#o = options;
    this.#disks = options.remembered;
  }

  /** Null where no rule says who may use the disk. */
  of(disk: string): readonly string[] | null {
    return this.#disks.get(disk) ?? null;
  }

  /** Forgets the rules of disks that are gone, and makes the others known. */
  async restore(isThere: (disk: string) => boolean): Promise<void> {
    const kept = new Map([...this.#disks].filter(([disk]) => isThere(disk)));
    await this.#o.serial.run(['clients'], () => this.#change(kept));
  }

  /** Errors: EINVAL for a name that no client can have. */
  async allow(disk: string, client: string): Promise<void> {
    checkClient(client);
    await this.#o.serial.run(['clients'], async () => {
      await this.#change(new Map(this.#disks).set(disk, [...new Set([...(this.of(disk) ?? []), client])].sort()));
      this.#o.log.info({ disk, client }, 'client allowed');
    });
  }

  /** Ends the client's connections. A disk of which nobody is left has no clients, not all. Errors: ENOENT. */
  async disallow(disk: string, client: string): Promise<void> {
    await this.#o.serial.run(['clients'], async () => {
      const before = this.of(disk) ?? [];
      if (!before.includes(client)) {
        const known = before.length === 0 ? 'nobody is' : `those who are: ${before.join(', ')}`;
        throw new BlksnapError('ENOENT', `Client "${client}" is not allowed to use disk "${disk}"; ${known}`);
      }
      await this.#change(
        new Map(this.#disks).set(
          disk,
          before.filter((one) => one !== client),
        ),
      );
      this.#o.log.info({ disk, client }, 'client no longer allowed');
    });
  }

  /** Of a disk that is gone. */
  async forget(disk: string): Promise<void> {
    await this.#o.serial.run(['clients'], async () => {
      if (!this.#disks.has(disk)) return;
      const rest = new Map(this.#disks);
      rest.delete(disk);
      await this.#change(rest);
    });
  }

  async #change(disks: RememberedRules): Promise<void> {
    if (disks.size > 0 || this.#disks.size > 0) {
      saveJson(rulesFile(this.#o.paths), { version: 1, disks: Object.fromEntries(disks) });
    }
    this.#disks = disks;
    await this.#o.io.call('setAccess', { rules: Object.fromEntries(disks) });
  }
}

function checkClient(client: string): void {
  if (isClientName(client) && (!client.startsWith('uid:') || /^uid:\d{1,10}$/.test(client))) return;
  throw new BlksnapError(
    'EINVAL',
    `Cannot use ${JSON.stringify(client)} as a client's name: want a certificate's CN, a pre-shared key's name, or uid:N`,
  );
}
