/*
 * Checking an image, and repairing its refcounts: every reference from the header, the tables and all
 * snapshots is counted, then compared with what the refcount blocks say.
 *
 * Corruption: a refcount lower than the references, references to impossible places, COPIED flags that
 * disagree with refcounts. Leak: a refcount higher than the references. Repairing sets refcounts and flags
 * from what was counted; references themselves are never changed.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

#define REPORTS_MAX 50u
/* 1 GiB of counts, for an image of 16 TiB with clusters of 64 KiB. */
#define CLUSTERS_MAX (1ull << 28)

struct checker {
    struct qcow2 *q;
    enum image_repair repair;
    void (*report)(void *arg, const char *text);
    void *arg;
    unsigned reports;
    uint32_t *refs;
    uint64_t count; /* clusters that the file has */
    uint64_t room;  /* of refs */
    uint64_t fatal; /* corruptions that repairing refcounts doesn't mend */
    bool skip_leaks;
    bool unclosed; /* the dirty bit stands, and we mend nothing: refcounts may be behind */
    struct image_check result;
};

static void say(struct checker *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct checker *c, const char *fmt, ...)
{
    if (!c->report || c->reports > REPORTS_MAX) {
        return;
    }
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    c->report(c->arg, c->reports++ < REPORTS_MAX ? text : "further findings are not listed");
}

static void fatal(struct checker *c, const char *what, uint64_t offset)
{
    c->result.corruptions++;
    c->fatal++;
    say(c, "corrupt: %s at %#llx is impossible", what, (unsigned long long)offset);
}

/* A refcount or a COPIED flag that isn't what the references say. Returns the word for it. */
static const char *mismatch(struct checker *c, bool leak)
{
    *(c->unclosed ? &c->result.unclosed : leak ? &c->result.leaks : &c->result.corruptions) += 1;
    return c->unclosed ? "not closed" : leak ? "leak" : "corrupt";
}

/* false: the place can't be. */
static bool ref(struct checker *c, const char *what, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset >> c->q->cluster_bits, end = q2_clusters(c->q, offset + bytes);
    if (end > c->count || end < first) {
        fatal(c, what, offset);
        return false;
    }
    for (; first < end; first++) {
        c->refs[first] += c->refs[first] != UINT32_MAX;
        c->result.end_offset = MAX(c->result.end_offset, (first + 1) << c->q->cluster_bits);
    }
    return true;
}

static int ref_entry(struct checker *c, const uint8_t *p, bool active)
{
    struct qcow2 *q = c->q;
    struct q2_entry e;
    if (q2_decode(q, p, &e) < 0) {
        fatal(c, "a cluster's place", e.host);
        return 0;
    }
    if (e.compressed) {
        uint64_t offset, bytes;
        q2_compressed_range(q, e.raw, &offset, &bytes);
        /* The last sector may be cut off by the file's end. */
        uint64_t end = MIN(align_up(offset + bytes, q->cluster_bytes), c->count << q->cluster_bits);
        ref(c, "a compressed cluster", offset, end > offset ? MIN(bytes, end - offset) : bytes);
        c->result.clusters_compressed += active;
        c->result.clusters_used += active;
    } else if (e.host) {
        c->result.clusters_used += active;
        if (!ref(c, "a cluster's place", e.host, q->cluster_bytes) || !active) {
            return 0;
        }
        uint64_t refcount;
        int error = q2_refcount(q, e.host >> q->cluster_bits, &refcount);
        if (error && error != -EUCLEAN) {
            return error;
        }
        if (!error && refcount && (refcount == 1) != e.copied) {
            say(c, "%s: cluster at %#llx has refcount %llu and COPIED %d", mismatch(c, false),
                (unsigned long long)e.host, (unsigned long long)refcount, e.copied);
        }
    }
    return 0;
}

static int ref_tree(struct checker *c, const uint64_t *l1, uint32_t l1_size, bool active)
{
    struct qcow2 *q = c->q;
    auto_free uint8_t *copy = malloc(q->cluster_bytes);
    int error = copy ? 0 : -ENOMEM;
    for (uint32_t i = 0; !error && i < l1_size; i++) {
        uint64_t table = l1[i] & Q2_OFFSET_MASK, refcount = 0;
        if (!table) {
            continue;
        }
        if (q2_in_cluster(q, table)) {
            fatal(c, "an L2 table", table);
            continue;
        }
        if (!ref(c, "an L2 table", table, q->cluster_bytes)) {
            continue;
        }
        if (active && q2_refcount(q, table >> q->cluster_bits, &refcount) == 0 && refcount &&
            (refcount == 1) != !!(l1[i] & Q2_COPIED)) {
            say(c, "%s: L2 table at %#llx has refcount %llu and COPIED %d", mismatch(c, false),
                (unsigned long long)table, (unsigned long long)refcount, !!(l1[i] & Q2_COPIED));
        }
        error = blk_pread(q->file, table, copy, q->cluster_bytes);
        for (uint32_t at = 0; !error && at < q->cluster_bytes; at += q->entry_bytes) {
            error = ref_entry(c, copy + at, active);
        }
    }
    return error;
}

static int ref_snapshots(struct checker *c)
{
    struct qcow2 *q = c->q;
    int error = 0;
    if (q->snapshots_bytes) {
        ref(c, "the snapshot table", q->snapshots_offset, q->snapshots_bytes);
    }
    for (unsigned i = 0; !error && i < q->snapshot_count; i++) {
        const struct q2_snapshot *s = &q->snapshots[i];
        if (!s->l1_size || !ref(c, "a snapshot's L1 table", s->l1_offset, s->l1_size * 8ull)) {
            continue;
        }
        uint64_t *l1;
        error = q2_read_table(q, s->l1_offset, s->l1_size, &l1, NULL, "snapshot's L1 table");
        if (!error) {
            error = ref_tree(c, l1, s->l1_size, false);
            free(l1);
        }
    }
    return error;
}

/* Entries of the table that can't be blocks are forgotten when everything is to be repaired. */
static void ref_refcounts(struct checker *c)
{
    struct qcow2 *q = c->q;
    ref(c, "the refcount table", q->reftable_offset, (uint64_t)q->reftable_clusters << q->cluster_bits);
    for (uint32_t i = 0; i < q->reftable_size; i++) {
        uint64_t offset = q->reftable[i];
        if (!offset) {
            continue;
        }
        bool possible = !q2_in_cluster(q, offset) && offset >> q->cluster_bits < c->count &&
                        c->refs[offset >> q->cluster_bits] == 0;
        if (possible) {
            ref(c, "a refcount block", offset, q->cluster_bytes);
            continue;
        }
        c->result.corruptions++;
        say(c, "corrupt: a refcount block at %#llx is impossible", (unsigned long long)offset);
        c->fatal += c->repair != IMAGE_REPAIR_ALL;
        q->reftable[i] = 0; /* in memory, so that nobody follows it; written by a repair only */
        q->reftable_dirty[i / 64] = q->any_reftable_dirty = true;
    }
}

static int grow_refs(struct checker *c, uint64_t count)
{
    if (count <= c->room) {
        return 0;
    }
    uint64_t room = MAX(c->room * 2, count);
    uint32_t *refs = realloc(c->refs, room * sizeof(*refs));
    if (!refs) {
        return -ENOMEM;
    }
    memset(refs + c->room, 0, (room - c->room) * sizeof(*refs));
    c->refs = refs;
    c->room = room;
    return 0;
}

/* Blocks for all that is in use, behind everything else. */
static int make_blocks(struct checker *c)
{
    struct qcow2 *q = c->q;
    q->repair_next = c->count;
    for (uint64_t cluster = 0; cluster < q->repair_next; cluster++) {
        uint64_t index = cluster >> q->refblock_bits;
        if (!c->refs[cluster] || (index < q->reftable_size && q->reftable[index])) {
            continue;
        }
        if (index >= q->reftable_size) {
            return -EFBIG; /* the table would have to move; nothing in use lies there in images seen so far */
        }
        int error = q2_ensure_refblock(q, index);
        error = error ? error : grow_refs(c, q->repair_next);
        if (error) {
            return error;
        }
        c->refs[q->repair_next - 1] = 1;
    }
    c->count = MAX(c->count, q->repair_next);
    return 0;
}

/* All clusters that have a refcount or a reference. */
static int compare(struct checker *c)
{
    struct qcow2 *q = c->q;
    uint64_t per_block = BIT64(q->refblock_bits),
             blocks = MAX((uint64_t)q->reftable_size, (c->count + per_block - 1) / per_block);
    for (uint64_t index = 0; index < blocks; index++) {
        bool present = index < q->reftable_size && q->reftable[index];
        uint64_t first = index * per_block,
                 end = present ? first + per_block : MIN(first + per_block, c->count);
        for (uint64_t cluster = first; cluster < end; cluster++) {
            uint64_t stored = 0, refs = cluster < c->room ? c->refs[cluster] : 0;
            int error = present ? q2_refcount(q, cluster, &stored) : 0;
            if (error) {
                return error;
            }
            if (stored == refs || (stored > refs && c->skip_leaks)) {
                continue;
            }
            bool leak = stored > refs;
            say(c, "%s: cluster %llu has refcount %llu and %llu references", mismatch(c, leak),
                (unsigned long long)cluster, (unsigned long long)stored, (unsigned long long)refs);
            if (c->repair == IMAGE_REPAIR_NONE || (!leak && c->repair == IMAGE_REPAIR_LEAKS)) {
                continue;
            }
            if (refs > q->refcount_max) {
                c->fatal++;
                continue;
            }
            error = q2_refcount_set(q, cluster, refs);
            if (error) {
                return error;
            }
            c->result.leaks_fixed += leak;
        }
    }
    return 0;
}

static int run(struct checker *c)
{
    struct qcow2 *q = c->q;
    ref(c, "the header", 0, q->cluster_bytes);
    if (q->l1_size) {
        ref(c, "the L1 table", q->l1_offset, q->l1_size * 8ull);
    }
    /* Blocks last: what claims to be one although it is something else is not believed. */
    int error = ref_tree(c, q->l1, q->l1_size, true);
    error = error ? error : ref_snapshots(c);
    if (error) {
        return error;
    }
    ref_refcounts(c);
    if (c->repair == IMAGE_REPAIR_ALL) {
        error = q2_set_dirty(q, true);
        error = error ? error : make_blocks(c);
    }
    error = error ? error : compare(c);
    if (error || c->repair == IMAGE_REPAIR_NONE) {
        return error;
    }
    if (c->repair == IMAGE_REPAIR_ALL && !c->fatal) {
        error = q2_update_copied(q);
    }
    error = error ? error : q2_commit_all(q);
    if (!error && c->repair == IMAGE_REPAIR_ALL && !c->fatal) {
        c->result.corruptions_fixed = c->result.corruptions;
        q->incompatible &= ~Q2_CORRUPT;
        q->keep_dirty = false;
        error = q2_set_dirty(q, false);
    }
    return error;
}

int q2_check(struct blk_node *node, enum image_repair repair, void (*report)(void *arg, const char *text),
             void *arg, struct image_check *ret_check, struct err *err)
{
    struct qcow2 *q = node->state;
    struct checker c = {.q = q, .repair = repair, .report = report, .arg = arg};
    struct blk_info info = {0};
    if (repair != IMAGE_REPAIR_NONE && !(node->flags & BLK_OPEN_RDWR)) {
        return err_set(err, -EROFS, "image '%s' is read-only and can't be repaired", node->filename);
    }
    for (unsigned i = 0; i < q->extension_count; i++) {
        c.skip_leaks |= q->extensions[i].type == Q2_EXT_BITMAPS; /* their clusters are not followed */
    }
    q->file->driver->info(q->file, &info);
    c.count = q2_clusters(q, info.host_length);
    if (c.count > CLUSTERS_MAX) {
        return err_set(err, -EFBIG, "image '%s' has %llu clusters, too many to check", node->filename,
                       (unsigned long long)c.count);
    }
    c.unclosed = q->dirty_on_disk && repair == IMAGE_REPAIR_NONE && !q->writable;
    co_mutex_lock(&q->meta);
    bool was_latched = q->latched;
    q->latched = false;
    q->repairing = true;
    c.result.clusters_total = q2_clusters(q, node->size_bytes);
    int error = q->writable ? q2_commit_all(q) : 0;
    error = error ? error : grow_refs(&c, c.count + 1);
    error = error ? error : run(&c);
    q->repairing = false;
    q->latched = was_latched &&
                 (error || c.result.corruptions > c.result.corruptions_fixed || c.repair != IMAGE_REPAIR_ALL);
    if (c.repair != IMAGE_REPAIR_NONE && !error) {
        q->unwritten_from = MAX(q->unwritten_from, c.count << q->cluster_bits);
        q->alloc_hint = 0;
    }
    co_mutex_unlock(&q->meta);
    free(c.refs);
    if (error) {
        return err_sys(err, error, "cannot check image '%s'", node->filename);
    }
    *ret_check = c.result;
    return 0;
}
