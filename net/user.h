/*
 * User-mode NAT by libslirp: the guest gets an address by DHCP, a gateway and a DNS server; its connections
 * become the host process's own. Needs no privilege.
 *
 * The network is 10.0.2.0/24: gateway 10.0.2.2 (the host), DNS 10.0.2.3, the guest 10.0.2.15; fec0::/64
 * beside it.
 */
#ifndef FONDA_NET_USER_H
#define FONDA_NET_USER_H

#include <uv.h>

#include "base/err.h"
#include "net/port.h"

#define NET_USER_MTU     65520u /* no wire in between limits it, and large segments save most of the work */
#define NET_FORWARDS_MAX 64u

struct net_forward {
    bool udp;
    char host_address[46]; /* "127.0.0.1" */
    uint16_t host_port, guest_port;
};

/* "2222:22", "127.0.0.1:8080:80", "5353:53/udp". Without an address: 127.0.0.1. Errors: -EINVAL. */
int net_forward_parse(const char *text, struct net_forward *ret, struct err *err);

/* NULL: see err. */
struct net_port *net_user_new(uv_loop_t *loop, const struct net_forward *forwards, unsigned count,
                              struct err *err);

#endif
