/*
 * The contract of a device.
 *
 * A device is a plain struct of its own with a `struct device` inside. It registers its I/O regions with
 * mem/, raises interrupts through `struct irq_line`, and keeps time through base/clock.h. It includes nothing
 * of cpu/ and vm/. All callbacks run under mem_lock(): from a vCPU thread (I/O), or from the main loop
 * (timers, host input).
 */
#ifndef FONDA_DEV_DEVICE_H
#define FONDA_DEV_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

/* An interrupt wire into an interrupt controller: level-sensitive by nature; an edge is set(true),
 * set(false). */
struct irq_line {
    void (*set)(void *opaque, unsigned n, bool level);
    void *opaque;
    unsigned n;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set) {
        line->set(line->opaque, line->n, level);
    }
}

struct device;
struct state;

struct device_ops {
    const char *name; /* "i8254": the part number, also the section name in saved state */
    void (*reset)(struct device *dev);
    void (*free)(struct device *dev);
    /* A few lines for a person: the registers that matter. Returns the bytes written. */
    unsigned (*describe)(const struct device *dev, char *buf, unsigned size);
    /* Saves or loads (base/state.h): one function for both, with the section begun by the caller. No vCPU
     * runs, and the clock stands. When loading, every device was reset before, and those made earlier are
     * loaded: lines are not raised anew, as each device saves what it sees of its inputs. NULL: there is
     * nothing to save. */
    void (*state)(struct device *dev, struct state *s);
    /* Machines were saved before this device existed: without its section it stays as reset has left it. */
    bool newer;
};

struct device {
    const struct device_ops *ops;
};

#endif
