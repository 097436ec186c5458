/*
 * fonda-cg: runs a program in a control group of its own, changes its limits, and clears it away.
 *
 *     run --> file DIR/cgroup.PID names the path --> group made --> limits --> joined --> the program,
 *             with the same pid and the caller's other descriptors
 *     remove --> whoever is left in it is killed --> group removed --> file removed
 *
 * Whoever is stopped in between leaves at most a file, or a file and a group: remove takes both.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "container/json.h"
#include "container/limit/limit.h"

#define PARENT        "/fonda-vm"
#define STATUS_FAILED 1
#define STATUS_USAGE  2

static int parse(const char *text, json_t **ret_limits, struct err *err)
{
    json_error_t why;
    *ret_limits = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    return *ret_limits ? 0 : err_set(err, -EINVAL, "the limits are not JSON: %s", why.text);
}

static int write_path(const char *file, const char *path, struct err *err)
{
    auto_close int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t len = strlen(path);
    if (fd < 0 || write(fd, path, len) != (ssize_t)len) {
        return err_sys(err, fd < 0 || errno ? -errno : -EIO, "cannot write '%s'", file);
    }
    return 0;
}

static int open_group(const char *file, struct cg *cg, struct err *err)
{
    auto_free char *path = NULL;
    size_t size;
    int rc = file_read_all(AT_FDCWD, file, &path, &size, err);
    rc = rc < 0 ? rc : cg_open(cg, err);
    rc = rc < 0 ? rc : cg_choose(cg, path, "", err);
    return rc < 0 ? rc : cg_attach(cg, err);
}

/* ---- the steps ---- */

static int do_run(char **argv, struct err *err)
{
    const char *dir = argv[0], *id = argv[1];
    char file[PATH_MAX], name[96];
    struct cg cg = {.count = 0};
    json_t *limits = NULL;
    snprintf(file, sizeof(file), "%s/cgroup.%d", dir, (int)getpid());
    snprintf(name, sizeof(name), "%.64s-%d", id, (int)getpid());
    int rc = parse(argv[2], &limits, err);
    rc = rc < 0 ? rc : cg_open(&cg, err);
    cg.parent = PARENT;
    cg.may_skip = true; /* hierarchies that this user may not use; a limit that needs one says so */
    rc = rc < 0 ? rc : cg_choose(&cg, NULL, name, err);
    rc = rc < 0 ? rc : write_path(file, cg.path, err);
    rc = rc < 0 ? rc : cg_create(&cg, NULL, err);
    rc = rc < 0 ? rc : limit_apply(&cg, limits, false, err);
    rc = rc < 0 ? rc : cg_prepare_enter(&cg, err);
    json_decref(limits);
    if (rc < 0) {
        if (cg_remove(&cg, NULL) == 0) {
            unlink(file);
        }
        cg_close(&cg);
        return rc;
    }
    /* From here on this process may be in it: whoever started it removes it by its file. */
    if ((rc = cg_enter(&cg, false, err)) == 0) { /* every descriptor of the groups is close-on-exec */
        execv(argv[3], argv + 3);
        rc = err_sys(err, -errno, "cannot run '%s'", argv[3]);
    }
    cg_close(&cg);
    return rc;
}

static int do_set(char **argv, struct err *err)
{
    struct cg cg = {.count = 0};
    json_t *limits = NULL;
    int rc = parse(argv[1], &limits, err);
    rc = rc < 0 ? rc : open_group(argv[0], &cg, err);
    rc = rc < 0 ? rc : limit_apply(&cg, limits, true, err);
    json_decref(limits);
    cg_close(&cg);
    return rc;
}

static int do_remove(const char *file, struct err *err)
{
    struct cg cg = {.count = 0};
    int rc = open_group(file, &cg, err);
    cg.parent = PARENT;
    rc = rc < 0 ? rc : cg_kill(&cg, err);
    rc = rc < 0 ? rc : cg_remove(&cg, err);
    if (rc == 0 && unlink(file) < 0 && errno != ENOENT) {
        rc = err_sys(err, -errno, "cannot remove '%s'", file);
    }
    cg_close(&cg);
    return rc == -ENOENT ? 0 : rc; /* another one was faster */
}

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: fonda-cg run DIR NAME LIMITS PROGRAM [ARGUMENT]...\n"
        "       fonda-cg set FILE LIMITS\n"
        "       fonda-cg remove FILE...\n\n"
        "run makes a control group with these limits, writes its path to DIR/cgroup.PID, and becomes\n"
        "PROGRAM in it. LIMITS is a JSON object: cpu_limit (a text), cpu_weight, memory_limit,\n"
        "memory_swap, pids_limit. remove ends whoever is in it.\n\n"
        "Example:\n  fonda-cg run /tmp test '{\"cpu_limit\":\"0.5\"}' /bin/sh -c 'cat /proc/self/cgroup'\n");
}

int main(int argc, char **argv)
{
    struct err err = {.code = 0};
    int rc = -EINVAL;
    log_init("fonda-cg", LOG_LEVEL_WARNING);
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return 0;
    }
    if (argc >= 6 && strcmp(argv[1], "run") == 0) {
        rc = do_run(argv + 2, &err);
    } else if (argc == 4 && strcmp(argv[1], "set") == 0) {
        rc = do_set(argv + 2, &err);
    } else if (argc >= 3 && strcmp(argv[1], "remove") == 0) {
        rc = 0;
        for (int i = 2; i < argc; i++) {
            struct err why = {.code = 0};
            if (do_remove(argv[i], &why) < 0) {
                err = why;
                rc = -1;
            }
        }
    } else {
        usage(stderr);
        return STATUS_USAGE;
    }
    if (rc < 0) {
        log_error("%s", err.text);
        return STATUS_FAILED;
    }
    return 0;
}
