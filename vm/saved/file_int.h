/*
 * The layout of a saved machine's file, for its writer and its reader. docs/state.md says it in words.
 */
#ifndef FONDA_VM_SAVED_FILE_INT_H
#define FONDA_VM_SAVED_FILE_INT_H

#include <stdint.h>

#define FILE_VERSION 1u
#define FILE_MAGIC   "FONDA-VM"
#define END_MAGIC    "FONDAEND"

/* Little-endian; the configuration follows, then a u32: the CRC-32C of both. */
struct file_head {
    char magic[8];
    uint32_t version, config_len;
    uint64_t sections_len, ram_bytes;
    uint32_t chunk_bytes, zero;
};
_Static_assert(sizeof(struct file_head) == 40, "no padding");

/* Of a chunk's block. len 0: all zeros, and offset and crc are 0; len == the chunk's length: not compressed.
 */
struct file_index {
    uint64_t offset;
    uint32_t len, crc;
};
_Static_assert(sizeof(struct file_index) == 16, "no padding");

struct file_tail {
    uint64_t index_offset, file_bytes;
    uint32_t index_crc, tail_crc; /* the latter of what is before it */
    char magic[8];
};
_Static_assert(sizeof(struct file_tail) == 32, "no padding");

#endif
