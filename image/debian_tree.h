/*
 * An ext4 file system in a file, filled without mounting anything and without being root: owners, modes and
 * devices of a tar stream are written as they are.
 */
#ifndef FONDA_IMAGE_DEBIAN_TREE_H
#define FONDA_IMAGE_DEBIAN_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tree;

struct tree_entry {
    const char *path; /* relative: "etc/fstab"; folders above that are missing are made */
    uint32_t mode;    /* S_IFREG, S_IFDIR or S_IFLNK, and permissions */
    const char *text; /* contents, or a link's target */
};

/* Makes the file system, with the whole file as its size, by mke2fs. fd: read-write; stays the caller's, and
 * has to stay open. Errors: -ENOENT (no mke2fs; says which package has it), -ENOSPC, -EIO. */
int tree_new(int fd, uint64_t size_bytes, struct tree **ret_tree, struct err *err);
/* Writes everything back. Accepts NULL. Errors: as above; freed in any case. */
int tree_close(struct tree *tree, struct err *err);
const char *tree_uuid(const struct tree *tree);

/* Adds what a tar stream holds. edit() sees each path (without a leading "./") before it is added: false
 * leaves it out. A regular file for which *ret_text is set gets that text instead (free()d here); text has
 * the file's own contents when it is small, else NULL. Errors: -EINVAL (no tar), -ENOSPC, -EIO. */
int tree_add_tar(struct tree *tree, int fd,
                 bool (*edit)(void *opaque, const char *path, const char *text, char **ret_text),
                 void *opaque, struct err *err);
/* Adds one entry, in place of what is there. */
int tree_add(struct tree *tree, const struct tree_entry *entry, struct err *err);

#endif
