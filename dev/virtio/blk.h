/*
 * virtio-blk, the block device: virtio 1.2 section 5.2. Multi-queue, flush, discard, write zeroes, read-only,
 * serial number. Data moves between the backend and guest memory without a copy.
 *
 * Limits: VBLK_QUEUES_MAX queues; VBLK_INFLIGHT_MAX requests at the backend, the rest waits in the rings.
 */
#ifndef FONDA_DEV_VIRTIO_BLK_H
#define FONDA_DEV_VIRTIO_BLK_H

#include "dev/virtio/blk_backend.h"
#include "dev/virtio/virtio.h"

#define VBLK_QUEUES_MAX 16u
#define VBLK_SERIAL_MAX 20u /* 5.2.6: bytes of an ID */

struct vblk_config {
    struct mem *mem;
    struct vblk_backend *backend; /* the device's from now on */
    unsigned queues;
    const char *serial; /* cut to VBLK_SERIAL_MAX; NULL: none */
};

/* NULL: see err; the backend is then freed. */
struct vdev *vblk_new(const struct vblk_config *config, struct err *err);

/* The backend's size_bytes changed. Main loop. */
void vblk_resized(struct vdev *dev);

#endif
