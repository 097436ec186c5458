/*
 * The header cluster: reading it with all its checks, writing it, creating an image. Fields and their offsets: the
 * specification, "Header".
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

struct header {
    uint32_t magic, version;
    uint64_t backing_offset;
    uint32_t backing_bytes, cluster_bits;
    uint64_t size_bytes;
    uint32_t crypt_method, l1_size;
    uint64_t l1_offset, reftable_offset;
    uint32_t reftable_clusters, snapshot_count;
    uint64_t snapshots_offset;
    /* Version 3. */
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order, header_bytes;
    uint8_t compression, padding[7];
} __attribute__((packed));

_Static_assert(sizeof(struct header) == 112, "the specification's layout");

/* Bytes of one entry of the feature name table: kind, bit, name. */
#define FEATURE_NAME_BYTES 48u
#define BACKING_FORMAT_MAX 64u

static void swap(struct header *h)
{
#define SWAP32(member) h->member = be32toh(h->member)
#define SWAP64(member) h->member = be64toh(h->member)
    SWAP32(magic), SWAP32(version), SWAP64(backing_offset), SWAP32(backing_bytes), SWAP32(cluster_bits);
    SWAP64(size_bytes), SWAP32(crypt_method), SWAP32(l1_size), SWAP64(l1_offset), SWAP64(reftable_offset);
    SWAP32(reftable_clusters), SWAP32(snapshot_count), SWAP64(snapshots_offset);
    SWAP64(incompatible), SWAP64(compatible), SWAP64(autoclear), SWAP32(refcount_order), SWAP32(header_bytes);
#undef SWAP32
#undef SWAP64
}

int q2_read_table(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t **ret_table, struct err *err,
                  const char *what)
{
    uint64_t *table = calloc(count + 1, sizeof(*table));
    int error = table ? 0 : -ENOMEM;
    error = error || !count ? error : blk_pread(q->file, offset, table, count * 8);
    if (error) {
        free(table);
        return err_sys(err, error, "image '%s': cannot read the %s", q->node->filename, what);
    }
    for (uint64_t i = 0; i < count; i++) {
        table[i] = be64toh(table[i]);
    }
    *ret_table = table;
    return 0;
}

static int bad(struct qcow2 *q, struct err *err, const char *what)
{
    return err_set(err, -EUCLEAN, "image '%s' is damaged: %s", q->node->filename, what);
}

static int unsupported_features(struct qcow2 *q, uint64_t features, const uint8_t *names, uint32_t names_bytes,
                                struct err *err)
{
    char text[256] = "";
    size_t used = 0;
    for (unsigned bit = 0; bit < 64 && used < sizeof(text); bit++) {
        if (!(features & BIT64(bit))) {
            continue;
        }
        char name[FEATURE_NAME_BYTES] = "";
        for (uint32_t at = 0; at + FEATURE_NAME_BYTES <= names_bytes; at += FEATURE_NAME_BYTES) {
            if (names[at] == 0 && names[at + 1] == bit) {
                memcpy(name, names + at + 2, FEATURE_NAME_BYTES - 2);
            }
        }
        for (char *p = name; *p; p++) {
            *p = *p < ' ' || *p > '~' ? '?' : *p;
        }
        if (!name[0]) {
            snprintf(name, sizeof(name), "bit %u", bit);
        }
        int n = snprintf(text + used, sizeof(text) - used, "%s%s", used ? ", " : "", name);
        used += (size_t)n;
    }
    return err_set(err, -ENOTSUP, "image '%s' needs features that are not supported: %s", q->node->filename, text);
}

static int keep_extension(struct qcow2 *q, uint32_t type, uint32_t bytes, const uint8_t *data)
{
    struct q2_extension *list = realloc(q->extensions, (q->extension_count + 1) * sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    q->extensions = list;
    uint8_t *copy = malloc(bytes + 1u);
    if (!copy) {
        return -ENOMEM;
    }
    memcpy(copy, data, bytes);
    list[q->extension_count++] = (struct q2_extension){type, bytes, copy};
    return 0;
}

/* head: the header cluster. Extensions lie between the header and the backing name, or the cluster's end. */
static int read_extensions(struct qcow2 *q, const struct header *h, const uint8_t *head, struct err *err)
{
    uint64_t end = h->backing_offset ? h->backing_offset : q->cluster_bytes;
    const uint8_t *names = NULL;
    uint32_t names_bytes = 0;
    uint64_t at = q->header_bytes;
    while (at + 8 <= end) {
        uint32_t type, bytes;
        memcpy(&type, head + at, 4);
        memcpy(&bytes, head + at + 4, 4);
        type = be32toh(type);
        bytes = be32toh(bytes);
        at += 8;
        if (type == Q2_EXT_END) {
            break;
        }
        if (bytes > end - at) {
            return bad(q, err, "a header extension is longer than the header");
        }
        if (type == Q2_EXT_BACKING_FORMAT) {
            if (bytes > BACKING_FORMAT_MAX) {
                return bad(q, err, "the backing format's name is too long");
            }
            free(q->backing_format);
            q->backing_format = strndup((const char *)head + at, bytes);
        } else if (type == Q2_EXT_FEATURE_NAMES) {
            names = head + at;
            names_bytes = bytes;
        } else if (keep_extension(q, type, bytes, head + at) < 0) {
            return err_sys(err, -ENOMEM, "cannot open image '%s'", q->node->filename);
        }
        at = align_up(at + bytes, 8);
    }
    if (q->incompatible & ~Q2_INCOMPATIBLE_KNOWN) {
        return unsupported_features(q, q->incompatible & ~Q2_INCOMPATIBLE_KNOWN, names, names_bytes, err);
    }
    return 0;
}

/* What depends on cluster_bits and the features only. */
static void derive(struct qcow2 *q)
{
    bool extended = q->incompatible & Q2_EXTENDED_L2;
    q->cluster_bytes = 1u << q->cluster_bits;
    q->subclusters = extended ? Q2_SUBCLUSTERS : 1;
    q->subcluster_bits = q->cluster_bits - (extended ? 5 : 0);
    q->entry_bytes = extended ? 16 : 8;
    q->l2_bits = q->cluster_bits - (extended ? 4 : 3);
    q->refblock_bits = q->cluster_bits + 3 - q->refcount_order;
    q->refcount_max = q->refcount_order == 6 ? UINT64_MAX : BIT64(1u << q->refcount_order) - 1;
}

uint64_t q2_l1_entries(const struct qcow2 *q, uint64_t size_bytes)
{
    unsigned shift = q->cluster_bits + q->l2_bits;
    return (size_bytes >> shift) + ((size_bytes & (BIT64(shift) - 1)) != 0);
}

static int check_numbers(struct qcow2 *q, const struct header *h, struct err *err)
{
    if (q->cluster_bits < Q2_CLUSTER_BITS_MIN || q->cluster_bits > Q2_CLUSTER_BITS_MAX) {
        return err_set(err, -ENOTSUP, "image '%s': clusters of 2^%u bytes are not supported", q->node->filename,
                       q->cluster_bits);
    }
    if (h->crypt_method) {
        return err_set(err, -ENOTSUP, "image '%s' is encrypted, which is not supported", q->node->filename);
    }
    if (q->version >= 3 && (h->header_bytes < Q2_HEADER_V3_BYTES || h->header_bytes % 8 ||
                            h->header_bytes > BIT64(q->cluster_bits))) {
        return bad(q, err, "the header's length is impossible");
    }
    if (q->refcount_order > 6) {
        return bad(q, err, "the width of refcounts is impossible");
    }
    if ((q->incompatible & Q2_EXTENDED_L2) && q->cluster_bits < 14) {
        return bad(q, err, "extended L2 entries with clusters below 16 KiB");
    }
    derive(q);
    uint64_t mask = q->cluster_bytes - 1;
    uint64_t all = h->l1_offset | h->reftable_offset | h->snapshots_offset;
    if ((all & mask) || all > Q2_OFFSET_MASK || !h->reftable_offset || (h->l1_size && !h->l1_offset)) {
        return bad(q, err, "a table is not where a cluster begins");
    }
    if (h->size_bytes > INT64_MAX - BLK_REQ_BYTES_MAX || q2_l1_entries(q, h->size_bytes) > h->l1_size ||
        h->l1_size > Q2_L1_BYTES_MAX / 8) {
        return bad(q, err, "the L1 table's size is impossible");
    }
    if (!h->reftable_clusters || h->reftable_clusters > Q2_REFTABLE_BYTES_MAX >> q->cluster_bits) {
        return bad(q, err, "the refcount table's size is impossible");
    }
    if (h->snapshot_count > IMAGE_SNAPSHOTS_MAX || (h->snapshot_count && !h->snapshots_offset)) {
        return bad(q, err, "the snapshot table is impossible");
    }
    if (h->backing_offset && (h->backing_bytes > Q2_BACKING_NAME_MAX || h->backing_offset > q->cluster_bytes ||
                              h->backing_bytes > q->cluster_bytes - h->backing_offset)) {
        return bad(q, err, "the backing image's name is not in the header");
    }
    return 0;
}

static int read_tables(struct qcow2 *q, const struct header *h, struct err *err)
{
    q->l1_size = h->l1_size;
    q->l1_offset = h->l1_offset;
    q->reftable_offset = h->reftable_offset;
    q->reftable_clusters = h->reftable_clusters;
    q->reftable_size = h->reftable_clusters << (q->cluster_bits - 3);
    q->l1_dirty = calloc(q->l1_size / 64 + 1, sizeof(*q->l1_dirty));
    q->reftable_dirty = calloc(q->reftable_size / 64 + 1, sizeof(*q->reftable_dirty));
    int error = q2_read_table(q, q->l1_offset, q->l1_size, &q->l1, err, "L1 table");
    if (!error) {
        error = q2_read_table(q, q->reftable_offset, q->reftable_size, &q->reftable, err, "refcount table");
    }
    uint32_t slice = MIN(q->cluster_bytes, Q2_SLICE_BYTES_MAX);
    if (!error && (!q->l1_dirty || !q->reftable_dirty || q2_cache_init(&q->l2, q->file, slice, Q2_L2_CACHE_BYTES) < 0 ||
                   q2_cache_init(&q->ref, q->file, slice, Q2_REF_CACHE_BYTES) < 0)) {
        error = err_sys(err, -ENOMEM, "cannot open image '%s'", q->node->filename);
    }
    return error ? error : q2_snapshots_read(q, h->snapshot_count, h->snapshots_offset, err);
}

int q2_header_read(struct qcow2 *q, const struct blk_open_options *options, struct err *err)
{
    struct header h = {0};
    int error = blk_pread(q->file, 0, &h, sizeof(h));
    if (error) {
        return err_sys(err, error, "cannot read image '%s'", q->node->filename);
    }
    swap(&h);
    if (h.magic != Q2_MAGIC) {
        return err_set(err, -EINVAL, "image '%s' is not in qcow2 format", q->node->filename);
    }
    if (h.version != 2 && h.version != 3) {
        return err_set(err, -ENOTSUP, "image '%s': qcow2 version %u is not supported", q->node->filename, h.version);
    }
    q->version = h.version;
    q->cluster_bits = h.cluster_bits;
    if (q->version == 2) {
        h.incompatible = h.compatible = h.autoclear = 0;
        h.refcount_order = 4; /* the specification: version 2 has 16 bits */
        h.header_bytes = Q2_HEADER_V2_BYTES;
    }
    if (h.header_bytes <= offsetof(struct header, compression)) {
        h.compression = 0;
    }
    q->incompatible = h.incompatible;
    q->compatible = h.compatible;
    q->autoclear = h.autoclear;
    q->refcount_order = h.refcount_order;
    q->header_bytes = h.header_bytes;
    q->dirty_on_disk = q->incompatible & Q2_DIRTY;
    q->node->size_bytes = h.size_bytes;
    error = check_numbers(q, &h, err);
    auto_free uint8_t *head = error ? NULL : calloc(1, q->cluster_bytes);
    if (!error && !head) {
        error = -ENOMEM;
    }
    if (!error) {
        error = blk_pread(q->file, 0, head, q->cluster_bytes);
        error = error ? err_sys(err, error, "cannot read image '%s'", q->node->filename)
                      : read_extensions(q, &h, head, err);
    }
    if (!error && (q->incompatible & Q2_COMPRESSION) != (h.compression ? Q2_COMPRESSION : 0)) {
        error = bad(q, err, "the compression type and its feature bit disagree");
    }
    if (!error && h.compression > IMAGE_ZSTD) {
        error = err_set(err, -ENOTSUP, "image '%s': compression type %u is not supported", q->node->filename,
                        h.compression);
    }
    q->compression = h.compression;
    if (!error && h.backing_offset && h.backing_bytes) {
        q->backing_name = strndup((const char *)head + h.backing_offset, h.backing_bytes);
    }
    return error ? error : read_tables(q, &h, err);
}

void q2_header_done(struct qcow2 *q)
{
    for (unsigned i = 0; i < q->extension_count; i++) {
        free(q->extensions[i].data);
    }
    free(q->extensions);
    free(q->backing_name);
    free(q->backing_format);
    free(q->l1);
    free(q->l1_dirty);
    free(q->reftable);
    free(q->reftable_dirty);
    free(q->freed);
    free(q->inflated);
}

/* ---- writing ---- */

static size_t put_extension(uint8_t *at, uint32_t type, const void *data, uint32_t bytes)
{
    uint32_t head[2] = {htobe32(type), htobe32(bytes)};
    memcpy(at, head, sizeof(head));
    memcpy(at + sizeof(head), data, bytes);
    return sizeof(head) + align_up(bytes, 8);
}

static uint32_t put_feature_names(uint8_t *at)
{
    static const struct {
        uint8_t kind, bit; /* kinds: 0 incompatible, 1 compatible, 2 autoclear */
        const char *name;
    } names[] = {
        {0, 0, "dirty bit"},   {0, 1, "corrupt bit"}, {0, 2, "external data file"}, {0, 3, "compression type"},
        {0, 4, "extended L2"}, {1, 0, "lazy refcounts"},
    };
    uint8_t table[ARRAY_SIZE(names) * FEATURE_NAME_BYTES] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        uint8_t *p = table + i * FEATURE_NAME_BYTES;
        p[0] = names[i].kind;
        p[1] = names[i].bit;
        memcpy(p + 2, names[i].name, strlen(names[i].name));
    }
    return (uint32_t)put_extension(at, Q2_EXT_FEATURE_NAMES, table, sizeof(table));
}

/* The whole header cluster from q. Errors: -ENAMETOOLONG, when it doesn't fit. */
static int build(struct qcow2 *q, uint8_t *cluster)
{
    struct header h = {
        .magic = Q2_MAGIC,
        .version = q->version,
        .cluster_bits = q->cluster_bits,
        .size_bytes = q->node->size_bytes,
        .l1_size = q->l1_size,
        .l1_offset = q->l1_offset,
        .reftable_offset = q->reftable_offset,
        .reftable_clusters = q->reftable_clusters,
        .snapshot_count = q->snapshot_count,
        .snapshots_offset = q->snapshot_count ? q->snapshots_offset : 0,
        .incompatible = q->incompatible,
        .compatible = q->compatible,
        .autoclear = q->autoclear,
        .refcount_order = q->refcount_order,
        .header_bytes = sizeof(h),
        .compression = (uint8_t)q->compression,
    };
    size_t name_bytes = q->backing_name ? strlen(q->backing_name) : 0;
    size_t need = sizeof(h) + 8 + name_bytes + (q->backing_format ? 8 + align_up(strlen(q->backing_format), 8) : 0);
    for (unsigned i = 0; i < q->extension_count; i++) {
        need += 8 + align_up(q->extensions[i].bytes, 8);
    }
    if (need > q->cluster_bytes) {
        return -ENAMETOOLONG;
    }
    /* The names of features are for other programs' messages: left out where a small cluster has no room. */
    bool with_names = q->version >= 3 && need + 8 + 6 * FEATURE_NAME_BYTES <= q->cluster_bytes;
    size_t at = q->version >= 3 ? sizeof(h) : Q2_HEADER_V2_BYTES;
    if (q->backing_name && q->backing_format) {
        at += put_extension(cluster + at, Q2_EXT_BACKING_FORMAT, q->backing_format, (uint32_t)strlen(q->backing_format));
    }
    at += with_names ? put_feature_names(cluster + at) : 0;
    for (unsigned i = 0; i < q->extension_count; i++) {
        at += put_extension(cluster + at, q->extensions[i].type, q->extensions[i].data, q->extensions[i].bytes);
    }
    at += put_extension(cluster + at, Q2_EXT_END, "", 0);
    if (name_bytes) {
        h.backing_offset = at;
        h.backing_bytes = (uint32_t)name_bytes;
        memcpy(cluster + at, q->backing_name, name_bytes);
    }
    swap(&h);
    memcpy(cluster, &h, q->version >= 3 ? sizeof(h) : Q2_HEADER_V2_BYTES);
    return 0;
}

int q2_header_rewrite(struct qcow2 *q, struct err *err)
{
    auto_free uint8_t *cluster = calloc(1, q->cluster_bytes);
    int error = cluster ? build(q, cluster) : -ENOMEM;
    if (error == -ENAMETOOLONG) {
        return err_set(err, error, "image '%s': the backing image's name doesn't fit into a cluster of %u bytes",
                       q->node->filename, q->cluster_bytes);
    }
    error = error ? error : blk_pwrite(q->file, 0, cluster, q->cluster_bytes);
    error = error ? error : blk_flush(q->file);
    if (error) {
        return err_sys(err, error, "cannot write the header of image '%s'", q->node->filename);
    }
    if (q->version >= 3) {
        q->header_bytes = sizeof(struct header);
    }
    return 0;
}

int q2_set_backing(struct blk_node *node, const char *backing, const char *format, struct err *err)
{
    struct qcow2 *q = node->state;
    if (q->latched) {
        return bad(q, err, "it can't be written");
    }
    if (backing && strlen(backing) > Q2_BACKING_NAME_MAX) {
        return err_set(err, -ENAMETOOLONG, "the backing image's name is longer than %u bytes", Q2_BACKING_NAME_MAX);
    }
    char *old_name = q->backing_name, *old_format = q->backing_format;
    q->backing_name = backing ? strdup(backing) : NULL;
    q->backing_format = backing && format ? strdup(format) : NULL;
    int error = (backing && !q->backing_name) || (backing && format && !q->backing_format) ? -ENOMEM : 0;
    error = error ? err_sys(err, error, "cannot change the backing image") : q2_header_rewrite(q, err);
    if (error) {
        free(q->backing_name);
        free(q->backing_format);
        q->backing_name = old_name;
        q->backing_format = old_format;
        return error;
    }
    free(old_name);
    free(old_format);
    return 0;
}

static int check_options(const struct image_create_options *o, uint32_t cluster_bytes, unsigned version,
                         unsigned refcount_bits, struct err *err)
{
    if ((cluster_bytes & (cluster_bytes - 1)) || cluster_bytes < 1u << Q2_CLUSTER_BITS_MIN ||
        cluster_bytes > 1u << Q2_CLUSTER_BITS_MAX) {
        return err_set(err, -EINVAL, "the cluster size must be a power of two from 512 to 2 MiB");
    }
    if ((refcount_bits & (refcount_bits - 1)) || refcount_bits > 64) {
        return err_set(err, -EINVAL, "the refcount width must be 1, 2, 4, 8, 16, 32 or 64");
    }
    if (version != 2 && version != 3) {
        return err_set(err, -EINVAL, "the qcow2 version must be 2 or 3");
    }
    if (version == 2 && (o->extended_l2 || o->lazy_refcounts || refcount_bits != 16 || o->compression != IMAGE_ZLIB)) {
        return err_set(err, -EINVAL,
                       "qcow2 version 2 has no extended L2, lazy refcounts, zstd or other refcount width than 16");
    }
    if (o->extended_l2 && cluster_bytes < 16384) {
        return err_set(err, -EINVAL, "extended L2 needs clusters of at least 16 KiB");
    }
    if (o->backing && strlen(o->backing) > Q2_BACKING_NAME_MAX) {
        return err_set(err, -ENAMETOOLONG, "the backing image's name is longer than %u bytes", Q2_BACKING_NAME_MAX);
    }
    return 0;
}

/* Clusters 0, 1, 2: header, refcount table, its first block. The disk is empty until it is resized. */
int q2_create(struct blk_node *file, const char *path, const struct image_create_options *o, struct err *err)
{
    uint32_t cluster_bytes = o->cluster_bytes ? o->cluster_bytes : 64 * 1024;
    unsigned version = o->version ? o->version : 3, refcount_bits = o->refcount_bits ? o->refcount_bits : 16;
    int error = check_options(o, cluster_bytes, version, refcount_bits, err);
    if (error) {
        return error;
    }
    struct blk_node node = {.filename = (char *)path};
    struct qcow2 q = {.node = &node, .file = file, .version = version, .compression = o->compression};
    q.cluster_bits = (unsigned)__builtin_ctz(cluster_bytes);
    q.refcount_order = (unsigned)__builtin_ctz(refcount_bits);
    q.incompatible = (o->extended_l2 ? Q2_EXTENDED_L2 : 0) | (o->compression ? Q2_COMPRESSION : 0);
    q.compatible = o->lazy_refcounts ? Q2_LAZY_REFCOUNTS : 0;
    derive(&q);
    q.reftable_offset = cluster_bytes;
    q.reftable_clusters = 1;
    q.backing_name = o->backing ? (char *)o->backing : NULL;
    q.backing_format = o->backing_format ? (char *)o->backing_format : NULL;
    auto_free uint8_t *image = calloc(3, cluster_bytes);
    if (!image) {
        return err_sys(err, -ENOMEM, "cannot create image '%s'", path);
    }
    uint64_t block = htobe64(2ull * cluster_bytes);
    memcpy(image + cluster_bytes, &block, sizeof(block));
    uint8_t *refcounts = image + 2 * (size_t)cluster_bytes;
    for (unsigned i = 0; i < 3; i++) {
        if (refcount_bits < 8) {
            refcounts[i * refcount_bits / 8] |= (uint8_t)(1u << (i * refcount_bits % 8));
        } else {
            refcounts[(i + 1) * refcount_bits / 8 - 1] = 1; /* big-endian */
        }
    }
    error = build(&q, image);
    error = error ? error : blk_pwrite(file, 0, image, 3ull * cluster_bytes);
    error = error ? error : blk_flush(file);
    return error ? err_sys(err, error, "cannot create image '%s'", path) : 0;
}
