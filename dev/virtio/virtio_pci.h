/*
 * The PCI transport of virtio 1.2 (section 4.1), modern only: one memory BAR with all structures, an MSI-X
 * vector for the configuration and one per queue, INTx where the guest has no MSI-X.
 *
 * Threads: main loop, not under mem_lock(): virtio_pci_new, its device's reset and free.
 */
#ifndef FONDA_DEV_VIRTIO_VIRTIO_PCI_H
#define FONDA_DEV_VIRTIO_VIRTIO_PCI_H

#include "dev/pci/pci.h"
#include "dev/virtio/virtio.h"

struct virtio_pci;

/* Makes a function for a device, which it owns from then on, also when this fails (NULL: see err). */
struct virtio_pci *virtio_pci_new(struct pci_host *host, struct vdev *dev, struct err *err);
/* The same in a certain slot, also while vCPUs run. */
struct virtio_pci *virtio_pci_new_at(struct pci_host *host, struct vdev *dev, unsigned slot, struct err *err);
unsigned virtio_pci_slot(const struct virtio_pci *vp);
struct device *virtio_pci_device(struct virtio_pci *vp);
struct vdev *virtio_pci_vdev(struct virtio_pci *vp);

#endif
