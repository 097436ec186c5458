/*
 * The transport file: a regular file or block device of the host. Neighbour: filelock.c.
 *
 * Requests that the host takes as they are go to it from file_submit() and complete in file_done(), which
 * also goes on after short transfers. The rest (O_DIRECT with odd alignment, zeroes, discards) runs in a
 * coroutine, file_slow().
 *
 * 1. With O_DIRECT every write holds a range lock on the blocks that it touches, a read-modify-write an
 *    exclusive one.
 * 2. After fdatasync() failed once, every flush fails: the host may have dropped dirty pages and marked
 *    them clean. Want of room under O_DIRECT is no such case: there the data are on the disk, and what failed
 *    can be tried again.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "block/block_provider.h"
#include "block/file_int.h"

/* Largest block of a device that O_DIRECT is tried with. */
#define DIRECT_ALIGN_MAX 4096u
/* One piece of a bounced transfer or of written zeroes. */
#define BOUNCE_BYTES (1u << 20)

struct file {
    int fd;
    bool direct, block_device, flush_failed, no_flush;
    uint32_t align; /* of offsets, lengths and memory under O_DIRECT; otherwise 1 */
    struct range_locks locks;
    struct file_op *idle_ops;
};

struct file_op {
    struct blk_aio aio;
    struct blk_req *req;
    struct blk_node *node;
    uint64_t done_bytes;
    struct iovec *iov; /* what remains after a short transfer; malloc'd */
    struct range_lock lock;
    bool locked;
    struct file_op *next;
};

/* ---- the fast path ---- */

static bool is_aligned(const struct file *file, const struct blk_req *req)
{
    if (!file->direct || req->op == BLK_FLUSH) {
        return true;
    }
    uint64_t bits = req->offset | req->bytes;
    for (unsigned i = 0; i < req->iov_count; i++) {
        bits |= (uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len;
    }
    return (bits & (file->align - 1)) == 0;
}

static void finish(struct file_op *op, int error)
{
    struct file *file = op->node->state;
    struct blk_req *req = op->req;
    if (op->locked) {
        range_unlock(&file->locks, &op->lock);
    }
    free(op->iov);
    op->next = file->idle_ops;
    file->idle_ops = op;
    blk_req_complete(req, error);
}

static void go_on(struct file_op *op)
{
    struct blk_req *req = op->req;
    if (!op->iov) {
        op->iov = calloc(req->iov_count, sizeof(*op->iov));
        if (!op->iov) {
            finish(op, -ENOMEM);
            return;
        }
    }
    op->aio.iov_count =
        iov_slice(op->iov, req->iov, req->iov_count, op->done_bytes, req->bytes - op->done_bytes);
    op->aio.iov = op->iov;
    op->aio.offset = req->offset + op->done_bytes;
    blk_aio_submit(op->node->loop, &op->aio);
}

static void file_done(struct blk_aio *aio)
{
    struct file_op *op = CONTAINER_OF(aio, struct file_op, aio);
    struct file *file = op->node->state;
    struct blk_req *req = op->req;
    if (aio->result == -EINTR || aio->result == -EAGAIN) {
        blk_aio_submit(op->node->loop, aio);
        return;
    }
    if (aio->result < 0) {
        if (req->op == BLK_FLUSH && !(file->direct && (aio->result == -ENOSPC || aio->result == -EDQUOT))) {
            file->flush_failed = true;
        }
        finish(op, (int)aio->result);
        return;
    }
    if (req->op == BLK_FLUSH) {
        finish(op, 0);
        return;
    }
    op->done_bytes += (uint64_t)aio->result;
    if (op->done_bytes >= req->bytes) {
        finish(op, 0);
    } else if (req->op == BLK_READ &&
               (aio->result == 0 || ((uint64_t)aio->result & (file->align - 1)) != 0)) {
        /* Behind the end of the file is nothing but zeroes. */
        iov_zero(req->iov, req->iov_count, op->done_bytes, req->bytes - op->done_bytes);
        finish(op, 0);
    } else if (aio->result == 0) {
        finish(op, -EIO);
    } else {
        go_on(op);
    }
}

static struct file_op *op_new(struct blk_node *node, struct blk_req *req)
{
    struct file *file = node->state;
    struct file_op *op = file->idle_ops;
    if (op) {
        file->idle_ops = op->next;
    } else if (!(op = malloc(sizeof(*op)))) {
        return NULL;
    }
    *op = (struct file_op){.req = req, .node = node};
    op->aio = (struct blk_aio){.op = req->op,
                               .fd = file->fd,
                               .offset = req->offset,
                               .bytes = req->bytes,
                               .iov = req->iov,
                               .iov_count = req->iov_count,
                               .done = file_done};
    return op;
}

/* ---- the slow path, in a coroutine ---- */

struct co_aio {
    struct blk_aio aio;
    struct co *co;
};

static void co_aio_done(struct blk_aio *aio)
{
    co_resume(CONTAINER_OF(aio, struct co_aio, aio)->co);
}

static int64_t co_aio(struct blk_node *node, struct co_aio *io)
{
    struct file *file = node->state;
    io->co = co_self();
    io->aio.fd = file->fd;
    io->aio.done = co_aio_done;
    do {
        blk_aio_submit(node->loop, &io->aio);
        co_suspend();
    } while (io->aio.result == -EINTR || io->aio.result == -EAGAIN);
    return io->aio.result;
}

/* One whole aligned buffer; reads past the end give zeroes. */
static int co_buffer(struct blk_node *node, enum blk_op op, uint64_t offset, uint8_t *buf, uint64_t bytes)
{
    struct file *file = node->state;
    uint64_t done = 0;
    while (done < bytes) {
        struct iovec iov = {buf + done, bytes - done};
        struct co_aio io = {.aio = {.op = op, .offset = offset + done, .iov = &iov, .iov_count = 1}};
        int64_t n = co_aio(node, &io);
        if (n < 0) {
            return (int)n;
        }
        done += (uint64_t)n;
        if (done < bytes && op == BLK_READ && (n == 0 || ((uint64_t)n & (file->align - 1)) != 0)) {
            memset(buf + done, 0, bytes - done);
            return 0;
        }
        if (n == 0) {
            return -EIO;
        }
    }
    return 0;
}

static int bounce(struct blk_node *node, struct blk_req *req)
{
    struct file *file = node->state;
    uint64_t align = file->align;
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, DIRECT_ALIGN_MAX, BOUNCE_BYTES) != 0) {
        return -ENOMEM;
    }
    int error = 0;
    for (uint64_t at = 0; !error && at < req->bytes;) {
        uint64_t offset = req->offset + at;
        uint64_t start = align_down(offset, align);
        uint64_t end = MIN(align_up(req->offset + req->bytes, align), start + BOUNCE_BYTES);
        uint64_t n = MIN(end, req->offset + req->bytes) - offset;
        if (req->op == BLK_READ) {
            error = co_buffer(node, BLK_READ, start, buf, end - start);
            if (!error) {
                iov_from_buf(req->iov, req->iov_count, at, buf + (offset - start), n);
            }
        } else {
            bool head = offset != start, tail = offset + n != end;
            if (head || (tail && end - start == align)) {
                error = co_buffer(node, BLK_READ, start, buf, align);
            }
            if (!error && tail && end - start > align) {
                error = co_buffer(node, BLK_READ, end - align, buf + (end - align - start), align);
            }
            if (!error) {
                iov_to_buf(req->iov, req->iov_count, at, buf + (offset - start), n);
                error = co_buffer(node, BLK_WRITE, start, buf, end - start);
            }
        }
        at += n;
    }
    free(buf);
    /* A raw image keeps its odd length. */
    if (!error && req->op == BLK_WRITE && !node->growable && !file->block_device &&
        align_up(req->offset + req->bytes, align) > node->size_bytes &&
        ftruncate(file->fd, (off_t)node->size_bytes) < 0) {
        error = -errno;
    }
    return error;
}

static int write_zero_buffers(struct blk_node *node, struct blk_req *req)
{
    uint64_t size = MIN(req->bytes, (uint64_t)BOUNCE_BYTES);
    uint8_t *zeroes = NULL;
    if (posix_memalign((void **)&zeroes, DIRECT_ALIGN_MAX, align_up(size, DIRECT_ALIGN_MAX)) != 0) {
        return -ENOMEM;
    }
    memset(zeroes, 0, size);
    struct file *file = node->state;
    int error = 0;
    for (uint64_t at = 0; !error && at < req->bytes;) {
        uint64_t n = MIN(size, req->bytes - at);
        struct iovec iov = {zeroes, n};
        struct blk_req part = {
            .op = BLK_WRITE, .offset = req->offset + at, .bytes = n, .iov = &iov, .iov_count = 1};
        error = file->direct ? bounce(node, &part) : co_buffer(node, BLK_WRITE, part.offset, zeroes, n);
        at += n;
    }
    free(zeroes);
    return error;
}

static int64_t co_fallocate(struct blk_node *node, const struct blk_req *req, int mode)
{
    struct co_aio io = {
        .aio = {.op = BLK_DISCARD, .offset = req->offset, .bytes = req->bytes, .fallocate_mode = mode}};
    return co_aio(node, &io);
}

static bool is_unsupported(int64_t error)
{
    return error == -EOPNOTSUPP || error == -EINVAL || error == -ENOSYS || error == -ENODEV;
}

static int write_zeroes(struct blk_node *node, struct blk_req *req)
{
    struct file *file = node->state;
    int64_t error = -EOPNOTSUPP;
    if (req->flags & BLK_REQ_UNMAP) {
        error = co_fallocate(node, req, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
        struct stat st;
        if (error == 0 && !file->block_device && fstat(file->fd, &st) == 0 &&
            (uint64_t)st.st_size < req->offset + req->bytes &&
            ftruncate(file->fd, (off_t)(req->offset + req->bytes)) < 0) {
            error = -errno;
        }
    }
    if (is_unsupported(error)) {
        error = co_fallocate(node, req, FALLOC_FL_ZERO_RANGE);
    }
    if (is_unsupported(error)) {
        error = write_zero_buffers(node, req);
    }
    return (int)error;
}

static int slow_io(struct blk_node *node, struct blk_req *req)
{
    if (req->op == BLK_WRITE_ZEROES) {
        return write_zeroes(node, req);
    }
    if (req->op == BLK_DISCARD) {
        int64_t error = co_fallocate(node, req, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
        return is_unsupported(error) ? 0 : (int)error; /* a discard is a hint */
    }
    return bounce(node, req);
}

static void file_slow(void *arg)
{
    struct blk_req *req = arg;
    struct blk_node *node = req->file_node;
    struct file *file = node->state;
    if (!file->direct || req->op == BLK_READ) {
        blk_req_complete(req, slow_io(node, req));
        return;
    }
    struct range_lock lock;
    range_lock(&file->locks, &lock, align_down(req->offset, file->align),
               align_up(req->offset + req->bytes, file->align), true);
    int error = slow_io(node, req);
    range_unlock(&file->locks, &lock);
    blk_req_complete(req, error);
}

/* ---- the driver ---- */

static int map(struct blk_node *node, struct blk_req *req)
{
    struct file *file = node->state;
    off_t start = (off_t)req->offset;
    off_t data = lseek(file->fd, start, SEEK_DATA);
    uint64_t end = req->offset + req->bytes;
    req->map = (struct blk_map){.bytes = req->bytes};
    if (data < 0 && errno == ENXIO) { /* nothing but a hole up to the end */
        req->map.flags = BLK_MAP_ZERO | BLK_MAP_ALLOCATED;
    } else if (data > start) {
        req->map.flags = BLK_MAP_ZERO | BLK_MAP_ALLOCATED;
        req->map.bytes = MIN((uint64_t)data, end) - req->offset;
    } else {
        off_t hole = data < 0 ? -1 : lseek(file->fd, start, SEEK_HOLE);
        req->map.flags = BLK_MAP_DATA | BLK_MAP_ALLOCATED | BLK_MAP_OFFSET;
        req->map.host_offset = req->offset;
        if (hole > start) {
            req->map.bytes = MIN((uint64_t)hole, end) - req->offset;
        }
    }
    return 0;
}

static void file_submit(struct blk_node *node, struct blk_req *req)
{
    struct file *file = node->state;
    if (req->op == BLK_MAP) {
        blk_req_complete(req, map(node, req));
        return;
    }
    if (req->op == BLK_FLUSH && (file->no_flush || file->flush_failed)) {
        blk_req_complete(req, file->flush_failed ? -EIO : 0);
        return;
    }
    struct file_op *op = NULL;
    if (req->op <= BLK_FLUSH && is_aligned(file, req)) {
        op = op_new(node, req);
        if (!op) {
            blk_req_complete(req, -ENOMEM);
            return;
        }
        if (!file->direct || req->op != BLK_WRITE) {
            blk_aio_submit(node->loop, &op->aio);
            return;
        }
        op->locked = range_trylock(&file->locks, &op->lock, req->offset, req->offset + req->bytes, false);
        if (op->locked) {
            blk_aio_submit(node->loop, &op->aio);
            return;
        }
        op->next = file->idle_ops;
        file->idle_ops = op;
    }
    req->file_node = node;
    int error = co_start(file_slow, req);
    if (error) {
        blk_req_complete(req, error);
    }
}

static int file_close(struct blk_node *node)
{
    struct file *file = node->state;
    while (file->idle_ops) {
        struct file_op *op = file->idle_ops;
        file->idle_ops = op->next;
        free(op);
    }
    return file->fd >= 0 && close(file->fd) < 0 ? -errno : 0;
}

static int file_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err)
{
    struct file *file = node->state;
    if (file->block_device) {
        return err_set(err, -ENOTSUP, "'%s' is a block device and can't be resized", node->filename);
    }
    if (ftruncate(file->fd, (off_t)size_bytes) < 0) {
        return err_sys(err, -errno, "cannot resize '%s'", node->filename);
    }
    node->size_bytes = size_bytes;
    return 0;
}

static void file_info(struct blk_node *node, struct blk_info *info)
{
    struct file *file = node->state;
    struct stat st;
    if (fstat(file->fd, &st) == 0) {
        info->host_bytes = (uint64_t)st.st_blocks * 512u; /* POSIX stat: in units of 512 */
        info->host_length = file->block_device ? node->size_bytes : (uint64_t)st.st_size;
    }
    info->align = file->align;
}

/* The smallest alignment that O_DIRECT accepts here; an empty file can't be asked. */
static uint32_t probe_align(int fd)
{
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, DIRECT_ALIGN_MAX, 2 * DIRECT_ALIGN_MAX) != 0) {
        return DIRECT_ALIGN_MAX;
    }
    uint32_t align = BLK_SECTOR_SIZE;
    while (align < DIRECT_ALIGN_MAX && pread(fd, buf + align, align, 0) != (ssize_t)align) {
        align *= 2;
    }
    free(buf);
    return align;
}

/* A descriptor of our own for what somebody else has opened. Its flags are shared with that one. */
static int adopt(int fd, int open_flags)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) {
        return -1;
    }
    if ((open_flags & O_ACCMODE) == O_RDWR && (flags & O_ACCMODE) != O_RDWR) {
        errno = EACCES;
        return -1;
    }
    if ((open_flags & ~flags & O_DIRECT) && fcntl(fd, F_SETFL, flags | O_DIRECT) < 0) {
        return -1;
    }
    return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

int blk_open_file(struct blk_loop *loop, const char *path, unsigned flags, enum blk_cache cache,
                  struct blk_node **ret_node, struct err *err)
{
    struct blk_node *node = blk_node_new(loop, &blk_file_driver, path);
    if (!node) {
        return err_sys(err, -ENOMEM, "cannot open image '%s'", path);
    }
    struct file *file = node->state;
    node->flags = flags;
    file->direct = cache == BLK_CACHE_NONE;
    file->no_flush = cache == BLK_CACHE_UNSAFE;
    file->align = 1;
    range_locks_init(&file->locks, loop);
    int open_flags = O_CLOEXEC | O_NONBLOCK | (flags & BLK_OPEN_RDWR ? O_RDWR : O_RDONLY);
    const struct blk_open_file *given = blk_loop_given(loop, path);
    file->fd = given ? adopt(given->fd, open_flags | (file->direct ? O_DIRECT : 0))
                     : open(path, open_flags | (file->direct ? O_DIRECT : 0));
    int error = 0;
    struct stat st;
    if (file->fd < 0 && errno == EINVAL && file->direct) {
        error = err_set(err, -EINVAL,
                        "cannot open image '%s' with cache mode none: its file system has no O_DIRECT", path);
    } else if (file->fd < 0 || fstat(file->fd, &st) < 0) {
        error = err_sys(err, -errno, "cannot open image '%s'", path);
    } else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        error = err_set(err, -EINVAL, "image '%s' is neither a file nor a block device", path);
    } else if (!(flags & BLK_OPEN_NO_LOCK)) {
        error = blk_file_lock(file->fd, path, flags & BLK_OPEN_RDWR, err);
    }
    off_t size = error ? 0 : lseek(file->fd, 0, SEEK_END);
    if (size < 0) {
        error = err_sys(err, -errno, "cannot find the size of image '%s'", path);
    }
    if (error) {
        file_close(node);
        blk_node_free(node);
        return error;
    }
    file->block_device = S_ISBLK(st.st_mode);
    node->size_bytes = (uint64_t)size;
    if (file->direct) {
        file->align = probe_align(file->fd);
    }
    *ret_node = node;
    return 0;
}

const struct blk_driver blk_file_driver = {
    .name = "file",
    .state_size = sizeof(struct file),
    .close = file_close,
    .submit = file_submit,
    .resize = file_resize,
    .info = file_info,
};
