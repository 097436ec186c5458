/*
 * The inside of a local APIC, shared by lapic.c (registers, priorities), lapic_timer.c and lapic_bus.c
 * (routing).
 */
#ifndef FONDA_DEV_IRQ_LAPIC_INT_H
#define FONDA_DEV_IRQ_LAPIC_INT_H

#include "base/clock.h"
#include "base/util.h"
#include "dev/irq/lapic.h"
#include "mem/mem.h"

#include <stdatomic.h>

/* Registers by number: MMIO offset / 16 = MSR - 0x800 (SDM tables 10-1 and 10-6). */
enum lapic_reg {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR_LO = 0x30,
    REG_ICR_HI = 0x31,
    REG_LVT_TIMER = 0x32,
    REG_LVT_ERROR = 0x37,
    REG_TIMER_INITIAL = 0x38,
    REG_TIMER_CURRENT = 0x39,
    REG_TIMER_DIVIDE = 0x3e,
    REG_SELF_IPI = 0x3f,
};

/* The local vector table in register order. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_MODE(lvt)       (((lvt) >> 8) & 7)
#define LVT_REMOTE_IRR      BIT(14)
#define LVT_LEVEL           BIT(15)
#define LVT_MASKED          BIT(16)
#define LVT_TIMER_MODE(lvt) (((lvt) >> 17) & 3)
#define TIMER_ONE_SHOT      0u
#define TIMER_PERIODIC      1u
#define TIMER_TSC_DEADLINE  2u

#define SVR_ENABLED          BIT(8)
#define SVR_FOCUS            BIT(9)
#define SVR_NO_EOI_BROADCAST BIT(12)

#define APIC_BASE_BSP     BIT64(8)
#define APIC_BASE_X2APIC  BIT64(10)
#define APIC_BASE_ENABLED BIT64(11)

/* SDM 10.5.3: error status. */
#define ESR_SEND_VECTOR    BIT(5)
#define ESR_RECEIVE_VECTOR BIT(6)
#define ESR_REGISTER       BIT(7)

struct lapic {
    struct device device;
    struct lapic_bus *bus;
    struct lapic_config config;

    _Atomic bool pending; /* written under mem_lock(), read anywhere */

    uint64_t apic_base;
    uint32_t tpr, ldr, dfr, svr;
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    bool lint[2];     /* levels of the pins */
    bool extint_sent; /* a message with mode ExtINT waits */

    struct clock_timer timer;
    uint32_t timer_initial;
    uint32_t timer_divide;  /* the register */
    uint64_t timer_ends_ns; /* when the count reaches zero; 0: it does not run */
    uint64_t tsc_deadline;
};

struct lapic_bus {
    struct lapic_bus_config config;
    unsigned count;
    unsigned last_lowest; /* who got the last lowest-priority message, so that equals take turns */
    struct lapic *lapics[LAPIC_MAX];
};

static inline bool lapic_hw_enabled(const struct lapic *lapic)
{
    return lapic->apic_base & APIC_BASE_ENABLED;
}

static inline bool lapic_x2apic(const struct lapic *lapic)
{
    return lapic->apic_base & APIC_BASE_X2APIC;
}

static inline bool lapic_sw_enabled(const struct lapic *lapic)
{
    return lapic_hw_enabled(lapic) && (lapic->svr & SVR_ENABLED);
}

/* lapic.c */
uint8_t lapic_ppr(const struct lapic *lapic);
uint32_t lapic_ldr(const struct lapic *lapic);
void lapic_request(struct lapic *lapic, uint8_t vector, bool level);
void lapic_error(struct lapic *lapic, uint32_t esr_bit);
bool lapic_accept(struct lapic *lapic, const struct apic_msg *msg);
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset);
void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint32_t value);

/* lapic_timer.c */
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_reset(struct lapic *lapic);
void lapic_timer_state(struct lapic *lapic, struct state *s);
void lapic_timer_write_initial(struct lapic *lapic, uint32_t value);
void lapic_timer_write_divide(struct lapic *lapic, uint32_t value);
void lapic_timer_write_lvt(struct lapic *lapic, uint32_t value);
uint32_t lapic_timer_current(const struct lapic *lapic);
uint64_t lapic_timer_read_deadline(const struct lapic *lapic);
void lapic_timer_write_deadline(struct lapic *lapic, uint64_t value);

/* lapic_bus.c */
void lapic_send_icr(struct lapic *lapic);

#endif
