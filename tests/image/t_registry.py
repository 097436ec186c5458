"""Pull and push with Debian's docker-registry and skopeo."""
import json
import os
import signal
import subprocess
import time

from lib import check, equal, need, same_tree, test


@test
def push_pull(box):
    """what is pushed comes back the same, and skopeo and umoci agree"""
    need('skopeo', 'umoci')
    host = box.registry()
    box.base()
    root = box.mount('c', 'base:1')
    os.unlink(root + '/etc/passwd.link')
    os.rename(root + '/etc/sparse', root + '/etc/moved')
    os.mkdir(root + '/new')
    box.image('commit', 'c', 'v:2', '--message', 'second')
    digest = box.image('push', 'v:2', host + '/deep/er/v:2', '--insecure').out.strip()
    box.image('pull', host + '/deep/er/v:2', '--insecure', store=box.path('other'))
    pulled = box.mount('x', host + '/deep/er/v:2', store=box.path('other'))
    same_tree(root, pulled, 'pulled and committed')
    box.sh('skopeo', 'copy', '--src-tls-verify=false', 'docker://%s/deep/er/v@%s' % (host, digest), 'oci:%s:v' % box.path('oci'))
    box.sh('umoci', 'unpack', '--image', box.path('oci') + ':v', box.path('umoci'))
    same_tree(root, box.path('umoci', 'rootfs'), 'umoci and committed')
    st = os.stat(pulled + '/etc/moved')
    check(st.st_blocks * 512 < st.st_size // 2, 'a sparse file takes %d bytes' % (st.st_blocks * 512))


@test
def umoci_and_schema2(box):
    """images that umoci made come in as OCI, Docker schema 2 and with zstd layers"""
    need('skopeo', 'umoci')
    host = box.registry()
    root = box.rootfs()
    layout = box.path('oci')
    box.sh('umoci', 'init', '--layout', layout)
    box.sh('umoci', 'new', '--image', layout + ':u')
    box.sh('umoci', 'insert', '--image', layout + ':u', root, '/')
    box.sh('umoci', 'config', '--image', layout + ':u', '--config.env', 'A=b', '--config.cmd', 'sh')
    box.sh('umoci', 'insert', '--image', layout + ':u', '--whiteout', '/etc/passwd.link')
    for name, more in (('oci', []), ('docker', ['--format', 'v2s2']), ('zstd', ['--dest-compress-format', 'zstd'])):
        box.sh('skopeo', 'copy', *more, '--dest-tls-verify=false', 'oci:%s:u' % layout, 'docker://%s/%s:1' % (host, name))
        box.image('pull', '%s/%s:1' % (host, name), '--insecure')
        doc = json.loads(box.image('inspect', '%s/%s:1' % (host, name)).out)
        equal(doc['config']['config']['Env'][-1], 'A=b', name)
        got = box.mount('c-' + name, '%s/%s:1' % (host, name))
        check(not os.path.exists(got + '/etc/passwd.link'), 'whiteout ignored')
        equal(os.stat(got + '/bin/su').st_mode & 0o7777, 0o4755, name)
    equal(len(os.listdir(box.path('store', 'layers'))), len(doc['config']['rootfs']['diff_ids']), 'layers are shared')


@test
def basic_auth(box):
    """basic authentication: from a file, on the command line, wrong, and none"""
    need('htpasswd')
    box.sh('htpasswd', '-Bbc', box.path('users'), 'ann', 'secret')
    host = box.registry(auth=box.path('users'))
    box.base()
    box.refused('none are known', 'push', 'base:1', host + '/b:1', '--insecure')
    box.refused('refuses the credentials', 'push', 'base:1', host + '/b:1', '--insecure', '--creds', 'ann:wrong')
    box.image('push', 'base:1', host + '/b:1', '--insecure', '--creds', 'ann:secret')
    box.sh('skopeo', 'login', '--tls-verify=false', '-u', 'ann', '-p', 'secret', '--authfile', box.path('auth.json'), host)
    box.image('pull', host + '/b:1', '--insecure', '--auth-file', box.path('auth.json'))
    os.makedirs(box.path('.docker'))
    with open(box.path('docker-credential-box'), 'w') as f:
        f.write('#!/bin/sh\nread host\n[ "$1 $host" = "get %s" ] && echo \'{"Username":"ann","Secret":"secret"}\'\n' % host)
    os.chmod(box.path('docker-credential-box'), 0o755)
    with open(box.path('.docker', 'config.json'), 'w') as f:
        json.dump({'credHelpers': {host: 'box'}}, f)
    box.image('pull', host + '/b:1', '--insecure', env={'PATH': box.dir + ':' + os.environ['PATH']}, store=box.path('s2'))


@test
def tls(box):
    """TLS: the CA has to be known, or the check switched off by name"""
    need('openssl')
    key, crt = box.path('key.pem'), box.path('certs')
    os.mkdir(crt)
    box.sh('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', crt + '/ca.crt', '-days', '2', '-subj',
           '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost')
    host = box.registry(tls=(crt + '/ca.crt', key))
    box.base()
    box.refused("can't be checked", 'push', 'base:1', host + '/b:1')
    box.image('push', 'base:1', host + '/b:1', '--cert-dir', crt)
    box.image('pull', host + '/b:1', '--tls-verify=false')
    plain = box.registry()
    box.refused('--insecure', 'pull', plain + '/b:1')


@test
def parallel_pulls(box):
    """four pulls of one image into one store at a time all succeed"""
    host = box.registry()
    box.base()
    box.image('push', 'base:1', host + '/b:1', '--insecure')
    box.sh('rm', '-rf', box.store)
    cmd = [box.program, 'pull', host + '/b:1', '--insecure', '--image-store', box.store]
    running = [subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **box.env}) for _ in range(4)]
    for process in running:
        err = process.communicate(timeout=60)[1].decode()
        equal(process.returncode, 0, err)
    equal(box.image('prune').out.split(':')[0], '0 images, 0 layers, 0 blobs', 'nothing is left over')


@test
def killed_pull(box):
    """a pull that is killed at any time leaves nothing wrong, and the next one succeeds"""
    host = box.registry()
    root = box.rootfs()
    for i in range(3):
        with open('%s/etc/big%d' % (root, i), 'wb') as f:
            f.write(os.urandom(4 << 20))
    box.tar(root)
    box.image('import', box.path('base.tar'), 'big:1')
    box.image('push', 'big:1', host + '/big:1', '--insecure')
    wanted = box.mount('w', 'big:1')
    store = box.path('killed')
    for i in range(14):
        process = subprocess.Popen([box.program, 'pull', host + '/big:1', '--insecure', '--image-store', store],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **box.env})
        time.sleep(0.004 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        box.image('list', store=store)
    box.image('pull', host + '/big:1', '--insecure', store=store)
    same_tree(wanted, box.mount('x', host + '/big:1', store=store), 'after kills')
    box.image('prune', store=store)
    check(not [n for n in os.listdir(store + '/tmp') if not n.startswith('unsynced-')], 'prune leaves files in tmp')


@test
def damaged_blob(box):
    """a blob that was damaged in the store is found, and fetched anew"""
    host = box.registry()
    box.base()
    box.image('push', 'base:1', host + '/b:1', '--insecure')
    doc = json.loads(box.image('inspect', 'base:1').out)
    layer = doc['manifest']['layers'][0]['digest'][7:]
    blob = box.path('store', 'blobs', 'sha256', layer)
    with open(blob, 'r+b') as f:
        f.seek(2000)
        f.write(b'damage')
    box.sh('rm', '-rf', box.path('store', 'layers', doc['chain_ids'][0][7:]))
    box.refused('layer', 'layer', 'create', 'c', 'base:1')
    box.image('pull', host + '/b:1', '--insecure')
    box.image('layer', 'create', 'c', 'base:1')
    with open(box.path('store', 'blobs', 'sha256', doc['digest'][7:]), 'a') as f:
        f.write(' ')
    box.refused('damaged', 'inspect', 'base:1')
