/** What commands print: JSON for programs, aligned text for people. Results go to standard output,
 *  errors and progress to standard error. */

import { toBlksnapError } from '../util/errors.ts';

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

export function printLine(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** `blksnap: message`, or the API's shape of an error. */
export function printError(cause: unknown, json: boolean): void {
  const { code, message } = toBlksnapError(cause);
  process.stderr.write(json ? `${JSON.stringify({ error: { code, message } })}\n` : `blksnap: ${message}\n`);
}

/** A column: its heading, and whether it is a number and so stands to the right. */
export interface Column<Row> {
  readonly heading: string;
  readonly value: (row: Row) => string;
  readonly right?: boolean;
}

/** Rows under headings, in columns as wide as they need. */
export function formatTable<Row>(columns: ReadonlyArray<Column<Row>>, rows: readonly Row[]): string {
  const cells = [columns.map(({ heading }) => heading), ...rows.map((row) => columns.map(({ value }) => value(row)))];
  const widths = columns.map((_, index) => Math.max(...cells.map((line) => line[index]!.length)));
  const lines = cells.map((line) =>
    line
      .map((cell, index) =>
        columns[index]!.right === true ? cell.padStart(widths[index]!) : cell.padEnd(widths[index]!),
      )
      .join('  ')
      .trimEnd(),
  );
  return lines.join('\n');
}

export function printTable<Row>(columns: ReadonlyArray<Column<Row>>, rows: readonly Row[]): void {
  printLine(formatTable(columns, rows));
}

/** `name   value` lines. */
export function printFields(fields: ReadonlyArray<readonly [name: string, value: string]>): void {
  const width = Math.max(...fields.map(([name]) => name.length));
  for (const [name, value] of fields) printLine(`${name.padEnd(width)}  ${value}`);
}

/** `2026-11-21 00:18:43`, in local time. */
export function formatTime(iso: string): string {
  const date = new Date(iso);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
