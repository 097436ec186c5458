"""What the escape tests share: what is outside of the jail, and those who try to get there."""
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

from harness import Failure, Skip, check

VIOLATED = 122
NOBODY = 65534
USER, PID, MOUNT, IPC, NET, ROOT_DIR, CAPS, LANDLOCK, LIMITS, SECCOMP = range(10)
INTERNET, TAP, UNIX, TREE, OWNERS, KVM, FILES = (1 << i for i in range(7))
ROLES = ('main', 'vcpu', 'output', 'block', 'save', 'fill')
# What a machine that has everything may do: --net user connects anywhere.
ALLOWED = {'nothing', 'share_read', 'share_write', 'bind_tcp', 'memfd', 'connect_tcp'}
TOGETHER = 4  # captives at a time: most of their time is the kernel's, taking namespaces down


class World:
    """What is outside: a file, a listener, a process, sockets."""

    def __init__(self, build, work):
        self.build, self.work = build, work
        self.missing = {}  # by user: what every run of captive says, which is the same each time
        self.captive = os.path.join(work, 'captive')
        shutil.copy(os.path.join(build, 'tests', 'jail', 'captive'), self.captive)
        os.chmod(work, 0o755)
        self.secret = self.make('secret', 'outside')
        self.share = os.path.join(work, 'share')
        os.mkdir(self.share)
        self.make('share/inside', 'inside')
        os.symlink(self.secret, os.path.join(self.share, 'link'))
        self.sockets = os.path.join(work, 'sockets')
        os.mkdir(self.sockets)
        for path in (self.share, self.sockets, self.secret, os.path.join(self.share, 'inside')):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)
        self.tcp = socket.create_server(('127.0.0.1', 0))
        self.port = str(self.tcp.getsockname()[1])
        self.abstract = 'fonda-test-%d' % os.getpid()
        self.listeners = [self.listen('\0' + self.abstract), self.listen(os.path.join(self.sockets, 'in')),
                          self.listen(os.path.join(work, 'out'))]
        for name in (os.path.join(self.sockets, 'in'), os.path.join(work, 'out')):
            os.chmod(name, 0o777)
        self.victim = self.start_victim()

    def start_victim(self):
        return subprocess.Popen(['sleep', '1000'], **(as_user() if os.geteuid() == 0 else {}))

    def make(self, name, text):
        path = os.path.join(self.work, name)
        with open(path, 'w', encoding='ascii') as f:
            f.write(text)
        return path

    @staticmethod
    def listen(address):
        s = socket.socket(socket.AF_UNIX)
        s.bind(address)
        s.listen(8)
        return s

    def close(self):
        for s in [self.tcp, *self.listeners]:
            s.close()
        self.victim.kill()
        self.victim.wait()

    def argument(self, deed):
        pid = str(self.victim.pid)
        return {'open_read': self.secret, 'file_remove': self.secret, 'file_rename': self.secret,
                'file_chmod': self.secret, 'open_create': os.path.join(self.work, 'made'), 'exec': '/bin/true',
                'connect_tcp': self.port, 'connect_abstract': self.abstract,
                'connect_unix': os.path.join(self.work, 'out')}.get(deed, pid)

    def run(self, role, deed, needs=0, options=(), argument=None, user=False, prefix=()):
        """(status, stdout, stderr)"""
        argv = [*prefix, self.captive, '--needs', str(needs), *options, role, deed,
                argument if argument is not None else self.argument(deed)]
        with open(self.captive, 'rb') as stdin:  # a program to execute, by descriptor
            done = subprocess.run(argv, stdin=stdin, capture_output=True, timeout=60, check=False, text=True,
                                  **(as_user() if user and os.geteuid() == 0 else {}))
        missing = done.stderr.strip()
        if not prefix and '--without' not in options and missing != self.missing.setdefault(user, missing):
            raise Failure('%s %s: %r, and before: %r' % (role, deed, missing, self.missing[user]))
        return done.returncode, done.stdout.strip(), missing

    def refused(self, role, deed, *args, killed=None, **kwargs):
        status, stdout, stderr = self.run(role, deed, *args, **kwargs)
        what = '%s %s: status %d, %r, %r' % (role, deed, status, stdout, stderr)
        check(status == VIOLATED or (status == 0 and stdout.startswith('refused ')), what)
        check(killed is None or killed == (status == VIOLATED), what)
        return stdout


def as_user():
    return {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}


def deeds(w):
    return subprocess.run([w.captive, '--deeds'], capture_output=True, text=True, check=True).stdout.split()


def no_namespaces():
    """A prefix after which no user namespace can be made and there are no capabilities."""
    return ['unshare', '-Ur', 'sh', '-c', 'echo 0 > /proc/sys/user/max_user_namespaces && '
            'exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"', 'sh']


def need_no_namespaces():
    try:
        done = subprocess.run([*no_namespaces(), 'true'], capture_output=True, check=False)
    except FileNotFoundError as e:
        raise Skip('no unshare(1)') from e
    if done.returncode != 0:
        raise Skip('no way to forbid namespaces here: ' + done.stderr.decode().strip())


def all_of(jobs):
    """Runs functions without arguments, some at a time; the first failure is the test's."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
