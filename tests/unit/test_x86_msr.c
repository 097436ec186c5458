/* cpu/x86/msr.c and tsc.c: what exists, what raises, what sticks. */
#include "cpu/x86/msr.h"
#include "tests/unit/x86_cpu.h"

static struct x86_cpu cpu;

static int set_up(void **state)
{
    cpu_init(&cpu, NULL);
    cpu_enter_long_mode(&cpu, 0x1000);
    return 0;
}

static void expect_write_gp(uint32_t msr, uint64_t value)
{
    struct x86_state before = cpu.s;
    expect_exception(&cpu, x86_wrmsr(&cpu, msr, value), X86_GP, 0);
    assert_true(cpu.exc.has_error);
    assert_memory_equal(&before, &cpu.s, sizeof(before));
}

static void expect_read_gp(uint32_t msr)
{
    uint64_t value = 42;
    expect_exception(&cpu, x86_rdmsr(&cpu, msr, &value), X86_GP, 0);
    assert_int_equal(value, 42);
}

static uint64_t read_ok(uint32_t msr)
{
    uint64_t value;
    assert_int_equal(x86_rdmsr(&cpu, msr, &value), 0);
    return value;
}

static void write_ok(uint32_t msr, uint64_t value)
{
    assert_int_equal(x86_wrmsr(&cpu, msr, value), 0);
}

static void test_privilege_and_unknown(void **state)
{
    static const uint32_t unknown[] = {0x0,         0x9,        MSR_FLUSH_CMD, MSR_MISC_FEATURES_ENABLES,
                                       MSR_MCG_CTL, 0xcf,       0x122,         0x400,
                                       0x210,       0x25a,      0x480,         0xda0,
                                       0xc0000104,  0xc0010114, 0x40000000,    0xffffffffu};
    for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++) {
        expect_read_gp(unknown[i]);
        expect_write_gp(unknown[i], 0);
    }
    cpu.cpl = 3;
    expect_read_gp(MSR_LSTAR);
    expect_write_gp(MSR_LSTAR, 0);
}

static void test_canonical(void **state)
{
    static const uint32_t numbers[] = {MSR_LSTAR,          MSR_CSTAR,        MSR_FS_BASE,     MSR_GS_BASE,
                                       MSR_KERNEL_GS_BASE, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP};
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
        write_ok(numbers[i], 0xffff800000000000 + i);
        assert_int_equal(read_ok(numbers[i]), 0xffff800000000000 + i);
        expect_write_gp(numbers[i], 0x0000800000000000);
    }
    assert_int_equal(cpu.s.lstar, 0xffff800000000000);
    assert_int_equal(cpu.s.seg[X86_FS].base, 0xffff800000000002);
    assert_int_equal(cpu.s.kernel_gs_base, 0xffff800000000004);
}

static void test_efer(void **state)
{
    /* LMA can't be written, reserved bits raise, NXE flushes. */
    write_ok(MSR_EFER, cpu.s.efer & ~(uint64_t)X86_EFER_LMA);
    assert_true(x86_long_mode(&cpu));
    expect_write_gp(MSR_EFER, cpu.s.efer ^ X86_EFER_LME);
    expect_write_gp(MSR_EFER, cpu.s.efer | 1 << 12);
    expect_write_gp(MSR_EFER, cpu.s.efer | 2);
    assert_int_equal(calls.flushes, 0);
    write_ok(MSR_EFER, cpu.s.efer ^ X86_EFER_NXE);
    assert_int_equal(calls.flushes, 1);
}

static void test_tsc(void **state)
{
    uint64_t value;
    calls.host_tsc = 1000;
    assert_int_equal(read_ok(MSR_TSC), 1000);
    write_ok(MSR_TSC, 5000);
    calls.host_tsc = 1010;
    assert_int_equal(read_ok(MSR_TSC), 5010);
    assert_int_equal(read_ok(MSR_TSC_ADJUST), 4000);
    write_ok(MSR_TSC_ADJUST, 0);
    assert_int_equal(read_ok(MSR_TSC), 1010);
    assert_int_equal(x86_rdtsc(&cpu, &value), 0);
    assert_int_equal(value, 1010);
    cpu.s.cr4 |= X86_CR4_TSD;
    assert_int_equal(x86_rdtsc(&cpu, &value), 0);
    cpu.cpl = 3;
    expect_exception(&cpu, x86_rdtsc(&cpu, &value), X86_GP, 0);
    cpu.s.cr4 &= ~(uint64_t)X86_CR4_TSD;
    assert_int_equal(x86_rdtsc(&cpu, &value), 0);
    cpu.cpl = 0;
    expect_exception(&cpu, x86_rdpmc(&cpu, 0, &value), X86_GP, 0);
    write_ok(MSR_TSC_AUX, 7);
    assert_int_equal(cpu.s.tsc_aux, 7);
    expect_write_gp(MSR_TSC_AUX, 1ull << 32);
}

static void test_memory_types(void **state)
{
    assert_int_equal(read_ok(MSR_MTRR_CAP), 0x508);
    expect_write_gp(MSR_MTRR_CAP, 0x508);
    write_ok(MSR_PAT, 0x0407050600070106);
    assert_int_equal(cpu.s.pat, 0x0407050600070106);
    expect_write_gp(MSR_PAT, 0x0200000000000000);
    expect_write_gp(MSR_PAT, 0x03);
    expect_write_gp(MSR_PAT, 0x08);
    write_ok(MSR_MTRR_DEF_TYPE, 0xc06);
    expect_write_gp(MSR_MTRR_DEF_TYPE, 0x1c06);
    expect_write_gp(MSR_MTRR_DEF_TYPE, 0xc07);
    for (unsigned i = 0; i < 8; i++) {
        write_ok(MSR_MTRR_PHYS_BASE0 + 2 * i, (uint64_t)i << 20 | 6);
        write_ok(MSR_MTRR_PHYS_BASE0 + 2 * i + 1, 0xfff00800);
        assert_int_equal(cpu.s.mtrr_base[i], (uint64_t)i << 20 | 6);
        assert_int_equal(read_ok(MSR_MTRR_PHYS_BASE0 + 2 * i + 1), 0xfff00800);
    }
    expect_write_gp(MSR_MTRR_PHYS_BASE0, 0x106);
    expect_write_gp(MSR_MTRR_PHYS_BASE0, 2);
    expect_write_gp(MSR_MTRR_PHYS_BASE0, 1ull << cpu.cpuid.phys_bits);
    expect_write_gp(MSR_MTRR_PHYS_MASK7, 0x400);
    static const uint32_t fixed[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                     0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
    for (unsigned i = 0; i < ARRAY_SIZE(fixed); i++) {
        write_ok(fixed[i], 0x0606060606060600 + (i & 1));
        assert_int_equal(cpu.s.mtrr_fixed[i], 0x0606060606060600 + (i & 1));
        assert_int_equal(read_ok(fixed[i]), cpu.s.mtrr_fixed[i]);
        expect_write_gp(fixed[i], 0x0700000000000000);
    }
}

static void test_speculation(void **state)
{
    const uint64_t cap = read_ok(MSR_ARCH_CAPABILITIES);
    static const unsigned set[] = {0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62};
    uint64_t expected = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(set); i++) {
        expected |= 1ull << set[i];
    }
    assert_int_equal(cap, expected);
    expect_write_gp(MSR_ARCH_CAPABILITIES, cap);
    write_ok(MSR_SPEC_CTRL, 3);
    assert_int_equal(read_ok(MSR_SPEC_CTRL), 3);
    expect_write_gp(MSR_SPEC_CTRL, 4);
    write_ok(MSR_PRED_CMD, 1);
    expect_write_gp(MSR_PRED_CMD, 2);
    expect_read_gp(MSR_PRED_CMD);
    cpu.cpuid.f7_edx = 0;
    expect_read_gp(MSR_SPEC_CTRL);
    expect_read_gp(MSR_ARCH_CAPABILITIES);
    expect_write_gp(MSR_PRED_CMD, 1);
}

static void test_others(void **state)
{
    write_ok(MSR_UCODE_REV, 0);
    assert_int_equal(read_ok(MSR_UCODE_REV) >> 32, 1);
    expect_write_gp(MSR_SFMASK, 1ull << 32);
    write_ok(MSR_SFMASK, 0x47700);
    assert_int_equal(cpu.s.sfmask, 0x47700);
    write_ok(MSR_DEBUGCTL, 3);
    assert_int_equal(read_ok(MSR_DEBUGCTL), 0);
    expect_write_gp(MSR_DEBUGCTL, 4);
    assert_int_equal(read_ok(MSR_MCG_CAP), 0);
    expect_write_gp(MSR_MCG_STATUS, 8);
    write_ok(MSR_MCG_STATUS, 0);

    cpu.cpuid.intel = true;
    assert_int_equal(read_ok(MSR_FEATURE_CONTROL), 1);
    expect_write_gp(MSR_FEATURE_CONTROL, 5);
    assert_int_equal(read_ok(MSR_MISC_ENABLE), 0x1801);
    write_ok(MSR_MISC_ENABLE, 0x1800);
    expect_write_gp(MSR_MISC_ENABLE, 1ull << 34);
    expect_read_gp(MSR_HWCR);
    cpu.cpuid.intel = false;
    expect_read_gp(MSR_MISC_ENABLE);
    assert_int_equal(read_ok(MSR_HWCR), 1 << 24);
    write_ok(MSR_DE_CFG, 0);
    assert_int_equal(read_ok(MSR_DE_CFG), 2);
}

static void test_platform(void **state)
{
    static const uint32_t numbers[] = {MSR_APIC_BASE,   MSR_TSC_DEADLINE,  MSR_X2APIC_FIRST,
                                       MSR_X2APIC_LAST, MSR_KVM_FIRST + 1, MSR_KVM_WALL_CLOCK_OLD};
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++) {
        write_ok(numbers[i], i);
        assert_int_equal(calls.msr, numbers[i]);
        assert_int_equal(read_ok(numbers[i]), i);
    }
    calls.msr_result = -1;
    expect_write_gp(MSR_APIC_BASE, 1);
    expect_read_gp(MSR_APIC_BASE);
    calls.msr_result = 0;
    cpu.cpuid.f1_ecx &= ~BIT(21);
    expect_read_gp(MSR_X2APIC_FIRST);
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_privilege_and_unknown), TEST(test_canonical),   TEST(test_efer),   TEST(test_tsc),
        TEST(test_memory_types),          TEST(test_speculation), TEST(test_others), TEST(test_platform),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
