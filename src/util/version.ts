/** The version of this program, as its package says. */

import fs from 'node:fs';

const packageFile = new URL('../../package.json', import.meta.url);

export const VERSION: string = (JSON.parse(fs.readFileSync(packageFile, 'utf8')) as { version: string }).version;
