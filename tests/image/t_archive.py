"""save, load, names, remove and prune."""
import os

from lib import check, equal, need, same_tree, test


@test
def save_load(box):
    """what is saved in either format loads again, and podman and skopeo take it"""
    need('podman', 'skopeo')
    box.base()
    root = box.mount('c', 'base:1')
    os.unlink(root + '/etc/group')
    box.image('commit', 'c', 'fonda-test/v:2', '--compression', 'zstd')
    for kind in ('oci-archive', 'docker-archive'):
        archive = box.path(kind + '.tar')
        box.image('save', 'fonda-test/v:2', 'base:1', '--format', kind, '--output', archive)
        out = box.image('load', archive, store=box.path(kind)).out.split()
        equal(sorted(out), ['base:1', 'fonda-test/v:2'], kind)
        same_tree(root, box.mount('x', 'fonda-test/v:2', store=box.path(kind)), kind)
        box.image('save', 'fonda-test/v:2', '--format', kind, '--output', box.path('one.tar'))
        out = box.sh('podman', '--root', box.path('podman'), '--runroot', box.path('run'), '--storage-driver', 'vfs', 'load', '-i',
                     box.path('one.tar')).out
        check('fonda-test/v:2' in out, out)
        box.sh('skopeo', 'inspect', '%s:%s' % (kind, box.path('one.tar')))
    box.sh('skopeo', 'copy', 'oci:%s:%s' % (box.store, 'docker.io/library/base:1'), 'docker-archive:%s:sk:1' % box.path('sk.tar'))
    equal(box.image('load', box.path('sk.tar')).out, 'sk:1\n', 'from skopeo')
    box.refused('no image archive', 'load', box.path('base.tar'))


@test
def names_and_space(box):
    """tags share, remove takes the last one's layers, containers keep theirs, prune clears"""
    box.base()
    box.image('tag', 'base:1', 'other:9')
    box.refused('is not an image name', 'tag', 'base:1', 'Upper:9')
    box.image('remove', 'base:1')
    check(os.listdir(box.path('store', 'layers')), 'the layer of the other name went')
    box.image('layer', 'create', 'c', 'other:9')
    box.refused("used by container 'c'", 'remove', 'other:9')
    box.image('remove', 'other:9', '--force')
    box.image('prune', '--all')
    check(os.listdir(box.path('store', 'layers')), 'the container lost its layer')
    box.image('layer', 'remove', 'c')
    box.image('prune')
    for folder in ('layers', 'blobs/sha256', 'containers'):
        equal(os.listdir(box.path('store', folder)), [], folder)
    box.refused('no image', 'inspect', 'other:9')


@test
def usage(box):
    """wrong usage is one line and status 2; commit goes by the number of its arguments"""
    for args in (['pull'], ['pull', 'a', 'b'], ['pull', 'x', '--parallel', '0'], ['save', 'x', '--format', 'zip'],
                 ['push', 'x', '--tls-verify', 'maybe'], ['pull', 'Not/An:Image']):
        r = box.image(*args, ok=False)
        equal((r.status, len(r.err.splitlines())), (2, 1), ' '.join(args) + ': ' + r.err)
    r = box.sh(box.program, 'commit', box.path('disk.qcow2'), ok=False)
    check(r.status == 1 and 'disk.qcow2' in r.err, r.err)
    box.refused('no container layer', 'commit', 'nothing', 'x:1')
    out = box.sh(box.program, '--help').out
    for command in 'pull push list inspect history diff remove prune save load tag commit build'.split():
        check('  %s ' % command in out, command)
        check('usage: fonda image' in box.sh(box.program, *([command] if command != 'commit' else [command, 'a', 'b']), '--help').out, command)
