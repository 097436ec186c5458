"""The jail of whole machines: how it begins and ends, what it says, what works in it, and what does not get out of it."""
import os
import random
import re
import shutil
import signal
import subprocess
from functools import partial

from control import Control
from guest import PROMPT, Guest
from harness import HALTED, HANG, OFF, SHUTDOWN, TIMEOUT, WATCHDOG, Machine, Session, Skip, check, check_equal, out
from world import ALLOWED, all_of, deeds, need_no_namespaces, no_namespaces

VIOLATED = 108  # vm/status.h
TAKEN = 77      # taken.c
ENDS = (OFF, SHUTDOWN, HALTED, WATCHDOG, TIMEOUT)


def test_the_two_die_together(w):
    """The supervisor killed: nothing of it stays. The inside killed: the supervisor ends in the same way."""
    m = Machine(w.build, w.work)
    kernel = m.bare('hang', out(0x3f8, ord('x')) + HANG)
    for target in ('supervisor', 'inside'):
        vm = subprocess.Popen(m.argv(kernel, '--jail=quiet'), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
        check_equal(vm.stdout.read(1), b'x', 'the guest runs')
        with open('/proc/%d/task/%d/children' % (vm.pid, vm.pid), encoding='ascii') as f:
            inside = int(f.read().split()[0])
        os.kill(vm.pid if target == 'supervisor' else inside, signal.SIGKILL)
        check_equal(vm.wait(60), -signal.SIGKILL, 'how it ended')
        check_equal(vm.stdout.read(), b'', 'the other is gone, too')


def test_options(w):
    m = Machine(w.build, w.work)
    kernel = m.bare('off', out(0xf4, 1) + HANG)
    for how in ('on', 'quiet', 'off'):
        status, _, stderr = m.run(m.argv(kernel, '--jail', how))
        check_equal((status, stderr if how == 'quiet' else ''), (3, ''), '--jail ' + how)
    status, _, stderr = m.run(m.argv(kernel, '--jail=bars'))
    check_equal(status, 2, 'status')
    check('--jail: ' in stderr, stderr)
    status, stdout, _ = m.run([m.fonda, 'jail'])
    check_equal(len(stdout.splitlines()), 10, 'lines of fonda jail')
    required, _, stderr = m.run(m.argv(kernel, '--jail=require'))
    check_equal(required, 3 if status == 0 else 120, stderr)


def test_what_is_missing_is_said(w):
    need_no_namespaces()
    m = Machine(w.build, w.work)
    kernel = m.bare('off', out(0xf4, 1) + HANG)
    status, _, stderr = m.run([*no_namespaces(), *m.argv(kernel)])
    check_equal(status, 3, 'it runs: ' + stderr)
    check(re.fullmatch(r'fonda: warning: the jail lacks: user namespace .*\n', stderr), 'one line: %r' % stderr)
    status, _, stderr = m.run([*no_namespaces(), *m.argv(kernel, '--jail=quiet')])
    check_equal((status, stderr), (3, ''), 'quietly')
    status, _, stderr = m.run([*no_namespaces(), *m.argv(kernel, '--jail=require')])
    check_equal(status, 120, 'required')
    check(stderr.startswith("fonda: error: --jail: the jail can't be complete on this host: no user namespace"), stderr)


# --- a machine that has been taken over ---

class Taken:
    """fonda-vmm-taken with everything that a machine can have, in which a thread does a deed (taken.c)."""

    def __init__(self, w):
        self.w, self.machine = w, Machine(w.build, w.work)
        self.vmm = os.path.join(w.build, 'tests', 'jail', 'fonda-vmm-taken')
        self.kernel = self.machine.bare('guest', out(0x3f8, ord('x')) + HANG)
        self.saved = None

    def room(self):
        room = os.path.join(self.w.work, 'room-%d' % random.getrandbits(60))
        os.mkdir(room)
        return room

    def argv(self, *options):
        """With a directory of its own for sockets: the machine may do there what it likes."""
        control = os.path.join(self.room(), 'control')
        return [self.vmm, '--jail=quiet', '--control', control, *options], control

    def fresh(self, *options):
        return self.argv('--kernel', self.kernel, '--memory', '64M', '--engine', 'bt', '--net', 'user', '--share', self.w.share + ':s', *options)

    def save(self):
        """A machine to restore, of the program that is shipped."""
        argv, control = self.fresh()
        path = os.path.join(os.path.dirname(control), 'saved')
        with subprocess.Popen([os.path.join(self.w.build, 'fonda-vmm'), *argv[1:]], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL) as vm:
            with Control(control) as c:
                c.job('save', file=path)
            check_equal(vm.wait(), 0, 'status of the machine that was saved')
        self.saved = path

    def run(self, role, deed):
        """(status, stderr)"""
        argv, control = self.argv('--restore', self.saved) if role == 'fill' else self.fresh('--vsock', os.path.join(self.room(), 'vsock'))
        environment = {**os.environ, 'FONDA_TAKEN': '%s %s %s' % (role, deed, self.w.argument(deed))}
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, env=environment) as vm:
            if role == 'save':
                with Control(control) as c:
                    c.send('save', file=os.path.join(os.path.dirname(control), 'saved'))
            _, stderr = vm.communicate(timeout=60)
        return vm.returncode, stderr

    def refused(self, role, deed):
        status, stderr = self.run(role, deed)
        check(status == VIOLATED or (status == TAKEN and stderr.startswith('taken: refused ')),
              '%s %s: status %d, %r' % (role, deed, status, stderr))


def test_a_machine_that_was_taken_over(w):
    """Each deed in each thread of a running machine, with its own files, sockets and memory."""
    taken = Taken(w)
    taken.save()
    for role in ('main', 'vcpu', 'output', 'save', 'fill'):
        check_equal(taken.run(role, 'nothing'), (TAKEN, 'taken: done\n'), 'nothing, as ' + role)
    check_equal(taken.run('main', 'share_read'), (TAKEN, 'taken: done\n'), 'the share, as main')
    all_of(partial(taken.refused, role, deed)
           for role in ('main', 'vcpu', 'output', 'save', 'fill') for deed in deeds(w) if deed not in ALLOWED)
    check(w.victim.poll() is None, 'the victim lives')
    with open(w.secret, encoding='ascii') as f:
        check_equal(f.read(), 'outside', 'the file outside')


def test_the_shipped_program_can_not_be_taken(w):
    m = Machine(w.build, w.work)
    kernel = m.bare('off', out(0xf4, 1) + HANG)
    done = subprocess.run([os.path.join(w.build, 'fonda-vmm'), '--kernel', kernel, '--jail=quiet'], stdin=subprocess.DEVNULL,
                          capture_output=True, env={**os.environ, 'FONDA_TAKEN': 'main open_read /etc/passwd'}, check=False)
    check_equal((done.returncode, done.stderr), (3, b''), 'as if nothing was said')
    with open(os.path.join(w.build, 'fonda-vmm'), 'rb') as f:
        check(b'FONDA_TAKEN' not in f.read(), 'the program does not know the variable')


# --- hosts that lack something ---

def without(w, calls, number=38):
    """A prefix: a host (or a container's filter) that has these system calls not. 38: ENOSYS, 1: EPERM."""
    return [os.path.join(w.build, 'tests', 'jail', 'refuse'), calls, str(number)]


def test_each_layer_that_is_missing_is_said(w):
    m = Machine(w.build, w.work)
    kernel = m.bare('off', out(0xf4, 1) + HANG)
    status, _, before = m.run(m.argv(kernel, '--net', 'none'))
    check_equal(status, 3, 'as it is')
    if before:
        raise Skip('this host gives no whole jail: ' + before.strip())
    for calls, number, wanted in (('landlock_create_ruleset', 38, ['Landlock']), ('seccomp', 38, ['seccomp']),
                                  ('pivot_root', 38, ['empty root directory']), ('unshare:0=40000000', 22, ['network namespace']),
                                  ('unshare:0=20000000', 1, ['pid namespace']),
                                  ('landlock_create_ruleset,seccomp', 1, ['Landlock', 'seccomp']),
                                  ('unshare', 1, ['user namespace', 'pid namespace', 'mount namespace', 'ipc, uts, cgroup namespaces',
                                                  'network namespace', 'empty root directory']),
                                  ('io_uring_setup', 1, [])):
        prefix = without(w, calls, number)
        status, _, stderr = m.run([*prefix, *m.argv(kernel, '--net', 'none')])
        check_equal(status, 3, 'without %s: %s' % (calls, stderr))
        said = re.findall(r'([A-Za-z, ]+) \(', stderr.partition('the jail lacks: ')[2].partition('(--jail')[0])
        check_equal([name.strip(', ') for name in said], wanted, 'without %s: %r' % (calls, stderr))
        check_equal(stderr.count('\n'), 1 if wanted else 0, 'lines')
        status, _, stderr = m.run([*prefix, *m.argv(kernel, '--net', 'none', '--jail=require')])
        check_equal(status, 120 if wanted else 3, 'required, without %s: %s' % (calls, stderr))


def initramfs(m):
    path = os.path.join(m.guest, 'devices.initramfs')
    if not os.path.exists(path):
        raise Skip('no %s: run tools/fetch-guest %s devices' % (path, m.guest))
    return path


def disk_argv(m, disk):
    return ['--kernel', os.path.join(m.guest, 'vmlinuz'), '--initrd', initramfs(m), '--append', 'console=ttyS0 panic=-1 quiet',
            '--no-reboot', '--net', 'none', '--jail=quiet', '--disk', disk + ',format=raw', '--timeout', '120']


def test_disks_by_threads(w):
    """Where there is no io_uring: a disk is read and written, and a thread of it can do no more than that."""
    m = Machine(w.build, w.work)
    disk = m.path('disk', bytes(8 << 20))
    with Guest([*without(w, 'io_uring_setup'), m.fonda, 'run', *disk_argv(m, disk)]) as guest:
        guest.ok('dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null; dd if=/tmp/x of=/dev/vda bs=64k oflag=direct 2>/dev/null')
        guest.ok('echo 3 >/proc/sys/vm/drop_caches; head -c 4194304 /dev/vda | cmp - /tmp/x')
        guest.off()
    vmm = os.path.join(w.build, 'tests', 'jail', 'fonda-vmm-taken')

    def taken(deed):
        with Session([shutil.which('env'), 'FONDA_TAKEN=block %s %s' % (deed, w.argument(deed)), *without(w, 'io_uring_setup'), vmm,
                      *disk_argv(m, disk)]) as s:
            s.expect(PROMPT)
            s.send('. /lib/guest-setup\n')  # the driver reads the disk's first sectors
            return s.wait(), s.text

    status, text = taken('nothing')
    check(status == TAKEN and 'taken: done' in text, 'nothing: status %d: %s' % (status, text[-500:]))
    status, text = taken('open_read')  # captive does the others
    check_equal(status, VIOLATED, 'open_read: ' + text[-500:])


# --- guests that try to get out ---

MEMORY = 64
ENGINE_MIB = 128  # of each vCPU: 32 MiB of translations, seen through two mappings, and what describes them; stacks, TLBs
PROCESS_MIB = 32


def bounded(argv, cpus, what):
    """Runs a machine in its jail to its end; returns its status. Whatever the guest does, the process has a size."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors='replace') as vm:
        output = vm.stdout.read()
        _, status, usage = os.wait4(vm.pid, 0)
        vm.returncode = os.waitstatus_to_exitcode(status)
    mib, limit = usage.ru_maxrss >> 10, MEMORY + cpus * ENGINE_MIB + PROCESS_MIB
    check(mib <= limit, '%s: %d MiB, more than %d' % (what, mib, limit))
    check(vm.returncode != VIOLATED and vm.returncode >= 0 and 'Sanitizer' not in output,
          '%s: status %d: %s' % (what, vm.returncode, output[-2000:]))
    return vm.returncode, output


def jail_options(m):
    """Without seccomp these tests would show nothing."""
    report = m.run([m.fonda, 'jail'])
    check("seccomp" in report[1], report[1])
    if re.search(r"^seccomp +can't", report[1], re.M):
        raise Skip('no seccomp on this host')
    return ['--jail', 'require' if report[0] == 0 else 'quiet', '--net', 'none', '--memory', '%dM' % MEMORY, '--timeout', '60']


def test_guests_that_try_to_get_out(w):
    """Random bytes as user code, jumps into instructions, code that patches itself while others run it, more addresses than any
    TLB holds, exceptions inside one another: by the list of a machine that has no devices, of which any other call would end it."""
    m = Machine(w.build, w.work)
    options = jail_options(m)
    for name, cpus in (('hostile', 1), ('smp', 4), ('smc', 1), ('exceptions', 1), ('paging', 1)):
        image = os.path.join(w.build, 'tests', 'guest', name + '.elf')
        status, output = bounded(m.argv(image, '--cpus', str(cpus), *options), cpus, name)
        check_equal(status, 1, '%s: %s' % (name, output[-2000:]))


def random_kernel(seed):
    """Ring 0, 32 bits, no interrupt table. Some of it is aimed at what only a kernel may do."""
    rng = random.Random(seed)
    code = bytearray(rng.randbytes(4096))
    aims = [b'\x0f\x22', b'\x0f\x20', b'\x0f\x30', b'\x0f\x32', b'\x0f\x01', b'\x0f\x00', b'\xee', b'\xef', b'\xec', b'\xe6', b'\xf4', b'\xcf', b'\xea',
            b'\x0f\x09', b'\x0f\xae', b'\x0f\xc7', b'\x8e', b'\xf3\xa4', b'\xf3\x6e', b'\x66\xba', b'\x0f\x23', b'\x9a', b'\xcd']
    for _ in range(rng.randrange(600)):
        aim = rng.choice(aims)
        at = rng.randrange(len(code) - 4)
        code[at:at + len(aim)] = aim
    return bytes(code)


def test_random_bytes_as_kernels(w):
    """The machine ends in one of the ways that machines end in, or goes on until it is told to end."""
    m = Machine(w.build, w.work)
    options = [option if option != '60' else '1' for option in jail_options(m)]
    first = int(os.environ.get('FONDA_TEST_SEED', '1'))

    def one(seed):
        image = m.bare('random-%d' % seed, random_kernel(seed))
        status, output = bounded(m.argv(image, '--no-reboot', *options), 1, 'seed %d' % seed)
        check(status % 2 == 1 or status in ENDS, 'seed %d: status %d: %s' % (seed, status, output[-2000:]))

    all_of(partial(one, seed) for seed in range(first, first + 150))
