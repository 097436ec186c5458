/*
 * The debug console (port 0xe9, as Bochs introduced it): bytes that the guest writes go to a sink, by lines.
 * Reading the port gives 0xe9, by which guests know that it is there.
 */
#ifndef FONDA_DEV_LEGACY_DEBUGCON_H
#define FONDA_DEV_LEGACY_DEBUGCON_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct debugcon;

struct debugcon_config {
    struct mem *mem;
    void (*sink)(void *opaque, const uint8_t *bytes, size_t len); /* takes all of them */
    void *opaque;
};

struct debugcon *debugcon_new(const struct debugcon_config *config, struct err *err); /* NULL: see err */
struct device *debugcon_device(struct debugcon *con);

/* Gives the sink an unfinished line. Under mem_lock(). Freeing and resetting do the same. */
void debugcon_flush(struct debugcon *con);

#endif
