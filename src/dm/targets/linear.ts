/** linear: a range of a device.
 *
 *      START LENGTH linear DEVICE SECTOR */

import type { Bio } from '../../block/bio.ts';
import type { Extent } from '../../block/device.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetType } from '../target.ts';

class Linear extends Target {
  readonly type = 'linear';
  readonly #port: DevicePort;

  constructor(port: DevicePort) {
    super([port]);
    this.#port = port;
  }

  table(): string {
    return this.#port.words;
  }

  submit(bio: Bio): void {
    this.#port.submit(bio);
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    return this.#port.extents(offset, length);
  }
}

export const linear: TargetType = (args, context) => {
  const port = args.port(context.length);
  args.end();
  return new Linear(port);
};
