/*
 * The guest-physical address space: see mem.h for the contract.
 *
 * MMIO regions are a sorted array searched by bisection, with the last hit tried first; ports are a table of
 * 65,536 region numbers. Both are filled before vCPUs run and only read afterwards.
 *
 * Invariants
 *  1. mmio[0..mmio_count) is sorted by base and free of overlaps with itself and with RAM.
 *  2. pio_index[p] is 0 (nobody) or 1 + the index in pio[] of the region that holds port p.
 *  3. Counters are written under the device lock only, and read anywhere (relaxed atomics).
 */
#include "mem/mem.h"

#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PIO_PORTS 65536u

struct mem_region {
    uint64_t base;
    uint64_t last; /* the last address of the region */
    const struct mem_io_ops *ops;
    void *opaque;
    const char *name;
};

struct mem {
    uint8_t *ram;
    uint64_t ram_bytes;
    uint64_t low_bytes;
    uint64_t high_bytes;
    int ram_fd;

    mem_write_hook_fn *hook;
    void *hook_opaque;
    mem_prepare_fn *prepare;
    void *prepare_opaque;

    pthread_mutex_t lock; /* the device lock */
    unsigned mmio_last;   /* index of the last hit; under the lock */
    unsigned mmio_count;
    unsigned pio_count;
    _Atomic uint64_t mmio_reads, mmio_writes, pio_reads, pio_writes, unclaimed;

    struct mem_region mmio[MEM_REGIONS_MAX];
    struct mem_region pio[MEM_REGIONS_MAX];
    uint16_t pio_index[PIO_PORTS];
};

/* Counters have one writer at a time (the lock's holder), so no locked instruction is needed. */
static inline void count_one(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

static void format_size(char *buf, size_t size, uint64_t bytes)
{
    if (bytes >= 10 * GiB || (bytes >= GiB && bytes % GiB == 0)) {
        snprintf(buf, size, "%llu GiB", (unsigned long long)(bytes / GiB));
    } else if (bytes >= GiB) {
        snprintf(buf, size, "%llu.%llu GiB", (unsigned long long)(bytes / GiB),
                 (unsigned long long)(bytes % GiB * 10 / GiB));
    } else if (bytes >= MiB) {
        snprintf(buf, size, "%llu MiB", (unsigned long long)(bytes / MiB));
    } else {
        snprintf(buf, size, "%llu KiB", (unsigned long long)(bytes / KiB));
    }
}

/* MemAvailable of /proc/meminfo in bytes (proc(5)), or UINT64_MAX when the host does not say. */
static uint64_t host_available_bytes(void)
{
    uint64_t bytes = UINT64_MAX;
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file) {
        return bytes;
    }
    char line[128];
    while (fgets(line, sizeof(line), file)) {
        unsigned long long kib;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) {
            bytes = kib * KiB;
            break;
        }
    }
    fclose(file);
    return bytes;
}

static int check_ram_size(uint64_t ram_bytes, struct err *err)
{
    if (ram_bytes == 0 || ram_bytes % MEM_PAGE_SIZE != 0) {
        return err_set(err, -EINVAL, "memory size %llu is not a positive multiple of %u bytes",
                       (unsigned long long)ram_bytes, MEM_PAGE_SIZE);
    }
    uint64_t available = host_available_bytes();
    if (ram_bytes > available || ram_bytes > INT64_MAX) {
        char need[32];
        char have[32];
        format_size(need, sizeof(need), ram_bytes);
        format_size(have, sizeof(have), available);
        return err_set(err, -ENOMEM, "machine needs %s of memory, the host has %s available", need, have);
    }
    return 0;
}

int mem_new(uint64_t ram_bytes, struct mem **ret_mem, struct err *err)
{
    int ret = check_ram_size(ram_bytes, err);
    if (ret < 0) {
        return ret;
    }
    struct mem *mem = calloc(1, sizeof(*mem));
    if (!mem) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    mem->ram_fd = -1;
    mem->ram_bytes = ram_bytes;
    mem->low_bytes = MIN(ram_bytes, MEM_LOW_RAM_MAX);
    mem->high_bytes = ram_bytes - mem->low_bytes;

    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mem->lock, &attr);
    pthread_mutexattr_destroy(&attr);

    mem->ram_fd = memfd_create("fonda-ram", MFD_CLOEXEC);
    if (mem->ram_fd < 0) {
        ret = err_sys(err, -errno, "cannot create guest memory");
        goto fail;
    }
    if (ftruncate(mem->ram_fd, (off_t)ram_bytes) < 0) {
        ret = err_sys(err, -errno, "cannot size guest memory to %llu bytes", (unsigned long long)ram_bytes);
        goto fail;
    }
    void *ram = mmap(NULL, ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mem->ram_fd, 0);
    if (ram == MAP_FAILED) {
        ret = err_sys(err, -errno, "cannot map %llu bytes of guest memory", (unsigned long long)ram_bytes);
        goto fail;
    }
    mem->ram = ram;
    /* Advice only: kernels without huge pages for shared memory refuse it, and all still works. */
    (void)madvise(ram, ram_bytes, MADV_HUGEPAGE);
    *ret_mem = mem;
    return 0;

fail:
    mem_free(mem);
    return ret;
}

void mem_free(struct mem *mem)
{
    if (!mem) {
        return;
    }
    if (mem->ram) {
        munmap(mem->ram, mem->ram_bytes);
    }
    if (mem->ram_fd >= 0) {
        close(mem->ram_fd);
    }
    pthread_mutex_destroy(&mem->lock);
    free(mem);
}

static bool ranges_overlap(uint64_t a_first, uint64_t a_last, uint64_t b_first, uint64_t b_last)
{
    return a_first <= b_last && b_first <= a_last;
}

int mem_add_mmio(struct mem *mem, gpa_t base, uint64_t size, const struct mem_io_ops *ops, void *opaque,
                 const char *name, struct err *err)
{
    uint64_t first = base.v;
    uint64_t last;
    if (size == 0 || __builtin_add_overflow(first, size - 1, &last)) {
        return err_set(err, -EINVAL, "region '%s' has a bad size", name);
    }
    if (ranges_overlap(first, last, 0, mem->low_bytes - 1) ||
        (mem->high_bytes && ranges_overlap(first, last, MEM_HIGH_RAM, MEM_HIGH_RAM + mem->high_bytes - 1))) {
        return err_set(err, -EEXIST, "region '%s' at %#llx overlaps RAM", name, (unsigned long long)first);
    }
    if (mem->mmio_count == MEM_REGIONS_MAX) {
        return err_set(err, -ENOSPC, "no room for region '%s': there are %u already", name, MEM_REGIONS_MAX);
    }
    unsigned at = mem->mmio_count;
    for (unsigned i = 0; i < mem->mmio_count; i++) {
        const struct mem_region *other = &mem->mmio[i];
        if (ranges_overlap(first, last, other->base, other->last)) {
            return err_set(err, -EEXIST, "region '%s' at %#llx overlaps region '%s'", name,
                           (unsigned long long)first, other->name);
        }
        if (first < other->base && at == mem->mmio_count) {
            at = i;
        }
    }
    memmove(&mem->mmio[at + 1], &mem->mmio[at], (mem->mmio_count - at) * sizeof(mem->mmio[0]));
    mem->mmio[at] =
        (struct mem_region){.base = first, .last = last, .ops = ops, .opaque = opaque, .name = name};
    mem->mmio_count++;
    return 0;
}

int mem_add_pio(struct mem *mem, uint16_t port, uint16_t count, const struct mem_io_ops *ops, void *opaque,
                const char *name, struct err *err)
{
    if (count == 0 || (unsigned)port + count > PIO_PORTS) {
        return err_set(err, -EINVAL, "ports of '%s' have a bad range", name);
    }
    if (mem->pio_count == MEM_REGIONS_MAX) {
        return err_set(err, -ENOSPC, "no room for ports of '%s': there are %u regions already", name,
                       MEM_REGIONS_MAX);
    }
    for (unsigned i = 0; i < count; i++) {
        unsigned index = mem->pio_index[port + i];
        if (index) {
            return err_set(err, -EEXIST, "port %#x of '%s' belongs to '%s' already", port + i, name,
                           mem->pio[index - 1].name);
        }
    }
    mem->pio[mem->pio_count++] = (struct mem_region){
        .base = port, .last = (uint64_t)port + count - 1, .ops = ops, .opaque = opaque, .name = name};
    for (unsigned i = 0; i < count; i++) {
        mem->pio_index[port + i] = (uint16_t)mem->pio_count;
    }
    return 0;
}

int mem_ram_fd(const struct mem *mem)
{
    return mem->ram_fd;
}

uint64_t mem_ram_bytes(const struct mem *mem)
{
    return mem->ram_bytes;
}

uint64_t mem_ram_low_bytes(const struct mem *mem)
{
    return mem->low_bytes;
}

uint8_t *mem_ram_base(const struct mem *mem)
{
    return mem->ram;
}

/* Offset of gpa in the memfd and the bytes from there to the end of its segment; false when it is not RAM. */
static inline bool ram_locate(const struct mem *mem, uint64_t gpa, uint64_t *ret_offset, uint64_t *ret_avail)
{
    if (gpa < mem->low_bytes) {
        *ret_offset = gpa;
        *ret_avail = mem->low_bytes - gpa;
        return true;
    }
    uint64_t high = gpa - MEM_HIGH_RAM; /* wraps to something large below 4 GiB */
    if (high < mem->high_bytes) {
        *ret_offset = mem->low_bytes + high;
        *ret_avail = mem->high_bytes - high;
        return true;
    }
    return false;
}

void *mem_ram_ptr(const struct mem *mem, gpa_t gpa, uint64_t *ret_avail)
{
    uint64_t offset;
    uint64_t avail;
    if (!ram_locate(mem, gpa.v, &offset, &avail)) {
        return NULL;
    }
    if (ret_avail) {
        *ret_avail = avail;
    }
    return mem->ram + offset;
}

uint64_t mem_ram_offset(const struct mem *mem, gpa_t gpa)
{
    uint64_t offset;
    uint64_t avail;
    return ram_locate(mem, gpa.v, &offset, &avail) ? offset : UINT64_MAX;
}

gpa_t mem_ram_gpa(const struct mem *mem, uint64_t ram_offset)
{
    return GPA(ram_offset < mem->low_bytes ? ram_offset : MEM_HIGH_RAM + (ram_offset - mem->low_bytes));
}

int mem_read(struct mem *mem, gpa_t gpa, void *buf, uint64_t len)
{
    uint64_t offset;
    uint64_t avail;
    if (len == 0) {
        return 0;
    }
    if (!ram_locate(mem, gpa.v, &offset, &avail) || avail < len) {
        return -EFAULT;
    }
    memcpy(buf, mem->ram + offset, len);
    return 0;
}

void mem_set_prepare(struct mem *mem, mem_prepare_fn *prepare, void *opaque)
{
    mem->prepare = prepare;
    mem->prepare_opaque = opaque;
}

void mem_ram_prepare(struct mem *mem, uint64_t ram_offset, uint64_t len, bool write)
{
    if (mem->prepare && len > 0) {
        mem->prepare(mem->prepare_opaque, ram_offset, len, write);
    }
}

static inline void ram_written(struct mem *mem, uint64_t offset, uint64_t len)
{
    if (mem->hook) {
        mem->hook(mem->hook_opaque, offset, len);
    }
}

int mem_write(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len)
{
    uint64_t offset;
    uint64_t avail;
    if (len == 0) {
        return 0;
    }
    if (!ram_locate(mem, gpa.v, &offset, &avail) || avail < len) {
        return -EFAULT;
    }
    memcpy(mem->ram + offset, buf, len);
    ram_written(mem, offset, len);
    return 0;
}

void mem_ram_written(struct mem *mem, uint64_t ram_offset, uint64_t len)
{
    if (len) {
        ram_written(mem, ram_offset, len);
    }
}

int mem_ram_discard(struct mem *mem, gpa_t gpa, uint64_t len)
{
    uint64_t offset;
    uint64_t avail;
    if (!ram_locate(mem, gpa.v, &offset, &avail) || avail < len) {
        return -EFAULT;
    }
    uint64_t first = align_up(offset, MEM_PAGE_SIZE);
    uint64_t last = align_down(offset + len, MEM_PAGE_SIZE);
    if (first >= last) {
        return 0;
    }
    mem_ram_prepare(mem, first, last - first, true);
    if (fallocate(mem->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first,
                  (off_t)(last - first)) < 0) {
        return -errno;
    }
    ram_written(mem, first, last - first);
    return 0;
}

void mem_set_write_hook(struct mem *mem, mem_write_hook_fn *hook, void *opaque)
{
    mem->hook = hook;
    mem->hook_opaque = opaque;
}

static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (size * 8)) - 1;
}

static const struct mem_region *mmio_find(struct mem *mem, uint64_t gpa)
{
    const struct mem_region *last = &mem->mmio[mem->mmio_last];
    if (gpa >= last->base && gpa <= last->last && last->ops) {
        return last;
    }
    unsigned lo = 0;
    unsigned hi = mem->mmio_count;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (gpa > mem->mmio[mid].last) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (lo == mem->mmio_count || gpa < mem->mmio[lo].base) {
        return NULL;
    }
    mem->mmio_last = lo;
    return &mem->mmio[lo];
}

static const struct mem_region *pio_find(const struct mem *mem, uint64_t port)
{
    unsigned index = port < PIO_PORTS ? mem->pio_index[port] : 0;
    return index ? &mem->pio[index - 1] : NULL;
}

/* Whether the region's callback takes an access whole: of an even size, and inside of the region. */
static inline bool region_takes(const struct mem_region *region, uint64_t addr, unsigned size, unsigned max)
{
    return region && size != 0 && size <= max && (size & (size - 1)) == 0 && region->last - addr >= size - 1;
}

static inline uint64_t region_read(const struct mem_region *region, uint64_t addr, unsigned size)
{
    return region->ops->read(region->opaque, addr - region->base, size) & size_mask(size);
}

static inline void region_write(const struct mem_region *region, uint64_t addr, unsigned size, uint64_t value)
{
    region->ops->write(region->opaque, addr - region->base, size, value & size_mask(size));
}

/* One byte of an access that no region takes whole: it goes to whom it belongs, RAM included. False: to
 * nobody. */
static bool access_byte(struct mem *mem, bool pio, uint64_t addr, bool write, uint8_t *byte)
{
    if (!pio && (write ? mem_write(mem, GPA(addr), byte, 1) : mem_read(mem, GPA(addr), byte, 1)) == 0) {
        return true;
    }
    const struct mem_region *region = pio ? pio_find(mem, addr) : mmio_find(mem, addr);
    if (region && write) {
        region_write(region, addr, 1, *byte);
    } else if (region) {
        *byte = (uint8_t)region_read(region, addr, 1);
    }
    return region != NULL;
}

/* All of them. Returns what was read; what nobody answers reads as ones. */
static uint64_t access_split(struct mem *mem, bool pio, uint64_t addr, unsigned size, bool write,
                             uint64_t value)
{
    uint64_t result = 0;
    bool unclaimed = false;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(write ? value >> (8 * i) : 0xff);
        unclaimed |= !access_byte(mem, pio, addr + i, write, &byte);
        result |= (uint64_t)byte << (8 * i);
    }
    if (unclaimed) {
        count_one(&mem->unclaimed);
    }
    return result;
}

uint64_t mem_mmio_read(struct mem *mem, gpa_t gpa, unsigned size)
{
    uint64_t value = 0;
    size = MIN(size, 8u);
    if (mem_read(mem, gpa, &value, size) == 0) {
        return value;
    }
    mem_lock(mem);
    count_one(&mem->mmio_reads);
    const struct mem_region *region = mmio_find(mem, gpa.v);
    value = region_takes(region, gpa.v, size, 8) ? region_read(region, gpa.v, size)
                                                 : access_split(mem, false, gpa.v, size, false, 0);
    mem_unlock(mem);
    return value;
}

void mem_mmio_write(struct mem *mem, gpa_t gpa, unsigned size, uint64_t value)
{
    size = MIN(size, 8u);
    if (mem_write(mem, gpa, &value, size) == 0) {
        return;
    }
    mem_lock(mem);
    count_one(&mem->mmio_writes);
    const struct mem_region *region = mmio_find(mem, gpa.v);
    if (region_takes(region, gpa.v, size, 8)) {
        region_write(region, gpa.v, size, value);
    } else {
        access_split(mem, false, gpa.v, size, true, value);
    }
    mem_unlock(mem);
}

uint32_t mem_pio_read(struct mem *mem, uint16_t port, unsigned size)
{
    size = MIN(size, 4u);
    mem_lock(mem);
    count_one(&mem->pio_reads);
    const struct mem_region *region = pio_find(mem, port);
    uint64_t value = region_takes(region, port, size, 4) ? region_read(region, port, size)
                                                         : access_split(mem, true, port, size, false, 0);
    mem_unlock(mem);
    return (uint32_t)value;
}

void mem_pio_write(struct mem *mem, uint16_t port, unsigned size, uint32_t value)
{
    size = MIN(size, 4u);
    mem_lock(mem);
    count_one(&mem->pio_writes);
    const struct mem_region *region = pio_find(mem, port);
    if (region_takes(region, port, size, 4)) {
        region_write(region, port, size, value);
    } else {
        access_split(mem, true, port, size, true, value);
    }
    mem_unlock(mem);
}

void mem_lock(struct mem *mem)
{
    pthread_mutex_lock(&mem->lock);
}

void mem_unlock(struct mem *mem)
{
    pthread_mutex_unlock(&mem->lock);
}

void mem_get_counters(const struct mem *mem, struct mem_counters *ret)
{
    *ret = (struct mem_counters){
        .mmio_reads = atomic_load_explicit(&mem->mmio_reads, memory_order_relaxed),
        .mmio_writes = atomic_load_explicit(&mem->mmio_writes, memory_order_relaxed),
        .pio_reads = atomic_load_explicit(&mem->pio_reads, memory_order_relaxed),
        .pio_writes = atomic_load_explicit(&mem->pio_writes, memory_order_relaxed),
        .unclaimed = atomic_load_explicit(&mem->unclaimed, memory_order_relaxed),
    };
}
