/*
 * See disk.h.
 *
 * A worker thread does one request and puts it on the list of finished ones; the loop, or whoever drains,
 * takes them from there. `outstanding` counts requests between submit and that list, so drain needs no turn
 * of the loop.
 */
#include "vm/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define ZERO_BYTES (64 * KiB)

struct disk {
    struct vblk_backend backend;
    uv_loop_t *loop;
    uv_async_t async;
    int fd;
    unsigned works; /* that libuv has not given back */
    bool freeing, async_closed;
    pthread_mutex_t lock; /* the two below */
    pthread_cond_t changed;
    struct vblk_io *finished;
    unsigned outstanding;
};

struct work {
    uv_work_t work;
    struct disk *disk;
    struct vblk_io *io;
};

/* Moves all bytes of the vector, which it uses up. */
static int transfer(int fd, bool write, struct iovec *iov, unsigned count, uint64_t offset)
{
    while (count) {
        ssize_t n =
            write ? pwritev(fd, iov, (int)count, (off_t)offset) : preadv(fd, iov, (int)count, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO; /* a file that became shorter */
        }
        offset += (uint64_t)n;
        while (count && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count) {
            iov->iov_base = (uint8_t *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int write_zeroes(int fd, const struct vblk_io *io)
{
    static const uint8_t zeroes[ZERO_BYTES];
    int mode = (io->may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    if (fallocate(fd, mode, (off_t)io->offset, (off_t)io->bytes) == 0) {
        return 0;
    }
    for (uint64_t done = 0; done < io->bytes;) {
        uint64_t n = MIN(io->bytes - done, ZERO_BYTES);
        struct iovec iov = {(void *)(uintptr_t)zeroes, n};
        int rc = transfer(fd, true, &iov, 1, io->offset + done);
        if (rc < 0) {
            return rc;
        }
        done += n;
    }
    return 0;
}

static int perform(int fd, const struct vblk_io *io)
{
    switch (io->op) {
    case VBLK_READ:
    case VBLK_WRITE: {
        struct iovec iov[IOV_MAX];
        unsigned count = MIN(io->iov_count, IOV_MAX);
        memcpy(iov, io->iov, count * sizeof(iov[0]));
        return transfer(fd, io->op == VBLK_WRITE, iov, count, io->offset);
    }
    case VBLK_FLUSH: return fdatasync(fd) < 0 ? -errno : 0;
    case VBLK_DISCARD:
        /* A hint: a file system that can't is no error. */
        (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset, (off_t)io->bytes);
        return 0;
    case VBLK_WRITE_ZEROES: return io->bytes ? write_zeroes(fd, io) : 0;
    }
    return -EINVAL;
}

/* A worker thread. */
static void on_work(uv_work_t *work)
{
    struct work *w = CONTAINER_OF(work, struct work, work);
    struct disk *disk = w->disk;
    w->io->result = perform(disk->fd, w->io);
    pthread_mutex_lock(&disk->lock);
    w->io->next = disk->finished;
    disk->finished = w->io;
    disk->outstanding--;
    pthread_cond_signal(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
    uv_async_send(&disk->async);
}

static void free_when_idle(struct disk *disk)
{
    if (disk->freeing && disk->works == 0 && disk->async_closed) {
        close(disk->fd);
        pthread_cond_destroy(&disk->changed);
        pthread_mutex_destroy(&disk->lock);
        free(disk);
    }
}

static void on_async_closed(uv_handle_t *handle)
{
    struct disk *disk = handle->data;
    disk->async_closed = true;
    free_when_idle(disk);
}

static void after_work(uv_work_t *work, int status)
{
    struct work *w = CONTAINER_OF(work, struct work, work);
    struct disk *disk = w->disk;
    free(w);
    disk->works--;
    if (disk->freeing && disk->works == 0) { /* no worker sends to it any more */
        uv_close((uv_handle_t *)&disk->async, on_async_closed);
    }
}

static void run_finished(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    struct vblk_io *io = disk->finished;
    disk->finished = NULL;
    pthread_mutex_unlock(&disk->lock);
    while (io) {
        struct vblk_io *next = io->next;
        io->done(io);
        io = next;
    }
}

static void on_async(uv_async_t *async)
{
    run_finished(async->data);
}

static void disk_submit(struct vblk_backend *backend, struct vblk_io *io)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    struct work *w = calloc(1, sizeof(*w));
    pthread_mutex_lock(&disk->lock);
    if (w) {
        disk->outstanding++;
    } else {
        io->result = -ENOMEM;
        io->next = disk->finished;
        disk->finished = io;
    }
    pthread_mutex_unlock(&disk->lock);
    if (!w) {
        uv_async_send(&disk->async);
        return;
    }
    w->disk = disk;
    w->io = io;
    disk->works++;
    uv_queue_work(disk->loop, &w->work, on_work, after_work);
}

static void disk_drain(struct vblk_backend *backend)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    pthread_mutex_lock(&disk->lock);
    while (disk->outstanding) {
        pthread_cond_wait(&disk->changed, &disk->lock);
    }
    pthread_mutex_unlock(&disk->lock);
    run_finished(disk);
}

static void disk_free(struct vblk_backend *backend)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    disk->freeing = true;
    if (disk->works == 0) {
        uv_close((uv_handle_t *)&disk->async, on_async_closed);
    }
}

static const struct vblk_backend_ops disk_ops = {disk_submit, disk_drain, disk_free};

static int disk_size(int fd, uint64_t *ret_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (S_ISBLK(st.st_mode)) {
        return ioctl(fd, BLKGETSIZE64, ret_bytes) < 0 ? -errno : 0;
    }
    if (!S_ISREG(st.st_mode)) {
        return -EINVAL;
    }
    *ret_bytes = (uint64_t)st.st_size;
    return 0;
}

struct vblk_backend *disk_open(uv_loop_t *loop, const char *path, bool read_only, struct err *err)
{
    auto_close int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (fd < 0) {
        err_sys(err, -errno, "cannot open disk '%s'", path);
        return NULL;
    }
    uint64_t bytes = 0;
    int rc = disk_size(fd, &bytes);
    if (rc < 0) {
        err_set(err, rc, "disk '%s' is neither a file nor a block device", path);
        return NULL;
    }
    if (bytes < 512) {
        err_set(err, -EINVAL, "disk '%s' is smaller than one sector", path);
        return NULL;
    }
    if (flock(fd, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0) {
        err_set(err, -EBUSY, "disk '%s' is in use by another machine", path);
        return NULL;
    }
    struct disk *disk = calloc(1, sizeof(*disk));
    if (!disk || uv_async_init(loop, &disk->async, on_async) < 0) {
        err_set(err, -ENOMEM, "out of memory");
        free(disk);
        return NULL;
    }
    disk->backend = (struct vblk_backend){.ops = &disk_ops,
                                          .size_bytes = align_down(bytes, 512),
                                          .block_bytes = 512,
                                          .read_only = read_only,
                                          .can_discard = !read_only};
    disk->async.data = disk;
    disk->loop = loop;
    disk->fd = fd;
    fd = -1;
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->changed, NULL);
    return &disk->backend;
}
