/* The network card, on a port that sends back what it gets: see driver.h. */
#include <string.h>

#include "dev/virtio/net.h"
#include "fuzz/virtio/driver.h"

static uint8_t frame[NET_HEADER_BYTES + NET_FRAME_MAX];
static size_t frame_len = 200;
static bool full;
static struct net_port port;

static bool port_send(struct net_port *p, const struct iovec *iov, unsigned count)
{
    if (full) {
        return false;
    }
    frame_len = viov_read(iov, count, 0, frame, sizeof(frame));
    return true;
}

static void port_readable(struct net_port *p)
{
}

static void port_offloads(struct net_port *p, unsigned takes)
{
}

static void port_free(struct net_port *p)
{
}

static const struct net_port_ops ops = {"fuzz", port_send, port_readable, port_offloads, port_free};

struct vdev *fuzz_make_device(struct mem *mem)
{
    port = (struct net_port){.ops = &ops, .takes = NET_TAKES_ALL, .link_up = true};
    const struct vnet_config config = {.mem = mem, .port = &port, .mac = {2}, .pairs = 2};
    return vnet_new(&config, NULL);
}

static void emit(void *opaque, const uint8_t *bytes, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    (void)port.peer.receive(port.peer.opaque, &iov, 1);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
    static uint8_t copy[sizeof(frame)];
    full = choice & 1;
    port.link_up = choice & 2;
    port.peer.link_changed(port.peer.opaque);
    if (!full) {
        port.peer.writable(port.peer.opaque);
    }
    memcpy(copy, frame, frame_len);
    (void)net_frame_lower(copy, frame_len, choice >> 4, emit, NULL);
}
