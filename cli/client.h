/*
 * The API's client, by libwebsockets: over the daemon's unix socket, which starts a daemon where none runs,
 * or over TLS. One request at a time.
 */
#ifndef FONDA_CLI_CLIENT_H
#define FONDA_CLI_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct client;

struct client_config {
    const char *state;                   /* NULL: the user's own */
    const char *host;                    /* "HOST:PORT" over TLS; NULL: the unix socket */
    const char *token, *ca, *cert, *key; /* for TLS; NULL: none */
    bool no_start;                       /* don't start a daemon */
};

int client_new(const struct client_config *config, struct client **ret_client, struct err *err);
void client_free(struct client *client);

struct client_reply {
    int status;
    char *text; /* ends with a zero byte; free() it */
    size_t len;
};
int client_request(struct client *client, const char *method, const char *path, const char *body,
                   struct client_reply *ret_reply, struct err *err);

struct client_ws {
    /* A message came (for consoles: bytes). False ends. */
    bool (*message)(void *opaque, const char *bytes, size_t len);
    /* fd is readable: how many bytes to send; 0: its end (what still comes is received); -1: end now. May be
     * NULL with fd -1. */
    long (*input)(void *opaque, char *buf, size_t size);
    int fd;
    void *opaque;
    /* Instead of message, both or none: frames of either kind, and texts to send (free()d; NULL: none now),
     * asked for whenever a wait ends. The input's end is not the web socket's then. */
    bool (*frame)(void *opaque, bool binary, bool first, bool final, const char *bytes, size_t len);
    char *(*control)(void *opaque);
};
/* Opens a web socket and serves it until either side ends it. Returns 0, or a negative errno. */
int client_websocket(struct client *client, const char *path, struct client_ws *ws, struct err *err);

/* start.c: makes sure that a daemon serves `socket`; starts one for the state directory if not. */
int daemon_ensure(const char *state, const char *socket, struct err *err);

#endif
