/*
 * An empty root directory. What is granted by path appears in it at the same path, as a mount of its own;
 * everything else of the host's files is out of reach, also from directories that are open: each that is
 * granted becomes a detached mount whose root it is, so that ".." ends there, and the others become nothing.
 *
 * The tree is a small tmpfs, made where some directory of the old root is; then the two change places and the
 * old one goes (pivot_root(2), with "." for both).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "base/util.h"
#include "sandbox/jail_int.h"

#define TREE_OPTIONS "mode=0755,size=256k,nr_inodes=2048"
#define FDS_MAX      4096

static int clone_mount(int fd, const char *path)
{
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | (path[0] ? 0 : AT_EMPTY_PATH);
    int tree = (int)syscall(SYS_open_tree, fd, path, flags);
    return tree < 0 ? -errno : tree;
}

/* --- directories that are open --- */

/* The same directory as fd, which was opened when the mounts were still the host's: by its name, if that is
 * still its name. */
static int clone_again(int fd)
{
    char link[32], path[PATH_MAX];
    struct stat was, is;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof(path) - 1);
    if (len <= 0) {
        return len < 0 ? -errno : -ENOENT;
    }
    path[len] = '\0';
    int tree = clone_mount(AT_FDCWD, path);
    if (tree >= 0 &&
        (fstat(fd, &was) < 0 || fstat(tree, &is) < 0 || was.st_dev != is.st_dev || was.st_ino != is.st_ino)) {
        close(tree);
        return -ESTALE;
    }
    return tree;
}

/* The descriptor keeps its number and its way of being open. */
static int isolate(int fd)
{
    int flags = fcntl(fd, F_GETFL), fd_flags = fcntl(fd, F_GETFD);
    auto_close int tree = clone_mount(fd, "");
    if (tree == -EINVAL) {
        tree = clone_again(fd);
    }
    if (tree < 0) {
        return tree;
    }
    auto_close int open_fd = -1;
    if (!(flags & O_PATH)) {
        open_fd = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (open_fd < 0) {
            return -errno;
        }
    }
    return dup3(open_fd < 0 ? tree : open_fd, fd, fd_flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0 ? -errno : 0;
}

/* Shared directories, and /proc's, through which a share's files are opened again. */
static bool may_stay(const struct jail *jail, int fd, const struct stat *st)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC) {
        return true;
    }
    for (unsigned i = 0; i < jail->grant_count; i++) {
        struct stat granted;
        if (jail->grants[i].fd >= 0 && fstat(jail->grants[i].fd, &granted) == 0 &&
            granted.st_dev == st->st_dev && granted.st_ino == st->st_ino) {
            return true;
        }
    }
    return false;
}

/* What nobody has granted is no directory any more. */
static int blind(int fd)
{
    auto_close int null = open("/dev/null", O_PATH | O_CLOEXEC);
    return null < 0 || dup3(null, fd, O_CLOEXEC) < 0 ? -errno : 0;
}

/* The numbers first, as the walk itself has a directory open. Returns how many, or -errno. */
static int list_fds(int *fds, int max)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    if (!dir) {
        return -errno;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && count < max;) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] != '.' && fd != dirfd(dir)) {
            fds[count++] = fd;
        }
    }
    closedir(dir);
    return count < max ? count : -EMFILE;
}

static int isolate_directories(const struct jail *jail)
{
    static int fds[FDS_MAX];
    int count = list_fds(fds, FDS_MAX);
    for (int i = 0; i < count; i++) {
        struct stat st;
        int rc = 0;
        if (fstat(fds[i], &st) == 0 && S_ISDIR(st.st_mode)) {
            rc = may_stay(jail, fds[i], &st) ? isolate(fds[i]) : blind(fds[i]);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return count < 0 ? count : 0;
}

/* --- the new tree --- */

static bool is_mounted(const struct grant *grant)
{
    return grant->rights == JAIL_GRANT_FILE || grant->rights == JAIL_GRANT_SOCKETS ||
           grant->rights == JAIL_GRANT_DIR;
}

/* Makes every directory of a path below the current one; the last component is a directory or an empty file.
 * ".." and "." mean what they mean on the way. */
static int make_path(const char *path, bool directory)
{
    char copy[PATH_MAX];
    if ((size_t)snprintf(copy, sizeof(copy), "./%s", path) >= sizeof(copy)) {
        return -ENAMETOOLONG;
    }
    for (char *slash = copy + 1; (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        int rc = mkdir(copy, 0755);
        *slash = '/';
        if (rc < 0 && errno != EEXIST) {
            return -errno;
        }
    }
    if (directory) {
        return mkdir(copy, 0755) < 0 && errno != EEXIST ? -errno : 0;
    }
    auto_close int fd = open(copy, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    return fd < 0 ? -errno : 0;
}

static int place(const struct grant *grant)
{
    char path[PATH_MAX];
    struct stat st;
    snprintf(path, sizeof(path), "./%s", grant->path);
    int rc = fstat(grant->fd, &st) < 0 ? -errno : make_path(grant->path, S_ISDIR(st.st_mode));
    if (rc < 0) {
        return rc;
    }
    if (syscall(SYS_move_mount, grant->fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0) {
        return -errno;
    }
    unsigned long flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC |
                          (grant->rights == JAIL_GRANT_FILE ? MS_RDONLY : 0);
    return mount(NULL, path, NULL, flags, NULL) < 0 ? -errno : 0;
}

static int mount_tree(void)
{
    static const char *const places[] = {"/tmp", "/run", "/etc", "/proc", "/dev"};
    int rc = -ENOENT;
    for (size_t i = 0; i < ARRAY_SIZE(places) && rc < 0; i++) {
        rc = mount("fonda-jail", places[i], "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, TREE_OPTIONS) < 0
                 ? -errno
                 : 0;
        if (rc == 0 && chdir(places[i]) < 0) {
            rc = -errno;
        }
    }
    return rc;
}

static int change_roots(const char *cwd)
{
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) {
        return -errno;
    }
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) <
        0) {
        return -errno;
    }
    return chdir(cwd) < 0 && chdir("/") < 0 ? -errno : 0;
}

int root_enter(struct jail *jail)
{
    char cwd[PATH_MAX];
    if (jail->errors[JAIL_LAYER_MOUNT] < 0) {
        return jail->errors[JAIL_LAYER_MOUNT];
    }
    if (!getcwd(cwd, sizeof(cwd)) || cwd[0] != '/') {
        strcpy(cwd, "/");
    }
    int rc = isolate_directories(jail);
    for (unsigned i = 0; i < jail->grant_count && rc == 0; i++) {
        struct grant *grant = &jail->grants[i];
        if (is_mounted(grant) && grant->fd >= 0) {
            int tree = clone_mount(AT_FDCWD, grant->path);
            if (tree >= 0) {
                dup3(tree, grant->fd, O_CLOEXEC);
                close(tree);
            }
            rc = tree < 0 ? tree : 0;
        }
    }
    if (rc == 0) {
        rc = mount_tree();
    }
    if (rc == 0) {
        rc = make_path(cwd, true);
    }
    for (unsigned i = 0; i < jail->grant_count && rc == 0; i++) {
        rc = is_mounted(&jail->grants[i]) && jail->grants[i].fd >= 0 ? place(&jail->grants[i]) : 0;
    }
    return rc < 0 ? rc : change_roots(cwd);
}
