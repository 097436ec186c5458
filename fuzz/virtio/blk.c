/* The block device, over a disk that keeps nothing and checks what it is asked for: see driver.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/virtio/blk.h"
#include "fuzz/virtio/driver.h"

#define DISK_BYTES (1 * MiB)

static struct vblk_io *waiting;

static void submit(struct vblk_backend *backend, struct vblk_io *io)
{
    if (io->offset > DISK_BYTES || io->bytes > DISK_BYTES - io->offset) {
        abort();
    }
    io->next = waiting;
    waiting = io;
}

static void complete_one(int result)
{
    struct vblk_io *io = waiting;
    waiting = io->next;
    for (unsigned i = 0; i < io->iov_count && io->op == VBLK_READ; i++) {
        memset(io->iov[i].iov_base, 0x5a, io->iov[i].iov_len);
    }
    io->result = result;
    io->done(io);
}

static void drain(struct vblk_backend *backend)
{
    while (waiting) {
        complete_one(0);
    }
}

static void free_backend(struct vblk_backend *backend)
{
}

static const struct vblk_backend_ops ops = {submit, drain, free_backend};

struct vdev *fuzz_make_device(struct mem *mem)
{
    static struct vblk_backend backend = {&ops, DISK_BYTES, 512, false, true};
    const struct vblk_config config = {.mem = mem, .backend = &backend, .queues = 2, .serial = "fuzz"};
    return vblk_new(&config, NULL);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
    if (waiting) {
        complete_one(choice & 1 ? -EIO : 0);
    }
}
