/*
 * What the boot protocols share: little-endian reads from a file's bytes, ELF, and the writers of each
 * protocol's boot data. Only for vm/boot/.
 */
#ifndef FONDA_VM_BOOT_BOOT_INT_H
#define FONDA_VM_BOOT_BOOT_INT_H

#include <string.h>

#include "vm/boot/boot.h"

/* The caller has checked that the bytes are there. */
static inline uint16_t boot_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t boot_le32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t boot_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* Whether [offset, offset + bytes) lies within size bytes. */
static inline bool boot_within(uint64_t offset, uint64_t bytes, uint64_t size)
{
    return offset <= size && bytes <= size - offset;
}

#define ELF_NOTES_MAX 16

struct elf_note_range {
    uint64_t offset, bytes, align;
};

struct elf_image {
    bool is64;
    uint16_t machine;
    uint64_t entry; /* as the header has it: virtual or physical */
    unsigned segment_count;
    struct boot_segment segments[BOOT_SEGMENTS_MAX]; /* PT_LOAD, at their physical addresses */
    uint64_t vaddr[BOOT_SEGMENTS_MAX];
    unsigned note_count;
    struct elf_note_range notes[ELF_NOTES_MAX];
};

bool elf_is_elf(const uint8_t *data, size_t size);
/* Errors: -ENOEXEC, with the reason. Accepts x86-64 and i386 executables. */
int elf_parse(const uint8_t *data, size_t size, struct elf_image *ret_elf, struct err *err);

/* What boot_start knows when it calls a protocol's writer. */
struct boot_handover {
    const struct boot_image *image;
    const struct boot_layout *layout;
    const struct boot_memmap *memmap;
    const char *cmdline;
    gpa_t rsdp;
};

/* Each writes its boot data and sets the registers that it names. Errors: those of mem_write. */
int bzimage_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state);
int elf_pvh_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state);
int multiboot_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state);

/* Flat 32-bit protected mode without paging, interrupts off: PVH's, multiboot's and 32-bit Linux' machine
 * state. */
int boot_state_protected(struct mem *mem, struct x86_state *state, uint64_t entry);
/* 64-bit mode with the first 4 GiB mapped to themselves, interrupts off: Linux's 64-bit boot protocol. */
int boot_state_long(struct mem *mem, struct x86_state *state, uint64_t entry);

#endif
