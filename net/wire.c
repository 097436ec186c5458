/*
 * See wire.h.
 *
 *                bind                 accept
 *     (start) ---------> listening ----------> connected
 *        |                   ^                     | the peer ended: wire_closed
 *        | connect           |<--------------------+ (whoever listened goes on listening)
 *        `--------> connected ---> retrying, every second: as at the start
 */
#include "net/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "net/fdport.h"

#define RETRY_MS     1000u
#define BUFFER_BYTES (1 << 20)

struct wire {
    struct net_port port;
    struct net_fdport fp;
    uv_loop_t *loop;
    uv_poll_t accept_poll;
    uv_timer_t retry;
    int listen_fd; /* -1: none */
    bool fp_closing, freeing;
    unsigned handles; /* that the loop holds, and that point here */
    struct sockaddr_un address;
};

static void set_link(struct wire *wire, bool up)
{
    wire->port.link_up = up;
    if (wire->port.peer.link_changed) {
        wire->port.peer.link_changed(wire->port.peer.opaque);
    }
}

static void connected(struct wire *wire, int fd)
{
    int bytes = BUFFER_BYTES;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    if (net_fdport_start(&wire->fp, wire->loop, fd) < 0) {
        close(fd);
        return;
    }
    wire->handles++;
    set_link(wire, true);
}

static void on_accept(uv_poll_t *poll, int status, int events)
{
    struct wire *wire = poll->data;
    int fd = accept4(wire->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0 && (wire->fp.fd >= 0 || wire->fp_closing)) {
        close(fd); /* a wire has two ends */
    } else if (fd >= 0) {
        connected(wire, fd);
    }
}

/* Returns 0 when connected or listening. */
static int open_wire(struct wire *wire, struct err *err)
{
    const struct sockaddr *address = (const struct sockaddr *)&wire->address;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot make a socket");
    }
    if (connect(fd, address, sizeof(wire->address)) == 0) {
        connected(wire, fd);
        return 0;
    }
    if (errno == ECONNREFUSED) {
        unlink(wire->address.sun_path); /* whoever listened is gone */
    } else if (errno != ENOENT) {
        int rc = -errno;
        close(fd);
        return rc == -EPROTOTYPE
                   ? err_set(err, rc, "'%s' is another program's socket, not a wire", wire->address.sun_path)
                   : err_sys(err, rc, "cannot connect to wire '%s'", wire->address.sun_path);
    }
    if (bind(fd, address, sizeof(wire->address)) < 0 || listen(fd, 1) < 0 ||
        uv_poll_init(wire->loop, &wire->accept_poll, fd) < 0) {
        int rc = -errno;
        close(fd);
        return err_sys(err, rc, "cannot make wire '%s'", wire->address.sun_path);
    }
    wire->accept_poll.data = wire;
    wire->handles++;
    wire->listen_fd = fd;
    uv_poll_start(&wire->accept_poll, UV_READABLE, on_accept);
    return 0;
}

static void on_retry(uv_timer_t *timer)
{
    struct wire *wire = timer->data;
    if (wire->fp.fd >= 0 || wire->fp_closing || wire->listen_fd >= 0 || open_wire(wire, NULL) == 0) {
        uv_timer_stop(timer);
    }
}

static void handle_gone(struct wire *wire)
{
    if (--wire->handles == 0 && wire->freeing) {
        free(wire);
    }
}

static void on_fp_closed(uv_handle_t *handle)
{
    struct wire *wire = CONTAINER_OF((struct net_fdport *)handle->data, struct wire, fp);
    wire->fp_closing = false;
    if (!wire->freeing && wire->listen_fd < 0) {
        uv_timer_start(&wire->retry, on_retry, RETRY_MS, RETRY_MS);
    }
    handle_gone(wire);
}

static void on_handle_closed(uv_handle_t *handle)
{
    handle_gone(handle->data);
}

static void disconnect(struct wire *wire)
{
    int fd = wire->fp.fd;
    wire->fp_closing = true;
    net_fdport_stop(&wire->fp, on_fp_closed);
    close(fd);
}

static void wire_closed(struct net_fdport *fp)
{
    struct wire *wire = CONTAINER_OF(fp, struct wire, fp);
    disconnect(wire);
    set_link(wire, false);
    if (wire->port.peer.writable) {
        wire->port.peer.writable(wire->port.peer.opaque); /* what waits is dropped now */
    }
}

static bool wire_send(struct net_port *port, const struct iovec *iov, unsigned count)
{
    return net_fdport_send(&CONTAINER_OF(port, struct wire, port)->fp, iov, count);
}

static void wire_readable(struct net_port *port)
{
    net_fdport_readable(&CONTAINER_OF(port, struct wire, port)->fp);
}

static void wire_set_offloads(struct net_port *port, unsigned takes)
{
    CONTAINER_OF(port, struct wire, port)->fp.lower_to = takes;
}

static void wire_free(struct net_port *port)
{
    struct wire *wire = CONTAINER_OF(port, struct wire, port);
    wire->freeing = true;
    if (wire->listen_fd >= 0) {
        uv_poll_stop(&wire->accept_poll);
        uv_close((uv_handle_t *)&wire->accept_poll, on_handle_closed);
        close(wire->listen_fd);
        unlink(wire->address.sun_path);
    }
    if (wire->fp.fd >= 0) {
        disconnect(wire);
    }
    uv_close((uv_handle_t *)&wire->retry, on_handle_closed);
}

static const struct net_port_ops wire_ops = {"wire", wire_send, wire_readable, wire_set_offloads, wire_free};

struct net_port *net_wire_new(uv_loop_t *loop, const char *path, struct err *err)
{
    struct wire *wire = calloc(1, sizeof(*wire));
    if (!wire || strlen(path) == 0 || strlen(path) >= sizeof(wire->address.sun_path)) {
        err_set(err, wire ? -EINVAL : -ENOMEM, wire ? "'%s' is not a path for a socket" : "out of memory",
                path);
        free(wire);
        return NULL;
    }
    wire->port = (struct net_port){.ops = &wire_ops, .takes = NET_TAKES_ALL};
    wire->loop = loop;
    wire->listen_fd = -1;
    wire->fp = (struct net_fdport){.fd = -1, .closed = wire_closed, .port = &wire->port};
    wire->address.sun_family = AF_UNIX;
    strcpy(wire->address.sun_path, path);
    uv_timer_init(loop, &wire->retry);
    wire->retry.data = wire;
    wire->handles = 1;
    if (open_wire(wire, err) < 0) {
        wire_free(&wire->port);
        return NULL;
    }
    return &wire->port;
}
