/** The HTTP application: what every route shares. One shape of error, one limit on bodies, one document. */

import { OpenAPIHono } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { HTTPException } from 'hono/http-exception';
import { brief } from '../util/brief.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { VERSION } from '../util/version.ts';
import type { Log } from '../daemon/log.ts';
import type { ApiContext } from './context.ts';
import { httpStatus } from './http-status.ts';
import { addClientRoutes } from './routes/clients.ts';
import { addDiskRoutes } from './routes/disks.ts';
import { addMappedRoutes } from './routes/dm.ts';
import { addEventRoute } from './routes/events.ts';
import { addPreparedSnapshotRoutes } from './routes/prepared-snapshots.ts';
import { addFilterRoutes } from './routes/filters.ts';
import { addSnapshotRoutes } from './routes/snapshots.ts';
import { addStatusRoute } from './routes/status.ts';

const BODY_LIMIT_BYTES = 4 * MIB;

export function createApp(context: ApiContext): OpenAPIHono {
  const app = new OpenAPIHono({ defaultHook: refuseInvalid });
  app.use('*', bodyLimit({ maxSize: BODY_LIMIT_BYTES, onError: tooLarge }));
  app.onError((cause, c) => fail(c, errorOf(cause, context.log)));
  app.notFound((c) =>
    fail(c, new BlksnapError('ENOENT', `No ${c.req.method} ${c.req.path}; GET /openapi.json lists what there is`)),
  );
  addStatusRoute(app, context);
  addDiskRoutes(app, context);
  addClientRoutes(app, context);
  addFilterRoutes(app, context);
  addMappedRoutes(app, context);
  addSnapshotRoutes(app, context);
  addPreparedSnapshotRoutes(app, context);
  addEventRoute(app, context);
  app.get('/openapi.json', (c) => c.json(openApiDocument(app)));
  return app;
}

/** The OpenAPI 3.1 document of an application's routes. */
function openApiDocument(app: OpenAPIHono): object {
  return app.getOpenAPI31Document({
    openapi: '3.1.0',
    info: {
      title: 'blksnap',
      version: VERSION,
      description:
        'Snapshots, changed-block tracking and incremental backup of live block devices. Sizes and offsets are bytes.',
    },
  });
}

function fail(c: Context, error: BlksnapError): Response {
  return c.json({ error: { code: error.code, message: error.message } }, httpStatus(error.code));
}

function tooLarge(c: Context): Response {
  return fail(
    c,
    new BlksnapError('EFBIG', `Cannot take the request: its body is larger than ${BODY_LIMIT_BYTES} bytes`),
  );
}

interface Issue {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/** Names the field that is wrong. */
function refuseInvalid(
  result: { readonly target: string } & (
    | { readonly success: true }
    | { readonly success: false; readonly error: { readonly issues: readonly Issue[] } }
  ),
  c: Context,
): Response | undefined {
  if (result.success) return undefined;
  const words = result.error.issues.map(
    ({ path, message }) => `${path.map(String).join('.') || 'the whole'}: ${message}`,
  );
  return fail(
    c,
    new BlksnapError('EINVAL', `Cannot understand the request's ${result.target}: ${brief(words.join('; '))}`),
  );
}

function errorOf(cause: unknown, log: Log): BlksnapError {
  if (cause instanceof BlksnapError) return cause;
  // Malformed JSON and the like, found by the framework.
  if (cause instanceof HTTPException && cause.status < 500) {
    return new BlksnapError('EINVAL', `Cannot understand the request: ${cause.message}`);
  }
  // What checks and copies values calls itself for each level.
  if (cause instanceof RangeError && cause.message.includes('call stack')) {
    return new BlksnapError('EINVAL', 'Cannot understand the request: it is nested too deeply');
  }
  log.error({ err: cause }, 'a request failed for a reason nobody foresaw');
  return toBlksnapError(cause);
}
