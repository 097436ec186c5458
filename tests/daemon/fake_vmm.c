/*
 * Stands in for fonda-vmm in the daemon's tests: the same control socket and lock, and no guest. The kernel's
 * file name says how it behaves: "deaf" does not listen to the power button, "broken" ends at once with a
 * message, "short" ends with status 110 when it is resumed.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "control/control.h"

static uv_loop_t loop;
static const char *kernel = "";
static bool paused;
static int log_fd = -1;
static struct control_stream *console;

static void status(struct control_call *call, json_t *params, void *opaque)
{
    control_reply(call, json_pack("{s:s}", "state", paused ? "paused" : "running"));
}

static void stop(struct control_call *call, json_t *params, void *opaque)
{
    control_reply(call, NULL);
    if (!strstr(kernel, "deaf")) {
        uv_stop(&loop);
    }
}

static void pause_it(struct control_call *call, json_t *params, void *opaque)
{
    paused = true;
    control_reply(call, NULL);
}

static void resume(struct control_call *call, json_t *params, void *opaque)
{
    if (strstr(kernel, "short")) {
        _exit(110);
    }
    paused = false;
    control_reply(call, NULL);
}

static void stats(struct control_call *call, json_t *params, void *opaque)
{
    /* Counters that grow with time, in the shape of a machine's own. */
    json_int_t n = (json_int_t)(uv_hrtime() / 1000000);
    static const struct {
        const char *group, *name;
        double per_ms;
    } rates[] = {
        {"code", "blocks translated", 1},
        {"code", "instructions translated", 8},
        {"code", "guest bytes translated", 30},
        {"code", "host bytes emitted", 240},
        {"exits", "unlinked jumps", 1},
        {"exits", "port accesses", 0.5},
        {"exits", "halts", 0.25},
        {"tlb", "misses", 3},
        {"interrupts", "interrupts", 0.25},
        {"time", "running", 900000},
        {"time", "translating", 100000},
    };
    json_t *counters = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        json_t *group = json_object_get(counters, rates[i].group);
        if (!group) {
            json_object_set_new(counters, rates[i].group, group = json_object());
        }
        json_object_set_new(group, rates[i].name, json_integer((json_int_t)((double)n * rates[i].per_ms)));
    }
    control_reply(call, json_pack("{s:i, s:o, s:[{s:I, s:I}], s:[{s:I, s:I}]}", "exits", 42, "counters",
                                  counters, "disks", "read_bytes", n * 1000, "write_bytes", n * 300,
                                  "networks", "rx_bytes", n * 50, "tx_bytes", n * 20));
}

static size_t input(void *opaque, const uint8_t *bytes, size_t len)
{
    control_stream_write(console, bytes, len);
    if (write(log_fd, bytes, len) < 0) {
        return len;
    }
    return len;
}

static void closed(void *opaque)
{
    console = NULL;
}

static void attach(struct control_call *call, json_t *params, void *opaque)
{
    static const struct control_stream_ops ops = {input, closed};
    static const char hello[] = "hello from the console\r\n";
    console = control_attach(call, NULL, &ops, NULL);
    if (console) {
        control_stream_write(console, (const uint8_t *)hello, sizeof(hello) - 1);
    }
}

static const struct control_method methods[] = {
    {"status", "state", status}, {"stop", "power button", stop}, {"pause", "stand still", pause_it},
    {"resume", "go on", resume}, {"stats", "counters", stats},   {"attach", "console", attach},
};

int main(int argc, char **argv)
{
    struct control_config config = {.loop = &loop, .methods = methods, .method_count = ARRAY_SIZE(methods)};
    struct control *control = NULL;
    struct err err = {0};
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--control=", 10) == 0) {
            config.path = argv[i] + 10;
        } else if (strncmp(argv[i], "--serial=", 9) == 0) {
            log_fd = open(argv[i] + 9, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        } else if (strncmp(argv[i], "--kernel=", 9) == 0) {
            kernel = argv[i] + 9;
        }
    }
    if (strstr(kernel, "broken")) {
        fprintf(stderr, "fonda: the kernel is broken\n");
        return 2;
    }
    uv_loop_init(&loop);
    if (!config.path || control_new(&config, &control, &err) < 0) {
        fprintf(stderr, "fake_vmm: %s\n", err.text);
        return 2;
    }
    dprintf(log_fd, "booted %s\n", kernel);
    uv_run(&loop, UV_RUN_DEFAULT);
    control_free(control);
    return 0;
}
