"""kill -9 and a full disk at every step of saving, and of making, deleting and loading snapshots.

The machine runs with faults.c preloaded, which counts the calls that change files below one directory, and at a chosen one
ends the process (before it, or in the middle of a write) or says that the disk is full (once, or from then on).
FONDA_STATE_FAULTS=all tries every step in every way, otherwise a sample of them is tried.
"""
import contextlib
import mmap
import os
import random
import shutil
import struct
import time

from control import Refused, Vm, restore
from counting import SMALL, check_counts, counting
from harness import HOST, OFF, PATIENCE_S, TIMEOUT, USAGE, Failure, Skip, check, check_equal

PAGE = struct.Struct('<IIII24s')
KINDS = {'count': 0, 'killed': 1, 'torn': 2, 'full once': 3, 'full': 4}
DISKS = ('a.qcow2', 'b.qcow2')
SAMPLE = 2  # steps of each kind


class Faults:
    """The page that is shared with the machine's process."""

    def __init__(self, m):
        # Where meson puts it, beside the programs.
        self.library = os.path.join(os.path.dirname(m.fonda), 'tests', 'state', 'state-faults.so')
        if not os.path.exists(self.library):
            raise Skip('no ' + self.library)
        self.dir = m.path('files') + '/'
        self.path = m.path('faults.page', bytes(mmap.PAGESIZE))
        with open(self.path, 'r+b') as f:
            self.page = mmap.mmap(f.fileno(), mmap.PAGESIZE)

    def arm(self, kind, at):
        self.page[:PAGE.size] = PAGE.pack(1, 0, at, KINDS[kind], b'')

    def disarm(self):
        """Returns how many steps there were, and what the chosen one was."""
        _, count, _, _, step = PAGE.unpack_from(self.page)
        self.page[:4] = bytes(4)
        return count, step.rstrip(b'\0').decode()

    @contextlib.contextmanager
    def preloaded(self):
        ours = {'LD_PRELOAD': self.library, 'FONDA_FAULTS': self.path, 'FONDA_FAULTS_DIR': self.dir,
                'FONDA_BLOCK_ENGINE': 'threads'}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def write_pattern(m, byte):
    for disk in DISKS:
        status, _, errors = m.run(['qemu-io', '-f', 'qcow2', '-c', 'write -P %d 0 1M' % byte, m.path('files/' + disk)])
        check_equal(status, 0, 'qemu-io: ' + errors)


def patterns(m):
    """What the disks hold: one byte for each."""
    found = b''
    for disk in DISKS:
        raw = m.path('raw')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(raw)
        check_equal(m.run([m.fonda, 'image', 'convert', '--to', 'raw', m.path('files/' + disk), raw]), (0, '', ''), 'fonda image convert')
        with open(raw, 'rb') as f:
            data = f.read(1 << 20)
        check(data == data[:1] * (1 << 20), '%s is a mixture' % disk)
        found += data[:1]
    return found.decode()


def goes_on(vm):
    """Forgets what the guest has said; it says more."""
    vm.read(0)
    vm.text, vm.seen = '', 0
    vm.expect('[a-p]{20}')
    check_counts(vm.text)


def check_images(m, label, closed):
    for disk in DISKS:
        status, out, errors = m.run([m.fonda, 'image', 'check', m.path('files/' + disk)])
        check(status == 0 and not (closed and 'not closed' in out), '%s: image check of %s: %s%s' % (label, disk, out, errors))


class Case:
    """An operation, what it starts from, and how its end is judged."""

    may_end = False  # whether a full disk may end the machine

    def __init__(self, m, faults, snapshot):
        self.m, self.faults = m, faults
        os.makedirs(faults.dir, exist_ok=True)
        disks = []
        for disk in DISKS:
            check_equal(m.run([m.fonda, 'image', 'create', '--size', '8M', faults.dir + disk])[0], 0, 'fonda image create')
            disks += ['--disk', faults.dir + disk]
        write_pattern(m, ord('A'))
        self.base = m.path('base.fonda')
        with Vm(m, '--kernel', counting(m, noise=True), *SMALL, *disks) as vm:
            vm.expect('abcd')
            if snapshot:
                with vm.control() as control:
                    control.job('snapshot_save', name='one')
            vm.save(self.base)
            vm.wait()
        shutil.copy(self.base, faults.dir + 'saved.fonda')
        if snapshot:
            write_pattern(m, ord('B'))
        self.content = 'BB' if snapshot else 'AA'
        shutil.copytree(faults.dir, m.path('pristine'))

    def anew(self):
        shutil.rmtree(self.faults.dir)
        shutil.copytree(self.m.path('pristine'), self.faults.dir)

    @contextlib.contextmanager
    def machine(self, path=None):
        with Vm(self.m, '--restore', path or self.base, '--jail', 'off') as vm:
            vm.expect('[a-p]{3}')
            yield vm
            if vm.status is None:
                with vm.control() as control:
                    control.call('quit')
                check_equal(vm.wait(), OFF, 'status of the machine')
            check_counts(vm.text)

    def try_step(self, kind, at):
        """Returns how many steps there were and what the chosen one was."""
        self.anew()
        with self.faults.preloaded(), Vm(self.m, '--restore', self.base, '--jail', 'off') as vm:
            vm.expect('[a-p]{3}')
            with vm.control() as control:
                self.faults.arm(kind, at)
                error = None
                try:
                    self.operate(vm, control)
                except (Failure, OSError) as e:
                    check(kind in ('killed', 'torn') or self.may_end, 'the machine is gone: %s' % e)
                    error = e
                except Refused as e:
                    error = e
            count, step = self.faults.disarm()
            label = '%s: %s at step %d of %d (%s)%s' % (type(self).__name__, kind, at, count, step, ': %s' % error if error else '')
            try:
                if kind in ('killed', 'torn') and count >= at:
                    vm.wait()
                elif kind != 'count':
                    self.still_well(vm, error)
            except Failure as e:
                raise Failure('%s: %s' % (label, e)) from e
        try:
            if kind != 'count':
                self.judge(label, died=kind in ('killed', 'torn'))
        except (Failure, Refused) as e:
            raise Failure('%s: %s' % (label, e)) from e
        return count, step

    def still_well(self, vm, error):
        """Behind a full disk, with room again. The machine goes on, unless the operation ended it."""
        if error:
            with vm.control() as control:
                check_equal(control.call('status')['state'], 'running', 'state')
            goes_on(vm)
        if vm.status is None and not self.ended(error):
            with vm.control() as control:
                control.call('quit')
        vm.wait()

    def ended(self, error):
        return False


class Save(Case):
    def operate(self, vm, control):
        control.job('save', file=self.faults.dir + 'saved.fonda')

    def ended(self, error):
        return not error

    def judge(self, label, died):
        path = self.faults.dir + 'saved.fonda'
        check(died or not os.path.exists(path + '.partial'), 'a partial file is left')
        status, text, errors = restore(self.m, path, '--timeout', '1')
        check(status == TIMEOUT and len(text) > 3, errors)
        check_counts(text)
        with self.machine() as vm:  # and the same path can be saved to
            vm.save(path)
            vm.wait()
        check_images(self.m, label, closed=True)


class Create(Case):
    def operate(self, vm, control):
        control.job('snapshot_save', name='one')

    def judge(self, label, died):
        check_images(self.m, label, closed=False)
        check_equal(patterns(self.m), self.content, "the disks' contents")
        with self.machine() as vm:
            with vm.control() as control:
                names = [one['name'] for one in control.call('snapshot_list')['snapshots']]
                check(names in ([], ['one']), 'snapshots: %s' % names)
                if not names:
                    control.job('snapshot_save', name='one')
        write_pattern(self.m, ord('C'))
        go_back(self, 'AA')
        check_images(self.m, label, closed=True)


class Delete(Create):
    def operate(self, vm, control):
        control.call('snapshot_delete', name='one')

    def judge(self, label, died):
        check_images(self.m, label, closed=False)
        check_equal(patterns(self.m), self.content, "the disks' contents")
        with self.machine() as vm:
            with vm.control() as control:
                names = [one['name'] for one in control.call('snapshot_list')['snapshots']]
                check(names in ([], ['one']), 'snapshots: %s' % names)
                if names:
                    load_one(vm, control)
                    goes_on(vm)
            with vm.control() as control:
                if not names:
                    control.job('snapshot_save', name='one')
                control.call('snapshot_delete', name='one')
                check_equal(control.call('snapshot_list')['snapshots'], [], 'snapshots')
        check_equal(patterns(self.m), 'AA' if names else self.content, "the disks' contents")
        check_images(self.m, label, closed=True)
        for disk in DISKS:
            check('one' not in self.m.run([self.m.fonda, 'image', 'snapshot', 'list', self.faults.dir + disk])[1], 'left in ' + disk)


class Load(Case):
    def still_well(self, vm, error):
        """A machine whose disks can't be put back either ends, as does one that can't open its disks again; it says so."""
        if isinstance(error, (Failure, OSError)):
            check(vm.wait() in (USAGE, HOST), 'status %d' % vm.status)
            check('No space left' in vm.text, vm.text[-300:])
        elif error and 'its next start puts the disks back' in str(error):
            check_equal(vm.wait(), HOST, 'status')
            check('its next start puts the disks back' in vm.text, vm.text[-300:])
        else:
            super().still_well(vm, error)

    may_end = True

    def operate(self, vm, control):
        load_one(vm, control)

    def judge(self, label, died):
        check_images(self.m, label, closed=False)
        with self.machine():  # which opens the disks, and makes them agree
            pass
        found = patterns(self.m)
        check(found in ('AA', 'BB'), 'the disks differ: ' + found)
        check_images(self.m, label, closed=True)
        go_back(self, 'AA')


def load_one(vm, control):
    """Goes back to the snapshot; returns when the process that has begun anew answers."""
    asked_ns = time.monotonic_ns()
    control.call('snapshot_load', name='one')
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with vm.control(patience=0.1) as again:
                if time.monotonic_ns() - again.call('status')['up_ns'] > asked_ns:
                    return
        except (OSError, Failure):
            if os.waitid(os.P_PID, vm.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise
        check(time.monotonic() < deadline, 'the machine does not come back')
        time.sleep(0.01)


def go_back(case, content):
    """The snapshot can be loaded."""
    with case.machine() as vm:
        with vm.control() as control:
            load_one(vm, control)
        goes_on(vm)
    check_equal(patterns(case.m), content, "the disks' contents")


def every_step(m, kind, snapshot):
    seed = int(os.environ.get('FONDA_TEST_SEED', time.time_ns() % 1000000))
    rng = random.Random(seed)
    case = kind(m, Faults(m), snapshot)
    steps, _ = case.try_step('count', 0)
    check(steps > 0, 'no step was seen')
    tried, wrong = 0, []
    for how in ('killed', 'torn', 'full once', 'full'):
        numbers = range(1, steps + 1)
        if os.environ.get('FONDA_STATE_FAULTS') != 'all':
            numbers = sorted(rng.sample(numbers, min(SAMPLE, steps)))
        for number in numbers:
            tried += 1
            try:
                case.try_step(how, number)
            except Failure as e:
                wrong.append(str(e))
    print('# seed %d: %d steps, %d tried' % (seed, steps, tried))
    check(not wrong, '%d went wrong:\n%s' % (len(wrong), '\n'.join(wrong[:20])))


def test_every_step_of_save(m):
    every_step(m, Save, False)


def test_every_step_of_snapshot_save(m):
    every_step(m, Create, False)


def test_every_step_of_snapshot_delete(m):
    every_step(m, Delete, True)


def test_every_step_of_snapshot_load(m):
    every_step(m, Load, True)
