/*
 * Compressed clusters: read only. Neighbour: io.c.
 *
 * One inflated cluster is kept, as guests read clusters in smaller pieces. A cluster's compressed data may end anywhere
 * in its last host sector, so what follows it there is ignored.
 */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2/qcow2_int.h"

/* The window of deflate streams in qcow2 (specification, "Compressed clusters": 4 KiB, raw). */
#define DEFLATE_WINDOW_BITS (-12)

void q2_compressed_range(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    *ret_offset = entry & (BIT64(x) - 1);
    uint64_t sectors = ((entry & (Q2_COMPRESSED - 1)) >> x) + 1;
    *ret_bytes = sectors * 512 - (*ret_offset & 511);
}

static int inflate_zlib(const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    z_stream z = {.next_in = (uint8_t *)in,
                  .avail_in = (unsigned)in_bytes,
                  .next_out = out,
                  .avail_out = (unsigned)out_bytes};
    if (inflateInit2(&z, DEFLATE_WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    int result = inflate(&z, Z_FINISH);
    /* The stream may end exactly with the output, before zlib has seen its end mark. */
    bool whole = z.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK);
    inflateEnd(&z);
    return whole ? 0 : -EIO;
}

static int inflate_zstd(const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) {
        return -ENOMEM;
    }
    ZSTD_inBuffer input = {in, in_bytes, 0};
    ZSTD_outBuffer output = {out, out_bytes, 0};
    size_t result = 1;
    while (output.pos < out_bytes && !ZSTD_isError(result)) {
        size_t in_before = input.pos, out_before = output.pos;
        result = ZSTD_decompressStream(context, &output, &input);
        if (input.pos == in_before && output.pos == out_before) {
            break;
        }
    }
    ZSTD_freeDCtx(context);
    return output.pos == out_bytes && !ZSTD_isError(result) ? 0 : -EIO;
}

int q2_inflate(struct qcow2 *q, uint64_t entry)
{
    if (q->inflated && q->inflated_entry == entry) {
        return 0;
    }
    uint64_t offset, bytes;
    q2_compressed_range(q, entry, &offset, &bytes);
    if (offset > INT64_MAX - bytes) {
        return q2_corrupt(q);
    }
    auto_free uint8_t *in = malloc(bytes);
    uint8_t *out = malloc(q->cluster_bytes);
    int error = in && out ? blk_pread(q->file, offset, in, bytes) : -ENOMEM;
    if (!error) {
        error = q->compression == IMAGE_ZSTD ? inflate_zstd(in, bytes, out, q->cluster_bytes)
                                             : inflate_zlib(in, bytes, out, q->cluster_bytes);
    }
    if (error) {
        free(out);
        return error;
    }
    free(q->inflated);
    q->inflated = out;
    q->inflated_entry = entry;
    return 0;
}
