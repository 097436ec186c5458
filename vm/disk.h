/*
 * A disk image of the block layer as a virtio-blk backend.
 *
 * A write that finds no room on the host (or, with on-error=stop, any request that fails) is kept, the
 * machine stands still (pause.h, PAUSE_DISK), and a line on stderr says why. It is tried again every second
 * and on disk_retry(); once everything kept has worked, the machine goes on. Nothing is lost.
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
struct machine;

/* blk_loop and machine have to outlive the backend. NULL: see err. */
struct vblk_backend *disk_open(uv_loop_t *loop, struct blk_loop *blk_loop, struct machine *machine,
                               const struct disk_options *options, struct err *err);
/* Tries now what waits for the host, such as when somebody says that there is room. */
void disk_retry(struct vblk_backend *backend);
/* New limits from now on; all 0: none. Errors: -ENOMEM. */
int disk_set_limits(struct vblk_backend *backend, const struct blk_throttle_limits *limits);
/* The image, for snapshots and facts. Belongs to the backend. */
struct blk_node *disk_node(struct vblk_backend *backend);

#endif
