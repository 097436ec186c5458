"""Machines with several vCPUs, under all kinds of load at once, saved and restored: one alone, or both ends of a wire.

The first machine writes to a disk and verifies it (fio), compiles, and sends over a TCP connection to the second one, which
answers on the same wire; both say at once what goes wrong. FONDA_STATE_ROUNDS: how often (default 2).
"""
import os
import random
import re
import threading
import time

from control import Vm
from harness import OFF, Skip, check, check_equal

ROUNDS = int(os.environ.get('FONDA_STATE_ROUNDS', '2'))

# The compiler's input is a file of many functions: the object's checksum never changes.
FIRST = r'''
mkdir -p /tmp/w; cd /tmp/w
awk 'BEGIN { for (i = 0; i < 300; i++) print "int g" i "[8]; int f" i "(int a, int *b) { int s = " i "; for (int k = 0; k < a; k++) s += b[k] * s ^ g" i "[k & 7]; return s; }" }' > c.c
tcc -nostdinc -c c.c -o c.o && sha256sum c.o > c.sum || echo "=B""AD compiler"
( while true; do tcc -nostdinc -c c.c -o c.o && sha256sum -c c.sum >/dev/null 2>&1 || echo "=B""AD object"; done ) &
( while true; do fio --name=v --filename=/dev/vda --direct=1 --rw=randwrite --bs=4k --size=24M --io_size=2M --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --output=/tmp/w/fio.log --randrepeat=0 || { echo "=B""AD fio"; cat /tmp/w/fio.log; }; done ) &
( iperf3 -c 192.168.9.2 -t 86400 -b 8M -i 0 >/tmp/w/iperf 2>&1; echo "=B""AD iperf $(cat /tmp/w/iperf)" ) &
( last=0; n=0; while true; do read up rest < /proc/uptime; c=${up%.*}${up#*.}; [ $c -ge $last ] || echo "=B""AD clock $last $c"; last=$c; n=$((n+1)); [ $((n % 20)) = 0 ] && echo "=ti""ck $n $(cat /sys/class/net/eth0/statistics/rx_bytes)"; usleep 20000; done ) &
'''


def start(m, name, cpus, memory, *options):
    initramfs = os.path.join(m.guest, name + '.initramfs')
    if not os.path.exists(initramfs):
        raise Skip('no %s: run tools/fetch-guest %s %s' % (initramfs, m.guest, name))
    vm = Vm(m, '--kernel', os.path.join(m.guest, 'vmlinuz'), '--initrd', initramfs, '--memory', memory, '--cpus', str(cpus),
            '--append', 'console=ttyS0 panic=-1', '--net', 'wire=' + m.path('wire'), *options)
    vm.expect(r'# $')
    vm.command('. /lib/guest-setup >/dev/null 2>&1')
    return vm


class Stalls(threading.Thread):
    """Notices when this host lets nobody run for seconds: a guest then complains of lost time, and is right."""

    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0
        self.start()

    def run(self):
        while True:
            before = time.monotonic()
            time.sleep(1)
            self.longest = max(self.longest, time.monotonic() - before - 1)


stalls = Stalls()


def check_well(vm):
    lost_time = r'|BUG: soft lockup.*|rcu:.*stall.*' if stalls.longest < 5 else ''
    bad = re.search(r'=BAD.*|BUG: (?!soft lockup).*|Oops.*|I/O error.*' + lost_time, vm.text)
    check(not bad, 'the guest says: %s\n%s' % (bad and bad.group(0), vm.text[-1500:]))


def save(m, vm, path):
    vm.save(path)
    check_equal(vm.wait(), OFF, 'status of the saved machine')
    check_well(vm)
    vm.close()


def flows(vm):
    """The connection carries acknowledgements: the first machine goes on receiving."""
    received = int(vm.expect(r'=tick \d+ (\d+)').group(1))
    deadline = time.monotonic() + 120
    while int(vm.expect(r'=tick \d+ (\d+)').group(1)) < received + 2000:
        check(time.monotonic() < deadline, 'nothing comes over the wire any more')


def check_clocks(vm):
    """The clock chip shows the world's time; the guest's own follows when it is told to."""
    vm.send('hwclock -u -s; echo "=wall" $(date -u +%s)\n')
    got = int(vm.expect(r'=wall (\d+)').group(1))
    check(abs(got - time.time()) < 30, 'the guest has %d, the host %d' % (got, time.time()))


def under_load(m, cpus):
    seed = int(os.environ.get('FONDA_TEST_SEED', time.time_ns() % 1000000))
    print('# seed %d, %d rounds' % (seed, ROUNDS), flush=True)
    rng = random.Random(seed)
    disk = m.path('disk.qcow2')
    check_equal(m.run([m.fonda, 'image', 'create', '--size', '64M', disk]), (0, '', ''), 'fonda image create')
    paths = m.path('one.fonda'), m.path('two.fonda')
    one = two = None
    try:
        two = start(m, 'devices', 2, '192M')
        two.command('ip addr add 192.168.9.2/24 dev eth0 && ip link set eth0 up && iperf3 -s -D')
        one = start(m, 'state', cpus, '512M', '--disk', disk)
        one.command('ip addr add 192.168.9.1/24 dev eth0 && ip link set eth0 up')
        one.send('stty -echo\n')
        one.send(FIRST)
        for number in range(ROUNDS):
            flows(one)
            one.read(rng.random())
            if number % 4 == 3:
                with one.control() as control:  # and one that is paused goes on paused
                    control.call('pause')
                    control.call('resume')
            save(m, one, paths[0])
            if number % 2:
                save(m, two, paths[1])
                two = Vm(m, '--restore', paths[1])
            one = Vm(m, '--restore', paths[0])
            if number % 10 == 9:
                print('# %d rounds' % (number + 1), flush=True)
        flows(one)
        check_well(one)
        check_clocks(one)
        for vm in (one, two):
            with vm.control() as control:
                control.call('quit')
            vm.wait()
    finally:
        for vm in (one, two):
            if vm:
                vm.close()
    check_equal(m.run([m.fonda, 'image', 'check', disk])[0], 0, 'status of fonda image check')
    if stalls.longest >= 5:
        print('# this host stood still for %d s: soft lockups were not looked for' % stalls.longest)


def test_two_cpus(m):
    under_load(m, 2)


def test_four_cpus(m):
    under_load(m, 4)
