/* See virtio.h. Section numbers are those of virtio 1.2. */
#include "dev/virtio/virtio.h"

#include <stdio.h>
#include <string.h>

#include "base/state.h"

static void count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void vdev_init(struct vdev *dev, const struct vdev_ops *ops, struct mem *mem, unsigned queues,
               uint64_t offered, void *config, unsigned config_len)
{
    memset(dev, 0, sizeof(*dev));
    dev->ops = ops;
    dev->mem = mem;
    dev->queue_count = queues;
    dev->offered = offered | VIRTIO_F_COMMON;
    dev->config = config;
    dev->config_len = config_len;
    for (unsigned i = 0; i < queues; i++) {
        dev->setups[i].size = VQ_SIZE_MAX;
    }
}

static void wake(struct vdev *dev)
{
    if (!atomic_exchange(&dev->run_wanted, true) && dev->wake) {
        dev->wake(dev->wake_opaque);
    }
}

/* --- the guest's side --- */

uint8_t vdev_status(const struct vdev *dev)
{
    return dev->status;
}

static void clear_registers(struct vdev *dev)
{
    dev->status = 0;
    dev->driver_features = 0;
    dev->activate_wanted = false;
    dev->reset_wanted = false;
    dev->kicked = 0;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->setups[i] = (struct vq_setup){.size = VQ_SIZE_MAX};
    }
}

/* Those of `features` whose needs are not met. */
static uint64_t unmet(const struct vdev *dev, uint64_t features)
{
    uint64_t found = 0;
    for (unsigned i = 0; i < dev->ops->need_count; i++) {
        const struct vdev_need *need = &dev->ops->needs[i];
        if ((features & need->feature) && !(features & need->needs)) {
            found |= need->feature;
        }
    }
    return found;
}

void vdev_forgo(struct vdev *dev, uint64_t features)
{
    dev->offered &= ~(features & ~VIRTIO_F_VERSION_1);
    for (uint64_t more; (more = unmet(dev, dev->offered)) != 0;) {
        dev->offered &= ~more;
    }
}

static bool features_fit(const struct vdev *dev)
{
    uint64_t features = dev->driver_features;
    return (features & VIRTIO_F_VERSION_1) && !(features & ~dev->offered) && !unmet(dev, features);
}

void vdev_set_status(struct vdev *dev, uint8_t status)
{
    if (dev->reset_wanted) {
        return; /* until the reset is complete, the device takes no orders */
    }
    if (status == 0) {
        if (dev->status & VIRTIO_DRIVER_OK) {
            dev->reset_wanted = true;
            wake(dev);
        } else {
            clear_registers(dev);
        }
        return;
    }
    uint8_t added = status & (uint8_t)~dev->status;
    if ((added & VIRTIO_FEATURES_OK) && !features_fit(dev)) {
        status &= (uint8_t)~VIRTIO_FEATURES_OK; /* 2.2.2: the driver reads it back and gives up */
        count(&dev->counters.guest_errors);
    }
    /* 2.1.1: the driver clears no bit, and does not set the device's own. */
    dev->status |= status & (uint8_t)~VIRTIO_NEEDS_RESET;
    if ((added & VIRTIO_DRIVER_OK) && !(dev->status & VIRTIO_FEATURES_OK)) {
        dev->status = (uint8_t)((dev->status & ~VIRTIO_DRIVER_OK) | VIRTIO_NEEDS_RESET);
        count(&dev->counters.guest_errors);
    } else if (added & VIRTIO_DRIVER_OK) {
        dev->activate_wanted = true;
        wake(dev);
    }
}

void vdev_set_features(struct vdev *dev, unsigned word, uint32_t value)
{
    if (word < 2 && !(dev->status & VIRTIO_FEATURES_OK)) {
        dev->driver_features &= word ? UINT32_MAX : ~(uint64_t)UINT32_MAX;
        dev->driver_features |= (uint64_t)value << (32 * word);
    }
}

void vdev_notify(struct vdev *dev, unsigned queue)
{
    if (queue < dev->queue_count && (dev->status & VIRTIO_DRIVER_OK)) {
        count(&dev->counters.kicks);
        dev->kicked |= BIT64(queue);
        wake(dev);
    }
}

void vdev_config_read(const struct vdev *dev, unsigned offset, unsigned len, void *buf)
{
    memset(buf, 0, len);
    if (offset < dev->config_len) {
        memcpy(buf, dev->config + offset, MIN(len, dev->config_len - offset));
    }
}

void vdev_config_write(struct vdev *dev, unsigned offset, unsigned len, const void *buf)
{
    if (offset + len <= dev->config_len && dev->ops->config_writable &&
        dev->ops->config_writable(dev, offset, len)) {
        memcpy(dev->config + offset, buf, len);
        if (dev->ops->config_written) {
            dev->ops->config_written(dev);
        }
    }
}

/* --- the device's side --- */

static void interrupt(struct vdev *dev, uint32_t queue)
{
    if (dev->interrupt) {
        dev->interrupt(dev->transport, queue);
    }
}

void vdev_signal(struct vdev *dev, unsigned queue)
{
    if (!dev->live) {
        return;
    }
    if (!vq_wants_interrupt(&dev->queues[queue])) {
        count(&dev->counters.suppressed);
        return;
    }
    count(&dev->counters.interrupts);
    mem_lock(dev->mem);
    interrupt(dev, queue);
    mem_unlock(dev->mem);
}

void vdev_config_changed(struct vdev *dev)
{
    mem_lock(dev->mem);
    dev->config_generation++;
    if (dev->status & VIRTIO_DRIVER_OK) {
        interrupt(dev, VDEV_CONFIG);
    }
    mem_unlock(dev->mem);
}

void vdev_fail(struct vdev *dev, const char *why)
{
    mem_lock(dev->mem);
    bool first = !(dev->status & VIRTIO_NEEDS_RESET);
    dev->why = why;
    count(&dev->counters.guest_errors);
    if (first && (dev->status & VIRTIO_DRIVER_OK)) {
        dev->status |= VIRTIO_NEEDS_RESET;
        interrupt(dev, VDEV_CONFIG); /* 2.1.2 */
    }
    mem_unlock(dev->mem);
    for (unsigned i = 0; i < dev->queue_count; i++) {
        vq_break(&dev->queues[i], why);
    }
}

int vdev_pop(struct vdev *dev, unsigned queue, struct vq_chain *chain)
{
    struct vq *vq = &dev->queues[queue];
    if (!dev->live || vq->broken) {
        return 0;
    }
    int rc = vq_pop(vq, chain);
    if (rc < 0) {
        vdev_fail(dev, vq->why);
        return 0;
    }
    return rc;
}

void vdev_again(struct vdev *dev, unsigned queue)
{
    mem_lock(dev->mem);
    dev->kicked |= BIT64(queue);
    mem_unlock(dev->mem);
    wake(dev);
}

static void start(struct vdev *dev, const struct vq_setup *setups)
{
    const char *why = NULL;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->queues[i] = (struct vq){0};
        if (setups[i].enabled &&
            vq_start(&dev->queues[i], dev->mem, &setups[i], vdev_has(dev, VIRTIO_F_INDIRECT_DESC),
                     vdev_has(dev, VIRTIO_F_EVENT_IDX)) < 0) {
            why = dev->queues[i].why;
        }
    }
    dev->live = true;
    if (why) {
        vdev_fail(dev, why);
    } else if (dev->ops->start) {
        dev->ops->start(dev);
    }
}

static void stop(struct vdev *dev)
{
    if (!dev->live) {
        return;
    }
    dev->live = false;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        vq_stop(&dev->queues[i]);
    }
    if (dev->ops->stop) {
        dev->ops->stop(dev);
    }
    dev->features = 0;
}

static bool busy(const struct vdev *dev)
{
    return dev->ops->busy && dev->ops->busy(dev);
}

void vdev_idle(struct vdev *dev)
{
    mem_lock(dev->mem);
    if (dev->reset_wanted && !dev->live && !busy(dev)) {
        clear_registers(dev);
    }
    mem_unlock(dev->mem);
}

void vdev_run(struct vdev *dev)
{
    struct vq_setup setups[VDEV_QUEUES_MAX];
    atomic_store(&dev->run_wanted, false);
    mem_lock(dev->mem);
    bool resetting = dev->reset_wanted, starting = dev->activate_wanted && !resetting;
    uint64_t kicked = dev->kicked;
    dev->activate_wanted = false;
    dev->kicked = 0;
    if (starting) {
        memcpy(setups, dev->setups, sizeof(setups));
        dev->features = dev->driver_features;
    }
    mem_unlock(dev->mem);
    if (resetting) {
        stop(dev);
        vdev_idle(dev);
        return;
    }
    if (starting) {
        start(dev, setups);
        kicked = UINT64_MAX; /* what the driver queued before it was ready */
    }
    for (unsigned i = 0; i < dev->queue_count && dev->live; i++) {
        if ((kicked & BIT64(i)) && dev->queues[i].live && !dev->queues[i].broken) {
            dev->ops->kick(dev, i);
        }
    }
}

void vdev_machine_reset(struct vdev *dev)
{
    stop(dev);
    if (dev->ops->drain) {
        dev->ops->drain(dev);
    }
    mem_lock(dev->mem);
    clear_registers(dev);
    mem_unlock(dev->mem);
}

unsigned vdev_describe(const struct vdev *dev, char *buf, unsigned size)
{
    const struct vdev_counters *c = &dev->counters;
    int n = snprintf(
        buf, size, "%s: status=%02x features=%llx kicks=%llu interrupts=%llu guest-errors=%llu%s%s\n",
        dev->ops->name, dev->status, (unsigned long long)dev->features,
        (unsigned long long)atomic_load(&c->kicks), (unsigned long long)atomic_load(&c->interrupts),
        (unsigned long long)atomic_load(&c->guest_errors), dev->why ? ": " : "", dev->why ? dev->why : "");
    unsigned used = MIN((unsigned)MAX(n, 0), size);
    if (dev->ops->describe && used < size) {
        used += dev->ops->describe(dev, buf + used, size - used);
    }
    return MIN(used, size);
}

/* --- saved state --- */

void vdev_settle(struct vdev *dev)
{
    vdev_run(dev);
    if (dev->ops->drain) {
        dev->ops->drain(dev);
    }
    vdev_idle(dev);
}

/* The guest's registers. */
static void registers_state(struct vdev *dev, struct state *s)
{
    uint64_t offered = dev->offered;
    uint32_t queues = dev->queue_count;
    state_field(s, "offered", &offered);
    state_require(s, offered == dev->offered, "offered");
    state_field(s, "queues", &queues);
    state_require(s, queues == dev->queue_count, "queues");
    state_field(s, "status", &dev->status);
    state_field(s, "config_generation", &dev->config_generation);
    state_field(s, "driver_features", &dev->driver_features);
    if (dev->config_len) {
        state_raw(s, "config", STATE_BYTES, dev->config, dev->config_len);
    }
    for (unsigned i = 0; i < dev->queue_count; i++) {
        struct vq_setup *setup = &dev->setups[i];
        state_prefix(s, "queue%u.", i);
        state_field(s, "size", &setup->size);
        state_field(s, "enabled", &setup->enabled);
        state_field(s, "desc", &setup->desc);
        state_field(s, "driver", &setup->driver);
        state_field(s, "device", &setup->device);
    }
    state_no_prefix(s);
}

void vdev_state(struct vdev *dev, struct state *s)
{
    bool live = dev->live;
    mem_lock(dev->mem);
    registers_state(dev, s);
    mem_unlock(dev->mem);
    state_field(s, "live", &live);
    state_field(s, "features", &dev->features);
    state_require(s, !(dev->features & ~dev->offered), "features");
    state_require(s, !live || features_fit(dev), "driver_features");
    for (unsigned i = 0; live && i < dev->queue_count; i++) {
        struct vq *vq = &dev->queues[i];
        if (state_loaded(s)) {
            *vq = (struct vq){0};
            if (dev->setups[i].enabled) {
                (void)vq_start(vq, dev->mem, &dev->setups[i], vdev_has(dev, VIRTIO_F_INDIRECT_DESC),
                               vdev_has(dev, VIRTIO_F_EVENT_IDX));
            }
        }
        state_prefix(s, "queue%u.", i);
        vq_state(vq, s);
    }
    state_no_prefix(s);
    if (state_loaded(s)) {
        dev->live = live;
        dev->kicked = live ? UINT64_MAX : 0;
    }
    if (dev->ops->state) {
        dev->ops->state(dev, s);
    }
    if (state_loaded(s) && live) {
        wake(dev);
    }
}
