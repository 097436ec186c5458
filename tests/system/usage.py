"""Bad input: one clear line, status 2, and nothing runs."""
import os
import struct

from harness import ENGINE, USAGE, check, check_equal

SEE = " (see 'fonda run --help')"


def bzimage():
    """The head of a Linux kernel that wants 8 MiB at 16 MiB."""
    data = bytearray(2048)
    data[0x1f1] = 1
    struct.pack_into('<I', data, 0x1f4, 64)
    struct.pack_into('<H', data, 0x1fe, 0xaa55)
    data[0x201] = 0x6a
    data[0x202:0x206] = b'HdrS'
    struct.pack_into('<H', data, 0x206, 0x20f)
    data[0x211] = 1
    struct.pack_into('<I', data, 0x22c, 0x7fffffff)
    struct.pack_into('<H', data, 0x236, 1)
    struct.pack_into('<I', data, 0x238, 255)
    struct.pack_into('<Q', data, 0x258, 16 << 20)
    struct.pack_into('<I', data, 0x260, 8 << 20)
    return bytes(data)


def elf(machine):
    data = bytearray(256)
    data[:6] = b'\x7fELF\x02\x01'
    struct.pack_into('<HH', data, 16, 2, machine)
    struct.pack_into('<QQ', data, 24, 0x200000, 64)
    struct.pack_into('<HH', data, 54, 56, 1)
    struct.pack_into('<IIQQQQQQ', data, 64, 1, 7, 128, 0x200000, 0x200000, 64, 64, 4096)
    return bytes(data)


# Arguments behind `fonda`, and the message behind "fonda: error: ".
CASES = [
    (['frob'], "unknown command 'frob' (see 'fonda help')"),
    (['--frob'], "unknown option '--frob' (see 'fonda help')"),
    (['run'], 'nothing to boot: name a disk image, or --kernel FILE' + SEE),
    (['run', '--frob'], "unknown option '--frob'" + SEE),
    (['run', '--frob=1'], "unknown option '--frob'" + SEE),
    (['run', '-k', 'x'], "unknown option '-k'" + SEE),
    (['run', '--kernel'], "option '--kernel' needs a value (FILE)" + SEE),
    (['run', '--kernel', 'x', 'y', 'z'], "unexpected argument 'z': further disks go by --disk" + SEE),
    (['run', '--kernel', 'x', '--stats=1'], "option '--stats' takes no value" + SEE),
    (['run', '--kernel', 'x', '--memory', '512'],
     "--memory: '512' has no unit: use K, M, G or T, as in 512M or 1.5G" + SEE),
    (['run', '--kernel', 'x', '--memory', '5Q'],
     "--memory: '5Q' has an unknown unit: use K, M, G or T, as in 512M or 1.5G" + SEE),
    (['run', '--kernel', 'x', '--memory', 'much'],
     "--memory: 'much' is not a size: write a number and a unit, such as 512M or 1.5G" + SEE),
    (['run', '--kernel', 'x', '--memory', '-1G'],
     "--memory: '-1G' is not a size: write a number and a unit, such as 512M or 1.5G" + SEE),
    (['run', '--kernel', 'x', '--memory', '0M'], "--memory: '0M' is not between 1 MiB and 64 TiB" + SEE),
    (['run', '--kernel', 'x', '--memory', '99999999T'],
     "--memory: '99999999T' is not between 1 MiB and 64 TiB" + SEE),
    (['run', '--kernel', 'x', '--cpus', '0'], "--cpus: '0' is not between 1 and 32" + SEE),
    (['run', '--kernel', 'x', '--cpus', '33'], "--cpus: '33' is not between 1 and 32" + SEE),
    (['run', '--kernel', 'x', '--cpus', 'two'], "--cpus: 'two' is not a number" + SEE),
    (['run', '--kernel', 'x', '--timeout', '0'], "--timeout: '0' is not between 1 and 31536000" + SEE),
    (['run', '--kernel', 'x', '--serial='], "--serial: '' is not stdio, none or a file" + SEE),
    (['run', '--kernel', 'none'], "kernel 'none': cannot open: No such file or directory"),
    (['run', '--kernel', '.'], "kernel '.': not a regular file"),
    (['run', '--kernel', 'empty'], "kernel 'empty': not a kernel: the file is empty"),
    (['run', '--kernel', 'text'], "kernel 'text': not a kernel: neither a bzImage, nor ELF with a PVH entry, nor "
     'multiboot'),
    (['run', '--kernel', 'gzip'], "kernel 'gzip': not a kernel: compressed by gzip (unpack it first)"),
    (['run', '--kernel', 'arm'], "kernel 'arm': an ELF file for AArch64, and the machine is x86-64"),
    (['run', '--kernel', 'program'], "kernel 'program': an ELF file without a PVH entry point or a multiboot header: "
     'not a kernel'),
    (['run', '--kernel', 'truncated'], "kernel 'truncated': the bzImage is truncated: 1500 bytes of the 2048 that its "
     'header announces'),
    (['run', '--kernel', 'linux', '--initrd', 'none'], "initrd 'none': cannot open: No such file or directory"),
    (['run', '--kernel', 'linux', '--append', 'x' * 256],
     "the kernel's command line has 256 bytes, and the kernel takes 255"),
    (['run', '--kernel', 'linux', '--memory', '16M'],
     'memory too small: the kernel needs 24 MiB and the machine has 16 MiB'),
    (['run', '--kernel', 'linux', '--initrd', 'big', '--memory', '26M'],
     'memory too small: the kernel needs 24 MiB, the initrd 3 MiB, and the machine has 26 MiB'),
    (['run', '--kernel', 'linux', '--serial', 'no/such/place'],
     "--serial: cannot open 'no/such/place': No such file or directory"),
    (['engines', 'x'], "unexpected argument 'x' (see 'fonda engines --help')"),
]


def make_files(m):
    m.path('empty', b'')
    m.path('text', b'#!/bin/sh\necho no kernel\n')
    m.path('gzip', b'\x1f\x8b\x08' + bytes(100))
    m.path('arm', elf(183))
    m.path('program', elf(62))
    m.path('linux', bzimage())
    m.path('truncated', bzimage()[:1500])
    m.path('big', bytes(3 << 20))


def run_case(m, args, message):
    if args[0] == 'run':
        args = ['run', '--engine', ENGINE, *args[1:]]
    status, text, errors = m.run([m.fonda, *args])
    check_equal((status, text, errors), (USAGE, '', 'fonda: error: %s\n' % message), ' '.join(args)[:200])


def test_bad_input(m):
    make_files(m)
    for args, message in CASES:
        run_case(m, args, message)


def test_unreadable_file(m):
    make_files(m)
    os.chmod(m.path('linux'), 0)
    if os.access(m.path('linux'), os.R_OK):  # root reads everything
        return
    run_case(m, ['run', '--kernel', 'linux'], "kernel 'linux': cannot open: Permission denied")


def test_unknown_engine(m):
    make_files(m)
    status, _, errors = m.run([m.fonda, 'run', '--kernel', 'linux', '--engine', 'steam'])
    check_equal(status, USAGE, 'status')
    check(errors.startswith("fonda: error: unknown engine 'steam': there is "), errors)


def test_unknown_cpu_model(m):
    status, _, errors = m.run(m.argv(m.bare('x', b'\xf4'), '--cpu-model', 'z80'))
    check_equal(status, USAGE, 'status')
    check("'z80'" in errors and errors.count('\n') == 1, errors)


def test_too_much_memory(m):
    make_files(m)
    status, _, errors = m.run(m.argv('linux', '--memory', '63T'))
    check_equal(status, USAGE, 'status')
    check(errors.startswith('fonda: error: --memory: 63 TiB is more than this host has ('), errors)


def test_help_and_version(m):
    status, text, errors = m.run([m.fonda, 'run', '--help'])
    check_equal((status, errors), (0, ''), 'status and messages')
    for part in ('--kernel FILE', '--timeout S', 'Exit status:', '124', 'Examples:'):
        check(part in text, 'no %r in the help' % part)
    status, text, _ = m.run([m.fonda, '--version'])
    check(status == 0 and text.startswith('fonda 0.'), text)
    check_equal(m.run([m.fonda, 'help', 'run']), m.run([m.fonda, 'run', '--help']), 'two ways to the same help')
    check_equal(m.run([m.fonda])[0], USAGE, 'status without a command')


def test_engines(m):
    status, text, _ = m.run([m.fonda, 'engines'])
    check_equal(status, 0, 'status')
    check('kvm ' in text and 'be used here' in text, text)
