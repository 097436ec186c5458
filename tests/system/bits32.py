"""32-bit code: Debian's i386 busybox under the 64-bit kernel, and Debian's 686-pae kernel with it."""
import base64
import gzip
import hashlib
import os

from harness import ENGINE, OFF, Skip, check, check_equal, hardware_virtualization

PROMPT = r'root@fonda:~# '


def numbers(last):
    return ''.join('%d\n' % i for i in range(1, last + 1)).encode()


def boot(m, kernel, initramfs, *options):
    folder = os.path.join(m.guest, 'i386')
    paths = [os.path.join(m.guest, kernel), os.path.join(folder, initramfs)]
    for path in paths:
        if not os.path.exists(path):
            raise Skip('no %s: tools/fetch-guest %s i386' % (path, m.guest))
    if ENGINE == 'kvm' and not hardware_virtualization():
        raise Skip('KVM without hardware support is too slow for Linux')
    session = m.session(paths[0], '--initrd', paths[1], '--append', 'console=ttyS0 panic=-1', '--no-reboot', *options)
    session.expect(PROMPT)
    return session


def programs(s, busybox):
    """Programs of the 32-bit busybox, with answers known on the host."""
    b = '/bin/' + busybox + ' '
    text = numbers(20000)
    for line, wanted in (
            ('seq 1 20000 | {b}sha1sum', hashlib.sha1(text).hexdigest() + '  -\n'),
            ('seq 1 20000 | {b}sha512sum', hashlib.sha512(text).hexdigest() + '  -\n'),
            ('seq 1 20000 | {b}gzip | {b}gunzip | {b}md5sum', hashlib.md5(text).hexdigest() + '  -\n'),
            ('seq 1 20000 | {b}sort -r | {b}head -n 3', '9999\n9998\n9997\n'),
            # x87 arithmetic and division of 64-bit numbers, which 64-bit code does otherwise.
            ("{b}awk 'BEGIN {{ s = 0; for (i = 1; i <= 30000; i++) s += i % 7 * i; print s }}'",
             '%d\n' % sum(i % 7 * i for i in range(1, 30001))),
            ("{b}awk 'BEGIN {{ printf \"%.12f %.3e\\n\", 22 / 7, 3 / 1e300 }}'", '3.142857142857 3.000e-300\n'),
            ('{b}sh -c \'echo $((123456789012345 / 1234567 % 99991))\'', '%d\n' % (123456789012345 // 1234567 % 99991)),
            ('i=0; while [ $i -lt 100 ] && {b}true; do i=$((i+1)); done; echo $i', '100\n'),
    ):
        check_equal(s.command(line.format(b=b)), (wanted, 0), line)
    output, status = s.command('seq 1 5000 | %sgzip -9 | %sbase64 -w 0; echo' % (b, b))
    check_equal((gzip.decompress(base64.b64decode(output)), status), (numbers(5000), 0), 'what gzip made')


def off(s):
    s.send('poweroff -f\n')
    check_equal(s.wait(), OFF, 'status after power-off')


def test_busybox_of_i386(m):
    with boot(m, 'vmlinuz', 'both.initramfs') as s:
        check_equal(s.command('/bin/busybox32 uname -m')[0], 'x86_64\n', 'the kernel')
        programs(s, 'busybox32')
        off(s)


def test_kernel_686_pae(m):
    with boot(m, 'i386/vmlinuz', 'initramfs') as s:
        check_equal(s.command('uname -m')[0], 'i686\n', 'the kernel')
        programs(s, 'busybox')
        output, _ = s.command("dmesg | grep -i -E 'lockup|stall|BUG:|Oops|unchecked MSR' | head")
        check_equal(output, '', 'complaints of the kernel')
        off(s)


def test_kernel_686_pae_several_vcpus(m):
    """Two vCPUs, and RAM above 4 GiB, which takes page tables of the PAE form."""
    with boot(m, 'i386/vmlinuz', 'initramfs', '--cpus', '2', '--memory', '5G') as s:
        check_equal(s.command('nproc')[0], '2\n', 'vCPUs that the guest sees')
        total = int(s.command('grep MemTotal /proc/meminfo')[0].split()[1]) / 1024
        check(4096 < total < 5120, 'the guest sees %d MiB' % total)
        wanted = hashlib.sha256(numbers(3000)).hexdigest()
        output, status = s.command("work() { i=0; while [ $i -lt 20 ]; do seq 1 3000 | sha256sum; i=$((i+1)); done | sort -u; }; "
                                   'for w in 1 2 3; do work & done; wait')
        check_equal((output.count(wanted), status), (3, 0), 'three loops at once: ' + output)
        off(s)
