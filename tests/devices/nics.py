"""Network cards over user-mode NAT: every feature bit on and off, and what people do with a network."""
import socket
import threading
import time

from guest import NET, Server, answer_digest, data, free_port, sender, sha

# One NIC for each: what is withheld, and what goes with it (virtio 1.2 section 5.1.3.1).
WITHHELD = [
    ('csum', {'csum', 'host_tso4', 'host_tso6', 'host_ecn'}),
    ('guest_csum', {'guest_csum', 'guest_tso4', 'guest_tso6', 'guest_ecn'}),
    ('ctrl_guest_offloads', {'ctrl_guest_offloads'}),
    ('mtu', {'mtu'}),
    ('mac', {'mac'}),
    ('guest_tso4', {'guest_tso4'}),
    ('guest_tso6,guest_ecn', {'guest_tso6', 'guest_ecn'}),
    ('host_tso4', {'host_tso4'}),
    ('host_tso6,host_ecn', {'host_tso6', 'host_ecn'}),
    ('mrg_rxbuf', {'mrg_rxbuf'}),
    ('status', {'status'}),
    ('ctrl_vq', {'ctrl_vq', 'ctrl_rx', 'mq', 'ctrl_mac_addr', 'ctrl_guest_offloads'}),
    ('ctrl_rx,ctrl_mac_addr', {'ctrl_rx', 'ctrl_mac_addr'}),
    ('mq', {'mq'}),
    ('indirect_desc,event_idx', {'indirect_desc', 'event_idx'}),
]
BLOB = data(1500000)


def transfer(guest, download, upload):
    """Both directions by TCP; the digests that the two sides computed."""
    got = guest.ok('nc 10.0.2.2 %d </dev/null | sha256sum' % download.port).split()[0]
    sent = guest.ok('head -c 1500000 /tmp/blob | nc 10.0.2.2 %d' % upload.port).split()[0]
    return got, sent


def test_features(t):
    options = ['--net', 'user,queues=2'] * (len(WITHHELD) + 1)
    for i, (text, _) in enumerate(WITHHELD, 1):
        options += ['--virtio-without', 'net%d:%s' % (i, text)]
    with Server(sender(BLOB)) as download, Server(answer_digest) as upload, t.boot(*options) as guest:
        found = guest.features('net', NET)
        everything = set(NET) | {'indirect_desc', 'event_idx', 'version_1'}
        t.same(found[0], everything, 'a NIC offers all features, and the driver takes them')
        guest.ok('up eth0 && nc 10.0.2.2 %d </dev/null >/tmp/blob; down eth0' % download.port)
        for i, (text, gone) in enumerate([('nothing', set()), *WITHHELD]):
            t.same(found[i], everything - gone, 'without %s: the set is as asked' % text)
            guest.ok('up eth%d' % i)
            t.same(transfer(guest, download, upload), (sha(BLOB), sha(BLOB)), 'without %s: TCP both ways' % text)
            guest.ok('down eth%d' % i)
        guest.off()


def udp_echo(sock):
    while True:
        try:
            message, peer = sock.recvfrom(65536)
        except OSError:
            return
        sock.sendto(message, peer)


def host_resolver():
    """Whether this host has a name server that answers: the guest's questions go there."""
    query = b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01'
    try:
        with open('/etc/resolv.conf', encoding='ascii', errors='replace') as f:
            servers = [line.split()[1] for line in f if line.startswith('nameserver') and ':' not in line]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(5)
            s.sendto(query, (servers[0], 53))
            return s.recv(512)[:2] == query[:2]
    except (OSError, IndexError):
        return False


def connect(port):
    """To a published port, as soon as the guest listens behind it."""
    for _ in range(50):
        conn = socket.create_connection(('127.0.0.1', port), 20)
        conn.sendall(b'ping\n')
        try:
            if conn.recv(4) == b'ping':
                return conn
        except OSError:
            pass
        conn.close()
        time.sleep(0.2)
    return None


def test_user_network(t):
    tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
    options = ['--net', 'user,mac=02:f0:da:01:02:03,mtu=1400', '--net', 'user,queues=4', '--publish', '%d:22' % tcp,
               '--publish', '127.0.0.1:%d:5353/udp' % udp]
    with Server(sender(BLOB)) as download, Server(answer_digest) as upload, t.boot(*options) as guest:
        t.same(guest.ok('cat /sys/class/net/eth0/address').strip(), '02:f0:da:01:02:03', 'the MAC that was asked for')
        other = guest.ok('cat /sys/class/net/eth1/address').strip()
        t.see(other.startswith('02:f0:da:'), 'a MAC of the own prefix', other)
        t.same(guest.ok('cat /sys/class/net/eth0/mtu').strip(), '1400', 'the MTU that was asked for')
        t.same(guest.ok('up eth0').split(), ['eth0', 'has', '10.0.2.15'], 'DHCP')
        t.same(guest.ok('cat /sys/class/net/eth0/carrier').strip(), '1', 'the link is up')
        t.see('3 packets received' in guest.ok('ping -c 3 -i 0.2 10.0.2.2'), 'the gateway answers pings')
        if host_resolver():
            text, _ = guest.command('nslookup localhost 10.0.2.3')
            t.see('Server:' in text and 'timed out' not in text, 'DNS through the NAT', text)
        else:
            t.skip('DNS through the NAT', 'this host has no name server')
        guest.ok('nc 10.0.2.2 %d </dev/null >/tmp/blob' % download.port)
        t.same(transfer(guest, download, upload), (sha(BLOB), sha(BLOB)), 'TCP both ways with an MTU of 1400')
        guest.ok('(socat TCP-LISTEN:22,fork EXEC:cat >/dev/null 2>&1 &)')
        conn = connect(tcp)
        t.see(conn, 'a published TCP port', guest.text[-500:])
        if conn:
            conn.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            guest.ok('(socat UDP-RECVFROM:5353,fork EXEC:cat >/dev/null 2>&1 &)')
            s.settimeout(2)
            answer = b''
            for _ in range(20):
                s.sendto(b'over udp', ('127.0.0.1', udp))
                try:
                    answer = s.recv(100)
                    break
                except OSError:
                    pass
            t.same(answer, b'over udp', 'a published UDP port')
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(('127.0.0.1', 0))
            threading.Thread(target=udp_echo, args=(s,), daemon=True).start()
            text, _ = guest.command('echo out | socat -T 5 - UDP:10.0.2.2:%d' % s.getsockname()[1])
            t.same(text.strip(), 'out', 'UDP to the host')
        guest.ok('down eth0 && up eth1')
        t.same(guest.ok('cat /sys/class/net/eth1/mtu').strip(), '65520', 'the MTU of the NAT')
        guest.ok('ethtool -L eth1 combined 1')
        t.same(transfer(guest, download, upload), (sha(BLOB), sha(BLOB)), 'TCP both ways on the second NIC')
        for what in ('tso off', 'gso off tx off', 'gro off lro off', 'rx-gro-hw off'):
            guest.command('ethtool -K eth1 ' + what)
            t.same(transfer(guest, download, upload), (sha(BLOB), sha(BLOB)), 'TCP after ethtool -K ' + what)
        guest.off()
