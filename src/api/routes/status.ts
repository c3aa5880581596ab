/** What the daemon is doing. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonResult } from '../responses.ts';
import { statusView } from '../schema.ts';

const getStatus = createRoute({
  method: 'get',
  path: '/v1/status',
  summary: 'What the daemon is and does',
  responses: { 200: jsonResult('The status', statusView), ...failures },
});

export function addStatusRoute(app: OpenAPIHono, { daemon }: ApiContext): void {
  app.openapi(getStatus, async (c) => c.json(await daemon.status(), 200));
}
