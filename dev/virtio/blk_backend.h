/*
 * What virtio-blk asks of virtual storage. Whoever implements this embeds a struct vblk_backend.
 *
 * Threads: submit and drain on the main loop; done on the main loop too, from within neither submit nor the
 * call that is under way in the device (so: from the provider's own loop callback, or from drain).
 */
#ifndef FONDA_DEV_VIRTIO_BLK_BACKEND_H
#define FONDA_DEV_VIRTIO_BLK_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* Requests that a device has submitted and that are not done yet: at most as many. */
#define VBLK_INFLIGHT_MAX 256u

enum vblk_op { VBLK_READ, VBLK_WRITE, VBLK_FLUSH, VBLK_DISCARD, VBLK_WRITE_ZEROES };

/* One request; the caller's, until done ran. iov points into guest memory, whose contents may change at any
 * time. */
struct vblk_io {
    enum vblk_op op;
    bool may_unmap; /* VBLK_WRITE_ZEROES */
    uint64_t offset, bytes;
    const struct iovec *iov;
    unsigned iov_count;
    int result; /* for done: 0 or a negative errno */
    void (*done)(struct vblk_io *io);
    struct vblk_io *next; /* the provider's, while it has the request */
};

struct vblk_backend;

struct vblk_backend_ops {
    void (*submit)(struct vblk_backend *backend, struct vblk_io *io);
    /* Returns once every request submitted has had its done. */
    void (*drain)(struct vblk_backend *backend);
    void (*free)(struct vblk_backend *backend);
};

struct vblk_backend {
    const struct vblk_backend_ops *ops;
    uint64_t size_bytes;
    uint32_t block_bytes; /* what the guest is told: 512 or 4096 */
    bool read_only, can_discard;
};

#endif
