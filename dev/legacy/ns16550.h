/*
 * The 16550A UART: 16-byte FIFOs, interrupts, loopback.
 *
 * Facts: National Semiconductor PC16550D data sheet.
 *
 * Output gathers in a buffer that goes to the sink when NS16550_FLUSH_BYTES are there, after
 * NS16550_FLUSH_NS, or on ns16550_flush(), which vm/ calls when the guest idles. What the sink does not take
 * stays, and once the buffer is full the transmitter is no longer empty: nothing is lost. Input is taken as
 * far as the receiver has room.
 */
#ifndef FONDA_DEV_LEGACY_NS16550_H
#define FONDA_DEV_LEGACY_NS16550_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"

#define NS16550_COM1        0x3f8u
#define NS16550_FLUSH_BYTES 256u
#define NS16550_FLUSH_NS    1000000u

struct clock;
struct mem;
struct ns16550;

struct ns16550_config {
    struct mem *mem;
    struct clock *clock;
    struct irq_line irq; /* IRQ 4 for COM1 */
    uint16_t port;
    /* Takes bytes that the guest sent; returns how many it took. Runs under mem_lock(), must not block. */
    size_t (*sink)(void *opaque, const uint8_t *bytes, size_t len);
    /* The receiver has room again after ns16550_input() took less than it was given; may call it. May be
     * NULL. */
    void (*room)(void *opaque);
    void *opaque;
};

struct ns16550 *ns16550_new(const struct ns16550_config *config, struct err *err); /* NULL: see err */
struct device *ns16550_device(struct ns16550 *uart);

/* Gives the guest bytes; returns how many it took. Under mem_lock(). */
size_t ns16550_input(struct ns16550 *uart, const uint8_t *bytes, size_t len);

/* Offers the sink what waits. Under mem_lock(). */
void ns16550_flush(struct ns16550 *uart);

#endif
