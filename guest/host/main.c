/* fonda-guest: see host.h. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "container/signals.h"

#define STATUS_USAGE 2
#define STATUS_OURS  125

static const struct {
    const char *name;
    size_t offset;
    bool flag;
} known[] = {
    {"root", offsetof(struct options, root), false},
    {"log", offsetof(struct options, log), false},
    {"bundle", offsetof(struct options, bundle), false},
    {"pid-file", offsetof(struct options, pid_file), false},
    {"console-socket", offsetof(struct options, console_socket), false},
    {"user", offsetof(struct options, user), false},
    {"cwd", offsetof(struct options, cwd), false},
    {"size", offsetof(struct options, size), false},
    {"tty", offsetof(struct options, tty), true},
    {"force", offsetof(struct options, force), true},
};
/* What callers of an OCI runtime pass and is always so here. */
static const char *const ignored[] = {"stats"}, *const ignored_values[] = {"log-format", "format"};

static bool is_one_of(const char *name, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Options until the first argument that is none; returns its index, or -EINVAL. */
static int take_options(struct options *o, int argc, char **argv, int i, struct err *err)
{
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        const char *name = argv[i] + 2;
        size_t k = 0;
        if (!*name) {
            return i + 1;
        }
        while (k < ARRAY_SIZE(known) && strcmp(known[k].name, name) != 0) {
            k++;
        }
        bool env = strcmp(name, "env") == 0,
             skip = is_one_of(name, ignored_values, ARRAY_SIZE(ignored_values));
        bool value = env || skip || (k < ARRAY_SIZE(known) && !known[k].flag);
        if (value && i + 1 == argc) {
            return err_set(err, -EINVAL, "--%s needs a value", name);
        }
        if (k < ARRAY_SIZE(known) && known[k].flag) {
            *(bool *)((char *)o + known[k].offset) = true;
        } else if (k < ARRAY_SIZE(known)) {
            *(const char **)((char *)o + known[k].offset) = argv[++i];
        } else if (env && o->env_count < ARGS_MAX) {
            o->env[o->env_count++] = argv[++i];
        } else if (skip) {
            i++;
        } else if (!is_one_of(name, ignored, ARRAY_SIZE(ignored))) {
            return err_set(err, -EINVAL, "unknown option '--%s'", name);
        }
    }
    return i;
}

static int cmd_start(const struct options *o, struct err *err)
{
    struct wire_texts request = {0};
    auto_close int dir = link_open(o, err);
    wire_add(&request, "verb", "start");
    int rc = dir < 0 ? dir : link_ask(dir, &request, NULL, err);
    wire_texts_done(&request);
    return rc;
}

static int cmd_kill(const struct options *o, struct err *err)
{
    auto_close int dir = link_open(o, err);
    int number = signal_number(o->rest_count ? o->rest[0] : "TERM"), pid = dir < 0 ? 0 : link_keeper(dir);
    if (dir < 0) {
        return dir;
    }
    if (number <= 0) {
        return err_set(err, -EINVAL, "'%s' is not a signal", o->rest[0]);
    }
    return pid <= 0                ? err_set(err, -ESRCH, "machine '%s' does not run", o->id)
           : kill(pid, number) < 0 ? err_sys(err, -errno, "cannot signal machine '%s'", o->id)
                                   : 0;
}

static int cmd_state(const struct options *o, struct err *err)
{
    auto_close int dir = link_open(o, err);
    int pid = dir < 0 ? 0 : link_keeper(dir);
    if (dir >= 0) {
        printf("{\"id\": \"%s\", \"status\": \"%s\", \"pid\": %d}\n", o->id, pid ? "running" : "stopped",
               pid);
    }
    return dir < 0 ? dir : 0;
}

static int cmd_vmm(const struct options *o, const char *method, struct err *err)
{
    auto_close int dir = link_open(o, err);
    return dir < 0 ? dir : link_vmm(dir, method, NULL, err);
}

static int command(const char *verb, const struct options *o, struct err *err)
{
    static const struct {
        const char *name;
        int (*fn)(const struct options *o, struct err *err);
    } commands[] = {{"create", cmd_create}, {"start", cmd_start},   {"exec", cmd_exec}, {"kill", cmd_kill},
                    {"delete", cmd_delete}, {"events", cmd_events}, {"ps", cmd_ps},     {"state", cmd_state}};
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(verb, commands[i].name) == 0) {
            return commands[i].fn(o, err);
        }
    }
    if (strcmp(verb, "pause") == 0 || strcmp(verb, "resume") == 0) {
        return cmd_vmm(o, verb, err);
    }
    if (strcmp(verb, "export") == 0 || strcmp(verb, "import") == 0) {
        return cmd_copy(o, verb[0] == 'e', err);
    }
    return err_set(err, -EINVAL, "there is no command '%s'", verb);
}

/* As fonda-oci does it: a line of JSON where a log is wanted. */
static void tell(const struct options *o, const char *text)
{
    if (!o->log) {
        log_error("%s", text);
        return;
    }
    auto_close int fd = open(o->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    json_t *line = json_pack("{s:s, s:s}", "level", "error", "msg", text);
    auto_free char *json = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    if (fd >= 0 && json) {
        dprintf(fd, "%s\n", json);
    }
}

static void usage(FILE *out)
{
    fprintf(out,
            "usage: fonda-guest [--root DIR] [--log FILE] COMMAND [OPTIONS] ID [ARGUMENT...]\n\n"
            "Runs the program of an OCI bundle in a machine of its own, in the words of an OCI runtime; for\n"
            "fonda-monitor and fonda-room. Commands: create, start, exec, kill, pause, resume, events, ps, "
            "state,\n"
            "export PATH, import PATH, delete. The bundle has a machine.json besides its config.json.\n\n"
            "Example:\n  fonda-guest --root /run/machines exec web uname -a\n");
}

int main(int argc, char **argv)
{
    static struct options o = {.root = "/run/fonda-guest"};
    struct err err = {.code = 0};
    log_init("fonda-guest", LOG_LEVEL_WARNING);
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return 0;
    }
    int i = take_options(&o, argc, argv, 1, &err);
    const char *verb = i >= 0 && i < argc ? argv[i] : NULL;
    i = verb ? take_options(&o, argc, argv, i + 1, &err) : i;
    if (i < 0 || !verb || i == argc) {
        if (i < 0) {
            log_error("%s", err.text);
        }
        usage(stderr);
        return STATUS_USAGE;
    }
    o.id = argv[i];
    o.rest = argv + i + 1;
    o.rest_count = argc - i - 1;
    if (strchr(o.id, '/') || o.id[0] == '.') {
        log_error("'%s' is not a name of a machine", o.id);
        return STATUS_USAGE;
    }
    int status = command(verb, &o, &err);
    if (status != 0 && err.code) {
        tell(&o, err.text);
    }
    return status < 0 ? STATUS_OURS : status;
}
