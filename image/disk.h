/* The root of a machine from an image: an ext4 file system with what a container of it would see. */
#ifndef FONDA_IMAGE_DISK_H
#define FONDA_IMAGE_DISK_H

#include <stdint.h>

#include "base/err.h"

#define IMAGE_DISK_SIZE (16ull << 30) /* of the file system; the file has holes where nothing is */

/* Fills the file behind fd (empty, read-write, inherited by child processes) with the tree at the directory
 * descriptor root: owners (also those kept in user.fonda.stat), modes, times, links and extended attributes.
 * Device nodes, pipes and sockets are left out. Errors: -ENOENT (no mke2fs; says which package), -ENOSPC,
 * -EIO. */
int image_disk_fill(int root, int fd, uint64_t size_bytes, struct err *err);

#endif
