/* Reads a saved machine's file: see file.h. Everything is checked before anything is used. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "base/state.h"
#include "base/util.h"
#include "vm/saved/file.h"
#include "vm/saved/file_int.h"

#define LANE_BYTES_MAX    (1u << 20) /* chunks larger than this get one lane */
#define CHECK_THREADS_MAX 4u
#define CHECK_BYTES       (512u << 10) /* read at a time when all is checked: stays in a processor's cache */

/* What reading one chunk needs. */
struct lane {
    uint8_t *packed;
    ZSTD_DCtx *zstd;
};

struct saved_reader {
    int fd;
    uint64_t file_bytes, chunks;
    struct saved_head head;
    char *config;
    uint8_t *sections, *present;
    struct file_index *index;
    struct lane lanes[SAVED_LANES];
    unsigned lane_count;
};

static int read_at(const struct saved_reader *reader, void *buf, uint64_t len, uint64_t offset)
{
    uint8_t *at = buf;
    while (len > 0) {
        ssize_t n = pread(reader->fd, at, len, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EBADMSG;
        }
        at += n;
        len -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int damaged(struct err *err, const char *part)
{
    return err_set(err, -EBADMSG, "the file is damaged or cut off: %s", part);
}

static int read_part(const struct saved_reader *reader, void *buf, uint64_t len, uint64_t offset,
                     const char *part, struct err *err)
{
    int rc = read_at(reader, buf, len, offset);
    return rc == -EBADMSG ? damaged(err, part) : rc < 0 ? err_sys(err, rc, "cannot read it") : 0;
}

static int check_head(const struct saved_reader *reader, const struct file_head *head, struct err *err)
{
    if (memcmp(head->magic, FILE_MAGIC, sizeof(head->magic)) != 0) {
        return err_set(err, -EBADMSG, "it is not a saved machine");
    }
    if (head->version != FILE_VERSION) {
        return err_set(err, -EBADMSG, "its format is version %u, and this program knows %u", head->version,
                       FILE_VERSION);
    }
    uint64_t chunk = head->chunk_bytes;
    if (head->config_len > SAVED_CONFIG_MAX || head->sections_len > SAVED_SECTIONS_MAX || head->zero ||
        chunk < 4096 || chunk > SAVED_CHUNK_MAX || (chunk & (chunk - 1)) || head->ram_bytes == 0 ||
        head->ram_bytes % 4096 || (head->ram_bytes - 1) / chunk >= SAVED_CHUNKS_MAX) {
        return damaged(err, "header");
    }
    return 0;
}

static int make_lanes(struct saved_reader *reader, uint64_t chunk_bytes)
{
    reader->lane_count = chunk_bytes > LANE_BYTES_MAX ? 1 : SAVED_LANES;
    for (unsigned i = 0; i < reader->lane_count; i++) {
        struct lane *lane = &reader->lanes[i];
        lane->packed = malloc(chunk_bytes);
        lane->zstd = ZSTD_createDCtx();
        if (!lane->packed || !lane->zstd) {
            return -ENOMEM;
        }
    }
    return 0;
}

static int read_head(struct saved_reader *reader, struct err *err)
{
    struct file_head head;
    uint32_t crc;
    int rc = read_part(reader, &head, sizeof(head), 0, "header", err);
    if (rc == 0) {
        rc = check_head(reader, &head, err);
    }
    if (rc < 0) {
        return rc;
    }
    reader->chunks = (head.ram_bytes + head.chunk_bytes - 1) / head.chunk_bytes;
    reader->config = calloc(1, head.config_len + 1u);
    reader->sections = malloc(MAX(head.sections_len, 1u));
    reader->present = calloc(reader->chunks, 1);
    reader->index = calloc(reader->chunks, sizeof(*reader->index));
    if (!reader->config || !reader->sections || !reader->present || !reader->index ||
        make_lanes(reader, head.chunk_bytes) < 0) {
        return err_sys(err, -ENOMEM, "cannot read it");
    }
    uint64_t at = sizeof(head);
    rc = read_part(reader, reader->config, head.config_len, at, "configuration", err);
    if (rc == 0) {
        rc = read_part(reader, &crc, sizeof(crc), at + head.config_len, "configuration", err);
    }
    if (rc == 0 &&
        crc != state_crc32c(state_crc32c(0, &head, sizeof(head)), reader->config, head.config_len)) {
        rc = damaged(err, "header and configuration");
    }
    if (rc == 0) {
        rc = read_part(reader, reader->sections, head.sections_len, at + head.config_len + sizeof(crc),
                       "sections", err);
    }
    reader->head = (struct saved_head){reader->config, reader->sections, head.sections_len, head.ram_bytes,
                                       head.chunk_bytes};
    return rc;
}

static uint64_t chunk_len(const struct saved_reader *reader, uint64_t chunk)
{
    uint64_t bytes = reader->head.chunk_bytes;
    return MIN(bytes, reader->head.ram_bytes - chunk * bytes);
}

/* Blocks lie one behind the other, from the sections to the index. */
static int check_index(struct saved_reader *reader, uint64_t index_offset, struct err *err)
{
    uint64_t at =
        sizeof(struct file_head) + strlen(reader->config) + sizeof(uint32_t) + reader->head.sections_len;
    for (uint64_t i = 0; i < reader->chunks; i++) {
        const struct file_index *index = &reader->index[i];
        bool empty = index->len == 0 && index->offset == 0 && index->crc == 0;
        if (!empty && (index->len == 0 || index->offset != at || index->len > chunk_len(reader, i) ||
                       index->len > index_offset - at)) {
            return damaged(err, "index of memory");
        }
        reader->present[i] = !empty;
        at += index->len;
    }
    return at == index_offset ? 0 : damaged(err, "index of memory");
}

static int read_tail(struct saved_reader *reader, struct err *err)
{
    struct file_tail tail;
    uint64_t bytes = reader->chunks * sizeof(*reader->index);
    if (reader->file_bytes < sizeof(tail) + bytes) {
        return damaged(err, "end mark");
    }
    int rc = read_part(reader, &tail, sizeof(tail), reader->file_bytes - sizeof(tail), "end mark", err);
    if (rc < 0) {
        return rc;
    }
    if (memcmp(tail.magic, END_MAGIC, sizeof(tail.magic)) != 0 ||
        tail.tail_crc != state_crc32c(0, &tail, offsetof(struct file_tail, tail_crc)) ||
        tail.file_bytes != reader->file_bytes ||
        tail.index_offset != reader->file_bytes - sizeof(tail) - bytes) {
        return damaged(err, "end mark");
    }
    rc = read_part(reader, reader->index, bytes, tail.index_offset, "index of memory", err);
    if (rc == 0 && state_crc32c(0, reader->index, bytes) != tail.index_crc) {
        rc = damaged(err, "index of memory");
    }
    return rc < 0 ? rc : check_index(reader, tail.index_offset, err);
}

/* Some of the chunks, checked by a thread. */
struct check {
    struct saved_reader *reader;
    uint64_t first, end; /* chunks */
    pthread_t thread;
    bool thread_runs;
    int rc;
    struct err err;
};

/* Blocks lie one behind the other (check_index): all are read in large pieces, whatever their number. */
static int check_some(struct check *check)
{
    struct saved_reader *reader = check->reader;
    auto_free uint8_t *buf = malloc(CHECK_BYTES);
    uint64_t at = 0, got = 0; /* buf has the file's bytes from `at` on, `got` of them */
    if (!buf) {
        return err_sys(&check->err, -ENOMEM, "cannot read it");
    }
    for (uint64_t i = check->first; i < check->end; i++) {
        const struct file_index *index = &reader->index[i];
        uint32_t crc = 0;
        for (uint64_t done = 0; done < index->len;) {
            uint64_t offset = index->offset + done;
            if (offset < at || offset >= at + got) {
                at = offset;
                got = MIN((uint64_t)CHECK_BYTES, reader->file_bytes - at);
                int rc = read_part(reader, buf, got, at, "memory", &check->err);
                if (rc < 0) {
                    return rc;
                }
            }
            uint64_t n = MIN(index->len - done, at + got - offset);
            crc = state_crc32c(crc, buf + (offset - at), n);
            done += n;
        }
        if (crc != index->crc) {
            return err_set(&check->err, -EBADMSG, "the file is damaged or cut off: memory at %#llx",
                           (unsigned long long)(i * reader->head.chunk_bytes));
        }
    }
    return 0;
}

static void *check_main(void *opaque)
{
    struct check *check = opaque;
    check->rc = check_some(check);
    return NULL;
}

/* The guest waits for it, so several threads share it: about as many bytes of the file for each. */
static int check_blocks(struct saved_reader *reader, struct err *err)
{
    struct check checks[CHECK_THREADS_MAX] = {0};
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = online > 1 ? (unsigned)MIN(online, (long)CHECK_THREADS_MAX) : 1;
    uint64_t bytes = 0, total = reader->file_bytes;
    for (unsigned i = 0; i < count; i++) {
        checks[i] = (struct check){.reader = reader, .first = i ? checks[i - 1].end : 0};
        uint64_t end = checks[i].first;
        for (; end < reader->chunks && (i + 1 == count || bytes < total / count * (i + 1)); end++) {
            bytes += reader->index[end].len;
        }
        checks[i].end = end;
    }
    for (unsigned i = 1; i < count; i++) {
        checks[i].thread_runs = pthread_create(&checks[i].thread, NULL, check_main, &checks[i]) == 0;
    }
    int rc = 0;
    for (unsigned i = 0; i < count; i++) {
        if (checks[i].thread_runs) {
            pthread_join(checks[i].thread, NULL);
        } else {
            check_main(&checks[i]);
        }
        if (rc == 0 && checks[i].rc < 0) {
            rc = checks[i].rc;
            *err = checks[i].err;
        }
    }
    return rc;
}

int saved_open(const char *path, struct saved_reader **ret_reader, struct err *err)
{
    struct stat st;
    struct saved_reader *reader = calloc(1, sizeof(*reader));
    if (!reader) {
        return err_sys(err, -ENOMEM, "cannot open '%s'", path);
    }
    reader->fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc =
        reader->fd < 0 || fstat(reader->fd, &st) < 0 ? err_sys(err, -errno, "cannot open '%s'", path) : 0;
    if (rc == 0 && !S_ISREG(st.st_mode)) {
        rc = err_set(err, -EINVAL, "'%s' is not a file", path);
    }
    if (rc == 0) {
        reader->file_bytes = (uint64_t)st.st_size;
        (void)posix_fadvise(reader->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
        rc = read_head(reader, err);
        rc = rc < 0 ? rc : read_tail(reader, err);
        rc = rc < 0 ? rc : check_blocks(reader, err);
        if (rc < 0) {
            err_prefix(err, "'%s'", path);
        }
    }
    if (rc < 0) {
        saved_close(reader);
        return rc;
    }
    *ret_reader = reader;
    return 0;
}

void saved_close(struct saved_reader *reader)
{
    if (reader) {
        if (reader->fd >= 0) {
            close(reader->fd);
        }
        for (unsigned i = 0; i < reader->lane_count; i++) {
            ZSTD_freeDCtx(reader->lanes[i].zstd);
            free(reader->lanes[i].packed);
        }
        free(reader->config);
        free(reader->sections);
        free(reader->present);
        free(reader->index);
        free(reader);
    }
}

const struct saved_head *saved_head(const struct saved_reader *reader)
{
    return &reader->head;
}

uint64_t saved_chunks(const struct saved_reader *reader)
{
    return reader->chunks;
}

const uint8_t *saved_present(const struct saved_reader *reader)
{
    return reader->present;
}

unsigned saved_lanes(const struct saved_reader *reader)
{
    return reader->lane_count;
}

int saved_read_chunk(struct saved_reader *reader, unsigned lane, uint64_t chunk, uint8_t *buf, uint64_t len)
{
    const struct file_index *index = &reader->index[chunk];
    if (len != chunk_len(reader, chunk)) {
        return -EINVAL;
    }
    if (index->len == 0) {
        memset(buf, 0, len);
        return 0;
    }
    bool plain = index->len == len;
    uint8_t *block = plain ? buf : reader->lanes[lane].packed;
    int rc = read_at(reader, block, index->len, index->offset);
    if (rc < 0) {
        return rc;
    }
    if (state_crc32c(0, block, index->len) != index->crc) {
        return -EBADMSG;
    }
    return plain || ZSTD_decompressDCtx(reader->lanes[lane].zstd, buf, len, block, index->len) == len
               ? 0
               : -EBADMSG;
}
