// Runs the I/O thread from its TypeScript sources: a worker does not inherit the loader of the main thread.
import { register } from 'tsx/esm/api';

register();
await import('./io-thread.ts');
