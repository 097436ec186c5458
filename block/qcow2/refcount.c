/*
 * Refcounts and the allocator. Neighbours: cache.c holds the blocks, commit.c writes them.
 *
 * The allocator gives out a cluster only when its refcount is 0 in memory, which is never lower than what is durable
 * plus what is in use (see `freed` in qcow2_int.h), and only when it is none of the image's own tables.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

/* A new refcount block goes into the first cluster of the range that it describes: that range has no block, so no
 * cluster of it is in use. (While repairing that isn't known, and it goes behind everything.) */

static uint64_t block_of(const struct qcow2 *q, uint64_t cluster)
{
    return cluster >> q->refblock_bits;
}

/* Slice and position of a cluster's refcount. The block exists. */
static int locate(struct qcow2 *q, uint64_t cluster, struct q2_slice **ret_slice, uint64_t *ret_index)
{
    uint64_t offset = q->reftable[block_of(q, cluster)];
    if (q2_in_cluster(q, offset) || offset > Q2_OFFSET_MASK - q->cluster_bytes) {
        return q2_corrupt(q);
    }
    uint64_t bit = (cluster & (BIT64(q->refblock_bits) - 1)) << q->refcount_order;
    uint64_t slice_bits = (uint64_t)q->ref.slice_bytes * 8;
    *ret_index = (bit % slice_bits) >> q->refcount_order;
    return q2_cache_get(&q->ref, offset + bit / slice_bits * q->ref.slice_bytes, ret_slice);
}

/* The specification, "Refcount blocks": below 8 bits, the first entry has the least significant bits of a byte. */
static uint64_t load(const struct qcow2 *q, const uint8_t *p, uint64_t i)
{
    switch (q->refcount_order) {
    case 3: return p[i];
    case 4: return (uint64_t)(p[2 * i] << 8 | p[2 * i + 1]);
    case 5: {
        uint32_t v;
        memcpy(&v, p + 4 * i, 4);
        return be32toh(v);
    }
    case 6: {
        uint64_t v;
        memcpy(&v, p + 8 * i, 8);
        return be64toh(v);
    }
    default: {
        unsigned bits = 1u << q->refcount_order;
        uint64_t bit = i * bits;
        return (p[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
    }
    }
}

static void store(const struct qcow2 *q, uint8_t *p, uint64_t i, uint64_t value)
{
    switch (q->refcount_order) {
    case 3: p[i] = (uint8_t)value; break;
    case 4:
        p[2 * i] = (uint8_t)(value >> 8);
        p[2 * i + 1] = (uint8_t)value;
        break;
    case 5: {
        uint32_t v = htobe32((uint32_t)value);
        memcpy(p + 4 * i, &v, 4);
        break;
    }
    case 6: {
        uint64_t v = htobe64(value);
        memcpy(p + 8 * i, &v, 8);
        break;
    }
    default: {
        unsigned bits = 1u << q->refcount_order;
        uint64_t bit = i * bits;
        unsigned mask = ((1u << bits) - 1) << (bit % 8);
        p[bit / 8] = (uint8_t)((p[bit / 8] & ~mask) | ((unsigned)value << (bit % 8)));
        break;
    }
    }
}

int q2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
    if (block_of(q, cluster) >= q->reftable_size || !q->reftable[block_of(q, cluster)]) {
        *ret_count = 0;
        return 0;
    }
    struct q2_slice *slice;
    uint64_t i = 0;
    int error = locate(q, cluster, &slice, &i);
    if (!error) {
        *ret_count = load(q, slice->data, i);
    }
    return error;
}

int q2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct q2_slice *slice;
    uint64_t i = 0;
    int error = q2_ensure_refblock(q, block_of(q, cluster));
    error = error ? error : locate(q, cluster, &slice, &i);
    if (error) {
        return error;
    }
    if (load(q, slice->data, i) != value) {
        store(q, slice->data, i, value);
        q2_cache_dirty(&q->ref, slice);
    }
    if (value == 0) {
        q->alloc_hint = MIN(q->alloc_hint, cluster);
    }
    return 0;
}

int q2_refcount_add(struct qcow2 *q, uint64_t first, uint64_t count, int delta)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t value = 0;
        int error = q2_refcount(q, first + i, &value);
        if (!error && (delta > 0 ? value >= q->refcount_max : value == 0)) {
            error = -ERANGE;
        }
        error = error ? error : q2_refcount_set(q, first + i, delta > 0 ? value + 1 : value - 1);
        if (error) {
            while (i > 0) {
                i--;
                if (q2_refcount(q, first + i, &value) == 0) {
                    q2_refcount_set(q, first + i, delta > 0 ? value - 1 : value + 1);
                }
            }
            return error;
        }
    }
    return 0;
}

/* The table in memory grows at once; a place for it is found with it. */
static int grow_reftable(struct qcow2 *q, uint64_t index)
{
    uint64_t old_offset = q->reftable_offset, old_clusters = q->reftable_clusters;
    uint64_t size = index + 1 + (index + 1) / 2 + 2;
    uint64_t clusters = q2_clusters(q, size * 8);
    if (clusters * q->cluster_bytes > Q2_REFTABLE_BYTES_MAX) {
        clusters = Q2_REFTABLE_BYTES_MAX / q->cluster_bytes;
        if (clusters * q->cluster_bytes / 8 < index + 3) {
            return -EFBIG;
        }
    }
    size = clusters * q->cluster_bytes / 8;
    uint64_t *table = calloc(size, sizeof(*table));
    bool *dirty = calloc(size / 64 + 1, sizeof(*dirty));
    if (!table || !dirty) {
        free(table);
        free(dirty);
        return -ENOMEM;
    }
    memcpy(table, q->reftable, q->reftable_size * sizeof(*table));
    uint64_t *old_table = q->reftable;
    bool *old_dirty = q->reftable_dirty;
    uint32_t old_size = q->reftable_size;
    q->reftable = table;
    q->reftable_dirty = dirty;
    q->reftable_size = (uint32_t)size;
    uint64_t offset = 0, n = clusters;
    int error = q2_alloc(q, clusters, &n, &offset);
    if (error) {
        /* Blocks that were made for it are in the larger part of the table, where nothing is in use yet. */
        memcpy(old_table, table, old_size * sizeof(*table));
        for (uint64_t i = old_size; i < size; i++) {
            if (table[i]) {
                q2_cache_drop(&q->ref, table[i], q->cluster_bytes);
            }
        }
        q->reftable = old_table;
        q->reftable_dirty = old_dirty;
        q->reftable_size = old_size;
        free(table);
        free(dirty);
        return error;
    }
    free(old_table);
    free(old_dirty);
    q->reftable_offset = offset;
    q->reftable_clusters = (uint32_t)clusters;
    q->reftable_moved = true;
    q2_free(q, old_offset, old_clusters * q->cluster_bytes);
    return 0;
}

static bool overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* The last line of defence against images whose refcounts are wrong. */
static bool hits_metadata(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    if (offset < q->cluster_bytes || overlaps(offset, bytes, q->l1_offset, q->l1_size * 8ull) ||
        overlaps(offset, bytes, q->reftable_offset, (uint64_t)q->reftable_clusters * q->cluster_bytes) ||
        (q->snapshots_bytes && overlaps(offset, bytes, q->snapshots_offset, q->snapshots_bytes))) {
        return true;
    }
    for (uint32_t i = 0; i < q->l1_size; i++) {
        if (overlaps(offset, bytes, q->l1[i] & Q2_OFFSET_MASK, q->cluster_bytes)) {
            return true;
        }
    }
    for (uint32_t i = 0; i < q->reftable_size; i++) {
        if (q->reftable[i] && overlaps(offset, bytes, q->reftable[i], q->cluster_bytes)) {
            return true;
        }
    }
    return false;
}

int q2_ensure_refblock(struct qcow2 *q, uint64_t index)
{
    if (index >= q->reftable_size) {
        int error = grow_reftable(q, index);
        if (error) {
            return error;
        }
    }
    if (q->reftable[index]) {
        return 0;
    }
    uint64_t cluster = q->repairing ? q->repair_next : index << q->refblock_bits;
    uint64_t offset = cluster << q->cluster_bits;
    if (!q->repairing && hits_metadata(q, offset, q->cluster_bytes)) {
        return q2_corrupt(q); /* tables without a refcount */
    }
    int error = q2_cache_make(&q->ref, offset, q->cluster_bytes);
    if (error) {
        return error;
    }
    q->reftable[index] = offset;
    q->reftable_dirty[index / 64] = true;
    q->any_reftable_dirty = true;
    q->unwritten_from = MAX(q->unwritten_from, offset + q->cluster_bytes);
    if (q->repairing) {
        q->repair_next++;
        return 0; /* check.c counts it */
    }
    return q2_refcount_set(q, cluster, 1);
}

/* The first run of free clusters from the hint on, at least `least` long. */
static int find_run(struct qcow2 *q, uint64_t least, uint64_t *count, uint64_t *ret_first)
{
    uint64_t first = MAX(q->alloc_hint, 1u), n = 0;
    bool skipped = false;
    while (n < *count) {
        uint64_t refcount = 0;
        int error = q2_refcount(q, first + n, &refcount);
        if (error) {
            return error;
        }
        if (refcount == 0) {
            n++;
        } else if (n >= least) {
            break;
        } else {
            skipped |= n > 0;
            first += n + 1;
            n = 0;
        }
    }
    if (!skipped) {
        q->alloc_hint = first; /* nothing free was passed over */
    }
    if ((first + n) << q->cluster_bits > Q2_OFFSET_MASK) {
        return -EFBIG;
    }
    *ret_first = first;
    *count = n;
    return 0;
}

int q2_alloc(struct qcow2 *q, uint64_t least, uint64_t *count, uint64_t *ret_offset)
{
    uint64_t wanted = *count, first = 0;
    for (;;) {
        *count = wanted;
        int error = find_run(q, least, count, &first);
        if (error) {
            return error;
        }
        /* A block or a table that has to be made for the run may take a part of it: look again. */
        bool made = false;
        for (uint64_t i = block_of(q, first); !made && i <= block_of(q, first + *count - 1); i++) {
            if (i >= q->reftable_size || !q->reftable[i]) {
                error = q2_ensure_refblock(q, i);
                if (error) {
                    return error;
                }
                made = true;
            }
        }
        if (!made) {
            break;
        }
    }
    uint64_t offset = first << q->cluster_bits;
    if (hits_metadata(q, offset, *count << q->cluster_bits)) {
        return q2_corrupt(q);
    }
    int error = q2_refcount_add(q, first, *count, 1);
    if (!error) {
        *ret_offset = offset;
    }
    return error;
}

void q2_free(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    if (!bytes) {
        return;
    }
    struct q2_range range = {offset >> q->cluster_bits, 0};
    range.count = ((offset + bytes - 1) >> q->cluster_bits) - range.first + 1;
    if (q->freed_count) {
        struct q2_range *last = &q->freed[q->freed_count - 1];
        if (last->first + last->count == range.first) {
            last->count += range.count;
            return;
        }
    }
    if (q->freed_count == q->freed_room) {
        size_t room = MAX(q->freed_room * 2, (size_t)64);
        struct q2_range *freed = realloc(q->freed, room * sizeof(*freed));
        if (!freed) {
            return; /* leaked until the next check: the lesser evil */
        }
        q->freed = freed;
        q->freed_room = room;
    }
    q->freed[q->freed_count++] = range;
}

void q2_free_entry(struct qcow2 *q, uint64_t entry)
{
    if (entry & Q2_COMPRESSED) {
        uint64_t offset, bytes;
        q2_compressed_range(q, entry, &offset, &bytes);
        q2_free(q, offset, bytes);
    } else if (entry & Q2_OFFSET_MASK) {
        q2_free(q, entry & Q2_OFFSET_MASK, q->cluster_bytes);
    }
}

int q2_apply_freed(struct qcow2 *q)
{
    int first_error = 0;
    struct q2_range *freed = q->freed;
    size_t freed_count = q->freed_count;
    q->freed = NULL;
    q->freed_count = q->freed_room = 0;
    for (size_t r = 0; r < freed_count; r++) {
        uint64_t hole = 0; /* clusters at the end of what was done that became free */
        for (uint64_t i = 0; i <= freed[r].count; i++) {
            uint64_t cluster = freed[r].first + i, value = 1;
            int error = 0;
            if (i < freed[r].count) {
                error = q2_refcount_add(q, cluster, 1, -1);
                error = error == -ERANGE ? q2_corrupt(q) : error;
                error = error ? error : q2_refcount(q, cluster, &value);
            }
            first_error = first_error ? first_error : error;
            if (!error && value == 0) {
                q2_cache_drop(&q->l2, cluster << q->cluster_bits, q->cluster_bytes);
                hole++;
            } else if (hole) {
                /* Gives the room back to the host; nobody can have allocated it, we hold `meta`. A hint only. */
                blk_discard(q->file, (cluster - hole) << q->cluster_bits, hole << q->cluster_bits);
                hole = 0;
            }
        }
    }
    free(freed);
    return first_error;
}
