/*
 * Vectors: parts of them, and copies from and to plain buffers.
 */
#include <string.h>

#include "block/block_provider.h"

unsigned iov_slice(struct iovec *dst, const struct iovec *src, unsigned count, uint64_t offset, uint64_t bytes)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count && bytes; i++) {
        if (offset >= src[i].iov_len) {
            offset -= src[i].iov_len;
            continue;
        }
        size_t len = (size_t)MIN(src[i].iov_len - offset, bytes);
        dst[n++] = (struct iovec){(uint8_t *)src[i].iov_base + offset, len};
        offset = 0;
        bytes -= len;
    }
    return n;
}

enum copy { COPY_ZERO, COPY_IN, COPY_OUT };

static void copy(const struct iovec *iov, unsigned count, uint64_t offset, void *buf, uint64_t bytes, enum copy how)
{
    uint8_t *p = buf;
    for (unsigned i = 0; i < count && bytes; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        size_t len = (size_t)MIN(iov[i].iov_len - offset, bytes);
        uint8_t *at = (uint8_t *)iov[i].iov_base + offset;
        switch (how) {
        case COPY_ZERO: memset(at, 0, len); break;
        case COPY_IN:
            memcpy(at, p, len);
            p += len;
            break;
        case COPY_OUT:
            memcpy(p, at, len);
            p += len;
            break;
        }
        offset = 0;
        bytes -= len;
    }
}

void iov_zero(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t bytes)
{
    copy(iov, count, offset, NULL, bytes, COPY_ZERO);
}

void iov_from_buf(const struct iovec *iov, unsigned count, uint64_t offset, const void *buf, uint64_t bytes)
{
    copy(iov, count, offset, (void *)buf, bytes, COPY_IN);
}

void iov_to_buf(const struct iovec *iov, unsigned count, uint64_t offset, void *buf, uint64_t bytes)
{
    copy(iov, count, offset, buf, bytes, COPY_OUT);
}
