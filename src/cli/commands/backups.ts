/** backup, backups, restore, verify, prune: the work is done in this process, by the backup layer. */

import type { Command } from 'commander';
import type { DiskPoints } from '../../backup/repository.ts';
import type { RestorePoint } from '../../backup/manifest.ts';
import { BlksnapError } from '../../util/errors.ts';
import { formatSeconds, formatSize, parseSize } from '../../util/units.ts';
import { addCommand, wholeNumber } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import type { BackupOptions } from '../backup-disks.ts';
import { formatTime, printJson, printLine, printTable } from '../output.ts';
import { Progress } from '../progress.ts';
import { withReactor } from '../with-reactor.ts';

interface RestoreOptions extends CommonOptions {
  readonly disk: string;
  readonly point?: string;
  readonly to: string;
  readonly force?: boolean;
  readonly overwrite?: boolean;
}

interface DiskOptions extends CommonOptions {
  readonly disk?: string;
}

interface PruneOptions extends DiskOptions {
  readonly keepLast: number;
}

export function addBackupCommands(program: Command): void {
  addCommand(program, 'backup <name...>', {
    summary: 'Back up disks to a directory',
    more:
      'Takes one snapshot of all of them, stores what changed since their last restore point, and lets the snapshot go. ' +
      'The first backup of a disk is full, and so is one whose change history is in doubt: it says why. ' +
      'Runs at the lowest priority: writes to the disks come first.',
    examples: [
      'backup vm --to /backup',
      'backup system data --to /backup --limit 20G',
      'backup vm --to /backup --full',
    ],
  })
    .requiredOption('--to <directory>', 'where restore points go; made where it is missing')
    .option('--full', 'store everything')
    .option('--differential', 'store what changed since the last full backup')
    .option('--snapshot <id>', 'back up this snapshot, and keep it')
    .option('--storage <place>', 'as for `snapshot create`')
    .option('--limit <size>', 'as for `snapshot create`', (text: string) => parseSize(text))
    .option('--no-fsfreeze', 'as for `snapshot create`')
    .option('--freeze <command>', 'as for `snapshot create`')
    .option('--thaw <command>', 'as for `snapshot create`')
    .option('--freeze-timeout <ms>', 'as for `snapshot create`', wholeNumber)
    .action(async (names: string[], options: BackupOptions) => {
      const { backUpDisks } = await import('../backup-disks.ts');
      await backUpDisks(names, options);
    });

  addCommand(program, 'backups <directory>', {
    summary: 'List restore points',
    local: true,
    examples: ['backups /backup'],
  })
    .option('--disk <name>', 'of this disk alone')
    .action(backups);

  addCommand(program, 'restore <directory>', {
    summary: 'Write a restore point to a file or a block device',
    local: true,
    more: 'Checks the whole chain: a file, which is sparse, appears when it is complete and right; a block device is not touched before.',
    examples: [
      'restore /backup --disk vm --to /srv/vm.img',
      'restore /backup --disk vm --point 20261121T001843Z-7f3a --to /dev/vdb --overwrite',
    ],
  })
    .requiredOption('--disk <name>', 'the disk that was backed up')
    .requiredOption('--to <path>', 'the file, or the block device')
    .option('--point <id>', 'the restore point (default: the newest)')
    .option('--overwrite', 'replace what the target holds')
    .option('--force', 'restore what can be read of a damaged point')
    .action(restore);

  addCommand(program, 'verify <directory>', {
    summary: 'Check that every restore point can be restored',
    local: true,
    more: 'Reads everything, changes nothing. Names each damaged file and the damaged bytes.',
    examples: ['verify /backup'],
  })
    .option('--disk <name>', 'this disk alone')
    .action(verify);

  addCommand(program, 'prune <directory>', {
    summary: 'Remove old restore points',
    local: true,
    more: 'What stays can be restored: files that rest on removed ones are written anew first.',
    examples: ['prune /backup --keep-last 7'],
  })
    .requiredOption('--keep-last <n>', 'how many of the newest points of each disk stay', wholeNumber)
    .option('--disk <name>', 'this disk alone')
    .action(prune);
}

async function backups(directory: string, { disk, json }: DiskOptions): Promise<void> {
  const { listPoints, readManifest } = await import('../../backup/repository.ts');
  const found: DiskPoints[] =
    disk === undefined
      ? listPoints(directory)
      : [{ disk, points: readManifest(directory, disk).points, problem: null }];
  if (json) printJson({ disks: found });
  else printPoints(found);
}

function printPoints(disks: readonly DiskPoints[]): void {
  for (const { disk, problem } of disks) if (problem !== null) printLine(`${disk}: ${problem}`);
  const rows = disks.flatMap(({ disk, points }) => points.map((point) => ({ disk, point })));
  if (rows.length === 0) {
    printLine('No restore points.');
    return;
  }
  printTable<{ readonly disk: string; readonly point: RestorePoint }>(
    [
      { heading: 'DISK', value: ({ disk }) => disk },
      { heading: 'POINT', value: ({ point }) => point.id },
      { heading: 'TAKEN', value: ({ point }) => formatTime(point.createdAt) },
      { heading: 'KIND', value: ({ point }) => point.kind },
      { heading: 'SIZE', value: ({ point }) => formatSize(point.size), right: true },
      { heading: 'STORED', value: ({ point }) => formatSize(point.fileBytes), right: true },
      { heading: 'WHY', value: ({ point }) => point.reason },
    ],
    rows,
  );
}

async function restore(directory: string, options: RestoreOptions): Promise<void> {
  const { restore: run } = await import('../../backup/restore.ts');
  const { describeDamage } = await import('../../backup/integrity.ts');
  const { disk, point, to, force, overwrite } = options;
  const progress = new Progress(options.json ?? false);
  let phase = '';
  const result = await withReactor((context) =>
    run({
      ...context,
      directory,
      disk,
      point,
      to,
      overwrite: overwrite ?? false,
      acceptDamage: force ?? false,
      onProgress: (advance) => {
        if (advance.phase !== phase) progress.start(advance.phase === 'check' ? 'checking' : 'restoring');
        phase = advance.phase;
        progress.update(advance);
      },
    }),
  ).finally(() => progress.end());
  if (options.json) {
    printJson({ disk, point: result.point, to, damage: result.damage, ...result.progress });
    return;
  }
  for (const damage of result.damage) printLine(`damaged, restored as it is: ${describeDamage(damage)}`);
  const { bytesStored, seconds } = result.progress;
  printLine(
    `${result.point.id} of ${disk} restored to ${to}: ${formatSize(bytesStored)} written in ${formatSeconds(seconds)}`,
  );
}

async function verify(directory: string, options: DiskOptions): Promise<void> {
  const { verify: run } = await import('../../backup/verify.ts');
  const { describeDamage } = await import('../../backup/integrity.ts');
  const progress = new Progress(options.json ?? false);
  progress.start('verifying');
  const report = await withReactor((context) =>
    run({ ...context, directory, disk: options.disk, onProgress: progress.update }),
  ).finally(() => progress.end());
  if (options.json) printJson(report);
  const lost = report.points.filter(({ restorable }) => !restorable);
  if (!report.sound) {
    const words = report.damage.map(describeDamage).join('; ');
    const which = lost.map(({ disk, point }) => `${point} of ${disk}`).join(', ') || 'none';
    throw new BlksnapError('EBADMSG', `The backup is damaged: ${words}. Points that cannot be restored: ${which}`);
  }
  if (options.json) return;
  const count = report.points.length;
  const good = count === 1 ? '1 restore point is good' : `${count} restore points are good`;
  printLine(`${good}, ${formatSize(report.bytesRead)} checked`);
}

async function prune(directory: string, options: PruneOptions): Promise<void> {
  const { prune: run } = await import('../../backup/prune.ts');
  const { diskNames } = await import('../../backup/repository.ts');
  const progress = new Progress(options.json ?? false);
  const disks = options.disk === undefined ? diskNames(directory) : [options.disk];
  const results = await withReactor(async (context) => {
    const done = [];
    for (const disk of disks) {
      progress.start(`pruning ${disk}`);
      done.push(await run({ ...context, directory, disk, keepLast: options.keepLast, onProgress: progress.update }));
    }
    return done;
  }).finally(() => progress.end());
  if (options.json) printJson({ disks: results });
  for (const { disk, removed, rewritten, bytesFreed } of options.json ? [] : results) {
    const anew = rewritten.length === 0 ? '' : `, ${rewritten.length} written anew`;
    const freed = bytesFreed >= 0 ? `${formatSize(bytesFreed)} freed` : `${formatSize(-bytesFreed)} more used`;
    printLine(
      removed.length === 0
        ? `${disk}: nothing to remove`
        : `${disk}: ${removed.length} ${removed.length === 1 ? 'point' : 'points'} removed${anew}, ${freed}`,
    );
  }
}
