/*
 * Boot protocols: what the parsers make of good, damaged and foreign files; where the layout puts things and
 * how it says no; what arrives in guest memory and in the first vCPU's registers.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "vm/boot/boot.h"

#define FILE_BYTES 16384

struct fixture {
    uint8_t data[FILE_BYTES];
    struct boot_image image;
    struct err err;
};

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint64_t v)
{
    put16(p, (unsigned)v & 0xffff);
    put16(p + 2, (unsigned)(v >> 16) & 0xffff);
}

static void put64(uint8_t *p, uint64_t v)
{
    put32(p, v);
    put32(p + 4, v >> 32);
}

#define BZ_SETUP_BYTES 1024
#define BZ_SYS_BYTES   4096
#define BZ_BYTES       (BZ_SETUP_BYTES + BZ_SYS_BYTES)

static void make_bzimage(uint8_t *d)
{
    memset(d, 0, FILE_BYTES);
    d[0x1f1] = BZ_SETUP_BYTES / 512 - 1;
    put32(d + 0x1f4, BZ_SYS_BYTES / 16);
    put16(d + 0x1fe, 0xaa55);
    d[0x201] = 0x6a;
    memcpy(d + 0x202, "HdrS", 4);
    put16(d + 0x206, 0x20f);
    d[0x211] = 1;
    put32(d + 0x22c, 0x7fffffff);
    put16(d + 0x236, 1);
    put32(d + 0x238, 2047);
    put64(d + 0x258, 16 * MiB);
    put32(d + 0x260, 8 * MiB);
    memset(d + BZ_SETUP_BYTES, 0xc5, BZ_SYS_BYTES);
}

/* One PT_LOAD of 0x100 bytes (0x300 in memory) and one PT_NOTE with a PVH entry. */
static void make_elf(uint8_t *d, bool is64, unsigned machine)
{
    memset(d, 0, FILE_BYTES);
    memcpy(d, "\177ELF", 4);
    d[4] = is64 ? 2 : 1;
    d[5] = 1;
    put16(d + 16, 2);
    put16(d + 18, machine);
    uint8_t *p;
    if (is64) {
        put64(d + 24, 0x200010);
        put64(d + 32, 64);
        put16(d + 54, 56);
        put16(d + 56, 2);
        p = d + 64;
        put32(p, 1);
        put64(p + 8, 0x1000);
        put64(p + 16, 0xffffffff80200000);
        put64(p + 24, 0x200000);
        put64(p + 32, 0x100);
        put64(p + 40, 0x300);
        p += 56;
        put32(p, 4);
        put64(p + 8, 0x800);
        put64(p + 32, 20);
        put64(p + 48, 4);
    } else {
        put32(d + 24, 0x200010);
        put32(d + 28, 52);
        put16(d + 42, 32);
        put16(d + 44, 2);
        p = d + 52;
        put32(p, 1);
        put32(p + 4, 0x1000);
        put32(p + 8, 0x200000);
        put32(p + 12, 0x200000);
        put32(p + 16, 0x100);
        put32(p + 20, 0x300);
        p += 32;
        put32(p, 4);
        put32(p + 4, 0x800);
        put32(p + 16, 20);
        put32(p + 28, 4);
    }
    put32(d + 0x800, 4);
    put32(d + 0x804, 4);
    put32(d + 0x808, 18);
    memcpy(d + 0x80c, "Xen", 4);
    put32(d + 0x810, 0x200020);
    memset(d + 0x1000, 0xc5, 0x100);
}

static void make_multiboot(uint8_t *d, uint32_t flags)
{
    put32(d + 0x400, 0x1badb002);
    put32(d + 0x404, flags);
    put32(d + 0x408, 0u - (0x1badb002u + flags));
}

static int setup(void **state)
{
    *state = calloc(1, sizeof(struct fixture));
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static void refuse(struct fixture *f, size_t size, const char *text)
{
    f->err = (struct err){0};
    assert_int_equal(boot_parse(f->data, size, &f->image, &f->err), -ENOEXEC);
    if (!strstr(f->err.text, text)) {
        fail_msg("expected \"%s\" in \"%s\"", text, f->err.text);
    }
}

static void test_bzimage(void **state)
{
    struct fixture *f = *state;
    make_bzimage(f->data);
    assert_int_equal(boot_parse(f->data, BZ_BYTES, &f->image, &f->err), 0);
    assert_int_equal(f->image.protocol, BOOT_LINUX64);
    assert_int_equal(f->image.entry, 16 * MiB + 0x200);
    assert_int_equal(f->image.segments[0].gpa, 16 * MiB);
    assert_int_equal(f->image.segments[0].file_offset, BZ_SETUP_BYTES);
    assert_int_equal(f->image.segments[0].file_bytes, BZ_SYS_BYTES);
    assert_int_equal(f->image.segments[0].mem_bytes, 8 * MiB);
    assert_int_equal(f->image.initrd_max, 0x7fffffff);
    assert_int_equal(f->image.cmdline_max, 2047);
    assert_int_equal(f->image.setup_header_bytes, 0x202 + 0x6a - 0x1f1);
    /* A signature behind the kernel changes nothing. */
    assert_int_equal(boot_parse(f->data, FILE_BYTES, &f->image, &f->err), 0);
    assert_int_equal(f->image.segments[0].file_bytes, BZ_SYS_BYTES);
}

static void test_bzimage_without_64_bit_entry(void **state)
{
    struct fixture *f = *state;
    make_bzimage(f->data);
    put16(f->data + 0x236, 0);
    assert_int_equal(boot_parse(f->data, BZ_BYTES, &f->image, &f->err), 0);
    assert_int_equal(f->image.protocol, BOOT_LINUX32);
    assert_int_equal(f->image.entry, 16 * MiB);
    assert_int_equal(f->image.segments[0].gpa, 16 * MiB);
}

static void test_bzimage_refused(void **state)
{
    struct fixture *f = *state;
    make_bzimage(f->data);
    refuse(f, 0x230, "bzImage is truncated");
    refuse(f, BZ_BYTES - 16, "bzImage is truncated: 5104 bytes of the 5120");
    put16(f->data + 0x206, 0x20b);
    refuse(f, BZ_BYTES, "boot protocol 2.11, and 2.12 is the oldest");
    make_bzimage(f->data);
    f->data[0x211] = 0;
    refuse(f, BZ_BYTES, "zImage");
    make_bzimage(f->data);
    put64(f->data + 0x258, UINT64_MAX - 4);
    refuse(f, BZ_BYTES, "damaged");
    make_bzimage(f->data);
    put32(f->data + 0x1f4, UINT32_MAX);
    refuse(f, BZ_BYTES, "truncated");
    /* However little is left of the file, the answer is an error. */
    make_bzimage(f->data);
    for (size_t size = 0; size < BZ_BYTES - 15; size++) {
        assert_int_equal(boot_parse(f->data, size, &f->image, &f->err), -ENOEXEC);
    }
}

static void test_elf_pvh(void **state)
{
    struct fixture *f = *state;
    for (int is64 = 0; is64 < 2; is64++) {
        make_elf(f->data, is64, is64 ? 62 : 3);
        assert_int_equal(boot_parse(f->data, 0x1100, &f->image, &f->err), 0);
        assert_int_equal(f->image.protocol, BOOT_PVH);
        assert_int_equal(f->image.entry, 0x200020);
        assert_int_equal(f->image.segment_count, 1);
        assert_int_equal(f->image.segments[0].gpa, 0x200000);
        assert_int_equal(f->image.segments[0].file_bytes, 0x100);
        assert_int_equal(f->image.segments[0].mem_bytes, 0x300);
        refuse(f, 0x10ff, "truncated");
    }
}

static void test_elf_refused(void **state)
{
    struct fixture *f = *state;
    make_elf(f->data, true, 183);
    refuse(f, 0x1100, "an ELF file for AArch64");
    make_elf(f->data, true, 243);
    refuse(f, 0x1100, "an ELF file for RISC-V");
    make_elf(f->data, true, 9999);
    refuse(f, 0x1100, "machine number 9999");
    make_elf(f->data, false, 0x1600);
    f->data[5] = 2;
    refuse(f, 0x1100, "an ELF file for S/390");
    make_elf(f->data, true, 62);
    refuse(f, 40, "truncated");
    refuse(f, 80, "truncated");
    put32(f->data + 0x808, 17);
    refuse(f, 0x1100, "without a PVH entry point");
    make_elf(f->data, true, 62);
    put64(f->data + 64 + 24, 0xfffffff0);
    refuse(f, 0x1100, "not below 4 GiB");
    make_elf(f->data, true, 62);
    put64(f->data + 64 + 40, 0x10);
    refuse(f, 0x1100, "damaged");
    make_elf(f->data, true, 62);
    put16(f->data + 56, 0xffff);
    refuse(f, 0x1100, "damaged");
    make_elf(f->data, true, 62);
    put32(f->data + 0x804, UINT32_MAX);
    refuse(f, 0x1100, "without a PVH entry point");
}

static void test_multiboot(void **state)
{
    struct fixture *f = *state;
    make_elf(f->data, false, 3);
    make_multiboot(f->data, 7);
    assert_int_equal(boot_parse(f->data, 0x1100, &f->image, &f->err), 0);
    assert_int_equal(f->image.protocol, BOOT_MULTIBOOT);
    assert_int_equal(f->image.entry, 0x200010);
    make_multiboot(f->data, 8);
    refuse(f, 0x1100, "unknown features");
    make_elf(f->data, true, 62);
    make_multiboot(f->data, 0);
    refuse(f, 0x1100, "64-bit ELF");
    memset(f->data, 0, FILE_BYTES);
    make_multiboot(f->data, 0);
    refuse(f, 0x1100, "no load addresses");
    put32(f->data + 0x408, 1); /* a checksum that does not fit: not multiboot at all */
    refuse(f, 0x1100, "not a kernel");
}

static void test_multiboot_addresses(void **state)
{
    struct fixture *f = *state;
    uint8_t *h = f->data + 0x400;
    make_multiboot(f->data, 0x10000);
    put32(h + 12, 0x100400);
    put32(h + 16, 0x100000);
    put32(h + 20, 0x101000);
    put32(h + 24, 0x102000);
    put32(h + 28, 0x100800);
    assert_int_equal(boot_parse(f->data, 0x1000, &f->image, &f->err), 0);
    assert_int_equal(f->image.segments[0].gpa, 0x100000);
    assert_int_equal(f->image.segments[0].file_offset, 0);
    assert_int_equal(f->image.segments[0].file_bytes, 0x1000);
    assert_int_equal(f->image.segments[0].mem_bytes, 0x2000);
    assert_int_equal(f->image.entry, 0x100800);
    refuse(f, 0xfff, "truncated");
    put32(h + 20, 0); /* the whole file */
    put32(h + 24, 0);
    assert_int_equal(boot_parse(f->data, 0xfff, &f->image, &f->err), 0);
    assert_int_equal(f->image.segments[0].file_bytes, 0xfff);
    put32(h + 12, 0x100800); /* would start before the file */
    refuse(f, 0x1000, "damaged");
}

static void test_foreign(void **state)
{
    struct fixture *f = *state;
    refuse(f, 0, "not a kernel: the file is empty");
    strcpy((char *)f->data, "#!/bin/sh\n");
    refuse(f, 10, "not a kernel: neither");
    memcpy(f->data, "\x1f\x8b\x08", 3);
    refuse(f, 100, "gzip");
}

static void test_place(void **state)
{
    struct fixture *f = *state;
    struct boot_layout layout;
    make_bzimage(f->data);
    assert_int_equal(boot_parse(f->data, BZ_BYTES, &f->image, &f->err), 0);
    uint64_t initrd = 5 * MiB + 1;
    assert_int_equal(boot_place(&f->image, 64 * MiB, &initrd, 1, &layout, &f->err), 0);
    assert_int_equal(layout.modules[0].gpa, 64 * MiB - 5 * MiB - 4096);
    assert_int_equal(layout.modules[0].bytes, initrd);
    /* initrd_addr_max holds it below 2 GiB. */
    assert_int_equal(boot_place(&f->image, MEM_LOW_RAM_MAX, &initrd, 1, &layout, &f->err), 0);
    assert_int_equal(layout.modules[0].gpa, 2 * GiB - 5 * MiB - 4096);
    /* Exactly enough, and one page too little. */
    uint64_t enough = 24 * MiB + 5 * MiB + 4096;
    assert_int_equal(boot_place(&f->image, enough, &initrd, 1, &layout, &f->err), 0);
    assert_int_equal(boot_place(&f->image, enough - 4096, &initrd, 1, &layout, &f->err), -ENOMEM);
    assert_string_equal(f->err.text,
                        "memory too small: the kernel needs 24 MiB, the initrd 6 MiB, and the machine "
                        "has 29 MiB");
    assert_int_equal(boot_place(&f->image, 16 * MiB, NULL, 0, &layout, &f->err), -ENOMEM);
    assert_string_equal(f->err.text, "memory too small: the kernel needs 24 MiB and the machine has 16 MiB");
}

static void test_place_segments(void **state)
{
    struct fixture *f = *state;
    struct boot_layout layout;
    uint64_t sizes[2] = {100, 5000};
    make_elf(f->data, false, 3);
    assert_int_equal(boot_parse(f->data, 0x1100, &f->image, &f->err), 0);
    assert_int_equal(boot_place(&f->image, 4 * MiB, sizes, 2, &layout, &f->err), 0);
    assert_int_equal(layout.modules[0].gpa, 4 * MiB - 4096);
    assert_int_equal(layout.modules[1].gpa, 4 * MiB - 3 * 4096);
    assert_int_equal(layout.kernel_end, 0x200300);
    static const uint64_t bad[] = {0, 0x7000, 0x9fb00, 0xa0000, 0xe0000, 0xfffff};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        f->image.segments[0].gpa = bad[i];
        assert_int_equal(boot_place(&f->image, 4 * MiB, NULL, 0, &layout, &f->err), -ENOEXEC);
    }
    f->image.segments[0].gpa = 0x20000;
    assert_int_equal(boot_place(&f->image, 4 * MiB, NULL, 0, &layout, &f->err), 0);
}

/* --- through files into a machine's memory --- */

static char *temp_file(const uint8_t *data, size_t size)
{
    static char path[64];
    strcpy(path, "/tmp/fonda-test-boot-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), (ssize_t)size);
    close(fd);
    return path;
}

static uint32_t guest32(struct mem *mem, uint64_t gpa)
{
    uint32_t v = 0;
    assert_int_equal(mem_read(mem, GPA(gpa), &v, sizeof(v)), 0);
    return v;
}

static void start(struct fixture *f, size_t size, struct mem *mem, struct x86_state *state)
{
    struct boot *boot = NULL;
    char kernel[64];
    strcpy(kernel, temp_file(f->data, size));
    char *initrd = temp_file((const uint8_t *)"initrd", 6);
    const char *initrds[] = {initrd, initrd};
    const struct boot_config config = {
        .kernel_path = kernel, .initrd_paths = initrds, .initrd_count = 2, .cmdline = "quiet x=1"};
    assert_int_equal(boot_open(&config, mem_ram_low_bytes(mem), &boot, &f->err), 0);
    memset(state, 0, sizeof(*state));
    assert_int_equal(boot_start(boot, mem, GPA(0xe0000), state, &f->err), 0);
    boot_free(boot);
    unlink(kernel);
    unlink(initrd);
}

static void test_start_linux(void **state)
{
    struct fixture *f = *state;
    struct mem *mem;
    struct x86_state s;
    assert_int_equal(mem_new(64 * MiB, &mem, &f->err), 0);
    make_bzimage(f->data);
    start(f, BZ_BYTES, mem, &s);
    assert_int_equal(s.rip, 16 * MiB + 0x200);
    assert_int_equal(s.gpr[X86_RSI], BOOT_DATA_BASE);
    assert_int_equal(s.seg[X86_CS].selector, 0x10);
    assert_int_equal(s.seg[X86_DS].selector, 0x18);
    assert_true(s.seg[X86_CS].attr & X86_SEG_L);
    assert_int_equal(s.efer & X86_EFER_LMA, X86_EFER_LMA);
    assert_int_equal(s.rflags & X86_IF, 0);
    assert_int_equal(guest32(mem, 16 * MiB), 0xc5c5c5c5);
    /* The GDT says what the hidden parts say: code at 0x10 is 64-bit, present. */
    assert_int_equal(guest32(mem, s.gdtr.base + 0x14), 0x00af9b00);
    assert_int_equal(guest32(mem, s.gdtr.base + 0x1c), 0x00cf9300);
    /* The last 2 MiB page of the first 4 GiB is mapped to itself. */
    uint64_t pml4e = guest32(mem, s.cr3), pdpte = guest32(mem, (pml4e & ~0xfffull) + 3 * 8);
    assert_int_equal(guest32(mem, (pdpte & ~0xfffull) + 511 * 8), 0xffe00083);
    /* Zero page. */
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x228), BOOT_CMDLINE_BASE);
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x070), 0xe0000);
    uint32_t initrd = guest32(mem, BOOT_DATA_BASE + 0x218);
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x21c), 16); /* two, each padded to 8 */
    char text[16] = "";
    assert_int_equal(mem_read(mem, GPA(initrd), text, 16), 0);
    assert_memory_equal(text, "initrd\0\0initrd\0\0", 16);
    assert_int_equal(mem_read(mem, GPA(BOOT_CMDLINE_BASE), text, 10), 0);
    assert_string_equal(text, "quiet x=1");
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x1e8) & 0xff, 4);
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x2d0 + 8), 0x9fc00);
    mem_free(mem);
}

static void test_start_linux_32(void **state)
{
    struct fixture *f = *state;
    struct mem *mem;
    struct x86_state s;
    assert_int_equal(mem_new(64 * MiB, &mem, &f->err), 0);
    make_bzimage(f->data);
    put16(f->data + 0x236, 0);
    start(f, BZ_BYTES, mem, &s);
    assert_int_equal(s.rip, 16 * MiB);
    assert_int_equal(s.gpr[X86_RSI], BOOT_DATA_BASE);
    assert_int_equal(s.gpr[X86_RBX] | s.gpr[X86_RBP] | s.gpr[X86_RDI], 0);
    assert_int_equal(s.cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE);
    assert_int_equal(s.efer, 0);
    assert_int_equal(s.seg[X86_CS].selector, 0x10);
    assert_false(s.seg[X86_CS].attr & X86_SEG_L);
    assert_true(s.seg[X86_CS].attr & X86_SEG_DB);
    /* Linux gets its initrds joined, whichever entry it has. */
    assert_int_equal(guest32(mem, BOOT_DATA_BASE + 0x21c), 16);
    mem_free(mem);
}

static void test_start_multiboot(void **state)
{
    struct fixture *f = *state;
    struct mem *mem;
    struct x86_state s;
    assert_int_equal(mem_new(64 * MiB, &mem, &f->err), 0);
    make_elf(f->data, false, 3);
    make_multiboot(f->data, 3);
    uint32_t dirt = 0xdddddddd; /* of an earlier run of the machine */
    assert_int_equal(mem_write(mem, GPA(0x200100), &dirt, 4), 0);
    start(f, 0x1100, mem, &s);
    assert_int_equal(guest32(mem, 0x200000), 0xc5c5c5c5);
    assert_int_equal(guest32(mem, 0x200100), 0);
    assert_int_equal(s.rip, 0x200010);
    assert_int_equal(s.gpr[X86_RAX], 0x2badb002);
    assert_int_equal(s.cr0 & X86_CR0_PG, 0);
    uint64_t info = s.gpr[X86_RBX];
    assert_int_equal(guest32(mem, info), 0x24d);
    assert_int_equal(guest32(mem, info + 8), 63 * 1024);
    assert_int_equal(guest32(mem, info + 20), 2);
    uint32_t mods = guest32(mem, info + 24), mod = guest32(mem, mods);
    assert_int_equal(guest32(mem, mods + 4), mod + 6);
    assert_int_equal(guest32(mem, mod), 0x74696e69); /* "init" */
    uint32_t mmap = guest32(mem, info + 48);
    assert_int_equal(guest32(mem, info + 44), 4 * 24);
    assert_int_equal(guest32(mem, mmap), 20);
    assert_int_equal(guest32(mem, mmap + 12), 0x9fc00);
    assert_int_equal(guest32(mem, mmap + 20), 1);
    char text[64] = "";
    assert_int_equal(mem_read(mem, GPA(guest32(mem, info + 16)), text, sizeof(text) - 1), 0);
    assert_memory_equal(text, "fonda-test-boot-", 16);
    assert_string_equal(strchr(text, ' '), " quiet x=1");
    mem_free(mem);
}

static void test_start_pvh(void **state)
{
    struct fixture *f = *state;
    struct mem *mem;
    struct x86_state s;
    assert_int_equal(mem_new(64 * MiB, &mem, &f->err), 0);
    make_elf(f->data, true, 62);
    start(f, 0x1100, mem, &s);
    assert_int_equal(s.rip, 0x200020);
    assert_int_equal(s.tr.limit, 0x67);
    uint64_t info = s.gpr[X86_RBX];
    assert_int_equal(guest32(mem, info), 0x336ec578);
    assert_int_equal(guest32(mem, info + 4), 1);
    assert_int_equal(guest32(mem, info + 12), 2);
    assert_int_equal(guest32(mem, info + 32), 0xe0000);
    assert_int_equal(guest32(mem, info + 48), 4);
    assert_int_equal(guest32(mem, guest32(mem, info + 40) + 8), 0x9fc00);
    uint32_t module = guest32(mem, guest32(mem, info + 16));
    assert_int_equal(guest32(mem, module), 0x74696e69);
    mem_free(mem);
}

static void test_open_refused(void **state)
{
    struct fixture *f = *state;
    struct boot *boot = NULL;
    struct boot_config config = {.kernel_path = "/nonexistent/vmlinuz", .cmdline = ""};
    assert_int_equal(boot_open(&config, GiB, &boot, &f->err), -ENOENT);
    assert_string_equal(f->err.text, "kernel '/nonexistent/vmlinuz': cannot open: No such file or directory");
    config.kernel_path = "/tmp";
    assert_int_equal(boot_open(&config, GiB, &boot, &f->err), -EINVAL);
    assert_string_equal(f->err.text, "kernel '/tmp': not a regular file");
    make_bzimage(f->data);
    char *path = temp_file(f->data, BZ_BYTES);
    auto_free char *text = calloc(1, 3000);
    memset(text, 'x', 2048);
    config.kernel_path = path;
    config.cmdline = text;
    assert_int_equal(boot_open(&config, GiB, &boot, &f->err), -E2BIG);
    assert_string_equal(f->err.text, "the kernel's command line has 2048 bytes, and the kernel takes 2047");
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bzimage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bzimage_without_64_bit_entry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bzimage_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_elf_pvh, setup, teardown),
        cmocka_unit_test_setup_teardown(test_elf_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_multiboot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_multiboot_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign, setup, teardown),
        cmocka_unit_test_setup_teardown(test_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_place_segments, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_linux, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_linux_32, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_multiboot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_pvh, setup, teardown),
        cmocka_unit_test_setup_teardown(test_open_refused, setup, teardown),
    };
    return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
