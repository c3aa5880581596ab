import fs from 'node:fs';
import os from 'node:os';
import { describe, expect, it } from 'vitest';
import { BlksnapError, ERRNO, codeOfErrno, errnoError, toBlksnapError } from './errors.ts';

describe('the table of error numbers', () => {
  it('is that of the system', (context) => {
    context.skip(process.platform !== 'linux', 'the numbers are those of Linux');
    const system = os.constants.errno as unknown as Record<string, number>;
    for (const [code, errno] of Object.entries(ERRNO))
      if (code in system) expect([code, system[code]]).toEqual([code, errno]);
  });

  it('names numbers, and takes unknown ones for EIO', () => {
    expect([codeOfErrno(28), codeOfErrno(5), codeOfErrno(99_999)]).toEqual(['ENOSPC', 'EIO', 'EIO']);
  });
});

describe('BlksnapError', () => {
  it('carries code, number, message and cause', () => {
    const cause = new Error('why');
    const error = new BlksnapError('EBUSY', 'Cannot do it', { cause });
    expect([error.name, error.code, error.errno, error.message, error.cause]).toEqual([
      'BlksnapError',
      'EBUSY',
      16,
      'Cannot do it',
      cause,
    ]);
  });

  it('is made of system errors, with the action in front', () => {
    let thrown: unknown;
    try {
      fs.openSync('/none/such', 'r');
    } catch (error) {
      thrown = error;
    }
    const error = toBlksnapError(thrown, 'Cannot open "x"');
    expect(error.code).toBe('ENOENT');
    expect(error.message).toMatch(/^Cannot open "x": ENOENT: no such file/);
    expect(error.cause).toBe(thrown);
  });

  it('keeps the code of another, and the object where there is nothing to add', () => {
    const inner = new BlksnapError('ENOSPC', 'full');
    expect(toBlksnapError(inner)).toBe(inner);
    expect(toBlksnapError(inner, 'Cannot write')).toMatchObject({ code: 'ENOSPC', message: 'Cannot write: full' });
  });

  it('takes what is unknown for EIO', () => {
    expect(toBlksnapError(new Error('odd')).code).toBe('EIO');
    expect(toBlksnapError('odd', 'Cannot')).toMatchObject({ code: 'EIO', message: 'Cannot: odd' });
    expect(toBlksnapError(Object.assign(new Error('odd'), { code: 'ERR_ODD' })).code).toBe('EIO');
  });

  it('knows the name that Node gives to EOPNOTSUPP', () => {
    expect(toBlksnapError(Object.assign(new Error('no'), { code: 'ENOTSUP' })).code).toBe('EOPNOTSUPP');
  });

  it('is made of error numbers', () => {
    expect(errnoError(28, 'Cannot write').message).toBe('Cannot write: ENOSPC');
    expect(errnoError(12_345, 'Cannot write')).toMatchObject({
      code: 'EIO',
      message: 'Cannot write: EIO (errno 12345)',
    });
  });
});
