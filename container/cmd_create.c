/* create, run, start. */
#include "base/log.h"
#include "base/util.h"
#include "container/cmd.h"
#include "container/container.h"
#include "container/fault.h"
#include "container/hooks.h"
#include "container/json.h"
#include "container/paths.h"
#include "container/self.h"
#include "container/sync.h"
#include "container/tty.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

struct create_options {
    const char *bundle;
    const char *config;
    const char *id;
    bool detach;
    bool keep;
};

static int parse_options(int argc, char **argv, struct create_options *o, struct container *c,
                         struct err *err)
{
    static const struct option longs[] = {
        {"bundle", required_argument, NULL, 'b'},
        {"config", required_argument, NULL, 'f'},
        {"console-socket", required_argument, NULL, 'c'},
        {"namespace-socket", required_argument, NULL, 'n'},
        {"pid-file", required_argument, NULL, 'p'},
        {"preserve-fds", required_argument, NULL, 'F'},
        {"no-pivot", no_argument, NULL, 'P'},
        {"no-new-keyring", no_argument, NULL, 'K'},
        {"detach", no_argument, NULL, 'd'},
        {"keep", no_argument, NULL, 'k'},
        {"no-subreaper", no_argument, NULL, 'S'},
        {NULL, 0, NULL, 0},
    };
    optind = 0; /* from the start, options anywhere: getopt(3) */
    for (int opt; (opt = getopt_long(argc, argv, "b:f:d", longs, NULL)) != -1;) {
        switch (opt) {
        case 'b': o->bundle = optarg; break;
        case 'f': o->config = optarg; break;
        case 'c': c->console_socket = optarg; break;
        case 'n': c->ns_socket = optarg; break;
        case 'p': c->pid_file = optarg; break;
        case 'F': c->preserve_fds = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'P': c->no_pivot = true; break;
        case 'K': c->no_new_keyring = true; break;
        case 'd': o->detach = true; break;
        case 'k': o->keep = true; break;
        case 'S': break;
        default: return cmd_bad_option(argv, err);
        }
    }
    return cmd_id(argc, argv, &o->id, err);
}

/* sd_listen_fds(3): descriptors that systemd passed on are kept after those that were asked for. */
static int keep_descriptors(struct container *c, struct err *err)
{
    const char *listen = getenv("LISTEN_FDS");
    unsigned listeners = listen ? (unsigned)strtoul(listen, NULL, 10) : 0;
    if (listeners > 1024 || c->preserve_fds > 65536) {
        return err_set(err, -EINVAL, "--preserve-fds and LISTEN_FDS: too many descriptors");
    }
    c->preserve_fds += listeners;
    unsigned missing = 0;
    for (unsigned fd = 3; fd < 3 + c->preserve_fds; fd++) {
        missing += fcntl((int)fd, F_GETFD) < 0;
    }
    if (missing) {
        log_warning("%u of the descriptors that --preserve-fds or LISTEN_FDS announce are not open", missing);
    }
    struct oci_process *p = &c->config.process;
    if (listeners && p->env) {
        const char **env = arena_array(&c->config.arena, p->env_count + 3, sizeof(*env));
        memcpy(env, p->env, p->env_count * sizeof(*env));
        env[p->env_count++] = arena_printf(&c->config.arena, "LISTEN_FDS=%u", listeners);
        env[p->env_count++] = "LISTEN_PID=1";
        p->env = env;
    }
    return 0;
}

static const char *absolute(struct arena *arena, const char *base, const char *path)
{
    return !path || path[0] == '/' ? path : arena_printf(arena, "%s/%s", base, path);
}

/* Reads the bundle and makes paths absolute, as the runtime changes its directory later. */
static int load_bundle(struct container *c, const struct create_options *o, char **ret_text, struct err *err)
{
    char bundle[PATH_MAX];
    char rootfs[PATH_MAX];
    char cwd[PATH_MAX];
    size_t size = 0;
    struct arena *arena = &c->config.arena;
    if (!realpath(o->bundle ? o->bundle : ".", bundle) || !realpath(".", cwd)) {
        return err_sys(err, -errno, "bundle '%s'", o->bundle ? o->bundle : ".");
    }
    char path[PATH_MAX + 16];
    snprintf(path, sizeof(path), "%s/%s", o->config && o->config[0] == '/' ? "" : bundle,
             o->config ? o->config : "config.json");
    int rc = file_read_all(AT_FDCWD, path, ret_text, &size, err);
    if (rc == 0) {
        rc = config_parse(&c->config, *ret_text, size, "config.json", err);
    }
    if (rc < 0) {
        return rc;
    }
    const char *root = absolute(arena, bundle, c->config.root_path);
    if (!realpath(root, rootfs)) {
        return err_sys(err, -errno, "root file system '%s'", root);
    }
    c->rootfs = arena_strdup(arena, rootfs);
    c->state.bundle = arena_strdup(arena, bundle);
    c->state.rootfs = c->rootfs;
    c->state.annotations = c->config.annotations;
    c->pid_file = absolute(arena, cwd, c->pid_file);
    c->console_socket = absolute(arena, cwd, c->console_socket);
    c->ns_socket = absolute(arena, cwd, c->ns_socket);
    for (size_t i = 0; i < c->config.mount_count; i++) {
        if (c->config.mounts[i].bind) {
            c->config.mounts[i].source = absolute(arena, bundle, c->config.mounts[i].source);
        }
    }
    return keep_descriptors(c, err);
}

static int save_config(struct container *c, const char *text, struct err *err)
{
    auto_close int fd =
        openat(c->state.dir_fd, "config.json", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    return rc < 0 ? err_sys(err, rc, "cannot write the state of container '%s'", c->state.id) : 0;
}

/* Up to the point where the first process waits. On failure nothing is left. */
static int create(const struct globals *g, const struct create_options *o, struct container *c,
                  struct err *err)
{
    auto_free char *text = NULL;
    struct state state;
    int rc = load_bundle(c, o, &text, err);
    if (rc < 0) {
        return rc;
    }
    c->no_cgroups = g->no_cgroups;
    c->systemd = g->systemd_cgroup;
    int root_fd = state_open_root(g->root, true, err);
    if (root_fd < 0) {
        return root_fd;
    }
    rc = state_new(&state, root_fd, o->id, err);
    if (rc < 0) {
        state_done(&state);
        close(root_fd);
        return rc;
    }
    state.bundle = c->state.bundle;
    state.rootfs = c->state.rootfs;
    state.annotations = c->state.annotations;
    state.has_poststart = c->config.hooks[HOOK_POSTSTART].count > 0;
    state.has_poststop = c->config.hooks[HOOK_POSTSTOP].count > 0;
    c->state = state;
    rc = save_config(c, text, err);
    if (rc < 0) {
        state_remove(&c->state);
        return rc;
    }
    return container_create(c, err);
}

static void init_container(struct container *c, struct cg *cg)
{
    *c = (struct container){.sync_fds = {-1, -1},
                            .start_fd = -1,
                            .listen_fd = -1,
                            .console_fd = -1,
                            .ns_socket_fd = -1,
                            .agent_fd = -1,
                            .root_tree_fd = -1,
                            .cg = cg};
    for (int kind = 0; kind < NS_KINDS; kind++) {
        c->ns_fds[kind] = -1;
    }
    c->state.dir_fd = -1;
}

int cmd_create(const struct globals *g, int argc, char **argv, struct err *err)
{
    struct container c;
    struct cg cg = {.count = 0};
    struct create_options o = {.bundle = NULL};
    init_container(&c, &cg);
    int rc = parse_options(argc, argv, &o, &c, err);
    rc = rc < 0 ? rc : self_protect(g->argv, err);
    rc = rc < 0 ? rc : create(g, &o, &c, err);
    container_done(&c);
    return rc;
}

static int status_of(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int cmd_wait(pid_t pid)
{
    sigset_t mask;
    int status = 0;
    sigfillset(&mask);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    auto_close int fd = signalfd(-1, &mask, SFD_CLOEXEC);
    while (waitpid(pid, &status, WNOHANG) != pid) {
        struct signalfd_siginfo info;
        if (fd >= 0 && read(fd, &info, sizeof(info)) == sizeof(info) && info.ssi_signo != SIGCHLD &&
            info.ssi_signo != SIGURG) {
            kill(pid, (int)info.ssi_signo);
        }
    }
    return status_of(status);
}

/* After SYNC_GO of a run: nothing more comes when execve worked. */
static int run_started(struct container *c, struct err *err)
{
    close(c->listen_fd);
    c->listen_fd = -1;
    if (sync_recv(c->start_fd, err) == SYNC_ERROR) {
        return err->code;
    }
    auto_free char *text = state_for_hooks(&c->state, STATUS_RUNNING);
    return hooks_run(c->config.hooks, HOOK_POSTSTART, text, c->state.bundle, err);
}

static int run_foreground(struct container *c, int terminal_fd, struct err *err)
{
    int rc = run_started(c, err);
    int master = -1;
    if (rc == 0 && terminal_fd >= 0) {
        master = tty_receive(terminal_fd, err);
        rc = master < 0 ? master : 0;
    }
    if (rc < 0) {
        kill(c->pid, SIGKILL);
    }
    int status = rc < 0 || master < 0 ? cmd_wait(c->pid) : status_of(tty_proxy(master, c->pid));
    return rc < 0 ? rc : status;
}

int cmd_run(const struct globals *g, int argc, char **argv, struct err *err)
{
    struct container c;
    struct cg cg = {.count = 0};
    struct create_options o = {.bundle = NULL};
    auto_close int terminal_fd = -1;
    init_container(&c, &cg);
    c.run = true;
    int rc = parse_options(argc, argv, &o, &c, err);
    rc = rc < 0 ? rc : self_protect(g->argv, err);
    if (rc < 0) {
        return rc;
    }
    /* Without --console-socket the terminal, if there is one, comes to us over a pair of our own. */
    int pair[2] = {-1, -1};
    if (!o.detach && !c.console_socket) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
            return err_sys(err, -errno, "cannot make a socket pair");
        }
        terminal_fd = pair[0];
        c.console_fd = pair[1];
    }
    rc = create(g, &o, &c, err);
    if (rc < 0) {
        container_done(&c);
        return rc;
    }
    struct err why = {.code = 0};
    if (o.detach) {
        rc = run_started(&c, err);
        if (rc == 0) {
            container_done(&c);
            return 0;
        }
        kill(c.pid, SIGKILL);
        cmd_wait(c.pid);
    } else {
        rc = run_foreground(&c, c.config.process.terminal ? terminal_fd : -1, err);
    }
    if (!o.keep || rc < 0) {
        struct handle h = {.root_fd = c.state.root_fd, .state = c.state, .cg = cg, .status = STATUS_STOPPED};
        if (handle_delete(&h, true, &why) < 0) {
            log_warning("%s", why.text);
        }
        c.state = h.state;
        cg = h.cg;
    }
    container_done(&c);
    return rc == -ENOENT ? (log_error("%s", err->text), 127) : rc;
}

/* A poststart hook that failed: the container is stopped, and the error stands (runtime.md "Lifecycle"). */
static int started(struct handle *h, struct err *err)
{
    struct oci_config config;
    unlinkat(h->state.dir_fd, "start.sock", 0);
    if (!h->state.has_poststart) {
        return 0;
    }
    int rc = config_load(&config, h->state.dir_fd, "config.json", err);
    if (rc < 0) {
        return rc;
    }
    auto_free char *text = state_for_hooks(&h->state, STATUS_RUNNING);
    rc = hooks_run(config.hooks, HOOK_POSTSTART, text, h->state.bundle, err);
    if (rc < 0) {
        kill(h->state.pid, SIGKILL);
    }
    config_free(&config);
    return rc;
}

int cmd_start(const struct globals *g, int argc, char **argv, struct err *err)
{
    static const struct option none[] = {{NULL, 0, NULL, 0}};
    struct handle h;
    const char *id = NULL;
    optind = 0; /* from the start, options anywhere: getopt(3) */
    if (getopt_long(argc, argv, "", none, NULL) != -1) {
        return cmd_bad_option(argv, err);
    }
    int rc = cmd_id(argc, argv, &id, err);
    rc = rc < 0 ? rc : handle_open_locked(g, id, &h, err);
    if (rc < 0) {
        return rc;
    }
    if (h.status != STATUS_CREATED) {
        rc = err_set(err, -EINVAL, "cannot start container '%s': it is %s, not created%s", id,
                     status_names[h.status], h.status == STATUS_PAUSED ? " (resume it first)" : "");
    }
    if (rc == 0) {
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        struct fd_path path;
        snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/start.sock", fd_path(h.state.dir_fd, &path));
        auto_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
            rc = err_sys(err, -errno, "cannot reach the first process of container '%s'", id);
        } else if (sync_recv(fd, err) == SYNC_ERROR) {
            rc = err->code;
            unlinkat(h.state.dir_fd, "start.sock", 0);
        } else {
            rc = started(&h, err);
        }
    }
    handle_done(&h);
    return rc;
}
