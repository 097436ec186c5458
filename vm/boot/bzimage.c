/*
 * Linux's bzImage by its 64-bit entry point, or its 32-bit one where there is no other. Linux
 * Documentation/arch/x86/boot.rst ("The Linux/x86 Boot Protocol", here: boot.rst) and zero-page.rst.
 *
 * The file: a boot sector and setup code of (setup_sects + 1) * 512 bytes, which is not run, then the
 * protected-mode part, which is loaded at pref_address and entered 0x200 bytes behind its start in 64-bit
 * mode, or at its start in 32-bit protected mode. The kernel unpacks itself there within init_size bytes;
 * below pref_address it would move itself up again, so no other address is offered.
 */
#include <errno.h>

#include "base/util.h"
#include "vm/boot/boot_int.h"

/* Offsets in the setup header (boot.rst, "The Real-Mode Kernel Header"). The zero page uses the same. */
#define HDR_SETUP_SECTS      0x1f1
#define HDR_SYSSIZE          0x1f4
#define HDR_BOOT_FLAG        0x1fe
#define HDR_JUMP_LENGTH      0x201
#define HDR_MAGIC            0x202
#define HDR_VERSION          0x206
#define HDR_TYPE_OF_LOADER   0x210
#define HDR_LOADFLAGS        0x211
#define HDR_RAMDISK_IMAGE    0x218
#define HDR_RAMDISK_SIZE     0x21c
#define HDR_CMD_LINE_PTR     0x228
#define HDR_INITRD_ADDR_MAX  0x22c
#define HDR_KERNEL_ALIGNMENT 0x230
#define HDR_XLOADFLAGS       0x236
#define HDR_CMDLINE_SIZE     0x238
#define HDR_SETUP_DATA       0x250
#define HDR_PREF_ADDRESS     0x258
#define HDR_INIT_SIZE        0x260
#define HDR_END              0x264 /* the fields above are all that is needed */

#define VERSION_MIN      0x20c /* xloadflags */
#define LOADED_HIGH      0x01
#define XLF_KERNEL_64    0x01
#define ENTRY64_OFFSET   0x200
#define LOADER_UNDEFINED 0xff /* type_of_loader: no number assigned */

/* Zero page only (zero-page.rst). */
#define ZP_ACPI_RSDP_ADDR 0x070
#define ZP_E820_ENTRIES   0x1e8
#define ZP_E820_TABLE     0x2d0
#define ZP_BYTES          4096

int bzimage_parse(const uint8_t *data, size_t size, struct boot_image *ret_image, bool *ret_mine,
                  struct err *err)
{
    *ret_mine = size >= HDR_MAGIC + 4 && boot_le16(data + HDR_BOOT_FLAG) == 0xaa55 &&
                memcmp(data + HDR_MAGIC, "HdrS", 4) == 0;
    if (!*ret_mine) {
        return -ENOEXEC;
    }
    if (size < HDR_END) {
        return err_set(err, -ENOEXEC, "the bzImage is truncated: no room for its header");
    }
    unsigned version = boot_le16(data + HDR_VERSION);
    if (version < VERSION_MIN) {
        return err_set(err, -ENOEXEC,
                       "the Linux kernel has boot protocol %u.%02u, and 2.12 is the oldest supported",
                       version >> 8, version & 0xff);
    }
    if (!(data[HDR_LOADFLAGS] & LOADED_HIGH)) {
        return err_set(err, -ENOEXEC, "the Linux kernel is a zImage, and only bzImage is supported");
    }
    /* boot.rst: 0 means 4, for historical reasons. */
    uint64_t setup_bytes = ((data[HDR_SETUP_SECTS] ? data[HDR_SETUP_SECTS] : 4u) + 1) * 512ull;
    uint64_t sys_bytes = (uint64_t)boot_le32(data + HDR_SYSSIZE) * 16;
    /* syssize is rounded up to 16 bytes; what follows it in the file is a signature, and of no use here. */
    if (size < setup_bytes || size - setup_bytes + 15 < sys_bytes || sys_bytes <= ENTRY64_OFFSET) {
        return err_set(err, -ENOEXEC,
                       "the bzImage is truncated: %zu bytes of the %llu that its header announces", size,
                       (unsigned long long)setup_bytes + sys_bytes);
    }
    uint64_t pref_address = boot_le64(data + HDR_PREF_ADDRESS);
    uint64_t init_size = boot_le32(data + HDR_INIT_SIZE);
    uint64_t file_bytes = MIN(sys_bytes, size - setup_bytes);
    if (pref_address < BOOT_FIRMWARE_END ||
        !boot_within(pref_address, MAX(init_size, file_bytes), MEM_HIGH_RAM)) {
        return err_set(err, -ENOEXEC, "the bzImage is damaged: it wants %llu bytes at 0x%llx",
                       (unsigned long long)init_size, (unsigned long long)pref_address);
    }

    bool has_entry64 = boot_le16(data + HDR_XLOADFLAGS) & XLF_KERNEL_64;
    struct boot_image image = {.protocol = has_entry64 ? BOOT_LINUX64 : BOOT_LINUX32, .segment_count = 1};
    image.segments[0] =
        (struct boot_segment){pref_address, setup_bytes, file_bytes, MAX(init_size, file_bytes)};
    image.entry = pref_address + (has_entry64 ? ENTRY64_OFFSET : 0);
    image.initrd_max = boot_le32(data + HDR_INITRD_ADDR_MAX);
    image.cmdline_max = boot_le32(data + HDR_CMDLINE_SIZE);
    /* boot.rst: the header ends at 0x202 plus the byte at 0x201. */
    unsigned header_end =
        MIN(HDR_MAGIC + (unsigned)data[HDR_JUMP_LENGTH], BOOT_SETUP_HEADER_OFFSET + BOOT_SETUP_HEADER_MAX);
    header_end = MAX(header_end, (unsigned)HDR_END);
    if (size < header_end) {
        return err_set(err, -ENOEXEC, "the bzImage is truncated: no room for its header");
    }
    image.setup_header_bytes = header_end - BOOT_SETUP_HEADER_OFFSET;
    memcpy(image.setup_header, data + BOOT_SETUP_HEADER_OFFSET, image.setup_header_bytes);
    *ret_image = image;
    return 0;
}

static void put32(uint8_t *page, unsigned offset, uint64_t value)
{
    uint32_t v = (uint32_t)value;
    memcpy(page + offset, &v, sizeof(v));
}

static void put64(uint8_t *page, unsigned offset, uint64_t value)
{
    memcpy(page + offset, &value, sizeof(value));
}

int bzimage_start(const struct boot_handover *handover, struct mem *mem, struct x86_state *state)
{
    uint8_t zero_page[ZP_BYTES] = {0};
    const struct boot_image *image = handover->image;
    memcpy(zero_page + BOOT_SETUP_HEADER_OFFSET, image->setup_header, image->setup_header_bytes);
    zero_page[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
    put32(zero_page, HDR_CMD_LINE_PTR, BOOT_CMDLINE_BASE);
    put64(zero_page, HDR_SETUP_DATA, 0);
    if (handover->layout->module_count > 0) {
        put32(zero_page, HDR_RAMDISK_IMAGE, handover->layout->modules[0].gpa);
        put32(zero_page, HDR_RAMDISK_SIZE, handover->layout->modules[0].bytes);
    }
    put64(zero_page, ZP_ACPI_RSDP_ADDR, handover->rsdp.v);
    zero_page[ZP_E820_ENTRIES] = (uint8_t)handover->memmap->count;
    for (unsigned i = 0; i < handover->memmap->count; i++) {
        unsigned at = ZP_E820_TABLE + i * 20;
        put64(zero_page, at, handover->memmap->entries[i].base);
        put64(zero_page, at + 8, handover->memmap->entries[i].bytes);
        put32(zero_page, at + 16, handover->memmap->entries[i].type);
    }
    int rc = mem_write(mem, GPA(BOOT_DATA_BASE), zero_page, sizeof(zero_page));
    if (rc == 0) {
        rc = image->protocol == BOOT_LINUX64 ? boot_state_long(mem, state, image->entry)
                                             : boot_state_protected(mem, state, image->entry);
    }
    /* boot.rst, "32-bit Boot Protocol": EBP, EDI and EBX must be 0, as they are at reset. */
    state->gpr[X86_RSI] = BOOT_DATA_BASE;
    return rc;
}
