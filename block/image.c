/*
 * Operations on images: those that a format does by itself, with what is the same for all formats around them.
 * Neighbour: image_copy.c has those that move data.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "block/block_provider.h"

/* An overlay is as large as its backing image, and that has to exist. */
static int backing_size(struct blk_loop *loop, const char *path, const struct image_create_options *o,
                        uint64_t *ret_bytes, struct err *err)
{
    auto_free char *backing = blk_backing_path(path, o->backing);
    if (!backing) {
        return err_sys(err, -ENOMEM, "cannot create image '%s'", path);
    }
    struct blk_open_options options = {.format = o->backing_format};
    struct blk_node *node;
    int error = blk_open(loop, backing, &options, &node, err);
    if (error) {
        return err_prefix(err, "backing image '%s'", o->backing);
    }
    *ret_bytes = node->size_bytes;
    return blk_close(node);
}

static int create_file(const char *path, bool overwrite, struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (overwrite ? 0 : O_EXCL), 0644);
    if (fd < 0) {
        return errno == EEXIST ? err_set(err, -EEXIST, "image '%s' exists already", path)
                               : err_sys(err, -errno, "cannot create image '%s'", path);
    }
    close(fd);
    return 0;
}

static int create_on(struct blk_loop *loop, const char *path, const struct blk_driver *driver,
                     const struct image_create_options *o, uint64_t size_bytes, struct err *err)
{
    struct blk_node *file, *node;
    /* The lock comes before anything is cut off: another program may be using what is overwritten. */
    int error = blk_open_file(loop, path, BLK_OPEN_RDWR, BLK_CACHE_WRITEBACK, &file, err);
    if (error) {
        return error;
    }
    file->growable = true;
    struct blk_info info = {0};
    blk_file_driver.info(file, &info);
    error = info.host_length ? blk_resize(file, 0, true, err) : 0;
    struct image_create_options with_size = *o;
    with_size.size_bytes = size_bytes;
    error = error ? error : driver->create(file, path, &with_size, err);
    int close_error = blk_close(file);
    if (error || close_error) {
        return error ? error : err_sys(err, close_error, "cannot create image '%s'", path);
    }
    struct blk_open_options options = {.format = driver->name, .flags = BLK_OPEN_RDWR | BLK_OPEN_NO_BACKING};
    error = blk_open(loop, path, &options, &node, err);
    if (error) {
        return error;
    }
    error = blk_resize(node, size_bytes, true, err);
    close_error = blk_close(node);
    return error || !close_error ? error : err_sys(err, close_error, "cannot create image '%s'", path);
}

int image_create(struct blk_loop *loop, const char *path, const struct image_create_options *o, struct err *err)
{
    const struct blk_driver *driver = blk_format(o->format);
    if (!driver) {
        return err_set(err, -EINVAL, "unknown format '%s' (there are raw and qcow2)", o->format);
    }
    if (o->backing && (!o->backing_format || !blk_format(o->backing_format))) {
        return err_set(err, -EINVAL, "a backing image needs its format: raw or qcow2");
    }
    if (o->backing && driver == &blk_raw_driver) {
        return err_set(err, -EINVAL, "a raw image can't have a backing image");
    }
    uint64_t size_bytes = o->size_bytes;
    int error = o->backing && !size_bytes ? backing_size(loop, path, o, &size_bytes, err) : 0;
    error = error ? error : create_file(path, o->overwrite, err);
    if (error) {
        return error;
    }
    error = create_on(loop, path, driver, o, size_bytes, err);
    if (error && !o->overwrite) {
        unlink(path);
    }
    return error;
}

static int unsupported(struct blk_node *node, const char *what, struct err *err)
{
    return err_set(err, -ENOTSUP, "image '%s' is in format %s, which has no %s", node->filename, node->driver->name, what);
}

/* The format node, ready to be changed. NULL: err says why not. */
static struct blk_node *to_change(struct blk_node *node, bool supported, const char *what, struct err *err)
{
    node = blk_format_node(node);
    if (!supported) {
        unsupported(node, what, err);
        return NULL;
    }
    if (!(node->flags & BLK_OPEN_RDWR)) {
        err_set(err, -EROFS, "image '%s' is read-only", node->filename);
        return NULL;
    }
    blk_drain(node);
    return node;
}

void image_get_details(struct blk_node *node, struct image_details *ret_details)
{
    node = blk_format_node(node);
    *ret_details = (struct image_details){0};
    if (node->driver->details) {
        node->driver->details(node, ret_details);
    }
    if (node->backing) {
        ret_details->backing_path = node->backing->filename;
    }
}

struct blk_node *image_backing(struct blk_node *node)
{
    return blk_format_node(node)->backing;
}

int image_snapshots(struct blk_node *node, struct image_snapshot **ret_list, unsigned *ret_count, struct err *err)
{
    node = blk_format_node(node);
    if (!node->driver->snapshots) {
        return unsupported(node, "snapshots", err);
    }
    return node->driver->snapshots(node, ret_list, ret_count, err);
}

int image_snapshot_create(struct blk_node *node, const char *name, struct err *err)
{
    struct blk_node *n = to_change(node, blk_format_node(node)->driver->snapshot_create, "snapshots", err);
    return n ? n->driver->snapshot_create(n, name, err) : -ENOTSUP;
}

int image_snapshot_apply(struct blk_node *node, const char *id_or_name, struct err *err)
{
    struct blk_node *n = to_change(node, blk_format_node(node)->driver->snapshot_apply, "snapshots", err);
    int error = n ? n->driver->snapshot_apply(n, id_or_name, err) : -ENOTSUP;
    for (; n && node != n; node = node->file) {
        node->size_bytes = n->size_bytes;
    }
    return error;
}

int image_snapshot_delete(struct blk_node *node, const char *id_or_name, struct err *err)
{
    struct blk_node *n = to_change(node, blk_format_node(node)->driver->snapshot_delete, "snapshots", err);
    return n ? n->driver->snapshot_delete(n, id_or_name, err) : -ENOTSUP;
}

int image_check(struct blk_node *node, enum image_repair repair, void (*report)(void *arg, const char *text), void *arg,
                struct image_check *ret_check, struct err *err)
{
    node = blk_format_node(node);
    if (!node->driver->check) {
        return unsupported(node, "metadata to check", err);
    }
    blk_drain(node);
    return node->driver->check(node, repair, report, arg, ret_check, err);
}

int image_set_backing(struct blk_node *node, const char *backing, const char *backing_format, struct err *err)
{
    struct blk_node *n = to_change(node, blk_format_node(node)->driver->set_backing, "backing images", err);
    return n ? n->driver->set_backing(n, backing, backing_format, err) : -ENOTSUP;
}

int image_empty(struct blk_node *node, struct err *err)
{
    struct blk_node *n = to_change(node, blk_format_node(node)->driver->empty, "backing images", err);
    return n ? n->driver->empty(n, err) : -ENOTSUP;
}
