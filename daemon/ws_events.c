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

int events_open(struct session *session, uint64_t after, bool jobs)
{
    struct core *core = server_core(session->server);
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    core_unlock(core);
    session->seq = MIN(after, last);
    session->jobs = jobs;
    lws_callback_on_writable(session->wsi);
    return 0;
}

bool events_pending(struct session *session)
{
    struct core *core = server_core(session->server);
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    bool news = last > session->seq || (session->jobs && job_serial(core) > session->job_serial);
    core_unlock(core);
    return news;
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

/* What open jobs do now; each change replaces the one before, so a slow listener misses nothing that counts.
 */
static int send_progress(struct session *session)
{
    struct core *core = server_core(session->server);
    size_t i;
    json_t *job;
    int rc = 0;
    core_lock(core);
    json_t *changed = jobs_changed(core, session->job_serial);
    session->job_serial = job_serial(core);
    core_unlock(core);
    json_array_foreach(changed, i, job)
    {
        json_t *message = json_pack("{s:s, s:O}", "type", "job.progress", "data", job);
        size_t len = json_dumpb(message, NULL, 0, JSON_COMPACT);
        unsigned char *text = malloc(LWS_PRE + len + 1);
        if (text && rc == 0) {
            json_dumpb(message, (char *)text + LWS_PRE, len, JSON_COMPACT);
            rc = send_text(session, text, len);
        }
        free(text);
        json_decref(message);
    }
    json_decref(changed);
    return rc;
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
    if (session->jobs && send_progress(session) < 0) {
        return -1;
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
