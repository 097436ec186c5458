"""Runs inside of gdb, connected to Debian's kernel while it runs, without symbols; prints TAP. See tests/gdb/run."""
import re
import time

import gdb

count = 0


def ok(condition, text, got=''):
    global count
    count += 1
    print('%sok %d - %s%s' % ('' if condition else 'not ', count, text, '' if condition else ' (got %s)' % (got,)), flush=True)


def do(command):
    return gdb.execute(command, to_string=True)


def number(expression):
    return int(gdb.parse_and_eval('(unsigned long)(%s)' % expression))


def lstar():
    return int(re.search(r'lstar ([0-9a-f]+)', do('monitor registers')).group(1), 16)


do('set pagination off')
do('set confirm off')
ok(number('$cr0') & 1, 'connecting stops the guest')
entry = lstar()
ok(entry >> 63, 'the kernel has set its system-call entry', hex(entry))
ok('vCPU 1' in do('info threads'), 'both vCPUs are threads')
do('hbreak *%d' % entry)
do('continue')
ok(number('$rip') == entry, 'a hardware breakpoint at the system-call entry', hex(number('$rip')))
ok(number('$cs') == 0x10, 'in the kernel', number('$cs'))
thread = gdb.selected_thread().num
do('delete')
# swapgs, mov gs:[...], rsp: steps stay in this thread's program, whatever interrupts are pending
seen = [entry]
for _ in range(12):
    do('stepi')
    seen.append(number('$rip'))
ok(len(set(seen)) > 8 and all(0 < b - a < 64 or b > 1 << 63 for a, b in zip(seen, seen[1:])), 'steps through the entry', seen)
ok(gdb.selected_thread().num == thread, 'all on the same vCPU')
rsp = number('$rsp')
ok(rsp >> 63, 'now on a kernel stack', hex(rsp))
do('watch *(unsigned long *)%d' % (rsp - 8))
hits = []
gdb.events.stop.connect(lambda event: hits.extend(getattr(event, 'breakpoints', [])))
do('continue')
ok(hits, 'a watchpoint on the stack', hits)
do('delete')
do('break *%d' % entry)
for _ in range(20):
    do('continue')
ok(number('$rip') == entry, 'twenty more system calls')
do('delete')
do('detach')
ok(True, 'detached')
print('1..%d' % count)
