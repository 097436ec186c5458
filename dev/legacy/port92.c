/*
 * Port 0x92: see port92.h. Facts: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A".
 */
#include "dev/legacy/port92.h"

#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

#define PORT92_RESET 0x01u
#define PORT92_A20   0x02u

struct port92 {
    struct device device;
    struct port92_config config;
    uint8_t value;
};

static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct port92 *port = opaque;
    return port->value;
}

static void port92_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct port92 *port = opaque;
    uint8_t old = port->value;
    port->value = value & (PORT92_RESET | PORT92_A20);
    if (((old ^ port->value) & PORT92_A20) && port->config.set_a20) {
        port->config.set_a20(port->config.opaque, port->value & PORT92_A20);
    }
    if ((port->value & PORT92_RESET) && !(old & PORT92_RESET)) { /* the rising bit resets */
        port->config.reset(port->config.opaque);
    }
}

static const struct mem_io_ops port92_ops = {port92_read, port92_write};

static void port92_reset(struct device *dev)
{
    CONTAINER_OF(dev, struct port92, device)->value = PORT92_A20;
}

static void port92_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct port92, device));
}

static unsigned port92_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct port92 *port = CONTAINER_OF(dev, const struct port92, device);
    int n = snprintf(buf, size, "value=%02x\n", port->value);
    return MIN((unsigned)MAX(n, 0), size);
}

static void port92_state(struct device *dev, struct state *s)
{
    struct port92 *port = CONTAINER_OF(dev, struct port92, device);
    state_field(s, "value", &port->value);
}

static const struct device_ops port92_device_ops = {.name = "port92",
                                                    .reset = port92_reset,
                                                    .free = port92_free,
                                                    .describe = port92_describe,
                                                    .state = port92_state};

struct port92 *port92_new(const struct port92_config *config, struct err *err)
{
    struct port92 *port = calloc(1, sizeof(*port));
    if (!port) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    port->device.ops = &port92_device_ops;
    port->config = *config;
    if (mem_add_pio(config->mem, 0x92, 1, &port92_ops, port, "port92", err) < 0) {
        free(port);
        return NULL;
    }
    port92_reset(&port->device);
    return port;
}

struct device *port92_device(struct port92 *port)
{
    return &port->device;
}
