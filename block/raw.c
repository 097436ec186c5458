/*
 * The format raw: the file's bytes are the disk's bytes.
 *
 * When the format was guessed, a guest must not be able to turn its disk into another format by writing that format's
 * magic into the first sector, and so reach host files through a backing name: such writes are refused (-EPERM).
 */
#include <errno.h>
#include <string.h>

#include "block/block_provider.h"

static int raw_probe(const uint8_t *head, size_t head_size, uint64_t length)
{
    return 1;
}

static int raw_open(struct blk_node *node, const struct blk_open_options *options, struct err *err)
{
    if (options->snapshot) {
        return err_set(err, -ENOTSUP, "image '%s' is raw and has no snapshots", node->filename);
    }
    node->size_bytes = node->file->size_bytes;
    return 0;
}

static bool forges_format(struct blk_node *node, struct blk_req *req)
{
    if (!node->guessed || req->op != BLK_WRITE || req->offset >= BLK_SECTOR_SIZE) {
        return false;
    }
    /* No guest writes from the middle of the first eight bytes on, unless to put a magic together from parts. */
    if (req->offset > 0) {
        return req->offset < 8;
    }
    uint8_t head[BLK_SECTOR_SIZE] = {0};
    iov_to_buf(req->iov, req->iov_count, 0, head, MIN(req->bytes, sizeof(head)));
    for (unsigned i = 0; i < blk_driver_count; i++) {
        const struct blk_driver *driver = blk_drivers[i];
        if (driver->probe && driver != &blk_raw_driver && driver->probe(head, sizeof(head), UINT64_MAX) > 0) {
            return true;
        }
    }
    return false;
}

/* The request goes down as it is: it is in this node's bounds, which are the file's. */
static void raw_submit(struct blk_node *node, struct blk_req *req)
{
    if (forges_format(node, req)) {
        blk_req_complete(req, -EPERM);
        return;
    }
    node->file->driver->submit(node->file, req);
}

static int raw_co_io(struct blk_node *node, struct blk_req *req)
{
    if (forges_format(node, req)) {
        return -EPERM;
    }
    return blk_co_io(node->file, req);
}

static int raw_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err)
{
    int error = blk_resize(node->file, size_bytes, shrink, err);
    node->size_bytes = node->file->size_bytes;
    return error;
}

static int raw_create(struct blk_node *file, const char *path, const struct image_create_options *options,
                      struct err *err)
{
    if (options->backing) {
        return err_set(err, -EINVAL, "a raw image can't have a backing image");
    }
    return blk_resize(file, options->size_bytes, true, err);
}

const struct blk_driver blk_raw_driver = {
    .name = "raw",
    .is_format = true,
    .probe = raw_probe,
    .open = raw_open,
    .submit = raw_submit,
    .co_io = raw_co_io,
    .resize = raw_resize,
    .create = raw_create,
};
