"""From samples to the table, the bars, and the files.

A report is a dict (also the JSON file): 'machine' (description), 'columns', 'rows' ({row: {'kind', 'what'}}),
'samples' ({column: {row: [result, ...]}}, results as in machines.py; the row "boot" has 'kib' too), 'clock'
({column: [ratio]}), 'smp' ({column: {row: {'1': [ns], '2': [ns]}}}).
"""

import math
import statistics

AVX_ROWS = ('matmul-avx2', 'poly-avx512')
SYSTEM_CALL_ROWS = ('forkexec', 'getpid', 'readwrite', 'pipe-self')


def times(report, column, row):
    return [r['ns'] for r in report['samples'].get(column, {}).get(row, []) if 'ns' in r]


def median(report, column, row):
    found = times(report, column, row)
    return statistics.median(found) if found else None


def ratio(report, row, over, under):
    """median of column `over` divided by that of `under`, or None."""
    a, b = median(report, over, row), median(report, under, row)
    return a / b if a and b else None


def trouble(report, column, row):
    """Why the column has no number in this row, or None."""
    for result in report['samples'].get(column, {}).get(row, []):
        if 'skip' in result:
            return f'n/a ({result["skip"]})'
        if 'error' in result:
            return 'FAIL'
    return None


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def rows_of(report, kind):
    return [row for row, about in report['rows'].items() if about['kind'] == kind]


def milliseconds(ns):
    return f'{ns / 1e6:.1f}' if ns < 1e9 else f'{ns / 1e6:.0f}'


def cell(report, column, row):
    found = times(report, column, row)
    if not found or trouble(report, column, row) == 'FAIL':
        return trouble(report, column, row) or '-'
    mid = statistics.median(found)
    spread = (max(found) - min(found)) / mid * 100
    return f'{milliseconds(mid)} ±{spread / 2:.0f}%'


def times_text(value):
    return f'{value:.2f}' if value is not None else '-'


def comparisons(report):
    """Which ratios the table shows: (heading, column over, column under)."""
    shown = report['columns']
    pairs = [(f'{c}/native', c, 'native') for c in shown if c != 'native' and 'native' in shown]
    if 'qemu' in shown:
        pairs += [(f'qemu/{c}', 'qemu', c) for c in shown if c.startswith('fonda')]
    return pairs


def table(report):
    """Lines of a Markdown table: one line for each row, then geometric means."""
    pairs = comparisons(report)
    heads = ['row'] + [f'{c}, ms' for c in report['columns']] + [p[0] for p in pairs]
    body = []
    for row in report['rows']:
        body.append([row] + [cell(report, c, row) for c in report['columns']] +
                    [times_text(ratio(report, row, over, under)) for _, over, under in pairs])
    for kind, title in (('cpu', 'geometric mean, CPU rows'), ('kernel', 'geometric mean, kernel rows')):
        line = [f'**{title}**'] + [''] * len(report['columns'])
        for _, over, under in pairs:
            found = [r for r in (ratio(report, row, over, under) for row in rows_of(report, kind)) if r]
            line.append(f'**{geomean(found):.2f}** ({len(found)})' if found else '-')
        if any(item not in ('', '-') for item in line[1:]):
            body.append(line)
    widths = [max(len(line[i]) for line in [heads] + body) for i in range(len(heads))]
    lines = ['| ' + ' | '.join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))) +
             ' |' for line in [heads] + body]
    lines.insert(1, '|' + '|'.join('-' * (w + 2) if i == 0 else '-' * (w + 1) + ':' for i, w in enumerate(widths)) + '|')
    return lines


def memory_lines(report):
    lines = []
    for column in report['columns']:
        found = [r['kib'] for r in report['samples'].get(column, {}).get('boot', []) if r.get('kib')]
        if found:
            lines.append(f'memory beyond guest RAM after boot, {column}: {statistics.median(found) / 1024:.1f} MiB '
                         f'({min(found) / 1024:.1f} to {max(found) / 1024:.1f})')
    return lines


def smp_lines(report):
    """Throughput of two vCPUs over that of one: twice the work in t2 against once in t1."""
    lines = []
    for column, rows in report.get('smp', {}).items():
        for row, t in rows.items():
            if t['1'] and t['2']:
                gain = 2 * statistics.median(t['1']) / statistics.median(t['2'])
                lines.append((column, row, gain))
    return lines


def check_sanity(report):
    """Bars that hold for any pair of columns: every row ran, results agree, clocks are true. (ok, text) pairs."""
    failed, differ = [], []
    for row in report['rows']:
        sums = {}
        for column in report['columns']:
            if trouble(report, column, row) == 'FAIL':
                errors = [r['error'] for r in report['samples'][column][row] if 'error' in r]
                failed.append(f'{row} on {column}: {errors[0]}')
            for r in report['samples'].get(column, {}).get(row, []):
                if 'sum' in r:
                    sums.setdefault(r['sum'], column)
        if len(sums) > 1:
            differ.append(f'{row} ({", ".join(sums.values())})')
    yield not failed, 'every row ran' + (': ' + '; '.join(failed) if failed else '')
    yield not differ, 'all columns computed the same results' + (': ' + ', '.join(differ) if differ else '')
    for column, ratios in report['clock'].items():
        worst = max(ratios, key=lambda r: abs(r - 1))
        yield abs(worst - 1) < 0.01, f'clock of {column} against the host: {worst:.4f}'


def slower_rows(report, kind, limit, over, under):
    """
    Rows of a kind (or a tuple of names) whose ratio over/under lies below limit or that failed under `under`, as text; and
    how many were judged.
    """
    names = rows_of(report, kind) if isinstance(kind, str) else [r for r in kind if r in report['rows']]
    failed = [row for row in names if trouble(report, under, row) == 'FAIL']
    found = [(row, ratio(report, row, over, under)) for row in names if row not in failed]
    found = [(row, r) for row, r in found if r]
    return [f'{row} {r:.2f}' for row, r in found if r < limit] + [f'{row} failed' for row in failed], len(found) + len(failed)


def first_bars(report, fonda):
    """The bars of the first release. Yields (ok or None, text); None when the run has nothing to judge by."""
    def judged(value, ok, text):
        return (None, text + ' (not measured)') if value is None else (ok(value), text + f': {value:.2f}')

    yield judged(ratio(report, 'boot', 'qemu', fonda), lambda r: r >= 1, 'boot no slower than QEMU, qemu/fonda')
    gains = [r for r in (ratio(report, row, 'qemu', fonda) for row in rows_of(report, 'cpu')) if r]
    yield judged(geomean(gains), lambda r: r >= 3, 'CPU rows at least 3 times faster than QEMU, geometric mean')
    slow, count = slower_rows(report, 'cpu', 1, 'qemu', fonda)
    yield (not slow if count else None), f'no CPU row slower than QEMU ({count} compared)' + (': ' + ', '.join(slow) if slow else '')
    slow, count = slower_rows(report, SYSTEM_CALL_ROWS, 1, 'qemu', fonda)
    yield (not slow if count else None), ('fork+exec and system calls no slower than QEMU' +
                                          (': ' + ', '.join(slow) if slow else ''))
    found = [r['kib'] / 1024 for r in report['samples'].get(fonda, {}).get('boot', []) if r.get('kib')]
    yield judged(statistics.median(found) if found else None, lambda m: m < 64, 'less than 64 MiB beyond guest RAM, MiB')


def engine_bars(report, fonda):
    """The bars for a mature engine."""
    costs = {row: ratio(report, row, fonda, 'native') for row in rows_of(report, 'cpu')}
    costs = {row: r for row, r in costs.items() if r}
    mean = geomean(list(costs.values()))
    yield (mean <= 1.6 and len(costs) >= 14 if mean else None), \
        f'CPU rows at most 1.6 times native over at least 14, geometric mean: {times_text(mean)} ({len(costs)})'
    slow = [f'{row} {r:.2f}' for row, r in costs.items() if r > 2.5]
    yield (not slow if costs else None), 'no CPU row over 2.5 times native' + (': ' + ', '.join(slow) if slow else '')
    vector = {row: costs[row] for row in AVX_ROWS if row in costs}
    slow = [f'{row} {r:.2f}' for row, r in vector.items() if r > 1.15]
    yield (not slow if vector else None), ('AVX2 and AVX-512 with data in L1 within 1.15 of native' +
                                           (': ' + ', '.join(slow) if slow else ''))
    slow, count = slower_rows(report, 'kernel', 2, 'qemu', fonda)
    yield (not slow if count else None), ('every kernel row at least 2 times faster than QEMU' +
                                          (': ' + ', '.join(slow) if slow else ''))
    gain, mid = ratio(report, 'boot', 'qemu', fonda), median(report, fonda, 'boot')
    yield (gain >= 2 and mid < 1e9 if gain else None), \
        f'boot at least 2 times faster than QEMU and under 1 s: {times_text(gain)}, {(mid or 0) / 1e9:.2f} s'
    slow, count = slower_rows(report, 'cold', 1, 'qemu', fonda)
    yield (not slow if count else None), 'cold code no slower than QEMU' + (': ' + ', '.join(slow) if slow else '')
    gains = [gain for column, _, gain in smp_lines(report) if column == fonda]
    yield (min(gains) >= 1.8 if gains else None), \
        f'2 vCPUs at least 1.8 times the throughput of 1: {times_text(min(gains) if gains else None)}'


def verdicts(report, which):
    """Lines "PASS what", "FAIL what", "SKIP what", and whether none failed. `which`: set of 'first', 'engine'."""
    results = [('measurement', item) for item in check_sanity(report)]
    if 'fonda' in report['columns'] and 'qemu' in report['columns']:
        results += [('first', item) for item in first_bars(report, 'fonda') if 'first' in which]
        results += [('engine', item) for item in engine_bars(report, 'fonda') if 'engine' in which]
    else:
        results.append(('first', (None, 'no bars: they need the columns fonda and qemu')))
    lines = [f'{"SKIP" if ok is None else "PASS" if ok else "FAIL"}  [{group}] {text}' for group, (ok, text) in results]
    return lines, all(ok is not False for _, (ok, _) in results)


def machine_lines(report):
    m = report['machine']
    return [f'- host: {m["cpu"]}, {m["cores"]} cores, {m["memory_gib"]} GiB, Linux {m["kernel"]}'
            f'{", itself a virtual machine" if m["virtual"] else ""}; load before the run {m["load"]}, '
            f'after it {m["load_after"]}',
            f'- guest: {m["guest_kernel"]} (SHA-256 {m["kernel_sha256"][:16]}...), {m["memory_mib"]} MiB, 1 vCPU; '
            f'{m["qemu"]}; programs by {m["compiler"]}',
            f'- {m["date"]}, {m["reps"]} passes, columns interleaved, scale {m["scale"]}; each number the median, '
            f'± half of (maximum - minimum) in percent']


def render(report, which):
    """The whole report as lines of Markdown, and whether no bar failed."""
    lines = machine_lines(report) + [''] + table(report) + ['']
    lines += [f'- {text}' for text in memory_lines(report)]
    lines += [f'- 2 vCPUs against 1, {column}, {row}: {gain:.2f} times the throughput' for column, row, gain in smp_lines(report)]
    bars, good = verdicts(report, which)
    return lines + ['', '```'] + bars + ['```'], good
