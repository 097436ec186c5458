/*
 * Unpacked layers in overlayfs's own form (char device 0:0 for a whiteout, user.overlay.opaque for an opaque
 * folder; overlayfs's documentation, "whiteouts and opaque directories", with "userxattr"), and what can be
 * asked of a stack of them.
 */
#ifndef FONDA_IMAGE_LAYER_H
#define FONDA_IMAGE_LAYER_H

#include <sys/stat.h>

#include "image/store.h"
#include "image/stream.h"

#define LAYER_OPAQUE "user.overlay.opaque"
#define LAYER_STAT                                                                                           \
    "user.fonda.stat" /* "UID:GID:MODE", decimal and octal: owners that the host's ids can't express */

/* Whether owners are kept in LAYER_STAT: the process has one id only. */
bool layer_owners_in_xattr(void);
/* stat() with the owner and mode from LAYER_STAT where it is there. name "" : dir itself. */
int layer_stat(int dir, const char *name, struct stat *ret_stat);
int layer_set_owner(int dir, const char *name, uid_t uid, gid_t gid, mode_t mode, struct err *err);
static inline bool layer_is_whiteout(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && st->st_rdev == 0;
}
bool layer_is_opaque(int dir);

/* Tar to folder: diff is empty. Hard links to, and attributes of folders from, lower layers are left for
 * layer_finish(). */
struct layer_fixups;
int layer_unpack(struct layer_stream *stream, int diff, struct layer_fixups **ret_fixups, struct err *err);
/* lower: descriptors of the layers below, topmost first. Frees fixups (NULL: nothing to do). */
int layer_finish(struct layer_fixups *fixups, int diff, const int *lower, unsigned count, struct err *err);
void layer_fixups_free(struct layer_fixups *fixups);

/* The layer that shows path in a stack (topmost first): its index, or -ENOENT; *ret_stat as lstat(). */
int layer_lookup(const int *stack, unsigned count, const char *path, struct stat *ret_stat);
/* All entries of the folder path in a stack, merged and without whiteouts, sorted. Caller frees each and the
 * array. */
int layer_list(const int *stack, unsigned count, const char *path, char ***ret_names, struct err *err);
/* Copies the merged view of the stack into the folder to. */
int layer_flatten(const int *stack, unsigned count, int to, struct err *err);

/* Unpacks the blob of layer index (compressed or not) of a chain, if it isn't there: 0. diff_id is checked.
 * The fix-ups are returned for layer_publish(), which has to come in the order of the chain. */
struct layer_job {
    const char *blob, *diff_id, *chain_id;
    int lock;
    struct layer_fixups *fixups;
    bool staged;
};
int layer_stage(struct image_store *store, struct layer_job *job, struct err *err);
int layer_publish(struct image_store *store, struct layer_job *job, const char (*chain_ids)[DIGEST_SIZE],
                  unsigned index, struct err *err);
void layer_job_done(struct image_store *store, struct layer_job *job);

/* Descriptors of a chain's layers, topmost first; close with layer_close_stack. */
int layer_open_stack(struct image_store *store, const char (*chain_ids)[DIGEST_SIZE], unsigned count,
                     int **ret_stack, struct err *err);
void layer_close_stack(int *stack, unsigned count);

#endif
