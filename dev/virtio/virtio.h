/*
 * What every virtio device is made of, whatever its transport: feature negotiation, the life cycle, queues,
 * and the hand-over between vCPU threads and the main loop. Facts: virtio 1.2 chapters 2 and 3.
 *
 *     vCPU thread, under mem_lock()                 main loop
 *     status, features, queue addresses  --+
 *     notifications                      --+-wake--> vdev_run --> ops->start, ops->kick, ops->stop
 *     interrupts, config changes  <----------------- vdev_signal, vdev_config_changed
 *
 *                 DRIVER_OK                 vdev_run: start
 *     reset -------------------> activating ---------------> live
 *       ^                                                     |  status := 0, or the machine's reset
 *       |   vdev_run: stop, and nothing in flight any more    v
 *       +------------------------------------------------ resetting     (status does not read as 0 before)
 *
 * Queues belong to the main loop alone. The guest's registers (struct vdev_regs, setups) belong to
 * mem_lock().
 *
 * A guest's mistake latches DEVICE_NEEDS_RESET (2.1.2) and is counted; only a reset brings the device back.
 */
#ifndef FONDA_DEV_VIRTIO_VIRTIO_H
#define FONDA_DEV_VIRTIO_VIRTIO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"
#include "dev/device.h"
#include "dev/virtio/queue.h"
#include "mem/mem.h"

#define VDEV_QUEUES_MAX 64u
#define VDEV_CONFIG     UINT32_MAX /* instead of a queue's number: the configuration changed */

/* Device IDs: chapter 5. */
#define VIRTIO_ID_NET     1u
#define VIRTIO_ID_BLOCK   2u
#define VIRTIO_ID_CONSOLE 3u
#define VIRTIO_ID_RNG     4u
#define VIRTIO_ID_BALLOON 5u
#define VIRTIO_ID_9P      9u
#define VIRTIO_ID_VSOCK   19u

/* Device status: 2.1. */
#define VIRTIO_ACKNOWLEDGE 0x01u
#define VIRTIO_DRIVER      0x02u
#define VIRTIO_DRIVER_OK   0x04u
#define VIRTIO_FEATURES_OK 0x08u
#define VIRTIO_NEEDS_RESET 0x40u
#define VIRTIO_FAILED      0x80u

/* Feature bits of all devices: chapter 6. */
#define VIRTIO_F_INDIRECT_DESC BIT64(28)
#define VIRTIO_F_EVENT_IDX     BIT64(29)
#define VIRTIO_F_VERSION_1     BIT64(32)
#define VIRTIO_F_COMMON        (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1)

struct vdev;

/* A feature that makes sense only beside one of others. */
struct vdev_need {
    uint64_t feature, needs;
};

struct vdev_ops {
    const char *name; /* "virtio-blk" */
    uint16_t id;
    uint32_t class_code; /* PCI's, for people who list devices */
    /* Main loop. start: features and queues are set; may call vdev_fail. stop: forget the driver's state;
     * chains in flight are not pushed any more. busy: something may still touch guest memory; call vdev_idle
     * when it ended. drain: the machine resets or ends, so wait for it here. kick: a queue has something. */
    void (*start)(struct vdev *dev);
    void (*stop)(struct vdev *dev);
    bool (*busy)(const struct vdev *dev);
    void (*drain)(struct vdev *dev);
    void (*kick)(struct vdev *dev, unsigned queue);
    void (*free)(struct vdev *dev);
    /* vCPU thread, under mem_lock(). May be NULL. config_written: after the bytes went into dev->config. */
    bool (*config_writable)(const struct vdev *dev, unsigned offset, unsigned len);
    void (*config_written)(struct vdev *dev);
    const struct vdev_need *needs; /* a driver that breaks one is refused (2.2); may be NULL */
    unsigned need_count;
    /* May be NULL: a line of its own for struct device_ops.describe. */
    unsigned (*describe)(const struct vdev *dev, char *buf, unsigned size);
    /* Saves or loads what the model has beside queues and configuration; main loop. Nothing is in flight.
     * When loading, start has not run: this function does what has to be done of it. NULL: there is nothing.
     */
    void (*state)(struct vdev *dev, struct state *s);
};

struct vdev_counters {
    _Atomic uint64_t kicks, interrupts, suppressed, guest_errors;
};

struct vdev {
    const struct vdev_ops *ops;
    struct mem *mem;
    unsigned queue_count;
    uint64_t offered; /* features */
    uint8_t *config;  /* device configuration, little-endian; under mem_lock() */
    unsigned config_len;

    /* The guest's registers, under mem_lock(). */
    uint8_t status, config_generation;
    uint64_t driver_features;
    struct vq_setup setups[VDEV_QUEUES_MAX];
    bool activate_wanted, reset_wanted;
    uint64_t kicked; /* one bit per queue */

    /* The main loop's. */
    bool live;
    uint64_t features; /* negotiated, while live */
    struct vq queues[VDEV_QUEUES_MAX];
    struct vdev_counters counters;
    const char *why; /* of the last guest error, or NULL */

    /* The transport's and the owner's. */
    void (*interrupt)(void *transport, uint32_t queue); /* under mem_lock() */
    void *transport;
    void (*wake)(void *opaque); /* any thread: vdev_run is due */
    void *wake_opaque;
    _Atomic bool run_wanted;
};

/* Sets up the common part; the struct is zeroed. offered gets VIRTIO_F_COMMON added. */
void vdev_init(struct vdev *dev, const struct vdev_ops *ops, struct mem *mem, unsigned queues,
               uint64_t offered, void *config, unsigned config_len);

/* Withholds features from the driver, and those that need them. Before a guest runs. */
void vdev_forgo(struct vdev *dev, uint64_t features);

/* --- for device models: main loop --- */

/* Interrupts the driver if it wants to know about what was pushed. */
void vdev_signal(struct vdev *dev, unsigned queue);
/* The device's configuration changed: the caller changed dev->config under mem_lock() just now. */
void vdev_config_changed(struct vdev *dev);
/* The guest broke a rule; why is kept by reference. */
void vdev_fail(struct vdev *dev, const char *why);
/* What busy() told of has ended. */
void vdev_idle(struct vdev *dev);
/* Has a queue kicked again, from the main loop's next round. */
void vdev_again(struct vdev *dev, unsigned queue);
/* Pops as vq_pop does; a broken queue fails the device. Returns 1, or 0 when there is nothing (more) to do.
 */
int vdev_pop(struct vdev *dev, unsigned queue, struct vq_chain *chain);

static inline bool vdev_has(const struct vdev *dev, uint64_t feature)
{
    return (dev->features & feature) == feature;
}

/* --- for transports: under mem_lock() --- */
uint8_t vdev_status(const struct vdev *dev);
void vdev_set_status(struct vdev *dev, uint8_t status);
void vdev_set_features(struct vdev *dev, unsigned word, uint32_t value);
void vdev_notify(struct vdev *dev, unsigned queue);
void vdev_config_read(const struct vdev *dev, unsigned offset, unsigned len, void *buf);
void vdev_config_write(struct vdev *dev, unsigned offset, unsigned len, const void *buf);

/* --- for the owner --- */

/* Main loop, not under mem_lock(): does what the guest asked for since the last time. */
void vdev_run(struct vdev *dev);
/* Main loop, no vCPU runs: the machine's reset. */
void vdev_machine_reset(struct vdev *dev);
unsigned vdev_describe(const struct vdev *dev, char *buf, unsigned size);
/* Main loop, the vCPUs stand still: does what the guest asked for, and waits until nothing is in flight. */
void vdev_settle(struct vdev *dev);
/* Saves or loads, behind vdev_settle or a reset. Loading has all queues kicked. */
void vdev_state(struct vdev *dev, struct state *s);

#endif
