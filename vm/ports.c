/*
 * See ports.h. The life of a port on a socket:
 *
 *               on_listen                     the program hangs up
 *     LISTENING ----------> CONNECTED --------------------------------> LISTENING
 *      (closed)              (open)    what it said and the guest has not read yet stays for the guest, and
 * the port stays open until then, or until the next program comes
 *
 * While a program is connected, the next one waits in the socket's queue.
 */
#include "vm/ports.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "dev/virtio/console.h"
#include "vm/channel.h"
#include "vm/device_options.h"
#include "vm/output.h"

#define INPUT_BYTES     4096u
#define OUTPUT_DRAIN_MS 1000u

struct port {
    struct ports *ports;
    unsigned index;
    struct port_options options;
    struct channel *channel;                                        /* NULL: no control socket */
    size_t (*sink)(void *opaque, const uint8_t *bytes, size_t len); /* the other end's */
    void (*has_room)(void *opaque);                                 /* the same; may be NULL */
    void *opaque;                                                   /* of both */
    struct output *output;                                          /* PORT_FILE */
    _Atomic bool room;                                              /* the file takes bytes again */
    bool named;                                                     /* else it is the console */

    /* PORT_UNIX */
    int listen_fd, fd; /* -1: none */
    struct sockaddr_un address;
    uv_poll_t listen_poll;
    uv_poll_t *poll; /* of fd; by itself, as it is closed while the next one is opened */
    int events;
    bool blocked; /* the program does not read: the device waits for vcon_room */
    size_t used;
    uint8_t input[INPUT_BYTES]; /* what the guest has not taken */
};

struct ports {
    struct ports_terminal terminal;
    uv_loop_t *loop;
    struct vdev *dev;
    uv_async_t async; /* of files, from their threads */
    unsigned handles, count;
    struct port port[VCON_PORTS_MAX];
};

static void on_client(uv_poll_t *poll, int status, int events);

static void free_handle(uv_handle_t *handle)
{
    free(handle);
}

/* --- sockets --- */

static void update_polling(struct port *port)
{
    if (port->fd < 0) {
        return;
    }
    int events = (port->used < INPUT_BYTES ? UV_READABLE : 0) | (port->blocked ? UV_WRITABLE : 0);
    if (events == port->events) {
        return;
    }
    port->events = events;
    if (events) {
        uv_poll_start(port->poll, events, on_client);
    } else {
        uv_poll_stop(port->poll);
    }
}

/* To the guest what it takes. */
static void pump(struct port *port)
{
    size_t taken = vcon_input(port->ports->dev, port->index, port->input, port->used);
    port->used -= taken;
    memmove(port->input, port->input + taken, port->used);
    if (port->fd < 0 && port->used == 0 && !(port->channel && channel_attended(port->channel))) {
        vcon_set_open(port->ports->dev, port->index, false);
    }
    update_polling(port);
}

static void hang_up(struct port *port)
{
    uv_poll_stop(port->poll);
    uv_close((uv_handle_t *)port->poll, free_handle);
    port->poll = NULL;
    close(port->fd);
    port->fd = -1;
    port->events = 0;
}

static void on_listen(uv_poll_t *poll, int status, int events)
{
    struct port *port = poll->data;
    int fd = accept4(port->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    port->poll = calloc(1, sizeof(*port->poll));
    if (!port->poll || uv_poll_init(port->ports->loop, port->poll, fd) < 0) {
        free(port->poll);
        port->poll = NULL;
        close(fd);
        return;
    }
    port->poll->data = port;
    port->fd = fd;
    port->used = 0;
    port->blocked = false;
    uv_poll_stop(&port->listen_poll);
    vcon_set_open(port->ports->dev, port->index,
                  false); /* a new conversation, if the last one's rest was unread */
    vcon_set_open(port->ports->dev, port->index, true);
    update_polling(port);
}

/* --- the control socket's clients --- */

static size_t channel_input(void *opaque, const uint8_t *bytes, size_t len)
{
    struct port *port = opaque;
    return vcon_input(port->ports->dev, port->index, bytes, len);
}

/* A program that comes meanwhile waits in the socket's queue. */
static void channel_is_attended(void *opaque, bool attended)
{
    struct port *port = opaque;
    if (!port->named) {
        return;
    }
    vcon_set_open(port->ports->dev, port->index, attended);
    if (port->listen_fd >= 0 && attended) {
        uv_poll_stop(&port->listen_poll);
    } else if (port->listen_fd >= 0) {
        uv_poll_start(&port->listen_poll, UV_READABLE, on_listen);
    }
}

static size_t port_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct port *port = opaque;
    size_t taken = port->sink ? port->sink(port->opaque, bytes, len) : len;
    if (port->channel) {
        channel_feed(port->channel, bytes, taken);
    }
    return taken;
}

static void port_room(void *opaque)
{
    struct port *port = opaque;
    if (port->has_room) {
        port->has_room(port->opaque);
    }
    if (port->channel) {
        channel_room(port->channel);
    }
}

const char *ports_name(const struct ports *ports, unsigned index)
{
    if (!ports || index >= ports->count) {
        return NULL;
    }
    return ports->port[index].named ? ports->port[index].options.name : "console";
}

struct channel *ports_channel(struct ports *ports, const char *name, struct err *err)
{
    for (unsigned i = 0; ports_name(ports, i); i++) {
        struct port *port = &ports->port[i];
        if (strcmp(ports_name(ports, i), name) == 0 && port->channel) {
            if (port->fd >= 0) {
                err_set(err, -EBUSY, "a program is connected to '%s' by its socket", name);
                return NULL;
            }
            return port->channel;
        }
    }
    err_set(err, -ENOENT, "there is no channel '%.64s'", name);
    return NULL;
}

void ports_close_channels(struct ports *ports)
{
    for (unsigned i = 0; ports && i < ports->count; i++) {
        channel_free(ports->port[i].channel);
        ports->port[i].channel = NULL;
    }
}

static void end_conversation(struct port *port)
{
    bool was_blocked = port->blocked;
    hang_up(port);
    port->blocked = false;
    uv_poll_start(&port->listen_poll, UV_READABLE, on_listen);
    pump(port);
    if (was_blocked) {
        vcon_room(port->ports->dev, port->index); /* what nobody reads any more is dropped */
    }
}

static void on_client(uv_poll_t *poll, int status, int events)
{
    struct port *port = poll->data;
    if (events & UV_WRITABLE) {
        port->blocked = false;
        vcon_room(port->ports->dev, port->index);
    }
    if (port->fd >= 0 && ((events & UV_READABLE) || status < 0)) {
        ssize_t n = recv(port->fd, port->input + port->used, INPUT_BYTES - port->used, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            end_conversation(port);
            return;
        }
        port->used += n > 0 ? (size_t)n : 0;
        pump(port);
    }
    update_polling(port);
}

/* What the guest says while nobody listens is lost, as on a serial line. */
static size_t socket_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct port *port = opaque;
    if (port->fd < 0) {
        return len;
    }
    ssize_t n = send(port->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        return len; /* gone; reading finds that out too */
    }
    n = MAX(n, 0);
    port->blocked = (size_t)n < len;
    update_polling(port);
    return (size_t)n;
}

static void socket_room(void *opaque)
{
    pump(opaque);
}

static int open_socket(struct port *port, struct err *err)
{
    const char *path = port->options.path;
    const struct sockaddr *address = (const struct sockaddr *)&port->address;
    if (strlen(path) >= sizeof(port->address.sun_path)) {
        return err_set(err, -EINVAL, "'%s' is too long for a socket's path", path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot make a socket");
    }
    port->address.sun_family = AF_UNIX;
    strcpy(port->address.sun_path, path);
    if (connect(fd, address, sizeof(port->address)) == 0) {
        close(fd);
        return err_set(err, -EADDRINUSE, "'%s' is in use by another machine or program", path);
    }
    if (errno == ECONNREFUSED) {
        unlink(path); /* left behind by one that is gone */
    }
    if (bind(fd, address, sizeof(port->address)) < 0 || listen(fd, 4) < 0 ||
        uv_poll_init(port->ports->loop, &port->listen_poll, fd) < 0) {
        int rc = -errno;
        close(fd);
        return err_sys(err, rc, "cannot listen on '%s'", path);
    }
    port->listen_fd = fd;
    port->listen_poll.data = port;
    port->ports->handles++;
    uv_poll_start(&port->listen_poll, UV_READABLE, on_listen);
    return 0;
}

/* --- files --- */

static size_t file_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct port *port = opaque;
    return output_write(port->output, bytes, len);
}

/* The output's thread. */
static void on_file_room(void *opaque)
{
    struct port *port = opaque;
    atomic_store(&port->room, true);
    uv_async_send(&port->ports->async);
}

static void on_async(uv_async_t *async)
{
    struct ports *ports = async->data;
    for (unsigned i = 0; i < ports->count; i++) {
        if (atomic_exchange(&ports->port[i].room, false)) {
            vcon_room(ports->dev, i);
        }
    }
}

static int open_file(struct port *port, struct err *err)
{
    int fd = open(port->options.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot open '%s'", port->options.path);
    }
    int rc = output_new(fd, on_file_room, port, &port->output, err);
    if (rc < 0) {
        close(fd);
    }
    return rc;
}

/* --- all of them --- */

static int open_port(struct ports *ports, const struct port_options *options, bool controlled,
                     struct vcon_port *ret, struct err *err)
{
    struct port *port = &ports->port[ports->count];
    *port =
        (struct port){.ports = ports, .index = ports->count, .options = *options, .listen_fd = -1, .fd = -1};
    ports->count++;
    port->named = options->name[0] != '\0';
    ret->name = port->named ? port->options.name : NULL;
    ret->opaque = port->opaque = port;
    ret->sink = port_sink;
    ret->room = port_room;
    if (controlled) {
        const struct channel_config channel = {ports->loop, port->named ? port->options.name : "console",
                                               channel_input, channel_is_attended, port};
        port->channel = channel_new(&channel);
    }
    if (controlled && !port->channel) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    switch (options->kind) {
    case PORT_TERMINAL:
        port->sink = ports->terminal.sink;
        port->has_room = ports->terminal.room;
        port->opaque = ports->terminal.opaque;
        return 0;
    case PORT_FILE: port->sink = file_sink; return open_file(port, err);
    case PORT_CONTROL: ret->closed = port->named; return 0;
    case PORT_UNIX: break;
    }
    port->sink = socket_sink;
    port->has_room = socket_room;
    ret->closed = true;
    return open_socket(port, err);
}

static int open_ports(struct ports *ports, const struct vm_config *config, struct vcon_port *ret,
                      struct err *err)
{
    struct port_options options;
    bool controlled = config->control || config->name;
    if (config->console) {
        int rc = console_options_parse(config->console, &options, err);
        rc = rc ? rc : open_port(ports, &options, controlled, &ret[0], err);
        if (rc < 0) {
            return err_prefix(err, "--console");
        }
    }
    for (unsigned i = 0; i < config->ports.count; i++) {
        int rc = port_options_parse(config->ports.values[i], &options, err);
        rc = rc ? rc : open_port(ports, &options, controlled, &ret[ports->count], err);
        if (rc < 0) {
            return err_prefix(err, "--port");
        }
    }
    return 0;
}

int ports_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem,
              const struct ports_terminal *terminal, struct ports **ret_ports, struct vdev **ret_dev,
              struct err *err)
{
    struct vcon_port wanted[VCON_PORTS_MAX + 1] = {0};
    *ret_ports = NULL;
    *ret_dev = NULL;
    if (!config->console && config->ports.count == 0) {
        return 0;
    }
    struct ports *ports = calloc(1, sizeof(*ports));
    if (!ports || uv_async_init(loop, &ports->async, on_async) < 0) {
        free(ports);
        return err_set(err, -ENOMEM, "out of memory");
    }
    ports->loop = loop;
    ports->terminal = *terminal;
    ports->async.data = ports;
    ports->handles = 1;
    int rc = open_ports(ports, config, wanted, err);
    if (rc == 0) {
        ports->dev = vcon_new(mem, wanted, ports->count, err);
        rc = ports->dev ? 0 : -ENOMEM;
    }
    if (rc < 0) {
        ports_free(ports);
        return rc;
    }
    *ret_ports = ports;
    *ret_dev = ports->dev;
    return 0;
}

int ports_start(struct ports *ports, struct err *err)
{
    int rc = 0;
    for (unsigned i = 0; ports && i < ports->count && rc == 0; i++) {
        rc = output_start(ports->port[i].output, err);
    }
    return rc;
}

size_t ports_terminal_input(struct ports *ports, const uint8_t *bytes, size_t len)
{
    return vcon_input(ports->dev, 0, bytes, len);
}

void ports_terminal_room(struct ports *ports)
{
    vcon_room(ports->dev, 0);
}

void ports_terminal_resize(struct ports *ports, uint16_t columns, uint16_t rows)
{
    vcon_resize(ports->dev, columns, rows);
}

static void on_closed(uv_handle_t *handle)
{
    struct ports *ports = handle->data;
    if (--ports->handles == 0) {
        free(ports);
    }
}

static void on_listen_closed(uv_handle_t *handle)
{
    const struct port *port = handle->data;
    handle->data = port->ports;
    on_closed(handle);
}

void ports_free(struct ports *ports)
{
    ports_close_channels(ports);
    for (unsigned i = 0; ports && i < ports->count; i++) {
        struct port *port = &ports->port[i];
        output_free(port->output, OUTPUT_DRAIN_MS);
        if (port->fd >= 0) {
            hang_up(port);
        }
        if (port->listen_fd >= 0) {
            uv_poll_stop(&port->listen_poll);
            close(port->listen_fd);
            unlink(port->address.sun_path);
            uv_close((uv_handle_t *)&port->listen_poll, on_listen_closed);
        }
    }
    if (ports) {
        uv_close((uv_handle_t *)&ports->async, on_closed);
    }
}
