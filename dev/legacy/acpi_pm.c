/*
 * ACPI fixed hardware: see acpi_pm.h.
 *
 * Invariants
 *  1. TMR_STS is caught up lazily: carries counts how often the timer's bit 23 changed until now.
 *  2. The clock timer is armed only while TMR_EN is on.
 */
#include "dev/legacy/acpi_pm.h"

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

#define NS_PER_S 1000000000ull

#define PM_STS 0u
#define PM_EN  2u
#define PM_CNT 4u
#define PM_TMR 8u

/* ACPI 6.4 tables 4.13 and 4.14. */
#define PM1_TMR    0x0001u
#define PM1_GBL    0x0020u
#define PM1_PWRBTN 0x0100u
#define PM1_EVENTS                                                                                           \
    (PM1_TMR | PM1_GBL | PM1_PWRBTN | 0x0200u | 0x0400u) /* and sleep button, RTC: never raised */
#define PM1_WAK 0x8000u
/* Table 4.15. */
#define CNT_SCI_EN       0x0001u
#define CNT_BM_RLD       0x0002u
#define CNT_SLP_TYP(v)   (((v) >> 10) & 7)
#define CNT_SLP_TYP_MASK 0x1c00u
#define CNT_SLP_EN       0x2000u

#define TIMER_BITS 24

/* ICH "Reset Control Register". */
#define RESET_SYSTEM 0x02u
#define RESET_CPU    0x04u
#define RESET_FULL   0x08u

struct acpi_pm {
    struct device device;
    struct acpi_pm_config config;
    struct clock_timer timer; /* the next change of the timer's top bit */
    bool sci_level, events_level;
    uint16_t status, enable, control;
    uint64_t carries;
    uint8_t reset_control;
};

static uint64_t timer_ticks(const struct acpi_pm *pm)
{
    return (uint64_t)((unsigned __int128)clock_now_ns(pm->config.clock) * ACPI_PM_TIMER_HZ / NS_PER_S);
}

/* Catches up with the timer, plans its next carry, and tells the SCI line. */
static void pm_update(struct acpi_pm *pm)
{
    uint64_t carries = timer_ticks(pm) >> (TIMER_BITS - 1);
    if (carries != pm->carries) {
        pm->carries = carries;
        pm->status |= PM1_TMR;
    }
    if (pm->enable & PM1_TMR) {
        unsigned __int128 ticks = (unsigned __int128)(carries + 1) << (TIMER_BITS - 1);
        uint64_t at_ns = (uint64_t)((ticks * NS_PER_S + ACPI_PM_TIMER_HZ - 1) / ACPI_PM_TIMER_HZ);
        (void)clock_timer_arm(pm->config.clock, &pm->timer, at_ns);
    } else {
        clock_timer_cancel(pm->config.clock, &pm->timer);
    }
    bool level = (pm->status & pm->enable & PM1_EVENTS) || pm->events_level;
    if (level != pm->sci_level) {
        pm->sci_level = level;
        irq_set(&pm->config.sci, level);
    }
}

static void timer_carried(void *opaque)
{
    pm_update(opaque);
}

bool acpi_pm_power_button(struct acpi_pm *pm)
{
    pm->status |= PM1_PWRBTN;
    pm_update(pm);
    return pm->enable & PM1_PWRBTN;
}

void acpi_pm_set_events(struct acpi_pm *pm, bool level)
{
    pm->events_level = level;
    pm_update(pm);
}

static void control_write(struct acpi_pm *pm, uint16_t value)
{
    pm->control = CNT_SCI_EN | (value & (CNT_BM_RLD | CNT_SLP_TYP_MASK));
    /* Other sleep types are not offered by the tables; a guest that tries them stays awake. */
    if ((value & CNT_SLP_EN) && CNT_SLP_TYP(value) == pm->config.s5_type) {
        pm->config.power_off(pm->config.opaque);
    }
}

/* The register block as bytes, so that accesses of any width and alignment see it alike. */
static uint8_t byte_read(const struct acpi_pm *pm, uint64_t offset)
{
    uint32_t word;
    switch (offset & ~1ull) {
    case PM_STS: word = pm->status; break;
    case PM_EN: word = pm->enable; break;
    case PM_CNT: word = pm->control; break;
    default: word = 0; break;
    }
    return (uint8_t)(word >> (8 * (offset & 1)));
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = opaque;
    if (offset >= PM_TMR) {
        uint64_t timer = timer_ticks(pm) & (BIT(TIMER_BITS) - 1);
        return timer >> (8 * (offset - PM_TMR));
    }
    pm_update(pm);
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)byte_read(pm, offset + i) << (8 * i);
    }
    return value;
}

static void word_write(struct acpi_pm *pm, uint64_t reg, uint16_t value, uint16_t mask)
{
    switch (reg) {
    case PM_STS: pm->status &= (uint16_t) ~(value & mask & (PM1_EVENTS | PM1_WAK)); break; /* ones clear */
    case PM_EN: pm->enable = (uint16_t)((pm->enable & ~mask) | (value & mask & PM1_EVENTS)); break;
    case PM_CNT: control_write(pm, (uint16_t)((pm->control & ~mask) | (value & mask))); break;
    default: break;
    }
}

static void pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = opaque;
    pm_update(pm);
    while (size) {
        unsigned shift = 8 * (unsigned)(offset & 1);
        unsigned bytes = MIN(size, 2 - (unsigned)(offset & 1));
        uint16_t mask = (uint16_t)((bytes == 2 ? 0xffffu : 0xffu) << shift);
        word_write(pm, offset & ~1ull, (uint16_t)(value << shift), mask);
        value >>= 8 * bytes;
        offset += bytes;
        size -= bytes;
    }
    pm_update(pm);
}

uint64_t acpi_pm_reset_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct acpi_pm *pm = opaque;
    return pm->reset_control;
}

void acpi_pm_reset_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = opaque;
    bool rising = (value & RESET_CPU) && !(pm->reset_control & RESET_CPU);
    pm->reset_control = value & (RESET_SYSTEM | RESET_CPU | RESET_FULL);
    if (rising) {
        pm->config.reset(pm->config.opaque);
    }
}

static const struct mem_io_ops pm_ops = {pm_read, pm_write};
static const struct mem_io_ops reset_ops = {acpi_pm_reset_read, acpi_pm_reset_write};

static void acpi_pm_reset(struct device *dev)
{
    struct acpi_pm *pm = CONTAINER_OF(dev, struct acpi_pm, device);
    pm->carries = timer_ticks(pm) >> (TIMER_BITS - 1);
    pm->status = 0;
    pm->enable = 0;
    pm->control = CNT_SCI_EN;
    pm->reset_control = 0;
    pm_update(pm);
}

static void acpi_pm_free(struct device *dev)
{
    struct acpi_pm *pm = CONTAINER_OF(dev, struct acpi_pm, device);
    clock_timer_cancel(pm->config.clock, &pm->timer);
    free(pm);
}

static unsigned acpi_pm_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct acpi_pm *pm = CONTAINER_OF(dev, const struct acpi_pm, device);
    int n = snprintf(buf, size, "sts=%04x en=%04x cnt=%04x sci=%d\n", pm->status, pm->enable, pm->control,
                     pm->sci_level);
    return MIN((unsigned)MAX(n, 0), size);
}

static void acpi_pm_state(struct device *dev, struct state *s)
{
    struct acpi_pm *pm = CONTAINER_OF(dev, struct acpi_pm, device);
    state_field(s, "sci", &pm->sci_level);
    state_field(s, "status", &pm->status);
    state_field(s, "enable", &pm->enable);
    state_field(s, "control", &pm->control);
    state_field(s, "carries", &pm->carries);
    state_field(s, "reset_control", &pm->reset_control);
    state_require(s, pm->carries <= timer_ticks(pm) >> (TIMER_BITS - 1), "carries");
    if (state_loaded(s)) {
        pm_update(pm);
    }
}

static const struct device_ops acpi_pm_device_ops = {.name = "acpi-pm",
                                                     .reset = acpi_pm_reset,
                                                     .free = acpi_pm_free,
                                                     .describe = acpi_pm_describe,
                                                     .state = acpi_pm_state};

struct acpi_pm *acpi_pm_new(const struct acpi_pm_config *config, struct err *err)
{
    struct acpi_pm *pm = calloc(1, sizeof(*pm));
    if (!pm) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    pm->device.ops = &acpi_pm_device_ops;
    pm->config = *config;
    clock_timer_init(&pm->timer, timer_carried, pm);
    if (mem_add_pio(config->mem, config->base, ACPI_PM_PORTS, &pm_ops, pm, "acpi-pm", err) < 0 ||
        (!config->reset_port_elsewhere &&
         mem_add_pio(config->mem, ACPI_PM_RESET_PORT, 1, &reset_ops, pm, "acpi-reset", err) < 0)) {
        free(pm);
        return NULL;
    }
    acpi_pm_reset(&pm->device);
    return pm;
}

struct device *acpi_pm_device(struct acpi_pm *pm)
{
    return &pm->device;
}
