/** Disks, mounts, and the change tracking of both. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import { BlksnapError } from '../../util/errors.ts';
import type { ApiContext } from '../context.ts';
import { binaryResult, failures, jsonBody, jsonResult } from '../responses.ts';
import {
  attachRequest,
  cbtView,
  detachQuery,
  dirtyRequest,
  diskView,
  disksView,
  mapQuery,
  mountRequest,
  nameParam,
} from '../schema.ts';

const listDisks = createRoute({
  method: 'get',
  path: '/v1/disks',
  summary: 'Every disk and mount',
  responses: { 200: jsonResult('By name', disksView), ...failures },
});

const attach = createRoute({
  method: 'post',
  path: '/v1/disks',
  summary: 'Serve a file or device, and track its changes',
  request: { body: jsonBody(attachRequest) },
  responses: { 201: jsonResult('The disk', diskView), ...failures },
});

const getDisk = createRoute({
  method: 'get',
  path: '/v1/disks/{name}',
  summary: 'One disk',
  request: { params: nameParam },
  responses: { 200: jsonResult('The disk', diskView), ...failures },
});

const detach = createRoute({
  method: 'delete',
  path: '/v1/disks/{name}',
  summary: 'End serving a disk or mount',
  request: { params: nameParam, query: detachQuery },
  responses: { 204: { description: 'Done' }, ...failures },
});

const resize = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/resize',
  summary: 'Take over the size that the file or device has now',
  description:
    'Begins a new history of changes. Images keep their size; those that need what was cut off are lost. NBD clients ' +
    'learn the new size when they connect again.',
  request: { params: nameParam },
  responses: { 200: jsonResult('The disk', diskView), ...failures },
});

const rescan = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/rescan',
  summary: "Read a disk's partition table anew",
  request: { params: nameParam },
  responses: { 200: jsonResult('The disk and its partitions', disksView), ...failures },
});

const mount = createRoute({
  method: 'post',
  path: '/v1/mounts',
  summary: 'Serve a restore point as a writable disk',
  request: { body: jsonBody(mountRequest) },
  responses: { 201: jsonResult('The disk', diskView), ...failures },
});

const getCbt = createRoute({
  method: 'get',
  path: '/v1/disks/{name}/cbt',
  summary: 'Where the history of changes stands',
  request: { params: nameParam },
  responses: { 200: jsonResult('The state', cbtView), ...failures },
});

const getMap = createRoute({
  method: 'get',
  path: '/v1/disks/{name}/cbt/map',
  summary: 'One byte per tracking block: the number of the last period in which it changed',
  description: 'While a snapshot of the disk is held, the map as of the newest take.',
  request: { params: nameParam, query: mapQuery },
  responses: { 200: binaryResult, ...failures },
});

const markDirty = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/cbt/dirty',
  summary: 'Mark ranges changed although no write was seen',
  request: { params: nameParam, body: jsonBody(dirtyRequest) },
  responses: { 204: { description: 'Done' }, ...failures },
});

export function addDiskRoutes(app: OpenAPIHono, { daemon }: ApiContext): void {
  app.openapi(listDisks, async (c) => c.json({ disks: await daemon.disks.list() }, 200));
  app.openapi(attach, async (c) => c.json(await daemon.disks.attach(c.req.valid('json')), 201));
  app.openapi(getDisk, async (c) => c.json(await daemon.disks.get(c.req.valid('param').name), 200));
  app.openapi(detach, async (c) => {
    await daemon.disks.detach(c.req.valid('param').name, c.req.valid('query').force === 'true');
    return c.body(null, 204);
  });
  app.openapi(resize, async (c) => c.json(await daemon.disks.resize(c.req.valid('param').name), 200));
  app.openapi(rescan, async (c) => c.json({ disks: await daemon.disks.rescan(c.req.valid('param').name) }, 200));
  app.openapi(mount, async (c) => c.json(await daemon.disks.mount(c.req.valid('json')), 201));
  app.openapi(getCbt, async (c) => {
    const { name, cbt, failure } = await daemon.disks.get(c.req.valid('param').name);
    if (cbt === null)
      throw new BlksnapError('ENODEV', `Disk "${name}" is not served: ${failure?.message ?? 'unknown'}`);
    return c.json(cbt, 200);
  });
  app.openapi(getMap, async (c) => {
    const { offset, length } = c.req.valid('query');
    const map = await daemon.disks.cbtMap(c.req.valid('param').name, {
      offset,
      length: length ?? Number.MAX_SAFE_INTEGER - offset,
    });
    return c.body(map.slice().buffer, 200, { 'content-type': 'application/octet-stream' });
  });
  app.openapi(markDirty, async (c) => {
    await daemon.disks.markDirty(c.req.valid('param').name, c.req.valid('json').ranges);
    return c.body(null, 204);
  });
}
