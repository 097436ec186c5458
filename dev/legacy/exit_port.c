/*
 * The exit port: see exit_port.h.
 */
#include "dev/legacy/exit_port.h"

#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>

#define EXIT_PORT 0xf4

struct exit_port {
    struct device device;
    struct exit_port_config config;
};

static uint64_t exit_port_read(void *opaque, uint64_t offset, unsigned size)
{
    return 0;
}

/* Writes of any width up to the four ports; their upper bytes count only when written at once. */
static void exit_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct exit_port *port = opaque;
    if (offset == 0) {
        port->config.exit(port->config.opaque, (uint32_t)value * 2 + 1);
    }
}

static const struct mem_io_ops exit_port_ops = {exit_port_read, exit_port_write};

static void exit_port_reset(struct device *dev)
{
}

static void exit_port_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct exit_port, device));
}

static unsigned exit_port_describe(const struct device *dev, char *buf, unsigned size)
{
    return 0;
}

static const struct device_ops exit_port_device_ops = {
    .name = "exit-port", .reset = exit_port_reset, .free = exit_port_free, .describe = exit_port_describe};

struct exit_port *exit_port_new(const struct exit_port_config *config, struct err *err)
{
    struct exit_port *port = calloc(1, sizeof(*port));
    if (!port) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    port->device.ops = &exit_port_device_ops;
    port->config = *config;
    if (mem_add_pio(config->mem, EXIT_PORT, 4, &exit_port_ops, port, "exit-port", err) < 0) {
        free(port);
        return NULL;
    }
    return port;
}

struct device *exit_port_device(struct exit_port *port)
{
    return &port->device;
}
