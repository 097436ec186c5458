"""Shared directories: reading, writing, and no way out of them."""
import os
import threading

from guest import data, sha

BLOB = data(3000000, 5)


def tree(t):
    """A share, with a secret beside it and ways that seem to lead there."""
    share = t.path('share')
    os.makedirs(share + '/sub/deep')
    t.path('secret', b'top secret\n')
    t.path('share/file', BLOB)
    os.symlink('../secret', share + '/out')
    os.symlink(t.path('secret'), share + '/absolute')
    os.symlink('..', share + '/up')
    os.symlink('sub', share + '/inside')
    return share


# Everything here is to fail; what it prints must not hold the secret.
ESCAPES = ['cat %s' % path for path in (
    '/mnt/out', '/mnt/absolute', '/mnt/up/secret', '/mnt/../mnt/../mnt/out', '/mnt/sub/../out', '/mnt/sub/deep/../../up/secret',
    '/mnt/inside/../out')] + [
        'ln -s ../secret /mnt/mine; cat /mnt/mine',
        'ln -s / /mnt/root; cat /mnt/root%s',
        'ln -s .. /mnt/sub/a; ln -s a/.. /mnt/sub/b; cat /mnt/sub/b/secret',
        'ln /mnt/out /mnt/hard; cat /mnt/hard',
        'mv /mnt/out /mnt/sub/deep/out; cat /mnt/sub/deep/out; mv /mnt/sub/deep/out /mnt/out',
        'echo x >>/mnt/out', 'echo x >/mnt/absolute', 'touch /mnt/up/new', 'rm /mnt/up/secret', 'mkdir /mnt/up/dir',
        'mknod /mnt/disk b 8 0 && cat /mnt/disk', 'mknod /mnt/null c 1 3 && echo x >/mnt/null', 'chmod 777 /mnt/up/secret',
        'mv /mnt/up/secret /mnt/stolen; cat /mnt/stolen', 'ln /mnt/up/secret /mnt/stolen; cat /mnt/stolen']


def test_read_write(t):
    share = tree(t)
    with t.boot('--share', share + ':data', '--share', share + ':safe:ro', '--virtio-without', '9p1:event_idx') as guest:
        t.same(guest.features('9p', {'mount_tag': 0}), [{'mount_tag', 'event_idx', 'indirect_desc', 'version_1'},
                                                        {'mount_tag', 'indirect_desc', 'version_1'}], 'features')
        guest.ok('mkdir -p /safe && mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 data /mnt && '
                 'mount -t 9p -o trans=virtio,version=9p2000.L safe /safe')
        t.same(guest.ok('sha256sum </mnt/file').split()[0], sha(BLOB), 'reads a file')
        t.same(guest.ok('sha256sum </safe/file').split()[0], sha(BLOB), 'reads a file read-only, without event_idx')
        t.same(sorted(guest.ok('ls /mnt').split()), sorted(os.listdir(share)), 'lists a directory')
        guest.ok('cp /mnt/file /mnt/sub/copy && mkdir /mnt/new && mv /mnt/sub/copy /mnt/new/copy && chmod 640 /mnt/new/copy')
        with open(share + '/new/copy', 'rb') as f:
            t.same(sha(f.read()), sha(BLOB), 'writes a file')
        t.same(os.stat(share + '/new/copy').st_mode & 0o777, 0o640, 'changes its mode')
        guest.ok('i=0; while [ $i -lt 300 ]; do echo $i >/mnt/sub/deep/$i; i=$((i+1)); done')
        t.same(guest.ok('ls /mnt/sub/deep | wc -l').strip(), '300', 'three hundred files')
        guest.ok('rm -r /mnt/new /mnt/sub/deep')
        t.see(not os.path.exists(share + '/new') and not os.path.exists(share + '/sub/deep'), 'removes files and folders')
        os.makedirs(share + '/sub/deep')
        for command in ('touch /safe/x', 'rm /safe/file', 'mkdir /safe/x', 'mv /safe/file /safe/y', 'chmod 0 /safe/file',
                        'ln -s x /safe/y', 'echo x >>/safe/file', 'truncate -s 0 /safe/file'):
            text, status = guest.command(command + ' 2>&1')
            t.see(status != 0, 'read-only refuses: ' + command, text)
        for path in ('/safe/file', '/mnt/file'):
            t.same(guest.ok('sha256sum <%s' % path).split()[0], sha(BLOB), '%s is as it was' % path)
        for command in ESCAPES:
            command = command % t.path('secret') if '%s' in command else command
            text, status = guest.command('(%s) 2>&1' % command)
            t.see('top secret' not in text, 'no escape: ' + command, text)
        with open(t.path('secret'), 'rb') as f:
            t.same(f.read(), b'top secret\n', 'the file outside is unchanged')
        t.same(sorted(set(os.listdir(t.work)) - {'share', 'secret'}), [], 'and nothing new lies beside it')
        guest.off()


def test_rename_race(t):
    """A directory turns into a link to outside and back while the guest walks through it."""
    share = tree(t)
    os.makedirs(t.path('outside'))
    t.path('outside/name', b'top secret\n')
    t.path('share/sub/name', b'inside\n')
    os.symlink(t.path('outside'), share + '/link')
    done = threading.Event()

    def swap():
        while not done.is_set():
            os.rename(share + '/sub', share + '/kept')
            os.rename(share + '/link', share + '/sub')
            os.rename(share + '/sub', share + '/link')
            os.rename(share + '/kept', share + '/sub')

    with t.boot('--share', share + ':data') as guest:
        guest.ok('mount -t 9p -o trans=virtio,version=9p2000.L,cache=none data /mnt')
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            text = guest.ok('i=0; while [ $i -lt 1500 ]; do cat /mnt/sub/name; echo x >/mnt/sub/made; i=$((i+1)); done 2>/dev/null '
                            '| sort | uniq -c')
        finally:
            done.set()
            thread.join()
        t.see('top secret' not in text, 'no read got out of the share', text)
        t.see('inside' in text, 'and some stayed in it', text)
        t.same(os.listdir(t.path('outside')), ['name'], 'no write got out of the share')
        guest.off()
