/*
 * Boot protocols: from a kernel file to guest RAM and the first vCPU's state.
 *
 * Neighbours: vm/pc.c calls boot_open once and boot_start at every (re)start of the machine. The formats live
 * in bzimage.c, elf_pvh.c and multiboot.c; each is a pure parser of foreign bytes that fills a struct
 * boot_image.
 *
 * Three steps, so that the last one can't fail half way on a bad file:
 *   parse  bytes -> struct boot_image: what the file wants (segments, entry, limits); nothing of the machine
 * yet place  image + RAM size -> struct boot_layout: where everything goes; "memory too small" is said here
 *   write  layout -> guest RAM and struct x86_state
 *
 * Invariants
 *  1. Every offset and size in a struct boot_image lies within the file that it was parsed from.
 *  2. Every range in a struct boot_layout lies within RAM below 4 GiB, and no two overlap.
 *
 * Threads: main loop, before vCPUs run.
 */
#ifndef FONDA_VM_BOOT_BOOT_H
#define FONDA_VM_BOOT_BOOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/x86/state.h"
#include "mem/mem.h"

#define BOOT_SEGMENTS_MAX 32
#define BOOT_MODULES_MAX  16
#define BOOT_FILE_MAX     (2ull << 30) /* no kernel or initrd is larger; nothing beyond is read */
#define BOOT_CMDLINE_MAX  65535u
#define BOOT_MEMMAP_MAX   8

/* Low memory as the loader uses it. All of it is free for the guest once it has read its boot data. */
#define BOOT_DATA_BASE     0x7000u /* zero page, hvm_start_info or multiboot information */
#define BOOT_GDT_BASE      0x8000u
#define BOOT_PAGES_BASE    0x9000u  /* PML4, PDPT, four page directories */
#define BOOT_CMDLINE_BASE  0x10000u /* up to BOOT_CMDLINE_MAX bytes and the NUL */
#define BOOT_DATA_END      0x20000u
#define BOOT_EBDA_BASE     0x9fc00u /* RAM ends here for the guest, as on a PC with a 1 KiB EBDA */
#define BOOT_FIRMWARE_BASE 0xe0000u /* ACPI tables; reserved in the memory map up to 1 MiB */
#define BOOT_FIRMWARE_END  0x100000u

enum boot_protocol { BOOT_LINUX64, BOOT_LINUX32, BOOT_PVH, BOOT_MULTIBOOT };

struct boot_segment {
    uint64_t gpa;
    uint64_t file_offset;
    uint64_t file_bytes;
    uint64_t mem_bytes; /* >= file_bytes; the rest is zeroed */
};

#define BOOT_SETUP_HEADER_OFFSET 0x1f1u
#define BOOT_SETUP_HEADER_MAX    0x8fu /* the zero page has room up to its offset 0x280 */

struct boot_image {
    enum boot_protocol protocol;
    unsigned segment_count;
    struct boot_segment segments[BOOT_SEGMENTS_MAX];
    uint64_t entry;       /* guest-physical */
    uint64_t initrd_max;  /* the last byte's highest address */
    uint32_t cmdline_max; /* bytes without the NUL */
    /* Linux: what goes from the file's setup header into the zero page. */
    unsigned setup_header_bytes;
    uint8_t setup_header[BOOT_SETUP_HEADER_MAX];
};

struct boot_module {
    uint64_t gpa, bytes;
};

struct boot_layout {
    uint64_t kernel_start, kernel_end;
    unsigned module_count;
    struct boot_module modules[BOOT_MODULES_MAX];
};

/* The memory map that every protocol hands over, in e820's types. */
#define BOOT_MEM_RAM      1u
#define BOOT_MEM_RESERVED 2u
struct boot_memmap {
    unsigned count;
    struct {
        uint64_t base, bytes;
        uint32_t type;
    } entries[BOOT_MEMMAP_MAX];
};

/* Recognizes the file and parses it. Errors: -ENOEXEC, with one sentence that says what the file is or lacks.
 */
int boot_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, struct err *err);

/* The parsers behind it. A file that is not of the format at all: -ENOEXEC and *ret_mine false, err
 * untouched. */
int bzimage_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                  struct err *err);
int multiboot_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                    struct err *err);
int elf_pvh_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                  struct err *err);

/* Finds room for the kernel and the modules in RAM below 4 GiB (low_bytes of it). Linux: one module at most.
 * Errors: -ENOMEM, with what is needed and what there is; -ENOEXEC: a segment lies where it can't. */
int boot_place(const struct boot_image *image, uint64_t low_bytes, const uint64_t *module_bytes,
               unsigned module_count, struct boot_layout *ret_layout, struct err *err);

void boot_memmap_fill(const struct mem *mem, struct boot_memmap *ret_map);

/* A kernel with its initrds, read into memory. */
struct boot;
struct boot_config {
    const char *kernel_path;
    const char *const *initrd_paths; /* Linux gets them joined into one, the others as modules */
    unsigned initrd_count;
    const char *cmdline;
    const char *kernel_name; /* what errors and multiboot kernels call it; NULL: its path */
};

/* Reads, parses and places. config is copied. Errors: those of open and read, -ENOEXEC, -ENOMEM, -E2BIG
 * (command line). */
int boot_open(const struct boot_config *config, uint64_t low_bytes, struct boot **ret_boot, struct err *err);
void boot_free(struct boot *boot);
const char *boot_protocol_name(const struct boot *boot);

/* Gives the files' memory back once the machine runs; boot_start can't be called any more. */
void boot_forget(struct boot *boot);

/* Writes everything into RAM and sets the first vCPU's state, which the caller has reset. rsdp: where the
 * ACPI root pointer is, or 0. Errors: those of mem_write. */
int boot_start(const struct boot *boot, struct mem *mem, gpa_t rsdp, struct x86_state *state,
               struct err *err);

#endif
