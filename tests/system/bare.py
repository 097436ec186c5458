"""How machines end, and what the terminal does: shown with guests of a few instructions."""
import os
import signal
import struct
import subprocess
import termios
import time

from harness import (CLI, HALTED, HANG, HLT, KILLED, OFF, PANIC, SHUTDOWN, TIMEOUT, UD2, WATCHDOG, Session, check,
                     check_equal, out, say)

REPORT = r'vCPU 0:\n  RIP [0-9a-f]{16}'


def test_exit_port(m):
    for value in (0, 1, 5, 100):
        status, _, _ = m.run(m.argv(m.bare('exit', out(0xf4, value) + HANG)))
        check_equal(status, value * 2 + 1, 'status for the exit port value %d' % value)


def test_serial_output(m):
    status, text, errors = m.run(m.argv(m.bare('say', say('hello, host\n') + out(0xf4, 0) + HANG)))
    check_equal((status, text, errors), (1, 'hello, host\n', ''), 'status, output and messages')


def test_serial_to_a_file(m):
    image, log = m.bare('say', say('to a file\n') + out(0xf4, 0) + HANG), m.path('serial.log')
    status, text, _ = m.run(m.argv(image, '--serial', log))
    check_equal((status, text), (1, ''), 'status and output')
    with open(log, encoding='ascii') as f:
        check_equal(f.read(), 'to a file\n', 'the file')
    check_equal(m.run(m.argv(image, '--serial=none'))[:2], (1, ''), 'status and output without a serial port')


def test_power_off(m):
    # ACPI: SLP_TYP 5 and SLP_EN into PM1_CNT (port 0x604): mov dx, 0x604; mov ax, 0x3400; out dx, ax
    image = m.bare('off', b'\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef' + HANG)
    check_equal(m.run(m.argv(image)), (OFF, '', ''), 'status, output and messages')


def test_triple_fault(m):
    status, _, errors = m.run(m.argv(m.bare('triple', UD2)))
    check_equal(status, SHUTDOWN, 'status')
    check('the guest ended: triple fault' in errors, 'no reason in: ' + errors)
    for part in ('RIP 0000000000100020', 'CR0', 'CR3', 'CR4', 'CS  '):
        check(part in errors, 'no %s in: %s' % (part, errors))


def test_halted_for_good(m):
    status, _, errors = m.run(m.argv(m.bare('halt', CLI + HLT)))
    check_equal(status, HALTED, 'status')
    check('the guest ended: halted' in errors, 'no reason in: ' + errors)


def test_panic_port(m):
    status, _, errors = m.run(m.argv(m.bare('panic', out(0x505, 1) + HANG)))
    check_equal(status, PANIC, 'status')
    check('panicked' in errors, 'no reason in: ' + errors)


def test_watchdog(m):
    """Nobody feeds it: a reset, which under --no-reboot has a status of its own."""
    def out32(port, value):  # mov dx, port; mov eax, value; out dx, eax
        return b'\x66\xba' + struct.pack('<H', port) + b'\xb8' + struct.pack('<I', value) + b'\xef'
    # COUNT and CONTROL of dev/legacy/watchdog.h: two periods of 100 ms
    image = m.bare('watchdog', say('up\n') + out32(0x624, 2) + out32(0x620, 1) + HANG)
    status, text, errors = m.run(m.argv(image, '--no-reboot'))
    check_equal((status, text), (WATCHDOG, 'up\n'), 'status and output under --no-reboot')
    check("the guest's watchdog ran out" in errors, 'no reason in: ' + errors)
    with Session(m.argv(image)) as s:
        s.expect('up\n')
        s.expect('up\n')  # started again
        s.send('\x01x')
        check_equal(s.wait(), KILLED, 'status')


def test_timeout_with_interrupts_off(m):
    status, _, errors = m.run(m.argv(m.bare('hang', HANG), '--timeout', '1'))
    check_equal(status, TIMEOUT, 'status')
    check('the guest ended: timeout' in errors, 'no reason in: ' + errors)
    check('RIP 0000000000100021' in errors, 'no RIP in: ' + errors)


def test_signals_end_it(m):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = subprocess.Popen(m.argv(m.bare('hang', say('up') + HANG)), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check_equal(process.stdout.read(2), b'up', 'output')
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        check_equal(process.returncode, KILLED, 'status for signal %d' % number)
        check(b'the guest ended: killed' in errors, 'no reason in: %r' % errors)


def test_ctrl_a_x_with_interrupts_off(m):
    with m.session(m.bare('hang', say('running\n') + HANG)) as s:
        s.expect('running')
        s.send('\x01x')
        check_equal(s.wait(60), KILLED, 'status')
        s.expect(REPORT)


def test_ctrl_a_h_and_s(m):
    with m.session(m.bare('hang', say('running\n') + HANG)) as s:
        s.expect('running')
        s.send('\x01h')
        s.expect('Ctrl-A X  end the machine')
        s.send('\x01s')
        s.expect('fonda: counters')
        s.send('\x01X')
        check_equal(s.wait(60), KILLED, 'status')


# Echoes what it receives: wait for LSR bit 0; read; write; a received 'q' ends it by the exit port.
ECHO = (b'\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7'  # l: mov dx, 0x3fd; in al, dx; test al, 1; jz l
        b'\x66\xba\xf8\x03\xec\x3c\x71\x74\x03'  # mov dx, 0x3f8; in al, dx; cmp al, 'q'; je end
        b'\xee\xeb\xeb'                          # out dx, al; jmp l
        + out(0xf4, 0) + HANG)


def test_input_from_a_terminal(m):
    with m.session(m.bare('echo', say('>') + ECHO)) as s:
        s.expect('>')
        # What is typed comes back once: the terminal is raw, and only the guest echoes.
        s.send('abc\x01\x01d\x01zq')
        check_equal(s.wait(60), 1, 'status')
        check_equal(s.text, '>abc\x01d\x01z', 'output')


def test_input_from_a_pipe_and_a_file(m):
    image, data = m.bare('echo', ECHO), bytes(b for b in range(256) if b != ord('q')) * 8
    with open(m.path('input', data + b'q'), 'rb') as f:
        status, text, _ = m.run(m.argv(image), stdin=f)
        check_equal((status, text), (1, data.decode('latin-1')), 'status and output, file')
    process = subprocess.Popen(m.argv(image), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, _ = process.communicate(data + b'q', timeout=120)
    check_equal((process.returncode, output), (1, data), 'status and output, pipe')


def terminal_is_cooked(fd):
    return bool(termios.tcgetattr(fd)[3] & termios.ICANON)


def test_terminal_comes_back(m):
    # fonda as the child of a shell, so that the terminal outlives it.
    image = m.bare('hang', say('running\n') + HANG)
    for end in ('keys', 'kill'):
        line = ' '.join(m.argv(image)) + ' 2>/dev/null; echo status=$?; read x'
        with Session(['/bin/sh', '-c', line]) as s:
            s.expect('running')
            check(not terminal_is_cooked(s.fd), 'the terminal is not raw while the guest runs')
            if end == 'keys':
                s.send('\x01x')
            else:
                pids = subprocess.run(['pgrep', '-P', str(s.pid)], capture_output=True, text=True).stdout.split()
                os.kill(int(pids[0]), signal.SIGKILL)
            s.expect('status=%d' % (KILLED if end == 'keys' else 137), 60)
            deadline = time.monotonic() + 30
            while not terminal_is_cooked(s.fd) and time.monotonic() < deadline:
                time.sleep(0.05)
            check(terminal_is_cooked(s.fd), 'the terminal stays raw behind ' + end)
            s.send('\n')
            s.wait(30)


def test_reboot(m):
    # Port 0xcf9: a reset. 'R' on every start.
    image = m.bare('reboot', say('R\n') + out(0xcf9, 6) + HANG)
    check_equal(m.run(m.argv(image, '--no-reboot')), (OFF, 'R\n', ''), 'status, output and messages, --no-reboot')
    with m.session(image) as s:
        for _ in range(5):
            s.expect('R\n')
        s.send('\x01x')
        check_equal(s.wait(60), KILLED, 'status')
    # A keyboard controller's reset, too.
    image = m.bare('reboot8042', out(0x64, 0xfe) + HANG)
    check_equal(m.run(m.argv(image, '--no-reboot'))[0], OFF, 'status, 8042')


def test_memory_is_fresh_after_reboot(m):
    # mov al, [0x100000 + 32 + N] (a byte of the image); add 1 to it in memory; print it; reset. The image comes anew.
    code = b'\xfe\x05' + (0x100000 + 32 + 60).to_bytes(4, 'little') + b'\xa0' + (0x100000 + 32 + 60).to_bytes(
        4, 'little') + b'\x66\xba\xf8\x03\xee' + out(0xcf9, 6) + HANG
    image = m.bare('fresh', code.ljust(60, b'\x90') + b'A')
    with m.session(image) as s:
        s.expect('BBB')
        s.send('\x01x')
        check_equal(s.wait(60), KILLED, 'status')


def test_stats(m):
    status, _, errors = m.run(m.argv(m.bare('exit', out(0xf4, 0) + HANG), '--stats'))
    check_equal(status, 1, 'status')
    for part in ('fonda: counters', 'exits', 'time', 'machine', 'port-writes'):
        check(part in errors, 'no %s in: %s' % (part, errors))


def store32(address, value):
    """mov dword [address], value"""
    return b'\xc7\x05' + address.to_bytes(4, 'little') + value.to_bytes(4, 'little')


def test_second_vcpu(m):
    # The first vCPU puts real-mode code at 0x30000 and starts the second there; the second ends the machine.
    trampoline = b'\xba\xf8\x03\xb0A\xee\xb0\x07\xe6\xf4\xfa\xf4'  # out 0x3f8, 'A'; out 0xf4, 7; cli; hlt
    code = b''.join(store32(0x30000 + i, int.from_bytes(trampoline[i:i + 4], 'little'))
                    for i in range(0, len(trampoline), 4))
    code += store32(0xfee00310, 1 << 24)  # ICR: to APIC id 1
    code += store32(0xfee00300, 0x4500)   # INIT
    code += store32(0xfee00300, 0x4630)   # start-up at 0x30 * 4096
    image = m.bare('smp', code + CLI + HLT)
    check_equal(m.run(m.argv(image, '--cpus', '2'))[:2], (15, 'A'), 'status and output')
    # With one vCPU nobody answers.
    check_equal(m.run(m.argv(image))[0], HALTED, 'status with one vCPU')
