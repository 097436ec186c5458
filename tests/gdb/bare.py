"""Runs inside of gdb, connected to tests/gdb/target.c held at its start; prints TAP. See tests/gdb/run."""
import re

import gdb

count = failed = 0


def ok(condition, text, got=''):
    global count, failed
    count += 1
    failed += not condition
    print('%sok %d - %s%s' % ('' if condition else 'not ', count, text, '' if condition else ' (got %s)' % (got,)), flush=True)


def equal(got, wanted, text):
    ok(got == wanted, text, '%r, wanted %r' % (got, wanted))


def do(command):
    return gdb.execute(command, to_string=True)


def refused(command):
    try:
        do(command)
    except gdb.error as e:
        return str(e)
    return None


def number(expression):
    if expression in ('$mxcsr', '$eflags'):  # of a type without casts
        return int(do('output/d ' + expression))
    return int(gdb.parse_and_eval('(unsigned long)(%s)' % expression))


def at(label):
    return number('&' + label)


stops = []
gdb.events.stop.connect(lambda event: stops.extend(p.number for p in getattr(event, 'breakpoints', [])))
exits = []
gdb.events.exited.connect(exits.append)


def cont():
    """The numbers of the breakpoints and watchpoints where it stopped."""
    del stops[:]
    do('continue')
    return list(stops)


def stops_at(label, text):
    equal(hex(number('$rip')), hex(at(label)), text)


def points(kind):
    """A breakpoint of this kind (break, hbreak) at several labels, one after the other."""
    for label in ('gdb_set', 'gdb_x87', 'gdb_rep'):
        do('%s *%d' % (kind, at(label)))
    for label in ('gdb_set', 'gdb_x87', 'gdb_rep'):
        out = cont()
        stops_at(label, '%s: stops before the instruction' % kind)
        ok(out, '%s: is reported as one' % kind, out)
    do('delete')


def registers():
    equal(number('$rax'), 0x1122334455667788, 'rax')
    equal(number('$rbx'), 6, 'rbx')
    equal((number('$r8'), number('$r15')), (2, 15), 'r8, r15')
    equal(number('$cs'), 8, 'cs')
    ok(number('$cr0') & 0x80000001 == 0x80000001, 'cr0: protection and paging', hex(number('$cr0')))
    ok(number('$efer') & 0x500 == 0x500, 'efer: long mode', hex(number('$efer')))
    ok(number('$cr3') % 4096 == 0 and number('$cr3') > 0, 'cr3', hex(number('$cr3')))
    ok(abs(float(gdb.parse_and_eval('$st0')) - 3.14159265358979) < 1e-12, 'st0 holds pi', gdb.parse_and_eval('$st0'))
    equal(number('$ftag'), 0x3fff, 'ftag: one register is in use')
    equal(number('$fctrl'), 0x37f, 'fctrl')
    equal(number('$xmm3.v2_int64[0]'), 0x1111222233334444, 'xmm3, low')
    equal(number('$xmm3.v2_int64[1]'), 0x5555666677778888, 'xmm3, high')
    equal(number('$mxcsr'), 0x1f80, 'mxcsr')
    out = do('info registers')
    ok(re.search(r'^k_gs_base', out, re.M) and re.search(r'^dr7', out, re.M), 'info registers has the system ones', out)
    out = do('monitor registers')
    ok('gdtr base' in out and 'lstar' in out and re.search(r'^cs +0008 ', out, re.M), 'monitor registers', out)


def write_registers():
    for name, value in (('$r9', 0xdeadbeefcafef00d), ('$xmm5.v2_int64[1]', 77), ('$fs_base', 0x123000), ('$mxcsr', 0x1fa0),
                        ('$dr1', 0x5000), ('$k_gs_base', 0x7000)):
        do('set var %s = %d' % (name, value))
        do('maintenance flush register-cache')
        equal(number(name), value, 'write of ' + name)
    do('set var $fs_base = 0')
    do('set var $mxcsr = 0x1f80')
    ok(refused('set var $cs = 0x33'), 'a selector is refused: it would need a descriptor')
    try:
        ymm = number('$ymm3.v4_int64[2]')
    except gdb.error:
        ymm = None  # no AVX on this host
    ok(ymm in (0, None), 'ymm3: the upper half', ymm)


def memory():
    equal(number('gdb_vector[2]'), 0x99aabbccddeeff00, 'memory by virtual address')
    do('set var gdb_vector[7] = 0x1234567812345678')
    equal(number('gdb_vector[7]'), 0x1234567812345678, 'memory written')
    address = at('gdb_vector')
    out = do('monitor walk %d' % address)
    ok('%#x -> %#x' % (address, address) in out, 'monitor walk', out)
    out = do('monitor phys %d 8' % address)
    ok('44 44 33 33 22 22 11 11' in out, 'monitor phys', out)
    do('monitor physical on')
    equal(number('gdb_vector[0]'), 0x1111222233334444, 'memory by physical address')
    do('monitor physical off')
    ok(refused('x/x 0x7ffffffff000'), 'an address that is not mapped is refused')
    ok(refused('x/x 0xfee00020'), "a device's memory is not read")
    ok('not RAM' in do('monitor phys 0xfee00000 16'), 'nor by its physical address')
    ok('translate ADDR' in do('monitor nonsense'), 'monitor: an unknown command prints the list')


def steps():
    do('stepi')
    ok(number('$rip') in (at('gdb_rep'), at('gdb_rep_behind')), 'a step of rep movsb: one element, or all')
    do('tbreak *%d' % at('gdb_rep_behind'))
    if number('$rip') != at('gdb_rep_behind'):
        cont()
    stops_at('gdb_rep_behind', 'rep movsb: to its end')
    equal((number('$rcx'), number('gdb_to[4]'), number('gdb_to[5]')), (0, 5, 0), 'rep movsb: moved five bytes')
    do('delete')
    do('stepi')
    stops_at('gdb_int', 'a step of nop')
    do('tbreak *%d' % at('gdb_int_behind'))
    do('stepi')
    ok(number('$rip') != at('gdb_int_behind'), 'a step of int is at its handler')
    cont()
    stops_at('gdb_int_behind', 'the handler returns')
    do('stepi')
    stops_at('gdb_fault', 'before ud2')
    do('stepi')
    ok(number('$rip') not in (at('gdb_fault'), at('gdb_fault_behind')), 'a step of ud2 is at its handler')
    do('tbreak *%d' % at('gdb_fault_behind'))
    cont()
    stops_at('gdb_fault_behind', 'the fault is handled')
    do('tbreak *%d' % at('gdb_sys'))
    cont()
    do('stepi')
    stops_at('gdb_syscall_entry', 'a step of syscall is at LSTAR')
    do('stepi')
    stops_at('gdb_sys_behind', 'and another back')


def watch(kind, index, label, text):
    do('%s *(unsigned long *)%d' % (kind, at('gdb_watched') + 8 * index))
    out = cont()
    stops_at(label, '%s: stops behind %s' % (kind, text))
    ok(out, '%s: is reported as one' % kind, out)
    do('delete')


def watchpoints():
    watch('watch', 0, 'gdb_store_behind', 'a store')
    do('rwatch *(unsigned long *)%d' % (at('gdb_watched') + 8))
    watch('rwatch', 2, 'gdb_load_behind', 'a load, and a store is none')
    watch('awatch', 3, 'gdb_rmw_behind', 'a read-modify-write')


def breakpoint_in_loop():
    do('tbreak *%d' % at('gdb_loop'))
    cont()
    do('break *%d if $ecx == 20' % at('gdb_loop'))
    cont()
    equal(number('$rcx'), 20, 'a condition: the loop stops where it holds')
    do('delete')
    do('monitor count on')
    do('tbreak *%d' % at('gdb_loop_behind'))
    cont()
    out = do('monitor translate %d' % at('gdb_loop'))
    runs = [int(n) for n in re.findall(r'ran (\d+) times', out)]
    ok(sum(runs) >= 99970, 'monitor translate: how often the loop ran', out)
    ok('inc ecx' in out and re.search(r'jn[ze] ', out), 'monitor translate: guest and host instructions', out)
    do('monitor count off')
    equal(number('$rcx'), 100000, 'the loop ends as it should')


def threads():
    out = do('info threads')
    ok('vCPU 0' in out and 'vCPU 1, not started' in out, 'two vCPUs, one not started', out)
    do('thread 2')
    equal(number('$rip'), 0xfff0, "the other's registers: those of a reset")
    do('thread 1')


def limits():
    good = 0
    for i in range(64):
        do('break *%d' % (at('gdb_watched') + i))
        good += 1
    do('stepi')
    equal(good, 64, '64 breakpoints at a time')
    do('delete')


do('set pagination off')
do('set confirm off')
do('set breakpoint pending off')
points('break')
registers()
write_registers()
memory()
threads()
steps()
watchpoints()
breakpoint_in_loop()
limits()
do('set var gdb_go_on = 42')
cont()
equal([event.exit_code for event in exits], [1], 'the end of the machine is reported, with its status')
print('1..%d' % count)
