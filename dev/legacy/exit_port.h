/*
 * The exit port for test guests (port 0xf4): writing a value ends the machine with status value * 2 + 1, so
 * that no value looks like success of the program itself.
 */
#ifndef FONDA_DEV_LEGACY_EXIT_PORT_H
#define FONDA_DEV_LEGACY_EXIT_PORT_H

#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct exit_port;

struct exit_port_config {
    struct mem *mem;
    void (*exit)(void *opaque, uint32_t status);
    void *opaque;
};

struct exit_port *exit_port_new(const struct exit_port_config *config, struct err *err); /* NULL: see err */
struct device *exit_port_device(struct exit_port *port);

#endif
