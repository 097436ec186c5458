/*
 * Hot-plug of functions on the bus, for guests with an ACPI driver (Linux: acpiphp, part of every kernel with
 * PCI and ACPI): a general-purpose event block (ACPI 6.4 section 4.8.4.1) and three registers that the DSDT's
 * methods use (vm/acpi.c).
 *
 *     plug:    pci_hotplug_changed  --> UP, event --> guest: reads UP, Notify(Sxx, 1), scans the slot
 *     unplug:  pci_hotplug_ask      --> DOWN, event --> guest: Notify(Sxx, 3), stops the driver, _EJ0
 *              the slot's bit written to EJECT --> the function leaves the bus at once --> config.ejected
 *
 * Ports from base, little-endian:
 *
 *     +0  GPE0_STS  2  events that happened; ones clear. Bit HOTPLUG_GPE is the only one
 *     +2  GPE0_EN   2  events that raise the SCI
 *     +4  UP        4  slots that were filled since the guest cleared their bits; ones clear
 *     +8  DOWN      4  slots that the guest is to let go; ones clear
 *     +12 EJECT     4  write: these slots are let go. Reads as 0
 *
 * What a guest may eject is only what it was asked for: anything else is counted, and stays.
 *
 * Threads: under mem_lock(), all functions.
 */
#ifndef FONDA_DEV_PCI_HOTPLUG_H
#define FONDA_DEV_PCI_HOTPLUG_H

#include "dev/pci/pci.h"

#define PCI_HOTPLUG_BASE  0x640u
#define PCI_HOTPLUG_PORTS 16u
#define PCI_HOTPLUG_REGS  4u /* where UP lies */
#define PCI_HOTPLUG_GPE   1u /* the event's number: \_GPE._E01 */

struct pci_hotplug;

struct pci_hotplug_config {
    struct mem *mem;
    struct pci_host *host;
    uint16_t base;
    /* The events' part of the SCI: a level. */
    void (*sci)(void *opaque, bool level);
    void *opaque;
};

struct pci_hotplug *pci_hotplug_new(const struct pci_hotplug_config *config,
                                    struct err *err); /* NULL: see err */
struct device *pci_hotplug_device(struct pci_hotplug *hotplug);

/* Who is told when a slot's function has left the bus because the guest let it go, or was reset: a vCPU
 * thread, or the machine's reset. The function's owner takes it down later on. */
void pci_hotplug_set_owner(struct pci_hotplug *hotplug, void (*ejected)(void *opaque, unsigned slot),
                           void *opaque);

/* A function was attached to a slot while the guest ran. */
void pci_hotplug_changed(struct pci_hotplug *hotplug, unsigned slot);
/* The guest is to let a slot go; may be called again. */
void pci_hotplug_ask(struct pci_hotplug *hotplug, unsigned slot);
/* Takes it back: the slot is nobody's any more. */
void pci_hotplug_forget(struct pci_hotplug *hotplug, unsigned slot);
bool pci_hotplug_asked(const struct pci_hotplug *hotplug, unsigned slot);

#endif
