/*
 * The format qcow2: opening, closing, the driver's table. See qcow2_int.h for where the rest is.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

static int probe(const uint8_t *head, size_t head_size, uint64_t length)
{
    static const uint8_t magic[] = {'Q', 'F', 'I', 0xfb};
    return head_size >= sizeof(magic) && memcmp(head, magic, sizeof(magic)) == 0 ? 100 : 0;
}

/* The first write to an image: what other programs' features say about it may not be true any more. */
static int clear_autoclear(struct qcow2 *q)
{
    if (!q->autoclear) {
        return 0;
    }
    uint64_t none = 0;
    int error = blk_pwrite(q->file, Q2_AT_AUTOCLEAR, &none, sizeof(none));
    error = error ? error : blk_flush(q->file);
    if (!error) {
        q->autoclear = 0;
    }
    return error;
}

static int open_writable(struct qcow2 *q, struct err *err)
{
    struct blk_node *node = q->node;
    if (q->incompatible & Q2_CORRUPT) {
        return err_set(err, -EUCLEAN,
                       "image '%s' is marked as damaged: open it read-only, or repair it with 'fonda image check --repair all'",
                       node->filename);
    }
    q->writable = true;
    int error = clear_autoclear(q);
    if (error) {
        q->writable = false;
        return err_sys(err, error, "cannot write to image '%s'", node->filename);
    }
    if (q->incompatible & Q2_DIRTY) {
        /* It was not closed properly: refcounts may be behind. */
        struct image_check check;
        error = q2_check(node, IMAGE_REPAIR_ALL, NULL, NULL, &check, err);
        if (!error && check.corruptions > check.corruptions_fixed) {
            error = err_set(err, -EUCLEAN, "image '%s' was not closed properly and can't be repaired by itself",
                            node->filename);
        }
        if (error) {
            q->writable = false;
        }
    }
    return error;
}

static int load_snapshot(struct qcow2 *q, const char *name, struct err *err)
{
    const struct q2_snapshot *snapshot = q2_snapshot_find(q, name);
    if (!snapshot) {
        return err_set(err, -ENOENT, "image '%s' has no snapshot '%s'", q->node->filename, name);
    }
    uint64_t *l1;
    int error = q2_read_table(q, snapshot->l1_offset, snapshot->l1_size, &l1, err, "snapshot's L1 table");
    if (error) {
        return error;
    }
    free(q->l1);
    q->l1 = l1;
    q->l1_size = snapshot->l1_size;
    q->l1_offset = snapshot->l1_offset;
    q->node->size_bytes = snapshot->info.size_bytes;
    if (q2_l1_entries(q, q->node->size_bytes) > q->l1_size) {
        return err_set(err, -EUCLEAN, "image '%s' is damaged: snapshot '%s' is larger than its L1 table",
                       q->node->filename, name);
    }
    return 0;
}

static int q2_open(struct blk_node *node, const struct blk_open_options *options, struct err *err)
{
    struct qcow2 *q = node->state;
    q->node = node;
    q->file = node->file;
    q->file->growable = true;
    co_mutex_init(&q->meta, node->loop);
    range_locks_init(&q->ranges, node->loop);
    int error = q2_header_read(q, options, err);
    if (error) {
        return error;
    }
    struct blk_info info = {0};
    if (q->file->driver->info) {
        q->file->driver->info(q->file, &info);
    }
    /* Behind the end of a file are zeroes; a device ends there. Without knowledge nothing is assumed. */
    q->unwritten_from = info.host_length ? align_up(info.host_length, q->cluster_bytes) : UINT64_MAX;
    if (q->backing_name && !(node->flags & BLK_OPEN_NO_BACKING)) {
        error = blk_open_backing(node, q->backing_name, q->backing_format, err);
    }
    if (!error && options->snapshot) {
        error = load_snapshot(q, options->snapshot, err);
    }
    if (!error && (node->flags & BLK_OPEN_RDWR) && !(node->flags & BLK_OPEN_CHECK)) {
        error = open_writable(q, err);
    }
    return error;
}

static int q2_close(struct blk_node *node)
{
    struct qcow2 *q = node->state;
    int error = 0;
    if (q->writable && !q->latched && (node->flags & BLK_OPEN_RDWR)) {
        co_mutex_lock(&q->meta);
        error = q2_commit_all(q);
        if (!error && !q->keep_dirty) {
            error = q2_set_dirty(q, false);
        }
        co_mutex_unlock(&q->meta);
    }
    q2_cache_done(&q->l2);
    q2_cache_done(&q->ref);
    q2_snapshots_done(q);
    q2_header_done(q);
    return error;
}

static void q2_info(struct blk_node *node, struct blk_info *info)
{
    struct qcow2 *q = node->state;
    info->align = MAX(info->align, BLK_SECTOR_SIZE);
    info->cluster_bytes = q->cluster_bytes;
    info->discard_align = q->cluster_bytes;
    info->latched = q->latched;
}

static void q2_details(struct blk_node *node, struct image_details *details)
{
    struct qcow2 *q = node->state;
    details->version = q->version;
    details->refcount_bits = 1u << q->refcount_order;
    details->extended_l2 = q->incompatible & Q2_EXTENDED_L2;
    details->lazy_refcounts = q->compatible & Q2_LAZY_REFCOUNTS;
    details->dirty = q->incompatible & Q2_DIRTY;
    details->corrupt = q->latched || (q->incompatible & Q2_CORRUPT);
    details->compression = q->compression == IMAGE_ZSTD ? "zstd" : "zlib";
    details->backing = q->backing_name;
    details->backing_format = q->backing_format;
    details->snapshot_count = q->snapshot_count;
}

const struct blk_driver blk_qcow2_driver = {
    .name = "qcow2",
    .is_format = true,
    .state_size = sizeof(struct qcow2),
    .probe = probe,
    .open = q2_open,
    .close = q2_close,
    .co_io = q2_co_io,
    .resize = q2_resize,
    .info = q2_info,
    .create = q2_create,
    .details = q2_details,
    .snapshots = q2_snapshots,
    .snapshot_create = q2_snapshot_create,
    .snapshot_apply = q2_snapshot_apply,
    .snapshot_delete = q2_snapshot_delete,
    .check = q2_check,
    .set_backing = q2_set_backing,
    .empty = q2_empty,
};
