/** Deliberate bugs in the core. The simulator must find each: what it lets pass, it does not test. */

export interface Mutation {
  readonly file: string;
  /** Stands exactly once in the file. */
  readonly text: string;
  readonly replacement: string;
  readonly why: string;
}

const COW = 'src/blksnap/copy-on-write.ts';
const AREAS = 'src/blksnap/area-list.ts';
const STARVED = 'src/blksnap/starved-writes.ts';
const KEPT = 'src/blksnap/persistent-copies.ts';
const PERSISTENCE = 'src/blksnap/persistence.ts';
const RESTORE = 'src/blksnap/restore-snapshot.ts';
const JOURNAL = 'src/blksnap/journal.ts';
const READER = 'src/blksnap/journal-reader.ts';
const IMAGE = 'src/blksnap/image.ts';
const READS = 'src/blksnap/image-reads.ts';
const OVERLAY = 'src/blksnap/image-overlay.ts';
const AREA = 'src/blksnap/diff-area.ts';
const STORAGE = 'src/blksnap/diff-storage.ts';
const PIECE = 'src/blksnap/storage-piece.ts';
const TABLE = 'src/blksnap/chunk-table.ts';
const TRACKER = 'src/blksnap/tracker.ts';
const CBT = 'src/blksnap/cbt-map.ts';
const TAKE = 'src/blksnap/take.ts';
const DISK = 'src/block/disk.ts';
const DEVICE = 'src/block/descriptor-device.ts';
const CONNECTION = 'src/nbd/connection.ts';
const COMMANDS = 'src/nbd/commands.ts';
const REPLY = 'src/nbd/request.ts';
const CLIENT = 'src/nbd/client.ts';
const CLIENT_CONNECTION = 'src/nbd/client-connection.ts';
const STATUS = 'src/nbd/block-status.ts';
const CONTEXTS = 'src/daemon/image-contexts.ts';
const PLAN = 'src/backup/plan.ts';
const SOURCE = 'src/backup/nbd-source.ts';
const DURABLE = 'src/util/durable.ts';

export const MUTATIONS: readonly Mutation[] = [
  {
    file: READS,
    text: 'if (status === 0 && area.brokenBy === 0 && this.#anySaved(offset, length)) {',
    replacement: 'if (status !== 0 && this.#anySaved(offset, length)) {',
    why: 'an image read does not look again at what was saved while it read the origin',
  },
  {
    file: COW,
    text: 'const last = Math.min(chunkOf(bio.offset + bio.length - 1), live.lastChunk) as ChunkIndex;\n    for',
    replacement:
      'const last = Math.min(chunkOf(bio.offset + bio.length - 1) - 1, live.lastChunk) as ChunkIndex;\n    for',
    why: 'the last chunk of a write is not looked at',
  },
  {
    file: COW,
    text: 'if (area.active && area.size > size && this.areas.readsOrigin(area, size))',
    replacement: 'if (area.active && area.size < size && this.areas.readsOrigin(area, size))',
    why: 'an image lives on when a part of its origin that it reads is cut off',
  },
  {
    file: COW,
    text: '    this.#setAll(run, STORING + run.index);\n    this.#store(run);',
    replacement: '    this.#publish(run);\n    this.#store(run);',
    why: 'a copy counts as stored before it is',
  },
  {
    file: TRACKER,
    text: '      this.#cbt!.mark(bio.offset, bio.length, this.#options.reactor.now());',
    replacement: '      if (bio.op === 1) this.#cbt!.mark(bio.offset, bio.length, this.#options.reactor.now());',
    why: 'discards and zeroing are not tracked',
  },
  {
    file: COW,
    text: '    run.area.removeRun(run.index);\n    this.#letGo(run);',
    replacement: '    run.area.removeRun(run.index);',
    why: 'writes that wait for chunks of zeros are forgotten',
  },
  {
    file: COW,
    text: 'const zero = isZeroChunk(this.#words, run.at + i * CHUNK);',
    replacement: 'const zero = isZeroChunk(this.#words, run.at);',
    why: 'every chunk of a run counts as zeros when the first is',
  },
  {
    file: COW,
    text: 'const data = dataByte < endByte ? chunkOf(dataByte) : ((last + 1) as ChunkIndex);',
    replacement:
      'const data = dataByte < endByte ? ((chunkOf(dataByte) + 1) as ChunkIndex) : ((last + 1) as ChunkIndex);',
    why: 'the first chunk of data after a hole counts as a hole',
  },
  {
    file: AREAS,
    text: 'if (older >= 0) area.discard((chunk) => this.#unsavedBetween(older, index, chunk));',
    replacement: 'area.discard(() => false);',
    why: 'a destroyed snapshot takes what older images still read',
  },
  {
    file: COW,
    text: '    if (status !== 0 || !area.active) {',
    replacement: '    if (!area.active) {',
    why: 'a copy that could not be read is stored all the same',
  },
  {
    file: COW,
    text: '    if (area.active) {\n      this.break(area, errno, true);',
    replacement: '    if (area.active) {\n      this.break(area, errno, false);',
    why: 'a copy that could not be stored breaks its own image, and not the older ones that read through it',
  },
  {
    file: COW,
    text: '    if (run.position < 0) this.#o.memory.release(run.at);',
    replacement: '    if (run.position < 0 && run.count !== 3) this.#o.memory.release(run.at);',
    why: 'the memory of runs of three chunks is not given back',
  },
  {
    file: COW,
    text: 'else if (run.borrows) run.area.storage.drop',
    replacement: 'else run.area.storage.drop',
    why: 'what was read straight into the storage is given back, although it is kept there',
  },
  {
    file: READS,
    text: 'bytes.copyWithin(at, place + inChunk, place + inChunk + to - from);',
    replacement: 'bytes.copyWithin(at, place, place + to - from);',
    why: 'a part of a chunk that is kept in memory is read from its beginning',
  },
  {
    file: STARVED,
    text: '    this.#o.memory.whenFreed(this.#onFreed);',
    replacement: '',
    why: 'writes that wait for memory are not told when there is some',
  },
  {
    file: READS,
    text: 'const holder = overlaid !== UNSAVED ? area : areas.lookUp(index, chunk);',
    replacement: 'const holder = overlaid !== UNSAVED ? area : areas.lookUp(index + 1, chunk);',
    why: 'an image reads the newer areas, and not its own',
  },
  {
    file: READS,
    text: '      (position - this.position) * CHUNK + skip === this.skip + this.bytes &&',
    replacement: '      position > this.position &&\n      skip === 0 &&',
    why: 'saved chunks are read in a row where they do not lie in one',
  },
  {
    file: READS,
    text: 'while (to < end && overlay.table.get(chunkOf(to)) === UNSAVED && areas.lookUp(index, chunkOf(to)) === null)',
    replacement: 'while (to < end && areas.lookUp(index, chunkOf(to)) === null)',
    why: 'a row of chunks that nobody has saved hides one that was written to the image',
  },
  {
    file: READS,
    text: 'const source = run.at + (chunk - run.first) * CHUNK + inChunk;',
    replacement: 'const source = run.at + inChunk;',
    why: 'a copy in memory is read from the first chunk of its run',
  },
  {
    file: IMAGE,
    text: 'const noted = this.tracker.markImageWrite(this.area, bio.offset, bio.length);',
    replacement: 'const noted: Promise<void> | null = bio.offset < 0 ? Promise.resolve() : null;',
    why: 'a write to an image is not tracked',
  },
  {
    file: OVERLAY,
    text: '    if (bio.op === WRITE)\n      reactor.arena.bytes.copyWithin(at + from - start,',
    replacement: '    if (bio.op === WRITE)\n      reactor.arena.bytes.copyWithin(at,',
    why: 'a write to part of a chunk of an image lands at its beginning',
  },
  {
    file: OVERLAY,
    text: 'const status = await runBio(pool, image, { op: READ, offset: start, length, at });',
    replacement: 'const status = start < 0 ? await runBio(pool, image, { op: READ, offset: start, length, at }) : 0;',
    why: 'a write to part of a chunk of an image forgets the rest of it',
  },
  {
    file: TRACKER,
    text: '    const areas = cow.areas.all.slice(index);',
    replacement: '    const areas = cow.areas.all.slice(index, index);',
    why: 'the second map is forgotten: a write to an image is marked in the live one alone',
  },
  {
    file: TRACKER,
    text: '    cbt.markOnly(offset, length);\n    const areas',
    replacement: '    const areas',
    why: 'the live map is forgotten at a write to an image',
  },
  {
    file: CBT,
    text: 'const last = Math.floor((offset + length - 1) / this.blockSize);\n    for',
    replacement: 'const last = Math.floor((offset + length) / this.blockSize) - 1;\n    for',
    why: 'the last block of a write is not marked unless it is filled',
  },
  {
    file: AREA,
    text: '    cbt.advance();',
    replacement: '',
    why: 'a take does not begin a new period',
  },
  {
    file: AREA,
    text: 'if (copy.isOf(cbt.map)) copy.end();',
    replacement: 'if (copy.isOf(cbt.map)) this.frozenMap.fill(1);',
    why: 'the frozen map is not the one of the take',
  },
  {
    file: TAKE,
    text: '    await Promise.all(this.#gates.map((disk) => disk.freeze()));',
    replacement: '    void Promise.all(this.#gates.map((disk) => disk.freeze()));',
    why: 'a take does not wait for the writes under way',
  },
  {
    file: TAKE,
    text: '      area.freeze(tracker.cbt, this.#copies[index]!);',
    replacement:
      '      tracker.disk.thaw();\n      void tracker.disk.freeze();\n      area.freeze(tracker.cbt, this.#copies[index]!);',
    why: 'every disk is thawed for a moment before it is switched',
  },
  {
    file: DISK,
    text: '    if (this.#inFlight === 0) return Promise.resolve();',
    replacement: '    if (this.#inFlight <= 1) return Promise.resolve();',
    why: 'the gate closes with one bio still on its way',
  },
  {
    file: STORAGE,
    text: 'const offset = (batch.position - base) * CHUNK;',
    replacement: 'const offset = batch.position * CHUNK;',
    why: 'what is stored in a second place lies elsewhere than where it is read',
  },
  {
    file: STORAGE,
    text: '    this.#storage.batchEnded(this, status);',
    replacement: '    this.#storage.batchEnded(this, status * 0);',
    why: 'a store that failed counts as stored',
  },
  {
    file: PIECE,
    text: '    this.#next += count;',
    replacement: '    this.#next += count > 2 ? count - 1 : count;',
    why: 'space in the storage is given out twice',
  },
  {
    file: TABLE,
    text: '  return value !== UNSAVED && value < READING;',
    replacement: '  return value !== UNSAVED;',
    why: 'a chunk counts as saved while its old data is still being read',
  },
  {
    file: DEVICE,
    text: 'if (bio.progress === bio.length) bio.end(0);',
    replacement: 'if (bio.progress === bio.length || result > 0) bio.end(0);',
    why: 'a short read or write counts as a whole one',
  },
  {
    file: DEVICE,
    text: '      else this.#reactor.read(this.#fd, at, length, offset, bio);\n    } else if ((bio.flags & FUA) === 0 && this.#endsInMemory(offset, length)) {',
    replacement:
      '      else this.#reactor.read(this.#fd, at, length, offset, bio);\n    } else if (this.#endsInMemory(offset, length)) {',
    why: 'FUA is forgotten for writes of whole pages',
  },
  {
    file: DEVICE,
    text: '    if (result < 0) this.#lose(-result);',
    replacement: '',
    why: 'a flush after a failed one succeeds',
  },
  {
    file: COW,
    text: 'const first = bio.era === this.areas.era ? ',
    replacement: 'const first = bio.era <= this.areas.era ? ',
    why: 'a write that waited goes on in the middle when another snapshot has taken over',
  },
  {
    file: CONNECTION,
    text: '    if (bio.status !== 0 && request.error === NBD_OK) request.error',
    replacement: '    if (bio.status < 0 && request.error === NBD_OK) request.error',
    why: 'the NBD server swallows an error of the disk',
  },
  {
    file: COMMANDS,
    text: '    case CMD_WRITE:\n    case CMD_TRIM:\n      return fua;\n    case CMD_WRITE_ZEROES:\n      return (',
    replacement: '    case CMD_WRITE:\n    case CMD_TRIM:\n      return 0;\n    case CMD_WRITE_ZEROES:\n      return (',
    why: 'the NBD server ignores FUA',
  },
  {
    file: CONNECTION,
    text: '        this.#submit(request, FLUSH);',
    replacement: '        this.#unhold(request);',
    why: 'a flush over NBD is answered without one',
  },
  {
    file: CONNECTION,
    text: '      // Whoever left takes none of the replies that wait behind this one.\n      this.#die();',
    replacement: '      this.#settle();',
    why: 'a client that left with replies waiting is never let go',
  },
  {
    file: CLIENT,
    text: '    if (this.errno === 0) this.errno = request.errno;',
    replacement: '',
    why: 'the NBD client swallows an error of the server',
  },
  {
    file: STATUS,
    text: '    const part = Math.min(extent.length, left);',
    replacement: '    const part = left;',
    why: 'a block status tells of its first extent alone, as long as was asked for',
  },
  {
    file: CONTEXTS,
    text: 'flags: run.changed ? CHANGED : 0',
    replacement: 'flags: run.changed && run.length > 4096 ? CHANGED : 0',
    why: 'changes of single blocks are not told over NBD',
  },
  {
    file: SOURCE,
    text: 'if ((flags & STATE_DIRTY) !== 0) ranges.push({ offset, length });',
    replacement: 'if ((flags & STATE_DIRTY) !== 0 && offset > 0) ranges.push({ offset, length });',
    why: 'a backup drops the first of the changed ranges',
  },
  {
    file: PLAN,
    text: '  if (point.generationId !== source.generationId) {',
    replacement: '  if (point.generationId === null) {',
    why: 'a backup does not check the generation of the parent',
  },
  {
    file: DURABLE,
    text: '    fs.writeFileSync(fd, text);\n    fs.fsyncSync(fd);',
    replacement: '    fs.writeFileSync(fd, text);',
    why: 'a manifest takes its place before it is on stable storage',
  },
  {
    file: DURABLE,
    text: '  fs.renameSync(from, to);\n  syncDirectory(path.dirname(to));',
    replacement: '  fs.renameSync(from, to);',
    why: 'a new name is not made durable',
  },
  {
    file: REPLY,
    text: '  view.setUint32(at + 12, request.cookieLow);\n  if (!extended) {',
    replacement: '  view.setUint32(at + 12, request.cookieLow ^ 1);\n  if (!extended) {',
    why: 'an NBD reply carries the cookie of another request',
  },
  {
    file: REPLY,
    text: '  view.setUint32(at + 4, request.error);',
    replacement: '  view.setUint32(at + 4, NBD_OK);',
    why: 'a simple reply tells of no error',
  },
  {
    file: REPLY,
    text: 'const hasData = request.command === CMD_READ && request.error === NBD_OK;\n  switch',
    replacement:
      "const hasData = request.command === CMD_READ && request.error === NBD_OK && style !== 'structured';\n  switch",
    why: 'a structured read is answered without its data',
  },
  {
    file: CONNECTION,
    text: ': view.getUint32(at + 24);\n    const payload',
    replacement: ': view.getUint16(at + 26);\n    const payload',
    why: 'the upper half of the length of a compact request is dropped',
  },
  {
    file: STATUS,
    text: '        view.setUint32(at + 4, extent.flags);',
    replacement: '        view.setUint32(at + 4, bytes[0]! & 0);',
    why: 'a compact block status calls everything unchanged',
  },
  {
    file: CLIENT_CONNECTION,
    text: '    if (error !== NBD_OK) request.errno = errnoOfNbd(error);\n    else if',
    replacement:
      '    if (error !== NBD_OK && request.command === CMD_READ) request.errno = errnoOfNbd(error);\n    else if',
    why: 'the NBD client takes a simple error for a success, but of reads',
  },
  {
    file: KEPT,
    text: '      if (copy.pendingBatches > 0 || copy.recording) return;',
    replacement: '      if (copy.recording) return;',
    why: 'a write passes before its copy for a persistent snapshot is stored',
  },
  {
    file: KEPT,
    text: '        copy.area.journal!.journal.record(copy);\n        return;',
    replacement:
      '        this.#publish(copy);\n        copy.area.journal!.journal.record(copy);\n        copy.run = null;\n        run.keptCount++;\n        continue;',
    why: 'a write passes before its copy for a persistent snapshot is recorded',
  },
  {
    file: KEPT,
    text: '    return this.#holes.length > 0;',
    replacement: '    return this.#holes.length > 1000;',
    why: 'a write passes before the record that it goes to a hole',
  },
  {
    file: KEPT,
    text: '    this.#areas = areas.filter((area) => area.active && area.journal !== null);',
    replacement: '    this.#areas = areas.filter((area) => area.active && area.journal !== null).slice(-1);',
    why: 'only the newest of several persistent snapshots gets its copies',
  },
  {
    file: TRACKER,
    text: '        if (area.journal !== null) this.#cbt!.kept.drop(area.snapshotId);',
    replacement: '',
    why: 'a broken persistent snapshot counts as whole after a restart',
  },
  {
    file: PERSISTENCE,
    text: '(await storage.sync()) !== 0 || ',
    replacement: '',
    why: 'storage is not synced at the end, and the machine stops then',
  },
  {
    file: PERSISTENCE,
    text: ' || (await journal.journal.sync()) !== 0',
    replacement: '',
    why: 'the journal is not synced at the end, and the machine stops then',
  },
  {
    file: RESTORE,
    text: '    if (table.get(here) === UNSAVED) {',
    replacement: '    if (count > 0) {',
    why: 'the last row of a chunk counts, and not the first',
  },
  {
    file: READER,
    text: '    this.#markDirty(plan, maps);\n',
    replacement: '',
    why: 'what was marked dirty is forgotten at a restart',
  },
  {
    file: JOURNAL,
    text: '    const status = result === this.#left ? 0 : result < 0 ? -result : ERRNO.ENOSPC;',
    replacement: '    const status = 0;',
    why: 'a frame that could not be written counts as written',
  },
  {
    file: READS,
    text: 'const lost = row.storage.lostAt(row.position);',
    replacement: 'const lost = 0 as number;',
    why: 'a read of the storage does not ask afterwards whether the storage has kept what it took',
  },
  {
    file: PIECE,
    text: '    if (this.#lost !== 0) this.onLost(this.#lost);\n    return this.#lost;',
    replacement: '    const lost = this.#lost;\n    this.#lost = 0;\n    return lost;',
    why: 'that the storage has lost something is told to whoever asks first, and to nobody afterwards',
  },
  {
    file: COW,
    text: '          chunk = ownFirst;\n',
    replacement: '          chunk = (ownLast + 1) as ChunkIndex;\n',
    why: 'a write passes without its copy when there is no memory for what lies before it in its copy unit',
  },
  {
    file: READS,
    text: 'if (area.table.get(next) !== value + i || overlay.table.get(next) !== UNSAVED) break;',
    replacement: 'if (area.table.get(next) !== value + i) break;',
    why: 'a row of saved chunks hides one that was written to the image',
  },
  {
    file: READS,
    text: '      storage === this.storage &&',
    replacement: '      storage !== null &&',
    why: 'what lies in the storage of another snapshot is read from our own',
  },
  {
    file: CBT,
    text: '    for (let i = 0; i < this.#copies.length; i++) this.#copies[i]!.note(first, last);\n',
    replacement: '',
    why: 'what is written between the copying of a map and its take is not in the frozen map',
  },
];
