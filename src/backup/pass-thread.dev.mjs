// Runs the thread of a pass from its TypeScript sources: a worker does not inherit the loader of the main thread.
import { register } from 'tsx/esm/api';

register();
await import('./pass-thread.ts');
