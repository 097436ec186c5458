/*
 * One stream from open to end: raw terminal, window size, detach keys, signals. The signal handler leaves a
 * note; the loop of the web socket, whose wait a signal interrupts, sends it.
 */
#include "cli/stream.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/client.h"

#define DETACH_FIRST  0x10 /* Ctrl-P */
#define DETACH_SECOND 0x11 /* Ctrl-Q */
#define STATUS_OURS   125  /* as docker: the program did not get to run, for a reason of ours */

static volatile sig_atomic_t noted[65];
static volatile sig_atomic_t any_noted;

static void on_signal(int number)
{
    noted[number] = 1;
    any_noted = 1;
}

struct state {
    struct stream_use *use;
    json_t *open;
    bool eof, half; /* the input's end is to be told; Ctrl-P came */
    int status;
    int channel; /* of the message that is coming in */
    char text[4096];
    size_t text_len;
};

static char *resize_text(void)
{
    struct winsize size;
    char *text = NULL;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_row ||
        asprintf(&text, "{\"resize\": {\"rows\": %u, \"columns\": %u}}", size.ws_row, size.ws_col) < 0) {
        return NULL;
    }
    return text;
}

/* The next text that wants to be sent; NULL: none. */
static char *control(void *opaque)
{
    struct state *s = opaque;
    char *text = NULL;
    if (s->open) {
        text = json_dumps(s->open, JSON_COMPACT);
        json_decref(s->open);
        s->open = NULL;
        noted[SIGWINCH] = any_noted = s->use->terminal;
        return text;
    }
    for (int i = 1; any_noted && i < 65; i++) {
        if (!noted[i]) {
            continue;
        }
        noted[i] = 0;
        text = i == SIGWINCH ? resize_text() : NULL;
        if (i != SIGWINCH && asprintf(&text, "{\"signal\": \"%d\"}", i) < 0) {
            text = NULL;
        }
        if (text) {
            return text;
        }
    }
    any_noted = 0;
    if (s->eof) {
        s->eof = false;
        return strdup("{\"eof\": true}");
    }
    return NULL;
}

static bool put(int fd, const char *bytes, size_t len)
{
    while (len && fd >= 0) {
        ssize_t n = write(fd, bytes, len);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        bytes += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* 127: there is no such program; 126: it can't be run; as docker and the shells have it. */
int stream_status_of(const char *detail)
{
    if (strstr(detail, "executable file") &&
        (strstr(detail, "not found") || strstr(detail, "No such file"))) {
        return 127;
    }
    return strstr(detail, "ermission denied") || strstr(detail, "s a directory") ||
                   strstr(detail, "exec format")
               ? 126
               : STATUS_OURS;
}

static void take_text(struct state *s)
{
    json_t *json = json_loadb(s->text, s->text_len, 0, NULL);
    const json_t *error = json_object_get(json, "error");
    s->text_len = 0;
    if (json_object_get(json, "started")) {
        s->use->ret_started = true;
    }
    if (json_is_integer(json_object_get(json, "exit"))) {
        s->status = (int)json_integer_value(json_object_get(json, "exit"));
        s->status = s->status < 0 ? STATUS_OURS : s->status;
    }
    if (error) {
        const char *detail = json_string_value(json_object_get(error, "detail"));
        const char *hint = json_string_value(json_object_get(error, "hint"));
        bool more = hint && hint[0];
        log_error("%s%s%s%s", detail ? detail : "it failed", more ? " (" : "", more ? hint : "",
                  more ? ")" : "");
        s->status = stream_status_of(detail ? detail : "");
    }
    json_decref(json);
}

static bool frame(void *opaque, bool binary, bool first, bool final, const char *bytes, size_t len)
{
    struct state *s = opaque;
    if (!binary) {
        size_t n = MIN(len, sizeof(s->text) - s->text_len);
        memcpy(s->text + s->text_len, bytes, n);
        s->text_len += n;
        if (final) {
            take_text(s);
        }
        return true;
    }
    if (first && len) {
        s->channel = (unsigned char)bytes[0];
        bytes++;
        len--;
    }
    return put(s->channel == 2 ? s->use->err : s->use->out, bytes, len);
}

static long input(void *opaque, char *buf, size_t size)
{
    struct state *s = opaque;
    ssize_t n = read(s->use->in, buf, size);
    if (n <= 0) {
        s->eof = true;
        return 0;
    }
    for (ssize_t i = 0; s->use->detach_keys && i < n; i++) {
        if (s->half && buf[i] == DETACH_SECOND) {
            s->use->ret_detached = true;
            return -1;
        }
        s->half = buf[i] == DETACH_FIRST;
    }
    return n;
}

static void catch_signals(const struct stream_use *use, bool on)
{
    static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    struct sigaction action = {.sa_handler = on ? on_signal : SIG_DFL};
    for (size_t i = 0; use->forward && i < ARRAY_SIZE(forwarded); i++) {
        sigaction(forwarded[i], &action, NULL);
    }
    if (use->terminal) {
        sigaction(SIGWINCH, &action, NULL);
    }
}

int stream_run(struct cli *cli, struct stream_use *use)
{
    struct state s = {.use = use, .open = use->open, .status = STATUS_OURS};
    struct client_ws ws = {.input = input, .fd = use->in, .opaque = &s, .frame = frame, .control = control};
    struct err err = {0};
    struct termios old;
    char path[600];
    auto_free char *name = url_escape(use->instance);
    snprintf(path, sizeof(path), "/v1/instances/%.400s/stream", name ? name : "");
    bool raw = use->terminal && tcgetattr(STDIN_FILENO, &old) == 0;
    if (raw) {
        struct termios set = old;
        cfmakeraw(&set);
        tcsetattr(STDIN_FILENO, TCSANOW, &set);
    }
    catch_signals(use, true);
    int rc = client_websocket(cli->client, path, &ws, &err);
    catch_signals(use, false);
    if (raw) {
        tcsetattr(STDIN_FILENO, TCSANOW, &old);
    }
    json_decref(s.open);
    if (rc < 0) {
        log_error("%s", err.text);
        return STATUS_OURS;
    }
    return use->ret_detached ? 0 : s.status;
}
