/*
 * See net.h. Section numbers are those of virtio 1.2.
 *
 * Queues: pair i has receive queue 2i and transmit queue 2i + 1; the control queue follows behind the last
 * pair that the device offers (5.1.2).
 *
 * Invariants
 *  1. What the port delivers fits what the guest accepted: the port was told by set_offloads.
 *  2. A frame appears in the guest's ring whole or not at all: chains are filled first and published
 *     together.
 */
#include "dev/virtio/net.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/state.h"

/* 5.1.3 */
#define F_CSUM                BIT64(0)
#define F_GUEST_CSUM          BIT64(1)
#define F_CTRL_GUEST_OFFLOADS BIT64(2)
#define F_MTU                 BIT64(3)
#define F_MAC                 BIT64(5)
#define F_GUEST_TSO4          BIT64(7)
#define F_GUEST_TSO6          BIT64(8)
#define F_GUEST_ECN           BIT64(9)
#define F_HOST_TSO4           BIT64(11)
#define F_HOST_TSO6           BIT64(12)
#define F_HOST_ECN            BIT64(13)
#define F_MRG_RXBUF           BIT64(15)
#define F_STATUS              BIT64(16)
#define F_CTRL_VQ             BIT64(17)
#define F_CTRL_RX             BIT64(18)
#define F_MQ                  BIT64(22)
#define F_CTRL_MAC_ADDR       BIT64(23)

#define STATUS_LINK_UP 1u /* 5.1.4 */

/* 5.1.6.5 */
#define CTRL_RX           0u
#define CTRL_RX_LAST      5u
#define CTRL_MAC          1u
#define CTRL_MAC_TABLE    0u
#define CTRL_MAC_ADDR     1u
#define CTRL_MQ           4u
#define CTRL_MQ_PAIRS     0u
#define CTRL_OFFLOADS     5u
#define CTRL_OFFLOADS_SET 0u
#define CTRL_OK           0
#define CTRL_ERR          1

#define ROUND_FRAMES  64u /* then the main loop gets a turn */
#define RX_CHAINS_MAX 64u /* that one frame may be spread over */
#define CONTROL_MAX   64u /* bytes of a command that are looked at */

struct net_config { /* 5.1.4 */
    uint8_t mac[6];
    uint16_t status, max_pairs, mtu;
} __attribute__((packed));

struct vnet {
    struct vdev dev;
    struct vnet_config config;
    struct net_config space;
    bool unplugged;
    unsigned pairs;      /* that the guest uses */
    uint64_t rx_starved; /* receive queues whose buffers ran out while a frame came */
    uint64_t tx_waiting; /* transmit queues whose frame the port had no room for */
    uint64_t rx_frames, rx_bytes, rx_dropped, tx_frames, tx_bytes, tx_dropped;
    struct vq_chain tx_chain; /* not one of chains[]: frames may come in while one is sent */
    struct vq_chain chains[RX_CHAINS_MAX];
};

/* 5.1.2: behind the last pair, of which a driver without F_MQ knows one. */
static unsigned control_queue(const struct vnet *net)
{
    return 2 * (vdev_has(&net->dev, F_MQ) ? net->config.pairs : 1);
}

/* --- receiving --- */

/* Frames of one flow stay in one queue: 5.1.6.5.6. Addresses and ports, wherever they lie, are in these
 * bytes. */
static unsigned pick_pair(const struct vnet *net, const struct iovec *iov, unsigned count)
{
    uint8_t bytes[16];
    uint32_t hash = 2166136261u; /* FNV-1a */
    if (net->pairs <= 1 ||
        viov_read(iov, count, NET_HEADER_BYTES + 26, bytes, sizeof(bytes)) != sizeof(bytes)) {
        return 0;
    }
    for (unsigned i = 0; i < 12; i++) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return hash % net->pairs;
}

/* Copies from segments to segments; both positions move on. */
static uint64_t copy_between(const struct iovec *to, unsigned to_count, const struct iovec *from,
                             unsigned from_count, uint64_t from_offset)
{
    uint64_t done = 0, base = 0;
    for (unsigned i = 0; i < from_count; i++) {
        uint64_t len = from[i].iov_len;
        if (from_offset < base + len) {
            uint64_t skip = from_offset > base ? from_offset - base : 0;
            uint64_t n = viov_write(to, to_count, done, (const uint8_t *)from[i].iov_base + skip, len - skip);
            done += n;
            if (n < len - skip) {
                break;
            }
        }
        base += len;
    }
    return done;
}

/* Takes chains until there is room for len bytes. Returns how many, or 0. */
static unsigned collect(struct vnet *net, unsigned queue, uint64_t len)
{
    struct vq *vq = &net->dev.queues[queue];
    unsigned limit = vdev_has(&net->dev, F_MRG_RXBUF) ? RX_CHAINS_MAX : 1, n = 0;
    uint64_t room = 0;
    while (room < len && n < limit && vdev_pop(&net->dev, queue, &net->chains[n])) {
        if (net->chains[n].in_bytes < NET_HEADER_BYTES) {
            vdev_fail(&net->dev, "a receive buffer is smaller than a header");
            return 0;
        }
        room += net->chains[n++].in_bytes;
    }
    if (room >= len) {
        return n;
    }
    if (n == limit) { /* no arrangement of this guest's buffers would do */
        net->rx_dropped++;
        vq_unpop(vq, n);
        return UINT32_MAX;
    }
    vq_unpop(vq, n);
    return 0;
}

static void fill(struct vnet *net, unsigned queue, unsigned n, const struct iovec *iov, unsigned count,
                 uint64_t len)
{
    struct vq *vq = &net->dev.queues[queue];
    uint64_t done = 0;
    for (unsigned i = 0; i < n; i++) {
        struct vq_chain *chain = &net->chains[i];
        uint64_t bytes = copy_between(vq_in(chain), chain->in_count, iov, count, done);
        if (i == 0) {
            uint16_t buffers = (uint16_t)n;
            viov_write(vq_in(chain), chain->in_count, offsetof(struct net_header, num_buffers), &buffers, 2);
        }
        vq_fill(vq, chain, (uint32_t)MIN(bytes, len - done), i);
        done += bytes;
    }
    vq_flush(vq, n);
}

static bool on_receive(void *opaque, const struct iovec *iov, unsigned count)
{
    struct vnet *net = opaque;
    uint64_t len = viov_bytes(iov, count);
    if (!net->dev.live || net->unplugged || len < NET_HEADER_BYTES ||
        len > NET_HEADER_BYTES + NET_FRAME_MAX) {
        net->rx_dropped++;
        return true;
    }
    unsigned queue = 2 * pick_pair(net, iov, count);
    struct vq *vq = &net->dev.queues[queue];
    if (!vq->live || vq->broken) {
        net->rx_dropped++;
        return true;
    }
    unsigned n = collect(net, queue, len);
    if (n == 0) {
        vq_await_more(vq);
        n = collect(net, queue, len); /* buffers may have come in meanwhile */
    }
    if (n == UINT32_MAX || vq->broken) {
        return true;
    }
    if (n == 0) {
        net->rx_starved |= BIT64(queue);
        return false;
    }
    vq_disable_notify(vq);
    fill(net, queue, n, iov, count, len);
    net->rx_frames++;
    net->rx_bytes += len - NET_HEADER_BYTES;
    vdev_signal(&net->dev, queue);
    return true;
}

static void receive_kick(struct vnet *net, unsigned queue)
{
    if (net->rx_starved & BIT64(queue)) {
        net->rx_starved &= ~BIT64(queue);
        net->config.port->ops->readable(net->config.port);
    }
}

/* --- sending --- */

static void transmit_kick(struct vnet *net, unsigned queue)
{
    struct vq *vq = &net->dev.queues[queue];
    struct vq_chain *chain = &net->tx_chain;
    struct net_port *port = net->config.port;
    unsigned n = 0;
    vq_disable_notify(vq);
    for (; n < ROUND_FRAMES && vdev_pop(&net->dev, queue, chain); n++) {
        bool bad = chain->out_bytes < NET_HEADER_BYTES || chain->out_bytes > NET_HEADER_BYTES + NET_FRAME_MAX;
        if (bad || net->unplugged) {
            net->tx_dropped++;
        } else if (!port->ops->send(port, chain->segs, chain->out_count)) {
            vq_unpop(vq, 1);
            net->tx_waiting |= BIT64(queue);
            break;
        } else {
            net->tx_frames++;
            net->tx_bytes += chain->out_bytes - NET_HEADER_BYTES;
        }
        if (!net->dev.live || vq->broken) {
            return;
        }
        vq_push(vq, chain, 0);
    }
    vdev_signal(&net->dev, queue);
    if (!(net->tx_waiting & BIT64(queue)) && (n == ROUND_FRAMES || vq_enable_notify(vq))) {
        vdev_again(&net->dev, queue);
    }
}

static void on_writable(void *opaque)
{
    struct vnet *net = opaque;
    uint64_t waiting = net->tx_waiting;
    net->tx_waiting = 0;
    for (unsigned i = 0; waiting && net->dev.live; i++, waiting >>= 1) {
        if (waiting & 1) {
            vdev_again(&net->dev, i);
        }
    }
}

/* --- control --- */

static void set_offloads(struct vnet *net, uint64_t features)
{
    unsigned takes = features & F_GUEST_CSUM ? NET_TAKES_CSUM : 0;
    if (takes) {
        takes |= features & F_GUEST_TSO4 ? NET_TAKES_TSO4 : 0;
        takes |= features & F_GUEST_TSO6 ? NET_TAKES_TSO6 : 0;
        takes |= features & F_GUEST_ECN ? NET_TAKES_ECN : 0;
    }
    net->config.port->ops->set_offloads(net->config.port, takes);
}

static bool set_pairs(struct vnet *net, const uint8_t *data, size_t len)
{
    unsigned pairs = len >= 2 ? data[0] | (unsigned)data[1] << 8 : 0;
    if (!vdev_has(&net->dev, F_MQ) || pairs == 0 || pairs > net->config.pairs) {
        return false;
    }
    net->pairs = pairs;
    return true;
}

static bool set_mac(struct vnet *net, const uint8_t *data, size_t len)
{
    if (!vdev_has(&net->dev, F_CTRL_MAC_ADDR) || len < 6) {
        return false;
    }
    mem_lock(net->dev.mem);
    memcpy(net->space.mac, data, 6);
    mem_unlock(net->dev.mem);
    return true;
}

/* Filters are best effort (5.1.6.5.1, 5.1.6.5.2), and the guest's driver drops what it does not want:
 * accepting them all is enough. */
static bool command(struct vnet *net, unsigned class, unsigned cmd, const uint8_t *data, size_t len)
{
    switch (class) {
    case CTRL_RX: return vdev_has(&net->dev, F_CTRL_RX) && cmd <= CTRL_RX_LAST;
    case CTRL_MAC:
        return cmd == CTRL_MAC_TABLE ? vdev_has(&net->dev, F_CTRL_RX)
                                     : cmd == CTRL_MAC_ADDR && set_mac(net, data, len);
    case CTRL_MQ: return cmd == CTRL_MQ_PAIRS && set_pairs(net, data, len);
    case CTRL_OFFLOADS: {
        uint64_t offloads;
        if (cmd != CTRL_OFFLOADS_SET || !vdev_has(&net->dev, F_CTRL_GUEST_OFFLOADS) ||
            len < sizeof(offloads)) {
            return false;
        }
        memcpy(&offloads, data, sizeof(offloads));
        set_offloads(net, offloads & net->dev.features);
        return true;
    }
    default: return false;
    }
}

static void control_kick(struct vnet *net)
{
    unsigned queue = control_queue(net);
    struct vq_chain *chain = &net->tx_chain;
    for (unsigned n = 0; n < ROUND_FRAMES && vdev_pop(&net->dev, queue, chain); n++) {
        uint8_t bytes[CONTROL_MAX];
        uint64_t len = viov_read(chain->segs, chain->out_count, 0, bytes, sizeof(bytes));
        if (len < 2 || chain->in_bytes < 1) {
            vdev_fail(&net->dev, "a control command without its header or its answer");
            return;
        }
        uint8_t ack = command(net, bytes[0], bytes[1], bytes + 2, len - 2) ? CTRL_OK : CTRL_ERR;
        viov_write(vq_in(chain), chain->in_count, 0, &ack, 1);
        vq_push(&net->dev.queues[queue], chain, 1);
    }
    vdev_signal(&net->dev, queue);
    if (vq_enable_notify(&net->dev.queues[queue])) {
        vdev_again(&net->dev, queue);
    }
}

/* --- the device --- */

static void net_kick(struct vdev *dev, unsigned queue)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    if (queue == control_queue(net)) {
        control_kick(net);
    } else if (queue & 1) {
        transmit_kick(net, queue);
    } else {
        receive_kick(net, queue);
    }
}

static void net_start(struct vdev *dev)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    net->pairs = 1;
    set_offloads(net, dev->features);
    net->config.port->ops->readable(net->config.port);
}

static void net_stop(struct vdev *dev)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    net->rx_starved = net->tx_waiting = 0;
    mem_lock(dev->mem);
    memcpy(net->space.mac, net->config.mac, sizeof(net->space.mac));
    mem_unlock(dev->mem);
    net->config.port->ops->readable(net->config.port); /* what it holds is dropped now */
}

static const struct vdev_need net_needs[] = {
    /* 5.1.3.1 */
    {F_GUEST_TSO4, F_GUEST_CSUM},
    {F_GUEST_TSO6, F_GUEST_CSUM},
    {F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6},
    {F_HOST_TSO4, F_CSUM},
    {F_HOST_TSO6, F_CSUM},
    {F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6},
    {F_CTRL_RX, F_CTRL_VQ},
    {F_MQ, F_CTRL_VQ},
    {F_CTRL_MAC_ADDR, F_CTRL_VQ},
    {F_CTRL_GUEST_OFFLOADS, F_CTRL_VQ},
};

static void update_link(struct vnet *net)
{
    uint16_t status = !net->unplugged && net->config.port->link_up ? STATUS_LINK_UP : 0;
    mem_lock(net->dev.mem);
    bool changed = status != net->space.status;
    net->space.status = status;
    mem_unlock(net->dev.mem);
    if (changed) {
        vdev_config_changed(&net->dev);
    }
}

static void on_link_changed(void *opaque)
{
    update_link(opaque);
}

void vnet_set_cable(struct vdev *dev, bool plugged)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    net->unplugged = !plugged;
    update_link(net);
}

void vnet_get_counts(const struct vdev *dev, struct vnet_counts *ret)
{
    const struct vnet *net = CONTAINER_OF(dev, const struct vnet, dev);
    *ret = (struct vnet_counts){.rx_frames = net->rx_frames,
                                .rx_bytes = net->rx_bytes,
                                .rx_dropped = net->rx_dropped,
                                .tx_frames = net->tx_frames,
                                .tx_bytes = net->tx_bytes,
                                .tx_dropped = net->tx_dropped,
                                .kind = net->config.port->ops->kind,
                                .link_up = net->space.status & STATUS_LINK_UP};
    memcpy(ret->mac, net->space.mac, sizeof(ret->mac));
}

static void net_free(struct vdev *dev)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    net->config.port->peer = (struct net_peer){0};
    net->config.port->ops->free(net->config.port);
    free(net);
}

static unsigned net_describe(const struct vdev *dev, char *buf, unsigned size)
{
    const struct vnet *net = CONTAINER_OF(dev, const struct vnet, dev);
    int n = snprintf(buf, size, "  %s: rx=%llu (-%llu) tx=%llu (-%llu) pairs=%u link=%u\n",
                     net->config.port->ops->kind, (unsigned long long)net->rx_frames,
                     (unsigned long long)net->rx_dropped, (unsigned long long)net->tx_frames,
                     (unsigned long long)net->tx_dropped, net->pairs, net->space.status);
    return (unsigned)MAX(n, 0);
}

static void net_state(struct vdev *dev, struct state *s)
{
    struct vnet *net = CONTAINER_OF(dev, struct vnet, dev);
    uint32_t pairs = net->pairs;
    state_field(s, "pairs", &pairs);
    state_field(s, "unplugged", &net->unplugged);
    state_require(s, pairs <= net->config.pairs, "pairs");
    state_require(s, !dev->live || pairs >= 1, "pairs");
    if (state_loaded(s)) {
        net->pairs = pairs;
        set_offloads(net, dev->features);
        update_link(net);
        net->config.port->ops->readable(net->config.port);
    }
}

static const struct vdev_ops net_ops = {
    .name = "virtio-net",
    .id = VIRTIO_ID_NET,
    .class_code = 0x020000,
    .start = net_start,
    .stop = net_stop,
    .kick = net_kick,
    .free = net_free,
    .needs = net_needs,
    .need_count = ARRAY_SIZE(net_needs),
    .describe = net_describe,
    .state = net_state,
};

struct vdev *vnet_new(const struct vnet_config *config, struct err *err)
{
    struct vnet *net = calloc(1, sizeof(*net));
    if (!net || config->pairs == 0 || config->pairs > VNET_PAIRS_MAX) {
        err_set(err, net ? -EINVAL : -ENOMEM, net ? "a NIC has 1 to 16 queue pairs" : "out of memory");
        config->port->ops->free(config->port);
        free(net);
        return NULL;
    }
    struct net_port *port = config->port;
    net->config = *config;
    net->space.max_pairs = (uint16_t)config->pairs;
    net->space.mtu = config->mtu ? config->mtu : port->mtu;
    memcpy(net->space.mac, config->mac, 6);
    uint64_t features = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_CTRL_GUEST_OFFLOADS |
                        F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR;
    features |= net->space.mtu ? F_MTU : 0;
    features |= config->pairs > 1 ? F_MQ : 0;
    if (port->takes & NET_TAKES_CSUM) {
        features |= F_CSUM | (port->takes & NET_TAKES_TSO4 ? F_HOST_TSO4 : 0) |
                    (port->takes & NET_TAKES_TSO6 ? F_HOST_TSO6 : 0) |
                    (port->takes & NET_TAKES_ECN ? F_HOST_ECN : 0);
    }
    vdev_init(&net->dev, &net_ops, config->mem, 2 * config->pairs + 1, features, &net->space,
              sizeof(net->space));
    port->peer = (struct net_peer){on_receive, on_writable, on_link_changed, net};
    update_link(net);
    return &net->dev;
}
