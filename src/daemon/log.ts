/** The daemon's log: JSON lines for machines, or lines for a person when they go to a terminal. Goes to
 *  standard error, so that standard output stays the program's. */

import { pino } from 'pino';
import type { Logger } from 'pino';

export type Log = Logger;

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

const STANDARD_ERROR = 2;
/** What every line has and a person does not want to read. */
const FRAME = new Set(['level', 'time', 'pid', 'hostname', 'msg']);

export function openLog(level: LogLevel, forPeople: boolean): Log {
  const destination = pino.destination({ fd: STANDARD_ERROR, sync: true });
  if (!forPeople) return pino({ level, base: { pid: process.pid } }, destination);
  return pino({ level, base: null }, { write: (line: string) => void destination.write(readable(line)) });
}

/** One JSON line as `12:34:56 warn  message  key=value`. */
export function readable(line: string): string {
  const entry = JSON.parse(line) as Record<string, unknown>;
  const time = new Date(Number(entry['time'])).toTimeString().slice(0, 8);
  const level = (pino.levels.labels[Number(entry['level'])] ?? '').padEnd(5);
  const rest = Object.entries(entry)
    .filter(([key]) => !FRAME.has(key))
    .map(([key, value]) => `  ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  const { msg } = entry;
  return `${time} ${level} ${typeof msg === 'string' ? msg : ''}${rest.join('')}\n`;
}
