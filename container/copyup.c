/* tmpcopyup: a tmpfs starts with what the directory below it holds. Contents are copied as they are, owners
 * and modes included; sockets are left out. Bounded in depth; the tmpfs's own size bounds the rest. */
#include "base/util.h"
#include "container/container.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#define COPY_DEPTH_MAX 64

static int copy_directory(int from, int to, unsigned depth, struct err *err);

static int copy_file(int from, int to, const char *name, mode_t mode)
{
    auto_close int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    auto_close int out =
        in < 0 ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode & 07777);
    if (out < 0) {
        return -errno;
    }
    for (;;) {
        ssize_t n = sendfile(out, in, NULL, 1 << 20);
        if (n <= 0) {
            return n < 0 ? -errno : 0;
        }
    }
}

static int copy_link(int from, int to, const char *name)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(from, name, target, sizeof(target) - 1);
    if (n < 0) {
        return -errno;
    }
    target[n] = '\0';
    return symlinkat(target, to, name) < 0 ? -errno : 0;
}

static int copy_entry(int from, int to, const char *name, unsigned depth, struct err *err)
{
    struct stat st;
    int rc = 0;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return err_sys(err, -errno, "cannot copy '%s'", name);
    }
    if (S_ISDIR(st.st_mode)) {
        auto_close int in = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = in < 0 || mkdirat(to, name, st.st_mode & 07777) < 0 ? -errno : 0;
        auto_close int out = rc < 0 ? -1 : openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (rc == 0) {
            rc = out < 0 ? -errno : copy_directory(in, out, depth + 1, err);
        }
    } else if (S_ISREG(st.st_mode)) {
        rc = copy_file(from, to, name, st.st_mode);
    } else if (S_ISLNK(st.st_mode)) {
        rc = copy_link(from, to, name);
    } else if (S_ISFIFO(st.st_mode)) {
        rc = mknodat(to, name, st.st_mode, 0) < 0 ? -errno : 0;
    } else {
        return 0;
    }
    if (rc == 0 && fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) < 0 && errno != EINVAL) {
        rc = -errno; /* EINVAL: an owner that the user namespace has no number for */
    }
    if (rc == 0 && !S_ISLNK(st.st_mode) && fchmodat(to, name, st.st_mode & 07777, 0) < 0) {
        rc = -errno;
    }
    return rc < 0 ? err_sys(err, rc, "cannot copy '%s'", name) : 0;
}

static int copy_directory(int from, int to, unsigned depth, struct err *err)
{
    if (depth > COPY_DEPTH_MAX) {
        return err_set(err, -ELOOP, "more than %d directories deep", COPY_DEPTH_MAX);
    }
    int fd = fcntl(from, F_DUPFD_CLOEXEC, 3);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int code = -errno;
        if (fd >= 0) {
            close(fd);
        }
        return err_sys(err, code, "cannot read a directory");
    }
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            rc = copy_entry(from, to, entry->d_name, depth, err);
        }
    }
    closedir(dir);
    return rc;
}

int copy_up(int from_fd, int to_fd, struct err *err)
{
    mode_t mask = umask(0);
    int rc = copy_directory(from_fd, to_fd, 0, err);
    umask(mask);
    return rc;
}
