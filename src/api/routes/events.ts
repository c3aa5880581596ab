/** A snapshot's events: asked for, with a wait if wanted, or as a stream of server-sent events. */

import { createRoute } from '@hono/zod-openapi';
import type { OpenAPIHono } from '@hono/zod-openapi';
import { streamSSE } from 'hono/streaming';
import type { SSEStreamingApi } from 'hono/streaming';
import type { Daemon } from '../../daemon/daemon.ts';
import { BlksnapError } from '../../util/errors.ts';
import type { ApiContext } from '../context.ts';
import { failures } from '../responses.ts';
import { MAX_WAIT_MS, eventView, eventsQuery, eventsView, idParam, nextEventView, waitQuery } from '../schema.ts';

const events = createRoute({
  method: 'get',
  path: '/v1/snapshots/{id}/events',
  summary: 'What happened to a snapshot',
  description:
    'As JSON: the events after `after`, waiting up to `timeoutMs` for the first. With `Accept: text/event-stream`: ' +
    'events as they come, until the snapshot is destroyed; `Last-Event-ID` takes the place of `after`.',
  request: { params: idParam, query: eventsQuery },
  responses: {
    200: {
      description: 'The events',
      content: { 'application/json': { schema: eventsView }, 'text/event-stream': { schema: eventView } },
    },
    ...failures,
  },
});

const next = createRoute({
  method: 'post',
  path: '/v1/snapshots/{id}/events/next',
  summary: 'Take the next event out of the queue that all callers of this share',
  description: 'Waits up to `timeoutMs` for one; null when the time is over. The log that GET reads keeps it.',
  request: { params: idParam, query: waitQuery },
  responses: {
    200: { description: 'The event', content: { 'application/json': { schema: nextEventView } } },
    ...failures,
  },
});

export function addEventRoute(app: OpenAPIHono, { daemon, ending }: ApiContext): void {
  app.openapi(next, async (c) => {
    const { timeoutMs } = c.req.valid('query');
    const signal = AbortSignal.any([ending, c.req.raw.signal]);
    return c.json({ event: await daemon.snapshots.nextEvent(c.req.valid('param').id, { timeoutMs, signal }) }, 200);
  });
  app.openapi(events, async (c) => {
    const { id } = c.req.valid('param');
    const { after, timeoutMs } = c.req.valid('query');
    const signal = AbortSignal.any([ending, c.req.raw.signal]);
    if (c.req.header('accept')?.includes('text/event-stream') !== true) {
      return c.json({ events: await daemon.snapshots.waitEvents(id, { after, timeoutMs, signal }) }, 200);
    }
    await daemon.snapshots.get(id);
    const last = Number.parseInt(c.req.header('last-event-id') ?? '', 10);
    return streamSSE(c, (stream) => follow(daemon, stream, { id, after: Number.isNaN(last) ? after : last, signal }));
  });
}

async function follow(
  daemon: Daemon,
  stream: SSEStreamingApi,
  from: { readonly id: string; readonly after: number; readonly signal: AbortSignal },
): Promise<void> {
  let after = from.after;
  // Tells the reader at once that it is heard, and later that it still is.
  while (!from.signal.aborted && !stream.aborted && !stream.closed) {
    await stream.write(': waiting\n\n');
    try {
      for (const event of await daemon.snapshots.waitEvents(from.id, {
        after,
        timeoutMs: MAX_WAIT_MS / 4,
        signal: from.signal,
      })) {
        after = event.sequence;
        await stream.writeSSE({ id: String(event.sequence), event: event.code, data: JSON.stringify(event) });
      }
    } catch (cause) {
      if (cause instanceof BlksnapError && cause.code === 'ESRCH') return;
      throw cause;
    }
  }
}
