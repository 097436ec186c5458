/*
 * What requests do. A write that stays on clusters of its own goes straight to the file; everything that
 * changes a mapping does so one stretch of clusters at a time: allocate, write data with what surrounds it
 * (copy on write), then set the entries, under the locks that qcow2_int.h lists.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

/* Guest bytes for which one step of an allocating write makes clusters, where they are smaller. */
#define STEP_BYTES (1u << 20)

/* A part of a request's vector. Most have few elements. */
struct part {
    struct iovec few[16], *iov;
    unsigned count;
};

/* room: elements that the caller is going to add in front and behind. */
static int part_init(struct part *part, const struct blk_req *req, uint64_t at, uint64_t bytes, unsigned room)
{
    part->iov = part->few;
    if (req->iov_count + room > ARRAY_SIZE(part->few)) {
        part->iov = calloc(req->iov_count + room, sizeof(*part->iov));
        if (!part->iov) {
            return -ENOMEM;
        }
    }
    part->count = iov_slice(part->iov, req->iov, req->iov_count, at, bytes);
    return 0;
}

static void part_done(struct part *part)
{
    if (part->iov != part->few) {
        free(part->iov);
    }
}

/* ---- reading ---- */

static int read_backing(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t bytes)
{
    struct blk_node *backing = q->node->backing;
    uint64_t offset = req->offset + at;
    uint64_t there = backing && offset < backing->size_bytes ? MIN(bytes, backing->size_bytes - offset) : 0;
    iov_zero(req->iov, req->iov_count, at + there, bytes - there);
    if (!there) {
        return 0;
    }
    struct part part;
    int error = part_init(&part, req, at, there, 0);
    if (!error) {
        error = blk_preadv(backing, offset, part.iov, part.count);
        part_done(&part);
    }
    return error;
}

/* The caller holds a range lock. Goes beyond the disk's end if asked to: to the end of the last cluster. */
static int read_range(struct qcow2 *q, struct blk_req *req)
{
    for (uint64_t at = 0; at < req->bytes;) {
        struct q2_extent x;
        struct part part;
        int error = q2_extent(q, req->offset + at, req->bytes - at, &x);
        if (error) {
            return error;
        }
        switch (x.kind) {
        case Q2_KIND_ZERO: iov_zero(req->iov, req->iov_count, at, x.bytes); break;
        case Q2_KIND_UNALLOCATED: error = read_backing(q, req, at, x.bytes); break;
        case Q2_KIND_COMPRESSED:
            error = q2_inflate(q, x.host);
            if (!error) {
                iov_from_buf(req->iov, req->iov_count, at, q->inflated + q2_in_cluster(q, req->offset + at),
                             x.bytes);
            }
            break;
        case Q2_KIND_DATA:
            error = part_init(&part, req, at, x.bytes, 0);
            if (!error) {
                error = blk_preadv(q->file, x.host, part.iov, part.count);
                part_done(&part);
            }
            break;
        }
        if (error) {
            return error;
        }
        at += x.bytes;
    }
    return 0;
}

static bool reads_zero_below(const struct qcow2 *q, uint64_t offset)
{
    return !q->node->backing || offset >= q->node->backing->size_bytes;
}

/* Whether it can be told from the mapping alone. 1: yes. */
static int is_known_zero(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes;) {
        struct q2_extent x;
        int error = q2_extent(q, offset + at, bytes - at, &x);
        if (error) {
            return error;
        }
        if (x.kind != Q2_KIND_ZERO && (x.kind != Q2_KIND_UNALLOCATED || !reads_zero_below(q, offset + at))) {
            return 0;
        }
        at += x.bytes;
    }
    return 1;
}

/* ---- writing ---- */

static int commit_if_wanted(struct qcow2 *q)
{
    if (!q2_wants_commit(q)) {
        return 0;
    }
    co_mutex_lock(&q->meta);
    int error = q2_wants_commit(q) ? q2_commit(q) : 0;
    co_mutex_unlock(&q->meta);
    return error;
}

static int overwrite(struct qcow2 *q, struct blk_req *req, uint64_t at, const struct q2_extent *x)
{
    struct part part;
    int error = part_init(&part, req, at, x->bytes, 0);
    if (!error) {
        error = blk_pwritev(q->file, x->host, part.iov, part.count, 0);
        part_done(&part);
    }
    return error;
}

/* Guest bytes [offset, offset + bytes) as they are now, into a new buffer. *ret_buf NULL: nothing has to be
 * written, as they are zeroes and so is the place where they would go. */
static int read_surrounding(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool place_is_zero,
                            uint8_t **ret_buf)
{
    *ret_buf = NULL;
    if (!bytes) {
        return 0;
    }
    int zero = is_known_zero(q, offset, bytes);
    if (zero < 0 || (zero && place_is_zero)) {
        return MIN(zero, 0);
    }
    uint8_t *buf = NULL;
    if (posix_memalign((void **)&buf, Q2_SLICE_BYTES_MAX, align_up(bytes, Q2_SLICE_BYTES_MAX)) != 0) {
        return -ENOMEM;
    }
    struct iovec iov = {buf, bytes};
    struct blk_req req = {.op = BLK_READ, .offset = offset, .bytes = bytes, .iov = &iov, .iov_count = 1};
    int error = read_range(q, &req);
    if (error) {
        free(buf);
        return error;
    }
    *ret_buf = buf;
    return 0;
}

/* Writes [head_buf, the part, tail_buf] to `host` in one request: a sector that two of them share must not be
 * torn by a power cut between two writes. `bytes`: of the part, whose spare elements it takes. */
static int write_pieces(struct qcow2 *q, uint64_t host, struct iovec head, struct part *part, uint64_t bytes,
                        struct iovec tail)
{
    if (part->count + 2 > BLK_REQ_IOV_MAX) {
        uint64_t all = head.iov_len + bytes + tail.iov_len;
        uint8_t *buf = NULL;
        if (posix_memalign((void **)&buf, Q2_SLICE_BYTES_MAX, align_up(all, Q2_SLICE_BYTES_MAX)) != 0) {
            return -ENOMEM;
        }
        if (head.iov_len) {
            memcpy(buf, head.iov_base, head.iov_len);
        }
        iov_to_buf(part->iov, part->count, 0, buf + head.iov_len, bytes);
        if (tail.iov_len) {
            memcpy(buf + head.iov_len + bytes, tail.iov_base, tail.iov_len);
        }
        int error = blk_pwrite(q->file, host, buf, all);
        free(buf);
        return error;
    }
    if (head.iov_len) {
        memmove(part->iov + 1, part->iov, part->count++ * sizeof(*part->iov));
        part->iov[0] = head;
    }
    if (tail.iov_len) {
        part->iov[part->count++] = tail;
    }
    return blk_pwritev(q->file, host, part->iov, part->count, 0);
}

/* Writes req's bytes [at, at + bytes) to `host`, together with the guest's `head` bytes before and `tail`
 * behind. */
static int write_with_surrounding(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t bytes,
                                  uint64_t host, uint64_t head, uint64_t tail, bool place_is_zero)
{
    uint64_t offset = req->offset + at;
    uint8_t *head_buf = NULL, *tail_buf = NULL;
    struct part part;
    int error = part_init(&part, req, at, bytes, 2);
    if (error) {
        return error;
    }
    error = read_surrounding(q, offset - head, head, place_is_zero, &head_buf);
    error = error ? error : read_surrounding(q, offset + bytes, tail, place_is_zero, &tail_buf);
    head = head_buf ? head : 0;
    tail = tail_buf ? tail : 0;
    if (!error) {
        error = write_pieces(q, host - head, (struct iovec){head_buf, head}, &part, bytes,
                             (struct iovec){tail_buf, tail});
    }
    free(head_buf);
    free(tail_buf);
    part_done(&part);
    return error;
}

static uint32_t subcluster_mask(const struct qcow2 *q, uint64_t from, uint64_t to)
{
    unsigned first = (unsigned)(from >> q->subcluster_bits), end = (unsigned)(to >> q->subcluster_bits);
    uint64_t mask = (BIT64(end) - 1) & ~(BIT64(first) - 1);
    return (uint32_t)mask;
}

static uint64_t subcluster_floor(const struct qcow2 *q, uint64_t in_cluster)
{
    return align_down(in_cluster, BIT64(q->subcluster_bits));
}

static uint64_t subcluster_ceil(const struct qcow2 *q, uint64_t in_cluster)
{
    return align_up(in_cluster, BIT64(q->subcluster_bits));
}

/* A write within one cluster that has a place of its own already, but not for all subclusters. */
static int write_subclusters(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t bytes,
                             const struct q2_entry *old)
{
    uint64_t offset = req->offset + at, in = q2_in_cluster(q, offset), end = in + bytes;
    uint64_t from = subcluster_floor(q, in), to = subcluster_ceil(q, end);
    uint64_t head = old->alloc & BIT(from >> q->subcluster_bits) ? 0 : in - from;
    uint64_t tail = old->alloc & BIT((to - 1) >> q->subcluster_bits) ? 0 : to - end;
    int error = write_with_surrounding(q, req, at, bytes, old->host + in, head, tail, false);
    if (error) {
        return error;
    }
    struct q2_entry entry = *old;
    entry.alloc |= subcluster_mask(q, from, to);
    entry.zero &= ~entry.alloc;
    co_mutex_lock(&q->meta);
    error = q2_entry_set(q, offset, &entry);
    co_mutex_unlock(&q->meta);
    return error;
}

/* The part of a cluster that has to be in its new place when the guest writes [*from, *to) of it. */
static void widen(const struct qcow2 *q, const struct q2_entry *old, uint64_t *from, uint64_t *to)
{
    uint64_t lo = subcluster_floor(q, *from), hi = subcluster_ceil(q, *to);
    if (old->alloc) { /* moves with it */
        lo = MIN(lo, (uint64_t)__builtin_ctz(old->alloc) << q->subcluster_bits);
        hi = MAX(hi, (uint64_t)(32 - __builtin_clz(old->alloc)) << q->subcluster_bits);
    }
    *from = lo;
    *to = hi;
}

/* New clusters for req's bytes from `at` on: as many adjacent ones as need one and are free, at most `bytes`.
 */
static int write_new(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t bytes, uint64_t *ret_bytes)
{
    uint64_t offset = req->offset + at, in = q2_in_cluster(q, offset);
    uint64_t count = q2_clusters(q, in + bytes), host = 0;
    auto_free struct q2_entry *old = calloc(count, sizeof(*old));
    if (!old) {
        return -ENOMEM;
    }
    int error = 0;
    for (uint64_t i = 0; i < count; i++) {
        error = q2_entry_get(q, offset - in + i * q->cluster_bytes, &old[i]);
        if (error) {
            return error;
        }
        if (i && old[i].host && old[i].copied) {
            count = i;
        }
    }
    co_mutex_lock(&q->meta);
    error = q2_alloc(q, 1, &count, &host);
    bool fresh = !error && host >= q->unwritten_from;
    if (!error) {
        q->unwritten_from = MAX(q->unwritten_from, host + count * q->cluster_bytes);
    }
    co_mutex_unlock(&q->meta);
    if (error) {
        return error;
    }
    bytes = MIN(bytes, count * q->cluster_bytes - in);
    uint64_t first_from = in, first_to = MIN(in + bytes, (uint64_t)q->cluster_bytes);
    widen(q, &old[0], &first_from, &first_to);
    uint64_t last = (count - 1) * q->cluster_bytes; /* of the last cluster, from the first */
    uint64_t last_from = last > in ? 0 : in, last_to = in + bytes - last;
    widen(q, &old[count - 1], &last_from, &last_to);
    error = write_with_surrounding(q, req, at, bytes, host + in, in - first_from,
                                   last + last_to - (in + bytes), fresh);
    co_mutex_lock(&q->meta);
    uint64_t set = 0;
    for (; !error && set < count; set++) {
        uint64_t from = set ? 0 : first_from;
        uint64_t to = set == count - 1 ? last_to : q->cluster_bytes;
        struct q2_entry entry = {.host = host + set * q->cluster_bytes, .copied = true};
        entry.alloc = subcluster_mask(q, from, to);
        entry.zero = old[set].zero & ~entry.alloc;
        error = q2_entry_set(q, offset - in + set * q->cluster_bytes, &entry);
        if (error) {
            break;
        }
        q2_free_entry(q, old[set].raw);
    }
    if (error) {
        q2_free(q, host + set * q->cluster_bytes, (count - set) * q->cluster_bytes);
    }
    co_mutex_unlock(&q->meta);
    if (!error) {
        *ret_bytes = bytes;
    }
    return error;
}

/* Under an exclusive range lock on all clusters of [req->offset + at, + bytes). */
static int write_step(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t bytes, uint64_t *ret_bytes)
{
    struct q2_extent x;
    struct q2_entry entry;
    uint64_t offset = req->offset + at;
    int error = q2_extent(q, offset, bytes, &x);
    if (error) {
        return error;
    }
    if (x.kind == Q2_KIND_DATA && x.copied) {
        *ret_bytes = x.bytes;
        return overwrite(q, req, at, &x);
    }
    error = q2_entry_get(q, offset, &entry);
    if (error) {
        return error;
    }
    if (entry.host && entry.copied) {
        *ret_bytes = MIN(bytes, q->cluster_bytes - q2_in_cluster(q, offset));
        return write_subclusters(q, req, at, *ret_bytes, &entry);
    }
    return write_new(q, req, at, bytes, ret_bytes);
}

/* The same for all of a request. */
static int write_exclusive(struct qcow2 *q, struct blk_req *req, uint64_t at, uint64_t end)
{
    int error = 0;
    while (!error && at < end) {
        uint64_t done = 0;
        error = write_step(q, req, at, end - at, &done);
        at += done;
    }
    return error;
}

static int do_write(struct qcow2 *q, struct blk_req *req)
{
    struct range_lock lock;
    uint64_t at = 0;
    int error = 0;
    range_lock(&q->ranges, &lock, req->offset, req->offset + req->bytes, false);
    while (!error && at < req->bytes) {
        struct q2_extent x;
        error = q2_extent(q, req->offset + at, req->bytes - at, &x);
        if (error || x.kind != Q2_KIND_DATA || !x.copied) {
            break;
        }
        error = overwrite(q, req, at, &x);
        at += x.bytes;
    }
    range_unlock(&q->ranges, &lock);
    while (!error && at < req->bytes) {
        error = commit_if_wanted(q);
        if (error) {
            break;
        }
        uint64_t start = align_down(req->offset + at, q->cluster_bytes);
        uint64_t end = MIN(req->offset + req->bytes, start + MAX(STEP_BYTES, q->cluster_bytes));
        range_lock(&q->ranges, &lock, start, align_up(end, q->cluster_bytes), true);
        error = write_exclusive(q, req, at, end - req->offset);
        range_unlock(&q->ranges, &lock);
        at = end - req->offset;
    }
    return error;
}

/* ---- zeroes and discards ---- */

static int write_zero_data(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    auto_free uint8_t *zeroes = calloc(1, MAX(bytes, 1u));
    if (!zeroes) {
        return -ENOMEM;
    }
    struct iovec iov = {zeroes, bytes};
    struct blk_req req = {.op = BLK_WRITE, .offset = offset, .bytes = bytes, .iov = &iov, .iov_count = 1};
    return write_exclusive(q, &req, 0, bytes);
}

static int replace_entry(struct qcow2 *q, uint64_t offset, const struct q2_entry *entry, uint64_t freed_raw)
{
    co_mutex_lock(&q->meta);
    int error = q2_entry_set(q, offset, entry);
    if (!error) {
        q2_free_entry(q, freed_raw);
    }
    co_mutex_unlock(&q->meta);
    return error;
}

/* [offset, offset + bytes) of one cluster; `whole`: all of it that is on the disk. Exclusive. */
static int zero_cluster(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool whole, bool unmap)
{
    struct q2_entry e;
    int error = q2_entry_get(q, offset, &e);
    int zero = error ? error : is_known_zero(q, offset, bytes);
    if (zero < 0 || (zero && !(whole && unmap && e.host))) {
        return MIN(zero, 0);
    }
    if (whole && (q->version >= 3 || reads_zero_below(q, align_down(offset, q->cluster_bytes)))) {
        struct q2_entry entry = {0};
        bool keep = e.host && e.copied && !unmap && q->version >= 3;
        if (keep) {
            entry = (struct q2_entry){.host = e.host, .copied = true};
        }
        entry.zero = q->version >= 3 ? subcluster_mask(q, 0, q->cluster_bytes) : 0;
        return replace_entry(q, offset, &entry, keep ? 0 : e.raw);
    }
    uint64_t in = q2_in_cluster(q, offset);
    uint64_t from = subcluster_ceil(q, in), to = subcluster_floor(q, in + bytes);
    if (q->subclusters == 1 || e.compressed || from >= to) {
        return write_zero_data(q, offset, bytes);
    }
    error = in < from ? write_zero_data(q, offset, from - in) : 0;
    if (!error && to < in + bytes) {
        error = write_zero_data(q, offset - in + to, in + bytes - to);
    }
    error = error ? error : q2_entry_get(q, offset, &e);
    if (error) {
        return error;
    }
    e.zero |= subcluster_mask(q, from, to);
    e.alloc &= ~e.zero;
    return replace_entry(q, offset, &e, 0);
}

static int do_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool unmap)
{
    int error = 0;
    uint64_t end = offset + bytes;
    while (!error && offset < end) {
        error = commit_if_wanted(q);
        struct range_lock lock;
        uint64_t start = align_down(offset, q->cluster_bytes);
        struct q2_extent x = {0};
        range_lock(&q->ranges, &lock, start, start + q->cluster_bytes, true);
        error = error ? error : q2_extent(q, offset, end - offset, &x);
        uint64_t n = MIN(end - offset, start + q->cluster_bytes - offset);
        if (!error && x.kind == Q2_KIND_UNALLOCATED && reads_zero_below(q, offset)) {
            n = x.bytes; /* zeroes already, as far as that goes */
        } else if (!error) {
            bool whole = offset == start && (n == q->cluster_bytes || offset + n == q->node->size_bytes);
            error = zero_cluster(q, offset, n, whole, unmap);
        }
        range_unlock(&q->ranges, &lock);
        offset += n;
    }
    return error;
}

int q2_unmap(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool expose)
{
    int error = 0;
    uint64_t end = offset + bytes;
    offset = align_up(offset, q->cluster_bytes);
    if (end < q->node->size_bytes) {
        end = align_down(end, q->cluster_bytes);
    }
    while (!error && offset < end) {
        error = commit_if_wanted(q);
        struct range_lock lock;
        struct q2_entry e = {0};
        struct q2_extent x = {0};
        range_lock(&q->ranges, &lock, offset, offset + q->cluster_bytes, true);
        error = error ? error : q2_extent(q, offset, end - offset, &x);
        error = error ? error : q2_entry_get(q, offset, &e);
        uint64_t n = q->cluster_bytes;
        if (!error && x.kind == Q2_KIND_UNALLOCATED && !e.host) {
            n = MAX(n, align_down(x.bytes, q->cluster_bytes));
        } else if (!error && (e.host || e.compressed || (expose && e.zero))) {
            struct q2_entry entry = {0};
            bool below = !expose && !reads_zero_below(q, offset);
            if (!below ||
                q->version >= 3) { /* else version 2 has no way to say "zeroes" over a backing image */
                entry.zero = below ? subcluster_mask(q, 0, q->cluster_bytes) : 0;
                error = replace_entry(q, offset, &entry, e.raw);
            }
        }
        range_unlock(&q->ranges, &lock);
        offset += n;
    }
    return error;
}

/* ---- map ---- */

static int do_map(struct qcow2 *q, struct blk_req *req)
{
    struct q2_extent x;
    int error = q2_extent(q, req->offset, req->bytes, &x);
    if (error) {
        return error;
    }
    req->map = (struct blk_map){.bytes = x.bytes};
    switch (x.kind) {
    case Q2_KIND_ZERO: req->map.flags = BLK_MAP_ZERO | BLK_MAP_ALLOCATED; break;
    case Q2_KIND_COMPRESSED: req->map.flags = BLK_MAP_DATA | BLK_MAP_ALLOCATED | BLK_MAP_COMPRESSED; break;
    case Q2_KIND_DATA: {
        struct blk_map below;
        req->map.flags = BLK_MAP_DATA | BLK_MAP_ALLOCATED | BLK_MAP_OFFSET;
        req->map.host_offset = x.host;
        /* A hole in the file reads as zeroes too, such as a preallocated image is full of. */
        if (blk_map(q->file, x.host, x.bytes, 0, &below) == 0) {
            req->map.bytes = MIN(x.bytes, below.bytes);
            if (below.flags & BLK_MAP_ZERO) {
                req->map.flags = BLK_MAP_ZERO | BLK_MAP_ALLOCATED | BLK_MAP_OFFSET;
            }
        }
        break;
    }
    case Q2_KIND_UNALLOCATED:
        if (reads_zero_below(q, req->offset) || (req->flags & BLK_REQ_NO_BACKING)) {
            req->map.flags = reads_zero_below(q, req->offset) ? BLK_MAP_ZERO : 0;
            return 0;
        }
        error = blk_map(q->node->backing, req->offset,
                        MIN(x.bytes, q->node->backing->size_bytes - req->offset), 0, &req->map);
        req->map.depth++;
        break;
    }
    return error;
}

int q2_co_io(struct blk_node *node, struct blk_req *req)
{
    struct qcow2 *q = node->state;
    int error;
    struct range_lock lock;
    if (req->op == BLK_READ || req->op == BLK_MAP) {
        range_lock(&q->ranges, &lock, req->offset, req->offset + req->bytes, false);
        error = req->op == BLK_READ ? read_range(q, req) : do_map(q, req);
        range_unlock(&q->ranges, &lock);
        return error;
    }
    if (req->op == BLK_FLUSH && !q->writable) {
        return 0;
    }
    if (q->latched) {
        return -EUCLEAN;
    }
    switch (req->op) {
    case BLK_WRITE: return do_write(q, req);
    case BLK_WRITE_ZEROES: return do_write_zeroes(q, req->offset, req->bytes, req->flags & BLK_REQ_UNMAP);
    case BLK_DISCARD: return q2_unmap(q, req->offset, req->bytes, false);
    default:
        co_mutex_lock(&q->meta);
        error = q2_commit(q);
        co_mutex_unlock(&q->meta);
        return error;
    }
}
