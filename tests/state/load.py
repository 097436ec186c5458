"""A Linux guest that works hard while it is saved, killed, restored and snapshotted at random moments."""
import os
import random
import re
import socket
import subprocess
import time

from control import Vm
from harness import OFF, Skip, check, check_equal

ROUNDS = int(os.environ.get('FONDA_STATE_ROUNDS', '6'))

# Checksums of memory, processes, and of a disk past the guest's page cache; each says what goes wrong.
WORK = r'''
mkdir -p /tmp/w; cd /tmp/w; dd if=/dev/urandom of=m bs=64k count=64 2>/dev/null; sha256sum m > m.sum
( while true; do sha256sum -c m.sum >/dev/null 2>&1 || echo "=B""AD memory"; done ) &
( i=0; while true; do i=$((i+1)); [ "$(echo $i | (read a; echo $a))" = $i ] || echo "=B""AD process"; done ) &
( n=0; while true; do n=$((n+1)); dd if=/dev/urandom of=d bs=64k count=8 2>/dev/null; s=$(sha256sum < d)
  dd if=d of=/dev/vda bs=64k seek=$((n % 100 * 8)) oflag=direct conv=fsync 2>/dev/null || echo "=B""AD write"
  [ "$(dd if=/dev/vda bs=64k skip=$((n % 100 * 8)) count=8 iflag=direct 2>/dev/null | sha256sum)" = "$s" ] || echo "=B""AD disk"
  done ) &
( last=0; n=0; while true; do read up rest < /proc/uptime; c=${up%.*}${up#*.}
  [ $c -ge $last ] || echo "=B""AD clock $last $c"; [ $((c - last)) -lt 1000 ] || [ $last = 0 ] || echo "=B""AD gap $last $c"
  last=$c; n=$((n+1)); [ $((n % 50)) = 0 ] && echo "=ti""ck $n"; usleep 10000; done ) &
'''


def start(m, *options):
    initramfs = os.path.join(m.guest, 'devices.initramfs')
    if not os.path.exists(initramfs):
        raise Skip('no %s: run tools/fetch-guest %s devices' % (initramfs, m.guest))
    disk = m.path('disk.qcow2')
    check_equal(m.run([m.fonda, 'image', 'create', '--size', '64M', disk]), (0, '', ''), 'fonda image create')
    vm = Vm(m, '--kernel', os.path.join(m.guest, 'vmlinuz'), '--initrd', initramfs, '--memory', '256M', '--disk', disk,
            '--append', 'console=ttyS0 panic=-1', '--balloon', *options)
    vm.expect(r'# $')
    vm.command('. /lib/guest-setup')
    return vm, disk


def check_well(vm):
    bad = re.search(r'=BAD.*|BUG:.*|Oops.*|rcu:.*stall.*|I/O error.*', vm.text)
    check(not bad, 'the guest says: %s\n%s' % (bad and bad.group(0), vm.text[-1500:]))


def test_under_load(m):
    seed = int(os.environ.get('FONDA_TEST_SEED', time.time_ns() % 1000000))
    print('# seed %d, %d rounds' % (seed, ROUNDS))
    rng = random.Random(seed)
    path = m.path('load.fonda')
    vm, disk = start(m)
    try:
        vm.send('stty -echo\n')
        vm.send(WORK)
        for _ in range(ROUNDS):
            vm.expect(r'=tick \d+')
            vm.read(rng.random())
            vm.save(path)
            check_equal(vm.wait(), OFF, 'status of the saved machine')
            check_well(vm)
            vm.close()
            vm = Vm(m, '--restore', path)
        vm.expect(r'=tick \d+')
        vm.expect(r'=tick \d+')
        check_well(vm)
        with vm.control() as control:
            control.call('quit')
        vm.wait()
    finally:
        vm.close()
    check_equal(m.run([m.fonda, 'image', 'check', disk])[0], 0, 'status of fonda image check')


def test_snapshots(m):
    """Memory and disk of one moment, taken while the guest works; and back."""
    vm, disk = start(m)
    try:
        vm.command('echo one > /tmp/what; echo one | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null')
        with vm.control() as control:
            result = control.job('snapshot_save', name='one')
            print('# the guest stood still for %.1f ms' % (result['pause_ns'] / 1e6))
        vm.command('echo two > /tmp/what; echo two | dd of=/dev/vda bs=512 conv=sync oflag=direct 2>/dev/null')
        with vm.control() as control:
            check_equal([s['name'] for s in control.call('snapshot_list')['snapshots']], ['one'], 'snapshots')
            control.call('snapshot_load', name='one')
        time.sleep(0.2)
        with vm.control() as control:
            control.call('status')
        vm.send('\n')
        text, _ = vm.command('cat /tmp/what; dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -n 1')
        check('one\none' in text, 'memory and disk after going back: %r' % text)
        with vm.control() as control:
            control.call('snapshot_delete', name='one')
            check_equal(control.call('snapshot_list')['snapshots'], [], 'snapshots')
            control.call('quit')
        vm.wait()
    finally:
        vm.close()
    check_equal([name for name in os.listdir(m.work) if name.startswith('disk.qcow2.')], [], 'files left behind')
    check_equal(m.run([m.fonda, 'image', 'check', disk])[0], 0, 'status of fonda image check')


def test_ephemeral(m):
    vm, disk = start(m, '--ephemeral')
    try:
        before = subprocess.run(['sha256sum', disk], capture_output=True, check=True).stdout
        text, status = vm.command('echo kept | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; '
                                  'dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -n 1')
        check('kept' in text and status == 0, 'what was written: %r' % text)
        with vm.control() as control:
            control.call('quit')
        vm.wait()
        after = subprocess.run(['sha256sum', disk], capture_output=True, check=True).stdout
        check_equal(after, before, 'the disk')
    finally:
        vm.close()


def test_ports(m):
    """A channel to the host works behind a restore; the guest learns that whoever had it open before is gone."""
    agent = m.path('agent')
    vm, _ = start(m, '--port', 'agent=unix:' + agent)

    def say(line):
        """Sends a line as a program of the host's; returns what the guest answers."""
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(60)
            conn.connect(agent)
            conn.sendall(line)
            return conn.makefile('rb').readline()

    try:
        vm.command('a=/dev/$(cd /sys/class/virtio-ports; grep -lx agent */name | cut -d/ -f1); echo $a')
        vm.send('(exec 5<>$a; while true; do if read x <&5; then echo "answer $x" >&5; else usleep 50000; fi; done) & sleep 1\n')
        check_equal(say(b'one\n'), b'answer one\n', 'before')
        with socket.socket(socket.AF_UNIX) as left:
            left.connect(agent)
            path = m.path('ports.fonda')
            vm.save(path)
            check_equal(vm.wait(), OFF, 'status of the saved machine')
        vm.close()
        vm = Vm(m, '--restore', path)
        with vm.control() as control:
            control.call('status')
        check_equal(say(b'two\n'), b'answer two\n', 'behind the restore')
        check_equal(say(b'three\n'), b'answer three\n', 'and again')
        check_well(vm)
        with vm.control() as control:
            control.call('quit')
        vm.wait()
    finally:
        vm.close()
