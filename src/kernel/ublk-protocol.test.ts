/** The driver's words against the values of linux/ublk_cmd.h. */

import { expect, test } from 'vitest';
import { MIB } from '../util/units.ts';
import {
  COMMIT_AND_FETCH_REQUEST,
  CONTROL,
  dataPosition,
  decodeDeviceInfo,
  DEVICE_INFO_BYTES,
  encodeDeviceInfo,
  encodeParameters,
  FETCH_REQUEST,
  OUR_FLAGS,
  PARAMETERS_BYTES,
} from './ublk-protocol.ts';

const DISK = {
  size: 5 * 2 ** 40 + 4096,
  logicalBlockSize: 512,
  physicalBlockSize: 4096,
  maxIoBytes: MIB,
  readOnly: false,
  rotational: false,
  flush: true,
  fua: true,
  discard: true,
  writeZeroes: true,
};

function parametersOf(disk: typeof DISK): DataView {
  const view = new DataView(new Uint8Array(PARAMETERS_BYTES).fill(0xff).buffer);
  encodeParameters(view, disk);
  return view;
}

test('commands have the numbers of the ioctls', () => {
  expect(FETCH_REQUEST).toBe(0xc0107520);
  expect(COMMIT_AND_FETCH_REQUEST).toBe(0xc0107521);
  expect(CONTROL.addDevice).toBe(0xc0207504);
  expect(CONTROL.deviceInfo).toBe(0x80207502);
  expect(CONTROL.features).toBe(0x80207513);
});

test("a request's data lies at 2 GiB and 32 MiB per tag", () => {
  expect(dataPosition(0)).toBe(0x8000_0000);
  expect(dataPosition(127)).toBe(0x8000_0000 + 127 * 32 * MIB);
});

test('what is asked of a device is what it is found by', () => {
  const view = new DataView(new Uint8Array(DEVICE_INFO_BYTES).fill(0xff).buffer);
  const asked = { id: 7, queueDepth: 128, maxIoBytes: MIB, flags: OUR_FLAGS, mark: 0xfedc_ba98_7654_3210n };
  encodeDeviceInfo(view, asked);
  expect(decodeDeviceInfo(view)).toEqual({ ...asked, state: 'dead', pid: -1 });
  view.setUint16(4, 2, true);
  expect(decodeDeviceInfo(view).state).toBe('quiesced');
});

test('a device with several queues, or in a state without a name, is none of ours', () => {
  const view = new DataView(new ArrayBuffer(DEVICE_INFO_BYTES));
  view.setUint16(0, 2, true);
  expect(() => decodeDeviceInfo(view)).toThrow(expect.objectContaining({ code: 'EBADMSG' }));
  view.setUint16(0, 1, true);
  view.setUint16(4, 9, true);
  expect(() => decodeDeviceInfo(view)).toThrow(expect.objectContaining({ code: 'EBADMSG' }));
});

test('parameters tell sizes as shifts and sectors', () => {
  const view = parametersOf(DISK);
  expect([view.getUint32(0, true), view.getUint32(4, true)]).toEqual([PARAMETERS_BYTES, 3]);
  expect(view.getUint32(8, true)).toBe(4 | 8);
  expect([12, 13, 14, 15].map((at) => view.getUint8(at))).toEqual([9, 12, 12, 12]);
  expect(view.getUint32(16, true)).toBe(2048);
  expect(view.getBigUint64(24, true)).toBe(BigInt(DISK.size / 512));
  expect(view.getBigUint64(32, true)).toBe(0n);
  expect([44, 48, 52].map((at) => view.getUint32(at, true))).toEqual([4096, 2 ** 21, 2 ** 21]);
  expect(view.getUint16(56, true)).toBe(1);
});

test('what a disk cannot do is not offered', () => {
  const view = parametersOf({
    ...DISK,
    readOnly: true,
    rotational: true,
    flush: false,
    discard: false,
    writeZeroes: false,
  });
  expect(view.getUint32(4, true)).toBe(1);
  expect(view.getUint32(8, true)).toBe(1 | 2);
  expect(view.getUint32(48, true)).toBe(0);
  expect(parametersOf({ ...DISK, discard: false }).getUint32(48, true)).toBe(0);
});
