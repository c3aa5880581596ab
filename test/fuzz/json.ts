/** JSON as enemies write it: a value that is nearly right, or text that is hard on parsers. */

import type { Draw } from './draw.ts';

export function jsonText(draw: Draw, value: unknown): Uint8Array {
  const text = JSON.stringify(value);
  switch (draw.below(16)) {
    case 0:
      return Buffer.from(text.slice(0, draw.below(text.length + 1)));
    case 1:
      return Buffer.from(`${text.slice(0, -1)},"more":${'['.repeat(draw.one([3, 1000, 100_000]))}`);
    case 2: {
      const depth = draw.one([10, 2000, 50_000]);
      return Buffer.from(text.replace(/(?<=[:[])(?=[^,\]}])/, () => `${'['.repeat(depth)}0${']'.repeat(depth)},`));
    }
    case 3:
      return Buffer.from(text.replace('{', '{"__proto__":{"version":1},"constructor":1,'));
    case 4:
      return Buffer.from(text.replace(/\d+/, draw.one(['1e999', '-0', '9007199254740993', '1e-400', '01', 'NaN'])));
    case 5:
      return Buffer.from(
        text.replace(/"[^"]*"/, () => draw.one(['"\\u0000"', '"\\ud800"', '"\u202e"', `"${'x'.repeat(5000)}"`])),
      );
    case 6: {
      const deep = draw.one([5, 3000]);
      return Buffer.from(
        text.replace(/"options":\{/, `"options":{"deep":${'{"a":'.repeat(deep)}0${'}'.repeat(deep)},`),
      );
    }
    default:
      return Buffer.from(text);
  }
}
