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

/* ---- piece by piece ---- */

static bool all_zero(const uint8_t *bytes, size_t count)
{
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* Whether the image knows that a range reads as zeroes, without reading it. */
static bool known_zero(struct blk_node *node, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        struct blk_map map;
        if (blk_map(node, offset, bytes, 0, &map) < 0 || !(map.flags & BLK_MAP_ZERO) || map.bytes == 0) {
            return false;
        }
        uint64_t done = MIN(map.bytes, bytes);
        offset += done;
        bytes -= done;
    }
    return true;
}

static int read_chunks(struct blk_node *node, uint8_t *buf, size_t chunk, disk_chunk_fn *fn, void *opaque,
                       disk_progress_fn *progress, void *progress_opaque, struct fault *fault)
{
    uint64_t size = blk_size(node);
    for (uint64_t at = 0; at < size; at += chunk) {
        size_t bytes = (size_t)MIN(size - at, (uint64_t)chunk);
        if (!known_zero(node, at, bytes)) {
            int rc = blk_pread(node, at, buf, bytes);
            if (rc < 0) {
                struct err err = {0};
                err_sys(&err, rc, "cannot read a disk");
                return failed(&err, fault);
            }
            if (!all_zero(buf, bytes) && fn(opaque, at / chunk, buf, bytes, fault) < 0) {
                return -1;
            }
        }
        if (progress && !progress(progress_opaque, at + bytes, size)) {
            return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
        }
    }
    return 0;
}

int disk_read(const struct disk_source *source, size_t chunk, disk_chunk_fn *fn, void *opaque,
              disk_progress_fn *progress, void *progress_opaque, struct fault *fault)
{
    struct blk_loop *loop = NULL;
    struct blk_node *node = NULL;
    struct err err = {0};
    auto_free uint8_t *buf = malloc(chunk);
    int rc = buf ? 0 : err_set(&err, -ENOMEM, "no memory");
    rc = rc ? rc : blk_loop_new(BLK_ENGINE_AUTO, &loop, &err);
    rc = rc ? rc : open_source(loop, source, &node, &err);
    rc = rc ? failed(&err, fault)
            : read_chunks(node, buf, chunk, fn, opaque, progress, progress_opaque, fault);
    blk_close(node);
    blk_loop_free(loop);
    return rc;
}

struct disk_writer {
    struct blk_loop *loop;
    struct blk_node *node;
    bool failed;
};

int disk_writer_new(const char *path, uint64_t size, struct disk_writer **ret_writer, struct fault *fault)
{
    struct disk_writer *writer = calloc(1, sizeof(*writer));
    struct err err = {0};
    const struct image_create_options create = {.format = "qcow2", .size_bytes = size};
    const struct blk_open_options open = {.format = "qcow2", .flags = BLK_OPEN_RDWR};
    int rc = writer ? 0 : err_set(&err, -ENOMEM, "no memory");
    rc = rc ? rc : blk_loop_new(BLK_ENGINE_AUTO, &writer->loop, &err);
    rc = rc ? rc : make(writer->loop, path, &create, &err);
    rc = rc ? rc : blk_open(writer->loop, path, &open, &writer->node, &err);
    if (rc < 0) {
        struct fault ignored = {0};
        disk_writer_end(writer, &ignored);
        return failed(&err, fault);
    }
    *ret_writer = writer;
    return 0;
}

int disk_writer_put(struct disk_writer *writer, uint64_t offset, const void *data, size_t bytes,
                    struct fault *fault)
{
    int rc = blk_pwrite(writer->node, offset, data, bytes);
    if (rc < 0) {
        struct err err = {0};
        writer->failed = true;
        err_sys(&err, rc, "cannot write a disk");
        return failed(&err, fault);
    }
    return 0;
}

int disk_writer_end(struct disk_writer *writer, struct fault *fault)
{
    if (!writer) {
        return 0;
    }
    int flushed = writer->node && !writer->failed ? blk_flush(writer->node) : 0;
    int closed = blk_close(writer->node);
    blk_loop_free(writer->loop);
    free(writer);
    if (flushed < 0 || closed < 0) {
        struct err err = {0};
        err_sys(&err, flushed < 0 ? flushed : closed, "cannot write a disk");
        return failed(&err, fault);
    }
    return 0;
}

int64_t disk_used(const char *path)
{
    struct stat st;
    return stat(path, &st) < 0 ? 0 : (int64_t)st.st_blocks * 512;
}
