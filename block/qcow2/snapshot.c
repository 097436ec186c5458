/*
 * Internal snapshots: a table of them, each with a copy of an L1 table. What several L1 tables reach has a
 * refcount to match, and no COPIED flag in the active tables.
 *
 * Each change sets the dirty bit (version 3) around itself, because refcounts and COPIED flags can't change
 * at once; a power cut within leads to a repair at the next open. In version 2, which has no such bit, the
 * order of the steps alone keeps data safe: counts rise before anything is shared and fall after it no longer
 * is.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "block/qcow2/qcow2_int.h"

struct record {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint16_t id_bytes, name_bytes;
    uint32_t date_s, date_ns;
    uint64_t vm_clock_ns;
    uint32_t vm_state_bytes, extra_bytes;
} __attribute__((packed));

_Static_assert(sizeof(struct record) == 40, "the specification, \"Snapshots\"");

/* Extra data: 64-bit VM state size, disk size. */
#define EXTRA_BYTES 16u

/* ---- the table ---- */

static void get_text(char *dst, size_t size, const uint8_t *src, size_t bytes)
{
    size_t n = MIN(bytes, size - 1);
    memcpy(dst, src, n);
    dst[n] = '\0';
}

static int parse(struct qcow2 *q, const uint8_t *table, uint64_t bytes, uint64_t *at, struct q2_snapshot *s)
{
    struct record r;
    if (bytes - *at < sizeof(r)) {
        return -EUCLEAN;
    }
    memcpy(&r, table + *at, sizeof(r));
    *at += sizeof(r);
    s->l1_offset = be64toh(r.l1_offset);
    s->l1_size = be32toh(r.l1_size);
    s->extra_bytes = be32toh(r.extra_bytes);
    uint16_t id_bytes = be16toh(r.id_bytes), name_bytes = be16toh(r.name_bytes);
    if (s->extra_bytes > Q2_SNAPSHOT_EXTRA_MAX ||
        bytes - *at < (uint64_t)s->extra_bytes + id_bytes + name_bytes || s->l1_size > Q2_L1_BYTES_MAX / 8 ||
        q2_in_cluster(q, s->l1_offset) || s->l1_offset > Q2_OFFSET_MASK) {
        return -EUCLEAN;
    }
    s->extra = malloc(s->extra_bytes + 1u);
    if (!s->extra) {
        return -ENOMEM;
    }
    memcpy(s->extra, table + *at, s->extra_bytes);
    *at += s->extra_bytes;
    s->info.vm_state_bytes = be32toh(r.vm_state_bytes);
    s->info.size_bytes = q->node->size_bytes;
    s->info.date_s = be32toh(r.date_s);
    s->info.vm_clock_ns = be64toh(r.vm_clock_ns);
    uint64_t v;
    if (s->extra_bytes >= 8) {
        memcpy(&v, s->extra, 8);
        s->info.vm_state_bytes = be64toh(v);
    }
    if (s->extra_bytes >= 16) {
        memcpy(&v, s->extra + 8, 8);
        s->info.size_bytes = be64toh(v);
    }
    get_text(s->info.id, sizeof(s->info.id), table + *at, id_bytes);
    *at += id_bytes;
    get_text(s->info.name, sizeof(s->info.name), table + *at, name_bytes);
    *at = MIN(align_up(*at + name_bytes, 8), bytes);
    return s->info.size_bytes <= INT64_MAX - BLK_REQ_BYTES_MAX ? 0 : -EUCLEAN;
}

int q2_snapshots_read(struct qcow2 *q, uint32_t count, uint64_t offset, struct err *err)
{
    if (!count) {
        return 0;
    }
    /* Its length is not recorded: no longer than the records of `count` can be, nor than the file. */
    struct blk_info info = {0};
    if (q->file->driver->info) {
        q->file->driver->info(q->file, &info);
    }
    uint64_t record_max = sizeof(struct record) + Q2_SNAPSHOT_EXTRA_MAX + 2 * UINT16_MAX + 8;
    uint64_t bytes = MIN((uint64_t)Q2_SNAPSHOT_TABLE_BYTES_MAX, count * record_max);
    bytes = MIN(bytes, info.host_length > offset ? info.host_length - offset : 0);
    auto_free uint8_t *table = malloc(bytes + 1);
    q->snapshots = calloc(count, sizeof(*q->snapshots));
    int error = table && q->snapshots ? 0 : -ENOMEM;
    error = error ? error : blk_pread(q->file, offset, table, bytes);
    uint64_t at = 0;
    while (!error && q->snapshot_count < count) {
        error = parse(q, table, bytes, &at, &q->snapshots[q->snapshot_count++]);
    }
    q->snapshots_offset = offset;
    q->snapshots_bytes = at;
    return error ? err_sys(err, error, "image '%s': cannot read the snapshot table", q->node->filename) : 0;
}

void q2_snapshots_done(struct qcow2 *q)
{
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        free(q->snapshots[i].extra);
    }
    free(q->snapshots);
}

const struct q2_snapshot *q2_snapshot_find(struct qcow2 *q, const char *id_or_name)
{
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        if (strcmp(q->snapshots[i].info.id, id_or_name) == 0) {
            return &q->snapshots[i];
        }
    }
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        if (strcmp(q->snapshots[i].info.name, id_or_name) == 0) {
            return &q->snapshots[i];
        }
    }
    return NULL;
}

static uint64_t put(uint8_t *p, const struct q2_snapshot *s)
{
    size_t id_bytes = strlen(s->info.id), name_bytes = strlen(s->info.name);
    struct record r = {
        .l1_offset = htobe64(s->l1_offset),
        .l1_size = htobe32(s->l1_size),
        .id_bytes = htobe16((uint16_t)id_bytes),
        .name_bytes = htobe16((uint16_t)name_bytes),
        .date_s = htobe32((uint32_t)s->info.date_s),
        .vm_clock_ns = htobe64(s->info.vm_clock_ns),
        .vm_state_bytes = htobe32(s->info.vm_state_bytes > UINT32_MAX ? 0 : (uint32_t)s->info.vm_state_bytes),
        .extra_bytes = htobe32(s->extra_bytes),
    };
    uint64_t at = sizeof(r);
    if (p) {
        memcpy(p, &r, sizeof(r));
        memcpy(p + at, s->extra, s->extra_bytes);
        memcpy(p + at + s->extra_bytes, s->info.id, id_bytes);
        memcpy(p + at + s->extra_bytes + id_bytes, s->info.name, name_bytes);
    }
    return align_up(at + s->extra_bytes + id_bytes + name_bytes, 8);
}

/* Puts a table with these snapshots in force, durably, and lets go of the old one. Takes list over on
 * success. */
static int replace_table(struct qcow2 *q, struct q2_snapshot *list, unsigned count)
{
    uint64_t bytes = 0, offset = 0;
    for (unsigned i = 0; i < count; i++) {
        bytes += put(NULL, &list[i]);
    }
    if (bytes > Q2_SNAPSHOT_TABLE_BYTES_MAX) {
        return -EFBIG;
    }
    uint64_t clusters = q2_clusters(q, bytes), n = clusters;
    int error = 0;
    if (count) {
        error = q2_alloc(q, clusters, &n, &offset);
        auto_free uint8_t *table = calloc(1, bytes);
        error = error || table ? error : -ENOMEM;
        if (!error) {
            q->unwritten_from = MAX(q->unwritten_from, offset + clusters * q->cluster_bytes);
            uint64_t at = 0;
            for (unsigned i = 0; i < count; i++) {
                at += put(table + at, &list[i]);
            }
            error = blk_pwrite(q->file, offset, table, bytes);
        }
    }
    error = error ? error : q2_commit_all(q);
    if (error) {
        if (offset) {
            q2_free(q, offset, bytes);
        }
        return error;
    }
    struct {
        uint32_t count;
        uint64_t offset;
    } __attribute__((packed)) field = {htobe32(count), htobe64(offset)};
    error = blk_pwrite(q->file, Q2_AT_SNAPSHOTS, &field, sizeof(field));
    error = error ? error : blk_flush(q->file);
    if (error) {
        q->latched = true; /* nobody knows which table is in force now */
        return error;
    }
    q2_free(q, q->snapshots_offset, q->snapshots_bytes);
    free(q->snapshots);
    q->snapshots = list;
    q->snapshot_count = count;
    q->snapshots_offset = offset;
    q->snapshots_bytes = bytes;
    return 0;
}

/* ---- trees ---- */

enum walk { WALK_CHECK_ROOM, WALK_REF, WALK_UNREF };

static int visit(struct qcow2 *q, uint64_t offset, uint64_t bytes, enum walk how)
{
    uint64_t first = offset >> q->cluster_bits, end = q2_clusters(q, offset + bytes);
    if (how == WALK_UNREF) {
        q2_free(q, offset, bytes);
        return 0;
    }
    if (how == WALK_REF) {
        return q2_refcount_add(q, first, end - first, 1);
    }
    for (; first < end; first++) {
        uint64_t count;
        int error = q2_refcount(q, first, &count);
        if (error || count == 0) {
            return error ? error : q2_corrupt(q); /* in use, and doesn't say so */
        }
        if (count >= q->refcount_max) {
            return -ERANGE;
        }
    }
    return 0;
}

static int walk_table(struct qcow2 *q, uint64_t table, enum walk how)
{
    auto_free uint8_t *copy = malloc(q->l2.slice_bytes);
    int error = copy ? 0 : -ENOMEM;
    for (uint64_t at = 0; !error && at < q->cluster_bytes; at += q->l2.slice_bytes) {
        struct q2_slice *slice;
        error = q2_cache_get(&q->l2, table + at, &slice);
        if (!error) {
            memcpy(copy, slice->data, q->l2.slice_bytes);
        }
        for (uint32_t i = 0; !error && i < q->l2.slice_bytes; i += q->entry_bytes) {
            struct q2_entry e;
            if (q2_decode(q, copy + i, &e) < 0) {
                error = q2_corrupt(q);
            } else if (e.compressed) {
                uint64_t offset, bytes;
                q2_compressed_range(q, e.raw, &offset, &bytes);
                error = visit(q, offset, bytes, how);
            } else if (e.host) {
                error = visit(q, e.host, q->cluster_bytes, how);
            }
        }
    }
    return error;
}

static int walk(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size, enum walk how)
{
    int error = 0;
    for (uint32_t i = 0; !error && i < l1_size; i++) {
        uint64_t table;
        error = q2_table_offset(q, l1[i], &table);
        if (!error && table) {
            error = walk_table(q, table, how);
            error = error ? error : visit(q, table, q->cluster_bytes, how);
        }
    }
    return error;
}

/* COPIED in the active tables if and only if the refcount is 1. */
static int update_copied_table(struct qcow2 *q, uint64_t table)
{
    for (uint64_t at = 0; at < q->cluster_bytes; at += q->l2.slice_bytes) {
        for (uint32_t i = 0; i < q->l2.slice_bytes; i += q->entry_bytes) {
            struct q2_slice *slice;
            struct q2_entry e;
            uint64_t count = 0, raw;
            int error = q2_cache_get(&q->l2, table + at, &slice);
            if (!error && q2_decode(q, slice->data + i, &e) < 0) {
                error = q2_corrupt(q);
            }
            if (error || e.compressed || !e.host) {
                if (error) {
                    return error;
                }
                continue;
            }
            error = q2_refcount(q, e.host >> q->cluster_bits, &count);
            if (!error && (count == 1) != e.copied) {
                error =
                    q2_cache_get(&q->l2, table + at, &slice); /* again: q2_refcount() may have suspended */
                if (!error) {
                    raw = htobe64(e.raw ^ Q2_COPIED);
                    memcpy(slice->data + i, &raw, sizeof(raw));
                    q2_cache_dirty(&q->l2, slice);
                }
            }
            if (error) {
                return error;
            }
        }
    }
    return 0;
}

int q2_update_copied(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->l1_size; i++) {
        uint64_t table, count;
        int error = q2_table_offset(q, q->l1[i], &table);
        if (!error && !table) {
            continue;
        }
        error = error ? error : q2_refcount(q, table >> q->cluster_bits, &count);
        error = error ? error : update_copied_table(q, table);
        if (error) {
            return error;
        }
        if ((count == 1) != !!(q->l1[i] & Q2_COPIED)) {
            q->l1[i] ^= Q2_COPIED;
            q->l1_dirty[i / 64] = true;
        }
    }
    return 0;
}

/* ---- the operations ---- */

struct operation {
    struct range_lock lock;
    bool was_dirty;
};

static int begin(struct qcow2 *q, struct operation *op)
{
    range_lock(&q->ranges, &op->lock, 0, UINT64_MAX, true);
    co_mutex_lock(&q->meta);
    op->was_dirty = q->dirty_on_disk;
    return q->latched ? -EUCLEAN : q2_set_dirty(q, true);
}

static int end(struct qcow2 *q, struct operation *op, int error)
{
    error = error || q->keep_dirty ? error : q2_commit_all(q);
    if (error) {
        q->keep_dirty = true;
    } else if (!op->was_dirty && !q->keep_dirty && q2_set_dirty(q, false) < 0) {
        q->keep_dirty = true; /* it is done all the same */
    }
    co_mutex_unlock(&q->meta);
    range_unlock(&q->ranges, &op->lock);
    return error;
}

static int fail(struct qcow2 *q, int error, const char *what, const char *name, struct err *err)
{
    if (error == -ERANGE) {
        return err_set(err, error,
                       "cannot %s snapshot '%s' of image '%s': its refcounts of %u bits are too narrow", what,
                       name, q->node->filename, 1u << q->refcount_order);
    }
    return error ? err_sys(err, error, "cannot %s snapshot '%s' of image '%s'", what, name, q->node->filename)
                 : 0;
}

static int new_snapshot(struct qcow2 *q, const char *name, struct q2_snapshot *s)
{
    unsigned long id = 0;
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        id = MAX(id, strtoul(q->snapshots[i].info.id, NULL, 10));
    }
    *s = (struct q2_snapshot){
        .l1_size = q->l1_size, .extra_bytes = EXTRA_BYTES, .extra = calloc(1, EXTRA_BYTES)};
    if (!s->extra) {
        return -ENOMEM;
    }
    uint64_t size = htobe64(q->node->size_bytes);
    memcpy(s->extra + 8, &size, sizeof(size));
    s->info.size_bytes = q->node->size_bytes;
    s->info.date_s = (uint64_t)time(NULL);
    snprintf(s->info.id, sizeof(s->info.id), "%lu", id + 1);
    snprintf(s->info.name, sizeof(s->info.name), "%s", name);
    return 0;
}

/* Counts, then flags, then the copy of the L1 table, then the snapshot table. */
static int create(struct qcow2 *q, const char *name)
{
    struct q2_snapshot *list = calloc(q->snapshot_count + 1, sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    if (q->snapshot_count) {
        memcpy(list, q->snapshots, q->snapshot_count * sizeof(*list));
    }
    struct q2_snapshot *s = &list[q->snapshot_count];
    int error = new_snapshot(q, name, s);
    error = error ? error : q2_commit_all(q); /* frees first, so that counts are what they will be */
    error = error ? error : walk(q, q->l1, q->l1_size, WALK_CHECK_ROOM);
    error = error ? error : walk(q, q->l1, q->l1_size, WALK_REF);
    error = error ? error : q2_update_copied(q);
    uint64_t clusters = MAX(q2_clusters(q, q->l1_size * 8ull), 1u), n = clusters;
    error = error ? error : q2_alloc(q, clusters, &n, &s->l1_offset);
    if (!error) {
        q->unwritten_from = MAX(q->unwritten_from, s->l1_offset + clusters * q->cluster_bytes);
        error = q2_write_table(q, s->l1_offset, q->l1, q->l1_size, clusters << q->cluster_bits);
    }
    error = error ? error : replace_table(q, list, q->snapshot_count + 1);
    if (error) {
        free(s->extra);
        free(list);
    }
    return error;
}

int q2_snapshot_create(struct blk_node *node, const char *name, struct err *err)
{
    struct qcow2 *q = node->state;
    if (!name[0] || strlen(name) >= sizeof(((struct image_snapshot *)NULL)->name)) {
        return err_set(err, -EINVAL, "a snapshot's name has 1 to 255 bytes");
    }
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        if (strcmp(q->snapshots[i].info.name, name) == 0) {
            return err_set(err, -EEXIST, "image '%s' has a snapshot '%s' already", node->filename, name);
        }
    }
    if (q->snapshot_count >= IMAGE_SNAPSHOTS_MAX) {
        return err_set(err, -EMFILE, "image '%s' has %u snapshots, as many as there can be", node->filename,
                       IMAGE_SNAPSHOTS_MAX);
    }
    struct operation op;
    int error = begin(q, &op);
    error = end(q, &op, error ? error : create(q, name));
    return fail(q, error, "create", name, err);
}

static const struct q2_snapshot *find(struct qcow2 *q, const char *id, struct err *err)
{
    const struct q2_snapshot *s = q2_snapshot_find(q, id);
    if (!s) {
        err_set(err, -ENOENT, "image '%s' has no snapshot '%s'", q->node->filename, id);
    }
    return s;
}

static int delete(struct qcow2 *q, unsigned index)
{
    struct q2_snapshot gone = q->snapshots[index];
    struct q2_snapshot *list = calloc(q->snapshot_count, sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    unsigned count = 0;
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        if (i != index) {
            list[count++] = q->snapshots[i];
        }
    }
    uint64_t *l1 = NULL;
    int error = q2_read_table(q, gone.l1_offset, gone.l1_size, &l1, NULL, "L1 table");
    error = error ? error : replace_table(q, list, count);
    if (error) {
        free(l1);
        free(list);
        return error;
    }
    free(gone.extra);
    error = walk(q, l1, gone.l1_size, WALK_UNREF);
    free(l1);
    q2_free(q, gone.l1_offset, gone.l1_size * 8ull);
    error = error ? error : q2_commit_all(q);
    return error ? error : q2_update_copied(q);
}

int q2_snapshot_delete(struct blk_node *node, const char *id, struct err *err)
{
    struct qcow2 *q = node->state;
    const struct q2_snapshot *s = find(q, id, err);
    if (!s) {
        return -ENOENT;
    }
    struct operation op;
    int error = begin(q, &op);
    error = end(q, &op, error ? error : delete (q, (unsigned)(s - q->snapshots)));
    return fail(q, error, "delete", id, err);
}

/* The disk becomes what the snapshot has: its tree gains a user, the active one loses one. */
static int apply(struct qcow2 *q, const struct q2_snapshot *s)
{
    uint32_t size = MAX(s->l1_size, (uint32_t)q2_l1_entries(q, s->info.size_bytes));
    uint64_t *l1 = NULL, *old = calloc(q->l1_size + 1u, sizeof(*old));
    int error = old ? q2_read_table(q, s->l1_offset, s->l1_size, &l1, NULL, "L1 table") : -ENOMEM;
    uint64_t *grown = error ? NULL : realloc(l1, (size + 1u) * sizeof(*l1));
    if (!grown) {
        free(l1);
        free(old);
        return error ? error : -ENOMEM;
    }
    l1 = grown;
    memset(l1 + s->l1_size, 0, (size - s->l1_size) * sizeof(*l1));
    uint32_t old_size = q->l1_size;
    memcpy(old, q->l1, old_size * sizeof(*old));
    error = q2_commit_all(q);
    error = error ? error : walk(q, l1, s->l1_size, WALK_CHECK_ROOM);
    error = error ? error : walk(q, l1, s->l1_size, WALK_REF);
    if (error) {
        free(l1);
    } else {
        for (uint32_t i = 0; i < size; i++) {
            l1[i] &= ~Q2_COPIED;
        }
        error = q2_replace_l1(q, l1, size, s->info.size_bytes);
    }
    if (!error) {
        /* The disk is the snapshot's from here on. What fails now leaves counts too high, for the next open.
         */
        int late = walk(q, old, old_size, WALK_UNREF);
        late = late ? late : q2_commit_all(q);
        late = late ? late : q2_update_copied(q);
        late = late ? late : q2_commit_all(q);
        q->keep_dirty |= late != 0;
    }
    free(old);
    return error;
}

int q2_snapshot_apply(struct blk_node *node, const char *id, struct err *err)
{
    struct qcow2 *q = node->state;
    const struct q2_snapshot *s = find(q, id, err);
    if (!s) {
        return -ENOENT;
    }
    if (q2_l1_entries(q, s->info.size_bytes) > Q2_L1_BYTES_MAX / 8) {
        return fail(q, -EUCLEAN, "apply", id, err);
    }
    struct operation op;
    int error = begin(q, &op);
    error = end(q, &op, error ? error : apply(q, s));
    return fail(q, error, "apply", id, err);
}

int q2_snapshots(struct blk_node *node, struct image_snapshot **ret_list, unsigned *ret_count,
                 struct err *err)
{
    struct qcow2 *q = node->state;
    struct image_snapshot *list = calloc(q->snapshot_count + 1, sizeof(*list));
    if (!list) {
        return err_sys(err, -ENOMEM, "cannot list the snapshots of '%s'", node->filename);
    }
    for (unsigned i = 0; i < q->snapshot_count; i++) {
        list[i] = q->snapshots[i].info;
    }
    *ret_list = list;
    *ret_count = q->snapshot_count;
    return 0;
}
