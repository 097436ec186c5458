/* See debian_process.h. */
#include "image/debian_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/util.h"

#define ADMIN_FOLDERS "/usr/local/sbin:/usr/sbin:/sbin"

static void *read_lines(void *arg)
{
    struct process *process = arg;
    FILE *file = fdopen(process->err_fd, "r");
    char *line = NULL;
    size_t room = 0;
    for (ssize_t n; file && (n = getline(&line, &room, file)) > 0;) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) {
            line[--n] = '\0';
        }
        if (n > 0) {
            snprintf(process->last_line, sizeof(process->last_line), "%s", line);
        }
        if (process->line) {
            process->line(process->opaque, line);
        }
    }
    free(line);
    if (file) {
        fclose(file);
    }
    return NULL;
}

/* In the child: only what may run there. failure_fd tells the parent why the program can't be run. */
static _Noreturn void run_child(const char *const *argv, int out, int messages, int failure_fd)
{
    int null = open("/dev/null", O_RDWR);
    signal(SIGPIPE, SIG_DFL);
    if (dup2(null, STDIN_FILENO) >= 0 && dup2(out >= 0 ? out : null, STDOUT_FILENO) >= 0 &&
        dup2(messages, STDERR_FILENO) >= 0) {
        execvp(argv[0], (char *const *)argv);
    }
    int error = errno;
    ssize_t n = write(failure_fd, &error, sizeof(error));
    _exit(n > 0 ? 127 : 126);
}

static void extend_path(void)
{
    const char *path = getenv("PATH");
    char extended[4096];
    if (!path || !strstr(path, ADMIN_FOLDERS)) {
        int n = snprintf(extended, sizeof(extended), "%s:" ADMIN_FOLDERS,
                         path ? path : "/usr/local/bin:/usr/bin:/bin");
        if ((size_t)n < sizeof(extended)) {
            setenv("PATH", extended, 1);
        }
    }
}

static int start(struct process *process, const char *const *argv, bool with_output, struct err *err)
{
    int out[2] = {-1, -1}, messages[2] = {-1, -1}, failure[2] = {-1, -1}, error = 0;
    extend_path();
    if ((with_output && pipe2(out, O_CLOEXEC) < 0) || pipe2(messages, O_CLOEXEC) < 0 ||
        pipe2(failure, O_CLOEXEC) < 0 || (process->pid = fork()) < 0) {
        return err_sys(err, -errno, "cannot start '%s'", argv[0]);
    }
    if (process->pid == 0) {
        run_child(argv, out[1], messages[1], failure[1]);
    }
    if (out[1] >= 0) {
        close(out[1]);
    }
    close(messages[1]);
    close(failure[1]);
    process->out_fd = out[0];
    process->err_fd = messages[0];
    ssize_t n = read(failure[0], &error, sizeof(error));
    close(failure[0]);
    if (n != sizeof(error)) {
        error = -pthread_create(&process->thread, NULL, read_lines, process);
    } else {
        error = -error;
    }
    if (error < 0) {
        close(messages[0]);
        if (out[0] >= 0) {
            close(out[0]);
        }
        kill(process->pid, SIGKILL);
        waitpid(process->pid, NULL, 0);
        return err_sys(err, error, "cannot start '%s'", argv[0]);
    }
    return 0;
}

int process_start(struct process *process, const char *const *argv,
                  void (*line)(void *opaque, const char *line), void *opaque, struct err *err)
{
    *process = (struct process){.line = line, .opaque = opaque};
    return start(process, argv, true, err);
}

int process_wait(struct process *process)
{
    int status = 0;
    if (process->out_fd >= 0) {
        close(process->out_fd);
    }
    while (waitpid(process->pid, &status, 0) < 0 && errno == EINTR) {
    }
    pthread_join(process->thread, NULL);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int process_run(const char *const *argv, struct process_result *ret_result, struct err *err)
{
    struct process process = {0};
    int rc = start(&process, argv, false, err);
    if (rc == 0) {
        ret_result->status = process_wait(&process);
        memcpy(ret_result->last_line, process.last_line, sizeof(ret_result->last_line));
    }
    return rc;
}
