"""A client of control sockets (docs/control.md), and machines that are started with one."""
import json
import os
import re
import socket
import subprocess
import time

from harness import PATIENCE_S, Failure, Session, check


class Refused(Exception):
    def __init__(self, error):
        super().__init__(error['message'])
        self.code = error['code']


class Control:
    def __init__(self, path):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.socket.settimeout(PATIENCE_S)
        self.file = self.socket.makefile('rwb')
        self.serial = 0

    def send(self, method, **params):
        self.serial += 1
        self.file.write(json.dumps({'id': self.serial, 'method': method, 'params': params}).encode() + b'\n')
        self.file.flush()

    def receive(self):
        line = self.file.readline()
        if not line:
            raise Failure('the control connection ended')
        reply = json.loads(line)
        if 'error' in reply:
            raise Refused(reply['error'])
        return reply['result']

    def call(self, method, **params):
        self.send(method, **params)
        return self.receive()

    def job(self, method, **params):
        end = self.call('job_wait', job=self.call(method, **params)['job'])
        if 'error' in end:
            raise Refused(end['error'])
        return end['result']

    def close(self):
        try:
            self.file.close()
        except OSError:  # a request that nobody takes any more
            pass
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Vm(Session):
    """A machine behind a terminal, with a control socket."""

    def __init__(self, m, *options):
        self.socket_path = m.path('control-%d.sock' % time.monotonic_ns())
        super().__init__([m.fonda, 'run', *options, '--control', self.socket_path])

    def control(self):
        return Control(self.socket_path)

    def save(self, path):
        with self.control() as control:
            return control.job('save', file=path)


def restore(m, path, *options, patience=60):
    """(status, output, messages) of a machine restored behind pipes, which ends by itself or by --timeout."""
    return m.run([m.fonda, 'run', '--restore', path, *options], patience=patience)


def check_refused(m, path, *words):
    status, text, errors = restore(m, path, '--timeout', '20')
    check(status in (2, 116, 120), 'status %d: %s' % (status, errors))
    check(len(errors.strip().split('\n')) == 1, 'not one line: ' + errors)
    for word in words:
        check(word in errors, 'no %r in: %s' % (word, errors))


def engine_usable(m, name):
    listing = subprocess.run([m.fonda, 'engines'], capture_output=True, text=True, check=True).stdout
    return bool(re.search(r'^%s .*\n +can be used here' % name, listing, re.M))
