/*
 * What reaches the disk, and when. A commit writes everything that changed in memory in this order:
 *
 *   1  refcount blocks, L2 tables and reference tables that nothing points to yet       flush (also of all
 * data) 2  if they changed: entries of the reference table, or the header's pointer to it   flush 3  L2
 * tables, L1 entries                                                            flush 4  in memory: the
 * refcounts of what was let go; the file gets a hole there
 *
 * A power cut between any two writes leaves at worst clusters whose refcount is too high. An increment is
 * durable (1) before anything can point to the cluster (3); a decrement is not even in memory (4) before the
 * last pointer is durably gone (3).
 *
 * With lazy refcounts, the header's dirty bit is set before the first commit, and (1, 2) leave refcounts out
 * until the image is closed or too many are waiting; whoever finds the bit set counts again (check.c).
 *
 * Steps can be repeated: what was not written stays dirty, so a commit that failed with -ENOSPC goes on
 * later.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

#define ENTRIES_PER_SECTOR 64u

static int write_be64(struct qcow2 *q, uint64_t offset, uint64_t value)
{
    value = htobe64(value);
    return blk_pwrite(q->file, offset, &value, sizeof(value));
}

void q2_latch(struct qcow2 *q)
{
    if (!q->latched && q->writable && q->version >= 3 && !q->repairing) {
        q->incompatible |= Q2_CORRUPT;
        uint64_t on_disk = q->incompatible & ~Q2_DIRTY;
        if (write_be64(q, Q2_AT_INCOMPATIBLE, on_disk | (q->dirty_on_disk ? Q2_DIRTY : 0)) == 0) {
            blk_flush(q->file);
        }
    }
    q->latched = true;
}

int q2_set_dirty(struct qcow2 *q, bool dirty)
{
    if (q->version < 3 || (dirty == q->dirty_on_disk && !q->dirty_unsure) || q->latched) {
        return 0;
    }
    uint64_t value = (q->incompatible & ~Q2_DIRTY) | (dirty ? Q2_DIRTY : 0);
    int error = write_be64(q, Q2_AT_INCOMPATIBLE, value);
    if (!error) {
        /* From the first byte of the write on, either value may be there. */
        q->dirty_on_disk = q->dirty_unsure = true;
        error = blk_flush(q->file);
    }
    if (!error) {
        q->dirty_unsure = false;
        q->dirty_on_disk = dirty;
        q->incompatible = value;
    }
    return error;
}

int q2_write_table(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint64_t count,
                   uint64_t room_bytes)
{
    auto_free uint64_t *be = calloc(1, MAX(room_bytes, 1u));
    if (!be) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++) {
        be[i] = htobe64(entries[i]);
    }
    return blk_pwrite(q->file, offset, be, room_bytes);
}

/* The sectors of a table that changed. */
static int write_sectors(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint64_t count,
                         bool *dirty)
{
    for (uint64_t first = 0; first < count; first += ENTRIES_PER_SECTOR) {
        if (!dirty[first / ENTRIES_PER_SECTOR]) {
            continue;
        }
        uint64_t n = MIN(count - first, ENTRIES_PER_SECTOR);
        int error = q2_write_table(q, offset + first * 8, entries + first, n, n * 8);
        if (error) {
            return error;
        }
        dirty[first / ENTRIES_PER_SECTOR] = false;
    }
    return 0;
}

static int write_reftable_pointer(struct qcow2 *q)
{
    struct {
        uint64_t offset;
        uint32_t clusters;
    } __attribute__((packed)) field = {htobe64(q->reftable_offset), htobe32(q->reftable_clusters)};
    return blk_pwrite(q->file, Q2_AT_REFTABLE, &field, sizeof(field));
}

static bool l1_is_dirty(const struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->l1_size; i += ENTRIES_PER_SECTOR) {
        if (q->l1_dirty[i / ENTRIES_PER_SECTOR]) {
            return true;
        }
    }
    return false;
}

/* Steps 1 and 2. */
static int commit_refcounts(struct qcow2 *q)
{
    int error = q2_cache_write(&q->ref, false);
    if (!error && q->reftable_moved) {
        error = q2_write_table(q, q->reftable_offset, q->reftable, q->reftable_size,
                               (uint64_t)q->reftable_clusters << q->cluster_bits);
    }
    error = error ? error : blk_flush(q->file);
    if (error || (!q->reftable_moved && !q->any_reftable_dirty)) {
        return error;
    }
    if (q->reftable_moved) {
        error = write_reftable_pointer(q);
    } else {
        error = write_sectors(q, q->reftable_offset, q->reftable, q->reftable_size, q->reftable_dirty);
    }
    error = error ? error : blk_flush(q->file);
    if (!error) {
        q->reftable_moved = q->any_reftable_dirty = false;
        memset(q->reftable_dirty, 0, q->reftable_size / ENTRIES_PER_SECTOR + 1);
    }
    return error;
}

static int commit(struct qcow2 *q, bool lazy)
{
    if (q->latched) {
        return -EUCLEAN;
    }
    bool l1_dirty = l1_is_dirty(q);
    if (!q->l2.dirty_count && !l1_dirty && !q->freed_count && (lazy || !q->ref.dirty_count)) {
        q->data_unflushed = false;
        return blk_flush(q->file);
    }
    int error = lazy ? q2_set_dirty(q, true) : 0;
    error = error ? error : q2_cache_write(&q->l2, true);
    if (!error) {
        error = lazy ? blk_flush(q->file) : commit_refcounts(q);
    }
    if (!error && (q->l2.dirty_count || l1_dirty)) {
        error = q2_cache_write(&q->l2, false);
        error = error ? error : write_sectors(q, q->l1_offset, q->l1, q->l1_size, q->l1_dirty);
        error = error ? error : blk_flush(q->file);
    }
    return error ? error : q2_apply_freed(q);
}

int q2_commit(struct qcow2 *q)
{
    bool lazy =
        (q->compatible & Q2_LAZY_REFCOUNTS) && q->version >= 3 && q->ref.dirty_count < q->ref.count_max / 2;
    return commit(q, lazy);
}

int q2_commit_all(struct qcow2 *q)
{
    int error = commit(q, false);
    /* Step 4 changed refcounts; nothing depends on when they are written. */
    return error || !q->ref.dirty_count ? error : commit_refcounts(q);
}

bool q2_wants_commit(const struct qcow2 *q)
{
    return q->l2.dirty_count > q->l2.count_max / 2 || q->ref.dirty_count > q->ref.count_max / 2 ||
           q->freed_count > 65536;
}
