/*
 * The runtime's side of create. Every step that makes something has its undo in c->undo before the next one
 * starts.
 */
#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/cg_systemd.h"
#include "container/container.h"
#include "container/fault.h"
#include "container/hooks.h"
#include "container/mnt.h"
#include "container/netdev.h"
#include "container/paths.h"
#include "container/proc.h"
#include "container/seccomp.h"
#include "container/stage.h"
#include "container/sync.h"
#include "container/sysctl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static void undo_state(void *opaque)
{
    struct container *c = opaque;
    state_remove(&c->state);
}

static void undo_cgroups(void *opaque)
{
    struct container *c = opaque;
    struct err err = {.code = 0};
    cg_systemd_let_go(c->cg);
    if (cg_remove(c->cg, &err) < 0) {
        log_warning("%s", err.text);
    }
    if (c->cg->scope_asked) {
        cg_systemd_stop(c->cg->unit);
    }
}

static void undo_child(void *opaque)
{
    struct container *c = opaque;
    if (c->pid > 0) {
        kill(c->pid, SIGKILL);
        while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
}

static void undo_pid_file(void *opaque)
{
    struct container *c = opaque;
    unlink(c->pid_file);
}

/* Everything that can be refused before anything is made. */
static int check(struct container *c, struct err *err)
{
    struct oci_config *config = &c->config;
    int rc;
    if (config->lnx.has_rdt && access("/sys/fs/resctrl/schemata", F_OK) < 0) {
        return err_set(err, -EOPNOTSUPP,
                       "linux.intelRdt: no resctrl file system is mounted at /sys/fs/resctrl");
    }
    if (config->lnx.has_rdt) {
        return err_set(err, -EOPNOTSUPP, "linux.intelRdt is not supported");
    }
    if (config->lnx.mount_label && *config->lnx.mount_label && access("/sys/fs/selinux/enforce", F_OK) < 0) {
        return err_set(err, -EOPNOTSUPP, "linux.mountLabel: SELinux is not enabled on this host");
    }
    if (config->process.terminal && !c->console_socket && c->console_fd < 0) {
        return err_set(err, -EINVAL, "process.terminal needs --console-socket");
    }
    if (!config->process.terminal && c->console_socket) {
        return err_set(err, -EINVAL, "--console-socket is for containers with process.terminal");
    }
    if (config->has_process && config->process.arg_count == 0) {
        return err_set(err, -EINVAL, "process.args is missing or empty");
    }
    if ((rc = landlock_check(&config->landlock, err)) < 0) {
        return rc;
    }
    if ((rc = sysctl_check(config, err)) < 0 || (rc = proc_check_labels(&config->process, err)) < 0) {
        return rc;
    }
    if (geteuid() != 0 && !config->lnx.ns[NS_USER].wanted) {
        return err_set(
            err, -EPERM,
            "without root a container needs a user namespace (linux.namespaces 'user' with mappings)");
    }
    struct stat st;
    if (stat(c->rootfs, &st) < 0) {
        return err_sys(err, -errno, "root file system '%s'", c->rootfs);
    }
    if (!S_ISDIR(st.st_mode)) {
        return err_set(err, -ENOTDIR, "root file system '%s' is not a directory", c->rootfs);
    }
    if (config->lnx.seccomp && seccomp_compile(config->lnx.seccomp, &config->arena, &c->seccomp, err) < 0) {
        return err_prefix(err, "linux.seccomp");
    }
    return 0;
}

/* The host's id of the container's user or group 0; false: there is none. */
static bool outside_root(const struct oci_idmaps *maps, unsigned *ret)
{
    for (size_t i = 0; i < maps->count; i++) {
        if (maps->v[i].inside == 0) {
            *ret = maps->v[i].outside;
            return true;
        }
    }
    return false;
}

/* A container with user and cgroup namespaces of its own that may write to its cgroup mount owns its cgroup.
 */
static int delegate_cgroups(struct container *c, struct err *err)
{
    const struct oci_linux *lnx = &c->config.lnx;
    unsigned uid, gid;
    bool writable = false;
    for (size_t i = 0; i < c->config.mount_count; i++) {
        const struct oci_mount *m = &c->config.mounts[i];
        writable = writable || (strncmp(m->type, "cgroup", 6) == 0 && !(m->attr_set & MOUNT_ATTR_RDONLY));
    }
    bool own = lnx->ns[NS_USER].wanted && !lnx->ns[NS_USER].path && lnx->ns[NS_CGROUP].wanted &&
               !lnx->ns[NS_CGROUP].path;
    return !writable || !own || geteuid() != 0 || !outside_root(&lnx->uid_maps, &uid) ||
                   !outside_root(&lnx->gid_maps, &gid)
               ? 0
               : cg_delegate(c->cg, uid, gid, err);
}

static int make_cgroups(struct container *c, struct err *err)
{
    int rc = fault_step("cgroups", err);
    if (rc < 0) {
        return rc;
    }
    undo_push(&c->undo, undo_cgroups, c);
    if (c->systemd) {
        rc = cg_systemd_start(c->cg, c->config.lnx.resources, err);
        c->state.cgroup = c->cg->path;
        if (rc < 0 || (rc = state_save(&c->state, err)) < 0) {
            return rc;
        }
    }
    if ((rc = cg_create(c->cg, c->config.lnx.resources, err)) < 0) {
        return rc;
    }
    rc = fault_step("limits", err);
    rc = rc < 0 ? rc : cg_apply(c->cg, c->config.lnx.resources, false, err);
    rc = rc < 0 ? rc : delegate_cgroups(c, err);
    return rc < 0 ? rc : cg_prepare_enter(c->cg, err);
}

/* create: a socket in the state directory; run: a pair. */
static int make_start_socket(struct container *c, struct err *err)
{
    int rc = fault_step("start socket", err);
    if (rc < 0) {
        return rc;
    }
    if (c->run) {
        int fds[2];
        rc = sync_pair(fds, err);
        if (rc == 0) {
            c->start_fd = fds[0];
            c->listen_fd = fds[1];
        }
        return rc;
    }
    struct fd_path path;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/start.sock", fd_path(c->state.dir_fd, &path));
    c->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (c->listen_fd < 0 || bind(c->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        listen(c->listen_fd, 1) < 0) {
        return err_sys(err, -errno, "cannot make the start socket");
    }
    return 0;
}

static int connect_sockets(struct container *c, struct err *err)
{
    int rc = fault_step("sockets", err);
    if (rc == 0 && c->console_socket) {
        c->console_fd = unix_connect(c->console_socket);
        if (c->console_fd < 0) {
            return err_sys(err, c->console_fd, "cannot connect to the console socket '%s'",
                           c->console_socket);
        }
    }
    if (rc == 0 && c->ns_socket) {
        c->ns_socket_fd = unix_connect(c->ns_socket);
        if (c->ns_socket_fd < 0) {
            return err_sys(err, c->ns_socket_fd, "cannot connect to the namespace socket '%s'", c->ns_socket);
        }
    }
    if (rc == 0 && c->seccomp && c->seccomp->listener_path) {
        c->agent_fd = unix_connect(c->seccomp->listener_path);
        if (c->agent_fd < 0) {
            return err_sys(err, c->agent_fd, "cannot connect to the seccomp agent '%s'",
                           c->seccomp->listener_path);
        }
    }
    return rc;
}

static void first_process(void *c)
{
    container_init(c);
}

static pid_t clone_first(struct container *c, uint64_t flags, struct err *err)
{
    auto_close int own_pid_ns = -1;
    if (c->ns_fds[NS_USER] >= 0) {
        return stage_clone(c->ns_fds, flags, c->sync_fds, first_process, c, "the container's first process",
                           err);
    }
    if (c->ns_fds[NS_PID] >= 0) {
        own_pid_ns = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
        if (own_pid_ns < 0 || setns(c->ns_fds[NS_PID], CLONE_NEWPID) < 0) {
            return err_sys(err, -errno, "cannot join the pid namespace");
        }
    }
    int cgroup_fd = cg_clone_fd(c->cg);
    c->in_v2 = cgroup_fd >= 0;
    pid_t pid = ns_clone(flags, cgroup_fd);
    if (pid < 0 && cgroup_fd >= 0) {
        c->in_v2 = false; /* joined by writing, then; that says better what is wrong */
        pid = ns_clone(flags, -1);
    }
    if (pid == 0) {
        container_init(c);
    }
    if (own_pid_ns >= 0 && setns(own_pid_ns, CLONE_NEWPID) < 0) {
        return err_sys(err, -errno, "cannot return to the own pid namespace");
    }
    if (pid < 0) {
        return err_sys(err, pid, "cannot make the container's first process%s",
                       pid == -EPERM
                           ? " (may this user make namespaces? sysctl kernel.unprivileged_userns_clone, "
                             "user.max_user_namespaces)"
                       : pid == -ENOSPC ? " (sysctl user.max_*_namespaces)"
                                        : "");
    }
    return pid;
}

static int start_first(struct container *c, struct err *err)
{
    struct oci_linux *lnx = &c->config.lnx;
    int rc = fault_step("clone", err);
    if (rc < 0 || (rc = ns_open(lnx, c->ns_fds, err)) < 0 || (rc = sync_pair(c->sync_fds, err)) < 0) {
        return rc;
    }
    if (chdir(c->rootfs) < 0) {
        return err_sys(err, -errno, "cannot enter the root file system '%s'", c->rootfs);
    }
    undo_push(&c->undo, undo_child, c);
    c->pid = clone_first(c, ns_clone_flags(lnx), err);
    if (c->pid < 0) {
        return c->pid;
    }
    close(c->sync_fds[1]);
    close(c->listen_fd);
    c->sync_fds[1] = -1;
    c->listen_fd = -1;
    if ((rc = fault_step("id maps", err)) < 0) {
        return rc;
    }
    if (lnx->uid_maps.count) {
        rc = ns_write_maps(c->pid, &lnx->uid_maps, &lnx->gid_maps, err);
        if (rc < 0 || (rc = sync_send(c->sync_fds[0], SYNC_MAPPED)) < 0) {
            return rc;
        }
    }
    return netdev_move(lnx, c->pid, err);
}

/* The first process is gone, or said what went wrong. */
static int first_failed(struct container *c, struct err *err)
{
    int status = 0;
    while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR) {
    }
    c->pid = 0;
    if (err->code < 0) {
        return err->code;
    }
    return err_set(err, -ECHILD, "the container's first process died while it was set up (%s %d)%s",
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                   WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? "; is the memory limit too low?"
                                                                      : "");
}

static int run_runtime_hooks(struct container *c, struct err *err)
{
    int rc = fault_step("hooks", err);
    if (rc < 0) {
        return rc;
    }
    auto_free char *text = state_for_hooks(&c->state, STATUS_CREATING);
    rc = hooks_run(c->config.hooks, HOOK_PRESTART, text, c->state.bundle, err);
    if (rc == 0) {
        rc = hooks_run(c->config.hooks, HOOK_CREATE_RUNTIME, text, c->state.bundle, err);
    }
    return rc < 0 ? rc : sync_send(c->sync_fds[0], SYNC_HOOKS);
}

static int write_pid_file(struct container *c, struct err *err)
{
    int rc = fault_step("pid file", err);
    if (rc < 0 || !c->pid_file) {
        return rc;
    }
    char text[16];
    char temp[PATH_MAX];
    snprintf(text, sizeof(text), "%d", (int)c->pid);
    if ((size_t)snprintf(temp, sizeof(temp), "%s.new", c->pid_file) >= sizeof(temp)) {
        return err_sys(err, -ENAMETOOLONG, "pid file '%s'", c->pid_file);
    }
    auto_close int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    rc = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    if (rc == 0 && rename(temp, c->pid_file) < 0) {
        rc = -errno;
    }
    if (rc < 0) {
        unlink(temp);
        return err_sys(err, rc, "cannot write the pid file '%s'", c->pid_file);
    }
    undo_push(&c->undo, undo_pid_file, c);
    return 0;
}

static int finish(struct container *c, struct err *err)
{
    int rc = c->config.has_process ? proc_set_outside(c->pid, &c->config.process, err) : 0;
    if (rc < 0 || (rc = fault_step("save state", err)) < 0 || (rc = state_save(&c->state, err)) < 0 ||
        (rc = write_pid_file(c, err)) < 0 || (rc = fault_step("let go", err)) < 0) {
        return rc;
    }
    rc = sync_send(c->sync_fds[0], SYNC_GO);
    return rc < 0 ? err_sys(err, rc, "the container's first process went away") : 0;
}

static int follow_first(struct container *c, struct err *err)
{
    for (;;) {
        int rc = 0;
        switch (sync_recv(c->sync_fds[0], err)) {
        case SYNC_HOOKS: rc = run_runtime_hooks(c, err); break;
        case SYNC_READY: cg_systemd_let_go(c->cg); return finish(c, err);
        default: return first_failed(c, err);
        }
        if (rc < 0) {
            return rc;
        }
    }
}

static int create_steps(struct container *c, struct err *err)
{
    int rc = fault_step("state", err);
    if (rc < 0 || (rc = check(c, err)) < 0 || (rc = cg_open(c->cg, err)) < 0 ||
        (rc = (c->systemd ? cg_systemd_choose : cg_choose)(c->cg, c->config.lnx.cgroups_path, c->state.id,
                                                           err)) < 0) {
        return rc;
    }
    const struct oci_namespace *user = &c->config.lnx.ns[NS_USER];
    c->new_user = user->wanted && !(user->path && ns_is_own_user(user->path));
    c->cg->may_skip = !ns_in_initial_user() || geteuid() != 0;
    c->cg->devices_implicit = c->new_user || c->cg->may_skip;
    if (c->no_cgroups) {
        c->cg->count = 0; /* limits are errors then, as no hierarchy has their controllers */
    }
    c->state.cgroup = c->no_cgroups ? NULL : c->cg->path;
    c->state.systemd_unit = c->cg->unit;
    if ((rc = state_save(&c->state, err)) < 0 || (rc = make_cgroups(c, err)) < 0 ||
        (rc = make_start_socket(c, err)) < 0 || (rc = connect_sockets(c, err)) < 0 ||
        (rc = fault_step("mount sources", err)) < 0 || (rc = rootfs_prepare_sources(c, err)) < 0) {
        return rc;
    }
    rc = start_first(c, err);
    if (rc < 0) {
        /* If the first process failed first, what it says is the reason. */
        if (rc == -EPIPE && c->pid > 0 && err->code == 0) {
            sync_recv(c->sync_fds[0], err);
            return first_failed(c, err);
        }
        return rc;
    }
    c->state.pid = c->pid;
    c->state.start_time = process_start_time(c->pid);
    return follow_first(c, err);
}

int container_create(struct container *c, struct err *err)
{
    undo_push(&c->undo, undo_state, c);
    int rc = create_steps(c, err);
    if (rc < 0) {
        if (err->code == 0) {
            err_sys(err, rc, "cannot create the container");
        }
        undo_all(&c->undo);
        return err->code;
    }
    undo_forget(&c->undo);
    state_unlock(&c->state);
    return 0;
}

void container_done(struct container *c)
{
    int *fds[] = {&c->sync_fds[0], &c->sync_fds[1], &c->start_fd,    &c->listen_fd,
                  &c->console_fd,  &c->agent_fd,    &c->ns_socket_fd};
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
        }
        *fds[i] = -1;
    }
    cg_close(c->cg);
    state_done(&c->state);
    config_free(&c->config);
}
