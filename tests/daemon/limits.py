"""Limits of machines through control groups: at the start, while they run, when they end, also without a daemon."""
import json
import os
import signal
import subprocess
import time

from lib import check, skip
from machines import Desk, counting, harness, ok, refused

MIB = 1 << 20
FILES = {'memory': ('memory.limit_in_bytes', 'memory.max'), 'cpu': ('cpu.cfs_quota_us', 'cpu.max'), 'pids': ('pids.max', 'pids.max')}


class Host:
    """Where control groups are on this host: by controller, its mount and whether that is v2."""

    def __init__(self):
        self.mounts, self.unified = {}, None
        with open('/proc/self/mountinfo', encoding='ascii') as f:
            for line in f:
                left, _, right = line.partition(' - ')
                kind, _, options = right.split()[:3]
                mount = left.split()[4]
                if kind == 'cgroup':
                    for name in options.split(','):
                        self.mounts.setdefault(name, (mount, False))
                elif kind == 'cgroup2':
                    self.unified = mount
                    with open(os.path.join(mount, 'cgroup.controllers'), encoding='ascii') as c:
                        for name in c.read().split():
                            self.mounts.setdefault(name, (mount, True))

    def missing(self):
        """Why limits can't be tried here, or ''."""
        for name, files in FILES.items():
            if name not in self.mounts:
                return 'this host has no %s controller' % name
            mount, v2 = self.mounts[name]
            probe = os.path.join(mount, 'fonda-probe-%d' % os.getpid())
            try:
                os.mkdir(probe)
                there = v2 or os.path.exists(os.path.join(probe, files[v2]))
                os.rmdir(probe)
            except OSError as e:
                return 'no control groups can be made: %s' % e
            if not there:
                return 'the %s controller has no limits here' % name
        return ''

    def read(self, path, controller, v1, v2):
        mount, is_v2 = self.mounts[controller]
        with open(mount + path + '/' + (v2 if is_v2 else v1), encoding='ascii') as f:
            return f.read().strip()

    def cpus(self, path):
        """CPUs of the quota; 0: none."""
        mount, is_v2 = self.mounts['cpu']
        quota = self.read(path, 'cpu', 'cpu.cfs_quota_us', 'cpu.max').split()[0]
        return 0 if quota in ('-1', 'max') else int(quota) / (100000 if is_v2 else int(self.read(path, 'cpu', 'cpu.cfs_period_us', '')))

    def memory(self, path):
        text = self.read(path, 'memory', 'memory.limit_in_bytes', 'memory.max')
        return 0 if text == 'max' or int(text) > 1 << 60 else int(text)

    def members(self, path, controller):
        mount, _ = self.mounts[controller]
        with open(mount + path + '/cgroup.procs', encoding='ascii') as f:
            return [int(line) for line in f]

    def left(self, path):
        mounts = {mount for mount, _ in self.mounts.values()} | ({self.unified} if self.unified else set())
        return [m + path for m in mounts if os.path.exists(m + path)]


    def of(self, instance_id):
        """All groups of an instance, in the hierarchy of the CPU controller."""
        top = self.mounts['cpu'][0] + '/fonda-vm'
        return [n for n in (os.listdir(top) if os.path.isdir(top) else []) if n.startswith(instance_id)]


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.01)
    return what()


def group(desk, name):
    """(the file, the path that it names)"""
    one = desk.get('instances/' + name)
    path = os.path.join(desk.daemon.state, 'instances', one['id'], 'cgroup.%d' % one.get('pid', 0))
    return (path, open(path, encoding='ascii').read()) if os.path.exists(path) else (path, None)


def files_left(desk, name):
    one = desk.get('instances/' + name)
    return [f for f in os.listdir(os.path.join(desk.daemon.state, 'instances', one['id'])) if f.startswith('cgroup.')]


def values(desk, kernel):
    refused('less memory than the guest has', desk.post('instances', {'name': 'x', 'kernel': kernel, 'memory': '64M', 'memory_limit': '63M'}),
            'invalid_value', 'memory_limit')
    for text in ('0', '-1', 'one', '1.5x', '5000', '1.2.3', '.'):
        refused('cpu_limit %r' % text, desk.post('instances', {'name': 'x', 'kernel': kernel, 'cpu_limit': text}), 'invalid_value', 'cpu_limit')
    for member, value in (('cpu_weight', 10001), ('cpu_weight', -1), ('pids_limit', -1), ('memory_limit', 'much')):
        refused('%s %r' % (member, value), desk.post('instances', {'name': 'x', 'kernel': kernel, member: value}), 'invalid_value', member)
    refused('swap without a limit of memory', desk.post('instances', {'name': 'x', 'kernel': kernel, 'memory_swap': '1G'}), 'invalid_value', 'memory_swap')
    refused('a container has no memory_limit', desk.post('instances', {'name': 'x', 'kind': 'container', 'image': 'a', 'memory_limit': '1G'}),
            'invalid_value', 'memory_limit')
    check('none of these was made', desk.get('instances')['total'] == 0)


def life(desk, kernel, host):
    ok('a machine with limits', desk.post('instances', {'name': 'web', 'kernel': kernel, 'memory': '16M', 'memory_limit': '256M', 'cpu_limit': '0.5',
                                                        'cpu_weight': 50, 'pids_limit': 500}))
    ok('it starts', desk.post('instances/web/start'))
    file, path = group(desk, 'web')
    check('it has a control group', path is not None, file)
    pid = desk.get('instances/web')['pid']
    # In a jail it has a child, which is the machine.
    check('its process is in it, in each hierarchy', all(pid in host.members(path, c) and len(host.members(path, c)) <= 2 for c in FILES),
          [host.members(path, c) for c in FILES])
    check('cpu_limit', host.cpus(path) == 0.5, host.cpus(path))
    check('cpu_weight', host.read(path, 'cpu', 'cpu.shares', 'cpu.weight') in ('512', '50'))
    check('memory_limit', host.memory(path) == 256 * MIB, host.memory(path))
    check('pids_limit', host.read(path, 'pids', 'pids.max', 'pids.max') == '500')
    shown = json.loads(desk.daemon.cli('show', 'web', '--format', 'json').stdout)
    shown = shown[0] if isinstance(shown, list) else shown
    check('fonda show has them', (shown['cpu_limit'], shown['memory_limit'], shown['cpu_weight'], shown['pids_limit']) == ('0.5', 256 * MIB, 50, 500), shown)
    done = desk.daemon.cli('set', 'web', 'cpu_limit=1.5', 'memory_limit=300M', 'pids_limit=600')
    check('fonda set', done.returncode == 0, done.stderr)
    check('is there at once', until(lambda: (host.cpus(path), host.memory(path)) == (1.5, 300 * MIB)), (host.cpus(path), host.memory(path)))
    check('and nothing waits for a restart', until(lambda: desk.get('instances/web')['after_restart'] is False), desk.get('instances/web'))
    check('fonda set, whole CPUs', desk.daemon.cli('set', 'web', 'cpu_limit=1').returncode == 0 and host.cpus(path) == 1)
    desk.daemon.call('PATCH', '/v1/instances/web', {'cpu_limit': None, 'memory_limit': None, 'pids_limit': None, 'cpu_weight': None})
    check('null takes them away', until(lambda: (host.cpus(path), host.memory(path), host.read(path, 'pids', 'pids.max', 'pids.max')) == (0, 0, 'max')),
          (host.cpus(path), host.memory(path)))
    check('also the weight', host.read(path, 'cpu', 'cpu.shares', 'cpu.weight') in ('1024', '100'))
    status, body, _ = desk.daemon.call('PATCH', '/v1/instances/web', {'memory_limit': '8M'})
    check('a change to less than the guest has is refused', status == 400 and body['code'] == 'invalid_value', body)
    desk.daemon.call('PATCH', '/v1/instances/web', {'cpu_limit': '2'})
    ok('stop', desk.post('instances/web/stop', {'force': True}))
    check('its group is gone', until(lambda: not host.left(path)), host.left(path))
    check('and the file that named it', until(lambda: not files_left(desk, 'web')), files_left(desk, 'web'))
    ok('start again', desk.post('instances/web/start'))
    _, second = group(desk, 'web')
    check('another group, with what is left of the limits', second not in (None, path) and host.cpus(second) == 2 and host.memory(second) == 0, second)
    ok('save', desk.post('instances/web/save'))
    check('a saved machine has no group', until(lambda: not host.left(second)), host.left(second))
    ok('it goes on', desk.post('instances/web/start'))
    _, third = group(desk, 'web')
    check('in a group again', third not in (None, path, second) and host.cpus(third) == 2, third)
    os.kill(desk.get('instances/web')['pid'], signal.SIGKILL)
    check('killed from outside: its group is gone', until(lambda: not host.left(third)), host.left(third))
    check('its state is known', until(lambda: desk.state('web') == 'stopped'))


def without_limits(desk, kernel, host):
    ok('a machine without limits', desk.post('instances', {'name': 'free', 'kernel': kernel, 'memory': '16M'}))
    ok('it starts', desk.post('instances/free/start'))
    check('it has no group', group(desk, 'free')[1] is None)
    status, changed, _ = desk.daemon.call('PATCH', '/v1/instances/free', {'cpu_limit': '1'})
    job = desk.daemon.call('GET', '/v1/jobs/%s?wait=20' % changed['applying'])[1] if changed.get('applying') else {}
    check('limits come with a restart, which is said', job.get('state') == 'failed' and 'next start' in job['error']['detail'], job)
    check('they wait for it', desk.get('instances/free')['after_restart'] is True)
    ok('restart', desk.post('instances/free/restart', {'force': True}))
    _, path = group(desk, 'free')
    check('there they are', path is not None and host.cpus(path) == 1, path)
    ok('stop', desk.post('instances/free/stop', {'force': True}))
    ok('delete', desk.delete('instances/free'))
    check('nothing is left of it', until(lambda: not host.left(path)), host.left(path))


def without_daemon(desk, kernel, host):
    daemon = desk.daemon
    for name in ('stays', 'ends'):
        ok('a machine that ' + name, desk.post('instances', {'name': name, 'kernel': kernel, 'memory': '16M', 'cpu_limit': '0.5', 'memory_limit': '256M'}))
        ok('starts', desk.post('instances/%s/start' % name))
    paths = {name: group(desk, name)[1] for name in ('stays', 'ends')}
    pid = desk.get('instances/ends')['pid']
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    check('kill -9 of fondad: the machine goes on in its group', desk.state('stays') == 'running' and host.cpus(paths['stays']) == 0.5)
    check('what ended meanwhile has none any more', until(lambda: not host.left(paths['ends'])), host.left(paths['ends']))
    desk.daemon.call('PATCH', '/v1/instances/stays', {'cpu_limit': '0.75'})
    check('a machine of a former daemon takes changes', until(lambda: host.cpus(paths['stays']) == 0.75))
    pid = desk.get('instances/stays')['pid']
    os.kill(pid, signal.SIGKILL)
    until(lambda: desk.state('stays') == 'stopped')
    # As a daemon leaves it that is killed between seeing the end and removing.
    one = desk.get('instances/stays')
    check('its group is gone too', until(lambda: not host.left(paths['stays'])), host.left(paths['stays']))
    until(lambda: not files_left(desk, 'stays'))
    daemon.kill()
    stale = os.path.join(daemon.state, 'instances', one['id'], 'cgroup.1')
    for mount in {host.mounts['cpu'][0], host.mounts['memory'][0]}:
        os.makedirs(mount + '/fonda-vm/stale', exist_ok=True)
    with open(stale, 'w', encoding='ascii') as f:
        f.write('/fonda-vm/stale')
    daemon.start()
    check('what a killed daemon left is removed by the next', until(lambda: not host.left('/fonda-vm/stale') and not os.path.exists(stale)),
          host.left('/fonda-vm/stale'))


def failing(desk, kernel, host):
    desk.post('instances', {'name': 'broken', 'kernel': kernel, 'memory': '16M', 'cpu_limit': '0.5', 'disks': ['/nowhere/disk.img']})
    job = desk.post('instances/broken/start')
    check('a machine that can\'t start', job.get('state') == 'failed', job)
    check('leaves no group', files_left(desk, 'broken') == [] and not host.of(desk.get('instances/broken')['id']), files_left(desk, 'broken'))


def refusing(desk, kernel):
    """Where a limit can't be had, the start says so: as a user who may make no groups."""
    tool = os.path.join(desk.daemon.build, 'container/limit/fonda-cg')
    where = os.path.join(desk.daemon.dir, 'open')
    os.mkdir(where)
    os.chmod(where, 0o777)
    os.chmod(desk.daemon.dir, 0o755)
    copy = os.path.join(where, 'fonda-cg')
    with open(tool, 'rb') as src, open(copy, 'wb') as dst:
        dst.write(src.read())
    os.chmod(copy, 0o755)
    done = subprocess.run([copy, 'run', where, 'test', '{"memory_limit": 268435456}', '/bin/echo', 'it ran'], user=65534, group=65534, extra_groups=[],
                          cwd='/', capture_output=True, text=True, timeout=60)
    check('a user without a delegated group: refused, and it does not run', done.returncode == 1 and 'memory_limit can\'t be applied' in done.stderr and
          'delegated' in done.stderr and 'it ran' not in done.stdout, (done.returncode, done.stdout, done.stderr))
    check('nothing is left of that', os.listdir(where) == ['fonda-cg'], os.listdir(where))
    for limits in ('[]', '{', '{"disk_limit": 1}', '{"memory_limit": "1"}', '{"cpu_limit": 2}', '{"pids_limit": -5}'):
        done = subprocess.run([tool, 'run', where, 'test', limits, '/bin/echo', 'it ran'], capture_output=True, text=True, timeout=60)
        check('fonda-cg refuses %s' % limits, done.returncode == 1 and done.stderr.startswith('fonda-cg: error: ') and not done.stdout, done)


def run(daemon):
    daemon.env['FONDA_VMM'] = os.path.join(daemon.build, 'vm/fonda-vmm')
    daemon.start()
    desk = Desk(daemon)
    kernel = counting.counting(harness.Machine(daemon.build, daemon.dir))
    host = Host()
    why = host.missing()
    values(desk, kernel)
    if os.geteuid() == 0:
        refusing(desk, kernel)
    else:
        skip('refusals', 'only root can become another user')
    if why:
        skip('limits of machines', why)
        return
    life(desk, kernel, host)
    without_limits(desk, kernel, host)
    without_daemon(desk, kernel, host)
    failing(desk, kernel, host)
