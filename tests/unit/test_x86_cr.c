/* cpu/x86/cr.c: reserved bits, consistency of modes, TLB calls, XCR0, INVLPG and INVPCID. */
#include "tests/unit/x86_cpu.h"

#define RAM_BYTES (1 * MiB)

struct fixture {
    struct mem *mem;
    struct x86_cpu cpu;
};

static struct fixture f;

static int set_up(void **state)
{
    assert_int_equal(mem_new(RAM_BYTES, &f.mem, NULL), 0);
    cpu_init(&f.cpu, f.mem);
    return 0;
}

static int tear_down(void **state)
{
    mem_free(f.mem);
    return 0;
}

static void expect_gp(int status)
{
    expect_exception(&f.cpu, status, X86_GP, 0);
    f.cpu.exc.vector = 0;
}

static void expect_ud(int status)
{
    assert_int_equal(status, -1);
    assert_int_equal(f.cpu.exc.vector, X86_UD);
    assert_false(f.cpu.exc.has_error);
    f.cpu.exc.vector = 0;
}

static void test_privilege(void **state)
{
    uint64_t value;
    cpu_enter_long_mode(&f.cpu, 0x1000);
    static const unsigned missing[] = {1, 5, 6, 7, 9, 15};
    for (unsigned i = 0; i < ARRAY_SIZE(missing); i++) {
        expect_ud(x86_mov_from_cr(&f.cpu, missing[i], &value));
        expect_ud(x86_mov_to_cr(&f.cpu, missing[i], 0));
    }
    f.cpu.cpl = 3;
    static const unsigned present[] = {0, 2, 3, 4, 8};
    for (unsigned i = 0; i < ARRAY_SIZE(present); i++) {
        expect_gp(x86_mov_from_cr(&f.cpu, present[i], &value));
        expect_gp(x86_mov_to_cr(&f.cpu, present[i], 0));
    }
    expect_gp(x86_clts(&f.cpu));
    expect_gp(x86_lmsw(&f.cpu, 1));
    expect_gp(x86_invlpg(&f.cpu, 0));
    expect_gp(x86_invpcid(&f.cpu, 2, 0, 0));
}

static void test_cr0(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t value;
    cpu->s.cr0 = X86_CR0_ET;
    expect_gp(x86_mov_to_cr(cpu, 0, X86_CR0_PG));
    expect_gp(x86_mov_to_cr(cpu, 0, X86_CR0_NW));
    /* Reserved bits are dropped, ET stays. */
    assert_int_equal(x86_mov_to_cr(cpu, 0, 0x1ffaffc0 | X86_CR0_PE), 0);
    assert_int_equal(cpu->s.cr0, X86_CR0_PE | X86_CR0_ET);
    assert_int_equal(calls.flushes, 1);
    /* LMSW sets PE and can't clear it. */
    assert_int_equal(x86_lmsw(cpu, X86_CR0_TS | X86_CR0_MP), 0);
    assert_int_equal(cpu->s.cr0 & 0xf, X86_CR0_PE | X86_CR0_TS | X86_CR0_MP);
    assert_int_equal(x86_clts(cpu), 0);
    assert_int_equal(cpu->s.cr0 & 0xf, X86_CR0_PE | X86_CR0_MP);
    cpu_enter_long_mode(cpu, 0x1000);
    expect_gp(x86_mov_to_cr(cpu, 0, 1ull << 32 | cpu->s.cr0));
    assert_int_equal(x86_mov_from_cr(cpu, 0, &value), 0);
    assert_int_equal(value, cpu->s.cr0);
    /* WP decides what cached translations permit. */
    calls.flushes = 0;
    assert_int_equal(x86_mov_to_cr(cpu, 0, cpu->s.cr0 | X86_CR0_TS), 0);
    assert_int_equal(calls.flushes, 0);
    assert_int_equal(x86_mov_to_cr(cpu, 0, cpu->s.cr0 & ~(uint64_t)X86_CR0_WP), 0);
    assert_int_equal(calls.flushes, 1);
    assert_int_equal(calls.flushes_keeping_global, 0);
}

static void test_long_mode(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    const uint64_t paging = X86_CR0_PE | X86_CR0_PG | X86_CR0_ET;
    cpu->s.cr0 = X86_CR0_PE | X86_CR0_ET;
    assert_int_equal(x86_wrmsr(cpu, 0xc0000080, X86_EFER_LME), 0);
    assert_false(x86_long_mode(cpu));
    expect_gp(x86_mov_to_cr(cpu, 0, paging)); /* no PAE */
    assert_int_equal(x86_mov_to_cr(cpu, 4, X86_CR4_PAE), 0);
    cpu->s.seg[X86_CS].attr |= X86_SEG_L;
    expect_gp(x86_mov_to_cr(cpu, 0, paging)); /* CS.L already */
    cpu->s.seg[X86_CS].attr &= (uint16_t)~X86_SEG_L;
    cpu->s.tr.attr = 0x83;
    expect_gp(x86_mov_to_cr(cpu, 0, paging)); /* 16-bit TSS */
    cpu->s.tr.attr = 0x8b;
    assert_int_equal(x86_mov_to_cr(cpu, 0, paging), 0);
    assert_true(x86_long_mode(cpu));
    assert_false(x86_code64(cpu));
    expect_gp(x86_mov_to_cr(cpu, 4, 0));      /* PAE holds long mode */
    expect_gp(x86_wrmsr(cpu, 0xc0000080, 0)); /* LME under PG */
    /* 64-bit code can't leave paging, compatibility mode can. */
    cpu->s.seg[X86_CS].attr |= X86_SEG_L;
    expect_gp(x86_mov_to_cr(cpu, 0, X86_CR0_PE));
    cpu->s.seg[X86_CS].attr &= (uint16_t)~X86_SEG_L;
    assert_int_equal(x86_mov_to_cr(cpu, 4, X86_CR4_PAE | X86_CR4_PCIDE), 0);
    expect_gp(x86_mov_to_cr(cpu, 0, X86_CR0_PE)); /* PCIDE needs long mode */
    assert_int_equal(x86_mov_to_cr(cpu, 4, X86_CR4_PAE), 0);
    assert_int_equal(x86_mov_to_cr(cpu, 0, X86_CR0_PE), 0);
    assert_int_equal(cpu->s.efer, X86_EFER_LME);
}

static void test_cr3(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    cpu->cpuid.phys_bits = 40;
    cpu_enter_long_mode(cpu, 0x1000);
    assert_int_equal(x86_mov_to_cr(cpu, 3, 0x2000), 0);
    assert_int_equal(calls.switches, 1);
    assert_int_equal(calls.switches_flushing, 1);
    expect_gp(x86_mov_to_cr(cpu, 3, 1ull << 40));
    expect_gp(x86_mov_to_cr(cpu, 3, 1ull << 63 | 0x3000)); /* no PCIDs: reserved */
    assert_int_equal(cpu->s.cr3, 0x2000);

    /* PCIDE may be set only with PCID 0 in CR3. */
    cpu->s.cr3 = 0x2001;
    expect_gp(x86_mov_to_cr(cpu, 4, cpu->s.cr4 | X86_CR4_PCIDE));
    cpu->s.cr3 = 0x2000;
    assert_int_equal(x86_mov_to_cr(cpu, 4, cpu->s.cr4 | X86_CR4_PCIDE), 0);
    assert_int_equal(x86_mov_to_cr(cpu, 3, 1ull << 63 | 0x3005), 0);
    assert_int_equal(cpu->s.cr3, 0x3005);
    assert_int_equal(calls.switches, 2);
    assert_int_equal(calls.switches_flushing, 1);
    assert_int_equal(x86_mov_to_cr(cpu, 3, 0x3006), 0);
    assert_int_equal(calls.switches_flushing, 2);
    /* That holds for setting it, not for keeping it. */
    assert_int_equal(x86_mov_to_cr(cpu, 4, cpu->s.cr4 | X86_CR4_TSD), 0);

    assert_int_equal(x86_invlpg(cpu, 0x7000), 0);
    assert_int_equal(calls.page_flushes, 1);
    assert_int_equal(calls.pcid, 6);
    assert_int_equal(x86_invlpg(cpu, 1ull << 50), 0); /* does nothing */
    assert_int_equal(calls.page_flushes, 1);
}

static void test_cr4(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    cpu_enter_long_mode(cpu, 0x1000);
    static const uint64_t reserved[] = {X86_CR4_VME, X86_CR4_PVI, X86_CR4_LA57, X86_CR4_PKE, 1 << 13,
                                        1 << 14,     1 << 23,     1 << 24,      1ull << 32,  1ull << 63};
    for (unsigned i = 0; i < ARRAY_SIZE(reserved); i++) {
        expect_gp(x86_mov_to_cr(cpu, 4, cpu->s.cr4 | reserved[i]));
    }
    static const uint64_t flushing[] = {X86_CR4_PGE, X86_CR4_SMEP, X86_CR4_SMAP, X86_CR4_PSE, X86_CR4_PCIDE};
    for (unsigned i = 0; i < ARRAY_SIZE(flushing); i++) {
        unsigned before = calls.flushes;
        assert_int_equal(x86_mov_to_cr(cpu, 4, cpu->s.cr4 ^ flushing[i]), 0);
        assert_int_equal(x86_mov_to_cr(cpu, 4, cpu->s.cr4 ^ flushing[i]), 0);
        assert_int_equal(calls.flushes, before + 2);
    }
    unsigned before = calls.flushes;
    assert_int_equal(x86_mov_to_cr(cpu, 4, cpu->s.cr4 | X86_CR4_TSD | X86_CR4_UMIP | X86_CR4_FSGSBASE), 0);
    assert_int_equal(calls.flushes, before);
    assert_int_equal(calls.flushes_keeping_global, 0);
}

/* PAE outside of long mode loads its four PDPTEs, which must be sound. */
static void test_pdptes(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t *pdpt = mem_ram_ptr(f.mem, GPA(0x1020), NULL);
    cpu->s.cr0 = X86_CR0_PE | X86_CR0_ET;
    cpu->s.cr4 = X86_CR4_PAE;
    cpu->s.cr3 = 0x1020;
    pdpt[3] = 0x2003;
    expect_gp(x86_mov_to_cr(cpu, 0, X86_CR0_PE | X86_CR0_PG));
    pdpt[3] = 0x2002; /* not present: anything goes */
    assert_int_equal(x86_mov_to_cr(cpu, 0, X86_CR0_PE | X86_CR0_PG), 0);
    pdpt[0] = 0x2001 | 1ull << 63;
    expect_gp(x86_mov_to_cr(cpu, 3, 0x1020));
    expect_gp(x86_mov_to_cr(cpu, 4, X86_CR4_PAE | X86_CR4_PGE));
    pdpt[0] = 0x2001;
    assert_int_equal(x86_mov_to_cr(cpu, 3, 0x1020), 0);
    expect_gp(x86_mov_to_cr(cpu, 3, RAM_BYTES)); /* all ones */
}

static void test_cr8(void **state)
{
    uint64_t value;
    cpu_enter_long_mode(&f.cpu, 0x1000);
    assert_int_equal(x86_mov_to_cr(&f.cpu, 8, 15), 0);
    assert_int_equal(calls.cr8, 15);
    expect_gp(x86_mov_to_cr(&f.cpu, 8, 16));
    calls.cr8 = 9;
    assert_int_equal(x86_mov_from_cr(&f.cpu, 8, &value), 0);
    assert_int_equal(value, 9);
}

static void test_xcr0(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    uint64_t value;
    cpu_enter_long_mode(cpu, 0x1000);
    expect_ud(x86_xsetbv(cpu, 0, 1));
    expect_ud(x86_xgetbv(cpu, 0, &value));
    cpu->cpuid.xcr0_mask = 0xe7;
    cpu->s.cr4 |= X86_CR4_OSXSAVE;
    static const uint64_t good[] = {0x1, 0x3, 0x7, 0xe7};
    static const uint64_t bad[] = {0x0, 0x2, 0x5, 0x27, 0x67, 0xe3, 0xf, 0x207, 0x600e7, 1ull << 63 | 7};
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(x86_xsetbv(cpu, 0, good[i]), 0);
        assert_int_equal(x86_xgetbv(cpu, 0, &value), 0);
        assert_int_equal(value, good[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        expect_gp(x86_xsetbv(cpu, 0, bad[i]));
    }
    assert_int_equal(cpu->s.xcr0, 0xe7);
    cpu->cpuid.xcr0_mask = 7;
    expect_gp(x86_xsetbv(cpu, 0, 0xe7));
    expect_gp(x86_xsetbv(cpu, 1, 1));
    expect_gp(x86_xgetbv(cpu, 2, &value));
    cpu->cpuid.fd1_eax = 0;
    expect_gp(x86_xgetbv(cpu, 1, &value));
    cpu->cpl = 3;
    expect_gp(x86_xsetbv(cpu, 0, 1));
    assert_int_equal(x86_xgetbv(cpu, 0, &value), 0);
}

static void test_invpcid(void **state)
{
    struct x86_cpu *cpu = &f.cpu;
    cpu_enter_long_mode(cpu, 0x1000);
    expect_gp(x86_invpcid(cpu, 4, 0, 0));
    expect_gp(x86_invpcid(cpu, 2, 0x1000, 0));
    expect_gp(x86_invpcid(cpu, 0, 5, 0)); /* PCIDs are off */
    expect_gp(x86_invpcid(cpu, 1, 5, 0));
    expect_gp(x86_invpcid(cpu, 0, 0, 1ull << 47));
    cpu->s.cr4 |= X86_CR4_PCIDE;
    assert_int_equal(x86_invpcid(cpu, 0, 5, 0x9000), 0);
    assert_int_equal(calls.page_flushes, 1);
    assert_int_equal(calls.pcid, 5);
    assert_int_equal(calls.va, 0x9000);
    assert_int_equal(x86_invpcid(cpu, 1, 6, 1ull << 47), 0);
    assert_int_equal(calls.pcid_flushes, 1);
    assert_int_equal(calls.pcid, 6);
    assert_int_equal(x86_invpcid(cpu, 2, 0, 0), 0);
    assert_int_equal(calls.flushes, 1);
    assert_int_equal(calls.flushes_keeping_global, 0);
    assert_int_equal(x86_invpcid(cpu, 3, 0, 0), 0);
    assert_int_equal(calls.flushes_keeping_global, 1);
    cpu->cpuid.f7_ebx &= ~BIT(10);
    expect_ud(x86_invpcid(cpu, 3, 0, 0));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_privilege), TEST(test_cr0), TEST(test_long_mode), TEST(test_cr3),     TEST(test_cr4),
        TEST(test_pdptes),    TEST(test_cr8), TEST(test_xcr0),      TEST(test_invpcid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
