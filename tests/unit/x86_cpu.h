/*
 * A processor for the unit tests of cpu/x86: CPUID of model "host", counted TLB calls, a time stamp counter
 * and a platform that the test sets.
 */
#ifndef FONDA_TESTS_UNIT_X86_CPU_H
#define FONDA_TESTS_UNIT_X86_CPU_H

#include <string.h>

#include "base/util.h"
#include "cpu/x86/x86.h"
#include "tests/unit/unit.h"

#define TEST_TSC_HZ 2600000000ull

/* What the processor under test called. */
static struct {
    unsigned flushes, flushes_keeping_global, switches, switches_flushing, pcid_flushes, page_flushes;
    uint16_t pcid;
    uint64_t va;
    uint64_t host_tsc;
    uint64_t cr8;
    uint32_t msr;
    uint64_t msr_value;
    int msr_result;
} calls;

static void count_flush(struct x86_cpu *cpu, bool keep_global)
{
    calls.flushes++;
    calls.flushes_keeping_global += keep_global;
}

static void count_switch(struct x86_cpu *cpu, bool flush)
{
    calls.switches++;
    calls.switches_flushing += flush;
}

static void count_pcid(struct x86_cpu *cpu, uint16_t pcid)
{
    calls.pcid_flushes++;
    calls.pcid = pcid;
}

static void count_page(struct x86_cpu *cpu, uint64_t va, uint16_t pcid)
{
    calls.page_flushes++;
    calls.va = va;
    calls.pcid = pcid;
}

static uint64_t host_tsc_for_test(struct x86_cpu *cpu)
{
    return calls.host_tsc;
}

static uint64_t cr8_read(void *opaque)
{
    return calls.cr8;
}

static void cr8_write(void *opaque, uint64_t value)
{
    calls.cr8 = value;
}

static int msr_read(void *opaque, uint32_t msr, uint64_t *ret)
{
    calls.msr = msr;
    *ret = calls.msr_value;
    return calls.msr_result;
}

static int msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    calls.msr = msr;
    calls.msr_value = value;
    return calls.msr_result;
}

static const struct x86_cpu_ops test_ops = {
    .tlb_flush = count_flush,
    .tlb_switch = count_switch,
    .tlb_flush_pcid = count_pcid,
    .tlb_flush_page = count_page,
    .host_tsc = host_tsc_for_test,
};

/* A processor after reset; mem may be NULL. */
static inline void cpu_init(struct x86_cpu *cpu, struct mem *mem)
{
    const struct engine_config config = {
        .mem = mem, .vcpus = 1, .cpu_model = "host", .tsc_hz = TEST_TSC_HZ, .apic_x2apic = true};
    memset(cpu, 0, sizeof(*cpu));
    assert_int_equal(x86_cpuid_init(&cpu->cpuid, &config, 0, NULL), 0);
    cpu->mem = mem;
    cpu->ops = &test_ops;
    cpu->platform = (struct vcpu_platform){
        .cr8_read = cr8_read, .cr8_write = cr8_write, .msr_read = msr_read, .msr_write = msr_write};
    x86_cpu_reset(cpu);
    memset(&calls, 0, sizeof(calls));
}

/* 64-bit mode, CPL 0, paging on with CR3 as given. */
static inline void cpu_enter_long_mode(struct x86_cpu *cpu, uint64_t cr3)
{
    cpu->s.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_ET | X86_CR0_WP | X86_CR0_NE;
    cpu->s.cr4 = X86_CR4_PAE | X86_CR4_PGE;
    cpu->s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
    cpu->s.cr3 = cr3;
    cpu->s.seg[X86_CS] = (struct x86_segment){.selector = 0x10, .limit = UINT32_MAX, .attr = 0xa09b};
    cpu->s.seg[X86_SS] = (struct x86_segment){.selector = 0x18, .limit = UINT32_MAX, .attr = 0xc093};
    cpu->s.rip = 0x1000;
}

/* The exception that a helper returning -1 must have left. */
static inline void expect_exception(const struct x86_cpu *cpu, int status, enum x86_vector vector,
                                    uint32_t error)
{
    assert_int_equal(status, -1);
    assert_int_equal(cpu->exc.vector, vector);
    assert_int_equal(cpu->exc.error, error);
}

#endif
