"""Saving and restoring a bare-metal guest that counts aloud: a, b ... p, a, b ..."""
import os
import random
import resource
import signal
import struct
import subprocess
import time

from control import Control, Refused, Vm, check_refused, engine_usable, restore
from harness import CLI, KILLED, OFF, TIMEOUT, Failure, Skip, check, check_equal, inside
from savedfile import SavedFile

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, 'golden-v1.fonda')
LETTERS = 'abcdefghijklmnop'
SMALL = ('--memory', '4M', '--net', 'none')


def counting(m, pace=0x40000, noise=False):
    """mov ecx, 0; say 'a' + ecx % 16; spend time; inc ecx; again. With noise, RAM is filled with what can't be
    compressed first: lcg from 2 MiB to 4 MiB."""
    fill = (b'\xbf\x00\x00\x20\x00\xb8\x01\x00\x00\x00'  # mov edi, 2 MiB; mov eax, 1
            b'\x69\xc0\x0d\x66\x19\x00\x05\x5f\xf3\x6e\x3c'  # L: imul eax, eax, 1664525; add eax, 1013904223
            b'\x89\xc2\xc1\xea\x10\x89\x17\x83\xc7\x02'  # mov edx, eax; shr edx, 16; mov [edi], edx; add edi, 2
            b'\x81\xff\xf0\xff\x3f\x00\x72\xe3')  # cmp edi, 4 MiB - 16; jb L
    body = b'\x66\xba\xf8\x03\x88\xc8\x24\x0f\x04\x61\xee' + b'\xbe' + struct.pack('<I', pace) + b'\x4e\x75\xfd\x41'
    code = CLI + (fill if noise else b'') + b'\xb9\x00\x00\x00\x00' + body
    return m.bare('counting', code + b'\xeb' + bytes([256 - len(body) - 2]))


def check_counts(text):
    check(len(text) > 3, 'hardly any output: %r' % text)
    for a, b in zip(text, text[1:]):
        check(LETTERS.index(b) == (LETTERS.index(a) + 1) % 16, 'the count is broken: %r' % text[-200:])


def saved(m, name='saved.fonda', options=(), noise=False):
    """A saved machine's path, and what it had said."""
    path = m.path(name)
    with Vm(m, '--kernel', counting(m, noise=noise), *SMALL, *options) as vm:
        vm.expect('abcd')
        vm.save(path)
        check_equal(vm.wait(), OFF, 'status of the saved machine')
        return path, vm.text


def test_goes_on_where_it_was(m):
    path, text = saved(m)
    with Vm(m, '--restore', path) as vm:
        vm.expect('[a-p]{40}')
        with vm.control() as control:
            control.call('quit')
        vm.wait()
        check_counts(text + vm.text)


def test_saved_again_and_again(m):
    """No growth: the file of the tenth generation is as large as the first."""
    path, text = saved(m)
    first = os.path.getsize(path)
    for generation in range(10):
        with Vm(m, '--restore', path) as vm:
            vm.expect('[a-p]{5}')
            vm.save(path)
            check_equal(vm.wait(), OFF, 'status')
            text += vm.text
    check_counts(text)
    check(os.path.getsize(path) < first * 1.1 + 4096, 'grew from %d to %d bytes' % (first, os.path.getsize(path)))


def test_pause_holds_the_guest(m):
    with Vm(m, '--kernel', counting(m), *SMALL) as vm:
        vm.expect('abcd')
        with vm.control() as control:
            control.call('pause')
            check_equal(control.call('status')['state'], 'paused', 'state')
            vm.read(0.3)  # what it had said before
            vm.read(0.3)
            before, clock = vm.text, control.call('status')['clock_ns']
            vm.read(0.5)
            check_equal(vm.text, before, 'output while it is paused')
            check_equal(control.call('status')['clock_ns'], clock, "the machine's clock while it is paused")
            control.call('pause')
            control.call('resume')
            check_equal(control.call('status')['state'], 'running', 'state')
            vm.expect('[a-p]{20}')
            control.call('quit')
        vm.wait()
        check_counts(vm.text)


def test_other_engine(m):
    if not engine_usable(m, 'kvm'):
        raise Skip('KVM is not usable here')
    for first, second in (('bt', 'kvm'), ('kvm', 'bt')):
        path, text = saved(m, options=('--engine', first))
        with Vm(m, '--restore', path, '--engine', second) as vm:
            vm.expect('[a-p]{40}')
            vm.save(path)
            vm.wait()
            check_counts(text + vm.text)


def test_golden_file(m):
    with open(GOLDEN, 'rb') as f:
        old = SavedFile(f.read())
    # The host's own TSC rate: a file of another one is refused.
    path, _ = saved(m)
    with open(path, 'rb') as f:
        here = SavedFile(f.read())
    old.config['tsc_hz'] = here.config['tsc_hz']
    old.section(b'time').field(b'tsc_hz').value = here.section(b'time').field(b'tsc_hz').value
    with Vm(m, '--restore', m.path('golden.fonda', old.encode())) as vm:
        vm.expect('[a-p]{20}')
        with vm.control() as control:
            control.call('quit')
        vm.wait()
        check_counts(vm.text)


def test_other_tsc_is_refused(m):
    path, _ = saved(m)
    with open(path, 'rb') as f:
        file = SavedFile(f.read())
    file.config['tsc_hz'] *= 2
    check_refused(m, m.path('tsc.fonda', file.encode()), 'TSC', 'kHz')


def test_options_of_the_machine_are_refused(m):
    path, _ = saved(m)
    status, _, errors = restore(m, path, '--memory', '8M')
    check_equal(status, 2, 'status')
    check("'--memory' can't be given" in errors, errors)


def test_cut_off_files_are_refused(m):
    path, _ = saved(m)
    with open(path, 'rb') as f:
        data = f.read()
    for size in sorted({0, 1, 39, 40, 100, len(data) // 2, len(data) - 33, len(data) - 32, len(data) - 1}):
        check_refused(m, m.path('cut.fonda', data[:size]), 'cut.fonda')
    check_refused(m, m.path('longer.fonda', data + b'\0'), 'end mark')
    check_refused(m, m.path('other.fonda', b'#!/bin/sh\n' * 100), 'not a saved machine')


def test_altered_bytes_are_refused(m):
    """Every byte is under some checksum: whichever changes, the file is refused."""
    path, _ = saved(m)
    with open(path, 'rb') as f:
        data = f.read()
    rng = random.Random(7)
    for at in list(range(0, 48, 5)) + [rng.randrange(len(data)) for _ in range(30)] + [len(data) - n for n in (1, 9, 20, 31)]:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        check_refused(m, m.path('altered.fonda', bytes(changed)), 'altered.fonda')


def mutations(file):
    """(name, function) for everything that can be wrong with sections and fields that are well encoded."""
    for section in file.sections:
        def swap(section=section):
            file.sections.remove(section)
            file.sections.insert(0, section)

        def double(section=section):
            file.sections.append(section)

        def drop(section=section):
            file.sections.remove(section)

        def newer(section=section):
            section.version += 1

        yield section.name, 'moved', swap
        yield section.name, 'doubled', double
        yield section.name, 'dropped', drop
        yield section.name, 'newer', newer
        for field in section.fields:
            def ones(field=field):
                field.value = b'\xff' * len(field.value)

            def noise(field=field):
                field.value = random.randbytes(len(field.value))

            def flip(field=field):
                if not field.value:
                    return
                at = random.randrange(len(field.value))
                field.value = field.value[:at] + bytes([field.value[at] ^ 1 << random.randrange(8)]) + field.value[at + 1:]

            def shorter(field=field):
                field.value = field.value[:-1] if field.value else b'\0'

            def other_type(field=field):
                field.kind = field.kind % 7 + 1

            def renamed(field=field):
                field.name = field.name[:-1] + b'~'

            def doubled(section=section, field=field):
                section.fields.append(field)

            def dropped(section=section, field=field):
                section.fields.remove(field)

            def first(section=section, field=field):
                section.fields.remove(field)
                section.fields.insert(0, field)

            for change in (ones, noise, flip, shorter, other_type, renamed, doubled, dropped, first):
                yield section.name, '%s.%s' % (change.__name__, field.name.decode()), change


MUST_REFUSE = ('doubled', 'dropped', 'newer', 'shorter.', 'other_type.', 'renamed.', 'doubled.', 'dropped.')


def try_wrong(m, data, index):
    """Applies one mutation; returns what is wrong with the way it was taken, or None, and whether it was refused."""
    file = SavedFile(data)
    section, what, change = list(mutations(file))[index]
    change()
    label = 'number %d, %s %s: ' % (index, section.decode(), what)
    try:
        status, _, errors = restore(m, m.path('wrong.fonda', file.encode()), '--timeout', '1', '--no-reboot', patience=None)
    except Failure:
        return label + 'does not end', False
    crashed = status < 0 or status in (134, 136, 139) or 'Sanitizer' in errors
    taken = what.startswith(MUST_REFUSE) and (status != 2 or section.decode() not in errors)
    label += 'status %d: %s' % (status, errors[-300:])
    return label if crashed or taken else None, status == 2


def test_wrong_fields(m):
    """Refused with one line, or harmless: never a crash. FONDA_STATE_FUZZ=all tries every one, FIRST:LAST those numbers."""
    path, _ = saved(m, options=('--balloon', '--disk', m.path('raw.img', bytes(1 << 20)) + ',format=raw', '--net', 'user'))
    with open(path, 'rb') as f:
        data = f.read()
    seed = int(os.environ.get('FONDA_TEST_SEED', time.time_ns() % 1000000))
    print('# seed %d' % seed)
    random.seed(seed)
    count, which = len(list(mutations(SavedFile(data)))), os.environ.get('FONDA_STATE_FUZZ', '')
    if ':' in which:
        first, last = which.split(':')
        numbers = range(int(first or 0), min(int(last or count), count))
    else:
        numbers = range(count) if which == 'all' else sorted(random.sample(range(count), 120))
    wrong, refused = [], 0
    for number in numbers:
        label, was_refused = try_wrong(m, data, number)
        if label:
            print('# ' + label.replace('\n', ' '), flush=True)
            wrong.append(label)
        refused += was_refused
    print('# %d of %d tried: %d refused, %d run' % (len(numbers), count, refused, len(numbers) - refused))
    check(not wrong, '%d are taken wrongly' % len(wrong))


def test_killed_while_saving(m):
    """The old file or the new one, whole; the machine's process dies at any moment."""
    path, _ = saved(m, noise=True)
    with open(path, 'rb') as f:
        old = f.read()
    for delay_ms in (0, 2, 5, 10, 20, 40, 80):
        with Vm(m, '--restore', path) as vm:
            vm.expect('[a-p]{5}')
            with vm.control() as control:
                control.send('save', file=path)
                time.sleep(delay_ms / 1000)
                os.kill(vm.pid, signal.SIGKILL)
            vm.wait()
        with open(path, 'rb') as f:
            new = f.read()
        if new != old:
            status, text, errors = restore(m, path, '--timeout', '2')
            check(status == TIMEOUT and len(text) > 3, 'after %d ms: %s' % (delay_ms, errors))
            check_counts(text)
            old = new


def test_no_room(m):
    """The file's size is limited: the machine says so, and goes on."""
    path = m.path('no-room.fonda')
    with Vm(m, '--kernel', counting(m, noise=True), *SMALL) as vm:
        vm.expect('abcd')
        with vm.control() as control:
            for limit in (0, 100, 5000, 20000, 1 << 20):
                resource.prlimit(inside(vm.pid), resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    control.job('save', file=path)
                    raise Failure('a limit of %d bytes was passed' % limit)
                except Refused as e:
                    check('cannot write' in str(e), str(e))
                check(not os.path.exists(path) and not os.path.exists(path + '.partial'), 'something was left behind')
                check_equal(control.call('status')['state'], 'running', 'state')
                vm.expect('[a-p]{20}')
            resource.prlimit(inside(vm.pid), resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            control.job('save', file=path)
        vm.wait()
        text = vm.text
    status, more, _ = restore(m, path, '--timeout', '2')
    check_equal(status, TIMEOUT, 'status')
    check_counts(text + more)


def named_commands(m, fonda, argv, one):
    with Control(os.path.join(m.work, 'fonda', 'one', 'control.sock')) as control:
        control.call('status')
    check('one' in fonda('vm', 'ps')[1] and 'running' in fonda('vm', 'ps')[1], 'fonda ps: ' + fonda('vm', 'ps')[1])
    check_equal(fonda('vm', 'pause', 'one'), (0, '', ''), 'fonda pause')
    check('paused' in fonda('vm', 'ps')[1], 'fonda ps: ' + fonda('vm', 'ps')[1])
    check_equal(fonda('vm', 'resume', 'one'), (0, '', ''), 'fonda resume')
    check('"port accesses"' in fonda('vm', 'stats', 'one')[1], 'no counters')
    check_equal(m.run(argv)[0], 2, 'status of a second one of that name')
    check('no machine named' in fonda('vm', 'pause', 'two')[2], 'no such machine')
    console = subprocess.Popen([m.fonda, 'vm', 'console', 'one'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    check_counts(console.stdout.read(64).decode())
    console.stdin.write(b'\x1d')
    console.stdin.flush()
    check_equal(console.wait(60), 0, 'status of fonda console')
    console.stdout.close()
    console.stdin.close()
    check_equal(fonda('vm', 'stop', '--force', 'one'), (0, '', ''), 'fonda stop')
    check_equal(one.wait(60), OFF, 'status of the machine')


def test_commands(m):
    """fonda vm: ps, pause, resume, stats, console, stop by name."""
    os.environ['XDG_RUNTIME_DIR'] = m.work

    def fonda(*args):
        return m.run([m.fonda, *args])

    with Vm(m, '--kernel', counting(m), *SMALL, '--timeout', '120') as other:
        argv = [m.fonda, 'run', '--kernel', counting(m), *SMALL, '--serial', 'none', '--name', 'one']
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one:
            try:
                named_commands(m, fonda, argv, one)
            finally:
                one.kill()
        check('one' not in fonda('vm', 'ps')[1].split(), 'it is still listed')
        other.send('\x01x')
        check_equal(other.wait(), KILLED, 'status of the other one')


def refused(m, path, *words, options=()):
    status, _, errors = restore(m, path, '--timeout', '20', *options)
    check(status in (2, 116), 'status %d: %s' % (status, errors))
    check(len(errors.strip().split('\n')) == 1, 'not one line: ' + errors)
    for word in words:
        check(word in errors, 'no %r in: %s' % (word, errors))


def test_what_does_not_fit_is_refused(m):
    """Another engine, disks that are missing or others, options of the machine: each by name."""
    disk = m.path('disk.raw', bytes(1 << 20))
    path, _ = saved(m, options=('--disk', disk + ',format=raw'))
    refused(m, path, "unknown engine 'none'", options=('--engine', 'none'))
    if not engine_usable(m, 'kvm'):
        refused(m, path, "engine 'kvm' can't be used here", options=('--engine', 'kvm'))
    refused(m, path, "'--memory' can't be given", options=('--memory', '8M'))
    refused(m, path, "'--disk' can't be given", options=('--disk', disk))
    with open(disk, 'r+b') as f:
        f.truncate(2 << 20)
    refused(m, path, 'disk.raw', 'had 1048576 bytes')
    os.unlink(disk)
    refused(m, path, 'disk.raw', 'No such file')
    m.run([m.fonda, 'image', 'create', '--size', '1M', m.path('other.qcow2')])
    os.rename(m.path('other.qcow2'), disk)
    refused(m, path, 'disk.raw')


def test_places_that_cannot_be_saved_to(m):
    """The machine says so and goes on. An ephemeral one can't be saved at all."""
    with Vm(m, '--kernel', counting(m), *SMALL) as vm:
        vm.expect('abcd')
        with vm.control() as control:
            os.mkdir(m.path('directory'))
            for path, word in ((m.path('missing/x.fonda'), 'No such file'), ('/proc/x.fonda', 'cannot make'),
                               (m.path('directory'), "directory'"), ('relative.fonda', 'absolute')):
                try:
                    control.job('save', file=path)
                    raise Failure('saved to ' + path)
                except Refused as e:
                    check(word in str(e), str(e))
                check_equal(control.call('status')['state'], 'running', 'state')
            vm.expect('[a-p]{20}')
            control.call('quit')
        vm.wait()
        check_counts(vm.text)
    check_equal([name for name in os.listdir(m.work) if 'partial' in name], [], 'left behind')
    with Vm(m, '--kernel', counting(m), *SMALL, '--ephemeral', '--disk', m.path('e.raw', bytes(1 << 20)) + ',format=raw') as vm:
        vm.expect('abcd')
        try:
            vm.save(m.path('e.fonda'))
            raise Failure('an ephemeral machine was saved')
        except Refused as e:
            check('ephemeral' in str(e), str(e))
        vm.expect('[a-p]{20}')
