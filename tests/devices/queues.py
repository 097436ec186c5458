"""Several vCPUs, several queues: every queue of a disk carries its vCPU's requests, packets come in over more than one."""
from guest import BLK, NET, Server, answer_digest, data, sender, sha

MIB = 1 << 20
CPUS = 4
BLOB = data(2000000, 21)


def interrupts(guest, name):
    """{queue's name: interrupts on each vCPU} of a device's vectors."""
    found = {}
    for line in guest.ok('cat /proc/interrupts').splitlines():
        fields = line.split()
        if len(fields) > CPUS and fields[-1].startswith(name + '-'):
            found[fields[-1][len(name) + 1:]] = [int(n) for n in fields[1:1 + CPUS]]
    return found


def device_name(guest, kind):
    return guest.ok('for d in /sys/bus/virtio/devices/*; do [ $(($(cat $d/device))) = %d ] && echo ${d##*/}; done; true' % kind).split()


def test_disk(t):
    """Each vCPU reads and writes by the queue of its own."""
    bits = ['nothing', 'mq', 'event_idx', 'indirect_desc']
    options = ['--cpus', str(CPUS)]
    for i, what in enumerate(bits):
        path = t.path('d%d' % i, data(8 * MIB, i))
        options += ['--disk', path + ',format=raw'] + (['--virtio-without', 'blk%d:%s' % (i, what)] if i else [])
    with t.boot(*options) as guest:
        names = device_name(guest, 2)
        for i, what in enumerate(bits):
            found = guest.features('blk', BLK)[i]
            t.see(what not in found, 'without %s: the set is as asked' % what, found)
            wanted = 1 if what == 'mq' else CPUS
            disk = '/dev/vd%c' % (ord('a') + i)
            t.same(len(guest.ok('ls /sys/block/%s/mq' % disk[5:]).split()), wanted, 'without %s: %d queues' % (what, wanted))
            before = interrupts(guest, names[i])
            text = guest.ok('; '.join('(taskset -c %d dd if=%s bs=64k skip=%d count=32 iflag=direct 2>/dev/null | sha256sum >/tmp/s%d) &' %
                                      (c, disk, 32 * c, c) for c in range(CPUS)).replace('&;', '&') + ' wait; cat /tmp/s?')
            t.same([line.split()[0] for line in text.splitlines() if len(line) > 64],
                   [sha(data(8 * MIB, i)[c * 2 * MIB:(c + 1) * 2 * MIB]) for c in range(CPUS)], 'without %s: all vCPUs read at once' % what)
            after = interrupts(guest, names[i])
            used = [name for name in after if name.startswith('req.') and sum(after[name]) > sum(before.get(name, [0]))]
            t.same(len(used), wanted, 'without %s: every queue carried requests' % what)
            if wanted > 1:
                places = {tuple(n > 0 for n in after['req.%d' % q]) for q in range(CPUS)}
                t.same(len(places), CPUS, "without %s: each queue's interrupts come to its own vCPU" % what)
            for c in range(CPUS):
                guest.ok('taskset -c %d dd if=/dev/zero of=%s bs=64k seek=%d count=4 oflag=direct 2>/dev/null' % (c, disk, 32 * c))
        guest.off()
    for i, what in enumerate(bits):
        with open(t.path('d%d' % i), 'rb') as f:
            content = f.read()
        wanted = bytearray(data(8 * MIB, i))
        for c in range(CPUS):
            wanted[c * 2 * MIB:c * 2 * MIB + 256 * 1024] = bytes(256 * 1024)
        t.same(sha(content), sha(bytes(wanted)), 'without %s: what each vCPU wrote is there' % what)


def test_network(t):
    """Several connections at once, with and without the features that rings and queues have."""
    bits = ['nothing', 'mq', 'event_idx', 'indirect_desc', 'mrg_rxbuf']
    options = ['--cpus', str(CPUS)]
    for i, what in enumerate(bits):
        options += ['--net', 'user,queues=%d' % CPUS] + (['--virtio-without', 'net%d:%s' % (i, what)] if i else [])
    with Server(sender(BLOB)) as download, Server(answer_digest) as upload, t.boot(*options) as guest:
        names = device_name(guest, 1)
        guest.ok('head -c 2000000 /dev/zero >/tmp/zeroes')
        for i, what in enumerate(bits):
            found = guest.features('net', NET)[i]
            t.see(what not in found, 'without %s: the set is as asked' % what, found)
            pairs = 1 if what == 'mq' else CPUS
            guest.ok('up eth%d >/dev/null' % i)
            guest.command('ethtool -L eth%d combined %d' % (i, pairs))
            text = guest.ok('for c in 0 1 2 3; do for n in 1 2; do (taskset -c $c nc 10.0.2.2 %d </dev/null | sha256sum >/tmp/r$c$n) & '
                            '(taskset -c $c socat -t 20 FILE:/tmp/zeroes TCP:10.0.2.2:%d; true) >/dev/null 2>&1 & done; done; wait; cat /tmp/r??; rm /tmp/r??' %
                            (download.port, upload.port))
            t.same([line.split()[0] for line in text.splitlines() if len(line) > 64], [sha(BLOB)] * 8, 'without %s: eight connections each way' % what)
            counts = interrupts(guest, names[i])
            out = [name for name in counts if name.startswith('output.') and sum(counts[name])]
            into = [name for name in counts if name.startswith('input.') and sum(counts[name])]
            t.see(len(into) == 1 if pairs == 1 else len(into) > 1, 'without %s: packets come in over %s' % (what, 'one queue' if pairs == 1 else 'several queues'), counts)
            t.see(len(out) >= (1 if pairs == 1 else 2), 'without %s: and leave by %s' % (what, 'one' if pairs == 1 else 'several'), counts)
            guest.ok('down eth%d' % i)
        text = guest.ok("dmesg | grep -E -i 'timed out|BUG:|soft lockup|detected stall'; true")
        t.same(text.strip(), '', 'the kernel has no complaint')
        guest.off()
