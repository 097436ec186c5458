"""Debian's unmodified kernel with busybox: the shell, what people do in it, and how it ends."""
import hashlib

from harness import KILLED, OFF, PANIC, check, check_equal

PROMPT = r'root@fonda:~# '
SHELL_APPEND = 'fonda.rows=33 fonda.columns=101'


def shell(m, *options, append=SHELL_APPEND):
    session = m.linux(*options, append=append)
    session.expect(PROMPT)
    return session


def test_shell(m):
    """One boot for everything that a shell shows."""
    with shell(m, '--no-reboot', '--stats') as s:
        output, status = s.command('ls /')
        check(status == 0 and {'bin', 'dev', 'proc', 'sys'} <= set(output.split()), output)
        output, status = s.command('uname -s -m')
        check_equal((output, status), ('Linux x86_64\n', 0), 'uname')
        output, status = s.command('ps')
        check(status == 0 and 'PID' in output and '[kthreadd]' in output, output)
        output, status = s.command('seq 1 20000 | sha256sum')
        wanted = hashlib.sha256(''.join('%d\n' % i for i in range(1, 20001)).encode()).hexdigest()
        check_equal((output.split()[:1], status), ([wanted], 0), 'sha256sum of a pipe')
        output, status = s.command('dd if=/dev/zero of=/tmp/zeroes bs=64k count=64 2>&1; sha256sum < /tmp/zeroes')
        check('64+0 records out' in output, output)
        check(hashlib.sha256(bytes(64 * 65536)).hexdigest() in output, output)
        output, status = s.command('seq 1 1000 | grep 7 | sort -rn | head -1')
        check_equal((output, status), ('997\n', 0), 'a pipeline')
        output, status = s.command('top -b -n1')
        check(status == 0 and 'Mem:' in output and 'PID' in output, output)
        output, status = s.command('i=0; while [ $i -lt 500 ] && (exec /bin/true); do i=$((i+1)); done; echo $i')
        check_equal((output, status), ('500\n', 0), '500 forks')
        output, status = s.command('stty size')
        check_equal((output, status), ('33 101\n', 0), 'window size')
        # The terminal is the shell's: Ctrl-C ends what runs, and the shell goes on.
        s.send("sh -c 'echo up; sleep 1000'\n")
        s.expect('^up\n')
        s.send('\x03')
        s.expect(PROMPT)
        s.send('exit\n')
        check_equal(s.wait(), OFF, 'status after power-off')
        check('fonda: counters' in s.text, 'no counters in: ' + s.text[-2000:])


def test_demo_without_a_terminal(m):
    import os
    kernel, initramfs = os.path.join(m.guest, 'vmlinuz'), os.path.join(m.guest, 'initramfs')
    m.linux(append='').close()  # skips where Linux is too slow
    status, text, _ = m.run(m.argv(kernel, '--initrd', initramfs, '--append', 'console=ttyS0 panic=-1 fonda.demo'))
    check_equal(status, OFF, 'status')
    check('Linux version' in text, 'the boot is not shown')
    check('271' in text and hashlib.sha256(bytes(1000000)).hexdigest() in text, text[-3000:])


def test_panic(m):
    with shell(m, '--no-reboot') as s:
        s.send('echo c > /proc/sysrq-trigger\n')
        check_equal(s.wait(), PANIC, 'status')
        check('Kernel panic - not syncing' in s.text, s.text[-3000:])


def test_reboot(m):
    with shell(m, '--no-reboot') as s:
        s.send('reboot -f\n')
        check_equal(s.wait(), OFF, 'status of a reboot under --no-reboot')
    with shell(m) as s:
        s.send('reboot -f\n')
        s.expect('Linux version')
        s.expect(PROMPT)
        s.send('\x01x')
        check_equal(s.wait(60), KILLED, 'status')


def test_memory_sizes(m):
    for size, mebibytes in (('160M', 160), ('1G', 1024), ('5G', 5120)):
        with shell(m, '--no-reboot', '--memory', size) as s:
            output, _ = s.command('grep MemTotal /proc/meminfo')
            total = int(output.split()[1]) / 1024
            check(mebibytes * 0.5 < total < mebibytes, '%s: the guest sees %d MiB' % (size, total))
            s.send('poweroff -f\n')
            check_equal(s.wait(), OFF, 'status')


def test_clock(m):
    """The guest's clock is the host's, within what booting and a busy host explain."""
    import time
    with shell(m, '--no-reboot') as s:
        before = time.time()
        output, _ = s.command('date +%s')
        check(before - 30 < int(output) < time.time() + 30, 'guest %s, host %d' % (output, before))
        s.send('poweroff -f\n')
        check_equal(s.wait(), OFF, 'status')


def test_several_vcpus(m):
    """All vCPUs fork, pipe and compute at once; sums are right, and the kernel has nothing to complain about."""
    work = ("work() { i=0; while [ $i -lt 30 ]; do seq 1 3000 | sha256sum; i=$((i+1)); done | sort -u; }; "
            "for w in 1 2 3 4; do work & done; wait")
    wanted = hashlib.sha256(''.join('%d\n' % i for i in range(1, 3001)).encode()).hexdigest()
    for cpus in ('2', '4'):
        with shell(m, '--no-reboot', '--cpus', cpus) as s:
            output, _ = s.command('nproc')
            check_equal(output.strip(), cpus, 'vCPUs that the guest sees')
            output, status = s.command(work)
            check_equal((output.count(wanted), status), (4, 0), 'four loops at once: ' + output)
            output, _ = s.command("dmesg | grep -i -E 'lockup|stall|BUG:|Oops|unchecked MSR' | head")
            check_equal(output, '', 'complaints of the kernel')
            s.send('poweroff -f\n')
            check_equal(s.wait(), OFF, 'status')


def test_32_vcpus(m):
    """As many as there may be: all come up, each runs a program of its own, and a busy few beside many idle ones get on."""
    with shell(m, '--no-reboot', '--cpus', '32', '--memory', '1G') as s:
        output, _ = s.command('nproc')
        check_equal(output.strip(), '32', 'vCPUs that the guest sees')
        output, status = s.command('for n in $(seq 0 31); do taskset -c $n sh -c "grep Cpus_allowed_list /proc/self/status" & done; '
                                   'wait')
        found = {int(line.split()[-1]) for line in output.splitlines() if line.startswith('Cpus_allowed_list')}
        check_equal((found, status), (set(range(32)), 0), 'a program on each vCPU')
        output, _ = s.command('for n in $(seq 0 31); do taskset -c $n seq 1 2000 | sha256sum & done; wait')
        wanted = hashlib.sha256(''.join('%d\n' % i for i in range(1, 2001)).encode()).hexdigest()
        check_equal(output.count(wanted), 32, 'a pipe on each vCPU: ' + output)
        s.send('poweroff -f\n')
        check_equal(s.wait(), OFF, 'status')
