"""Texts and bytes that want to be scripts; requests that come from elsewhere."""
import http.client
import json
import os
import socket

from browser import check
from world import EVIL


def refused(world, port):
    def ask(method, path, headers, body=None):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
        connection.request(method, path, body=body, headers=headers)
        reply = connection.getresponse()
        reply.read()
        return reply

    code = world.link().rsplit('/', 1)[1]
    own = 'http://127.0.0.1:%d' % port
    token = json.loads(urlopen(port, 'POST', '/v1/session', json.dumps({'code': code})))['token']
    auth = {'Authorization': 'Bearer ' + token, 'Content-Type': 'application/json'}
    check('without a token, nothing', ask('GET', '/v1/instances', {}).status == 401)
    check('a session\'s token', ask('GET', '/v1/instances', auth).status == 200)
    check('another origin changes nothing', ask('POST', '/v1/volumes', {**auth, 'Origin': 'https://evil.example'}, b'{"name":"v","size":512}').status == 403)
    check('a page without an origin neither', ask('POST', '/v1/volumes', {**auth, 'Origin': 'null'}, b'{"name":"v","size":512}').status == 403)
    check('the own origin does', ask('POST', '/v1/volumes', {**auth, 'Origin': own}, b'{"name":"own","size":512}').status == 201)
    check('a foreign name for this host is refused (DNS rebinding)', ask('GET', '/', {'Host': 'evil.example:%d' % port}).status == 403)
    headers = ask('GET', '/', {}).headers
    policy = headers['content-security-policy']
    check('the policy allows nothing inline and nothing foreign', "default-src 'none'" in policy and 'unsafe' not in policy and "script-src 'self'" in policy
          and "frame-ancestors 'none'" in policy, policy)
    check('no page may read answers across origins', 'access-control-allow-origin' not in headers)
    check('a path that climbs', ask('GET', '/../core/core.h', {}).status in (400, 403, 404))

    def upgrade(origin, protocol):
        with socket.create_connection(('127.0.0.1', port), timeout=20) as s:
            s.sendall(('GET /v1/events/stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
                       'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\nOrigin: %s\r\n\r\n' % (port, protocol, origin)).encode())
            return int(s.recv(4096).split()[1])
    good = 'fonda, fonda.token.' + token
    check('a web socket of another origin is refused', upgrade('https://evil.example', good) == 403)
    check('a web socket without a token is refused', upgrade(own, 'fonda') == 401)
    check('a web socket with a wrong token is refused', upgrade(own, 'fonda, fonda.token.x') == 401)
    check('a web socket of the page', upgrade(own, good) == 101)
    check('signing out', ask('DELETE', '/v1/session', auth).status == 204 and ask('GET', '/v1/instances', auth).status == 401)


def urlopen(port, method, path, body):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    connection.request(method, path, body=body, headers={'Content-Type': 'application/json'})
    return connection.getresponse().read()


def hostile(world):
    d = world.daemon
    world.make('web', description=EVIL, labels={'group': EVIL, 'constructor': EVIL})
    d.call('POST', '/v1/volumes', {'name': 'v', 'size': 512, 'description': EVIL})
    d.call('POST', '/v1/users', {'name': 'u', 'role': 'viewer', 'description': EVIL})
    d.call('POST', '/v1/networks', {'name': 'n', 'description': EVIL, 'options': EVIL})
    d.call('POST', '/v1/volumes', {'name': 'disk', 'size': '1M', 'format': 'qcow2'})
    d.call('POST', '/v1/instances?wait=20', {'name': 'still', 'kernel': d.kernel(), 'volumes': ['disk'], 'append': EVIL, 'description': EVIL})
    d.call('POST', '/v1/instances/still/snapshots?wait=20', {'name': 's', 'description': EVIL})
    d.call('POST', '/v1/instances/still/backups?wait=20', {'name': 'b', 'description': EVIL})
    d.call('POST', '/v1/schedules', {'name': 'c', 'instance': 'still', 'every': 86400, 'description': EVIL})
    d.call('POST', '/v1/templates?wait=20', {'name': 't', 'instance': 'still', 'description': EVIL})
    d.call('POST', '/v1/images', {'name': 'i', 'kind': 'kernel', 'path': d.kernel(), 'description': EVIL})
    d.call('POST', '/v1/instances?wait=20', {'name': 'box', 'kind': 'container', 'image': 'localhost:1/no', 'description': EVIL})  # its job fails
    made = {kind: d.call('GET', '/v1/' + kind)[1].get('total') for kind in ('backups', 'schedules', 'templates', 'images')}
    check('there is one of each kind with such a text', all(made.values()), made)
    os.mkdir(d.dir + '/<img src=x onerror=window.pwned=1>')
    broken = d.dir + '/<img src=x onerror=window.pwned=1>/broken'
    with open(broken, 'w', encoding='ascii'):
        pass
    d.call('POST', '/v1/instances?wait=20', {'name': 'broken', 'kernel': broken})
    d.call('POST', '/v1/instances/broken/start?wait=20')
    b = world.browser()
    for name in ['instances', 'instances/web', 'instances/web/engine', 'instances/web/settings', 'instances/broken', 'instances/still', 'instances/still/snapshots', 'instances/still/backups', 'instances/still/settings',
                 'templates', 'backups', 'schedules', 'images', 'create', 'volumes', 'users', 'networks', 'jobs', 'jobs/j4', 'events',
                 'instances/%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E', 'jobs/%3Cscript%3Ewindow.pwned=1%3C%2Fscript%3E', '__proto__', 'constructor', '%zz']:
        b.go('#/' + name)
        b.until('document.querySelector("h1")')
        if name in ('instances/still/snapshots', 'backups', 'schedules', 'templates', 'images', 'volumes', 'users', 'networks'):
            check('shown as it is: ' + name, b.sees('<img src=x onerror='), b.text()[-200:])
    b.go('#/instances')
    b.until('document.querySelector("#group")').send_keys('label')
    check('a label is shown as it is', b.sees('<img src=x'))
    b.go('#/instances/web/console')
    b.until(lambda b: 'hello' in b.screen())
    b.keys(EVIL + '\x1b]0;title' + EVIL + '\x07\x1b]8;;javascript:window.pwned=1\x07link\x1b]8;;\x07' + '\x1b[38;2;255;0;0;48;2;1;2;3mred')
    check('console bytes are shown as they are', b.until(lambda b: '<img src=x' in b.screen() and 'red' in b.screen()), b.screen().strip())
    b.go('#/instances/web/log')
    check('the log is shown as it is', b.sees('<img src=x'))
    check('no script ran', b.js('return window.pwned === undefined && document.querySelectorAll("main img").length === 0'))
    check('the policy had nothing to refuse', not b.complaints(), b.complaints())
    check('what is injected by hand is refused by the browser', b.js('''try { document.body.insertAdjacentHTML("beforeend", "<b>x</b>"); return false; }
        catch (e) { return e instanceof TypeError; }'''))
    refused(world, int(world.link().split(':')[2].split('/')[0]))
