/** Device-mapper, through the program dmsetup.
 *
 *  Tables go through pipes, never onto a command line: those of dm-crypt hold keys. For the same reason no table is
 *  quoted in an error. Every call ends: dmsetup is killed when its time is over, and the kernel then leaves a swap
 *  that has not happened undone.
 *
 *  Waits for no udev: its rules may have to read a device that waits for us. */

import { spawn } from 'node:child_process';
import { BlksnapError } from '../util/errors.ts';

/** None but a swap waits for I/O. */
const CALL_TIMEOUT_MS = 60_000;
/** Time is counted in such pieces: that for which this process or its machine was stopped (a paused virtual machine,
 *  say) is one of them at most. */
const TICK_MS = 100;
const ERROR_BYTES = 500;
const PLACES = ['/usr/sbin', '/sbin', '/usr/bin', '/bin'];

export interface PrivateMapping {
  readonly uuid: string;
  readonly table: string;
}

/** The live table, as it was loaded. `keys`: with those of dm-crypt; else zeros stand for them. */
export async function liveTable(device: string, { keys = false }: { readonly keys?: boolean } = {}): Promise<string> {
  return await dmsetup(['table', ...(keys ? ['--showkeys'] : []), device], { action: `read the table of "${device}"` });
}

/** Whether a table waits to be swapped in. */
export async function hasLoadedTable(device: string): Promise<boolean> {
  const attributes = await dmsetup(['info', '-c', '--noheadings', '-o', 'attr', device], {
    action: `read the state of "${device}"`,
  });
  return attributes[1] === 'I';
}

/** Makes a device that udev's rules for volumes pass over. Errors: EEXIST, EIO with the kernel's words. */
export async function createPrivate(name: string, { uuid, table }: PrivateMapping): Promise<void> {
  await dmsetup(['create', name, '--uuid', uuid, '--noudevrules', '--noudevsync'], {
    action: `make device "${name}"`,
    input: table,
  });
}

/** Loads a table beside the live one, in place of any that was loaded before. */
export async function loadTable(device: string, table: string): Promise<void> {
  await dmsetup(['load', device], { action: `load a table for "${device}"`, input: table });
}

/** Forgets a loaded table. */
export async function clearTable(device: string): Promise<void> {
  await dmsetup(['clear', device], { action: `forget the loaded table of "${device}"` });
}

/** Makes the loaded table the live one, when what is under way through the old one has ended; I/O waits so long. The
 *  filesystem above is not frozen: nothing passes between the tables that could be seen half. Errors: ETIMEDOUT, and
 *  the old table is live. */
export async function swapTable(device: string, { timeoutMs }: { readonly timeoutMs: number }): Promise<void> {
  await dmsetup(['resume', '--nolockfs', '--noudevsync', device], {
    action: `swap the table of "${device}"`,
    timeoutMs,
    why: ', as requests under way do not end; try again when they do',
  });
}

export async function removeMapping(name: string): Promise<void> {
  await dmsetup(['remove', '--noudevsync', name], { action: `remove device "${name}"` });
}

interface DmsetupOptions {
  /** For messages: `read the table of "x"`. */
  readonly action: string;
  readonly input?: string;
  readonly timeoutMs?: number;
  /** For messages: what it has waited for when the time is over. */
  readonly why?: string;
}

/** What dmsetup prints. */
async function dmsetup(args: readonly string[], options: DmsetupOptions): Promise<string> {
  const { action, input = '', timeoutMs = CALL_TIMEOUT_MS, why = '' } = options;
  const env = { ...process.env, LC_ALL: 'C', PATH: [process.env['PATH'], ...PLACES].filter(Boolean).join(':') };
  const child = spawn('dmsetup', args, { stdio: ['pipe', 'pipe', 'pipe'], env });
  let waitedMs = 0;
  const timer = setInterval(() => {
    waitedMs += TICK_MS;
    if (waitedMs >= timeoutMs) child.kill('SIGKILL');
  }, TICK_MS);
  const output: Buffer[] = [];
  const complaint: Buffer[] = [];
  child.stdout.on('data', (piece: Buffer) => output.push(piece));
  child.stderr.on('data', (piece: Buffer) => complaint.push(piece));
  // One that ends before it has read all says why itself.
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  try {
    const code = await new Promise<number | null>((resolve, reject) =>
      child.once('error', reject).once('close', resolve),
    );
    if (code === 0) return Buffer.concat(output).toString();
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw new BlksnapError('ENOENT', `Cannot ${action}: there is no dmsetup; install it (Debian package dmsetup)`);
  } finally {
    clearInterval(timer);
  }
  if (waitedMs >= timeoutMs)
    throw new BlksnapError('ETIMEDOUT', `Cannot ${action}: it took more than ${timeoutMs / 1000} s${why}`);
  throw failure(action, Buffer.concat(complaint).toString());
}

function failure(action: string, complaint: string): BlksnapError {
  const words = complaint
    .trim()
    .replace(/\s*\n\s*/g, '; ')
    .slice(0, ERROR_BYTES);
  const code = /busy/i.test(words) ? 'EBUSY' : /does not exist|No such device/i.test(words) ? 'ENODEV' : 'EIO';
  return new BlksnapError(code, `Cannot ${action}: dmsetup: ${words}`);
}
