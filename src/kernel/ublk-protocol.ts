/** The words of the kernel's ublk driver (linux/ublk_cmd.h; Linux 6.5 and newer, which encode commands as ioctls and copy
 *  data by pread and pwrite), and the codecs of its structures. In the byte order of the machine, which is little-endian
 *  wherever we run. */

import { BlksnapError } from '../util/errors.ts';

const READS = 2;
const READS_AND_WRITES = 3;
const MAGIC = 0x75; // 'u'

const encoded = (direction: number, nr: number, size: number): number =>
  ((direction << 30) | (size << 16) | (MAGIC << 8) | nr) >>> 0;

/** Bytes of struct ublksrv_ctrl_cmd and ublksrv_io_cmd. */
const CONTROL_BYTES = 32;
const IO_BYTES = 16;

export const CONTROL = {
  addDevice: encoded(READS_AND_WRITES, 0x04, CONTROL_BYTES),
  deleteDevice: encoded(READS_AND_WRITES, 0x05, CONTROL_BYTES),
  startDevice: encoded(READS_AND_WRITES, 0x06, CONTROL_BYTES),
  stopDevice: encoded(READS_AND_WRITES, 0x07, CONTROL_BYTES),
  setParameters: encoded(READS_AND_WRITES, 0x08, CONTROL_BYTES),
  startRecovery: encoded(READS_AND_WRITES, 0x10, CONTROL_BYTES),
  endRecovery: encoded(READS_AND_WRITES, 0x11, CONTROL_BYTES),
  deviceInfo: encoded(READS, 0x02, CONTROL_BYTES),
  deleteDeviceLater: encoded(READS, 0x14, CONTROL_BYTES),
  features: encoded(READS, 0x13, CONTROL_BYTES),
  updateSize: encoded(READS_AND_WRITES, 0x15, CONTROL_BYTES),
} as const;
export type ControlName = keyof typeof CONTROL;

export const FETCH_REQUEST = encoded(READS_AND_WRITES, 0x20, IO_BYTES);
export const COMMIT_AND_FETCH_REQUEST = encoded(READS_AND_WRITES, 0x21, IO_BYTES);

/** Device flags, as numbers: none that we know is past the 53rd bit. */
const USER_RECOVERY = 1 << 3;
const USER_RECOVERY_REISSUE = 1 << 4;
const IOCTL_ENCODE = 1 << 6;
const USER_COPY = 1 << 7;
export const UPDATE_SIZE = 1 << 10;

/** What our devices are made with. Reissue: requests that a dead server had are given to the next one again, which does
 *  no harm to a block device. */
export const OUR_FLAGS = USER_RECOVERY | USER_RECOVERY_REISSUE | IOCTL_ENCODE | USER_COPY;

/** What a queue's requests are, bits 0 to 7 of a descriptor's first word; and the flags above them. */
export const OP_READ = 0;
export const OP_WRITE = 1;
export const OP_FLUSH = 2;
export const OP_DISCARD = 3;
export const OP_WRITE_ZEROES = 5;
export const OP_MASK = 0xff;
export const FLAG_FUA = 1 << 13;
export const FLAG_NO_UNMAP = 1 << 15;

/** 32-bit words of a request's descriptor: operation and flags, sectors, first sector (two words), an address. */
export const DESCRIPTOR_WORDS = 6;
export const SECTOR_BYTES = 512;

/** Where the data of queue 0's request `tag` lies in the character device. */
export function dataPosition(tag: number): number {
  return 0x8000_0000 + tag * 2 ** 25;
}

export type DeviceState = 'dead' | 'live' | 'quiesced';
const STATES: Record<number, DeviceState> = { 0: 'dead', 1: 'live', 2: 'quiesced' };

/** struct ublksrv_ctrl_dev_info, as far as we use it. One queue. */
export interface DeviceInfo {
  readonly id: number;
  readonly state: DeviceState;
  readonly queueDepth: number;
  readonly maxIoBytes: number;
  /** The server's process, or -1. */
  readonly pid: number;
  readonly flags: number;
  /** The server's own: never looked at by the driver. */
  readonly mark: bigint;
}

export const DEVICE_INFO_BYTES = 64;
/** Asks the driver for any id that is free. */
export const ANY_ID = 0xffff_ffff;

export function encodeDeviceInfo(
  view: DataView,
  info: Pick<DeviceInfo, 'id' | 'queueDepth' | 'maxIoBytes' | 'flags' | 'mark'>,
): void {
  for (let i = 0; i < DEVICE_INFO_BYTES; i += 8) view.setBigUint64(i, 0n, true);
  view.setUint16(0, 1, true);
  view.setUint16(2, info.queueDepth, true);
  view.setUint32(8, info.maxIoBytes, true);
  view.setUint32(12, info.id, true);
  view.setInt32(16, -1, true);
  view.setBigUint64(24, BigInt(info.flags), true);
  view.setBigUint64(32, info.mark, true);
}

/** Errors: EBADMSG for what no driver would say. */
export function decodeDeviceInfo(view: DataView): DeviceInfo {
  const state = STATES[view.getUint16(4, true)];
  if (state === undefined || view.getUint16(0, true) !== 1) {
    throw new BlksnapError(
      'EBADMSG',
      `The ublk driver tells of a device with ${view.getUint16(0, true)} queues in state ${view.getUint16(4, true)}: ` +
        'it is not one of blksnap',
    );
  }
  return {
    id: view.getUint32(12, true),
    state,
    queueDepth: view.getUint16(2, true),
    maxIoBytes: view.getUint32(8, true),
    pid: view.getInt32(16, true),
    flags: Number(view.getBigUint64(24, true) & 0xffff_ffffn),
    mark: view.getBigUint64(32, true),
  };
}

/** What a block device is to look like. Bytes. */
export interface DeviceParameters {
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly maxIoBytes: number;
  readonly readOnly: boolean;
  readonly rotational: boolean;
  /** Writes need a flush to be on stable storage; FUA writes do not. */
  readonly flush: boolean;
  readonly fua: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
}

/** What the server of an export says of it. */
export type ServedExport = Omit<DeviceParameters, 'maxIoBytes'>;

/** A device's queue. */
export interface QueueShape {
  /** The device's. */
  readonly id: number;
  readonly depth: number;
  readonly maxIoBytes: number;
}

export const PARAMETERS_BYTES = 60;
const TYPE_BASIC = 1;
const TYPE_DISCARD = 2;
const ATTRIBUTE_READ_ONLY = 1;
const ATTRIBUTE_ROTATIONAL = 2;
const ATTRIBUTE_VOLATILE_CACHE = 4;
const ATTRIBUTE_FUA = 8;
/** Sectors that one discard may have: 1 GiB, so that the length stays small beside what a bio can have. */
const DISCARD_SECTORS = 2 ** 21;

/** struct ublk_params: its head, the basic and the discard part. */
export function encodeParameters(view: DataView, parameters: DeviceParameters): void {
  const { logicalBlockSize, physicalBlockSize, discard, writeZeroes } = parameters;
  for (let i = 0; i < PARAMETERS_BYTES; i += 4) view.setUint32(i, 0, true);
  view.setUint32(0, PARAMETERS_BYTES, true);
  view.setUint32(4, TYPE_BASIC | (discard || writeZeroes ? TYPE_DISCARD : 0), true);
  view.setUint32(
    8,
    (parameters.readOnly ? ATTRIBUTE_READ_ONLY : 0) |
      (parameters.rotational ? ATTRIBUTE_ROTATIONAL : 0) |
      (parameters.flush ? ATTRIBUTE_VOLATILE_CACHE : 0) |
      (parameters.flush && parameters.fua ? ATTRIBUTE_FUA : 0),
    true,
  );
  const physical = Math.max(physicalBlockSize, logicalBlockSize);
  view.setUint8(12, Math.log2(logicalBlockSize));
  view.setUint8(13, Math.log2(physical));
  view.setUint8(14, Math.log2(physical)); // optimal I/O size
  view.setUint8(15, Math.log2(physical)); // minimal I/O size
  view.setUint32(16, parameters.maxIoBytes / SECTOR_BYTES, true);
  view.setBigUint64(24, BigInt(parameters.size / SECTOR_BYTES), true);
  if (!discard && !writeZeroes) return;
  view.setUint32(44, physical, true); // discard granularity
  view.setUint32(48, discard ? DISCARD_SECTORS : 0, true);
  view.setUint32(52, writeZeroes ? DISCARD_SECTORS : 0, true);
  view.setUint16(56, 1, true); // segments of one discard
}
