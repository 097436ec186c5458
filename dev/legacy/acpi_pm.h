/*
 * ACPI's fixed hardware: PM1a event and control blocks, the power-management timer, the SCI; and the reset
 * register at 0xcf9.
 *
 * Facts: ACPI 6.4 section 4.8 ("ACPI Hardware Features"); Intel ICH data sheets for 0xcf9.
 *
 * Ports from base: +0 PM1_STS (2), +2 PM1_EN (2), +4 PM1_CNT (2), +8 PM_TMR (4, 24 bits: leave TMR_VAL_EXT of
 * the FADT off). SCI_EN is always on, so the FADT has no SMI_CMD. FADT reset register: port 0xcf9, value 6.
 */
#ifndef FONDA_DEV_LEGACY_ACPI_PM_H
#define FONDA_DEV_LEGACY_ACPI_PM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

#define ACPI_PM_TIMER_HZ    3579545u
#define ACPI_PM_PORTS       12u
#define ACPI_PM_DEFAULT     0x600u
#define ACPI_PM_RESET_PORT  0xcf9u
#define ACPI_PM_RESET_VALUE 6u

struct clock;
struct mem;
struct acpi_pm;

struct acpi_pm_config {
    struct mem *mem;
    struct clock *clock;
    struct irq_line sci; /* level-triggered, IRQ 9 */
    uint16_t base;
    bool reset_port_elsewhere; /* a PCI bridge holds the ports around 0xcf9, and forwards that one */
    uint8_t s5_type;           /* SLP_TYPa of \_S5 in the DSDT, 0-7 */
    void (*power_off)(void *opaque);
    void (*reset)(void *opaque);
    void *opaque;
};

struct acpi_pm *acpi_pm_new(const struct acpi_pm_config *config, struct err *err); /* NULL: see err */
struct device *acpi_pm_device(struct acpi_pm *pm);

/* The register at 0xcf9; opaque is the struct acpi_pm. Under mem_lock(). */
uint64_t acpi_pm_reset_read(void *opaque, uint64_t offset, unsigned size);
void acpi_pm_reset_write(void *opaque, uint64_t offset, unsigned size, uint64_t value);

/* The user presses the power button. Returns whether the guest wants to know of it. Under mem_lock(). */
bool acpi_pm_power_button(struct acpi_pm *pm);

/* General-purpose events, which another chip has, share the SCI: whether one is up. Under mem_lock(). */
void acpi_pm_set_events(struct acpi_pm *pm, bool level);

#endif
