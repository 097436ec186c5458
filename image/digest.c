#include "image/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "base/util.h"

bool digest_valid(const char *text)
{
    return text && strncmp(text, "sha256:", 7) == 0 && strlen(text) == 7 + DIGEST_HEX &&
           strspn(text + 7, "0123456789abcdef") == DIGEST_HEX;
}

int digest_check(const char *text, const char *what, struct err *err)
{
    if (digest_valid(text)) {
        return 0;
    }
    return err_set(err, -EINVAL, "%s has the digest '%.100s': expected 'sha256:' and 64 hexadecimal digits",
                   what, text ? text : "");
}

int digest_init(struct digest_state *state)
{
    state->ctx = EVP_MD_CTX_new();
    if (!state->ctx || EVP_DigestInit_ex(state->ctx, EVP_sha256(), NULL) != 1) {
        digest_done(state);
        return -ENOMEM;
    }
    return 0;
}

void digest_update(struct digest_state *state, const void *data, size_t size)
{
    EVP_DigestUpdate(state->ctx, data, size);
}

void digest_final(struct digest_state *state, char ret_digest[static DIGEST_SIZE])
{
    static const char hex[] = "0123456789abcdef";
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    EVP_DigestFinal_ex(state->ctx, raw, &length);
    memcpy(ret_digest, "sha256:", 7);
    for (unsigned i = 0; i < DIGEST_HEX / 2; i++) {
        ret_digest[7 + 2 * i] = hex[raw[i] >> 4];
        ret_digest[8 + 2 * i] = hex[raw[i] & 15];
    }
    ret_digest[7 + DIGEST_HEX] = '\0';
}

void digest_done(struct digest_state *state)
{
    EVP_MD_CTX_free(state->ctx);
    state->ctx = NULL;
}

int digest_bytes(const void *data, size_t size, char ret_digest[static DIGEST_SIZE])
{
    struct digest_state state;
    if (digest_init(&state) < 0) {
        return -ENOMEM;
    }
    digest_update(&state, data, size);
    digest_final(&state, ret_digest);
    digest_done(&state);
    return 0;
}

int digest_fd(int fd, char ret_digest[static DIGEST_SIZE], uint64_t *ret_size, struct err *err)
{
    struct digest_state state;
    enum { CHUNK = 256 * 1024 };
    auto_free char *buf = malloc(CHUNK);
    if (!buf || digest_init(&state) < 0) {
        return err_set(err, -ENOMEM, "no memory");
    }
    uint64_t size = 0;
    int rc = lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
    while (rc == 0) {
        ssize_t n = read(fd, buf, CHUNK);
        if (n <= 0) {
            rc = n < 0 ? -errno : 0;
            break;
        }
        digest_update(&state, buf, (size_t)n);
        size += (uint64_t)n;
    }
    if (rc == 0) {
        digest_final(&state, ret_digest);
        if (ret_size) {
            *ret_size = size;
        }
    }
    digest_done(&state);
    return rc < 0 ? err_sys(err, rc, "cannot read") : 0;
}

int digest_chain(const char *parent, const char *diff_id, char ret_digest[static DIGEST_SIZE])
{
    if (!parent) {
        memcpy(ret_digest, diff_id, DIGEST_SIZE);
        return 0;
    }
    char text[2 * DIGEST_SIZE];
    size_t length = strlen(parent);
    memcpy(text, parent, length);
    text[length] = ' ';
    memcpy(text + length + 1, diff_id, DIGEST_SIZE);
    return digest_bytes(text, strlen(text), ret_digest);
}
