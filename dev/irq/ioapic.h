/*
 * The 82093AA I/O APIC: 24 pins, each with a redirection entry; version 0x20, that is, with the directed EOI
 * register at offset 0x40 that later chips have.
 *
 * Facts: 82093AA data sheet (290566), Intel I/O hub data sheets for the EOI register.
 * Pin polarity is wiring: a pin is "on" when its line is asserted, whatever polarity the guest programs.
 * All functions run under mem_lock().
 */
#ifndef FONDA_DEV_IRQ_IOAPIC_H
#define FONDA_DEV_IRQ_IOAPIC_H

#include "base/err.h"
#include "dev/device.h"
#include "dev/irq/apic_msg.h"

#define IOAPIC_PINS         24u
#define IOAPIC_DEFAULT_BASE 0xfec00000u

struct mem;
struct ioapic;

struct ioapic_config {
    struct mem *mem;
    uint64_t base; /* IOAPIC_DEFAULT_BASE */
    uint8_t id;    /* as the ACPI MADT says */
    apic_send_fn *send;
    void *send_opaque;
};

struct ioapic *ioapic_new(const struct ioapic_config *config, struct err *err); /* NULL: see err */
struct device *ioapic_device(struct ioapic *ioapic);

/* A pin, 0-23; fits `struct irq_line`. */
void ioapic_set_irq(void *ioapic, unsigned n, bool level);

/* An EOI for the vector arrived from a local APIC: level-triggered pins with it may interrupt again. */
void ioapic_eoi(void *ioapic, uint8_t vector);

#endif
