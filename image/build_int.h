/*
 * What the files of the builder share: build.c (steps, cache), build_copy.c (COPY and ADD), build_run.c
 * (RUN).
 */
#ifndef FONDA_IMAGE_BUILD_INT_H
#define FONDA_IMAGE_BUILD_INT_H

#include "image/containerfile.h"
#include "image/image_int.h"

/* Where COPY finds its sources, and what of it. */
struct copy {
    int source;      /* folder: the context, or another stage's root */
    char **ignore;   /* patterns of .containerignore, NULL at the end; or NULL */
    bool keep_owner; /* --from: owners as they are */
    uid_t uid;
    gid_t gid;
    int mode;                    /* --chmod, or -1 */
    bool unpack;                 /* ADD: archives are unpacked */
    struct digest_state *digest; /* hash instead of copying */
    uint64_t layer_max;
};

/* Sources (patterns) to dest (with '/' at the end: a folder) below root, or only into copy->digest. */
int build_copy(struct copy *copy, char *const *sources, unsigned count, int root, const char *dest,
               struct err *err);
/* Contents of a here document as the file dest. */
int build_copy_text(struct copy *copy, const char *name, const char *text, int root, const char *dest,
                    struct err *err);
int build_read_ignore(int context, const char *containerfile, char ***ret_patterns, struct err *err);
bool build_ignored(char *const *patterns, const char *path);
/* "name[:group]" or numbers, by the files in root. */
int build_find_user(int root, const char *text, uid_t *ret_uid, gid_t *ret_gid, struct err *err);

struct run {
    const char *runtime, *user, *cwd;
    char *const *args;      /* NULL at the end */
    const char *const *env; /* NULL at the end */
    bool network_none;
};
/* Runs a program in the mounted root. The output goes to this process's. */
int build_run(struct image_store *store, struct image_rootfs *rootfs, const struct run *run, struct err *err);

#endif
