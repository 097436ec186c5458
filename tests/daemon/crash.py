"""kill -9 of the daemon at random moments of mixed operations: no instance is lost, nothing half made is left."""
import os
import random
import signal
import threading
import time

from lib import check

OPERATIONS = int(os.environ.get('FONDA_CRASH_OPERATIONS', '60'))
KILL_EVERY = 6


def operation(daemon, rng, acknowledged):
    name = 'c%d' % rng.randrange(5)
    verb = rng.choice(['create', 'create', 'start', 'start', 'stop', 'delete', 'pause', 'resume', 'volume'])
    try:
        if verb == 'create':
            status, job, _ = daemon.call('POST', '/v1/instances?wait=10', {'name': name, 'kernel': daemon.kernel(), 'stop_timeout': 5})
        elif verb == 'delete':
            status, job, _ = daemon.call('DELETE', '/v1/instances/%s?wait=10' % name)
        elif verb == 'volume':
            volume = 'v%d' % rng.randrange(1000000)
            if daemon.call('POST', '/v1/volumes', {'name': volume, 'size': 4096})[0] == 201:
                acknowledged['volumes'].add(volume)
            return
        else:
            status, job, _ = daemon.call('POST', '/v1/instances/%s/%s?wait=10' % (name, verb))
    except (OSError, ValueError, __import__('http').client.HTTPException):
        acknowledged['unsure'].add(name)  # the daemon was killed under it
        return
    if status == 200 and job['state'] == 'done':
        acknowledged['unsure'].discard(name)
        acknowledged['there'][name] = verb != 'delete'
        acknowledged['runs'][name] = {'start': True, 'resume': True, 'pause': True}.get(verb, False)


def consistent(daemon, acknowledged):
    """What is wrong, if anything."""
    wrong = []
    instances = {i['name']: i for i in daemon.call('GET', '/v1/instances?limit=1000')[1]['items']}
    for name, i in instances.items():
        if i['state'] not in ('stopped', 'running', 'paused', 'failed'):
            wrong.append((name, i['state']))
        alive = 'pid' in i and os.path.exists('/proc/%d' % i['pid'])
        if (i['state'] in ('running', 'paused')) != alive:
            wrong.append((name, i['state'], 'pid', i.get('pid'), alive))
    for name, there in acknowledged['there'].items():
        if name not in acknowledged['unsure'] and there != (name in instances):
            wrong.append((name, 'acknowledged there' if there else 'acknowledged gone'))
        if name in instances and name not in acknowledged['unsure'] and \
                acknowledged['runs'][name] != (instances[name]['state'] in ('running', 'paused')):
            wrong.append((name, 'runs: acknowledged %s' % acknowledged['runs'][name], instances[name]))
    directories = set(os.listdir(os.path.join(daemon.state, 'instances')))
    ids = {i['id'] for i in instances.values()}
    if directories != ids:
        wrong.append(('directories', directories ^ ids))
    volumes = {v['name']: v for v in daemon.call('GET', '/v1/volumes?limit=10000')[1]['items']}
    lost = acknowledged['volumes'] - set(volumes)
    if lost:
        wrong.append(('volumes lost', lost))
    if {v['id'] for v in volumes.values()} != set(os.listdir(os.path.join(daemon.state, 'volumes'))):
        wrong.append('volume files')
    jobs = daemon.call('GET', '/v1/jobs?limit=1000&filter=state%3Dqueued%20or%20state%3Drunning')[1]['items']
    if jobs:
        wrong.append(('open jobs', jobs))
    failed = daemon.call('GET', '/v1/jobs?limit=1000&filter=state%3Dfailed')[1]['items']
    wrong += [('no reason', j['name']) for j in failed if not j.get('error', {}).get('detail')]
    return wrong


def run(daemon):
    seed = int(os.environ.get('FONDA_SEED', random.randrange(1 << 32)))
    rng = random.Random(seed)
    acknowledged = {'there': {}, 'runs': {}, 'unsure': set(), 'volumes': set()}
    wrong, kills = [], 0
    daemon.start()
    for start in range(0, OPERATIONS, KILL_EVERY):
        count = min(KILL_EVERY, OPERATIONS - start)
        worker = threading.Thread(target=lambda: [operation(daemon, rng, acknowledged) for _ in range(count)])
        worker.start()
        time.sleep(random.Random(seed + start).uniform(0, 0.25))
        daemon.kill(signal.SIGKILL)
        kills += 1
        worker.join()
        daemon.start()
        wrong = consistent(daemon, acknowledged)
        if wrong:
            break
    check('%d operations, %d kills: nothing lost, nothing half made (FONDA_SEED=%d)' % (OPERATIONS, kills, seed), not wrong, wrong[:4])
    for i in daemon.call('GET', '/v1/instances')[1]['items']:
        if i['state'] in ('running', 'paused'):
            daemon.call('POST', '/v1/instances/%s/stop?wait=20' % i['name'], {'force': True})
        daemon.call('DELETE', '/v1/instances/%s?wait=20' % i['name'])
    check('and all of it can be deleted', os.listdir(os.path.join(daemon.state, 'instances')) == [])
