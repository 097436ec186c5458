/*
 * MSI-X: PCI 3.0 section 6.8.2. The table and the pending bits live in a BAR of the function; the bridge
 * sends accesses to them here.
 */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "dev/pci/pci_int.h"

#define CONTROL        2u /* message control, in the capability */
#define CONTROL_MASK   0x4000u
#define CONTROL_ENABLE 0x8000u
#define VECTOR_MASKED  1u /* in an entry's control word */
#define ENTRY_BYTES    16u

int pci_dev_add_msix(struct pci_dev *dev, unsigned bar, uint32_t table, uint32_t pba, unsigned vectors)
{
    unsigned at = pci_dev_add_cap(dev, PCI_CAP_MSIX, 12);
    if (at == 0 || vectors == 0 || vectors > PCI_MSIX_MAX) {
        return -ENOSPC;
    }
    pci_put16(dev, at + CONTROL, (uint16_t)(vectors - 1));
    pci_put32(dev, at + 4, table | bar);
    pci_put32(dev, at + 8, pba | bar);
    dev->writable[at + CONTROL + 1] = (CONTROL_MASK | CONTROL_ENABLE) >> 8;
    dev->msix_cap = (uint8_t)at;
    dev->msix_vectors = vectors;
    dev->msix_bar = bar;
    dev->msix_table = table;
    dev->msix_pba = pba;
    pci_msix_reset(dev);
    return 0;
}

void pci_msix_reset(struct pci_dev *dev)
{
    memset(dev->msix, 0, sizeof(dev->msix));
    memset(dev->msix_pending, 0, sizeof(dev->msix_pending));
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++) {
        dev->msix[i].word[3] = VECTOR_MASKED;
    }
}

static uint16_t control(const struct pci_dev *dev)
{
    return dev->msix_cap ? pci_get16(dev, dev->msix_cap + CONTROL) : 0;
}

bool pci_msix_enabled(const struct pci_dev *dev)
{
    return control(dev) & CONTROL_ENABLE;
}

static bool vector_masked(const struct pci_dev *dev, unsigned vector)
{
    return (control(dev) & CONTROL_MASK) || (dev->msix[vector].word[3] & VECTOR_MASKED);
}

static void send(struct pci_dev *dev, unsigned vector)
{
    const struct pci_msix_entry *entry = &dev->msix[vector];
    if (!dev->host) {
        return; /* it has left the bus */
    }
    pci_host_send_msi(dev->host, (uint64_t)entry->word[1] << 32 | (entry->word[0] & ~3u), entry->word[2]);
}

void pci_msix_notify(struct pci_dev *dev, unsigned vector)
{
    if (vector >= dev->msix_vectors || !pci_msix_enabled(dev)) {
        return;
    }
    if (vector_masked(dev, vector)) {
        dev->msix_pending[vector / 64] |= BIT64(vector % 64);
    } else {
        send(dev, vector);
    }
}

static void send_pending(struct pci_dev *dev, unsigned vector)
{
    uint64_t *word = &dev->msix_pending[vector / 64];
    if ((*word & BIT64(vector % 64)) && pci_msix_enabled(dev) && !vector_masked(dev, vector)) {
        *word &= ~BIT64(vector % 64);
        send(dev, vector);
    }
}

void pci_msix_control_written(struct pci_dev *dev)
{
    for (unsigned i = 0; i < dev->msix_vectors; i++) {
        send_pending(dev, i);
    }
}

static uint32_t pba_bytes(const struct pci_dev *dev)
{
    return (dev->msix_vectors + 63) / 64 * 8;
}

bool pci_msix_claims(const struct pci_dev *dev, unsigned bar, uint64_t offset)
{
    return dev->msix_cap && bar == dev->msix_bar &&
           ((offset >= dev->msix_table && offset - dev->msix_table < dev->msix_vectors * ENTRY_BYTES) ||
            (offset >= dev->msix_pba && offset - dev->msix_pba < pba_bytes(dev)));
}

/* The specification allows aligned 4 and 8 byte accesses; others read as zeros and write nothing. */
static bool well_formed(uint64_t offset, unsigned size)
{
    return (size == 4 || size == 8) && offset % size == 0;
}

uint64_t pci_msix_read(const struct pci_dev *dev, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (!well_formed(offset, size)) {
        return 0;
    }
    bool table = offset >= dev->msix_table && offset - dev->msix_table < dev->msix_vectors * ENTRY_BYTES;
    const uint8_t *bytes = table ? (const uint8_t *)dev->msix : (const uint8_t *)dev->msix_pending;
    memcpy(&value, bytes + (offset - (table ? dev->msix_table : dev->msix_pba)), size);
    return value;
}

void pci_msix_write(struct pci_dev *dev, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t at = offset - dev->msix_table;
    if (!well_formed(offset, size) || offset < dev->msix_table || at >= dev->msix_vectors * ENTRY_BYTES) {
        return; /* the pending bits are read-only */
    }
    unsigned vector = (unsigned)(at / ENTRY_BYTES);
    for (unsigned i = 0; i < size; i += 4, value >>= 32) {
        unsigned word = (unsigned)((at + i) % ENTRY_BYTES / 4);
        dev->msix[vector].word[word] = (uint32_t)value & (word == 3 ? VECTOR_MASKED : UINT32_MAX);
    }
    send_pending(dev, vector);
}
