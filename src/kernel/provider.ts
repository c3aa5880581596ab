/** Kernel devices: an export as a node in /dev. The contract between the daemon, which knows what is exported and what
 *  shall have a device, and the ways in which a kernel offers one.
 *
 *  A provider works on the control thread and keeps nothing between calls: the kernel is its memory. A device is known
 *  by an id that the daemon makes up and remembers before the device is made; so one that was made by a daemon that
 *  died a moment later is found again. */

import type { BlksnapError } from '../util/errors.ts';

/** In the order of preference. */
export const VIAS = ['ublk', 'nbd'] as const;

export type Via = (typeof VIAS)[number];

export interface DeviceWish {
  /** Tells the device from all others, also in the next daemon. */
  readonly id: string;
  readonly exportName: string;
}

export interface KernelDeviceProvider {
  readonly via: Via;

  /** Null when such devices can be made; else why not, and the next step. `load`: its module may be loaded for it. */
  obstacle(options: { readonly load: boolean }): BlksnapError | null;

  /** Makes a device that shows the export; its path, once it can be used. `preferred`: a path to have again if it is
   *  free. Block sizes are the export's. Errors: what the kernel says; nothing is left then. */
  create(wish: DeviceWish, options: { readonly preferred: string | null }): Promise<string>;

  /** Gives a device that lost its server the export again: requests that waited go on. Its path, or null when there is
   *  no device of that id any more. */
  reconnect(wish: DeviceWish): Promise<string | null>;

  /** The export has another size. */
  resize(wish: DeviceWish): Promise<void>;

  /** Takes the device down, used or not: what it still has under way fails. Nothing when there is none. */
  remove(id: string): Promise<void>;
}
