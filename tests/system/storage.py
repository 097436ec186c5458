"""Virtual disks from Debian's kernel: fio with verification on qcow2, limits, locks, and a host without room."""
import contextlib
import os
import resource
import subprocess
import time

from harness import OFF, USAGE, Skip, check, check_equal, inside

PROMPT = r'root@fonda:~# '
MIB = 1 << 20


def image(m, *args):
    done = subprocess.run([m.fonda, 'image', *args], capture_output=True, text=True, timeout=120)
    check_equal(done.returncode, 0, 'fonda image %s: %s' % (' '.join(args), done.stderr))
    return done.stdout


@contextlib.contextmanager
def guest(m, *disks):
    """A guest with fio and the drivers loaded, at its shell."""
    initramfs = os.path.join(m.guest, 'storage.initramfs')
    if not os.path.exists(initramfs):
        raise Skip('no %s: tools/fetch-guest %s storage' % (initramfs, m.guest))
    options = [word for disk in disks for word in ('--disk', disk)]
    with m.session(os.path.join(m.guest, 'vmlinuz'), '--initrd', initramfs, '--memory', '512M', '--no-reboot', '--net',
                   'none', '--append', 'console=ttyS0 panic=-1', *options) as s:
        s.expect(PROMPT)
        output, status = s.command('. /lib/guest-setup >/dev/null 2>&1; ls /dev/vda')
        check(status == 0, 'no disk in the guest: ' + output)
        yield s
        if s.status is None:
            s.send('poweroff -f\n')
            check_equal(s.wait(), OFF, 'status')


def clean(m, path):
    image(m, 'check', path)
    done = subprocess.run(['qemu-img', 'check', '-q', path], capture_output=True, text=True)
    check_equal(done.returncode, 0, 'qemu-img check: ' + done.stdout + done.stderr)


def test_fio_verifies_on_qcow2(m):
    """Random writes of mixed sizes over an overlay, read back and compared; then discards, and QEMU's opinion."""
    base, top = m.path('base.qcow2'), m.path('top.qcow2')
    image(m, 'create', '--size', '96M', base)
    image(m, 'create', '--backing', 'base.qcow2', '--backing-format', 'qcow2', top)
    fio = 'fio --name=v --filename=/dev/vda --direct=1 --ioengine=libaio --randseed=7 --verify_fatal=1 '
    with guest(m, top) as s:
        output, status = s.command(fio + '--rw=randwrite --bsrange=512-64k --blockalign=512 --size=24m --iodepth=16 '
                                   '--verify=crc32c --verify_backlog=64')
        check(status == 0 and 'err= 0' in output, output[-3000:])
        output, status = s.command(fio + '--rw=randtrimwrite --bs=64k --offset=32m --size=32m --iodepth=8 --fsync=16')
        check(status == 0 and 'err= 0' in output, output[-3000:])
        output, status = s.command(fio + '--rw=write --bs=1m --offset=64m --size=32m --iodepth=4 --verify=sha256 --do_verify=1')
        check(status == 0 and 'err= 0' in output, output[-3000:])
        output, status = s.command('mkdir -p /mnt; busybox mke2fs -F /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && '
                                   'cp /bin/busybox /mnt/ && umount /mnt && mount -t ext4 /dev/vda /mnt && cmp /bin/busybox /mnt/busybox')
        check(status == 0, output)
        s.command('umount /mnt; sync')
    clean(m, top)
    check('backing' in image(m, 'info', top), 'no backing image')


def test_limits(m):
    """iops= and bps= hold: so many requests can't take less time. (More they may, on a busy host.)"""
    slow, thin = m.path('slow.raw', bytes(4 * MIB)), m.path('thin.raw', bytes(4 * MIB))
    with guest(m, slow + ',format=raw,iops=50,iops-burst=10,serial=SLOW', thin + ',format=raw,bps=1M,bps-burst=256K') as s:
        check_equal(s.command('cat /sys/block/vda/serial; echo')[0].strip(), 'SLOW', 'serial')
        for disk, command, least in (('vda', 'bs=4k count=160', 2.5), ('vdb', 'bs=64k count=56', 2.5)):
            start = time.monotonic()
            output, status = s.command('dd if=/dev/%s of=/dev/null iflag=direct %s' % (disk, command))
            check_equal(status, 0, output)
            took = time.monotonic() - start
            check(took > least, '%s with %s took %.2f s: the limit does not hold' % (disk, command, took))


def test_one_machine_for_one_image(m):
    """Two machines never write one image, and nobody writes what others read."""
    disk, data = m.path('d.qcow2'), m.path('data.raw', bytes(MIB))
    image(m, 'create', '--size', '16M', disk)
    kernel = os.path.join(m.guest, 'vmlinuz')
    with guest(m, disk, data + ',format=raw,readonly') as s:
        for option, message in ((disk, 'has it open for writing'), (disk + ',readonly', 'has it open for writing'),
                                (data + ',format=raw', 'another program')):
            status, _, err = m.run(m.argv(kernel, '--disk', option))
            check(status == USAGE and message in err, '%s: status %s, %s' % (option, status, err))
        # Readers share.
        with guest(m, data + ',format=raw,readonly') as other:
            output, status = other.command('dd if=/dev/vda of=/dev/null bs=64k')
            check_equal(status, 0, output)
        output, status = s.command('dd if=/dev/zero of=/dev/vda bs=64k count=16 oflag=direct')
        check_equal(status, 0, output)
    clean(m, disk)


@contextlib.contextmanager
def small_folder(m, size):
    """A folder with room for `size` bytes; its size can be changed."""
    folder = m.path('small')
    os.mkdir(folder)
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=%d' % size, 'tmpfs', folder], capture_output=True, text=True)
    if done.returncode:
        raise Skip('cannot mount a small file system: ' + done.stderr.strip())
    try:
        yield folder, lambda bytes_now: subprocess.run(['mount', '-o', 'remount,size=%d' % bytes_now, folder], check=True)
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def vcpu_ticks(pid):
    """Processor time of a machine's vCPUs, in clock ticks. pid: of fonda, which became fonda-vmm."""
    ticks = 0
    for task in os.listdir('/proc/%d/task' % pid):
        with open('/proc/%d/task/%s/stat' % (pid, task), encoding='ascii') as f:
            name, _, rest = f.read().partition('(')[2].rpartition(')')
        if name.startswith('vcpu'):
            ticks += sum(int(n) for n in rest.split()[11:13])  # utime, stime: proc(5)
    return ticks


def full_host_disk(m, path, make):
    with small_folder(m, 8 * MIB) as (folder, resize):
        disk = os.path.join(folder, path)
        make(disk)
        with guest(m, disk + (',format=raw' if path.endswith('.raw') else '')) as s:
            s.command('dd if=/dev/urandom of=/tmp/data bs=1M count=24; (while :; do :; done) & true')
            output, _ = s.command('sha256sum < /tmp/data')
            wanted = output.split()[0]
            s.send('dd if=/tmp/data of=/dev/vda bs=64k oflag=direct conv=fsync; echo "=status" $?\n')
            for now in (16, 64):
                s.expect('no space left on the host for image .*paused')
                time.sleep(0.5)
                before = vcpu_ticks(inside(s.pid))
                time.sleep(1)
                check(vcpu_ticks(inside(s.pid)) - before <= 2, 'the vCPUs of a paused machine run')
                resize(now * MIB)
                s.expect('the machine goes on')
            s.expect('=status 0')
            output, _ = s.command('dd if=/dev/vda iflag=direct bs=64k count=384 2>/dev/null | sha256sum')
            check_equal(output.split()[0], wanted, 'what was written through two pauses')
        if path.endswith('.qcow2'):
            clean(m, disk)


def test_full_host_disk_under_qcow2(m):
    full_host_disk(m, 'd.qcow2', lambda path: image(m, 'create', '--size', '64M', path))


def test_full_host_disk_under_raw(m):
    def make(path):
        with open(path, 'wb') as f:
            f.truncate(64 * MIB)
    full_host_disk(m, 'd.raw', make)


def limit_file_size(pid, size):
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_other_errors(m):
    """A host's error that is not about room, here a file size limit: with on-error=stop the machine waits, else the guest sees it."""
    stop, report = m.path('stop.raw'), m.path('report.raw')
    for path in (stop, report):
        with open(path, 'wb') as f:
            f.truncate(16 * MIB)
    with guest(m, stop + ',format=raw,on-error=stop', report + ',format=raw') as s:
        write = 'dd if=/dev/urandom of=/dev/%s bs=64k seek=64 count=4 oflag=direct'
        limit_file_size(inside(s.pid), MIB)
        output, status = s.command(write % 'vdb')
        check(status != 0, 'the guest does not see the error: ' + output)
        s.send(write % 'vda' + '; echo "=status" $?\n')
        s.expect('stop.raw.*: File too large; the machine is paused')
        limit_file_size(inside(s.pid), None)
        s.expect('the machine goes on')
        s.expect('=status 0')


def test_ending_a_paused_machine(m):
    """A machine that stands still for its disk can be ended, and the image is whole."""
    with small_folder(m, 4 * MIB) as (folder, resize):
        disk = os.path.join(folder, 'd.qcow2')
        image(m, 'create', '--size', '64M', disk)
        with guest(m, disk) as s:
            s.send('dd if=/dev/urandom of=/dev/vda bs=64k oflag=direct count=160\n')
            s.expect('no space left on the host')
            s.send('\x01x')
            status = s.wait()
            check(status != OFF and 'never told' in s.text, 'status %s: %s' % (status, s.text[-1000:]))
        resize(32 * MIB)
        image(m, 'check', '--repair', 'leaks', disk)
        clean(m, disk)


def test_bad_disk_options(m):
    kernel = os.path.join(m.guest, 'vmlinuz')
    disk = m.path('d.raw', bytes(MIB))
    cases = (
        ('cache=quick', "cache='quick' is not one of writeback, none, writethrough, unsafe"),
        ('on-error=cry', "on-error='cry' is not one of enospc, report, stop"),
        ('iops=0', "iops='0' is not between 1 and"),
        ('iops=many', "iops='many' is not between 1 and"),
        ('bps=-1', "bps='-1' is not a size"),
        ('bps-burst=1M', 'a burst goes with its limit'),
        ('format=vmdk', 'vmdk'),
        ('serial=', "serial='' has to have 1 to 20 characters"),
        ('fast', "'fast' is not known: there is format="),
    )
    for option, message in cases:
        status, _, err = m.run(m.argv(kernel, '--disk', disk + ',' + option))
        check(status == USAGE and message in err and err.count('\n') == 1, '%s: status %s, %s' % (option, status, err))
