/** Snapshots in steps: prepare, add disks, take. POST /v1/snapshots does all three at once. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonBody, jsonResult } from '../responses.ts';
import { addDiskRequest, idParam, preparedRequest, preparedView, preparedsView, snapshotView } from '../schema.ts';

const prepare = createRoute({
  method: 'post',
  path: '/v1/prepared-snapshots',
  summary: 'Give out the id of a snapshot that is to be taken',
  description: 'No disk is touched before the take. Taken, it is among /v1/snapshots under the same id.',
  request: { body: jsonBody(preparedRequest) },
  responses: { 201: jsonResult('The prepared snapshot', preparedView), ...failures },
});

const list = createRoute({
  method: 'get',
  path: '/v1/prepared-snapshots',
  summary: 'Every snapshot that is not taken yet',
  responses: { 200: jsonResult('Oldest first', preparedsView), ...failures },
});

const add = createRoute({
  method: 'post',
  path: '/v1/prepared-snapshots/{id}/disks',
  summary: 'Add a disk',
  request: { params: idParam, body: jsonBody(addDiskRequest) },
  responses: { 200: jsonResult('The prepared snapshot', preparedView), ...failures },
});

const take = createRoute({
  method: 'post',
  path: '/v1/prepared-snapshots/{id}/take',
  summary: 'Freeze its disks at one instant',
  request: { params: idParam },
  responses: { 201: jsonResult('The snapshot', snapshotView), ...failures },
});

const forget = createRoute({
  method: 'delete',
  path: '/v1/prepared-snapshots/{id}',
  summary: 'Forget a snapshot that was not taken',
  request: { params: idParam },
  responses: { 204: { description: 'Done' }, ...failures },
});

export function addPreparedSnapshotRoutes(app: OpenAPIHono, { daemon }: ApiContext): void {
  app.openapi(prepare, async (c) => c.json(await daemon.snapshots.prepare(c.req.valid('json')), 201));
  app.openapi(list, (c) => c.json({ prepared: daemon.snapshots.prepared() }, 200));
  app.openapi(add, (c) => c.json(daemon.snapshots.addDisk(c.req.valid('param').id, c.req.valid('json').disk), 200));
  app.openapi(take, async (c) => c.json(await daemon.snapshots.takePrepared(c.req.valid('param').id), 201));
  app.openapi(forget, (c) => {
    daemon.snapshots.forget(c.req.valid('param').id);
    return c.body(null, 204);
  });
}
