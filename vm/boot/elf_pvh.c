/*
 * ELF kernels entered by PVH: Xen's docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h and
 * public/elfnote.h. Linux's vmlinux and several unikernels carry the note.
 */
#include <errno.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

#define NOTE_PHYS32_ENTRY 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
#define START_MAGIC       0x336ec578u
#define START_VERSION     1

/* Laid out in one page at BOOT_DATA_BASE, in this order. */
struct pvh_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};

struct pvh_module {
    uint64_t paddr, size, cmdline_paddr, reserved;
};

struct pvh_memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

struct pvh_page {
    struct pvh_start_info info;
    struct pvh_module modules[BOOT_MODULES_MAX];
    struct pvh_memmap_entry memmap[BOOT_MEMMAP_MAX];
};
_Static_assert(sizeof(struct pvh_start_info) == 56, "start_info.h, version 1");
_Static_assert(sizeof(struct pvh_page) <= BOOT_GDT_BASE - BOOT_DATA_BASE, "one page");

/* The entry point in one note segment; false when it has none. */
static bool note_find_entry(const uint8_t *p, uint64_t bytes, uint64_t align, uint64_t *ret_entry)
{
    align = align == 8 ? 8 : 4;
    while (bytes >= 12) {
        uint64_t name_bytes = boot_le32(p), desc_bytes = boot_le32(p + 4);
        uint32_t type = boot_le32(p + 8);
        uint64_t desc_at = align_up(12 + name_bytes, align);
        uint64_t next = align_up(desc_at + desc_bytes, align);
        if (desc_at + desc_bytes > bytes) {
            return false;
        }
        if (type == NOTE_PHYS32_ENTRY && name_bytes == 4 && memcmp(p + 12, "Xen", 4) == 0 &&
            (desc_bytes == 4 || desc_bytes == 8)) {
            *ret_entry = desc_bytes == 4 ? boot_le32(p + desc_at) : boot_le64(p + desc_at);
            return true;
        }
        if (next >= bytes) {
            return false;
        }
        p += next;
        bytes -= next;
    }
    return false;
}

int elf_pvh_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                  struct err *err)
{
    *ret_mine = elf_is_elf(data, size);
    if (!*ret_mine) {
        return -ENOEXEC;
    }
    struct elf_image elf;
    int rc = elf_parse(data, size, &elf, err);
    if (rc < 0) {
        return rc;
    }
    struct boot_image image = {
        .protocol = BOOT_PVH, .initrd_max = UINT32_MAX, .cmdline_max = BOOT_CMDLINE_MAX};
    bool found = false;
    for (unsigned i = 0; i < elf.note_count && !found; i++) {
        found =
            note_find_entry(data + elf.notes[i].offset, elf.notes[i].bytes, elf.notes[i].align, &image.entry);
    }
    if (!found) {
        return err_set(err, -ENOEXEC,
                       "an ELF file without a PVH entry point or a multiboot header: not a kernel");
    }
    if (image.entry >= MEM_HIGH_RAM) {
        return err_set(err, -ENOEXEC,
                       "the ELF file is damaged: its PVH entry point 0x%llx is not below 4 GiB",
                       (unsigned long long)image.entry);
    }
    image.segment_count = elf.segment_count;
    memcpy(image.segments, elf.segments, sizeof(image.segments));
    *ret_image = image;
    return 0;
}

int elf_pvh_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state)
{
    struct pvh_page page = {0};
    const struct boot_layout *layout = handover->layout;
    page.info = (struct pvh_start_info){
        .magic = START_MAGIC,
        .version = START_VERSION,
        .nr_modules = layout->module_count,
        .modlist_paddr = BOOT_DATA_BASE + offsetof(struct pvh_page, modules),
        .cmdline_paddr = BOOT_CMDLINE_BASE,
        .rsdp_paddr = handover->rsdp.v,
        .memmap_paddr = BOOT_DATA_BASE + offsetof(struct pvh_page, memmap),
        .memmap_entries = handover->memmap->count,
    };
    for (unsigned i = 0; i < layout->module_count; i++) {
        page.modules[i] =
            (struct pvh_module){.paddr = layout->modules[i].gpa, .size = layout->modules[i].bytes};
    }
    for (unsigned i = 0; i < handover->memmap->count; i++) {
        page.memmap[i] = (struct pvh_memmap_entry){.addr = handover->memmap->entries[i].base,
                                                   .size = handover->memmap->entries[i].bytes,
                                                   .type = handover->memmap->entries[i].type};
    }
    int rc = mem_write(mem, GPA(BOOT_DATA_BASE), &page, sizeof(page));
    if (rc == 0) {
        rc = boot_state_protected(mem, state, handover->image->entry);
    }
    state->gpr[X86_RBX] = BOOT_DATA_BASE;
    return rc;
}
