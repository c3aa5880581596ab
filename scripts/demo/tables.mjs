/** The demo's tables: columns aligned, first column left, quiet heads. */

import { styled } from '../prepare.mjs';

const UNITS = ['B', 'KiB', 'MiB', 'GiB'];

/** @param {number} bytes */
export function size(bytes) {
  const power = bytes < 1 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${power === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${UNITS[power]}`;
}

/** @param {number} us */
export function micros(us) {
  return us < 1000 ? `${us.toFixed(0)} µs` : `${(us / 1000).toFixed(1)} ms`;
}

/** @param {readonly string[]} head
 *  @param {readonly (readonly string[])[]} rows */
export function printTable(head, rows) {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]?.length ?? 0)));
  const line = (/** @type {readonly string[]} */ row) =>
    row.map((cell, at) => (at === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[at] ?? 0))).join('   ');
  console.log(`\n  ${styled('dim', line(head))}`);
  for (const row of rows) console.log(`  ${line(row)}`);
}
