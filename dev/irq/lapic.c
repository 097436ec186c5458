/*
 * One local APIC: registers, priorities, local vector table. See lapic.h; the timer is in lapic_timer.c, the
 * routing of messages in lapic_bus.c.
 *
 * The way of an interrupt: lapic_request() sets IRR -> lapic_refresh() finds it above the processor priority,
 * sets `pending` and raises the vCPU -> lapic_irq_ack() moves it to ISR -> a write to EOI ends it.
 *
 * Invariants
 *  1. `pending` is up to date whenever mem_lock() is free: whoever changes IRR, ISR, TPR, LINT0 or the
 *     enables ends with lapic_refresh().
 *  2. While the APIC is disabled in software, all LVT entries are masked (SDM 10.4.7.2).
 */
#include "base/state.h"
#include "dev/irq/lapic_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* SDM 10.4.8: version 0x14, six LVT entries, EOI-broadcast suppression. */
#define LAPIC_VERSION (0x14u | (LVT_COUNT - 1) << 16 | BIT(24))

/* Writable bits of the LVT entries (SDM figures 10-8, 10-13, 10-14). */
static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static int highest_bit(const uint32_t bits[8])
{
    for (int i = 7; i >= 0; i--) {
        if (bits[i]) {
            return i * 32 + 31 - __builtin_clz(bits[i]);
        }
    }
    return -1;
}

static inline bool test_vector(const uint32_t bits[8], unsigned vector)
{
    return bits[vector >> 5] & BIT(vector & 31);
}

static inline void put_vector(uint32_t bits[8], unsigned vector, bool on)
{
    bits[vector >> 5] = on ? bits[vector >> 5] | BIT(vector & 31) : bits[vector >> 5] & ~BIT(vector & 31);
}

/* SDM 10.8.3.1, "Task and Processor Priorities". */
uint8_t lapic_ppr(const struct lapic *lapic)
{
    int in_service = highest_bit(lapic->isr);
    uint32_t isrv = in_service < 0 ? 0 : (uint32_t)in_service;
    return (uint8_t)((lapic->tpr >> 4) >= (isrv >> 4) ? lapic->tpr : isrv & 0xf0);
}

/* The request that outranks the processor priority, or -1. */
static int deliverable(const struct lapic *lapic)
{
    int vector = highest_bit(lapic->irr);
    if (vector < 0 || !lapic_hw_enabled(lapic)) {
        return -1;
    }
    return (vector >> 4) > (lapic_ppr(lapic) >> 4) ? vector : -1;
}

/* An interrupt of the external controller: by LINT0, which is INTR while the APIC is off, or by a message. */
static bool extint_pending(const struct lapic *lapic)
{
    if (!lapic_hw_enabled(lapic)) {
        return lapic->lint[0];
    }
    uint32_t lvt = lapic->lvt[LVT_LINT0];
    return lapic->extint_sent || (lapic->lint[0] && !(lvt & LVT_MASKED) && LVT_MODE(lvt) == APIC_MODE_EXTINT);
}

static void lapic_refresh(struct lapic *lapic, bool added)
{
    bool pending = extint_pending(lapic) || deliverable(lapic) >= 0;
    bool was = atomic_load_explicit(&lapic->pending, memory_order_relaxed);
    if (pending != was) {
        /* Pairs with the acquire in lapic_irq_pending(). */
        atomic_store_explicit(&lapic->pending, pending, memory_order_release);
    }
    if (pending && (!was || added)) {
        lapic->config.cpu.irq_raise(lapic->config.cpu.opaque);
    }
}

bool lapic_irq_pending(const struct lapic *lapic)
{
    return atomic_load_explicit(&lapic->pending, memory_order_acquire);
}

void lapic_request(struct lapic *lapic, uint8_t vector, bool level)
{
    if (vector < 16) {
        lapic_error(lapic, ESR_RECEIVE_VECTOR);
        return;
    }
    put_vector(lapic->irr, vector, true);
    put_vector(lapic->tmr, vector, level);
    lapic_refresh(lapic, true);
}

/* Errors gather until the guest writes ESR, which shows them (SDM 10.5.3). */
void lapic_error(struct lapic *lapic, uint32_t esr_bit)
{
    uint32_t lvt = lapic->lvt[LVT_ERROR];
    bool first = !(lapic->esr_pending & esr_bit);
    lapic->esr_pending |= esr_bit;
    if (first && !(lvt & LVT_MASKED)) {
        lapic_request(lapic, (uint8_t)lvt, false); /* ends at the second call: the bit is set now */
    }
}

int lapic_irq_ack(struct lapic *lapic)
{
    int vector = -1;
    if (extint_pending(lapic)) {
        lapic->extint_sent = false;
        vector = lapic->config.cpu.extint_ack(lapic->config.cpu.opaque); /* may move LINT0, and so refresh */
    } else {
        vector = deliverable(lapic);
        if (vector >= 0) {
            put_vector(lapic->irr, (unsigned)vector, false);
            put_vector(lapic->isr, (unsigned)vector, true);
        }
    }
    lapic_refresh(lapic, false);
    return vector;
}

static void lint_update(struct lapic *lapic, unsigned n, bool rising)
{
    uint32_t *lvt = &lapic->lvt[LVT_LINT0 + n];
    if (!lapic_hw_enabled(lapic)) {
        if (n == 1 && rising) {
            lapic->config.cpu.nmi(
                lapic->config.cpu.opaque); /* LINT1 is NMI while the APIC is off (SDM 10.4.3) */
        }
    } else if (lapic->lint[n] && !(*lvt & LVT_MASKED)) {
        switch (LVT_MODE(*lvt)) {
        case APIC_MODE_FIXED:
            /* Only LINT0 can be level-triggered (SDM 10.5.1, "Trigger Mode"). */
            if (n == 0 && (*lvt & LVT_LEVEL)) {
                if (!(*lvt & LVT_REMOTE_IRR)) {
                    *lvt |= LVT_REMOTE_IRR;
                    lapic_request(lapic, (uint8_t)*lvt, true);
                }
            } else if (rising) {
                lapic_request(lapic, (uint8_t)*lvt, false);
            }
            break;
        case APIC_MODE_NMI:
            if (rising) {
                lapic->config.cpu.nmi(lapic->config.cpu.opaque);
            }
            break;
        default: break; /* ExtINT is looked at by extint_pending() */
        }
    }
    lapic_refresh(lapic, false);
}

void lapic_set_lint(void *opaque, unsigned n, bool level)
{
    struct lapic *lapic = opaque;
    if (n > 1) {
        return;
    }
    bool rising = level && !lapic->lint[n];
    lapic->lint[n] = level;
    lint_update(lapic, n, rising);
}

static void lapic_eoi(struct lapic *lapic)
{
    int vector = highest_bit(lapic->isr);
    if (vector < 0) {
        return;
    }
    put_vector(lapic->isr, (unsigned)vector, false);
    if (test_vector(lapic->tmr, (unsigned)vector)) {
        uint32_t *lvt = &lapic->lvt[LVT_LINT0];
        if ((*lvt & LVT_REMOTE_IRR) && (*lvt & 0xff) == (uint32_t)vector) {
            *lvt &= ~LVT_REMOTE_IRR;
            lint_update(lapic, 0, false);
        }
        if (!(lapic->svr & SVR_NO_EOI_BROADCAST) && lapic->bus->config.eoi) {
            lapic->bus->config.eoi(lapic->bus->config.eoi_opaque, (uint8_t)vector);
        }
    }
    lapic_refresh(lapic, false);
}

/* SDM 10.4.7.1, "Local APIC State After Power-Up or Reset". IA32_APIC_BASE and the pins stay. */
static void registers_reset(struct lapic *lapic)
{
    lapic->tpr = 0;
    lapic->ldr = 0;
    lapic->dfr = UINT32_MAX;
    lapic->svr = 0xff;
    memset(lapic->isr, 0, sizeof(lapic->isr));
    memset(lapic->tmr, 0, sizeof(lapic->tmr));
    memset(lapic->irr, 0, sizeof(lapic->irr));
    lapic->esr = 0;
    lapic->esr_pending = 0;
    lapic->icr = 0;
    lapic->extint_sent = false;
    for (unsigned i = 0; i < LVT_COUNT; i++) {
        lapic->lvt[i] = LVT_MASKED;
    }
    lapic_timer_reset(lapic);
}

bool lapic_accept(struct lapic *lapic, const struct apic_msg *msg)
{
    const struct lapic_cpu *cpu = &lapic->config.cpu;
    if (!lapic_hw_enabled(lapic)) {
        return false;
    }
    switch (msg->mode) {
    case APIC_MODE_FIXED:
    case APIC_MODE_LOWEST:
        if (!lapic_sw_enabled(lapic)) {
            return false;
        }
        lapic_request(lapic, msg->vector, msg->level);
        return msg->vector >= 16;
    case APIC_MODE_NMI: cpu->nmi(cpu->opaque); return true;
    case APIC_MODE_INIT:
        registers_reset(lapic);
        lapic_refresh(lapic, false);
        cpu->init(cpu->opaque);
        return true;
    case APIC_MODE_STARTUP: cpu->sipi(cpu->opaque, msg->vector); return true;
    case APIC_MODE_EXTINT:
        lapic->extint_sent = true;
        lapic_refresh(lapic, true);
        return true;
    default: return false; /* SMI: there is no system management mode */
    }
}

/* In x2APIC mode the logical ID follows from the ID (SDM 10.12.10.2). */
uint32_t lapic_ldr(const struct lapic *lapic)
{
    uint32_t id = lapic->config.id;
    return lapic_x2apic(lapic) ? (id >> 4) << 16 | BIT(id & 15) : lapic->ldr;
}

static void lvt_write(struct lapic *lapic, unsigned index, uint32_t value)
{
    value &= lvt_writable[index];
    if (!(lapic->svr & SVR_ENABLED)) {
        value |= LVT_MASKED;
    }
    if (index == LVT_TIMER) {
        lapic_timer_write_lvt(lapic, value);
    } else if (index == LVT_LINT0 || index == LVT_LINT1) {
        uint32_t remote_irr = value & LVT_LEVEL ? lapic->lvt[index] & LVT_REMOTE_IRR : 0;
        lapic->lvt[index] = value | remote_irr;
        lint_update(lapic, index - LVT_LINT0, false);
    } else {
        lapic->lvt[index] = value;
    }
}

static void svr_write(struct lapic *lapic, uint32_t value)
{
    lapic->svr = value & (0xff | SVR_ENABLED | SVR_FOCUS | SVR_NO_EOI_BROADCAST);
    if (!(value & SVR_ENABLED)) {
        for (unsigned i = 0; i < LVT_COUNT; i++) {
            lapic->lvt[i] |= LVT_MASKED;
        }
    }
    lapic_refresh(lapic, false);
}

/* Whether the register exists for reading; the modes differ (SDM 10.12.1.2, table 10-6). */
static bool readable(unsigned reg, bool x2apic)
{
    switch (reg) {
    case REG_APR:
    case REG_RRD:
    case REG_DFR:
    case REG_ICR_HI: return !x2apic;
    case REG_ID:
    case REG_VERSION:
    case REG_TPR:
    case REG_PPR:
    case REG_LDR:
    case REG_SVR:
    case REG_ESR:
    case REG_ICR_LO:
    case REG_TIMER_INITIAL:
    case REG_TIMER_CURRENT:
    case REG_TIMER_DIVIDE: return true;
    default: return (reg >= REG_ISR && reg < REG_ESR) || (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR);
    }
}

static uint32_t reg_read(const struct lapic *lapic, unsigned reg)
{
    switch (reg) {
    case REG_ID: return lapic_x2apic(lapic) ? lapic->config.id : lapic->config.id << 24;
    case REG_VERSION: return LAPIC_VERSION;
    case REG_TPR: return lapic->tpr;
    case REG_PPR: return lapic_ppr(lapic);
    case REG_LDR: return lapic_ldr(lapic);
    case REG_DFR: return lapic->dfr;
    case REG_SVR: return lapic->svr;
    case REG_ESR: return lapic->esr;
    case REG_ICR_LO: return (uint32_t)lapic->icr;
    case REG_ICR_HI: return (uint32_t)(lapic->icr >> 32);
    case REG_TIMER_INITIAL: return lapic->timer_initial;
    case REG_TIMER_CURRENT: return lapic_timer_current(lapic);
    case REG_TIMER_DIVIDE: return lapic->timer_divide;
    default: break;
    }
    if (reg >= REG_ISR && reg < REG_TMR) {
        return lapic->isr[reg - REG_ISR];
    }
    if (reg >= REG_TMR && reg < REG_IRR) {
        return lapic->tmr[reg - REG_TMR];
    }
    if (reg >= REG_IRR && reg < REG_ESR) {
        return lapic->irr[reg - REG_IRR];
    }
    if (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR) {
        return lapic->lvt[reg - REG_LVT_TIMER];
    }
    return 0;
}

/* Returns false when there is no such register to write. */
static bool reg_write(struct lapic *lapic, unsigned reg, uint32_t value)
{
    if (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR) {
        lvt_write(lapic, reg - REG_LVT_TIMER, value);
        return true;
    }
    switch (reg) {
    case REG_ID: return true; /* not changeable, as on processors with x2APIC */
    case REG_TPR:
        lapic->tpr = value & 0xff;
        lapic_refresh(lapic, false);
        return true;
    case REG_EOI: lapic_eoi(lapic); return true;
    case REG_LDR: lapic->ldr = value & 0xff000000; return true;
    case REG_DFR: lapic->dfr = value | 0x0fffffff; return true;
    case REG_SVR: svr_write(lapic, value); return true;
    case REG_ESR:
        lapic->esr = lapic->esr_pending;
        lapic->esr_pending = 0;
        return true;
    case REG_ICR_LO:
        lapic->icr = (lapic->icr & ~(uint64_t)UINT32_MAX) | (value & 0x000ccfff);
        lapic_send_icr(lapic);
        return true;
    case REG_ICR_HI:
        lapic->icr = (lapic->icr & UINT32_MAX) | (uint64_t)(value & 0xff000000) << 32;
        return true;
    case REG_TIMER_INITIAL: lapic_timer_write_initial(lapic, value); return true;
    case REG_TIMER_DIVIDE: lapic_timer_write_divide(lapic, value); return true;
    default: return false;
    }
}

/* Registers are 32 bits wide at multiples of 16; the SDM leaves other accesses undefined (10.4.1). */
uint64_t lapic_mmio_read(struct lapic *lapic, uint64_t offset)
{
    unsigned reg = (unsigned)(offset >> 4);
    if (!lapic_hw_enabled(lapic) || lapic_x2apic(lapic)) {
        return UINT64_MAX;
    }
    if (!readable(reg, false)) {
        lapic_error(lapic, ESR_REGISTER);
        return 0;
    }
    return (offset & 15) < 4 ? reg_read(lapic, reg) >> (8 * (offset & 3)) : 0;
}

void lapic_mmio_write(struct lapic *lapic, uint64_t offset, unsigned size, uint32_t value)
{
    if (!lapic_hw_enabled(lapic) || lapic_x2apic(lapic) || (offset & 15) || size < 4) {
        return;
    }
    if (!reg_write(lapic, (unsigned)(offset >> 4), value)) {
        lapic_error(lapic, ESR_REGISTER);
    }
}

uint64_t lapic_cr8_read(const struct lapic *lapic)
{
    return lapic->tpr >> 4;
}

void lapic_cr8_write(struct lapic *lapic, uint64_t value)
{
    lapic->tpr = (uint32_t)(value & 15) << 4;
    lapic_refresh(lapic, false);
}

/* SDM 10.12.5, figure 10-27: the transitions between disabled, xAPIC and x2APIC. */
static int apic_base_write(struct lapic *lapic, uint64_t value)
{
    uint64_t modes = APIC_BASE_ENABLED | APIC_BASE_X2APIC;
    uint64_t valid = (BIT64(lapic->config.phys_bits) - 1) & ~0xfffull;
    valid |= APIC_BASE_BSP | APIC_BASE_ENABLED | (lapic->config.x2apic ? APIC_BASE_X2APIC : 0);
    uint64_t from = lapic->apic_base & modes;
    uint64_t to = value & modes;
    if ((value & ~valid) || to == APIC_BASE_X2APIC || (from == 0 && to == modes) ||
        (from == modes && to == APIC_BASE_ENABLED)) {
        return -1;
    }
    lapic->apic_base = (value & ~APIC_BASE_BSP) | (lapic->config.bsp ? APIC_BASE_BSP : 0);
    if (from && !to) {
        registers_reset(lapic); /* "the state is lost": SDM 10.4.3 */
    } else if (to == modes && from != to) {
        lapic->icr &= UINT32_MAX;
    }
    lapic_refresh(lapic, false);
    return 0;
}

/* Bits that must be zero in a write to an x2APIC register (SDM 10.12.1.3). */
static uint64_t x2apic_reserved(unsigned reg)
{
    switch (reg) {
    case REG_TPR:
    case REG_SELF_IPI: return ~0xffull;
    case REG_SVR: return ~(uint64_t)(0xff | SVR_ENABLED | SVR_FOCUS | SVR_NO_EOI_BROADCAST);
    case REG_ICR_LO: return 0xfff32000; /* bit 12 is the xAPIC's delivery status: ignored */
    case REG_TIMER_INITIAL: return ~(uint64_t)UINT32_MAX;
    case REG_TIMER_DIVIDE: return ~0xbull;
    case REG_EOI:
    case REG_ESR: return UINT64_MAX;
    default:
        if (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR) {
            return ~(uint64_t)(lvt_writable[reg - REG_LVT_TIMER] | BIT(12) | LVT_REMOTE_IRR);
        }
        return 0;
    }
}

static int x2apic_write(struct lapic *lapic, unsigned reg, uint64_t value)
{
    if (reg == REG_ID || reg == REG_LDR || reg == REG_DFR || reg == REG_ICR_HI ||
        (value & x2apic_reserved(reg))) {
        return -1;
    }
    if (reg == REG_ICR_LO) {
        lapic->icr = value & ~(uint64_t)BIT(12);
        lapic_send_icr(lapic);
        return 0;
    }
    if (reg == REG_SELF_IPI) {
        if (value < 16) {
            lapic_error(lapic, ESR_SEND_VECTOR);
        } else if (lapic_sw_enabled(lapic)) {
            lapic_request(lapic, (uint8_t)value, false);
        }
        return 0;
    }
    return reg_write(lapic, reg, (uint32_t)value) ? 0 : -1;
}

int lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *ret_value)
{
    if (msr == MSR_APIC_BASE) {
        *ret_value = lapic->apic_base;
        return 0;
    }
    if (msr == MSR_TSC_DEADLINE) {
        *ret_value = lapic_timer_read_deadline(lapic);
        return 0;
    }
    unsigned reg = msr - MSR_X2APIC_FIRST;
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(lapic) || !readable(reg, true)) {
        return -1;
    }
    *ret_value = reg == REG_ICR_LO ? lapic->icr : reg_read(lapic, reg);
    return 0;
}

int lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value)
{
    if (msr == MSR_APIC_BASE) {
        return apic_base_write(lapic, value);
    }
    if (msr == MSR_TSC_DEADLINE) {
        lapic_timer_write_deadline(lapic, value);
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(lapic)) {
        return -1;
    }
    return x2apic_write(lapic, msr - MSR_X2APIC_FIRST, value);
}

static void lapic_reset(struct device *dev)
{
    struct lapic *lapic = CONTAINER_OF(dev, struct lapic, device);
    lapic->apic_base = LAPIC_BASE | APIC_BASE_ENABLED | (lapic->config.bsp ? APIC_BASE_BSP : 0);
    registers_reset(lapic);
    if (lapic->config.virtual_wire) {
        lapic->svr = 0xff | SVR_ENABLED;
        lapic->lvt[LVT_LINT0] = APIC_MODE_EXTINT << 8;
        lapic->lvt[LVT_LINT1] = APIC_MODE_NMI << 8;
    }
    lapic_refresh(lapic, false);
}

static void lapic_free(struct device *dev)
{
    struct lapic *lapic = CONTAINER_OF(dev, struct lapic, device);
    struct lapic_bus *bus = lapic->bus;
    clock_timer_cancel(bus->config.clock, &lapic->timer);
    for (unsigned i = 0; i < bus->count; i++) {
        if (bus->lapics[i] == lapic) {
            bus->lapics[i] = bus->lapics[--bus->count];
        }
    }
    free(lapic);
}

static unsigned lapic_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct lapic *lapic = CONTAINER_OF(dev, const struct lapic, device);
    int n =
        snprintf(buf, size,
                 "id=%u base=%llx svr=%x tpr=%02x ppr=%02x irr=%d isr=%d pending=%d esr=%x lint=%d%d\n"
                 "lvt timer=%x lint0=%x lint1=%x error=%x; timer initial=%u current=%u deadline=%llx\n",
                 lapic->config.id, (unsigned long long)lapic->apic_base, lapic->svr, lapic->tpr,
                 lapic_ppr(lapic), highest_bit(lapic->irr), highest_bit(lapic->isr), lapic_irq_pending(lapic),
                 lapic->esr, lapic->lint[0], lapic->lint[1], lapic->lvt[LVT_TIMER], lapic->lvt[LVT_LINT0],
                 lapic->lvt[LVT_LINT1], lapic->lvt[LVT_ERROR], lapic->timer_initial,
                 lapic_timer_current(lapic), (unsigned long long)lapic->tsc_deadline);
    return MIN((unsigned)MAX(n, 0), size);
}

/* Intel SDM vol. 3A 10.4.4: which bits IA32_APIC_BASE has. */
static bool apic_base_possible(const struct lapic *lapic, uint64_t base)
{
    uint64_t fixed = 0xfffull & ~(uint64_t)(APIC_BASE_BSP | APIC_BASE_ENABLED | APIC_BASE_X2APIC);
    bool modes = (base & APIC_BASE_ENABLED) || !(base & APIC_BASE_X2APIC);
    return !(base & fixed) && !(base >> lapic->config.phys_bits) && modes;
}

static void lapic_state(struct device *dev, struct state *s)
{
    struct lapic *lapic = CONTAINER_OF(dev, struct lapic, device);
    uint64_t base = lapic->apic_base;
    state_field(s, "apic_base", &base);
    state_require(s, apic_base_possible(lapic, base), "apic_base");
    state_field(s, "tpr", &lapic->tpr);
    state_field(s, "ldr", &lapic->ldr);
    state_field(s, "dfr", &lapic->dfr);
    state_field(s, "svr", &lapic->svr);
    state_array(s, "isr", lapic->isr);
    state_array(s, "tmr", lapic->tmr);
    state_array(s, "irr", lapic->irr);
    state_field(s, "esr", &lapic->esr);
    state_field(s, "esr_pending", &lapic->esr_pending);
    state_field(s, "icr", &lapic->icr);
    state_array(s, "lvt", lapic->lvt);
    state_array(s, "lint", lapic->lint);
    state_field(s, "extint_sent", &lapic->extint_sent);
    lapic_timer_state(lapic, s);
    state_field(s, "last_lowest", &lapic->bus->last_lowest);
    state_require(s, lapic->bus->last_lowest < LAPIC_MAX, "last_lowest");
    if (state_loaded(s)) {
        lapic->apic_base = base;
        lapic_refresh(lapic, true);
    }
}

static const struct device_ops lapic_device_ops = {.name = "lapic",
                                                   .reset = lapic_reset,
                                                   .free = lapic_free,
                                                   .describe = lapic_describe,
                                                   .state = lapic_state};

struct lapic *lapic_new(struct lapic_bus *bus, const struct lapic_config *config, struct err *err)
{
    if (!config->tsc_hz || config->phys_bits < 32 || config->phys_bits > 52) {
        err_set(err, -EINVAL, "a local APIC needs a TSC frequency and 32 to 52 physical address bits");
        return NULL;
    }
    if (bus->count == LAPIC_MAX) {
        err_set(err, -ENOSPC, "a machine has at most %u vCPUs", LAPIC_MAX);
        return NULL;
    }
    struct lapic *lapic = calloc(1, sizeof(*lapic));
    if (!lapic) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    lapic->device.ops = &lapic_device_ops;
    lapic->bus = bus;
    lapic->config = *config;
    lapic_timer_init(lapic);
    bus->lapics[bus->count++] = lapic;
    lapic_reset(&lapic->device);
    return lapic;
}

struct device *lapic_device(struct lapic *lapic)
{
    return &lapic->device;
}
