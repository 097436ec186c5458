/*
 * Building and taking down graphs: the table of drivers, finding out a format, backing chains.
 */
#include <errno.h>
#include <string.h>

#include "block/block_provider.h"

/* In the order in which formats are tried; raw takes what nobody else knows. */
const struct blk_driver *const blk_drivers[] = {
    &blk_qcow2_driver,
    &blk_raw_driver,
    &blk_throttle_driver,
    &blk_file_driver,
};
const unsigned blk_driver_count = ARRAY_SIZE(blk_drivers);

/* Formats that are not supported, so that their images are not taken for raw ones by accident. */
static const struct {
    const char *name;
    size_t size;
    const char *magic;
} foreign_formats[] = {
    {"VMDK", 4, "KDMV"},    {"VMDK", 4, "COWD"}, {"VHDX", 8, "vhdxfile"},
    {"VHD", 8, "conectix"}, {"QED", 4, "QED"},   {"LUKS", 6, "LUKS\xba\xbe"},
};

const struct blk_driver *blk_format(const char *name)
{
    for (unsigned i = 0; i < blk_driver_count; i++) {
        if (blk_drivers[i]->is_format && strcmp(blk_drivers[i]->name, name) == 0) {
            return blk_drivers[i];
        }
    }
    return NULL;
}

struct blk_node *blk_format_node(struct blk_node *node)
{
    while (node->driver == &blk_throttle_driver) {
        node = node->file;
    }
    return node;
}

static int guess_format(struct blk_node *file, const struct blk_driver **ret_driver, struct err *err)
{
    uint8_t head[BLK_SECTOR_SIZE] = {0};
    size_t size = (size_t)MIN(file->size_bytes, sizeof(head));
    int error = size ? blk_pread(file, 0, head, size) : 0;
    if (error) {
        return err_sys(err, error, "cannot read image '%s'", file->filename);
    }
    for (size_t i = 0; i < ARRAY_SIZE(foreign_formats); i++) {
        if (size >= foreign_formats[i].size &&
            memcmp(head, foreign_formats[i].magic, foreign_formats[i].size) == 0) {
            return err_set(err, -ENOTSUP,
                           "image '%s' looks like %s, which is not supported (format raw takes it as it is)",
                           file->filename, foreign_formats[i].name);
        }
    }
    int best = 0;
    for (unsigned i = 0; i < blk_driver_count; i++) {
        int score = blk_drivers[i]->probe ? blk_drivers[i]->probe(head, size, file->size_bytes) : 0;
        if (score > best) {
            best = score;
            *ret_driver = blk_drivers[i];
        }
    }
    return 0;
}

int blk_open_over(struct blk_node *file, const struct blk_open_options *options, unsigned depth,
                  struct blk_node **ret_node, struct err *err)
{
    const struct blk_driver *driver = NULL;
    int error = 0;
    if (options->format) {
        driver = blk_format(options->format);
        if (!driver) {
            error = err_set(err, -EINVAL, "image '%s': unknown format '%s' (there are raw and qcow2)",
                            file->filename, options->format);
        }
    } else {
        error = guess_format(file, &driver, err);
    }
    struct blk_node *node = error ? NULL : blk_node_new(file->loop, driver, file->filename);
    if (!node) {
        blk_close(file);
        return error ? error : err_sys(err, -ENOMEM, "cannot open an image");
    }
    node->file = file;
    node->flags = options->flags;
    node->depth = depth;
    node->guessed = !options->format;
    error = driver->open(node, options, err);
    if (error) {
        /* The reason for closing is known already. */
        node->flags &= ~(unsigned)BLK_OPEN_RDWR;
        blk_close(node);
        return error;
    }
    *ret_node = node;
    return 0;
}

static int open_graph(struct blk_loop *loop, const char *path, const struct blk_open_options *options,
                      struct blk_node **ret_node, struct err *err)
{
    struct blk_open_options o = options ? *options : (struct blk_open_options){0};
    if (o.snapshot && (o.flags & BLK_OPEN_RDWR)) {
        return err_set(err, -EINVAL, "image '%s': a snapshot can only be opened read-only", path);
    }
    if (strlen(path) >= BLK_PATH_MAX) {
        return err_set(err, -ENAMETOOLONG, "the image's name is longer than %u bytes", BLK_PATH_MAX - 1);
    }
    struct blk_node *file = NULL, *node = NULL;
    int error = blk_open_file(loop, path, o.flags, o.cache, &file, err);
    if (error) {
        return error;
    }
    file->cache = o.cache == BLK_CACHE_WRITETHROUGH ? BLK_CACHE_WRITEBACK : o.cache;
    error = blk_open_over(file, &o, 0, &node, err);
    if (error) {
        return error;
    }
    if (o.throttle.iops || o.throttle.bytes_per_s) {
        struct blk_node *throttle = blk_node_new(loop, &blk_throttle_driver, path);
        if (!throttle) {
            blk_close(node);
            return err_sys(err, -ENOMEM, "cannot open image '%s'", path);
        }
        throttle->file = node;
        throttle->flags = node->flags;
        node = throttle;
        error = blk_throttle_driver.open(node, &o, err);
        if (error) {
            blk_close(node);
            return error;
        }
    }
    node->cache = o.cache;
    *ret_node = node;
    return 0;
}

int blk_open(struct blk_loop *loop, const char *path, const struct blk_open_options *options,
             struct blk_node **ret_node, struct err *err)
{
    blk_loop_give(loop, options ? options->files : NULL, options ? options->file_count : 0);
    int rc = open_graph(loop, path, options, ret_node, err);
    blk_loop_give(loop, NULL, 0);
    return rc;
}

int blk_add_throttle(struct blk_node **node, const struct blk_throttle_limits *limits)
{
    struct blk_node *below = *node;
    bool none = !limits->iops && !limits->bytes_per_s;
    if (below->driver == &blk_throttle_driver || none) {
        return below->driver == &blk_throttle_driver ? blk_set_throttle(below, limits) : 0;
    }
    const struct blk_open_options options = {.throttle = *limits};
    struct blk_node *throttle = blk_node_new(below->loop, &blk_throttle_driver, below->filename);
    if (!throttle) {
        return -ENOMEM;
    }
    blk_drain(below);
    throttle->file = below;
    throttle->flags = below->flags;
    throttle->stats = below->stats;
    throttle->cache = below->cache;
    below->cache = BLK_CACHE_WRITEBACK; /* as in open_graph: the top node sees to the rest */
    (void)blk_throttle_driver.open(throttle, &options, NULL);
    *node = throttle;
    return 0;
}

int blk_close(struct blk_node *node)
{
    if (!node) {
        return 0;
    }
    blk_drain(node);
    int error = node->driver->close ? node->driver->close(node) : 0;
    int below = blk_close(node->backing);
    error = error ? error : below;
    below = blk_close(node->file);
    blk_node_free(node);
    return error ? error : below;
}

char *blk_backing_path(const char *overlay, const char *name)
{
    const char *slash = name[0] == '/' ? NULL : strrchr(overlay, '/');
    int folder = slash ? (int)(slash - overlay + 1) : 0;
    char *path = NULL;
    return asprintf(&path, "%.*s%s", folder, overlay, name) < 0 ? NULL : path;
}

/* "nbd://host", "json:{}": names of other programs' protocols. */
static bool is_protocol(const char *name)
{
    size_t n = strcspn(name, ":/");
    return n > 0 && name[n] == ':';
}

int blk_open_backing(struct blk_node *node, const char *name, const char *format, struct err *err)
{
    if (node->depth + 1 >= BLK_CHAIN_MAX) {
        return err_set(
            err, -ELOOP,
            "the backing chain at image '%s' is longer than %u images: does it lead back to itself?",
            node->filename, BLK_CHAIN_MAX);
    }
    if (is_protocol(name)) {
        return err_set(err, -ENOTSUP, "image '%s': backing image '%s' is not a file", node->filename, name);
    }
    auto_free char *path = blk_backing_path(node->filename, name);
    if (!path) {
        return err_sys(err, -ENOMEM, "cannot open the backing image of '%s'", node->filename);
    }
    struct blk_open_options options = {.format = format,
                                       .flags = node->flags & (BLK_OPEN_NO_LOCK | BLK_OPEN_CHECK)};
    enum blk_cache cache = node->file->cache;
    struct blk_node *file = NULL;
    int error = blk_open_file(node->loop, path, options.flags, cache, &file, err);
    if (!error) {
        file->cache = cache;
        error = blk_open_over(file, &options, node->depth + 1, &node->backing, err);
    }
    if (error && node->depth == 0) {
        err_prefix(err, "image '%s', backing chain", node->filename);
    }
    return error;
}
