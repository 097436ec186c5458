/*
 * The panic port: see pvpanic.h.
 */
#include "dev/legacy/pvpanic.h"

#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>

#define EVENT_PANICKED BIT(0)

struct pvpanic {
    struct device device;
    struct pvpanic_config config;
};

static uint64_t pvpanic_read(void *opaque, uint64_t offset, unsigned size)
{
    return EVENT_PANICKED;
}

static void pvpanic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pvpanic *panic = opaque;
    if (value & EVENT_PANICKED) {
        panic->config.panicked(panic->config.opaque);
    }
}

static const struct mem_io_ops pvpanic_ops = {pvpanic_read, pvpanic_write};

static void pvpanic_reset(struct device *dev)
{
}

static void pvpanic_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct pvpanic, device));
}

static unsigned pvpanic_describe(const struct device *dev, char *buf, unsigned size)
{
    return 0;
}

static const struct device_ops pvpanic_device_ops = {
    .name = "pvpanic", .reset = pvpanic_reset, .free = pvpanic_free, .describe = pvpanic_describe};

struct pvpanic *pvpanic_new(const struct pvpanic_config *config, struct err *err)
{
    struct pvpanic *panic = calloc(1, sizeof(*panic));
    if (!panic) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    panic->device.ops = &pvpanic_device_ops;
    panic->config = *config;
    if (mem_add_pio(config->mem, config->port, 1, &pvpanic_ops, panic, "pvpanic", err) < 0) {
        free(panic);
        return NULL;
    }
    return panic;
}

struct device *pvpanic_device(struct pvpanic *panic)
{
    return &panic->device;
}
