"""`fonda run --container --system`: Debian with systemd as its first process, to its login prompt, and down again.

The root file system is made once per build directory by mmdebstrap, which needs an archive that can be reached."""
import fcntl
import os
import shutil
import subprocess

INCLUDE = 'systemd-sysv,dbus,login,procps'
BUILD_S = 420
BOOT_S = 90


def rootfs(build):
    """(tar, None), or (None, why there is none)."""
    folder = os.path.join(build, 'guest')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'system-rootfs.tar')
    with open(path + '.lock', 'w', encoding='ascii') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return path, None
        if not shutil.which('mmdebstrap'):
            return None, 'there is no mmdebstrap'
        temporary = path[:-4] + '.new.tar'
        done = subprocess.run(['mmdebstrap', '--quiet', '--variant=essential', '--include=' + INCLUDE,
                               '--dpkgopt=force-unsafe-io', 'bookworm', temporary], capture_output=True, text=True,
                              timeout=BUILD_S, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            return None, 'mmdebstrap: ' + (done.stderr.strip().split('\n') or [''])[-1]
        os.rename(temporary, path)
        return path, None


def part(room, check, skip):
    tar, why = rootfs(room.source)
    if not tar:
        skip('a system container', why)
        return
    done = room.fonda('image', 'import', '--image-store', room.store, tar, 'debian-rootfs', timeout=120)
    if not check('the root file system becomes an image', done.returncode == 0, done.stderr):
        return
    done = room.run('--system', '-d', '--name', 'deb', '--memory', '300m', '--cpus', '1', 'debian-rootfs')
    if not check('a system container starts', done.returncode == 0, done.stderr):
        return
    booted = room.until(lambda: 'login:' in room.fonda('logs', 'deb').stdout, BOOT_S)
    check('Debian boots to its login prompt', booted, room.fonda('logs', 'deb').stdout[-600:])

    def inside(text):
        done = room.fonda('exec', 'deb', 'sh', '-c', text)
        return done.stdout.strip() if done.returncode == 0 else (done.returncode, done.stdout, done.stderr)

    inside('systemctl is-system-running --wait')
    state = inside('systemctl is-system-running || systemctl --failed --no-pager --plain')
    check('systemd says that it runs', state == 'running', state)
    total = inside("free -m | sed -n 's/^Mem: *\\([0-9]*\\).*/\\1/p'")
    check('free shows the limit', total == '300', total)
    used = inside('dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; free -m | sed -n "s/^Mem: *[0-9]* *[0-9]* *[0-9]* *//p"')
    grown = room.until(lambda: int((inside("sed -n 's/^Shmem: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo") or '0')) >= 60 << 10, 10)
    check('and follows what is used', grown, used)
    cpus = inside('nproc; grep -c ^processor /proc/cpuinfo')
    check('nproc and /proc/cpuinfo show the limit', cpus == '1\n1', cpus)
    uptime = inside('cat /proc/uptime')
    check('the clock since boot is its own', isinstance(uptime, str) and float(uptime.split()[0]) < BOOT_S + 60, uptime)
    ids = inside('id -u; cut -c1-22 /proc/self/uid_map')
    check('its root is nobody outside', isinstance(ids, str) and ids.split()[0] == '0' and ids.split()[2] != '0', ids)
    text = inside('echo 1 > /proc/sys/kernel/panic; mknod /dev/sda b 8 0; echo b > /proc/sysrq-trigger; true')
    check('and can neither tune the kernel nor make devices',
          inside('cat /proc/sys/kernel/panic') == open('/proc/sys/kernel/panic', encoding='ascii').read().strip() and
          isinstance(inside('test -b /dev/sda'), tuple), text)
    unit = inside('systemd-run --wait --quiet -p MemoryMax=50M sh -c "cat /proc/self/cgroup"; systemctl show -p Result --value systemd-journald')
    check('it starts units in cgroups of their own', unit == 'success', unit)
    check('files keep their owners in the layer', inside('touch /root/mine && stat -c %u /root/mine') == '0')
    done = room.fonda('stop', 'deb', timeout=90)
    check('it halts when it is stopped', done.returncode == 0 and room.show('deb')['state'] == 'stopped', done.stderr)
    check('by itself, not by force', room.show('deb').get('exit_status') != 137, room.show('deb'))
    done = room.fonda('start', 'deb')
    again = room.until(lambda: inside('test -f /root/mine && systemctl is-system-running') in ('running', 'starting'), BOOT_S)
    check('and starts again with its files', done.returncode == 0 and again, done.stderr)
    done = room.fonda('rm', '--force', 'deb')
    check('it can be deleted while it runs', done.returncode == 0, done.stderr)


def cgroup2():
    """Where it is mounted, or None."""
    with open('/proc/mounts', encoding='utf-8') as f:
        return next((line.split()[1] for line in f if line.split()[2] == 'cgroup2'), None)


def part_of_user(room, check, skip):
    """The same as a plain user, to whom a cgroup is delegated: room's commands, and so its daemon, are put there."""
    tar, why = rootfs(room.source)
    mount = cgroup2()
    if not tar or not mount:
        skip('a system container as a plain user', why or 'there is no cgroup2')
        return
    top = os.path.join(mount, 'fonda-delegated-%d' % os.getpid())
    own = os.path.join(top, 'daemon')
    os.makedirs(own)
    try:
        for folder in (top, own):
            for name in ('', 'cgroup.procs', 'cgroup.subtree_control'):
                shutil.chown(os.path.join(folder, name), room.user)
        room.prefix = ['sh', '-c', 'echo $$ > %s/cgroup.procs && exec "$@"' % own, 'sh', *room.prefix]
        copy = os.path.join(room.dir, 'rootfs.tar')
        shutil.copy(tar, copy)
        room.fonda('image', 'import', '--image-store', room.store, copy, 'debian-rootfs', timeout=120)
        done = room.fonda('run', '--container', '--system', '-d', '--network', 'none', '--name', 'deb', 'debian-rootfs')
        check('a system container starts as a plain user', done.returncode == 0, done.stderr)
        booted = room.until(lambda: 'login:' in room.fonda('logs', 'deb').stdout, BOOT_S)
        check('it boots to its login prompt', booted, room.fonda('logs', 'deb').stdout[-600:])
        state = room.until(lambda: room.fonda('exec', 'deb', 'systemctl', 'is-system-running').stdout.strip() == 'running', BOOT_S)
        check('and systemd says that it runs', state)
        done = room.fonda('stop', 'deb', timeout=90)
        check('it halts', done.returncode == 0, done.stderr)
        done = room.fonda('rm', 'deb')
        check('its cgroup is gone', os.listdir(top).count('daemon') == 1 and not
              [name for name in os.listdir(top) if os.path.isdir(os.path.join(top, name)) and name != 'daemon'], os.listdir(top))
    finally:
        room.close()
        room.until(lambda: not open(own + '/cgroup.procs', encoding='ascii').read().strip(), 5)
        for folder in (own, top):
            try:
                os.rmdir(folder)
            except OSError as e:
                check('the delegated cgroup is empty', False, e)
