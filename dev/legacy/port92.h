/*
 * System control port A (port 0x92): fast A20 and fast reset, as the PS/2 introduced them.
 */
#ifndef FONDA_DEV_LEGACY_PORT92_H
#define FONDA_DEV_LEGACY_PORT92_H

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct port92;

struct port92_config {
    struct mem *mem;
    void (*reset)(void *opaque);
    void (*set_a20)(void *opaque, bool on); /* may be NULL */
    void *opaque;
};

struct port92 *port92_new(const struct port92_config *config, struct err *err); /* NULL: see err */
struct device *port92_device(struct port92 *port);

#endif
