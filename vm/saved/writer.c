/*
 * Writes a saved machine's file: see file.h.
 *
 *     PATH.partial --write--> --fsync--> rename to PATH --fsync of the directory-->
 *
 * Killed or out of space at any step, PATH is what it was before, or complete.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

#include "base/state.h"
#include "base/util.h"
#include "vm/saved/file.h"
#include "vm/saved/file_int.h"

#define ZSTD_LEVEL   1
#define BUFFER_BYTES (1u << 20)

struct saved_writer {
    char path[PATH_MAX], partial[PATH_MAX];
    int fd;
    uint8_t *buffer; /* BUFFER_BYTES, of which `buffered` are not written yet */
    size_t buffered;
    uint64_t offset, ram_bytes, chunk_bytes, chunks, next;
    struct file_index *index;
    ZSTD_CCtx *zstd;
    uint8_t *packed;
    size_t packed_size;
    bool failed;
};

static int drain(struct saved_writer *writer, struct err *err)
{
    for (size_t done = 0; done < writer->buffered;) {
        ssize_t n = write(writer->fd, writer->buffer + done, writer->buffered - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            writer->failed = true;
            return err_sys(err, n < 0 ? -errno : -EIO, "cannot write '%s'", writer->partial);
        }
        done += (size_t)n;
    }
    writer->buffered = 0;
    return 0;
}

static int put(struct saved_writer *writer, const void *bytes, size_t len, struct err *err)
{
    for (size_t done = 0; done < len;) {
        size_t n = MIN(len - done, BUFFER_BYTES - writer->buffered);
        memcpy(writer->buffer + writer->buffered, (const uint8_t *)bytes + done, n);
        writer->buffered += n;
        done += n;
        int rc = writer->buffered == BUFFER_BYTES ? drain(writer, err) : 0;
        if (rc < 0) {
            return rc;
        }
    }
    writer->offset += len;
    return 0;
}

static int put_head(struct saved_writer *writer, const struct saved_head *head, struct err *err)
{
    struct file_head out = {.version = FILE_VERSION,
                            .config_len = (uint32_t)strlen(head->config),
                            .sections_len = head->sections_len,
                            .ram_bytes = head->ram_bytes,
                            .chunk_bytes = head->chunk_bytes};
    memcpy(out.magic, FILE_MAGIC, sizeof(out.magic));
    uint32_t crc = state_crc32c(state_crc32c(0, &out, sizeof(out)), head->config, out.config_len);
    int rc = put(writer, &out, sizeof(out), err);
    if (rc == 0) {
        rc = put(writer, head->config, out.config_len, err);
    }
    if (rc == 0) {
        rc = put(writer, &crc, sizeof(crc), err);
    }
    return rc < 0 ? rc : put(writer, head->sections, head->sections_len, err);
}

static int open_partial(struct saved_writer *writer, const char *path, struct err *err)
{
    int n = snprintf(writer->path, sizeof(writer->path), "%s", path);
    int m = snprintf(writer->partial, sizeof(writer->partial), "%s.partial", path);
    if (n <= 0 || m >= PATH_MAX) {
        return err_set(err, -ENAMETOOLONG, "'%.64s...' is no name for a file", path);
    }
    writer->fd = open(writer->partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    return writer->fd < 0 ? err_sys(err, -errno, "cannot make '%s'", writer->partial) : 0;
}

int saved_create(const char *path, const struct saved_head *head, struct saved_writer **ret_writer,
                 struct err *err)
{
    struct saved_writer *writer = calloc(1, sizeof(*writer));
    if (!writer) {
        return err_sys(err, -ENOMEM, "cannot save the machine");
    }
    writer->fd = -1;
    writer->ram_bytes = head->ram_bytes;
    writer->chunk_bytes = head->chunk_bytes;
    writer->chunks = (head->ram_bytes + head->chunk_bytes - 1) / head->chunk_bytes;
    writer->index = calloc(writer->chunks, sizeof(*writer->index));
    writer->packed_size = ZSTD_compressBound(head->chunk_bytes);
    writer->packed = malloc(writer->packed_size);
    writer->buffer = malloc(BUFFER_BYTES);
    writer->zstd = ZSTD_createCCtx();
    int rc = !writer->index || !writer->packed || !writer->buffer || !writer->zstd
                 ? err_sys(err, -ENOMEM, "cannot save the machine")
                 : open_partial(writer, path, err);
    if (rc == 0) {
        rc = put_head(writer, head, err);
    }
    if (rc < 0) {
        saved_abort(writer);
        return rc;
    }
    *ret_writer = writer;
    return 0;
}

static bool is_zero(const uint8_t *bytes, size_t len)
{
    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

int saved_write_chunk(struct saved_writer *writer, const uint8_t *bytes, struct err *err)
{
    size_t len = MIN(writer->chunk_bytes, writer->ram_bytes - writer->next * writer->chunk_bytes);
    struct file_index *index = &writer->index[writer->next++];
    if (is_zero(bytes, len)) {
        return 0;
    }
    size_t packed =
        ZSTD_compressCCtx(writer->zstd, writer->packed, writer->packed_size, bytes, len, ZSTD_LEVEL);
    bool plain = ZSTD_isError(packed) || packed >= len;
    const uint8_t *block = plain ? bytes : writer->packed;
    *index = (struct file_index){.offset = writer->offset, .len = (uint32_t)(plain ? len : packed)};
    index->crc = state_crc32c(0, block, index->len);
    return put(writer, block, index->len, err);
}

static int put_tail(struct saved_writer *writer, struct err *err)
{
    size_t bytes = writer->chunks * sizeof(*writer->index);
    struct file_tail tail = {.index_offset = writer->offset,
                             .file_bytes = writer->offset + bytes + sizeof(tail),
                             .index_crc = state_crc32c(0, writer->index, bytes)};
    tail.tail_crc = state_crc32c(0, &tail, offsetof(struct file_tail, tail_crc));
    memcpy(tail.magic, END_MAGIC, sizeof(tail.magic));
    int rc = put(writer, writer->index, bytes, err);
    return rc < 0 ? rc : put(writer, &tail, sizeof(tail), err);
}

static int sync_directory(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    auto_close int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || (fsync(fd) < 0 && errno != EINVAL) ? -errno : 0;
}

int saved_commit(struct saved_writer *writer, uint64_t *ret_bytes, struct err *err)
{
    int rc = writer->failed ? err_set(err, -EIO, "'%s' could not be written", writer->partial)
                            : put_tail(writer, err);
    rc = rc < 0 ? rc : drain(writer, err);
    if (rc == 0 && fsync(writer->fd) < 0) {
        rc = err_sys(err, -errno, "cannot write '%s'", writer->partial);
    }
    if (rc == 0 && rename(writer->partial, writer->path) < 0) {
        rc = err_sys(err, -errno, "cannot rename '%s' to '%s'", writer->partial, writer->path);
    }
    if (rc < 0) {
        saved_abort(writer);
        return rc;
    }
    *ret_bytes = writer->offset;
    rc = sync_directory(writer->path);
    if (rc < 0) {
        err_sys(err, rc, "cannot sync the directory of '%s'", writer->path);
    }
    writer->partial[0] = '\0';
    saved_abort(writer);
    return rc;
}

void saved_abort(struct saved_writer *writer)
{
    if (!writer) {
        return;
    }
    if (writer->fd >= 0) {
        close(writer->fd);
        if (writer->partial[0]) {
            unlink(writer->partial);
        }
    }
    ZSTD_freeCCtx(writer->zstd);
    free(writer->buffer);
    free(writer->packed);
    free(writer->index);
    free(writer);
}
