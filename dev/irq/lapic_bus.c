/*
 * The bus between local APICs: who a message is for (SDM 10.6.2), the interrupt command register, and the
 * memory page that shows each vCPU thread its own LAPIC.
 */
#include "dev/irq/lapic_int.h"

#include <errno.h>

/* SDM figure 10-12: interrupt command register. */
#define ICR_VECTOR(icr)    ((uint8_t)(icr))
#define ICR_MODE(icr)      ((uint8_t)(((icr) >> 8) & 7))
#define ICR_LOGICAL        BIT64(11)
#define ICR_ASSERT         BIT64(14)
#define ICR_LEVEL          BIT64(15)
#define ICR_SHORTHAND(icr) (((icr) >> 18) & 3)

enum icr_shorthand { TO_DEST, TO_SELF, TO_ALL, TO_OTHERS };

#define DFR_FLAT 0xfu

static _Thread_local struct lapic *bound_lapic;

void lapic_bind_thread(struct lapic *lapic)
{
    bound_lapic = lapic;
}

/* SDM 10.6.2.2 (xAPIC: flat and cluster model) and 10.12.10.2 (x2APIC). */
static bool matches_logical(const struct lapic *lapic, uint32_t dest)
{
    uint32_t ldr = lapic_ldr(lapic);
    if (lapic_x2apic(lapic)) {
        return (ldr >> 16) == (dest >> 16) && (ldr & dest & 0xffff);
    }
    if (dest > 0xff) {
        return false;
    }
    uint32_t mine = ldr >> 24;
    if ((lapic->dfr >> 28) == DFR_FLAT) {
        return mine & dest;
    }
    return dest == 0xff || ((mine >> 4) == (dest >> 4) && (mine & dest & 0xf));
}

static bool matches(const struct lapic *lapic, const struct apic_msg *msg)
{
    if (msg->dest == APIC_BROADCAST) {
        return true;
    }
    if (msg->logical) {
        return matches_logical(lapic, msg->dest);
    }
    return lapic->config.id == msg->dest;
}

/* Lowest priority: the enabled LAPIC with the lowest processor priority; equals take turns (SDM 10.6.2.4). */
static bool send_lowest(struct lapic_bus *bus, const struct apic_msg *msg)
{
    unsigned best = LAPIC_MAX;
    for (unsigned i = 1; i <= bus->count; i++) {
        unsigned k = (bus->last_lowest + i) % bus->count;
        const struct lapic *lapic = bus->lapics[k];
        if (matches(lapic, msg) && lapic_sw_enabled(lapic) &&
            (best == LAPIC_MAX || lapic_ppr(lapic) < lapic_ppr(bus->lapics[best]))) {
            best = k;
        }
    }
    if (best == LAPIC_MAX) {
        return false;
    }
    bus->last_lowest = best;
    return lapic_accept(bus->lapics[best], msg);
}

bool lapic_bus_send(void *opaque, const struct apic_msg *msg)
{
    struct lapic_bus *bus = opaque;
    if (msg->mode == APIC_MODE_LOWEST) {
        return send_lowest(bus, msg);
    }
    bool taken = false;
    for (unsigned i = 0; i < bus->count; i++) {
        if (matches(bus->lapics[i], msg)) {
            taken |= lapic_accept(bus->lapics[i], msg);
        }
    }
    return taken;
}

void lapic_send_icr(struct lapic *lapic)
{
    struct lapic_bus *bus = lapic->bus;
    uint64_t icr = lapic->icr;
    uint32_t dest = (uint32_t)(icr >> 32);
    bool logical = icr & ICR_LOGICAL;
    struct apic_msg msg = {
        .dest = lapic_x2apic(lapic) ? dest : apic_dest_from_8bit((uint8_t)(dest >> 24), logical),
        .logical = logical,
        .mode = ICR_MODE(icr),
        .vector = ICR_VECTOR(icr),
    };
    if (msg.mode == APIC_MODE_INIT && (icr & ICR_LEVEL) && !(icr & ICR_ASSERT)) {
        return; /* INIT level de-assert: nothing to do since the Pentium 4 (SDM 10.6.1) */
    }
    if (msg.mode == APIC_MODE_EXTINT) {
        return; /* reserved in the ICR */
    }
    if (msg.vector < 16 && (msg.mode == APIC_MODE_FIXED || msg.mode == APIC_MODE_LOWEST)) {
        lapic_error(lapic, ESR_SEND_VECTOR);
        return;
    }
    switch (ICR_SHORTHAND(icr)) {
    case TO_DEST: lapic_bus_send(bus, &msg); break;
    case TO_SELF:
        /* INIT, NMI, SMI and start-up to oneself are not valid (SDM table 10-3). */
        if (msg.mode == APIC_MODE_FIXED) {
            lapic_accept(lapic, &msg);
        }
        break;
    case TO_ALL:
    case TO_OTHERS:
        for (unsigned i = 0; i < bus->count; i++) {
            if (ICR_SHORTHAND(icr) == TO_ALL || bus->lapics[i] != lapic) {
                lapic_accept(bus->lapics[i], &msg);
            }
        }
        break;
    }
}

static uint64_t page_read(void *opaque, uint64_t offset, unsigned size)
{
    return bound_lapic && bound_lapic->bus == opaque ? lapic_mmio_read(bound_lapic, offset) : UINT64_MAX;
}

static void page_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    if (bound_lapic && bound_lapic->bus == opaque) {
        lapic_mmio_write(bound_lapic, offset, size, (uint32_t)value);
    }
}

static const struct mem_io_ops page_ops = {page_read, page_write};

struct lapic_bus *lapic_bus_new(const struct lapic_bus_config *config, struct err *err)
{
    struct lapic_bus *bus = calloc(1, sizeof(*bus));
    if (!bus) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    bus->config = *config;
    if (mem_add_mmio(config->mem, GPA(LAPIC_BASE), MEM_PAGE_SIZE, &page_ops, bus, "lapic", err) < 0) {
        free(bus);
        return NULL;
    }
    return bus;
}

void lapic_bus_free(struct lapic_bus *bus)
{
    free(bus);
}
