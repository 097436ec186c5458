/*
 * The host bridge: configuration by ports and ECAM, the memory window, interrupt lines. See pci.h.
 *
 * Invariants
 *  1. mapped[] lists what is decoded at this moment; it is made anew whenever a command register or a BAR
 *     changes. Where BARs overlap, the lower slot answers.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"
#include "dev/pci/pci_int.h"

#define PORT_ADDRESS 0xcf8u
#define PORTS        8u
#define PORT_CF9     1u /* offset */
#define PORT_DATA    4u /* offset */

#define ADDRESS_ENABLE BIT(31)

/* The IDs that pci.ids calls "QEMU PCIe Host bridge": a bridge without a driver. */
static const struct pci_id host_id = {0x1b36, 0x0008, 0x1af4, 0x1100, 0, 0x060000};

struct mapping {
    uint32_t base, size;
    struct pci_dev *dev;
    unsigned bar;
};

struct pci_host {
    struct device device;
    struct pci_host_config config;
    struct pci_dev bridge;
    struct pci_dev *slots[PCI_SLOTS];
    uint32_t address; /* port 0xcf8 */
    unsigned mapped_count, mapped_last;
    struct mapping mapped[PCI_SLOTS * PCI_BARS];
};

/* --- configuration --- */

static uint64_t config_read(struct pci_host *host, unsigned slot, unsigned function, unsigned offset,
                            unsigned size)
{
    struct pci_dev *dev = function == 0 ? host->slots[slot] : NULL;
    if (!dev) {
        return UINT64_MAX;
    }
    if (offset >= PCI_CONFIG_BYTES) {
        return 0; /* no extended capabilities */
    }
    uint64_t value = pci_config_read(dev, offset, MIN(size, 4));
    if (size == 8) {
        value |= (uint64_t)pci_config_read(dev, offset + 4, 4) << 32;
    }
    return value;
}

static void config_write(struct pci_host *host, unsigned slot, unsigned function, unsigned offset,
                         unsigned size, uint64_t value)
{
    struct pci_dev *dev = function == 0 ? host->slots[slot] : NULL;
    if (!dev || offset >= PCI_CONFIG_BYTES) {
        return;
    }
    pci_config_write(dev, offset, MIN(size, 4), (uint32_t)value);
    if (size == 8) {
        pci_config_write(dev, offset + 4, 4, (uint32_t)(value >> 32));
    }
}

/* An access that is not aligned to its size could leave a function's space half way. */
static bool aligned(uint64_t offset, unsigned size)
{
    return offset % size == 0;
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    return aligned(offset, size)
               ? config_read(opaque, (offset >> 15) & 31, (offset >> 12) & 7, (unsigned)offset & 0xfff, size)
               : UINT64_MAX;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (aligned(offset, size)) {
        config_write(opaque, (offset >> 15) & 31, (offset >> 12) & 7, (unsigned)offset & 0xfff, size, value);
    }
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;
    if (offset >= PORT_DATA) {
        unsigned reg = (host->address & 0xfc) + (unsigned)(offset - PORT_DATA);
        bool selected = (host->address & ADDRESS_ENABLE) && (host->address >> 16 & 0xff) == 0;
        return selected && aligned(offset, size)
                   ? config_read(host, host->address >> 11 & 31, host->address >> 8 & 7, reg, size)
                   : UINT64_MAX;
    }
    if (offset == 0 && size == 4) {
        return host->address;
    }
    if (offset == PORT_CF9 && size == 1 && host->config.port_cf9) {
        return host->config.port_cf9->read(host->config.port_cf9_opaque, 0, 1);
    }
    return UINT64_MAX;
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;
    if (offset >= PORT_DATA) {
        unsigned reg = (host->address & 0xfc) + (unsigned)(offset - PORT_DATA);
        bool selected = (host->address & ADDRESS_ENABLE) && (host->address >> 16 & 0xff) == 0;
        if (selected && aligned(offset, size)) {
            config_write(host, host->address >> 11 & 31, host->address >> 8 & 7, reg, size, value);
        }
    } else if (offset == 0 && size == 4) {
        host->address = (uint32_t)value & 0x80fffffc; /* PCI 3.0 section 3.2.2.3.2 */
    } else if (offset == PORT_CF9 && size == 1 && host->config.port_cf9) {
        host->config.port_cf9->write(host->config.port_cf9_opaque, 0, 1, value);
    }
}

/* --- the memory window --- */

static uint32_t bar_base(const struct pci_dev *dev, unsigned bar)
{
    return pci_get32(dev, PCI_BAR0 + bar * 4) & ~0xfu;
}

void pci_host_bars_changed(struct pci_host *host)
{
    const struct pci_host_config *config = &host->config;
    host->mapped_count = 0;
    host->mapped_last = 0;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        struct pci_dev *dev = host->slots[slot];
        if (!dev || !(dev->config[PCI_COMMAND] & PCI_COMMAND_MEMORY)) {
            continue;
        }
        for (unsigned bar = 0; bar < PCI_BARS; bar++) {
            uint32_t base = bar_base(dev, bar), size = dev->bars[bar].size;
            if (size && base >= config->window_base &&
                base - config->window_base <= config->window_size - size) {
                host->mapped[host->mapped_count++] = (struct mapping){base, size, dev, bar};
            }
        }
    }
}

static const struct mapping *find_mapping(struct pci_host *host, uint32_t address, unsigned size)
{
    for (unsigned i = 0; i < host->mapped_count; i++) {
        unsigned index = (host->mapped_last + i) % host->mapped_count;
        const struct mapping *map = &host->mapped[index];
        if (address >= map->base && address - map->base < map->size) {
            host->mapped_last = index;
            return map->size - (address - map->base) >= size ? map : NULL;
        }
    }
    return NULL;
}

static uint64_t window_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;
    uint32_t address = host->config.window_base + (uint32_t)offset;
    const struct mapping *map = find_mapping(host, address, size);
    if (!map) {
        return UINT64_MAX;
    }
    uint64_t at = address - map->base;
    if (pci_msix_claims(map->dev, map->bar, at)) {
        return pci_msix_read(map->dev, at, size);
    }
    const struct pci_bar *bar = &map->dev->bars[map->bar];
    return bar->ops->read(bar->opaque, at, size);
}

static void window_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;
    uint32_t address = host->config.window_base + (uint32_t)offset;
    const struct mapping *map = find_mapping(host, address, size);
    if (!map) {
        return;
    }
    uint64_t at = address - map->base;
    if (pci_msix_claims(map->dev, map->bar, at)) {
        pci_msix_write(map->dev, at, size, value);
        return;
    }
    const struct pci_bar *bar = &map->dev->bars[map->bar];
    bar->ops->write(bar->opaque, at, size, value);
}

/* --- interrupts --- */

void pci_host_send_msi(struct pci_host *host, uint64_t address, uint32_t data)
{
    host->config.msi(host->config.opaque, address, data);
}

/* A line is the or of the functions that share it. */
void pci_host_intx_changed(struct pci_host *host, unsigned slot)
{
    unsigned line = slot % PCI_INTX_LINES;
    bool level = false;
    for (unsigned i = line; i < PCI_SLOTS; i += PCI_INTX_LINES) {
        const struct pci_dev *dev = host->slots[i];
        level |= dev && dev->intx && !(pci_get16(dev, PCI_COMMAND) & PCI_COMMAND_NO_INTX);
    }
    irq_set(&host->config.intx[line], level);
}

void pci_intx_set(struct pci_dev *dev, bool level)
{
    if (level == dev->intx) {
        return;
    }
    dev->intx = level;
    dev->config[PCI_STATUS] =
        (uint8_t)((dev->config[PCI_STATUS] & ~PCI_STATUS_INTERRUPT) | (level ? PCI_STATUS_INTERRUPT : 0));
    if (dev->host) {
        pci_host_intx_changed(dev->host, dev->slot);
    }
}

/* --- life --- */

unsigned pci_host_free_slot(const struct pci_host *host)
{
    unsigned slot = 0;
    while (slot < PCI_SLOTS && host->slots[slot]) {
        slot++;
    }
    return slot;
}

int pci_host_attach_at(struct pci_host *host, struct pci_dev *dev, unsigned slot, struct err *err)
{
    if (slot >= PCI_SLOTS) {
        return err_set(err, -ENOSPC, "no slot for '%s': a machine has room for %u PCI devices", dev->name,
                       PCI_SLOTS - 1);
    }
    if (host->slots[slot]) {
        return err_set(err, -EEXIST, "slot %u has a device already", slot);
    }
    host->slots[slot] = dev;
    dev->host = host;
    dev->slot = slot;
    if (slot) {
        dev->config[PCI_INTERRUPT_PIN] = 1; /* INTA */
        dev->config[PCI_INTERRUPT_LINE] = host->config.intx_number[slot % PCI_INTX_LINES];
    }
    memcpy(dev->initial, dev->config, sizeof(dev->config));
    return 0;
}

int pci_host_attach(struct pci_host *host, struct pci_dev *dev, struct err *err)
{
    return pci_host_attach_at(host, dev, pci_host_free_slot(host), err);
}

void pci_dev_detach(struct pci_dev *dev)
{
    if (dev->host) {
        struct pci_host *host = dev->host;
        host->slots[dev->slot] = NULL;
        pci_host_bars_changed(host);
        pci_host_intx_changed(host, dev->slot);
        dev->host = NULL;
    }
}

void pci_host_eject(struct pci_host *host, unsigned slot)
{
    if (slot > 0 && slot < PCI_SLOTS && host->slots[slot]) {
        pci_dev_detach(host->slots[slot]);
    }
}

unsigned pci_host_devices(const struct pci_host *host)
{
    unsigned count = 0;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        count += host->slots[slot] != NULL;
    }
    return count;
}

/* What firmware would do: every BAR at its size's alignment, in the order of slots, memory decoding on. */
static void place_bars(struct pci_host *host)
{
    uint64_t next = host->config.window_base, end = next + host->config.window_size;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        struct pci_dev *dev = host->slots[slot];
        for (unsigned bar = 0; dev && bar < PCI_BARS; bar++) {
            uint64_t size = dev->bars[bar].size, base = size ? align_up(next, size) : 0;
            if (size && base + size <= end) {
                pci_put32(dev, PCI_BAR0 + bar * 4, (uint32_t)base);
                dev->config[PCI_COMMAND] |= PCI_COMMAND_MEMORY;
                next = base + size;
            }
        }
    }
    pci_host_bars_changed(host);
}

static void host_reset(struct device *device)
{
    struct pci_host *host = CONTAINER_OF(device, struct pci_host, device);
    host->address = 0;
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (host->slots[slot]) {
            pci_config_reset(host->slots[slot]);
        }
    }
    for (unsigned line = 0; line < PCI_INTX_LINES; line++) {
        irq_set(&host->config.intx[line], false);
    }
    place_bars(host);
}

static void host_free(struct device *device)
{
    free(CONTAINER_OF(device, struct pci_host, device));
}

static unsigned host_describe(const struct device *device, char *buf, unsigned size)
{
    const struct pci_host *host = CONTAINER_OF(device, const struct pci_host, device);
    unsigned used = 0;
    for (unsigned slot = 0; slot < PCI_SLOTS && used < size; slot++) {
        const struct pci_dev *dev = host->slots[slot];
        if (dev) {
            int n = snprintf(buf + used, size - used, "%02x:%s cmd=%04x bar0=%08x msix=%d intx=%d\n", slot,
                             dev->name, pci_get16(dev, PCI_COMMAND), bar_base(dev, 0), pci_msix_enabled(dev),
                             dev->intx);
            used += (unsigned)MAX(n, 0);
        }
    }
    return MIN(used, size);
}

static void host_state(struct device *device, struct state *s)
{
    struct pci_host *host = CONTAINER_OF(device, struct pci_host, device);
    state_field(s, "address", &host->address);
    pci_dev_state(&host->bridge, s);
}

static const struct device_ops host_ops = {.name = "pci-host",
                                           .reset = host_reset,
                                           .free = host_free,
                                           .describe = host_describe,
                                           .state = host_state};
static const struct mem_io_ops port_ops = {port_read, port_write};
static const struct mem_io_ops ecam_ops = {ecam_read, ecam_write};
static const struct mem_io_ops window_ops = {window_read, window_write};

struct pci_host *pci_host_new(const struct pci_host_config *config, struct err *err)
{
    struct pci_host *host = calloc(1, sizeof(*host));
    if (!host) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    host->device.ops = &host_ops;
    host->config = *config;
    pci_dev_init(&host->bridge, "bridge", &host_id);
    if (mem_add_pio(config->mem, PORT_ADDRESS, PORTS, &port_ops, host, "pci-config", err) < 0 ||
        mem_add_mmio(config->mem, GPA(config->ecam_base), PCI_ECAM_BYTES, &ecam_ops, host, "pci-ecam", err) <
            0 ||
        mem_add_mmio(config->mem, GPA(config->window_base), config->window_size, &window_ops, host,
                     "pci-window", err) < 0) {
        free(host);
        return NULL;
    }
    pci_host_attach(host, &host->bridge, NULL);
    host_reset(&host->device);
    return host;
}

struct device *pci_host_device(struct pci_host *host)
{
    return &host->device;
}
