"""The API held to its description: every route, with every role, with bodies that fit and bodies that don't."""
import json
import os
import random
import socket
import threading
import time

import jsonschema

from lib import ROOT, UnixConnection, WebSocket, check

ROLES = ['none', 'viewer', 'operator', 'admin']
CASES = int(os.environ.get('FONDA_API_CASES', '300'))


def resolver(spec):
    def validate(schema, value):
        jsonschema.Draft202012Validator({**schema, 'components': spec['components']}).validate(value)
    return validate


def routes(spec):
    for path, methods in spec['paths'].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def description(daemon, spec):
    with open(os.path.join(ROOT, 'docs/openapi.json'), encoding='utf-8') as f:
        check('docs/openapi.json is what the daemon serves', json.load(f) == spec)
    ids = [operation['operationId'] for _, _, operation in routes(spec)]
    check('operation ids are unique', len(ids) == len(set(ids)))
    for name, schema in spec['components']['schemas'].items():
        jsonschema.Draft202012Validator.check_schema(schema)
    check('its schemas are JSON Schema', True)


def roles(daemon, spec):
    tokens = {}
    for role in ROLES:
        daemon.call('POST', '/v1/users', {'name': 'r-' + role, 'role': role})
        status, token, _ = daemon.call('POST', '/v1/users/r-%s/token' % role)
        tokens[role] = token['token']
    wrong = []
    for method, path, operation in routes(spec):
        need = operation['x-fonda-role']
        if need == 'anybody' or operation.get('x-fonda-websocket'):
            continue
        url = path.replace('{name}', 'no-such').replace('{item}', 'no-such')
        status, _, _ = daemon.call(method, url, headers={'Authorization': 'Bearer wrong'})
        if status != 401:
            wrong.append((method, path, 'wrong token', status))
        for role in ROLES:
            status, body, _ = daemon.call(method, url, headers={'Authorization': 'Bearer ' + tokens[role]})
            own = path.startswith('/v1/jobs/{name}')
            refused = status == 403
            should = ROLES.index(role) < ROLES.index(need) or (own and role == 'none')
            if refused != should:
                wrong.append((method, path, role, status))
    check('every route, without and with each role', not wrong, wrong)
    for operation, url in (('console', '/v1/instances/web/console'), ('events', '/v1/events/stream')):
        ws = WebSocket(daemon.socket, url, 'Authorization: Bearer %s\r\n' % tokens['none'])
        check('web socket %s refuses without a role' % operation, ws.status == 403, ws.status)
        ws.close()
    status, users, _ = daemon.call('GET', '/v1/users')
    check('no token hash goes out', 'token_hash' not in json.dumps(users))
    return tokens


def grants(daemon, tokens):
    def call(method, path, body=None):
        return daemon.call(method, path, body, {'Authorization': 'Bearer ' + tokens['none']})
    for name in ('mine', 'theirs'):
        daemon.call('POST', '/v1/instances?wait=20', {'name': name, 'kernel': daemon.kernel()})
    daemon.call('PATCH', '/v1/users/r-none', {'grants': {'mine': 'operator'}})
    status, listed, _ = call('GET', '/v1/instances')
    check('a list shows what is granted', status == 200 and [i['name'] for i in listed['items']] == ['mine'], listed)
    check('granted: change', call('PATCH', '/v1/instances/mine', {'description': 'x'})[0] == 200)
    check('not granted: show', call('GET', '/v1/instances/theirs')[0] == 403)
    check('the host\'s files are for administrators', call('PATCH', '/v1/instances/mine', {'kernel': '/etc/shadow'})[0] == 403)
    granted_events(daemon, tokens, call)
    for name in ('mine', 'theirs', 'ours'):
        daemon.call('DELETE', '/v1/instances/%s?wait=20' % name)
    check('without a grant, events are refused again', call('GET', '/v1/events')[0] == 403)


def granted_events(daemon, tokens, call):
    """Who has grants alone hears of what is granted, and of nothing else."""
    header = 'Authorization: Bearer %s\r\n' % tokens['none']
    last = daemon.call('GET', '/v1/events')[1]['last']
    ws = WebSocket(daemon.socket, '/v1/events/stream?jobs=1', header)
    check('events: a grant opens the web socket', ws.status == 101, ws.status)
    for name in ('theirs', 'mine'):
        daemon.call('PATCH', '/v1/instances/' + name, {'description': 'heard?'})
        daemon.call('POST', '/v1/instances/%s/start?wait=20' % name)
        daemon.call('POST', '/v1/instances/%s/stop?wait=20' % name, {'force': True})
    daemon.call('POST', '/v1/volumes', {'name': 'unheard', 'size': 512})
    daemon.call('DELETE', '/v1/volumes/unheard')
    daemon.call('POST', '/v1/instances/mine/rename', {'name': 'ours'})
    everything = daemon.call('GET', '/v1/events?limit=1000&after=%d' % last)[1]['items']
    jobs = {j['name'] for j in daemon.call('GET', '/v1/jobs?limit=1000&filter=target%3Dinstances/mine')[1]['items']}
    jobs |= {e['subject'][5:] for e in everything if e['subject'].startswith('jobs/') and e.get('data', {}).get('target') == 'instances/mine'}
    due = [e for e in everything if e['subject'] == 'instances/mine' or e['subject'][5:] in jobs or e['type'] == 'instance.renamed']
    got, progress = [], []
    while not got or got[-1]['type'] != 'instance.renamed':
        message = json.loads(ws.receive()[1])
        (progress if message['type'] == 'job.progress' else got).append(message)
    check('events: those of what is granted, in order, all of them', got == due and len(got) >= 5, [(e['seq'], e['type'], e['subject']) for e in got])
    check('events: theirs happened too', any(e['subject'] == 'instances/theirs' for e in everything))
    check('events: progress of jobs on what is granted alone', {p['data']['target'] for p in progress} <= {'instances/mine'}, progress[:3])
    status, listed, _ = call('GET', '/v1/events?limit=1000&after=%d' % last)
    check('events: the list shows the same', status == 200 and listed['items'] == due, listed)
    check('events: the list counts what it shows', [e['seq'] for e in call('GET', '/v1/events?limit=2&after=%d' % last)[1]['items']] == [e['seq'] for e in due[:2]])
    check('the audit log stays closed', call('GET', '/v1/audit')[0] == 403)
    daemon.call('PATCH', '/v1/users/r-none', {'grants': {}})
    try:
        while True:
            opcode, message = ws.receive()
            if opcode == 8:
                break
            check('events: nothing after the grant is gone', json.loads(message)['type'] == 'job.progress', message)
        closed = True
    except EOFError:
        closed = True
    except OSError:
        closed = False
    check('events: who loses his grants is cut', closed)
    ws.close()


def some_value(rng, schema, spec):
    """A value that fits the schema, mostly; or one that fits nothing."""
    if '$ref' in schema:
        schema = spec['components']['schemas'][schema['$ref'].split('/')[-1]]
    if rng.random() < 0.08:
        return rng.choice([None, True, -1, 1 << 62, 1.5, '', 'x' * 5000, [], {}, {'a': {'b': []}}, '\u0000', '../../etc', 'é\u202e'])
    if 'oneOf' in schema:
        return some_value(rng, rng.choice(schema['oneOf']), spec)
    if 'enum' in schema:
        return rng.choice(schema['enum'])
    kind = schema.get('type')
    if kind == 'integer':
        return rng.choice([schema.get('minimum', 0), schema.get('maximum', 9), rng.randint(0, 100)])
    if kind == 'boolean':
        return rng.random() < 0.5
    if kind == 'string':
        return rng.choice(['a', 'web', '1G', '64M', 'x' * rng.randint(0, 70), 'a b', '/bin/true', 'user'])
    if kind == 'array':
        return [some_value(rng, schema['items'], spec) for _ in range(rng.randint(0, 3))]
    if kind == 'object':
        required = schema.get('required', [])
        out = {name: some_value(rng, member, spec) for name, member in schema.get('properties', {}).items()
               if name in required or rng.random() < 0.3}
        if rng.random() < 0.05:
            out['unknown'] = 1
        return out
    return rng.choice([1, 'x', None])


def random_requests(daemon, spec):
    seed = int(os.environ.get('FONDA_SEED', random.randrange(1 << 32)))
    rng = random.Random(seed)
    validate = resolver(spec)
    names = ['web', 'db', 'a', 'no-such', '..', '%2e%2e', '%00', 'x' * 80, 'a%2Fb', '-x']
    wrong = []
    every = [r for r in routes(spec) if not r[2].get('x-fonda-websocket')]
    for _ in range(CASES):
        method, path, operation = rng.choice(every)
        url = path
        for part in ('{name}', '{item}'):
            url = url.replace(part, rng.choice(names[:4] if rng.random() < 0.8 else names))
        query = ['%s=%s' % (p['name'], rng.choice(['0', '1', '-1', 'x', 'name', 'state=running', '(((', '%22', 'memory>1G']))
                 for p in operation['parameters'] if p['in'] == 'query' and p['name'] != 'wait' and rng.random() < 0.2]
        body = None
        if 'requestBody' in operation:
            body = some_value(rng, operation['requestBody']['content']['application/json']['schema'], spec)
        elif rng.random() < 0.1:
            body = {'x': 1}
        try:
            status, reply, headers = daemon.call(method, url + ('?' + '&'.join(query) if query else ''), body)
        except OSError as e:
            wrong.append((method, url, body, repr(e)))
            continue
        if status >= 500 and status not in (501, 503):
            wrong.append((method, url, body, status, reply))
        answer = operation['responses'].get(str(status), operation['responses']['default'] if status >= 400 else None)
        if answer is None:
            wrong.append((method, url, status, 'not described'))
            continue
        for kind, content in answer.get('content', {}).items():
            if 'json' in kind:
                try:
                    validate(content['schema'], reply)
                except jsonschema.ValidationError as e:
                    # ?fields= leaves out members that the schema calls required
                    if e.validator != 'required' or not any(q.startswith('fields=') for q in query):
                        wrong.append((method, url, query, status, e.message[:200]))
                if status >= 400 and 'problem+json' not in headers['content-type']:
                    wrong.append((method, url, status, headers['content-type']))
    check('%d random requests answered as described (FONDA_SEED=%d)' % (CASES, seed), not wrong, wrong[:3])


def abuse(daemon):
    def error(name, status, method, path, raw=None, code=None, headers=None):
        got, body, head = daemon.call(method, path, headers=headers, raw=raw)
        check(name, got == status and 'problem+json' in head['content-type'] and (code is None or body['code'] == code), (got, body))
    error('malformed JSON', 400, 'POST', '/v1/instances', b'{"name": ')
    error('a body that is no object', 400, 'POST', '/v1/instances', b'[1]')
    error('members twice', 400, 'POST', '/v1/instances', b'{"name":"a","name":"b"}')
    error('deep nesting', 400, 'POST', '/v1/instances', b'[' * 100000)
    error('bytes that are not UTF-8', 400, 'POST', '/v1/instances', b'{"name":"\xff\xfe"}')
    error('not declared as JSON', 415, 'POST', '/v1/volumes', b'{}', headers={'Content-Type': 'text/plain'})
    error('a page of another origin', 403, 'POST', '/v1/volumes', b'{}', headers={'Origin': 'https://evil.example'})
    error('a name that climbs', 400, 'POST', '/v1/volumes', b'{"name":"../x","size":512}')
    error('a method that is not there', 405, 'PUT', '/v1/volumes')
    error('a path that is not there', 404, 'GET', '/v1/nothing')
    error('a filter that is wrong', 400, 'GET', '/v1/instances?filter=state%3D%3D%3D')
    error('a filter that nests', 400, 'GET', '/v1/instances?filter=' + '(' * 200)
    connection = UnixConnection(daemon.socket)
    connection.connect()
    connection.sock.sendall(b'POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n')
    head = connection.sock.recv(4096)
    check('a huge body is refused before it is sent', b' 413 ' in head.split(b'\r\n')[0], head[:80])
    connection.close()
    for climbing in ('/v1/instances/../../etc/passwd', '/v1/instances/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc', '/../../etc/passwd', '/v1/instances/..%2fx/log'):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(daemon.socket)
        sock.sendall(b'GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' % climbing.encode())
        head = sock.recv(4096)
        check('path %s' % climbing, head.split(b' ')[1:2] in ([b'400'], [b'403'], [b'404']), head[:60])
        sock.close()
    slow = []
    for _ in range(20):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(daemon.socket)
        sock.sendall(b'POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{')
        slow.append(sock)
    start = time.monotonic()
    status, _, _ = daemon.call('GET', '/v1/host')
    check('slow clients keep nobody waiting', status == 200 and time.monotonic() - start < 5)
    for sock in slow:
        sock.close()
    ws = WebSocket(daemon.socket, '/v1/events/stream', 'Origin: https://evil.example\r\n')
    check('a web socket of another origin', ws.status == 403, ws.status)
    ws.close()
    ws = WebSocket(daemon.socket, '/v1/events/stream', 'Origin: http://localhost\r\n')
    check('a web socket of the same origin', ws.status == 101, ws.status)
    ws.close()


def versions(daemon):
    _, volume, headers = daemon.call('POST', '/v1/volumes', {'name': 'etag', 'size': '1M'})
    tag = headers['etag']
    check('creation answers with an ETag', tag == '"%d"' % volume['version'])
    status, _, changed = daemon.call('PATCH', '/v1/volumes/etag', {'description': 'x'}, {'If-Match': tag})
    check('If-Match that fits', status == 200)
    status, body, _ = daemon.call('PATCH', '/v1/volumes/etag', {'description': 'y'}, {'If-Match': tag})
    check('If-Match that is old', status == 412 and body['code'] == 'changed_meanwhile')
    check('deletion with an old ETag', daemon.call('DELETE', '/v1/volumes/etag', headers={'If-Match': tag})[0] == 412)
    check('a name that is taken', daemon.call('POST', '/v1/volumes', {'name': 'etag', 'size': 512})[0] == 409)
    check('deletion', daemon.call('DELETE', '/v1/volumes/etag', headers={'If-Match': changed['etag']})[0] == 204)
    check('a volume\'s file goes with it', not os.path.exists(os.path.join(daemon.state, 'volumes', volume['id'])))


def quotas(daemon):
    daemon.call('POST', '/v1/users', {'name': 'small', 'role': 'operator', 'quota_disk': '2M'})
    _, token, _ = daemon.call('POST', '/v1/users/small/token')
    as_small = {'Authorization': 'Bearer ' + token['token']}
    first = daemon.call('POST', '/v1/volumes', {'name': 'q1', 'size': '1M'}, as_small)[0]
    second, body, _ = daemon.call('POST', '/v1/volumes', {'name': 'q2', 'size': '2M'}, as_small)
    check('a quota that is reached', first == 201 and second == 403 and body['code'] == 'quota_reached', body)
    daemon.call('DELETE', '/v1/volumes/q1')


def lists(daemon):
    for i in range(12):
        daemon.call('POST', '/v1/volumes', {'name': 'l%02d' % i, 'size': '%dM' % (i + 1), 'labels': {'odd': str(i % 2)}})
    def names(query):
        status, body, _ = daemon.call('GET', '/v1/volumes?' + query)
        return status, [v['name'] for v in body.get('items', [])], body.get('total')
    check('filter by size', names('filter=size%3E%3D10M') == (200, ['l09', 'l10', 'l11'], 3))
    check('filter by label', names('filter=labels.odd%3D1%20and%20not%20size%3E4M')[1] == ['l01', 'l03'])
    check('filter by part', names('filter=name~1')[1] == ['l01', 'l10', 'l11'])
    check('sort and page', names('sort=-size&limit=2&offset=1') == (200, ['l10', 'l09'], 12))
    check('only some members', set(daemon.call('GET', '/v1/volumes?fields=size')[1]['items'][0]) == {'name', 'size'})
    for i in range(12):
        daemon.call('DELETE', '/v1/volumes/l%02d' % i)


def instances(daemon):
    status, job, headers = daemon.call('POST', '/v1/instances', {'name': 'one', 'kernel': daemon.kernel(), 'memory': '64M'})
    check('creation is a job', status == 202 and headers['location'] == '/v1/jobs/' + job['name'], (status, job))
    status, job, _ = daemon.call('GET', headers['location'] + '?wait=20')
    check('waiting for a job', job['state'] == 'done', job)
    status, job, _ = daemon.call('POST', '/v1/instances/one/start?wait=20')
    check('start, waited for', status == 200 and job['state'] == 'done', job)
    status, body, _ = daemon.call('POST', '/v1/instances/one/start')
    check('start twice', status == 409 and body['code'] == 'wrong_state', body)
    check('deletion of what runs', daemon.call('DELETE', '/v1/instances/one')[0] == 409)
    stats = daemon.call('GET', '/v1/instances/one/stats')[1]
    check('stats', stats['rss'] > 0 and stats['engine']['exits'] == 42, stats)
    check('log', b'booted' in daemon.call('GET', '/v1/instances/one/log')[1])
    changed = daemon.call('PATCH', '/v1/instances/one', {'memory': '128M', 'description': 'd'})[1]
    check('a change that waits for a restart', changed['after_restart'] is True, changed)
    for verb, state in (('pause', 'paused'), ('resume', 'running'), ('restart', 'running')):
        daemon.call('POST', '/v1/instances/one/%s?wait=20' % verb)
        now = daemon.call('GET', '/v1/instances/one')[1]
        check(verb, now['state'] == state, now)
    check('nothing waits after a restart', now['after_restart'] is False)
    ws = WebSocket(daemon.socket, '/v1/instances/one/stats/stream')
    samples = [json.loads(ws.receive()[1]) for _ in range(2)]
    check('samples of what is looked at', samples[1]['time_ms'] > samples[0]['time_ms'] and samples[0]['stats']['rss'] > 0, samples)
    ws.close()
    for span, step in (('hour', 10000), ('day', 60000), ('month', 900000)):
        status, history, _ = daemon.call('GET', '/v1/instances/one/history?span=' + span)
        columns = {len(values) for values in history['series'].values()}
        check('history of one %s' % span, status == 200 and history['step_ms'] == step and columns == {len(history['time_ms'])}, history)
    check('history of another span', daemon.call('GET', '/v1/instances/one/history?span=year')[0] == 400)
    ws = WebSocket(daemon.socket, '/v1/events/stream?jobs=1')
    daemon.call('POST', '/v1/instances/one/restart?wait=20')
    types = []
    while 'job.done' not in types:
        types.append(json.loads(ws.receive()[1])['type'])
    check('progress of jobs, where it is wanted', 'job.progress' in types, types)
    ws.close()
    now = daemon.call('GET', '/v1/instances/one')[1]
    ws = WebSocket(daemon.socket, '/v1/instances/one/console')
    got = ws.receive()[1]
    check('the console says something by itself', got.startswith(b'hello'), got)
    ws.send(b'echo me\n')
    while b'echo me' not in got:
        got += ws.receive()[1]
    check('console both ways', b'hello from the console' in got)
    ws.close()
    os.kill(now['pid'], 9)
    for _ in range(500):
        now = daemon.call('GET', '/v1/instances/one')[1]
        if now['state'] == 'stopped':
            break
        time.sleep(0.01)
    check('its death is seen', now['state'] == 'stopped' and now['exit_status'] == 137, now)
    daemon.call('PATCH', '/v1/instances/one', {'restart_policy': 'on-failure'})
    daemon.call('POST', '/v1/instances/one/start?wait=20')
    os.kill(daemon.call('GET', '/v1/instances/one')[1]['pid'], 9)
    for _ in range(500):
        now = daemon.call('GET', '/v1/instances/one')[1]
        if now['state'] == 'running' and now['restarts'] == 1:
            break
        time.sleep(0.01)
    check('restart policy', now['state'] == 'running' and now['restarts'] == 1, now)
    daemon.call('POST', '/v1/instances/one/stop?wait=20')
    daemon.call('PATCH', '/v1/instances/one', {'kernel': daemon.kernel('deaf')})
    daemon.call('POST', '/v1/instances/one/start?wait=20')
    job = daemon.call('POST', '/v1/instances/one/stop?wait=20', {'timeout': 1})[1]
    check('a guest that does not listen is ended by force', job['state'] == 'done' and 'ending it by force' in job['log'], job)
    daemon.call('POST', '/v1/instances/one/start?wait=20')
    job = daemon.call('POST', '/v1/instances/one/stop', {'timeout': 60})[1]
    daemon.call('POST', '/v1/jobs/%s/cancel' % job['name'])
    job = daemon.call('GET', '/v1/jobs/%s?wait=20' % job['name'])[1]
    check('a job that is canceled', job['state'] == 'canceled', job)
    check('and what it did is undone', daemon.call('GET', '/v1/instances/one')[1]['state'] == 'running')
    daemon.call('POST', '/v1/instances/one/stop?wait=20', {'force': True})
    daemon.call('PATCH', '/v1/instances/one', {'kernel': daemon.kernel('broken')})
    job = daemon.call('POST', '/v1/instances/one/start?wait=20')[1]
    check('a start that fails says why', job['state'] == 'failed' and 'the kernel is broken' in job['error']['detail'], job)
    daemon.call('POST', '/v1/volumes', {'name': 'data', 'size': '1M'})
    daemon.call('PATCH', '/v1/instances/one', {'volumes': ['data'], 'kernel': daemon.kernel()})
    status, body, _ = daemon.call('DELETE', '/v1/volumes/data')
    check('a volume in use stays', status == 409 and "instance 'one'" in body['detail'], body)
    job = daemon.call('POST', '/v1/instances/one/clone?wait=20', {'name': 'two'})[1]
    check('clone with its volume', job['state'] == 'done' and daemon.call('GET', '/v1/volumes/two-data')[0] == 200, job)
    check('rename', daemon.call('POST', '/v1/instances/one/rename', {'name': 'uno'})[0] == 200)
    check('rename to a name that is taken', daemon.call('POST', '/v1/instances/uno/rename', {'name': 'two'})[0] == 409)
    for name in ('uno', 'two'):
        daemon.call('DELETE', '/v1/instances/%s?wait=20' % name)
    check('nothing is left', os.listdir(os.path.join(daemon.state, 'instances')) == [])
    for name in ('data', 'two-data'):
        check('volume %s can go now' % name, daemon.call('DELETE', '/v1/volumes/' + name)[0] == 204)


def events(daemon):
    last = daemon.call('GET', '/v1/events')[1]['last']
    ws = WebSocket(daemon.socket, '/v1/events/stream?after=%d' % last)
    writer = threading.Thread(target=lambda: [daemon.call('POST', '/v1/volumes', {'name': 'e%d' % i, 'size': 512, 'format': 'raw'}) for i in range(30)])
    writer.start()
    got = [json.loads(ws.receive()[1]) for _ in range(30)]
    writer.join()
    check('events in order, none missing', [e['seq'] for e in got] == list(range(last + 1, last + 31)), got[:2])
    ws.close()
    slow = WebSocket(daemon.socket, '/v1/events/stream?after=%d' % last)
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for i in range(30):
        daemon.call('DELETE', '/v1/volumes/e%d' % i)
    for i in range(1250):
        daemon.call('POST', '/v1/volumes', {'name': 'slow', 'size': 512, 'format': 'raw'})
        daemon.call('DELETE', '/v1/volumes/slow')
    kinds, end = [], None
    try:
        while True:
            opcode, text = slow.receive()
            if opcode == 8:
                break
            kinds.append(json.loads(text))
    except (EOFError, OSError) as e:
        end = e
    seqs = [e['seq'] for e in kinds if 'seq' in e]
    check('a slow listener misses nothing in silence', seqs == list(range(last + 1, last + 1 + len(seqs))), end)
    check('a slow listener is told and cut, or was served all', kinds[-1]['type'] == 'overflow' or len(seqs) >= 2560, len(seqs))
    slow.close()
    last = daemon.call('GET', '/v1/events')[1]['last']
    late = WebSocket(daemon.socket, '/v1/events/stream?after=%d' % max(last - 2500, 0))
    check('a listener that starts too far behind is told', json.loads(late.receive()[1])['type'] == 'overflow')
    late.close()


def other(daemon):
    text = daemon.call('GET', '/metrics')[1].decode()
    check('metrics', 'fonda_instances{state="running"}' in text and 'fonda_requests_total' in text)
    check('audit', daemon.call('GET', '/v1/audit?limit=1')[1]['items'][0]['method'] == 'POST')
    check('jobs are listed', daemon.call('GET', '/v1/jobs?filter=type%3Dinstance.create')[1]['total'] > 0)


def run(daemon):
    spec = daemon.call('GET', '/openapi.json')[1]
    description(daemon, spec)
    instances(daemon)
    tokens = roles(daemon, spec)
    grants(daemon, tokens)
    abuse(daemon)
    versions(daemon)
    quotas(daemon)
    lists(daemon)
    random_requests(daemon, spec)
    events(daemon)
    other(daemon)
