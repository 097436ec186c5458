/*
 * What the files of cpu/kvm share: the engine and its vCPUs.
 *
 * Neighbours: engine.c (life cycle, memory, the table of operations), probe.c (can this host do it), cpuid.c
 * (what the guest sees), vcpu.c (run loop and exits), state.c (architectural state in and out).
 *
 * Invariants
 *  1. The kernel has no interrupt controller for this machine: the LAPIC, IOAPIC and PICs are devices.
 *     Interrupts reach the guest by KVM_INTERRUPT after platform.irq_ack, and the task priority travels in
 *     kvm_run's cr8 both ways.
 *  2. A vCPU's ioctls run on its own thread. Other threads touch only the atomics and
 *     kvm_run->immediate_exit.
 *  3. Between KVM_RUN calls the kernel may hold an unfinished I/O instruction or an event that it has not
 *     yet delivered; kvm_settle() finishes both, so that get_state never loses them.
 */
#ifndef FONDA_CPU_KVM_KVM_INT_H
#define FONDA_CPU_KVM_KVM_INT_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "cpu/kvm/kvm.h"
#include "cpu/x86/state.h"

#define KVM_CPUID_MAX  256 /* entries; the kernel's own limit (KVM_MAX_CPUID_ENTRIES) */
#define KVM_LAST_EXITS 32

struct engine {
    struct engine_config config;
    int dev_fd, vm_fd;
    size_t run_bytes; /* of the shared kvm_run area */
    bool has_tsc_offset;
};

enum kvm_count {
    KVM_COUNT_IO,
    KVM_COUNT_MMIO,
    KVM_COUNT_MSR,
    KVM_COUNT_HLT,
    KVM_COUNT_WINDOW,
    KVM_COUNT_TPR,
    KVM_COUNT_SIGNAL,
    KVM_COUNT_DEBUG,
    KVM_COUNT_SHUTDOWN,
    KVM_COUNT_OTHER,
    KVM_COUNT_IRQ,
    KVM_COUNT_NMI,
    KVM_COUNT_GUEST_NS,
    KVM_COUNT_EXIT_NS,
    KVM_COUNTS,
};

/* One line of the report on a dead guest. */
struct kvm_exit_note {
    uint32_t reason;
    bool write;
    uint32_t size;
    uint64_t address; /* port, guest-physical address or MSR */
    uint64_t value;
};

struct vcpu {
    struct engine *engine;
    unsigned index;
    struct vcpu_platform platform;
    int fd;
    struct kvm_run *run;

    bool halted; /* in HLT; the kernel keeps no such state without its own interrupt controller */
    bool wait_for_sipi;
    struct kvm_guest_debug debug; /* what a debugger asked for */
    struct engine_point points[4];

    /* Shared with other threads. */
    atomic_bool kicked;
    atomic_bool nmi_wanted;
    atomic_int tid; /* thread inside run(), 0 outside */
    _Atomic uint64_t counts[KVM_COUNTS];

    struct kvm_exit_note notes[KVM_LAST_EXITS];
    uint64_t notes_made;
};

/* probe.c. 0, or why not; with 0, err may hold a remark (code 0) on what to expect. */
int kvm_probe(struct err *err);
/* Opens /dev/kvm and checks version and capabilities. Returns the descriptor or a negative errno. */
int kvm_open(struct err *err);

/* cpuid.c: gives the vCPU its CPUID leaves. -EINVAL unknown model, -ENOTSUP a feature of the model is
 * missing. */
int kvm_cpuid_set(struct vcpu *vcpu, struct err *err);

/* vcpu.c */
int kvm_vcpu_run(struct vcpu *vcpu, struct vcpu_exit *ret_exit);
void kvm_vcpu_kick(struct vcpu *vcpu);
void kvm_vcpu_irq_raise(struct vcpu *vcpu);
void kvm_vcpu_nmi(struct vcpu *vcpu);
unsigned kvm_vcpu_last_exits(struct vcpu *vcpu, char *buf, unsigned size);
/* Finishes what the kernel has half done for this vCPU. 0, or a negative errno. */
int kvm_settle(struct vcpu *vcpu);
/* Makes the signal that interrupts KVM_RUN harmless for this process. */
int kvm_signal_setup(void);

/* debug.c */
int kvm_set_debug(struct vcpu *vcpu, const struct engine_debug *debug);
int kvm_walk(struct vcpu *vcpu, uint64_t va, gpa_t *ret_gpa);
/* What KVM_EXIT_DEBUG tells; false: no debugger asked for it. */
bool kvm_debug_exit(struct vcpu *vcpu, struct engine_stop *ret_stop);

/* state.c */
int kvm_get_state(struct vcpu *vcpu, struct x86_state *ret_state);
int kvm_set_state(struct vcpu *vcpu, const struct x86_state *state);
/* Tells the kernel the machine's IA32_APIC_BASE, on which CPUID's APIC bit depends. */
int kvm_sync_apic_base(struct vcpu *vcpu);

#endif
