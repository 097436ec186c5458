"""Wrong disks, sizes, MAC addresses, ports, permissions: each has its line, ends with status 2, and nothing runs."""
import os
import re
import socket
import subprocess

from guest import Skip, check
from harness import USAGE

SEE = " (see 'fonda run --help')"

# Options, and the message behind "fonda: error: ". {port}: a TCP port of 127.0.0.1 that is taken.
CASES = [
    (['--disk', 'none'], "--disk: cannot open image 'none': No such file or directory"),
    (['--disk', 'dir'], "--disk: cannot open image 'dir': Is a directory"),
    (['--disk', ''], "--disk: '' names no file" + SEE),
    (['--disk', 'empty'], "--disk: disk 'empty' is smaller than one sector"),
    (['--disk', 'short'], "--disk: image 'short' is damaged: the header's length is impossible"),
    (['--disk', 'orphan'], "--disk: image 'orphan', backing chain: cannot open image 'gone': No such file or directory"),
    (['--disk', 'raw,format=qcow2'], "--disk: image 'raw' is not in qcow2 format"),
    (['--disk', 'raw,format=vmdk'], "--disk: image 'raw': unknown format 'vmdk' (there are raw and qcow2)"),
    (['--disk', 'raw,size=1G'], "--disk: 'size=1G' is not known: there is format=, serial=, readonly, cache=, direct, "
     "on-error=, iops=, iops-burst=, bps=, bps-burst=" + SEE),
    (['--disk', 'raw,serial=' + 21 * 'x'], "--disk: serial='" + 21 * 'x' + "' has to have 1 to 20 characters" + SEE),
    (['--disk', 'raw', '--disk', 'raw'], "--disk: image 'raw' is in use: another program has it open for writing"),
    (['--net', 'token-ring'], "--net: 'token-ring' is not user, tap=NAME, wire=PATH or none" + SEE),
    (['--net', 'user,mac=12:34'], "--net: '12:34' is not a MAC address such as 02:f0:da:12:34:56" + SEE),
    (['--net', 'user,mac=01:00:00:00:00:01'],
     "--net: '01:00:00:00:00:01' is a group address: the first byte of a NIC's is even" + SEE),
    (['--net', 'user,mac=00:00:00:00:00:00'], "--net: '00:00:00:00:00:00' is nobody's address" + SEE),
    (['--net', 'user,mac=02:f0:da:00:00:01', '--net', 'user,mac=02:F0:DA:00:00:01'],
     "--net: 'user,mac=02:F0:DA:00:00:01' has the MAC address of another one" + SEE),
    (['--net', 'user,mtu=67'], "--net: mtu='67' is not between 68 and 65535" + SEE),
    (['--net', 'user,queues=17'], "--net: queues='17' is not between 1 and 16" + SEE),
    (['--net', 'tap=a-name-that-is-too-long'], "--net: 'a-name-that-is-too-long' is not a name of a network interface"),
    (['--net', 'wire=no/such/place'], "--net: cannot make wire 'no/such/place': No such file or directory"),
    (['--net', 'wire=stream'], "--net: 'stream' is another program's socket, not a wire"),
    (['--publish', '{port}:22'],
     '--publish: cannot listen on TCP port {port} of 127.0.0.1: Address already in use; choose another one'),
    (['--publish', '192.0.2.1:2222:22'], '--publish: cannot listen on TCP port 2222 of 192.0.2.1: Cannot assign requested '
     "address, which is not this host's"),
    (['--publish', '2222'], "--publish: '2222' is not [ADDRESS:]HOST-PORT:GUEST-PORT[/udp], with ports from 1 to 65535"),
    (['--publish', '70000:22'],
     "--publish: '70000:22' is not [ADDRESS:]HOST-PORT:GUEST-PORT[/udp], with ports from 1 to 65535"),
    (['--publish', 'host:2222:22'], "--publish: 'host' is not an IPv4 address of this host"),
    (['--net', 'none', '--publish', '2222:22'], '--publish needs a NIC of --net user'),
    (['--share', 'none:data'], "--share: cannot share directory 'none': No such file or directory"),
    (['--share', 'raw:data'], "--share: cannot share directory 'raw': Not a directory"),
    (['--share', 'dir'], "--share: 'dir' is not DIRECTORY:TAG[:ro], with a tag of up to 36 characters" + SEE),
    (['--share', 'dir:data', '--share', 'dir:data:ro'], "--share: the tag 'data' is given twice" + SEE),
    (['--vsock', 'no/such/place'], "--vsock: cannot listen on 'no/such/place': No such file or directory"),
    (['--vsock', 'stream'], "--vsock: 'stream' is in use by another machine or program"),
    (['--rng', 'maybe'], "--rng: 'maybe' is not on or off" + SEE),
    (['--console', 'unix:'], "--console: 'unix:' is not stdio, control, a file, or unix:PATH" + SEE),
    (['--console', 'unix:no/such/place'], "--console: cannot listen on 'no/such/place': No such file or directory"),
    (['--console', 'unix:stream'], "--console: 'stream' is in use by another machine or program"),
    (['--port', 'agent'], "--port: 'agent' is not NAME=unix:PATH or NAME=control, with a name of up to 63 letters, digits, '.', '_' and '-'" + SEE),
    (['--port', 'a/b=unix:x'], "--port: 'a/b=unix:x' is not NAME=unix:PATH or NAME=control, with a name of up to 63 letters, digits, '.', '_' "
     "and '-'" + SEE),
    (['--port', 'a=unix:x', '--port', 'a=unix:y'], "--port: the name 'a' is given twice" + SEE),
    (['--balloon-size', '1G'], "--balloon-size: the balloon is as large as the guest's memory" + SEE),
    (['--virtio-without', 'net:wings'], re.compile(r"--virtio-without: 'net' has no feature 'wings': there is indirect_desc")),
    (['--virtio-without', 'gpu:x'], re.compile(r"--virtio-without: 'gpu:x' is not KIND\[INDEX\]:FEATURE")),
    (sum([['--disk', 'd%d' % i, '--net', 'user'] for i in range(16)], []),
     re.compile(r"--net: no slot for 'virtio-net': a machine has room for 31 PCI devices|--net: .*room for 31")),
]

# The same as an ordinary user.
DENIED = [
    (['--disk', 'locked'], "--disk: cannot open image 'locked': Permission denied"),
    (['--disk', 'readable'], "--disk: cannot open image 'readable': Permission denied"),
    (['--share', 'closed:data'], "--share: cannot share directory 'closed': Permission denied"),
    (['--publish', '22:22'], '--publish: cannot listen on TCP port 22 of 127.0.0.1: Permission denied; without privilege it is '
     'to be 1024 or above'),
]


def make_files(t):
    t.path('raw', bytes(1 << 20))
    t.path('empty', b'')
    os.mkdir(t.path('dir'))
    for i in range(16):
        t.path('d%d' % i, bytes(1 << 20))
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-b', 'gone', '-F', 'raw', t.path('orphan'), '4M'],
                   check=True)
    with open(t.path('orphan'), 'rb') as f:
        t.path('short', f.read(100))


def run_case(t, options, message, **more):
    argv = t.argv(os.path.join(t.guest, 'vmlinuz'), '--memory', '512M', '--serial', 'none', '--timeout', '60', *options)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, cwd=t.work, **more)
    errors = done.stderr.decode()
    head = 'fonda: error: '
    good = errors.startswith(head) and errors.count('\n') == 1 and done.returncode == USAGE and not done.stdout
    said = errors[len(head):].rstrip('\n')
    good = good and (message.match(said) if isinstance(message, re.Pattern) else said == message)
    t.see(good, ' '.join(options)[:60], 'status %d, said:   %swanted status 2 and: %s' % (done.returncode, errors[:2000], message))


def test_table(t):
    check(len(CASES) >= 24, 'the table has lost cases')
    make_files(t)
    with socket.socket() as taken, socket.socket(socket.AF_UNIX) as stream:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        stream.bind(t.path('stream'))
        stream.listen(1)
        port = str(taken.getsockname()[1])
        for options, message in CASES:
            if isinstance(message, str):
                message = message.replace('{port}', port)
            run_case(t, [option.replace('{port}', port) for option in options], message)


def test_denied(t):
    """What only permissions forbid; root drops its own."""
    more = {'user': 65534, 'group': 65534, 'extra_groups': []} if os.getuid() == 0 else {}
    os.chmod(t.work, 0o755)
    try:
        subprocess.run([t.fonda, '--version'], stdout=subprocess.DEVNULL, check=True, **more)
        with open('/proc/sys/net/ipv4/ip_unprivileged_port_start', encoding='ascii') as f:
            low_ports_are_free = int(f.read()) <= 22
    except OSError as e:
        raise Skip('an ordinary user cannot run this build here: %s' % e) from e
    t.path('locked', bytes(1 << 20))
    t.path('readable', bytes(1 << 20))
    os.mkdir(t.path('closed'))
    os.chmod(t.path('locked'), 0)
    os.chmod(t.path('readable'), 0o444)
    os.chmod(t.path('closed'), 0)
    for options, message in DENIED:
        if options[0] == '--publish' and low_ports_are_free:
            t.skip(' '.join(options), 'this host gives low ports to everybody')
        else:
            run_case(t, options, message, **more)
    os.chmod(t.path('closed'), 0o755)
