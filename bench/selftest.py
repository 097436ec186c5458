#!/usr/bin/env python3
"""Checks the parts of the driver that need no machine: parsing, memory accounting, cpio, statistics, verdicts."""

import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from benchlib import machines, report, stage  # noqa: E402


def mapping(line, **sizes):
    return line + '\n' + ''.join(f'{name}: {kib} kB\n' for name, kib in sizes.items())


def sample_report(**changes):
    """A report with five rows in which fonda takes twice native and QEMU ten times, but for the changes (row=fonda's ns)."""
    rows = {'boot': 'boot', 'fib': 'cpu', 'lua': 'cpu', 'getpid': 'kernel', 'forkexec': 'kernel'}
    samples = {c: {r: [{'ns': factor * 100 * n, 'sum': 'x', 'kib': 1024 * factor} for n in (1, 2, 3)] for r in rows}
               for c, factor in (('native', 1), ('fonda', 2), ('qemu', 10))}
    del samples['native']['boot']
    for row, ns in changes.items():
        samples['fonda'][row] = [{'ns': ns, 'sum': 'x', 'kib': 2048}]
    return {'columns': ['native', 'fonda', 'qemu'], 'rows': {r: {'kind': k, 'what': ''} for r, k in rows.items()},
            'samples': samples, 'clock': {'fonda': [1.0]}, 'smp': {}}


class Parsing(unittest.TestCase):
    def test_results(self):
        self.assertEqual(machines.parse_result('chase-l1 123 00000000000000ff'),
                         ('chase-l1', {'ns': 123, 'sum': '00000000000000ff'}))
        self.assertEqual(machines.parse_result('[ 1.2] x: fib 5 0123456789abcdef')[1]['ns'], 5)
        self.assertEqual(machines.parse_result('poly-avx512 SKIP no avx512f')[1], {'skip': 'no avx512f'})
        self.assertEqual(machines.parse_result('fib FAIL fib(20)')[1], {'error': 'fib(20)'})
        for line in ('', '@start fib', 'fib 12', 'fib x 0123456789abcdef'):
            self.assertIsNone(machines.parse_result(line))

    def test_memory_with_ram_as_memfd(self):
        text = (mapping('7f0000000000-7f0040000000 rw-s 00000000 00:01 77   /memfd:ram (deleted)', Size=1048576, Rss=90000, Pss=90000) +
                mapping('7e0000000000-7e0000200000 rw-s 00000000 00:01 77   /memfd:ram (deleted)', Size=2048, Rss=2048, Pss=1024) +
                mapping('7d0000000000-7d0004000000 rw-s 00000000 00:01 78   /memfd:code (deleted)', Size=65536, Rss=8000, Pss=4000) +
                mapping('7c0000000000-7c0004000000 r-xs 00000000 00:01 78   /memfd:code (deleted)', Size=65536, Rss=8000, Pss=4000) +
                mapping('560000000000-560000100000 r-xp 00000000 08:01 12   /usr/bin/fonda-vmm', Size=1024, Rss=500, Pss=500) +
                mapping('7b0000000000-7b0040000000 rw-p 00000000 00:00 0', Size=1048576, Rss=300, Pss=300))
        self.assertEqual(machines.beyond_guest_ram(machines.parse_smaps(text), 1024), 8000 + 500 + 300)

    def test_memory_with_anonymous_ram(self):
        text = (mapping('7f0000000000-7f0040000000 rw-p 00000000 00:00 0', Size=1048576, Rss=90000, Pss=90000) +
                mapping('7e0000000000-7e0040000000 rwxp 00000000 00:00 0', Size=1048576, Rss=7000, Pss=7000) +
                mapping('560000000000-560000100000 rw-p 00000000 00:00 0   [heap]', Size=9000, Rss=8000, Pss=8000))
        self.assertEqual(machines.beyond_guest_ram(machines.parse_smaps(text), 1024), 7000 + 8000)

    def test_cpio(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'x.cpio')
            cpio = stage.Cpio(path)
            cpio.add('init', 0o100755, b'hello')
            cpio.close()
            with open(path, 'rb') as f:
                data = f.read()
        self.assertEqual(len(data) % 4, 0)
        self.assertEqual(data[:6], b'070701')
        self.assertEqual((int(data[14:22], 16), int(data[54:62], 16), int(data[94:102], 16)), (0o100755, 5, 5))
        self.assertEqual(data[110:124], b'init\0\0hello\0\0\0')
        self.assertIn(b'TRAILER!!!\0', data)


class Verdicts(unittest.TestCase):
    def failed(self, data, which=frozenset({'first'})):
        lines, good = report.verdicts(data, which)
        bad = [line for line in lines if line.startswith('FAIL')]
        self.assertEqual(good, not bad)
        return bad

    def test_medians_and_ratios(self):
        data = sample_report()
        self.assertEqual(report.median(data, 'qemu', 'fib'), 2000)
        self.assertEqual(report.ratio(data, 'fib', 'qemu', 'fonda'), 5)
        self.assertAlmostEqual(report.geomean([2, 8]), 4)
        self.assertIn('**5.00** (2)', report.table(data)[-2])

    def test_all_pass(self):
        self.assertEqual(self.failed(sample_report()), [])

    def test_each_bar_can_fail(self):
        for changes, words in ((({'boot': 2100}), 'boot no slower'), ({'fib': 2001}, 'no CPU row slower'),
                               ({'fib': 700, 'lua': 700}, 'at least 3 times'), ({'getpid': 2001}, 'system calls'),
                               ({'forkexec': 2001}, 'fork+exec')):
            self.assertTrue(any(words in line for line in self.failed(sample_report(**changes))), words)
        heavy = sample_report()
        heavy['samples']['fonda']['boot'] = [{'ns': 1, 'kib': 64 * 1024}]
        self.assertIn('64 MiB', self.failed(heavy)[0])

    def test_measurement_can_fail(self):
        data = sample_report()
        data['samples']['fonda']['fib'][0]['sum'] = 'y'
        self.assertIn('same results', self.failed(data)[0])
        data = sample_report()
        data['samples']['fonda']['fib'][1] = {'error': 'signal 11'}
        self.assertIn('fib on fonda: signal 11', self.failed(data)[0])
        self.assertTrue(any('no CPU row slower' in line and 'fib failed' in line for line in self.failed(data)))
        self.assertTrue(any('FAIL' in line for line in report.table(data) if line.startswith('| fib')))
        data = sample_report()
        data['clock']['fonda'] = [1.0, 0.9]
        self.assertIn('clock of fonda', self.failed(data)[0])

    def test_unmeasured_is_skipped(self):
        data = sample_report()
        data['samples']['fonda'] = {}
        lines, good = report.verdicts(data, {'first', 'engine'})
        self.assertTrue(good)
        self.assertTrue(all(line.startswith('SKIP') for line in lines if '[first]' in line or '[engine]' in line), lines)

    def test_engine_bars(self):
        bad = self.failed(sample_report(), {'engine'})
        self.assertTrue(any('1.6 times native' in line for line in bad))
        self.assertFalse(any('kernel row' in line for line in bad))


if __name__ == '__main__':
    unittest.main()
