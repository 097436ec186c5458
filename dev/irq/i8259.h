/*
 * The pair of 8259A interrupt controllers of a PC (master at 0x20, slave at 0xa0 on the master's input 2),
 * with the edge/level control registers at 0x4d0 and 0x4d1.
 *
 * Facts: Intel 8259A data sheet (231468), Intel PIIX4 (290562) for ELCR.
 * All functions run under mem_lock().
 */
#ifndef FONDA_DEV_IRQ_I8259_H
#define FONDA_DEV_IRQ_I8259_H

#include <stdbool.h>

#include "base/err.h"
#include "dev/device.h"

struct mem;
struct i8259;

struct i8259_config {
    struct mem *mem;
    struct irq_line intr; /* the master's INT output: follows the request, level-sensitive */
};

struct i8259 *i8259_new(const struct i8259_config *config, struct err *err); /* NULL: see err */
struct device *i8259_device(struct i8259 *pic);

/* An interrupt input, 0-15 (2 is the cascade and ignored); fits `struct irq_line`. An edge-triggered request
 * stays latched when the line falls, so that set(true), set(false) is one interrupt. */
void i8259_set_irq(void *pic, unsigned n, bool level);

/* The interrupt acknowledge cycle: the vector, 0-255. With no request left, that of a spurious IRQ 7 or 15.
 */
int i8259_ack(struct i8259 *pic);

#endif
