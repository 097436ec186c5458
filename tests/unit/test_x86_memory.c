/*
 * cpu/x86/memory.c: accesses that cross pages, touch MMIO or fault; segment checks. misc.c, debug.c, state.c:
 * flags, I/O permission, FS and GS base, breakpoints, adopted state.
 */
#include <errno.h>

#include "tests/unit/x86_cpu.h"

#define RAM_BYTES (1 * MiB)
#define CHIP_BASE 0xd0000000u

struct fixture {
    struct mem *mem;
    struct x86_cpu cpu;
    uint64_t *pt;
    uint8_t chip[4096];
};

static struct fixture f;

static uint64_t chip_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, &f.chip[offset], size);
    return value;
}

static void chip_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    memcpy(&f.chip[offset], &value, size);
}

static const struct mem_io_ops chip_ops = {chip_read, chip_write};

/* Identity-maps the first 2 MiB, but page 0x50 is the chip and page 0x60 absent. */
static int set_up(void **state)
{
    memset(&f, 0, sizeof(f));
    assert_int_equal(mem_new(RAM_BYTES, &f.mem, NULL), 0);
    assert_int_equal(mem_add_mmio(f.mem, GPA(CHIP_BASE), 4096, &chip_ops, NULL, "chip", NULL), 0);
    cpu_init(&f.cpu, f.mem);
    cpu_enter_long_mode(&f.cpu, 0x1000);
    uint64_t *ram = (uint64_t *)(void *)mem_ram_base(f.mem);
    ram[0x1000 / 8] = 0x2007;
    ram[0x2000 / 8] = 0x3007;
    ram[0x3000 / 8] = 0x4007;
    f.pt = &ram[0x4000 / 8];
    for (unsigned i = 0; i < 512; i++) {
        f.pt[i] = (uint64_t)i << 12 | 7;
    }
    f.pt[0x50] = CHIP_BASE | 7;
    f.pt[0x60] = 0;
    return 0;
}

static int tear_down(void **state)
{
    mem_free(f.mem);
    return 0;
}

static uint8_t *ram_at(uint64_t gpa)
{
    return mem_ram_base(f.mem) + gpa;
}

static void test_sizes(void **state)
{
    uint64_t value;
    for (unsigned size = 1; size <= 8; size++) {
        for (uint64_t va = 0x10ff0; va < 0x11010; va++) {
            memset(ram_at(0x10fe0), 0xee, 0x40);
            assert_int_equal(x86_store(&f.cpu, va, size, 0, 0x8877665544332211), 0);
            assert_int_equal(*ram_at(va - 1), 0xee);
            assert_int_equal(*ram_at(va + size), 0xee);
            assert_int_equal(x86_load(&f.cpu, va, size, 0, &value), 0);
            assert_true(value == (0x8877665544332211 & (size == 8 ? UINT64_MAX : (1ull << 8 * size) - 1)));
        }
    }
}

static void test_all_or_nothing(void **state)
{
    uint8_t buf[3 * 4096];
    uint64_t value = 1;
    memset(buf, 0x77, sizeof(buf));
    expect_exception(&f.cpu, x86_store(&f.cpu, 0x5fffd, 8, 0, UINT64_MAX), X86_PF_EXC, X86_PF_W);
    assert_int_equal(f.cpu.exc.cr2, 0x60000);
    expect_exception(&f.cpu, x86_store_buf(&f.cpu, 0x5e800, buf, sizeof(buf), 0), X86_PF_EXC, X86_PF_W);
    assert_int_equal(f.cpu.exc.cr2, 0x60000);
    expect_exception(&f.cpu, x86_load(&f.cpu, 0x5fffd, 8, 0, &value), X86_PF_EXC, 0);
    assert_int_equal(value, 1);
    for (uint64_t gpa = 0x5e000; gpa < 0x60000; gpa++) {
        assert_int_equal(*ram_at(gpa), 0);
    }
    assert_int_equal(x86_store_buf(&f.cpu, 0x30800, buf, sizeof(buf), 0), 0);
    assert_int_equal(*ram_at(0x307ff), 0);
    assert_int_equal(*ram_at(0x30800), 0x77);
    assert_int_equal(*ram_at(0x337ff), 0x77);
    assert_int_equal(*ram_at(0x33800), 0);
    memset(buf, 0, sizeof(buf));
    assert_int_equal(x86_load_buf(&f.cpu, 0x30800, buf, sizeof(buf), 0), 0);
    assert_int_equal(buf[sizeof(buf) - 1], 0x77);
}

static void test_mmio(void **state)
{
    uint64_t value;
    assert_int_equal(x86_store(&f.cpu, 0x50010, 4, 0, 0x12345678), 0);
    assert_int_equal(f.chip[0x13], 0x12);
    assert_int_equal(x86_load(&f.cpu, 0x50010, 4, 0, &value), 0);
    assert_int_equal(value, 0x12345678);
    /* Half RAM, half chip. */
    assert_int_equal(x86_store(&f.cpu, 0x4fffc, 8, 0, 0x1122334455667788), 0);
    assert_int_equal(*ram_at(0x4fffc), 0x88);
    assert_int_equal(f.chip[0], 0x44);
    assert_int_equal(f.chip[3], 0x11);
    assert_int_equal(x86_load(&f.cpu, 0x4fffc, 8, 0, &value), 0);
    assert_true(value == 0x1122334455667788);
}

static void test_linear_long(void **state)
{
    uint64_t va;
    f.cpu.s.seg[X86_FS].base = 0x1000;
    f.cpu.s.seg[X86_DS].base = 0x2000; /* not looked at */
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0x10, 8, 0, false, &va), 0);
    assert_int_equal(va, 0x10);
    assert_int_equal(x86_linear(&f.cpu, X86_FS, 0x10, 8, 0, false, &va), 0);
    assert_int_equal(va, 0x1010);
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0x7ffffffffff8, 8, 0, false, &va), 0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0x7ffffffffff9, 8, 0, false, &va), X86_GP, 0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0x800000000000, 1, 0, true, &va), X86_SS_EXC, 0);
}

static void test_linear_legacy(void **state)
{
    uint64_t va;
    struct x86_segment *ds = &f.cpu.s.seg[X86_DS];
    f.cpu.s.seg[X86_CS].attr = 0xc09b; /* compatibility mode */
    *ds = (struct x86_segment){.base = 0xfffff000, .limit = 0x1fff, .attr = 0x4093};
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0x1ffc, 4, X86_ACCESS_WRITE, false, &va), 0);
    assert_int_equal(va, 0xffc); /* wraps at 4 GiB */
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0x1ffd, 4, 0, false, &va), X86_GP, 0);
    f.cpu.s.seg[X86_SS] = *ds;
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_SS, 0x2000, 1, 0, true, &va), X86_SS_EXC, 0);
    /* Expand-down: above the limit, up to 64 KiB or 4 GiB. */
    ds->attr = 0x4097;
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0x1fff, 1, 0, false, &va), X86_GP, 0);
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0x2000, 1, 0, false, &va), 0);
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0xfffffffc, 4, 0, false, &va), 0);
    ds->attr = 0x0097;
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0xfffc, 4, 0, false, &va), 0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0xfffd, 4, 0, false, &va), X86_GP, 0);
    /* Types: read-only data, execute-only and readable code; null. */
    ds->limit = UINT32_MAX;
    ds->attr = 0xc091;
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0, 4, 0, false, &va), 0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0, 4, X86_ACCESS_WRITE, false, &va), X86_GP, 0);
    ds->attr = 0xc099;
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0, 4, 0, false, &va), X86_GP, 0);
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0, 4, X86_ACCESS_FETCH, false, &va), 0);
    ds->attr = 0xc09b;
    assert_int_equal(x86_linear(&f.cpu, X86_DS, 0, 4, 0, false, &va), 0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0, 4, X86_ACCESS_WRITE, false, &va), X86_GP, 0);
    ds->attr = 0;
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0, 4, 0, false, &va), X86_GP, 0);
    /* Real mode looks at limits only. */
    x86_cpu_reset(&f.cpu);
    assert_int_equal(x86_linear(&f.cpu, X86_CS, 0xfff0, 16, X86_ACCESS_WRITE, false, &va), 0);
    assert_int_equal(va, 0xfffffff0);
    expect_exception(&f.cpu, x86_linear(&f.cpu, X86_DS, 0xffff, 2, 0, false, &va), X86_GP, 0);
}

static void test_flags(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t value;
    cpu->s.rflags = 2;
    assert_int_equal(x86_sti(cpu), 0);
    assert_true(cpu->s.sti_shadow);
    cpu->s.sti_shadow = false;
    assert_int_equal(x86_sti(cpu), 0);
    assert_false(cpu->s.sti_shadow); /* IF was set already */
    assert_int_equal(x86_popf(cpu, 8, UINT64_MAX), 0);
    assert_int_equal(cpu->s.rflags, 0x247fd7);
    cpu->cpl = 3;
    cpu->s.rflags = 2 | X86_IF | X86_RF;
    assert_int_equal(x86_popf(cpu, 8, X86_IOPL | X86_CF), 0);
    assert_int_equal(cpu->s.rflags, 2 | X86_IF | X86_CF); /* neither IF nor IOPL changed, RF is gone */
    assert_int_equal(x86_popf(cpu, 2, UINT64_MAX), 0);
    assert_int_equal(cpu->s.rflags & (X86_AC | X86_ID), 0);
    expect_exception(cpu, x86_cli(cpu), X86_GP, 0);
    expect_exception(cpu, x86_sti(cpu), X86_GP, 0);
    cpu->s.rflags |= X86_IOPL;
    assert_int_equal(x86_cli(cpu), 0);
    assert_int_equal(cpu->s.rflags & X86_IF, 0);

    /* Virtual-8086 mode: by IOPL alone. */
    cpu->s.rflags = 2 | X86_VM | X86_RF | X86_IF;
    expect_exception(cpu, x86_pushf(cpu, 2, &value), X86_GP, 0);
    expect_exception(cpu, x86_popf(cpu, 2, 0), X86_GP, 0);
    expect_exception(cpu, x86_cli(cpu), X86_GP, 0);
    cpu->s.rflags |= X86_IOPL;
    assert_int_equal(x86_pushf(cpu, 4, &value), 0);
    assert_int_equal(value, 2 | X86_IF | X86_IOPL);
    assert_int_equal(x86_popf(cpu, 4, 0), 0);
    assert_int_equal(cpu->s.rflags, 2 | X86_VM | X86_IOPL);

    cpu->s.rflags = 2;
    expect_exception(cpu, x86_clac_stac(cpu, true), X86_UD, 0);
    cpu->cpl = 0;
    assert_int_equal(x86_clac_stac(cpu, true), 0);
    assert_int_equal(cpu->s.rflags, 2 | X86_AC);
    assert_int_equal(x86_clac_stac(cpu, false), 0);
    assert_int_equal(cpu->s.rflags, 2);
}

static void test_io(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    const uint64_t tss = 0x20000;
    cpu->s.tr = (struct x86_segment){.selector = 0x40, .base = tss, .limit = 0x67 + 33, .attr = 0x8b};
    *(uint16_t *)(void *)ram_at(tss + 0x66) = 0x68;
    memset(ram_at(tss + 0x68), 0xff, 40);
    *ram_at(tss + 0x68 + 2) = 0x0f; /* ports 0x14 to 0x1b are allowed */
    *ram_at(tss + 0x68 + 3) = 0xf0;
    assert_int_equal(x86_check_io(cpu, 0xcf8, 4), 0);
    cpu->cpl = 3;
    assert_int_equal(x86_check_io(cpu, 0x14, 4), 0);
    assert_int_equal(x86_check_io(cpu, 0x16, 4), 0); /* across two bytes */
    expect_exception(cpu, x86_check_io(cpu, 0x13, 1), X86_GP, 0);
    expect_exception(cpu, x86_check_io(cpu, 0x13, 2), X86_GP, 0);
    expect_exception(cpu, x86_check_io(cpu, 0x1b, 2), X86_GP, 0);
    /* The second of the two bytes read must be within the limit as well. */
    memset(ram_at(tss + 0x68), 0, 40);
    assert_int_equal(x86_check_io(cpu, 8 * 31 + 7, 1), 0);
    expect_exception(cpu, x86_check_io(cpu, 8 * 32, 1), X86_GP, 0);
    cpu->s.rflags |= X86_IOPL;
    assert_int_equal(x86_check_io(cpu, 0xcf8, 4), 0);
    cpu->s.rflags |= X86_VM;
    expect_exception(cpu, x86_check_io(cpu, 0xcf8, 4), X86_GP, 0);
    cpu->s.rflags = 2;
    cpu->s.tr.attr = 0x83;
    expect_exception(cpu, x86_check_io(cpu, 0x14, 1), X86_GP, 0);
    cpu->s.tr.attr = 0x8b;
    cpu->s.tr.base = 0x60000;
    expect_exception(cpu, x86_check_io(cpu, 0x14, 1), X86_PF_EXC, 0);
}

static void test_bases(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t value = 0x123456789abc;
    cpu->s.seg[X86_GS].base = 1;
    cpu->s.kernel_gs_base = 2;
    assert_int_equal(x86_swapgs(cpu), 0);
    assert_int_equal(cpu->s.seg[X86_GS].base, 2);
    assert_int_equal(cpu->s.kernel_gs_base, 1);
    expect_exception(cpu, x86_fsgsbase(cpu, X86_FS, true, 8, &value), X86_UD, 0);
    cpu->s.cr4 |= X86_CR4_FSGSBASE | X86_CR4_UMIP;
    cpu->cpl = 3;
    assert_int_equal(x86_fsgsbase(cpu, X86_FS, true, 8, &value), 0);
    assert_int_equal(cpu->s.seg[X86_FS].base, 0x123456789abc);
    assert_int_equal(x86_fsgsbase(cpu, X86_FS, false, 4, &value), 0);
    assert_int_equal(value, 0x56789abc);
    value = 1ull << 63;
    expect_exception(cpu, x86_fsgsbase(cpu, X86_FS, true, 8, &value), X86_GP, 0);
    expect_exception(cpu, x86_swapgs(cpu), X86_GP, 0);
    expect_exception(cpu, x86_check_umip(cpu), X86_GP, 0);
    expect_exception(cpu, x86_check_cpl0(cpu), X86_GP, 0);
    cpu->s.seg[X86_CS].attr = 0xc0fb;
    expect_exception(cpu, x86_swapgs(cpu), X86_UD, 0);
    expect_exception(cpu, x86_fsgsbase(cpu, X86_FS, false, 4, &value), X86_UD, 0);
}

static void test_debug(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t value;
    assert_int_equal(x86_mov_to_dr(cpu, 4, 0xffffffff), 0); /* DR6 by its old name */
    assert_int_equal(cpu->s.dr6, 0xffffefff);
    assert_int_equal(x86_mov_to_dr(cpu, 7, 0), 0);
    assert_int_equal(cpu->s.dr7, 0x400);
    expect_exception(cpu, x86_mov_to_dr(cpu, 7, 1ull << 32), X86_GP, 0);
    cpu->s.cr4 |= X86_CR4_DE;
    expect_exception(cpu, x86_mov_from_dr(cpu, 5, &value), X86_UD, 0);
    expect_exception(cpu, x86_mov_from_dr(cpu, 8, &value), X86_UD, 0);
    cpu->s.dr7 |= 1 << 13;
    expect_exception(cpu, x86_mov_from_dr(cpu, 0, &value), X86_DB, 0);
    assert_int_equal(cpu->exc.dr6, 1 << 13);
    cpu->cpl = 3;
    expect_exception(cpu, x86_mov_from_dr(cpu, 0, &value), X86_GP, 0);

    cpu->s.dr[0] = 0x1000;
    cpu->s.dr[1] = 0x2003;
    cpu->s.dr[2] = 0x3008;
    cpu->s.dr[3] = 0x1000;
    /* 0: execution; 1: writes of 4 bytes (aligned down); 2: accesses of 8; 3: as 0, but disabled. */
    cpu->s.dr7 = 0x400 | 0x01 | 0x08 | 0x10 | 1u << 20 | 3u << 22 | 3u << 24 | 2u << 26;
    assert_int_equal(x86_match_breakpoint_exec(cpu, 0x1000), 1);
    assert_int_equal(x86_match_breakpoint_exec(cpu, 0x1001), 0);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x2000, 1, true), 2);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x2000, 1, false), 0);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x1ffd, 4, true), 2);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x1ffc, 4, true), 0);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x2004, 4, true), 0);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x300f, 1, false), 4);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x3010, 1, false), 0);
    assert_int_equal(x86_match_breakpoint_data(cpu, 0x1000, 8, true), 0);
}

static void test_reset(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    x86_cpu_reset(cpu);
    assert_int_equal(cpu->s.seg[X86_CS].base + cpu->s.rip, 0xfffffff0);
    assert_int_equal(cpu->s.cr0, 0x60000010);
    assert_int_equal(cpu->s.rflags, 2);
    assert_int_equal(cpu->s.gpr[X86_RDX], cpu->cpuid.leaves[1].eax);
    assert_false(cpu->s.wait_for_sipi);
    cpu->index = 1;
    x86_cpu_reset(cpu);
    assert_true(cpu->s.wait_for_sipi);
    assert_int_equal(x86_cpu_adopt(cpu, NULL), 0);
    assert_int_equal(cpu->cpl, 0);
}

static void test_adopt(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    struct err err = {0};
    x86_cpu_reset(cpu);
    cpu_enter_long_mode(cpu, 0x1000);
    assert_int_equal(x86_cpu_adopt(cpu, &err), 0);
    cpu->s.seg[X86_SS].attr = 0xc0f3;
    assert_int_equal(x86_cpu_adopt(cpu, &err), 0);
    assert_int_equal(cpu->cpl, 3);
    cpu->s.seg[X86_SS].attr = 0;
    assert_int_equal(x86_cpu_adopt(cpu, &err), 0);
    assert_int_equal(cpu->cpl, 0);

    const struct x86_state good = cpu->s;
#define REFUSED(change)                                                                                      \
    do {                                                                                                     \
        cpu->s = good;                                                                                       \
        change;                                                                                              \
        assert_int_equal(x86_cpu_adopt(cpu, &err), -EINVAL);                                                 \
    } while (0)
    REFUSED(cpu->s.cr0 &= ~(uint64_t)X86_CR0_PE);
    REFUSED(cpu->s.cr4 |= X86_CR4_VME);
    REFUSED(cpu->s.cr4 &= ~(uint64_t)X86_CR4_PAE);
    REFUSED(cpu->s.efer &= ~(uint64_t)X86_EFER_LMA);
    REFUSED(cpu->s.cr3 = 1ull << 63);
    REFUSED(cpu->s.rflags |= X86_VM);
    REFUSED(cpu->s.rflags = 0);
    REFUSED(cpu->s.rip = 1ull << 47);
    REFUSED(cpu->s.lstar = 1ull << 63);
    REFUSED(cpu->s.seg[X86_CS].attr |= X86_SEG_DB);
    REFUSED(cpu->s.xcr0 = 0);
    REFUSED(cpu->s.xsave[24 + 3] = 1);  /* MXCSR */
    REFUSED(cpu->s.xsave[512 + 2] = 6); /* AMX in XSTATE_BV */
    REFUSED(cpu->s.xsave[520] = 1);
    REFUSED(cpu->s.xsave[575] = 1);
    REFUSED(cpu->s.pat = 2);
    REFUSED(cpu->s.dr7 = 1ull << 40);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_sizes),         TEST(test_all_or_nothing), TEST(test_mmio),  TEST(test_linear_long),
        TEST(test_linear_legacy), TEST(test_flags),          TEST(test_io),    TEST(test_bases),
        TEST(test_debug),         TEST(test_reset),          TEST(test_adopt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
