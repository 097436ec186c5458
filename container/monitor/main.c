/*
 * fonda-monitor: one per container. Starts it through fonda-oci, keeps its log and exit status, applies its
 * restart policy and answers on a socket; see monitor.h. It leaves whoever started it, and says to them first
 * whether the container runs.
 */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"
#include "container/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <malloc.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define CONFIG_MAX    (16u << 20)
#define OWN_LOG_MAX   65536
#define STATUS_USAGE  2
#define STATUS_FAILED 125

#define MEMBER(name) offsetof(struct monitor_options, name)
static const struct option_spec specs[] = {
    {"id", OPTION_STRING, MEMBER(id), 0, 0, "ID", "the container's name"},
    {"bundle", OPTION_STRING, MEMBER(bundle), 0, 0, "DIR", "OCI bundle with config.json"},
    {"dir", OPTION_STRING, MEMBER(dir), 0, 0, "DIR",
     "where control.sock, status.json and log go; made if missing"},
    {"oci", OPTION_STRING, MEMBER(oci), 0, 0, "FILE", "the runtime (default: fonda-oci beside this program)"},
    {"oci-root", OPTION_STRING, MEMBER(oci_root), 0, 0, "DIR", "its --root"},
    {"netd", OPTION_STRING, MEMBER(netd), 0, 0, "FILE", "fonda-netd (default: beside this program)"},
    {"network", OPTION_STRING, MEMBER(network), 0, 0, "HOW",
     "user: NAT by fonda-netd in the container's own network\nnamespace; none: what the bundle says "
     "(default)"},
    {"publish", OPTION_LIST, MEMBER(publish), 0, 0, "PORTS",
     "[ADDRESS:]HOST:CONTAINER[/udp], for --network user; may be given\nagain"},
    {"hold", OPTION_FLAG, MEMBER(hold), 0, 0, NULL,
     "create the container, and start it when 'start' is called"},
    {"stdin", OPTION_FLAG, MEMBER(stdin_open), 0, 0, NULL,
     "keep the container's input open for those who attach"},
    {"foreground", OPTION_FLAG, MEMBER(foreground), 0, 0, NULL, "stay in the foreground"},
    {"log-size", OPTION_SIZE, MEMBER(log_bytes), 4096, 1ull << 40, "SIZE",
     "a log file's limit (default: 10M)"},
    {"log-files", OPTION_UINT, MEMBER(log_files), 0, 100, "N", "older log files that are kept (default: 2)"},
    {"restart", OPTION_STRING, MEMBER(restart), 0, 0, "POLICY",
     "no, on-failure[:TIMES], always or unless-stopped (default: no)"},
    {"stop-signal", OPTION_STRING, MEMBER(stop_signal), 0, 0, "SIGNAL",
     "what asks the container to end (default: TERM)"},
    {"stop-timeout", OPTION_UINT, MEMBER(stop_timeout_s), 0, 86400, "S",
     "seconds until it is killed then (default: 10)"},
    {"health-cmd", OPTION_STRING, MEMBER(health_cmd), 0, 0, "COMMAND",
     "a shell command that checks on the container"},
    {"health-interval", OPTION_UINT, MEMBER(health_interval_s), 1, 86400, "S",
     "seconds between checks (default: 30)"},
    {"health-timeout", OPTION_UINT, MEMBER(health_timeout_s), 1, 86400, "S",
     "seconds a check may take (default: 30)"},
    {"health-retries", OPTION_UINT, MEMBER(health_retries), 1, 1000, "N",
     "failures in a row that make it unhealthy (default: 3)"},
    {"health-start-period", OPTION_UINT, MEMBER(health_start_s), 0, 86400, "S",
     "seconds in which failures don't count (default: 0)"},
    {"health-on-failure", OPTION_STRING, MEMBER(health_action), 0, 0, "WHAT",
     "none, kill (the restart policy follows) or stop\n(default: none)"},
    {"meminfo", OPTION_STRING, MEMBER(meminfo), 0, 0, "FILE",
     "a file that the bundle mounts over /proc/meminfo: kept up to\ndate, with --memory"},
    {"memory", OPTION_UINT, MEMBER(memory), 0, 1ull << 60, "BYTES",
     "the container's memory limit, for that file"},
    {"swap", OPTION_UINT, MEMBER(swap), 0, 1ull << 60, "BYTES", "and its swap (default: the host's)"},
    {"help", OPTION_FLAG, MEMBER(help), 0, 0, NULL, "print this help"},
};

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: fonda-monitor --id ID --bundle DIR --dir DIR [OPTION]...\n\n"
        "Runs one container and watches over it. Ends with status 0 when the container runs (or is created, "
        "with --hold);\n"
        "the monitor itself goes on in the background until the container has ended for good.\n\nOptions:\n");
    options_print(out, specs, ARRAY_SIZE(specs));
    fprintf(out,
            "\nExamples:\n"
            "  fonda-monitor --id web --bundle /srv/web --dir /run/user/1000/web --restart on-failure:5\n"
            "  fonda-monitor --id db --bundle /srv/db --dir /run/db --health-cmd 'pg_isready -q' "
            "--health-interval 10\n"
            "  echo '{\"id\":1,\"method\":\"status\"}' | socat - UNIX-CONNECT:/run/db/control.sock\n");
}

static int parse_restart(struct monitor *m, struct err *err)
{
    const char *text = m->o.restart;
    const char *count = text && strncmp(text, "on-failure:", 11) == 0 ? text + 11 : NULL;
    uint64_t limit = 0;
    if (!text || strcmp(text, "no") == 0) {
        m->restart = RESTART_NO;
    } else if (strcmp(text, "always") == 0 || strcmp(text, "unless-stopped") == 0) {
        m->restart = RESTART_ALWAYS;
    } else if (strcmp(text, "on-failure") == 0 ||
               (count && parse_uint(count, &limit, NULL) == 0 && limit <= 1000000)) {
        m->restart = RESTART_ON_FAILURE;
        m->restart_limit = (unsigned)limit;
    } else {
        return err_set(err, -EINVAL, "--restart '%s' is not no, on-failure[:TIMES], always or unless-stopped",
                       text);
    }
    return 0;
}

static int check_options(struct monitor *m, struct err *err)
{
    struct monitor_options *o = &m->o;
    static const char *const networks[] = {"none", "user"};
    static const char *const actions[] = {"none", "kill", "stop"};
    if (!o->id || !o->bundle || !o->dir) {
        return err_set(err, -EINVAL, "--id, --bundle and --dir are needed; see --help");
    }
    if (o->network && strcmp(o->network, networks[0]) != 0 && strcmp(o->network, networks[1]) != 0) {
        return err_set(err, -EINVAL, "--network '%s' is neither none nor user", o->network);
    }
    if (o->publish.count && (!o->network || strcmp(o->network, "user") != 0)) {
        return err_set(err, -EINVAL, "--publish needs --network user");
    }
    m->health_action = HEALTH_NONE;
    while (o->health_action && strcmp(o->health_action, actions[m->health_action]) != 0) {
        if (++m->health_action == ARRAY_SIZE(actions)) {
            return err_set(err, -EINVAL, "--health-on-failure '%s' is not none, kill or stop",
                           o->health_action);
        }
    }
    m->stop_signal = o->stop_signal ? signal_number(o->stop_signal) : SIGTERM;
    if (m->stop_signal <= 0 || m->stop_signal > 64) {
        return err_set(err, -EINVAL, "--stop-signal '%s' is not a signal", o->stop_signal);
    }
    return parse_restart(m, err);
}

/* Whether the container has a terminal; the rest of config.json is fonda-oci's to judge. */
static int read_config(struct monitor *m, struct err *err)
{
    char path[4096];
    json_error_t why;
    if ((size_t)snprintf(path, sizeof(path), "%s/config.json", m->o.bundle) >= sizeof(path)) {
        return err_sys(err, -ENAMETOOLONG, "bundle '%.64s'", m->o.bundle);
    }
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > CONFIG_MAX) {
        return err_set(err, -ENOENT, "'%s' is not a bundle's config.json: %s", path, strerror(errno));
    }
    json_t *config = json_load_file(path, 0, &why);
    if (!config) {
        return err_set(err, -EINVAL, "'%s' is not JSON: %s", path, why.text);
    }
    m->terminal = json_is_true(json_object_get(json_object_get(config, "process"), "terminal"));
    json_decref(config);
    return 0;
}

static int open_dir(struct monitor *m, struct err *err)
{
    if (mkdir(m->o.dir, 0700) < 0 && errno != EEXIST) {
        return err_sys(err, -errno, "cannot make '%s'", m->o.dir);
    }
    m->dir_fd = open(m->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int lock = m->dir_fd < 0 ? -1 : openat(m->dir_fd, "lock", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0) {
        return err_sys(err, -errno, "cannot use '%s'", m->o.dir);
    }
    if (flock(lock, LOCK_EX | LOCK_NB) < 0) { /* held until the process ends */
        return err_set(err, -EBUSY, "'%s' has a monitor already", m->o.dir);
    }
    return logfile_open(&m->log, m->dir_fd, m->o.log_bytes, (unsigned)m->o.log_files, err);
}

/* From here on messages go to monitor.log. */
static int leave(struct monitor *m)
{
    struct stat st;
    if (fstatat(m->dir_fd, "monitor.log", &st, 0) == 0 && st.st_size > OWN_LOG_MAX) {
        (void)renameat(m->dir_fd, "monitor.log", m->dir_fd, "monitor.log.1");
    }
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int log = openat(m->dir_fd, "monitor.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (null < 0 || log < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(log, 2) < 0) {
        return -errno;
    }
    close(null);
    close(log);
    setsid();
    return chdir("/") < 0 ? -errno : 0;
}

static void on_signal(struct loop_source *source, uint32_t events)
{
    struct monitor *m = CONTAINER_OF(source, struct monitor, signals);
    struct signalfd_siginfo info;
    if (read(source->fd, &info, sizeof(info)) != sizeof(info)) {
        return;
    }
    if (info.ssi_signo == SIGCHLD) {
        life_reap(m);
    } else {
        life_stop(m, false);
    }
}

static int watch_signals(struct monitor *m)
{
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    m->signals =
        (struct loop_source){.fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK), .ready = on_signal};
    return m->signals.fd < 0 ? -errno : loop_add(&m->loop, &m->signals, 1 /* EPOLLIN */);
}

static int watch_over(struct monitor *m, struct err *err)
{
    int rc = m->o.foreground ? 0 : leave(m);
    rc = rc < 0 ? rc : loop_init(&m->loop);
    rc = rc < 0 ? rc : watch_signals(m);
    rc = rc < 0 ? rc : prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0;
    if (rc < 0) {
        return err_sys(err, rc, "cannot start the monitor");
    }
    if ((rc = server_start(m, err)) < 0 || (rc = life_begin(m, err)) < 0) {
        return rc;
    }
    loop_run(&m->loop);
    server_stop(m);
    loop_done(&m->loop);
    return 0;
}

/* The caller waits for the report of its child, and ends as it says. */
static int wait_for_report(int fd)
{
    char text[ERR_TEXT_MAX + 1];
    char end;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    bool told = n >= 0 && read(fd, &end, 1) == 0;
    text[MAX(n, 0)] = '\0';
    if (n == 1 && text[0] == '\n') {
        return 0;
    }
    log_error("%s", told && n > 0 ? text : "the monitor ended early; see monitor.log");
    return STATUS_FAILED;
}

static const char *beside(const char *name)
{
    static char paths[2][4096];
    static unsigned used;
    char *path = paths[used++ % 2];
    ssize_t n = readlink("/proc/self/exe", path, 4096 - 64);
    path[MAX(n, 0)] = '\0';
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, name);
    return path;
}

static const char *absolute(const char *path, char *buffer)
{
    const char *real = path ? realpath(path, buffer) : NULL;
    return real ? real : path;
}

int main(int argc, char **argv)
{
    static struct monitor m = {
        .o = {.log_bytes = 10 * MiB,
              .log_files = 2,
              .stop_timeout_s = 10,
              .health_interval_s = 30,
              .health_timeout_s = 30,
              .health_retries = 3},
        .report_fd = -1,
        .streams = {{.source.fd = -1}, {.source.fd = -1}},
        .input.fd = -1,
        .console.fd = -1,
        .ns.fd = -1,
        .netd_ready.fd = -1,
        .server.fd = -1,
    };
    static char bundle[4096];
    static char root[4096];
    struct err err = {.code = 0};
    int report[2];
    log_init("fonda-monitor", LOG_LEVEL_WARNING);
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            return STATUS_FAILED;
        }
    }
    /* What it was started with, such as a lock, ends with it: nothing it starts gets that. */
    (void)close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    int rc = options_parse(specs, ARRAY_SIZE(specs), argc, argv, 1, &m.o, &err);
    if (m.o.help) {
        usage(stdout);
        return 0;
    }
    rc = rc < 0 ? rc : rc < argc ? err_set(&err, -EINVAL, "'%s' is not an option", argv[rc]) : 0;
    if (rc < 0 || check_options(&m, &err) < 0 || read_config(&m, &err) < 0) {
        log_error("%s", err.text);
        return STATUS_USAGE;
    }
    m.o.oci = m.o.oci ? m.o.oci : beside("fonda-oci");
    m.o.netd = m.o.netd ? m.o.netd : beside("fonda-netd");
    m.o.bundle = absolute(m.o.bundle, bundle);
    if (m.o.oci_root) {
        (void)mkdir(m.o.oci_root, 0700); /* fonda-oci says what is wrong with it */
        m.o.oci_root = absolute(m.o.oci_root, root);
    }
    if (open_dir(&m, &err) < 0 || (!m.o.foreground && pipe2(report, O_CLOEXEC) < 0)) {
        log_error("%s", err.text);
        return STATUS_FAILED;
    }
    if (!m.o.foreground) {
        pid_t pid = fork();
        if (pid != 0) {
            close(report[1]);
            return pid < 0 ? STATUS_FAILED : wait_for_report(report[0]);
        }
        close(report[0]);
        m.report_fd = report[1];
    }
    mallopt(M_TRIM_THRESHOLD, 16384);
    rc = watch_over(&m, &err);
    if (rc < 0) {
        log_error("%s", err.text);
        if (m.report_fd >= 0) {
            (void)!write(m.report_fd, err.text, strlen(err.text));
        }
        return STATUS_FAILED;
    }
    return m.o.foreground ? m.exit_status : 0;
}
