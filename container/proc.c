#include "container/proc.h"

#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/exec_error.h"
#include "container/fault.h"
#include "container/paths.h"
#include "container/sync.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* sched_setattr(2); the kernel's header and glibc's can't be had together. */
struct schedule {
    uint32_t size;
    uint32_t sched_policy;
    uint64_t sched_flags;
    int32_t sched_nice;
    uint32_t sched_priority;
    uint64_t sched_runtime;
    uint64_t sched_deadline;
    uint64_t sched_period;
};

static int set_scheduler(pid_t pid, const struct oci_scheduler *s, struct err *err)
{
    struct schedule attr = {
        .size = sizeof(attr),
        .sched_policy = s->policy,
        .sched_flags = s->flags,
        .sched_nice = s->nice,
        .sched_priority = s->priority,
        .sched_runtime = s->runtime_ns,
        .sched_deadline = s->deadline_ns,
        .sched_period = s->period_ns,
    };
    if (syscall(SYS_sched_setattr, pid, &attr, 0u) < 0) {
        return err_sys(err, -errno, "cannot set process.scheduler");
    }
    return 0;
}

int proc_set_outside(pid_t pid, const struct oci_process *process, struct err *err)
{
    int rc = fault_step("process attributes", err);
    if (rc < 0) {
        return rc;
    }
    if (process->has_oom_score_adj) {
        char path[64];
        char text[16];
        snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
        snprintf(text, sizeof(text), "%d", (int)process->oom_score_adj);
        rc = write_file_at(AT_FDCWD, path, text);
        if (rc < 0) {
            return err_sys(err, rc, "cannot set process.oomScoreAdj to %s%s", text,
                           rc == -EACCES ? " (lowering it needs CAP_SYS_RESOURCE)" : "");
        }
    }
    if (process->scheduler.set && (rc = set_scheduler(pid, &process->scheduler, err)) < 0) {
        return rc;
    }
    if (process->has_ioprio && syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, process->ioprio) < 0) {
        return err_sys(err, -errno, "cannot set process.ioPriority");
    }
    for (size_t i = 0; i < process->rlimit_count; i++) {
        const struct oci_rlimit *limit = &process->rlimits[i];
        struct rlimit value = {.rlim_cur = limit->soft, .rlim_max = limit->hard};
        struct rlimit old = {0, 0};
        if (prlimit(pid, (enum __rlimit_resource)limit->resource, &value, NULL) < 0) {
            int code = -errno;
            prlimit(pid, (enum __rlimit_resource)limit->resource, NULL, &old);
            return err_sys(err, code, "cannot set %s to %llu:%llu%s (the hard limit is %llu)", limit->name,
                           (unsigned long long)limit->soft, (unsigned long long)limit->hard,
                           code == -EPERM ? ", raising it needs CAP_SYS_RESOURCE" : "",
                           (unsigned long long)old.rlim_max);
        }
    }
    return 0;
}

int proc_set_affinity(pid_t pid, const char *cpus, struct err *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const char *p = cpus; *p;) {
        char *end;
        unsigned long first = strtoul(p, &end, 10);
        unsigned long last = first;
        bool ok = isdigit((unsigned char)*p);
        if (ok && *end == '-') {
            p = end + 1;
            last = strtoul(p, &end, 10);
            ok = isdigit((unsigned char)*p);
        }
        if (!ok || last < first || last >= CPU_SETSIZE || (*end && *end != ',')) {
            return err_set(err, -EINVAL, "'%s' is not a list of CPUs", cpus);
        }
        for (unsigned long cpu = first; cpu <= last; cpu++) {
            CPU_SET(cpu, &set);
        }
        p = *end ? end + 1 : end;
    }
    if (sched_setaffinity(pid, sizeof(set), &set) < 0) {
        return err_sys(err, -errno, "cannot set the CPU affinity to '%s'", cpus);
    }
    return 0;
}

static int enter_directory(const char *cwd)
{
    if (chdir(cwd) == 0) {
        return 0;
    }
    if (errno != ENOENT) {
        return -errno;
    }
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = root < 0 ? -errno : path_make(root, cwd, false, 0);
    int rc = fd < 0 ? fd : fchdir(fd) < 0 ? -errno : 0;
    if (root >= 0) {
        close(root);
    }
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

/* A working directory outside of the root file system, reached through a leaked descriptor, has no path here.
 */
static int check_directory(const char *cwd, struct err *err)
{
    char path[PATH_MAX];
    long n = syscall(SYS_getcwd, path, sizeof(path));
    if (n < 0 || path[0] != '/') {
        return err_set(err, -EPERM, "process.cwd '%s' is outside of the root file system", cwd);
    }
    return 0;
}

static const char *find_env(const char **env, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; env[i]; i++) {
        if (strncmp(env[i], name, n) == 0 && env[i][n] == '=') {
            return env[i] + n + 1;
        }
    }
    return NULL;
}

static bool is_executable(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111);
}

static int find_executable(struct proc_exec *x, struct err *err)
{
    const char *name = x->process->args[0];
    struct stat st;
    if (strchr(name, '/')) {
        if ((size_t)snprintf(x->path, sizeof(x->path), "%s", name) >= sizeof(x->path)) {
            return err_sys(err, -ENAMETOOLONG, "executable '%.64s'", name);
        }
        if (stat(name, &st) < 0) {
            return errno == EACCES ? 0 : exec_error(name, -errno, err);
        }
        return S_ISDIR(st.st_mode) || !is_executable(name) ? exec_error(name, -EACCES, err) : 0;
    }
    const char *path = find_env(x->process->env, "PATH");
    path = path ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    bool denied = false;
    for (const char *p = path; *name;) {
        size_t n = strcspn(p, ":");
        if ((size_t)snprintf(x->path, sizeof(x->path), "%.*s%s%s", (int)n, p, n ? "/" : "", name) <
            sizeof(x->path)) {
            if (is_executable(x->path)) {
                return 0;
            }
            denied = denied || stat(x->path, &st) == 0;
        }
        if (!p[n]) {
            break;
        }
        p += n + 1;
    }
    return denied ? err_sys(err, -EACCES, "'%s' in $PATH is not an executable file", name)
                  : err_sys(err, -ENOENT, "executable file '%s' not found in $PATH (%s)", name, path);
}

int proc_find(struct proc_exec *x, struct err *err)
{
    const char *cwd = x->process->cwd;
    int rc = enter_directory(cwd);
    if (rc < 0 && rc != -EACCES) { /* EACCES: the user itself may be let in, see proc_execve */
        return err_sys(err, rc, "cannot enter process.cwd '%s'", cwd);
    }
    if (rc == 0 && (rc = check_directory(cwd, err)) < 0) {
        return rc;
    }
    return find_executable(x, err);
}

int proc_check_labels(const struct oci_process *process, struct err *err)
{
    if (process->apparmor_profile && *process->apparmor_profile &&
        access("/sys/module/apparmor/parameters/enabled", F_OK) < 0) {
        return err_set(err, -EOPNOTSUPP, "process.apparmorProfile '%s': this kernel has no AppArmor",
                       process->apparmor_profile);
    }
    if (process->selinux_label && *process->selinux_label && access("/sys/fs/selinux/enforce", F_OK) < 0) {
        return err_set(err, -EOPNOTSUPP, "process.selinuxLabel '%s': SELinux is not enabled on this host",
                       process->selinux_label);
    }
    return 0;
}

static int write_labels(const struct proc_exec *x, struct err *err)
{
    const struct oci_process *p = x->process;
    int rc = 0;
    if (p->apparmor_profile && *p->apparmor_profile) {
        char text[PATH_MAX];
        snprintf(text, sizeof(text), "exec %s", p->apparmor_profile);
        rc = write_file_at(x->proc_fd, "self/attr/apparmor/exec", text);
        rc = rc == -ENOENT ? write_file_at(x->proc_fd, "self/attr/exec", text) : rc;
        if (rc < 0) {
            return err_sys(err, rc, "cannot set the AppArmor profile '%s'", p->apparmor_profile);
        }
    }
    if (p->selinux_label && *p->selinux_label) {
        rc = write_file_at(x->proc_fd, "self/attr/exec", p->selinux_label);
        if (rc < 0) {
            return err_sys(err, rc, "cannot set the SELinux label '%s'", p->selinux_label);
        }
    }
    return 0;
}

static bool setgroups_denied(const struct proc_exec *x)
{
    char text[8] = "";
    auto_close int fd = openat(x->proc_fd, "self/setgroups", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && strncmp(text, "deny", 4) == 0;
}

static int set_user(const struct proc_exec *x, struct err *err)
{
    const struct oci_process *p = x->process;
    if (p->keep_groups) {
        log_debug("supplementary groups are kept");
    } else if (setgroups_denied(x)) {
        if (p->group_count) {
            return err_set(err, -EPERM,
                           "process.user.additionalGids can't be had in this user namespace: "
                           "it maps a single group, so the kernel forbids setgroups");
        }
    } else if (setgroups(p->group_count, p->groups) < 0) {
        return err_sys(err, -errno, "cannot set process.user.additionalGids");
    }
    if (setresgid(p->gid, p->gid, p->gid) < 0) {
        return err_sys(err, -errno, "cannot become group %u%s", p->gid,
                       errno == EINVAL ? " (the user namespace doesn't map it)" : "");
    }
    if (setresuid(p->uid, p->uid, p->uid) < 0) {
        return err_sys(err, -errno, "cannot become user %u%s", p->uid,
                       errno == EINVAL ? " (the user namespace doesn't map it)" : "");
    }
    return 0;
}

/*
 * Hands the listener to the agent. The filter may already stop the calls that sending takes, so a helper that
 * shares the descriptor table, forked before the filter is there, does it as soon as it sees the number in
 * shared memory.
 */
struct agent_helper {
    volatile int *listener; /* 0: not yet, -1: failed */
    pid_t pid;
};

static void agent_send(const struct proc_exec *x, const volatile int *listener)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int tries = 0; *listener == 0 && tries < 10000; tries++) {
        usleep(500);
    }
    int fd = *listener;
    _exit(fd > 0 && fd_send(x->agent_fd, fd, x->agent_state) == 0 ? 0 : 1);
}

static int agent_start(const struct proc_exec *x, struct agent_helper *helper, struct err *err)
{
    helper->listener = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (helper->listener == MAP_FAILED) {
        return err_sys(err, -errno, "cannot start the seccomp helper");
    }
    long pid = syscall(SYS_clone, (unsigned long)(CLONE_FILES | SIGCHLD), 0, 0, 0, 0);
    if (pid < 0) {
        return err_sys(err, -errno, "cannot start the seccomp helper");
    }
    if (pid == 0) {
        agent_send(x, helper->listener);
    }
    helper->pid = (pid_t)pid;
    return 0;
}

static int install_seccomp(const struct proc_exec *x, struct err *err)
{
    struct agent_helper helper = {.pid = 0};
    int status = 0;
    if (!x->seccomp) {
        return 0;
    }
    bool notify = x->seccomp->has_notify && x->agent_fd >= 0;
    int rc = notify ? agent_start(x, &helper, err) : 0;
    if (rc < 0) {
        return rc;
    }
    rc = seccomp_install(x->seccomp, err);
    if (notify) {
        *helper.listener = rc > 0 ? rc : -1;
        while (waitpid(helper.pid, &status, 0) < 0 && errno == EINTR) {
        }
        if (rc >= 0 && status != 0) {
            return err_set(err, -EIO, "cannot hand the seccomp listener to the agent");
        }
    }
    return rc < 0 ? rc : 0;
}

/* The home directory of the user, as the container's passwd file has it, unless HOME is given. */
static void add_home(struct proc_exec *x, const char **env, size_t *count, char *home, size_t room)
{
    char line[1024];
    if (find_env(x->process->env, "HOME")) {
        return;
    }
    snprintf(home, room, "HOME=/");
    FILE *passwd = fopen("/etc/passwd", "re");
    while (passwd && fgets(line, sizeof(line), passwd)) {
        char *field[7] = {NULL};
        char *rest = line;
        for (int i = 0; i < 7 && rest; i++) {
            field[i] = strsep(&rest, ":");
        }
        if (field[5] && field[2] && isdigit((unsigned char)*field[2]) &&
            strtoul(field[2], NULL, 10) == x->process->uid) {
            snprintf(home, room, "HOME=%s", field[5]);
            break;
        }
    }
    if (passwd) {
        fclose(passwd);
    }
    env[(*count)++] = home;
}

/*
 * Closes all descriptors but those that the process keeps and two sockets. A path such as /proc/self/fd/7/..
 * in process.cwd or process.args would otherwise lead out of the container by way of a directory of the host
 * that is still open, close-on-exec or not (CVE-2024-21626).
 */
static int close_others(struct proc_exec *x, struct err *err)
{
    int first = 3 + (int)x->preserve_fds;
    int *keep[] = {&x->error_fd, &x->agent_fd};
    for (size_t i = 0; i < ARRAY_SIZE(keep); i++) {
        int high = *keep[i] < 0 ? -1 : fcntl(*keep[i], F_DUPFD_CLOEXEC, first + 64);
        if (*keep[i] >= 0 && high < 0) {
            return err_sys(err, -errno, "cannot move a descriptor");
        }
        *keep[i] = high;
    }
    for (size_t i = 0; i < ARRAY_SIZE(keep); i++) {
        if (*keep[i] < 0) {
            continue;
        }
        if (dup3(*keep[i], first, O_CLOEXEC) < 0) {
            return err_sys(err, -errno, "cannot move a descriptor");
        }
        *keep[i] = first++;
    }
    x->proc_fd = -1;
    if (syscall(SYS_close_range, (unsigned)first, ~0u, 0u) < 0) {
        struct rlimit limit = {.rlim_cur = 0};
        getrlimit(RLIMIT_NOFILE, &limit);
        for (int fd = first; fd < (int)MIN(MAX(limit.rlim_cur, 65536), 1u << 20); fd++) {
            close(fd);
        }
    }
    return 0;
}

static int set_inside(struct proc_exec *x, struct caps_sets *caps, struct err *err)
{
    const struct oci_process *p = x->process;
    int rc;
    if (x->lnx && x->lnx->has_personality && personality(x->lnx->personality) < 0) {
        return err_sys(err, -errno, "cannot set linux.personality");
    }
    if (x->lnx && x->lnx->has_memory_policy &&
        syscall(SYS_set_mempolicy, x->lnx->memory_policy_mode,
                x->lnx->memory_policy_nodes ? &x->lnx->memory_policy_nodes : NULL,
                x->lnx->memory_policy_nodes ? 65ul : 0ul) < 0) {
        return err_sys(err, -errno, "cannot set linux.memoryPolicy");
    }
    umask(p->has_umask ? (mode_t)(p->umask & 0777) : 022);
    if ((rc = write_labels(x, err)) < 0) {
        return rc;
    }
    for (int set = 0; set < CAPSET_COUNT; set++) {
        uint64_t *sets[] = {&caps->bounding, &caps->effective, &caps->inheritable, &caps->permitted,
                            &caps->ambient};
        *sets[set] = p->caps[set];
    }
    caps_limit(caps);
    /* Without no_new_privs the filter needs CAP_SYS_ADMIN, which is about to go. */
    if (!p->no_new_privileges && (rc = install_seccomp(x, err)) < 0) {
        return rc;
    }
    if ((rc = caps_drop_bounding(caps, err)) < 0) {
        return rc;
    }
    prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
    return set_user(x, err);
}

int proc_execve(struct proc_exec *x, struct err *err)
{
    const struct oci_process *p = x->process;
    struct caps_sets caps = {.bounding = 0};
    char home[PATH_MAX + 8];
    size_t count = p->env_count;
    const char **env = calloc(p->env_count + 2, sizeof(*env));
    if (!env) {
        return err_sys(err, -ENOMEM, "cannot copy the environment");
    }
    memcpy(env, p->env, p->env_count * sizeof(*env));
    add_home(x, env, &count, home, sizeof(home));
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int sig = 1; sig < 32; sig++) {
        signal(sig, SIG_DFL);
    }
    int rc = set_inside(x, &caps, err);
    if (rc < 0) {
        free(env);
        return rc;
    }
    if ((rc = close_others(x, err)) < 0) {
        free(env);
        return rc;
    }
    rc = chdir(p->cwd) < 0 ? -errno : 0;
    rc = rc < 0 ? err_sys(err, rc, "cannot enter process.cwd '%s' as user %u", p->cwd, p->uid)
                : check_directory(p->cwd, err);
    if (rc == 0) {
        rc = caps_apply(&caps, err);
    }
    prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
    if (rc == 0 && p->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        rc = err_sys(err, -errno, "cannot set no_new_privs");
    }
    if (rc == 0 && x->landlock && x->landlock->wanted && !p->no_new_privileges) { /* exec --process */
        rc = err_set(err, -EPERM, "this container's Landlock rules need process.noNewPrivileges");
    }
    rc = rc < 0 ? rc : landlock_apply(x->landlock, err);
    if (rc == 0 && p->no_new_privileges) {
        rc = install_seccomp(x, err);
    }
    if (rc == 0) {
        execve(x->path, (char *const *)p->args, (char *const *)env);
        rc = exec_error(x->path, -errno, err);
    }
    free(env);
    return rc;
}
