/*
 * See hotplug.h.
 *
 * Invariants
 *  1. asked has a bit exactly for the slots that the owner wants back; only those can be ejected.
 *  2. The level of the SCI follows from status and enable alone.
 */
#include "dev/pci/hotplug.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"
#include "dev/pci/pci_int.h"

#define REG_STATUS 0u
#define REG_ENABLE 2u
#define REG_UP     4u
#define REG_DOWN   8u
#define REG_EJECT  12u

#define EVENTS BIT(PCI_HOTPLUG_GPE)

struct pci_hotplug {
    struct device device;
    struct pci_hotplug_config config;
    void (*ejected)(void *opaque, unsigned slot);
    void *owner;
    uint16_t status, enable;
    uint32_t up, down, asked;
    uint64_t refused; /* ejections of what was not asked for */
};

static void update(struct pci_hotplug *hp)
{
    hp->config.sci(hp->config.opaque, hp->status & hp->enable & EVENTS);
}

static void raise_event(struct pci_hotplug *hp)
{
    hp->status |= EVENTS;
    update(hp);
}

static void eject(struct pci_hotplug *hp, unsigned slot)
{
    hp->asked &= ~BIT(slot);
    hp->down &= ~BIT(slot);
    hp->up &= ~BIT(slot);
    pci_host_eject(hp->config.host, slot);
    if (hp->ejected) {
        hp->ejected(hp->owner, slot);
    }
}

static void eject_written(struct pci_hotplug *hp, uint32_t slots)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (slots & hp->asked & BIT(slot)) {
            eject(hp, slot);
            slots &= ~BIT(slot);
        }
    }
    hp->refused += slots != 0;
}

/* --- the ports --- */

static uint64_t hotplug_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_hotplug *hp = opaque;
    uint8_t bytes[PCI_HOTPLUG_PORTS + 8] = {0};
    uint64_t value = 0;
    memcpy(bytes + REG_STATUS, &hp->status, sizeof(hp->status));
    memcpy(bytes + REG_ENABLE, &hp->enable, sizeof(hp->enable));
    memcpy(bytes + REG_UP, &hp->up, sizeof(hp->up));
    memcpy(bytes + REG_DOWN, &hp->down, sizeof(hp->down));
    memcpy(&value, bytes + offset, size);
    return value;
}

/* The event registers are bytes to the guest's ACPI code; the others are written as a whole or not at all. */
static void hotplug_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_hotplug *hp = opaque;
    if (offset >= REG_UP) {
        uint32_t slots = (uint32_t)value;
        if (size != 4) {
            return;
        }
        switch (offset) {
        case REG_UP: hp->up &= ~slots; break;
        case REG_DOWN: hp->down &= ~slots; break;
        case REG_EJECT: eject_written(hp, slots); break;
        default: break;
        }
        return;
    }
    for (unsigned i = 0; i < size && offset + i < REG_UP; i++, value >>= 8) {
        unsigned at = (unsigned)offset + i, shift = 8 * (at & 1);
        uint16_t mask = (uint16_t)(0xffu << shift), bits = (uint16_t)((value & 0xff) << shift);
        if (at < REG_ENABLE) {
            hp->status &= (uint16_t)~bits;
        } else {
            hp->enable = (uint16_t)((hp->enable & ~mask) | (bits & EVENTS));
        }
    }
    update(hp);
}

static const struct mem_io_ops hotplug_io = {hotplug_read, hotplug_write};

/* --- the owner's side --- */

void pci_hotplug_set_owner(struct pci_hotplug *hp, void (*ejected)(void *opaque, unsigned slot), void *opaque)
{
    hp->ejected = ejected;
    hp->owner = opaque;
}

void pci_hotplug_changed(struct pci_hotplug *hp, unsigned slot)
{
    hp->up |= BIT(slot);
    raise_event(hp);
}

void pci_hotplug_ask(struct pci_hotplug *hp, unsigned slot)
{
    hp->asked |= BIT(slot);
    hp->down |= BIT(slot);
    raise_event(hp);
}

void pci_hotplug_forget(struct pci_hotplug *hp, unsigned slot)
{
    hp->asked &= ~BIT(slot);
    hp->down &= ~BIT(slot);
}

bool pci_hotplug_asked(const struct pci_hotplug *hp, unsigned slot)
{
    return hp->asked & BIT(slot);
}

/* --- life --- */

/* No driver holds anything any more: what was asked for goes now. */
static void hotplug_reset(struct device *device)
{
    struct pci_hotplug *hp = CONTAINER_OF(device, struct pci_hotplug, device);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (hp->asked & BIT(slot)) {
            eject(hp, slot);
        }
    }
    hp->status = hp->enable = 0;
    hp->up = hp->down = 0;
    update(hp);
}

static void hotplug_free(struct device *device)
{
    free(CONTAINER_OF(device, struct pci_hotplug, device));
}

static unsigned hotplug_describe(const struct device *device, char *buf, unsigned size)
{
    const struct pci_hotplug *hp = CONTAINER_OF(device, const struct pci_hotplug, device);
    int n = snprintf(buf, size, "gpe sts=%04x en=%04x up=%08x down=%08x asked=%08x refused=%llu\n",
                     hp->status, hp->enable, hp->up, hp->down, hp->asked, (unsigned long long)hp->refused);
    return MIN((unsigned)MAX(n, 0), size);
}

static void hotplug_state(struct device *device, struct state *s)
{
    struct pci_hotplug *hp = CONTAINER_OF(device, struct pci_hotplug, device);
    state_field(s, "status", &hp->status);
    state_field(s, "enable", &hp->enable);
    state_field(s, "up", &hp->up);
    state_field(s, "down", &hp->down);
    state_field(s, "asked", &hp->asked);
    state_require(s, !(hp->asked & 1), "asked"); /* the bridge stays */
    if (state_loaded(s)) {
        hp->status &= EVENTS;
        hp->enable &= EVENTS;
        update(hp);
    }
}

static const struct device_ops hotplug_ops = {.name = "pci-hotplug",
                                              .newer = true,
                                              .reset = hotplug_reset,
                                              .free = hotplug_free,
                                              .describe = hotplug_describe,
                                              .state = hotplug_state};

struct pci_hotplug *pci_hotplug_new(const struct pci_hotplug_config *config, struct err *err)
{
    struct pci_hotplug *hp = calloc(1, sizeof(*hp));
    if (!hp) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    hp->device.ops = &hotplug_ops;
    hp->config = *config;
    if (mem_add_pio(config->mem, config->base, PCI_HOTPLUG_PORTS, &hotplug_io, hp, "pci-hotplug", err) < 0) {
        free(hp);
        return NULL;
    }
    return hp;
}

struct device *pci_hotplug_device(struct pci_hotplug *hp)
{
    return &hp->device;
}
