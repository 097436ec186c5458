/*
 * OCI images: what the commands of `fonda image` and the container runner use.
 *
 * A store belongs to one user. As root of the host it is /var/lib/fonda/images, otherwise
 * $XDG_DATA_HOME/fonda/images. Unprivileged users first call image_enter_namespace(), which makes the calling
 * process root of a user namespace with the ranges of /etc/subuid (or with the own id alone, where there are
 * none; owners are then kept in the extended attribute user.fonda.stat), with a mount namespace of its own:
 * overlay mounts work there.
 *
 * A runner's way:
 *     image_enter_namespace();                                  before other threads
 *     image_store_open(NULL, &store);
 *     image_get(store, "debian:12", &options, &image);          pulls if missing
 *     image->config ...                                         defaults of the process
 *     image_rootfs_create(store, image, "web", &rootfs);        a writable layer, which keeps the image
 *     image_rootfs_mount(rootfs, NULL);                         rootfs->dir is the container's root; or mount
 *                                                               rootfs->lower/upper/work by itself
 *     image_rootfs_unmount(); image_rootfs_close();             later image_rootfs_remove(store, "web")
 *
 * Threads: one thread per store handle; several handles and processes may share a store.
 */
#ifndef FONDA_IMAGE_IMAGE_H
#define FONDA_IMAGE_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "image/manifest.h"
#include "image/ref.h"

struct image_store;

/* path NULL: the default. Makes the store where it is missing. */
int image_store_open(const char *path, struct image_store **ret_store, struct err *err);
void image_store_close(struct image_store *store);
void image_store_set_layer_max(struct image_store *store, uint64_t bytes);
const char *image_store_path(const struct image_store *store);

/* Does nothing as root of the host or in a namespace that somebody else made with uid 0 mapped. Not after
 * threads were started. */
int image_enter_namespace(struct err *err);
/* Whether the process is root of the host's own user namespace. */
bool image_host_root(void);

enum image_pull_policy { IMAGE_PULL_MISSING, IMAGE_PULL_ALWAYS, IMAGE_PULL_NEVER };

struct image_progress {
    const char *what;     /* "layer sha256:0123456789ab", or a line of text */
    uint64_t done, total; /* bytes; total 0: a line of text */
    unsigned index, count;
};

/* How to talk to registries. All zeros is right for most. */
struct image_options {
    const char *platform; /* NULL: the host's */
    enum image_pull_policy policy;
    bool insecure;           /* plain HTTP, and TLS without checking the certificate, are allowed */
    const char *auth_file;   /* NULL: the usual ones */
    const char *credentials; /* "USER:PASSWORD", before all files */
    const char *cert_dir;    /* *.crt, *.cert, *.key; besides /etc/containers/certs.d/HOST and
                                /etc/docker/certs.d/HOST */
    unsigned parallel;       /* transfers at a time; 0: IMAGE_PARALLEL_DEFAULT */
    /* From any thread, one at a time. */
    void (*progress)(void *opaque, const struct image_progress *progress);
    void *opaque;
};

struct image {
    char name[REF_TEXT_MAX]; /* as in the store's table */
    struct descriptor manifest;
    struct image_manifest doc;
    struct image_config config;
    char (*chain_ids)[DIGEST_SIZE]; /* lowest first, config.diff_count of them */
};

/* Pulls by policy, unpacks what isn't unpacked. options may be NULL. */
int image_get(struct image_store *store, const char *name, const struct image_options *options,
              struct image **ret_image, struct err *err);
/* What is in the store already, by name or by the beginning of an id. -ENOENT. */
int image_lookup(struct image_store *store, const char *name, struct image **ret_image, struct err *err);
void image_free(struct image *image);
/* Makes sure that all layers are unpacked. */
int image_unpack(struct image_store *store, struct image *image, struct err *err);

/* The names in the store, sorted. Caller frees. */
int image_names(struct image_store *store, char (**ret_names)[REF_TEXT_MAX], size_t *ret_count,
                struct err *err);
int image_pull(struct image_store *store, const char *name, const struct image_options *options,
               char ret_digest[static DIGEST_SIZE], struct err *err);
/* source: in the store; target: where to, or NULL for the same name. */
int image_push(struct image_store *store, const char *source, const char *target,
               const struct image_options *options, char ret_digest[static DIGEST_SIZE], struct err *err);
int image_tag(struct image_store *store, const char *source, const char *name, struct err *err);
/* Takes the name away, and what nothing else needs. force: although a container uses the image (it keeps its
 * layers). */
int image_remove(struct image_store *store, const char *name, bool force, uint64_t *ret_freed,
                 struct err *err);

struct image_prune {
    bool all;                       /* also images without containers, and the build cache */
    unsigned images, blobs, layers; /* out: how many went */
    uint64_t freed_bytes;           /* out */
};
int image_prune(struct image_store *store, struct image_prune *prune, struct err *err);

enum image_archive { IMAGE_ARCHIVE_OCI, IMAGE_ARCHIVE_DOCKER };
/* fd: where the tar goes to or comes from. load finds out which kind it is; on_name hears of every image. */
int image_save(struct image_store *store, const char *const *names, unsigned count, enum image_archive kind,
               int fd, struct err *err);
int image_load(struct image_store *store, int fd, const char *name, const struct image_options *options,
               void (*on_name)(void *opaque, const char *name), void *opaque, struct err *err);
/* A tar with a root file system (any compression that layers may have) as an image of one layer. */
int image_import(struct image_store *store, int fd, const char *name, const char *platform,
                 char ret_digest[static DIGEST_SIZE], struct err *err);

/* ---- writable layers ---- */

struct image_rootfs {
    char *name, *dir; /* dir: absolute path of the mounted root */
    char **lower;     /* absolute paths, topmost first, NULL at the end: what overlayfs wants */
    char *upper, *work;
    char manifest[DIGEST_SIZE]; /* of the image below */
    bool flattened;             /* dir is a plain copy of all layers; lower is for comparing only */
    bool mounted;               /* by this handle */
    struct image_store *store;
};

/* name: [a-zA-Z0-9][a-zA-Z0-9_.-]*. Errors: -EEXIST. image's layers have to be unpacked. */
int image_rootfs_create(struct image_store *store, struct image *image, const char *name,
                        struct image_rootfs **ret_rootfs, struct err *err);
int image_rootfs_open(struct image_store *store, const char *name, struct image_rootfs **ret_rootfs,
                      struct err *err);
void image_rootfs_close(struct image_rootfs *rootfs);
/* Mounts overlayfs at target (NULL: rootfs->dir) in the calling process's mount namespace, with userxattr.
 * Where the kernel can't, the layers are copied into rootfs->dir, once, and rootfs->flattened is set. */
int image_rootfs_mount(struct image_rootfs *rootfs, const char *target, struct err *err);
/* The same for a container with a user namespace of its own, by root of the host: its user 0 is `first`
 * outside, and so on for `count` ids, while the layers keep their owners. Needs a mount namespace of the
 * caller's own, in which the store then is seen that way. -EOPNOTSUPP where the store's file system or the
 * kernel (5.19) can't. */
int image_rootfs_mount_mapped(struct image_rootfs *rootfs, uint32_t first, uint32_t count, struct err *err);
int image_rootfs_unmount(struct image_rootfs *rootfs, struct err *err);
int image_rootfs_remove(struct image_store *store, const char *name, struct err *err);
/* Names of all, NULL at the end; free each and the array. */
int image_rootfs_names(struct image_store *store, char ***ret_names, struct err *err);

enum image_change { IMAGE_ADDED, IMAGE_CHANGED, IMAGE_DELETED };
typedef int (*image_change_fn)(void *opaque, enum image_change change, const char *path);
/* What a writable layer changed. */
int image_rootfs_diff(struct image_rootfs *rootfs, image_change_fn fn, void *opaque, struct err *err);
/* What is different in image b, path by path; a NULL: everything that b's topmost layer changed. */
int image_diff(struct image_store *store, struct image *a, struct image *b, image_change_fn fn, void *opaque,
               struct err *err);

struct image_commit {
    const char *message, *author, *created_by;
    json_t *config; /* the new "config" object, or NULL: the image's own; borrowed */
    bool zstd;
};
/* The writable layer becomes the topmost layer of a new image with that name. */
int image_rootfs_commit(struct image_store *store, struct image_rootfs *rootfs, const char *name,
                        const struct image_commit *commit, char ret_digest[static DIGEST_SIZE],
                        struct err *err);

/* ---- build ---- */

struct image_build {
    const char *context_dir, *file; /* file NULL: Containerfile or Dockerfile in the context */
    const char *const *tags;
    unsigned tag_count;
    const char *const *args; /* "NAME=VALUE" or "NAME" (from the environment) */
    unsigned arg_count;
    const char *target; /* stage, NULL: the last */
    bool no_cache, network_none, quiet;
    const char *runtime; /* path of fonda-oci */
    const struct image_options *options;
    void (*line)(void *opaque, const char *text); /* "STEP 2/5: RUN ..." */
    void *opaque;
};
int image_build(struct image_store *store, const struct image_build *build,
                char ret_digest[static DIGEST_SIZE], struct err *err);

#endif
