/*
 * Limits of machines: their processes are started by fonda-cg (container/limit), which puts them into control
 * groups of their own. The daemon itself touches none.
 *
 *     start --> fonda-cg run, which becomes fonda-vmm; DIR/cgroup.PID says where its group is
 *     change --> fonda-cg set
 *     end, seen by supervise.c, recover.c or a start that failed --> fonda-cg remove, for each such file
 *
 * A machine without limits has no group. Groups are of one process each, so removing old ones meets no new
 * one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/util.h"
#include "core/core_int.h"

#define FILES_MAX 16 /* of one instance at a time; the next end takes the rest */
#define TEXT_MAX  512
#define CPUS_MIN  0.01
#define CPUS_MAX  4096.0

static const char *const members[] = {"cpu_limit", "cpu_weight", "memory_limit", "memory_swap", "pids_limit"};

json_t *limit_wanted(const json_t *spec)
{
    json_t *limits = json_object();
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        json_t *value = json_object_get(spec, members[i]);
        if (json_is_string(value) || json_integer_value(value) > 0) {
            json_object_set(limits, members[i], value);
        }
    }
    return limits;
}

static bool cpus_ok(const char *text)
{
    char *end = NULL;
    double value = strspn(text, "0123456789.") == strlen(text) ? strtod(text, &end) : 0;
    return end && end != text && !*end && value >= CPUS_MIN && value <= CPUS_MAX;
}

int limit_check(const json_t *spec, struct fault *fault)
{
    const char *cpus = obj_text(spec, "cpu_limit");
    int64_t memory = obj_int(spec, "memory"), limit = obj_int(spec, "memory_limit"),
            swap = obj_int(spec, "memory_swap");
    char program[DRIVER_PATH_MAX];
    if (cpus[0] && !cpus_ok(cpus)) {
        return fault_set(fault, FAULT_INVALID, "such as \"1.5\"",
                         "'cpu_limit' is no number of CPUs from %.2f to %.0f: '%.16s'", CPUS_MIN, CPUS_MAX,
                         cpus);
    }
    if (limit && limit < memory) {
        return fault_set(fault, FAULT_INVALID, "allow 64M, and 64M for each virtual CPU, beyond 'memory'",
                         "'memory_limit' is less than the machine's own memory: %lld of %lld bytes",
                         (long long)limit, (long long)memory);
    }
    if (swap && (!limit || swap < limit)) {
        return fault_set(fault, FAULT_INVALID, "give both, or leave 'memory_swap' out",
                         "'memory_swap' counts memory and swap together: it needs 'memory_limit', and can't "
                         "be less");
    }
    json_t *limits = limit_wanted(spec);
    bool any = json_object_size(limits) > 0;
    json_decref(limits);
    return any ? driver_program("fonda-cg", program, sizeof(program), fault) : 0;
}

/* ---- fonda-cg ---- */

/* Runs it and waits. Returns 0, or -1 with what it said last. */
static int run(char *const *argv, char *said, size_t size)
{
    int pipes[2], status = 0;
    said[0] = '\0';
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        snprintf(said, size, "no more descriptors");
        return -1;
    }
    const int stdio[3] = {-1, -1, pipes[1]};
    pid_t pid = driver_fork(argv, stdio);
    close(pipes[1]);
    size_t len = 0;
    ssize_t n;
    while (pid > 0 && ((n = read(pipes[0], said + len, size - 1 - len)) > 0 || (n < 0 && errno == EINTR))) {
        len += n > 0 ? (size_t)n : 0;
    }
    close(pipes[0]);
    said[len] = '\0';
    said[strcspn(said, "\n")] = '\0';
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

int limit_apply_live(const struct driver_instance *instance, struct fault *fault)
{
    char file[DRIVER_PATH_MAX + 32], program[DRIVER_PATH_MAX], said[TEXT_MAX];
    json_t *limits = limit_wanted(instance->spec);
    bool any = json_object_size(limits) > 0;
    auto_free char *text = json_dumps(limits, JSON_COMPACT);
    json_decref(limits);
    snprintf(file, sizeof(file), "%s/cgroup.%lld", instance->dir, (long long)obj_int(instance->spec, "pid"));
    if (!text || access(file, F_OK) < 0) {
        return any ? fault_set(fault, FAULT_STATE, "restart it",
                               "instance '%s' was started without limits: they come at its next start",
                               instance->name)
                   : 0;
    }
    char *argv[] = {program, (char *)(uintptr_t) "set", file, text, NULL};
    if (driver_program("fonda-cg", program, sizeof(program), fault) < 0) {
        return -1;
    }
    return run(argv, said, sizeof(said)) < 0
               ? fault_set(fault, FAULT_STATE, "it takes effect at the next start", "instance '%s': %s",
                           instance->name, said[0] ? said : "fonda-cg failed")
               : 0;
}

/* ---- removing ---- */

struct removal {
    char program[DRIVER_PATH_MAX];
    char files[FILES_MAX][DRIVER_PATH_MAX + 32];
    unsigned count;
};

static int removal_run(struct removal *removal, char *said, size_t size)
{
    char *argv[FILES_MAX + 3] = {removal->program, (char *)(uintptr_t) "remove"};
    for (unsigned i = 0; i < removal->count; i++) {
        argv[2 + i] = removal->files[i];
    }
    return run(argv, said, size);
}

static void *removal_thread(void *arg)
{
    char said[TEXT_MAX];
    if (removal_run(arg, said, sizeof(said)) < 0) {
        log_warning("cannot remove the control group of a machine that has ended: %s",
                    said[0] ? said : "fonda-cg failed");
    }
    free(arg);
    return NULL;
}

/* NULL: there is nothing to remove, or no program that could. */
static struct removal *removal_of(const char *dir)
{
    struct removal *removal = NULL;
    struct fault ignored = {0};
    DIR *d = opendir(dir);
    const struct dirent *entry;
    while (d && (entry = readdir(d))) {
        if (strncmp(entry->d_name, "cgroup.", 7) != 0 || (removal && removal->count == FILES_MAX)) {
            continue;
        }
        if (!removal && !(removal = calloc(1, sizeof(*removal)))) {
            break;
        }
        snprintf(removal->files[removal->count++], sizeof(removal->files[0]), "%s/cgroup.%.24s", dir,
                 entry->d_name + 7);
    }
    if (d) {
        closedir(d);
    }
    if (removal && driver_program("fonda-cg", removal->program, sizeof(removal->program), &ignored) < 0) {
        free(removal);
        return NULL;
    }
    return removal;
}

void limit_clear_aside(const char *dir)
{
    struct removal *removal = removal_of(dir);
    pthread_attr_t attr;
    pthread_t thread;
    if (!removal) {
        return;
    }
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * KiB);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attr, removal_thread, removal) != 0) {
        free(removal); /* the next end, or the next daemon, does it */
    }
    pthread_attr_destroy(&attr);
}

int limit_clear(const struct driver_instance *instance, struct fault *fault)
{
    char said[TEXT_MAX];
    struct removal *removal = removal_of(instance->dir);
    int rc = removal ? removal_run(removal, said, sizeof(said)) : 0;
    free(removal);
    return rc < 0 ? fault_set(fault, FAULT_INTERNAL, "see who is in it, then try again", "instance '%s': %s",
                              instance->name, said[0] ? said : "fonda-cg failed")
                  : 0;
}
