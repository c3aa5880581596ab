/** Mapped devices, and ranges of disks that are redirected into them. */

import { createRoute, z } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonBody, jsonResult } from '../responses.ts';
import { diskView, nameParam } from '../schema.ts';
import {
  mappedDevicesView,
  mappedRequest,
  mappedView,
  messageRequest,
  messageResult,
  remapRequest,
  tableRequest,
  unmapRequest,
} from '../dm-schema.ts';

const list = createRoute({
  method: 'get',
  path: '/v1/mapped',
  summary: 'Every mapped device and redirected range',
  responses: { 200: jsonResult('By name', mappedDevicesView), ...failures },
});

const create = createRoute({
  method: 'post',
  path: '/v1/mapped',
  summary: 'Make a disk from a table over other disks and files',
  request: { body: jsonBody(mappedRequest) },
  responses: { 201: jsonResult('The disk', diskView), ...failures },
});

const remove = createRoute({
  method: 'delete',
  path: '/v1/mapped/{name}',
  summary: 'Remove a mapped device',
  request: { params: nameParam },
  responses: { 204: { description: 'Done' }, ...failures },
});

const load = createRoute({
  method: 'post',
  path: '/v1/mapped/{name}/load',
  summary: 'Load the inactive table, which the next resume makes the live one',
  request: { params: nameParam, body: jsonBody(tableRequest) },
  responses: { 200: jsonResult('The mapped device', mappedView), ...failures },
});

const change = (verb: 'suspend' | 'resume', summary: string) =>
  createRoute({
    method: 'post',
    path: `/v1/mapped/{name}/${verb}`,
    summary,
    request: { params: nameParam },
    responses: { 200: jsonResult('The mapped device', mappedView), ...failures },
  });
const suspend = change('suspend', 'Hold requests, and wait for those under way');
const resume = change('resume', 'Make the inactive table the live one, if there is one, and let requests go');

const message = createRoute({
  method: 'post',
  path: '/v1/mapped/{name}/message',
  summary: 'Send a message to the target at a sector',
  request: { params: nameParam, body: jsonBody(messageRequest) },
  responses: { 200: jsonResult('The answer', messageResult), ...failures },
});

const remap = createRoute({
  method: 'post',
  path: '/v1/remaps',
  summary: 'Redirect a range of a disk into a mapped device, while it is used',
  request: { body: jsonBody(remapRequest) },
  responses: { 201: jsonResult('Done', z.object({})), ...failures },
});

const unmap = createRoute({
  method: 'delete',
  path: '/v1/remaps',
  summary: 'Take a redirected range back',
  request: { body: jsonBody(unmapRequest) },
  responses: { 204: { description: 'Done' }, ...failures },
});

export function addMappedRoutes(app: OpenAPIHono, { daemon: { mapped, disks } }: ApiContext): void {
  app.openapi(list, async (c) => c.json(await mapped.list(), 200));
  app.openapi(create, async (c) => {
    const { name, table } = c.req.valid('json');
    return c.json(await mapped.create(name, table), 201);
  });
  app.openapi(remove, async (c) => {
    await disks.removeMapped(c.req.valid('param').name);
    return c.body(null, 204);
  });
  app.openapi(load, async (c) => c.json(await mapped.load(c.req.valid('param').name, c.req.valid('json')), 200));
  app.openapi(suspend, async (c) => c.json(await mapped.suspend(c.req.valid('param').name), 200));
  app.openapi(resume, async (c) => c.json(await mapped.resume(c.req.valid('param').name), 200));
  app.openapi(message, async (c) =>
    c.json({ answer: await mapped.message(c.req.valid('param').name, c.req.valid('json')) }, 200),
  );
  app.openapi(remap, async (c) => {
    await mapped.remap(c.req.valid('json'));
    return c.json({}, 201);
  });
  app.openapi(unmap, async (c) => {
    await mapped.unmap(c.req.valid('json'));
    return c.body(null, 204);
  });
}
