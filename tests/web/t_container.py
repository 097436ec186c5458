"""A container through the page: created from an image, its console, a shell inside, its log, its processes, its end; an image that
comes from a registry, with progress and cancel."""
import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
import threading

from browser import check, skip

BUSYBOX = '/bin/busybox'


def image(world):
    """Makes the image busy:1 of a static busybox; why it can't be, or None."""
    if not os.path.exists(BUSYBOX):
        return 'busybox-static is not installed'
    path = os.path.join(world.daemon.dir, 'root.tar')
    with tarfile.open(path, 'w') as tar:
        for folder in ('bin', 'etc', 'tmp', 'proc', 'sys', 'dev'):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name in ('sh', 'echo', 'sleep', 'cat', 'ls', 'true', 'seq', 'printf'):
            info = tarfile.TarInfo('bin/' + name)
            info.type, info.linkname = tarfile.SYMTYPE, 'busybox'
            tar.addfile(info)
        with open(BUSYBOX, 'rb') as f:
            info = tar.gettarinfo(fileobj=f, arcname='bin/busybox')
            info.mode, info.uid, info.gid = 0o755, 0, 0
            tar.addfile(info, f)
        text = b'root:x:0:0:root:/:/bin/sh\n'
        info = tarfile.TarInfo('etc/passwd')
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    done = subprocess.run([os.path.join(world.daemon.build, 'cli/fonda'), 'image', 'import', '--image-store', os.path.join(world.daemon.dir, 'images'), path, 'busy:1'], env=world.daemon.env, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else 'the image cannot be imported: ' + done.stderr.strip()


class Registry:
    """Serves one image; the last half of its layer comes once release is set, and until then drop by drop."""

    def __init__(self, path):
        with tarfile.open(path, 'a') as tar:  # what is fetched is told MiB by MiB
            info = tarfile.TarInfo('noise')
            info.size = 6 << 20
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
        with open(path, 'rb') as f:
            tar = f.read()
        layer = gzip.compress(tar, 1)
        config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {'Cmd': ['sh']},
                             'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(tar).hexdigest()]}}).encode()
        of = lambda kind, blob: {'mediaType': 'application/vnd.oci.image.' + kind, 'size': len(blob), 'digest': 'sha256:' + hashlib.sha256(blob).hexdigest()}
        kind = 'application/vnd.oci.image.manifest.v1+json'
        manifest = json.dumps({'schemaVersion': 2, 'mediaType': kind, 'config': of('config.v1+json', config), 'layers': [of('layer.v1.tar+gzip', layer)]}).encode()
        blobs = {'sha256:' + hashlib.sha256(b).hexdigest(): b for b in (config, layer, manifest)}
        self.release = threading.Event()
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                blob = manifest if self.path.endswith('/manifests/1') else blobs.get(self.path.rsplit('/', 1)[1], b'' if self.path == '/v2/' else None)
                self.send_response(404 if blob is None else 200)
                self.send_header('Content-Type', kind if blob is manifest else 'application/octet-stream')
                self.send_header('Content-Length', str(len(blob or b'')))
                self.end_headers()
                if self.command == 'HEAD' or not blob:
                    return
                try:
                    half = len(blob) // 2 if blob is layer else len(blob)
                    self.wfile.write(blob[:half])
                    while half < len(blob) and not registry.release.wait(0.1):
                        self.wfile.write(blob[half:half + 1])
                        half += 1
                    self.wfile.write(blob[half:])
                except OSError:
                    pass  # it was canceled

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.name = '127.0.0.1:%d/slow:1' % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def pulling(world, b):
    registry = Registry(os.path.join(world.daemon.dir, 'root.tar'))
    try:
        create(b, name='pulled', image=registry.name, insecure_registry=True, start=False)
        check('the progress of the image is shown', b.until('document.querySelector(".notice progress")?.value > 0 && / of .*MiB/.test(document.querySelector(".notice").innerText)'), b.text()[-300:])
        b.click('Cancel', 'main .notice')
        check('a cancel ends it, and the form says so', b.until('document.querySelector(".form-error")?.innerText.includes("canceled")'), b.text()[-300:])
        check('and nothing is left of it', world.daemon.call('GET', '/v1/instances/pulled')[0] == 404)
        b.click('Create', 'main form')
        check('its job has a page', b.until('document.querySelector(".notice a")') and (b.js('document.querySelector(".notice a").click()') or b.until('document.querySelector("main progress")')))
        registry.release.set()
        check('and there it is seen to end', b.until('document.querySelector("main .badge")?.innerText === "done"', wait=60), b.text()[-300:])
        check('with its log', b.until('document.querySelector("pre.log").innerText.includes("created")'), b.text()[-300:])
        check('the container is there', world.daemon.call('GET', '/v1/instances/pulled')[1].get('state') == 'stopped')
    finally:
        registry.close()


def create(b, **values):
    """Fills the container form; the network is left out, as not every host lets one have it."""
    b.go('#/instances')
    b.go('#/create/container')
    for name, value in {'network_mode': 'none', **values}.items():
        b.type(name, value)
    b.click('Create', 'main form')


def container(world):
    why = image(world)
    if why:
        skip('containers', why)
        return
    b = world.browser()
    b.go('#/instances')
    b.click('Create instance')
    b.until('document.querySelector(".kinds a")')
    b.js('[...document.querySelectorAll(".kinds a")][1].click()')
    check('the form asks for an image', b.until('document.querySelector("[name=image]")'))
    for field, value, more in (('image', '', {}), ('memory', 'much', {'image': 'busy:1'}), ('pids_limit', 'x', {'image': 'busy:1'}), ('cpu_limit', 'lots', {'image': 'busy:1'}),
                               ('publish', '80', {'image': 'busy:1'}), ('env', '=x', {'image': 'busy:1'}), ('mounts', 'here', {'image': 'busy:1'}), ('image', 'localhost:1/no:1', {})):
        create(b, name='box', **{**more, field: value})
        check('a wrong %s (%s) is answered at its field' % (field, value or 'nothing'), b.until(
            '(() => { const n = document.querySelector("[aria-invalid]"); return n && n.name === arguments[0] && document.activeElement === n; })()', field),
            b.text()[-400:])
        gone = world.daemon.call('GET', '/v1/instances/box')[0]
        if not check('and nothing is left of it', gone == 404, gone):
            world.daemon.call('DELETE', '/v1/instances/box?wait=20')
    create(b, name='box', image='busy:1', command="sh -c 'echo begun; echo hidden >&2; exec sh'", env='GREETING=from the form', labels='group=shop', memory='64M')
    running = b.state('running')
    if not running and world.daemon.call('GET', '/v1/instances/box')[0] == 200:
        skip('a container runs', 'this host lets us have none: ' + world.daemon.call('GET', '/v1/instances/box')[1].get('state_reason', ''))
        return
    check('a container is created and started', running, b.text()[-300:])
    check('its console is attached', b.until('document.querySelector(".console.attached")'), b.text()[-300:])
    b.css('.xterm-helper-textarea').send_keys('echo $GREETING $((6*7))\n')
    check('typing on its console', b.until(lambda b: 'from the form 42' in b.screen()), b.screen().strip())
    world.shot(b, 'container-console-light')
    b.click('Log')
    check('its log, both streams', b.sees('begun') and b.sees('hidden'), b.text()[-200:])
    b.click('Shell')
    b.until('document.querySelector(".console.attached")')
    b.css('.xterm-helper-textarea').send_keys('echo inside $$; echo made > /tmp/x\n')
    check('a shell inside', b.until(lambda b: 'inside' in b.screen().replace('echo inside', '')), b.screen().strip())
    b.css('.xterm-helper-textarea').send_keys('exit 3\n')
    check('a shell that ends says its status, and can be had again', b.sees('it ended with status 3') and b.until('[...document.querySelectorAll("button")].some((n) => n.innerText === "Start again" && !n.hidden)'))
    b.click('Processes')
    check('its processes', b.sees('sh') and b.until('document.querySelectorAll("main tbody tr").length > 0'))
    b.click('Summary')
    check('its summary says what it is', b.sees('busy:1') and b.sees('64 MiB'), b.text()[-500:])
    check('its memory is drawn', b.until('[...document.querySelectorAll(".graph")][1].querySelector("path").getAttribute("d").length > 3', wait=40))
    check('no engine page', not b.js('return [...document.querySelectorAll(".tabs a")].some((n) => n.innerText === "Engine")'))
    b.click('Settings')
    b.type('description', 'a box')
    b.type('pids_limit', '50')
    b.click('Save')
    check('settings are saved', b.sees('Saved.') and world.daemon.call('GET', '/v1/instances/box')[1].get('pids_limit') == 50, b.text()[-300:])
    check('what it was told at its creation has stayed', world.daemon.call('GET', '/v1/instances/box')[1]['command'] == ['sh', '-c', 'echo begun; echo hidden >&2; exec sh'])
    b.click('Force stop')
    b.click('Force stop', 'dialog')
    check('force stop', b.state('stopped'))
    b.click('Delete')
    b.click('Delete', 'dialog')
    check('delete', b.sees('There is no instance box'))
    create(b, name='talk', image='busy:1', command='sh -c "for n in 1 2 3; do echo line $n; sleep 0.3; done; sleep 1000"', terminal=False)
    b.until('document.querySelector(".console.attached")')
    b.click('Log')
    check('a log follows what is written', b.sees('line 3'))
    pulling(world, b)
    check('nothing that the policy refuses, no script error', not b.complaints(), b.complaints())
    world.daemon.call('POST', '/v1/instances/talk/stop?wait=20', {'force': True})
    world.daemon.call('DELETE', '/v1/instances/talk?wait=20')
