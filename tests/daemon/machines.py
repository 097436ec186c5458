"""Real machines (fonda-vmm) under the daemon: bare guests that count aloud, and Linux where it was fetched. Snapshots, saving, clones,
templates; what a daemon that is killed in the middle of them leaves."""
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

from lib import ROOT, WebSocket, check, skip

sys.path[:0] = [os.path.join(ROOT, 'tests', 'state'), os.path.join(ROOT, 'tests', 'system')]
import counting  # noqa: E402
import harness  # noqa: E402

KILLS = int(os.environ.get('FONDA_COPY_KILLS', '10'))
MIB = 1 << 20


class Desk:
    """Calls that have to work, and looks at what is there."""

    def __init__(self, daemon):
        self.daemon = daemon

    def get(self, path):
        return self.daemon.call('GET', '/v1/' + path)[1]

    def post(self, path, body=None, wait=60):
        return self.daemon.call('POST', '/v1/%s?wait=%d' % (path, wait), body)[1]

    def delete(self, path):
        return self.daemon.call('DELETE', '/v1/%s?wait=60' % path)[1]

    def state(self, name):
        return self.get('instances/' + name).get('state')

    def log(self, name):
        return self.get('instances/%s/log' % name).decode(errors='replace')

    def volume_path(self, name):
        return os.path.join(self.daemon.state, 'volumes', self.get('volumes/' + name)['id'])

    def image(self, *args):
        return subprocess.run([os.path.join(self.daemon.build, 'cli/fonda'), 'image', *args], env=self.daemon.env, capture_output=True, text=True,
                              timeout=120)

    def contents(self, volume):
        """SHA-256 of what a stopped machine's volume holds."""
        out = os.path.join(self.daemon.dir, 'contents.raw')
        done = self.image('convert', '--to', 'raw', '--force', self.volume_path(volume), out)
        if done.returncode:
            return done.stderr
        with open(out, 'rb') as f:
            return hashlib.sha256(f.read()).hexdigest()

    def write(self, volume, data):
        """Puts data at the beginning of a stopped machine's volume: by an overlay, so that its snapshots stay."""
        raw, overlay = (os.path.join(self.daemon.dir, n) for n in ('write.raw', 'write.qcow2'))
        with open(raw, 'wb') as f:
            f.write(data)
            f.truncate(self.get('volumes/' + volume)['size'])
        for args in (('convert', '--force', raw, overlay), ('rebase', '--unsafe', '--backing', self.volume_path(volume), '--backing-format', 'qcow2',
                                                           overlay), ('commit', overlay)):
            done = self.image(*args)
            if done.returncode:
                raise RuntimeError(done.stderr)
        os.unlink(overlay)

    def inner_snapshots(self, volume):
        """Names inside of the image, also while a machine has it open."""
        done = self.image('info', '--shared', self.volume_path(volume))
        return set(re.findall(r'^snapshot \S+ +(\S+)$', done.stdout, re.M))


def ok(name, job, more=''):
    return check(name, isinstance(job, dict) and job.get('state') == 'done', (job, more) if not isinstance(job, dict) or job.get('state') != 'done' else '')


def refused(name, answer, code, text=''):
    return check(name, answer.get('code') == code and text in answer.get('detail', ''), answer)


def expect(desk, name, pattern, seconds=60):
    for _ in range(seconds * 20):
        if re.search(pattern, desk.log(name)):
            return True
        time.sleep(0.05)
    return False


def new_machine(desk, name, kernel, size='8M', **more):
    desk.post('volumes', {'name': name + '-root', 'size': size})
    return desk.post('instances', {'name': name, 'kernel': kernel, 'memory': '4M', 'volumes': [name + '-root'], **more})


def snapshots(desk, kernel):
    ok('a machine with a volume', new_machine(desk, 'web', kernel))
    desk.write('web-root', b'first' * 1000)
    first = desk.contents('web-root')
    ok('a snapshot of a stopped machine', desk.post('instances/web/snapshots', {'name': 'cold', 'description': 'before'}))
    one = desk.get('instances/web/snapshots/cold')
    check('it has no memory, and no parent', one['memory'] is False and 'parent' not in one and one['state'] == 'ready', one)
    refused('a name that is taken', desk.post('instances/web/snapshots', {'name': 'cold'}), 'already_exists')
    refused('memory of a stopped machine', desk.post('instances/web/snapshots', {'memory': True}), 'wrong_state')
    desk.write('web-root', b'second' * 1000)
    second = desk.contents('web-root')
    ok('start', desk.post('instances/web/start'))
    check('the guest counts', expect(desk, 'web', 'abcd'))
    ok('a snapshot with memory', desk.post('instances/web/snapshots', {'name': 'warm'}))
    at = len(desk.log('web'))
    ok('a snapshot of the disks alone, while it runs', desk.post('instances/web/snapshots', {'name': 'disks', 'memory': False}))
    listed = desk.get('instances/web/snapshots?sort=created_at')['items']
    check('the list, with parents', [(s['name'], s.get('parent'), s['memory']) for s in listed] ==
          [('cold', None, False), ('warm', 'cold', True), ('disks', 'warm', False)], listed)
    check('the disk has them', desk.inner_snapshots('web-root') == {s['id'] for s in listed}, desk.inner_snapshots('web-root'))
    desk.daemon.call('PATCH', '/v1/instances/web', {'memory': '8M'})
    refused('not while changes wait for a restart', desk.post('instances/web/snapshots'), 'wrong_state', 'was changed')
    pid = desk.get('instances/web')['pid']
    ok('back to memory, from a machine that runs', desk.post('instances/web/snapshots/warm/restore'))
    now = desk.get('instances/web')
    check('it runs, in a new process, at that snapshot', now['state'] == 'running' and now['pid'] != pid and now['snapshot'] == 'warm' and
          now['memory'] == 4 * MIB and not now['after_restart'], now)
    check('it goes on counting', expect(desk, 'web', '[a-p]{4}'))
    text = desk.log('web')
    check('without a gap in its count', len(text) > 3 and all((ord(b) - ord(a)) % 16 == 1 for a, b in zip(text, text[1:])), (at, text[-80:]))
    ok('back to disks alone, from a machine that runs', desk.post('instances/web/snapshots/cold/restore', {'start': False}))
    check('it is stopped, and its disk is what it was', desk.state('web') == 'stopped' and desk.contents('web-root') == first)
    ok('and forward again', desk.post('instances/web/snapshots/disks/restore'))
    check('its disk is the later one', desk.contents('web-root') == second)
    ok('back to memory, from a stopped machine', desk.post('instances/web/snapshots/warm/restore'))
    check('it runs', desk.state('web') == 'running')
    tree = desk.daemon.cli('snapshot', 'tree', 'web')
    check('fonda snapshot tree', re.search(r'^cold .*\n  warm \(with memory\)  <- here.*\n    disks ', tree.stdout), (tree.stdout, tree.stderr))
    ok('deleting one in the middle, while it runs', desk.delete('instances/web/snapshots/warm'))
    check('its child has its parent', desk.get('instances/web/snapshots/disks')['parent'] == 'cold')
    check('and the instance too', desk.get('instances/web')['snapshot'] == 'cold')
    files = os.listdir(os.path.join(desk.daemon.state, 'instances', now['id']))
    check('its memory is gone', not [f for f in files if f.startswith('snapshot-')], files)
    refused('the volume is kept', desk.delete('volumes/web-root'), 'in_use')
    refused('one that is not there', desk.post('instances/web/snapshots/none/restore'), 'not_found')
    desk.post('instances/web/stop', {'force': True})
    ok('a new name', {'state': 'done'} if desk.daemon.call('POST', '/v1/instances/web/rename', {'name': 'www'})[0] == 200 else {})
    check('snapshots follow', [s['name'] for s in desk.get('instances/www/snapshots?sort=name')['items']] == ['cold', 'disks'])
    ok('deleting the machine', desk.delete('instances/www'))
    check('takes its snapshots out of the volume that stays', desk.inner_snapshots('web-root') == set())
    check('and the volume can go', desk.daemon.call('DELETE', '/v1/volumes/web-root')[0] == 204)
    desk.daemon.call('POST', '/v1/volumes', {'name': 'plain', 'size': 4096, 'format': 'raw'})
    desk.post('instances', {'name': 'raw', 'kernel': kernel, 'volumes': ['plain']})
    refused('raw volumes have none', desk.post('instances/raw/snapshots'), 'not_supported', "volume 'plain' is raw")
    desk.delete('instances/raw')
    desk.daemon.call('DELETE', '/v1/volumes/plain')


def saving(desk, kernel):
    ok('a machine without disks', desk.post('instances', {'name': 'bare', 'kernel': kernel, 'memory': '4M', 'restart_policy': 'always'}))
    desk.post('instances/bare/start')
    expect(desk, 'bare', 'abcd')
    ok('a snapshot of its memory alone', desk.post('instances/bare/snapshots', {'name': 'm'}))
    ok('save', desk.post('instances/bare/save'))
    now = desk.get('instances/bare')
    check('saved, and its policy does not start it', now['state'] == 'saved' and 'pid' not in now and now['saved_bytes'] > 0, now)
    desk.daemon.kill()
    desk.daemon.start()
    check('a daemon later it still is', desk.state('bare') == 'saved')
    ok('start goes on', desk.post('instances/bare/start'))
    check('it counts', expect(desk, 'bare', '[a-p]{4}'))
    text = desk.log('bare')
    check('from where it was', all((ord(b) - ord(a)) % 16 == 1 for a, b in zip(text, text[1:])), text[-80:])
    check('and what was saved is used up', desk.get('instances/bare')['saved_bytes'] == 0 and
          not os.path.exists(os.path.join(desk.daemon.state, 'instances', now['id'], 'saved.fonda')))
    desk.post('instances/bare/save')
    ok('stop gives the memory up', desk.post('instances/bare/stop'))
    check('it is stopped', desk.state('bare') == 'stopped')
    desk.delete('instances/bare')


def clones(desk, kernel):
    new_machine(desk, 'src', kernel)
    desk.write('src-root', os.urandom(MIB))
    contents = desk.contents('src-root')
    ok('a full clone', desk.post('instances/src/clone', {'name': 'full'}))
    check('has the same contents', desk.contents('full-root') == contents)
    ok('a linked clone', desk.post('instances/src/clone', {'name': 'thin', 'mode': 'linked'}))
    check('has the same contents', desk.contents('thin-root') == contents)
    check('in a small file', os.stat(desk.volume_path('thin-root')).st_blocks * 512 < MIB)
    check('and says on what it lies', desk.get('volumes/thin-root')['backing'] == 'src-root')
    one, other = desk.get('instances/full'), desk.get('instances/thin')
    check('machine ids of their own', len(one['machine_id']) == 32 and one['machine_id'] != other['machine_id'])
    refused('the original can not start meanwhile', desk.post('instances/src/start'), 'in_use', "'thin-root' is a linked copy")
    refused('nor be snapshotted', desk.post('instances/src/snapshots'), 'in_use')
    desk.delete('instances/src')
    refused('its volume can not go', desk.delete('volumes/src-root'), 'in_use', "volume 'thin-root'")
    ok('the linked clone starts', desk.post('instances/thin/start'))
    pid = desk.get('instances/thin')['pid']
    with open('/proc/%d/cmdline' % pid, encoding='ascii') as f:
        words = f.read().split('\0')
    macs = [w for w in words if w.startswith('--net=')]
    check('its guest is told the machine id', any('systemd.machine_id=' + other['machine_id'] in w for w in words), words)
    check('its MAC is its own', len(macs) == 1 and 'mac=52:54:' + ':'.join(other['id'][i:i + 2] for i in (0, 2, 4, 6)) in macs[0], macs)
    ok('a snapshot of it', desk.post('instances/thin/snapshots', {'name': 's'}))
    ok('a full clone of the snapshot, while it runs', desk.post('instances/thin/clone', {'name': 'ofsnap', 'snapshot': 's'}))
    check('has the same contents', desk.contents('ofsnap-root') == contents)
    desk.post('instances/thin/stop', {'force': True})
    job = desk.daemon.call('DELETE', '/v1/instances/full?wait=60&volumes=1')[1]
    check('deletion with volumes', job['state'] == 'done' and desk.daemon.call('GET', '/v1/volumes/full-root')[0] == 404, job)
    for name in ('thin', 'ofsnap'):
        desk.delete('instances/' + name)
    for name in ('thin-root', 'ofsnap-root', 'src-root'):
        check('volume %s goes' % name, desk.daemon.call('DELETE', '/v1/volumes/' + name)[0] == 204)


def host_disk(desk, kernel):
    """A disk of the host's, as administrators give them."""
    path = os.path.join(desk.daemon.dir, 'host.qcow2')
    desk.image('create', '--size', '4M', path)
    desk.post('instances', {'name': 'host', 'kernel': kernel, 'memory': '4M', 'disks': [path]})
    refused('no linked clone of a file of the host\'s', desk.post('instances/host/clone', {'name': 'x', 'mode': 'linked'}), 'not_supported')
    ok('a full one', desk.post('instances/host/clone', {'name': 'copy'}))
    copy = desk.get('instances/copy')
    check('has a volume instead', copy['disks'] == [] and copy['volumes'] == ['copy-disk0'], copy)
    ok('a snapshot of it', desk.post('instances/host/snapshots', {'name': 's'}))
    ok('and back', desk.post('instances/host/snapshots/s/restore'))
    for name in ('host', 'copy'):
        desk.delete('instances/' + name)
    desk.daemon.call('DELETE', '/v1/volumes/copy-disk0')


def templates(desk, kernel):
    new_machine(desk, 'gold', kernel)
    desk.write('gold-root', os.urandom(MIB))
    contents = desk.contents('gold-root')
    ok('a template', desk.post('templates', {'name': 'base', 'instance': 'gold', 'description': 'd'}))
    ok('its instance starts as ever', desk.post('instances/gold/start'))
    desk.post('instances/gold/stop', {'force': True})
    ok('an instance from it', desk.post('templates/base/use', {'name': 'i1'}))
    ok('and a full copy', desk.post('templates/base/use', {'name': 'i2', 'mode': 'full'}))
    check('contents', desk.contents('i1-root') == contents == desk.contents('i2-root'))
    check('which say where they are from', desk.get('instances/i1')['template'] == 'base')
    ok('both start', desk.post('instances/i1/start'))
    refused('nothing takes its volumes', desk.daemon.call('PATCH', '/v1/instances/i2', {'volumes': ['base-root']})[1], 'in_use')
    refused('nothing deletes them', desk.delete('volumes/base-root'), 'in_use')
    refused('nor the template, with a linked copy', desk.delete('templates/base'), 'in_use')
    desk.post('instances/i1/stop', {'force': True})
    for name in ('i1', 'i2', 'gold'):
        desk.delete('instances/' + name)
        desk.daemon.call('DELETE', '/v1/volumes/%s-root' % name)
    check('then it can go', desk.daemon.call('DELETE', '/v1/templates/base')[0] == 204)
    check('and nothing is left', os.listdir(os.path.join(desk.daemon.state, 'volumes')) == [])


def quota(desk, kernel):
    desk.daemon.call('POST', '/v1/users', {'name': 'few', 'role': 'operator', 'quota_disk': '24M'})
    token = {'Authorization': 'Bearer ' + desk.daemon.call('POST', '/v1/users/few/token')[1]['token']}
    new_machine(desk, 'orig', kernel, '8M')
    def clone(name):
        return desk.daemon.call('POST', '/v1/instances/orig/clone?wait=60', {'name': name}, token)[1]
    ok('clones up to the quota', clone('q1'))
    ok('clones up to the quota', clone('q2'))
    ok('clones up to the quota', clone('q3'))
    refused('and none beyond', clone('q4'), 'quota_reached', 'quota_disk')
    refused('nor a snapshot', desk.daemon.call('POST', '/v1/instances/q1/snapshots', {}, token)[1], 'quota_reached')
    check('nothing of the refused one is there', desk.daemon.call('GET', '/v1/volumes/q4-root')[0] == 404)
    for name in ('orig', 'q1', 'q2', 'q3'):
        desk.delete('instances/' + name)
        desk.daemon.call('DELETE', '/v1/volumes/%s-root' % name)


# ---- kill -9 ----

def settled(desk):
    for _ in range(600):
        if not desk.get('jobs?filter=state%3Dqueued%20or%20state%3Drunning')['items']:
            return
        time.sleep(0.1)


def leftovers(desk):
    """What should not be there: half-made rows, files without rows, snapshots in disks without rows."""
    wrong = []
    instances = desk.get('instances?limit=1000')['items']
    volumes = desk.get('volumes?limit=1000')['items']
    wrong += [(i['name'], i['state']) for i in instances if i['state'] not in ('stopped', 'running', 'saved')]
    wrong += [(t['name'], t['state']) for t in desk.get('templates')['items'] if t['state'] != 'ready']
    if {v['id'] for v in volumes} != set(os.listdir(os.path.join(desk.daemon.state, 'volumes'))):
        wrong.append('volume files')
    known = {}
    for i in instances:
        rows = desk.get('instances/%s/snapshots' % i['name'])['items']
        wrong += [(i['name'], s['name'], s['state']) for s in rows if s['state'] != 'ready']
        for volume in i['volumes']:
            known.setdefault(volume, set()).update(s['id'] for s in rows)
        files = {f for f in os.listdir(os.path.join(desk.daemon.state, 'instances', i['id'])) if f.startswith('snapshot-')}
        if files != {'snapshot-%s.fonda' % s['id'] for s in rows if s['memory']}:
            wrong.append((i['name'], files))
    for v in volumes:
        if desk.inner_snapshots(v['name']) != known.get(v['name'], set()):
            wrong.append((v['name'], desk.inner_snapshots(v['name']), known.get(v['name'])))
    made_for = {i['id'] for i in instances} | {t['id'] for t in desk.get('templates')['items']}
    wrong += [(v['name'], 'made for nobody') for v in volumes if v.get('made_for', '') and v['made_for'] not in made_for]
    return wrong


def kills(desk, kernel):
    """Each time something else is under way."""
    seed = int(os.environ.get('FONDA_SEED', random.randrange(1 << 32)))
    rng = random.Random(seed)
    new_machine(desk, 'live', kernel, '64M')
    new_machine(desk, 'cold', kernel, '64M')
    desk.write('cold-root', os.urandom(24 * MIB))
    contents = desk.contents('cold-root')
    desk.post('instances/live/start')
    ok('before the kills', desk.post('instances/live/snapshots', {'name': 'base'}))
    acts = [('instances/cold/clone', lambda n: {'name': 'c%d' % n}), ('instances/live/snapshots', lambda n: {'name': 's%d' % n}),
            ('templates', lambda n: {'name': 't%d' % n, 'instance': 'cold'}), ('instances/cold/snapshots', lambda n: {'name': 'k%d' % n}),
            ('instances/live/snapshots/base/restore', lambda n: {}), ('instances/live/save', lambda n: None)]
    wrong, states = [], set()
    for n in range(KILLS):
        path, body = acts[n % len(acts)]
        desk.daemon.call('POST', '/v1/' + path, body(n))
        time.sleep(rng.uniform(0, 0.12))
        desk.daemon.kill(signal.SIGKILL)
        desk.daemon.start()
        settled(desk)
        calm = 0
        for _ in range(100):  # a machine that was being saved goes on with that without the daemon
            state = desk.state('live')
            states.add(state)
            calm = calm + 1 if state == 'running' else 0
            if state in ('saved', 'stopped'):
                desk.post('instances/live/start')
            if calm == 5:
                break
            time.sleep(0.1)
        wrong = [(n, path, w) for w in leftovers(desk)]
        if desk.state('live') != 'running':
            wrong.append((n, path, desk.get('instances/live')))
        if wrong:
            break
    check('%d kills in the middle of copies: nothing half made (FONDA_SEED=%d)' % (KILLS, seed), not wrong, (wrong[:4], states))
    check('and what was copied from is as it was', desk.contents('cold-root') == contents)
    bad = [v['name'] for v in desk.get('volumes')['items'] if re.match(r'[ct]\d', v['name']) and desk.contents(v['name']) != contents]
    check('and the copies are whole', not bad, bad)
    desk.post('instances/live/stop', {'force': True})


# ---- Linux ----

class Shell:
    """A guest's shell over the console's web socket."""

    def __init__(self, daemon, name):
        self.ws = WebSocket(daemon.socket, '/v1/instances/%s/console' % name)
        self.ws.sock.settimeout(120)
        self.text = ''

    def expect(self, pattern):
        while not re.search(pattern, self.text):
            self.text += self.ws.receive()[1].decode(errors='replace')
        self.text = self.text[re.search(pattern, self.text).end():]

    def command(self, line):
        self.ws.send(line.encode() + b'; echo "=e"nd\n')
        self.expect('=end')


def linux(desk):
    guest = os.path.join(desk.daemon.build, 'guest')
    if not os.path.exists(os.path.join(guest, 'initramfs')):
        skip('Linux under the daemon', 'no guest in %s (tools/fetch-guest)' % guest)
        return
    desk.post('volumes', {'name': 'lin-data', 'size': '8M'})
    desk.post('instances', {'name': 'lin', 'kernel': guest + '/vmlinuz', 'initrds': [guest + '/initramfs'], 'memory': '128M', 'volumes': ['lin-data'],
                            'append': 'console=ttyS0 panic=-1'})
    ok('Linux starts', desk.post('instances/lin/start'))
    check('to its shell', expect(desk, 'lin', 'root@fonda:~# ', 180))
    try:
        shell = Shell(desk.daemon, 'lin')
        shell.command('echo one | dd of=/dev/vda conv=sync 2>/dev/null; sync; word=remembered')
        ok('a snapshot of Linux', desk.post('instances/lin/snapshots', {'name': 'one'}))
        shell.command('echo two | dd of=/dev/vda conv=sync 2>/dev/null; sync; word=forgotten')
        shell.ws.close()
        ok('and back', desk.post('instances/lin/snapshots/one/restore'))
        shell = Shell(desk.daemon, 'lin')
        shell.ws.send(b'echo "<$word $(head -n 1 /dev/vda)>"\n')
        shell.expect('<remembered one>')
        check('memory and disk are of one moment', True)
        shell.ws.close()
    except (EOFError, OSError) as e:
        check('memory and disk are of one moment', False, (repr(e), desk.log('lin')[-2000:]))
    desk.post('instances/lin/stop', {'force': True})
    desk.delete('instances/lin')
    desk.daemon.call('DELETE', '/v1/volumes/lin-data')


def run(daemon):
    daemon.env['FONDA_VMM'] = os.path.join(daemon.build, 'vm/fonda-vmm')
    daemon.start()
    desk = Desk(daemon)
    kernel = counting.counting(harness.Machine(daemon.build, daemon.dir))
    snapshots(desk, kernel)
    saving(desk, kernel)
    clones(desk, kernel)
    host_disk(desk, kernel)
    templates(desk, kernel)
    quota(desk, kernel)
    linux(desk)
    kills(desk, kernel)
