/*
 * Operations that move data between images: convert, commit, rebase. Several pieces are under way at once; what reads
 * as zeroes is not written.
 */
#include <errno.h>
#include <string.h>

#include "block/block_provider.h"

#define PIECE_BYTES (1u << 20)
#define PIECES      8u
/* Zeroes within data are looked for in blocks of this size. */
#define ZERO_BLOCK 4096u
/* One map request's stretch, so that progress is seen. */
#define STRETCH_BYTES (64ull << 20)

struct copy;

struct piece {
    struct copy *copy;
    uint8_t *buf;
    uint64_t offset, bytes;
    uint64_t at, run;  /* the run of data blocks that is being written */
    struct iovec iov;
    struct blk_req req;
    bool busy;
};

struct copy {
    struct blk_node *source, *target;
    bool skip_zeroes; /* the target has zeroes already */
    int error;
    struct piece pieces[PIECES];
};

static bool all_zero(const uint8_t *p, uint64_t bytes)
{
    return bytes == 0 || (p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0);
}

static void piece_end(struct piece *piece, int error)
{
    piece->busy = false;
    if (error && !piece->copy->error) {
        piece->copy->error = error;
    }
}

static void write_next(struct piece *piece);

static void written(struct blk_req *req, int error)
{
    struct piece *piece = req->opaque;
    piece->at += piece->run;
    if (error) {
        piece_end(piece, error);
    } else {
        write_next(piece);
    }
}

/* The next run of blocks that are all data or all zeroes. */
static void write_next(struct piece *piece)
{
    struct copy *copy = piece->copy;
    while (piece->at < piece->bytes) {
        uint64_t block = MIN((uint64_t)ZERO_BLOCK, piece->bytes - piece->at);
        bool zero = all_zero(piece->buf + piece->at, block);
        piece->run = block;
        while (piece->at + piece->run < piece->bytes) {
            block = MIN((uint64_t)ZERO_BLOCK, piece->bytes - piece->at - piece->run);
            if (all_zero(piece->buf + piece->at + piece->run, block) != zero) {
                break;
            }
            piece->run += block;
        }
        if (zero && copy->skip_zeroes) {
            piece->at += piece->run;
            continue;
        }
        piece->iov = (struct iovec){piece->buf + piece->at, piece->run};
        piece->req = (struct blk_req){.op = zero ? BLK_WRITE_ZEROES : BLK_WRITE,
                                      .flags = zero ? BLK_REQ_UNMAP : 0,
                                      .offset = piece->offset + piece->at,
                                      .bytes = piece->run,
                                      .iov = &piece->iov,
                                      .iov_count = zero ? 0 : 1,
                                      .done = written,
                                      .opaque = piece};
        blk_submit(copy->target, &piece->req);
        return;
    }
    piece_end(piece, 0);
}

static void was_read(struct blk_req *req, int error)
{
    struct piece *piece = req->opaque;
    if (error) {
        piece_end(piece, error);
    } else {
        write_next(piece);
    }
}

static int copy_init(struct copy *copy, struct blk_node *source, struct blk_node *target)
{
    *copy = (struct copy){.source = source, .target = target};
    for (unsigned i = 0; i < PIECES; i++) {
        copy->pieces[i].copy = copy;
        if (posix_memalign((void **)&copy->pieces[i].buf, ZERO_BLOCK, PIECE_BYTES) != 0) {
            copy->pieces[i].buf = NULL;
            return -ENOMEM;
        }
    }
    return 0;
}

static int copy_wait(struct copy *copy)
{
    for (unsigned i = 0; i < PIECES; i++) {
        while (copy->pieces[i].busy) {
            blk_loop_poll(copy->target->loop, -1);
        }
    }
    return copy->error;
}

static int copy_done(struct copy *copy, int error)
{
    int waited = copy_wait(copy);
    for (unsigned i = 0; i < PIECES; i++) {
        free(copy->pieces[i].buf);
    }
    return error ? error : waited;
}

/* Starts with a free piece, waiting for one if need be. */
static int copy_range(struct copy *copy, uint64_t offset, uint64_t bytes)
{
    while (bytes && !copy->error) {
        struct piece *piece = NULL;
        for (unsigned i = 0; i < PIECES && !piece; i++) {
            piece = copy->pieces[i].busy ? NULL : &copy->pieces[i];
        }
        if (!piece) {
            blk_loop_poll(copy->target->loop, -1);
            continue;
        }
        uint64_t n = MIN(bytes, PIECE_BYTES - (offset & (PIECE_BYTES - 1)));
        piece->busy = true;
        piece->offset = offset;
        piece->bytes = n;
        piece->at = 0;
        piece->iov = (struct iovec){piece->buf, n};
        piece->req = (struct blk_req){.op = BLK_READ,
                                      .offset = offset,
                                      .bytes = n,
                                      .iov = &piece->iov,
                                      .iov_count = 1,
                                      .done = was_read,
                                      .opaque = piece};
        blk_submit(copy->source, &piece->req);
        offset += n;
        bytes -= n;
    }
    return copy->error;
}

static int fail(struct err *err, int error, struct blk_node *source, struct blk_node *target)
{
    if (error == -ECANCELED) {
        return err_set(err, error, "cancelled");
    }
    return err_sys(err, error, "cannot copy image '%s' to '%s'", source->filename, target->filename);
}

int image_copy(struct blk_node *source, struct blk_node *target, bool target_is_zero, image_progress_fn *progress,
               void *arg, struct err *err)
{
    struct copy copy;
    uint64_t size = source->size_bytes;
    if (target->size_bytes < size) {
        return err_set(err, -EINVAL, "image '%s' is smaller than '%s'", target->filename, source->filename);
    }
    int error = copy_init(&copy, source, target);
    copy.skip_zeroes = target_is_zero;
    for (uint64_t at = 0; !error && at < size;) {
        struct blk_map map;
        error = blk_map(source, at, MIN(size - at, STRETCH_BYTES), 0, &map);
        if (!error && (map.flags & BLK_MAP_ZERO)) {
            error = target_is_zero ? 0 : blk_write_zeroes(target, at, map.bytes, BLK_REQ_UNMAP);
        } else if (!error) {
            error = copy_range(&copy, at, map.bytes);
        }
        at += error ? 0 : map.bytes;
        if (!error && progress && !progress(arg, at, size)) {
            error = -ECANCELED;
        }
    }
    if (!error && !target_is_zero && target->size_bytes > size) {
        error = blk_write_zeroes(target, size, target->size_bytes - size, BLK_REQ_UNMAP);
    }
    error = copy_done(&copy, error);
    error = error ? error : blk_flush(target);
    return error ? fail(err, error, source, target) : 0;
}

int image_commit(struct blk_node *top, struct blk_node *base, image_progress_fn *progress, void *arg, struct err *err)
{
    struct copy copy;
    uint64_t size = top->size_bytes;
    int error = size > base->size_bytes ? blk_resize(base, size, false, err) : 0;
    if (error) {
        return error;
    }
    error = copy_init(&copy, top, base);
    for (uint64_t at = 0; !error && at < size;) {
        struct blk_map map;
        error = blk_map(top, at, MIN(size - at, STRETCH_BYTES), BLK_REQ_NO_BACKING, &map);
        if (!error && (map.flags & BLK_MAP_ALLOCATED)) {
            error = map.flags & BLK_MAP_ZERO ? blk_write_zeroes(base, at, map.bytes, BLK_REQ_UNMAP)
                                             : copy_range(&copy, at, map.bytes);
        }
        at += error ? 0 : map.bytes;
        if (!error && progress && !progress(arg, at, size)) {
            error = -ECANCELED;
        }
    }
    error = copy_done(&copy, error);
    error = error ? error : blk_flush(base);
    return error ? fail(err, error, top, base) : 0;
}

/* Reads what an image has there, zeroes behind its end. */
static int read_base(struct blk_node *base, uint64_t offset, uint8_t *buf, uint64_t bytes)
{
    uint64_t there = base && offset < base->size_bytes ? MIN(bytes, base->size_bytes - offset) : 0;
    memset(buf + there, 0, bytes - there);
    return there ? blk_pread(base, offset, buf, there) : 0;
}

int image_rebase_copy(struct blk_node *top, struct blk_node *old_base, struct blk_node *new_base,
                      image_progress_fn *progress, void *arg, struct err *err)
{
    uint64_t size = top->size_bytes;
    struct blk_info info;
    blk_get_info(top, &info);
    /* Whole clusters: a part of one can't come from the backing image once another part doesn't. */
    uint64_t unit = MAX(info.cluster_bytes, 65536u);
    auto_free uint8_t *a = malloc(unit);
    auto_free uint8_t *b = malloc(unit);
    int error = a && b ? 0 : -ENOMEM;
    for (uint64_t at = 0; !error && at < size;) {
        struct blk_map map;
        error = blk_map(top, at, MIN(size - at, unit - at % unit), BLK_REQ_NO_BACKING, &map);
        if (!error && !(map.flags & BLK_MAP_ALLOCATED)) {
            error = read_base(old_base, at, a, map.bytes);
            error = error ? error : read_base(new_base, at, b, map.bytes);
            if (!error && memcmp(a, b, map.bytes) != 0) {
                error = all_zero(a, map.bytes) ? blk_write_zeroes(top, at, map.bytes, BLK_REQ_UNMAP)
                                               : blk_pwrite(top, at, a, map.bytes);
            }
        }
        at += error ? 0 : map.bytes;
        if (!error && progress && !progress(arg, at, size)) {
            error = -ECANCELED;
        }
    }
    error = error ? error : blk_flush(top);
    if (error == -ECANCELED) {
        return err_set(err, error, "cancelled");
    }
    return error ? err_sys(err, error, "cannot rebase image '%s'", top->filename) : 0;
}
