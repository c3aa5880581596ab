import { expect, it } from 'vitest';
import { Serial } from './serial.ts';

function gate(): { readonly opened: Promise<void>; open(): void } {
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

it('runs tasks of one key in order, and others beside them', async () => {
  const serial = new Serial();
  const order: string[] = [];
  const first = gate();
  const task = (name: string, before?: Promise<void>) => async (): Promise<string> => {
    await before;
    order.push(name);
    return name;
  };
  const all = [
    serial.run(['a'], task('a1', first.opened)),
    serial.run(['a', 'b'], task('ab')),
    serial.run(['b'], task('b1')),
    serial.run(['c'], task('c')),
  ];
  await all[3];
  expect(order).toEqual(['c']);
  first.open();
  expect(await Promise.all(all)).toEqual(['a1', 'ab', 'b1', 'c']);
  expect(order).toEqual(['c', 'a1', 'ab', 'b1']);
});

it('goes on after a task that failed', async () => {
  const serial = new Serial();
  const failing = serial.run(['a'], () => Promise.reject(new Error('no')));
  const next = serial.run(['a'], async () => 'done');
  await expect(failing).rejects.toThrow('no');
  expect(await next).toBe('done');
});
