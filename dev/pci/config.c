/*
 * A function's configuration space: what the guest may write, capabilities, BAR sizing. See pci.h.
 *
 * BAR sizing needs no code of its own: the address bits below the size are not writable, so that all ones
 * written read back as the size's mask (PCI 3.0 section 6.2.5.1).
 */
#include <errno.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"
#include "dev/pci/pci_int.h"

void pci_dev_init(struct pci_dev *dev, const char *name, const struct pci_id *id)
{
    *dev = (struct pci_dev){.name = name, .cap_free = PCI_HEADER_END};
    pci_put16(dev, PCI_VENDOR, id->vendor);
    pci_put16(dev, PCI_DEVICE, id->device);
    dev->config[PCI_REVISION] = id->revision;
    dev->config[PCI_CLASS] = (uint8_t)id->class_code;
    pci_put16(dev, PCI_CLASS + 1, (uint16_t)(id->class_code >> 8));
    pci_put16(dev, PCI_SUBVENDOR, id->subsystem_vendor);
    pci_put16(dev, PCI_SUBSYSTEM, id->subsystem);
    dev->writable[PCI_COMMAND] = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    dev->writable[PCI_COMMAND + 1] = PCI_COMMAND_NO_INTX >> 8;
    dev->writable[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_dev_add_bar(struct pci_dev *dev, unsigned index, uint32_t size, const struct mem_io_ops *ops,
                     void *opaque)
{
    dev->bars[index] = (struct pci_bar){size, ops, opaque};
    uint32_t mask = ~(size - 1);
    for (unsigned i = 0; i < 4; i++) {
        dev->writable[PCI_BAR0 + index * 4 + i] = (uint8_t)(mask >> (8 * i));
    }
    /* Offers no I/O space, so bits 3:0 stay zero: 32-bit memory, not prefetchable. */
}

unsigned pci_dev_add_cap(struct pci_dev *dev, uint8_t id, unsigned bytes)
{
    unsigned at = dev->cap_free;
    if (bytes < 2 || at + bytes > PCI_CONFIG_BYTES) {
        return 0;
    }
    unsigned next = (unsigned)align_up(at + bytes, 4);
    dev->cap_free = (uint8_t)MIN(next, PCI_CONFIG_BYTES - 1); /* 255: no room for any other */
    dev->config[at] = id;
    dev->config[at + 1] = 0;
    dev->config[dev->cap_last ? dev->cap_last + 1u : PCI_CAP_POINTER] = (uint8_t)at;
    dev->cap_last = (uint8_t)at;
    dev->config[PCI_STATUS] |= PCI_STATUS_CAPS;
    return at;
}

void pci_config_reset(struct pci_dev *dev)
{
    memcpy(dev->config, dev->initial, sizeof(dev->config));
    dev->intx = false;
    pci_msix_reset(dev);
}

uint32_t pci_config_read(struct pci_dev *dev, unsigned offset, unsigned size)
{
    if (dev->config_read) {
        dev->config_read(dev, offset, size);
    }
    uint32_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint32_t)dev->config[offset + i] << (8 * i);
    }
    return value;
}

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned bytes)
{
    return offset < first + bytes && first < offset + size;
}

void pci_config_write(struct pci_dev *dev, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = dev->writable[offset + i];
        uint8_t *byte = &dev->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((uint8_t)(value >> (8 * i)) & mask));
    }
    if (touches(offset, size, PCI_COMMAND, 2)) {
        pci_host_bars_changed(dev->host);
        pci_host_intx_changed(dev->host, dev->slot);
    } else if (touches(offset, size, PCI_BAR0, PCI_BARS * 4)) {
        pci_host_bars_changed(dev->host);
    }
    if (dev->msix_cap && touches(offset, size, dev->msix_cap + 2u, 2)) {
        pci_msix_control_written(dev);
    }
    if (dev->config_written) {
        dev->config_written(dev, offset, size);
    }
}

/* The bits that the guest can't write say what the function is: they have to be those of this one. */
void pci_dev_state(struct pci_dev *dev, struct state *s)
{
    uint8_t config[PCI_CONFIG_BYTES];
    uint32_t slot = dev->slot;
    bool same = true;
    memcpy(config, dev->config, sizeof(config));
    state_prefix(s, "pci.");
    state_field(s, "slot", &slot);
    state_require(s, slot == dev->slot, "slot");
    state_array(s, "config", config);
    for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++) {
        uint8_t volatile_bits = i == PCI_STATUS ? PCI_STATUS_INTERRUPT : 0;
        bool window = dev->config_read && i >= PCI_HEADER_END; /* data that a capability's window last read */
        same &= window || !((config[i] ^ dev->initial[i]) & (uint8_t) ~(dev->writable[i] | volatile_bits));
    }
    state_require(s, same, "config");
    state_field(s, "intx", &dev->intx);
    uint32_t vectors = dev->msix_vectors;
    state_field(s, "msix_vectors", &vectors);
    state_require(s, vectors == dev->msix_vectors, "msix_vectors");
    state_raw(s, "msix_table", STATE_U32, dev->msix, sizeof(dev->msix[0]) * dev->msix_vectors);
    state_array(s, "msix_pending", dev->msix_pending);
    state_no_prefix(s);
    if (state_loaded(s)) {
        for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++) {
            dev->config[i] =
                (uint8_t)((dev->initial[i] & ~dev->writable[i]) | (config[i] & dev->writable[i]));
        }
        dev->config[PCI_STATUS] |= dev->intx ? PCI_STATUS_INTERRUPT : 0;
        pci_host_bars_changed(dev->host);
    }
}
