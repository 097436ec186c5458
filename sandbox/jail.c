/* See jail.h: the order in which the layers close, and what is said about them. */
#include "sandbox/jail_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/util.h"
#include "sandbox/roles.h"

#ifdef JAIL_TEST
unsigned jail_test_without;
void (*jail_test_taken)(const char *role);
#define WITH(layer, call) (jail_test_without & BIT(layer) ? 0 : (call))
#else
#define WITH(layer, call) (call)
#endif

static const struct {
    const char *name, *about;
} layers[JAIL_LAYERS] = {
    [JAIL_LAYER_USER] = {"user namespace", "privileges count for nothing outside"},
    [JAIL_LAYER_PID] = {"pid namespace", "other processes have no name"},
    [JAIL_LAYER_MOUNT] = {"mount namespace", "its mounts are its own"},
    [JAIL_LAYER_IPC] = {"ipc, uts, cgroup namespaces",
                        "no System V IPC, host name or control groups of the host's"},
    [JAIL_LAYER_NET] = {"network namespace", "no network, but with --net user, which is the host's"},
    [JAIL_LAYER_ROOT] = {"empty root directory", "no file but those that are open"},
    [JAIL_LAYER_CAPS] = {"no capabilities", "and no new privileges"},
    [JAIL_LAYER_LANDLOCK] = {"Landlock", "files, TCP, abstract sockets and signals, by the kernel's rules"},
    [JAIL_LAYER_LIMITS] = {"limits", "no core dump, a bounded number of descriptors"},
    [JAIL_LAYER_SECCOMP] = {"seccomp", "a list of system calls for each kind of thread"},
};

int jail_grant(const char *path, enum jail_rights rights, struct err *err)
{
    struct jail *jail = &the_jail;
    if (!jail->split) {
        return 0;
    }
    if (jail->grant_count == JAIL_GRANTS_MAX) {
        return err_set(err, -E2BIG, "the jail takes no more than %u paths", JAIL_GRANTS_MAX);
    }
    struct grant *grant = &jail->grants[jail->grant_count];
    char cwd[4096] = "";
    if (path[0] != '/' && !getcwd(cwd, sizeof(cwd))) {
        return err_sys(err, -errno, "cannot tell the current directory");
    }
    if (asprintf(&grant->path, "%s/%s", cwd, path) < 0) {
        return err_sys(err, -ENOMEM, "cannot make the jail");
    }
    grant->rights = rights;
    grant->fd = open(grant->path, O_PATH | O_CLOEXEC);
    jail->grant_count++;
    return 0;
}

static void drop_grants(struct jail *jail)
{
    for (unsigned i = 0; i < jail->grant_count; i++) {
        if (jail->grants[i].fd >= 0) {
            close(jail->grants[i].fd);
        }
        free(jail->grants[i].path);
    }
    jail->grant_count = 0;
}

/* Whether a thread is the kernel's, made for io_uring or KVM, and runs none of our code: flags of its stat
 * (proc_pid_stat(5), the ninth), PF_IO_WORKER and PF_USER_WORKER of include/linux/sched.h. */
static bool is_kernels(const char *stat)
{
    unsigned flags = 0;
    const char *behind_name = strrchr(stat, ')');
    return behind_name && sscanf(behind_name, ") %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
           (flags & 0x4010);
}

/* Threads that run already would keep everything. */
static int check_thread(const char *tid, struct err *err)
{
    char path[64], stat[512] = "";
    snprintf(path, sizeof(path), "/proc/self/task/%.16s/stat", tid);
    FILE *file = fopen(path, "re");
    if (!file) {
        return 0; /* it has ended */
    }
    bool known = fgets(stat, sizeof(stat), file);
    fclose(file);
    return known && !is_kernels(stat)
               ? err_set(err, -EBUSY, "the jail can't be closed: a thread runs already: %.40s", stat)
               : 0;
}

/* Without /proc nothing can be told. The own thread is found by a link, as /proc may be of another pid
 * namespace. */
static int check_alone(struct err *err)
{
    char self[64]; /* PID/task/TID */
    ssize_t len = readlink("/proc/thread-self", self, sizeof(self) - 1);
    DIR *dir = len > 0 ? opendir("/proc/self/task") : NULL;
    int rc = 0;
    if (!dir) {
        return 0;
    }
    self[len] = '\0';
    const char *own = strrchr(self, '/');
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (entry->d_name[0] != '.' && !(own && strcmp(own + 1, entry->d_name) == 0)) {
            rc = check_thread(entry->d_name, err);
        }
    }
    closedir(dir);
    return rc;
}

static uint64_t kept_capabilities(const struct jail *jail)
{
    if (!(jail->config.needs & JAIL_NEED_OWNERS) || geteuid() != 0) {
        return 0;
    }
    return BIT64(CAP_CHOWN) | BIT64(CAP_DAC_OVERRIDE) | BIT64(CAP_FOWNER) | BIT64(CAP_FSETID);
}

static int close_layers(struct jail *jail, struct err *err)
{
    tzset();                 /* reads its file now */
    mallopt(M_ARENA_MAX, 1); /* a thread's own heap asks /proc about overcommitment when it shrinks */
    jail->errors[JAIL_LAYER_ROOT] = WITH(JAIL_LAYER_ROOT, root_enter(jail));
    ns_unshare_late(jail);
    jail->errors[JAIL_LAYER_LIMITS] = limits_set();
    jail->errors[JAIL_LAYER_CAPS] = caps_drop(kept_capabilities(jail));
    if (jail->errors[JAIL_LAYER_CAPS] < 0) {
        return err_sys(err, jail->errors[JAIL_LAYER_CAPS], "cannot give up privileges");
    }
    jail->errors[JAIL_LAYER_LANDLOCK] = WITH(JAIL_LAYER_LANDLOCK, landlock_enter(jail));
    drop_grants(jail);
    split_ready(jail);
    return 0;
}

int jail_enter(struct err *err)
{
    struct jail *jail = &the_jail;
    if (!jail->split) {
        return 0;
    }
    int rc = check_alone(err);
    if (rc == 0) {
        rc = close_layers(jail, err);
    }
    if (rc < 0) {
        return rc;
    }
    jail->errors[JAIL_LAYER_SECCOMP] = WITH(JAIL_LAYER_SECCOMP, filter_enter(jail->config.needs));
    char missing[256];
    if (jail->config.mode == JAIL_REQUIRE && jail_missing(missing, sizeof(missing)) > 0) {
        return err_set(err, -EPERM, "the jail can't be complete on this host: no %s", missing);
    }
    jail->closed = true;
    JAIL_TAKEN("main");
    return 0;
}

bool jail_is_closed(void)
{
    return the_jail.closed;
}

bool jail_has(enum jail_need need)
{
    return !the_jail.split || (the_jail.config.needs & need);
}

unsigned jail_missing(char *text, size_t size)
{
    const struct jail *jail = &the_jail;
    unsigned count = 0;
    size_t used = 0;
    text[0] = '\0';
    for (unsigned i = 0; i < JAIL_LAYERS && jail->split; i++) {
        if (jail->errors[i] < 0) {
            const char *name = i == JAIL_LAYER_CAPS ? "loss of capabilities" : layers[i].name;
            used += used < size ? (size_t)snprintf(text + used, size - used, "%s%s (%s)", count ? ", " : "",
                                                   name, strerror(-jail->errors[i]))
                                : 0;
            count++;
        }
    }
    return count;
}

static _Noreturn void report_inside(FILE *out)
{
    const struct jail_config config = {.mode = JAIL_ON};
    struct err err = {0};
    unsigned missing = 0;
    if (jail_split(&config, &err) < 0 || jail_enter(&err) < 0) {
        fprintf(out, "there can be no jail: %s\n", err.text);
        fflush(out);
        _exit(JAIL_LAYERS);
    }
    for (unsigned i = 0; i < JAIL_LAYERS; i++) {
        int error = the_jail.errors[i];
        fprintf(out, "%-28s %s%s%s\n", layers[i].name, error < 0 ? "can't be had here: " : layers[i].about,
                error < 0 ? strerror(-error) : "", "");
        missing += error < 0;
    }
    fflush(out);
    _exit((int)missing);
}

unsigned jail_report(FILE *out)
{
    int status;
    fflush(out);
    pid_t pid = fork();
    if (pid == 0) {
        report_inside(out);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || !WIFEXITED(status)) {
        return JAIL_LAYERS;
    }
    return (unsigned)WEXITSTATUS(status);
}

/* --- the table, for people --- */

static void print_roles(FILE *out, unsigned roles)
{
    if (roles == BIT(ROLES) - 1) {
        fputs("all", out);
        return;
    }
    for (unsigned i = 0, n = 0; i < ROLES; i++) {
        if (roles & BIT(i)) {
            fprintf(out, "%s%s", n++ ? ", " : "", role_names[i]);
        }
    }
}

static void print_needs(FILE *out, unsigned needs)
{
    static const struct {
        unsigned need;
        const char *name;
    } names[] = {
        {JAIL_NEED_INTERNET, "NAT"},
        {JAIL_NEED_UNIX, "unix sockets"},
        {JAIL_NEED_TAP, "tap"},
        {JAIL_NEED_TREE, "share"},
        {JAIL_NEED_FILES, "files"},
        {JAIL_NEED_KVM, "KVM"},
        {ROLE_NEED_NO_FILES, "no NAT, share or files"},
    };
    unsigned count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (needs & names[i].need) {
            fprintf(out, "%s%s", count++ ? ", " : "", names[i].name);
        }
    }
    fputs(count ? "" : "always", out);
}

void jail_print_table(FILE *out)
{
    for (size_t i = 0; i < role_table_len; i++) {
        const struct role_row *row = &role_table[i];
        fprintf(out, "| `%s`%s%s%s | ", row->syscall, row->with ? " (" : "", row->with ? row->with : "",
                row->with ? ")" : "");
        print_roles(out, row->roles);
        fputs(" | ", out);
        print_needs(out, row->needs);
        fprintf(out, " | %s%s%s |\n", row->error ? strerrorname_np(row->error) : "", row->error ? ": " : "",
                row->why);
    }
}
