/** Which clients may use a disk. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonBody, jsonResult } from '../responses.ts';
import { clientParams, clientRequest, clientsView, nameParam } from '../schema.ts';

const list = createRoute({
  method: 'get',
  path: '/v1/disks/{name}/clients',
  summary: 'The clients that may use a disk beside its owner',
  request: { params: nameParam },
  responses: { 200: jsonResult('Their names', clientsView), ...failures },
});

const allow = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/clients',
  summary: 'Allow a client to use a disk, its partitions and the images of its snapshots',
  request: { params: nameParam, body: jsonBody(clientRequest) },
  responses: { 200: jsonResult('All that may now', clientsView), ...failures },
});

const disallow = createRoute({
  method: 'delete',
  path: '/v1/disks/{name}/clients/{client}',
  summary: 'Take the leave back, and end the connections that rest on it',
  request: { params: clientParams },
  responses: { 200: jsonResult('All that still may', clientsView), ...failures },
});

export function addClientRoutes(app: OpenAPIHono, { daemon }: ApiContext): void {
  const view = (name: string): { clients: string[] | null } => {
    const clients = daemon.disks.clients(name);
    return { clients: clients === null ? null : [...clients] };
  };
  app.openapi(list, (c) => c.json(view(c.req.valid('param').name), 200));
  app.openapi(allow, async (c) => {
    const { name } = c.req.valid('param');
    await daemon.disks.allow(name, c.req.valid('json').client);
    return c.json(view(name), 200);
  });
  app.openapi(disallow, async (c) => {
    const { name, client } = c.req.valid('param');
    await daemon.disks.disallow(name, client);
    return c.json(view(name), 200);
  });
}
