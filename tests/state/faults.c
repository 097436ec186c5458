/*
 * Preloaded into a program: counts what it does to the files below one directory, and at a chosen step ends
 * it, or lets the host's file system be full. faults.py drives it through a shared page.
 *
 * A step is a call that changes a file or makes changes last: making, writing, cutting, syncing, renaming,
 * removing. What goes past libc (io_uring) is not seen: FONDA_BLOCK_ENGINE=threads.
 *
 * Environment: FONDA_FAULTS (the page's file), FONDA_FAULTS_DIR (with a slash at its end).
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, TORN /* half of a write is done, then killed */, FULL_ONCE, FULL };

struct page {
    _Atomic uint32_t armed, count;
    uint32_t at, mode;
    char step[24]; /* what the chosen one was */
};

static struct page *page;
static const char *dir;

__attribute__((constructor)) static void open_page(void)
{
    const char *path = getenv("FONDA_FAULTS");
    dir = getenv("FONDA_FAULTS_DIR");
    int fd = path && dir ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map = fd >= 0 ? mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    page = map == MAP_FAILED ? NULL : map;
    if (fd >= 0) {
        close(fd);
    }
}

static bool watched_path(const char *path)
{
    return page && atomic_load(&page->armed) && strncmp(path, dir, strlen(dir)) == 0;
}

static bool watched_fd(int fd)
{
    char link[40], path[PATH_MAX];
    if (!page || !atomic_load(&page->armed)) {
        return false;
    }
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    return watched_path(path);
}

/* What becomes of this step: 0 it is done; ENOSPC; or it ends the process, unless `torn` is given, which is
 * set then. room: it may need more of the disk. */
static int step(const char *name, bool room, bool *torn)
{
    uint32_t number = atomic_fetch_add(&page->count, 1) + 1;
    if (number == page->at) {
        snprintf(page->step, sizeof(page->step), "%s", name);
    }
    switch (page->mode) {
    case KILL:
    case TORN:
        if (number == page->at) {
            if (page->mode == TORN && torn) {
                *torn = true;
                return 0;
            }
            kill(getpid(), SIGKILL);
        }
        return 0;
    case FULL_ONCE: return number == page->at ? ENOSPC : 0;
    case FULL: return number >= page->at && room ? ENOSPC : 0;
    default: return 0;
    }
}

/* Offsets have 64 bits, so libc calls some of them otherwise. */
#define REAL(name, symbol) ((__typeof__(&name))dlsym(RTLD_NEXT, symbol))
#define FAIL_IF(error)                                                                                       \
    do {                                                                                                     \
        int error_ = (error);                                                                                \
        if (error_) {                                                                                        \
            errno = error_;                                                                                  \
            return -1;                                                                                       \
        }                                                                                                    \
    } while (0)

/* The host's kernel and disks do sectors whole. */
static size_t half(size_t len)
{
    return len / 2 & ~(size_t)511;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    if ((flags & O_CREAT) && watched_path(path)) {
        FAIL_IF(step("open", true, NULL));
    }
    return REAL(open, "open64")(path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t len)
{
    bool torn = false;
    if (watched_fd(fd)) {
        FAIL_IF(step("write", true, &torn));
    }
    ssize_t n = REAL(write, "write")(fd, bytes, torn ? half(len) : len);
    if (torn) {
        kill(getpid(), SIGKILL);
    }
    return n;
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset)
{
    bool torn = false;
    if (watched_fd(fd)) {
        FAIL_IF(step("pwrite", true, &torn));
    }
    ssize_t n = REAL(pwrite, "pwrite64")(fd, bytes, torn ? half(len) : len, offset);
    if (torn) {
        kill(getpid(), SIGKILL);
    }
    return n;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    bool torn = false;
    if (watched_fd(fd)) {
        FAIL_IF(step("pwritev", true, &torn));
    }
    if (torn) {
        (void)!REAL(pwrite, "pwrite64")(fd, iov[0].iov_base, half(iov[0].iov_len), offset);
        kill(getpid(), SIGKILL);
    }
    return REAL(pwritev, "pwritev64")(fd, iov, count, offset);
}

int fsync(int fd)
{
    if (watched_fd(fd)) {
        FAIL_IF(step("fsync", false, NULL));
    }
    return REAL(fsync, "fsync")(fd);
}

int fdatasync(int fd)
{
    if (watched_fd(fd)) {
        FAIL_IF(step("fdatasync", false, NULL));
    }
    return REAL(fdatasync, "fdatasync")(fd);
}

int rename(const char *from, const char *to)
{
    if (watched_path(to)) {
        FAIL_IF(step("rename", false, NULL));
    }
    return REAL(rename, "rename")(from, to);
}

int unlink(const char *path)
{
    if (watched_path(path)) {
        int error = step("unlink", false, NULL);
        FAIL_IF(error == ENOSPC ? 0 : error); /* makes room */
    }
    return REAL(unlink, "unlink")(path);
}

int ftruncate(int fd, off_t length)
{
    if (watched_fd(fd)) {
        FAIL_IF(step("ftruncate", true, NULL));
    }
    return REAL(ftruncate, "ftruncate64")(fd, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (watched_fd(fd)) {
        FAIL_IF(step("fallocate", true, NULL));
    }
    return REAL(fallocate, "fallocate64")(fd, mode, offset, length);
}
