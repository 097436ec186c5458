/*
 * Events on web sockets. Each listener has a cursor into the store's log, so nothing is ever skipped in
 * silence: a listener whose cursor falls too far behind is told and cut.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/server.h"

#define EVENTS_BEHIND_MAX 2000u /* of them unsent */
#define EVENTS_BATCH      64u

int events_open(struct session *session, uint64_t after)
{
    struct core *core = server_core(session->server);
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    core_unlock(core);
    session->seq = MIN(after, last);
    lws_callback_on_writable(session->wsi);
    return 0;
}

bool events_pending(struct session *session)
{
    struct core *core = server_core(session->server);
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    core_unlock(core);
    return last > session->seq;
}

struct batch {
    struct session *session;
    unsigned char *text; /* behind LWS_PRE bytes */
    size_t len;
};

static bool take(void *arg, const struct store_row *row)
{
    struct batch *batch = arg;
    size_t room = strlen(row->json) + 40;
    batch->text = malloc(LWS_PRE + room);
    if (batch->text) {
        batch->len = (size_t)snprintf((char *)batch->text + LWS_PRE, room, "{\"seq\":%" PRIu64 ",%s",
                                      row->version, row->json + 1);
        batch->session->seq = row->version;
    }
    return false;
}

static int send_text(struct session *session, unsigned char *text, size_t len)
{
    return lws_write(session->wsi, text + LWS_PRE, len, LWS_WRITE_TEXT) < (int)len ? -1 : 0;
}

int events_writable(struct session *session)
{
    struct core *core = server_core(session->server);
    if (session->overflow) {
        return -1;
    }
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    core_unlock(core);
    if (last > session->seq + EVENTS_BEHIND_MAX) {
        static const char told[] = "{\"type\":\"overflow\"}";
        unsigned char buf[LWS_PRE + sizeof(told)];
        memcpy(buf + LWS_PRE, told, sizeof(told));
        session->overflow = true;
        lws_callback_on_writable(session->wsi);
        return send_text(session, buf, sizeof(told) - 1);
    }
    for (unsigned i = 0; i < EVENTS_BATCH; i++) {
        struct batch batch = {.session = session};
        core_lock(core);
        store_log(core_store(core), EVENTS_LOG, session->seq, 1, take, &batch, NULL);
        core_unlock(core);
        if (!batch.text) {
            return 0;
        }
        int rc = send_text(session, batch.text, batch.len);
        free(batch.text);
        if (rc < 0) {
            return -1;
        }
        if (lws_send_pipe_choked(session->wsi)) {
            break;
        }
    }
    lws_callback_on_writable(session->wsi);
    return 0;
}
