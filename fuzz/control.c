/*
 * Fuzz target: what a hostile client sends to a control socket. The first byte of the input splits it into
 * writes, so that lines arrive in pieces; the server has methods that answer at once, later, by a job and by
 * a stream.
 */
#include "fuzz.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/util.h"
#include "control/control.h"

struct server {
    uv_loop_t loop;
    struct control *control;
    struct control_call *later[CONTROL_CALLS_MAX * 2];
    unsigned later_count;
    struct control_stream *stream;
    char path[64];
};

static struct server server;

static void on_echo(struct control_call *call, json_t *params, void *opaque)
{
    struct {
        uint64_t number;
        const char *text;
        bool flag;
        json_t *object;
    } p = {0};
    static const struct control_param table[] = {{"number", CONTROL_UINT, false, 0, 0, 100},
                                                 {"text", CONTROL_STRING, false, 8, 0, 0},
                                                 {"flag", CONTROL_BOOL, false, 16, 0, 0},
                                                 {"object", CONTROL_OBJECT, false, 24, 0, 0}};
    if (control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        control_reply(call, json_incref(params));
    }
}

static void on_later(struct control_call *call, json_t *params, void *opaque)
{
    if (server.later_count == ARRAY_SIZE(server.later)) {
        control_fail(call, "busy", NULL, "too many");
    } else {
        server.later[server.later_count++] = call;
    }
}

static void on_job(struct control_call *call, json_t *params, void *opaque)
{
    struct control_job *job = control_job_new(server.control, "job", NULL, NULL);
    control_reply_job(call, job);
    control_job_progress(job, 1, 2);
    control_job_end(job, NULL, NULL);
}

static size_t on_input(void *opaque, const uint8_t *bytes, size_t len)
{
    control_stream_write(server.stream, bytes, len);
    if (memchr(bytes, 'q', len)) {
        control_stream_close(server.stream);
        server.stream = NULL;
    }
    return len;
}

static void on_closed(void *opaque)
{
    server.stream = NULL;
}

static void on_attach(struct control_call *call, json_t *params, void *opaque)
{
    static const struct control_stream_ops ops = {on_input, on_closed};
    if (server.stream) {
        control_fail(call, "busy", NULL, "attached");
    } else {
        server.stream = control_attach(call, NULL, &ops, NULL);
    }
}

static const struct control_method methods[] = {
    {"e", "", on_echo}, {"l", "", on_later}, {"j", "", on_job}, {"a", "", on_attach}};

static void open_server(void)
{
    struct err err = {0};
    snprintf(server.path, sizeof(server.path), "/tmp/fonda-fuzz-control.%d", (int)getpid());
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&server.loop);
    const struct control_config config = {&server.loop, server.path, methods, ARRAY_SIZE(methods), NULL};
    if (control_new(&config, &server.control, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
}

static void turn(void)
{
    uv_run(&server.loop, UV_RUN_NOWAIT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!server.control) {
        open_server();
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, server.path, sizeof(server.path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (size < 1 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        return 0;
    }
    size_t step = 1 + data[0];
    for (size_t at = 1; at < size; at += step) {
        char out[4096];
        send(fd, data + at, MIN(step, size - at), MSG_NOSIGNAL);
        turn();
        if (data[0] & 1) {
            (void)!recv(fd, out, sizeof(out), 0);
        }
        if (server.later_count > 0 && data[0] & 2) {
            control_reply(server.later[--server.later_count], NULL);
        }
    }
    close(fd);
    for (unsigned i = 0; i < 4; i++) {
        turn();
    }
    while (server.later_count > 0) {
        control_reply(server.later[--server.later_count], NULL);
    }
    for (unsigned i = 0; i < 4; i++) {
        turn();
    }
    return 0;
}
