/*
 * Nodes and requests: checks, hands to the driver, counts, completes. Neighbours: open.c builds graphs;
 * loop.c runs what is complete.
 *
 * 1. A driver sees only requests that passed check(): known op, in bounds, vector and bytes agree, not empty.
 * 2. A driver never sees BLK_REQ_FUA: the flush is added here.
 * 3. in_flight counts from the submission until just before done().
 */
#include <errno.h>
#include <string.h>

#include "block/block_provider.h"

struct blk_node *blk_node_new(struct blk_loop *loop, const struct blk_driver *driver, const char *filename)
{
    struct blk_node *node = calloc(1, sizeof(*node));
    if (!node) {
        return NULL;
    }
    node->driver = driver;
    node->loop = loop;
    node->filename = strdup(filename);
    node->state = calloc(1, MAX(driver->state_size, 1u));
    if (!node->filename || !node->state) {
        blk_node_free(node);
        return NULL;
    }
    return node;
}

void blk_node_free(struct blk_node *node)
{
    if (node) {
        free(node->filename);
        free(node->state);
        free(node);
    }
}

static bool writes(enum blk_op op)
{
    return op == BLK_WRITE || op == BLK_DISCARD || op == BLK_WRITE_ZEROES;
}

static int check(struct blk_node *node, const struct blk_req *req)
{
    if ((unsigned)req->op >= BLK_OP_COUNT) {
        return -EINVAL;
    }
    if (writes(req->op) && !(node->flags & BLK_OPEN_RDWR)) {
        return -EROFS;
    }
    if (req->op == BLK_FLUSH) {
        return 0;
    }
    uint64_t end;
    if (__builtin_add_overflow(req->offset, req->bytes, &end) || end > INT64_MAX ||
        (end > node->size_bytes && !node->growable)) {
        return -EINVAL;
    }
    if (req->op == BLK_MAP) {
        return req->bytes ? 0 : -EINVAL;
    }
    if (req->op == BLK_READ || req->op == BLK_WRITE) {
        if (req->bytes > BLK_REQ_BYTES_MAX || req->iov_count > BLK_REQ_IOV_MAX) {
            return -EINVAL;
        }
        uint64_t sum = 0;
        for (unsigned i = 0; i < req->iov_count; i++) {
            if (req->iov[i].iov_len > req->bytes - sum) {
                return -EINVAL;
            }
            sum += req->iov[i].iov_len;
        }
        return sum == req->bytes ? 0 : -EINVAL;
    }
    return 0;
}

static bool is_empty(const struct blk_req *req)
{
    return req->op != BLK_FLUSH && req->bytes == 0;
}

static void count(struct blk_node *node, const struct blk_req *req, int error)
{
    if ((unsigned)req->op >= BLK_OP_COUNT) {
        return;
    }
    node->stats.ops[req->op]++;
    if (error) {
        node->stats.errors[req->op]++;
    } else if (req->op == BLK_READ) {
        node->stats.read_bytes += req->bytes;
    } else if (req->op == BLK_WRITE) {
        node->stats.write_bytes += req->bytes;
    }
}

/* The driver has its own way to complete, and so has what it passes the request on to. */
static bool is_direct(const struct blk_node *node)
{
    return node->driver->submit && (!node->file || is_direct(node->file));
}

static bool wants_flush(const struct blk_node *node, const struct blk_req *req)
{
    return (req->op == BLK_WRITE || req->op == BLK_WRITE_ZEROES) &&
           ((req->flags & BLK_REQ_FUA) || node->cache == BLK_CACHE_WRITETHROUGH);
}

struct waiter {
    struct co *co;
    bool done;
    int error;
};

static void wake(struct blk_req *req, int error)
{
    struct waiter *waiter = req->opaque;
    waiter->error = error;
    waiter->done = true;
    if (waiter->co) {
        co_resume(waiter->co);
    }
}

/* In a coroutine: one request, checked already, without the flush that may follow. */
static int perform(struct blk_node *node, struct blk_req *req)
{
    if (node->driver->co_io && !is_direct(node)) {
        return node->driver->co_io(node, req);
    }
    struct waiter waiter = {.co = co_self()};
    struct blk_req saved = *req;
    req->done = wake;
    req->opaque = &waiter;
    req->node = node;
    req->nested = true;
    node->driver->submit(node, req);
    co_suspend();
    req->done = saved.done;
    req->opaque = saved.opaque;
    req->node = saved.node;
    req->nested = saved.nested;
    return waiter.error;
}

static int perform_whole(struct blk_node *node, struct blk_req *req)
{
    bool flush_after = wants_flush(node, req);
    unsigned flags = req->flags;
    req->flags &= ~(unsigned)BLK_REQ_FUA;
    int error = perform(node, req);
    req->flags = flags;
    if (!error && flush_after) {
        struct blk_req flush = {.op = BLK_FLUSH};
        error = perform(node, &flush);
    }
    return error;
}

static void request_main(void *arg)
{
    struct blk_req *req = arg;
    blk_req_complete(req, perform_whole(req->node, req));
}

void blk_submit(struct blk_node *node, struct blk_req *req)
{
    req->node = node;
    req->nested = false;
    node->in_flight++;
    int error = check(node, req);
    if (error || is_empty(req)) {
        blk_req_complete(req, error);
        return;
    }
    if (is_direct(node) && !wants_flush(node, req)) {
        node->driver->submit(node, req);
        return;
    }
    error = co_start(request_main, req);
    if (error) {
        blk_req_complete(req, error);
    }
}

void blk_req_complete(struct blk_req *req, int error)
{
    req->error = error;
    blk_loop_done(req->node->loop, req);
}

void blk_req_finish(struct blk_req *req)
{
    if (!req->nested) { /* else whoever performs it counts */
        req->node->in_flight--;
        count(req->node, req, req->error);
    }
    req->done(req, req->error);
}

int blk_co_io(struct blk_node *node, struct blk_req *req)
{
    if (co_self()) {
        int error = check(node, req);
        if (error || is_empty(req)) {
            return error;
        }
        node->in_flight++;
        error = perform_whole(node, req);
        node->in_flight--;
        count(node, req, error);
        return error;
    }
    struct waiter waiter = {0};
    req->done = wake;
    req->opaque = &waiter;
    blk_submit(node, req);
    while (!waiter.done) {
        blk_loop_poll(node->loop, -1);
    }
    return waiter.error;
}

unsigned blk_in_flight(struct blk_node *node)
{
    return node->in_flight;
}

void blk_drain(struct blk_node *node)
{
    while (node->in_flight) {
        blk_loop_poll(node->loop, -1);
    }
}

/* ---- synchronous twins ---- */

static int transfer(struct blk_node *node, enum blk_op op, uint64_t offset, const struct iovec *iov,
                    unsigned iov_count, unsigned flags)
{
    struct blk_req req = {.op = op, .offset = offset, .iov = iov, .iov_count = iov_count, .flags = flags};
    for (unsigned i = 0; i < iov_count; i++) {
        if (__builtin_add_overflow(req.bytes, iov[i].iov_len, &req.bytes)) {
            return -EINVAL;
        }
    }
    return blk_co_io(node, &req);
}

static int transfer_buf(struct blk_node *node, enum blk_op op, uint64_t offset, uint8_t *buf, uint64_t bytes)
{
    int error = 0;
    do {
        struct iovec iov = {buf, (size_t)MIN(bytes, BLK_REQ_BYTES_MAX)};
        error = transfer(node, op, offset, &iov, 1, 0);
        offset += iov.iov_len;
        buf += iov.iov_len;
        bytes -= iov.iov_len;
    } while (!error && bytes);
    return error;
}

int blk_pread(struct blk_node *node, uint64_t offset, void *buf, uint64_t bytes)
{
    return transfer_buf(node, BLK_READ, offset, buf, bytes);
}

int blk_pwrite(struct blk_node *node, uint64_t offset, const void *buf, uint64_t bytes)
{
    return transfer_buf(node, BLK_WRITE, offset, (uint8_t *)buf, bytes);
}

int blk_preadv(struct blk_node *node, uint64_t offset, const struct iovec *iov, unsigned iov_count)
{
    return transfer(node, BLK_READ, offset, iov, iov_count, 0);
}

int blk_pwritev(struct blk_node *node, uint64_t offset, const struct iovec *iov, unsigned iov_count,
                unsigned flags)
{
    return transfer(node, BLK_WRITE, offset, iov, iov_count, flags);
}

int blk_flush(struct blk_node *node)
{
    struct blk_req req = {.op = BLK_FLUSH};
    return blk_co_io(node, &req);
}

int blk_discard(struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    struct blk_req req = {.op = BLK_DISCARD, .offset = offset, .bytes = bytes};
    return blk_co_io(node, &req);
}

int blk_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct blk_req req = {.op = BLK_WRITE_ZEROES, .offset = offset, .bytes = bytes, .flags = flags};
    return blk_co_io(node, &req);
}

int blk_map(struct blk_node *node, uint64_t offset, uint64_t bytes, unsigned flags, struct blk_map *ret_map)
{
    struct blk_req req = {.op = BLK_MAP, .offset = offset, .bytes = bytes, .flags = flags};
    int error = blk_co_io(node, &req);
    if (!error) {
        *ret_map = req.map;
    }
    return error;
}

/* ---- facts ---- */

uint64_t blk_size(struct blk_node *node)
{
    return node->size_bytes;
}

void blk_get_info(struct blk_node *node, struct blk_info *ret_info)
{
    struct blk_node *format = blk_format_node(node);
    struct blk_info info = {.align = 1, .discard_align = BLK_SECTOR_SIZE};
    struct blk_node *chain[] = {format->file, format};
    for (size_t i = 0; i < ARRAY_SIZE(chain); i++) {
        if (chain[i] && chain[i]->driver->info) {
            chain[i]->driver->info(chain[i], &info);
        }
    }
    info.format = format->driver->name;
    info.filename = format->filename;
    info.size_bytes = node->size_bytes;
    info.read_only = !(node->flags & BLK_OPEN_RDWR);
    info.has_backing = format->backing != NULL;
    *ret_info = info;
}

void blk_get_stats(struct blk_node *node, struct blk_stats *ret_stats)
{
    *ret_stats = node->stats;
}

int blk_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err)
{
    struct blk_node *format = blk_format_node(node);
    if (!(format->flags & BLK_OPEN_RDWR)) {
        return err_set(err, -EROFS, "image '%s' is read-only", format->filename);
    }
    if (!format->driver->resize) {
        return err_set(err, -ENOTSUP, "image '%s' (%s) can't be resized", format->filename,
                       format->driver->name);
    }
    if (size_bytes > INT64_MAX - BLK_REQ_BYTES_MAX) {
        return err_set(err, -EFBIG, "image '%s': %llu bytes are too many", format->filename,
                       (unsigned long long)size_bytes);
    }
    if (size_bytes < format->size_bytes && !shrink) {
        return err_set(err, -EINVAL,
                       "image '%s' would lose data: it has %llu bytes, and shrinking was not asked for",
                       format->filename, (unsigned long long)format->size_bytes);
    }
    blk_drain(node);
    int error = format->driver->resize(format, size_bytes, shrink, err);
    for (struct blk_node *n = node; n != format; n = n->file) {
        n->size_bytes = format->size_bytes;
    }
    return error;
}

/* ---- errors ---- */

enum blk_error_action blk_error_action(enum blk_error_policy policy, enum blk_op op, int error)
{
    switch (policy) {
    case BLK_ON_ERROR_REPORT: return BLK_ACTION_REPORT;
    case BLK_ON_ERROR_STOP: return BLK_ACTION_STOP;
    case BLK_ON_ERROR_IGNORE: return BLK_ACTION_IGNORE;
    case BLK_ON_ERROR_ENOSPC: break;
    }
    return (error == -ENOSPC || error == -EDQUOT) && op != BLK_READ ? BLK_ACTION_STOP : BLK_ACTION_REPORT;
}

void blk_error_text(struct blk_node *node, enum blk_op op, int error, char *buf, size_t size)
{
    static const char *const names[BLK_OP_COUNT] = {
        [BLK_READ] = "reading",          [BLK_WRITE] = "writing",        [BLK_FLUSH] = "flushing",
        [BLK_DISCARD] = "discarding in", [BLK_WRITE_ZEROES] = "zeroing", [BLK_MAP] = "mapping",
    };
    const char *filename = blk_format_node(node)->filename;
    if (error == -ENOSPC || error == -EDQUOT) {
        snprintf(buf, size, "no space left %s for image '%s'",
                 error == -ENOSPC ? "on the host" : "within your disk quota", filename);
    } else {
        snprintf(buf, size, "%s image '%s': %s", (unsigned)op < BLK_OP_COUNT ? names[op] : "using", filename,
                 error == -EUCLEAN ? "the image is damaged" : strerror(-error));
    }
}
