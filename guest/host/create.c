/* The beginning and the end of a machine's state. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define KILL_WAIT_MS 10000

static const char *const files[] = {"lock", "pid", "bundle", "v", "v_1", "c", "console.log", "vmm.log"};

static int write_text(int dir, const char *path, const char *text, struct err *err)
{
    auto_close int fd = openat(dir, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t size = strlen(text);
    return fd < 0 || write(fd, text, size) != (ssize_t)size ? err_sys(err, -errno, "cannot write '%s'", path)
                                                            : 0;
}

static void remove_state(const struct options *o, int dir)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        (void)unlinkat(dir, files[i], 0);
    }
    snprintf(path, sizeof(path), "%s/%s", o->root, o->id);
    (void)rmdir(path);
}

/* A byte that is the status and a text, or nothing: it can begin. */
static int await_keeper(int report, struct err *err)
{
    char text[ERR_TEXT_MAX + 1];
    size_t have = 0;
    ssize_t n;
    while (have < sizeof(text) - 1 &&
           ((n = read(report, text + have, sizeof(text) - 1 - have)) > 0 || (n < 0 && errno == EINTR))) {
        have += n > 0 ? (size_t)n : 0;
    }
    text[have] = '\0';
    if (have) {
        err_set(err, -EINVAL, "%s", text + 1);
    }
    return have ? (unsigned char)text[0] : 0;
}

int cmd_create(const struct options *o, struct err *err)
{
    char path[PATH_MAX], pid_text[16];
    int report[2];
    if (!o->bundle) {
        return err_set(err, -EINVAL, "create needs --bundle");
    }
    snprintf(path, sizeof(path), "%s/%s", o->root, o->id);
    (void)mkdir(o->root, 0700);
    if (mkdir(path, 0700) < 0) {
        return err_sys(err, -errno, "cannot make the machine's directory '%s'", path);
    }
    auto_close int dir = link_open(o, err);
    int rc = dir < 0 ? dir : write_text(dir, "bundle", o->bundle, err);
    if (rc < 0 || pipe2(report, O_CLOEXEC) < 0) {
        return rc < 0 ? rc : err_sys(err, -errno, "cannot make a pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(report[0]);
        keeper_run(o, dir, report[1]);
    }
    close(report[1]);
    snprintf(pid_text, sizeof(pid_text), "%d", (int)pid);
    rc = pid < 0 ? err_sys(err, -errno, "cannot start a process") : write_text(dir, "pid", pid_text, err);
    rc = rc < 0 || !o->pid_file ? rc : write_text(AT_FDCWD, o->pid_file, pid_text, err);
    rc = rc < 0 ? rc : await_keeper(report[0], err);
    close(report[0]);
    if (rc != 0 && pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        remove_state(o, dir);
    }
    return rc;
}

int cmd_delete(const struct options *o, struct err *err)
{
    struct err why = {.code = 0};
    struct timespec pause = {0, 10000000};
    auto_close int dir = link_open(o, &why);
    if (dir < 0) {
        return o->force && dir == -ENOENT ? 0 : err_set(err, dir, "%s", why.text);
    }
    int pid = link_keeper(dir);
    if (pid && !o->force) {
        return err_set(err, -EBUSY, "cannot delete machine '%s': it runs (--force ends it)", o->id);
    }
    if (pid > 0) {
        kill(pid, SIGKILL);
    }
    for (int waited = 0; link_keeper(dir) && waited < KILL_WAIT_MS; waited += 10) {
        nanosleep(&pause, NULL);
    }
    remove_state(o, dir);
    return 0;
}
