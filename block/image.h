/*
 * What tools do to images beyond reading and writing them: create, describe, check, rebase, commit,
 * snapshots. `fonda image` is a thin layer over this header and block.h; instances use it for their
 * snapshots.
 *
 * All functions are synchronous (they run the loop of the node) and need exclusive use of the image.
 */
#ifndef FONDA_BLOCK_IMAGE_H
#define FONDA_BLOCK_IMAGE_H

#include "block/block.h"

#define IMAGE_SNAPSHOTS_MAX 65536u

enum image_compression { IMAGE_ZLIB, IMAGE_ZSTD };

struct image_create_options {
    const char *format;  /* "raw", "qcow2" */
    uint64_t size_bytes; /* 0 with a backing image: as large as that */
    /* qcow2 only; 0 or NULL: the default */
    uint32_t cluster_bytes; /* 512 to 2 MiB; default 64 KiB */
    unsigned version;       /* 2 or 3; default 3 */
    unsigned refcount_bits; /* 1, 2, 4 ... 64; default 16 */
    bool extended_l2, lazy_refcounts;
    enum image_compression compression; /* what later writers of compressed clusters use */
    const char *backing;                /* recorded as it is; relative to the new image's folder */
    const char *backing_format;         /* required with backing */
    bool overwrite;                     /* else an existing file is -EEXIST */
};

int image_create(struct blk_loop *loop, const char *path, const struct image_create_options *options,
                 struct err *err);

/* What a format knows about itself; strings belong to the node. */
struct image_details {
    unsigned version, refcount_bits;
    bool extended_l2, lazy_refcounts, dirty, corrupt;
    const char *compression;    /* "zlib", "zstd", or NULL */
    const char *backing;        /* as recorded, or NULL */
    const char *backing_format; /* as recorded, or NULL */
    const char *backing_path;   /* as it was resolved, or NULL */
    unsigned snapshot_count;
};
void image_get_details(struct blk_node *node, struct image_details *ret_details);
/* The image below, or NULL. Belongs to the node. */
struct blk_node *image_backing(struct blk_node *node);

struct image_snapshot {
    char id[32], name[256];
    uint64_t vm_state_bytes, size_bytes;
    uint64_t date_s, vm_clock_ns;
};
/* The snapshots, oldest first; free() the array. */
int image_snapshots(struct blk_node *node, struct image_snapshot **ret_list, unsigned *ret_count,
                    struct err *err);
int image_snapshot_create(struct blk_node *node, const char *name, struct err *err);
/* id_or_name: an exact id wins over a name. */
int image_snapshot_apply(struct blk_node *node, const char *id_or_name, struct err *err);
int image_snapshot_delete(struct blk_node *node, const char *id_or_name, struct err *err);

struct image_check {
    uint64_t corruptions, leaks;             /* found */
    uint64_t corruptions_fixed, leaks_fixed; /* of these */
    uint64_t clusters_used, clusters_total, clusters_compressed;
    uint64_t end_offset; /* of the image's last used cluster */
    /* Refcounts and their flags that are behind in an image that was not closed (its dirty bit says so): the
     * next one who opens it for writing mends them. Neither corruptions nor leaks. */
    uint64_t unclosed;
};
enum image_repair { IMAGE_REPAIR_NONE, IMAGE_REPAIR_LEAKS, IMAGE_REPAIR_ALL };
/* report(): one call for each finding, up to a limit. Errors: -ENOTSUP for raw, those of reading and writing.
 */
int image_check(struct blk_node *node, enum image_repair repair, void (*report)(void *arg, const char *text),
                void *arg, struct image_check *ret_check, struct err *err);

/* Records another backing image (NULL: none). Contents are the caller's concern. */
int image_set_backing(struct blk_node *node, const char *backing, const char *backing_format,
                      struct err *err);

/* Progress: called with done and total bytes; returning false cancels (-ECANCELED). May be NULL. */
typedef bool image_progress_fn(void *arg, uint64_t done, uint64_t total);

/* Copies source to target (at least as large), leaving holes where source reads as zeroes. target_is_zero:
 * new. */
int image_copy(struct blk_node *source, struct blk_node *target, bool target_is_zero,
               image_progress_fn *progress, void *arg, struct err *err);
/* Writes into base what top (whose backing chain ends in base) has and base has not, then flushes. base is
 * opened read-write by the caller, as a node of its own, and not in use below top: open top with
 * BLK_OPEN_NO_BACKING. */
int image_commit(struct blk_node *top, struct blk_node *base, image_progress_fn *progress, void *arg,
                 struct err *err);
/* After a commit: what top has is given back. */
int image_empty(struct blk_node *top, struct err *err);
/* Copies into top what would read differently over new_base than over old_base; either may be NULL (zeroes).
 */
int image_rebase_copy(struct blk_node *top, struct blk_node *old_base, struct blk_node *new_base,
                      image_progress_fn *progress, void *arg, struct err *err);

#endif
