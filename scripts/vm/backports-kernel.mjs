/** The kernel of Debian's backports for QEMU: its package without installing it, and a small initramfs that mounts
 *  this machine's root file system by 9p. Made once, kept in the cache directory.
 *
 *  The package comes through this machine's own apt sources: the release's line, with `-backports`, and package
 *  lists of its own, so that nothing of this machine's package management changes. BLKSNAP_VM_SUITE in the environment
 *  names another suite of Debian, for a newer kernel: stable-backports, say. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { findProgram } from '../debian.mjs';
import { say } from '../prepare.mjs';

const META_PACKAGE = 'linux-image-amd64';
const EARLY_MODULES = ['virtio_pci', 'virtio_console', 'virtio_rng', '9pnet_virtio', '9p', 'overlay'];
const APPLETS = ['sh', 'mount', 'insmod', 'mkdir', 'poweroff', 'chroot', 'ln', 'rm', 'uname', 'grep', 'sed'];

const INIT = `#!/bin/sh
mount -t proc proc /proc
grep -q blksnap.probe /proc/cmdline && exec poweroff -f
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done </modules/list
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,$options,cache=loose root /lower
mount -t tmpfs -o size=80% tmpfs /upper
mkdir /upper/up /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /new
for type in proc:proc sysfs:sys devtmpfs:dev; do mount -t \${type%:*} none /new/\${type#*:}; done
mkdir -p /new/host /new/lib/modules
mount -t 9p -o $options,cache=none host /new/host
rm -rf /new/lib/modules/$(uname -r)
ln -s $(sed 's/.*blksnap.modules=\\([^ ]*\\).*/\\1/' /proc/cmdline)/$(uname -r) /new/lib/modules/$(uname -r)
exec chroot /new /bin/bash /host/guest
`;

/** Runs a command; its output. Throws with its last words when it fails.
 *  @param {string} command
 *  @param {readonly string[]} args
 *  @param {import('node:child_process').SpawnSyncOptions} [options] */
function run(command, args, options = {}) {
  const result = spawnSync(findProgram(command) ?? command, args, { maxBuffer: 2 ** 28, ...options });
  if (result.status === 0) return result.stdout;
  const words = result.error?.message ?? String(result.stderr).trim();
  throw new Error(`Cannot get a kernel for the machine: ${command} ${args.join(' ')}: ${words}`);
}

/** Directory of sources that name the suite, or this release's backports, derived from this machine's.
 *  @param {string} directory
 *  @param {string | undefined} wanted */
function writeSources(directory, wanted) {
  const release = /^VERSION_CODENAME=(\S+)/m.exec(fs.readFileSync('/etc/os-release', 'utf8'))?.[1];
  const suite = wanted ?? `${release}-backports`;
  const places = '/etc/apt/sources.list.d';
  const files = fs.existsSync(places) ? fs.readdirSync(places).map((name) => path.join(places, name)) : [];
  const texts = ['/etc/apt/sources.list', ...files].filter((file) => fs.existsSync(file));
  const all = texts.map((file) => fs.readFileSync(file, 'utf8'));
  const line = all.flatMap((text) => text.split('\n')).find((one) => new RegExp(`^deb .*\\s${release}\\s`).test(one));
  const stanza = all
    .flatMap((text) => text.split(/\n\s*\n/))
    .find((one) => new RegExp(`^Suites: ${release}( |$)`, 'm').test(one));
  if (line !== undefined) {
    fs.writeFileSync(path.join(directory, 'backports.list'), `${line.replace(` ${release} `, ` ${suite} `)}\n`);
  } else if (stanza !== undefined) {
    const text = stanza.replace(/^Suites: .*$/m, `Suites: ${suite}`);
    fs.writeFileSync(path.join(directory, 'backports.sources'), `${text.trim()}\n`);
  } else {
    throw new Error(`Cannot get a kernel for the machine: no apt source names ${release}; is this Debian?`);
  }
}

/** Fetches and unpacks the kernel's packages into `directory`/kernel. Returns its version.
 *  @param {string} directory
 *  @param {string | undefined} suite */
function unpackKernel(directory, suite) {
  const apt = path.join(directory, 'apt');
  for (const name of ['lists/partial', 'cache/archives/partial', 'sources'])
    fs.mkdirSync(path.join(apt, name), { recursive: true });
  writeSources(path.join(apt, 'sources'), suite);
  const settings = {
    'Dir::State::lists': path.join(apt, 'lists'),
    'Dir::Cache': path.join(apt, 'cache'),
    'Dir::Etc::sourcelist': '/dev/null',
    'Dir::Etc::sourceparts': path.join(apt, 'sources'),
    'APT::Sandbox::User': 'root',
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  run('apt-get', [...options, 'update']);
  const dependsOf = (/** @type {string} */ name) => String(run('apt-cache', [...options, 'depends', name]));
  const name = /Depends: (linux-image-\d\S*)/.exec(dependsOf(META_PACKAGE))?.[1];
  if (name === undefined) throw new Error(`Cannot get a kernel for the machine: apt knows no ${META_PACKAGE}`);
  // From Linux 7 on in several packages, all of the kernel's version.
  const version = name.replace('linux-image-', '');
  const parts = [...dependsOf(name).matchAll(/Depends: (linux-\S+)/g)].map(([, part]) => String(part));
  const packages = [name, ...parts.filter((part) => part.endsWith(version))];
  run('apt-get', [...options, 'download', ...packages], { cwd: directory });
  const kernel = path.join(directory, 'kernel');
  for (const archive of fs.readdirSync(directory).filter((file) => file.endsWith('.deb'))) {
    run('dpkg-deb', ['-x', path.join(directory, archive), kernel]);
    fs.rmSync(path.join(directory, archive));
  }
  if (!fs.existsSync(path.join(kernel, 'lib'))) fs.renameSync(path.join(kernel, 'usr/lib'), path.join(kernel, 'lib'));
  fs.rmSync(apt, { recursive: true });
  const images = [`boot/vmlinuz-${version}`, `lib/modules/${version}/vmlinuz`].map((file) => path.join(kernel, file));
  const image = images.find((file) => fs.existsSync(file));
  if (image === undefined) throw new Error(`Cannot get a kernel for the machine: none in ${packages.join(' ')}`);
  fs.cpSync(image, path.join(directory, 'vmlinuz'));
  run('depmod', ['-b', kernel, version]);
  return version;
}

/** Packs the initramfs: busybox, the modules up to 9p and overlay, and INIT.
 *  @param {string} directory
 *  @param {string} version */
function packInitramfs(directory, version) {
  const root = path.join(directory, 'initramfs');
  for (const name of ['bin', 'proc', 'sys', 'dev', 'modules', 'lower', 'upper', 'new']) {
    fs.mkdirSync(path.join(root, name), { recursive: true });
  }
  fs.cpSync(findProgram('busybox') ?? 'busybox', path.join(root, 'bin/busybox'));
  for (const applet of APPLETS) fs.symlinkSync('busybox', path.join(root, 'bin', applet));
  const lines = EARLY_MODULES.map((name) =>
    String(run('modprobe', ['-d', path.join(directory, 'kernel'), '-S', version, '-D', name])),
  );
  const files = new Set([...lines.join('\n').matchAll(/^insmod (\S+)/gm)].map(([, file]) => String(file)));
  const names = [...files].map((file) => {
    const name = path.basename(file).replace(/\.xz$/, '');
    const content = file.endsWith('.xz') ? run('xz', ['-dc', file]) : fs.readFileSync(file);
    fs.writeFileSync(path.join(root, 'modules', name), content);
    return name;
  });
  fs.writeFileSync(path.join(root, 'modules/list'), `${names.join('\n')}\n`);
  fs.writeFileSync(path.join(root, 'init'), INIT, { mode: 0o755 });
  const list = ['.', ...fs.readdirSync(root, { recursive: true, encoding: 'utf8' })].join('\n');
  fs.writeFileSync(
    path.join(directory, 'initrd'),
    run('cpio', ['-o', '-H', 'newc', '--quiet'], { cwd: root, input: list }),
  );
  fs.rmSync(root, { recursive: true });
}

/** Directory of `vmlinuz`, `initrd` and `kernel/lib/modules`, made when it is not there yet. */
export function getBackportsKernel() {
  const cache = path.join(process.env['XDG_CACHE_HOME'] ?? path.join(os.homedir(), '.cache'), 'blksnap');
  const suite = process.env['BLKSNAP_VM_SUITE'];
  const place = path.join(cache, suite === undefined ? 'vm-kernel' : `vm-kernel-${suite}`);
  if (fs.existsSync(path.join(place, 'initrd'))) return place;
  say(`getting ${META_PACKAGE} of ${suite ?? 'the backports'}, once`);
  fs.mkdirSync(cache, { recursive: true });
  const made = fs.mkdtempSync(path.join(cache, 'new-'));
  try {
    packInitramfs(made, unpackKernel(made, suite));
    // Somebody else may have made one meanwhile: theirs is as good.
    if (!fs.existsSync(place)) fs.renameSync(made, place);
  } finally {
    fs.rmSync(made, { recursive: true, force: true });
  }
  return place;
}
