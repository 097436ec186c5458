/*
 * fonda image create, convert.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"

struct convert_args {
    struct image_create_args create; /* first: the option tables share its rows */
    const char *from, *snapshot;
    bool progress;
};

#define CREATE_OPT(name, kind, member, min, max, metavar, help)                                              \
    {                                                                                                        \
        name, kind, offsetof(struct image_create_args, member), min, max, metavar, help                      \
    }
#define CONVERT_OPT(name, kind, member, min, max, metavar, help)                                             \
    {                                                                                                        \
        name, kind, offsetof(struct convert_args, member), min, max, metavar, help                           \
    }
#define QCOW2_ROWS                                                                                           \
    CREATE_OPT("cluster-size", OPTION_SIZE, cluster_bytes, 512, 2 * MiB, "SIZE",                             \
               "qcow2: unit of allocation (default: 64K; below 1K: 0.5K)"),                                  \
        CREATE_OPT("qcow2-version", OPTION_UINT, version, 2, 3, "N", "qcow2: 2 or 3 (default: 3)"),          \
        CREATE_OPT("refcount-bits", OPTION_UINT, refcount_bits, 1, 64, "N",                                  \
                   "qcow2: width of refcounts, a power of two (default: 16)"),                               \
        CREATE_OPT("extended-l2", OPTION_FLAG, extended_l2, 0, 0, NULL,                                      \
                   "qcow2: 32 subclusters in each cluster"),                                                 \
        CREATE_OPT("lazy-refcounts", OPTION_FLAG, lazy_refcounts, 0, 0, NULL,                                \
                   "qcow2: fewer writes, a repair after a crash"),                                           \
        CREATE_OPT("compression", OPTION_STRING, compression, 0, 0, "TYPE",                                  \
                   "qcow2: of compressed clusters, zlib or zstd (default: zlib)"),                           \
        CREATE_OPT("backing", OPTION_STRING, backing, 0, 0, "FILE",                                          \
                   "qcow2: the image below; a relative name is relative to the new image"),                  \
        CREATE_OPT("backing-format", OPTION_STRING, backing_format, 0, 0, "FORMAT",                          \
                   "raw or qcow2; needed with --backing"),                                                   \
        CREATE_OPT("force", OPTION_FLAG, force, 0, 0, NULL, "overwrite an existing file")

static const struct option_spec create_specs[] = {
    CREATE_OPT("format", OPTION_STRING, format, 0, 0, "FORMAT", "raw or qcow2 (default: qcow2)"),
    CREATE_OPT("size", OPTION_SIZE, size_bytes, 0, INT64_MAX, "SIZE",
               "the disk's size, such as 20G (default: that of --backing)"),
    QCOW2_ROWS,
};

static const struct option_spec convert_specs[] = {
    CREATE_OPT("to", OPTION_STRING, format, 0, 0, "FORMAT",
               "the new image's format: raw or qcow2 (default: qcow2)"),
    CONVERT_OPT("from", OPTION_STRING, from, 0, 0, "FORMAT", "the source's format (default: found out)"),
    CONVERT_OPT("snapshot", OPTION_STRING, snapshot, 0, 0, "NAME", "take an internal snapshot's contents"),
    CONVERT_OPT("progress", OPTION_FLAG, progress, 0, 0, NULL,
                "show how far it is, also when stderr is no terminal"),
    QCOW2_ROWS,
};

int image_create_options(const struct image_create_args *args, struct image_create_options *ret_options,
                         struct err *err)
{
    struct image_create_options options = {
        .format = args->format,
        .size_bytes = args->size_bytes,
        .cluster_bytes = (uint32_t)args->cluster_bytes,
        .version = (unsigned)args->version,
        .refcount_bits = (unsigned)args->refcount_bits,
        .extended_l2 = args->extended_l2,
        .lazy_refcounts = args->lazy_refcounts,
        .backing = args->backing,
        .backing_format = args->backing_format,
        .overwrite = args->force,
    };
    if (args->compression && strcmp(args->compression, "zstd") == 0) {
        options.compression = IMAGE_ZSTD;
    } else if (args->compression && strcmp(args->compression, "zlib") != 0) {
        return err_set(err, -EINVAL, "--compression: '%s' is not zlib or zstd", args->compression);
    }
    if (args->backing && !args->backing_format) {
        return err_set(err, -EINVAL, "--backing needs --backing-format");
    }
    *ret_options = options;
    return 0;
}

int image_cmd_create(int argc, char **argv)
{
    struct image_create_args args = {.format = "qcow2", .size_bytes = UINT64_MAX};
    struct image_create_options options;
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, create_specs, ARRAY_SIZE(create_specs), &args, "[OPTIONS] FILE [--size SIZE]",
                    1, 1, &rest, &status)) {
        return status;
    }
    if (args.size_bytes == UINT64_MAX) {
        if (!args.backing) {
            log_error("no size given: --size SIZE (see 'fonda image create --help')");
            return IMAGE_EXIT_USAGE;
        }
        args.size_bytes = 0;
    }
    args.size_bytes = align_up(args.size_bytes, BLK_SECTOR_SIZE);
    if (image_create_options(&args, &options, &err) < 0) {
        image_failed(&err);
        return IMAGE_EXIT_USAGE;
    }
    struct blk_loop *loop = image_loop();
    if (!loop) {
        return IMAGE_EXIT_FAILED;
    }
    status = image_create(loop, rest.args[0], &options, &err) < 0 ? image_failed(&err) : IMAGE_EXIT_OK;
    return image_finish(loop, NULL, status);
}

static int convert(struct blk_loop *loop, const char *source_path, const char *target_path,
                   struct convert_args *args)
{
    struct err err = {0};
    struct image_create_options create;
    struct blk_open_options from = {.format = args->from, .snapshot = args->snapshot};
    struct blk_node *source = image_open(loop, source_path, &from), *target = NULL;
    if (!source) {
        return IMAGE_EXIT_FAILED;
    }
    args->create.size_bytes = align_up(blk_size(source), BLK_SECTOR_SIZE);
    struct blk_open_options to = {.format = args->create.format, .flags = BLK_OPEN_RDWR};
    int error = image_create_options(&args->create, &create, &err);
    error = error ? error : image_create(loop, target_path, &create, &err);
    bool created = !error;
    error = error ? error : blk_open(loop, target_path, &to, &target, &err);
    /* Over a backing image, zeroes have to be written. */
    error =
        error ? error : image_copy(source, target, !create.backing, image_progress, &args->progress, &err);
    image_progress_end(args->progress, target != NULL);
    int status = error ? image_failed(&err) : IMAGE_EXIT_OK;
    int close_error = blk_close(target);
    if (close_error && !error) {
        log_error("cannot finish writing '%s': %s", target_path, strerror(-close_error));
        status = IMAGE_EXIT_FAILED;
    }
    blk_close(source);
    struct stat st;
    if (created && status != IMAGE_EXIT_OK && stat(target_path, &st) == 0 && S_ISREG(st.st_mode)) {
        unlink(target_path); /* half a copy is of no use to anybody */
    }
    return status;
}

int image_cmd_convert(int argc, char **argv)
{
    struct convert_args args = {.create = {.format = "qcow2"}};
    struct image_args rest;
    int status;
    if (!image_args(argc, argv, convert_specs, ARRAY_SIZE(convert_specs), &args, "[OPTIONS] SOURCE TARGET", 2,
                    2, &rest, &status)) {
        return status;
    }
    struct blk_loop *loop = image_loop();
    if (!loop) {
        return IMAGE_EXIT_FAILED;
    }
    return image_finish(loop, NULL, convert(loop, rest.args[0], rest.args[1], &args));
}
