/* What /proc/meminfo of a container with a memory limit says: proc(5), as free(1) and the like read it. */
#ifndef FONDA_CONTAINER_MEMINFO_H
#define FONDA_CONTAINER_MEMINFO_H

#include <stddef.h>
#include <stdint.h>

#define MEMINFO_MAX 1024

/* All in bytes. */
struct meminfo {
    uint64_t limit, used;        /* used: with the cache */
    uint64_t cache, inactive;    /* of used: pages of files, and those that nobody used lately */
    uint64_t shmem, reclaimable; /* of used: memory in tmpfs; what the kernel gives back on demand */
    uint64_t swap_limit, swap_used;
};

/* The text, of the same length for all values; its length. */
size_t meminfo_format(const struct meminfo *m, char text[static MEMINFO_MAX]);

#endif
