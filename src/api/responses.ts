/** Parts that route descriptions share. */

import type { z } from '@hono/zod-openapi';
import { errorBody } from './schema.ts';

export const failures = {
  default: { description: 'What went wrong', content: { 'application/json': { schema: errorBody } } },
} as const;

export function jsonBody<Schema extends z.ZodType>(schema: Schema) {
  return { required: true, content: { 'application/json': { schema } } } as const;
}

export function jsonResult<Schema extends z.ZodType>(description: string, schema: Schema) {
  return { description, content: { 'application/json': { schema } } } as const;
}

export const binaryResult = {
  description: 'The bytes',
  content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
} as const;
