import { describe, expect, it } from 'vitest';
import { PreparedSnapshots } from './prepared-snapshots.ts';

const request = { disks: ['a'], storagePath: '/tmp', limitBytes: null };

describe('prepared snapshots', () => {
  it('grow disk by disk, and leave the list whole', () => {
    const prepared = new PreparedSnapshots();
    const { id } = prepared.create(request);
    expect(prepared.add(id, 'b').disks).toEqual(['a', 'b']);
    expect(() => prepared.add(id, 'a')).toThrow(expect.objectContaining({ code: 'EALREADY' }));
    expect(prepared.list()).toMatchObject([{ id, disks: ['a', 'b'] }]);
    const taken = prepared.remove(id);
    expect(prepared.size).toBe(0);
    expect(() => prepared.remove(id)).toThrow(expect.objectContaining({ code: 'ESRCH' }));
    prepared.restore(taken);
    expect(prepared.has(id)).toBe(true);
  });

  it('refuse a disk named twice', () => {
    expect(() => new PreparedSnapshots().create({ ...request, disks: ['a', 'a'] })).toThrow(/disk "a" twice/);
  });
});
