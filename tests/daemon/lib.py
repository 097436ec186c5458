"""A daemon of the tests' own: its directory, requests, web sockets, commands; and checks as TAP."""
import base64
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
checks = {'done': 0, 'failed': 0}


def check(name, ok, more=''):
    checks['done'] += 1
    if not ok:
        checks['failed'] += 1
    print('%sok %d - %s%s' % ('' if ok else 'not ', checks['done'], name, '' if ok or more == '' else ' # %s' % (more,)), flush=True)
    return ok


def skip(name, why):
    checks['done'] += 1
    print('ok %d - %s # skip %s' % (checks['done'], name, why), flush=True)


def finish():
    print('1..%d' % checks['done'])
    sys.exit(1 if checks['failed'] else 0)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=60):
        super().__init__('localhost', timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Daemon:
    """fondad in a directory of its own, with tests/daemon/fake_vmm.c for machines."""

    def __init__(self, build, vmm=None):
        self.build = build
        self.dir = tempfile.mkdtemp(prefix='fondad-test-', dir='/tmp')
        self.state = os.path.join(self.dir, 's')
        self.socket = os.path.join(self.state, 'fondad.sock')
        self.env = {**os.environ, 'FONDA_STATE': self.state, 'HOME': self.dir, 'XDG_CONFIG_HOME': self.dir + '/config',
                    'FONDA_VMM': vmm or os.path.join(build, 'tests/daemon/fake-vmm')}
        for name in ('FONDA_HOST', 'FONDA_TOKEN', 'FONDA_SOCKET'):
            self.env.pop(name, None)
        self.process = None
        for kernel in ('vmlinuz', 'deaf', 'broken', 'short'):
            with open(self.kernel(kernel), 'w', encoding='ascii'):
                pass

    def kernel(self, name='vmlinuz'):
        return os.path.join(self.dir, name)

    def start(self, *options):
        self.log = open(os.path.join(self.dir, 'log'), 'ab')
        self.process = subprocess.Popen([os.path.join(self.build, 'daemon/fondad'), *options], env=self.env, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, start_new_session=True)
        for _ in range(2000):
            try:
                connection = UnixConnection(self.socket)
                connection.connect()
                connection.close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError('fondad ended: ' + open(os.path.join(self.dir, 'log')).read())
                time.sleep(0.01)
        raise RuntimeError('fondad does not listen')

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait()
        self.log.close()

    def call(self, method, path, body=None, headers=None, raw=None):
        """(status, parsed body or text, headers)"""
        connection = UnixConnection(self.socket)
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        sent = {'Content-Type': 'application/json'} if data is not None else {}
        sent.update(headers or {})
        connection.request(method, path, body=data, headers=sent)
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        kind = reply.headers.get('content-type', '')
        return reply.status, json.loads(text) if 'json' in kind and text else text, reply.headers

    def cli(self, *args, timeout=60, **more):
        return subprocess.run([os.path.join(self.build, 'cli/fonda'), *args], env={**self.env, **more}, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout)

    def close(self):
        """Ends daemon and instances, by their own lock files."""
        if self.process and self.process.poll() is None:
            self.kill(signal.SIGTERM)
        pids = []
        lock = os.path.join(self.state, 'lock')
        if os.path.exists(lock):
            pids.append(lock)
        instances = os.path.join(self.state, 'instances')
        for name in os.listdir(instances) if os.path.isdir(instances) else []:
            pids.append(os.path.join(instances, name, 'lock'))
        for path in pids:
            try:
                pid = int(open(path).read() or 0)
                exe = os.readlink('/proc/%d/exe' % pid)
                if exe.startswith(self.build):
                    os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):
                pass
        shutil.rmtree(self.dir, ignore_errors=True)


class WebSocket:
    """RFC 6455, as much as the tests need."""

    def __init__(self, path, url, headers=''):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.sock.sendall(('GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %s\r\n'
                           'Sec-WebSocket-Version: 13\r\n%s\r\n' % (url, base64.b64encode(os.urandom(16)).decode(), headers)).encode())
        self.buffer = b''
        while b'\r\n\r\n' not in self.buffer:
            more = self.sock.recv(4096)
            if not more:
                break
            self.buffer += more
        head, _, self.buffer = self.buffer.partition(b'\r\n\r\n')
        self.status = int(head.split()[1]) if head else 0

    def need(self, count):
        while len(self.buffer) < count:
            more = self.sock.recv(65536)
            if not more:
                raise EOFError
            self.buffer += more
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def receive(self):
        """(opcode, payload)"""
        first, length = self.need(2)
        length &= 0x7f
        if length == 126:
            length, = struct.unpack('>H', self.need(2))
        elif length == 127:
            length, = struct.unpack('>Q', self.need(8))
        return first & 15, self.need(length)

    def send(self, payload, opcode=2):
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.sock.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def close(self):
        self.sock.close()
