/*
 * Paths inside a root directory whose contents are hostile.
 *
 * Everything resolves as if the root were "/": absolute symlinks and ".." stay inside, magic links of procfs
 * are refused with ELOOP. The kernel does that with openat2(RESOLVE_IN_ROOT); where it can't, and where
 * missing components are to be made, a walk over O_PATH descriptors does. No path is checked first and used
 * later: callers get descriptors.
 */
#ifndef FONDA_CONTAINER_PATHS_H
#define FONDA_CONTAINER_PATHS_H

#include <stdbool.h>
#include <sys/types.h>

#define PATH_LINKS_MAX 40
#define PATH_DEPTH_MAX 256

enum path_flags {
    PATH_NO_SYMLINKS = 1, /* a symlink anywhere: ELOOP */
    PATH_NO_FOLLOW = 2,   /* a symlink as last component is the result */
};

/* O_PATH descriptor of path, or a negative errno. */
int path_open(int root_fd, const char *path, unsigned flags);

/* The same; what is missing is made: directories (0755), the last component as an empty file if leaf_is_file.
 */
int path_make(int root_fd, const char *path, bool leaf_is_file, unsigned flags);

/* Splits path at its last component, makes the directories before it, and returns the descriptor of the
 * directory. *ret_leaf points into path. -EINVAL: there is no last component. */
int path_parent(int root_fd, const char *path, const char **ret_leaf);

/* "/proc/self/fd/N", for calls that take no descriptor. */
struct fd_path {
    char text[40];
};
const char *fd_path(int fd, struct fd_path *buffer);

bool fd_is_procfs(int fd); /* on a mounted procfs */

int write_all(int fd, const void *data, size_t size);             /* 0 or a negative errno */
int write_file_at(int dirfd, const char *path, const char *text); /* one write to an existing file */

#endif
