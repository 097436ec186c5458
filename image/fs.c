#include "image/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "base/util.h"
#include "image/limits.h"

#define LINKS_MAX 40 /* as the kernel's MAXSYMLINKS */

bool fs_forced(const char *word)
{
    const char *list = getenv("FONDA_IMAGE_FORCE");
    size_t length = strlen(word);
    while (list && *list) {
        size_t n = strcspn(list, ",");
        if (n == length && strncmp(list, word, n) == 0) {
            return true;
        }
        list += n + (list[n] == ',');
    }
    return false;
}

void fs_proc_path(int fd, char ret_path[static FS_PROC_MAX])
{
    snprintf(ret_path, FS_PROC_MAX, "/proc/self/fd/%d", fd);
}

/* ---- opening ---- */

/* The folder that done (canonical, no links) names. */
static int walk_canonical(int root, const char *done)
{
    int dir = openat(root, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    char name[NAME_MAX + 1];
    while (dir >= 0 && *done) {
        size_t n = strcspn(done, "/");
        memcpy(name, done, n);
        name[n] = '\0';
        int next = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), saved = errno;
        close(dir);
        errno = saved;
        dir = next;
        done += n + (done[n] == '/');
    }
    return dir < 0 ? -errno : dir;
}

/* What openat2() does, by hand. A racing change of the tree leads to an error or to an older state, never
 * outside. */
static int walk_open(int root, const char *path, int flags, mode_t mode, enum fs_how how)
{
    char done[PATH_MAX] = "", rest[2 * PATH_MAX], name[NAME_MAX + 1];
    if (strlen(path) >= PATH_MAX) {
        return -ENAMETOOLONG;
    }
    strcpy(rest, path);
    if (how == FS_NO_LINKS && path[0] == '/') {
        return -EXDEV;
    }
    unsigned links = 0;
    char *p = rest;
    while (*(p += strspn(p, "/"))) {
        size_t n = strcspn(p, "/");
        if (n > NAME_MAX) {
            return -ENAMETOOLONG;
        }
        memcpy(name, p, n);
        name[n] = '\0';
        p += n;
        bool last = p[strspn(p, "/")] == '\0';
        if (strcmp(name, ".") == 0) {
            continue;
        }
        if (strcmp(name, "..") == 0) {
            if (how == FS_NO_LINKS) {
                return -EXDEV;
            }
            char *slash = strrchr(done, '/');
            *(slash ? slash : done) = '\0';
            continue;
        }
        auto_close int dir = walk_canonical(root, done);
        if (dir < 0) {
            return dir;
        }
        char link[PATH_MAX];
        ssize_t size = readlinkat(dir, name, link, sizeof(link) - 1);
        if (size >= 0 && !(last && (flags & O_NOFOLLOW))) {
            if (how == FS_NO_LINKS || ++links > LINKS_MAX) {
                return -ELOOP;
            }
            link[size] = '\0';
            if ((size_t)size + 1 + strlen(p) >= sizeof(rest)) {
                return -ENAMETOOLONG;
            }
            char tail[2 * PATH_MAX];
            strcpy(tail, p);
            snprintf(rest, sizeof(rest), "%s/%.*s", link, (int)(sizeof(rest) - (size_t)size - 2), tail);
            p = rest;
            if (link[0] == '/') {
                done[0] = '\0';
            }
            continue;
        }
        size_t used = strlen(done);
        if (used + n + 2 > sizeof(done)) {
            return -ENAMETOOLONG;
        }
        snprintf(done + used, sizeof(done) - used, "%s%s", used ? "/" : "", name);
        if (!last) {
            continue;
        }
    }
    char *slash = strrchr(done, '/');
    const char *leaf = slash ? slash + 1 : done;
    if (!*leaf) {
        int fd = openat(root, ".", flags | O_CLOEXEC, mode);
        return fd < 0 ? -errno : fd;
    }
    strcpy(name, leaf);
    *(slash ? slash : done) = '\0';
    auto_close int dir = walk_canonical(root, done);
    if (dir < 0) {
        return dir;
    }
    int fd = openat(dir, name, flags | O_NOFOLLOW | O_CLOEXEC, mode);
    return fd < 0 ? -errno : fd;
}

int fs_open(int root, const char *path, int flags, mode_t mode, enum fs_how how)
{
    static int missing;
    if (!missing && !fs_forced("no-openat2")) {
        uint64_t resolve = how == FS_IN_ROOT ? RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
                                             : RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
        struct open_how open_how = {.flags = (uint64_t)(flags | O_CLOEXEC),
                                    .mode = flags & (O_CREAT | __O_TMPFILE) ? mode : 0,
                                    .resolve = resolve};
        for (unsigned try = 0; try < 16; try++) {
            int fd = (int)syscall(SYS_openat2, root, *path ? path : ".", &open_how, sizeof(open_how));
            if (fd >= 0) {
                return fd;
            }
            if (errno != EAGAIN) { /* somebody renamed meanwhile */
                break;
            }
        }
        if (errno != ENOSYS && errno != EPERM) {
            return -errno;
        }
        __atomic_store_n(&missing, errno == ENOSYS, __ATOMIC_RELAXED);
    }
    return walk_open(root, path, flags, mode, how);
}

int fs_open_parent(int root, const char *path, enum fs_how how, const char **ret_name)
{
    const char *slash = strrchr(path, '/');
    *ret_name = slash ? slash + 1 : path;
    if (!slash) {
        return fs_open(root, ".", O_PATH | O_DIRECTORY, 0, how);
    }
    auto_free char *parent = strndup(path, (size_t)(slash - path));
    return parent ? fs_open(root, parent, O_PATH | O_DIRECTORY, 0, how) : -ENOMEM;
}

int fs_mkdirs(int root, const char *path, enum fs_how how)
{
    char part[PATH_MAX];
    if (strlen(path) >= sizeof(part)) {
        return -ENAMETOOLONG;
    }
    int fd = fs_open(root, path, O_PATH | O_DIRECTORY, 0, how);
    if (fd != -ENOENT) {
        return fd;
    }
    for (size_t i = 0;; i++) {
        if (path[i] && path[i] != '/') {
            continue;
        }
        memcpy(part, path, i);
        part[i] = '\0';
        fd = fs_open(root, part, O_PATH | O_DIRECTORY, 0, how);
        if (fd == -ENOENT) {
            const char *name;
            auto_close int parent = fs_open_parent(root, part, how, &name);
            if (parent < 0) {
                return parent;
            }
            if (mkdirat(parent, name, 0755) < 0 && errno != EEXIST) {
                return -errno;
            }
            fd = fs_open(root, part, O_PATH | O_DIRECTORY, 0, how);
        }
        if (fd < 0 || !path[i]) {
            return fd;
        }
        close(fd);
    }
}

/* ---- removing ---- */

static int remove_below(int dir, const char *name, unsigned depth)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT) {
        return 0;
    }
    if (errno != EISDIR && errno != EPERM) {
        return -errno;
    }
    if (depth > IMAGE_TREE_DEPTH_MAX) {
        return -ELOOP;
    }
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && fchmodat(dir, name, 0700, 0) == 0) {
        fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    }
    if (fd < 0) {
        return -errno;
    }
    struct stat st;
    if (fstat(fd, &st) == 0 && (st.st_mode & 0300) != 0300) {
        (void)fchmod(fd, 0700);
    }
    DIR *list = fdopendir(fd);
    if (!list) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(list));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            rc = remove_below(fd, e->d_name, depth + 1);
        }
    }
    closedir(list);
    return rc < 0 ? rc : unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT ? -errno : 0;
}

int fs_remove_tree(int dir, const char *name)
{
    return remove_below(dir, name, 0);
}

/* ---- small files ---- */

int fs_write_all(int fd, const void *data, size_t size)
{
    const char *p = data;
    while (size) {
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

int fs_read_file(int dir, const char *name, uint64_t max, char **ret_text, size_t *ret_size, struct err *err)
{
    auto_close int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "cannot read '%s'", name);
    }
    if (st.st_size < 0 || (uint64_t)st.st_size > max) {
        return err_set(err, -E2BIG, "'%s' is larger than %llu bytes", name, (unsigned long long)max);
    }
    /* What grows meanwhile is cut. */
    size_t size = 0, room = (size_t)st.st_size;
    auto_free char *text = malloc(room + 1);
    if (!text) {
        return err_set(err, -ENOMEM, "no memory");
    }
    while (size < room) {
        ssize_t n = read(fd, text + size, room - size);
        if (n < 0) {
            return err_sys(err, -errno, "cannot read '%s'", name);
        }
        if (n == 0) {
            break;
        }
        size += (size_t)n;
    }
    text[size] = '\0';
    *ret_text = text;
    text = NULL;
    if (ret_size) {
        *ret_size = size;
    }
    return 0;
}

int fs_write_file(int dir, const char *name, const void *data, size_t size, struct err *err)
{
    char temporary[PATH_MAX];
    static unsigned serial;
    snprintf(temporary, sizeof(temporary), "%s.new-%d-%u", name, getpid(),
             __atomic_fetch_add(&serial, 1, __ATOMIC_RELAXED));
    auto_close int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int rc = fd < 0 ? -errno : fs_write_all(fd, data, size);
    if (rc == 0 && (fsync(fd) < 0 || renameat(dir, temporary, dir, name) < 0)) {
        rc = -errno;
    }
    if (rc < 0) {
        unlinkat(dir, temporary, 0);
        return err_sys(err, rc, "cannot write '%s'", name);
    }
    const char *leaf;
    auto_close int parent = fs_open_parent(dir, name, FS_IN_ROOT, &leaf);
    auto_close int folder = parent < 0 ? -1 : openat(parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        (void)fsync(folder);
    }
    return 0;
}

/* ---- copying ---- */

int fs_copy_data(int from, int to, uint64_t size)
{
    if (size == 0) {
        return 0;
    }
    if (!fs_forced("no-reflink") && ioctl(to, FICLONE, from) == 0) {
        return 0;
    }
    if (ftruncate(to, (off_t)size) < 0) {
        return -errno;
    }
    enum { CHUNK = 256 * 1024 };
    auto_free char *buf = malloc(CHUNK);
    if (!buf) {
        return -ENOMEM;
    }
    for (off_t at = 0; (uint64_t)at < size;) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
            return 0; /* a hole up to the end */
        }
        off_t hole = data < 0 ? (off_t)size : lseek(from, data, SEEK_HOLE);
        at = data < 0 ? at : data;
        hole = hole < 0 || (uint64_t)hole > size ? (off_t)size : hole;
        while (at < hole) {
            ssize_t n = pread(from, buf, (size_t)MIN((off_t)CHUNK, hole - at), at);
            if (n <= 0) {
                return n < 0 ? -errno : 0;
            }
            for (ssize_t done = 0; done < n;) {
                ssize_t w = pwrite(to, buf + done, (size_t)(n - done), at + done);
                if (w < 0) {
                    return -errno;
                }
                done += w;
            }
            at += n;
        }
    }
    return 0;
}

int fs_copy_xattrs(int from, int to)
{
    char from_path[FS_PROC_MAX], to_path[FS_PROC_MAX];
    fs_proc_path(from, from_path);
    fs_proc_path(to, to_path);
    ssize_t size = listxattr(from_path, NULL, 0);
    if (size <= 0) {
        return size < 0 && errno != ENOTSUP && errno != EPERM ? -errno : 0;
    }
    auto_free char *names = malloc((size_t)size);
    auto_free char *value = malloc(IMAGE_XATTR_BYTES_MAX);
    if (!names || !value) {
        return -ENOMEM;
    }
    size = listxattr(from_path, names, (size_t)size);
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1) {
        const char *name = names + at;
        if (strncmp(name, "user.overlay.", 13) == 0 || strncmp(name, "trusted.overlay.", 16) == 0) {
            continue;
        }
        ssize_t n = getxattr(from_path, name, value, IMAGE_XATTR_BYTES_MAX);
        if (n >= 0 && setxattr(to_path, name, value, (size_t)n, 0) < 0 && errno != ENOTSUP &&
            errno != EPERM) {
            return -errno;
        }
    }
    return 0;
}

int fs_copy_node(int from_dir, const char *from, int to_dir, const char *to, struct err *err)
{
    struct stat st;
    auto_close int source = openat(from_dir, from, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (source < 0 || fstat(source, &st) < 0) {
        return err_sys(err, -errno, "cannot read '%s'", from);
    }
    int rc = 0;
    if (S_ISDIR(st.st_mode)) {
        rc = mkdirat(to_dir, to, 0700) < 0 && errno != EEXIST ? -errno : 0;
    } else if (S_ISLNK(st.st_mode)) {
        char link[PATH_MAX];
        ssize_t n = readlinkat(source, "", link, sizeof(link) - 1);
        link[MAX(n, 0)] = '\0';
        rc = n < 0 || symlinkat(link, to_dir, to) < 0 ? -errno : 0;
    } else if (S_ISREG(st.st_mode)) {
        auto_close int in = openat(from_dir, from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        auto_close int out = openat(to_dir, to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        rc = in < 0 || out < 0 ? -errno : fs_copy_data(in, out, (uint64_t)st.st_size);
    } else if (mknodat(to_dir, to, st.st_mode, st.st_rdev) < 0) {
        return S_ISSOCK(st.st_mode) || errno == EPERM ? 0 : err_sys(err, -errno, "cannot make '%s'", to);
    }
    if (rc < 0) {
        return err_sys(err, rc, "cannot copy '%s'", to);
    }
    auto_close int target = openat(to_dir, to, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0) {
        return err_sys(err, -errno, "cannot open '%s'", to);
    }
    if (fchownat(target, "", st.st_uid, st.st_gid, AT_EMPTY_PATH) < 0 && errno != EPERM && errno != EINVAL) {
        return err_sys(err, -errno, "cannot set the owner of '%s'", to);
    }
    if (!S_ISLNK(st.st_mode)) {
        char path[FS_PROC_MAX];
        fs_proc_path(target, path);
        if (chmod(path, st.st_mode & 07777) < 0) {
            return err_sys(err, -errno, "cannot set the mode of '%s'", to);
        }
        rc = fs_copy_xattrs(source, target);
        if (rc < 0) {
            return err_sys(err, rc, "cannot copy the attributes of '%s'", to);
        }
    }
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    (void)utimensat(to_dir, to, times, AT_SYMLINK_NOFOLLOW);
    return 0;
}

/* Files with more than one link, as they were met: a small open hash of (device, inode) to path in the
 * target. */
struct links {
    struct link {
        dev_t dev;
        ino_t ino;
        char *path;
    } *items;
    size_t count, room;
};

static const char *links_find(const struct links *links, const struct stat *st)
{
    for (size_t i = 0; i < links->count; i++) {
        if (links->items[i].ino == st->st_ino && links->items[i].dev == st->st_dev) {
            return links->items[i].path;
        }
    }
    return NULL;
}

static int links_add(struct links *links, const struct stat *st, const char *path)
{
    if (links->count == links->room) {
        size_t room = links->room ? links->room * 2 : 64;
        struct link *items = reallocarray(links->items, room, sizeof(*items));
        if (!items) {
            return -ENOMEM;
        }
        links->items = items;
        links->room = room;
    }
    struct link *item = &links->items[links->count];
    *item = (struct link){st->st_dev, st->st_ino, strdup(path)};
    links->count += item->path != NULL;
    return item->path ? 0 : -ENOMEM;
}

static int copy_below(int from, int to, int top, const char *path, struct links *links, unsigned depth,
                      struct err *err)
{
    int list_fd = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = list_fd < 0 || depth > IMAGE_TREE_DEPTH_MAX ? NULL : fdopendir(list_fd);
    if (!list) {
        int rc = err_sys(err, depth > IMAGE_TREE_DEPTH_MAX ? -ELOOP : -errno, "cannot read '/%s'", path);
        if (list_fd >= 0) {
            close(list_fd);
        }
        return rc;
    }
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(list));) {
        struct stat st;
        char below[PATH_MAX];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
            continue;
        }
        if (snprintf(below, sizeof(below), "%s%s%s", path, *path ? "/" : "", e->d_name) >=
            (int)sizeof(below)) {
            rc = err_set(err, -ENAMETOOLONG, "a path in the tree is longer than %d bytes", PATH_MAX);
            break;
        }
        if (fstatat(from, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            rc = err_sys(err, -errno, "cannot read '/%s'", below);
            break;
        }
        bool dir = S_ISDIR(st.st_mode), shared = !dir && st.st_nlink > 1;
        const char *first = shared ? links_find(links, &st) : NULL;
        if (first) {
            rc = linkat(top, first, to, e->d_name, 0) < 0 ? err_sys(err, -errno, "cannot link '/%s'", below)
                                                          : 0;
            continue;
        }
        rc = fs_copy_node(from, e->d_name, to, e->d_name, err);
        if (rc == 0 && shared) {
            rc = links_add(links, &st, below);
        }
        if (rc == 0 && dir) {
            auto_close int sub_from =
                openat(from, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            auto_close int sub_to = openat(to, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = sub_from < 0 || sub_to < 0 ? err_sys(err, -errno, "cannot open '/%s'", below)
                                            : copy_below(sub_from, sub_to, top, below, links, depth + 1, err);
            struct timespec times[2] = {st.st_atim, st.st_mtim};
            (void)utimensat(to, e->d_name, times, AT_SYMLINK_NOFOLLOW);
        }
    }
    closedir(list);
    return rc;
}

int fs_copy_tree(int from, int to, struct err *err)
{
    struct links links = {0};
    int rc = copy_below(from, to, to, "", &links, 0, err);
    for (size_t i = 0; i < links.count; i++) {
        free(links.items[i].path);
    }
    free(links.items);
    return rc;
}
