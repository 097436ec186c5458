/*
 * fondad's sockets: HTTP and web sockets by libwebsockets, over a unix socket and, where asked for, TLS.
 * Inside daemon/ (server.c: requests; ws_events.c, ws_console.c: web sockets).
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

struct server_config {
    const char *socket_path;
    const char *listen; /* "ADDRESS:PORT", or NULL */
    const char *tls_cert, *tls_key, *tls_client_ca;
};

enum session_kind { SESSION_HTTP, SESSION_EVENTS, SESSION_CONSOLE };

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
    struct console *console;
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

/* ---- web sockets: on the main loop ---- */

int events_open(struct session *session, uint64_t after);
int events_writable(struct session *session); /* -1: close */
bool events_pending(struct session *session);

int console_open(struct session *session, const char *instance);
int console_writable(struct session *session);
bool console_pending(struct session *session);
/* Bytes of the client. False: take no more for now. */
bool console_input(struct session *session, const void *bytes, size_t len);
bool console_wants_input(struct session *session);
void console_close(struct session *session);

#endif
