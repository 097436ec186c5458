/*
 * The paravirtual panic port, as Linux's pvpanic driver knows it (ACPI device QEMU0001): reading says which
 * events it takes, writing reports them.
 *
 * Facts: Linux include/uapi/misc/pvpanic.h; QEMU docs/specs/pvpanic.rst.
 */
#ifndef FONDA_DEV_LEGACY_PVPANIC_H
#define FONDA_DEV_LEGACY_PVPANIC_H

#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct pvpanic;

struct pvpanic_config {
    struct mem *mem;
    uint16_t port;
    void (*panicked)(void *opaque); /* under mem_lock() */
    void *opaque;
};

struct pvpanic *pvpanic_new(const struct pvpanic_config *config, struct err *err); /* NULL: see err */
struct device *pvpanic_device(struct pvpanic *panic);

#endif
