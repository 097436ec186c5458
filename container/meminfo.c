#include "container/meminfo.h"

#include "base/util.h"

#include <stdio.h>

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

size_t meminfo_format(const struct meminfo *m, char text[static MEMINFO_MAX])
{
    uint64_t free_bytes = minus(m->limit, m->used);
    uint64_t file = minus(m->cache, m->shmem);
    const struct {
        const char *name;
        uint64_t bytes;
    } lines[] = {
        {"MemTotal", m->limit},
        {"MemFree", free_bytes},
        {"MemAvailable", MIN(free_bytes + file + m->reclaimable, m->limit)},
        {"Buffers", 0},
        {"Cached", m->cache},
        {"SwapCached", 0},
        {"Active", minus(m->used, m->inactive)},
        {"Inactive", m->inactive},
        {"Inactive(file)", m->inactive},
        {"SwapTotal", m->swap_limit},
        {"SwapFree", minus(m->swap_limit, m->swap_used)},
        {"Dirty", 0},
        {"Writeback", 0},
        {"AnonPages", minus(m->used, m->cache)},
        {"Shmem", m->shmem},
        {"Slab", m->reclaimable},
        {"SReclaimable", m->reclaimable},
        {"SUnreclaim", 0},
        {"CommitLimit", m->limit},
    };
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        char name[20];
        snprintf(name, sizeof(name), "%s:", lines[i].name);
        n += (size_t)snprintf(text + n, MEMINFO_MAX - n, "%-15s %16llu kB\n", name,
                              (unsigned long long)(lines[i].bytes / 1024));
    }
    return n;
}
