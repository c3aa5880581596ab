/** What Linux tells as files: of devices in /sys, of mounts in /proc. Elsewhere, and where it does not tell, there is nothing. */

import fs from 'node:fs';

/** A file's text without the space around it; null when it cannot be read: what it is about may have gone meanwhile. */
export function readAttribute(path: string): string | null {
  try {
    return fs.readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

/** The names in a directory; none when it cannot be read. */
export function listNames(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return [];
  }
}

/** The MAJOR:MINOR of a dev_t as userspace has it: 12 bits of major from bit 8, 20 of minor around them. */
export function formatDeviceNumber(device: number): string {
  return `${Math.floor(device / 256) % 4096}:${(device % 256) + Math.floor(device / 2 ** 20) * 256}`;
}

/** A field of /proc/self/mountinfo or /proc/swaps, where spaces and the like stand as octal numbers. */
export function unescapeField(text: string): string {
  return text.replace(/\\(\d{3})/g, (_all, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
