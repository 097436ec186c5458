/* See tap.h. */
#include "net/tap.h"

#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "net/fdport.h"
#include "net/tap_open.h"

struct tap {
    struct net_port port;
    struct net_fdport fp;
};

static bool tap_send(struct net_port *port, const struct iovec *iov, unsigned count)
{
    return net_fdport_send(&CONTAINER_OF(port, struct tap, port)->fp, iov, count);
}

static void tap_readable(struct net_port *port)
{
    net_fdport_readable(&CONTAINER_OF(port, struct tap, port)->fp);
}

static void tap_set_offloads(struct net_port *port, unsigned takes)
{
    struct tap *tap = CONTAINER_OF(port, struct tap, port);
    unsigned flags = 0;
    if (takes & NET_TAKES_CSUM) {
        flags = TUN_F_CSUM | (takes & NET_TAKES_TSO4 ? TUN_F_TSO4 : 0) |
                (takes & NET_TAKES_TSO6 ? TUN_F_TSO6 : 0);
        flags |= (flags & ~TUN_F_CSUM) && (takes & NET_TAKES_ECN) ? TUN_F_TSO_ECN : 0;
    }
    /* Where the kernel refuses, frames are lowered here. */
    tap->fp.lower_to =
        tap->fp.fd >= 0 && ioctl(tap->fp.fd, TUNSETOFFLOAD, flags) == 0 ? NET_TAKES_ALL : takes;
}

static void tap_closed(struct net_fdport *fp)
{
    struct tap *tap = CONTAINER_OF(fp, struct tap, fp);
    uv_poll_stop(&fp->poll); /* the device was deleted */
    tap->port.link_up = false;
    if (tap->port.peer.link_changed) {
        tap->port.peer.link_changed(tap->port.peer.opaque);
    }
}

static void tap_freed(uv_handle_t *handle)
{
    struct net_fdport *fp = handle->data;
    free(CONTAINER_OF(fp, struct tap, fp));
}

static void tap_free(struct net_port *port)
{
    struct tap *tap = CONTAINER_OF(port, struct tap, port);
    int fd = tap->fp.fd;
    net_fdport_stop(&tap->fp, tap_freed);
    close(fd);
}

static const struct net_port_ops tap_ops = {"tap", tap_send, tap_readable, tap_set_offloads, tap_free};

static uint16_t tap_mtu(const char *name)
{
    struct ifreq request = {0};
    auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(request.ifr_name, name);
    return fd >= 0 && ioctl(fd, SIOCGIFMTU, &request) == 0 && request.ifr_mtu > 0 && request.ifr_mtu <= 65535
               ? (uint16_t)request.ifr_mtu
               : 0;
}

struct net_port *net_tap_adopt(uv_loop_t *loop, int fd, uint16_t mtu, struct err *err)
{
    struct tap *tap = calloc(1, sizeof(*tap));
    if (!tap) {
        close(fd);
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    tap->port = (struct net_port){.ops = &tap_ops, .takes = NET_TAKES_ALL, .mtu = mtu, .link_up = true};
    tap->fp.port = &tap->port;
    tap->fp.closed = tap_closed;
    int rc = net_fdport_start(&tap->fp, loop, fd);
    if (rc < 0) {
        err_set(err, rc, "cannot watch the tap device");
        close(fd);
        free(tap);
        return NULL;
    }
    tap_set_offloads(&tap->port, 0);
    return &tap->port;
}

struct net_port *net_tap_new(uv_loop_t *loop, const char *name, struct err *err)
{
    int fd = net_tap_open(name, err);
    return fd < 0 ? NULL : net_tap_adopt(loop, fd, tap_mtu(name), err);
}
