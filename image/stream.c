#include "image/stream.h"

#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <string.h>
#include <zstd.h>

#include "base/util.h"
#include "image/limits.h"

#define IN_SIZE  (128u * 1024u)
#define OUT_SIZE (256u * 1024u)

enum format { FORMAT_UNKNOWN, FORMAT_PLAIN, FORMAT_GZIP, FORMAT_ZSTD };

struct layer_stream {
    int fd; /* -1: memory */
    const uint8_t *memory;
    size_t memory_left;
    enum format format;
    struct inflate_state inflate;
    ZSTD_DStream *zstd;
    bool in_frame; /* a gzip member or zstd frame has begun and not ended */
    uint8_t in[IN_SIZE], out[OUT_SIZE];
    size_t in_at, in_end;
    bool in_eof;
    struct digest_state digest;
    uint64_t total, max_bytes;
    struct err err;
};

static int new_stream(uint64_t max_bytes, struct layer_stream **ret_stream, struct err *err)
{
    struct layer_stream *s = malloc(sizeof(*s));
    if (s) {
        memset(s, 0, offsetof(struct layer_stream, in));
        s->in_at = s->in_end = 0;
        s->in_eof = false;
        s->total = 0;
        s->max_bytes = max_bytes;
        s->err = (struct err){0};
        s->fd = -1;
    }
    if (!s || digest_init(&s->digest) < 0) {
        free(s);
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_stream = s;
    return 0;
}

int layer_stream_new(int fd, uint64_t max_bytes, struct layer_stream **ret_stream, struct err *err)
{
    int rc = new_stream(max_bytes, ret_stream, err);
    if (rc == 0) {
        (*ret_stream)->fd = fd;
    }
    return rc;
}

int layer_stream_new_memory(const void *data, size_t size, uint64_t max_bytes,
                            struct layer_stream **ret_stream, struct err *err)
{
    int rc = new_stream(max_bytes, ret_stream, err);
    if (rc == 0) {
        (*ret_stream)->memory = data;
        (*ret_stream)->memory_left = size;
    }
    return rc;
}

void layer_stream_free(struct layer_stream *stream)
{
    if (stream) {
        ZSTD_freeDStream(stream->zstd);
        digest_done(&stream->digest);
        free(stream);
    }
}

const struct err *layer_stream_error(const struct layer_stream *stream)
{
    return &stream->err;
}

/* More input behind what is left; in_eof at the end. */
static int fill(struct layer_stream *s)
{
    if (s->in_at) {
        memmove(s->in, s->in + s->in_at, s->in_end - s->in_at);
        s->in_end -= s->in_at;
        s->in_at = 0;
    }
    size_t room = IN_SIZE - s->in_end;
    ssize_t n;
    if (s->fd < 0) {
        n = (ssize_t)MIN(room, s->memory_left);
        memcpy(s->in + s->in_end, s->memory, (size_t)n);
        s->memory += n;
        s->memory_left -= (size_t)n;
    } else {
        do {
            n = read(s->fd, s->in + s->in_end, room);
        } while (n < 0 && errno == EINTR);
    }
    if (n < 0) {
        return err_sys(&s->err, -errno, "cannot read the layer");
    }
    s->in_eof = n == 0;
    s->in_end += (size_t)n;
    return 0;
}

static int start(struct layer_stream *s)
{
    while (s->in_end - s->in_at < 4 && !s->in_eof) {
        int rc = fill(s);
        if (rc < 0) {
            return rc;
        }
    }
    const uint8_t *p = s->in + s->in_at;
    size_t n = s->in_end - s->in_at;
    if (n >= 2 && p[0] == 0x1f && p[1] == 0x8b) { /* RFC 1952 2.3.1 */
        s->format = FORMAT_GZIP;
    } else if (n >= 4 && p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd) { /* RFC 8878 3.1.1 */
        s->format = FORMAT_ZSTD;
        s->zstd = ZSTD_createDStream();
        if (!s->zstd) {
            return err_set(&s->err, -ENOMEM, "no memory");
        }
        ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, 27); /* 128 MiB: zstd's own default limit */
    } else {
        s->format = FORMAT_PLAIN;
    }
    return 0;
}

/* One step of a decompressor; *ret_made: bytes in out. */
static int step(struct layer_stream *s, size_t *ret_made)
{
    if (s->format == FORMAT_GZIP) {
        if (!s->in_frame) {
            isal_inflate_init(&s->inflate);
            s->inflate.crc_flag = ISAL_GZIP;
            s->in_frame = true;
        }
        s->inflate.next_in = s->in + s->in_at;
        s->inflate.avail_in = (uint32_t)(s->in_end - s->in_at);
        s->inflate.next_out = s->out;
        s->inflate.avail_out = OUT_SIZE;
        int rc = isal_inflate(&s->inflate);
        if (rc < 0) {
            return err_set(&s->err, -EILSEQ, "the layer's gzip data is damaged");
        }
        s->in_at = s->in_end - s->inflate.avail_in;
        *ret_made = OUT_SIZE - s->inflate.avail_out;
        s->in_frame = s->inflate.block_state != ISAL_BLOCK_FINISH;
        return 0;
    }
    ZSTD_inBuffer in = {s->in, s->in_end, s->in_at};
    ZSTD_outBuffer out = {s->out, OUT_SIZE, 0};
    size_t rc = ZSTD_decompressStream(s->zstd, &out, &in);
    if (ZSTD_isError(rc)) {
        return err_set(&s->err, -EILSEQ, "the layer's zstd data is damaged: %s", ZSTD_getErrorName(rc));
    }
    s->in_at = in.pos;
    *ret_made = out.pos;
    s->in_frame = rc != 0;
    return 0;
}

static ssize_t account(struct layer_stream *s, const void *data, size_t size, const void **ret_data)
{
    s->total += size;
    if (s->total > s->max_bytes) {
        return err_set(&s->err, -E2BIG,
                       "the layer unpacks to more than %llu bytes (IMAGE_LAYER_BYTES_MAX; raise it by "
                       "--max-layer-size)",
                       (unsigned long long)s->max_bytes);
    }
    digest_update(&s->digest, data, size);
    *ret_data = data;
    return (ssize_t)size;
}

ssize_t layer_stream_read(struct layer_stream *s, const void **ret_data)
{
    if (s->err.code) {
        return s->err.code;
    }
    if (s->format == FORMAT_UNKNOWN && start(s) < 0) {
        return s->err.code;
    }
    while (true) {
        if (s->in_at == s->in_end && !s->in_eof && fill(s) < 0) {
            return s->err.code;
        }
        size_t left = s->in_end - s->in_at;
        if (s->format == FORMAT_PLAIN) {
            const void *data = s->in + s->in_at;
            s->in_at = s->in_end;
            return left ? account(s, data, left, ret_data) : 0;
        }
        if (left == 0 && !s->in_frame) {
            return 0;
        }
        size_t made = 0, before = s->in_at;
        if (step(s, &made) < 0) {
            return s->err.code;
        }
        if (made) {
            return account(s, s->out, made, ret_data);
        }
        if (s->in_at == before && s->in_frame) {
            if (s->in_eof) {
                return err_set(&s->err, -EILSEQ, "the layer's compressed data ends early");
            }
            if (s->in_end == IN_SIZE && s->in_at == 0) {
                return err_set(&s->err, -EILSEQ, "the layer's compressed data makes no progress");
            }
            if (fill(s) < 0) {
                return s->err.code;
            }
        }
    }
}

int layer_stream_finish(struct layer_stream *s, char ret_diff_id[static DIGEST_SIZE], uint64_t *ret_size,
                        struct err *err)
{
    const void *data;
    ssize_t n;
    do {
        n = layer_stream_read(s, &data);
    } while (n > 0);
    if (n < 0) {
        return err_set(err, (int)n, "%s", s->err.text);
    }
    digest_final(&s->digest, ret_diff_id);
    if (ret_size) {
        *ret_size = s->total;
    }
    return 0;
}
