/*
 * The 8042 keyboard controller (ports 0x60 and 0x64) with a keyboard that answers its commands and has no
 * keys yet, and no mouse. Its output port resets the machine and gates A20.
 *
 * Facts: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
 */
#ifndef FONDA_DEV_LEGACY_I8042_H
#define FONDA_DEV_LEGACY_I8042_H

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct i8042;

struct i8042_config {
    struct mem *mem;
    struct irq_line irq;                    /* IRQ 1 */
    void (*reset)(void *opaque);            /* the guest asks for a machine reset */
    void (*set_a20)(void *opaque, bool on); /* may be NULL: A20 is then always on, and only remembered */
    void *opaque;
};

struct i8042 *i8042_new(const struct i8042_config *config, struct err *err); /* NULL: see err */
struct device *i8042_device(struct i8042 *kbc);

#endif
