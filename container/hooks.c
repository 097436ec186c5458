#include "container/hooks.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* In the hook's process. The state comes from a file, so that a hook that doesn't read can't block the
 * runtime. */
static void hook_exec(const struct oci_hook *hook, const char *state_text, const char *cwd)
{
    const char *path_alone[] = {hook->path, NULL};
    int fd = memfd_create("state", MFD_CLOEXEC);
    if (fd < 0 || write_all(fd, state_text, strlen(state_text)) < 0 || lseek(fd, 0, SEEK_SET) < 0 ||
        dup2(fd, 0) < 0 || (cwd && chdir(cwd) < 0)) {
        _exit(126);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
    execve(hook->path, (char *const *)(hook->args ? hook->args : path_alone),
           hook->env ? (char *const *)hook->env : environ);
    dprintf(2, "hook '%s': %s\n", hook->path, strerror(errno));
    _exit(127);
}

static int64_t now_ms(void)
{
    return (int64_t)(clock_host_ns() / 1000000);
}

/* Waits at most timeout_s (0: for ever); false: the time is over. */
static bool hook_wait(pid_t pid, uint32_t timeout_s, int *ret_status)
{
    int64_t end = now_ms() + (int64_t)timeout_s * 1000;
    long pidfd = timeout_s ? syscall(SYS_pidfd_open, pid, 0u) : -1;
    while (timeout_s && now_ms() < end) {
        if (pidfd >= 0) {
            struct pollfd p = {.fd = (int)pidfd, .events = POLLIN};
            poll(&p, 1, (int)MIN(end - now_ms(), 1000));
        } else {
            usleep(2000);
        }
        if (waitpid(pid, ret_status, WNOHANG) == pid) {
            timeout_s = 0;
            pid = 0;
        }
    }
    if (pidfd >= 0) {
        close((int)pidfd);
    }
    if (pid == 0) {
        return true;
    }
    if (timeout_s) {
        return false;
    }
    while (waitpid(pid, ret_status, 0) < 0) {
        if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

static int hook_run(const struct oci_hook *hook, const char *name, size_t index, const char *state_text,
                    const char *cwd, struct err *err)
{
    pid_t pid = fork();
    if (pid < 0) {
        return err_sys(err, -errno, "cannot start a process for hook %s[%zu]", name, index);
    }
    if (pid == 0) {
        hook_exec(hook, state_text, cwd);
    }
    int status = 0;
    if (!hook_wait(pid, hook->timeout_s, &status)) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        return err_set(err, -ETIMEDOUT, "hook %s[%zu] '%s' took longer than %u s and was killed", name, index,
                       hook->path, hook->timeout_s);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    return err_set(err, -ECANCELED, "hook %s[%zu] '%s' %s %d", name, index, hook->path,
                   WIFSIGNALED(status) ? "died of signal" : "exited with status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

int hooks_run(const struct oci_hooks *hooks, enum oci_hook_kind kind, const char *state_text, const char *cwd,
              struct err *err)
{
    for (size_t i = 0; i < hooks[kind].count; i++) {
        int rc = hook_run(&hooks[kind].v[i], hook_names[kind], i, state_text, cwd, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}
