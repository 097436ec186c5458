"""What the image tests share: a box with a store and a small root file system, registries, and checks."""
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time

TESTS = []


class Skip(Exception):
    pass


def test(fn):
    TESTS.append(fn)
    return fn


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip('%s is not installed' % program)


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def equal(got, wanted, text=''):
    if got != wanted:
        raise AssertionError('%s: got %r, wanted %r' % (text, got, wanted))


class Result:
    def __init__(self, done):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr


class Box:
    def __init__(self, build):
        self.build = build
        self.program = os.path.join(build, 'cli', 'fonda-image')
        self.dir = tempfile.mkdtemp(prefix='fonda-image-test-')
        os.chmod(self.dir, 0o755)
        self.store = self.path('store')
        self.processes = []
        self.env = {'REGISTRY_AUTH_FILE': '', 'HOME': self.dir}

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        with open('/proc/self/mountinfo') as f:
            mounts = [line.split()[4] for line in f if line.split()[4].startswith(self.dir)]
        for mount in reversed(mounts):
            subprocess.run(['umount', '-l', mount], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def sh(self, *cmd, ok=True, env=None, timeout=60, **more):
        done = subprocess.run([str(c) for c in cmd], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace',
                              timeout=timeout, env={**os.environ, **self.env, **(env or {})}, **more)
        if ok and done.returncode != 0:
            raise AssertionError('%s: status %d: %s' % (' '.join(map(str, cmd)), done.returncode, done.stderr[-1500:]))
        return Result(done)

    def image(self, *args, store=None, **more):
        return self.sh(self.program, *args, '--image-store', store or self.store, **more)

    def refused(self, part, *args, **more):
        r = self.image(*args, ok=False, **more)
        check(r.status in (1, 2), 'status %d: %s' % (r.status, r.err))
        check(part in r.err, '%r is not in %r' % (part, r.err))
        equal(len([line for line in r.err.splitlines() if 'error:' in line]), 1, 'lines of error')
        return r

    def rootfs(self, name='root'):
        """busybox, a setuid program, a hard link, a sparse file, links, odd names."""
        root = self.path(name)
        os.makedirs(root + '/bin')
        os.makedirs(root + '/etc')
        os.makedirs(root + '/home/app')
        os.mkdir(root + '/tmp', 0o755)
        os.chmod(root + '/tmp', 0o1777)
        shutil.copy('/bin/busybox', root + '/bin/busybox')
        for applet in 'sh ls cat echo touch rm mkdir id chmod env test sleep ln mv rmdir stat'.split():
            os.symlink('busybox', root + '/bin/' + applet)
        with open(root + '/etc/passwd', 'w') as f:
            f.write('root:x:0:0::/:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n')
        with open(root + '/etc/group', 'w') as f:
            f.write('root:x:0:\napp:x:1001:\nstaff:x:50:\n')
        os.link(root + '/etc/passwd', root + '/etc/passwd.link')
        with open(root + '/etc/sparse', 'wb') as f:
            f.seek(8 << 20)
            f.write(b'end')
        with open(root + '/etc/caf\u00e9', 'w') as f:
            f.write('x')
        shutil.copy('/bin/busybox', root + '/bin/su')
        os.chmod(root + '/bin/su', 0o4755)
        os.chown(root + '/home/app', 1000, 1001)
        try:
            os.setxattr(root + '/etc/group', 'user.note', b'kept')
            # VFS_CAP_REVISION_2 | effective, CAP_NET_RAW
            os.setxattr(root + '/bin/su', 'security.capability', bytes.fromhex('0100000200200000000000000000000000000000'))
        except OSError:
            pass
        return root

    def tar(self, root, out='base.tar'):
        self.sh('tar', '--numeric-owner', '--xattrs', '--xattrs-include=*', '-S', '-C', root, '-cf', self.path(out), '.')
        return self.path(out)

    def base(self, name='base:1', store=None):
        if not os.path.exists(self.path('base.tar')):
            self.tar(self.rootfs())
        self.image('import', self.path('base.tar'), name, store=store)

    def mount(self, layer, image=None, store=None, env=None):
        if image:
            self.image('layer', 'create', layer, image, store=store, env=env)
        return self.image('layer', 'mount', layer, store=store, env=env).out.strip()

    def registry(self, auth=False, tls=False):
        """A docker-registry on a free port: HOST:PORT."""
        need('docker-registry')
        port = free_port()
        data = self.path('registry-%d' % port)
        lines = ['version: 0.1', 'log: {level: error}', 'storage: {filesystem: {rootdirectory: "%s"}}' % data, 'http:',
                 '  addr: "127.0.0.1:%d"' % port]
        if tls:
            lines += ['  tls: {certificate: "%s", key: "%s"}' % tls]
        if auth:
            lines += ['auth: {htpasswd: {realm: test, path: "%s"}}' % auth]
        config = self.path('registry-%d.yml' % port)
        with open(config, 'w') as f:
            f.write('\n'.join(lines) + '\n')
        self.processes.append(subprocess.Popen(['docker-registry', 'serve', config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_port(port)
        return 'localhost:%d' % port

    def digests(self, *name, store=None):
        doc = json.loads(self.image('inspect', *name, store=store).out)
        return doc['config']['rootfs']['diff_ids']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_port(port):
    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(('127.0.0.1', port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError('nobody listens on port %d' % port)


def tree(root):
    """What a tree is, for comparing: path -> kind, mode, owner, size or target, xattrs."""
    result = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            what = [oct(st.st_mode), st.st_uid, st.st_gid]
            if os.path.islink(path):
                what.append(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, 'rb') as f:
                    what.append(hash(f.read()))
                what.append(sorted((k, os.getxattr(path, k)) for k in os.listxattr(path) if not k.startswith(('user.overlay', 'trusted.'))))
            result[os.path.relpath(path, root)] = what
    return result


def same_tree(a, b, text):
    x, y = tree(a), tree(b)
    wrong = sorted(k for k in set(x) | set(y) if x.get(k) != y.get(k))
    check(not wrong, '%s: %s differ, first %s: %r and %r' % (text, len(wrong), wrong[:1], x.get(wrong[0] if wrong else ''),
                                                           y.get(wrong[0] if wrong else '')))


def make_tar(path, *entries, mode='w'):
    """Entries: (name, kind or bytes, target)."""
    with tarfile.open(path, mode) as tar:
        for name, what, *rest in entries:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
                continue
            info.type = {'dir': tarfile.DIRTYPE, 'link': tarfile.SYMTYPE, 'hard': tarfile.LNKTYPE, 'chr': tarfile.CHRTYPE}[what]
            info.mode = 0o755
            if rest:
                info.linkname = rest[0]
            tar.addfile(info)
    return path
