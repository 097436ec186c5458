/*
 * Mounting on descriptors: the new mount API (Linux 5.2, mount_setattr 5.12), and mount(2) over /proc/self/fd
 * where the kernel has less.
 *
 * A target is a path inside a root together with its descriptor; after a mount the descriptor is that of what
 * was mounted. Functions return 0 or a negative errno with a text.
 */
#ifndef FONDA_CONTAINER_MNT_H
#define FONDA_CONTAINER_MNT_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/mount.h>

struct mnt_target {
    int root_fd;
    const char *path; /* inside the root */
    int fd;           /* O_PATH, or of a mount */
};

void mnt_target_done(struct mnt_target *target);

/* A file system that isn't mounted yet. attrs: MOUNT_ATTR_*; sb_flags: MS_* of the superblock; data as
 * mount(8) -o. */
struct mnt_fs {
    const char *type;
    const char *source; /* NULL: the type */
    const char *data;   /* NULL: none */
    uint64_t attrs;
    unsigned long sb_flags;
};
int mnt_fs(const struct mnt_fs *fs, struct mnt_target *target, struct err *err);

/* A detached mount of it. -ENOSYS: the kernel has no such call. */
int mnt_fs_detached(const struct mnt_fs *fs, struct err *err);

struct mnt_attrs {
    uint64_t set;
    uint64_t clear;
    uint64_t rec_set; /* with all mounts below */
    uint64_t rec_clear;
    unsigned long propagation; /* MS_*, 0: none */
};

/* A detached copy of the mount at path (dirfd may name it alone, with path ""). -ENOSYS: no such call. */
int mnt_clone(int dirfd, const char *path, bool recursive, bool no_follow);

/* Binds what source_fd stands for on the target. is_tree: source_fd is from mnt_clone() or mnt_fs_detached().
 */
int mnt_bind(int source_fd, bool is_tree, bool recursive, const struct mnt_attrs *attrs,
             struct mnt_target *target, struct err *err);

int mnt_change(int fd, const struct mnt_attrs *attrs, struct err *err);
int mnt_propagation(int fd, unsigned long flags); /* 0 or a negative errno */

#endif
