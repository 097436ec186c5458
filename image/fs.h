/*
 * Files in trees that somebody else filled: opening without being led outside, removing, copying, and
 * replacing small files so that a crash leaves the old one or the new one. All paths are relative to a
 * directory descriptor.
 */
#ifndef FONDA_IMAGE_FS_H
#define FONDA_IMAGE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/err.h"

enum fs_how {
    FS_NO_LINKS, /* a symbolic link or '..' anywhere on the way is -ELOOP or -EXDEV */
    FS_IN_ROOT,  /* links and '..' are followed as if root were '/' */
};

/* openat2() or, on older kernels, a walk. O_CLOEXEC is added. Returns a descriptor or a negative errno. */
int fs_open(int root, const char *path, int flags, mode_t mode, enum fs_how how);
/* The folder of path, opened O_PATH; *ret_name points at the last component within path. */
int fs_open_parent(int root, const char *path, enum fs_how how, const char **ret_name);
/* Makes the missing folders of path, mode 0755, in root; returns a descriptor of the last. */
int fs_mkdirs(int root, const char *path, enum fs_how how);

/* Removes whatever name is, without following links or leaving the tree. 0 where nothing was. */
int fs_remove_tree(int dir, const char *name);

/* At most max bytes, with a NUL behind. Caller frees. Errors: -ENOENT and so on, -E2BIG. */
int fs_read_file(int dir, const char *name, uint64_t max, char **ret_text, size_t *ret_size, struct err *err);
/* By temporary file, fsync and rename. */
int fs_write_file(int dir, const char *name, const void *data, size_t size, struct err *err);
int fs_write_all(int fd, const void *data, size_t size); /* 0 or a negative errno */

/* Contents: as a reflink, or by copying what is not a hole. */
int fs_copy_data(int from, int to, uint64_t size);
/* All extended attributes but overlayfs's own. Those the target can't have are left out. */
int fs_copy_xattrs(int from, int to);
/* One file, link, node or empty folder with its owner, mode and times; contents too. */
int fs_copy_node(int from_dir, const char *from, int to_dir, const char *to, struct err *err);
/* What is below the folder from into the folder to, which exists. Hard links within the tree stay hard links.
 */
int fs_copy_tree(int from, int to, struct err *err);

/* For tests: whether FONDA_IMAGE_FORCE, a list with commas, has word: no-openat2, no-overlay, no-reflink,
 * no-subuid. */
bool fs_forced(const char *word);

/* Path of an O_PATH descriptor in /proc, for the calls that take no descriptor. */
#define FS_PROC_MAX 32
void fs_proc_path(int fd, char ret_path[static FS_PROC_MAX]);

#endif
