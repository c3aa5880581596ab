/** Figures and tables as text. */

/** About four digits, whatever the size. */
export function written(value: number): string {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
}

type Rows = ReadonlyArray<readonly string[]>;

/** Lines of a table for a terminal: the first `words` columns to the left, figures to the right. */
export function aligned(rows: Rows, words = 1): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column < words ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .trimEnd(),
  );
}

/** Lines of a table in Markdown; the first row is its head. */
export function markdown([head, ...rows]: Rows): string[] {
  const line = (row: readonly string[]): string => `| ${row.join(' | ')} |`;
  return [line(head!), `|${'---|'.repeat(head!.length)}`, ...rows.map(line)];
}
