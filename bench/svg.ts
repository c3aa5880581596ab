/** Pieces of the chart. */

/** `height` tall, drawn from its own top left corner. */
export interface Piece {
  readonly svg: string;
  readonly height: number;
}

export function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
