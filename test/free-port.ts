/** A TCP port for a server that cannot choose one itself. Below those that the kernel gives to whoever asks for any: nobody else
 *  gets it between the look and its use, but by the same chance. */

import { once } from 'node:events';
import net from 'node:net';

const FIRST = 20_000;
const COUNT = 12_000;

export async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST + Math.floor(Math.random() * COUNT);
    const probe = net.createServer();
    const free = new Promise<boolean>((resolve) => {
      probe.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!(await free)) continue;
    probe.close();
    await once(probe, 'close');
    return port;
  }
}
