/** Text for a message that people read, when how much there is to say is up to somebody else. */

const LONGEST = 2000;

export function brief(text: string): string {
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST)} … and more`;
}
