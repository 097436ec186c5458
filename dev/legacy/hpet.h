/*
 * The high-precision event timer: a 64-bit counter at 100 MHz, three comparators, legacy replacement of PIT
 * and RTC.
 *
 * Facts: IA-PC HPET specification 1.0a. Interrupts by memory writes (FSB) are not offered.
 */
#ifndef FONDA_DEV_LEGACY_HPET_H
#define FONDA_DEV_LEGACY_HPET_H

#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

#define HPET_DEFAULT_BASE 0xfed00000u
#define HPET_TIMERS       3u
#define HPET_PERIOD_NS    10u
#define HPET_ID           0x8086a201u /* the low half of the capabilities: for the ACPI HPET table */

struct clock;
struct mem;
struct hpet;

struct hpet_config {
    struct mem *mem;
    struct clock *clock;
    uint64_t base;       /* HPET_DEFAULT_BASE */
    uint32_t route_mask; /* I/O APIC pins that comparators may be routed to */
    /* Interrupt outputs. pins.n is the first pin's number in pins.set: pin p of the I/O APIC is set(opaque, n
     * + p). legacy_irq0 and legacy_irq8 are used instead by comparators 0 and 1 under legacy replacement. */
    struct irq_line pins;
    struct irq_line legacy_irq0, legacy_irq8;
    void (*legacy)(void *opaque, bool replaced); /* PIT and RTC are replaced, or no longer; may be NULL */
    void *opaque;
};

struct hpet *hpet_new(const struct hpet_config *config, struct err *err); /* NULL: see err */
struct device *hpet_device(struct hpet *hpet);

#endif
