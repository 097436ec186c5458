/*
 * From guest offsets to entries of L1 and L2 tables. With and without extended L2 entries the rest of the
 * format sees the same thing: a host cluster, and two bitmaps over its subclusters (of which there is one
 * without the extension).
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

static uint32_t all_subclusters(const struct qcow2 *q)
{
    return q->subclusters == Q2_SUBCLUSTERS ? UINT32_MAX : 1;
}

int q2_decode(const struct qcow2 *q, const uint8_t *p, struct q2_entry *ret_entry)
{
    uint64_t be;
    memcpy(&be, p, sizeof(be));
    struct q2_entry e = {.raw = be64toh(be)};
    if (e.raw & Q2_COMPRESSED) {
        e.compressed = true;
        e.alloc = all_subclusters(q);
        *ret_entry = e;
        return 0;
    }
    e.host = e.raw & Q2_OFFSET_MASK;
    e.copied = e.raw & Q2_COPIED;
    if (q->subclusters > 1) {
        memcpy(&be, p + 8, sizeof(be));
        uint64_t bitmap = be64toh(be);
        e.alloc = (uint32_t)bitmap;
        e.zero = (uint32_t)(bitmap >> 32);
        if (e.alloc && !e.host) {
            return -EUCLEAN;
        }
    } else {
        e.zero = q->version >= 3 && (e.raw & Q2_ZERO);
        e.alloc = e.host && !e.zero;
    }
    e.alloc &= ~e.zero;
    if (q2_in_cluster(q, e.host)) {
        return -EUCLEAN;
    }
    *ret_entry = e;
    return 0;
}

static void encode(const struct qcow2 *q, const struct q2_entry *e, uint8_t *p)
{
    uint64_t raw = e->raw;
    if (!e->compressed) {
        raw =
            e->host | (e->host && e->copied ? Q2_COPIED : 0) | (q->subclusters == 1 && e->zero ? Q2_ZERO : 0);
    }
    uint64_t be = htobe64(raw);
    memcpy(p, &be, sizeof(be));
    if (q->subclusters > 1) {
        be = e->compressed ? 0 : htobe64((uint64_t)e->zero << 32 | e->alloc);
        memcpy(p + 8, &be, sizeof(be));
    }
}

int q2_table_offset(struct qcow2 *q, uint64_t l1_entry, uint64_t *ret_offset)
{
    uint64_t offset = l1_entry & Q2_OFFSET_MASK;
    if (q2_in_cluster(q, offset) || offset > Q2_OFFSET_MASK - q->cluster_bytes) {
        return q2_corrupt(q);
    }
    *ret_offset = offset;
    return 0;
}

/* The slice with the entry for a guest offset, and where it lies there. *ret_slice NULL: there is no table.
 */
static int locate(struct qcow2 *q, uint64_t offset, struct q2_slice **ret_slice, uint32_t *ret_at)
{
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t l1_index = cluster >> q->l2_bits;
    uint64_t table = 0;
    *ret_slice = NULL;
    if (l1_index >= q->l1_size) {
        return 0;
    }
    int error = q2_table_offset(q, q->l1[l1_index], &table);
    if (error || !table) {
        return error;
    }
    uint64_t at = (cluster & (BIT64(q->l2_bits) - 1)) * q->entry_bytes;
    *ret_at = (uint32_t)(at % q->l2.slice_bytes);
    return q2_cache_get(&q->l2, table + at - *ret_at, ret_slice);
}

int q2_entry_get(struct qcow2 *q, uint64_t offset, struct q2_entry *ret_entry)
{
    struct q2_slice *slice;
    uint32_t at = 0;
    *ret_entry = (struct q2_entry){0};
    int error = locate(q, offset, &slice, &at);
    if (error || !slice) {
        return error;
    }
    return q2_decode(q, slice->data + at, ret_entry) < 0 ? q2_corrupt(q) : 0;
}

static enum q2_kind kind_of(const struct q2_entry *e, unsigned subcluster)
{
    if (e->compressed) {
        return Q2_KIND_COMPRESSED;
    }
    if (e->zero & BIT(subcluster)) {
        return Q2_KIND_ZERO;
    }
    return e->alloc & BIT(subcluster) ? Q2_KIND_DATA : Q2_KIND_UNALLOCATED;
}

int q2_extent(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct q2_extent *ret_extent)
{
    struct q2_slice *slice;
    uint32_t at = 0;
    uint64_t in = q2_in_cluster(q, offset);
    int error = locate(q, offset, &slice, &at);
    if (error) {
        return error;
    }
    if (!slice) {
        uint64_t table_bytes = q->cluster_bytes * BIT64(q->l2_bits);
        *ret_extent = (struct q2_extent){.kind = Q2_KIND_UNALLOCATED,
                                         .bytes = MIN(bytes, table_bytes - (offset & (table_bytes - 1)))};
        return 0;
    }
    struct q2_extent x = {0};
    while (x.bytes < bytes && at < q->l2.slice_bytes) {
        struct q2_entry e;
        if (q2_decode(q, slice->data + at, &e) < 0) {
            if (!x.bytes) {
                return q2_corrupt(q);
            }
            break; /* what comes before is good */
        }
        uint64_t pos = x.bytes ? 0 : in;
        for (unsigned s = (unsigned)(pos >> q->subcluster_bits); s < q->subclusters && x.bytes < bytes; s++) {
            enum q2_kind kind = kind_of(&e, s);
            if (!x.bytes) {
                x.kind = kind;
                x.host = kind == Q2_KIND_DATA ? e.host + pos : e.raw;
                x.copied = e.copied;
            } else if (kind != x.kind || kind == Q2_KIND_COMPRESSED ||
                       (kind == Q2_KIND_DATA && (e.host + pos != x.host + x.bytes || e.copied != x.copied))) {
                *ret_extent = x;
                return 0;
            }
            if (kind == Q2_KIND_COMPRESSED) {
                x.bytes = MIN(bytes, q->cluster_bytes - in);
                *ret_extent = x;
                return 0;
            }
            uint64_t end = (uint64_t)(s + 1) << q->subcluster_bits;
            x.bytes = MIN(bytes, x.bytes + end - pos);
            pos = end;
        }
        at += q->entry_bytes;
    }
    *ret_extent = x;
    return 0;
}

static void set_l1(struct qcow2 *q, uint64_t index, uint64_t value)
{
    q->l1[index] = value;
    q->l1_dirty[index / 64] = true;
}

/* A table of its own for l1[index]: a new one, or a copy of one that a snapshot shares. */
static int own_table(struct qcow2 *q, uint64_t index)
{
    uint64_t old = 0, table = 0, count = 1;
    int error = q2_table_offset(q, q->l1[index], &old);
    if (error || (old && (q->l1[index] & Q2_COPIED))) {
        return error;
    }
    error = q2_alloc(q, 1, &count, &table);
    if (error) {
        return error;
    }
    q->unwritten_from = MAX(q->unwritten_from, table + q->cluster_bytes);
    error = q2_cache_make(&q->l2, table, q->cluster_bytes);
    for (uint32_t at = 0; !error && old && at < q->cluster_bytes; at += q->l2.slice_bytes) {
        struct q2_slice *from, *to;
        error = q2_cache_get(&q->l2, old + at, &from);
        auto_free uint8_t *copy = error ? NULL : malloc(q->l2.slice_bytes);
        if (!error && !copy) {
            error = -ENOMEM;
        }
        if (!error) {
            memcpy(copy, from->data, q->l2.slice_bytes);
            error = q2_cache_get(&q->l2, table + at, &to); /* dirty, so it is there: no suspension */
        }
        if (!error) {
            memcpy(to->data, copy, q->l2.slice_bytes);
        }
    }
    if (error) {
        q2_cache_drop(&q->l2, table, q->cluster_bytes);
        q2_free(q, table, q->cluster_bytes);
        return error;
    }
    if (old) {
        q2_free(q, old, q->cluster_bytes);
    }
    set_l1(q, index, table | Q2_COPIED);
    return 0;
}

int q2_entry_set(struct qcow2 *q, uint64_t offset, const struct q2_entry *entry)
{
    uint64_t index = offset >> q->cluster_bits >> q->l2_bits;
    if (index >= q->l1_size) {
        return q2_corrupt(q);
    }
    struct q2_slice *slice;
    uint32_t at = 0;
    int error = own_table(q, index);
    error = error ? error : locate(q, offset, &slice, &at);
    if (error || !slice) {
        return error ? error : q2_corrupt(q);
    }
    encode(q, entry, slice->data + at);
    q2_cache_dirty(&q->l2, slice);
    return 0;
}
