"""Disks and NICs that come and go while the guest runs (docs/control.md), and what a guest may try meanwhile."""
import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time

from control import Control, Refused
from disks import MIB, image
from guest import PROMPT, Guest, Server, Skip, data, sender, sha
from harness import OFF, PATIENCE_S, Session, check

SOCKET = 'control.sock'


def boot(t, *options, append='', reboots=False):
    """A guest with a control socket, and its client."""
    path = t.path(SOCKET)
    if os.path.exists(path):
        os.unlink(path)
    argv = t.guest_argv(*([] if reboots else ['--no-reboot']), '--control', path, *options, append=append)
    guest = Guest([argv[0], *argv[1:]])
    return guest, Control(path)


def wait_for(guest, condition):
    """Until a shell condition holds in the guest."""
    guest.ok('until %s; do usleep 100000; done' % condition)


def refused(t, call, code, what):
    """The request is answered with an error of that code."""
    try:
        result = call()
    except Refused as e:
        t.same((e.code, '' if str(e) else 'no message'), (code, ''), what)
    else:
        t.see(False, what, 'answered with %r' % (result,))


def ids(control):
    return [device['id'] for device in control.call('devices')['devices']]


def send_fds(control, method, fds, **params):
    control.serial += 1
    line = json.dumps({'id': control.serial, 'method': method, 'params': params}).encode() + b'\n'
    socket.send_fds(control.socket, [line], fds)
    return control.receive()


def pattern(guest, disk, at_mib):
    """Writes a MiB of the first disk's contents, and says what a later reading gives."""
    guest.ok('dd if=/dev/vda of=%s bs=1M count=1 seek=%d conv=fsync 2>/dev/null' % (disk, at_mib))
    return guest.ok('dd if=%s bs=1M count=1 skip=%d 2>/dev/null | sha256sum' % (disk, at_mib)).split()[0]


def test_disks(t):
    first = image(t, 'first', content=data(MIB, 1))
    other = image(t, 'other', content=data(MIB, 2))
    guest, control = boot(t, '--disk', first + ',format=raw', '--net', 'none')
    with guest, control, Control(t.path(SOCKET)) as events:
        events.call('subscribe')
        t.same(ids(control), ['disk0'], 'the machine begins with its disk')
        made = control.call('disk_attach', disk=other + ',format=raw,serial=HOT-1', id='hot')
        t.same((made['id'], made['plugged'], made['slot']), ('hot', True, 3), 'a disk is plugged into the next slot')
        wait_for(guest, '[ -b /dev/vdb ]')
        t.same(guest.ok('cat /sys/block/vdb/serial; echo').strip(), 'HOT-1', 'the guest finds it')
        t.same(pattern(guest, '/dev/vdb', 5), sha(data(MIB, 1)), 'it is written and read')
        refused(t, lambda: control.call('disk_attach', disk=other, id='hot'), 'exists', 'a name is given once')
        refused(t, lambda: control.call('disk_attach', disk=other + ',format=raw'), 'busy', 'an image is in use once')
        t.same(control.job('disk_detach', id='hot'), {'id': 'hot'}, 'the guest lets it go')
        guest.ok('[ ! -e /dev/vdb ] && [ $(cat /sys/bus/pci/slots/3/power) = 0 ]')
        t.same(ids(control), ['disk0'], 'and it is gone')
        with open(other, 'rb') as f:
            f.seek(5 * MIB)
            t.same(sha(f.read(MIB)), sha(data(MIB, 1)), 'what was written is in the image')
        kinds = []
        while kinds[-1:] != ['detached']:
            message = json.loads(events.file.readline())
            if message.get('event') == 'device':
                kinds.append(message['data']['state'])
        t.same(kinds, ['attached', 'detached'], 'events say so')
        for _ in range(12):  # names and slots are used again
            slot = control.call('disk_attach', disk=other + ',format=raw')
            check((slot['id'], slot['slot']) == ('disk1', 3), 'not the same place: %r' % slot)
            wait_for(guest, '[ -b /dev/vdb ]')
            control.job('disk_detach', id='disk1')
        t.see(True, 'twelve times more in the same slot')
        for i in range(28):
            control.call('disk_attach', disk=image(t, 'n%d' % i, MIB) + ',format=raw,serial=S%d' % i)
        wait_for(guest, '[ $(ls -d /sys/block/vd* | wc -l) = 29 ]')
        t.see(True, 'as many disks as there are slots')
        control.call('disk_attach', disk=image(t, 'last', MIB) + ',format=raw')
        refused(t, lambda: control.call('disk_attach', disk=other + ',format=raw'), 'no_space', 'one too many')
        for name in ids(control)[1:]:
            control.send('disk_detach', id=name)
            control.receive()
        wait_for(guest, '[ $(ls -d /sys/block/vd* | wc -l) = 1 ]')
        t.see(True, 'all of them at once are let go')
        t.same(guest.ok('dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum').split()[0], sha(data(MIB, 1)),
               'the first disk is as it was')
        control.job('disk_detach', id='disk0')
        guest.ok('[ ! -e /dev/vda ]')
        t.same(ids(control), [], 'a disk that the machine began with can go too')
        guest.off()


def test_nics(t):
    blob = data(300000, 7)
    guest, control = boot(t, '--net', 'user')  # the jail has that network then
    with Server(sender(blob)) as server, guest, control:
        control.job('nic_detach', id='nic0')
        made = control.call('nic_attach', nic='user,mac=02:00:00:00:12:34')
        t.same((made['id'], made['mac'], made['up']), ('nic1', '02:00:00:00:12:34', True), 'a NIC is plugged')
        refused(t, lambda: control.call('nic_attach', nic='user,mac=02:00:00:00:12:34'), 'exists', 'an address is used once')
        wait_for(guest, '[ -e /sys/class/net/eth0 ]')
        t.same(guest.ok('cat /sys/class/net/eth0/address').strip(), '02:00:00:00:12:34', 'the guest finds it')
        guest.ok('up eth0')
        t.same(guest.ok('nc 10.0.2.2 %d </dev/null | sha256sum' % server.port).split()[0], sha(blob), 'TCP over it')
        counts = control.call('stats')['networks'][0]
        t.see(counts['rx_bytes'] > 300000 and counts['rx_packets'] > 4 and counts['tx_packets'] > 4 and
              counts['tx_bytes'] > 200, 'its bytes and packets are counted', counts)
        control.call('nic_link', id='nic1', up=False)
        wait_for(guest, '[ $(cat /sys/class/net/eth0/carrier) = 0 ]')
        t.same(control.call('devices')['devices'][0]['up'], False, 'its cable is pulled')
        control.call('nic_link', id='nic1', up=True)
        wait_for(guest, '[ $(cat /sys/class/net/eth0/carrier) = 1 ]')
        t.same(guest.ok('nc 10.0.2.2 %d </dev/null | sha256sum' % server.port).split()[0], sha(blob), 'and back in')
        control.job('nic_detach', id='nic1')
        guest.ok('[ ! -e /sys/class/net/eth0 ]')
        t.same(ids(control), [], 'the guest lets it go')
        for _ in range(4):
            control.call('nic_attach', nic='user')
            wait_for(guest, '[ -e /sys/class/net/eth0 ]')
            guest.ok('up eth0')
            control.job('nic_detach', id='nic1')
            guest.ok('[ ! -e /sys/class/net/eth0 ]')
        t.see(True, 'four times more while it is up')
        guest.off()


def open_tap(setup):
    """A tap device t0 in a network namespace of its own, which a shell command sets up; its descriptor."""
    opened = []

    def inside():
        if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:  # CLONE_NEWNET, of this thread alone
            fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b't0', 0x5002))  # TUNSETIFF: TAP, NO_PI, VNET_HDR
            fcntl.ioctl(fd, 0x400454d8, struct.pack('i', 12))  # TUNSETVNETHDRSZ
            subprocess.run(['sh', '-ec', setup], check=True)
            opened.append(fd)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return opened[0] if opened else None


def test_jailed_nics(t):
    """What a machine that was started without a network can still be given."""
    guest, control = boot(t, '--net', 'none')
    with guest, control:
        refused(t, lambda: control.call('nic_attach', nic='user'), 'not_supported', 'no NAT')
        refused(t, lambda: control.call('nic_attach', nic='tap=t0'), 'not_supported', 'no tap by its name')
        elsewhere = os.path.join(tempfile.gettempdir(), 'fonda-wire-%d' % os.getpid())
        try:
            control.call('nic_attach', nic='wire=' + elsewhere)
            t.see(False, 'no wire in a directory that is not the machine\'s')
        except Refused as e:
            t.see('jail' in str(e) and elsewhere in str(e), 'no wire in a directory that is not the machine\'s', str(e))
        refused(t, lambda: control.call('disk_attach', disk='/etc/hostname,format=raw,readonly'), 'not_found', 'no file by its name')
        made = control.call('nic_attach', nic='wire=' + t.path('wire'))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(t.path('wire'))
            wait_for(guest, '[ -e /sys/class/net/eth0 ]')
            guest.ok('ip link set eth0 up; arping -c 1 -I eth0 192.168.9.1 || ping -c 1 -I eth0 ff02::1; true')
            t.see(len(peer.recv(65536)) > 14, 'a wire, and frames on it')
        control.job('nic_detach', id=made['id'])
        fd = None
        if os.getuid() == 0 and os.path.exists('/dev/net/tun'):
            fd = open_tap('ip addr add 192.168.9.1/24 dev t0; ip link set t0 up')
        if fd is None:
            raise Skip('needs root, /dev/net/tun and network namespaces')
        made = send_fds(control, 'nic_attach', [fd], nic='tap=t0', tap=True)
        os.close(fd)
        wait_for(guest, '[ -e /sys/class/net/eth0 ]')
        guest.ok('ip addr add 192.168.9.2/24 dev eth0; ip link set eth0 up')
        t.see(True, 'a tap device by its descriptor')
        guest.ok('ping -c 2 192.168.9.1')
        t.see(True, 'the host answers through it')
        control.job('nic_detach', id=made['id'])
        t.same(ids(control), [], 'and it goes')
        guest.off()


def test_busy(t):
    """Disks that go while the guest reads and writes them."""
    guest, control = boot(t, '--disk', image(t, 'first', content=data(MIB, 1)) + ',format=raw', '--net', 'none')
    with guest, control:
        for i in range(3):
            control.call('disk_attach', disk=image(t, 'busy%d' % i, 64 * MIB) + ',format=raw', id='busy')
            wait_for(guest, '[ -b /dev/vdb ]')
            guest.ok('rm -f /tmp/ended; (for n in 1 2 3 4; do (while dd if=/dev/zero of=/dev/vdb bs=256k count=200 '
                     'oflag=direct && dd if=/dev/vdb of=/dev/null bs=64k iflag=direct; do :; done; echo >>/tmp/ended) '
                     '2>/dev/null & done)')
            wait_for(guest, '[ "$(tr -s " " </sys/block/vdb/stat | cut -d" " -f6)" -gt 100 ]')
            control.job('disk_detach', id='busy')
            wait_for(guest, '[ -e /tmp/ended ] && [ "$(wc -l </tmp/ended)" = 4 ]')
            guest.ok('[ ! -b /dev/vdb ]; rm -f /dev/vdb')
            t.same(ids(control), ['disk0'], 'detached during I/O')
        t.same(guest.ok('dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum').split()[0], sha(data(MIB, 1)),
               'another disk goes on')
        t.same(control.call('status')['state'], 'running', 'so does the machine')
        guest.off()


def test_deaf(t):
    """A guest without the driver: time-outs, and a reset that takes out what it was asked for."""
    first, other = image(t, 'first', content=data(MIB, 1)), image(t, 'other', content=data(MIB, 2))
    guest, control = boot(t, '--disk', first + ',format=raw', '--disk', other + ',format=raw', '--net', 'none',
                          append='acpiphp.disable=1', reboots=True)
    with guest, control:
        refused(t, lambda: control.job('disk_detach', id='disk1', timeout_s=1), 'timeout', 'a guest that does not let go')
        t.same([d['leaving'] for d in control.call('devices')['devices']], [False, True], 'it is still asked')
        guest.ok('head -c 512 /dev/vdb >/dev/null')
        job = control.call('disk_detach', id='disk1')['job']
        refused(t, lambda: control.call('disk_detach', id='disk1'), 'busy', 'asked twice')
        control.call('job_cancel', job=job)
        end = control.call('job_wait', job=job)
        t.same(end['error']['code'], 'cancelled', 'nobody has to wait')
        job = control.call('disk_detach', id='disk1')['job']
        guest.send('reboot -f\n')
        guest.expect('Welcome to a Linux guest')
        t.same(control.call('job_wait', job=job)['state'], 'done', 'a reset takes it out')
        guest.expect(PROMPT)
        guest.ok('. /lib/guest-setup; [ -b /dev/vda ] && [ ! -e /dev/vdb ]')
        t.same(ids(control), ['disk0'], 'and the machine starts without it')
        guest.off()


def test_hostile(t):
    """What a guest does to slots by itself, and clients' nonsense."""
    other = image(t, 'other', content=data(MIB, 2))
    guest, control = boot(t, '--disk', image(t, 'first', content=data(MIB, 1)) + ',format=raw', '--net', 'user')
    with guest, control:
        before = ids(control)
        guest.ok('for n in 1 2 3 30; do echo 0 >/sys/bus/pci/slots/$n/power; done; [ ! -e /dev/vda ]')
        t.same(ids(control), before, 'what a guest ejects without having been asked stays')
        guest.ok('for n in 1 2 3 30; do echo 1 >/sys/bus/pci/slots/$n/power; done 2>/dev/null; [ -b /dev/vda ] && '
                 'head -c 512 /dev/vda >/dev/null')
        guest.ok('echo 1 >/sys/bus/pci/devices/0000:00:02.0/remove; echo 1 >/sys/bus/pci/rescan; [ -b /dev/vda ]')
        # Every port of the chip, a byte at a time, while devices come and go.
        guest.ok('(while [ ! -e /tmp/stop ]; do dd if=/dev/urandom of=/dev/port bs=1 seek=1600 count=16; '
                 'dd if=/dev/port of=/dev/null bs=1 skip=1600 count=16; done) >/dev/null 2>&1 & true')
        for i in range(5):
            control.call('disk_attach', disk=image(t, 'noise%d' % i, MIB) + ',format=raw', id='noise%d' % i)
        guest.ok('echo >/tmp/stop; wait; head -c 512 /dev/vda >/dev/null')
        t.same(ids(control)[:len(before)], before, 'the chip\'s ports full of noise: nothing goes')
        guest.ok("printf '\\002' | dd of=/dev/port bs=1 seek=1602 count=1 2>/dev/null")  # the event's enable bit
        wait_for(guest, '[ $(ls -d /sys/block/vd* | wc -l) -ge 1 ]')
        for i in range(5):
            control.job('disk_detach', id='noise%d' % i, timeout_s=int(PATIENCE_S))
        t.same(ids(control), before, 'and all is well behind it')
        wrong = [
            ('disk_attach', {}), ('disk_attach', {'disk': 5}), ('disk_attach', {'disk': ''}), ('disk_attach', {'disk': ',,,'}),
            ('disk_attach', {'disk': 'relative.img'}), ('disk_attach', {'disk': '/dev/null'}), ('disk_attach', {'disk': '/'}),
            ('disk_attach', {'disk': other, 'id': ''}), ('disk_attach', {'disk': other, 'id': '../x'}),
            ('disk_attach', {'disk': other, 'id': 'x' * 41}), ('disk_attach', {'disk': other, 'id': 'a\u0000b'}),
            ('disk_attach', {'disk': other + ',format=vmdk'}), ('disk_attach', {'disk': other, 'files': 'x'}),
            ('disk_attach', {'disk': other, 'files': ['x']}), ('disk_attach', {'disk': other, 'files': [5] * 100}),
            ('disk_attach', {'disk': '/x' * 5000}), ('disk_attach', {'disk': other, 'more': 1}),
            ('disk_detach', {'id': 'disk0', 'timeout_s': 0}), ('disk_detach', {'id': 'disk0', 'timeout_s': 1e9}),
            ('disk_detach', {'id': 'disk0', 'force': True}), ('throttle', {'id': 'disk0', 'iops': -1}),
            ('throttle', {'id': 'disk0', 'iops': 2**62}), ('throttle', {'id': 'disk0', 'bps': 'all'}), ('throttle', {}),
            ('nic_attach', {}), ('nic_attach', {'nic': 'none'}), ('nic_attach', {'nic': 'user,mac=1'}),
            ('nic_attach', {'nic': 'tap=../../x'}), ('nic_attach', {'nic': 'user', 'tap': True}),
            ('nic_link', {'id': 'nic0'}), ('nic_link', {'id': 'nic0', 'up': 1}), ('devices', {'devices': []}),
        ]
        answered = []
        for method, params in wrong:
            try:
                control.call(method, **params)
                answered.append((method, params))
            except Refused as e:
                check(e.code and str(e), 'an error without a word: %s %r' % (method, params))
        t.same(answered, [('devices', {'devices': []})], 'nonsense is refused')
        for method, name in (('disk_detach', 'nic0'), ('nic_detach', 'disk0'), ('disk_detach', 'seed'), ('disk_detach', ''),
                             ('disk_detach', 'virtio-rng')):
            refused(t, lambda: control.call(method, id=name), 'not_found', '%s of %r' % (method, name))
        refused(t, lambda: control.call('throttle', id='nic0', iops=1), 'not_found', 'limits of a NIC')
        t.same(ids(control), before, 'nothing has changed')
        guest.off()


def test_files(t):
    """A disk's files as descriptors: what a machine in its jail gets."""
    other = image(t, 'other', content=data(MIB, 2))
    base, top = image(t, 'base', content=data(MIB, 3)), t.path('top.qcow2')
    t.run([t.fonda, 'image', 'create', '--backing', base, '--backing-format', 'raw', top], patience=60)
    guest, control = boot(t, '--net', 'none')
    with guest, control:
        with open(other, 'r+b') as f:
            made = send_fds(control, 'disk_attach', [f.fileno()], disk='/nowhere/disk,format=raw', files=['/nowhere/disk'])
        t.same(made['file'], '/nowhere/disk', 'a disk by its descriptor')
        wait_for(guest, '[ -b /dev/vda ]')
        guest.ok('dd if=/dev/vda of=/dev/vda bs=1M count=1 seek=3 conv=fsync,notrunc 2>/dev/null')
        with open(other, 'rb') as f:
            f.seek(3 * MIB)
            t.same(sha(f.read(MIB)), sha(data(MIB, 2)), 'is written')
        with open(base, 'rb') as f:
            refused(t, lambda: send_fds(control, 'disk_attach', [f.fileno()], disk='/nowhere/x,format=raw', files=['/nowhere/x']),
                    'not_allowed', 'a descriptor that can only be read')
        if os.path.exists(top):
            with open(top, 'r+b') as f, open(base, 'rb') as g:
                os.rename(base, base + '.away')
                made = send_fds(control, 'disk_attach', [f.fileno(), g.fileno()], disk=top, files=[top, base])
                os.rename(base + '.away', base)
            wait_for(guest, '[ -b /dev/vdb ]')
            t.same(guest.ok('dd if=/dev/vdb bs=1M count=1 2>/dev/null | sha256sum').split()[0], sha(data(MIB, 3)),
                   'and one that lies upon another')
        else:
            t.see(False, 'fonda image create made %s' % top)
        with open(other, 'rb') as f:
            for _ in range(40):  # descriptors that nobody asked for are closed
                send_fds(control, 'status', [f.fileno()] * 8)
        with open('/proc/%d/status' % control.call('status')['pid'], encoding='ascii') as f:
            check(f, 'the machine runs')
        t.see(len(os.listdir('/proc/%d/fd' % control.call('status')['pid'])) < 100, 'descriptors without a use are closed',
              os.listdir('/proc/%d/fd' % control.call('status')['pid']))
        guest.off()


def test_limits(t):
    """A disk's limits while it is in use."""
    guest, control = boot(t, '--disk', image(t, 'first', content=data(MIB, 1)) + ',format=raw', '--net', 'none')
    read = 'dd if=/dev/vda of=/dev/null bs=4k iflag=direct count=%d 2>/dev/null'
    with guest, control:
        control.call('throttle', id='disk0', iops=2, iops_burst=1)
        start = time.monotonic()
        guest.ok(read % 6)
        t.see(time.monotonic() - start > 1.9, 'two requests a second', time.monotonic() - start)
        guest.ok('(%s; echo >/tmp/done) & true' % (read % 2000))  # 1,000 seconds' worth
        control.call('throttle', id='disk0', bps=1, bps_burst=1)
        control.call('throttle', id='disk0')
        wait_for(guest, '[ -e /tmp/done ]')
        t.see(True, 'what waits goes on once the limits are taken away')
        counts = control.call('stats')['disks'][0]
        t.see(counts['reads'] >= 2006 and counts['read_bytes'] >= 2006 * 4096 and counts['id'] == 'disk0',
              'the disk\'s counters go on', counts)
        guest.off()


def test_saved(t):
    """A machine saved after hot-plugging has its devices again, where they were."""
    first, gone, hot = (image(t, name, content=data(MIB, i)) for i, name in enumerate(['first', 'gone', 'hot']))
    guest, control = boot(t, '--disk', gone + ',format=raw', '--disk', first + ',format=raw', '--net', 'none', '--vsock',
                          t.path('vsock'), '--jail', 'off')  # the restored one's jail knows what was plugged
    saved = t.path('saved.fonda')
    with guest:
        with control:
            control.job('disk_detach', id='disk0')
            control.call('nic_attach', nic='user,mac=02:00:00:00:00:77', id='lan')
            control.call('disk_attach', disk=hot + ',format=raw,serial=HOT', id='hot')
            wait_for(guest, '[ -b /dev/vda ] && [ -e /sys/class/net/eth0 ] && [ -b /dev/vdb ]')
            places = {device['id']: device['slot'] for device in control.call('devices')['devices']}
            guest.ok('up eth0; exec 7</dev/vda')
            control.job('save', file=saved)
        t.same(guest.wait(), OFF, 'saved')
    os.unlink(gone)  # a restored machine does not look for it
    path = t.path('restored.sock')
    with Session([t.fonda, 'run', '--restore', saved, '--control', path, '--no-reboot']) as session, Control(path) as control:
        t.same({d['id']: d['slot'] for d in control.call('devices')['devices']}, places, 'restored: each in its slot')
        session.send('\n')
        session.expect(PROMPT)
        session.command('true')
        text, status = session.command('head -c 1048576 <&7 | sha256sum; cat /sys/class/net/eth0/address')
        t.same((text.split()[0], text.split()[-1]), (sha(data(MIB, 2)), '02:00:00:00:00:77'), 'restored: they work')
        control.job('disk_detach', id='hot', timeout_s=int(PATIENCE_S))
        control.job('nic_detach', id='lan', timeout_s=int(PATIENCE_S))
        t.same(session.command('[ ! -e /dev/vda ] && [ ! -e /sys/class/net/eth0 ]')[1], 0, 'restored: they can go')
        t.same(ids(control), ['disk1'], 'restored: and are gone')
        control.call('quit')
        session.wait()


def test_snapshots(t):
    """A snapshot is gone back to with the disks that were there then."""
    disks = [t.path(name) for name in ('root.qcow2', 'hot.qcow2')]
    for disk in disks:
        t.run([t.fonda, 'image', 'create', '--size', '16M', disk], patience=60)
    guest, control = boot(t, '--disk', disks[0], '--net', 'none')
    with guest:
        with control:
            control.call('disk_attach', disk=disks[1], id='hot')
            wait_for(guest, '[ -b /dev/vdb ]')
            guest.ok('dd if=/dev/zero of=/dev/vdb bs=1M count=1 2>/dev/null; echo then >/tmp/when; echo then | dd of=/dev/vdb '
                     'conv=fsync 2>/dev/null')
            control.job('snapshot_save', name='s')
            guest.ok('echo now >/tmp/when; echo now! | dd of=/dev/vdb conv=fsync 2>/dev/null')
            control.job('disk_detach', id='hot')
            refused(t, lambda: control.call('snapshot_load', name='s'), 'busy', 'not without the disk that was there')
            control.call('disk_attach', disk=disks[1], id='hot')
            control.call('snapshot_load', name='s')
            while control.file.readline():  # until the process of before has ended
                pass
        with Control(t.path(SOCKET)) as control:
            t.same(ids(control), ['disk0', 'hot'], 'with it, it is gone back to')
            guest.send('\n')
            guest.expect(PROMPT)
            text, _ = guest.command('echo 3 >/proc/sys/vm/drop_caches; head -c 4 /tmp/when; head -c 4 /dev/vdb; echo')
            t.see(text.count('then') == 2, 'the guest, and what the disk holds', text)
            control.call('quit')
        guest.wait()


def raw_stream(t, path, channel):
    conn = socket.socket(socket.AF_UNIX)
    conn.settimeout(PATIENCE_S)
    conn.connect(path)
    conn.sendall(json.dumps({'id': 1, 'method': 'attach', 'params': {'channel': channel}}).encode() + b'\n')
    line = b''
    while not line.endswith(b'\n'):
        part = conn.recv(1)
        check(part, 'the connection ended')
        line += part
    return conn, json.loads(line)


def test_channels(t):
    """Clients of the control socket on ports of the virtio console."""
    agent = t.path('agent')
    guest, control = boot(t, '--net', 'none', '--console', 'control', '--port', 'one=control', '--port', 'two=unix:' + agent)
    path = t.path(SOCKET)
    with guest, control:
        guest.ok('one=/dev/$(cd /sys/class/virtio-ports; grep -lx one */name | cut -d/ -f1); two=/dev/$(cd '
                 '/sys/class/virtio-ports; grep -lx two */name | cut -d/ -f1); test -c $one && test -c $two')
        conn, reply = raw_stream(t, path, 'one')
        t.same(reply.get('result'), {'channel': 'one'}, 'a named port is attached to')
        guest.ok('(exec 5<>$one; read line <&5; echo "got $line" >&5; cat <&5 >/dev/null; echo >/tmp/hungup) & true')
        conn.sendall(b'hello\n')
        got = b''
        while b'\n' not in got:
            got += conn.recv(100)
        t.same(got, b'got hello\n', 'bytes both ways')
        conn.close()
        wait_for(guest, '[ -e /tmp/hungup ]')
        t.see(True, 'the guest sees the client go')
        conn, reply = raw_stream(t, path, 'two')
        with conn, socket.socket(socket.AF_UNIX) as program:
            program.settimeout(PATIENCE_S)
            program.connect(agent)
            guest.ok('(exec 5<>$two; read line <&5; echo "for you" >&5) & true')
            conn.sendall(b'x\n')
            t.same(conn.recv(8), b'for you\n', 'a port of a socket, attached to')
            conn.close()
            guest.ok('echo "for the program" >$two')
            t.same(program.recv(100), b'for the program\n', 'then the program that waited has it')
            refused_conn, reply = raw_stream(t, path, 'two')
            t.same(reply['error']['code'], 'busy', 'not both at a time')
            refused_conn.close()
        conn, reply = raw_stream(t, path, 'console')
        guest.ok('(setsid sh -c "exec sh </dev/hvc0 >/dev/hvc0 2>&1" &)')
        conn.sendall(b'echo $((6*7))\n')
        got = b''
        while b'\n42\r\n' not in got and b'42\r\n' not in got:
            got += conn.recv(1000)
        t.see(b'42' in got, 'the console', got)
        conn.close()
        conn, reply = raw_stream(t, path, 'three')
        t.same((reply['error']['code'], reply['error']['hint']), ('not_found', 'there is: serial, console, one, two'),
               'a channel that there is not')
        conn.close()
        guest.off()


def test_command(t):
    """`fonda vm disk` and `fonda vm nic`."""
    other = image(t, 'other', content=data(MIB, 2))
    os.environ['XDG_RUNTIME_DIR'] = t.path('run')
    os.makedirs(t.path('run'), mode=0o700, exist_ok=True)
    name = 'hotplug-%d' % os.getpid()
    argv = t.guest_argv('--no-reboot', '--name', name, '--net', 'user', '--balloon')

    def fonda(*words):
        status, text, errors = t.run([t.fonda, 'vm', *words], patience=60)
        return status, text.strip(), errors.strip()

    with Guest([argv[0], *argv[1:]]) as guest:
        t.same(fonda('disk', 'attach', name, other + ',format=raw', 'data'), (0, 'data', ''), 'disk attach')
        wait_for(guest, '[ -b /dev/vda ]')
        status, text, _ = fonda('disk', 'list', name)
        t.see(status == 0 and 'data' in text and other in text, 'disk list', text)
        t.same(fonda('disk', 'throttle', name, 'data', 'iops=100,bps=1M')[0], 0, 'disk throttle')
        t.same(fonda('disk', 'throttle', name, 'data', 'none')[0], 0, 'disk throttle none')
        status, _, errors = fonda('disk', 'throttle', name, 'data', 'iops=0')
        t.see(status == 2 and len(errors.split('\n')) == 1 and 'iops' in errors, 'a wrong limit', errors)
        t.same(fonda('disk', 'detach', name, 'data'), (0, '', ''), 'disk detach')
        t.same(fonda('nic', 'attach', name, 'user'), (0, 'nic1', ''), 'nic attach')
        t.same(fonda('nic', 'link', name, 'nic1', 'down')[0], 0, 'nic link')
        t.same(fonda('nic', 'detach', name, 'nic1')[0], 0, 'nic detach')
        t.same(fonda('balloon', name, '64M')[0], 0, 'balloon')
        for words, word in ((('disk', 'attach', name, '/nowhere/x'), '/nowhere/x'), (('disk', 'detach', name, 'data'), 'data'),
                            (('nic', 'link', name, 'nic7', 'up'), 'nic7'), (('disk', 'list', 'nobody'), 'nobody')):
            status, _, errors = fonda(*words)
            t.see(status in (1, 2) and len(errors.split('\n')) == 1 and word in errors, 'wrong: ' + ' '.join(words[:2]), errors)
        guest.off()
