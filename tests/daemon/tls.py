"""The API over TLS: tokens, client certificates, and nobody else. Certificates by the openssl command."""
import json
import shutil
import socket
import ssl
import subprocess
import http.client

from lib import check, skip


def openssl(directory, *args):
    subprocess.run(['openssl', *args], cwd=directory, check=True, capture_output=True)


def certificates(directory):
    new = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
    openssl(directory, *new, '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost', '-keyout', 'server.key', '-out',
            'server.pem')
    openssl(directory, *new, '-subj', '/CN=ca', '-keyout', 'ca.key', '-out', 'ca.pem')
    openssl(directory, 'req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=bob', '-keyout', 'bob.key', '-out',
            'bob.csr')
    openssl(directory, 'x509', '-req', '-in', 'bob.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-out', 'bob.pem')


def run(daemon):
    if not shutil.which('openssl'):
        skip('TLS', 'there is no openssl command to make certificates with')
        return
    certificates(daemon.dir)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    at = daemon.dir + '/'
    daemon.start('--listen', '127.0.0.1:%d' % port, '--tls-cert', at + 'server.pem', '--tls-key', at + 'server.key', '--tls-client-ca', at + 'ca.pem')
    daemon.call('POST', '/v1/users', {'name': 'bob', 'role': 'viewer'})
    token = daemon.call('POST', '/v1/users/bob/token')[1]['token']

    def call(method='GET', path='/v1/whoami', headers=None, cert=None):
        context = ssl.create_default_context(cafile=at + 'server.pem')
        if cert:
            context.load_cert_chain(at + cert + '.pem', at + cert + '.key')
        connection = http.client.HTTPSConnection('localhost', port, context=context, timeout=20)
        connection.request(method, path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())

    check('TLS: nobody', call()[0] == 401)
    check('TLS: a wrong token', call(headers={'Authorization': 'Bearer x'})[0] == 401)
    status, who = call(headers={'Authorization': 'Bearer ' + token})
    check('TLS: a token', status == 200 and who == {'name': 'bob', 'role': 'viewer'}, who)
    status, who = call(cert='bob')
    check('TLS: a certificate', status == 200 and who['name'] == 'bob', who)
    check('TLS: a viewer changes nothing', call('POST', '/v1/instances', {'Authorization': 'Bearer ' + token})[0] == 403)
    done = daemon.cli('ps', '--host', 'localhost:%d' % port, '--ca', at + 'server.pem', FONDA_TOKEN=token)
    check('fonda --host', done.returncode == 0 and 'NAME' in done.stdout, (done.returncode, done.stderr))
    done = daemon.cli('ps', '--host', 'localhost:%d' % port, FONDA_TOKEN=token)
    check('fonda --host refuses a certificate that it does not know', done.returncode == 6, (done.returncode, done.stdout, done.stderr))
    daemon.cli('context', 'add', 'far', '--host', 'localhost:%d' % port, '--ca', at + 'server.pem', FONDA_TOKEN=token)
    done = daemon.cli('ps', '--context', 'far')
    check('a saved context', done.returncode == 0, done.stderr)
    try:
        with socket.create_connection(('127.0.0.1', port), timeout=10) as plain:
            plain.sendall(b'GET /v1/host HTTP/1.1\r\nHost: x\r\n\r\n')
            answer = plain.recv(100)
    except OSError:
        answer = b''
    check('plain HTTP is not answered there', b'200' not in answer, answer)
