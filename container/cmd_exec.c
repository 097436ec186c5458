/*
 * exec: another process in a running container.
 *
 * The runtime makes a child in the container's cgroup and pid namespace (through a stage process where the
 * user namespace has to be entered for that), the child joins the rest and becomes the process. A paused
 * container is refused before anything is made, and whatever happens to the runtime ends the child until it
 * is let go.
 */
#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/cmd.h"
#include "container/config.h"
#include "container/fault.h"
#include "container/json.h"
#include "container/ns.h"
#include "container/paths.h"
#include "container/proc.h"
#include "container/seccomp.h"
#include "container/self.h"
#include "container/stage.h"
#include "container/sync.h"
#include "container/tty.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define EXEC_LIST_MAX 1024

struct exec_options {
    const char *process_file;
    const char *console_socket;
    const char *pid_file;
    const char *user;
    const char *cwd;
    const char *apparmor;
    const char *label;
    const char *cgroup;
    const char *env[EXEC_LIST_MAX];
    size_t env_count;
    const char *caps[EXEC_LIST_MAX];
    size_t cap_count;
    uint32_t groups[EXEC_LIST_MAX];
    size_t group_count;
    unsigned preserve_fds;
    bool detach;
    bool terminal;
    bool no_new_privs;
    bool ignore_paused; /* it begins when the container is resumed */
    const char *id;
    char **args;
    int arg_count;
};

struct exec {
    struct exec_options o;
    struct handle h;
    struct oci_config config;
    json_t *process_json;
    struct oci_process process;
    struct seccomp_program *seccomp;
    int ns_fds[NS_KINDS];
    int sync_fds[2];
    int start_fds[2];
    int console_fd;
    int own_terminal_fd;
    int agent_fd;
    int proc_fd;
    bool in_v2; /* the clone put the process into the v2 cgroup */
    pid_t pid;
};

static int parse_exec_options(int argc, char **argv, struct exec_options *o, struct err *err)
{
    static const struct option longs[] = {
        {"process", required_argument, NULL, 'p'},
        {"console-socket", required_argument, NULL, 'S'},
        {"pid-file", required_argument, NULL, 'P'},
        {"user", required_argument, NULL, 'u'},
        {"cwd", required_argument, NULL, 'w'},
        {"ignore-paused", no_argument, NULL, 'I'},
        {"env", required_argument, NULL, 'e'},
        {"tty", no_argument, NULL, 't'},
        {"detach", no_argument, NULL, 'd'},
        {"cap", required_argument, NULL, 'c'},
        {"additional-gids", required_argument, NULL, 'g'},
        {"no-new-privs", no_argument, NULL, 'N'},
        {"apparmor", required_argument, NULL, 'A'},
        {"process-label", required_argument, NULL, 'L'},
        {"preserve-fds", required_argument, NULL, 'F'},
        {"cgroup", required_argument, NULL, 'G'},
        {"no-subreaper", no_argument, NULL, 'R'},
        {NULL, 0, NULL, 0},
    };
    optind = 1;
    for (int opt; (opt = getopt_long(argc, argv, "+p:u:e:tdc:g:", longs, NULL)) != -1;) {
        if ((opt == 'e' && o->env_count == EXEC_LIST_MAX) || (opt == 'c' && o->cap_count == EXEC_LIST_MAX) ||
            (opt == 'g' && o->group_count == EXEC_LIST_MAX)) {
            return err_set(err, -E2BIG, "exec: too many options");
        }
        switch (opt) {
        case 'p': o->process_file = optarg; break;
        case 'S': o->console_socket = optarg; break;
        case 'P': o->pid_file = optarg; break;
        case 'u': o->user = optarg; break;
        case 'w': o->cwd = optarg; break;
        case 'I': o->ignore_paused = true; break;
        case 'e': o->env[o->env_count++] = optarg; break;
        case 't': o->terminal = true; break;
        case 'd': o->detach = true; break;
        case 'c': o->caps[o->cap_count++] = optarg; break;
        case 'g': o->groups[o->group_count++] = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'N': o->no_new_privs = true; break;
        case 'A': o->apparmor = optarg; break;
        case 'L': o->label = optarg; break;
        case 'F': o->preserve_fds = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'G': o->cgroup = optarg; break;
        case 'R': break;
        default: return cmd_bad_option(argv, err);
        }
    }
    if (optind >= argc) {
        return err_set(err, -EINVAL, "exec takes a container id and a command");
    }
    o->id = argv[optind];
    o->args = argv + optind + 1;
    o->arg_count = argc - optind - 1;
    if (!o->process_file && o->arg_count == 0) {
        return err_set(err, -EINVAL, "exec: the command is missing");
    }
    return 0;
}

/* The container's own process section, with what the options say. */
static int process_from_options(struct exec *x, struct err *err)
{
    struct oci_process *p = &x->process;
    struct arena *arena = &x->config.arena;
    const struct exec_options *o = &x->o;
    if (!x->config.has_process) {
        return err_set(err, -EINVAL, "config.json has no process to take settings from; use --process");
    }
    *p = x->config.process;
    p->args = (const char **)o->args;
    p->arg_count = (size_t)o->arg_count;
    p->terminal = o->terminal;
    p->console_width = 0;
    p->cwd = o->cwd ? o->cwd : p->cwd;
    p->no_new_privileges = p->no_new_privileges || o->no_new_privs;
    p->apparmor_profile = o->apparmor ? o->apparmor : p->apparmor_profile;
    p->selinux_label = o->label ? o->label : p->selinux_label;
    if (o->user) {
        char *end;
        p->uid = (uint32_t)strtoul(o->user, &end, 10);
        if (!isdigit((unsigned char)*o->user) || (*end && *end != ':')) {
            return err_set(err, -EINVAL, "exec: user '%s' is not of the form UID[:GID]", o->user);
        }
        p->gid = *end ? (uint32_t)strtoul(end + 1, NULL, 10) : p->gid;
    }
    if (o->group_count) {
        p->groups = (uint32_t *)o->groups;
        p->group_count = o->group_count;
    }
    if (o->env_count) {
        const char **env = arena_array(arena, p->env_count + o->env_count + 1, sizeof(*env));
        size_t n = 0;
        for (size_t i = 0; i < p->env_count; i++) {
            bool replaced = false;
            size_t name = strcspn(p->env[i], "=");
            for (size_t k = 0; k < o->env_count; k++) {
                replaced = replaced || (strncmp(p->env[i], o->env[k], name) == 0 && o->env[k][name] == '=');
            }
            if (!replaced) {
                env[n++] = p->env[i];
            }
        }
        memcpy(env + n, o->env, o->env_count * sizeof(*env));
        p->env = env;
        p->env_count = n + o->env_count;
    }
    for (size_t i = 0; i < o->cap_count; i++) {
        int cap = caps_number(o->caps[i]);
        if (cap < 0) {
            log_warning("capability '%s' is unknown and ignored", o->caps[i]);
            continue;
        }
        for (int set = 0; set < CAPSET_COUNT; set++) {
            p->caps[set] |= set == CAPSET_INHERITABLE || set == CAPSET_AMBIENT ? 0 : BIT64(cap);
        }
    }
    return 0;
}

static int process_from_file(struct exec *x, struct err *err)
{
    auto_free char *text = NULL;
    size_t size = 0;
    int rc = file_read_all(AT_FDCWD, x->o.process_file, &text, &size, err);
    if (rc < 0) {
        return rc;
    }
    x->process_json = json_parse(text, size, x->o.process_file, err);
    if (!x->process_json) {
        return -EINVAL;
    }
    rc = config_parse_process(x->process_json, &x->config.arena, &x->process, err);
    if (rc == 0 && x->process.arg_count == 0) {
        rc = err_set(err, -EINVAL, "process.args is missing or empty");
    }
    return rc < 0 ? err_prefix(err, "%s", x->o.process_file) : 0;
}

static int open_namespaces(struct exec *x, struct err *err)
{
    struct oci_linux lnx = {.ns = {{.wanted = false}}};
    char paths[NS_KINDS][64];
    for (int kind = 0; kind < NS_KINDS; kind++) {
        snprintf(paths[kind], sizeof(paths[kind]), "/proc/%d/ns/%s", (int)x->h.state.pid, ns_files[kind]);
        /* A time namespace needs Linux 5.6; where there is none, there is nothing to join. */
        lnx.ns[kind].path = access(paths[kind], F_OK) == 0 || kind != NS_TIME ? paths[kind] : NULL;
    }
    int rc = ns_open(&lnx, x->ns_fds, err);
    if (rc == 0 && !state_alive(&x->h.state)) {
        rc = err_set(err, -ESRCH, "container '%s' has just stopped", x->o.id);
    }
    return rc;
}

static int open_process(struct exec *x, struct err *err)
{
    int rc = config_load(&x->config, x->h.state.dir_fd, "config.json", err);
    rc = rc < 0 ? rc : x->o.process_file ? process_from_file(x, err) : process_from_options(x, err);
    if (rc == 0 && x->config.lnx.seccomp) {
        rc = seccomp_compile(x->config.lnx.seccomp, &x->config.arena, &x->seccomp, err);
    }
    if (rc < 0 || (rc = proc_check_labels(&x->process, err)) < 0) {
        return rc;
    }
    x->process.terminal = x->process.terminal || x->o.terminal;
    if (x->process.terminal && x->o.console_socket) {
        x->console_fd = unix_connect(x->o.console_socket);
        if (x->console_fd < 0) {
            return err_sys(err, x->console_fd, "cannot connect to the console socket '%s'",
                           x->o.console_socket);
        }
    } else if (x->process.terminal) {
        int fds[2];
        if (x->o.detach) {
            return err_set(err, -EINVAL, "exec: a terminal with --detach needs --console-socket");
        }
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
            return err_sys(err, -errno, "cannot make a socket pair");
        }
        x->own_terminal_fd = fds[0];
        x->console_fd = fds[1];
    }
    if (x->seccomp && x->seccomp->listener_path) {
        x->agent_fd = unix_connect(x->seccomp->listener_path);
        if (x->agent_fd < 0) {
            return err_sys(err, x->agent_fd, "cannot connect to the seccomp agent '%s'",
                           x->seccomp->listener_path);
        }
    }
    return 0;
}

/* In the child, after its pid namespace. */
static int enter(struct exec *x, bool user_joined, struct proc_exec *p, struct err *err)
{
    int master = -1;
    int slave = -1;
    const char *cpus = x->process.cpu_affinity_initial;
    int rc = cpus ? proc_set_affinity(0, cpus, err) : 0;
    if (rc < 0 || (rc = cg_enter(&x->h.cg, x->in_v2, err)) < 0 ||
        (rc = ns_join(x->ns_fds, !user_joined, false, err)) < 0) {
        return rc;
    }
    if (x->ns_fds[NS_USER] >= 0 && (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0) && errno != EINVAL) {
        return err_sys(err, -errno, "cannot become root of the user namespace"); /* EINVAL: it maps no root */
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    setsid();
    if (x->process.terminal) {
        auto_close int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        rc = tty_open(root, &master, &slave, err);
        rc = rc < 0 ? rc : tty_take(master, slave, x->console_fd, &x->process, err);
    }
    return rc < 0 ? rc : proc_find(p, err);
}

static void child(struct exec *x, bool user_joined)
{
    struct err err = {.code = 0};
    struct proc_exec p = {.process = &x->process,
                          .lnx = &x->config.lnx,
                          .seccomp = x->seccomp,
                          .landlock = &x->config.landlock,
                          .preserve_fds = x->o.preserve_fds,
                          .error_fd = x->start_fds[1],
                          .proc_fd = x->proc_fd,
                          .agent_fd = x->agent_fd};
    fault_enter_child();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(x->sync_fds[0]);
    close(x->start_fds[0]);
    int rc = enter(x, user_joined, &p, &err);
    prctl(PR_SET_PDEATHSIG, 0); /* the socket's end says so from here on, see init.c */
    if (rc == 0) {
        rc = sync_send(x->sync_fds[1], SYNC_READY) < 0 ? -EPIPE : sync_expect(x->sync_fds[1], SYNC_GO, &err);
    }
    if (rc < 0) {
        sync_send_error(x->sync_fds[1], &err);
        _exit(1);
    }
    close(x->sync_fds[1]);
    auto_free char *text = state_for_hooks(&x->h.state, STATUS_RUNNING);
    if (x->agent_fd >= 0) {
        p.agent_state = seccomp_agent_state(x->seccomp, text);
    }
    rc = proc_execve(&p, &err);
    sync_send_error(p.error_fd, &err);
    _exit(rc == -ENOENT ? 127 : 126);
}

static void staged_child(void *x)
{
    child(x, true);
}

/* Without privileges the pid namespace can only be joined from inside of the user namespace. */
static pid_t clone_staged(struct exec *x, struct err *err)
{
    int only[NS_KINDS] = {-1, -1, -1, -1, -1, -1, -1, -1};
    only[NS_USER] = x->ns_fds[NS_USER];
    only[NS_PID] = x->ns_fds[NS_PID];
    return stage_clone(only, 0, x->sync_fds, staged_child, x, "a process in the container", err);
}

static pid_t clone_child(struct exec *x, struct err *err)
{
    if (x->ns_fds[NS_USER] >= 0 && !caps_have(CAP_SYS_ADMIN)) {
        return clone_staged(x, err);
    }
    if (x->ns_fds[NS_PID] >= 0 && setns(x->ns_fds[NS_PID], CLONE_NEWPID) < 0) {
        return err_sys(err, -errno, "cannot join the pid namespace");
    }
    int cgroup_fd = cg_clone_fd(&x->h.cg);
    x->in_v2 = cgroup_fd >= 0;
    pid_t pid = ns_clone(0, cgroup_fd);
    if (pid < 0 && cgroup_fd >= 0) {
        x->in_v2 = false;
        pid = ns_clone(0, -1);
    }
    if (pid == 0) {
        child(x, false);
    }
    return pid < 0 ? err_sys(err, pid, "cannot make a process in the container") : pid;
}

static int write_pid_file(const struct exec *x, struct err *err)
{
    char text[16];
    if (!x->o.pid_file) {
        return 0;
    }
    snprintf(text, sizeof(text), "%d", (int)x->pid);
    auto_close int fd = open(x->o.pid_file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int rc = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    if (rc < 0) {
        err_sys(err, rc, "cannot write the pid file '%s'", x->o.pid_file);
    }
    return rc < 0 ? -EIO : 0; /* -ENOENT is for programs alone */
}

/* cgroup-v2.rst "No Internal Process Constraint": where the container has handed controllers down, as systemd
 * does, its own cgroup takes nobody, and the process joins the first one where that is. */
static void follow_first(struct exec *x)
{
    struct cg_hierarchy *v2 = cg_v2(&x->h.cg);
    char path[64], text[8], full[2 * PATH_MAX];
    auto_free char *list = NULL;
    size_t size;
    if (!v2 || v2->fd < 0 || cg_read(v2->fd, "cgroup.subtree_control", text, sizeof(text)) <= 0) {
        return;
    }
    snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)x->h.state.pid);
    if (file_read_all(AT_FDCWD, path, &list, &size, NULL) < 0) {
        return;
    }
    char *own = strncmp(list, "0::", 3) == 0 ? list : strstr(list, "\n0::");
    if (!own) {
        return;
    }
    own = strchr(own, '/');
    if (own) {
        own[strcspn(own, "\n")] = '\0';
        size_t root = strlen(v2->root);
        own += root > 1 && strncmp(own, v2->root, root) == 0 ? root : 0;
        snprintf(full, sizeof(full), "%s%s", v2->mount, own);
        int fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) {
            close(v2->fd);
            v2->fd = fd;
        }
    }
}

/* A cgroup below the container's, for --cgroup. */
static int enter_sub_cgroup(struct exec *x, struct err *err)
{
    if (!x->o.cgroup) {
        follow_first(x);
        return 0;
    }
    if (strstr(x->o.cgroup, "..")) {
        return err_set(err, -EINVAL, "exec: --cgroup '%s' is not a path below the container's cgroup",
                       x->o.cgroup);
    }
    for (size_t i = 0; i < x->h.cg.count; i++) {
        struct cg_hierarchy *h = &x->h.cg.h[i];
        const char *path = x->o.cgroup + strspn(x->o.cgroup, "/");
        int fd = h->fd < 0 || !*path ? -1 : path_open(h->fd, path, PATH_NO_SYMLINKS);
        if (h->fd >= 0 && *path && fd < 0) {
            return err_sys(err, fd, "exec: cgroup '%s' of the container", x->o.cgroup);
        }
        if (fd >= 0) {
            close(h->fd);
            h->fd = fd;
        }
    }
    return 0;
}

static int lead(struct exec *x, struct err *err)
{
    int rc;
    if ((rc = cg_prepare_enter(&x->h.cg, err)) < 0 || (rc = sync_pair(x->sync_fds, err)) < 0 ||
        (rc = sync_pair(x->start_fds, err)) < 0) {
        return rc;
    }
    x->pid = clone_child(x, err);
    if (x->pid < 0) {
        return x->pid;
    }
    close(x->sync_fds[1]);
    close(x->start_fds[1]);
    const struct oci_process *p = &x->process;
    if ((rc = sync_expect(x->sync_fds[0], SYNC_READY, err)) < 0) {
        return rc;
    }
    if (p->cpu_affinity_final && (rc = proc_set_affinity(x->pid, p->cpu_affinity_final, err)) < 0) {
        return rc;
    }
    if ((rc = proc_set_outside(x->pid, p, err)) < 0 || (rc = write_pid_file(x, err)) < 0 ||
        (rc = sync_send(x->sync_fds[0], SYNC_GO)) < 0) {
        return rc;
    }
    return sync_recv(x->start_fds[0], err) == SYNC_ERROR ? err->code : 0;
}

int cmd_exec(const struct globals *g, int argc, char **argv, struct err *err)
{
    struct exec x = {
        .sync_fds = {-1, -1}, .start_fds = {-1, -1}, .console_fd = -1, .own_terminal_fd = -1, .agent_fd = -1};
    int rc = parse_exec_options(argc, argv, &x.o, err);
    rc = rc < 0 ? rc : self_protect(g->argv, err);
    if (rc < 0 || (rc = handle_open(g, x.o.id, &x.h, err)) < 0) {
        return rc;
    }
    x.proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (x.h.status == STATUS_PAUSED && !x.o.ignore_paused) {
        rc = err_set(err, -EBUSY, "cannot exec in container '%s': it is paused (resume it first)", x.o.id);
    } else if (x.h.status != STATUS_RUNNING && x.h.status != STATUS_CREATED && x.h.status != STATUS_PAUSED) {
        rc = err_set(err, -EINVAL, "cannot exec in container '%s': it is %s", x.o.id,
                     status_names[x.h.status]);
    }
    if (rc < 0 || (rc = open_process(&x, err)) < 0 || (rc = open_namespaces(&x, err)) < 0 ||
        (rc = enter_sub_cgroup(&x, err)) < 0) {
        return rc;
    }
    rc = lead(&x, err);
    if (rc < 0) {
        if (x.pid > 0) {
            kill(x.pid, SIGKILL);
            waitpid(x.pid, NULL, 0);
        }
        if (rc == -ENOENT || rc == -EACCES) { /* as shells have it: not found, not executable */
            log_error("%s", err->text);
            return rc == -ENOENT ? 127 : 126;
        }
        return rc;
    }
    if (x.o.detach) {
        return 0;
    }
    if (x.own_terminal_fd >= 0) {
        int master = tty_receive(x.own_terminal_fd, err);
        if (master >= 0) {
            int status = tty_proxy(master, x.pid);
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
    }
    return cmd_wait(x.pid);
}
