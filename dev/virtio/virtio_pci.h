/*
 * The PCI transport of virtio 1.2 (section 4.1), modern only: one memory BAR with all structures, an MSI-X
 * vector for the configuration and one per queue, INTx where the guest has no MSI-X.
 *
 * Threads: virtio_pci_new while no vCPU runs; its device's reset and free on the main loop.
 */
#ifndef FONDA_DEV_VIRTIO_VIRTIO_PCI_H
#define FONDA_DEV_VIRTIO_VIRTIO_PCI_H

#include "dev/pci/pci.h"
#include "dev/virtio/virtio.h"

struct virtio_pci;

/* Makes a function for a device, which it owns from then on, also when this fails (NULL: see err). */
struct virtio_pci *virtio_pci_new(struct pci_host *host, struct vdev *dev, struct err *err);
struct device *virtio_pci_device(struct virtio_pci *vp);
struct vdev *virtio_pci_vdev(struct virtio_pci *vp);

#endif
