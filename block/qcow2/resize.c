/*
 * Changes of the disk's size, and of the L1 table that goes with it.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

/* Size, L1 size and L1 offset are adjacent in the header, within one sector: written at once. */
static int write_l1_pointer(struct qcow2 *q, uint64_t size_bytes, uint32_t l1_size, uint64_t l1_offset)
{
    struct {
        uint64_t size_bytes;
        uint32_t crypt_method, l1_size;
        uint64_t l1_offset;
    } __attribute__((packed)) field = {htobe64(size_bytes), 0, htobe32(l1_size), htobe64(l1_offset)};
    int error = blk_pwrite(q->file, Q2_AT_SIZE, &field, sizeof(field));
    return error ? error : blk_flush(q->file);
}

int q2_replace_l1(struct qcow2 *q, uint64_t *l1, uint32_t l1_size, uint64_t size_bytes)
{
    uint64_t clusters = MAX(q2_clusters(q, l1_size * 8ull), 1u), offset = 0;
    uint64_t n = clusters;
    bool *dirty = calloc(l1_size / 64 + 1, sizeof(*dirty));
    int error = dirty ? q2_alloc(q, clusters, &n, &offset) : -ENOMEM;
    if (!error) {
        q->unwritten_from = MAX(q->unwritten_from, offset + clusters * q->cluster_bytes);
        error = q2_write_table(q, offset, l1, l1_size, clusters << q->cluster_bits);
        error = error ? error : q2_commit_all(q);
        if (error) {
            q2_free(q, offset, clusters << q->cluster_bits);
        } else {
            error = write_l1_pointer(q, size_bytes, l1_size, offset);
            q->latched |= error != 0; /* nobody knows which table is in force now */
        }
    }
    if (error) {
        free(dirty);
        free(l1);
        return error;
    }
    q2_free(q, q->l1_offset, q->l1_size * 8ull);
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = l1;
    q->l1_dirty = dirty;
    q->l1_size = l1_size;
    q->l1_offset = offset;
    q->node->size_bytes = size_bytes;
    return 0;
}

int q2_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err)
{
    struct qcow2 *q = node->state;
    if (q->latched) {
        return err_set(err, -EUCLEAN, "image '%s' is damaged and can't be written", node->filename);
    }
    if (size_bytes % BLK_SECTOR_SIZE) {
        return err_set(err, -EINVAL, "image '%s': a disk's size is a multiple of %u bytes", node->filename,
                       BLK_SECTOR_SIZE);
    }
    if (q->version < 3 && q->snapshot_count && size_bytes != node->size_bytes) {
        return err_set(err, -ENOTSUP, "image '%s' has snapshots, and in qcow2 version 2 they don't know their size",
                       node->filename);
    }
    uint64_t entries = q2_l1_entries(q, size_bytes);
    if (entries > Q2_L1_BYTES_MAX / 8) {
        return err_set(err, -EFBIG, "image '%s': with clusters of %u bytes a disk has at most %llu GiB", node->filename,
                       q->cluster_bytes,
                       (unsigned long long)((Q2_L1_BYTES_MAX / 8ull << (q->cluster_bits + q->l2_bits)) / GiB));
    }
    int error = 0;
    if (size_bytes < node->size_bytes) {
        error = q2_unmap(q, size_bytes, node->size_bytes - size_bytes, true);
        /* What is left of the last cluster reads as zeroes when the disk grows again. */
        uint64_t tail = q2_in_cluster(q, size_bytes);
        if (!error && tail) {
            error = blk_write_zeroes(node, size_bytes, MIN(q->cluster_bytes - tail, node->size_bytes - size_bytes), 0);
        }
    }
    co_mutex_lock(&q->meta);
    if (!error && entries > q->l1_size) {
        uint64_t *l1 = calloc(entries + 1, sizeof(*l1));
        error = l1 ? 0 : -ENOMEM;
        if (!error) {
            memcpy(l1, q->l1, q->l1_size * sizeof(*l1));
            error = q2_replace_l1(q, l1, (uint32_t)entries, size_bytes);
        }
    } else if (!error) {
        error = q2_commit_all(q);
        error = error ? error : write_l1_pointer(q, size_bytes, q->l1_size, q->l1_offset);
    }
    if (!error) {
        node->size_bytes = size_bytes;
        error = q2_commit(q);
    }
    co_mutex_unlock(&q->meta);
    return error ? err_sys(err, error, "cannot resize image '%s'", node->filename) : 0;
}

int q2_empty(struct blk_node *node, struct err *err)
{
    struct qcow2 *q = node->state;
    int error = q->latched ? -EUCLEAN : q2_unmap(q, 0, node->size_bytes, true);
    if (!error) {
        co_mutex_lock(&q->meta);
        error = q2_commit_all(q);
        co_mutex_unlock(&q->meta);
    }
    return error ? err_sys(err, error, "cannot empty image '%s'", node->filename) : 0;
}
