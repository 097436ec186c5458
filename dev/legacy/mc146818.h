/*
 * The MC146818A real-time clock with 128 bytes of CMOS memory (ports 0x70 and 0x71), IRQ 8.
 *
 * Facts: Motorola MC146818A data sheet; the PC's use of the CMOS bytes, with the century at 0x32 as the ACPI
 * FADT says. The clock starts at the host's UTC and runs on the machine clock.
 */
#ifndef FONDA_DEV_LEGACY_MC146818_H
#define FONDA_DEV_LEGACY_MC146818_H

#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

#define MC146818_CENTURY 0x32u

struct clock;
struct mem;
struct mc146818;

struct mc146818_config {
    struct mem *mem;
    struct clock *clock;
    struct irq_line irq;     /* IRQ 8 */
    int64_t utc_s;           /* seconds since 1970 at creation; 0: the host's */
    uint64_t ram_low_bytes;  /* RAM below 4 GiB, for the memory-size bytes */
    uint64_t ram_high_bytes; /* RAM from 4 GiB on */
};

struct mc146818 *mc146818_new(const struct mc146818_config *config, struct err *err); /* NULL: see err */
struct device *mc146818_device(struct mc146818 *rtc);

/* Whether the guest masked NMIs through bit 7 of port 0x70. */
bool mc146818_nmi_masked(const struct mc146818 *rtc);

/* Holds the line back while the HPET replaces the periodic interrupt. */
void mc146818_set_replaced(void *rtc, bool replaced);

#endif
