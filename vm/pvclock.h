/*
 * KVM's paravirtual clock and hypercalls, as Linux and others already know them: Linux
 * Documentation/virt/kvm/x86/msr.rst, cpuid.rst, hypercalls.rst.
 *
 * The guest computes time from its TSC with the factors found in a structure in its memory. The TSC has a
 * constant rate and is the same on all vCPUs, so the structure is written once, when the guest announces it.
 *
 * Threads: the vCPU's own.
 */
#ifndef FONDA_VM_PVCLOCK_H
#define FONDA_VM_PVCLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/mem.h"

struct clock;

struct pvclock {
    struct mem *mem;
    struct clock *clock;
    uint64_t tsc_hz;
    uint64_t system_msr, wall_msr; /* as the guest wrote them */
};

/* Whether an MSR is one of ours. */
bool pvclock_msr(uint32_t msr);
/* 0, or -1 for #GP(0). tsc: the guest's TSC now. */
int pvclock_read(const struct pvclock *pv, uint32_t msr, uint64_t *ret_value);
int pvclock_write(struct pvclock *pv, uint32_t msr, uint64_t value, uint64_t tsc);
void pvclock_reset(struct pvclock *pv);
/* Tells a guest that uses the clock that its vCPU did not run for a while. Any thread, while the vCPU stands
 * still. */
void pvclock_stood_still(struct pvclock *pv);

/* mul and shift so that ns = ((tsc << shift) * mul) >> 32 (a negative shift goes right). */
void pvclock_scale(uint64_t tsc_hz, uint32_t *ret_mul, int8_t *ret_shift);

/* VMCALL. There is KVM_HC_CLOCK_PAIRING: the host's wall-clock time with the guest's TSC at that moment,
 * which Linux' ptp_kvm shows as a PTP clock. All others get -KVM_ENOSYS. tsc_offset: the guest's TSC less the
 * host's. */
uint64_t pvclock_hypercall(const struct pvclock *pv, uint64_t nr, const uint64_t args[4],
                           uint64_t tsc_offset);

#endif
