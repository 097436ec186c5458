/*
 * A transport in memory for tests: keeps a log of what reached it, and fails on demand.
 *
 * Every request suspends once before and once after it takes effect, so that requests of several coroutines interleave.
 */
#ifndef FONDA_TESTS_BLOCK_MEMDISK_H
#define FONDA_TESTS_BLOCK_MEMDISK_H

#include "block/block_provider.h"

struct memdisk_entry {
    enum blk_op op; /* write, flush, discard */
    uint64_t offset, bytes;
    uint8_t *data; /* write */
};

struct memdisk {
    uint8_t *data;
    uint64_t length, room;
    uint64_t length_max; /* a request beyond fails with -EFBIG; default 64 MiB */
    bool logging;
    struct memdisk_entry *log;
    size_t log_count, log_room;
    /* Faults: the write (or flush, discard) with this number, counted from 0, fails; -1: none. */
    int64_t fault_at, writes;
    int fault_error;
    bool fault_short; /* its first half takes effect */
};

void memdisk_init(struct memdisk *disk);
void memdisk_done(struct memdisk *disk);
/* A node over it; the disk outlives the node. */
struct blk_node *memdisk_node(struct blk_loop *loop, struct memdisk *disk);
void memdisk_write(struct memdisk *disk, uint64_t offset, const void *data, uint64_t bytes);
void memdisk_copy(struct memdisk *dst, const struct memdisk *src);
/* Applies one log entry, or only the 512-byte sectors of it that the mask (repeated) has a bit for. */
void memdisk_replay(struct memdisk *disk, const struct memdisk_entry *entry, uint64_t sector_mask);

#endif
