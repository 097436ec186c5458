"""A Debian on its own disk: built from the archive, booted without a kernel given, used as people use it."""
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from harness import ENGINE, KILLED, OFF, PANIC, ROOT, Session, Skip, check, check_equal, hardware_virtualization

PASSWORD = 'inn-keeper'
PACKAGES = 'cloud-init'
BUILD_S = 900
SEE = " (see 'fonda run --help')"


def image_command(m, *args, patience=120, env=None):
    done = subprocess.run([m.fonda, 'image', *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience, cwd=m.work, env=env)
    return done.returncode, done.stdout, done.stderr


def key_of_image():
    digest = hashlib.sha256((PASSWORD + PACKAGES).encode())
    for name in sorted(os.listdir(os.path.join(ROOT, 'image'))):
        if name.startswith('debian') and name.endswith('.c'):
            with open(os.path.join(ROOT, 'image', name), 'rb') as f:
                digest.update(f.read())
    return digest.hexdigest()[:16]


def debian(m):
    """The image and the SSH key that opens it; built when no build of these sources is at hand."""
    folder = os.path.join(m.guest, 'debian-' + key_of_image())
    image, key = os.path.join(folder, 'debian.qcow2'), os.path.join(folder, 'key')
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'lock'), 'w', encoding='ascii') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(image):
            return image, key
        for tool in ('mmdebstrap', 'ssh-keygen', 'ssh'):
            if not shutil.which(tool):
                raise Skip('no ' + tool)
        for old in (key, key + '.pub'):
            if os.path.exists(old):
                os.unlink(old)
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', key], check=True)
        status, text, errors = image_command(m, 'build', 'debian:bookworm', '--size', '4G', '--ssh-key', key + '.pub',
                                             '--password', PASSWORD, '--package', PACKAGES, '--hostname', 'inn', image,
                                             patience=BUILD_S)
        if status != 0 and re.search("can't be reached|has no source for|user namespaces", errors):
            raise Skip('no archive: ' + errors.strip().split('\n')[-1])
        check_equal(status, 0, 'status of the build; messages: ' + errors)
        for line in ('downloading packages', 'writing the disk'):
            check(line in errors, 'no %r in: %s' % (line, errors))
        check("fonda run" in text and PASSWORD not in text, text)
        return image, key


def boot(m, image, *options):
    if ENGINE == 'kvm' and not hardware_virtualization():
        raise Skip('KVM without hardware support is too slow for Linux')
    return Session([m.fonda, 'run', image, '--engine', ENGINE, '--memory', '1G', *options])


def log_in(session, user='root', password=PASSWORD):
    session.expect(r'login: ')
    session.send(user + '\n')
    session.expect('Password: ')
    session.send(password + '\n')
    session.expect(r'%s@\S+:~[#$] ' % user)  # other programs may write behind it
    # Kernel and cloud-init write to the console too; their lines must not get between output and status.
    session.send('dmesg -n 1 2>/dev/null; stty -echo; PS1=\n')
    time.sleep(1)
    session.command('true')


def command(session, line, patience=None):
    session.send(line + '; echo "=status" $?\n')
    match = session.expect(r'^((?:.*\n)*?)=status (\d+)$', patience)
    return match.group(1), int(match.group(2))


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def ssh(port, key, line):
    done = subprocess.run(['ssh', '-i', key, '-p', str(port), '-o', 'StrictHostKeyChecking=no', '-o', 'BatchMode=yes',
                           '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', '-o', 'ConnectTimeout=120',
                           'root@127.0.0.1', line], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def check_clock(session, when):
    """chrony follows the host's clock as ptp_kvm shows it: within 50 ms, less what the serial line's exchanges can't tell."""
    output, status = command(session, 'chronyc -n waitsync 240 0.02 0 1 >/dev/null; chronyc -n sources | grep -c "^#. PHC0"')
    check_equal((output.strip(), status), ('1', 0), 'chrony has the host\'s clock as its source, ' + when)
    low, high = -1e18, 1e18
    for _ in range(10):
        before = time.time()
        now = float(command(session, 'date +%s.%N')[0])
        low, high = max(low, now - time.time()), min(high, now - before)
    check(low <= 0.05 and high >= -0.05, '%s the clock is %.3f to %.3f s off' % (when, low, high))


def test_build_mistakes(m):
    """Each mistake is told in one line, with status 2 where nothing ran, and leaves nothing behind."""
    private, there = m.path('id', b'-----BEGIN OPENSSH PRIVATE KEY-----\n'), m.path('there', b'x')
    nothing = m.path('nothing', b'')
    before = sorted(os.listdir(m.work))
    target = os.path.join(m.work, 'out.qcow2')
    bookworm = 'debian:bookworm'
    table = [
        (['fedora:40', target], 2, "'fedora:40' can't be built: there is debian:SUITE"),
        (['debian:../x', target], 2, "'../x' is not a suite"),
        ([bookworm], 2, 'too few arguments'),
        ([bookworm, '--size', '10M', target], 2, "--size: '10M' is not between 1 GiB"),
        ([bookworm, '--format', 'vdi', target], 2, "--format: 'vdi' is not raw or qcow2"),
        ([bookworm, there], 2, "exists: --force overwrites it"),
        ([bookworm, '--package', 'a;b', target], 2, "--package: 'a;b' is not a package's name"),
        ([bookworm, '--hostname', 'a_b', target], 2, "--hostname: 'a_b' is not a name"),
        ([bookworm, '--mirror', 'archive', target], 2, "--mirror: 'archive' is not a URL"),
        ([bookworm, '--apt-proxy', 'x y', target], 2, "--apt-proxy: 'x y' is not a URL"),
        ([bookworm, '--ssh-key', private, target], 2, "is a private key: give the public one"),
        ([bookworm, '--ssh-key', nothing, target], 2, 'holds no public key'),
        ([bookworm, '--ssh-key', '/nowhere', target], 2, "cannot open '/nowhere'"),
        ([bookworm, '/nowhere/out.qcow2'], 1, "cannot make a file beside '/nowhere/out.qcow2'"),
    ]
    if shutil.which('mmdebstrap'):
        table.append(([bookworm, '--mirror', 'http://127.0.0.1:9/debian', target], 1, "the archive can't be reached"))
    for args, wanted, message in table:
        status, _, errors = image_command(m, 'build', *args)
        check_equal(status, wanted, 'status of %r; messages: %s' % (args, errors))
        check(message in errors.strip().split('\n')[-1], '%r: no %r in: %s' % (args, message, errors))
    folder = os.path.join(m.work, 'bin')
    os.mkdir(folder)
    os.symlink(shutil.which('mke2fs', path='/usr/sbin:/sbin'), os.path.join(folder, 'mke2fs'))
    for name in ('apt-get', 'apt-config'):
        os.symlink(shutil.which(name), os.path.join(folder, name))
    status, _, errors = image_command(m, 'build', bookworm, '--mirror', 'http://127.0.0.1:9/x', target,
                                      env={'PATH': folder + ':/usr/local/sbin:/usr/sbin:/sbin'})
    check_equal((status, errors.strip().split(': ', 2)[-1]), (1, 'mmdebstrap is missing: apt-get install mmdebstrap'),
                'without mmdebstrap')
    shutil.rmtree(folder)
    check_equal(sorted(os.listdir(m.work)), before, 'what is left behind')


def test_disks_without_a_kernel(m):
    empty, filled = m.path('empty.raw', bytes(1 << 20)), m.path('filled.raw', bytes(4 << 20))
    subprocess.run(['mke2fs', '-q', '-t', 'ext4', filled], check=True, env={'PATH': '/usr/sbin:/sbin:/usr/bin:/bin'})
    for args, wanted in (
            ([empty], "disk '%s': no kernel found to boot: there is no ext4 file system in it" % empty),
            ([filled], "disk '%s': no kernel found to boot: it has no /vmlinuz and no /boot/vmlinuz-*" % filled),
            (['/nowhere.img'], None),
            ([empty, '--initrd', 'x'], '--initrd needs --kernel' + SEE),
            ([empty, 'other'], "unexpected argument 'other': further disks go by --disk" + SEE),
            ([empty, '--meta-data', 'x'], '--meta-data needs --user-data' + SEE)):
        status, text, errors = m.run([m.fonda, 'run', *args])
        check_equal((status, text), (2, ''), 'status and output of %r' % args)
        check(errors.count('\n') == 1 and "fonda: error: " in errors, errors)
        if wanted:
            check_equal(errors, 'fonda: error: %s\n' % wanted, 'message')


def test_debian_image(m):
    """What was built is a sound image with a sound file system, and nothing in it names one machine."""
    image, _ = debian(m)
    raw = os.path.join(m.work, 'disk.raw')
    check_equal(image_command(m, 'check', image)[0], 0, 'fonda image check')
    check_equal(image_command(m, 'convert', '--to', 'raw', image, raw)[0], 0, 'convert')
    env = {'PATH': '/usr/sbin:/sbin:/usr/bin:/bin'}
    done = subprocess.run(['e2fsck', '-fn', raw], capture_output=True, text=True, env=env)
    check_equal(done.returncode, 0, 'e2fsck: ' + done.stdout)
    names = subprocess.run(['debugfs', '-R', 'ls -p /etc/ssh', raw], capture_output=True, text=True, env=env).stdout
    check('sshd_config' in names and 'ssh_host' not in names, names)
    stat = subprocess.run(['debugfs', '-R', 'stat /etc/machine-id', raw], capture_output=True, text=True, env=env).stdout
    check('Size: 0' in stat, stat)
    fstab = subprocess.run(['debugfs', '-R', 'cat /etc/fstab', raw], capture_output=True, text=True, env=env).stdout
    check(re.match(r'UUID=[0-9a-f-]{36} / ext4 ', fstab), fstab)


def test_debian_machine(m):
    """One machine from first boot to power button: login, identity, apt through the NAT, ssh, reboot."""
    image, key = debian(m)
    overlay, port = os.path.join(m.work, 'machine.qcow2'), free_port()
    check_equal(image_command(m, 'create', '--backing', image, '--backing-format', 'qcow2', overlay)[0], 0, 'overlay')
    with boot(m, overlay, '--publish', '%d:22' % port) as s:
        log_in(s)
        output, _ = command(s, 'systemctl is-system-running --wait; hostname; cat /etc/machine-id')
        state, hostname, machine_id = output.split()
        check_equal((state, hostname), ('running', 'inn'), 'state and name')
        check(re.fullmatch('[0-9a-f]{32}', machine_id), machine_id)
        check_clock(s, 'after the boot')
        output, status = command(s, 'apt-get -q update && apt-get -q -y install hello && hello')
        check(status == 0 and 'Hello, world!' in output, output)
        status, output, errors = ssh(port, key, 'id -un; cat /etc/machine-id')
        check_equal((status, output.split()), (0, ['root', machine_id]), 'ssh: ' + errors)
        s.send('reboot\n')
        s.expect('Linux version')
        log_in(s)
        output, _ = command(s, 'cat /etc/machine-id; dpkg-query -W hello')
        check(output.split()[:2] == [machine_id, 'hello'], output)
        os.kill(s.pid, signal.SIGTERM)  # the power button
        check_equal(s.wait(), OFF, 'status')
    check_equal(image_command(m, 'check', overlay)[0], 0, 'the image afterwards')


def test_cloud_init_watchdog_panic(m):
    """A seed is used, nothing is written to the image, and a machine that hangs or panics ends so."""
    image, _ = debian(m)
    before = os.stat(image).st_mtime_ns
    user_data = m.path('user-data', b'#cloud-config\nhostname: seeded\nusers:\n- name: alice\n'
                                    b'  plain_text_passwd: wonder\n  lock_passwd: false\n  shell: /bin/bash\n')
    with boot(m, image, '--ephemeral', '--user-data', user_data) as s:
        s.expect(r'seeded login: ')
        s.send('\n')
        log_in(s)
        output, _ = command(s, 'cloud-init status --wait; hostname; id -un alice; grep -c watchdog /proc/devices')
        check(output.split()[-3:-1] == ['seeded', 'alice'], output)
        # The watchdog bites when nobody feeds it; the machine starts again.
        s.send('wdctl -s 5 /dev/watchdog0; exec 3>/dev/watchdog; echo >&3\n')
        s.expect("the guest's watchdog ran out", 600)
        s.expect('Linux version')
        log_in(s)
        s.send('echo c > /proc/sysrq-trigger\n')
        check_equal(s.wait(), PANIC, 'status')
    check_equal(os.stat(image).st_mtime_ns, before, "the image's time")


def test_power_button_unheard(m):
    """Without a guest that listens, SIGTERM ends the machine at once, and Ctrl-A P says so."""
    from harness import HANG, say
    with m.session(m.bare('hang', say('up\n') + HANG)) as s:
        s.expect('up')
        s.send('\x01p')
        s.expect('the guest does not listen to its power button')
        os.kill(s.pid, signal.SIGTERM)
        check_equal(s.wait(60), KILLED, 'status')
