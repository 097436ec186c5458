/*
 * Digests as OCI writes them ("sha256:" and 64 lower-case hexadecimal digits; image specification,
 * descriptor.md, "Digests"), and their calculation. Other algorithms are refused by name.
 */
#ifndef FONDA_IMAGE_DIGEST_H
#define FONDA_IMAGE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define DIGEST_SIZE 72 /* of the text, with its NUL */
#define DIGEST_HEX  64

bool digest_valid(const char *text);
/* -EINVAL with a sentence unless digest_valid(); what names the thing that has it. */
int digest_check(const char *text, const char *what, struct err *err);
/* The hexadecimal part of a valid digest. */
static inline const char *digest_hex(const char *digest)
{
    return digest + 7;
}

struct digest_state {
    void *ctx;
};
int digest_init(struct digest_state *state); /* 0 or -ENOMEM; digest_done() frees */
void digest_update(struct digest_state *state, const void *data, size_t size);
void digest_final(struct digest_state *state, char ret_digest[static DIGEST_SIZE]);
void digest_done(struct digest_state *state);

int digest_bytes(const void *data, size_t size, char ret_digest[static DIGEST_SIZE]);
/* Of a file from its beginning; the offset is left at the end. */
int digest_fd(int fd, char ret_digest[static DIGEST_SIZE], uint64_t *ret_size, struct err *err);
/* The chain ID of a layer over parent (NULL: the lowest); image specification, config.md, "Layer ChainID". */
int digest_chain(const char *parent, const char *diff_id, char ret_digest[static DIGEST_SIZE]);

#endif
