/*
 * fonda image resize, rebase, commit, snapshot.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/image.h"

struct edit_args {
    const char *format, *backing, *backing_format;
    bool shrink, unsafe, keep, progress;
};

#define OPT(name, kind, member, metavar, help)                                                               \
    {                                                                                                        \
        name, kind, offsetof(struct edit_args, member), 0, 0, metavar, help                                  \
    }
#define FORMAT_ROW OPT("format", OPTION_STRING, format, "FORMAT", "the image's format (default: found out)")
#define PROGRESS_ROW                                                                                         \
    OPT("progress", OPTION_FLAG, progress, NULL, "show how far it is, also when stderr is no terminal")

static const struct option_spec resize_specs[] = {
    FORMAT_ROW,
    OPT("shrink", OPTION_FLAG, shrink, NULL,
        "allow to make the disk smaller: what is behind its end is lost"),
};
static const struct option_spec rebase_specs[] = {
    FORMAT_ROW,
    OPT("backing", OPTION_STRING, backing, "FILE", "the new backing image; '' for none"),
    OPT("backing-format", OPTION_STRING, backing_format, "FORMAT", "raw or qcow2"),
    OPT("unsafe", OPTION_FLAG, unsafe, NULL, "change the name only: the new image has the same contents"),
    PROGRESS_ROW,
};
static const struct option_spec commit_specs[] = {
    FORMAT_ROW,
    OPT("keep", OPTION_FLAG, keep, NULL, "don't empty the overlay afterwards"),
    PROGRESS_ROW,
};
static const struct option_spec snapshot_specs[] = {FORMAT_ROW};

int image_cmd_resize(int argc, char **argv)
{
    struct edit_args args = {0};
    struct image_args rest;
    struct err err = {0};
    uint64_t size = 0;
    int status;
    if (!image_args(argc, argv, resize_specs, ARRAY_SIZE(resize_specs), &args, "[OPTIONS] FILE [+]SIZE", 2, 2,
                    &rest, &status)) {
        return status;
    }
    bool more = rest.args[1][0] == '+';
    if (parse_size(rest.args[1] + more, &size, &err) < 0) {
        image_failed(&err);
        return IMAGE_EXIT_USAGE;
    }
    struct blk_loop *loop = image_loop();
    struct blk_open_options options = {.format = args.format, .flags = BLK_OPEN_RDWR};
    struct blk_node *node = loop ? image_open(loop, rest.args[0], &options) : NULL;
    if (!node) {
        return image_finish(loop, NULL, IMAGE_EXIT_FAILED);
    }
    if (more && __builtin_add_overflow(size, blk_size(node), &size)) {
        size = UINT64_MAX;
    }
    size = size > INT64_MAX ? size : align_up(size, BLK_SECTOR_SIZE);
    status = blk_resize(node, size, args.shrink, &err) < 0 ? image_failed(&err) : IMAGE_EXIT_OK;
    return image_finish(loop, node, status);
}

/* The new backing image, named as the overlay will name it. */
static int open_new_base(struct blk_loop *loop, const char *overlay, const struct edit_args *args,
                         struct blk_node **ret_base, struct err *err)
{
    char path[2 * BLK_PATH_MAX];
    const char *slash = args->backing[0] == '/' ? NULL : strrchr(overlay, '/');
    snprintf(path, sizeof(path), "%.*s%s", slash ? (int)(slash - overlay + 1) : 0, overlay, args->backing);
    struct blk_open_options options = {.format = args->backing_format};
    return blk_open(loop, path, &options, ret_base, err);
}

static int rebase(struct blk_loop *loop, const char *path, struct edit_args *args)
{
    struct err err = {0};
    struct blk_node *base = NULL;
    bool none = args->backing[0] == '\0';
    struct blk_open_options options = {.format = args->format,
                                       .flags = BLK_OPEN_RDWR | (args->unsafe ? BLK_OPEN_NO_BACKING : 0)};
    struct blk_node *node = image_open(loop, path, &options);
    if (!node) {
        return IMAGE_EXIT_FAILED;
    }
    int error = none || args->unsafe ? 0 : open_new_base(loop, path, args, &base, &err);
    if (!error && !args->unsafe) {
        error = image_rebase_copy(node, image_backing(node), base, image_progress, &args->progress, &err);
        image_progress_end(args->progress, true);
    }
    error = error ? error : image_set_backing(node, none ? NULL : args->backing, args->backing_format, &err);
    int status = error ? image_failed(&err) : IMAGE_EXIT_OK;
    blk_close(base);
    error = blk_close(node);
    if (error) {
        log_error("cannot finish writing '%s': %s", path, strerror(-error));
        status = IMAGE_EXIT_FAILED;
    }
    return status;
}

int image_cmd_rebase(int argc, char **argv)
{
    struct edit_args args = {0};
    struct image_args rest;
    int status;
    if (!image_args(argc, argv, rebase_specs, ARRAY_SIZE(rebase_specs), &args,
                    "--backing FILE --backing-format FORMAT [OPTIONS] FILE", 1, 1, &rest, &status)) {
        return status;
    }
    if (!args.backing || (args.backing[0] && !args.backing_format)) {
        log_error("--backing FILE and --backing-format FORMAT are needed (see 'fonda image rebase --help')");
        return IMAGE_EXIT_USAGE;
    }
    struct blk_loop *loop = image_loop();
    return loop ? image_finish(loop, NULL, rebase(loop, rest.args[0], &args)) : IMAGE_EXIT_FAILED;
}

static int commit(struct blk_loop *loop, const char *path, struct edit_args *args)
{
    struct err err = {0};
    struct image_details details;
    char base_path[BLK_PATH_MAX], base_format[16];
    /* Once with its chain, to learn which image is below; then each alone. */
    struct blk_open_options options = {.format = args->format, .flags = 0};
    struct blk_node *top = image_open(loop, path, &options), *base = NULL;
    if (!top) {
        return IMAGE_EXIT_FAILED;
    }
    image_get_details(top, &details);
    if (!details.backing_path) {
        log_error("image '%s' has no backing image", path);
        blk_close(top);
        return IMAGE_EXIT_FAILED;
    }
    struct blk_info info;
    blk_get_info(image_backing(top), &info);
    snprintf(base_path, sizeof(base_path), "%s", details.backing_path);
    snprintf(base_format, sizeof(base_format), "%s", info.format);
    blk_close(top);
    options.flags = BLK_OPEN_NO_BACKING | (args->keep ? 0 : BLK_OPEN_RDWR);
    struct blk_open_options base_options = {.format = base_format, .flags = BLK_OPEN_RDWR};
    top = image_open(loop, path, &options);
    base = top ? image_open(loop, base_path, &base_options) : NULL;
    int error = base ? image_commit(top, base, image_progress, &args->progress, &err) : -EIO;
    image_progress_end(args->progress, base != NULL);
    int status = error ? IMAGE_EXIT_FAILED : IMAGE_EXIT_OK;
    if (error && base) {
        image_failed(&err);
    }
    /* The base has to be whole on the disk before the overlay gives anything up. */
    int close_error = blk_close(base);
    if (!error && !close_error && !args->keep && image_empty(top, &err) < 0) {
        status = image_failed(&err);
    }
    int top_error = blk_close(top);
    if (close_error || top_error) {
        log_error("cannot finish writing: %s", strerror(close_error ? -close_error : -top_error));
        status = IMAGE_EXIT_FAILED;
    }
    return status;
}

int image_cmd_commit(int argc, char **argv)
{
    struct edit_args args = {0};
    struct image_args rest;
    int status;
    if (!image_args(argc, argv, commit_specs, ARRAY_SIZE(commit_specs), &args, "[OPTIONS] FILE", 1, 1, &rest,
                    &status)) {
        return status;
    }
    struct blk_loop *loop = image_loop();
    return loop ? image_finish(loop, NULL, commit(loop, rest.args[0], &args)) : IMAGE_EXIT_FAILED;
}

static int list_snapshots(struct blk_node *node)
{
    struct err err = {0};
    auto_free struct image_snapshot *list = NULL;
    unsigned count;
    if (image_snapshots(node, &list, &count, &err) < 0) {
        return image_failed(&err);
    }
    printf("%-6s %-24s %-20s %s\n", "ID", "NAME", "DATE", "DISK SIZE");
    for (unsigned i = 0; i < count; i++) {
        char date[32], size[32];
        time_t seconds = (time_t)list[i].date_s;
        struct tm tm;
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", localtime_r(&seconds, &tm));
        format_size(list[i].size_bytes, size, sizeof(size));
        printf("%-6s %-24s %-20s %s\n", list[i].id, list[i].name, date, size);
    }
    return IMAGE_EXIT_OK;
}

int image_cmd_snapshot(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(struct blk_node *node, const char *name, struct err *err);
    } actions[] = {
        {"list", NULL},
        {"create", image_snapshot_create},
        {"apply", image_snapshot_apply},
        {"delete", image_snapshot_delete},
    };
    struct edit_args args = {0};
    struct image_args rest;
    struct err err = {0};
    int status;
    if (!image_args(argc, argv, snapshot_specs, ARRAY_SIZE(snapshot_specs), &args,
                    "list FILE | create FILE NAME | apply FILE NAME-OR-ID | delete FILE NAME-OR-ID", 2, 3,
                    &rest, &status)) {
        return status;
    }
    size_t action = 0;
    while (action < ARRAY_SIZE(actions) && strcmp(actions[action].name, rest.args[0]) != 0) {
        action++;
    }
    if (action == ARRAY_SIZE(actions) || (rest.count == 3) != (action > 0)) {
        log_error("'%s': %s (see 'fonda image snapshot --help')", rest.args[0],
                  action == ARRAY_SIZE(actions) ? "unknown action" : "wrong number of arguments");
        return IMAGE_EXIT_USAGE;
    }
    struct blk_loop *loop = image_loop();
    struct blk_open_options options = {
        .format = args.format, .flags = action ? BLK_OPEN_RDWR | BLK_OPEN_NO_BACKING : BLK_OPEN_NO_BACKING};
    struct blk_node *node = loop ? image_open(loop, rest.args[1], &options) : NULL;
    if (!node) {
        return image_finish(loop, NULL, IMAGE_EXIT_FAILED);
    }
    if (!action) {
        status = list_snapshots(node);
    } else {
        status = actions[action].run(node, rest.args[2], &err) < 0 ? image_failed(&err) : IMAGE_EXIT_OK;
    }
    return image_finish(loop, node, status);
}
