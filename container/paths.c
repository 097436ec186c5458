#include "container/paths.h"

#include "base/util.h"
#include "container/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

struct walk {
    int stack[PATH_DEPTH_MAX]; /* descriptors from the root (at 0) down */
    int depth;
    unsigned links;
    char rest[2 * PATH_MAX]; /* what is still to be walked */
};

enum make { MAKE_NOTHING, MAKE_DIRECTORY, MAKE_FILE };

static int walk_missing(int at, const char *name, bool last, enum make make)
{
    if (make == MAKE_NOTHING) {
        return -ENOENT;
    }
    if (last && make == MAKE_FILE) {
        int fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd < 0 && errno != EEXIST) {
            return -errno;
        }
        if (fd >= 0) {
            close(fd);
        }
    } else if (mkdirat(at, name, 0755) < 0 && errno != EEXIST) {
        return -errno;
    }
    int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Puts the target of the link fd in front of what is still to be walked. */
static int walk_link(struct walk *w, int fd)
{
    char target[PATH_MAX];
    if (++w->links > PATH_LINKS_MAX || fd_is_procfs(fd)) {
        return -ELOOP;
    }
    ssize_t n = readlinkat(fd, "", target, sizeof(target) - 1);
    if (n < 0) {
        return -errno;
    }
    size_t rest = strlen(w->rest);
    if ((size_t)n + 1 + rest + 1 > sizeof(w->rest)) {
        return -ENAMETOOLONG;
    }
    memmove(w->rest + n + 1, w->rest, rest + 1);
    memcpy(w->rest, target, (size_t)n);
    w->rest[n] = '/';
    if (target[0] == '/') {
        while (w->depth > 0) {
            close(w->stack[w->depth--]);
        }
    }
    return 0;
}

static int walk_step(struct walk *w, const char *name, bool last, enum make make, unsigned flags)
{
    if (strcmp(name, "..") == 0) {
        if (w->depth > 0) {
            close(w->stack[w->depth--]);
        }
        return 0;
    }
    int at = w->stack[w->depth];
    int fd = openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        fd = errno == ENOENT ? walk_missing(at, name, last, make) : -errno;
    }
    struct stat st;
    if (fd < 0) {
        return fd;
    }
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    if (rc < 0) {
        close(fd);
        return rc;
    }
    if (S_ISLNK(st.st_mode) && !(last && (flags & PATH_NO_FOLLOW))) {
        rc = flags & PATH_NO_SYMLINKS ? -ELOOP : walk_link(w, fd);
        close(fd);
        return rc;
    }
    if (!last && !S_ISDIR(st.st_mode)) {
        rc = -ENOTDIR;
    } else if (w->depth + 1 == PATH_DEPTH_MAX) {
        rc = -ENAMETOOLONG;
    }
    if (rc < 0) {
        close(fd);
        return rc;
    }
    w->stack[++w->depth] = fd;
    return 0;
}

static int walk(int root_fd, const char *path, enum make make, unsigned flags)
{
    struct walk w = {.depth = 0, .links = 0};
    size_t size = strlen(path);
    if (size >= PATH_MAX) {
        return -ENAMETOOLONG;
    }
    memcpy(w.rest, path, size + 1);
    w.stack[0] = root_fd;
    int rc = 0;
    while (rc == 0) {
        char name[NAME_MAX + 1];
        size_t skip = strspn(w.rest, "/");
        size_t n = strcspn(w.rest + skip, "/");
        if (n == 0) {
            break;
        }
        if (n > NAME_MAX) {
            rc = -ENAMETOOLONG;
            break;
        }
        memcpy(name, w.rest + skip, n);
        name[n] = '\0';
        size_t after = skip + n;
        memmove(w.rest, w.rest + after, strlen(w.rest + after) + 1);
        if (strcmp(name, ".") != 0) {
            rc = walk_step(&w, name, w.rest[strspn(w.rest, "/")] == '\0', make, flags);
        }
    }
    int fd = -1;
    if (rc == 0) {
        fd = fcntl(w.stack[w.depth], F_DUPFD_CLOEXEC, 3);
        rc = fd < 0 ? -errno : fd;
    }
    while (w.depth > 0) {
        close(w.stack[w.depth--]);
    }
    return rc;
}

int path_open(int root_fd, const char *path, unsigned flags)
{
    struct open_how how = {
        .flags = O_PATH | O_CLOEXEC | (flags & PATH_NO_FOLLOW ? O_NOFOLLOW : 0),
        .resolve =
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (flags & PATH_NO_SYMLINKS ? RESOLVE_NO_SYMLINKS : 0),
    };
    /* EAGAIN: a rename or mount elsewhere made the kernel unsure about "..", openat2(2) says to try again. */
    for (int tries = 0; tries < 32 && !fault_without("openat2"); tries++) {
        long fd = syscall(SYS_openat2, root_fd, *path ? path : ".", &how, sizeof(how));
        if (fd >= 0) {
            return (int)fd;
        }
        if (errno == ENOSYS || errno == EPERM) {
            break; /* old kernel, or a seccomp filter around us that doesn't know the call */
        }
        if (errno != EAGAIN) {
            return -errno;
        }
    }
    return walk(root_fd, path, MAKE_NOTHING, flags);
}

int path_make(int root_fd, const char *path, bool leaf_is_file, unsigned flags)
{
    int fd = path_open(root_fd, path, flags);
    return fd == -ENOENT ? walk(root_fd, path, leaf_is_file ? MAKE_FILE : MAKE_DIRECTORY, flags) : fd;
}

int path_parent(int root_fd, const char *path, const char **ret_leaf)
{
    const char *slash = strrchr(path, '/');
    const char *leaf = slash ? slash + 1 : path;
    if (!*leaf || strcmp(leaf, ".") == 0 || strcmp(leaf, "..") == 0) {
        return -EINVAL;
    }
    char dir[PATH_MAX];
    size_t n = (size_t)(leaf - path);
    if (n >= sizeof(dir)) {
        return -ENAMETOOLONG;
    }
    memcpy(dir, path, n);
    dir[n] = '\0';
    int fd = path_make(root_fd, dir, false, 0);
    if (fd >= 0) {
        *ret_leaf = leaf;
    }
    return fd;
}

const char *fd_path(int fd, struct fd_path *buffer)
{
    snprintf(buffer->text, sizeof(buffer->text), "/proc/self/fd/%d", fd);
    return buffer->text;
}

bool fd_is_procfs(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

int write_all(int fd, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

int write_file_at(int dirfd, const char *path, const char *text)
{
    auto_close int fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    size_t size = strlen(text);
    ssize_t n = write(fd, text, size);
    if (n < 0) {
        return -errno;
    }
    return (size_t)n == size ? 0 : -EIO;
}
