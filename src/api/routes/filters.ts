/** Filters on disks: the kinds there are, attach, detach, and commands of their own. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { ApiContext } from '../context.ts';
import { failures, jsonBody, jsonResult } from '../responses.ts';
import { ctlRequest, ctlResult, diskView, filterParams, filterRequest, filtersView, nameParam } from '../schema.ts';

const list = createRoute({
  method: 'get',
  path: '/v1/filters',
  summary: 'The kinds of filters that are known, and the disks that have each',
  responses: { 200: jsonResult('In the order of registration', filtersView), ...failures },
});

const attach = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/filters',
  summary: 'Attach a filter to a disk, while it is used',
  request: { params: nameParam, body: jsonBody(filterRequest) },
  responses: { 201: jsonResult('The disk', diskView), ...failures },
});

const detach = createRoute({
  method: 'delete',
  path: '/v1/disks/{name}/filters/{filter}',
  summary: 'Detach a filter from a disk, while it is used',
  request: { params: filterParams },
  responses: { 204: { description: 'Done' }, ...failures },
});

const ctl = createRoute({
  method: 'post',
  path: '/v1/disks/{name}/filters/{filter}/ctl',
  summary: "A command of the filter's own",
  request: { params: filterParams, body: jsonBody(ctlRequest) },
  responses: { 200: jsonResult('What the filter answers', ctlResult), ...failures },
});

export function addFilterRoutes(app: OpenAPIHono, { daemon }: ApiContext): void {
  app.openapi(list, async (c) => c.json({ filters: await daemon.disks.filters() }, 200));
  app.openapi(attach, async (c) => {
    const { filter, options } = c.req.valid('json');
    return c.json(
      await daemon.disks.attachFilter(c.req.valid('param').name, { name: filter, options: options ?? null }),
      201,
    );
  });
  app.openapi(detach, async (c) => {
    const { name, filter } = c.req.valid('param');
    await daemon.disks.detachFilter(name, filter);
    return c.body(null, 204);
  });
  app.openapi(ctl, async (c) => {
    const { name, filter } = c.req.valid('param');
    const { command, payload } = c.req.valid('json');
    return c.json({ result: await daemon.disks.filterCtl(name, filter, { command, payload: payload ?? null }) }, 200);
  });
}
