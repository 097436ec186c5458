/*
 * Multiboot 1: "Multiboot Specification version 0.6.96" (here: the specification). ELF32 kernels, and files
 * of any kind whose header carries load addresses (the a.out kludge). The video mode request is ignored:
 * there is no display.
 */
#include <errno.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

#define MB_HEADER_MAGIC   0x1badb002u
#define MB_LOADER_MAGIC   0x2badb002u
#define MB_SEARCH_BYTES   8192u /* 3.1: the header lies completely within the first 8192 bytes */
#define MB_FLAG_ADDRESSES 0x10000u
#define MB_FLAGS_REQUIRED 0xffffu /* 3.1.1: unknown ones among these mean "do not load" */
#define MB_FLAGS_KNOWN    0x7u    /* page-aligned modules, memory information, video (ignored) */

#define MB_INFO_MEMORY  0x1u
#define MB_INFO_CMDLINE 0x4u
#define MB_INFO_MODULES 0x8u
#define MB_INFO_MEMMAP  0x40u
#define MB_INFO_LOADER  0x200u

struct mb_info { /* 3.3 */
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name, apm_table;
};

struct mb_module {
    uint32_t start, end, string, reserved;
};

struct mb_memmap_entry {
    uint32_t size; /* of the rest */
    uint64_t base, bytes;
    uint32_t type;
} __attribute__((packed));

struct mb_page {
    struct mb_info info;
    struct mb_module modules[BOOT_MODULES_MAX];
    struct mb_memmap_entry memmap[BOOT_MEMMAP_MAX];
    char loader[8];
    char no_string[8];
};
_Static_assert(sizeof(struct mb_page) <= BOOT_GDT_BASE - BOOT_DATA_BASE, "one page");

static bool multiboot_find(const uint8_t *data, size_t size, size_t *ret_offset)
{
    size_t end = MIN(size, (size_t)MB_SEARCH_BYTES);
    for (size_t at = 0; at + 12 <= end; at += 4) {
        if (boot_le32(data + at) == MB_HEADER_MAGIC &&
            boot_le32(data + at) + boot_le32(data + at + 4) + boot_le32(data + at + 8) == 0) {
            *ret_offset = at;
            return true;
        }
    }
    return false;
}

/* 3.1.3: the header's own load addresses. */
static int multiboot_addresses(const uint8_t *data, size_t size, size_t at, struct boot_image *image,
                               struct err *err)
{
    if (!boot_within(at, 32, size)) {
        return err_set(err, -ENOEXEC, "the multiboot kernel is truncated: no room for its header");
    }
    uint64_t header_addr = boot_le32(data + at + 12), load_addr = boot_le32(data + at + 16);
    uint64_t load_end = boot_le32(data + at + 20), bss_end = boot_le32(data + at + 24);
    image->entry = boot_le32(data + at + 28);
    if (load_addr > header_addr || header_addr - load_addr > at) {
        return err_set(err, -ENOEXEC,
                       "the multiboot header is damaged: it lies at 0x%llx, before the start of the "
                       "file at 0x%llx",
                       (unsigned long long)header_addr, (unsigned long long)load_addr);
    }
    uint64_t offset = at - (header_addr - load_addr);
    uint64_t bytes = load_end == 0 ? size - offset : load_end - load_addr;
    if (load_end != 0 && load_end < load_addr) {
        return err_set(err, -ENOEXEC,
                       "the multiboot header is damaged: its load_end_addr lies before load_addr");
    }
    if (!boot_within(offset, bytes, size)) {
        return err_set(err, -ENOEXEC, "the multiboot kernel is truncated: its header announces more bytes");
    }
    uint64_t mem_bytes = bss_end > load_addr + bytes ? bss_end - load_addr : bytes;
    if (bytes == 0 || !boot_within(load_addr, mem_bytes, MEM_HIGH_RAM)) {
        return err_set(err, -ENOEXEC, "the multiboot header is damaged: %llu bytes at 0x%llx",
                       (unsigned long long)mem_bytes, (unsigned long long)load_addr);
    }
    image->segments[image->segment_count++] = (struct boot_segment){load_addr, offset, bytes, mem_bytes};
    return 0;
}

int multiboot_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                    struct err *err)
{
    size_t at = 0;
    *ret_mine = multiboot_find(data, size, &at);
    if (!*ret_mine) {
        return -ENOEXEC;
    }
    uint32_t flags = boot_le32(data + at + 4);
    if (flags & MB_FLAGS_REQUIRED & ~MB_FLAGS_KNOWN) {
        return err_set(err, -ENOEXEC, "the multiboot kernel requires unknown features (flags 0x%x)", flags);
    }
    struct boot_image image = {
        .protocol = BOOT_MULTIBOOT, .initrd_max = UINT32_MAX, .cmdline_max = BOOT_CMDLINE_MAX};
    if (flags & MB_FLAG_ADDRESSES) {
        int rc = multiboot_addresses(data, size, at, &image, err);
        if (rc < 0) {
            return rc;
        }
    } else {
        struct elf_image elf;
        if (!elf_is_elf(data, size)) {
            return err_set(err, -ENOEXEC,
                           "the multiboot kernel is not ELF, and its header has no load addresses");
        }
        int rc = elf_parse(data, size, &elf, err);
        if (rc < 0) {
            return rc;
        }
        if (elf.is64) {
            return err_set(err, -ENOEXEC,
                           "the multiboot kernel is a 64-bit ELF file, and multiboot 1 enters "
                           "32-bit ones");
        }
        image.segment_count = elf.segment_count;
        memcpy(image.segments, elf.segments, sizeof(image.segments));
        image.entry = elf.entry;
    }
    *ret_image = image;
    return 0;
}

int multiboot_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state)
{
    struct mb_page page = {.loader = "Fonda"};
    const struct boot_layout *layout = handover->layout;
    const struct boot_memmap *memmap = handover->memmap;
    page.info = (struct mb_info){
        .flags = MB_INFO_MEMORY | MB_INFO_CMDLINE | MB_INFO_MODULES | MB_INFO_MEMMAP | MB_INFO_LOADER,
        .mem_lower = BOOT_EBDA_BASE / 1024,
        .mem_upper = (uint32_t)((mem_ram_low_bytes(mem) - MIN(mem_ram_low_bytes(mem), MiB)) / 1024),
        .cmdline = BOOT_CMDLINE_BASE,
        .mods_count = layout->module_count,
        .mods_addr = BOOT_DATA_BASE + offsetof(struct mb_page, modules),
        .mmap_length = memmap->count * (uint32_t)sizeof(struct mb_memmap_entry),
        .mmap_addr = BOOT_DATA_BASE + offsetof(struct mb_page, memmap),
        .boot_loader_name = BOOT_DATA_BASE + offsetof(struct mb_page, loader),
    };
    for (unsigned i = 0; i < layout->module_count; i++) {
        page.modules[i] = (struct mb_module){
            .start = (uint32_t)layout->modules[i].gpa,
            .end = (uint32_t)(layout->modules[i].gpa + layout->modules[i].bytes),
            .string = BOOT_DATA_BASE + offsetof(struct mb_page, no_string),
        };
    }
    for (unsigned i = 0; i < memmap->count; i++) {
        page.memmap[i] = (struct mb_memmap_entry){
            sizeof(struct mb_memmap_entry) - sizeof(uint32_t),
            memmap->entries[i].base,
            memmap->entries[i].bytes,
            memmap->entries[i].type,
        };
    }
    int rc = mem_write(mem, GPA(BOOT_DATA_BASE), &page, sizeof(page));
    if (rc == 0) {
        rc = boot_state_protected(mem, state, handover->image->entry);
    }
    state->gpr[X86_RAX] = MB_LOADER_MAGIC;
    state->gpr[X86_RBX] = BOOT_DATA_BASE;
    return rc;
}
