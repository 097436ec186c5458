/*
 * One PCI segment with one bus: the host bridge, its functions, and what a function may use: base address
 * registers, capabilities, INTx and MSI-X.
 *
 * Facts: PCI Local Bus 3.0 (chapter 6: configuration space, 6.8: MSI-X), PCI Express 2.0 section 7.2.2
 * (ECAM).
 *
 *     vCPU --- 0xcf8/0xcfc, ECAM ---> pci_host ---> pci_dev.config
 *          \-- memory window -------> pci_host ---> the BAR that lies there ---> pci_bar.ops, or the MSI-X
 * table
 *
 * Every device has one function, in one slot; memory BARs are 32 bits wide and lie in one window. There is no
 * firmware: pci_host_reset places all BARs, and the guest may move them.
 *
 * Threads: all functions run under mem_lock(), but for those that build the bus before vCPUs run. Functions
 * come and go while vCPUs run (hotplug.h).
 *
 * Invariants
 *  1. A BAR is decoded only if the function's memory decoding is on and the BAR lies inside of the window.
 *  2. MSI-X messages leave only while MSI-X is on; what is masked waits in the pending bits.
 */
#ifndef FONDA_DEV_PCI_PCI_H
#define FONDA_DEV_PCI_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "dev/device.h"
#include "mem/mem.h"

#define PCI_SLOTS        32u /* of the bus; slot 0 is the bridge's own */
#define PCI_BARS         6u
#define PCI_CONFIG_BYTES 256u
#define PCI_MSIX_MAX     128u /* vectors of one function */
#define PCI_INTX_LINES   4u

#define PCI_CAP_VENDOR 0x09u
#define PCI_CAP_MSIX   0x11u

struct pci_host;
struct pci_dev;

struct pci_bar {
    uint32_t size; /* a power of two, at least 16; 0: not there */
    const struct mem_io_ops *ops;
    void *opaque;
};

struct pci_msix_entry {
    uint32_t word[4]; /* address low and high, data, control: PCI 3.0 section 6.8.2 */
};

/* What a function is: PCI 3.0 section 6.1. */
struct pci_id {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code; /* base class, subclass, interface: 0x010000 is SCSI storage */
};

struct pci_dev {
    const char *name;
    struct pci_host *host; /* NULL until attached */
    unsigned slot;
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t writable[PCI_CONFIG_BYTES]; /* bits that the guest may change */
    uint8_t initial[PCI_CONFIG_BYTES];  /* config as of the attachment: what reset brings back */
    uint8_t cap_last, cap_free;         /* the newest capability, and where the next may lie */
    struct pci_bar bars[PCI_BARS];
    bool intx;

    uint8_t msix_cap; /* 0: none */
    unsigned msix_vectors, msix_bar;
    uint32_t msix_table, msix_pba; /* offsets in that BAR */
    struct pci_msix_entry msix[PCI_MSIX_MAX];
    uint64_t msix_pending[PCI_MSIX_MAX / 64];

    /* Optional: a capability's registers that are more than storage. Called around accesses to config space;
     * offset + size stays inside of it. */
    void (*config_read)(struct pci_dev *dev, unsigned offset, unsigned size);
    void (*config_written)(struct pci_dev *dev, unsigned offset, unsigned size);
};

struct pci_host_config {
    struct mem *mem;
    uint32_t ecam_base; /* 1 MiB */
    uint32_t window_base, window_size;
    struct irq_line intx[PCI_INTX_LINES]; /* slot s, INTA goes to line s % 4 */
    uint8_t intx_number[PCI_INTX_LINES];  /* as the interrupt line register tells */
    void (*msi)(void *opaque, uint64_t address, uint32_t data);
    void *opaque;
    /* Port 0xcf9, which lies between the bridge's ports and is not its own. May be NULL. */
    const struct mem_io_ops *port_cf9;
    void *port_cf9_opaque;
};

#define PCI_ECAM_BYTES (1u << 20)

struct pci_host *pci_host_new(const struct pci_host_config *config, struct err *err); /* NULL: see err */
/* Its reset puts all functions' configuration spaces back and places the BARs; devices reset themselves. */
struct device *pci_host_device(struct pci_host *host);

/* Sets up a function; the struct is zeroed. name is kept by reference. */
void pci_dev_init(struct pci_dev *dev, const char *name, const struct pci_id *id);
void pci_dev_add_bar(struct pci_dev *dev, unsigned index, uint32_t size, const struct mem_io_ops *ops,
                     void *opaque);
/* Adds a capability of `bytes` bytes with its two-byte header; the rest is zero and read-only. Returns its
 * offset, or 0 when config space is full. */
unsigned pci_dev_add_cap(struct pci_dev *dev, uint8_t id, unsigned bytes);
/* MSI-X with its table and pending bits in a BAR that was added, at multiples of 8. The bridge answers
 * accesses to them. Returns 0 or -ENOSPC. */
int pci_dev_add_msix(struct pci_dev *dev, unsigned bar, uint32_t table, uint32_t pba, unsigned vectors);

/* Puts a function into the lowest free slot. It must stay until pci_dev_detach() or the host's end. Errors:
 * -ENOSPC. */
int pci_host_attach(struct pci_host *host, struct pci_dev *dev, struct err *err);
/* The same for a certain slot. Errors: -ENOSPC (there is no such), -EEXIST. */
int pci_host_attach_at(struct pci_host *host, struct pci_dev *dev, unsigned slot, struct err *err);
unsigned pci_host_free_slot(const struct pci_host *host); /* the lowest; PCI_SLOTS: none */
/* From here on nothing reaches the function, and its interrupts go nowhere. */
void pci_dev_detach(struct pci_dev *dev);
void pci_host_eject(struct pci_host *host, unsigned slot); /* the same for whatever is there */
unsigned pci_host_devices(const struct pci_host *host);    /* slots in use, the bridge's among them */

/* A function's part of its device's saved state: configuration space, MSI-X, INTx. */
void pci_dev_state(struct pci_dev *dev, struct state *s);

bool pci_msix_enabled(const struct pci_dev *dev);
/* Sends a vector's message, or keeps it pending. Vectors that don't exist are ignored. */
void pci_msix_notify(struct pci_dev *dev, unsigned vector);
void pci_intx_set(struct pci_dev *dev, bool level);

static inline uint32_t pci_get32(const struct pci_dev *dev, unsigned offset)
{
    return (uint32_t)dev->config[offset] | (uint32_t)dev->config[offset + 1] << 8 |
           (uint32_t)dev->config[offset + 2] << 16 | (uint32_t)dev->config[offset + 3] << 24;
}

static inline uint16_t pci_get16(const struct pci_dev *dev, unsigned offset)
{
    return (uint16_t)(dev->config[offset] | dev->config[offset + 1] << 8);
}

static inline void pci_put16(struct pci_dev *dev, unsigned offset, uint16_t value)
{
    dev->config[offset] = (uint8_t)value;
    dev->config[offset + 1] = (uint8_t)(value >> 8);
}

static inline void pci_put32(struct pci_dev *dev, unsigned offset, uint32_t value)
{
    pci_put16(dev, offset, (uint16_t)value);
    pci_put16(dev, offset + 2, (uint16_t)(value >> 16));
}

#endif
