/*
 * The 82093AA I/O APIC: see ioapic.h.
 *
 * Invariants
 *  1. Remote IRR of an entry is set only while it is level-triggered, and from the moment a local APIC took
 *     its message until the EOI of that vector.
 *  2. An edge on a masked pin is ignored, not held (data sheet 3.2.4, "Interrupt Mask").
 */
#include "dev/irq/ioapic.h"

#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

/* Data sheet 3.1: memory-mapped registers. */
#define IOREGSEL      0x00u
#define IOWIN         0x10u
#define IOEOI         0x40u
#define IOAPIC_WINDOW 0x1000u
/* Data sheet 3.2: indirect registers. */
#define IOAPIC_ID     0x00u
#define IOAPIC_VER    0x01u
#define IOAPIC_ARB    0x02u
#define IOREDTBL      0x10u
#define IOREDTBL_LAST (IOREDTBL + 2 * IOAPIC_PINS - 1)

#define IOAPIC_VERSION ((IOAPIC_PINS - 1) << 16 | 0x20u)

/* Data sheet 3.2.4: redirection table entries. */
#define RTE_VECTOR(rte) ((uint8_t)(rte))
#define RTE_MODE(rte)   ((uint8_t)(((rte) >> 8) & 7))
#define RTE_LOGICAL     BIT64(11)
#define RTE_PENDING     BIT64(12)
#define RTE_REMOTE_IRR  BIT64(14)
#define RTE_LEVEL       BIT64(15)
#define RTE_MASKED      BIT64(16)
#define RTE_DEST(rte)   ((uint8_t)((rte) >> 56))
#define RTE_WRITABLE    (0xff0000000001ffffull & ~(RTE_PENDING | RTE_REMOTE_IRR))

struct ioapic {
    struct device device;
    apic_send_fn *send;
    void *send_opaque;
    uint8_t config_id;
    uint8_t id;
    uint8_t index;
    uint32_t lines; /* pins that are asserted */
    uint64_t rte[IOAPIC_PINS];
};

static bool pin_send(struct ioapic *ioapic, unsigned n)
{
    uint64_t rte = ioapic->rte[n];
    bool logical = rte & RTE_LOGICAL;
    struct apic_msg msg = {
        .dest = apic_dest_from_8bit(RTE_DEST(rte), logical),
        .logical = logical,
        .level = rte & RTE_LEVEL,
        .mode = RTE_MODE(rte),
        .vector = RTE_VECTOR(rte),
    };
    /* Only fixed and lowest priority can be level-triggered; a start-up message does not come from here. */
    if (msg.mode != APIC_MODE_FIXED && msg.mode != APIC_MODE_LOWEST) {
        msg.level = false;
    }
    if (msg.mode == 3 || msg.mode == APIC_MODE_STARTUP) {
        return false;
    }
    return ioapic->send(ioapic->send_opaque, &msg) && msg.level;
}

/* Sends what a level-triggered pin asks for, when nothing forbids it. */
static void pin_update_level(struct ioapic *ioapic, unsigned n)
{
    uint64_t rte = ioapic->rte[n];
    if ((rte & RTE_LEVEL) && !(rte & (RTE_MASKED | RTE_REMOTE_IRR)) && (ioapic->lines & BIT(n))) {
        /* Set before sending: the receiver may look, and the EOI may come from within. */
        ioapic->rte[n] |= RTE_REMOTE_IRR;
        if (!pin_send(ioapic, n)) {
            ioapic->rte[n] &= ~RTE_REMOTE_IRR;
        }
    }
}

void ioapic_set_irq(void *opaque, unsigned n, bool level)
{
    struct ioapic *ioapic = opaque;
    if (n >= IOAPIC_PINS) {
        return;
    }
    bool was = ioapic->lines & BIT(n);
    ioapic->lines = level ? ioapic->lines | BIT(n) : ioapic->lines & ~BIT(n);
    uint64_t rte = ioapic->rte[n];
    if (rte & RTE_LEVEL) {
        pin_update_level(ioapic, n);
    } else if (level && !was && !(rte & RTE_MASKED)) {
        pin_send(ioapic, n);
    }
}

void ioapic_eoi(void *opaque, uint8_t vector)
{
    struct ioapic *ioapic = opaque;
    for (unsigned n = 0; n < IOAPIC_PINS; n++) {
        uint64_t rte = ioapic->rte[n];
        if ((rte & RTE_LEVEL) && (rte & RTE_REMOTE_IRR) && RTE_VECTOR(rte) == vector) {
            ioapic->rte[n] &= ~RTE_REMOTE_IRR;
            pin_update_level(ioapic, n);
        }
    }
}

static void rte_write(struct ioapic *ioapic, unsigned reg, uint32_t value)
{
    unsigned n = (reg - IOREDTBL) / 2;
    uint64_t old = ioapic->rte[n];
    uint64_t rte =
        reg & 1 ? (old & UINT32_MAX) | (uint64_t)value << 32 : (old & ~(uint64_t)UINT32_MAX) | value;
    rte = (rte & RTE_WRITABLE) | (old & RTE_REMOTE_IRR);
    if (!(rte & RTE_LEVEL)) {
        rte &= ~RTE_REMOTE_IRR; /* how guests reset a pin of a chip that lacks the EOI register */
    }
    ioapic->rte[n] = rte;
    pin_update_level(ioapic, n);
}

static uint32_t indirect_read(const struct ioapic *ioapic)
{
    unsigned reg = ioapic->index;
    if (reg >= IOREDTBL && reg <= IOREDTBL_LAST) {
        uint64_t rte = ioapic->rte[(reg - IOREDTBL) / 2];
        return (uint32_t)(reg & 1 ? rte >> 32 : rte);
    }
    switch (reg) {
    case IOAPIC_ID:
    case IOAPIC_ARB: return (uint32_t)ioapic->id << 24;
    case IOAPIC_VER: return IOAPIC_VERSION;
    default: return 0; /* reserved */
    }
}

static void indirect_write(struct ioapic *ioapic, uint32_t value)
{
    unsigned reg = ioapic->index;
    if (reg == IOAPIC_ID) {
        ioapic->id = (value >> 24) & 0xf;
    } else if (reg >= IOREDTBL && reg <= IOREDTBL_LAST) {
        rte_write(ioapic, reg, value);
    }
}

static uint64_t ioapic_mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct ioapic *ioapic = opaque;
    uint32_t value = 0;
    switch (offset & ~3ull) {
    case IOREGSEL: value = ioapic->index; break;
    case IOWIN: value = indirect_read(ioapic); break;
    default: break;
    }
    return value >> (8 * (offset & 3));
}

static void ioapic_mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *ioapic = opaque;
    switch (offset) {
    case IOREGSEL: ioapic->index = (uint8_t)value; break; /* one byte is what the data sheet asks for */
    case IOWIN:
        if (size >= 4) {
            indirect_write(ioapic, (uint32_t)value);
        }
        break;
    case IOEOI: ioapic_eoi(ioapic, (uint8_t)value); break;
    default: break;
    }
}

static const struct mem_io_ops ioapic_ops = {ioapic_mmio_read, ioapic_mmio_write};

static void ioapic_reset(struct device *dev)
{
    struct ioapic *ioapic = CONTAINER_OF(dev, struct ioapic, device);
    ioapic->id = ioapic->config_id;
    ioapic->index = 0;
    for (unsigned n = 0; n < IOAPIC_PINS; n++) {
        ioapic->rte[n] = RTE_MASKED;
    }
}

static void ioapic_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct ioapic, device));
}

static unsigned ioapic_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct ioapic *ioapic = CONTAINER_OF(dev, const struct ioapic, device);
    unsigned len = (unsigned)MAX(snprintf(buf, size, "id=%u lines=%06x\n", ioapic->id, ioapic->lines), 0);
    for (unsigned n = 0; n < IOAPIC_PINS && len < size; n++) {
        if (ioapic->rte[n] != RTE_MASKED) {
            int ret =
                snprintf(buf + len, size - len, "pin %2u: %016llx\n", n, (unsigned long long)ioapic->rte[n]);
            len += (unsigned)MAX(ret, 0);
        }
    }
    return MIN(len, size);
}

static void ioapic_state(struct device *dev, struct state *s)
{
    struct ioapic *ioapic = CONTAINER_OF(dev, struct ioapic, device);
    state_field(s, "id", &ioapic->id);
    state_field(s, "index", &ioapic->index);
    state_field(s, "lines", &ioapic->lines);
    state_array(s, "redirection", ioapic->rte);
}

static const struct device_ops ioapic_device_ops = {.name = "ioapic",
                                                    .reset = ioapic_reset,
                                                    .free = ioapic_free,
                                                    .describe = ioapic_describe,
                                                    .state = ioapic_state};

struct ioapic *ioapic_new(const struct ioapic_config *config, struct err *err)
{
    struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
    if (!ioapic) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    ioapic->device.ops = &ioapic_device_ops;
    ioapic->send = config->send;
    ioapic->send_opaque = config->send_opaque;
    ioapic->config_id = config->id & 0xf;
    if (mem_add_mmio(config->mem, GPA(config->base), IOAPIC_WINDOW, &ioapic_ops, ioapic, "ioapic", err) < 0) {
        free(ioapic);
        return NULL;
    }
    ioapic_reset(&ioapic->device);
    return ioapic;
}

struct device *ioapic_device(struct ioapic *ioapic)
{
    return &ioapic->device;
}
