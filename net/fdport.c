/* See fdport.h. */
#include "net/fdport.h"

#include <errno.h>
#include <unistd.h>

#define ROUND_FRAMES 64u /* then the main loop gets a turn */

static void on_poll(uv_poll_t *poll, int status, int events);

static void update(struct net_fdport *fp)
{
    int events = (fp->polling_read ? UV_READABLE : 0) | (fp->polling_write ? UV_WRITABLE : 0);
    if (fp->fd < 0) {
        return;
    }
    if (events) {
        uv_poll_start(&fp->poll, events, on_poll);
    } else {
        uv_poll_stop(&fp->poll);
    }
}

static bool give(struct net_fdport *fp, const uint8_t *frame, size_t len)
{
    const struct net_peer *peer = &fp->port->peer;
    struct iovec iov = {(void *)(uintptr_t)frame, len};
    return !peer->receive || peer->receive(peer->opaque, &iov, 1);
}

/* Segments that find no room are lost, as on any wire. */
static void emit_lowered(void *opaque, const uint8_t *frame, size_t len)
{
    struct net_fdport *fp = opaque;
    if (!give(fp, frame, len)) {
        fp->port->dropped++;
    }
}

/* Returns false when the guest has no room. */
static bool deliver(struct net_fdport *fp)
{
    const struct net_header *header = (const void *)fp->buf;
    bool plain = header->flags == 0 && header->gso_type == NET_GSO_NONE;
    if (fp->held < NET_HEADER_BYTES || !net_header_valid(header, fp->held - NET_HEADER_BYTES)) {
        fp->port->dropped++;
    } else if (plain || fp->lower_to == NET_TAKES_ALL) {
        if (!give(fp, fp->buf, fp->held)) {
            return false;
        }
    } else if (!net_frame_lower(fp->buf, fp->held, fp->lower_to, emit_lowered, fp)) {
        fp->port->dropped++;
    }
    fp->held = 0;
    return true;
}

static void read_frames(struct net_fdport *fp)
{
    for (unsigned i = 0; i < ROUND_FRAMES; i++) {
        if (fp->held == 0) {
            ssize_t n = read(fp->fd, fp->buf, sizeof(fp->buf));
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                return;
            }
            if (n <= 0) {
                fp->closed(fp);
                return;
            }
            fp->held = (size_t)n;
        }
        if (!deliver(fp)) {
            fp->polling_read = false;
            update(fp);
            return;
        }
    }
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct net_fdport *fp = poll->data;
    if (status < 0) {
        fp->closed(fp);
        return;
    }
    if ((events & UV_WRITABLE) && fp->polling_write) {
        fp->polling_write = false;
        update(fp);
        if (fp->port->peer.writable) {
            fp->port->peer.writable(fp->port->peer.opaque);
        }
    }
    if (events & UV_READABLE) {
        read_frames(fp);
    }
}

int net_fdport_start(struct net_fdport *fp, uv_loop_t *loop, int fd)
{
    int rc = uv_poll_init(loop, &fp->poll, fd);
    if (rc < 0) {
        return rc;
    }
    fp->poll.data = fp;
    fp->fd = fd;
    fp->held = 0;
    fp->polling_read = true;
    fp->polling_write = false;
    update(fp);
    return 0;
}

void net_fdport_stop(struct net_fdport *fp, uv_close_cb closed)
{
    uv_poll_stop(&fp->poll);
    fp->fd = -1;
    uv_close((uv_handle_t *)&fp->poll, closed);
}

bool net_fdport_send(struct net_fdport *fp, const struct iovec *iov, unsigned count)
{
    if (fp->fd < 0) {
        fp->port->dropped++;
        return true;
    }
    ssize_t n;
    do {
        n = writev(fp->fd, iov, (int)count);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
        fp->polling_write = true;
        update(fp);
        return false;
    }
    fp->port->dropped += n < 0; /* a frame that the other side refuses: a bad header, no carrier */
    return true;
}

void net_fdport_readable(struct net_fdport *fp)
{
    if (fp->fd >= 0 && !fp->polling_read && (fp->held == 0 || deliver(fp))) {
        fp->polling_read = true;
        update(fp);
    }
}
