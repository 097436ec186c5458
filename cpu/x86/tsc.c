/*
 * The time stamp counter and the performance counters, as instructions read them. Writes to the TSC are
 * msr.c's.
 *
 * Neighbours: ops->host_tsc gives the counter that the guest's offset is added to; its rate is the guest's.
 */
#include "cpu/x86/x86_int.h"

uint64_t x86_guest_tsc(struct x86_cpu *cpu)
{
    return cpu->ops->host_tsc(cpu) + cpu->s.tsc_offset;
}

int x86_rdtsc(struct x86_cpu *cpu, uint64_t *ret)
{
    if ((cpu->s.cr4 & X86_CR4_TSD) && cpu->cpl != 0) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    *ret = x86_guest_tsc(cpu);
    return 0;
}

/* CPUID announces no performance counters, so every index is invalid, whoever asks (SDM vol. 2B, RDPMC). */
int x86_rdpmc(struct x86_cpu *cpu, uint32_t index, uint64_t *ret)
{
    return x86_raise_error(cpu, X86_GP, 0);
}
