/*
 * A watchdog timer of ours, which guests drive by ACPI's Watchdog Action Table, so that none needs a driver
 * of its own for it (Linux: wdat_wdt).
 *
 * Facts: Microsoft, "Hardware Watchdog Timers Design Specification" 1.01 (WDAT). vm/acpi.c writes the table.
 *
 * 32-bit registers, from port WATCHDOG_BASE:
 *
 *     +0  CONTROL  bit 0: running
 *     +4  COUNT    periods until it fires; writing restarts the countdown
 *     +8  REMAINS  periods that remain; writing anything restarts the countdown
 *     +12 STATUS   bit 0: it has fired; a reset keeps that, writing 0 clears it
 */
#ifndef FONDA_DEV_LEGACY_WATCHDOG_H
#define FONDA_DEV_LEGACY_WATCHDOG_H

#include "base/err.h"
#include "dev/device.h"

#define WATCHDOG_BASE      0x620u
#define WATCHDOG_CONTROL   0u
#define WATCHDOG_COUNT     4u
#define WATCHDOG_REMAINS   8u
#define WATCHDOG_STATUS    12u
#define WATCHDOG_PORTS     16u
#define WATCHDOG_PERIOD_MS 100u
#define WATCHDOG_COUNT_MAX 0xffffu

struct clock;
struct mem;
struct watchdog;

struct watchdog_config {
    struct mem *mem;
    struct clock *clock;
    /* The time ran out. Under mem_lock(). */
    void (*fired)(void *opaque);
    void *opaque;
};

struct watchdog *watchdog_new(const struct watchdog_config *config, struct err *err); /* NULL: see err */
struct device *watchdog_device(struct watchdog *dog);

#endif
