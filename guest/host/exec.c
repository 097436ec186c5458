/* A further program in the machine; files out of it and into it. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/util.h"

static struct wire wire;

static int gone(struct err *err)
{
    return err_set(err, -EPIPE, "the machine has ended");
}

static int connect_to(const struct options *o, int *ret_dir, struct err *err)
{
    *ret_dir = link_open(o, err);
    if (*ret_dir < 0) {
        return *ret_dir;
    }
    if (!link_keeper(*ret_dir)) {
        return err_set(err, -ESRCH, "machine '%s' does not run", o->id);
    }
    json_t *status = NULL;
    const char *state = link_vmm(*ret_dir, "status", &status, NULL) < 0
                            ? NULL
                            : json_string_value(json_object_get(status, "state"));
    bool paused = state && strcmp(state, "paused") == 0;
    json_decref(status);
    return paused ? err_set(err, -EBUSY, "machine '%s' is paused (resume it first)", o->id)
                  : link_connect(*ret_dir, &wire, err);
}

/* The size of the terminal alone: other signals end this process, and the program is hung up. */
static int watch_size(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int cmd_exec(const struct options *o, struct err *err)
{
    struct wire_texts request = {0};
    struct relay relay = {
        .wire = &wire, .in = 0, .out = 1, .err = 2, .signal_fd = -1, .watch_fd = -1, .terminal = -1};
    auto_close int dir = -1;
    int rc = connect_to(o, &dir, err);
    json_t *config = rc < 0 ? NULL : link_load(dir, "config.json", err);
    if (!config) {
        return rc < 0 ? rc : err->code;
    }
    rc = request_exec(config, o, &request, err);
    json_decref(config);
    if (rc == 0 && o->tty && o->console_socket) {
        relay.in = relay.out = relay.terminal = relay_terminal(o->console_socket, err);
        relay.err = -1;
        relay.signal_fd = watch_size();
        rc = relay.in < 0 ? relay.in : 0;
        setsid();
        if (rc == 0) {
            relay.out = fcntl(relay.in, F_DUPFD_CLOEXEC, 3);
            relay.terminal = relay.out;
            (void)ioctl(relay.in, TIOCSCTTY, 0);
        }
    }
    signal(SIGPIPE, SIG_IGN);
    if (rc == 0 && wire_send_request(&wire, &request) < 0) {
        rc = gone(err);
    }
    wire_texts_done(&request);
    if (rc == 0) {
        rc = relay_run(&relay, err);
        rc = rc < 0 ? gone(err) : rc;
    }
    return rc;
}

int cmd_copy(const struct options *o, bool out, struct err *err)
{
    struct wire_texts request = {0};
    struct relay relay = {.wire = &wire,
                          .in = out ? -1 : 0,
                          .out = out ? 1 : -1,
                          .err = -1,
                          .signal_fd = -1,
                          .watch_fd = -1,
                          .terminal = -1};
    auto_close int dir = -1;
    int rc = connect_to(o, &dir, err);
    if (rc < 0) {
        return rc;
    }
    signal(SIGPIPE, SIG_IGN);
    wire_add(&request, "verb", out ? "export" : "import");
    wire_add(&request, "path", o->rest_count ? o->rest[0] : "/");
    rc = wire_send_request(&wire, &request) < 0 ? gone(err) : relay_run(&relay, err);
    wire_texts_done(&request);
    return rc < 0 && !err->code ? gone(err) : rc;
}
