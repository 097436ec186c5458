/*
 * A virtio driver for device tests, in-process: finds the device on its PCI bus, negotiates, makes rings in
 * guest memory, and sees the answers. vdrv_run() is the main loop's part.
 */
#ifndef FONDA_TESTS_UNIT_VDRV_H
#define FONDA_TESTS_UNIT_VDRV_H

#include <string.h>

#include "base/util.h"
#include "dev/pci/pci.h"
#include "dev/virtio/virtio_pci.h"
#include "mem/mem.h"
#include "tests/unit/unit.h"

#define VDRV_RAM     (16 * MiB)
#define VDRV_ECAM    0xc0000000u
#define VDRV_WINDOW  0xd0000000u
#define VDRV_QUEUES  40u
#define VDRV_RINGS   (1 * MiB) /* ring q lies at VDRV_RINGS + q * VDRV_RING_STEP */
#define VDRV_STEP    0x4000u
#define VDRV_DATA    (4 * MiB) /* for the tests' buffers */
#define VDRV_ENTRIES 16u

#define VDRV_NEXT     1u
#define VDRV_WRITE    2u
#define VDRV_INDIRECT 4u

struct vdrv_queue {
    uint16_t avail_idx, used_seen, next_desc;
};

struct vdrv {
    struct mem *mem;
    struct pci_host *host;
    struct virtio_pci *vp;
    struct vdev *dev;
    uint64_t bar;
    unsigned msis;
    unsigned msi_count[64]; /* by data */
    bool intx[PCI_INTX_LINES];
    struct vdrv_queue queues[VDRV_QUEUES];
};

static inline void vdrv_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct vdrv *drv = opaque;
    drv->msis++;
    drv->msi_count[data % 64]++;
}

static inline void vdrv_intx(void *opaque, unsigned n, bool level)
{
    ((struct vdrv *)opaque)->intx[n] = level;
}

static inline void vdrv_open_bus(struct vdrv *drv)
{
    memset(drv, 0, sizeof(*drv));
    assert_int_equal(mem_new(VDRV_RAM, &drv->mem, NULL), 0);
    struct pci_host_config config = {.mem = drv->mem,
                                     .ecam_base = VDRV_ECAM,
                                     .window_base = VDRV_WINDOW,
                                     .window_size = 1u << 20,
                                     .msi = vdrv_msi,
                                     .opaque = drv};
    for (unsigned i = 0; i < PCI_INTX_LINES; i++) {
        config.intx[i] = (struct irq_line){vdrv_intx, drv, i};
        config.intx_number[i] = (uint8_t)(16 + i);
    }
    drv->host = pci_host_new(&config, NULL);
    assert_non_null(drv->host);
}

static inline uint32_t vdrv_config(const struct vdrv *drv, unsigned slot, unsigned offset, unsigned size)
{
    return (uint32_t)mem_mmio_read(drv->mem, GPA(VDRV_ECAM + (slot << 15) + offset), size);
}

static inline void vdrv_set_config(const struct vdrv *drv, unsigned slot, unsigned offset, unsigned size,
                                   uint32_t v)
{
    mem_mmio_write(drv->mem, GPA(VDRV_ECAM + (slot << 15) + offset), size, v);
}

static inline uint64_t vdrv_in(const struct vdrv *drv, unsigned offset, unsigned size)
{
    return mem_mmio_read(drv->mem, GPA(drv->bar + offset), size);
}

static inline void vdrv_out(const struct vdrv *drv, unsigned offset, unsigned size, uint64_t value)
{
    mem_mmio_write(drv->mem, GPA(drv->bar + offset), size, value);
}

/* Offsets of the common configuration: virtio 1.2 section 4.1.4.3. */
enum {
    C_DEVICE_SELECT = 0,
    C_DEVICE_FEATURE = 4,
    C_DRIVER_SELECT = 8,
    C_DRIVER_FEATURE = 12,
    C_CONFIG_VECTOR = 16,
    C_NUM_QUEUES = 18,
    C_STATUS = 20,
    C_GENERATION = 21,
    C_QUEUE = 22,
    C_SIZE = 24,
    C_VECTOR = 26,
    C_ENABLE = 28,
    C_DESC = 32,
    C_DRIVER = 40,
    C_DEVICE = 48,
    C_ISR = 0x1000,
    C_SPACE = 0x2000,
    C_NOTIFY = 0x3000,
    C_TABLE = 0x4000,
    C_PBA = 0x5000,
};

static inline void vdrv_run(const struct vdrv *drv)
{
    for (unsigned i = 0; i < 1000 && atomic_load(&drv->dev->run_wanted); i++) {
        vdev_run(drv->dev);
    }
    assert_false(atomic_load(&drv->dev->run_wanted)); /* nothing spins */
}

/* Puts a device on the bus; drv owns it. */
static inline void vdrv_open(struct vdrv *drv, struct vdev *dev)
{
    assert_non_null(dev);
    drv->vp = virtio_pci_new(drv->host, dev, NULL);
    assert_non_null(drv->vp);
    drv->dev = dev;
    struct device *host = pci_host_device(drv->host);
    host->ops->reset(host);
    drv->bar = vdrv_config(drv, 1, 0x10, 4) & ~0xfu;
    assert_true(drv->bar >= VDRV_WINDOW);
    vdrv_set_config(drv, 1, 4, 2, 6);
}

static inline void vdrv_close(struct vdrv *drv)
{
    struct device *device = drv->vp ? virtio_pci_device(drv->vp) : NULL;
    if (device) {
        char text[2048];
        assert_true(device->ops->describe(device, text, sizeof(text)) < sizeof(text));
        assert_true(device->ops->describe(device, text, 7) <= 7);
        device->ops->reset(device);
        device->ops->free(device);
    }
    pci_host_device(drv->host)->ops->free(pci_host_device(drv->host));
    mem_free(drv->mem);
}

static inline uint64_t vdrv_offered(const struct vdrv *drv)
{
    vdrv_out(drv, C_DEVICE_SELECT, 4, 1);
    uint64_t high = vdrv_in(drv, C_DEVICE_FEATURE, 4);
    vdrv_out(drv, C_DEVICE_SELECT, 4, 0);
    return high << 32 | vdrv_in(drv, C_DEVICE_FEATURE, 4);
}

static inline uint64_t vdrv_ring(unsigned queue)
{
    return VDRV_RINGS + (uint64_t)queue * VDRV_STEP;
}

static inline void vdrv_setup_queue(struct vdrv *drv, unsigned queue)
{
    uint64_t base = vdrv_ring(queue);
    static const uint8_t zero[VDRV_STEP];
    mem_write(drv->mem, GPA(base), zero, sizeof(zero));
    drv->queues[queue] = (struct vdrv_queue){0};
    vdrv_out(drv, C_QUEUE, 2, queue);
    vdrv_out(drv, C_SIZE, 2, VDRV_ENTRIES);
    vdrv_out(drv, C_VECTOR, 2, queue + 1);
    vdrv_out(drv, C_DESC, 4, base);
    vdrv_out(drv, C_DESC + 4, 4, 0);
    vdrv_out(drv, C_DRIVER, 4, base + 0x1000);
    vdrv_out(drv, C_DRIVER + 4, 4, 0);
    vdrv_out(drv, C_DEVICE, 8, base + 0x2000);
    vdrv_out(drv, C_ENABLE, 2, 1);
}

static inline void vdrv_reset(struct vdrv *drv)
{
    vdrv_out(drv, C_STATUS, 1, 0);
    vdrv_run(drv);
    if (drv->dev->ops->drain) {
        drv->dev->ops->drain(drv->dev);
    }
    assert_int_equal(vdrv_in(drv, C_STATUS, 1), 0);
}

/* Negotiates features (of what is offered) and starts all queues. MSI-X vector 0 is the configuration's, q +
 * 1 queue q's, with the same numbers as data. */
static inline void vdrv_start(struct vdrv *drv, uint64_t features)
{
    vdrv_reset(drv);
    features &= vdrv_offered(drv);
    vdrv_out(drv, C_STATUS, 1, 3);
    vdrv_out(drv, C_DRIVER_SELECT, 4, 0);
    vdrv_out(drv, C_DRIVER_FEATURE, 4, (uint32_t)features);
    vdrv_out(drv, C_DRIVER_SELECT, 4, 1);
    vdrv_out(drv, C_DRIVER_FEATURE, 4, features >> 32);
    vdrv_out(drv, C_STATUS, 1, 11);
    assert_int_equal(vdrv_in(drv, C_STATUS, 1), 11);
    unsigned queues = (unsigned)vdrv_in(drv, C_NUM_QUEUES, 2);
    assert_true(queues <= VDRV_QUEUES);
    vdrv_set_config(drv, 1, drv->dev ? 0x42 : 0, 2, 0x8000); /* MSI-X is the first capability */
    for (unsigned i = 0; i <= queues; i++) {
        vdrv_out(drv, C_TABLE + 16 * i, 4, 0xfee00000);
        vdrv_out(drv, C_TABLE + 16 * i + 8, 4, i);
        vdrv_out(drv, C_TABLE + 16 * i + 12, 4, 0);
    }
    vdrv_out(drv, C_CONFIG_VECTOR, 2, 0);
    for (unsigned i = 0; i < queues; i++) {
        vdrv_setup_queue(drv, i);
    }
    vdrv_out(drv, C_STATUS, 1, 15);
    vdrv_run(drv);
    assert_int_equal(vdrv_in(drv, C_STATUS, 1), 15);
}

static inline void vdrv_put(const struct vdrv *drv, uint64_t gpa, uint64_t value, unsigned bytes)
{
    assert_int_equal(mem_write(drv->mem, GPA(gpa), &value, bytes), 0);
}

static inline uint64_t vdrv_get(const struct vdrv *drv, uint64_t gpa, unsigned bytes)
{
    uint64_t value = 0;
    assert_int_equal(mem_read(drv->mem, GPA(gpa), &value, bytes), 0);
    return value;
}

static inline void vdrv_desc(const struct vdrv *drv, uint64_t table, unsigned index, uint64_t addr,
                             uint32_t len, unsigned flags, unsigned next)
{
    uint64_t at = table + 16 * index;
    vdrv_put(drv, at, addr, 8);
    vdrv_put(drv, at + 8, len, 4);
    vdrv_put(drv, at + 12, flags, 2);
    vdrv_put(drv, at + 14, next, 2);
}

/* Makes a head available, without a notification. */
static inline void vdrv_avail(struct vdrv *drv, unsigned queue, uint16_t head)
{
    struct vdrv_queue *q = &drv->queues[queue];
    uint64_t avail = vdrv_ring(queue) + 0x1000;
    vdrv_put(drv, avail + 4 + 2 * (q->avail_idx % VDRV_ENTRIES), head, 2);
    vdrv_put(drv, avail + 2, ++q->avail_idx, 2);
}

struct vdrv_buf {
    uint64_t gpa;
    uint32_t len;
    bool write;
};

/* One chain of direct descriptors; returns its head. */
static inline uint16_t vdrv_add(struct vdrv *drv, unsigned queue, const struct vdrv_buf *bufs, unsigned count)
{
    struct vdrv_queue *q = &drv->queues[queue];
    uint16_t head = q->next_desc;
    for (unsigned i = 0; i < count; i++) {
        unsigned at = q->next_desc, next = (at + 1) % VDRV_ENTRIES;
        vdrv_desc(drv, vdrv_ring(queue), at, bufs[i].gpa, bufs[i].len,
                  (i + 1 < count ? VDRV_NEXT : 0) | (bufs[i].write ? VDRV_WRITE : 0), next);
        q->next_desc = (uint16_t)next;
    }
    vdrv_avail(drv, queue, head);
    return head;
}

static inline void vdrv_kick(const struct vdrv *drv, unsigned queue)
{
    vdrv_out(drv, C_NOTIFY + 4 * queue, 2, queue);
    vdrv_run(drv);
}

/* Takes the next used entry: true and the bytes written, or false when there is none. */
static inline bool vdrv_used(struct vdrv *drv, unsigned queue, uint32_t *ret_len)
{
    struct vdrv_queue *q = &drv->queues[queue];
    uint64_t used = vdrv_ring(queue) + 0x2000;
    if ((uint16_t)vdrv_get(drv, used + 2, 2) == q->used_seen) {
        return false;
    }
    *ret_len = (uint32_t)vdrv_get(drv, used + 4 + 8 * (q->used_seen % VDRV_ENTRIES) + 4, 4);
    q->used_seen++;
    return true;
}

static inline bool vdrv_needs_reset(const struct vdrv *drv)
{
    return vdrv_in(drv, C_STATUS, 1) & VIRTIO_NEEDS_RESET;
}

/* Random rings, kicks and register writes: whatever comes, the device lives, and works after a reset. */
static inline void vdrv_hammer(struct vdrv *drv, uint64_t features, unsigned rounds)
{
    uint64_t rng = unit_seed();
    unsigned queues = drv->dev->queue_count;
    for (unsigned round = 0; round < rounds; round++) {
        vdrv_start(drv, features | VIRTIO_F_COMMON);
        for (unsigned step = 0; step < 40; step++) {
            unsigned queue = (unsigned)(unit_random(&rng) % queues);
            uint64_t ring = vdrv_ring(queue);
            for (unsigned i = 0; i < VDRV_ENTRIES; i++) {
                uint64_t r = unit_random(&rng);
                uint64_t addr = VDRV_DATA + (r >> 8) % (4 * MiB);
                uint32_t len = (uint32_t)(r >> 40) % (r & 1 ? 64 : 5000);
                unsigned flags = (unsigned)(r >> 56) & 3; /* seldom anything odd, so that much gets through */
                flags |= r % 61 == 0 ? VDRV_INDIRECT : 0;
                addr = r % 67 == 0 ? unit_random(&rng) : addr;
                vdrv_desc(drv, ring, i, addr, len + 1, flags, (i + 1 + (r % 37 == 0)) % VDRV_ENTRIES);
                vdrv_put(drv, VDRV_DATA + (r >> 8) % (4 * MiB), unit_random(&rng) & 0x0f0f0f, 8);
            }
            unsigned n = (unsigned)(unit_random(&rng) % 4);
            for (unsigned i = 0; i < n; i++) {
                vdrv_avail(drv, queue, (uint16_t)(unit_random(&rng) % (VDRV_ENTRIES + (step == 39))));
            }
            vdrv_kick(drv, queue);
            if (unit_random(&rng) % 16 == 0) {
                unsigned at = (unsigned)(unit_random(&rng) % 0x40);
                vdrv_out(drv, unit_random(&rng) & 1 ? at : C_SPACE + at, 1u << (unit_random(&rng) % 4),
                         unit_random(&rng) % 300);
                vdrv_run(drv);
            }
        }
    }
    vdrv_reset(drv);
}

#endif
