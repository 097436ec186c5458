/* state, kill, delete, list, ps, pause, resume, and what they share. */
#include "base/log.h"
#include "base/util.h"
#include "container/cg_systemd.h"
#include "container/cmd.h"
#include "container/config.h"
#include "container/fault.h"
#include "container/hooks.h"
#include "container/signals.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>

/* Who else changes a container is quick, or hangs. */
#define LOCK_WAIT_MS 2000

int cmd_bad_option(char **argv, struct err *err)
{
    return err_set(err, -EINVAL, "%s: unknown option or missing argument: '%s'", argv[0],
                   argv[optind > 1 ? optind - 1 : 1]);
}

int cmd_id(int argc, char **argv, const char **ret, struct err *err)
{
    if (argc - optind != 1) {
        return err_set(err, -EINVAL, "%s takes one container id", argv[0]);
    }
    *ret = argv[optind];
    return 0;
}

void cmd_print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(value);
}

int handle_open(const struct globals *g, const char *id, struct handle *ret, struct err *err)
{
    struct handle h = {.root_fd = -1};
    struct err why = {.code = 0};
    int rc = state_check_id(id, err);
    if (rc < 0) {
        return rc;
    }
    h.root_fd = state_open_root(g->root, false, &why);
    if (h.root_fd < 0) {
        return h.root_fd == -ENOENT ? err_set(err, -ENOENT, "container '%s' does not exist", id)
                                    : err_set(err, h.root_fd, "%s", why.text);
    }
    rc = state_load(&h.state, h.root_fd, id, err);
    if (rc < 0) {
        close(h.root_fd);
        return rc;
    }
    rc = cg_open(&h.cg, err);
    h.cg.path = h.state.cgroup;
    h.cg.unit = h.state.systemd_unit;
    if (rc < 0 || (rc = cg_attach(&h.cg, err)) < 0) {
        handle_done(&h);
        return rc;
    }
    h.status = state_status(&h.state, cg_frozen(&h.cg));
    *ret = h;
    return 0;
}

int handle_open_locked(const struct globals *g, const char *id, struct handle *ret, struct err *err)
{
    for (bool again = false;; again = true) {
        int rc = handle_open(g, id, ret, err);
        if (rc < 0) {
            return rc;
        }
        rc = state_lock(&ret->state, LOCK_WAIT_MS, err);
        if (rc == 0 && (again || ret->status != STATUS_CREATING)) {
            return 0;
        }
        /* A create that was still at work when its state was read, and has let go of the lock. */
        handle_done(ret);
        if (rc < 0) {
            return rc;
        }
    }
}

void handle_done(struct handle *h)
{
    cg_close(&h->cg);
    state_done(&h->state);
    close(h->root_fd);
}

int cmd_state(const struct globals *g, int argc, char **argv, struct err *err)
{
    struct handle h;
    const char *id = NULL;
    optind = 1;
    int rc = cmd_id(argc, argv, &id, err);
    if (rc < 0 || (rc = handle_open(g, id, &h, err)) < 0) {
        return rc;
    }
    cmd_print_json(state_to_json(&h.state, h.status));
    handle_done(&h);
    return 0;
}

static int send_signal(const struct state *state, int signal)
{
    int fd = state_pidfd(state);
    if (fd == -ENOSYS) {
        return kill(state->pid, signal) < 0 ? -errno : 0;
    }
    if (fd < 0) {
        return fd;
    }
    int rc = syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0u) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

/* --regex: runs a command on every container whose id matches. The first error is the result; the others go
 * on. */
static int for_matching(const struct globals *g, const char *pattern,
                        int (*one)(const struct globals *g, const char *id, const void *how, struct err *err),
                        const void *how, struct err *err)
{
    regex_t regex;
    char text[128];
    int rc = regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB);
    if (rc) {
        regerror(rc, &regex, text, sizeof(text));
        return err_set(err, -EINVAL, "--regex '%.64s': %s", pattern, text);
    }
    int fd = state_open_root(g->root, false, err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    rc = fd == -ENOENT ? 0 : fd < 0 ? fd : 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct err why = {.code = 0};
        if (e->d_name[0] == '.' || regexec(&regex, e->d_name, 0, NULL, 0) != 0 ||
            one(g, e->d_name, how, &why) == 0) {
            continue;
        }
        if (rc == 0) {
            rc = err_set(err, why.code, "%s", why.text);
        } else {
            log_error("%s", why.text);
        }
    }
    if (dir) {
        closedir(dir);
    }
    regfree(&regex);
    return rc;
}

struct kill_how {
    int signal;
    bool all;
};

static int kill_one(const struct globals *g, const char *id, const void *opaque, struct err *err)
{
    const struct kill_how *how = opaque;
    struct handle h;
    int rc = handle_open(g, id, &h, err);
    if (rc < 0) {
        return rc;
    }
    if (how->all) {
        rc = how->signal == SIGKILL ? cg_kill(&h.cg, err) : cg_signal(&h.cg, how->signal, err);
    } else if (h.status == STATUS_STOPPED || h.status == STATUS_CREATING) {
        rc = err_set(err, -ESRCH, "cannot signal container '%s': it is not running (%s)", id,
                     status_names[h.status]);
    } else {
        rc = send_signal(&h.state, how->signal);
        if (rc < 0) {
            err_sys(err, rc, "cannot signal container '%s'", id);
        }
        /* A v1 freezer holds even a killed process back. */
        if (rc == 0 && how->signal == SIGKILL && h.status == STATUS_PAUSED) {
            struct err ignored = {.code = 0};
            cg_freeze(&h.cg, false, &ignored);
        }
    }
    handle_done(&h);
    return rc;
}

int cmd_kill(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        {"all", no_argument, NULL, 'a'}, {"regex", no_argument, NULL, 'r'}, {NULL, 0, NULL, 0}};
    struct kill_how how = {.signal = SIGTERM};
    bool regex = false;
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "ar", longs, NULL)) != -1;) {
        switch (opt) {
        case 'a': how.all = true; break;
        case 'r': regex = true; break;
        default: return cmd_bad_option(argv, err);
        }
    }
    if (argc - optind < 1 || argc - optind > 2) {
        return err_set(err, -EINVAL, "kill takes a container id and a signal");
    }
    how.signal = argc - optind == 2 ? signal_number(argv[optind + 1]) : SIGTERM;
    bool probe = how.signal == 0 && strcmp(argv[optind + 1], "0") == 0; /* kill(2): is it there? */
    if (!probe && (how.signal <= 0 || how.signal > 64)) {
        return err_set(err, -EINVAL, "'%s' is not a signal", argv[optind + 1]);
    }
    return regex ? for_matching(g, argv[optind], kill_one, &how, err) : kill_one(g, argv[optind], &how, err);
}

/* Hooks of a container whose config can still be read; what they do wrong is only logged (runtime.md
 * "Lifecycle"). */
static void run_poststop(const struct state *state)
{
    struct oci_config config;
    struct err err = {.code = 0};
    if (!state->has_poststop || config_load(&config, state->dir_fd, "config.json", &err) < 0) {
        return;
    }
    auto_free char *text = state_for_hooks(state, STATUS_STOPPED);
    for (size_t i = 0; i < config.hooks[HOOK_POSTSTOP].count; i++) {
        struct oci_hooks one[HOOK_KINDS] = {0};
        one[HOOK_POSTSTOP] = (struct oci_hooks){.v = &config.hooks[HOOK_POSTSTOP].v[i], .count = 1};
        if (hooks_run(one, HOOK_POSTSTOP, text, state->bundle, &err) < 0) {
            log_warning("%s", err.text);
        }
    }
    config_free(&config);
}

static int wait_dead(const struct state *state, int timeout_ms)
{
    while (state_alive(state)) {
        if (timeout_ms-- <= 0) {
            return -ETIMEDOUT;
        }
        usleep(1000);
    }
    return 0;
}

static int kill_first(const struct state *state, struct err *err)
{
    int rc = send_signal(state, SIGKILL);
    if (rc < 0 && rc != -ESRCH) {
        return err_sys(err, rc, "cannot kill container '%s'", state->id);
    }
    return 0;
}

int handle_delete(struct handle *h, bool force, struct err *err)
{
    bool ended = h->status == STATUS_STOPPED;
    /* A created container has run nothing of the user's yet, so delete may end it; "creating" means that
     * create died. */
    if (!ended && !force && h->status != STATUS_CREATED) {
        return err_set(err, -EBUSY,
                       "cannot delete container '%s': it is %s (kill it first, or delete --force)",
                       h->state.id, status_names[h->status]);
    }
    int rc = 0;
    if (!ended) {
        rc = kill_first(&h->state, err);
        if (rc == 0 && h->state.cgroup) {
            rc = cg_kill(&h->cg, err);
        }
        if (rc == 0 && (rc = wait_dead(&h->state, 10000)) < 0) {
            err_set(err, rc, "the first process of container '%s' is still there 10 s after SIGKILL",
                    h->state.id);
        }
    } else if (h->state.cgroup) {
        rc =
            cg_kill(&h->cg, err); /* without a pid namespace of its own, others may have outlived the first */
    }
    rc = rc < 0 ? rc : state_lock(&h->state, 10000, err);
    rc = rc < 0 ? rc : fault_step("delete cgroups", err);
    rc = rc < 0 ? rc : cg_remove(&h->cg, err);
    if (rc < 0) {
        return rc;
    }
    if (h->state.systemd_unit) {
        cg_systemd_stop(h->state.systemd_unit);
    }
    run_poststop(&h->state);
    state_remove(&h->state);
    return 0;
}

static int delete_one(const struct globals *g, const char *id, const void *opaque, struct err *err)
{
    bool force = *(const bool *)opaque;
    struct handle h;
    int rc = handle_open(g, id, &h, err);
    if (rc < 0) {
        return force && rc == -ENOENT ? 0 : rc;
    }
    rc = handle_delete(&h, force, err);
    handle_done(&h);
    return rc;
}

int cmd_delete(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        {"force", no_argument, NULL, 'f'}, {"regex", no_argument, NULL, 'r'}, {NULL, 0, NULL, 0}};
    bool force = false, regex = false;
    const char *id = NULL;
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "fr", longs, NULL)) != -1;) {
        switch (opt) {
        case 'f': force = true; break;
        case 'r': regex = true; break;
        default: return cmd_bad_option(argv, err);
        }
    }
    int rc = cmd_id(argc, argv, &id, err);
    return rc < 0  ? rc
           : regex ? for_matching(g, id, delete_one, &force, err)
                   : delete_one(g, id, &force, err);
}

static int pause_or_resume(const struct globals *g, int argc, char **argv, bool freeze, struct err *err)
{
    struct handle h;
    const char *id = NULL;
    optind = 1;
    int rc = cmd_id(argc, argv, &id, err);
    if (rc < 0 || (rc = handle_open_locked(g, id, &h, err)) < 0) {
        return rc;
    }
    bool fits = freeze ? h.status == STATUS_RUNNING || h.status == STATUS_CREATED : h.status == STATUS_PAUSED;
    if (!fits) {
        rc = err_set(err, -EINVAL, "cannot %s container '%s': it is %s", freeze ? "pause" : "resume", id,
                     status_names[h.status]);
    }
    rc = rc < 0 ? rc : cg_freeze(&h.cg, freeze, err);
    handle_done(&h);
    return rc;
}

int cmd_pause(const struct globals *g, int argc, char **argv, struct err *err)
{
    return pause_or_resume(g, argc, argv, true, err);
}

int cmd_resume(const struct globals *g, int argc, char **argv, struct err *err)
{
    return pause_or_resume(g, argc, argv, false, err);
}

int cmd_list(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {
        {"format", required_argument, NULL, 'f'}, {"quiet", no_argument, NULL, 'q'}, {NULL, 0, NULL, 0}};
    const char *format = "table";
    bool quiet = false;
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "f:q", longs, NULL)) != -1;) {
        switch (opt) {
        case 'f': format = optarg; break;
        case 'q': quiet = true; break;
        default: return cmd_bad_option(argv, err);
        }
    }
    bool as_json = strcmp(format, "json") == 0;
    if (!as_json && strcmp(format, "table") != 0) {
        return err_set(err, -EINVAL, "list: format must be table or json");
    }
    json_t *all = json_array();
    struct dirent **names = NULL;
    int fd = state_open_root(g->root, false, err);
    int count = fd < 0 ? 0 : scandirat(fd, ".", &names, NULL, alphasort);
    if (!as_json && !quiet) {
        printf("%-24s %-8s %-8s %-32s %s\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
    }
    for (int i = 0; i < count; i++) {
        auto_free struct dirent *e = names[i];
        struct handle h;
        struct err ignored = {.code = 0};
        if (e->d_name[0] == '.' || handle_open(g, e->d_name, &h, &ignored) < 0) {
            continue;
        }
        if (quiet) {
            printf("%s\n", e->d_name);
        } else if (as_json) {
            json_array_append_new(all, state_to_json(&h.state, h.status));
        } else {
            printf("%-24s %-8d %-8s %-32s %s\n", e->d_name, h.status == STATUS_STOPPED ? 0 : (int)h.state.pid,
                   status_names[h.status], h.state.bundle ? h.state.bundle : "-",
                   h.state.created ? h.state.created : "-");
        }
        handle_done(&h);
    }
    free(names);
    if (fd >= 0) {
        close(fd);
    }
    if (as_json && !quiet) {
        cmd_print_json(all);
    } else {
        json_decref(all);
    }
    return fd == -ENOENT ? 0 : fd < 0 ? fd : 0;
}

static int run_ps(const pid_t *pids, size_t count, char **args, struct err *err)
{
    char *standard[] = {"ps", "-ef", NULL};
    char command[1024] = "";
    char line[4096];
    for (char **arg = args ? args : standard + 1; *arg; arg++) {
        if (strlen(command) + strlen(*arg) + 4 >= sizeof(command) || strchr(*arg, '\'')) {
            return err_set(err, -EINVAL, "ps: argument '%.64s' can't be used", *arg);
        }
        strcat(strcat(strcat(command, " '"), *arg), "'");
    }
    char full[1100];
    snprintf(full, sizeof(full), "ps%s", command);
    FILE *f = popen(full, "re");
    if (!f) {
        return err_sys(err, -errno, "cannot run ps");
    }
    int column = -1;
    while (fgets(line, sizeof(line), f)) {
        char copy[4096];
        char *save = NULL;
        int at = 0;
        bool ours = column < 0;
        memcpy(copy, line, sizeof(copy));
        for (char *word = strtok_r(copy, " \t\n", &save); word; word = strtok_r(NULL, " \t\n", &save), at++) {
            if (column < 0 && strcmp(word, "PID") == 0) {
                column = at;
            }
            for (size_t i = 0; at == column && i < count; i++) {
                ours = ours || atoi(word) == pids[i];
            }
        }
        if (ours) {
            fputs(line, stdout);
        }
    }
    pclose(f);
    return 0;
}

int cmd_ps(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option longs[] = {{"format", required_argument, NULL, 'f'}, {NULL, 0, NULL, 0}};
    struct handle h;
    bool as_json = false;
    optind = 1;
    for (int opt; (opt = getopt_long(argc, argv, "+f:", longs, NULL)) != -1;) {
        if (opt != 'f') {
            return cmd_bad_option(argv, err);
        }
        as_json = strcmp(optarg, "json") == 0;
    }
    if (optind >= argc) {
        return err_set(err, -EINVAL, "ps takes a container id");
    }
    auto_free pid_t *pids = NULL;
    size_t count = 0;
    int rc = handle_open(g, argv[optind], &h, err);
    if (rc < 0) {
        return rc;
    }
    rc = cg_pids(&h.cg, &pids, &count, err);
    if (rc == 0 && as_json) {
        json_t *list = json_array();
        for (size_t i = 0; i < count; i++) {
            json_array_append_new(list, json_integer(pids[i]));
        }
        json_dumpf(list, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(list);
    } else if (rc == 0) {
        rc = run_ps(pids, count, optind + 1 < argc ? argv + optind + 1 : NULL, err);
    }
    handle_done(&h);
    return rc;
}
