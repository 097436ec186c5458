/* fonda-oci: an OCI runtime. Global options and the table of commands. */
#include "base/log.h"
#include "base/util.h"
#include "container/cmd.h"
#include "container/config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name;
    cmd_fn fn;
    const char *help;
} commands[] = {
    {"create", cmd_create, "make a container from a bundle"},
    {"start", cmd_start, "run the process of a created container"},
    {"run", cmd_run, "create, start, wait and delete"},
    {"exec", cmd_exec, "run another process in a container"},
    {"state", cmd_state, "print the state of a container"},
    {"list", cmd_list, "list the containers of this root"},
    {"ps", cmd_ps, "list the processes of a container"},
    {"kill", cmd_kill, "send a signal to a container"},
    {"delete", cmd_delete, "take a stopped container away"},
    {"pause", cmd_pause, "stop all processes of a container"},
    {"resume", cmd_resume, "let them go on"},
    {"update", cmd_update, "change limits of a container"},
    {"events", cmd_events, "print statistics and OOM events"},
    {"spec", cmd_spec, "write an example config.json"},
    {"features", cmd_features, "print what this runtime supports"},
    {"checkpoint", cmd_checkpoint, "save a running container (needs CRIU)"},
    {"restore", cmd_checkpoint, "bring a saved container back (needs CRIU)"},
};

struct log_target {
    int fd;
    bool json;
};

static void write_log(enum log_level level, const char *text, void *opaque)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    const struct log_target *target = opaque;
    struct timespec now;
    struct tm tm;
    char when[40];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (target->json) {
        json_t *o = json_pack("{s:s, s:s, s:s}", "level", names[level], "msg", text, "time", when);
        char *line = json_dumps(o, JSON_COMPACT);
        if (line) {
            dprintf(target->fd, "%s\n", line);
        }
        free(line);
        json_decref(o);
    } else {
        dprintf(target->fd, "time=\"%s\" level=%s msg=\"%s\"\n", when, names[level], text);
    }
}

static void usage(FILE *f)
{
    fprintf(f, "Usage: fonda-oci [OPTION]... COMMAND [ARGUMENT]...\n\nCommands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        fprintf(f, "  %-12s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(f, "\nOptions:\n"
               "  --root DIR              where state is kept\n"
               "  --log FILE              write messages there instead of stderr\n"
               "  --log-format FORMAT     text or json\n"
               "  --debug                 write more messages\n"
               "  --systemd-cgroup        let systemd make the cgroup: a scope\n"
               "  --cgroup-manager NAME   cgroupfs, systemd or disabled\n"
               "  --version, --help\n");
}

struct options {
    struct globals g;
    const char *log;
    bool json;
    bool debug;
};

/* 0: go on; 1: all done; negative: error. */
static int parse_globals(int argc, char **argv, struct options *o, struct err *err)
{
    static const struct option longs[] = {
        {"root", required_argument, NULL, 'r'},
        {"log", required_argument, NULL, 'l'},
        {"log-format", required_argument, NULL, 'f'},
        {"log-level", required_argument, NULL, 'L'},
        {"debug", no_argument, NULL, 'd'},
        {"systemd-cgroup", no_argument, NULL, 's'},
        {"cgroup-manager", required_argument, NULL, 'c'},
        {"rootless", required_argument, NULL, 'R'},
        {"criu", required_argument, NULL, 'C'},
        {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "+vh", longs, NULL)) != -1;) {
        switch (opt) {
        case 'r': o->g.root = optarg; break;
        case 'l': o->log = optarg; break;
        case 'f': o->json = strcmp(optarg, "json") == 0; break;
        case 'L': o->debug = strcmp(optarg, "debug") == 0; break;
        case 'd': o->debug = true; break;
        case 's': o->g.systemd_cgroup = true; break;
        case 'c':
            o->g.systemd_cgroup = strcmp(optarg, "systemd") == 0;
            o->g.no_cgroups = strcmp(optarg, "disabled") == 0;
            break;
        case 'R':
        case 'C': break;
        case 'v': printf("fonda-oci version %s\nspec: %s\n", FONDA_VERSION, OCI_VERSION); return 1;
        case 'h': usage(stdout); return 1;
        default: return cmd_bad_option(argv, err);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct log_target target;
    struct options o = {.g = {.argv = argv}};
    struct err err = {.code = 0};
    log_init("fonda-oci", LOG_LEVEL_WARNING);
    signal(SIGCHLD, SIG_DFL); /* ignored, children would leave no status to wait for */
    /* Descriptors 0 to 2 must not become something of ours. */
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            return 125;
        }
    }
    int rc = parse_globals(argc, argv, &o, &err);
    if (rc == 1) {
        return 0;
    }
    log_init("fonda-oci", o.debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING);
    if (o.log || o.json) {
        target.json = o.json;
        target.fd = o.log ? open(o.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : 2;
        if (target.fd < 0) {
            log_error("cannot open log '%s': %s", o.log, strerror(errno));
            return 1;
        }
        log_set_sink(write_log, &target);
    }
    if (rc == 0 && optind >= argc) {
        usage(stderr);
        return 1;
    }
    size_t i = 0;
    while (rc == 0 && i < ARRAY_SIZE(commands) && strcmp(argv[optind], commands[i].name) != 0) {
        i++;
    }
    if (rc == 0 && i == ARRAY_SIZE(commands)) {
        rc = err_set(&err, -EINVAL, "unknown command '%s'", argv[optind]);
    }
    if (rc == 0) {
        int first = optind;
        log_debug("fonda-oci %s: %s", FONDA_VERSION, argv[first]);
        rc = commands[i].fn(&o.g, argc - first, argv + first, &err);
    }
    if (rc >= 0) {
        return rc;
    }
    log_error("%s", err.text);
    if (o.log) {
        dprintf(2, "fonda-oci: %s\n", err.text);
    }
    return 1;
}
