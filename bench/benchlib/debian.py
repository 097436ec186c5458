"""An installed Debian under Fonda and QEMU's TCG: the image, the two machines, their consoles. Used by debian and kernel."""
import os
import re
import shutil
import subprocess
import time

from harness import Session

LIMIT_S = 900
ADMIN_PATH = os.environ['PATH'] + ':/usr/sbin:/sbin'


def prepare_image(args, folder, packages=(), size='4G'):
    """The image, and for QEMU the kernel and initrd that lie on it, with the same command line."""
    image = args.image or os.path.join(folder, 'debian.qcow2')
    fonda = os.path.join(args.build, 'fonda')
    if not os.path.exists(image):
        subprocess.run([fonda, 'image', 'build', 'debian:bookworm', '--size', size, '--password', args.password,
                        *[word for package in packages for word in ('--package', package)], image], check=True)
    raw = os.path.join(folder, 'debian.raw')
    subprocess.run(['qemu-img', 'convert', '-O', 'raw', image, raw], check=True)
    env = {**os.environ, 'PATH': ADMIN_PATH}
    listing = subprocess.run(['debugfs', '-R', 'ls -p /boot', raw], capture_output=True, text=True, env=env, check=True).stdout
    version = re.search(r'/vmlinuz-([^/]+)/', listing).group(1)
    for name in ('vmlinuz', 'initrd.img'):
        subprocess.run(['debugfs', '-R', 'dump /boot/%s-%s %s' % (name, version, os.path.join(folder, name)), raw],
                       capture_output=True, env=env, check=True)
    uuid = subprocess.run(['blkid', '-o', 'value', '-s', 'UUID', raw], capture_output=True, text=True, env=env,
                          check=True).stdout.strip()
    os.unlink(raw)
    return image, 'root=UUID=%s ro console=ttyS0 panic=-1' % uuid


def start(column, args, image, append, folder, cpus=1, disks=()):
    """A machine; disks are further raw images, which are only read."""
    if column == 'fonda':
        return Session([os.path.join(args.build, 'fonda'), 'run', image, '--ephemeral', '--memory', '%dM' % args.memory, '--cpus', str(cpus),
                        *[word for disk in disks for word in ('--disk', disk + ',format=raw,readonly')]])
    return Session([shutil.which('qemu-system-x86_64'), '-accel', 'tcg', '-cpu', 'max', '-m', str(args.memory), '-smp', str(cpus), '-object',
                    'memory-backend-memfd,id=ram,size=%dM' % args.memory, '-machine', 'pc,memory-backend=ram', '-nographic',
                    '-nodefaults', '-serial', 'stdio', '-kernel', os.path.join(folder, 'vmlinuz'), '-initrd',
                    os.path.join(folder, 'initrd.img'), '-append', append, '-drive', 'file=%s,if=virtio,snapshot=on' % image,
                    '-netdev', 'user,id=n', '-device', 'virtio-net-pci,netdev=n', '-device', 'virtio-rng-pci', '-no-reboot',
                    *[word for disk in disks for word in ('-drive', 'file=%s,if=virtio,format=raw,readonly=on' % disk)]])


def log_in(session, args):
    for wait, text in (('login: ', 'root'), ('Password: ', args.password)):
        session.expect(wait, LIMIT_S)
        session.send(text + '\n')
    session.expect('root@.*# ', LIMIT_S)
    session.send('dmesg -n 1; systemctl stop apt-daily.timer apt-daily-upgrade.timer; stty -echo; PS1=\n')
    time.sleep(1)
    command(session, 'systemctl is-system-running --wait; until ip route | grep -q default; do sleep 0.2; done')


def command(session, line, patience=LIMIT_S):
    session.send(line + '; echo "=status" $?\n')
    match = session.expect(r'^((?:.*\n)*?)=status (\d+)$', patience)
    return match.group(1), int(match.group(2))
