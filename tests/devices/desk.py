"""Changes of a running machine through the daemon: live where the machine can, else marked."""
import json
import os
import sys
import time

from disks import MIB, image
from guest import Server, data, sender  # noqa: F401: the rig's vocabulary
from harness import PATIENCE_S, ROOT, Skip, check

sys.path.append(os.path.join(ROOT, 'tests', 'daemon'))
import lib  # noqa: E402


def applied(daemon, patch):
    """The instance once what it takes to change it has ended, and that job."""
    status, now, _ = daemon.call('PATCH', '/v1/instances/web', patch)
    check(status == 200, now)
    job = None
    deadline = time.monotonic() + PATIENCE_S
    while now.get('applying') and time.monotonic() < deadline:
        job = daemon.call('GET', '/v1/jobs/%s?wait=5' % now['applying'])[1]
        now = daemon.call('GET', '/v1/instances/web')[1]
    return now, job


def test_live(t):
    initramfs = os.path.join(t.guest, 'devices.initramfs')
    if not os.path.exists(initramfs):
        raise Skip('no %s' % initramfs)
    build = os.path.dirname(t.fonda)
    first, other = image(t, 'first', content=data(MIB, 1)), image(t, 'other', content=data(MIB, 2))
    daemon = lib.Daemon(build, vmm=os.path.join(build, 'vm', 'fonda-vmm'))
    try:
        daemon.start()
        body = {'name': 'web', 'kernel': os.path.join(t.guest, 'vmlinuz'), 'initrds': [initramfs], 'memory': '256M',
                'append': 'console=ttyS0 panic=-1 quiet init=/bin/sh', 'disks': [first + ',format=raw']}
        # The guest loads its drivers, then says what comes and goes.
        body['append'] = 'console=ttyS0 panic=-1 quiet'
        status, made, _ = daemon.call('POST', '/v1/instances?wait=30', body)
        check(status in (200, 201, 202), made)
        status, job, _ = daemon.call('POST', '/v1/instances/web/start?wait=30')
        check(status == 200 and job['state'] == 'done', job)
        console = lib.WebSocket(daemon.socket, '/v1/instances/web/console')
        console.sock.settimeout(PATIENCE_S)
        text = b''

        def until(word):
            nonlocal text
            while word not in text:
                _, part = console.receive()
                text += part if isinstance(part, bytes) else part.encode()
            text = b''

        until(b'root@fonda:~# ')
        console.send(b'. /lib/guest-setup; echo re""ady\n', 2)
        until(b'ready')
        now, job = applied(daemon, {'disks': [first + ',format=raw', other + ',format=raw,serial=HOT']})
        t.see(now['after_restart'] is False and job['state'] == 'done', 'a disk is added while it runs', (now, job))
        console.send(b'until [ -b /dev/vdb ]; do usleep 100000; done; cat /sys/block/vdb/serial; echo " se""en"\n', 2)
        until(b'HOT seen')
        now, job = applied(daemon, {'disks': [first + ',format=raw,iops=500', other + ',format=raw,serial=HOT,bps=20M']})
        t.see(now['after_restart'] is False and job['state'] == 'done', 'limits are changed', (now, job))
        now, job = applied(daemon, {'disks': [first + ',format=raw']})
        t.see(now['after_restart'] is False and job['state'] == 'done', 'a disk is taken out', (now, job))
        console.send(b'[ ! -e /dev/vdb ] && echo " go""ne"\n', 2)
        until(b'gone')
        run = daemon.cli('disk', 'attach', 'web', other + ',format=raw', timeout=PATIENCE_S)
        t.same((run.returncode, run.stdout, run.stderr), (0, '', ''), 'fonda disk attach')
        t.same(daemon.cli('disk', 'list', 'web').stdout.split(), [first + ',format=raw', other + ',format=raw'], 'fonda disk list')
        run = daemon.cli('disk', 'detach', 'web', other, timeout=PATIENCE_S)
        t.same((run.returncode, run.stdout, run.stderr), (0, '', ''), 'fonda disk detach')
        run = daemon.cli('disk', 'detach', 'web', other)
        t.see(run.returncode == 3 and other in run.stderr, 'which is not there twice', run.stderr)
        run = daemon.cli('disk', 'attach', 'web', '/nowhere/disk', timeout=PATIENCE_S)
        t.see(run.returncode == 0 and '/nowhere/disk' in run.stderr and 'fonda restart web' in run.stderr,
              'one that there is not waits', run.stderr)
        now, _ = applied(daemon, {'disks': [first + ',format=raw']})
        run = daemon.cli('nic', 'attach', 'web', 'user', timeout=PATIENCE_S)
        t.same((run.returncode, run.stderr), (0, ''), 'fonda nic attach')
        run = daemon.cli('nic', 'detach', 'web', 'user', timeout=PATIENCE_S)
        t.same((run.returncode, run.stderr), (0, ''), 'fonda nic detach')
        now, job = applied(daemon, {'networks': ['user', 'user']})
        t.see(now['after_restart'] is False and job['state'] == 'done', 'a network is added', (now, job))
        stats = daemon.call('GET', '/v1/instances/web/stats')[1]
        t.see(len(stats['engine']['networks']) == 2 and 'rx_bytes' in stats['engine']['networks'][0], 'and is counted', stats)
        now, job = applied(daemon, {'memory': '192M'})
        t.see(now['after_restart'] is False and job['state'] == 'done', 'less memory', (now, job))
        now, job = applied(daemon, {'memory': '512M'})
        t.see(now['after_restart'] is True and job['state'] == 'failed' and 'next start' in json.dumps(job),
              'more memory waits for a restart', (now, job))
        now, job = applied(daemon, {'memory': '256M'})
        t.see(now['after_restart'] is False, 'and does not when it is taken back', (now, job))
        now, _ = applied(daemon, {'cpus': 2})
        t.see(now['after_restart'] is True, 'CPUs wait for a restart', now)
        now, _ = applied(daemon, {'disks': [first + ',format=raw', other + ',format=raw']})
        t.see(now['after_restart'] is True and now['must_restart'] is True, 'and go on doing so', now)
        now, job = applied(daemon, {'disks': [first + ',format=raw', '/nowhere/disk']})
        t.see(job['state'] == 'failed' and '/nowhere/disk' in json.dumps(job), 'a disk that there is not', job)
        console.close()
        daemon.call('POST', '/v1/instances/web/stop?wait=30', {'force': True})
    finally:
        daemon.close()
