/*
 * The 8254 programmable interval timer (ports 0x40-0x43) and the system control port 0x61 that holds the gate
 * of channel 2, the speaker, and channel 2's output.
 *
 * Facts: Intel 8254 data sheet (231164); port 0x61 as in the PIIX4 data sheet (290562).
 *
 * Channel 0 pulses its line at each rising edge of its output. Ticks that the host misses coalesce into one:
 * guests that count ticks through a stalled host lose time, as they do when they keep interrupts off.
 */
#ifndef FONDA_DEV_LEGACY_I8254_H
#define FONDA_DEV_LEGACY_I8254_H

#include "base/err.h"
#include "dev/device.h"

#define I8254_HZ 1193182u

struct clock;
struct mem;
struct i8254;

struct i8254_config {
    struct mem *mem;
    struct clock *clock;
    struct irq_line irq; /* IRQ 0 */
};

struct i8254 *i8254_new(const struct i8254_config *config, struct err *err); /* NULL: see err */
struct device *i8254_device(struct i8254 *pit);

/* Holds the line of channel 0 back while the HPET replaces it (HPET spec 2.3.5); fits hpet_config.legacy. */
void i8254_set_replaced(void *pit, bool replaced);

#endif
