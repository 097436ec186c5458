/*
 * Where browsers of this host find the page: plain HTTP on 127.0.0.1, opened when somebody asks for a link.
 * The port is kept in the state directory, so that open pages find the next daemon; `fondad --listen` serves
 * the page over TLS.
 *
 * Who may connect is every user of the host: nobody is known there without a token.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "daemon/server.h"

#define WEB_VHOST "web"

static struct lws_vhost *web_vhost; /* main loop */

static void port_path(struct server *server, char *buf, size_t size)
{
    snprintf(buf, size, "%s/web-port", core_state_dir(server_core(server)));
}

/* 0: none. */
static unsigned last_port(struct server *server)
{
    char path[512];
    unsigned port = 0;
    port_path(server, path, sizeof(path));
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%u", &port) != 1 || port > 65535) {
            port = 0;
        }
        fclose(file);
    }
    return port;
}

static void keep_port(struct server *server, unsigned port)
{
    char path[512];
    port_path(server, path, sizeof(path));
    FILE *file = fopen(path, "we");
    if (!file || fprintf(file, "%u\n", port) < 0 || fflush(file) != 0) {
        log_warning("cannot write '%s': pages will not find the next daemon", path);
    }
    if (file) {
        fclose(file);
    }
}

static struct lws_vhost *listen_at(struct lws_context *context, const struct lws_protocols *protocols,
                                   unsigned port)
{
    struct lws_context_creation_info info = {
        .port = (int)port,
        .iface = "127.0.0.1",
        .protocols = protocols,
        .vhost_name = WEB_VHOST,
        .timeout_secs = 20,
        .keepalive_timeout = 60,
        .options = LWS_SERVER_OPTION_FAIL_UPON_UNABLE_TO_BIND,
    };
    return lws_create_vhost(context, &info);
}

int web_listen(struct server *server, struct lws_context *context, const struct lws_protocols *protocols,
               unsigned *ret_port, struct err *err)
{
    if (!web_vhost) {
        unsigned port = last_port(server);
        web_vhost = port ? listen_at(context, protocols, port) : NULL;
        if (!web_vhost && !(web_vhost = listen_at(context, protocols, 0))) {
            return err_set(err, -EADDRINUSE, "cannot listen on 127.0.0.1");
        }
        keep_port(server, (unsigned)lws_get_vhost_listen_port(web_vhost));
    }
    *ret_port = (unsigned)lws_get_vhost_listen_port(web_vhost);
    return 0;
}

void web_listen_again(struct server *server, struct lws_context *context,
                      const struct lws_protocols *protocols)
{
    unsigned port = last_port(server);
    if (port && !(web_vhost = listen_at(context, protocols, port))) {
        log_warning("port %u of the web page is in use; 'fonda web' opens another one", port);
    }
}

bool web_host_ok(struct lws *wsi)
{
    struct lws_vhost *vhost = lws_get_vhost(wsi);
    if (!vhost || strcmp(lws_get_vhost_name(vhost), WEB_VHOST) != 0) {
        return true;
    }
    char host[64] = "", wanted[64];
    static const char *const names[] = {"127.0.0.1", "localhost"};
    if (lws_hdr_copy(wsi, host, sizeof(host), WSI_TOKEN_HOST) < 0) {
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        snprintf(wanted, sizeof(wanted), "%s:%d", names[i], lws_get_vhost_listen_port(vhost));
        if (strcmp(host, wanted) == 0) {
            return true;
        }
    }
    return false;
}
