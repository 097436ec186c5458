/*
 * The container's first process, from the clone to execve. See sync.h for what it says to the runtime.
 *
 * Invariants: 1. until SYNC_GO the process dies with the runtime. 2. The host's procfs is opened before the
 * root changes, and only that one is trusted. 3. Nothing that the container's files say is used before the
 * pivot other than through paths.h.
 */
#include "base/log.h"
#include "base/util.h"
#include "container/cg.h"
#include "container/container.h"
#include "container/fault.h"
#include "container/hooks.h"
#include "container/paths.h"
#include "container/proc.h"
#include "container/seccomp.h"
#include "container/sync.h"
#include "container/sysctl.h"
#include "container/tty.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct init {
    struct container *c;
    int proc_fd;
    int root_fd;
    int master;
    int slave;
    struct proc_exec exec;
};

/* Root of the new user namespace, as far as it has one. */
static int become_root(struct container *c, struct err *err)
{
    const struct oci_linux *lnx = &c->config.lnx;
    bool joined = lnx->ns[NS_USER].path != NULL;
    if (!c->new_user) {
        return 0;
    }
    if ((joined || ns_maps_have(&lnx->gid_maps, 0)) && setresgid(0, 0, 0) < 0) {
        return err_sys(err, -errno, "cannot become group 0 of the user namespace");
    }
    if ((joined || ns_maps_have(&lnx->uid_maps, 0)) && setresuid(0, 0, 0) < 0) {
        return err_sys(err, -errno, "cannot become user 0 of the user namespace");
    }
    return 0;
}

static int join_keyring(const struct container *c, struct err *err)
{
    char name[STATE_ID_MAX + 8];
    if (c->no_new_keyring) {
        return 0;
    }
    snprintf(name, sizeof(name), "_ses.%s", c->state.id);
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name, 0, 0, 0) < 0 && errno != ENOSYS &&
        errno != EPERM) {
        return err_sys(err, -errno, "cannot make a session keyring%s",
                       errno == EDQUOT ? " (quota in /proc/sys/kernel/keys; --no-new-keyring does without)"
                                       : "");
    }
    return 0;
}

static int set_names(const struct oci_config *config, struct err *err)
{
    if (config->hostname && sethostname(config->hostname, strlen(config->hostname)) < 0) {
        return err_sys(err, -errno, "cannot set hostname '%s'", config->hostname);
    }
    if (config->domainname && setdomainname(config->domainname, strlen(config->domainname)) < 0) {
        return err_sys(err, -errno, "cannot set domainname '%s'", config->domainname);
    }
    return 0;
}

static int enter_namespaces(struct init *in, struct err *err)
{
    struct container *c = in->c;
    const struct oci_linux *lnx = &c->config.lnx;
    int rc = fault_step("namespaces", err);
    if (rc < 0) {
        return rc;
    }
    if ((rc = fault_step("join cgroups", err)) < 0 || (rc = cg_enter(c->cg, c->in_v2, err)) < 0) {
        return rc;
    }
    if (lnx->uid_maps.count && (rc = sync_expect(c->sync_fds[1], SYNC_MAPPED, err)) < 0) {
        return rc;
    }
    in->proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (in->proc_fd < 0 || !fd_is_procfs(in->proc_fd)) {
        return err_set(err, -EPERM, "/proc of the host is not a procfs");
    }
    if ((rc = ns_join(c->ns_fds, false, false, err)) < 0 || (rc = become_root(c, err)) < 0) {
        return rc;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* again: changing ids clears it */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (setsid() < 0) {
        return err_sys(err, -errno, "cannot make a session");
    }
    const struct oci_namespace *ns = lnx->ns;
    if (ns[NS_TIME].wanted && !ns[NS_TIME].path && (rc = ns_time(lnx, err)) < 0) {
        return rc;
    }
    if (ns[NS_NETWORK].wanted && !ns[NS_NETWORK].path && (rc = ns_loopback_up(err)) < 0) {
        return rc;
    }
    /* Only now: a cgroup namespace shows the cgroups of the process that made it. */
    if (ns[NS_CGROUP].wanted && !ns[NS_CGROUP].path && unshare(CLONE_NEWCGROUP) < 0) {
        return err_sys(err, -errno, "cannot make a cgroup namespace");
    }
    if ((rc = join_keyring(c, err)) < 0 || (rc = set_names(&c->config, err)) < 0) {
        return rc;
    }
    return 0;
}

/*
 * Hands the namespaces out to whoever makes the container's network. Without privileges nobody else could
 * open them before the user's program runs: this process is not dumpable.
 */
static int send_namespaces(const struct init *in, struct err *err)
{
    static const char *const files[] = {"self/ns/user", "self/ns/net"};
    for (size_t i = 0; in->c->ns_socket_fd >= 0 && i < ARRAY_SIZE(files); i++) {
        auto_close int fd = openat(in->proc_fd, files[i], O_RDONLY | O_CLOEXEC);
        int rc = fd < 0 ? -errno : fd_send(in->c->ns_socket_fd, fd, files[i]);
        if (rc < 0) {
            return err_sys(err, rc, "cannot hand out the container's namespaces");
        }
    }
    return 0;
}

static int open_terminal(struct init *in, struct err *err)
{
    in->master = -1;
    in->slave = -1;
    if (!in->c->config.process.terminal) {
        return 0;
    }
    int rc = fault_step("terminal", err);
    if (rc < 0 || (rc = tty_open(in->root_fd, &in->master, &in->slave, err)) < 0) {
        return rc;
    }
    return tty_bind_console(in->root_fd, in->slave, err);
}

static int run_hooks(struct init *in, struct err *err)
{
    struct container *c = in->c;
    const struct oci_hooks *hooks = c->config.hooks;
    if (!hooks[HOOK_PRESTART].count && !hooks[HOOK_CREATE_RUNTIME].count &&
        !hooks[HOOK_CREATE_CONTAINER].count) {
        return 0;
    }
    int rc = sync_send(c->sync_fds[1], SYNC_HOOKS);
    if (rc < 0 || (rc = sync_expect(c->sync_fds[1], SYNC_HOOKS, err)) < 0) {
        return rc;
    }
    c->state.pid = getpid();
    auto_free char *text = state_for_hooks(&c->state, STATUS_CREATING);
    return hooks_run(hooks, HOOK_CREATE_CONTAINER, text, c->state.bundle, err);
}

/* Other runtimes make a working directory that is missing, and images rely on it. What goes wrong here is
 * told where it is entered. */
static void make_cwd(const struct init *in)
{
    const struct oci_config *config = &in->c->config;
    int fd = config->has_process && strcmp(config->process.cwd, "/") != 0
                 ? path_make(in->root_fd, config->process.cwd, false, 0)
                 : -1;
    if (fd >= 0) {
        close(fd);
    }
}

static int prepare(struct init *in, struct err *err)
{
    struct container *c = in->c;
    int rc;
    if ((rc = enter_namespaces(in, err)) < 0 || (rc = send_namespaces(in, err)) < 0 ||
        (rc = rootfs_attach(c, &in->root_fd, err)) < 0 || (rc = rootfs_mounts(c, in->root_fd, err)) < 0 ||
        (rc = rootfs_devices(c, in->root_fd, err)) < 0 || (rc = open_terminal(in, err)) < 0) {
        return rc;
    }
    make_cwd(in);
    if ((rc = sysctl_write(&c->config, in->proc_fd, err)) < 0 ||
        (rc = rootfs_readonly(c, in->root_fd, err)) < 0 || (rc = rootfs_masked(c, in->root_fd, err)) < 0 ||
        (rc = run_hooks(in, err)) < 0 || (rc = rootfs_pivot(c, in->root_fd, err)) < 0) {
        return rc;
    }
    close(in->root_fd);
    if (in->slave >= 0) {
        rc = tty_take(in->master, in->slave, c->console_fd, &c->config.process, err);
        if (rc < 0) {
            return rc;
        }
        close(in->master);
    }
    if (rc == 0 && c->config.has_process) {
        rc = proc_find(&in->exec, err);
    }
    return rc < 0 ? rc : fault_step("ready", err);
}

static void end_on_signal(int sig)
{
    _exit(128 + sig);
}

/* The first process of a pid namespace ignores signals that it doesn't handle; until it is started it obeys
 * them. */
static void obey_signals(void)
{
    static const int signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM};
    struct sigaction action = {.sa_handler = end_on_signal};
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        sigaction(signals[i], &action, NULL);
    }
}

/* Waits for start; the connection is where an error goes, and execve closes it. */
static int wait_for_start(const struct container *c)
{
    if (c->run) {
        return c->listen_fd;
    }
    obey_signals();
    int fd;
    do {
        fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    close(c->listen_fd);
    return fd;
}

void container_init(struct container *c)
{
    struct err err = {.code = 0};
    static struct init self; /* too large for the stack to like */
    struct init *in = &self;
    *in = (struct init){.c = c, .proc_fd = -1, .root_fd = -1};
    fault_enter_child();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(c->sync_fds[0]);
    close(c->state.dir_fd); /* with its lock, which is the runtime's */
    if (c->start_fd >= 0) {
        close(c->start_fd);
    }
    in->exec = (struct proc_exec){.process = &c->config.process,
                                  .lnx = &c->config.lnx,
                                  .seccomp = c->seccomp,
                                  .landlock = &c->config.landlock,
                                  .preserve_fds = c->preserve_fds,
                                  .agent_fd = c->agent_fd};
    int rc = prepare(in, &err);
    /* From here on the socket's end says when the runtime dies; the signal would race with its regular exit.
     */
    prctl(PR_SET_PDEATHSIG, 0);
    if (rc == 0) {
        rc = sync_send(c->sync_fds[1], SYNC_READY) < 0 ? -EPIPE : sync_expect(c->sync_fds[1], SYNC_GO, &err);
    }
    if (rc < 0) {
        sync_send_error(c->sync_fds[1], &err);
        _exit(1);
    }
    close(c->sync_fds[1]);
    int conn = wait_for_start(c);
    if (conn < 0) {
        _exit(1);
    }
    in->exec.proc_fd = in->proc_fd;
    in->exec.error_fd = conn;
    c->state.pid = getpid();
    auto_free char *text = state_for_hooks(&c->state, STATUS_CREATED);
    rc = hooks_run(c->config.hooks, HOOK_START_CONTAINER, text, NULL, &err);
    if (rc == 0 && c->agent_fd >= 0) {
        in->exec.agent_state = seccomp_agent_state(c->seccomp, text);
    }
    if (rc == 0) {
        rc = c->config.has_process ? proc_execve(&in->exec, &err)
                                   : err_set(&err, -EINVAL, "config.json has no process to start");
    }
    sync_send_error(in->exec.error_fd, &err);
    _exit(rc == -ENOENT ? 127 : 126);
}
