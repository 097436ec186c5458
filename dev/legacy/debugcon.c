/*
 * The debug console: see debugcon.h.
 */
#include "dev/legacy/debugcon.h"

#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>

#define DEBUGCON_PORT  0xe9
#define LINE_MAX_BYTES 256u

struct debugcon {
    struct device device;
    struct debugcon_config config;
    unsigned len;
    uint8_t line[LINE_MAX_BYTES];
};

void debugcon_flush(struct debugcon *con)
{
    if (con->len) {
        con->config.sink(con->config.opaque, con->line, con->len);
        con->len = 0;
    }
}

static uint64_t debugcon_read(void *opaque, uint64_t offset, unsigned size)
{
    return DEBUGCON_PORT;
}

static void debugcon_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debugcon *con = opaque;
    con->line[con->len++] = (uint8_t)value;
    if (con->len == LINE_MAX_BYTES || (uint8_t)value == '\n') {
        debugcon_flush(con);
    }
}

static const struct mem_io_ops debugcon_ops = {debugcon_read, debugcon_write};

static void debugcon_reset(struct device *dev)
{
    debugcon_flush(CONTAINER_OF(dev, struct debugcon, device));
}

static void debugcon_free(struct device *dev)
{
    struct debugcon *con = CONTAINER_OF(dev, struct debugcon, device);
    debugcon_flush(con);
    free(con);
}

static unsigned debugcon_describe(const struct device *dev, char *buf, unsigned size)
{
    return 0;
}

static const struct device_ops debugcon_device_ops = {
    .name = "debugcon", .reset = debugcon_reset, .free = debugcon_free, .describe = debugcon_describe};

struct debugcon *debugcon_new(const struct debugcon_config *config, struct err *err)
{
    struct debugcon *con = calloc(1, sizeof(*con));
    if (!con) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    con->device.ops = &debugcon_device_ops;
    con->config = *config;
    if (mem_add_pio(config->mem, DEBUGCON_PORT, 1, &debugcon_ops, con, "debugcon", err) < 0) {
        free(con);
        return NULL;
    }
    return con;
}

struct device *debugcon_device(struct debugcon *con)
{
    return &con->device;
}
