"""The columns: how each starts, how its console is read, and what its process weighs.

Neighbours: stage.py makes what is booted; guest/init.c speaks the protocol that Console reads ("@start", "@end", ...).
Only processes started here are ended, by their process group.
"""

import os
import queue
import re
import signal
import subprocess
import threading
import time

from . import stage

MARKER = b'FONDA-BENCH-INIT'
FONDA = os.path.join(stage.BUILD, 'fonda')
# Seconds: a row in a guest; the silence on the console after which the machine counts as hung; a boot.
ROW_LIMIT, SILENCE_LIMIT, BOOT_LIMIT = 300, 330, 120


def fonda_command(engine):
    def command(kernel, initrd, append, memory, cpus):
        return [FONDA, 'run', '--engine', engine, '--kernel', kernel, '--initrd', initrd, '--append', append,
                '--memory', f'{memory}M', '--cpus', str(cpus), '--serial', 'stdio', '--no-reboot']
    return command


def qemu_command(accel):
    def command(kernel, initrd, append, memory, cpus):
        return ['qemu-system-x86_64'] + accel + ['-m', f'{memory}M', '-smp', str(cpus), '-nographic', '-no-reboot',
                '-kernel', kernel, '-initrd', initrd, '-append', append]
    return command


COLUMNS = {
    'native': None,
    'fonda': fonda_command('bt'),
    'qemu': qemu_command(['-accel', 'tcg,thread=multi', '-cpu', 'max']),
    'fonda-kvm': fonda_command('kvm'),
    'qemu-kvm': qemu_command(['-accel', 'kvm', '-cpu', 'host']),
}


def available(column):
    """None when the column can be run here, else why not."""
    if column.startswith('fonda') and not os.access(FONDA, os.X_OK):
        return f'{os.path.relpath(FONDA, stage.ROOT)} is not built'
    if column.endswith('-kvm') and not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return '/dev/kvm cannot be opened'
    return None


class Console:
    """A machine that runs, and the lines on its serial console with the time of their arrival."""

    def __init__(self, command):
        self.lines = queue.Queue()
        self.tail = []
        self.marker_at = None
        self.marked = threading.Event()
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        pending = b''
        while True:
            data = os.read(self.process.stdout.fileno(), 65536)
            now = time.monotonic()
            if not data:
                break
            pending += data
            if self.marker_at is None and MARKER in pending:
                self.marker_at = now
                self.marked.set()
            *whole, pending = pending.split(b'\n')
            for raw in whole:
                line = raw.decode('utf-8', 'replace').strip('\r\n ')
                self.tail = self.tail[-19:] + [line]
                self.lines.put((now, line))
        self.marked.set()
        self.lines.put((time.monotonic(), None))

    def next_line(self, limit):
        """(time, line), or (time, None) when the machine has ended or has been silent for limit seconds."""
        try:
            return self.lines.get(timeout=limit)
        except queue.Empty:
            return time.monotonic(), None

    def end(self):
        try:
            self.process.wait(timeout=5 if self.process.poll() is None and self.tail[-1:] == ['@done'] else 0.01)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.reader.join(timeout=5)
        self.process.stdin.close()
        self.process.stdout.close()


def descendants(pid):
    """The process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f'/proc/{parent}/task'):
                with open(f'/proc/{parent}/task/{task}/children') as f:
                    found += [int(child) for child in f.read().split()]
        except OSError:
            continue
    return found


def parse_smaps(text):
    """A list of mappings: perms, inode, path, and the sizes in KiB by name."""
    mappings = []
    for line in text.splitlines():
        head = re.match(r'[0-9a-f]+-[0-9a-f]+ (\S+) \S+ (\S+) (\d+)\s*(.*)$', line)
        if head:
            mappings.append({'perms': head[1], 'file': (head[2], head[3]), 'path': head[4]})
        else:
            item = re.match(r'(\w+):\s+(\d+) kB', line)
            if item:
                mappings[-1][item[1]] = int(item[2])
    return mappings


def beyond_guest_ram(mappings, memory_mib):
    """
    Resident KiB of a process without its guest's RAM.

    Guest RAM is the memfd that some mapping shows as at least as large as the guest's memory; without one (QEMU), the
    private mapping, readable and writable and not executable, of that size. What is left counts by Rss, but memfds by Pss:
    a code cache mapped twice (for writing and for running) is one piece of memory.
    """
    ram_kib = memory_mib * 1024
    ram_files = {m['file'] for m in mappings if m['path'].startswith('/memfd:') and m['Size'] >= ram_kib}
    total = 0
    for m in mappings:
        if m['path'].startswith('/memfd:'):
            total += 0 if m['file'] in ram_files else m['Pss']
        elif ram_files or m['path'] or 'x' in m['perms'] or not ram_kib <= m['Size'] < ram_kib + 8192:
            total += m['Rss']
    return total


def process_memory(pid, memory_mib):
    """KiB beyond guest RAM of a machine's processes together, or None where the kernel does not show it."""
    total = 0
    for one in descendants(pid):
        try:
            with open(f'/proc/{one}/smaps') as f:
                mappings = parse_smaps(f.read())
        except FileNotFoundError:
            continue
        except OSError:
            return None
        total += beyond_guest_ram(mappings, memory_mib)
    return total


def boot(column, staged, memory, cpus):
    """One boot. Returns {'ns': start of the process to the marker, 'kib': memory} or {'error': text}."""
    append = 'console=ttyS0 quiet panic=-1'
    console = Console(COLUMNS[column](staged['kernel'], staged['boot_initrd'], append, memory, cpus))
    console.marked.wait(BOOT_LIMIT)
    if console.marker_at is None:
        console.end()
        return {'error': 'no first user process: ' + ' / '.join(console.tail[-3:])}
    time.sleep(0.3)
    kib = process_memory(console.process.pid, memory)
    console.end()
    return {'ns': int((console.marker_at - console.started) * 1e9), 'kib': kib}


def parse_result(line):
    """(row, {'ns', 'sum'} or {'skip'} or {'error'}), or None when the line is no result."""
    match = re.search(r'(?:^|\s)([a-z][a-z0-9-]*) (\d+) ([0-9a-f]{16})$', line)
    if match:
        return match[1], {'ns': int(match[2]), 'sum': match[3]}
    match = re.search(r'(?:^|\s)([a-z][a-z0-9-]*) (SKIP|FAIL) (.*)$', line)
    if match:
        return match[1], {'skip' if match[2] == 'SKIP' else 'error': match[3]}
    return None


def run_native(rows, staged, scale, jobs=1):
    """One pass of the rows on the host. Yields (row, result) for each run."""
    env = dict(os.environ, BENCH_ROOT=stage.STAGE, BENCH_TMP='/dev/shm')
    for row in rows:
        started = [subprocess.Popen([staged['guest'], row, str(scale)], env=env, stdout=subprocess.PIPE, text=True)
                   for _ in range(jobs)]
        for process in started:
            result = parse_result(process.communicate()[0].strip())
            yield row, result[1] if result else {'error': f'status {process.returncode}'}


def run_guest(column, rows, staged, scale, memory, cpus=1, jobs=1, on_clock=None):
    """
    One pass of the rows in a machine of the column. Yields (row, result) for each run. A row during which the machine
    ends or falls silent has failed; a new machine goes on with the rows after it.
    """
    rows = list(rows)
    while rows:
        append = (f'console=ttyS0 quiet panic=-1 bench.scale={scale} bench.jobs={jobs} bench.limit={ROW_LIMIT} '
                  f'bench.run={",".join(rows)}')
        console = Console(COLUMNS[column](staged['kernel'], staged['initrd'], append, memory, cpus))
        current, clocks, done = None, [], False
        while True:
            now, line = console.next_line(SILENCE_LIMIT)
            if line is None:
                break
            if line.endswith('@done'):
                done = True
                break
            if line.startswith('@start '):
                current = line.split()[1]
            elif line.startswith('@end ') and line.split()[1] in rows:
                rows = rows[rows.index(line.split()[1]) + 1:]
                current = None
            elif line.startswith('@clock '):
                clocks.append((now, int(line.split()[1])))
            else:
                result = parse_result(line)
                if result and result[0] == current:
                    yield result
        console.end()
        if done:
            # Too short a run says nothing about the clock.
            if len(clocks) == 2 and clocks[1][0] - clocks[0][0] > 2.0 and on_clock:
                on_clock((clocks[1][1] - clocks[0][1]) / 1e9 / (clocks[1][0] - clocks[0][0]))
            return
        why = 'machine ended or hung: ' + ' / '.join(console.tail[-3:])
        failed = current or rows[0]
        yield failed, {'error': why}
        if current is None:
            # It did not get as far as the first row; another boot would not either.
            for row in rows[1:]:
                yield row, {'error': why}
            return
        rows = rows[rows.index(failed) + 1:]
