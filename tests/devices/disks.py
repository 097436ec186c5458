"""Disks: every feature bit on and off, and what a guest may ask of a disk."""
import os

from guest import BLK, data, sha

MIB = 1 << 20
WITHHELD = ['seg_max', 'blk_size', 'flush', 'mq', 'discard', 'write_zeroes', 'indirect_desc,event_idx']


def image(t, name, size=16 * MIB, content=b''):
    path = t.path(name, content)
    os.truncate(path, size)
    return path


def test_features(t):
    """Each disk is written, flushed and read back through a file system and past it."""
    options = []
    for i in range(len(WITHHELD) + 1):
        options += ['--disk', image(t, 'd%d' % i, content=data(MIB, i)) + ',format=raw']
    options += ['--disk', image(t, 'ro', content=data(MIB, 99)) + ',format=raw,readonly']
    for i, text in enumerate(WITHHELD, 1):
        options += ['--virtio-without', 'blk%d:%s' % (i, text)]
    with t.boot(*options) as guest:
        found = guest.features('blk', BLK)
        everything = (set(BLK) | {'indirect_desc', 'event_idx', 'version_1'}) - {'ro'}
        t.same(found[-1], everything - {'discard', 'write_zeroes'} | {'ro'}, 'a read-only disk says so')
        for i, text in enumerate(['nothing', *WITHHELD]):
            gone = set(text.split(',')) & everything
            t.same(found[i], everything - gone, 'without %s: the set is as asked' % text)
            disk = '/dev/vd%c' % (ord('a') + i)
            first = guest.ok('head -c 1048576 %s | sha256sum' % disk).split()[0]
            t.same(first, sha(data(MIB, i)), 'without %s: reads what the image holds' % text)
            guest.ok('dd if=%s of=%s bs=64k seek=48 count=16 conv=fsync 2>/dev/null' % (disk, disk))
        guest.off()
    for i, text in enumerate(['nothing', *WITHHELD]):
        with open(t.path('d%d' % i), 'rb') as f:
            f.seek(3 * MIB)
            t.same(sha(f.read(MIB)), sha(data(MIB, i)), 'without %s: what the guest wrote is there' % text)


def test_requests(t):
    disk, locked = image(t, 'disk', content=data(8 * MIB)), image(t, 'locked', content=data(MIB))
    with t.boot('--disk', disk + ',format=raw,serial=FONDA-0123456789abc', '--disk', locked + ',format=raw,readonly',
                '--stats') as guest:
        t.same(guest.ok('cat /sys/block/vda/serial; echo').strip(), 'FONDA-0123456789abc', 'serial number')
        t.same(guest.ok('cat /sys/block/vda/size').strip(), str(16 * MIB // 512), 'capacity')
        t.same(guest.ok('cat /sys/block/vda/queue/write_cache').strip(), 'write back', 'a write-back cache')
        guest.ok('/bin/blkdiscard -o 1048576 -l 2097152 /dev/vda && sync')
        t.same(guest.ok('dd if=/dev/vda bs=1M skip=1 count=2 2>/dev/null | sha256sum').split()[0], sha(bytes(2 * MIB)),
               'discarded sectors of a raw image read as zeroes')
        t.see(os.stat(disk).st_blocks * 512 <= 6 * MIB + 65536, 'discarded sectors are the host\'s again',
              os.stat(disk).st_blocks)
        guest.ok('/bin/blkdiscard -z -o 4194304 -l 1048576 /dev/vda && sync')
        t.same(guest.ok('dd if=/dev/vda bs=1M skip=4 count=1 2>/dev/null | sha256sum').split()[0], sha(bytes(MIB)),
               'write zeroes')
        t.same(guest.ok('dd if=/dev/vda bs=1M skip=5 count=3 2>/dev/null | sha256sum').split()[0],
               sha(data(8 * MIB)[5 * MIB:]), 'what lies beside it is as it was')
        t.same(guest.ok('cat /sys/block/vdb/ro').strip(), '1', 'a read-only disk')
        text, status = guest.command('dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>&1')
        t.see(status != 0, 'writing to a read-only disk fails', text)
        text, status = guest.command('dd if=/dev/vda of=/dev/null bs=512 skip=32768 count=1 2>&1')
        t.see('0+0 records in' in text, 'nothing behind the end', text)
        guest.off()
        t.see('virtio-blk: ' in guest.text and 'errors=0' in guest.text, 'no request failed', guest.text[-1500:])
    with open(locked, 'rb') as f:
        t.same(sha(f.read(MIB)), sha(data(MIB)), 'the read-only image is unchanged')


def test_many(t):
    """Sixteen disks and sixteen NICs are more than the slots; fourteen of each are not."""
    options = []
    for i in range(14):
        options += ['--disk', image(t, 'n%d' % i, MIB) + ',format=raw,serial=%d' % i, '--net', 'user']
    with t.boot(*options) as guest:
        t.same(guest.ok('for d in /sys/block/vd*; do cat $d/serial; echo; done').split(), [str(i) for i in range(14)], 'fourteen disks in their order')
        t.same(guest.ok('ls -d /sys/class/net/eth* | wc -l').strip(), '14', 'fourteen NICs')
        guest.off()
