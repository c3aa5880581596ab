import { describe, expect, it } from 'vitest';
import { hidesKeys, parseVolumeTable, refuseUnrepeatable, tableBytes, tableTarget, tableTo } from './volume-table.ts';

const LVM = '0 8192 linear 8:2 2048\n8192 4096 linear 8:3 2048\n';

describe('volume tables', () => {
  it('are read as dmsetup prints them', () => {
    expect(parseVolumeTable(LVM)[1]).toEqual({ start: 8192, sectors: 4096, type: 'linear', args: ['8:3', '2048'] });
    expect(tableBytes(LVM)).toBe(12_288 * 512);
    expect(() => parseVolumeTable('nonsense')).toThrow(expect.objectContaining({ code: 'EPROTO' }));
  });

  it('lead to another device in the words of the kernel', () => {
    expect(tableTo('43:0', 12_288 * 512)).toBe('0 12288 linear 43:0 0\n');
    expect([tableTo('43:0', 512), LVM, '0 8 linear 8:2 2048\n'].map(tableTarget)).toEqual(['43:0', null, null]);
  });

  it.each([LVM, '0 8 striped 2 128 8:2 0 8:3 0\n', '0 8 thin 254:1 7\n', '0 8 crypt aes-xts-plain64 00 0 8:2 0\n'])(
    'can be loaded twice: %j',
    (table) => {
      expect(() => refuseUnrepeatable('v', table)).not.toThrow();
    },
  );

  it.each([
    ['0 8 thin-pool 254:0 254:1 128 0\n', 'thin-pool'],
    ['0 8 snapshot-origin 254:1\n', 'snapshot-origin'],
    ['0 8 raid raid1 3 0 region_size 4096 2 - 8:2 - 8:3\n', 'raid'],
    ['0 8 multipath 0 0 1 1 service-time 0 1 2 8:16 1 1\n', 'multipath'],
    ['0 4 linear 8:2 0\n4 4 cache 8:1 8:2 8:3 128 0 smq 0\n', 'cache'],
    ['0 8 crypt aes-xts-plain64 :64:logon:cryptsetup:x-d0 0 8:2 0\n', 'keyring'],
    ['', 'no table'],
  ])('are refused where that cannot be: %j', (table, word) => {
    expect(() => refuseUnrepeatable('/dev/mapper/v', table)).toThrow(
      expect.objectContaining({ code: 'EOPNOTSUPP', message: expect.stringContaining(word) as string }),
    );
  });

  it('tell whether their keys are hidden', () => {
    expect([LVM, '0 8 crypt aes-xts-plain64 00 0 8:2 0\n'].map(hidesKeys)).toEqual([false, true]);
  });
});
