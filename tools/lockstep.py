#!/usr/bin/env python3
"""Drives two machines in lock step over their gdb stubs and reports the first difference in their registers.

    lockstep.py HOST:PORT HOST:PORT [--mode step|block|points] [--count N] ...
    lockstep.py --self-test

Both machines have to be stopped at the same instruction (`-S` in QEMU), and to run a guest that does
not depend on time: asynchronous interrupts come at different instructions on different machines. After an instruction
whose result may differ by right (RDTSC, RDTSCP, RDRAND, RDSEED, CPUID, IN) the first machine's registers are copied to
the second; --strict turns that off.

Modes: `step` compares after every instruction. `block` steps the first machine to the next taken jump and lets the second
run to a breakpoint there, so that translated code with its chaining is what is compared. `points` runs both from one
breakpoint of --at to the next.

Speaks the remote serial protocol itself (gdb manual, appendix E); needs no gdb. Exit status: 0 no difference, 1 a
difference, 2 wrong usage or a stub that does not answer.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

# The registers that every amd64 stub has first in its `g` packet (gdb manual, appendix G.5, feature org.gnu.gdb.i386.core).
CORE = [(name, 64) for name in ('rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip').split()] + \
       [(name, 32) for name in 'eflags cs ss ds es fs gs'.split()]
SYSTEM = ['ss_base', 'ds_base', 'es_base', 'fs_base', 'gs_base', 'k_gs_base', 'cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer']
FLAG_NAMES = {0: 'CF', 2: 'PF', 4: 'AF', 6: 'ZF', 7: 'SF', 8: 'TF', 9: 'IF', 10: 'DF', 11: 'OF', 14: 'NT', 16: 'RF',
              17: 'VM', 18: 'AC', 19: 'VIF', 20: 'VIP', 21: 'ID'}
PREFIXES = set(b'\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3')


class StubError(Exception):
    pass


class Stub:
    """One gdb stub. Registers are read as a dict of integers."""

    def __init__(self, address, timeout=30.0):
        host, _, port = address.rpartition(':')
        self.address = address
        self.pending = b''
        self.timeout = timeout
        try:
            self.socket = socket.create_connection((host or '127.0.0.1', int(port)), timeout=timeout)
        except (OSError, ValueError) as error:
            raise StubError(f'{address}: {error}') from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask('qSupported:xmlRegisters=i386')
        self.layout = self._layout()
        self.ask('?')

    def _receive(self):
        try:
            data = self.socket.recv(65536)
        except OSError as error:
            raise StubError(f'{self.address}: {error}') from error
        if not data:
            raise StubError(f'{self.address}: connection closed')
        self.pending += data

    def _packet(self):
        """The next packet's payload; anything but packets (acknowledgements) is passed over."""
        while True:
            match = re.search(rb'\$([^#]*)#..', self.pending, re.DOTALL)
            if match:
                self.pending = self.pending[match.end():]
                self.socket.sendall(b'+')
                return match[1]
            self._receive()

    def send(self, text):
        raw = text.encode('latin-1')
        self.socket.sendall(b'$' + raw + b'#%02x' % (sum(raw) & 0xff))

    def ask(self, text):
        self.send(text)
        return self._packet().decode('latin-1')

    def _feature(self, name):
        text, offset = '', 0
        while True:
            reply = self.ask(f'qXfer:features:read:{name}:{offset:x},ffb')
            if not reply or reply[0] not in 'ml':
                return text
            body = re.sub(r'}(.)', lambda m: chr(ord(m[1]) ^ 0x20), reply[1:], flags=re.DOTALL)
            text += body
            offset += len(body)
            if reply[0] == 'l':
                return text

    def _layout(self):
        """[(name, bits)] of the `g` packet, from the target description, or the core registers alone."""
        text = self._feature('target.xml')
        text = re.sub(r'<xi:include href="([^"]+)"/>', lambda m: self._feature(m[1]), text)
        found = []
        for tag in re.findall(r'<reg\s[^>]*>', text):
            name, bits = re.search(r'name="([^"]+)"', tag), re.search(r'bitsize="(\d+)"', tag)
            if name and bits:
                found.append((name[1], int(bits[1])))
        return found if [n for n, _ in found[:24]] == [n for n, _ in CORE] else CORE

    def registers(self):
        raw = self.ask('g')
        if raw.startswith('E'):
            raise StubError(f'{self.address}: cannot read registers: {raw}')
        # QEMU sends segment bases as 32 bits while the CPU runs no 64-bit code, whatever its description says.
        missing = sum(bits for _, bits in self.layout) // 4 - len(raw)
        short = missing == 8 * sum(name.endswith('_base') for name, _ in self.layout)
        values, at = {}, 0
        for name, bits in self.layout:
            if short and name.endswith('_base'):
                bits = 32
            digits = raw[at:at + bits // 4]
            at += bits // 4
            if len(digits) == bits // 4 and 'x' not in digits:
                values[name] = int.from_bytes(bytes.fromhex(digits), 'little')
        return values

    def write_register(self, name, value):
        for number, (known, bits) in enumerate(self.layout):
            if known == name:
                if self.ask(f'P{number:x}={value.to_bytes(bits // 8, "little").hex()}') != 'OK':
                    raise StubError(f'{self.address}: cannot write {name}')

    def memory(self, address, size):
        raw = self.ask(f'm{address:x},{size:x}')
        try:
            return bytes.fromhex(raw)
        except ValueError:
            return b''

    def go(self, command):
        """Sends `s` or `c` without waiting, so that both machines run at the same time."""
        self.send(command)

    def stopped(self):
        """Waits for the stop that answers go()."""
        while True:
            reply = self._packet().decode('latin-1')
            if reply[:1] in ('T', 'S'):
                return
            if reply[:1] in ('W', 'X'):
                raise StubError(f'{self.address}: the machine has ended ({reply})')

    def stopped_within(self, seconds):
        """As stopped(), but interrupts a machine that runs on; the caller sees by its registers where it is."""
        self.socket.settimeout(seconds)
        try:
            self.stopped()
        except StubError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            self.socket.settimeout(self.timeout)
            self.socket.sendall(b'\x03')
            self.stopped()
        finally:
            self.socket.settimeout(self.timeout)

    def breakpoint(self, address, hardware, insert):
        letter = 'Z' if insert else 'z'
        reply = self.ask(f'{letter}{1 if hardware else 0},{address:x},1')
        if reply != 'OK':
            raise StubError(f'{self.address}: breakpoint at {address:#x} refused ({reply or "not supported"})')


def linear_pc(regs):
    """Where the next instruction lies in memory; outside protected mode the stub's RIP is an offset into CS."""
    real_mode = 'cr0' in regs and not regs['cr0'] & 1
    return (regs['cs'] << 4) + regs['rip'] & 0xffffffff if real_mode else regs['rip']


def may_differ(code):
    """Whether the instruction's result differs between correct machines."""
    i = 0
    while i < len(code) and code[i] in PREFIXES:
        i += 1
    if i < len(code) and 0x40 <= code[i] <= 0x4f:
        i += 1
    op = code[i:i + 3].ljust(3, b'\0')
    if op[0] in (0xe4, 0xe5, 0xec, 0xed, 0x6c, 0x6d):
        return True
    if op[:2] in (b'\x0f\x31', b'\x0f\xa2') or op == b'\x0f\x01\xf9':
        return True
    return op[:2] == b'\x0f\xc7' and op[2] >= 0xc0 and op[2] >> 3 & 7 in (6, 7)


def disassemble(code, regs):
    """The first instructions of the bytes as objdump writes them, or the bytes."""
    efer, cr0 = regs.get('efer', 0x400), regs.get('cr0', 1)
    arch = 'i386:x86-64' if efer & 0x400 else 'i386' if cr0 & 1 else 'i8086'
    with tempfile.NamedTemporaryFile() as f:
        f.write(code)
        f.flush()
        try:
            text = subprocess.run(['objdump', '-D', '-b', 'binary', '-m', arch, f'--adjust-vma={linear_pc(regs):#x}', f.name],
                                  capture_output=True, text=True).stdout
        except OSError:
            return ['(no objdump) ' + code.hex(' ')]
    lines = [line.strip() for line in text.splitlines() if re.match(r'\s*[0-9a-f]+:\t', line)]
    return lines[:3] or [code.hex(' ')]


def compared(options, a, b):
    names = [n for n in a if n in b]
    if not options.all:
        core = {n for n, _ in CORE} | set(SYSTEM)
        names = [n for n in names if n in core]
    return [n for n in names if n not in options.ignore]


def differences(options, a, b):
    """Lines that say which registers differ."""
    lines = []
    for name in compared(options, a, b):
        mask = options.flag_mask if name == 'eflags' else -1
        if (a[name] ^ b[name]) & mask:
            text = f'{name:8} {a[name]:#018x} {b[name]:#018x}'
            if name == 'eflags':
                bits = (a[name] ^ b[name]) & mask
                text += '  ' + ' '.join(FLAG_NAMES.get(i, f'bit {i}') for i in range(32) if bits >> i & 1)
            lines.append(text)
    return lines


def step_both(a, b):
    a.go('s')
    b.go('s')
    a.stopped()
    b.stopped()
    return 1


def changes_mode(before, after):
    return any(before.get(name) != after.get(name) for name in ('cs', 'cr0', 'efer'))


def run_block(a, b, before, options):
    """The first machine steps to the next taken jump; the second runs there. Returns the instructions stepped."""
    start, regs, steps = linear_pc(before), before, 0
    while steps < options.block_limit:
        was = linear_pc(regs)
        if steps and may_differ(a.memory(was, 16)):
            break
        a.go('s')
        a.stopped()
        steps += 1
        regs = a.registers()
        if not was < linear_pc(regs) <= was + 15 or changes_mode(before, regs):
            break
    target = linear_pc(regs)
    # A jump back into the stretch just run (or onto its start) would stop the second machine too early, and between a
    # change of CR0.PE and the far jump that follows no stub tells where CS lies: step it.
    if start <= target <= was or changes_mode(before, regs):
        for _ in range(steps):
            b.go('s')
            b.stopped()
        return steps
    b.breakpoint(target, options.hardware, True)
    b.go('c')
    b.stopped_within(options.patience)
    b.breakpoint(target, options.hardware, False)
    return steps


def run_points(a, b, options):
    """Both go on to the next of the breakpoints, having stepped off the one they may be on."""
    step_both(a, b)
    if linear_pc(a.registers()) not in options.at:
        a.go('c')
        b.go('c')
        a.stopped_within(options.patience)
        b.stopped_within(options.patience)
    return 1


def lockstep(a, b, options, say=print):
    """Runs until a difference or --count. Returns None, or the linear address of the instruction that made it."""
    before = a.registers()
    found = differences(options, before, b.registers())
    if found:
        say('the machines differ before the first step:')
        say('\n'.join(found))
        return linear_pc(before)
    if options.mode == 'points':
        for stub in (a, b):
            for address in options.at:
                stub.breakpoint(address, options.hardware, True)
    done, last_news = 0, time.monotonic()
    while done < options.count:
        pc = linear_pc(before)
        code = a.memory(pc, 32)
        free = not options.strict and options.mode != 'points' and may_differ(code)
        if options.mode == 'step' or free:
            done += step_both(a, b)
        elif options.mode == 'block':
            done += run_block(a, b, before, options)
        else:
            done += run_points(a, b, options)
        after, other = a.registers(), b.registers()
        found = differences(options, after, other)
        if found and free:
            for line in found:
                b.write_register(line.split()[0], after[line.split()[0]])
            found = differences(options, after, b.registers())
        if found:
            say(f'after {done} instructions, at:' if options.mode == 'step' else f'after {done} steps, in the code from:')
            say('\n'.join('  ' + line for line in disassemble(code, before)))
            say('before: ' + ' '.join(f'{n}={before[n]:#x}' for n, _ in CORE if n in before))
            say(f'{"":8} {a.address:18} {b.address:18}')
            say('\n'.join(found))
            return pc
        before = after
        if time.monotonic() - last_news > 5:
            last_news = time.monotonic()
            print(f'lockstep: {done} done, at {linear_pc(before):#x}', file=sys.stderr, flush=True)
    return None


# A firmware image of 64 KiB: real mode, 32-bit protected mode, then long mode, with loops, calls, a stack, RDTSC and
# CPUID. {odd} is where the second image of the self-test differs.
SELF_TEST = '''
        .code16
start:  cli
        xor %ax, %ax
        mov %ax, %ss
        mov $0x7c00, %sp
        mov $20, %cx
1:      add $0x1357, %ax
        rol $3, %ax
        push %ax
        pop %bx
        loop 1b
        lgdtl %cs:gdtr - start
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmpl $8, $protected - start + 0xf0000
        .balign 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr:   .word 31
        .long gdt - start + 0xf0000
        .code32
protected:
        mov $16, %eax
        mov %eax, %ds
        mov %eax, %ss
        mov $0x7000, %esp
        rdtsc
        cpuid
        mov $0x12345678, %eax
        mov $30, %ecx
2:      call work
        dec %ecx
        jnz 2b
        movl $0x11003, 0x10000
        movl $0x12003, 0x11000
        movl $0x83, 0x12000
        mov $0x10000, %eax
        mov %eax, %cr3
        mov $0x20, %eax
        mov %eax, %cr4
        mov $0xc0000080, %ecx
        rdmsr
        or $0x100, %eax
        wrmsr
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        ljmpl $0x18, $long - start + 0xf0000
work:   imul $1103515245, %eax, %eax
        add $12345, %eax
        mov %eax, 0x1000
        xor 0x1000, %edx
        cmp %edx, %eax
        jb 4f
        not %edx
4:      ret
        .code64
long:   mov $0x123456789abcdef0, %r11
        mov $40, %r12d
5:      call work64
        dec %r12d
        jnz 5b
odd:    {odd}
3:      call work64
        jmp 3b
work64: imul $1103515245, %r11, %r11
        adc %r11, %rdx
        push %rdx
        pop %r8
        cmp %r8d, %r11d
        jb 4f
        not %r8
4:      ret
        .org 0xfff0
        .code16
        .byte 0xea
        .word 0, 0xf000
        .org 0x10000
'''


def self_test():
    """Two QEMUs: the same image must show no difference, two images the difference that was planted, in each mode."""
    def image(folder, name, odd):
        base = os.path.join(folder, name)
        with open(base + '.s', 'w') as f:
            f.write(SELF_TEST.replace('{odd}', odd))
        subprocess.run(['as', '--64', base + '.s', '-o', base + '.o'], check=True)
        subprocess.run(['objcopy', '-O', 'binary', '-j', '.text', base + '.o', base + '.bin'], check=True)
        symbols = subprocess.run(['nm', base + '.o'], check=True, capture_output=True, text=True).stdout
        return base + '.bin', 0xf0000 + int(re.search(r'(\w+) t odd$', symbols, re.MULTILINE)[1], 16)

    def free_port():
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            return s.getsockname()[1]

    def connect(address):
        for attempt in range(100):
            try:
                return Stub(address)
            except StubError:
                if attempt == 99:
                    raise
                time.sleep(0.1)

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        one, where = image(folder, 'one', 'or $1, %esi')
        two, _ = image(folder, 'two', 'or $2, %esi')
        cases = [('step', one, one, None), ('block', one, one, None), ('step', one, two, where), ('block', one, two, where),
                 ('points', one, two, where)]
        for mode, first, second, expected in cases:
            machines, addresses = [], []
            try:
                for bios in (first, second):
                    addresses.append(f'127.0.0.1:{free_port()}')
                    machines.append(subprocess.Popen(
                        ['qemu-system-x86_64', '-accel', 'tcg', '-display', 'none', '-nodefaults', '-m', '16M', '-bios', bios,
                         '-S', '-gdb', 'tcp:' + addresses[-1]], stdin=subprocess.DEVNULL))
                a, b = (connect(address) for address in addresses)
                options = parse_arguments(addresses + ['--mode', mode, '--count', '4' if mode == 'points' else '1200',
                                                       '--at', hex(where) + ',' + hex(where + 3)])
                told = []
                found = lockstep(a, b, options, told.append)
            finally:
                for machine in machines:
                    machine.kill()
                    machine.wait()
            # In block mode the report names the block in which the planted instruction lies.
            near = found is not None and expected is not None and found <= expected < found + 32
            good = found == expected or (mode == 'block' and near)
            failed += not good
            print(f'{"ok" if good else "FAILED"}: {mode}, {"two images" if expected else "one image"}: '
                  f'{"no difference" if found is None else f"difference at {found:#x}"}')
            if not good:
                print('\n'.join(told))
    return 1 if failed else 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description='Run two machines in lock step over their gdb stubs.')
    parser.add_argument('stubs', nargs='*', metavar='HOST:PORT', help='the two gdb stubs')
    parser.add_argument('--mode', choices=['step', 'block', 'points'], default='step')
    parser.add_argument('--count', type=int, default=1000000, help='stop after so many instructions (points: stops)')
    parser.add_argument('--at', default='', help='addresses for mode points, comma-separated')
    parser.add_argument('--ignore', default='', help='registers not to compare, comma-separated')
    parser.add_argument('--flag-mask', type=lambda t: int(t, 0), default=0x3f7fd7, help='bits of EFLAGS to compare')
    parser.add_argument('--all', action='store_true', help='also compare x87 and vector registers')
    parser.add_argument('--strict', action='store_true', help='do not pass over RDTSC, CPUID and their like')
    parser.add_argument('--hardware', action='store_true', help='hardware breakpoints (Z1) instead of software ones (Z0)')
    parser.add_argument('--patience', type=float, default=10.0, help='seconds until a running machine is interrupted')
    parser.add_argument('--block-limit', type=int, default=200, help='most instructions in a block (default 200)')
    parser.add_argument('--self-test', action='store_true', help='run the check against two QEMUs')
    options = parser.parse_args(arguments)
    try:
        options.at = {int(t, 0) for t in options.at.split(',') if t}
    except ValueError:
        parser.error('--at takes addresses')
    options.ignore = set(options.ignore.split(','))
    if not options.self_test and len(options.stubs) != 2:
        parser.error('two stubs are needed')
    if options.mode == 'points' and not options.at:
        parser.error('mode points needs --at')
    return options


def main():
    options = parse_arguments(sys.argv[1:])
    if options.self_test:
        return self_test()
    try:
        a, b = (Stub(address) for address in options.stubs)
        if lockstep(a, b, options) is not None:
            return 1
    except StubError as error:
        print(f'lockstep: {error}', file=sys.stderr)
        return 2
    print('no difference')
    return 0


if __name__ == '__main__':
    sys.exit(main())
