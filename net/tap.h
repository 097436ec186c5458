/*
 * A port to a tap device of the host's kernel: Linux Documentation/networking/tuntap.rst. Needs the right to
 * use the device (its owner, or CAP_NET_ADMIN to make one).
 */
#ifndef FONDA_NET_TAP_H
#define FONDA_NET_TAP_H

#include <uv.h>

#include "base/err.h"
#include "net/port.h"

struct net_port *net_tap_new(uv_loop_t *loop, const char *name, struct err *err); /* NULL: see err */

/* The same for a tap device that somebody else has opened (IFF_NO_PI | IFF_VNET_HDR, headers of
 * NET_HEADER_BYTES, O_NONBLOCK). Takes fd, also on failure. mtu 0: not known. */
struct net_port *net_tap_adopt(uv_loop_t *loop, int fd, uint16_t mtu, struct err *err);

#endif
