/*
 * The HPET: see hpet.h.
 *
 * While enabled, the main counter is the machine clock (in units of HPET_PERIOD_NS) plus an offset; else it
 * stands at `halted`. Each comparator has one clock timer, armed for the moment of its next match.
 *
 * Periodic matches that the host misses, or that come faster than HPET_MIN_NS, coalesce into one.
 */
#include "dev/legacy/hpet.h"

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

#define HPET_MIN_NS 20000u
#define HPET_WINDOW 0x400u

/* Specification 2.3: registers. */
#define HPET_CAP         0x000u
#define HPET_CONFIG      0x010u
#define HPET_STATUS      0x020u
#define HPET_COUNT       0x0f0u
#define HPET_TIMER0      0x100u
#define TIMER_CONFIG     0x00u
#define TIMER_COMPARATOR 0x08u

#define CONFIG_ENABLE BIT64(0)
#define CONFIG_LEGACY BIT64(1)

#define T_LEVEL        BIT64(1)
#define T_ENABLE       BIT64(2)
#define T_PERIODIC     BIT64(3)
#define T_PERIODIC_CAP BIT64(4)
#define T_64BIT_CAP    BIT64(5)
#define T_VALUE_SET    BIT64(6)
#define T_32BIT        BIT64(8)
#define T_ROUTE(c)     (((c) >> 9) & 31)
#define T_ROUTE_MASK   (31ull << 9)
#define T_WRITABLE     (T_LEVEL | T_ENABLE | T_PERIODIC | T_VALUE_SET | T_32BIT | T_ROUTE_MASK)

struct hpet_timer {
    struct hpet *hpet;
    struct clock_timer clock_timer;
    uint64_t config; /* writable bits */
    uint64_t comparator;
    uint64_t period; /* in counts, 0: none was written */
    bool asserted;   /* level-triggered and not acknowledged */
};

struct hpet {
    struct device device;
    struct hpet_config io;
    uint64_t config;
    uint64_t offset; /* counter = clock counts + offset, while enabled */
    uint64_t halted; /* the counter, while not */
    struct hpet_timer timers[HPET_TIMERS];
};

static uint64_t clock_counts(const struct hpet *hpet)
{
    return clock_now_ns(hpet->io.clock) / HPET_PERIOD_NS;
}

static uint64_t hpet_counter(const struct hpet *hpet)
{
    return hpet->config & CONFIG_ENABLE ? clock_counts(hpet) + hpet->offset : hpet->halted;
}

static unsigned timer_index(const struct hpet_timer *timer)
{
    return (unsigned)(timer - timer->hpet->timers);
}

static uint64_t timer_width_mask(const struct hpet_timer *timer)
{
    return timer->config & T_32BIT ? UINT32_MAX : UINT64_MAX;
}

static void timer_line(const struct hpet_timer *timer, bool level)
{
    const struct hpet *hpet = timer->hpet;
    unsigned index = timer_index(timer);
    if ((hpet->config & CONFIG_LEGACY) && index < 2) {
        irq_set(index == 0 ? &hpet->io.legacy_irq0 : &hpet->io.legacy_irq8, level);
        return;
    }
    unsigned pin = (unsigned)T_ROUTE(timer->config);
    if (hpet->io.route_mask & BIT(pin)) {
        struct irq_line line = hpet->io.pins;
        line.n += pin;
        irq_set(&line, level);
    }
}

static void timer_deassert(struct hpet_timer *timer)
{
    if (timer->asserted) {
        timer->asserted = false;
        timer_line(timer, false);
    }
}

/* Nothing but its comparator tells that a timer matched: none is armed for it, and the comparator is worked
 * out when somebody looks. Linux leaves such a one running at its tick's rate. */
static bool timer_silent(const struct hpet_timer *timer)
{
    return !(timer->config & (T_ENABLE | T_LEVEL));
}

/* What a silent periodic timer's comparator is by now: past as many matches as there were. */
static uint64_t comparator_now(const struct hpet_timer *timer)
{
    uint64_t mask = timer_width_mask(timer);
    uint64_t period = timer->period & mask;
    uint64_t behind = (hpet_counter(timer->hpet) - timer->comparator) & mask;
    if (!timer_silent(timer) || !(timer->config & T_PERIODIC) || !period || behind > mask / 2) {
        return timer->comparator;
    }
    return (timer->comparator + (behind / period + 1) * period) & mask;
}

/* Arms the clock for the next match: when the counter, of the comparator's width, equals it. */
static void timer_plan(struct hpet_timer *timer, uint64_t min_ns)
{
    struct hpet *hpet = timer->hpet;
    if (!(hpet->config & CONFIG_ENABLE) || timer_silent(timer)) {
        clock_timer_cancel(hpet->io.clock, &timer->clock_timer);
        return;
    }
    uint64_t mask = timer_width_mask(timer);
    uint64_t distance = (timer->comparator - hpet_counter(hpet)) & mask;
    if (distance == 0) {
        distance = mask; /* matched just now: one round, less a count, is near enough */
    }
    uint64_t now_ns = clock_now_ns(hpet->io.clock);
    uint64_t wait_ns;
    uint64_t at_ns;
    if (__builtin_mul_overflow(distance, HPET_PERIOD_NS, &wait_ns) ||
        __builtin_add_overflow(now_ns / HPET_PERIOD_NS * HPET_PERIOD_NS, wait_ns, &at_ns)) {
        clock_timer_cancel(hpet->io.clock, &timer->clock_timer); /* centuries away */
        return;
    }
    (void)clock_timer_arm(hpet->io.clock, &timer->clock_timer, MAX(at_ns, now_ns + min_ns));
}

/* Moves a periodic comparator on by whole periods, beyond the counter. */
static void timer_next_period(struct hpet_timer *timer)
{
    uint64_t mask = timer_width_mask(timer);
    uint64_t period = timer->period & mask;
    uint64_t behind = (hpet_counter(timer->hpet) - timer->comparator) & mask;
    if (period) {
        timer->comparator = (timer->comparator + (behind / period + 1) * period) & mask;
    }
}

static void timer_matched(void *opaque)
{
    struct hpet_timer *timer = opaque;
    if (timer->config & T_PERIODIC) {
        timer_next_period(timer);
        timer_plan(timer, HPET_MIN_NS);
    } else if (timer->config & T_32BIT) {
        timer_plan(timer, HPET_MIN_NS); /* matches again after each wrap */
    }
    if (timer->config & T_LEVEL) {
        timer->asserted = true; /* the status bit is set even with the interrupt off */
        if (timer->config & T_ENABLE) {
            timer_line(timer, true);
        }
    } else if (timer->config & T_ENABLE) {
        timer_line(timer, true);
        timer_line(timer, false);
    }
}

static void config_write(struct hpet *hpet, uint64_t value)
{
    uint64_t old = hpet->config;
    value &= CONFIG_ENABLE | CONFIG_LEGACY;
    if ((value & CONFIG_ENABLE) && !(old & CONFIG_ENABLE)) {
        hpet->offset = hpet->halted - clock_counts(hpet);
    } else if (!(value & CONFIG_ENABLE) && (old & CONFIG_ENABLE)) {
        hpet->halted = hpet_counter(hpet);
    }
    if ((value ^ old) & CONFIG_LEGACY) {
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
            timer_deassert(&hpet->timers[i]); /* on the line that it was asserted on */
        }
    }
    hpet->config = value;
    if (((value ^ old) & CONFIG_LEGACY) && hpet->io.legacy) {
        hpet->io.legacy(hpet->io.opaque, value & CONFIG_LEGACY);
    }
    if ((value ^ old) & CONFIG_ENABLE) {
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
            timer_plan(&hpet->timers[i], 0);
        }
    }
}

static void status_write(struct hpet *hpet, uint64_t value)
{
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        if (value & BIT64(i)) {
            timer_deassert(&hpet->timers[i]);
        }
    }
}

static void timer_config_write(struct hpet_timer *timer, uint64_t value)
{
    value &= T_WRITABLE;
    if ((value ^ timer->config) & (T_LEVEL | T_ROUTE_MASK | T_ENABLE)) {
        timer_deassert(timer);
    }
    timer->comparator = comparator_now(timer);
    timer->config = value;
    if (value & T_32BIT) {
        timer->comparator &= UINT32_MAX;
        timer->period &= UINT32_MAX;
    }
    timer_plan(timer, 0);
}

/* Specification 2.3.9.2.2: in periodic mode the first write after VAL_SET is the next match, and every write
 * is the period from then on. mask has the bits that are written. */
static void comparator_write(struct hpet_timer *timer, uint64_t value, uint64_t mask)
{
    mask &= timer_width_mask(timer);
    bool is_periodic = timer->config & T_PERIODIC;
    if (!is_periodic || (timer->config & T_VALUE_SET)) {
        timer->comparator = (timer->comparator & ~mask) | (value & mask);
    }
    if (is_periodic) {
        timer->period = (timer->period & ~mask) | (value & mask);
    }
    timer->config &= ~T_VALUE_SET;
    timer_plan(timer, 0);
}

static uint64_t timer_capabilities(const struct hpet *hpet)
{
    return (uint64_t)hpet->io.route_mask << 32 | T_PERIODIC_CAP | T_64BIT_CAP;
}

static uint64_t hpet_status(const struct hpet *hpet)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        value |= hpet->timers[i].asserted ? BIT64(i) : 0;
    }
    return value;
}

/* One register, all 64 bits of it; reg is a multiple of 8. */
static uint64_t reg_read(const struct hpet *hpet, uint64_t reg)
{
    switch (reg) {
    case HPET_CAP:
        return (uint64_t)(HPET_PERIOD_NS * 1000000u) << 32 | HPET_ID; /* the period in femtoseconds */
    case HPET_CONFIG: return hpet->config;
    case HPET_STATUS: return hpet_status(hpet);
    case HPET_COUNT: return hpet_counter(hpet);
    default: break;
    }
    if (reg >= HPET_TIMER0 && reg < HPET_TIMER0 + HPET_TIMERS * 0x20) {
        const struct hpet_timer *timer = &hpet->timers[(reg - HPET_TIMER0) / 0x20];
        switch (reg & 0x1f) {
        case TIMER_CONFIG: return timer->config | timer_capabilities(hpet);
        case TIMER_COMPARATOR: return comparator_now(timer);
        default: break;
        }
    }
    return 0;
}

/* value has the written bits, which mask tells; the others keep what they are. */
static void reg_write(struct hpet *hpet, uint64_t reg, uint64_t value, uint64_t mask)
{
    uint64_t merged = (reg_read(hpet, reg) & ~mask) | value;
    switch (reg) {
    case HPET_CONFIG: config_write(hpet, merged); return;
    case HPET_STATUS: status_write(hpet, value); return;
    case HPET_COUNT:
        if (!(hpet->config & CONFIG_ENABLE)) { /* specification 2.3.7: write it only while halted */
            hpet->halted = merged;
        }
        return;
    default: break;
    }
    if (reg >= HPET_TIMER0 && reg < HPET_TIMER0 + HPET_TIMERS * 0x20) {
        struct hpet_timer *timer = &hpet->timers[(reg - HPET_TIMER0) / 0x20];
        switch (reg & 0x1f) {
        case TIMER_CONFIG: timer_config_write(timer, merged); return;
        case TIMER_COMPARATOR: comparator_write(timer, value, mask); return;
        default: return;
        }
    }
}

static uint64_t hpet_mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    return reg_read(opaque, offset & ~7ull) >> (8 * (offset & 7));
}

/* Registers are written whole or by aligned halves (specification 2.3.1). */
static void hpet_mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t reg = offset & ~7ull;
    unsigned shift = 8 * (unsigned)(offset & 7);
    if (size == 8 && shift == 0) {
        reg_write(opaque, reg, value, UINT64_MAX);
    } else if (size == 4 && (shift & 31) == 0) {
        reg_write(opaque, reg, value << shift, (uint64_t)UINT32_MAX << shift);
    }
}

static const struct mem_io_ops hpet_ops = {hpet_mmio_read, hpet_mmio_write};

static void hpet_reset(struct device *dev)
{
    struct hpet *hpet = CONTAINER_OF(dev, struct hpet, device);
    config_write(hpet, 0);
    hpet->halted = 0;
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        struct hpet_timer *timer = &hpet->timers[i];
        timer_deassert(timer);
        timer->config = 0;
        timer->comparator = UINT64_MAX;
        timer->period = 0;
        timer_plan(timer, 0);
    }
}

static void hpet_free(struct device *dev)
{
    struct hpet *hpet = CONTAINER_OF(dev, struct hpet, device);
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        clock_timer_cancel(hpet->io.clock, &hpet->timers[i].clock_timer);
    }
    free(hpet);
}

static unsigned hpet_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct hpet *hpet = CONTAINER_OF(dev, const struct hpet, device);
    int n = snprintf(buf, size, "config=%llx counter=%llx\n", (unsigned long long)hpet->config,
                     (unsigned long long)hpet_counter(hpet));
    unsigned len = (unsigned)MAX(n, 0);
    for (unsigned i = 0; i < HPET_TIMERS && len < size; i++) {
        const struct hpet_timer *timer = &hpet->timers[i];
        n = snprintf(buf + len, size - len, "timer %u: config=%llx comparator=%llx period=%llx\n", i,
                     (unsigned long long)timer->config, (unsigned long long)timer->comparator,
                     (unsigned long long)timer->period);
        len += (unsigned)MAX(n, 0);
    }
    return MIN(len, size);
}

static void hpet_state(struct device *dev, struct state *s)
{
    struct hpet *hpet = CONTAINER_OF(dev, struct hpet, device);
    state_field(s, "config", &hpet->config);
    state_field(s, "offset", &hpet->offset);
    state_field(s, "halted", &hpet->halted);
    state_require(s, !(hpet->config & ~(uint64_t)(CONFIG_ENABLE | CONFIG_LEGACY)), "config");
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        struct hpet_timer *timer = &hpet->timers[i];
        state_prefix(s, "timer%u.", i);
        state_field(s, "config", &timer->config);
        state_field(s, "comparator", &timer->comparator);
        state_field(s, "period", &timer->period);
        state_field(s, "asserted", &timer->asserted);
        state_require(s, !(timer->config & ~(uint64_t)(T_WRITABLE)), "config");
    }
    if (state_loaded(s)) {
        for (unsigned i = 0; i < HPET_TIMERS; i++) {
            timer_plan(&hpet->timers[i], 0);
        }
    }
}

static const struct device_ops hpet_device_ops = {
    .name = "hpet", .reset = hpet_reset, .free = hpet_free, .describe = hpet_describe, .state = hpet_state};

struct hpet *hpet_new(const struct hpet_config *config, struct err *err)
{
    struct hpet *hpet = calloc(1, sizeof(*hpet));
    if (!hpet) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    hpet->device.ops = &hpet_device_ops;
    hpet->io = *config;
    for (unsigned i = 0; i < HPET_TIMERS; i++) {
        hpet->timers[i].hpet = hpet;
        clock_timer_init(&hpet->timers[i].clock_timer, timer_matched, &hpet->timers[i]);
    }
    if (mem_add_mmio(config->mem, GPA(config->base), HPET_WINDOW, &hpet_ops, hpet, "hpet", err) < 0) {
        free(hpet);
        return NULL;
    }
    hpet_reset(&hpet->device);
    return hpet;
}

struct device *hpet_device(struct hpet *hpet)
{
    return &hpet->device;
}
