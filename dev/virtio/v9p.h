/*
 * virtio-9p: a directory of the host's as a file system of the guest's, 9P2000.L. See p9.h for the protocol.
 * Facts: virtio 1.2 names the device ID; Linux net/9p/trans_virtio.c's configuration: a tag with its length.
 *
 * Threads: main loop. File operations block it; see docs/caveats-devices.md.
 */
#ifndef FONDA_DEV_VIRTIO_V9P_H
#define FONDA_DEV_VIRTIO_V9P_H

#include "dev/virtio/virtio.h"

#define V9P_TAG_MAX 36u

/* Shares the directory dir. NULL: see err. */
struct vdev *v9p_new(struct mem *mem, const char *dir, const char *tag, bool read_only, struct err *err);

#endif
