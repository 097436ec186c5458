/*
 * A raw image file as a virtio-blk backend: blocking I/O on libuv's thread pool, without a copy.
 *
 * Threads: disk_open, submit, drain and free on the main loop.
 */
#ifndef FONDA_VM_DISK_H
#define FONDA_VM_DISK_H

#include <uv.h>

#include "base/err.h"
#include "dev/virtio/blk_backend.h"

/* The file is locked against a second machine that writes it. NULL: see err. */
struct vblk_backend *disk_open(uv_loop_t *loop, const char *path, bool read_only, struct err *err);

#endif
