/** The form of the project's own files: opening comments, lengths, words, characters, the lock file. What the
 *  formatter and the linter see (layout, long functions, forgotten promises) is not repeated here. */

import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = path.join(import.meta.dirname, '..');
const PLACES = ['.ci', 'bench', 'bin', 'demo', 'docs', 'examples', 'scripts', 'src', 'test'];
const MAX_LINE = 160; // the formatter wraps at 120, but for messages
const MAX_FILE_LINES = 500;

/** Written apart, so that this file passes its own test. */
const WORDS = [
  /\bTO\x44O\b/,
  /\bFIX\x4dE\b/,
  /\bX\x58X\b/,
  /\bHA\x43K\b/,
  /(?:^|[\s'"`(=])\/(?:wor\x6b|roo\x74|Users)\//,
  /\.\.\/share\x64\//,
  /\bissue #?\d/i,
  /\bregistr\x79\.[a-z]|\byarnpk\x67\b|\bunpk\x67\b|\bjsdeliv\x72\b|\bnpmmirro\x72\b/,
];

const VAGUE_NAME = /util|helper|manager|misc|common/i;

/** Beyond ASCII: what units, ranges, arrows, pictures and progress bars need. */
const FOREIGN = /[^ -~µ×…–—±≥≤≠→←↑↓↔·•✓✗▸█░▏▎▍▌▋▊▉─│┌┐└┘├┤┬┴┼▼▲►◄]/;

interface SourceFile {
  readonly name: string;
  readonly text: string;
  readonly lines: readonly string[];
}

function filesUnder(place: string): string[] {
  const entries = readdirSync(path.join(ROOT, place), { recursive: true, encoding: 'utf8' });
  return entries.map((entry) => path.join(place, entry)).filter((entry) => statSync(path.join(ROOT, entry)).isFile());
}

function read(name: string): SourceFile {
  const text = readFileSync(path.join(ROOT, name), 'utf8');
  return { name, text, lines: text.split('\n') };
}

const topLevel = readdirSync(ROOT).filter((name) => /\.(?:md|json|ts)$|^\.npmrc$|^NOTICE$/.test(name));
const names = [...topLevel, ...PLACES.flatMap(filesUnder)].filter(
  (name) => name !== 'package-lock.json' && !/^(?:bench\/results|test\/corpus)\//.test(name),
);
const files = names.map(read);
const code = files.filter(({ name }) => /\.(?:ts|mjs)$/.test(name) || /^(?:bin|\.ci)\//.test(name));

/** `file:line: text` of every line that the test does not like. */
function linesWhere(list: readonly SourceFile[], dislikes: (line: string) => boolean): string[] {
  return list.flatMap(({ name, lines }) =>
    lines.flatMap((line, index) => (dislikes(line) ? [`${name}:${index + 1}: ${line.trim().slice(0, 100)}`] : [])),
  );
}

describe('tidy', () => {
  it('sees the files', () => {
    expect(code.length).toBeGreaterThan(40);
    expect(names).toContain('README.md');
  });

  it('opens every code file with a comment, but a test beside its subject', () => {
    const bare = code.filter(
      ({ name, text }) => !/^src\/.*\.test\.ts$/.test(name) && !/^(?:#!.*\n)?(?:\/\*\*|\/\/|#) ?\S/.test(text),
    );
    expect(bare.map(({ name }) => name)).toEqual([]);
  });

  it(`has no line over ${MAX_LINE} characters`, () => {
    expect(linesWhere(code, (line) => line.length > MAX_LINE)).toEqual([]);
  });

  it(`has no file over ${MAX_FILE_LINES} lines`, () => {
    const long = code.filter(({ lines }) => lines.length > MAX_FILE_LINES + 1);
    expect(long.map(({ name, lines }) => `${name}: ${lines.length - 1}`)).toEqual([]);
  });

  it('uses no word that does not belong into a project', () => {
    expect(linesWhere(files, (line) => WORDS.some((word) => word.test(line)))).toEqual([]);
  });

  it('names files after what they are', () => {
    expect(names.filter((name) => VAGUE_NAME.test(path.basename(name)))).toEqual([]);
  });

  it('uses only the characters it needs', () => {
    expect(linesWhere(files, (line) => FOREIGN.test(line) || line.endsWith(' '))).toEqual([]);
  });

  it('names only files that exist in its documents', () => {
    const documents = files.filter(({ name }) => name.endsWith('.md'));
    const dead = documents.flatMap(({ name, text }) => {
      const links = [...text.matchAll(/\]\((?!https?:|#)([^)#]+)/g)].map(([, to]) =>
        path.join(path.dirname(name), to!),
      );
      const paths = [...text.matchAll(/`((?:src|test|bench|scripts|docs|bin)\/[\w./-]+)`/g)].map(([, to]) => to!);
      return [...links, ...paths].filter((to) => !existsSync(path.join(ROOT, to))).map((to) => `${name}: ${to}`);
    });
    expect(dead.filter((one) => !one.endsWith('bench/results/latest.json'))).toEqual([]);
  });

  it('says why wherever it switches a rule off or skips a test', () => {
    const off = (line: string): boolean => /(?:oxlint|eslint)-disable|@ts-(?:ignore|nocheck|expect-error)/.test(line);
    expect(linesWhere(code, (line) => off(line) && !/ -- \S/.test(line) && !line.includes('const off'))).toEqual([]);
    expect(linesWhere(code, (line) => /\b(?:it|test|describe)\.(?:skip|todo|only|fails)\b(?!If)/.test(line))).toEqual(
      [],
    );
  });

  it('pins every dependency and ties the lock file to no server', () => {
    const manifest = JSON.parse(read('package.json').text) as Record<string, Record<string, string>>;
    const versions = Object.entries({ ...manifest['dependencies'], ...manifest['devDependencies'] });
    expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([]);
    expect(linesWhere([read('package-lock.json')], (line) => line.includes('"resolved"'))).toEqual([]);
  });
});
