/** The demo's tables: columns aligned, the first to the left, quiet heads. */

import { styled } from '../scripts/prepare.mjs';

export function printTable(head: readonly string[], rows: ReadonlyArray<readonly string[]>): void {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, at) => (at === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[at]!))).join('   ');
  console.log(`\n  ${styled('dim', line(head))}`);
  for (const row of rows) console.log(`  ${line(row)}`);
}
