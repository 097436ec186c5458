/*
 * The guest-physical address space of one machine: RAM (one memfd), memory-mapped I/O, port I/O.
 *
 * Neighbours: devices (dev/) register their regions here; engines (cpu/) map RAM, and send every access that
 * is not RAM through mem_mmio_* and mem_pio_*; vm/ builds the space before the first vCPU runs.
 *
 * Invariants
 *  1. RAM is one memfd, mapped once, contiguous in the host: guest RAM at [0, low) and, where the machine has
 *     more, at [4 GiB, 4 GiB + high). mem_ram_ptr() never returns a pointer outside of it.
 *  2. The region tables do not change while vCPUs run, so look-ups take no lock.
 *  3. A device's callbacks run under the machine's device lock (mem_lock), whichever thread calls.
 *  4. Accesses to addresses that nobody claimed read as all ones and write nowhere; they are counted.
 */
#ifndef FONDA_MEM_MEM_H
#define FONDA_MEM_MEM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Guest-physical and guest-virtual addresses can't be mistaken for host pointers or for one another. */
typedef struct {
    uint64_t v;
} gpa_t;
typedef struct {
    uint64_t v;
} gva_t;

#define GPA(x) ((gpa_t){(uint64_t)(x)})
#define GVA(x) ((gva_t){(uint64_t)(x)})

#define MEM_PAGE_SIZE   4096u
#define MEM_PAGE_SHIFT  12
#define MEM_LOW_RAM_MAX (3ull << 30) /* RAM below 4 GiB ends here at the latest; PCI and chips live above */
#define MEM_HIGH_RAM    (4ull << 30) /* where the rest of RAM starts */
#define MEM_REGIONS_MAX 256

struct mem;

/* size is 1, 2, 4 or 8 (MMIO) or 1, 2, 4 (ports); offset is relative to the region's start. */
struct mem_io_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

/* Makes an address space with ram_bytes of RAM (a multiple of the page size).
 * Errors: -ENOMEM and others of memfd_create, ftruncate, mmap. */
int mem_new(uint64_t ram_bytes, struct mem **ret_mem, struct err *err);
void mem_free(struct mem *mem);

/* Registers a region; name is kept by reference. Errors: -EEXIST when it overlaps another region or RAM,
 * -ENOSPC when the table is full. Call before vCPUs run. */
int mem_add_mmio(struct mem *mem, gpa_t base, uint64_t size, const struct mem_io_ops *ops, void *opaque,
                 const char *name, struct err *err);
int mem_add_pio(struct mem *mem, uint16_t port, uint16_t count, const struct mem_io_ops *ops, void *opaque,
                const char *name, struct err *err);

/* RAM. */
int mem_ram_fd(const struct mem *mem);
uint64_t mem_ram_bytes(const struct mem *mem);
uint64_t mem_ram_low_bytes(const struct mem *mem); /* RAM at [0, this) */

/* Host pointer of one guest-physical address, or NULL when it is not RAM. *ret_avail (may be NULL) gets the
 * bytes that follow it contiguously. Any thread. */
void *mem_ram_ptr(const struct mem *mem, gpa_t gpa, uint64_t *ret_avail);

/* Offset into the memfd (and into the host mapping) of a RAM address, or UINT64_MAX; and back. */
uint64_t mem_ram_offset(const struct mem *mem, gpa_t gpa);
gpa_t mem_ram_gpa(const struct mem *mem, uint64_t ram_offset);
uint8_t *mem_ram_base(const struct mem *mem);

/* Access by devices and by the loader: all of it, or -EFAULT when some byte is not RAM (nothing is then
 * copied). Writes are reported to the write hooks. Any thread. */
int mem_read(struct mem *mem, gpa_t gpa, void *buf, uint64_t len);
int mem_write(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len);

/* Reports a write that a device made through mem_ram_ptr(), once it is done. Any thread. */
void mem_ram_written(struct mem *mem, uint64_t ram_offset, uint64_t len);

/* Gives the pages inside of a RAM range back to the host; they read as zeros from then on. A page that is
 * only partly in the range stays. Any thread. Errors: -EFAULT when some byte is not RAM, -errno of fallocate.
 */
int mem_ram_discard(struct mem *mem, gpa_t gpa, uint64_t len);

/* An engine that caches translated code learns of writes that did not come through it. The hook runs on the
 * writer's thread, after the write, for a RAM range; at most one hook per address space. */
typedef void mem_write_hook_fn(void *opaque, uint64_t ram_offset, uint64_t len);
void mem_set_write_hook(struct mem *mem, mem_write_hook_fn *hook, void *opaque);

/* Pages that aren't there yet, or that must be copied before they change (mem/guard.h), need no care where
 * the process itself touches them. Before the host's kernel does on its behalf (read, writev, io_uring...),
 * this gets them ready. Any thread. */
void mem_ram_prepare(struct mem *mem, uint64_t ram_offset, uint64_t len, bool write);
typedef void mem_prepare_fn(void *opaque, uint64_t ram_offset, uint64_t len, bool write);
void mem_set_prepare(struct mem *mem, mem_prepare_fn *prepare, void *opaque); /* no other thread runs */

/* Access to what is not RAM (RAM is accepted too). vCPU threads; takes the device lock. Accesses wider than
 * the region end, or of an odd size, are split into bytes. */
uint64_t mem_mmio_read(struct mem *mem, gpa_t gpa, unsigned size);
void mem_mmio_write(struct mem *mem, gpa_t gpa, unsigned size, uint64_t value);
uint32_t mem_pio_read(struct mem *mem, uint16_t port, unsigned size);
void mem_pio_write(struct mem *mem, uint16_t port, unsigned size, uint32_t value);

/* The device lock: recursive; taken by the four functions above and by whoever runs device timers and input.
 */
void mem_lock(struct mem *mem);
void mem_unlock(struct mem *mem);

struct mem_counters {
    uint64_t mmio_reads, mmio_writes, pio_reads, pio_writes, unclaimed;
};
void mem_get_counters(const struct mem *mem, struct mem_counters *ret);

#endif
