"""Exports, imports, backups and schedules; what is refused, a full disk, kill -9 in the middle, a clock that jumps."""
import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import tarfile
import time

import counting
import harness
from lib import Daemon, check, skip
from machines import MIB, Desk, leftovers, new_machine, ok, refused, settled

KILLS = int(os.environ.get('FONDA_COPY_KILLS', '8'))


def exports(desk, kernel):
    path = os.path.join(desk.daemon.dir, 'web.tar')
    new_machine(desk, 'web', kernel, '64M', description='Grüße', labels={'team': 'a'})
    desk.write('web-root', os.urandom(5 * MIB))
    contents = desk.contents('web-root')
    job = desk.post('instances/web/export', {'path': path})
    ok('export', job)
    with open(path, 'rb') as f:
        whole = hashlib.sha256(f.read()).hexdigest()
    check('the job says the file\'s SHA-256', 'sha256 ' + whole in job['log'], job['log'])
    check('the file is its owner\'s alone', os.stat(path).st_mode & 0o77 == 0)
    done = subprocess.run('mkdir x && tar -xf web.tar -C x && cd x && sha256sum --quiet -c SHA256SUMS', shell=True, cwd=desk.daemon.dir,
                          capture_output=True, text=True, timeout=60)
    check('tar and sha256sum read it', done.returncode == 0, done.stderr)
    refused('a file that is there', desk.post('instances/web/export', {'path': path}), 'already_exists')
    refused('a relative path', desk.post('instances/web/export', {'path': 'web.tar'}), 'invalid_value')
    job = desk.post('import', {'path': path, 'name': 'imp'})
    ok('import', job)
    imported = desk.get('instances/imp')
    check('has the contents', desk.contents('imp-root') == contents)
    check('and the members, but those of the host\'s files', imported['description'] == 'Grüße' and imported['labels'] == {'team': 'a'} and
          'kernel' not in imported, imported)
    check('which the job says', any("'kernel'" in line for line in job['log']), job['log'])
    ok('import of what is trusted', desk.post('import', {'path': path, 'name': 'imp2', 'trust': True}))
    check('has its kernel', desk.get('instances/imp2')['kernel'] == kernel)
    ok('and starts', desk.post('instances/imp2/start'))
    ok('it can be exported while it runs', desk.post('instances/imp2/export', {'path': path + '2'}))
    check('and no snapshot of that is left', desk.inner_snapshots('imp2-root') == set() and desk.get('instances/imp2/snapshots')['total'] == 0)
    desk.post('instances/imp2/stop', {'force': True})
    refused('a name that is taken', desk.post('import', {'path': path, 'name': 'imp'}), 'already_exists')
    desk.daemon.call('POST', '/v1/users', {'name': 'op', 'role': 'operator'})
    token = {'Authorization': 'Bearer ' + desk.daemon.call('POST', '/v1/users/op/token')[1]['token']}
    for route, body in (('instances/web/export', {'path': path + '3'}), ('import', {'path': path, 'name': 'no'})):
        status, body, _ = desk.daemon.call('POST', '/v1/' + route, body, token)
        check('%s: the host\'s files are for administrators' % route, status == 403, body)
    done = desk.daemon.cli('export', 'web', path + '4')
    check('fonda export', done.returncode == 0, done.stderr)
    done = desk.daemon.cli('import', path + '4', 'cli')
    check('fonda import', done.returncode == 0, done.stderr)
    for name in ('imp', 'imp2', 'cli'):
        desk.delete('instances/' + name)
        desk.daemon.call('DELETE', '/v1/volumes/%s-root' % name)
    return path


def tar_of(entries):
    """entries: (name, bytes) or TarInfo objects"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def with_sums(entries):
    sums = ''.join('%s  %s\n' % (hashlib.sha256(data).hexdigest(), name) for name, data in entries)
    return entries + [('SHA256SUMS', sums.encode())]


def special(name, kind, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def hostile(desk, path):
    with open(path, 'rb') as f:
        good = f.read()
    with tarfile.open(path) as tar:
        entries = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    manifest = json.loads(entries[0][1])
    pieces = entries[1:-1]

    def manifested(**more):
        return [('fonda.json', json.dumps({**manifest, **more}).encode())]
    config = manifest['config']
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    cases = [
        ('no tar', b'#!/bin/sh\n' * 1000), ('nothing', b''), ('cut off', good[:len(good) // 2]), ('without its end', good[:-2048]),
        ('one bit changed', bytes(flipped)), ('without checksums', tar_of(entries[:-1])),
        ('without a manifest', tar_of(with_sums(pieces))),
        ('a manifest that is no JSON', tar_of(with_sums([('fonda.json', b'{')]))),
        ('a manifest that is too long', tar_of(with_sums([('fonda.json', b' ' * (2 * MIB))]))),
        ('another format', tar_of(with_sums(manifested(format=2)))),
        ('a disk of no size', tar_of(with_sums(manifested(disks=[{'label': 'a', 'size': 0}])))),
        ('a disk of any size', tar_of(with_sums(manifested(disks=[{'label': 'a', 'size': 1 << 62}])))),
        ('a label that climbs', tar_of(with_sums(manifested(disks=[{'label': '../../x', 'size': 512}])))),
        ('33 disks', tar_of(with_sums(manifested(disks=[{'label': 'a', 'size': 512}] * 33)))),
        ('members that don\'t fit', tar_of(with_sums(manifested(config={**config, 'cpus': 100000}) + pieces))),
        ('an entry that climbs', tar_of(with_sums([entries[0], ('../../../tmp/evil', b'x')]))),
        ('an absolute entry', tar_of(with_sums([entries[0], ('/tmp/evil', b'x')]))),
        ('an entry of a disk that is not there', tar_of(with_sums([entries[0], ('disk-7/00000000.zst', pieces[0][1])]))),
        ('a piece behind the end', tar_of(with_sums([entries[0], ('disk-0/00000099.zst', pieces[0][1])]))),
        ('a piece twice', tar_of(with_sums([entries[0], pieces[0], pieces[0]]))),
        ('pieces out of order', tar_of(with_sums([entries[0], pieces[1], pieces[0]]))),
        ('a piece that is no zstd', tar_of(with_sums([entries[0], ('disk-0/00000000.zst', b'x' * 100)]))),
        ('an entry spelled otherwise', tar_of(with_sums([entries[0], ('disk-00/0.zst', pieces[0][1])]))),
        ('a symbolic link', tar_of([entries[0], special('disk-0/00000000.zst', tarfile.SYMTYPE, '/etc/passwd')])),
        ('a hard link', tar_of([entries[0], special('disk-0/00000000.zst', tarfile.LNKTYPE, '/etc/passwd')])),
        ('a device', tar_of([entries[0], special('disk-0/00000000.zst', tarfile.CHRTYPE)])),
        ('checksums of something else', tar_of(entries[:-1] + [('SHA256SUMS', entries[-1][1].replace(b'0', b'1'))])),
    ]
    evil = os.path.join(desk.daemon.dir, 'evil.tar')
    before = (set(os.listdir(desk.daemon.state + '/instances')), set(os.listdir(desk.daemon.state + '/volumes')))
    wrong = []
    for name, data in cases:
        with open(evil, 'wb') as f:
            f.write(data)
        job = desk.post('import', {'path': evil, 'name': 'evil', 'trust': True})
        if job.get('state') != 'failed' or job['error']['code'] not in ('invalid_value', 'unsupported') or not job['error']['detail']:
            wrong.append((name, job))
            desk.delete('instances/evil')
    check('%d hostile archives are refused, each with a reason' % len(cases), not wrong, wrong[:3])
    check('and leave nothing', before == (set(os.listdir(desk.daemon.state + '/instances')), set(os.listdir(desk.daemon.state + '/volumes'))) and
          not os.path.exists('/tmp/evil'))


def backups(desk, kernel):
    contents = desk.contents('web-root')
    ok('start', desk.post('instances/web/start'))
    ok('a backup of a machine that runs', desk.post('instances/web/backups', {'name': 'b1', 'description': 'd'}))
    backup = desk.get('backups/b1')
    file = os.path.join(desk.daemon.state, 'backups', backup['id'] + '.tar')
    with open(file, 'rb') as f:
        data = f.read()
    check('its row fits its file', backup['size'] == len(data) and backup['sha256'] == hashlib.sha256(data).hexdigest() and
          backup['instance'] == 'web' and backup['state'] == 'ready', backup)
    ok('it can be verified', desk.post('backups/b1/verify'))
    check('which is noted', 'verified_at' in desk.get('backups/b1'))
    refused('not in place while it runs', desk.post('backups/b1/restore'), 'wrong_state')
    ok('but as a new instance', desk.post('backups/b1/restore', {'name': 'new'}))
    check('with the contents, and a machine id of its own', desk.contents('new-root') == contents and len(desk.get('instances/new')['machine_id']) == 32)
    desk.post('instances/web/stop', {'force': True})
    desk.write('web-root', b'spoiled' * 1000)
    desk.daemon.call('PATCH', '/v1/instances/web', {'memory': '8M'})
    ok('in place', desk.post('backups/b1/restore'))
    now = desk.get('instances/web')
    check('disk and members are what they were', desk.contents('web-root') == contents and now['memory'] == 4 * MIB, now)
    check('and no file is left over', {v['id'] for v in desk.get('volumes')['items']} == set(os.listdir(desk.daemon.state + '/volumes')))
    desk.post('instances/web/snapshots', {'name': 's'})
    refused('not in place while there are snapshots', desk.post('backups/b1/restore'), 'in_use')
    desk.delete('instances/web/snapshots/s')
    with open(file, 'r+b') as f:
        f.seek(len(data) // 2)
        f.write(bytes([data[len(data) // 2] ^ 0x40]))
    job = desk.post('backups/b1/verify')
    check('damage is found', job['state'] == 'failed' and job['error']['code'] == 'invalid_value', job)
    job = desk.post('backups/b1/restore')
    check('and nothing is restored from it', job['state'] == 'failed' and desk.contents('web-root') == contents, job)
    done = desk.daemon.cli('backup', 'create', 'web', 'b2')
    check('fonda backup create', done.returncode == 0, done.stderr)
    check('fonda backup list', 'b2' in desk.daemon.cli('backup', 'list').stdout)
    check('deletion', desk.daemon.call('DELETE', '/v1/backups/b1')[0] == 204 and not os.path.exists(file))
    desk.delete('instances/web')
    refused('in place, of one that is gone', desk.post('backups/b2/restore'), 'not_found')
    ok('as a new one', desk.post('backups/b2/restore', {'name': 'again'}))
    desk.daemon.call('DELETE', '/v1/backups/b2')
    for name in ('new', 'again'):
        desk.delete('instances/' + name)
    for name in ('new-root', 'again-root', 'web-root'):
        desk.daemon.call('DELETE', '/v1/volumes/' + name)


def kills(desk, kernel):
    seed = int(os.environ.get('FONDA_SEED', random.randrange(1 << 32)))
    rng = random.Random(seed)
    new_machine(desk, 'k', kernel, '64M')
    desk.write('k-root', os.urandom(20 * MIB))
    contents = desk.contents('k-root')
    path = os.path.join(desk.daemon.dir, 'k.tar')
    ok('before the kills', desk.post('instances/k/export', {'path': path}))
    desk.post('instances/k/backups', {'name': 'good'})
    new_machine(desk, 'r', kernel, '64M')
    desk.post('instances/r/start')
    acts = [('instances/k/export', lambda n: {'path': path + str(n)}), ('import', lambda n: {'path': path, 'name': 'i%d' % n}),
            ('instances/k/backups', lambda n: {'name': 'b%d' % n}), ('backups/good/restore', lambda n: {}),
            ('instances/r/backups', lambda n: {'name': 'b%d' % n})]
    wrong = []
    for n in range(KILLS):
        route, body = acts[n % len(acts)]
        desk.daemon.call('POST', '/v1/' + route, body(n))
        time.sleep(rng.uniform(0, 0.12))
        desk.daemon.kill(signal.SIGKILL)
        desk.daemon.start()
        settled(desk)
        wrong = [(n, route, w) for w in leftovers(desk)]
        rows = desk.get('backups')['items']
        if {b['id'] + '.tar' for b in rows} != set(os.listdir(os.path.join(desk.daemon.state, 'backups'))) or any(b['state'] != 'ready' for b in rows):
            wrong.append((n, rows, os.listdir(os.path.join(desk.daemon.state, 'backups'))))
        wrong += [(n, f) for f in os.listdir(desk.daemon.dir) if f.endswith('.partial')]
        wrong += [(n, b['name']) for b in rows if desk.post('backups/%s/verify' % b['name']).get('state') != 'done']
        for i in desk.get('instances')['items']:
            wrong += [(n, f) for f in os.listdir(os.path.join(desk.daemon.state, 'instances', i['id'])) if f.startswith('import-')]
        if wrong:
            break
    check('%d kills in the middle of exports, imports and backups: nothing half made (FONDA_SEED=%d)' % (KILLS, seed), not wrong, wrong[:4])
    check('disks are as they were, also where one was being restored', desk.contents('k-root') == contents)
    desk.post('instances/r/stop', {'force': True})
    for i in desk.get('instances')['items']:
        desk.delete('instances/' + i['name'])
    for kind in ('volumes', 'backups'):
        for v in desk.get(kind)['items']:
            desk.daemon.call('DELETE', '/v1/%s/%s' % (kind, v['name']))


# ---- schedules ----

def change_row(daemon, kind, name, **members):
    """Behind the daemon's back, while it is down."""
    db = sqlite3.connect(os.path.join(daemon.state, 'state.db'))
    table, column = 'object', None
    columns = [row[1] for row in db.execute('pragma table_info(object)')]
    column = next(c for c in columns if c in ('json', 'data', 'body', 'text'))
    text, = db.execute('select %s from %s where kind = ? and name = ?' % (column, table), (kind, name)).fetchone()
    db.execute('update %s set %s = ? where kind = ? and name = ?' % (table, column), (json.dumps({**json.loads(text), **members}), kind, name))
    db.commit()
    db.close()


def stamp(seconds):
    return time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(time.time() + seconds))


def until(condition, seconds=40):
    for _ in range(seconds * 10):
        if condition():
            return True
        time.sleep(0.1)
    return False


def schedules(desk, kernel):
    daemon = desk.daemon
    new_machine(desk, 'sch', kernel, '1M')
    check('a schedule', daemon.call('POST', '/v1/schedules', {'name': 'hourly', 'instance': 'sch', 'every': 3600, 'keep_last': 2})[0] == 201)
    refused('neither every nor cron', daemon.call('POST', '/v1/schedules', {'name': 'x', 'instance': 'sch'})[1], 'invalid_value')
    refused('a cron that is wrong', daemon.call('POST', '/v1/schedules', {'name': 'x', 'instance': 'sch', 'cron': '0 25 * * *'})[1], 'invalid_value', 'hour')
    refused('a cron that never comes', daemon.call('POST', '/v1/schedules', {'name': 'x', 'instance': 'sch', 'cron': '0 0 30 2 *'})[1], 'invalid_value')
    refused('an instance that is not there', daemon.call('POST', '/v1/schedules', {'name': 'x', 'instance': 'none', 'every': 60})[1], 'not_found')
    done = daemon.cli('schedule', 'create', 'nightly', 'sch', '--cron', '30 3 * * *', '--backup', '--keep-for', '7d')
    check('fonda schedule create', done.returncode == 0 and desk.get('schedules/nightly')['keep_for'] == 7 * 86400, done.stderr)
    check('its next time is a half past three', desk.get('schedules/nightly')['next_at'][14:16] == '30')

    def made():
        return [s['name'] for s in desk.get('instances/sch/snapshots?sort=created_at')['items'] if s['state'] == 'ready']
    count = 0
    for n in range(3):
        daemon.kill()
        change_row(daemon, 'schedule', 'hourly', next_at=stamp(-10 * 3600))  # ten were missed
        daemon.start()
        until(lambda: len(made()) >= min(n + 1, 2) and desk.get('schedules/hourly')['next_at'] > stamp(0))
        settled(desk)
        count = max(count, len(made()))
    check('what was missed while it was down is made once', count <= 3 and desk.get('schedules/hourly')['next_at'] > stamp(3000), made())
    check('and only the last two are kept', until(lambda: len(made()) == 2), made())
    check('they say whose they are', desk.get('instances/sch/snapshots')['items'][0]['schedule'] == 'hourly')
    desk.post('instances/sch/snapshots', {'name': 'short', 'keep': 1})
    check('one that is kept for a second goes', until(lambda: 'short' not in made()), made())
    check('the others stay', len(made()) == 2)
    daemon.kill()
    change_row(daemon, 'schedule', 'hourly', next_at=stamp(100 * 86400))
    daemon.start()
    check('a next time that is too far away is planned anew', until(lambda: desk.get('schedules/hourly')['next_at'] < stamp(3700)))
    daemon.kill()
    change_row(daemon, 'schedule', 'nightly', next_at=stamp(-60))
    daemon.start()
    check('a backup by schedule', until(lambda: [b for b in desk.get('backups')['items'] if b['state'] == 'ready' and b.get('schedule') == 'nightly']))
    daemon.call('POST', '/v1/instances/sch/rename', {'name': 'schnew'})
    check('schedules follow a new name', desk.get('schedules/hourly')['instance'] == 'schnew')
    settled(desk)
    ok('the instance goes', desk.delete('instances/schnew'))
    check('and its schedules with it', desk.get('schedules')['total'] == 0)
    check('but not its backups', desk.get('backups')['total'] == 1)
    for b in desk.get('backups')['items']:
        daemon.call('DELETE', '/v1/backups/' + b['name'])
    daemon.call('DELETE', '/v1/volumes/sch-root')


def clock(build, kernel_of):
    """A daemon whose wall clock the test moves."""
    shim = os.path.join(build, 'tests/daemon/libclock-shift.so')
    linked = subprocess.run(['ldd', os.path.join(build, 'daemon/fondad')], capture_output=True, text=True).stdout
    if 'libasan' in linked or 'libtsan' in linked:
        skip('a clock that jumps', 'a sanitizer does not let anything be loaded before itself')
        return
    daemon = Daemon(build, os.path.join(build, 'vm/fonda-vmm'))
    shift = os.path.join(daemon.dir, 'shift')

    def move(seconds):
        with open(shift + '.new', 'w', encoding='ascii') as f:
            f.write(str(seconds))
        os.rename(shift + '.new', shift)
    move(0)
    daemon.env.update(LD_PRELOAD=shim, CLOCK_SHIFT=shift)
    try:
        daemon.start()
        desk = Desk(daemon)
        new_machine(desk, 'c', kernel_of(daemon), '1M')
        daemon.call('POST', '/v1/schedules', {'name': 's', 'instance': 'c', 'every': 60, 'keep_for': 3600})
        desk.post('instances/c/snapshots', {'name': 'kept', 'keep': 86400})
        move(400 * 86400)
        check('forward: planned anew', until(lambda: desk.get('schedules/s')['next_at'] > stamp(399 * 86400)))
        time.sleep(6)
        check('nothing was made for the time between, and nothing expired', [s['name'] for s in desk.get('instances/c/snapshots')['items']] == ['kept'],
              desk.get('instances/c/snapshots'))
        move(0)
        check('back: planned anew', until(lambda: desk.get('schedules/s')['next_at'] < stamp(100)))
    finally:
        daemon.close()


# ---- a full disk ----

def full(build, kernel_of):
    daemon = Daemon(build, os.path.join(build, 'vm/fonda-vmm'))
    os.mkdir(daemon.state, 0o700)
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40M', 'tmpfs', daemon.state], capture_output=True, text=True)
    if done.returncode:
        skip('a full disk', 'no tmpfs can be mounted here: %s' % done.stderr.strip())
        daemon.close()
        return
    try:
        daemon.start()
        desk = Desk(daemon)
        new_machine(desk, 'a', kernel_of(daemon), '64M')
        desk.write('a-root', os.urandom(18 * MIB))
        contents = desk.contents('a-root')
        before = {v['name'] for v in desk.get('volumes')['items']}
        ballast = os.path.join(daemon.state, 'ballast')
        with open(ballast, 'wb') as f:
            f.write(bytes(8 * MIB))
        wrong = []
        for route, body in (('instances/a/clone', {'name': 'b'}), ('templates', {'name': 't', 'instance': 'a'}), ('instances/a/backups', {'name': 'x'})):
            job = desk.post(route, body)
            if job.get('state') != 'failed' or job['error']['code'] != 'no_space':
                wrong.append((route, job))
        check('a full disk: each job says so', not wrong, wrong)
        check('and nothing of them is left', {v['name'] for v in desk.get('volumes')['items']} == before and not leftovers(desk) and
              desk.get('backups')['total'] == 0, leftovers(desk))
        check('what was there is as it was', desk.contents('a-root') == contents)
        os.unlink(ballast)
        ok('with room again, all is well', desk.post('instances/a/snapshots', {'name': 's'}))
    finally:
        if daemon.process and daemon.process.poll() is None:
            daemon.kill(signal.SIGTERM)
        subprocess.run(['umount', '-l', daemon.state], capture_output=True)
        daemon.close()


def run(daemon):
    daemon.env['FONDA_VMM'] = os.path.join(daemon.build, 'vm/fonda-vmm')
    daemon.start()
    desk = Desk(daemon)

    def kernel_of(d):
        return counting.counting(harness.Machine(d.build, d.dir))
    kernel = kernel_of(daemon)
    path = exports(desk, kernel)
    hostile(desk, path)
    backups(desk, kernel)
    kills(desk, kernel)
    schedules(desk, kernel)
    clock(daemon.build, kernel_of)
    full(daemon.build, kernel_of)
