/*
 * A layer's bytes: decompressed (gzip, zstd, or plain, found out by the first bytes), counted and hashed on
 * the way. The digest of the uncompressed tar is the layer's diff ID (image specification, config.md).
 */
#ifndef FONDA_IMAGE_STREAM_H
#define FONDA_IMAGE_STREAM_H

#include <sys/types.h>

#include "image/digest.h"

struct layer_stream;

/* Reads fd from its current offset up to its end; fd stays the caller's. max_bytes: of what comes out. */
int layer_stream_new(int fd, uint64_t max_bytes, struct layer_stream **ret_stream, struct err *err);
/* The same over memory, for the fuzzers. */
int layer_stream_new_memory(const void *data, size_t size, uint64_t max_bytes,
                            struct layer_stream **ret_stream, struct err *err);
void layer_stream_free(struct layer_stream *stream);
/* The next bytes; valid until the next call. 0: the end; otherwise a negative errno (the sentence is in the
 * stream's error). */
ssize_t layer_stream_read(struct layer_stream *stream, const void **ret_data);
const struct err *layer_stream_error(const struct layer_stream *stream);
/* Reads what is left, and tells the digest and size of everything. */
int layer_stream_finish(struct layer_stream *stream, char ret_diff_id[static DIGEST_SIZE], uint64_t *ret_size,
                        struct err *err);

#endif
