/*
 * See vsock.h. Section numbers are those of virtio 1.2.
 *
 * A stream's life
 *
 *     accept() on PATH --> COMMAND --"CONNECT p\n"--> CONNECTING --RESPONSE--> OPEN --+-- RST, SHUTDOWN,
 * hang-up
 *                                                         `-- RST                     |
 *     REQUEST of the guest --connect(PATH_p)------------------------------------> OPEN +--> closed, freed by
 * the loop
 *
 * Invariants
 *  1. What we hold of a stream for the host never exceeds VSOCK_BUFFER_BYTES: the guest is told so by credits
 *     (5.10.6.3), and one that sends more is reset.
 *  2. We send only what the guest's credit allows, and only into buffers that are there. Packets without
 *     data wait in `replies`, which is bounded; a guest that makes us overflow it loses them.
 */
#include "dev/virtio/vsock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/state.h"

#include "base/options.h"

#define RX    0u
#define TX    1u
#define EVENT 2u

#define HOST_CID   2u
#define FIRST_PORT 1024u /* of those that we pick for the host's end */

#define TYPE_STREAM       1u /* 5.10.6 */
#define OP_REQUEST        1u
#define OP_RESPONSE       2u
#define OP_RST            3u
#define OP_SHUTDOWN       4u
#define OP_RW             5u
#define OP_CREDIT_UPDATE  6u
#define OP_CREDIT_REQUEST 7u
#define SHUTDOWN_RECEIVE  1u
#define SHUTDOWN_SEND     2u

#define REPLIES_MAX   1024u
#define COMMAND_BYTES 32u
#define ROUND_CHAINS  64u
#define PACKET_BYTES  65536u /* of data in one packet to the guest */

struct header { /* 5.10.6 */
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, len;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 44, "5.10.6");

enum stream_state { FREE, COMMAND, CONNECTING, OPEN, CLOSING };

struct stream {
    struct vsock *vsock;
    enum stream_state state;
    int fd;
    uv_poll_t poll;
    int events; /* that are polled for */
    uint32_t guest_port, host_port;
    uint32_t guest_alloc, guest_fwd; /* the guest's credit, as it told last */
    uint32_t sent;                   /* to the guest */
    uint32_t received, forwarded;    /* from the guest; to the host's end */
    uint32_t told;                   /* forwarded, as the guest knows it */
    bool guest_sends_no_more, hangup;
    char command[COMMAND_BYTES];
    unsigned command_len;
    uint32_t held_start, held; /* of buffer, which is a ring */
    uint8_t *buffer;
};

struct vsock {
    struct vdev dev;
    uint64_t guest_cid;
    uv_loop_t *loop;
    uv_poll_t listen_poll;
    struct sockaddr_un address;
    int listen_fd;
    unsigned handles;
    bool freeing;
    uint32_t next_port;
    unsigned reply_first, reply_count;
    struct header replies[REPLIES_MAX];
    uint64_t dropped;
    bool reset_due; /* the machine was restored: the guest's streams have lost their other ends */
    struct vq_chain chain;
    struct stream streams[VSOCK_STREAMS_MAX];
};

static void update_polling(struct stream *stream);

/* --- to the guest --- */

static struct header make_header(const struct stream *stream, unsigned op, uint32_t len, uint32_t flags)
{
    return (struct header){
        .src_cid = HOST_CID,
        .dst_cid = VSOCK_GUEST_CID,
        .src_port = stream->host_port,
        .dst_port = stream->guest_port,
        .len = len,
        .type = TYPE_STREAM,
        .op = (uint16_t)op,
        .flags = flags,
        .buf_alloc = VSOCK_BUFFER_BYTES,
        .fwd_cnt = stream->forwarded,
    };
}

static void flush_replies(struct vsock *vsock)
{
    struct vq *vq = &vsock->dev.queues[RX];
    while (vsock->reply_count && vdev_pop(&vsock->dev, RX, &vsock->chain)) {
        const struct header *header = &vsock->replies[vsock->reply_first];
        uint64_t n = viov_write(vq_in(&vsock->chain), vsock->chain.in_count, 0, header, sizeof(*header));
        vq_push(vq, &vsock->chain, (uint32_t)n);
        vsock->reply_first = (vsock->reply_first + 1) % REPLIES_MAX;
        vsock->reply_count--;
    }
    vdev_signal(&vsock->dev, RX);
}

static void queue_reply(struct vsock *vsock, const struct header *header)
{
    if (vsock->reply_count == REPLIES_MAX) {
        vsock->dropped++;
        return;
    }
    vsock->replies[(vsock->reply_first + vsock->reply_count++) % REPLIES_MAX] = *header;
}

static void reply(struct stream *stream, unsigned op, uint32_t flags)
{
    struct header header = make_header(stream, op, 0, flags);
    stream->told = stream->forwarded;
    queue_reply(stream->vsock, &header);
}

/* An answer to a packet of no stream. */
static void reject(struct vsock *vsock, const struct header *from)
{
    struct header header = {.src_cid = from->dst_cid,
                            .dst_cid = from->src_cid,
                            .src_port = from->dst_port,
                            .dst_port = from->src_port,
                            .type = from->type,
                            .op = OP_RST};
    if (from->op != OP_RST) {
        queue_reply(vsock, &header);
    }
}

/* --- streams --- */

static struct stream *find_stream(struct vsock *vsock, uint32_t guest_port, uint32_t host_port)
{
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++) {
        struct stream *stream = &vsock->streams[i];
        if ((stream->state == CONNECTING || stream->state == OPEN) && stream->guest_port == guest_port &&
            stream->host_port == host_port) {
            return stream;
        }
    }
    return NULL;
}

static void vsock_release(struct vsock *vsock)
{
    if (--vsock->handles == 0 && vsock->freeing) {
        free(vsock);
    }
}

static void on_stream_closed(uv_handle_t *handle)
{
    struct stream *stream = handle->data;
    struct vsock *vsock = stream->vsock;
    close(stream->fd);
    free(stream->buffer);
    memset(stream, 0, sizeof(*stream));
    vsock_release(vsock);
}

static void close_stream(struct stream *stream)
{
    if (stream->state != FREE && stream->state != CLOSING) {
        stream->state = CLOSING;
        uv_poll_stop(&stream->poll);
        uv_close((uv_handle_t *)&stream->poll, on_stream_closed);
    }
}

static void on_stream(uv_poll_t *poll, int status, int events);

/* Takes fd over. */
static struct stream *open_stream(struct vsock *vsock, int fd, enum stream_state state)
{
    struct stream *stream = NULL;
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX && !stream; i++) {
        stream = vsock->streams[i].state == FREE ? &vsock->streams[i] : NULL;
    }
    uint8_t *buffer = stream ? malloc(VSOCK_BUFFER_BYTES) : NULL;
    if (!buffer || uv_poll_init(vsock->loop, &stream->poll, fd) < 0) {
        free(buffer);
        close(fd);
        return NULL;
    }
    stream->poll.data = stream;
    stream->vsock = vsock;
    stream->state = state;
    stream->fd = fd;
    stream->buffer = buffer;
    vsock->handles++;
    update_polling(stream);
    return stream;
}

/* --- from the guest to the host's end --- */

static void write_held(struct stream *stream)
{
    while (stream->held) {
        uint32_t bytes = MIN(stream->held, VSOCK_BUFFER_BYTES - stream->held_start);
        ssize_t n = send(stream->fd, stream->buffer + stream->held_start, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR) { /* nobody reads any more */
            reply(stream, OP_RST, 0);
            close_stream(stream);
            return;
        }
        if (n <= 0) {
            break;
        }
        stream->held_start = (stream->held_start + (uint32_t)n) % VSOCK_BUFFER_BYTES;
        stream->held -= (uint32_t)n;
        stream->forwarded += (uint32_t)n;
    }
    if (stream->forwarded - stream->told >= VSOCK_BUFFER_BYTES / 2) {
        reply(stream, OP_CREDIT_UPDATE, 0);
    }
    if (stream->held == 0 && stream->guest_sends_no_more) {
        shutdown(stream->fd, SHUT_WR);
    }
    update_polling(stream);
}

static void take_data(struct stream *stream, const struct vq_chain *chain, uint32_t len)
{
    if (len > VSOCK_BUFFER_BYTES - stream->held) { /* beyond the credit that it had */
        reply(stream, OP_RST, 0);
        close_stream(stream);
        return;
    }
    uint32_t at = (stream->held_start + stream->held) % VSOCK_BUFFER_BYTES;
    uint32_t first = MIN(len, VSOCK_BUFFER_BYTES - at);
    viov_read(chain->segs, chain->out_count, sizeof(struct header), stream->buffer + at, first);
    viov_read(chain->segs, chain->out_count, sizeof(struct header) + first, stream->buffer, len - first);
    stream->held += len;
    stream->received += len;
    write_held(stream);
}

/* The guest connects. */
static void on_request(struct vsock *vsock, const struct header *header)
{
    struct sockaddr_un address = vsock->address;
    size_t len = strlen(address.sun_path);
    int n = snprintf(address.sun_path + len, sizeof(address.sun_path) - len, "_%u", header->dst_port);
    int fd = n > 0 && (size_t)n < sizeof(address.sun_path) - len
                 ? socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
                 : -1;
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (fd >= 0) {
            close(fd);
        }
        reject(vsock, header);
        return;
    }
    struct stream *stream = open_stream(vsock, fd, OPEN);
    if (!stream) {
        reject(vsock, header);
        return;
    }
    stream->guest_port = header->src_port;
    stream->host_port = header->dst_port;
    stream->guest_alloc = header->buf_alloc;
    stream->guest_fwd = header->fwd_cnt;
    reply(stream, OP_RESPONSE, 0);
    update_polling(stream);
}

static void on_response(struct stream *stream)
{
    char text[COMMAND_BYTES];
    int n = snprintf(text, sizeof(text), "OK %u\n", stream->host_port);
    if (stream->state != CONNECTING || send(stream->fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) {
        reply(stream, OP_RST, 0);
        close_stream(stream);
        return;
    }
    stream->state = OPEN;
    update_polling(stream);
}

static void on_shutdown(struct stream *stream, uint32_t flags)
{
    if (flags & SHUTDOWN_SEND) {
        stream->guest_sends_no_more = true;
        write_held(stream);
    }
    if ((flags & SHUTDOWN_RECEIVE) && stream->state == OPEN) {
        shutdown(stream->fd, SHUT_RD);
        if (stream->guest_sends_no_more && stream->held == 0) {
            reply(stream, OP_RST, 0); /* 5.10.6.5: the end of a clean close */
            close_stream(stream);
        }
    }
}

static void on_packet(struct vsock *vsock, const struct header *header, const struct vq_chain *chain)
{
    if (header->src_cid != vsock->guest_cid || header->dst_cid != HOST_CID || header->type != TYPE_STREAM ||
        header->len > chain->out_bytes - sizeof(*header)) {
        reject(vsock, header);
        return;
    }
    struct stream *stream = find_stream(vsock, header->src_port, header->dst_port);
    if (!stream && header->op == OP_REQUEST) {
        on_request(vsock, header);
        return;
    }
    if (!stream) {
        reject(vsock, header);
        return;
    }
    stream->guest_alloc = header->buf_alloc;
    stream->guest_fwd = header->fwd_cnt;
    switch (header->op) {
    case OP_RESPONSE: on_response(stream); break;
    case OP_RW:
        if (stream->state == OPEN) {
            take_data(stream, chain, header->len);
        }
        break;
    case OP_SHUTDOWN: on_shutdown(stream, header->flags); break;
    case OP_CREDIT_REQUEST: reply(stream, OP_CREDIT_UPDATE, 0); break;
    case OP_CREDIT_UPDATE: update_polling(stream); break;
    case OP_RST: close_stream(stream); break;
    default:
        reply(stream, OP_RST, 0);
        close_stream(stream);
        break;
    }
}

static void transmit_kick(struct vsock *vsock)
{
    struct vq_chain *chain = malloc(sizeof(*chain)); /* the other one is for replies meanwhile */
    for (unsigned n = 0; chain && n < ROUND_CHAINS && vdev_pop(&vsock->dev, TX, chain); n++) {
        struct header header;
        if (viov_read(chain->segs, chain->out_count, 0, &header, sizeof(header)) == sizeof(header)) {
            on_packet(vsock, &header, chain);
        }
        vq_push(&vsock->dev.queues[TX], chain, 0);
    }
    free(chain);
    flush_replies(vsock);
    vdev_signal(&vsock->dev, TX);
    if (vq_enable_notify(&vsock->dev.queues[TX])) {
        vdev_again(&vsock->dev, TX);
    }
}

/* --- from the host's end to the guest --- */

static uint32_t credit(const struct stream *stream)
{
    uint32_t used = stream->sent - stream->guest_fwd;
    return used < stream->guest_alloc ? stream->guest_alloc - used : 0;
}

/* No more will come. */
static void host_closed(struct stream *stream)
{
    struct pollfd pollfd = {.fd = stream->fd};
    if (!stream->hangup) {
        stream->hangup = true;
        (void)poll(&pollfd, 1, 0);
        bool gone = pollfd.revents & (POLLHUP | POLLERR); /* not only half closed */
        reply(stream, OP_SHUTDOWN, SHUTDOWN_SEND | (gone ? SHUTDOWN_RECEIVE : 0));
        flush_replies(stream->vsock);
    }
    update_polling(stream);
}

/* One packet. Returns false when nothing moved. */
static bool send_packet(struct stream *stream)
{
    struct vsock *vsock = stream->vsock;
    struct vq *vq = &vsock->dev.queues[RX];
    uint32_t room = MIN(credit(stream), PACKET_BYTES);
    if (room == 0 || vsock->reply_count || !vdev_pop(&vsock->dev, RX, &vsock->chain)) {
        return false;
    }
    struct vq_chain *chain = &vsock->chain;
    if (chain->in_bytes <= sizeof(struct header)) {
        vdev_fail(&vsock->dev, "a receive buffer has no room for data");
        return false;
    }
    struct iovec data[VQ_SIZE_MAX];
    unsigned count = viov_slice(vq_in(chain), chain->in_count, sizeof(struct header), room, data);
    ssize_t n = readv(stream->fd, data, (int)count);
    if (n <= 0) {
        vq_unpop(vq, 1);
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            host_closed(stream);
        }
        return false;
    }
    stream->sent += (uint32_t)n;
    struct header header = make_header(stream, OP_RW, (uint32_t)n, 0);
    stream->told = stream->forwarded;
    viov_write(vq_in(chain), chain->in_count, 0, &header, sizeof(header));
    vq_push(vq, chain, (uint32_t)(sizeof(header) + (size_t)n));
    return true;
}

/* The words of a program of the host's. */
static void read_command(struct stream *stream)
{
    struct vsock *vsock = stream->vsock;
    char c = 0;
    while (stream->command_len < COMMAND_BYTES - 1) {
        ssize_t n = recv(stream->fd, &c, 1, MSG_DONTWAIT); /* what follows the line is the stream's */
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (n <= 0) {
            close_stream(stream);
            return;
        }
        if (c == '\n') {
            break;
        }
        stream->command[stream->command_len++] = c;
    }
    uint64_t port;
    stream->command[stream->command_len] = '\0';
    if (c != '\n' || strncmp(stream->command, "CONNECT ", 8) != 0 ||
        parse_uint(stream->command + 8, &port, NULL) < 0 || port > UINT32_MAX || !vsock->dev.live) {
        close_stream(stream);
        return;
    }
    stream->guest_port = (uint32_t)port;
    stream->host_port = vsock->next_port++;
    if (vsock->next_port == 0) {
        vsock->next_port = FIRST_PORT;
    }
    stream->state = CONNECTING;
    reply(stream, OP_REQUEST, 0);
    flush_replies(vsock);
    update_polling(stream);
}

static void on_stream(uv_poll_t *poll, int status, int events)
{
    struct stream *stream = poll->data;
    struct vsock *vsock = stream->vsock;
    if (stream->state == COMMAND) {
        read_command(stream);
        return;
    }
    if (status < 0) {
        reply(stream, OP_RST, 0);
        close_stream(stream);
        flush_replies(vsock);
        return;
    }
    if (events & UV_WRITABLE) {
        write_held(stream);
    }
    bool moved = false;
    for (unsigned i = 0;
         i < ROUND_CHAINS && stream->state == OPEN && (events & UV_READABLE) && send_packet(stream); i++) {
        moved = true;
    }
    if (moved) {
        vdev_signal(&vsock->dev, RX);
    }
    flush_replies(vsock);
    if (stream->state == OPEN) {
        update_polling(stream);
    }
}

/* Only what can be served is polled for. */
static void update_polling(struct stream *stream)
{
    struct vsock *vsock = stream->vsock;
    int events = 0;
    if (stream->state == COMMAND) {
        events = UV_READABLE;
    } else if (stream->state == OPEN) {
        bool room =
            vsock->dev.live && !vsock->reply_count && credit(stream) && !vq_empty(&vsock->dev.queues[RX]);
        events = (room && !stream->hangup ? UV_READABLE : 0) | (stream->held ? UV_WRITABLE : 0);
        if (vsock->dev.live && vq_empty(&vsock->dev.queues[RX])) {
            vq_enable_notify(&vsock->dev.queues[RX]);
        }
    } else if (stream->state != CONNECTING) {
        return;
    }
    if (events != stream->events) {
        stream->events = events;
        if (events) {
            uv_poll_start(&stream->poll, events, on_stream);
        } else {
            uv_poll_stop(&stream->poll);
        }
    }
}

static void on_listen(uv_poll_t *poll, int status, int events)
{
    struct vsock *vsock = poll->data;
    int fd = accept4(vsock->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        open_stream(vsock, fd, COMMAND);
    }
}

/* --- the device --- */

/* 5.10.6.7: the other ends of all streams are gone. */
static void tell_transport_reset(struct vsock *vsock)
{
    static const uint32_t event_reset = 0;
    struct vq_chain *chain = &vsock->chain;
    if (vsock->reset_due && vdev_pop(&vsock->dev, EVENT, chain)) {
        uint64_t n = viov_write(vq_in(chain), chain->in_count, 0, &event_reset, sizeof(event_reset));
        vq_push(&vsock->dev.queues[EVENT], chain, (uint32_t)n);
        vdev_signal(&vsock->dev, EVENT);
        vsock->reset_due = false;
    }
}

static void vsock_kick(struct vdev *dev, unsigned queue)
{
    struct vsock *vsock = CONTAINER_OF(dev, struct vsock, dev);
    if (queue == EVENT) {
        tell_transport_reset(vsock);
    } else if (queue == TX) {
        transmit_kick(vsock);
    } else if (queue == RX) {
        flush_replies(vsock);
    }
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++) { /* there may be room for more now */
        if (vsock->streams[i].state == OPEN) {
            update_polling(&vsock->streams[i]);
        }
    }
}

static void vsock_stop(struct vdev *dev)
{
    struct vsock *vsock = CONTAINER_OF(dev, struct vsock, dev);
    vsock->reply_count = 0;
    vsock->reset_due = false;
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++) {
        close_stream(&vsock->streams[i]);
    }
}

/* Connections are the host's, and can't go along: the guest is told that they broke. */
static void vsock_state(struct vdev *dev, struct state *s)
{
    struct vsock *vsock = CONTAINER_OF(dev, struct vsock, dev);
    state_field(s, "guest_cid", &vsock->guest_cid);
    state_require(s, vsock->guest_cid >= 3 && vsock->guest_cid < UINT32_MAX, "guest_cid");
    if (state_loaded(s)) {
        vsock->reset_due = dev->live;
    }
}

static void on_listen_closed(uv_handle_t *handle)
{
    vsock_release(handle->data);
}

static void vsock_free(struct vdev *dev)
{
    struct vsock *vsock = CONTAINER_OF(dev, struct vsock, dev);
    vsock->freeing = true;
    for (unsigned i = 0; i < VSOCK_STREAMS_MAX; i++) {
        close_stream(&vsock->streams[i]);
    }
    uv_poll_stop(&vsock->listen_poll);
    close(vsock->listen_fd);
    unlink(vsock->address.sun_path);
    uv_close((uv_handle_t *)&vsock->listen_poll, on_listen_closed);
}

static const struct vdev_ops vsock_ops = {.name = "virtio-vsock",
                                          .id = VIRTIO_ID_VSOCK,
                                          .class_code = 0x028000,
                                          .stop = vsock_stop,
                                          .kick = vsock_kick,
                                          .free = vsock_free,
                                          .state = vsock_state};

static int listen_on(struct vsock *vsock, const char *path, struct err *err)
{
    const struct sockaddr *address = (const struct sockaddr *)&vsock->address;
    if (strlen(path) == 0 || strlen(path) >= sizeof(vsock->address.sun_path)) {
        return err_set(err, -EINVAL, "'%s' is not a path for a socket", path);
    }
    vsock->address.sun_family = AF_UNIX;
    strcpy(vsock->address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot make a socket");
    }
    if (connect(fd, address, sizeof(vsock->address)) == 0) {
        close(fd);
        return err_set(err, -EADDRINUSE, "'%s' is in use by another machine or program", path);
    }
    if (errno == ECONNREFUSED) {
        unlink(path); /* left behind by one that is gone */
    }
    if (bind(fd, address, sizeof(vsock->address)) < 0 || listen(fd, 16) < 0 ||
        uv_poll_init(vsock->loop, &vsock->listen_poll, fd) < 0) {
        int rc = -errno;
        close(fd);
        return err_sys(err, rc, "cannot listen on '%s'", path);
    }
    vsock->listen_fd = fd;
    vsock->listen_poll.data = vsock;
    vsock->handles = 1;
    uv_poll_start(&vsock->listen_poll, UV_READABLE, on_listen);
    return 0;
}

struct vdev *vsock_new(struct mem *mem, uv_loop_t *loop, const char *path, struct err *err)
{
    struct vsock *vsock = calloc(1, sizeof(*vsock));
    if (!vsock) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    vsock->loop = loop;
    vsock->guest_cid = VSOCK_GUEST_CID;
    vsock->next_port = FIRST_PORT;
    if (listen_on(vsock, path, err) < 0) {
        free(vsock);
        return NULL;
    }
    vdev_init(&vsock->dev, &vsock_ops, mem, 3, 0, &vsock->guest_cid, sizeof(vsock->guest_cid));
    return &vsock->dev;
}
