/* See disk.h. */
#include "core/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "block/image.h"

/* Errors of images for people: what is canceled, unsupported or in use is no internal error. */
static int failed(const struct err *err, struct fault *fault)
{
    switch (err->code) {
    case -ECANCELED: return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    case -ENOTSUP:
        return fault_set(fault, FAULT_UNSUPPORTED, "convert it: fonda image convert --to qcow2", "%s",
                         err->text);
    case -EBUSY: return fault_set(fault, FAULT_BUSY, "stop whatever uses it", "%s", err->text);
    case -EUCLEAN:
        return fault_set(fault, FAULT_INVALID, "fonda image check --repair all FILE", "%s", err->text);
    default: return fault_from_err(fault, err);
    }
}

static int sync_parent(const char *path, struct err *err)
{
    char copy[DRIVER_PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    auto_close int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_sys(err, -errno, "cannot save the folder of '%s'", path) : 0;
}

static int open_source(struct blk_loop *loop, const struct disk_source *source, struct blk_node **ret_node,
                       struct err *err)
{
    const struct blk_open_options options = {.format = source->format,
                                             .flags = source->snapshot ? BLK_OPEN_NO_LOCK : 0,
                                             .snapshot = source->snapshot};
    return blk_open(loop, source->path, &options, ret_node, err);
}

static int make(struct blk_loop *loop, const char *path, const struct image_create_options *options,
                struct err *err)
{
    int rc = image_create(loop, path, options, err);
    if (rc == 0 && chmod(path, 0600) < 0) {
        rc = err_sys(err, -errno, "cannot change the mode of '%s'", path);
    }
    return rc == 0 ? sync_parent(path, err) : rc;
}

int disk_make(const char *path, const char *format, uint64_t size, const char *backing,
              const char *backing_format, struct fault *fault)
{
    struct blk_loop *loop = NULL;
    struct err err = {0};
    const struct image_create_options options = {
        .format = format, .size_bytes = size, .backing = backing, .backing_format = backing_format};
    if (blk_loop_new(BLK_ENGINE_AUTO, &loop, &err) == 0) {
        make(loop, path, &options, &err);
    }
    blk_loop_free(loop);
    return err.code ? failed(&err, fault) : 0;
}

int disk_copy(const struct disk_source *source, const char *path, disk_progress_fn *progress, void *opaque,
              struct fault *fault)
{
    struct blk_loop *loop = NULL;
    struct blk_node *from = NULL, *to = NULL;
    struct err err = {0};
    const struct blk_open_options open = {.format = "qcow2", .flags = BLK_OPEN_RDWR};
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, &err);
    rc = rc ? rc : open_source(loop, source, &from, &err);
    if (rc == 0) {
        const struct image_create_options create = {.format = "qcow2",
                                                    .size_bytes = align_up(blk_size(from), BLK_SECTOR_SIZE)};
        rc = make(loop, path, &create, &err);
        rc = rc ? rc : blk_open(loop, path, &open, &to, &err);
        rc = rc ? rc : image_copy(from, to, true, progress, opaque, &err);
        int flushed = to && rc == 0 ? blk_flush(to) : 0;
        int closed = blk_close(to);
        if (rc == 0 && (flushed || closed)) {
            rc = err_sys(&err, flushed ? flushed : closed, "cannot write '%s'", path);
        }
        if (rc < 0 && err.code != -EEXIST) {
            unlink(path);
        }
    }
    blk_close(from);
    blk_loop_free(loop);
    return rc < 0 ? failed(&err, fault) : 0;
}

int disk_look(const struct disk_source *source, char *format, size_t format_size, uint64_t *ret_size,
              struct fault *fault)
{
    struct blk_loop *loop = NULL;
    struct blk_node *node = NULL;
    struct blk_info info;
    struct err err = {0};
    if (blk_loop_new(BLK_ENGINE_AUTO, &loop, &err) == 0 && open_source(loop, source, &node, &err) == 0) {
        blk_get_info(node, &info);
        snprintf(format, format_size, "%s", info.format);
        *ret_size = info.size_bytes;
    }
    blk_close(node);
    blk_loop_free(loop);
    return err.code ? failed(&err, fault) : 0;
}

static bool has_snapshot(struct blk_node *node, const char *name)
{
    struct image_snapshot *list = NULL;
    unsigned count = 0;
    bool found = false;
    if (image_snapshots(node, &list, &count, NULL) == 0) {
        for (unsigned i = 0; i < count && !found; i++) {
            found = strcmp(list[i].name, name) == 0;
        }
        free(list);
    }
    return found;
}

int disk_snapshot(const char *path, const char *format, const char *name, enum disk_snapshot_op op,
                  struct fault *fault)
{
    struct blk_loop *loop = NULL;
    struct blk_node *node = NULL;
    struct err err = {0};
    const struct blk_open_options options = {.format = format, .flags = BLK_OPEN_RDWR | BLK_OPEN_NO_BACKING};
    int rc = blk_loop_new(BLK_ENGINE_AUTO, &loop, &err);
    rc = rc ? rc : blk_open(loop, path, &options, &node, &err);
    if (rc == 0 && op == DISK_SNAPSHOT_CREATE) {
        rc = image_snapshot_create(node, name, &err);
    } else if (rc == 0 && op == DISK_SNAPSHOT_APPLY) {
        rc = image_snapshot_apply(node, name, &err);
    } else if (rc == 0 && has_snapshot(node, name)) {
        rc = image_snapshot_delete(node, name, &err);
    }
    int closed = blk_close(node);
    if (rc == 0 && closed) {
        rc = err_sys(&err, closed, "cannot write '%s'", path);
    }
    blk_loop_free(loop);
    return rc < 0 ? failed(&err, fault) : 0;
}

int64_t disk_used(const char *path)
{
    struct stat st;
    return stat(path, &st) < 0 ? 0 : (int64_t)st.st_blocks * 512;
}
