/*
 * What an instance uses, each second, on a web socket. The core samples it while somebody listens
 * (core/history.c); a listener that is slow misses samples, and gets the newest.
 */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/server.h"

int stats_open(struct session *session, const char *instance)
{
    struct core *core = server_core(session->server);
    struct fault fault = {0};
    core_lock(core);
    int rc = history_watch(core, instance, session->stats_id, &fault);
    core_unlock(core);
    return rc;
}

/* Looks without taking: a serial that was not sent yet. */
bool stats_pending(struct session *session)
{
    struct core *core = server_core(session->server);
    uint64_t serial = session->seq;
    core_lock(core);
    auto_free char *text = history_latest(core, session->stats_id, &serial);
    core_unlock(core);
    return text != NULL;
}

int stats_writable(struct session *session)
{
    struct core *core = server_core(session->server);
    core_lock(core);
    auto_free char *text = history_latest(core, session->stats_id, &session->seq);
    core_unlock(core);
    size_t len = text ? strlen(text) : 0;
    auto_free unsigned char *buf = text ? malloc(LWS_PRE + len) : NULL;
    if (!buf) {
        return 0;
    }
    memcpy(buf + LWS_PRE, text, len);
    return lws_write(session->wsi, buf + LWS_PRE, len, LWS_WRITE_TEXT) < (int)len ? -1 : 0;
}

void stats_close(struct session *session)
{
    struct core *core = server_core(session->server);
    if (session->stats_id[0]) {
        core_lock(core);
        history_unwatch(core, session->stats_id);
        core_unlock(core);
    }
}
