"""Entropy, balloon, sockets between guest and host, the host's clock."""
import os
import re
import socket
import time

from control import Control
from guest import BALLOON, Server, answer_digest, check, clock_offset, data, sender, set_clock, sha

MIB = 1 << 20
BLOB = data(1000000, 7)


def test_rng(t):
    with t.boot('--virtio-without', 'rng:event_idx') as guest:
        t.same(guest.features('rng', {}), [{'indirect_desc', 'version_1'}], 'without event_idx: the set is as asked')
        t.same(guest.ok('head -c 65536 /dev/hwrng | wc -c').strip(), '65536', 'without event_idx: 64 KiB of /dev/hwrng')
        two = guest.ok('for i in 1 2; do head -c 4096 /dev/hwrng | sha256sum; done').split('\n')
        t.see(two[0] != two[1], 'two reads differ', two)
        guest.off()
    with t.boot('--virtio-without', 'rng:indirect_desc') as guest:
        t.same(guest.features('rng', {}), [{'event_idx', 'version_1'}], 'without indirect_desc: the set is as asked')
        t.same(guest.ok('head -c 65536 /dev/hwrng | wc -c').strip(), '65536', 'without indirect_desc: 64 KiB of /dev/hwrng')
        guest.off()


def settle(guest, wanted, seconds=40):
    """Waits until the host holds no more than `wanted` bytes of the guest's RAM; returns what it holds."""
    for _ in range(seconds * 2):
        if guest.resident() <= wanted:
            break
        time.sleep(0.5)
    return guest.resident()


FILL = 'mkdir -p /t && mount -t tmpfs -o size=90%% t /t && head -c %d /dev/zero >/t/f'
EMPTY = 'rm /t/f && umount /t'


def grow_and_free(t, guest, how):
    low = guest.resident()
    guest.ok(FILL % (200 * MIB))
    high = guest.resident()
    t.see(high > low + 150 * MIB, '%s: memory in use is the host\'s' % how, (low, high))
    guest.ok(EMPTY)
    after = settle(guest, high - 150 * MIB)
    t.see(after <= high - 150 * MIB, '%s: what the guest frees goes back to the host' % how,
          'in use %d MiB, later %d MiB' % (high >> 20, after >> 20))


def test_balloon_reporting(t):
    with t.boot('--balloon', '--memory', '512M', '--stats') as guest:
        t.same(guest.features('balloon', BALLOON), [set(BALLOON) | {'event_idx', 'version_1'}], 'features (Linux has no indirect_desc here)')
        grow_and_free(t, guest, 'free page reporting')
        memory = dict(re.findall(r'(\w+): +(\d+) kB', guest.ok('cat /proc/meminfo')))
        told = {}
        for _ in range(60):  # they are asked for every 10 seconds
            guest.send('\x01s')
            guest.expect('# chips:|^chips:')
            time.sleep(0.5)
            guest.read(0.1)
            told = dict(re.findall(r'statistic ([\w-]+)=(\d+)', guest.text))
            if 'total' in told and int(told['available']) <= int(memory['MemTotal']) * 1024:
                break
        t.same(int(told.get('total', 0)), int(memory['MemTotal']) * 1024, "statistics: the guest's total, to the byte")
        near = {'free': 'MemFree', 'available': 'MemAvailable'}
        for name, key in near.items():
            t.see(abs(int(told.get(name, 0)) - int(memory[key]) * 1024) < 64 * MIB, 'statistics: %s is %s' % (name, key), (told, memory))
        guest.off()
        t.see(' 0 reported' not in guest.text and 'reported' in guest.text, 'and is counted', guest.text[-1500:])


def test_balloon_hinting(t):
    with t.boot('--balloon', '--memory', '512M', '--stats', '--virtio-without', 'balloon:reporting') as guest:
        t.see('reporting' not in guest.features('balloon', BALLOON)[0], 'without reporting: the set is as asked')
        grow_and_free(t, guest, 'free page hinting')
        guest.off()
        t.see(' 0 hinted' not in guest.text and 'hinted' in guest.text, 'and is counted', guest.text[-1500:])


def test_balloon_size(t):
    with t.boot('--balloon-size', '200M', '--memory', '512M', '--virtio-without',
                'balloon:stats_vq,free_page_hint,deflate_on_oom,reporting') as guest:
        t.see(not guest.features('balloon', BALLOON)[0] & set(BALLOON), 'with no feature: the set is as asked')
        total = 0
        for _ in range(60):
            total = int(guest.ok('grep MemTotal /proc/meminfo').split()[1])
            if total < 300 * 1024:
                break
            time.sleep(0.5)
        t.see(total < 300 * 1024, 'the guest gives up what the balloon takes', total)
        guest.off()


def echo(conn):
    while True:
        part = conn.recv(65536)
        if not part:
            return
        conn.sendall(part)


def vsock_connect(path, port):
    """To a port of the guest's, as soon as it listens."""
    for _ in range(100):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(path)
        s.sendall(b'CONNECT %d\n' % port)
        answer = b''
        while not answer.endswith(b'\n'):
            byte = s.recv(1)
            if not byte:
                break
            answer += byte
        if answer.startswith(b'OK'):
            return s
        s.close()
        time.sleep(0.1)
    return None


def test_vsock(t):
    path = t.path('vsock')
    for how in ('nothing', 'event_idx', 'indirect_desc'):
        with Server(answer_digest, path + '_7', socket.AF_UNIX), Server(sender(BLOB), path + '_8', socket.AF_UNIX), \
                Server(echo, path + '_9', socket.AF_UNIX), \
                t.boot('--vsock', path, *(['--virtio-without', 'vsock:' + how] if how != 'nothing' else [])) as guest:
            wanted = {'event_idx', 'indirect_desc', 'version_1'} - {how}
            t.same(guest.features('vsock', {}), [wanted], 'without %s: the set is as asked' % how)
            got = guest.ok('socat -u VSOCK-CONNECT:2:8 - | tee /tmp/blob | sha256sum').split()[0]
            t.same(got, sha(BLOB), 'without %s: host to guest, the guest connects' % how)
            got = guest.ok('socat -t 30 - VSOCK-CONNECT:2:7 </tmp/blob').strip()
            t.same(got, sha(BLOB), 'without %s: guest to host, the guest connects' % how)
            got = guest.ok('head -c 300000 /tmp/blob | socat -t 30 - VSOCK-CONNECT:2:9 | sha256sum').split()[0]
            t.same(got, sha(BLOB[:300000]), 'without %s: both ways at once' % how)
            guest.ok('(socat VSOCK-LISTEN:1234,fork EXEC:cat >/dev/null 2>&1 &)')
            conn = vsock_connect(path, 1234)
            check(conn, 'no connection to the guest')
            answer = b''
            conn.sendall(BLOB[:60000])
            while len(answer) < 60000:
                part = conn.recv(65536)
                if not part:
                    break
                answer += part
            t.same(sha(answer), sha(BLOB[:60000]), 'without %s: an echo, the host connects' % how)
            conn.close()
            text, status = guest.command('socat - VSOCK-CONNECT:2:99 </dev/null 2>&1')
            t.see(status != 0, 'without %s: where nobody listens, a connection is refused' % how, text)
            guest.off()
        for name in ('_7', '_8', '_9'):
            os.unlink(path + name)


CLOCK_MS = 50


def test_clock(t):
    """The host's clock by ptp_kvm, at once and after the machine stood still; the TSC stays the clock source."""
    with t.boot('--cpus', '2', '--control', t.path('control')) as guest:
        t.same(guest.ok('cat /sys/class/ptp/ptp0/clock_name').strip(), 'KVM virtual PTP', 'a PTP clock')
        t.same(guest.ok('cat /sys/devices/system/clocksource/clocksource0/current_clocksource').strip(), 'tsc', 'the clock source')
        set_clock(guest)
        offset, doubt = clock_offset(guest)
        t.see(abs(offset) - doubt <= CLOCK_MS, "the time of day is the host's within %d ms" % CLOCK_MS, '%+.2f ms, +-%.2f' % (offset, doubt))
        with Control(t.path('control')) as control:
            control.call('pause')
            time.sleep(1)
            control.call('resume')
        set_clock(guest)
        offset, doubt = clock_offset(guest)
        t.see(abs(offset) - doubt <= CLOCK_MS, "and again after a pause", '%+.2f ms, +-%.2f' % (offset, doubt))
        guest.ok("! dmesg | grep -E 'unstable|rcu.*stall|lockup'")
        guest.off()
