/** The API's shapes for mapped devices. */

import { z } from '@hono/zod-openapi';
import type { MappedDevicesView, MappedView } from '../daemon/views.ts';
import { shape } from './shape.ts';

const bytes = z.int().nonnegative();
const name = z.string().min(1).max(4096);
const lines = z.array(z.string());
const table = z
  .string()
  .min(1)
  .max(1_000_000)
  .openapi({ description: 'As dmsetup takes it: START LENGTH TARGET …, sectors of 512 bytes' });

export const mappedView = shape<MappedView>()(
  z
    .object({
      name: z.string(),
      size: bytes,
      suspended: z.boolean(),
      inFlight: z.int(),
      table: lines,
      inactiveTable: lines.openapi({ description: 'Empty: there is none' }),
      status: lines,
    })
    .openapi('MappedDevice'),
);

const remap = { disk: name, offset: bytes, length: z.int().positive(), to: name, at: bytes };

export const mappedDevicesView = shape<MappedDevicesView>()(
  z.object({ devices: z.array(mappedView), remaps: z.array(z.object(remap)) }),
);

export const mappedRequest = z.strictObject({ name, table }).openapi('MappedRequest');

export const tableRequest = z
  .strictObject({
    table,
    sameData: z.boolean().default(false).openapi({ description: 'The table shows the data that the live one does' }),
  })
  .openapi('TableRequest');

export const messageRequest = z.strictObject({
  sector: z.int().nonnegative().default(0),
  text: z.string().min(1).max(4096),
});
export const messageResult = z.object({ answer: z.string() });

const copy = z.boolean().default(true).openapi({ description: 'The data of the range moves along' });
export const remapRequest = z.strictObject({ ...remap, at: bytes.default(0), copy }).openapi('RemapRequest');
export const unmapRequest = z.strictObject({ disk: name, offset: bytes, copy }).openapi('UnmapRequest');
