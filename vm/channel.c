/* See channel.h. A ring with what was written last; each stream has a position in all that was ever written.
 */
#include "vm/channel.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/util.h"

struct channel_stream {
    struct channel *channel;
    struct control_stream *stream; /* NULL: free */
    uint64_t sent;
};

struct channel {
    uv_async_t async;
    struct channel_config config;
    bool attended, closing;
    pthread_mutex_t lock; /* of ring and written */
    uint64_t written;
    uint8_t ring[CHANNEL_BYTES];
    struct channel_stream streams[CHANNEL_STREAMS];
};

static size_t on_input(void *opaque, const uint8_t *bytes, size_t len)
{
    const struct channel_stream *stream = opaque;
    const struct channel_config *config = &stream->channel->config;
    return config->input(config->opaque, bytes, len);
}

bool channel_attended(const struct channel *channel)
{
    bool any = false;
    for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
        any |= channel->streams[i].stream != NULL;
    }
    return any;
}

static void update_attended(struct channel *channel)
{
    bool attended = channel_attended(channel);
    if (attended != channel->attended) {
        channel->attended = attended;
        if (channel->config.attended && !channel->closing) {
            channel->config.attended(channel->config.opaque, attended);
        }
    }
}

static void on_closed(void *opaque)
{
    struct channel_stream *stream = opaque;
    stream->stream = NULL;
    update_attended(stream->channel);
}

/* What the stream has not got yet, and the ring still has. */
static void send_news(struct channel_stream *stream)
{
    struct channel *channel = stream->channel;
    uint8_t bytes[CHANNEL_BYTES];
    size_t len = 0;
    pthread_mutex_lock(&channel->lock);
    uint64_t from = MAX(stream->sent, channel->written - MIN(channel->written, CHANNEL_BYTES));
    for (uint64_t at = from; at < channel->written; at++) {
        bytes[len++] = channel->ring[at % CHANNEL_BYTES];
    }
    stream->sent = channel->written;
    pthread_mutex_unlock(&channel->lock);
    control_stream_write(stream->stream, bytes, len);
}

static void on_async(uv_async_t *async)
{
    struct channel *channel = async->data;
    for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
        if (channel->streams[i].stream) {
            send_news(&channel->streams[i]);
        }
    }
}

struct channel *channel_new(const struct channel_config *config)
{
    struct channel *channel = calloc(1, sizeof(*channel));
    if (channel && uv_async_init(config->loop, &channel->async, on_async) < 0) {
        free(channel);
        return NULL;
    }
    if (channel) {
        channel->async.data = channel;
        channel->config = *config;
        pthread_mutex_init(&channel->lock, NULL);
        for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
            channel->streams[i].channel = channel;
        }
    }
    return channel;
}

static void on_async_closed(uv_handle_t *handle)
{
    struct channel *channel = handle->data;
    pthread_mutex_destroy(&channel->lock);
    free(channel);
}

void channel_free(struct channel *channel)
{
    if (!channel) {
        return;
    }
    channel->closing = true;
    for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
        if (channel->streams[i].stream) {
            send_news(&channel->streams[i]);
            control_stream_close(channel->streams[i].stream);
        }
    }
    uv_close((uv_handle_t *)&channel->async, on_async_closed);
}

void channel_feed(struct channel *channel, const uint8_t *bytes, size_t len)
{
    if (len > 0) {
        pthread_mutex_lock(&channel->lock);
        for (size_t i = 0; i < len; i++) {
            channel->ring[channel->written++ % CHANNEL_BYTES] = bytes[i];
        }
        pthread_mutex_unlock(&channel->lock);
        uv_async_send(&channel->async);
    }
}

void channel_room(struct channel *channel)
{
    for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
        if (channel->streams[i].stream) {
            control_stream_room(channel->streams[i].stream);
        }
    }
}

void channel_attach(struct channel *channel, struct control_call *call)
{
    static const struct control_stream_ops ops = {on_input, on_closed};
    for (unsigned i = 0; i < CHANNEL_STREAMS; i++) {
        struct channel_stream *stream = &channel->streams[i];
        if (!stream->stream) {
            stream->sent = 0;
            stream->stream =
                control_attach(call, json_pack("{s:s}", "channel", channel->config.name), &ops, stream);
            if (stream->stream) {
                send_news(stream);
            }
            update_attended(channel);
            return;
        }
    }
    control_fail(call, "busy", "detach one", "%u clients are attached to '%s' already", CHANNEL_STREAMS,
                 channel->config.name);
}
