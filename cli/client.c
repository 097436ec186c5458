/* Requests and web sockets, by libwebsockets' client. */
#include <errno.h>
#include <libwebsockets.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"
#include "cli/client.h"
#include "daemon/paths.h"

#define REPLY_MAX (256u * 1024 * 1024)

struct client {
    struct lws_context *context;
    char address[FONDA_PATH_MAX + 2]; /* "+/path" for a unix socket */
    char host[300];
    int port;
    bool tls;
    char *token;
    /* The running request. */
    const char *body;
    struct client_reply reply;
    size_t room;
    struct client_ws *ws;
    struct lws *wsi;
    bool done, open;
    char pending[4096];
    long pending_len;
    char *text; /* to be sent before what is pending */
    char error[200];
};

static int append(struct client *client, const char *bytes, size_t len)
{
    if (client->reply.len + len > REPLY_MAX) {
        return -1;
    }
    if (client->reply.len + len + 1 > client->room) {
        size_t room = MAX(2 * client->room, client->reply.len + len + 4096);
        char *more = realloc(client->reply.text, room);
        if (!more) {
            return -1;
        }
        client->reply.text = more;
        client->room = room;
    }
    memcpy(client->reply.text + client->reply.len, bytes, len);
    client->reply.len += len;
    client->reply.text[client->reply.len] = '\0';
    return 0;
}

static int add(struct lws *wsi, const char *name, const char *value, unsigned char **p, unsigned char *end)
{
    return lws_add_http_header_by_name(wsi, (const unsigned char *)name, (const unsigned char *)value,
                                       (int)strlen(value), p, end);
}

static int add_headers(struct client *client, struct lws *wsi, unsigned char **p, unsigned char *end)
{
    char text[300];
    snprintf(text, sizeof(text), "Bearer %s", client->token ? client->token : "");
    if (client->token && add(wsi, "authorization:", text, p, end)) {
        return -1;
    }
    if (client->body) {
        snprintf(text, sizeof(text), "%zu", strlen(client->body));
        if (add(wsi, "content-type:", "application/json", p, end) ||
            add(wsi, "content-length:", text, p, end)) {
            return -1;
        }
        lws_client_http_body_pending(wsi, 1);
        lws_callback_on_writable(wsi);
    }
    return 0;
}

static int write_body(struct client *client, struct lws *wsi)
{
    size_t len = client->body ? strlen(client->body) : 0;
    unsigned char *buf = len ? malloc(LWS_PRE + len) : NULL;
    if (!buf) {
        return len ? -1 : 0;
    }
    memcpy(buf + LWS_PRE, client->body, len);
    lws_client_http_body_pending(wsi, 0);
    int n = lws_write(wsi, buf + LWS_PRE, len, LWS_WRITE_HTTP_FINAL);
    free(buf);
    client->body = NULL;
    return n < (int)len ? -1 : 0;
}

static int read_some(struct lws *wsi)
{
    char buf[LWS_PRE + 16384], *at = buf + LWS_PRE;
    int len = (int)sizeof(buf) - LWS_PRE;
    return lws_http_client_read(wsi, &at, &len) < 0 ? -1 : 0;
}

static int write_ws(struct client *client, struct lws *wsi)
{
    unsigned char buf[LWS_PRE + sizeof(client->pending)];
    if (client->text) {
        size_t len = strlen(client->text);
        unsigned char *copy = malloc(LWS_PRE + len);
        int sent = -1;
        if (copy) {
            memcpy(copy + LWS_PRE, client->text, len);
            sent = lws_write(wsi, copy + LWS_PRE, len, LWS_WRITE_TEXT);
        }
        free(copy);
        free(client->text);
        client->text = NULL;
        if (client->pending_len > 0) {
            lws_callback_on_writable(wsi);
        }
        return sent < 0 ? -1 : 0;
    }
    if (client->pending_len <= 0) {
        return 0;
    }
    memcpy(buf + LWS_PRE, client->pending, (size_t)client->pending_len);
    int n = lws_write(wsi, buf + LWS_PRE, (size_t)client->pending_len, LWS_WRITE_BINARY);
    client->pending_len = 0;
    return n < 0 ? -1 : 0;
}

static int callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t len)
{
    struct client *client = lws_context_user(lws_get_context(wsi));
    switch (reason) {
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
        snprintf(client->error, sizeof(client->error), "%.*s", (int)(in ? len : 0),
                 in ? (const char *)in : "");
        client->done = true;
        return 0;
    case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER: {
        unsigned char **p = in;
        return add_headers(client, wsi, p, *p + len);
    }
    case LWS_CALLBACK_CLIENT_HTTP_WRITEABLE: return write_body(client, wsi);
    case LWS_CALLBACK_ESTABLISHED_CLIENT_HTTP:
        client->reply.status = (int)lws_http_client_http_response(wsi);
        return 0;
    case LWS_CALLBACK_RECEIVE_CLIENT_HTTP: return read_some(wsi);
    case LWS_CALLBACK_RECEIVE_CLIENT_HTTP_READ: return append(client, in, len);
    case LWS_CALLBACK_COMPLETED_CLIENT_HTTP: client->done = true; return -1;
    case LWS_CALLBACK_CLOSED_CLIENT_HTTP: client->done = true; return 0;

    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        client->open = true;
        client->wsi = wsi;
        return 0;
    case LWS_CALLBACK_CLIENT_RECEIVE:
        if (client->ws->frame) {
            bool first = lws_is_first_fragment(wsi), final = lws_is_final_fragment(wsi);
            return client->ws->frame(client->ws->opaque, lws_frame_is_binary(wsi), first, final, in, len)
                       ? 0
                       : -1;
        }
        return client->ws->message(client->ws->opaque, in, len) ? 0 : -1;
    case LWS_CALLBACK_CLIENT_WRITEABLE: return write_ws(client, wsi);
    case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
        if (len > 2) {
            snprintf(client->error, sizeof(client->error), "%.*s", (int)(len - 2), (const char *)in + 2);
        }
        return 0;
    case LWS_CALLBACK_CLIENT_CLOSED: client->done = true; return 0;
    default: return 0;
    }
}

static const struct lws_protocols protocols[] = {{"fonda", callback, 0, 16384, 0, NULL, 0},
                                                 {NULL, NULL, 0, 0, 0, NULL, 0}};

static void silent(int level, const char *line)
{
}

static int set_host(struct client *client, const char *host, struct err *err)
{
    const char *colon = strrchr(host, ':');
    uint64_t port = 0;
    size_t len = colon ? (size_t)(colon - host) : 0;
    if (!colon || len == 0 || len >= sizeof(client->host) || parse_uint(colon + 1, &port, NULL) < 0 ||
        port > 65535) {
        return err_set(err, -EINVAL, "--host: '%s' is not HOST:PORT", host);
    }
    snprintf(client->host, sizeof(client->host), "%.*s", (int)len, host);
    snprintf(client->address, sizeof(client->address), "%s", client->host);
    client->port = (int)port;
    client->tls = true;
    return 0;
}

int client_new(const struct client_config *config, struct client **ret_client, struct err *err)
{
    struct client *client = calloc(1, sizeof(*client));
    if (!client) {
        return err_set(err, -ENOMEM, "no memory");
    }
    int rc = 0;
    if (config->host) {
        rc = set_host(client, config->host, err);
    } else {
        char state[FONDA_PATH_MAX], socket[FONDA_PATH_MAX];
        rc = fonda_paths(config->state, NULL, state, socket, err);
        if (rc == 0 && !config->no_start) {
            rc = daemon_ensure(state, socket, err);
        }
        snprintf(client->address, sizeof(client->address), "+%s", socket);
        snprintf(client->host, sizeof(client->host), "localhost");
    }
    lws_set_log_level(0, silent);
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN,
        .protocols = protocols,
        .user = client,
        .fd_limit_per_thread = 16,
        .options = client->tls ? LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT : 0,
        .client_ssl_ca_filepath = config->ca,
        .client_ssl_cert_filepath = config->cert,
        .client_ssl_private_key_filepath = config->key,
    };
    if (rc == 0) {
        client->token = config->token ? strdup(config->token) : NULL;
        client->context = lws_create_context(&info);
        rc = client->context ? 0 : err_set(err, -ENOMEM, "cannot prepare the connection");
    }
    if (rc < 0) {
        client_free(client);
        return rc;
    }
    *ret_client = client;
    return 0;
}

void client_free(struct client *client)
{
    if (client) {
        if (client->context) {
            lws_context_destroy(client->context);
        }
        free(client->text);
        free(client->token);
        free(client);
    }
}

static int begin(struct client *client, const char *method, const char *path, struct err *err)
{
    struct lws_client_connect_info info = {
        .context = client->context,
        .address = client->address,
        .port = client->port,
        .path = path,
        .host = client->host,
        .method = method,
        .protocol = method ? NULL : "fonda",
        .local_protocol_name = "fonda",
        .alpn = "http/1.1",
        .ssl_connection = client->tls ? LCCSCF_USE_SSL : 0,
    };
    client->done = client->open = false;
    client->error[0] = '\0';
    client->wsi = NULL;
    if (!lws_client_connect_via_info(&info) && !client->done) {
        return err_set(err, -ECONNREFUSED, "cannot connect to %s", client->address);
    }
    return 0;
}

static int lost(const struct client *client, struct err *err)
{
    return err_set(err, -ECONNREFUSED, "no answer from %s%s%s",
                   client->address[0] == '+' ? client->address + 1 : client->address,
                   client->error[0] ? ": " : "", client->error);
}

int client_request(struct client *client, const char *method, const char *path, const char *body,
                   struct client_reply *ret_reply, struct err *err)
{
    memset(&client->reply, 0, sizeof(client->reply));
    client->room = 0;
    client->body = body;
    int rc = begin(client, method, path, err);
    while (rc == 0 && !client->done) {
        rc = lws_service(client->context, 0) < 0 ? lost(client, err) : 0;
    }
    if (rc == 0 && client->reply.status == 0) {
        rc = lost(client, err);
    }
    if (rc == 0 && append(client, "", 0) < 0) {
        rc = err_set(err, -ENOMEM, "no memory");
    }
    if (rc < 0) {
        free(client->reply.text);
        return rc;
    }
    *ret_reply = client->reply;
    return 0;
}

#define LINGER_MS 1000 /* behind the input's end, while nothing comes any more */

/* Waits for the descriptor or the socket, whichever has something first; the descriptor's bytes are sent.
 * Behind the descriptor's end (-1 from now on) what still comes is shown. Returns -1 when it is time to end.
 */
static int serve_input(struct client *client, int *fd)
{
    struct client_ws *ws = client->ws;
    struct pollfd fds[2] = {{.fd = *fd, .events = POLLIN},
                            {.fd = lws_get_socket_fd(client->wsi), .events = POLLIN}};
    if (ws->control && !client->text && (client->text = ws->control(ws->opaque))) {
        lws_callback_on_writable(client->wsi);
    }
    if (client->pending_len > 0 || client->text) {
        return 0;
    }
    int n = poll(fds, 2, LINGER_MS);
    if (n == 0 && *fd < 0 && !ws->control) {
        return -1;
    }
    if (n > 0 && fds[0].revents) {
        client->pending_len = ws->input(ws->opaque, client->pending, sizeof(client->pending));
        if (client->pending_len < 0) {
            return -1;
        }
        if (client->pending_len == 0) {
            *fd = -1;
            return 0;
        }
        lws_callback_on_writable(client->wsi);
    }
    return 0;
}

int client_websocket(struct client *client, const char *path, struct client_ws *ws, struct err *err)
{
    client->ws = ws;
    client->body = NULL;
    client->pending_len = 0;
    int rc = begin(client, NULL, path, err);
    int fd = ws->fd;
    bool input = fd >= 0 || ws->control, ended = false;
    while (rc == 0 && !client->done && !ended) {
        if (client->open && input && serve_input(client, &fd) < 0) {
            ended = true;
        }
        /* -1: don't wait */
        rc = lws_service(client->context, client->open && input ? -1 : 0) < 0 ? lost(client, err) : 0;
    }
    if (rc == 0 && (!client->open || client->error[0])) {
        return client->open ? err_set(err, -ECONNRESET, "%s", client->error) : lost(client, err);
    }
    return rc;
}
