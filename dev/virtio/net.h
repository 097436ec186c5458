/*
 * virtio-net, the network card: virtio 1.2 section 5.1. Mergeable receive buffers, checksum and TCP
 * segmentation offloads, several queue pairs, MAC, MTU, link state. Frames go to and come from a struct
 * net_port.
 */
#ifndef FONDA_DEV_VIRTIO_NET_H
#define FONDA_DEV_VIRTIO_NET_H

#include "dev/virtio/virtio.h"
#include "net/port.h"

#define VNET_PAIRS_MAX 16u

struct vnet_config {
    struct mem *mem;
    struct net_port *port; /* the device's from now on */
    uint8_t mac[6];
    uint16_t mtu; /* 0: the port's */
    unsigned pairs;
};

/* NULL: see err; the port is then freed. */
struct vdev *vnet_new(const struct vnet_config *config, struct err *err);

/* Since the device was made; bytes of frames, without virtio's header. */
struct vnet_counts {
    uint64_t rx_frames, rx_bytes, rx_dropped, tx_frames, tx_bytes, tx_dropped;
    const char *kind; /* of the port: "user" */
    uint8_t mac[6];
    bool link_up;
};
void vnet_get_counts(const struct vdev *dev, struct vnet_counts *ret); /* main loop */

/* The cable, as the user plugs it. Main loop. */
void vnet_set_cable(struct vdev *dev, bool plugged);

#endif
