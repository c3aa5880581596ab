/** Makes the compiler see to it that a schema says what the daemon's view says. */

import type { z } from '@hono/zod-openapi';

export function shape<View>() {
  return <Schema extends z.ZodType<View>>(schema: Schema): Schema => schema;
}
