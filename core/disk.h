/*
 * Disk images under the daemon's hands: what instances have while none of their processes runs, what is
 * copied for clones, templates, exports and backups. A thin layer over block/image.h with faults for errors.
 *
 * Threads: any; each call has a block loop of its own. None may hold the core's lock, but disk_make.
 */
#ifndef FONDA_CORE_DISK_H
#define FONDA_CORE_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/driver.h"

/* done and total bytes; false: end early (FAULT_CANCELED). */
typedef bool disk_progress_fn(void *opaque, uint64_t done, uint64_t total);

/* An image that is read. */
struct disk_source {
    const char *path, *format; /* format NULL: found out */
    const char *snapshot;      /* an internal snapshot's name: readable while a process writes to the image */
};

/* A new, empty image, on the disk. backing NULL: none; else an absolute path, and the size may be 0. */
int disk_make(const char *path, const char *format, uint64_t size, const char *backing,
              const char *backing_format, struct fault *fault);
/* A new qcow2 image with the contents of source. */
int disk_copy(const struct disk_source *source, const char *path, disk_progress_fn *progress, void *opaque,
              struct fault *fault);
/* Format ("raw", "qcow2") and size. */
int disk_look(const struct disk_source *source, char *format, size_t format_size, uint64_t *ret_size,
              struct fault *fault);

enum disk_snapshot_op { DISK_SNAPSHOT_CREATE, DISK_SNAPSHOT_APPLY, DISK_SNAPSHOT_DELETE };
/* format NULL: found out. Deleting one that isn't there is fine. Errors: FAULT_UNSUPPORTED (no qcow2),
 * FAULT_BUSY (a process has it). */
int disk_snapshot(const char *path, const char *format, const char *name, enum disk_snapshot_op op,
                  struct fault *fault);

/* Calls fn for each piece of `chunk` bytes (a multiple of 512; the last may be shorter) that isn't all zeros,
 * in order. Ends with fn's first failure. */
typedef int disk_chunk_fn(void *opaque, uint64_t index, const void *data, size_t bytes, struct fault *fault);
int disk_read(const struct disk_source *source, size_t chunk, disk_chunk_fn *fn, void *opaque,
              disk_progress_fn *progress, void *progress_opaque, struct fault *fault);

/* A new qcow2 image that is filled piece by piece. */
struct disk_writer;
int disk_writer_new(const char *path, uint64_t size, struct disk_writer **ret_writer, struct fault *fault);
int disk_writer_put(struct disk_writer *writer, uint64_t offset, const void *data, size_t bytes,
                    struct fault *fault);
/* Frees it in any case; on success the image is complete on the disk. Accepts NULL. */
int disk_writer_end(struct disk_writer *writer, struct fault *fault);

/* Bytes that a file takes of the host's; 0: it can't be told. */
int64_t disk_used(const char *path);

#endif
