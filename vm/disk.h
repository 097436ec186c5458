/*
 * A disk image of the block layer as a virtio-blk backend.
 *
 * A write that finds no room on the host is kept and tried again every second, with a warning, so that the
 * guest's disk stands still meanwhile and nothing is lost.
 *
 * Threads: main loop.
 */
#ifndef FONDA_VM_DISK_H
#define FONDA_VM_DISK_H

#include <uv.h>

#include "base/err.h"
#include "dev/virtio/blk_backend.h"
#include "vm/device_options.h"

struct blk_loop;
struct blk_node;

/* blk_loop has to outlive the backend. NULL: see err. */
struct vblk_backend *disk_open(uv_loop_t *loop, struct blk_loop *blk_loop, const struct disk_options *options,
                               struct err *err);
/* The image, for snapshots and facts. Belongs to the backend. */
struct blk_node *disk_node(struct vblk_backend *backend);

#endif
