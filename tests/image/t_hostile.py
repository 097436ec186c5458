"""Registries that lie, and tars that want out."""
import gzip
import hashlib
import http.server
import json
import os
import threading

from lib import check, equal, make_tar, same_tree, test


class Liar:
    """A registry in memory. Hooks: path -> function(handler) that answers by itself."""

    def __init__(self):
        self.blobs, self.manifests, self.hooks, self.log = {}, {}, {}, []
        self.token = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *args):
                pass

            def answer(self, status, body=b'', kind='application/json', headers=(), length=None):
                self.send_response(status)
                self.send_header('Content-Type', kind)
                self.send_header('Content-Length', str(len(body) if length is None else length))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                outer.log.append((self.path, self.headers.get('Range'), self.headers.get('Authorization')))
                path = self.path.split('?')[0]
                try:
                    outer.serve(self, path)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass

        self.server = Server(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.host = 'localhost:%d' % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def serve(self, h, path):
        if path in self.hooks:
            return self.hooks[path](h)
        if path == '/token':
            equal(h.headers.get('Authorization'), 'Basic YW5uOnNlY3JldA==', 'credentials for the token')
            return h.answer(200, json.dumps({'token': self.token}).encode())
        if self.token and h.headers.get('Authorization') != 'Bearer ' + self.token:
            challenge = 'Bearer realm="http://%s/token",service="liar",scope="repository:x:pull"' % self.host
            return h.answer(401, b'{}', headers=[('WWW-Authenticate', challenge)])
        if path == '/v2/':
            return h.answer(200, b'{}')
        name = path.rsplit('/', 1)[1]
        if '/manifests/' in path and name in self.manifests:
            kind, body = self.manifests[name]
            return h.answer(200, body, kind)
        if '/blobs/' in path and name in self.blobs:
            body = self.blobs[name]
            wanted = h.headers.get('Range')
            if wanted:
                start = int(wanted.split('=')[1].rstrip('-'))
                rest = body[start:]
                return h.answer(206, rest, 'application/octet-stream',
                                [('Content-Range', 'bytes %d-%d/%d' % (start, len(body) - 1, len(body)))])
            return h.answer(200, body, 'application/octet-stream')
        return h.answer(404, b'{}')

    def blob(self, data):
        digest = 'sha256:' + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def image(self, layers, tag='1', arch='amd64', config=None):
        """layers: the tars, which are compressed."""
        ids = ['sha256:' + hashlib.sha256(t).hexdigest() for t in layers]
        config = json.dumps(config or {'os': 'linux', 'architecture': arch, 'rootfs': {'type': 'layers', 'diff_ids': ids}}).encode()
        packed = [gzip.compress(t, 1) for t in layers]
        manifest = json.dumps({'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
                               'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', 'size': len(config),
                                          'digest': self.blob(config)},
                               'layers': [{'mediaType': 'application/vnd.oci.image.layer.v1.tar+gzip', 'size': len(p),
                                           'digest': self.blob(p)} for p in packed]}).encode()
        digest = 'sha256:' + hashlib.sha256(manifest).hexdigest()
        kind = 'application/vnd.oci.image.manifest.v1+json'
        self.manifests[tag] = self.manifests[digest] = (kind, manifest)
        return digest, [self.blob(p) for p in packed], len(manifest)


def a_layer(box, size=200000):
    with open(make_tar(box.path('layer.tar'), ('etc', 'dir'), ('etc/data', os.urandom(size))), 'rb') as f:
        return f.read()


def with_liar(fn):
    def run(box):
        liar = Liar()
        try:
            fn(box, liar)
        finally:
            liar.close()
    run.__doc__, run.__name__ = fn.__doc__, fn.__name__
    return test(run)


@with_liar
def token(box, liar):
    """a token is fetched with the credentials, and used"""
    liar.token = 'let-me-in'
    liar.image([a_layer(box)])
    box.image('pull', liar.host + '/x:1', '--insecure', '--creds', 'ann:secret')
    check(any(a == 'Bearer let-me-in' for _, _, a in liar.log), 'the token was not used')


@with_liar
def index_by_platform(box, liar):
    """of an index the host's variant is taken, or the one that is asked for"""
    entries = []
    for arch in ('arm64', 'amd64', 's390x'):
        digest, _, size = liar.image([a_layer(box)], arch, arch)
        entries.append({'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'digest': digest, 'size': size,
                        'platform': {'os': 'linux', 'architecture': arch}})
    index = json.dumps({'schemaVersion': 2, 'manifests': entries}).encode()
    liar.manifests['1'] = ('application/vnd.oci.image.index.v1+json', index)
    for arch in ('arm64', 's390x'):
        box.image('pull', liar.host + '/x:1', '--insecure', '--platform', 'linux/' + arch)
        equal(json.loads(box.image('inspect', liar.host + '/x:1').out)['config']['architecture'], arch)
    box.refused('no variant for linux/mips', 'pull', liar.host + '/x:1', '--insecure', '--platform', 'mips')


@with_liar
def wrong_digest(box, liar):
    """a blob or manifest with another content is refused, and not kept"""
    _, layers, _ = liar.image([a_layer(box)])
    good = liar.blobs[layers[0]]
    liar.blobs[layers[0]] = good[:-1] + bytes([good[-1] ^ 1])
    box.refused('another digest', 'pull', liar.host + '/x:1', '--insecure')
    check(not os.listdir(box.path('store', 'layers')), 'a layer was unpacked')
    liar.blobs[layers[0]] = good
    box.image('pull', liar.host + '/x:1', '--insecure')
    digest, _, _ = liar.image([a_layer(box)])
    liar.manifests[digest] = (liar.manifests[digest][0], liar.manifests[digest][1] + b' ')
    box.refused('another digest', 'pull', '%s/x@%s' % (liar.host, digest), '--insecure')


@with_liar
def wrong_diff_id(box, liar):
    """a layer that unpacks to something else than the config says is refused"""
    layer = a_layer(box)
    liar.image([layer], config={'os': 'linux', 'architecture': 'amd64', 'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + '1' * 64]}})
    box.refused('the image\'s config says', 'pull', liar.host + '/x:1', '--insecure')
    liar.image([layer], config={'os': 'linux', 'architecture': 'amd64', 'rootfs': {'type': 'layers', 'diff_ids': []}})
    box.refused('the config 0', 'pull', liar.host + '/x:1', '--insecure')


@with_liar
def lengths(box, liar):
    """bodies that don't end, that are too long or too short, and redirects that go round are refused"""
    _, layers, _ = liar.image([a_layer(box)])
    path = '/v2/x/blobs/' + layers[0]
    body = liar.blobs[layers[0]]

    def endless(h):
        h.send_response(200)
        h.send_header('Connection', 'close')
        h.end_headers()
        h.close_connection = True
        for _ in range(2000):
            h.wfile.write(b'x' * 65536)
    for manifest in ('/v2/x/manifests/1', path):
        liar.hooks = {manifest: endless}
        box.refused('sends more than', 'pull', liar.host + '/x:1', '--insecure')

    def round_trip(h):
        h.answer(307, b'', headers=[('Location', path)])
    liar.hooks = {path: round_trip}
    box.refused('IMAGE_REDIRECTS_MAX', 'pull', liar.host + '/x:1', '--insecure')

    def to_file(h):
        h.answer(307, b'', headers=[('Location', 'file:///etc/passwd')])
    liar.hooks = {path: to_file}
    box.refused('another protocol', 'pull', liar.host + '/x:1', '--insecure')

    def short(h):
        h.answer(200, body[:100], 'application/octet-stream')
    liar.hooks = {path: short}
    liar.log.clear()
    r = box.refused('registry', 'pull', liar.host + '/x:1', '--insecure')
    check(len([p for p, _, _ in liar.log if p == path]) <= 8, 'asked too often: ' + r.err)


@with_liar
def resume(box, liar):
    """a download that breaks off goes on where it ended, also in the next process"""
    _, layers, _ = liar.image([a_layer(box)])
    path, body = '/v2/x/blobs/' + layers[0], liar.blobs[layers[0]]
    asked = []

    def cut(h):
        start = int((h.headers.get('Range') or 'bytes=0-').split('=')[1].rstrip('-'))
        asked.append(start)
        end = min(start + 30000, len(body))
        if len(asked) in (3, 4, 5):
            h.close_connection = True
            return
        h.send_response(206 if start else 200)
        h.send_header('Content-Length', str(len(body) - start))
        if start:
            h.send_header('Content-Range', 'bytes %d-%d/%d' % (start, len(body) - 1, len(body)))
        h.end_headers()
        h.wfile.write(body[start:end])
        h.close_connection = True
    liar.hooks = {path: cut}
    box.refused('registry', 'pull', liar.host + '/x:1', '--insecure')
    check(asked[1] == 30000, 'asked for %r' % asked)
    liar.hooks = {}
    liar.log.clear()
    box.image('pull', liar.host + '/x:1', '--insecure')
    ranges = [r for p, r, _ in liar.log if p == path]
    check(ranges == ['bytes=%d-' % asked[-1]] and asked[-1] >= 30000, 'the next process asked for %r' % ranges)


@with_liar
def no_range(box, liar):
    """a registry that ignores Range gets the question anew"""
    _, layers, _ = liar.image([a_layer(box)])
    path, body = '/v2/x/blobs/' + layers[0], liar.blobs[layers[0]]
    os.makedirs(box.path('store', 'tmp'))
    with open(box.path('store', 'tmp', layers[0][7:] + '.partial'), 'wb') as f:
        f.write(body[:5000])
    liar.hooks = {path: lambda h: h.answer(200, body, 'application/octet-stream')}
    box.image('pull', liar.host + '/x:1', '--insecure')


@test
def hostile_tars(box):
    """absolute paths, '..', ways through links, and links to the outside are refused; nothing is written there"""
    victim = box.path('victim')
    os.mkdir(victim)
    cases = [
        ('absolute', [(victim + '/x', b'1')]),
        ("'..'", [('a/../../x', b'1')]),
        ('symbolic link', [('a', 'link', victim), ('a/x', b'1')]),
        ('symbolic link', [('a', 'link', '.'), ('a/b', 'dir')]),
        ('hard link', [('a', 'link', victim), ('b', 'hard', 'a/x')]),
        ("isn't there", [('b', 'hard', 'nowhere')]),
        ("'..'", [('b', 'hard', '../../etc/passwd')]),
        ('symbolic link', [('a', 'link', victim), ('a/.wh.x', b'')]),
        ('whiteout', [('.wh.', b'')]),
        ('whiteout', [('.wh...', b'')]),
    ]
    for force in ('', 'no-openat2'):
        for part, entries in cases:
            tar = make_tar(box.path('hostile.tar'), *entries)
            box.refused(part, 'import', tar, 'h:1', env={'FONDA_IMAGE_FORCE': force})
        equal(os.listdir(victim), [], 'files outside')
    # Replacing a folder by a link and the reverse is fine.
    make_tar(box.path('odd.tar'), ('a', 'dir'), ('a/x', b'1'), ('a', 'link', victim), ('b', 'link', victim), ('b', 'dir'), ('b/y', b'2'),
             ('zero', 'chr'), ('.wh..wh.plnk', 'dir'))
    box.image('import', box.path('odd.tar'), 'odd:1')
    root = box.mount('odd', 'odd:1')
    equal(sorted(os.listdir(root)), ['a', 'b'], 'content')
    equal(os.readlink(root + '/a'), victim)
    equal(os.listdir(victim), [], 'files outside')


@test
def bombs(box):
    """layers that unpack to too much, and damaged ones, are refused"""
    with gzip.open(box.path('zero.gz'), 'wb', 1) as f:
        for _ in range(64):
            f.write(bytes(1 << 20))
    box.refused('--max-layer-size', 'import', box.path('zero.gz'), 'z:1', '--max-layer-size', '10M')
    make_tar(box.path('t.tar.gz'), ('data', os.urandom(100000)), mode='w:gz')
    with open(box.path('t.tar.gz'), 'rb') as f:
        data = f.read()
    for name, text in (('cut', data[:50000]), ('bad', data[:40000] + b'XXXX' + data[40004:]), ('none', b'no tar at all' * 1000)):
        with open(box.path(name), 'wb') as f:
            f.write(text)
        r = box.image('import', box.path(name), 'z:1', ok=False)
        equal(r.status, 1, name + ': ' + r.err)
    equal(box.image('list', '--quiet').out, '', 'images')


@test
def layers_semantics(box):
    """whiteouts, opaque folders, folders without an entry, links to lower layers: natively and in the fallback"""
    liar = Liar()
    try:
        layers = []
        for entries in (
                [('d', 'dir'), ('d/1', b'1'), ('d/2', b'2'), ('o', 'dir'), ('o/old', b'o'), ('gone', 'dir'), ('gone/x', b'x'), ('f', b'f'),
                 ('t', 'dir'), ('r', 'dir'), ('r/1', b'1')],
                [('d/.wh.1', b''), ('o', 'dir'), ('o/.wh..wh..opq', b''), ('o/new', b'n'), ('.wh.gone', b''), ('h', 'hard', 'f'),
                 ('t', b'now a file'), ('.wh.r', b''), ('r', 'dir'), ('r/2', b'2')],
                [('gone', b'back'), ('d/3', b'3')]):
            with open(make_tar(box.path('l.tar'), *entries), 'rb') as f:
                layers.append(f.read())
        liar.image(layers)
        wanted = {'d/2': '2', 'd/3': '3', 'o/new': 'n', 'gone': 'back', 'f': 'f', 'h': 'f', 't': 'now a file', 'r/2': '2'}
        roots = []
        for force in ('', 'no-overlay', 'no-overlay,no-openat2,no-reflink'):
            store = box.path('s%d' % len(roots))
            env = {'FONDA_IMAGE_FORCE': force}
            box.image('pull', liar.host + '/x:1', '--insecure', store=store, env=env)
            root = box.mount('c', liar.host + '/x:1', store=store, env=env)
            roots.append(root)
            got = {}
            for folder, _, files in os.walk(root):
                for name in files:
                    with open(os.path.join(folder, name)) as f:
                        got[os.path.relpath(os.path.join(folder, name), root)] = f.read()
            equal(got, wanted, force)
            os.unlink(root + '/f')
            with open(root + '/d/2', 'w') as f:
                f.write('changed')
            with open(root + '/d/4', 'w') as f:
                f.write('4')
            out = box.image('diff', 'c', store=store, env=env).out
            equal(sorted(out.splitlines()), ['A /d/4', 'C /d/2', 'D /f'], force)
            box.image('commit', 'c', 'v:2', store=store, env=env)
            equal(sorted(box.image('diff', 'v:2', store=store, env=env).out.splitlines()), ['A /d/4', 'C /d/2', 'D /f'], force)
            equal(sorted(box.image('diff', liar.host + '/x:1', 'v:2', store=store).out.splitlines()), ['A /d/4', 'C /d/2', 'D /f'], force)
        same_tree(roots[0], roots[1], 'overlay and copy')
    finally:
        liar.close()
