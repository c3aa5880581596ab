/** Tables of mapped devices, in the syntax of dmsetup(8): a line for each target,
 *
 *      start length target arguments…
 *
 *  in sectors of 512 bytes. Empty lines and lines that begin with # are skipped; a backslash takes the next
 *  character as it is (a space in a path, say). Reads and writes text; knows nothing of what targets do. */

import { BlksnapError } from '../util/errors.ts';

export const SECTOR = 512;
/** 8 PiB: offsets stay exact. */
const MAX_SECTORS = 2 ** 53 / SECTOR;

export interface TableLine {
  /** Sectors. The first line starts at 0, each other where the one before ends. */
  readonly start: number;
  readonly length: number;
  readonly target: string;
  readonly args: readonly string[];
}

/** Errors: EINVAL, naming the line. */
export function parseTable(text: string): TableLine[] {
  const table: TableLine[] = [];
  let end = 0;
  for (const [index, line] of text.split('\n').entries()) {
    const words = splitWords(line);
    if (words.length === 0 || words[0]!.startsWith('#')) continue;
    const refuse = (why: string): never => {
      throw new BlksnapError('EINVAL', `Cannot read line ${index + 1} of the table, "${line.trim()}": ${why}`);
    };
    if (words.length < 3) refuse('want START LENGTH TARGET, and what the target takes');
    const [start, length] = [words[0]!, words[1]!].map(
      (word) => parseSectors(word) ?? refuse(`"${word}" is no number of sectors`),
    );
    if (start !== end) refuse(`it starts at sector ${start}, want ${end}, where the line before ends`);
    if (length === 0) refuse('its length is 0, want at least one sector');
    end = start! + length!;
    if (end > MAX_SECTORS) refuse(`it ends at sector ${end}, want at most ${MAX_SECTORS}`);
    table.push({ start: start!, length: length!, target: words[2]!, args: words.slice(3) });
  }
  if (table.length === 0)
    throw new BlksnapError('EINVAL', 'Cannot read the table: it has no line; want START LENGTH TARGET …');
  return table;
}

/** What `parseTable` reads as the same table. */
export function formatTable(table: readonly TableLine[]): string {
  return table.map(formatLine).join('\n');
}

function formatLine({ start, length, target, args }: TableLine): string {
  return [String(start), String(length), ...[target, ...args].map(quoteWord)].join(' ');
}

/** A word as a table writes it. */
export function quoteWord(word: string): string {
  return word.replaceAll(/[\\\s]/g, '\\$&');
}

/** The words of a line or message, with backslashes resolved. */
export function splitWords(line: string): string[] {
  const words = line.match(/(?:\\.|[^\s\\]|\\$)+/g) ?? [];
  return words.map((word) => word.replaceAll(/\\(.)/g, '$1'));
}

/** A whole number of sectors in decimal digits, or undefined. */
export function parseSectors(word: string): number | undefined {
  const sectors = /^\d{1,16}$/.test(word) ? Number(word) : NaN;
  return sectors <= MAX_SECTORS ? sectors : undefined;
}
