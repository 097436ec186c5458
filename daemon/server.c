/*
 * Requests over libwebsockets: one callback for both listeners, one `struct session` per connection.
 *
 *     HTTP        begin(): method, path, arguments, caller --+--> body --> finish() --> respond() -->
 * writable() |                 | (refused: answered)        +--> parked: waits for a job, a thread upgrade
 * FILTER_PROTOCOL_CONNECTION: origin, caller, role --> ESTABLISHED --> ws_events.c, ws_console.c,
 * ws_stream.c
 *
 * Threads: everything on the main loop, but server_wake(), server_stop() and run_aside().
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "daemon/server.h"

#define BODY_TIMEOUT_S 20
#define CHUNK          (64u * 1024)
/* Browsers can't send headers with web sockets; they can offer protocols: "fonda" and this with a token. */
#define TOKEN_PROTOCOL "fonda.token."
/* Nothing from elsewhere, nothing inline, in nobody's frame; no text ever becomes HTML (trusted types). */
#define PAGE_POLICY                                                                                          \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "          \
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"

static const struct lws_protocols protocols[2];

struct server {
    struct core *core;
    struct lws_context *context;
    struct session *sessions; /* those that wait */
    unsigned websockets;
    volatile bool stopping;
};

struct core *server_core(struct server *server)
{
    return server->core;
}

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void list_session(struct session *session)
{
    if (!session->listed) {
        session->next = session->server->sessions;
        session->server->sessions = session;
        session->listed = true;
    }
}

static void unlist_session(struct session *session)
{
    for (struct session **at = &session->server->sessions; session->listed && *at; at = &(*at)->next) {
        if (*at == session) {
            *at = session->next;
            session->listed = false;
            return;
        }
    }
}

/* ---- who and what ---- */

static const struct {
    enum lws_token_indexes token;
    const char *method;
} methods[] = {
    {WSI_TOKEN_GET_URI, "GET"},         {WSI_TOKEN_POST_URI, "POST"},     {WSI_TOKEN_PUT_URI, "PUT"},
    {WSI_TOKEN_PATCH_URI, "PATCH"},     {WSI_TOKEN_DELETE_URI, "DELETE"}, {WSI_TOKEN_HEAD_URI, "HEAD"},
    {WSI_TOKEN_OPTIONS_URI, "OPTIONS"},
};

/* A header as text; free() it. NULL: not there. */
static char *header(struct lws *wsi, enum lws_token_indexes token)
{
    int len = lws_hdr_total_length(wsi, token);
    char *text = len > 0 ? malloc((size_t)len + 1) : NULL;
    if (text && lws_hdr_copy(wsi, text, len + 1, token) < 0) {
        free(text);
        return NULL;
    }
    return text;
}

static int peer_uid(struct lws *wsi, unsigned *ret_uid)
{
    struct sockaddr_un addr;
    struct ucred cred;
    socklen_t len = sizeof(addr), cred_len = sizeof(cred);
    int fd = lws_get_socket_fd(wsi);
    if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0 || addr.sun_family != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) < 0) {
        return -1;
    }
    *ret_uid = cred.uid;
    return 0;
}

/* Token, certificate, or peer credentials; nobody (an empty name) when there is none of them. */
static int identify(struct server *server, struct lws *wsi, struct caller *caller, struct fault *fault)
{
    unsigned uid = 0;
    bool local = peer_uid(wsi, &uid) == 0;
    auto_free char *protocol = header(wsi, WSI_TOKEN_PROTOCOL);
    const char *offered = protocol ? strstr(protocol, TOKEN_PROTOCOL) : NULL;
    snprintf(caller->from, sizeof(caller->from), "unix");
    if (!local) {
        lws_get_peer_simple(wsi, caller->from, sizeof(caller->from));
    }
    auto_free char *auth = header(wsi, WSI_TOKEN_HTTP_AUTHORIZATION);
    int rc = 0;
    core_lock(server->core);
    if (auth) {
        rc = strncasecmp(auth, "Bearer ", 7) == 0
                 ? user_from_token(server->core, auth + 7, caller, fault)
                 : fault_set(fault, FAULT_UNAUTHORIZED, "Authorization: Bearer TOKEN",
                             "only tokens are known here");
    } else if (offered) {
        char token[128];
        snprintf(token, sizeof(token), "%s", offered + sizeof(TOKEN_PROTOCOL) - 1);
        token[strcspn(token, ", ")] = '\0';
        rc = user_from_token(server->core, token, caller, fault);
    } else if (local) {
        rc = user_from_uid(server->core, uid, caller, fault);
    } else if (lws_is_ssl(wsi)) {
        union lws_tls_cert_info_results info;
        if (lws_tls_peer_cert_info(wsi, LWS_TLS_CERT_INFO_VERIFIED, &info, 0) == 0 && info.verified &&
            lws_tls_peer_cert_info(wsi, LWS_TLS_CERT_INFO_COMMON_NAME, &info, sizeof(info.ns.name)) == 0) {
            rc = user_from_name(server->core, info.ns.name, caller, fault);
        }
    }
    core_unlock(server->core);
    return rc;
}

/* Browsers say where a page came from. Pages of other places may neither change anything nor listen. */
static bool same_origin(struct lws *wsi)
{
    auto_free char *origin = header(wsi, WSI_TOKEN_ORIGIN);
    auto_free char *host = header(wsi, WSI_TOKEN_HOST);
    if (!origin) {
        return true;
    }
    const char *authority = strstr(origin, "://");
    return authority && host && strcmp(authority + 3, host) == 0;
}

static int read_args(struct lws *wsi, struct request *request, struct fault *fault)
{
    char text[4096];
    for (int i = 0;; i++) {
        int len = lws_hdr_copy_fragment(wsi, text, sizeof(text), WSI_TOKEN_HTTP_URI_ARGS, i);
        if (len == -1) {
            return 0;
        }
        if (len < 0 || request->arg_count == REQUEST_ARGS_MAX) {
            return fault_set(fault, FAULT_INVALID, NULL, "the query is too long");
        }
        text[MIN(len, (int)sizeof(text) - 1)] = '\0';
        char *value = strchr(text, '=');
        if (value) {
            *value++ = '\0';
        }
        for (char *c = value; c && *c; c++) {
            *c = *c == '+' ? ' ' : *c;
        }
        request->args[request->arg_count].name = strdup(text);
        request->args[request->arg_count].value = strdup(value ? value : "");
        if (!request->args[request->arg_count].name || !request->args[request->arg_count++].value) {
            return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
        }
    }
}

/* Everything but the body. */
static int read_head(struct server *server, struct lws *wsi, struct request *request, struct fault *fault)
{
    request->core = server->core;
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
        int len = lws_hdr_total_length(wsi, methods[i].token);
        if (len > 0) {
            snprintf(request->method, sizeof(request->method), "%s", methods[i].method);
            if (lws_hdr_copy(wsi, request->path, sizeof(request->path), methods[i].token) < 0) {
                return fault_set(fault, FAULT_NOT_FOUND, NULL, "the path is longer than %d bytes",
                                 REQUEST_PATH_MAX);
            }
        }
    }
    if (!web_host_ok(wsi)) {
        return fault_set(fault, FAULT_FORBIDDEN, "open the link that 'fonda web' prints",
                         "this is not the host that was asked for");
    }
    if (lws_is_ssl(wsi) && lws_hdr_copy(wsi, request->host, sizeof(request->host), WSI_TOKEN_HOST) < 0) {
        request->host[0] = '\0';
    }
    request->if_match = header(wsi, WSI_TOKEN_HTTP_IF_MATCH);
    auto_free char *type = header(wsi, WSI_TOKEN_HTTP_CONTENT_TYPE);
    request->json_type = !type || strncasecmp(type, "application/json", 16) == 0 ||
                         strncasecmp(type, "application/merge-patch+json", 28) == 0;
    if (read_args(wsi, request, fault) < 0 || identify(server, wsi, &request->caller, fault) < 0) {
        return -1;
    }
    if (strcmp(request->method, "GET") != 0 && strcmp(request->method, "HEAD") != 0 && !same_origin(wsi)) {
        return fault_set(fault, FAULT_FORBIDDEN, NULL, "a page of another origin may not do this");
    }
    if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0) {
        return fault_set(fault, FAULT_INVALID, "send Content-Length",
                         "bodies of unknown length are not taken");
    }
    return 0;
}

/* ---- answers ---- */

static int add_header(struct lws *wsi, const char *name, const char *value, unsigned char **p,
                      unsigned char *end)
{
    return lws_add_http_header_by_name(wsi, (const unsigned char *)name, (const unsigned char *)value,
                                       (int)strlen(value), p, end);
}

static int send_headers(struct session *session)
{
    struct request *rq = session->request;
    unsigned char buf[LWS_PRE + 2048], *start = buf + LWS_PRE, *p = start, *end = buf + sizeof(buf) - 1;
    const char *type = rq->type ? rq->type : "application/json";
    char tag[32];
    if (lws_add_http_common_headers(session->wsi, (unsigned)rq->status, rq->status == 204 ? NULL : type,
                                    rq->status == 204 ? 0 : (lws_filepos_t)rq->len, &p, end) ||
        add_header(session->wsi, "x-content-type-options:", "nosniff", &p, end) ||
        add_header(session->wsi, "cache-control:", rq->asset ? "no-cache" : "no-store", &p, end)) {
        return -1;
    }
    if (rq->asset && (add_header(session->wsi, "etag:", rq->asset->etag, &p, end) ||
                      add_header(session->wsi, "referrer-policy:", "no-referrer", &p, end) ||
                      add_header(session->wsi, "cross-origin-opener-policy:", "same-origin", &p, end) ||
                      add_header(session->wsi, "content-security-policy:", PAGE_POLICY, &p, end) ||
                      (rq->len && add_header(session->wsi, "content-encoding:", "gzip", &p, end)))) {
        return -1;
    }
    snprintf(tag, sizeof(tag), "\"%llu\"", (unsigned long long)rq->version);
    if ((rq->version && add_header(session->wsi, "etag:", tag, &p, end)) ||
        (rq->location[0] && add_header(session->wsi, "location:", rq->location, &p, end)) ||
        (rq->retry && add_header(session->wsi, "retry-after:", "1", &p, end)) ||
        (rq->status == 401 && add_header(session->wsi, "www-authenticate:", "Bearer", &p, end)) ||
        lws_finalize_write_http_header(session->wsi, start, &p, end)) {
        return -1;
    }
    session->headers_sent = true;
    return 0;
}

static void drop_request(struct session *session)
{
    if (session->request) {
        request_done(session->request);
        free(session->request);
        session->request = NULL;
    }
}

/* The answer is ready: headers now, the body as the socket takes it. */
static int respond(struct session *session)
{
    struct request *rq = session->request;
    unlist_session(session);
    lws_set_timer_usecs(session->wsi, LWS_SET_TIMER_USEC_CANCEL);
    metrics_request(rq->status, now_us() - session->began_us);
    bool reading = strcmp(rq->method, "GET") == 0 || strcmp(rq->method, "HEAD") == 0;
    if (!reading && rq->caller.name[0]) {
        core_lock(rq->core);
        audit_add(rq->core, &rq->caller, rq->method, rq->path, rq->status);
        core_unlock(rq->core);
    }
    if (send_headers(session) < 0) {
        return -1;
    }
    if (rq->status == 204 || !rq->len || strcmp(rq->method, "HEAD") == 0) {
        bool close = session->refused;
        drop_request(session);
        return close || lws_http_transaction_completed(session->wsi) ? -1 : 0;
    }
    lws_callback_on_writable(session->wsi);
    return 0;
}

static int writable(struct session *session)
{
    struct request *rq = session->request;
    static unsigned char buf[LWS_PRE + CHUNK]; /* main loop only */
    if (!rq || !session->headers_sent) {
        return 0;
    }
    size_t n = MIN(rq->len - session->sent, (size_t)CHUNK);
    bool last = session->sent + n == rq->len;
    memcpy(buf + LWS_PRE, rq->text + session->sent, n);
    if (lws_write(session->wsi, buf + LWS_PRE, n, last ? LWS_WRITE_HTTP_FINAL : LWS_WRITE_HTTP) < (int)n) {
        return -1;
    }
    session->sent += n;
    if (!last) {
        lws_callback_on_writable(session->wsi);
        return 0;
    }
    bool close = session->refused;
    drop_request(session);
    return close || lws_http_transaction_completed(session->wsi) ? -1 : 0;
}

static int refuse(struct session *session, const struct fault *fault)
{
    answer_fault(session->request, fault);
    session->dispatched = session->refused = true; /* what else was sent is not read */
    return respond(session);
}

/* ---- requests that wait ---- */

struct aside {
    struct server *server;
    struct request *request;
    bool done;
    bool orphan; /* the connection is gone */
};

static void *run_aside(void *arg)
{
    struct aside *aside = arg;
    route_aside(aside->request);
    core_lock(aside->server->core);
    aside->done = true;
    core_unlock(aside->server->core);
    server_wake(aside->server);
    return NULL;
}

/* Asides by the request that they work on. Main loop. */
static struct aside *asides[SERVER_ASIDE_MAX];

static int start_aside(struct session *session, struct fault *fault)
{
    pthread_t thread;
    pthread_attr_t attr;
    for (unsigned i = 0; i < SERVER_ASIDE_MAX; i++) {
        if (asides[i]) {
            continue;
        }
        struct aside *aside = calloc(1, sizeof(*aside));
        if (!aside) {
            break;
        }
        aside->server = session->server;
        aside->request = session->request;
        asides[i] = aside;
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, 256 * KiB);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        int rc = pthread_create(&thread, &attr, run_aside, aside);
        pthread_attr_destroy(&attr);
        if (rc == 0) {
            session->aside = true;
            list_session(session);
            return 0;
        }
        asides[i] = NULL;
        free(aside);
        break;
    }
    return fault_set(fault, FAULT_LIMIT, "try again in a moment", "too many requests wait for instances");
}

static struct aside **find_aside(const struct request *request)
{
    for (unsigned i = 0; i < SERVER_ASIDE_MAX; i++) {
        if (asides[i] && asides[i]->request == request) {
            return &asides[i];
        }
    }
    return NULL;
}

/* Whether a parked session can answer now. */
static bool ready(struct session *session)
{
    struct request *rq = session->request;
    if (session->aside) {
        struct aside **aside = find_aside(rq);
        core_lock(rq->core);
        bool done = aside && (*aside)->done;
        core_unlock(rq->core);
        if (done) {
            free(*aside);
            *aside = NULL;
            session->aside = false;
        }
        return done;
    }
    core_lock(rq->core);
    bool ended = job_ended(rq->core, rq->job);
    if (ended) {
        answer_job(rq, rq->job);
    }
    core_unlock(rq->core);
    return ended;
}

static void sweep_orphans(void)
{
    for (unsigned i = 0; i < SERVER_ASIDE_MAX; i++) {
        struct aside *aside = asides[i];
        if (!aside || !aside->orphan) {
            continue;
        }
        core_lock(aside->server->core);
        bool done = aside->done;
        core_unlock(aside->server->core);
        if (done) {
            request_done(aside->request);
            free(aside->request);
            free(aside);
            asides[i] = NULL;
        }
    }
}

/* Something happened in the core: events to send, jobs that ended, threads that are done. */
static void look_around(struct server *server)
{
    sweep_orphans();
    for (struct session *session = server->sessions, *next; session; session = next) {
        next = session->next;
        if (session->kind == SESSION_HTTP) {
            if (ready(session) && respond(session) < 0) {
                lws_set_timeout(session->wsi, PENDING_TIMEOUT_USER_OK, LWS_TO_KILL_ASYNC);
            }
        } else if (session->kind == SESSION_EVENTS   ? events_pending(session)
                   : session->kind == SESSION_STATS  ? stats_pending(session)
                   : session->kind == SESSION_STREAM ? session->stream && stream_pending(session)
                                                     : console_pending(session)) {
            lws_callback_on_writable(session->wsi);
        }
        if ((session->kind == SESSION_CONSOLE && console_wants_input(session)) ||
            (session->kind == SESSION_STREAM && session->stream && stream_wants_input(session))) {
            lws_rx_flow_control(session->wsi, 1);
        }
    }
}

static int finish(struct session *session)
{
    struct request *rq = session->request;
    struct fault fault = {0};
    session->dispatched = true;
    core_lock(rq->core);
    bool aside = route_dispatch(rq);
    core_unlock(rq->core);
    if (aside) {
        return start_aside(session, &fault) < 0 ? refuse(session, &fault) : 0;
    }
    if (rq->wait_s && rq->job[0]) {
        list_session(session);
        lws_set_timer_usecs(session->wsi, (lws_usec_t)rq->wait_s * LWS_US_PER_SEC);
        return 0;
    }
    return respond(session);
}

/* ---- the callback ---- */

static int open_web(void *opaque, unsigned *ret_port, struct fault *fault)
{
    struct server *server = opaque;
    struct err err = {0};
    return web_listen(server, server->context, protocols, ret_port, &err) < 0 ? fault_from_err(fault, &err)
                                                                              : 0;
}

static int begin(struct session *session, struct lws *wsi)
{
    struct fault fault = {0};
    session->wsi = wsi;
    session->began_us = now_us();
    session->headers_sent = session->refused = session->aside = session->dispatched = false;
    session->sent = 0;
    drop_request(session);
    session->request = calloc(1, sizeof(*session->request));
    if (!session->request) {
        return -1;
    }
    int rc = read_head(session->server, wsi, session->request, &fault);
    auto_free char *length = header(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH);
    uint64_t bytes = 0;
    if (rc == 0 && length && parse_uint(length, &bytes, NULL) < 0) {
        rc = fault_set(&fault, FAULT_INVALID, NULL, "Content-Length is no number");
    }
    if (rc == 0 && bytes > REQUEST_BODY_MAX) {
        rc = fault_set(&fault, FAULT_TOO_LARGE, NULL, "the body has %llu bytes; at most %u are taken",
                       (unsigned long long)bytes, REQUEST_BODY_MAX);
    }
    if (rc < 0) {
        return refuse(session, &fault);
    }
    session->request->open_web = open_web;
    session->request->open_web_opaque = session->server;
    auto_free char *known = header(wsi, WSI_TOKEN_HTTP_IF_NONE_MATCH);
    if (asset_answer(session->request, known)) {
        session->dispatched = true;
        return respond(session);
    }
    if (bytes) {
        session->request->body_text = malloc(bytes);
        lws_set_timeout(wsi, PENDING_TIMEOUT_HTTP_CONTENT, BODY_TIMEOUT_S);
        return session->request->body_text ? 0 : -1;
    }
    return finish(session);
}

static int body(struct session *session, const void *bytes, size_t len)
{
    struct request *rq = session->request;
    if (!rq || session->dispatched) {
        return 0; /* answered already */
    }
    if (!rq->body_text || rq->body_len + len > REQUEST_BODY_MAX) {
        return -1;
    }
    memcpy(rq->body_text + rq->body_len, bytes, len);
    rq->body_len += len;
    return 0;
}

static void closed(struct session *session)
{
    if (!session->server) {
        return;
    }
    unlist_session(session);
    if (session->aside) {
        struct aside **aside = find_aside(session->request);
        if (aside) {
            (*aside)->orphan = true;
            session->request = NULL; /* the thread's, until it is done */
        }
    }
    drop_request(session);
}

/* Before a web socket is made: everything that can refuse it. */
static int filter_upgrade(struct server *server, struct lws *wsi)
{
    struct request rq = {0};
    struct fault fault = {0};
    int rc = read_head(server, wsi, &rq, &fault);
    if (rc == 0 && !same_origin(wsi)) {
        rc = fault_set(&fault, FAULT_FORBIDDEN, NULL, "a page of another origin may not listen");
    }
    if (rc == 0 && server->websockets >= SERVER_WS_MAX) {
        rc = fault_set(&fault, FAULT_LIMIT, "close some", "%u web sockets are open already", SERVER_WS_MAX);
    }
    core_lock(server->core);
    if (rc == 0 && !route_upgrade(&rq, &fault)) {
        rc = -1;
    }
    core_unlock(server->core);
    if (rc < 0) {
        lws_return_http_status(wsi, (unsigned)fault_http(fault.code), fault.detail);
    }
    metrics_request(rc < 0 ? fault_http(fault.code) : 101, 0);
    request_done(&rq);
    return rc;
}

static int established(struct server *server, struct session *session, struct lws *wsi)
{
    struct request rq = {0};
    struct fault fault = {0};
    session->server = server;
    session->wsi = wsi;
    server->websockets++;
    session->established = true;
    session->kind = SESSION_EVENTS;
    int rc = read_head(server, wsi, &rq, &fault);
    core_lock(server->core);
    const struct route *route = rc == 0 ? route_upgrade(&rq, &fault) : NULL;
    core_unlock(server->core);
    uint64_t after = UINT64_MAX;
    if (!route || request_arg_uint(&rq, "after", UINT64_MAX, UINT64_MAX, &after, &fault) < 0) {
        rc = -1;
    } else if (strcmp(route->id, "instanceConsole") == 0) {
        session->kind = SESSION_CONSOLE;
        list_session(session);
        rc = console_open(session, rq.name);
    } else if (strcmp(route->id, "instanceStream") == 0) {
        session->kind = SESSION_STREAM;
        rc = stream_open(session, rq.name);
        if (rc == 0) {
            list_session(session);
        }
    } else if (strcmp(route->id, "streamStats") == 0) {
        session->kind = SESSION_STATS;
        list_session(session);
        rc = stats_open(session, rq.name);
    } else {
        const char *jobs = request_arg(&rq, "jobs");
        list_session(session);
        rc = events_open(session, &rq.caller, after, jobs && strcmp(jobs, "1") == 0);
    }
    request_done(&rq);
    return rc;
}

static int callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    struct session *session = user;
    struct lws_context *context = lws_get_context(wsi);
    struct server *server = context ? lws_context_user(context) : NULL;
    switch (reason) {
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED: look_around(server); return 0;

    case LWS_CALLBACK_HTTP: session->server = server; return begin(session, wsi);
    case LWS_CALLBACK_HTTP_BODY: return body(session, in, len);
    case LWS_CALLBACK_HTTP_BODY_COMPLETION:
        return session->request && !session->dispatched ? finish(session) : 0;
    case LWS_CALLBACK_HTTP_WRITEABLE: return writable(session);
    case LWS_CALLBACK_CLOSED_HTTP:
        if (session) {
            closed(session);
        }
        return 0;
    case LWS_CALLBACK_TIMER:
        if (session && session->kind == SESSION_HTTP && session->request && session->listed &&
            !session->aside) {
            core_lock(server->core);
            answer_job(session->request, session->request->job);
            core_unlock(server->core);
            return respond(session);
        }
        return 0;

    case LWS_CALLBACK_FILTER_PROTOCOL_CONNECTION: return filter_upgrade(server, wsi);
    case LWS_CALLBACK_ESTABLISHED: return established(server, session, wsi);
    case LWS_CALLBACK_SERVER_WRITEABLE:
        return session->kind == SESSION_EVENTS   ? events_writable(session)
               : session->kind == SESSION_STATS  ? stats_writable(session)
               : session->kind == SESSION_STREAM ? session->stream ? stream_writable(session) : -1
                                                 : console_writable(session);
    case LWS_CALLBACK_RECEIVE:
        if ((session->kind == SESSION_CONSOLE && !console_input(session, in, len)) ||
            (session->kind == SESSION_STREAM && session->stream && !stream_input(session, in, len))) {
            lws_rx_flow_control(wsi, 0);
        }
        return 0;
    case LWS_CALLBACK_CLOSED:
        if (session && session->established) {
            if (session->console) {
                console_close(session);
            }
            if (session->stream) {
                stream_close(session);
            }
            stats_close(session);
            unlist_session(session);
            server->websockets--;
        }
        return 0;
    default: return 0;
    }
}

static const struct lws_protocols protocols[2] = {
    {"fonda", callback, sizeof(struct session), 32 * 1024, 0, NULL, 0},
    {NULL, NULL, 0, 0, 0, NULL, 0},
};

/* ---- listening ---- */

static void log_lws(int level, const char *line)
{
    size_t len = strcspn(line, "\n");
    log_at(level == LLL_ERR ? LOG_LEVEL_ERROR : LOG_LEVEL_DEBUG, "%.*s", (int)len, line);
}

static int add_tls(struct server *server, const struct server_config *config, struct err *err)
{
    char address[128];
    const char *colon = strrchr(config->listen, ':');
    uint64_t port = 0;
    if (!colon || (size_t)(colon - config->listen) >= sizeof(address) ||
        parse_uint(colon + 1, &port, NULL) < 0 || port == 0 || port > 65535) {
        return err_set(err, -EINVAL, "--listen: '%s' is not ADDRESS:PORT", config->listen);
    }
    if (!config->tls_cert || !config->tls_key) {
        return err_set(
            err, -EINVAL,
            "--listen needs --tls-cert and --tls-key: without TLS, tokens could be read on the way");
    }
    snprintf(address, sizeof(address), "%.*s", (int)(colon - config->listen), config->listen);
    struct lws_context_creation_info info = {
        .port = (int)port,
        .iface = address[0] ? address : NULL,
        .protocols = protocols,
        .vhost_name = "tls",
        .ssl_cert_filepath = config->tls_cert,
        .ssl_private_key_filepath = config->tls_key,
        .ssl_ca_filepath = config->tls_client_ca,
        .alpn = "http/1.1",
        .timeout_secs = BODY_TIMEOUT_S,
        .keepalive_timeout = 60,
        .options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_FAIL_UPON_UNABLE_TO_BIND |
                   (config->tls_client_ca ? LWS_SERVER_OPTION_REQUIRE_VALID_OPENSSL_CLIENT_CERT |
                                                LWS_SERVER_OPTION_PEER_CERT_NOT_REQUIRED
                                          : 0),
    };
    if (!lws_create_vhost(server->context, &info)) {
        return err_set(err, -EADDRINUSE,
                       "cannot listen on %s with %s: is the port in use, is the certificate readable?",
                       config->listen, config->tls_cert);
    }
    return 0;
}

int server_new(struct core *core, const struct server_config *config, struct server **ret_server,
               struct err *err)
{
    struct server *server = calloc(1, sizeof(*server));
    if (!server) {
        return err_set(err, -ENOMEM, "no memory");
    }
    lws_set_log_level(LLL_ERR, log_lws);
    server->core = core;
    struct lws_context_creation_info info = {
        .port = 0,
        .iface = config->socket_path,
        .protocols = protocols,
        .vhost_name = "unix",
        .user = server,
        .fd_limit_per_thread =
            SERVER_SOCKETS_MAX + 16, /* behind it, nobody is accepted until somebody goes */
        .timeout_secs = BODY_TIMEOUT_S,
        .keepalive_timeout = 300,
        .options = LWS_SERVER_OPTION_UNIX_SOCK | LWS_SERVER_OPTION_EXPLICIT_VHOSTS |
                   (config->listen ? LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT : 0),
    };
    unlink(config->socket_path); /* ours: we hold the state's lock */
    mode_t old = umask(0177);
    server->context = lws_create_context(&info);
    struct lws_vhost *vhost = server->context ? lws_create_vhost(server->context, &info) : NULL;
    umask(old);
    int rc = vhost && access(config->socket_path, F_OK) == 0
                 ? 0
                 : err_set(err, -EADDRINUSE, "cannot listen on '%s'", config->socket_path);
    if (rc == 0) {
        chmod(config->socket_path, 0600);
    }
    if (rc == 0 && config->listen) {
        rc = add_tls(server, config, err);
    }
    if (rc < 0) {
        server_free(server);
        return rc;
    }
    web_listen_again(server, server->context, protocols);
    *ret_server = server;
    return 0;
}

void server_run(struct server *server)
{
    while (!server->stopping && lws_service(server->context, 0) >= 0) {
    }
}

void server_wake(struct server *server)
{
    if (server && server->context) {
        lws_cancel_service(server->context);
    }
}

void server_stop(struct server *server)
{
    server->stopping = true;
    lws_cancel_service(server->context);
}

void server_free(struct server *server)
{
    if (server) {
        if (server->context) {
            lws_context_destroy(server->context);
        }
        free(server);
    }
}
