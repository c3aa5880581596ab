/** Snapshots. Their events are in events.ts. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonBody, jsonResult } from '../responses.ts';
import { idParam, snapshotRequest, snapshotView, snapshotsView, storageRequest } from '../schema.ts';

const create = createRoute({
  method: 'post',
  path: '/v1/snapshots',
  summary: 'Freeze disks at one instant',
  request: { body: jsonBody(snapshotRequest) },
  responses: { 201: jsonResult('The snapshot', snapshotView), ...failures },
});

const list = createRoute({
  method: 'get',
  path: '/v1/snapshots',
  summary: 'Every snapshot that is held',
  responses: { 200: jsonResult('Oldest first', snapshotsView), ...failures },
});

const get = createRoute({
  method: 'get',
  path: '/v1/snapshots/{id}',
  summary: 'One snapshot',
  request: { params: idParam },
  responses: { 200: jsonResult('The snapshot', snapshotView), ...failures },
});

const append = createRoute({
  method: 'post',
  path: '/v1/snapshots/{id}/storage',
  summary: 'Give a held snapshot more room: the answer to lowSpace',
  request: { params: idParam, body: jsonBody(storageRequest) },
  responses: { 200: jsonResult('The snapshot', snapshotView), ...failures },
});

const renew = createRoute({
  method: 'post',
  path: '/v1/snapshots/{id}/renew',
  summary: 'Begin the lease of a snapshot anew',
  request: { params: idParam },
  responses: { 200: jsonResult('The snapshot', snapshotView), ...failures },
});

const destroy = createRoute({
  method: 'delete',
  path: '/v1/snapshots/{id}',
  summary: 'Let a snapshot go',
  request: { params: idParam },
  responses: { 204: { description: 'Done' }, ...failures },
});

export function addSnapshotRoutes(app: OpenAPIHono, { daemon }: ApiContext): void {
  app.openapi(create, async (c) => c.json(await daemon.snapshots.create(c.req.valid('json')), 201));
  app.openapi(list, async (c) => c.json({ snapshots: await daemon.snapshots.list() }, 200));
  app.openapi(get, async (c) => c.json(await daemon.snapshots.get(c.req.valid('param').id), 200));
  app.openapi(append, async (c) =>
    c.json(await daemon.snapshots.appendStorage(c.req.valid('param').id, c.req.valid('json')), 200),
  );
  app.openapi(renew, async (c) => c.json(await daemon.snapshots.renew(c.req.valid('param').id), 200));
  app.openapi(destroy, async (c) => {
    await daemon.snapshots.destroy(c.req.valid('param').id);
    return c.body(null, 204);
  });
}
