/*
 * The subcommands of fonda-image, which `fonda image` becomes: one table in image_main.c; each gets its own
 * name in argv[0] and returns the exit status.
 */
#ifndef FONDA_CLI_IMAGE_H
#define FONDA_CLI_IMAGE_H

#include "base/err.h"
#include "base/options.h"
#include "block/block.h"
#include "block/image.h"

enum {
    IMAGE_EXIT_OK = 0,
    IMAGE_EXIT_FAILED = 1,
    IMAGE_EXIT_CORRUPT = 2, /* check: corruptions; otherwise wrong usage */
    IMAGE_EXIT_USAGE = 2,
    IMAGE_EXIT_LEAKS = 3,
};

#define IMAGE_ARGS_MAX 64u

/* What all subcommands share once their arguments are read. */
struct image_args {
    const char *args[IMAGE_ARGS_MAX];
    unsigned count;
};

/* Options and arguments in any order; prints and returns false on a mistake, and after --help (exit status in
 * *ret_status). synopsis has what follows the subcommand's name. least..most: arguments. */
bool image_args(int argc, char **argv, const struct option_spec *specs, unsigned spec_count, void *target,
                const char *synopsis, unsigned least, unsigned most, struct image_args *ret_args,
                int *ret_status);

/* Prints the sentence; returns IMAGE_EXIT_FAILED. */
int image_failed(const struct err *err);
/* A loop for the process; NULL: said why. */
struct blk_loop *image_loop(void);
/* Opens, or says why not: NULL. */
struct blk_node *image_open(struct blk_loop *loop, const char *path, const struct blk_open_options *options);
/* Closes node and loop; a failure of closing makes status IMAGE_EXIT_FAILED, and is said. */
int image_finish(struct blk_loop *loop, struct blk_node *node, int status);
/* For image_copy() and so on: arg is a bool that says whether to show it on stderr even if that
 * is no terminal. SIGINT cancels. */
bool image_progress(void *arg, uint64_t done, uint64_t total);
void image_progress_end(bool asked, bool began);

/* Creation options, shared by create and convert. */
struct image_create_args {
    const char *format, *compression, *backing, *backing_format;
    uint64_t size_bytes, cluster_bytes, version, refcount_bits;
    bool extended_l2, lazy_refcounts, force;
};
int image_create_options(const struct image_create_args *args, struct image_create_options *ret_options,
                         struct err *err);

int image_cmd_build(int argc, char **argv);
int image_cmd_create(int argc, char **argv);
int image_cmd_info(int argc, char **argv);
int image_cmd_convert(int argc, char **argv);
int image_cmd_check(int argc, char **argv);
int image_cmd_resize(int argc, char **argv);
int image_cmd_rebase(int argc, char **argv);
int image_cmd_commit(int argc, char **argv);
int image_cmd_snapshot(int argc, char **argv);

#endif
