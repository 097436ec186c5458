"""What the system tests share: `fonda run` behind a pseudo-terminal or pipes, tiny bare-metal guests, TAP."""
import os
import pty
import re
import select
import signal
import struct
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ENGINE = os.environ.get('FONDA_TEST_ENGINE', 'bt')
# Generous: nothing here depends on speed, and the host may be busy.
PATIENCE_S = float(os.environ.get('FONDA_TEST_PATIENCE', '300'))

# vm/status.h
OFF, USAGE, PANIC, SHUTDOWN, KILLED, ENGINE_ERROR, HALTED, HOST, WATCHDOG, TIMEOUT = 0, 2, 110, 112, 114, 116, 118, 120, 122, 124


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def inside(pid):
    """The process that is the machine: the one that the jail's supervisor, pid, watches; without a jail pid itself."""
    with open('/proc/%d/task/%d/children' % (pid, pid), encoding='ascii') as f:
        children = [int(child) for child in f.read().split()]
    for child in children:
        try:
            if len(os.listdir('/proc/%d/task' % child)) > 1:  # the other child, which keeps the terminal, has no threads
                return child
        except FileNotFoundError:
            continue
    return pid


def check(condition, text):
    if not condition:
        raise Failure(text)


def check_equal(got, wanted, what):
    check(got == wanted, '%s: got %r, wanted %r' % (what, got, wanted))


class Session:
    """A program behind a pseudo-terminal; everything that it printed is in self.text."""

    def __init__(self, argv, rows=24, columns=80):
        self.text = ''
        self.seen = 0  # what earlier expectations have consumed
        self.rest = ''  # the beginning of a control sequence
        self.status = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], argv)
        import fcntl
        import termios
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            data = b''
        # Without the terminal's control sequences, such as a line editor sends; one may come in two pieces.
        raw = self.rest + data.decode('latin-1').replace('\r', '')
        cut = re.search(r'\x1b(\[[0-9;?]*)?$', raw)
        self.rest = cut.group(0) if cut else ''
        self.text += re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', raw[:len(raw) - len(self.rest)])
        return bool(data)

    def expect(self, pattern, patience=None):
        """Waits for a regular expression behind what was consumed; returns the match."""
        deadline = time.monotonic() + (patience or PATIENCE_S)
        while True:
            match = re.compile(pattern, re.M).search(self.text, self.seen)
            if match:
                self.seen = match.end()
                return match
            if time.monotonic() > deadline:
                raise Failure('no %r within the time; last output:\n%s' % (pattern, self.text[-3000:]))
            if not self.read(1.0):
                match = re.compile(pattern, re.M).search(self.text, self.seen)
                if match:
                    continue
                raise Failure('no %r before the end; last output:\n%s' % (pattern, self.text[-3000:]))

    def send(self, text):
        os.write(self.fd, text.encode('latin-1'))

    def command(self, line, patience=None):
        """Types a line at the guest's shell and returns what it printed and its status."""
        self.send(line + '; echo "=status" $?\n')
        match = self.expect(r'^((?:.*\n)*?)=status (\d+)$', patience)
        # First comes the echo of what was typed, which the line editor may have wrapped; it ends with "$?".
        return match.group(1).rpartition('$?\n')[2], int(match.group(2))

    def wait(self, patience=None):
        """Reads to the end and returns the exit status."""
        deadline = time.monotonic() + (patience or PATIENCE_S)
        while self.read(0.5):
            if time.monotonic() > deadline:
                raise Failure('the program does not end; last output:\n' + self.text[-3000:])
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self.read(0.2)
                break
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def close(self):
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Machine:
    """The programs and files of one build."""

    def __init__(self, build, work):
        self.fonda = os.path.join(build, 'fonda')
        self.guest = os.path.join(build, 'guest')
        if not os.path.exists(os.path.join(self.guest, 'vmlinuz')):
            self.guest = os.path.join(os.path.dirname(build), 'build', 'guest')
        self.work = work

    def argv(self, kernel, *options, engine=ENGINE):
        return [self.fonda, 'run', '--engine', engine, '--kernel', kernel, *options]

    def session(self, kernel, *options):
        return Session(self.argv(kernel, *options))

    def run(self, argv, stdin=subprocess.DEVNULL, patience=None):
        """(status, stdout, stderr) of a command through pipes."""
        try:
            done = subprocess.run(argv, stdin=stdin, capture_output=True, timeout=patience or PATIENCE_S, cwd=self.work)
        except subprocess.TimeoutExpired as e:
            raise Failure('%s does not end' % ' '.join(argv)) from e
        return done.returncode, done.stdout.decode('latin-1'), done.stderr.decode('latin-1')

    def path(self, name, content=None):
        path = os.path.join(self.work, name)
        if content is not None:
            with open(path, 'wb') as f:
                f.write(content)
        return path

    def bare(self, name, code):
        """A multiboot kernel of a few instructions, at 1 MiB, in 32-bit protected mode."""
        flags, base = 0x10000, 0x100000
        size = 32 + len(code)
        header = struct.pack('<8I', 0x1badb002, flags, -(0x1badb002 + flags) & 0xffffffff, base, base, base + size, 0,
                             base + 32)
        return self.path(name, header + code)

    def linux(self, *options, append=''):
        if ENGINE == 'kvm' and not hardware_virtualization():
            raise Skip('KVM without hardware support is too slow for Linux')
        return self.session(os.path.join(self.guest, 'vmlinuz'), '--initrd', os.path.join(self.guest, 'initramfs'),
                            '--append', 'console=ttyS0 panic=-1 ' + append, *options)


def hardware_virtualization():
    with open('/proc/cpuinfo', encoding='ascii', errors='replace') as f:
        return bool(re.search(r'^flags.*\b(vmx|svm)\b', f.read(), re.M))


# Instructions for bare guests.
CLI = b'\xfa'
HLT = b'\xf4'
HANG = CLI + b'\xeb\xfe'  # cli; jmp .
UD2 = b'\x0f\x0b'


def out(port, value):
    """mov dx, port; mov al, value; out dx, al"""
    return b'\x66\xba' + struct.pack('<H', port) + bytes([0xb0, value, 0xee])


def say(text):
    return b''.join(out(0x3f8, byte) for byte in text.encode())
