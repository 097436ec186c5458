#include "vm/tsc.h"

#include <linux/perf_event.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/util.h"

#define NS_PER_S   1000000000ull
#define MEASURE_NS 20000000ull
#define ROUGH_NS   2000000ull

/* perf_event_open(2): the mmap page of any event says how the kernel turns TSC ticks into nanoseconds. */
static uint64_t from_perf(void)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE,
                                   .size = sizeof(attr),
                                   .config = PERF_COUNT_SW_DUMMY,
                                   .exclude_kernel = 1,
                                   .exclude_hv = 1};
    auto_close int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    struct perf_event_mmap_page *page = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        return 0;
    }
    uint64_t hz = 0;
    if (page->cap_user_time && page->time_mult && page->time_shift < 64) {
        hz = (uint64_t)(((unsigned __int128)NS_PER_S << page->time_shift) / page->time_mult);
    }
    munmap(page, bytes);
    return hz;
}

/* Not slewed by NTP. */
static uint64_t raw_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* A pair of readings that belong together: the closest of a few tries. */
static void sample(uint64_t *ret_ns, uint64_t *ret_tsc)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 10; i++) {
        uint64_t before = __rdtsc(), ns = raw_ns(), after = __rdtsc();
        if (after - before < best) {
            best = after - before;
            *ret_ns = ns;
            *ret_tsc = before + (after - before) / 2;
        }
    }
}

static uint64_t measured(uint64_t time_ns)
{
    uint64_t ns0 = 0, tsc0 = 0, ns1 = 0, tsc1 = 0;
    sample(&ns0, &tsc0);
    const struct timespec pause = {0, (long)time_ns};
    nanosleep(&pause, NULL);
    sample(&ns1, &tsc1);
    return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * NS_PER_S / MAX(ns1 - ns0, 1u));
}

uint64_t tsc_host_hz(void)
{
    uint64_t hz = from_perf();
    return hz ? hz : measured(MEASURE_NS);
}

uint64_t tsc_host_hz_roughly(void)
{
    return measured(ROUGH_NS);
}
