/*
 * Inside the qcow2 format. Layout, field names and bits: QEMU, docs/interop/qcow2.txt ("the specification"
 * below).
 *
 * Where to start: io.c (what a request does), then commit.c (what reaches the disk, and when).
 *
 * Invariants
 * 1. Metadata changes in memory (l1, reftable, the two caches) and reaches the file only through commit.c,
 *    in an order that leaves the image consistent, apart from leaked clusters, after a power cut at any
 *    point.
 * 2. `meta` is held by whoever changes metadata, and through a whole commit.
 * 3. An L2 entry is set in memory only after its cluster's data was written: a commit's first flush covers
 *    it.
 * 4. A cluster that an L2 entry (or L1, ...) let go of keeps its refcount, in `freed`, until a commit has
 *    made that durable. So nothing is reused before.
 * 5. A request on guest clusters holds a range lock: shared while it reads or overwrites in place,
 *    exclusive while it changes mappings. So no data I/O is under way on a cluster that is let go.
 * 6. A slice of a cache may be evicted at any suspension unless it is dirty: pointers into it don't live
 *    across one.
 */
#ifndef FONDA_BLOCK_QCOW2_INT_H
#define FONDA_BLOCK_QCOW2_INT_H

#include <endian.h>
#include <errno.h>

#include "block/block_provider.h"

#define Q2_MAGIC                    0x514649fbu /* "QFI\xfb" */
#define Q2_HEADER_V2_BYTES          72u
#define Q2_HEADER_V3_BYTES          104u
#define Q2_CLUSTER_BITS_MIN         9u
#define Q2_CLUSTER_BITS_MAX         21u
#define Q2_L1_BYTES_MAX             (32u * 1024 * 1024)
#define Q2_REFTABLE_BYTES_MAX       (8u * 1024 * 1024)
#define Q2_SNAPSHOT_TABLE_BYTES_MAX (64u * 1024 * 1024)
#define Q2_SNAPSHOT_EXTRA_MAX       1024u
#define Q2_BACKING_NAME_MAX         1023u
#define Q2_SUBCLUSTERS              32u

/* Byte offsets of header fields that are written alone. */
#define Q2_AT_SIZE         24u
#define Q2_AT_REFTABLE     48u
#define Q2_AT_SNAPSHOTS    60u
#define Q2_AT_INCOMPATIBLE 72u
#define Q2_AT_AUTOCLEAR    88u

/* Incompatible features. */
#define Q2_DIRTY              BIT64(0)
#define Q2_CORRUPT            BIT64(1)
#define Q2_DATA_FILE          BIT64(2)
#define Q2_COMPRESSION        BIT64(3)
#define Q2_EXTENDED_L2        BIT64(4)
#define Q2_INCOMPATIBLE_KNOWN (Q2_DIRTY | Q2_CORRUPT | Q2_COMPRESSION | Q2_EXTENDED_L2)
/* Compatible features. */
#define Q2_LAZY_REFCOUNTS BIT64(0)
/* Header extensions. */
#define Q2_EXT_END            0u
#define Q2_EXT_BACKING_FORMAT 0xe2792acau
#define Q2_EXT_FEATURE_NAMES  0x6803f857u
#define Q2_EXT_BITMAPS        0x23852875u

/* L1 and L2 entries. */
#define Q2_COPIED      BIT64(63)
#define Q2_COMPRESSED  BIT64(62)
#define Q2_ZERO        BIT64(0)
#define Q2_OFFSET_MASK 0x00fffffffffffe00ull

#define Q2_SLICE_BYTES_MAX 4096u
#define Q2_L2_CACHE_BYTES  (16u * 1024 * 1024)
#define Q2_REF_CACHE_BYTES (4u * 1024 * 1024)

struct q2_slice {
    uint64_t offset; /* in the file */
    uint8_t *data;
    bool dirty, loading;
    bool fresh; /* dirty, part of a table that nothing on the disk points to yet */
    struct q2_slice *hash_next, *newer, *older;
};

struct q2_cache {
    struct blk_node *file;
    uint32_t slice_bytes;
    unsigned count, count_max, dirty_count;
    struct q2_slice **buckets;
    unsigned bucket_mask;
    struct q2_slice *newest, *oldest;
    struct co_queue loaded;
};

struct q2_range {
    uint64_t first, count; /* clusters */
};

struct q2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t extra_bytes;
    uint8_t *extra; /* as it was read, with unknown fields */
    struct image_snapshot info;
};

struct q2_extension {
    uint32_t type, bytes;
    uint8_t *data;
};

struct qcow2 {
    struct blk_node *node, *file;
    unsigned version, cluster_bits;
    uint32_t cluster_bytes;
    uint32_t header_bytes;
    uint64_t incompatible, compatible, autoclear;
    enum image_compression compression;
    bool writable, repairing;
    bool latched;      /* damage was seen: no more writes */
    bool dirty_unsure; /* of dirty_on_disk: the last change of it failed half way */
    bool keep_dirty; /* something went wrong half way: leave the dirty bit set, so that the next open repairs
                      */
    bool dirty_on_disk;

    unsigned subclusters, subcluster_bits; /* 1 or 32 in a cluster; size of one */
    unsigned l2_bits, entry_bytes;         /* entries in a table; bytes of one */
    uint64_t *l1;                          /* host byte order */
    uint32_t l1_size;
    uint64_t l1_offset;
    bool *l1_dirty; /* for each 512 bytes of the table */
    struct q2_cache l2;

    unsigned refcount_order, refblock_bits; /* log2 of bits of a refcount; of entries in a block */
    uint64_t refcount_max;
    uint64_t *reftable; /* host byte order */
    uint32_t reftable_size, reftable_clusters;
    uint64_t reftable_offset;
    bool reftable_moved;
    bool *reftable_dirty; /* for each 512 bytes of the table */
    bool any_reftable_dirty;
    struct q2_cache ref;
    uint64_t alloc_hint;     /* cluster: none below is free */
    uint64_t unwritten_from; /* byte: the file has nothing but zeroes there and behind */
    uint64_t repair_next;    /* while repairing: the cluster where new refcount blocks go */
    struct q2_range *freed;
    size_t freed_count, freed_room;

    struct q2_snapshot *snapshots;
    unsigned snapshot_count;
    uint64_t snapshots_offset, snapshots_bytes;

    struct q2_extension *extensions; /* those kept as they are */
    unsigned extension_count;
    char *backing_name, *backing_format;

    struct co_mutex meta;
    struct range_locks ranges;
    bool data_unflushed;

    uint8_t *inflated; /* the last compressed cluster that was read */
    uint64_t inflated_entry;
};

static inline uint64_t q2_in_cluster(const struct qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_bytes - 1);
}

static inline uint64_t q2_clusters(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes + q->cluster_bytes - 1) >> q->cluster_bits;
}

/* ---- cache.c ---- */
int q2_cache_init(struct q2_cache *cache, struct blk_node *file, uint32_t slice_bytes, uint32_t bytes);
void q2_cache_done(struct q2_cache *cache);
/* The slice at offset, a multiple of slice_bytes. May suspend. */
int q2_cache_get(struct q2_cache *cache, uint64_t offset, struct q2_slice **ret_slice);
/* New zero-filled slices for a table there, dirty and fresh; the file is not read. */
int q2_cache_make(struct q2_cache *cache, uint64_t offset, uint64_t bytes);
void q2_cache_dirty(struct q2_cache *cache, struct q2_slice *slice);
/* Forgets [offset, offset + bytes), also what is dirty there. */
void q2_cache_drop(struct q2_cache *cache, uint64_t offset, uint64_t bytes);
/* Writes dirty slices: the fresh ones, or all. Under `meta`. */
int q2_cache_write(struct q2_cache *cache, bool only_fresh);

/* ---- refcount.c; all under `meta` ---- */
int q2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count);
/* -ERANGE: would leave [0, refcount_max]. */
int q2_refcount_add(struct qcow2 *q, uint64_t first, uint64_t count, int delta);
int q2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value);
/* Finds up to *count free adjacent clusters (at least `least`) and gives each refcount 1. */
int q2_alloc(struct qcow2 *q, uint64_t least, uint64_t *count, uint64_t *ret_offset);
/* Lets go of clusters: their refcounts fall after the next commit. */
void q2_free(struct qcow2 *q, uint64_t offset, uint64_t bytes);
/* What an L2 entry refers to. */
void q2_free_entry(struct qcow2 *q, uint64_t entry);
int q2_apply_freed(struct qcow2 *q);
int q2_ensure_refblock(struct qcow2 *q, uint64_t index);

/* ---- commit.c; under `meta` ---- */
int q2_commit(struct qcow2 *q);
/* The same without a flush at the end being needed: all is written, refcounts too. */
int q2_commit_all(struct qcow2 *q);
int q2_set_dirty(struct qcow2 *q, bool dirty);
/* The image is damaged: refuses writes from here on, and says so in the file. */
void q2_latch(struct qcow2 *q);
/* The same, and the error to return. */
static inline int q2_corrupt(struct qcow2 *q)
{
    q2_latch(q);
    return -EUCLEAN;
}
/* A table of 8-byte entries to the file, in its byte order. */
int q2_write_table(struct qcow2 *q, uint64_t offset, const uint64_t *entries, uint64_t count,
                   uint64_t room_bytes);
bool q2_wants_commit(const struct qcow2 *q);

/* ---- map.c ---- */
enum q2_kind { Q2_KIND_UNALLOCATED, Q2_KIND_ZERO, Q2_KIND_DATA, Q2_KIND_COMPRESSED };
struct q2_entry {
    uint64_t raw;  /* as stored, in host byte order */
    uint64_t host; /* of the cluster; 0: none */
    bool copied, compressed;
    uint32_t alloc, zero; /* one bit for each subcluster; of one that has both, zero counts */
};
struct q2_extent {
    enum q2_kind kind;
    uint64_t bytes;
    uint64_t host; /* data: of the first byte. compressed: the entry */
    bool copied;   /* data: may be overwritten in place */
};
int q2_decode(const struct qcow2 *q, const uint8_t *p, struct q2_entry *ret_entry);
/* What holds the guest's bytes from offset on, up to bytes. May suspend. */
int q2_extent(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct q2_extent *ret_extent);
/* One entry; without a table for it an empty one. */
int q2_entry_get(struct qcow2 *q, uint64_t offset, struct q2_entry *ret_entry);
/* Under `meta`. Makes the table, or copies a shared one, first. Doesn't free what the entry referred to. */
int q2_entry_set(struct qcow2 *q, uint64_t offset, const struct q2_entry *entry);
/* Host offset of the table that l1[index] names; 0: none; -EUCLEAN. */
int q2_table_offset(struct qcow2 *q, uint64_t l1_entry, uint64_t *ret_offset);

/* ---- io.c ---- */
int q2_co_io(struct blk_node *node, struct blk_req *req);
/* Gives back [offset, offset + bytes), cluster-aligned or to the end; reads as over an empty image when
 * expose. */
int q2_unmap(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool expose);

/* ---- compress.c ---- */
/* The data of the compressed cluster that an L2 entry describes, in q->inflated. May suspend before, not
 * after. */
int q2_inflate(struct qcow2 *q, uint64_t entry);
/* Host range of its data. */
void q2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes);

/* ---- header.c ---- */
int q2_header_read(struct qcow2 *q, const struct blk_open_options *options, struct err *err);
int q2_header_rewrite(struct qcow2 *q, struct err *err);
void q2_header_done(struct qcow2 *q);
int q2_create(struct blk_node *file, const char *path, const struct image_create_options *options,
              struct err *err);
int q2_set_backing(struct blk_node *node, const char *backing, const char *format, struct err *err);
int q2_read_table(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t **ret_table, struct err *err,
                  const char *what);

/* ---- snapshot.c ---- */
int q2_snapshots_read(struct qcow2 *q, uint32_t count, uint64_t offset, struct err *err);
void q2_snapshots_done(struct qcow2 *q);
const struct q2_snapshot *q2_snapshot_find(struct qcow2 *q, const char *id_or_name);
int q2_snapshots(struct blk_node *node, struct image_snapshot **ret_list, unsigned *ret_count,
                 struct err *err);
int q2_snapshot_create(struct blk_node *node, const char *name, struct err *err);
int q2_snapshot_apply(struct blk_node *node, const char *id, struct err *err);
/* COPIED in the active tables if and only if the refcount is 1. Under `meta`. */
int q2_update_copied(struct qcow2 *q);
int q2_snapshot_delete(struct blk_node *node, const char *id, struct err *err);

/* ---- check.c, resize.c ---- */
int q2_check(struct blk_node *node, enum image_repair repair, void (*report)(void *arg, const char *text),
             void *arg, struct image_check *ret_check, struct err *err);
int q2_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err);
int q2_empty(struct blk_node *node, struct err *err);
/* Puts the L1 table somewhere else, with new contents (taken over) and a new disk size, durably. Lets go of
 * the old. */
int q2_replace_l1(struct qcow2 *q, uint64_t *l1, uint32_t l1_size, uint64_t size_bytes);
uint64_t q2_l1_entries(const struct qcow2 *q, uint64_t size_bytes);

#endif
