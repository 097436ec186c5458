/*
 * What tap and wire share: a file descriptor that carries one frame per read and write. Stays inside of net/.
 */
#ifndef FONDA_NET_FDPORT_H
#define FONDA_NET_FDPORT_H

#include <uv.h>

#include "net/port.h"

struct net_fdport {
    uv_poll_t poll;
    int fd; /* -1: none */
    bool polling_read, polling_write;
    size_t held; /* bytes of a frame in buf that the guest had no room for */
    uint8_t buf[NET_HEADER_BYTES + NET_FRAME_MAX];
    /* Main loop: the descriptor is at its end, or broke. */
    void (*closed)(struct net_fdport *fp);
    struct net_port *port;
    unsigned
        lower_to; /* what the guest takes of frames that come in; NET_TAKES_ALL: pass them on as they are */
};

/* Starts polling fd, which stays the caller's to close, behind net_fdport_stop. Returns 0 or a negative
 * errno. */
int net_fdport_start(struct net_fdport *fp, uv_loop_t *loop, int fd);
/* closed runs when the loop has let go. */
void net_fdport_stop(struct net_fdport *fp, uv_close_cb closed);
bool net_fdport_send(struct net_fdport *fp, const struct iovec *iov, unsigned count);
void net_fdport_readable(struct net_fdport *fp);

#endif
