/*
 * Partition tables: GPT (UEFI 2.10 section 5.3) and MBR with its chain of logical partitions. Read-only;
 * every bound is checked, so that any bytes may come.
 */
#ifndef FONDA_VM_BOOTDISK_PARTITION_H
#define FONDA_VM_BOOTDISK_PARTITION_H

#include <stdint.h>

#include "base/err.h"
#include "vm/bootdisk/source.h"

#define PARTITIONS_MAX 128u

struct partition {
    unsigned number; /* as Linux counts: /dev/vda1 is 1; 0: the whole disk, which has no table */
    uint64_t start_bytes, size_bytes;
};

/* The partitions that lie inside of the disk, in the table's order; without a table one entry for the whole
 * disk. Errors: those of reading. */
int partition_list(const struct disk_source *disk, struct partition ret_parts[PARTITIONS_MAX],
                   unsigned *ret_count, struct err *err);

#endif
