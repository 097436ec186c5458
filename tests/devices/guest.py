"""A guest with drivers and tools, the checks of one test, and servers on the host that guests talk to."""
import hashlib
import os
import random
import re
import socket
import threading
import time

from harness import Failure, Machine, Session, Skip, check, check_equal, inside  # noqa: F401: the tests' vocabulary

PROMPT = r'root@fonda:~# '

# Feature bits: virtio 1.2 chapter 6, 5.1.3, 5.2.3.
COMMON = {'indirect_desc': 28, 'event_idx': 29, 'version_1': 32}
NET = {'csum': 0, 'guest_csum': 1, 'ctrl_guest_offloads': 2, 'mtu': 3, 'mac': 5, 'guest_tso4': 7, 'guest_tso6': 8,
       'guest_ecn': 9, 'host_tso4': 11, 'host_tso6': 12, 'host_ecn': 13, 'mrg_rxbuf': 15, 'status': 16, 'ctrl_vq': 17,
       'ctrl_rx': 18, 'mq': 22, 'ctrl_mac_addr': 23}
BLK = {'seg_max': 2, 'ro': 5, 'blk_size': 6, 'flush': 9, 'mq': 12, 'discard': 13, 'write_zeroes': 14}
BALLOON = {'stats_vq': 1, 'deflate_on_oom': 2, 'free_page_hint': 3, 'reporting': 5}
ID = {'net': 1, 'blk': 2, 'console': 3, 'rng': 4, 'balloon': 5, '9p': 9, 'vsock': 19}


def names(bits, table):
    """What a string of 0 and 1, bit 0 first, says."""
    known = {bit: name for name, bit in {**table, **COMMON}.items()}
    return {known.get(bit, 'bit %d' % bit) for bit, char in enumerate(bits) if char == '1'}


class Guest(Session):
    """A booted guest with its modules loaded."""

    def __init__(self, argv):
        super().__init__(argv)
        self.expect(PROMPT)
        self.ok('. /lib/guest-setup')

    def ok(self, line, patience=None):
        """A command that has to succeed; returns what it printed."""
        text, status = self.command(line, patience)
        check(status == 0, '%r ended with status %d:\n%s' % (line, status, text))
        return text

    def features(self, kind, table):
        """The negotiated features of every device of a kind, in the bus's order."""
        found = []
        for _ in range(3):  # the kernel's messages come in between at times
            lines = [line.split() for line in self.ok('features').splitlines()]
            if all(len(line) == 4 and line[0].startswith('virtio') for line in lines):
                break
        for name, ident, status, bits in lines:
            if int(ident, 16) == ID[kind]:
                check_equal(int(status, 16), 0xf, 'status of %s' % name)
                found.append((int(name[len('virtio'):]), names(bits, table)))
        return [features for _, features in sorted(found, key=lambda pair: pair[0])]

    def off(self, patience=None):
        self.send('poweroff -f\n')
        check_equal(self.wait(patience), 0, 'status after power-off')

    def resident(self):
        """Bytes of guest RAM that the host holds."""
        total, counts = 0, False
        with open('/proc/%d/smaps' % inside(self.pid), encoding='ascii', errors='replace') as f:
            for line in f:
                if re.match(r'[0-9a-f]+-[0-9a-f]+ ', line):
                    counts = 'memfd:' in line and 'ram' in line
                elif counts and line.startswith('Rss:'):
                    total += int(line.split()[1]) * 1024
        return total


STA_NANO = 0x2000  # adjtimex(2)


def clock_offset(guest):
    """(guest's time of day - host's, half the width of what is not known), in ms: what many exchanges leave possible."""
    low, high = -1e18, 1e18
    for _ in range(30):
        before = time.time()
        text = guest.ok("adjtimex | grep -E 'status:|time.tv'")
        after = time.time()
        status, second, fraction = (int(re.search(r':\s+(\d+)', line).group(1)) for line in text.splitlines())
        now = second + fraction / (1e9 if status & STA_NANO else 1e6)
        low, high = max(low, now - after), min(high, now - before)
    return (low + high) * 500, abs(high - low) * 500


def set_clock(guest):
    """The guest's chronyd sets its time of day once, from the host's clock as ptp_kvm shows it."""
    guest.ok('chronyd -q -u root "refclock PHC /dev/ptp0 poll -2 dpoll -2" "makestep 0 1"')


class Bench(Machine):
    """What a test gets."""

    def __init__(self, build, work, label, report):
        super().__init__(build, work)
        self.label, self.report = label, report

    def see(self, condition, what, detail=''):
        """One check that doesn't end the test."""
        self.report(bool(condition), '%s: %s' % (self.label, what), str(detail))

    def same(self, got, wanted, what):
        self.see(got == wanted, what, 'got    %r\nwanted %r' % (got, wanted))

    def skip(self, what, why):
        self.report(True, '%s: %s' % (self.label, what), skip=why)

    def guest_argv(self, *options, append='', under=()):
        initramfs = os.path.join(self.guest, 'devices.initramfs')
        if not os.path.exists(initramfs):
            raise Skip('no %s: run tools/fetch-guest %s devices' % (initramfs, self.guest))
        return [*under, *self.argv(os.path.join(self.guest, 'vmlinuz'), '--initrd', initramfs, '--append',
                                   'console=ttyS0 panic=-1 quiet ' + append, *options)]

    def boot(self, *options, append='', under=()):
        argv = self.guest_argv('--no-reboot', *options, append=append, under=under)
        import shutil
        return Guest([shutil.which(argv[0]) or argv[0], *argv[1:]])


def data(size, seed=1):
    return random.Random(seed).randbytes(size)


class Server:
    """Answers each TCP connection with handle(socket); with a socket of another family the same."""

    def __init__(self, handle, address=('127.0.0.1', 0), family=socket.AF_INET):
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.bind(address)
        self.socket.listen(16)
        self.address = self.socket.getsockname()
        self.handle = handle
        threading.Thread(target=self.serve, daemon=True).start()

    @property
    def port(self):
        return self.address[1]

    def serve(self):
        while True:
            try:
                conn, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.one, args=(conn,), daemon=True).start()

    def one(self, conn):
        with conn:
            try:
                self.handle(conn)
            except OSError:
                pass  # the guest went away

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_all(conn):
    parts = []
    while True:
        part = conn.recv(65536)
        if not part:
            return b''.join(parts)
        parts.append(part)


def answer_digest(conn):
    """Reads everything and says its SHA-256."""
    conn.sendall(hashlib.sha256(read_all(conn)).hexdigest().encode() + b'\n')


def sender(content):
    return lambda conn: conn.sendall(content)


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def sha(content):
    return hashlib.sha256(content).hexdigest()
