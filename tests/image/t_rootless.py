"""The same as a plain user: with ranges of ids, with one id, and without namespaces."""
import os
import pwd

from lib import Skip, check, equal, need, test

NOBODY = 65534


def user_box(box):
    """A copy of the programs that the user can reach, and its folder."""
    home = box.path('user')
    os.makedirs(home + '/container')
    os.makedirs(home + '/cli')
    box.sh('cp', box.program, home + '/cli/')
    box.sh('cp', os.path.join(box.build, 'container', 'fonda-oci'), home + '/container/')
    box.tar(box.rootfs())
    return home


def as_user(box, uid, gid, home, *args, force='', **more):
    env = {'HOME': home, 'XDG_DATA_HOME': home + '/data', 'FONDA_IMAGE_FORCE': force}
    return box.sh(home + '/cli/fonda-image', *args, env=env, user=uid, group=gid, extra_groups=[], cwd=home, **more)


def common(box, uid, gid, home, force=''):
    box.sh('chown', '-R', '%d:%d' % (uid, gid), home)

    def image(*args, **more):
        return as_user(box, uid, gid, home, *args, force=force, **more)
    image('import', box.path('base.tar'), 'base:1')
    os.makedirs(home + '/ctx')
    with open(home + '/ctx/Containerfile', 'w') as f:
        f.write('FROM base:1\nCOPY --chown=app Containerfile /home/app/\n')
    os.chmod(home + '/ctx', 0o755)
    image('build', '-t', 'b:1', home + '/ctx')
    equal(image('diff', 'b:1').out, 'A /home/app/Containerfile\n')
    image('save', 'b:1', '--output', home + '/b.tar')
    # As root: owners and modes came through.
    box.image('load', home + '/b.tar')
    root = box.mount('c', 'b:1')
    st = os.stat(root + '/home/app')
    equal((st.st_uid, st.st_gid), (1000, 1001), 'owner of an old folder')
    st = os.stat(root + '/home/app/Containerfile')
    equal((st.st_uid, st.st_gid), (1000, 1000), 'owner of a new file')
    equal(os.stat(root + '/bin/su').st_mode & 0o7777, 0o4755, 'setuid')
    return image


@test
def one_id(box):
    """a user with one id: owners are kept in attributes, layers are copied"""
    home = user_box(box)
    probe = box.sh('unshare', '-Ur', 'true', ok=False, user=NOBODY, group=NOBODY, extra_groups=[])
    if probe.status != 0:
        raise Skip('no user namespaces for plain users here')
    image = common(box, NOBODY, NOBODY, home, 'no-subuid')
    image('prune', '--all')
    equal(os.listdir(home + '/data/fonda/images/layers'), [])


@test
def ranges(box):
    """a user with ranges of ids: a namespace with overlay mounts, and RUN"""
    need('newuidmap')
    entries = []
    if os.path.exists('/etc/subuid'):
        with open('/etc/subuid') as f:
            entries = [line.split(':')[0] for line in f if line.strip()]
    users = []
    for name in entries:
        try:
            users.append(pwd.getpwnam(name))
        except KeyError:
            pass
    users = [u for u in users if u.pw_uid]
    if not users:
        raise Skip('no plain user has a range in /etc/subuid')
    uid, gid = users[0].pw_uid, users[0].pw_gid
    home = user_box(box)
    image = common(box, uid, gid, home)
    with open(home + '/ctx/Containerfile', 'w') as f:
        f.write('FROM base:1\nUSER app\nRUN id -u > /tmp/who\nUSER root\nRUN id -u >> /tmp/who\n')
    image('build', '-t', 'r:1', home + '/ctx')
    image('save', 'r:1', '--output', home + '/r.tar')
    box.image('load', home + '/r.tar')
    with open(box.mount('r', 'r:1') + '/tmp/who') as f:
        equal(f.read(), '1000\n0\n')
    image('prune', '--all')
    check(not os.listdir(home + '/data/fonda/images/layers'), 'layers are left')
