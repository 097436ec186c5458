/*
 * Where the kernel and its modules go in guest RAM, and the memory map. The second of the three steps of
 * boot.h.
 */
#include <errno.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

#define TO_MIB(bytes) ((unsigned long long)(((bytes) + MiB - 1) / MiB))

static int place_error(uint64_t kernel_end, uint64_t modules_bytes, uint64_t low_bytes, struct err *err)
{
    if (modules_bytes == 0) {
        return err_set(err, -ENOMEM,
                       "memory too small: the kernel needs %llu MiB and the machine has %llu MiB",
                       TO_MIB(kernel_end), TO_MIB(low_bytes));
    }
    return err_set(
        err, -ENOMEM,
        "memory too small: the kernel needs %llu MiB, the initrd %llu MiB, and the machine has %llu MiB%s",
        TO_MIB(kernel_end), TO_MIB(modules_bytes), TO_MIB(low_bytes),
        low_bytes >= MEM_LOW_RAM_MAX ? " below 4 GiB" : "");
}

int boot_place(const struct boot_image *image, uint64_t low_bytes, const uint64_t *module_bytes,
               unsigned module_count, struct boot_layout *ret_layout, struct err *err)
{
    struct boot_layout layout = {.kernel_start = UINT64_MAX};
    uint64_t modules_bytes = 0;
    for (unsigned i = 0; i < module_count; i++) {
        modules_bytes += align_up(module_bytes[i], MEM_PAGE_SIZE);
    }
    for (unsigned i = 0; i < image->segment_count; i++) {
        const struct boot_segment *seg = &image->segments[i];
        layout.kernel_start = MIN(layout.kernel_start, seg->gpa);
        layout.kernel_end = MAX(layout.kernel_end, seg->gpa + seg->mem_bytes);
        bool below = seg->gpa >= BOOT_DATA_END && seg->gpa + seg->mem_bytes <= BOOT_EBDA_BASE;
        if (seg->gpa < BOOT_FIRMWARE_END && !below) {
            return err_set(err, -ENOEXEC,
                           "the kernel wants a segment at 0x%llx to 0x%llx, where boot data and firmware lie",
                           (unsigned long long)seg->gpa, (unsigned long long)seg->gpa + seg->mem_bytes);
        }
    }
    /* Modules go to the top, downwards: what lies low is what kernels expect to be free. */
    uint64_t top = MIN(low_bytes, image->initrd_max + 1);
    uint64_t bottom = MAX(layout.kernel_end, BOOT_FIRMWARE_END);
    if (layout.kernel_end > low_bytes || top < bottom || modules_bytes > top - bottom) {
        return place_error(bottom, modules_bytes, low_bytes, err);
    }
    layout.module_count = module_count;
    for (unsigned i = 0; i < module_count; i++) {
        top = align_down(top, MEM_PAGE_SIZE) - align_up(module_bytes[i], MEM_PAGE_SIZE);
        if (top < bottom || top > low_bytes) {
            return place_error(bottom, modules_bytes, low_bytes, err);
        }
        layout.modules[i] = (struct boot_module){top, module_bytes[i]};
    }
    *ret_layout = layout;
    return 0;
}

static void memmap_add(struct boot_memmap *map, uint64_t base, uint64_t end, uint32_t type)
{
    if (end > base && map->count < BOOT_MEMMAP_MAX) {
        map->entries[map->count].base = base;
        map->entries[map->count].bytes = end - base;
        map->entries[map->count].type = type;
        map->count++;
    }
}

void boot_memmap_fill(const struct mem *mem, struct boot_memmap *ret_map)
{
    uint64_t low = mem_ram_low_bytes(mem), all = mem_ram_bytes(mem);
    *ret_map = (struct boot_memmap){0};
    memmap_add(ret_map, 0, MIN(low, BOOT_EBDA_BASE), BOOT_MEM_RAM);
    memmap_add(ret_map, BOOT_EBDA_BASE, 0xa0000, BOOT_MEM_RESERVED);
    memmap_add(ret_map, BOOT_FIRMWARE_BASE, BOOT_FIRMWARE_END, BOOT_MEM_RESERVED);
    memmap_add(ret_map, BOOT_FIRMWARE_END, low, BOOT_MEM_RAM);
    memmap_add(ret_map, MEM_HIGH_RAM, MEM_HIGH_RAM + (all - low), BOOT_MEM_RAM);
}
