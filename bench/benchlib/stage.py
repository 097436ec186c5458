"""What runs in the guest: builds the programs, lays out the stage, writes the initramfs, fetches Debian's kernel.

Neighbours: guest/*.c is the source; machines.py boots what is made here.
Everything lands under build/: build/bench/stage is the tree that the host runs for the column "native" and that becomes
the initramfs; build/guest is where Debian's kernel is kept, shared with `make run`.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, 'build')
GUEST = os.path.join(BUILD, 'guest')
OUT = os.path.join(BUILD, 'bench')
STAGE = os.path.join(OUT, 'stage')
SOURCE = os.path.join(ROOT, 'bench', 'guest')

SOURCES = ['main.c', 'integer.c', 'control.c', 'cold.S', 'memory.c', 'float.c', 'library.c', 'syscall.c', 'process.c']
# One compiler, whatever builds Fonda, and one setting for every column. No vectorizing behind the rows' back: those that mean vectors say so.
CFLAGS = ['-O2', '-static', '-std=gnu17', '-Wall', '-Wextra', '-Wshadow', '-fno-tree-vectorize',
          '-fno-strict-aliasing', '-D_GNU_SOURCE']
LIBS = ['-ltcc', '-llua5.4', '-lzstd', '-lz', '-lm', '-ldl']
PACKAGES = {
    '/usr/lib/x86_64-linux-gnu/libtcc.a': 'libtcc-dev',
    '/usr/lib/x86_64-linux-gnu/liblua5.4.a': 'liblua5.4-dev',
    '/usr/lib/x86_64-linux-gnu/libzstd.a': 'libzstd-dev',
    '/usr/lib/x86_64-linux-gnu/libz.a': 'zlib1g-dev',
    '/bin/busybox': 'busybox-static',
    '/usr/bin/qemu-system-x86_64': 'qemu-system-x86',
}


def say(text):
    print(f'bench: {text}', file=sys.stderr, flush=True)


def install_missing(want_qemu):
    """Installs the Debian packages that are missing, through sudo where not root."""
    missing = sorted(pkg for path, pkg in PACKAGES.items()
                     if not os.path.exists(path) and (want_qemu or 'qemu' not in pkg))
    if not missing:
        return
    say('installing ' + ' '.join(missing))
    sudo = [] if os.geteuid() == 0 else ['sudo']
    env = dict(os.environ, DEBIAN_FRONTEND='noninteractive')
    subprocess.run(sudo + ['apt-get', 'install', '-y', '-q', '--no-install-recommends'] + missing, check=True, env=env,
                   stdout=subprocess.DEVNULL)


def fetch_kernel():
    """Path of Debian's vmlinuz, fetched with apt on first use and kept under build/guest."""
    found = sorted(glob.glob(os.path.join(GUEST, 'boot', 'vmlinuz-*-amd64')) + glob.glob(os.path.join(GUEST, 'vmlinuz*')))
    if found:
        return found[-1]
    os.makedirs(GUEST, exist_ok=True)
    text = subprocess.run(['apt-cache', 'depends', 'linux-image-amd64'], check=True, capture_output=True, text=True).stdout
    match = re.search(r'Depends: (linux-image-\S+)', text)
    if not match:
        sys.exit('bench: apt-cache knows no linux-image-amd64; run `apt-get update` first')
    package = match.group(1)
    say(f'fetching {package}')
    subprocess.run(['apt-get', 'download', '-q', package], check=True, cwd=GUEST, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    deb = sorted(glob.glob(os.path.join(GUEST, package + '_*.deb')))[-1]
    # dpkg-deb -x would unpack 400 MB of modules too; only boot/ is needed.
    with subprocess.Popen(['dpkg-deb', '--fsys-tarfile', deb], stdout=subprocess.PIPE) as tar:
        subprocess.run(['tar', '-x', '-C', GUEST, './boot'], stdin=tar.stdout, check=True)
    return sorted(glob.glob(os.path.join(GUEST, 'boot', 'vmlinuz-*-amd64')))[-1]


def is_older(target, sources):
    if not os.path.exists(target):
        return True
    made = os.path.getmtime(target)
    return any(os.path.getmtime(s) > made for s in sources)


def build_programs():
    """Compiles guest/ into the stage, and puts busybox and GCC's cc1 with its libraries beside it."""
    os.makedirs(os.path.join(STAGE, 'bin'), exist_ok=True)
    os.makedirs(os.path.join(STAGE, 'lib'), exist_ok=True)
    os.makedirs(os.path.join(OUT, 'init'), exist_ok=True)
    guest, init = os.path.join(STAGE, 'bin', 'guest'), os.path.join(OUT, 'init', 'init')
    files = [os.path.join(SOURCE, f) for f in SOURCES]
    if is_older(guest, files + [os.path.join(SOURCE, 'bench.h')]):
        say('compiling the programs')
        # The linker warns that zlib and libtcc could want shared libraries at run time; no row does.
        done = subprocess.run(['gcc'] + CFLAGS + ['-o', guest] + files + LIBS, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
    if is_older(init, [os.path.join(SOURCE, 'init.c')]):
        subprocess.run(['gcc'] + CFLAGS + ['-o', init, os.path.join(SOURCE, 'init.c')], check=True)
    shutil.copy2('/bin/busybox', os.path.join(STAGE, 'bin', 'busybox'))
    cc1 = subprocess.run(['gcc', '-print-prog-name=cc1'], check=True, capture_output=True, text=True).stdout.strip()
    if is_older(os.path.join(STAGE, 'bin', 'cc1'), [cc1]):
        shutil.copy2(cc1, os.path.join(STAGE, 'bin', 'cc1'))
        needs = subprocess.run(['ldd', cc1], check=True, capture_output=True, text=True).stdout
        for path in re.findall(r'(/\S+\.so\S*)', needs):
            shutil.copy(path, os.path.join(STAGE, 'lib', os.path.basename(path)))
    return guest, init


class Cpio:
    """Writer of the "newc" cpio format that the kernel unpacks (Documentation/driver-api/early-userspace)."""

    def __init__(self, path):
        self.file = open(path, 'wb')
        self.inode = 0

    def add(self, name, mode, data=b'', device=(0, 0)):
        self.inode += 1
        raw = name.encode() + b'\0'
        head = '070701' + ''.join(f'{v:08X}' for v in (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0))
        body = head.encode() + raw
        body += b'\0' * (-len(body) % 4) + data
        self.file.write(body + b'\0' * (-len(body) % 4))

    def close(self):
        self.add('TRAILER!!!', 0)
        self.file.close()


def write_initramfs(path, init, tree):
    """An uncompressed initramfs of /init, /dev/console, and, where given, bin/ and lib/ of a tree."""
    cpio = Cpio(path)
    cpio.add('dev', 0o040755)
    cpio.add('dev/console', 0o020600, device=(5, 1))
    with open(init, 'rb') as f:
        cpio.add('init', 0o100755, f.read())
    for folder in ('bin', 'lib') if tree else ():
        cpio.add(folder, 0o040755)
        for name in sorted(os.listdir(os.path.join(tree, folder))):
            with open(os.path.join(tree, folder, name), 'rb') as f:
                cpio.add(f'{folder}/{name}', 0o100755, f.read())
    cpio.close()
    return path


def prepare(want_qemu):
    """Everything above. Returns a dict: kernel, guest, boot_initrd (init alone), initrd, kernel_sha256."""
    install_missing(want_qemu)
    kernel = fetch_kernel()
    guest, init = build_programs()
    with open(kernel, 'rb') as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    return {
        'kernel': kernel,
        'kernel_sha256': digest,
        'guest': guest,
        'boot_initrd': write_initramfs(os.path.join(OUT, 'boot.cpio'), init, None),
        'initrd': write_initramfs(os.path.join(OUT, 'rows.cpio'), init, STAGE),
    }
