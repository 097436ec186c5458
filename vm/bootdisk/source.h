/*
 * Bytes of a disk, as the readers of this folder get them: from an image of the block layer, or from memory
 * in tests and fuzzers.
 */
#ifndef FONDA_VM_BOOTDISK_SOURCE_H
#define FONDA_VM_BOOTDISK_SOURCE_H

#include <errno.h>
#include <stdint.h>

struct disk_source {
    uint64_t size_bytes;
    /* 0 or a negative errno; the range lies inside of the disk. */
    int (*read)(void *opaque, uint64_t offset, void *buf, uint64_t bytes);
    void *opaque;
};

/* Errors: -EUCLEAN when the range is not inside of the disk, those of read. */
static inline int disk_source_read(const struct disk_source *source, uint64_t offset, void *buf,
                                   uint64_t bytes)
{
    if (offset > source->size_bytes || bytes > source->size_bytes - offset) {
        return -EUCLEAN;
    }
    return source->read(source->opaque, offset, buf, bytes);
}

static inline uint16_t get_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t get_le32(const uint8_t *p)
{
    return get_le16(p) | (uint32_t)get_le16(p + 2) << 16;
}

static inline uint64_t get_le64(const uint8_t *p)
{
    return get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

#endif
