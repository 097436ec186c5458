/*
 * ELF executables as boot files: PT_LOAD segments by physical address, and where the notes are. Used by
 * elf_pvh.c and multiboot.c. "System V ABI", chapter 4 (ELF header) and 5 (program header).
 *
 * Invariant: whatever the bytes say, everything in a struct elf_image lies within the file, and mem sizes and
 * addresses add up without overflow below 4 GiB.
 */
#include <errno.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

#define ELF_MACHINE_386    3
#define ELF_MACHINE_X86_64 62
#define ELF_PT_LOAD        1
#define ELF_PT_NOTE        4
#define ELF_PHDRS_MAX      256

static const char *elf_machine_name(uint16_t machine)
{
    static const struct {
        uint16_t machine;
        const char *name;
    } names[] = {
        {2, "SPARC"},     {8, "MIPS"},     {20, "PowerPC"},  {21, "PowerPC 64"},
        {22, "S/390"},    {40, "ARM"},     {43, "SPARC V9"}, {50, "Itanium"},
        {183, "AArch64"}, {243, "RISC-V"}, {247, "BPF"},     {258, "LoongArch"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (names[i].machine == machine) {
            return names[i].name;
        }
    }
    return NULL;
}

bool elf_is_elf(const uint8_t *data, size_t size)
{
    return size >= 4 && memcmp(data, "\177ELF", 4) == 0;
}

static int elf_add_load(struct elf_image *elf, const struct boot_segment *seg, uint64_t vaddr, size_t size,
                        struct err *err)
{
    if (seg->mem_bytes == 0) {
        return 0;
    }
    if (!boot_within(seg->file_offset, seg->file_bytes, size)) {
        return err_set(err, -ENOEXEC,
                       "the ELF file is truncated: a segment ends behind the file's last byte");
    }
    if (seg->mem_bytes < seg->file_bytes) {
        return err_set(err, -ENOEXEC,
                       "the ELF file is damaged: a segment is larger in the file than in memory");
    }
    if (!boot_within(seg->gpa, seg->mem_bytes, MEM_HIGH_RAM)) {
        return err_set(err, -ENOEXEC, "the ELF file wants a segment at 0x%llx, which is not below 4 GiB",
                       (unsigned long long)seg->gpa);
    }
    if (elf->segment_count == BOOT_SEGMENTS_MAX) {
        return err_set(err, -ENOEXEC, "the ELF file has more than %d segments to load", BOOT_SEGMENTS_MAX);
    }
    elf->vaddr[elf->segment_count] = vaddr;
    elf->segments[elf->segment_count++] = *seg;
    return 0;
}

static int elf_add_phdr(struct elf_image *elf, const uint8_t *p, size_t size, struct err *err)
{
    uint32_t type = boot_le32(p);
    struct boot_segment seg;
    uint64_t vaddr, align;
    if (elf->is64) {
        seg =
            (struct boot_segment){boot_le64(p + 24), boot_le64(p + 8), boot_le64(p + 32), boot_le64(p + 40)};
        vaddr = boot_le64(p + 16);
        align = boot_le64(p + 48);
    } else {
        seg =
            (struct boot_segment){boot_le32(p + 12), boot_le32(p + 4), boot_le32(p + 16), boot_le32(p + 20)};
        vaddr = boot_le32(p + 8);
        align = boot_le32(p + 28);
    }
    if (type == ELF_PT_LOAD) {
        return elf_add_load(elf, &seg, vaddr, size, err);
    }
    if (type == ELF_PT_NOTE && elf->note_count < ELF_NOTES_MAX &&
        boot_within(seg.file_offset, seg.file_bytes, size)) {
        elf->notes[elf->note_count++] = (struct elf_note_range){seg.file_offset, seg.file_bytes, align};
    }
    return 0;
}

int elf_parse(const uint8_t *data, size_t size, struct elf_image *ret_elf, struct err *err)
{
    struct elf_image elf = {0};
    if (size < 52 || (data[4] == 2 && size < 64)) {
        return err_set(err, -ENOEXEC, "the ELF file is truncated: no room for its header");
    }
    if ((data[4] != 1 && data[4] != 2) || (data[5] != 1 && data[5] != 2)) {
        return err_set(err, -ENOEXEC, "the ELF file is damaged: neither 32 nor 64 bits");
    }
    elf.is64 = data[4] == 2;
    bool big_endian = data[5] == 2;
    elf.machine = boot_le16(data + 18);
    if (big_endian) {
        elf.machine = (uint16_t)(elf.machine >> 8 | elf.machine << 8);
    }
    if (big_endian || (elf.machine != ELF_MACHINE_386 && elf.machine != ELF_MACHINE_X86_64)) {
        const char *name = elf_machine_name(elf.machine);
        if (name) {
            return err_set(err, -ENOEXEC, "an ELF file for %s, and the machine is x86-64", name);
        }
        return err_set(err, -ENOEXEC, "an ELF file for machine number %u, and the machine is x86-64",
                       elf.machine);
    }
    elf.entry = elf.is64 ? boot_le64(data + 24) : boot_le32(data + 24);
    uint64_t phoff = elf.is64 ? boot_le64(data + 32) : boot_le32(data + 28);
    unsigned phentsize = boot_le16(data + (elf.is64 ? 54 : 42));
    unsigned phnum = boot_le16(data + (elf.is64 ? 56 : 44));
    if (phnum == 0) {
        return err_set(err, -ENOEXEC, "an ELF file without program headers: an object file, not a kernel");
    }
    if (phentsize < (elf.is64 ? 56u : 32u) || phnum > ELF_PHDRS_MAX) {
        return err_set(err, -ENOEXEC, "the ELF file is damaged: %u program headers of %u bytes", phnum,
                       phentsize);
    }
    if (!boot_within(phoff, (uint64_t)phentsize * phnum, size)) {
        return err_set(err, -ENOEXEC, "the ELF file is truncated: no room for its program headers");
    }
    for (unsigned i = 0; i < phnum; i++) {
        int rc = elf_add_phdr(&elf, data + phoff + (uint64_t)phentsize * i, size, err);
        if (rc < 0) {
            return rc;
        }
    }
    if (elf.segment_count == 0) {
        return err_set(err, -ENOEXEC, "the ELF file has nothing to load");
    }
    *ret_elf = elf;
    return 0;
}
