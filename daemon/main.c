/*
 * fondad: the daemon. One per state directory; killed at any moment, the next one goes on where it was.
 */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/options.h"
#include "base/util.h"
#include "daemon/paths.h"
#include "daemon/server.h"

#define EXIT_USAGE 2

struct options {
    const char *state, *backups, *socket, *listen, *tls_cert, *tls_key, *tls_client_ca;
    bool no_autostart, openapi, version, help;
};

static const struct option_spec specs[] = {
    {"state", OPTION_STRING, offsetof(struct options, state), 0, 0, "DIR",
     "where everything is kept (root: /var/lib/fonda; else ~/.local/share/fonda)"},
    {"backups", OPTION_STRING, offsetof(struct options, backups), 0, 0, "DIR",
     "where backups are kept, an absolute path (STATE/backups)"},
    {"socket", OPTION_STRING, offsetof(struct options, socket), 0, 0, "PATH",
     "the API's unix socket (STATE/fondad.sock)"},
    {"listen", OPTION_STRING, offsetof(struct options, listen), 0, 0, "ADDRESS:PORT",
     "also serve the API over TLS"},
    {"tls-cert", OPTION_STRING, offsetof(struct options, tls_cert), 0, 0, "FILE", "certificate chain, PEM"},
    {"tls-key", OPTION_STRING, offsetof(struct options, tls_key), 0, 0, "FILE", "its key, PEM"},
    {"tls-client-ca", OPTION_STRING, offsetof(struct options, tls_client_ca), 0, 0, "FILE",
     "who may sign the certificates of clients; their common names are users"},
    {"no-autostart", OPTION_FLAG, offsetof(struct options, no_autostart), 0, 0, NULL,
     "don't start instances"},
    {"openapi", OPTION_FLAG, offsetof(struct options, openapi), 0, 0, NULL,
     "print the API's description and end"},
    {"version", OPTION_FLAG, offsetof(struct options, version), 0, 0, NULL, "print the version"},
    {"help", OPTION_FLAG, offsetof(struct options, help), 0, 0, NULL, "print this help"},
};

static struct server *volatile running;

static void on_signal(int signal)
{
    if (running) {
        server_stop(running);
    }
}

static void wake(void *opaque)
{
    server_wake(running);
}

static int serve(const struct options *options, struct err *err)
{
    char state[FONDA_PATH_MAX], socket[FONDA_PATH_MAX];
    struct core *core = NULL;
    struct server *server = NULL;
    int rc = fonda_paths(options->state, options->socket, state, socket, err);
    if (rc < 0) {
        return rc;
    }
    struct core_config config = {.state_dir = state,
                                 .backup_dir = options->backups,
                                 .wake = wake,
                                 .no_autostart = options->no_autostart};
    rc = core_open(&config, &core, err);
    if (rc < 0) {
        return rc;
    }
    struct server_config server_config = {socket, options->listen, options->tls_cert, options->tls_key,
                                          options->tls_client_ca};
    rc = server_new(core, &server_config, &server, err);
    if (rc == 0) {
        running = server;
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGINT, &action, NULL);
        server_run(server);
        unlink(socket);
    }
    core_close(core);
    running = NULL;
    server_free(server);
    return rc;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct err err = {0};
    log_init("fondad", LOG_LEVEL_INFO);
    mallopt(M_ARENA_MAX, 2); /* few threads allocate much at a time; arenas cost resident memory */
    signal(SIGPIPE, SIG_IGN);
    umask(077);
    int next = options_parse(specs, ARRAY_SIZE(specs), argc, argv, 1, &options, &err);
    if (next >= 0 && next < argc) {
        err_set(&err, -EINVAL, "unexpected argument '%s'", argv[next]);
    }
    if (err.code) {
        log_error("%s (see fondad --help)", err.text);
        return EXIT_USAGE;
    }
    if (options.help) {
        printf("usage: fondad [OPTIONS]\n\nServes the API for machines and containers of this host. 'fonda' "
               "starts one by "
               "itself.\n\nOptions:\n");
        options_print(stdout, specs, ARRAY_SIZE(specs));
        printf("\nExamples:\n  fondad\n  fondad --state /srv/fonda --listen 0.0.0.0:8443 --tls-cert cert.pem "
               "--tls-key "
               "key.pem\n");
        return 0;
    }
    if (options.version) {
        printf("fondad %s\n", FONDA_VERSION);
        return 0;
    }
    if (options.openapi) {
        char *text = openapi_text();
        puts(text ? text : "");
        free(text);
        return 0;
    }
    if (serve(&options, &err) < 0) {
        log_error("%s", err.text);
        return err.code == -EINVAL ? EXIT_USAGE : 1;
    }
    return 0;
}
