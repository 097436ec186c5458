/*
 * A wire between two instances: a unix socket (SOCK_SEQPACKET), one message per frame, header first. Whoever
 * comes first listens; the link is up while both are there, and comes back when a peer returns.
 */
#ifndef FONDA_NET_WIRE_H
#define FONDA_NET_WIRE_H

#include <uv.h>

#include "base/err.h"
#include "net/port.h"

struct net_port *net_wire_new(uv_loop_t *loop, const char *path, struct err *err); /* NULL: see err */

#endif
