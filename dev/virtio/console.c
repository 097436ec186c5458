/*
 * See console.h. Section numbers are those of virtio 1.2.
 *
 * Queues (5.3.2): 0 and 1 are port 0's, 2 and 3 carry control messages, 4 + 2 (p - 1) and the next are port
 * p's. Even ones go to the guest. Without F_MULTIPORT there are only the first two.
 */
#include "dev/virtio/console.h"

#include <errno.h>
#include <string.h>

#include "base/state.h"

#define F_SIZE      BIT64(0) /* 5.3.3 */
#define F_MULTIPORT BIT64(1)

#define CONTROL_IN  2u
#define CONTROL_OUT 3u

/* 5.3.6.2 */
#define DEVICE_READY 0u
#define DEVICE_ADD   1u
#define PORT_READY   3u
#define CONSOLE_PORT 4u
#define RESIZE       5u
#define PORT_OPEN    6u
#define PORT_NAME    7u

#define ROUND_CHAINS  64u
#define MESSAGES_MAX  (VCON_PORTS_MAX * 4) /* waiting for the guest's buffers */
#define CONTROL_BYTES 8u

struct con_config { /* 5.3.4 */
    uint16_t columns, rows;
    uint32_t max_ports, emergency_write;
};

struct control {
    uint32_t port;
    uint16_t event, value;
};
_Static_assert(sizeof(struct control) == CONTROL_BYTES, "5.3.6.2");

struct port {
    struct vcon_port config;
    bool guest_ready, guest_open;
    bool host_open;
    bool starved_input; /* the host had more than the guest had buffers for */
    uint64_t out_done;  /* bytes of the chain at the queue's head that the sink has taken */
};

struct vcon {
    struct vdev dev;
    struct con_config space;
    unsigned port_count;
    struct port ports[VCON_PORTS_MAX];
    unsigned message_count;
    struct control messages[MESSAGES_MAX];
    struct vq_chain chain;
};

static unsigned queue_in(unsigned port)
{
    return port == 0 ? 0 : 2 + 2 * port;
}

static bool multiport(const struct vcon *con)
{
    return vdev_has(&con->dev, F_MULTIPORT);
}

/* --- control messages to the guest --- */

static void flush_messages(struct vcon *con)
{
    struct vq *vq = &con->dev.queues[CONTROL_IN];
    unsigned done = 0;
    while (done < con->message_count && vdev_pop(&con->dev, CONTROL_IN, &con->chain)) {
        const struct control *message = &con->messages[done++];
        uint8_t bytes[CONTROL_BYTES + VCON_NAME_MAX];
        size_t len = CONTROL_BYTES;
        memcpy(bytes, message, CONTROL_BYTES);
        if (message->event == PORT_NAME) {
            const char *name = con->ports[message->port].config.name;
            size_t name_len = strnlen(name, VCON_NAME_MAX);
            memcpy(bytes + len, name, name_len);
            len += name_len;
        } else if (message->event == RESIZE) {
            memcpy(bytes + len, &con->space.columns, 2);
            memcpy(bytes + len + 2, &con->space.rows, 2);
            len += 4;
        }
        uint64_t n = viov_write(vq_in(&con->chain), con->chain.in_count, 0, bytes, len);
        vq_push(vq, &con->chain, (uint32_t)n);
    }
    con->message_count -= done;
    memmove(con->messages, con->messages + done, con->message_count * sizeof(con->messages[0]));
    vdev_signal(&con->dev, CONTROL_IN);
}

/* A guest that asks for more than it gives buffers for loses the rest. */
static void send_message(struct vcon *con, unsigned port, uint16_t event, uint16_t value)
{
    if (con->message_count < MESSAGES_MAX) {
        con->messages[con->message_count++] = (struct control){port, event, value};
    }
}

/* --- and from it --- */

static void on_control(struct vcon *con, const struct control *message)
{
    if (message->event == DEVICE_READY && message->value == 1) {
        for (unsigned i = 0; i < con->port_count; i++) {
            send_message(con, i, DEVICE_ADD, 1);
        }
        return;
    }
    if (message->port >= con->port_count) {
        return; /* a guest that opened a port that is not there */
    }
    struct port *port = &con->ports[message->port];
    if (message->event == PORT_READY && message->value == 1) {
        port->guest_ready = true;
        if (port->config.name) {
            send_message(con, message->port, PORT_NAME, 1);
        } else {
            send_message(con, message->port, CONSOLE_PORT, 1);
            if (vdev_has(&con->dev, F_SIZE) && con->space.columns) {
                send_message(con, message->port, RESIZE, 1);
            }
        }
        if (port->host_open) {
            send_message(con, message->port, PORT_OPEN, 1);
        }
    } else if (message->event == PORT_OPEN) {
        port->guest_open = message->value;
        if (port->guest_open && port->config.room) {
            port->config.room(port->config.opaque);
        }
    }
}

static void control_kick(struct vcon *con)
{
    struct vq *vq = &con->dev.queues[CONTROL_OUT];
    for (unsigned n = 0; n < ROUND_CHAINS && vdev_pop(&con->dev, CONTROL_OUT, &con->chain); n++) {
        struct control message;
        bool whole =
            viov_read(con->chain.segs, con->chain.out_count, 0, &message, sizeof(message)) == sizeof(message);
        vq_push(vq, &con->chain, 0);
        if (whole) {
            on_control(con, &message);
        }
    }
    flush_messages(con);
    vdev_signal(&con->dev, CONTROL_OUT);
    if (vq_enable_notify(vq)) {
        vdev_again(&con->dev, CONTROL_OUT);
    }
}

/* --- data --- */

static void output_kick(struct vcon *con, unsigned index)
{
    struct port *port = &con->ports[index];
    unsigned queue = queue_in(index) + 1;
    struct vq *vq = &con->dev.queues[queue];
    bool stuck = false;
    unsigned n = 0;
    for (; n < ROUND_CHAINS && !stuck && vdev_pop(&con->dev, queue, &con->chain); n++) {
        struct iovec rest[VQ_SIZE_MAX];
        unsigned count = viov_slice(con->chain.segs, con->chain.out_count, port->out_done, UINT64_MAX, rest);
        for (unsigned i = 0; i < count && !stuck; i++) {
            size_t taken = port->config.sink(port->config.opaque, rest[i].iov_base, rest[i].iov_len);
            port->out_done += taken;
            stuck = taken < rest[i].iov_len;
        }
        if (stuck) {
            vq_unpop(vq, 1); /* its head stays, and so does what is done of it */
        } else {
            port->out_done = 0;
            vq_push(vq, &con->chain, 0);
        }
    }
    vdev_signal(&con->dev, queue);
    if (!stuck && vq_enable_notify(vq)) {
        vdev_again(&con->dev, queue);
    }
}

void vcon_room(struct vdev *dev, unsigned port)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    if (dev->live && port < con->port_count) {
        output_kick(con, port);
    }
}

size_t vcon_input(struct vdev *dev, unsigned index, const uint8_t *bytes, size_t len)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    struct port *port = &con->ports[index];
    size_t done = 0;
    if (!dev->live || (multiport(con) && !port->guest_open)) {
        return 0;
    }
    unsigned queue = queue_in(index);
    while (done < len && vdev_pop(dev, queue, &con->chain)) {
        uint64_t n = viov_write(vq_in(&con->chain), con->chain.in_count, 0, bytes + done, len - done);
        vq_push(&dev->queues[queue], &con->chain, (uint32_t)n);
        done += n;
    }
    vdev_signal(dev, queue);
    port->starved_input = done < len;
    return done;
}

void vcon_set_open(struct vdev *dev, unsigned index, bool open)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    struct port *port = &con->ports[index];
    if (port->host_open == open) {
        return;
    }
    port->host_open = open;
    if (dev->live && multiport(con) && port->guest_ready) {
        send_message(con, index, PORT_OPEN, open);
        flush_messages(con);
    }
}

void vcon_resize(struct vdev *dev, uint16_t columns, uint16_t rows)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    mem_lock(dev->mem);
    con->space.columns = columns;
    con->space.rows = rows;
    mem_unlock(dev->mem);
    if (dev->live && multiport(con) && vdev_has(dev, F_SIZE)) {
        for (unsigned i = 0; i < con->port_count; i++) {
            if (!con->ports[i].config.name && con->ports[i].guest_ready) {
                send_message(con, i, RESIZE, 1);
            }
        }
        flush_messages(con);
    } else {
        vdev_config_changed(dev);
    }
}

/* --- the device --- */

static void con_kick(struct vdev *dev, unsigned queue)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    if (queue == CONTROL_IN) {
        flush_messages(con);
    } else if (queue == CONTROL_OUT) {
        control_kick(con);
    } else {
        unsigned index = queue < 2 ? 0 : queue / 2 - 1;
        struct port *port = &con->ports[index];
        if (queue & 1) {
            output_kick(con, index);
        } else if (port->starved_input && port->config.room) {
            port->starved_input = false;
            port->config.room(port->config.opaque);
        }
    }
}

static void con_start(struct vdev *dev)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    if (!multiport(con) && con->ports[0].config.room) {
        con->ports[0].config.room(con->ports[0].config.opaque);
    }
}

static void con_stop(struct vdev *dev)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    con->message_count = 0;
    for (unsigned i = 0; i < con->port_count; i++) {
        struct port *port = &con->ports[i];
        port->guest_ready = port->guest_open = port->starved_input = false;
        port->out_done = 0;
    }
}

static void con_free(struct vdev *dev)
{
    free(CONTAINER_OF(dev, struct vcon, dev));
}

/* What the host has open is not the machine's: a restored guest hears what is open now. */
static void con_state(struct vdev *dev, struct state *s)
{
    struct vcon *con = CONTAINER_OF(dev, struct vcon, dev);
    uint64_t messages[MESSAGES_MAX] = {0};
    uint32_t count = con->message_count;
    memcpy(messages, con->messages, count * sizeof(messages[0]));
    state_field(s, "message_count", &count);
    state_array(s, "messages", messages);
    state_require(s, count <= MESSAGES_MAX, "message_count");
    for (unsigned i = 0; i < con->port_count; i++) {
        struct port *port = &con->ports[i];
        state_prefix(s, "port%u.", i);
        state_field(s, "guest_ready", &port->guest_ready);
        state_field(s, "guest_open", &port->guest_open);
        state_field(s, "starved_input", &port->starved_input);
        state_field(s, "out_done", &port->out_done);
    }
    state_no_prefix(s);
    if (!state_loaded(s)) {
        return;
    }
    con->message_count = 0;
    for (unsigned i = 0; i < count; i++) {
        struct control message;
        memcpy(&message, &messages[i], sizeof(message));
        bool named = message.port < con->port_count && con->ports[message.port].config.name;
        if (message.port < con->port_count && (message.event != PORT_NAME || named)) {
            con->messages[con->message_count++] = message;
        }
    }
    for (unsigned i = 0; i < con->port_count && dev->live && multiport(con); i++) {
        if (con->ports[i].guest_ready) {
            send_message(con, i, PORT_OPEN, con->ports[i].host_open); /* the first kick sends it */
        }
    }
}

static const struct vdev_ops con_ops = {
    .name = "virtio-console",
    .id = VIRTIO_ID_CONSOLE,
    .class_code = 0x078000,
    .start = con_start,
    .stop = con_stop,
    .kick = con_kick,
    .free = con_free,
    .state = con_state,
};

struct vdev *vcon_new(struct mem *mem, const struct vcon_port *ports, unsigned count, struct err *err)
{
    struct vcon *con = calloc(1, sizeof(*con));
    if (!con || count == 0 || count > VCON_PORTS_MAX) {
        err_set(err, con ? -EINVAL : -ENOMEM, con ? "a console has 1 to 16 ports" : "out of memory");
        free(con);
        return NULL;
    }
    con->port_count = count;
    con->space.max_ports = count;
    for (unsigned i = 0; i < count; i++) {
        con->ports[i].config = ports[i];
        con->ports[i].host_open = !ports[i].closed;
    }
    vdev_init(&con->dev, &con_ops, mem, count == 1 ? 4 : 2 + 2 * count, F_SIZE | F_MULTIPORT, &con->space,
              sizeof(con->space));
    return &con->dev;
}
