/*
 * Local APICs, one per vCPU, and the bus between them: xAPIC (a memory page at 0xfee00000), x2APIC (MSRs
 * 0x800-0x8ff), the APIC timer with TSC deadline, inter-processor interrupts.
 *
 * Facts: Intel SDM vol. 3A chapter 10 ("Advanced Programmable Interrupt Controller"), section numbers as of
 * 2023.
 *
 * Threads: everything runs under mem_lock(), but for lapic_irq_pending() and lapic_bind_thread(). The xAPIC
 * page is the same address for all vCPUs: an access means the LAPIC that the calling thread has bound.
 */
#ifndef FONDA_DEV_IRQ_LAPIC_H
#define FONDA_DEV_IRQ_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"
#include "dev/irq/apic_msg.h"

#define LAPIC_BASE       0xfee00000u
#define LAPIC_MAX        255u        /* vCPUs of one machine */
#define LAPIC_TIMER_HZ   1000000000u /* the timer's input clock, before its divider: CPUID leaf 0x15 ECX */
#define MSR_APIC_BASE    0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC_FIRST 0x800u
#define MSR_X2APIC_LAST  0x8ffu

struct clock;
struct mem;
struct lapic;
struct lapic_bus;

struct lapic_bus_config {
    struct mem *mem;
    struct clock *clock;
    void (*eoi)(void *opaque, uint8_t vector); /* EOI of a level-triggered vector: ioapic_eoi */
    void *eoi_opaque;
};

/* What a LAPIC asks of its vCPU. All run under mem_lock(), on whichever thread caused the event. */
struct lapic_cpu {
    void *opaque;
    void (*irq_raise)(void *opaque); /* lapic_irq_pending() became true, or something was added */
    void (*nmi)(void *opaque);
    void (*init)(void *opaque); /* the LAPIC was reset already; the vCPU resets and waits for SIPI */
    void (*sipi)(void *opaque, uint8_t vector); /* ignore it unless waiting for one */
    int (*extint_ack)(void *opaque);            /* i8259_ack: the vector of the external controller */
    uint64_t (*tsc_read)(void *opaque);
};

struct lapic_config {
    uint32_t id;
    bool bsp;
    bool virtual_wire;  /* reset leaves what firmware does (MP spec 3.6.2.2): enabled, LINT0 ExtINT, LINT1 NMI
                         */
    bool x2apic;        /* CPUID offers x2APIC */
    unsigned phys_bits; /* MAXPHYADDR: address bits of IA32_APIC_BASE beyond it are reserved */
    uint64_t tsc_hz;
    struct lapic_cpu cpu;
};

struct lapic_bus *lapic_bus_new(const struct lapic_bus_config *config, struct err *err); /* NULL: see err */
void lapic_bus_free(struct lapic_bus *bus); /* after its LAPICs */

/* Sends a message to the LAPICs that it is addressed to; an apic_send_fn. */
bool lapic_bus_send(void *bus, const struct apic_msg *msg);

struct lapic *lapic_new(struct lapic_bus *bus, const struct lapic_config *config, struct err *err);
struct device *lapic_device(struct lapic *lapic);

/* The LAPIC that the calling vCPU thread reaches at LAPIC_BASE; NULL: none. */
void lapic_bind_thread(struct lapic *lapic);

/* Whether lapic_irq_ack would return a vector. Any thread, no lock. */
bool lapic_irq_pending(const struct lapic *lapic);

/* Takes the interrupt to deliver: its vector, from the external controller or from this LAPIC, or -1. */
int lapic_irq_ack(struct lapic *lapic);

/* CR8, the task priority class (SDM 10.8.6.1). */
uint64_t lapic_cr8_read(const struct lapic *lapic);
void lapic_cr8_write(struct lapic *lapic, uint64_t value);

/* IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC MSRs. Return 0, or -1 for #GP(0). */
int lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *ret_value);
int lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value);

/* The pins LINT0 and LINT1 (n 0 or 1); fits `struct irq_line`. The PIC's INTR goes to LINT0 of the boot
 * processor. */
void lapic_set_lint(void *lapic, unsigned n, bool level);

#endif
