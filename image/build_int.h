/*
 * What the files of the builder share: build.c (steps, cache), build_copy.c (COPY and ADD), build_run.c
 * (RUN), build_config.c (variables, and what changes the configuration only).
 */
#ifndef FONDA_IMAGE_BUILD_INT_H
#define FONDA_IMAGE_BUILD_INT_H

#include "image/containerfile.h"
#include "image/image_int.h"
#include "image/limits.h"

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

struct stage {
    unsigned first, end; /* steps; first is FROM */
    char *name;          /* "" without AS */
    bool needed;
    struct image *image;
};

struct builder {
    struct image_store *store;
    const struct image_build *build;
    struct containerfile file;
    struct stage stages[CONTAINERFILE_STAGES_MAX];
    unsigned stage_count, serial;
    int context;
    char **ignore;
    struct err *err;
    /* of the stage at work */
    struct image *image;        /* what the next step stands on */
    json_t *doc;                /* the configuration as it is now */
    json_t *args, *global_args; /* name -> value */
};

/* The "config" object of the document at work. */
json_t *build_config(struct builder *b);
/* A cf_lookup over a builder: ENV first, then ARG; before FROM only the global arguments. */
const char *build_lookup(void *opaque, const char *name, size_t length);
/* The value of a variable in an array of "NAME=VALUE", or NULL. */
const char *build_from_env(json_t *env, const char *name, size_t length);
/* The steps; each is negative with the error set, or negative alone where memory is short. */
int build_arg_step(struct builder *b, const struct cf_step *step);
int build_pairs(struct builder *b, const struct cf_step *step);
int build_command(struct builder *b, const struct cf_step *step);
int build_healthcheck(struct builder *b, const struct cf_step *step);
int build_keys(struct builder *b, const struct cf_step *step);
int build_word(struct builder *b, const struct cf_step *step, const char *member);
/* New references. */
json_t *build_strings(char *const *words);
json_t *build_shell_command(struct builder *b, const char *text);

#endif
