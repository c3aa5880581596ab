/** Before every test that takes kernel devices: it must run in a kernel of its own. */

import { beforeEach } from 'vitest';
import { requireTestKernel } from '../requirements.ts';

beforeEach((context) => requireTestKernel(context));
