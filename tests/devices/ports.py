"""The virtio console: hvc0 on the terminal, a file or a socket, and named channels, with Debian's driver."""
import os
import socket
import time

from guest import PROMPT, data, sha
from harness import OFF

BLOB = data(300000, 11)
CONSOLE = {'size': 0, 'multiport': 1}
SHELL = '(setsid sh -c "exec sh </dev/hvc0 >/dev/hvc0 2>&1" &)'


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def expect(conn, wanted):
    """Reads until the bytes have come; returns everything."""
    got = b''
    while wanted not in got:
        part = conn.recv(65536)
        if not part:
            break
        got += part
    return got


def test_socket(t):
    """A console and two channels on sockets; the guest sees a channel open only while a program is connected."""
    hvc, agent, other = t.path('hvc'), t.path('agent'), t.path('other')
    options = ['--console', 'unix:' + hvc, '--port', 'org.example.agent.0=unix:' + agent, '--port', 'other=unix:' + other]
    with t.boot(*options) as guest:
        t.same(guest.features('console', CONSOLE), [set(CONSOLE) | {'indirect_desc', 'event_idx', 'version_1'}], 'features')
        names = guest.ok('cat /sys/class/virtio-ports/*/name').split()
        t.same(names, ['org.example.agent.0', 'other'], 'the ports have their names')
        guest.ok('a=/dev/$(cd /sys/class/virtio-ports; grep -l org.example.agent.0 */name | cut -d/ -f1); test -c $a; '
                 'b=/dev/$(cd /sys/class/virtio-ports; grep -lx other */name | cut -d/ -f1); test -c $b; test -c /dev/hvc0')
        t.same(guest.ok('timeout 3 cat $a | wc -c').strip(), '0', 'reading a closed channel ends')
        # What the guest writes to a closed channel waits: no byte goes astray.
        guest.ok('(echo early >$a; echo >/tmp/written) & sleep 1; test ! -e /tmp/written')
        with connect(agent) as conn:
            t.same(expect(conn, b'\n'), b'early\n', 'a write waits until a program is connected')
            guest.ok('(cat $a >/tmp/got; echo >/tmp/closed) & sleep 1; test ! -e /tmp/closed')
            conn.sendall(BLOB)
        text = guest.ok('n=0; while [ ! -e /tmp/closed ] && [ $n -lt 600 ]; do usleep 100000; n=$((n+1)); done; sha256sum </tmp/got')
        t.same(text.split()[-1 if text.split()[-1] != '-' else -2], sha(BLOB), 'host to guest, and an end when the program leaves')
        with connect(agent) as conn, connect(other) as second:
            guest.ok('(head -c 300000 /dev/zero >$a; exec 5<>$b; cat <&5 >&5) 2>/dev/null & sleep 0.2')
            time.sleep(0.5)  # the guest fills the socket first
            got = b''
            while len(got) < 300000:
                part = conn.recv(65536)
                if not part:
                    break
                got += part
            t.same(sha(got), sha(bytes(300000)), 'guest to host, a slow reader')
            second.sendall(b'over and back\n')
            t.same(expect(second, b'\n'), b'over and back\n', 'channels are apart')
        guest.ok(SHELL)
        with connect(hvc) as conn:
            conn.sendall(b'echo $((6 * 7)) > /dev/hvc0\n')
            t.see(b'42' in expect(conn, b'42'), 'a shell on hvc0')
        guest.ok('rmmod virtio_console && modprobe virtio_console && sleep 1')
        with connect(agent) as conn:
            guest.ok('echo again >$a')
            t.same(expect(conn, b'\n'), b'again\n', 'after the driver is loaded again')
        guest.off()
    t.see(not os.path.exists(agent), 'the sockets go with the machine')


def test_file(t):
    """The kernel's messages go to a file, also with the driver's features withheld."""
    for how, withheld in (('all features', []), ('one port only', ['--virtio-without', 'console:multiport,size']),
                          ('no event_idx, indirect_desc', ['--virtio-without', 'console:event_idx,indirect_desc'])):
        path = t.path('log')
        with t.boot('--console', path, *withheld) as guest:
            guest.ok('for i in $(seq 1 2000); do echo "line $i"; done >/dev/hvc0; usleep 300000')
            guest.off()
        with open(path, 'rb') as f:
            lines = f.read().decode().replace('\r', '').splitlines()
        t.same([line for line in lines if line.startswith('line ')], ['line %d' % i for i in range(1, 2001)], how + ': every line is in the file')


def test_terminal(t):
    """hvc0 is the terminal: Ctrl-A keys, window size, and the serial port elsewhere."""
    log = t.path('serial')
    argv = t.guest_argv('--no-reboot', '--console', 'stdio', '--serial', log, append='fonda.test=/lib/hvc')
    script = t.path('lib-hvc', b'#!/bin/sh\n. /lib/guest-setup\nwhile [ ! -c /dev/hvc0 ]; do usleep 100000; done\n'
                    b'setsid sh -c "exec sh -l </dev/hvc0 >/dev/hvc0 2>&1"\n')
    argv += ['--initrd', overlay(t, script)]
    from harness import Session
    with Session(argv, rows=31, columns=97) as s:
        s.expect(PROMPT)
        text, _ = s.command('stty size')
        t.same(text.split(), ['31', '97'], 'the window size')
        text, _ = s.command('tty')
        t.same(text.strip(), '/dev/hvc0', 'the shell is on hvc0')
        import fcntl
        import struct
        import termios
        fcntl.ioctl(s.fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 120, 0, 0))
        for _ in range(50):
            text, _ = s.command('stty size')
            if text.split() == ['40', '120']:
                break
            time.sleep(0.1)
        t.same(text.split(), ['40', '120'], 'the window size after a change')
        s.send('\x01h')
        s.expect('Ctrl-A X  end the machine')
        s.send('poweroff -f\n')
        t.same(s.wait(), OFF, 'status after power-off')
    with open(log, 'rb') as f:
        t.see(b'reboot: Power down' in f.read(), 'the kernel\'s messages are on the serial port')


def overlay(t, script):
    """A further initramfs with one program, /lib/hvc."""
    import shutil
    import subprocess
    os.makedirs(t.path('root/lib'))
    shutil.copy(script, t.path('root/lib/hvc'))
    os.chmod(t.path('root/lib/hvc'), 0o755)
    with open(t.path('overlay.cpio'), 'wb') as out:
        subprocess.run(['cpio', '--quiet', '-o', '-H', 'newc', '-R', '0:0'], input=b'lib/hvc\n', stdout=out, cwd=t.path('root'), check=True)
    return t.path('overlay.cpio')
