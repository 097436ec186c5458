/*
 * fondad's sockets: HTTP and web sockets by libwebsockets, over a unix socket and, where asked for, TLS.
 * Inside daemon/ (server.c: requests; ws_events.c, ws_console.c, ws_stream.c: web sockets).
 */
#ifndef FONDA_DAEMON_SERVER_H
#define FONDA_DAEMON_SERVER_H

#include <libwebsockets.h>

#include "daemon/route.h"

#define SERVER_SOCKETS_MAX 512 /* connections at a time, web sockets included */
#define SERVER_WS_MAX      128
#define SERVER_ASIDE_MAX   16

struct server;
struct console;
struct stream;

struct server_config {
    const char *socket_path;
    const char *listen; /* "ADDRESS:PORT", or NULL */
    const char *tls_cert, *tls_key, *tls_client_ca;
};

enum session_kind { SESSION_HTTP, SESSION_EVENTS, SESSION_STATS, SESSION_CONSOLE, SESSION_STREAM };

/* Per connection; libwebsockets keeps it, zeroed at first. */
struct session {
    struct server *server;
    struct lws *wsi;
    struct session *next; /* all that wait for something: parked requests and web sockets */
    bool listed;
    enum session_kind kind;
    /* HTTP */
    struct request *request;
    bool aside, dispatched, headers_sent, refused;
    size_t sent;
    uint64_t began_us;
    /* web sockets */
    bool established;
    uint64_t seq; /* events: the last one sent */
    bool overflow;
    bool jobs;           /* events: progress of jobs too */
    uint64_t job_serial; /* of what was sent */
    char who[64];        /* events: who sees only what is granted to him; "": everything is sent */
    char stats_id[32];   /* stats: whose; seq is the last sample sent */
    struct console *console;
    struct stream *stream;
    bool opened; /* the stream: its first message came */
};

/* Listens. Errors: -EADDRINUSE and the like. */
int server_new(struct core *core, const struct server_config *config, struct server **ret_server,
               struct err *err);
/* Serves until server_stop. */
void server_run(struct server *server);
void server_stop(struct server *server); /* any thread, signal handlers too */
void server_wake(struct server *server); /* any thread: core's wake callback; server may be NULL */
void server_free(struct server *server);

struct core *server_core(struct server *server);

/* ---- the web page (assets.c; the files are in web/) ---- */

struct asset {
    const char *path, *type, *etag;
    const unsigned char *gzip;
    unsigned len;
};
/* Answers a request for a file of the page: they are anybody's, as what is in them is in the source. known:
 * the ETag that the browser has, or NULL. False: there is none at this path. */
bool asset_answer(struct request *request, const char *known);

/* Serves the page on 127.0.0.1, at the port of the last time if there was one (web_listen.c). */
int web_listen(struct server *server, struct lws_context *context, const struct lws_protocols *protocols,
               unsigned *ret_port, struct err *err);
/* The same when the daemon starts, where it was so when the last one ended. */
void web_listen_again(struct server *server, struct lws_context *context,
                      const struct lws_protocols *protocols);
/* Whether a connection to the page's port names this host: others were led here by a foreign name. */
bool web_host_ok(struct lws *wsi);

/* ---- web sockets: on the main loop ---- */

int events_open(struct session *session, const struct caller *caller, uint64_t after, bool jobs);
int events_writable(struct session *session); /* -1: close */
bool events_pending(struct session *session);

int stats_open(struct session *session, const char *instance);
int stats_writable(struct session *session);
bool stats_pending(struct session *session);
void stats_close(struct session *session);

int console_open(struct session *session, const char *instance);
int console_writable(struct session *session);
bool console_pending(struct session *session);
/* Bytes of the client. False: take no more for now. */
bool console_input(struct session *session, const void *bytes, size_t len);
bool console_wants_input(struct session *session);
void console_close(struct session *session);

int stream_open(struct session *session, const char *instance);
int stream_writable(struct session *session);
bool stream_pending(struct session *session);
bool stream_input(struct session *session, const void *bytes, size_t len);
bool stream_wants_input(struct session *session);
void stream_close(struct session *session);

#endif
