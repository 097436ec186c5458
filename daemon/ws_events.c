/*
 * Events on web sockets. Each listener has a cursor into the store's log, so nothing is ever skipped in
 * silence: a listener whose cursor falls too far behind is told and cut.
 *
 * Who has grants alone is sent what they cover. Grants are looked up each time something is sent, so that
 * one that was taken away counts at once.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/server.h"

#define EVENTS_BEHIND_MAX 2000u /* of them unsent */
#define EVENTS_BATCH      64u

/* ---- what grants cover ---- */

static bool granted(const struct caller *caller, const char *subject)
{
    static const char prefix[] = "instances/";
    return strncmp(subject, prefix, sizeof(prefix) - 1) == 0 &&
           caller_role(caller, subject + sizeof(prefix) - 1) >= ROLE_VIEWER;
}

bool events_job_seen(const struct caller *caller, const json_t *job)
{
    return caller->role >= ROLE_VIEWER || strcmp(obj_text(job, "owner"), caller->name) == 0 ||
           granted(caller, obj_text(job, "target"));
}

bool events_seen(const struct caller *caller, const json_t *event)
{
    const json_t *data = json_object_get(event, "data");
    const char *subject = obj_text(event, "subject"), *old_name = obj_text(data, "old_name");
    if (caller->role >= ROLE_VIEWER || granted(caller, subject)) {
        return true;
    }
    if (strncmp(subject, "jobs/", 5) == 0) {
        return strcmp(obj_text(event, "who"), caller->name) == 0 || granted(caller, obj_text(data, "target"));
    }
    /* Renamed: grants stay with the name, whose instance is gone. */
    return old_name[0] && strncmp(subject, "instances/", 10) == 0 &&
           caller_role(caller, old_name) >= ROLE_VIEWER;
}

/* Whoever the session belongs to, as he is now. *ret_all: he sees everything. Locked. */
static int look_up(struct session *session, struct caller *ret_caller, bool *ret_all)
{
    struct fault ignored = {0};
    *ret_all = !session->who[0];
    if (*ret_all) {
        return 0;
    }
    if (user_from_name(server_core(session->server), session->who, ret_caller, &ignored) < 0) {
        return -1;
    }
    *ret_all = ret_caller->role >= ROLE_VIEWER;
    return *ret_all || json_object_size(ret_caller->grants) ? 0 : -1;
}

/* ---- sending ---- */

int events_open(struct session *session, const struct caller *caller, uint64_t after, bool jobs)
{
    if (caller->role < ROLE_VIEWER) {
        snprintf(session->who, sizeof(session->who), "%s", caller->name);
    }
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
    const struct caller *caller; /* NULL: who sees everything */
    unsigned char *text;         /* behind LWS_PRE bytes; NULL: there was nothing to send */
    size_t len;
};

static bool not_seen(const struct batch *batch, const char *text)
{
    json_t *event = batch->caller ? json_loads(text, 0, NULL) : NULL;
    bool seen = !batch->caller || events_seen(batch->caller, event);
    json_decref(event);
    return !seen;
}

static bool take(void *arg, const struct store_row *row)
{
    struct batch *batch = arg;
    if (not_seen(batch, row->json)) {
        batch->session->seq = row->version;
        return true;
    }
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
static int send_progress(struct session *session, const struct caller *caller)
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
        if (caller && !events_job_seen(caller, job)) {
            continue;
        }
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

/* caller: NULL: who sees everything. last: the newest event. */
static int write_all(struct session *session, uint64_t last, const struct caller *caller)
{
    struct core *core = server_core(session->server);
    if (last > session->seq + EVENTS_BEHIND_MAX) {
        static const char told[] = "{\"type\":\"overflow\"}";
        unsigned char buf[LWS_PRE + sizeof(told)];
        memcpy(buf + LWS_PRE, told, sizeof(told));
        session->overflow = true;
        lws_callback_on_writable(session->wsi);
        return send_text(session, buf, sizeof(told) - 1);
    }
    if (session->jobs && send_progress(session, caller) < 0) {
        return -1;
    }
    for (unsigned i = 0; i < EVENTS_BATCH; i++) {
        struct batch batch = {.session = session, .caller = caller};
        core_lock(core);
        store_log(core_store(core), EVENTS_LOG, session->seq, caller ? EVENTS_BEHIND_MAX : 1, take, &batch,
                  NULL);
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

int events_writable(struct session *session)
{
    struct core *core = server_core(session->server);
    struct caller caller = {0};
    if (session->overflow) {
        return -1;
    }
    core_lock(core);
    uint64_t last = store_log_last(core_store(core), EVENTS_LOG);
    bool all;
    int known = look_up(session, &caller, &all);
    core_unlock(core);
    if (known < 0) {
        caller_done(&caller);
        return -1;
    }
    int rc = write_all(session, last, all ? NULL : &caller);
    caller_done(&caller);
    return rc;
}
