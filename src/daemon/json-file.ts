/** Small JSON files that a crash leaves old or new, never half: temporary name, sync, rename. */

import { z } from 'zod';
import { brief } from '../util/brief.ts';
import { replaceFile } from '../util/durable.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readText } from '../util/read-text.ts';
import { MIB } from '../util/units.ts';

const LIMIT_BYTES = 64 * MIB;

/** Null when there is no such file. Errors: EBADMSG, with advice, for content that does not fit the schema. */
export function loadJson<T>(file: string, schema: z.ZodType<T>, advice: string): T | null {
  const unusable = (why: string, cause: unknown): BlksnapError =>
    new BlksnapError('EBADMSG', `Cannot use the state file "${file}": ${why}; ${advice}`, { cause });
  let text: string;
  try {
    text = readText(file, LIMIT_BYTES);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw toBlksnapError(cause, 'Cannot read the state file');
  }
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw unusable('it is not JSON', cause);
  }
  let parsed;
  try {
    parsed = schema.safeParse(content);
  } catch (cause) {
    throw unusable('it is nested too deeply', cause);
  }
  if (!parsed.success) throw unusable(brief(z.prettifyError(parsed.error)), parsed.error);
  return parsed.data;
}

export function saveJson(file: string, content: unknown): void {
  try {
    replaceFile(file, `${JSON.stringify(content, null, 2)}\n`);
  } catch (cause) {
    throw toBlksnapError(cause, 'Cannot write the state file');
  }
}
