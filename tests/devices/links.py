"""Cards on a wire between two machines, and on a tap device in a network namespace of its own."""
import os
import re
import subprocess
import time

from control import Control, Refused
from guest import NET, Server, Skip, sender

WIRE_IP = 'ip addr add 192.168.9.%d/24 dev %s && ip link set %s up'


def carrier(guest, nic, wanted):
    for _ in range(60):
        if guest.ok('cat /sys/class/net/%s/carrier' % nic).strip() == wanted:
            return True
        time.sleep(0.2)
    return False


def moved(text, megabytes):
    """Whether iperf3 went through to its end; the receiver stops counting before the last bytes come."""
    sent = re.findall(r'([\d.]+) MBytes .*sender', text)
    got = re.findall(r'([\d.]+) MBytes .*receiver', text)
    return sent and got and float(sent[-1]) >= megabytes and float(got[-1]) >= megabytes / 2 and 'iperf Done.' in text


def test_wire(t):
    """Two machines run iperf3 over a wire, with offloads and with none; then one goes away and comes back."""
    wire = 'wire=' + t.path('wire')
    bare = ['--virtio-without', 'net0:csum,guest_csum,mrg_rxbuf', '--virtio-without', 'all:event_idx,indirect_desc']
    with t.boot('--net', wire + ',mtu=9000', '--net', 'none') as one:
        one.ok('ip link set eth0 up')
        t.see(carrier(one, 'eth0', '0'), 'alone on the wire, the link is down')
        with t.boot('--net', wire, *bare) as two:
            one.ok(WIRE_IP % (1, 'eth0', 'eth0'))
            two.ok(WIRE_IP % (2, 'eth0', 'eth0'))
            t.see(carrier(one, 'eth0', '1') and carrier(two, 'eth0', '1'), 'with both, the link is up')
            t.same(two.features('net', NET)[0] & {'csum', 'guest_csum', 'mrg_rxbuf', 'host_tso4', 'event_idx'}, set(),
                   'one end without offloads: the set is as asked')
            t.same(one.ok('cat /sys/class/net/eth0/mtu').strip(), '9000', 'the MTU of the other end')
            one.ok('ip link set eth0 mtu 1500 && iperf3 -s -D && sleep 1')
            text = two.ok('iperf3 -c 192.168.9.1 -n 10M -f M --get-server-output')
            t.see(moved(text, 10), 'iperf3 from plain to offloading', text)
            text = two.ok('iperf3 -c 192.168.9.1 -n 10M -f M -R')
            t.see(moved(text, 10), 'iperf3 from offloading to plain (segments are cut on the way)', text)
            two.off()
        t.see(carrier(one, 'eth0', '0'), 'the other machine ended: the link is down')
        with t.boot('--net', wire) as two:
            two.ok(WIRE_IP % (2, 'eth0', 'eth0'))
            t.see(carrier(one, 'eth0', '1'), 'a new machine on the wire: the link is up again')
            text = two.ok('iperf3 -c 192.168.9.1 -n 30M -f M')
            t.see(moved(text, 30), 'iperf3 with offloads at both ends', text)
            two.off()
        one.off()


def test_cable(t):
    """A cable that is pulled and plugged by the control socket; only that NIC's, and traffic goes on behind it."""
    socket_path = t.path('control')
    with Server(sender(b'over the cable\n')) as server, \
            t.boot('--net', 'user', '--net', 'user', '--control', socket_path) as guest, Control(socket_path) as control:
        fetch = 'nc -w 20 10.0.2.2 %d </dev/null' % server.port
        guest.ok('ip link set eth1 up; up eth0')
        t.same(guest.ok(fetch).strip(), 'over the cable', 'plugged at first')
        for n in (1, 2):
            control.call('nic_plug', nic=0, plugged=False)
            t.see(carrier(guest, 'eth0', '0'), 'unplugged, time %d: the guest sees it' % n)
            t.see(carrier(guest, 'eth1', '1'), 'the other NIC is as it was')
            control.call('nic_plug', nic=0, plugged=True)
            t.see(carrier(guest, 'eth0', '1'), 'plugged again, time %d' % n)
            t.same(guest.ok(fetch).strip(), 'over the cable', 'traffic goes on')
        try:
            control.call('nic_plug', nic=2, plugged=True)
            t.see(False, 'a NIC that is not there is refused')
        except Refused as e:
            t.same((e.code, str(e)), ('not_found', 'the machine has no such NIC'), 'a NIC that is not there is refused')
        guest.off()


def namespace_works():
    return subprocess.run(['unshare', '-n', 'sh', '-c', 'ip tuntap add t0 mode tap && ip link set t0 up'], capture_output=True,
                          check=False).returncode == 0


def device(pid, name):
    """Counters of a network device in the namespace of a process."""
    with open('/proc/%d/net/dev' % pid, encoding='ascii') as f:
        for line in f:
            if line.strip().startswith(name + ':'):
                fields = [int(n) for n in line.split(':')[1].split()]
                return {'rx_bytes': fields[0], 'rx_packets': fields[1], 'tx_bytes': fields[8], 'tx_packets': fields[9]}
    return None


def test_tap(t):
    """Host and guest by a tap device; large segments pass whole."""
    if os.getuid() != 0 or not os.path.exists('/dev/net/tun') or not namespace_works():
        raise Skip('needs root, /dev/net/tun and network namespaces')
    setup = ('ip link set lo up; ip tuntap add t0 mode tap; ip addr add 192.168.9.1/24 dev t0; ip link set t0 up; '
             'iperf3 -s -D -I "$0" >/dev/null 2>&1; exec "$@"')
    pidfile = t.path('iperf.pid')
    under = ['unshare', '-n', 'sh', '-c', setup, pidfile]
    try:
        for how, bits in (('offloads', None), ('no offloads', 'net:csum,guest_csum,mrg_rxbuf')):
            extra = ['--virtio-without', bits] if bits else []
            with t.boot('--net', 'tap=t0,queues=2', *extra, under=under) as guest:
                guest.ok(WIRE_IP % (2, 'eth0', 'eth0'))
                t.see('2 packets received' in guest.ok('ping -c 2 -i 0.2 192.168.9.1'), '%s: the host answers pings' % how)
                before = device(guest.pid, 't0')
                text = guest.ok('iperf3 -c 192.168.9.1 -n 30M -f M')
                after = device(guest.pid, 't0')
                t.see(moved(text, 30), '%s: iperf3 to the host' % how, text)
                mean = (after['rx_bytes'] - before['rx_bytes']) / (after['rx_packets'] - before['rx_packets'])
                t.see((mean > 3000) == (bits is None), '%s: frames of %s' % (how, '1514 at most' if bits else 'large segments'),
                      mean)
                text = guest.ok('iperf3 -c 192.168.9.1 -n 30M -f M -R')
                last = device(guest.pid, 't0')
                t.see(moved(text, 30), '%s: iperf3 from the host' % how, text)
                mean = (last['tx_bytes'] - after['tx_bytes']) / (last['tx_packets'] - after['tx_packets'])
                t.see((mean > 3000) == (bits is None), '%s: frames of %s for the guest' % (how, '1514 at most' if bits else
                                                                                        'large segments'), mean)
                subprocess.run(['nsenter', '-t', str(guest.pid), '-n', 'ip', 'link', 'del', 't0'], check=True)
                t.see(carrier(guest, 'eth0', '0'), '%s: the device is deleted: the link is down' % how)
                guest.off()
            stop(pidfile)
    finally:
        stop(pidfile)


def stop(pidfile):
    """Ends the iperf3 server that this test started."""
    try:
        with open(pidfile, encoding='ascii') as f:
            os.kill(int(f.read().strip('\0\n ')), 15)
        os.unlink(pidfile)
    except (OSError, ValueError):
        pass
