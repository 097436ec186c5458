/*
 * See virtio_pci.h. Section numbers are those of virtio 1.2.
 *
 *     BAR 0   0x0000 common configuration    0x1000 ISR status     0x2000 device configuration
 *             0x3000 notifications           0x4000 MSI-X table    0x5000 MSI-X pending bits
 */
#include "dev/virtio/virtio_pci.h"

#include <errno.h>
#include <string.h>

#include "base/state.h"

#define BAR         0u
#define BAR_BYTES   0x8000u
#define AREA_BYTES  0x1000u
#define AT_COMMON   0x0000u
#define AT_ISR      0x1000u
#define AT_DEVICE   0x2000u
#define AT_NOTIFY   0x3000u
#define AT_TABLE    0x4000u
#define AT_PBA      0x5000u
#define NOTIFY_STEP 4u /* notify_off_multiplier: a doorbell of four bytes for each queue */
#define NO_VECTOR   0xffffu

#define ISR_QUEUE  1u /* 4.1.4.5 */
#define ISR_CONFIG 2u

/* 4.1.4: the capability's layout and types. */
#define CAP_BYTES       16u
#define CAP_TYPE        3u
#define CAP_BAR         4u
#define CAP_OFFSET      8u
#define CAP_LENGTH      12u
#define CAP_EXTRA       16u /* notify_off_multiplier, or pci_cfg_data */
#define CAP_TYPE_COMMON 1u
#define CAP_TYPE_NOTIFY 2u
#define CAP_TYPE_ISR    3u
#define CAP_TYPE_DEVICE 4u
#define CAP_TYPE_PCI    5u

/* 4.1.4.3 */
struct common_config {
    uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
    uint16_t config_vector, num_queues;
    uint8_t status, generation;
    uint16_t queue_select, queue_size, queue_vector, queue_enable, queue_notify_off;
    uint32_t queue_desc[2], queue_driver[2], queue_device[2];
    uint16_t queue_notify_data, queue_reset;
};
_Static_assert(sizeof(struct common_config) == 0x3c, "4.1.4.3");

#define FIELD(name) offsetof(struct common_config, name)

struct virtio_pci {
    struct device device;
    struct pci_dev pci;
    struct vdev *vdev;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select, config_vector;
    uint16_t vectors[VDEV_QUEUES_MAX];
    uint8_t isr;
    uint8_t window_cap; /* VIRTIO_PCI_CAP_PCI_CFG */
};

/* --- common configuration --- */

static void common_snapshot(const struct virtio_pci *vp, struct common_config *ret)
{
    const struct vdev *dev = vp->vdev;
    unsigned words[2] = {vp->device_feature_select, vp->driver_feature_select};
    *ret = (struct common_config){
        .device_feature_select = words[0],
        .device_feature = words[0] < 2 ? (uint32_t)(dev->offered >> (32 * words[0])) : 0,
        .driver_feature_select = words[1],
        .driver_feature = words[1] < 2 ? (uint32_t)(dev->driver_features >> (32 * words[1])) : 0,
        .config_vector = vp->config_vector,
        .num_queues = (uint16_t)dev->queue_count,
        .status = vdev_status(dev),
        .generation = dev->config_generation,
        .queue_select = vp->queue_select,
    };
    if (vp->queue_select >= dev->queue_count) {
        return; /* size 0: there is no such queue */
    }
    const struct vq_setup *setup = &dev->setups[vp->queue_select];
    ret->queue_size = setup->size;
    ret->queue_vector = vp->vectors[vp->queue_select];
    ret->queue_enable = setup->enabled;
    ret->queue_notify_off = vp->queue_select;
    memcpy(ret->queue_desc, &setup->desc, 8);
    memcpy(ret->queue_driver, &setup->driver, 8);
    memcpy(ret->queue_device, &setup->device, 8);
}

static uint16_t checked_vector(const struct virtio_pci *vp, uint64_t value)
{
    return value < vp->pci.msix_vectors ? (uint16_t)value : NO_VECTOR;
}

static void set_half(uint64_t *address, bool high, uint64_t value)
{
    *address = high ? (*address & UINT32_MAX) | value << 32 : (*address & ~(uint64_t)UINT32_MAX) | value;
}

/* A queue's registers can be written until it is enabled (4.1.5.1.3). */
static void queue_write(struct virtio_pci *vp, unsigned offset, uint64_t value)
{
    struct vdev *dev = vp->vdev;
    if (vp->queue_select >= dev->queue_count) {
        return;
    }
    struct vq_setup *setup = &dev->setups[vp->queue_select];
    if (offset == FIELD(queue_vector)) {
        vp->vectors[vp->queue_select] = checked_vector(vp, value);
        return;
    }
    if (setup->enabled || (dev->status & VIRTIO_DRIVER_OK)) {
        return;
    }
    switch (offset) {
    case FIELD(queue_size): setup->size = (uint16_t)value; break;
    case FIELD(queue_enable): setup->enabled = value == 1; break;
    case FIELD(queue_desc): set_half(&setup->desc, false, value); break;
    case FIELD(queue_desc) + 4: set_half(&setup->desc, true, value); break;
    case FIELD(queue_driver): set_half(&setup->driver, false, value); break;
    case FIELD(queue_driver) + 4: set_half(&setup->driver, true, value); break;
    case FIELD(queue_device): set_half(&setup->device, false, value); break;
    case FIELD(queue_device) + 4: set_half(&setup->device, true, value); break;
    default: break;
    }
}

static void reset_registers(struct virtio_pci *vp)
{
    vp->device_feature_select = vp->driver_feature_select = 0;
    vp->queue_select = 0;
    vp->config_vector = NO_VECTOR;
    vp->isr = 0;
    memset(vp->vectors, 0xff, sizeof(vp->vectors));
    if (vp->pci.host) {
        pci_intx_set(&vp->pci, false);
    }
}

static void common_write(struct virtio_pci *vp, unsigned offset, uint64_t value)
{
    struct vdev *dev = vp->vdev;
    switch (offset) {
    case FIELD(device_feature_select): vp->device_feature_select = (uint32_t)value; break;
    case FIELD(driver_feature_select): vp->driver_feature_select = (uint32_t)value; break;
    case FIELD(driver_feature): vdev_set_features(dev, vp->driver_feature_select, (uint32_t)value); break;
    case FIELD(config_vector): vp->config_vector = checked_vector(vp, value); break;
    case FIELD(status):
        vdev_set_status(dev, (uint8_t)value);
        if ((uint8_t)value == 0) {
            reset_registers(vp);
        }
        break;
    case FIELD(queue_select): vp->queue_select = (uint16_t)value; break;
    default: queue_write(vp, offset, value); break;
    }
}

/* --- the BAR --- */

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_pci *vp = opaque;
    uint64_t value = 0;
    unsigned at = (unsigned)offset % AREA_BYTES;
    switch (offset - at) {
    case AT_COMMON: {
        struct common_config common;
        common_snapshot(vp, &common);
        if (at + size <= sizeof(common)) {
            memcpy(&value, (const uint8_t *)&common + at, size);
        }
        break;
    }
    case AT_ISR:
        if (at == 0) { /* 4.1.4.5: reading clears */
            value = vp->isr;
            vp->isr = 0;
            pci_intx_set(&vp->pci, false);
        }
        break;
    case AT_DEVICE: vdev_config_read(vp->vdev, at, size, &value); break;
    default: break;
    }
    return value;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *vp = opaque;
    unsigned at = (unsigned)offset % AREA_BYTES;
    switch (offset - at) {
    case AT_COMMON:
        if (size == 8) { /* a queue's address in one go */
            common_write(vp, at, (uint32_t)value);
            common_write(vp, at + 4, value >> 32);
        } else {
            common_write(vp, at, value);
        }
        break;
    case AT_DEVICE: vdev_config_write(vp->vdev, at, size, &value); break;
    case AT_NOTIFY: vdev_notify(vp->vdev, at / NOTIFY_STEP); break;
    default: break;
    }
}

static const struct mem_io_ops bar_ops = {bar_read, bar_write};

/* 4.1.4.9: the BAR reached through configuration space, for whoever can't map it. */
static bool window_access(const struct virtio_pci *vp, unsigned offset, unsigned size, uint32_t *ret_at,
                          uint32_t *ret_len)
{
    unsigned data = vp->window_cap + CAP_EXTRA;
    if (offset + size <= data || offset >= data + 4) {
        return false;
    }
    *ret_at = pci_get32(&vp->pci, vp->window_cap + CAP_OFFSET);
    *ret_len = pci_get32(&vp->pci, vp->window_cap + CAP_LENGTH);
    return vp->pci.config[vp->window_cap + CAP_BAR] == BAR &&
           (*ret_len == 1 || *ret_len == 2 || *ret_len == 4) && *ret_at % *ret_len == 0 && *ret_at < AT_TABLE;
}

static void window_read(struct pci_dev *pci, unsigned offset, unsigned size)
{
    struct virtio_pci *vp = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint32_t at, len;
    if (window_access(vp, offset, size, &at, &len)) {
        pci_put32(pci, vp->window_cap + CAP_EXTRA, (uint32_t)bar_read(vp, at, len));
    }
}

static void window_written(struct pci_dev *pci, unsigned offset, unsigned size)
{
    struct virtio_pci *vp = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint32_t at, len;
    if (window_access(vp, offset, size, &at, &len)) {
        uint32_t value = pci_get32(pci, vp->window_cap + CAP_EXTRA);
        bar_write(vp, at, len, len == 4 ? value : value & ((1u << (8 * len)) - 1));
    }
}

/* --- interrupts --- */

static void on_interrupt(void *transport, uint32_t queue)
{
    struct virtio_pci *vp = transport;
    bool config = queue == VDEV_CONFIG;
    if (pci_msix_enabled(&vp->pci)) {
        uint16_t vector = config ? vp->config_vector : vp->vectors[queue];
        if (vector != NO_VECTOR) {
            pci_msix_notify(&vp->pci, vector);
        }
        return;
    }
    vp->isr |= config ? ISR_CONFIG : ISR_QUEUE;
    pci_intx_set(&vp->pci, true);
}

/* --- life --- */

static int add_cap(struct virtio_pci *vp, uint8_t type, uint32_t offset, uint32_t length, unsigned extra)
{
    unsigned at = pci_dev_add_cap(&vp->pci, PCI_CAP_VENDOR, CAP_BYTES + extra);
    if (at == 0) {
        return 0;
    }
    vp->pci.config[at + 2] = (uint8_t)(CAP_BYTES + extra);
    vp->pci.config[at + CAP_TYPE] = type;
    vp->pci.config[at + CAP_BAR] = BAR;
    pci_put32(&vp->pci, at + CAP_OFFSET, offset);
    pci_put32(&vp->pci, at + CAP_LENGTH, length);
    return (int)at;
}

static void add_caps(struct virtio_pci *vp)
{
    const struct vdev *dev = vp->vdev;
    add_cap(vp, CAP_TYPE_COMMON, AT_COMMON, sizeof(struct common_config), 0);
    add_cap(vp, CAP_TYPE_ISR, AT_ISR, 1, 0);
    if (dev->config_len) {
        add_cap(vp, CAP_TYPE_DEVICE, AT_DEVICE, dev->config_len, 0);
    }
    int notify = add_cap(vp, CAP_TYPE_NOTIFY, AT_NOTIFY, dev->queue_count * NOTIFY_STEP, 4);
    pci_put32(&vp->pci, (unsigned)notify + CAP_EXTRA, NOTIFY_STEP);
    vp->window_cap = (uint8_t)add_cap(vp, CAP_TYPE_PCI, 0, 0, 4);
    vp->pci.writable[vp->window_cap + CAP_BAR] = 0xff;
    memset(vp->pci.writable + vp->window_cap + CAP_OFFSET, 0xff, CAP_EXTRA + 4 - CAP_OFFSET);
    vp->pci.config_read = window_read;
    vp->pci.config_written = window_written;
}

static void vp_reset(struct device *device)
{
    struct virtio_pci *vp = CONTAINER_OF(device, struct virtio_pci, device);
    vdev_machine_reset(vp->vdev);
    mem_lock(vp->vdev->mem);
    reset_registers(vp);
    mem_unlock(vp->vdev->mem);
}

static void vp_free(struct device *device)
{
    struct virtio_pci *vp = CONTAINER_OF(device, struct virtio_pci, device);
    vdev_machine_reset(vp->vdev);
    mem_lock(vp->vdev->mem);
    pci_dev_detach(&vp->pci);
    mem_unlock(vp->vdev->mem);
    vp->vdev->ops->free(vp->vdev);
    free(vp);
}

static unsigned vp_describe(const struct device *device, char *buf, unsigned size)
{
    const struct virtio_pci *vp = CONTAINER_OF(device, const struct virtio_pci, device);
    return vdev_describe(vp->vdev, buf, size);
}

static void vp_state(struct device *device, struct state *s)
{
    struct virtio_pci *vp = CONTAINER_OF(device, struct virtio_pci, device);
    pci_dev_state(&vp->pci, s);
    state_field(s, "device_feature_select", &vp->device_feature_select);
    state_field(s, "driver_feature_select", &vp->driver_feature_select);
    state_field(s, "queue_select", &vp->queue_select);
    state_field(s, "config_vector", &vp->config_vector);
    state_array(s, "vectors", vp->vectors);
    state_field(s, "isr", &vp->isr);
    bool vectors_exist = vp->config_vector == checked_vector(vp, vp->config_vector);
    for (unsigned i = 0; i < VDEV_QUEUES_MAX; i++) {
        vectors_exist &= vp->vectors[i] == checked_vector(vp, vp->vectors[i]);
    }
    state_require(s, vectors_exist, "vectors");
    vdev_state(vp->vdev, s);
}

static const struct device_ops vp_ops = {
    .name = "virtio-pci", .reset = vp_reset, .free = vp_free, .describe = vp_describe, .state = vp_state};

struct virtio_pci *virtio_pci_new_at(struct pci_host *host, struct vdev *dev, unsigned slot, struct err *err)
{
    struct virtio_pci *vp = calloc(1, sizeof(*vp));
    if (!vp) {
        err_set(err, -ENOMEM, "out of memory");
        dev->ops->free(dev);
        return NULL;
    }
    /* 4.1.2.1: 0x1040 plus the device ID, revision 1. */
    const struct pci_id id = {
        0x1af4, (uint16_t)(0x1040 + dev->ops->id), 0x1af4, dev->ops->id, 1, dev->ops->class_code};
    vp->device.ops = &vp_ops;
    vp->vdev = dev;
    pci_dev_init(&vp->pci, dev->ops->name, &id);
    pci_dev_add_bar(&vp->pci, BAR, BAR_BYTES, &bar_ops, vp);
    pci_dev_add_msix(&vp->pci, BAR, AT_TABLE, AT_PBA, dev->queue_count + 1);
    add_caps(vp);
    dev->interrupt = on_interrupt;
    dev->transport = vp;
    reset_registers(vp);
    mem_lock(dev->mem);
    int rc = pci_host_attach_at(host, &vp->pci, slot, err);
    mem_unlock(dev->mem);
    if (rc < 0) {
        dev->ops->free(dev);
        free(vp);
        return NULL;
    }
    return vp;
}

struct virtio_pci *virtio_pci_new(struct pci_host *host, struct vdev *dev, struct err *err)
{
    return virtio_pci_new_at(host, dev, pci_host_free_slot(host), err);
}

unsigned virtio_pci_slot(const struct virtio_pci *vp)
{
    return vp->pci.slot;
}

struct device *virtio_pci_device(struct virtio_pci *vp)
{
    return &vp->device;
}

struct vdev *virtio_pci_vdev(struct virtio_pci *vp)
{
    return vp->vdev;
}
