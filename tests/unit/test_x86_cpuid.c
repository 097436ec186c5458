/* cpu/x86/cpuid.c: models, what must and must not be offered, the leaves that depend on state. */
#include <cpuid.h>
#include <errno.h>

#include "tests/unit/x86_cpu.h"

static struct x86_cpu cpu;

static int set_up(void **state)
{
    cpu_init(&cpu, NULL);
    return 0;
}

static int init_model(struct x86_cpuid *cpuid, const char *model, unsigned index, unsigned vcpus,
                      struct err *err)
{
    const struct engine_config config = {.vcpus = vcpus, .cpu_model = model, .tsc_hz = TEST_TSC_HZ};
    return x86_cpuid_init(cpuid, &config, index, err);
}

static void leaf(uint32_t number, uint32_t subleaf, uint32_t out[4])
{
    x86_cpuid(&cpu, number, subleaf, out);
}

static void test_models(void **state)
{
    struct err err = {0};
    assert_string_equal(x86_cpu_models()[0], "host");
    assert_string_equal(x86_cpu_models()[1], "x86-64-v2");
    assert_string_equal(x86_cpu_models()[2], "x86-64-v3");
    assert_null(x86_cpu_models()[3]);
    assert_int_equal(init_model(&cpu.cpuid, "x86-64-v9", 0, 1, &err), -EINVAL);
    assert_non_null(strstr(err.text, "x86-64-v9"));

    static const uint32_t v2_f1_ecx = BIT(0) | BIT(9) | BIT(13) | BIT(19) | BIT(20) | BIT(23);
    static const uint32_t v3_f1_ecx = BIT(12) | BIT(22) | BIT(26) | BIT(28) | BIT(29);
    static const uint32_t v3_f7_ebx = BIT(3) | BIT(5) | BIT(8);
    int status = init_model(&cpu.cpuid, "x86-64-v2", 0, 1, &err);
    if (status == 0) {
        assert_int_equal(cpu.cpuid.f1_ecx & (v2_f1_ecx | v3_f1_ecx), v2_f1_ecx);
        assert_int_equal(cpu.cpuid.f7_ebx & (v3_f7_ebx | BIT(16)), 0);
        assert_int_equal(cpu.cpuid.xcr0_mask, 3);
        assert_int_equal(cpu.cpuid.cr4_mask & X86_CR4_OSXSAVE, 0);
        assert_int_equal(cpu.cpuid.fd1_eax, 0);
    } else {
        assert_int_equal(status, -ENOTSUP);
    }
    status = init_model(&cpu.cpuid, "x86-64-v3", 0, 1, &err);
    if (status == 0) {
        assert_int_equal(cpu.cpuid.f1_ecx & (v2_f1_ecx | v3_f1_ecx), v2_f1_ecx | v3_f1_ecx);
        assert_int_equal(cpu.cpuid.f7_ebx & (v3_f7_ebx | BIT(16)), v3_f7_ebx);
        assert_true(cpu.cpuid.fe1_ecx & BIT(5));
        assert_int_equal(cpu.cpuid.xcr0_mask, 7);
        /* What the named model leaves out: AES, PCLMULQDQ, RDRAND, SHA. */
        assert_int_equal(cpu.cpuid.f1_ecx & (BIT(25) | BIT(1) | BIT(30)), 0);
        assert_int_equal(cpu.cpuid.f7_ebx & BIT(29), 0);
    } else {
        assert_int_equal(status, -ENOTSUP);
    }
}

static void test_features(void **state)
{
    uint32_t out[4], host[4];
    leaf(1, 0, out);
    /* Always: PCID, x2APIC (configured), TSC deadline, hypervisor. Never: MONITOR, VMX, SMX, PDCM. */
    const uint32_t always = BIT(17) | BIT(21) | BIT(24) | BIT(31);
    assert_int_equal(out[2] & always, always);
    assert_int_equal(out[2] & (BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15)), 0);
    assert_int_equal(out[3] & (BIT(1) | BIT(18) | BIT(21) | BIT(22) | BIT(28) | BIT(29) | BIT(31)), 0);
    assert_int_equal(out[3] & 0x078bfbfdu, 0x078bfbfdu);
    leaf(7, 0, out);
    assert_int_equal(out[1] & (BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20)),
                     BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20));
    assert_int_equal(out[1] & (BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(14) | BIT(15) | BIT(25)), 0);
    assert_int_equal(
        out[2] & (BIT(3) | BIT(4) | BIT(5) | BIT(7) | BIT(16) | BIT(22) | BIT(23) | BIT(28) | BIT(29)), 0);
    assert_int_equal(out[3] & (BIT(4) | BIT(5) | BIT(16) | BIT(19) | BIT(20) | BIT(22) | BIT(24) | BIT(25)),
                     0);
    assert_int_equal(out[3] & (BIT(26) | BIT(27) | BIT(29)), BIT(26) | BIT(27) | BIT(29));
    leaf(0x80000001, 0, out);
    const uint32_t ext = BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29);
    assert_int_equal(out[3] & ext, ext);
    assert_int_equal(out[2] & (BIT(2) | BIT(29)), 0);

    /* No instruction set that the host lacks. */
    __cpuid_count(7, 0, host[0], host[1], host[2], host[3]);
    leaf(7, 0, out);
    const uint32_t by_engine = BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20);
    assert_int_equal(out[1] & ~(host[1] | by_engine), 0);
    assert_int_equal(out[2] & ~(host[2] | BIT(2)), 0);
    __cpuid(1, host[0], host[1], host[2], host[3]);
    leaf(1, 0, out);
    assert_int_equal(out[2] & ~(host[2] | always), 0);
    assert_int_equal(out[0], host[0]);

    leaf(0xa, 0, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
    leaf(6, 0, out);
    assert_int_equal(out[0], 4);
    assert_int_equal(out[2], 0);
    leaf(0x80000007, 0, out);
    assert_int_equal(out[3], BIT(8));
}

static void test_xsave(void **state)
{
    uint32_t out[4], host[4];
    leaf(1, 0, out);
    if (!(out[2] & BIT(26))) {
        skip();
    }
    assert_int_equal(out[2] & BIT(27), 0);
    cpu.s.cr4 |= X86_CR4_OSXSAVE;
    leaf(1, 0, out);
    assert_true(out[2] & BIT(27));

    cpu.s.xcr0 = 1;
    leaf(0xd, 0, out);
    assert_int_equal(out[0], cpu.cpuid.xcr0_mask);
    assert_int_equal(out[0] & ~0xe7u, 0); /* neither AMX nor PKU */
    assert_int_equal(out[1], 576);
    assert_int_equal(out[3], 0);
    assert_true(out[2] <= X86_XSAVE_MAX);
    const uint32_t max = out[2];
    cpu.s.xcr0 = cpu.cpuid.xcr0_mask;
    leaf(0xd, 0, out);
    assert_int_equal(out[1], max);
    if (cpu.cpuid.xcr0_mask & 4) {
        cpu.s.xcr0 = 7;
        leaf(0xd, 0, out);
        assert_int_equal(out[1], 832);
        leaf(0xd, 2, out);
        assert_int_equal(out[0], 256);
        assert_int_equal(out[1], 576);
    }
    leaf(0xd, 1, out);
    assert_int_equal(out[0] & (BIT(3) | BIT(4)), 0); /* XSAVES, XFD */
    if (out[0] & BIT(1)) {
        cpu.s.xcr0 = cpu.cpuid.xcr0_mask;
        leaf(0xd, 1, out);
        /* Compacted: the components one behind the other. */
        assert_true(out[1] <= max);
        uint32_t sum = 576;
        for (unsigned i = 2; i < 8; i++) {
            __cpuid_count(0xd, i, host[0], host[1], host[2], host[3]);
            if (cpu.cpuid.xcr0_mask & BIT(i)) {
                sum = (host[2] & 2 ? (sum + 63) & ~63u : sum) + host[0];
            }
        }
        assert_int_equal(out[1], sum);
    }
    leaf(0xd, 17, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
}

static void test_topology(void **state)
{
    uint32_t out[4];
    assert_int_equal(init_model(&cpu.cpuid, "host", 4, 6, NULL), 0);
    cpu.index = 4;
    leaf(1, 0, out);
    assert_int_equal(out[1] >> 24, 4);
    assert_int_equal(out[1] >> 16 & 0xff, 8);
    assert_true(out[3] & BIT(28));
    assert_int_equal(out[2] & BIT(21), 0); /* x2APIC not configured */
    static const uint32_t numbers[] = {0xb, 0x1f};
    for (unsigned i = 0; i < (cpu.cpuid.intel ? 2 : 1); i++) {
        leaf(numbers[i], 0, out);
        assert_int_equal(out[0], 0);
        assert_int_equal(out[1], 1);
        assert_int_equal(out[2], 0x100);
        assert_int_equal(out[3], 4);
        leaf(numbers[i], 1, out);
        assert_int_equal(out[0], 3);
        assert_int_equal(out[1], 6);
        assert_int_equal(out[2], 0x201);
        leaf(numbers[i], 5, out);
        assert_int_equal(out[0] | out[1], 0);
        assert_int_equal(out[2], 5);
        assert_int_equal(out[3], 4);
    }
    leaf(4, 0, out);
    if (cpu.cpuid.intel && (out[0] & 0x1f)) {
        assert_int_equal(out[0] >> 26, 7);         /* cores */
        assert_int_equal(out[0] >> 14 & 0xfff, 0); /* L1 is one core's */
    }
}

/* Linux computes in kHz with 32 bits: crystal / 1000 * EBX / EAX. */
static void expect_tsc(uint64_t hz, uint64_t expected_crystal)
{
    uint32_t out[4];
    const struct engine_config config = {.vcpus = 1, .cpu_model = "host", .tsc_hz = hz};
    assert_int_equal(x86_cpuid_init(&cpu.cpuid, &config, 0, NULL), 0);
    leaf(0x40000010, 0, out);
    assert_int_equal(out[0], hz / 1000);
    assert_int_equal(out[1], 1000000);
    if (!cpu.cpuid.intel) {
        return;
    }
    leaf(0x15, 0, out);
    assert_int_equal(out[2], expected_crystal);
    assert_int_equal((uint64_t)out[2] * out[1] / out[0], hz);
    assert_int_equal(out[2] / 1000 * out[1] / out[0], hz / 1000);
    leaf(0x16, 0, out);
    assert_int_equal(out[0], (hz + 500000) / 1000000);
}

static void test_timing(void **state)
{
    expect_tsc(2600000000, 1000000000);
    expect_tsc(2593000000, 1000000000);
    expect_tsc(2593907000, 2593907000);
    expect_tsc(5000000000, 1000000000);
    expect_tsc(4900002000, 2450001000);
}

static void test_hypervisor_and_range(void **state)
{
    uint32_t out[4], top[4];
    leaf(0x40000000, 0, out);
    assert_int_equal(out[0], 0x40000010);
    assert_memory_equal(&out[1], "KVMKVMKVM\0\0\0", 12);
    leaf(0x40000001, 0, out);
    assert_int_equal(out[0], BIT(0) | BIT(1) | BIT(3) | BIT(24));
    leaf(0x40000100, 0, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
    leaf(0, 0, out);
    leaf(out[0], 0, top);
    leaf(0x12345678, 0, out);
    if (cpu.cpuid.intel) {
        assert_memory_equal(out, top, sizeof(out));
    } else {
        assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
    }
    leaf(0x80000008, 0, out);
    assert_int_equal(out[0] & 0xff, cpu.cpuid.phys_bits);
    assert_int_equal(out[0] >> 8, 48);
    assert_true(cpu.cpuid.count < X86_CPUID_LEAVES_MAX);
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_models),   TEST(test_features), TEST(test_xsave),
        TEST(test_topology), TEST(test_timing),   TEST(test_hypervisor_and_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
