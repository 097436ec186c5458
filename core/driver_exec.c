/*
 * Byte streams with a container: its own input and output, a program run in it, its log, files in and out.
 * Everything but attach is a process of fonda-room with pipes (or a terminal) in between.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

#include "base/util.h"
#include "control/client.h"
#include "core/core_int.h"

#define CALL_TIMEOUT_MS     5000
#define TERMINAL_TIMEOUT_MS 20000

pid_t driver_fork(char *const *argv, const int stdio[3])
{
    pid_t pid = fork();
    if (pid != 0) {
        return pid;
    }
    setsid();
    int null = open("/dev/null", O_RDWR);
    int fds[3];
    for (int i = 0; i < 3; i++) { /* above 2 first, so that none is overwritten before it is used */
        fds[i] = fcntl(stdio[i] >= 0 ? stdio[i] : null, F_DUPFD, 3);
    }
    for (int i = 0; i < 3; i++) {
        if (fds[i] < 0 || dup2(fds[i], i) < 0) {
            _exit(127);
        }
    }
    close_range(3, ~0u, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    execv(argv[0], argv);
    _exit(127);
}

void driver_stream_done(struct driver_stream *stream)
{
    for (int i = 0; i < 3; i++) {
        if (stream->fds[i] >= 0) {
            close(stream->fds[i]);
        }
        stream->fds[i] = -1;
    }
    if (stream->events) {
        control_client_free(stream->events);
        stream->events = NULL;
    }
    if (stream->pid > 0) {
        kill(stream->pid, SIGHUP);
        kill(stream->pid, SIGTERM);
        for (int tries = 0; waitpid(stream->pid, NULL, WNOHANG) == 0; tries++) {
            if (tries == 200) {
                kill(stream->pid, SIGKILL);
            }
            struct timespec ts = {0, 5000000};
            nanosleep(&ts, NULL);
        }
        stream->pid = 0;
    }
}

void driver_stream_close_input(struct driver_stream *stream)
{
    if (stream->fds[0] >= 0) {
        if (stream->terminal) {
            /* A terminal's end of input is a character (termios(3), VEOF). */
            (void)!write(stream->fds[0], "\4", 1);
        } else {
            if (!stream->pid) {
                shutdown(stream->fds[0], SHUT_WR);
            }
            close(stream->fds[0]);
            stream->fds[0] = -1;
        }
    }
}

int driver_stream_end(struct driver_stream *stream, const struct driver_instance *instance,
                      const struct driver_ops *ops)
{
    int status = -1;
    if (stream->pid > 0) {
        while (waitpid(stream->pid, &status, 0) < 0 && errno == EINTR) {
        }
        stream->pid = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    json_t *event = NULL;
    while (stream->events && control_client_event(stream->events, CALL_TIMEOUT_MS, &event, NULL) == 0) {
        const json_t *data = json_object_get(event, "data");
        bool exited = strcmp(obj_text(event, "event"), "exit") == 0 && !obj_bool(data, "restarting");
        status = exited ? (int)obj_int(data, "status") : status;
        json_decref(event);
        if (exited) {
            return status;
        }
    }
    return ops->exit_status ? ops->exit_status(instance) : status;
}

/* ---- attach ---- */

static int attach_one(const struct driver_instance *instance, const char *channel, int *ret_fd, char *first,
                      size_t size, size_t *ret_first, struct fault *fault)
{
    *ret_fd = -1;
    return driver_control_attach(instance, channel, ret_fd, first, size, ret_first, fault);
}

/* A container that was only created begins once somebody sees its output. */
static int begin_held(const struct driver_instance *instance, struct fault *fault)
{
    json_t *status = NULL;
    if (driver_control_call(instance, "status", NULL, &status, fault) < 0) {
        return -1;
    }
    bool held = strcmp(obj_text(status, "state"), "created") == 0;
    json_decref(status);
    return held ? driver_control_call(instance, "start", NULL, NULL, fault) : 0;
}

static int attach(const struct driver_instance *instance, const json_t *how, struct driver_stream *stream,
                  struct fault *fault)
{
    bool input = !obj_bool(how, "no_input");
    stream->terminal = obj_bool(instance->spec, "terminal");
    struct err err = {0};
    if (control_connect(instance->control, &stream->events, &err) < 0 ||
        control_client_call(stream->events, "subscribe", NULL, CALL_TIMEOUT_MS, NULL, &err) < 0) {
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "instance '%s': %s", instance->name, err.text);
    }
    if (attach_one(instance, input ? "stdin+stdout" : "stdout", &stream->fds[1], stream->first[0],
                   sizeof(stream->first[0]), &stream->first_len[0], fault) < 0) {
        return -1;
    }
    if (input) {
        stream->fds[0] = fcntl(stream->fds[1], F_DUPFD_CLOEXEC, 3);
    }
    if (!stream->terminal && attach_one(instance, "stderr", &stream->fds[2], stream->first[1],
                                        sizeof(stream->first[1]), &stream->first_len[1], fault) < 0) {
        return -1;
    }
    return begin_held(instance, fault);
}

/* ---- processes ---- */

static int listen_for_terminal(const struct driver_instance *instance, char *path, size_t size,
                               struct fault *fault)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    static unsigned counter;
    snprintf(path, size, "%s/x%u", instance->dir, __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    if (strlen(path) >= sizeof(address.sun_path)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "'%s' is too long for a socket", path);
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0) {
        fault_set(fault, FAULT_INTERNAL, NULL, "cannot listen on '%s': %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

/* The terminal's master, which fonda-oci sends. -1: the process ended instead. */
static int take_terminal(int listener, pid_t pid)
{
    uint64_t until = monotonic_ms() + TERMINAL_TIMEOUT_MS;
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    while (poll(&poll_fd, 1, 20) <= 0) {
        siginfo_t info = {0};
        if ((waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid) ||
            monotonic_ms() > until) {
            return -1;
        }
    }
    auto_close int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    char name[256];
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {name, sizeof(name)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = peer < 0 ? -1 : recvmsg(peer, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    int fd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    }
    return fd;
}

static void set_size(int fd, const json_t *how)
{
    struct winsize size = {.ws_row = (unsigned short)obj_int(how, "rows"),
                           .ws_col = (unsigned short)obj_int(how, "columns")};
    if (size.ws_row && size.ws_col) {
        ioctl(fd, TIOCSWINSZ, &size);
    }
}

static int open_pipes(int pipes[3][2], struct fault *fault)
{
    memset(pipes, -1, 3 * sizeof(pipes[0]));
    for (int i = 0; i < 3; i++) {
        if (pipe2(pipes[i], O_CLOEXEC) < 0) {
            for (int j = 0; j < i; j++) {
                close(pipes[j][0]);
                close(pipes[j][1]);
            }
            return fault_set(fault, FAULT_INTERNAL, NULL, "cannot make a pipe: %s", strerror(errno));
        }
    }
    return 0;
}

static int run(const struct driver_instance *instance, char *const *argv, const char *socket, int listener,
               const json_t *how, struct driver_stream *stream, struct fault *fault)
{
    int pipes[3][2];
    if (open_pipes(pipes, fault) < 0) {
        return -1;
    }
    int stdio[3] = {pipes[0][0], pipes[1][1], pipes[2][1]};
    stream->pid = driver_fork(argv, stdio);
    for (int i = 0; i < 3; i++) {
        close(stdio[i]);
    }
    stream->fds[0] = pipes[0][1];
    stream->fds[1] = pipes[1][0];
    stream->fds[2] = pipes[2][0];
    if (stream->pid < 0) {
        stream->pid = 0;
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot start a process: %s", strerror(errno));
    }
    int master = listener < 0 ? -1 : take_terminal(listener, stream->pid);
    if (master >= 0) {
        /* What fonda-oci itself has to say still comes by the third. */
        close(stream->fds[0]);
        close(stream->fds[1]);
        stream->fds[0] = fcntl(master, F_DUPFD_CLOEXEC, 3);
        stream->fds[1] = master;
        stream->terminal = true;
        set_size(master, how);
    }
    return 0;
}

static int exec_in(const struct driver_instance *instance, const json_t *how, struct driver_stream *stream,
                   struct fault *fault)
{
    char room[2 * PATH_MAX], pid[24], path[2 * DRIVER_PATH_MAX] = "";
    int listener = -1;
    if (!json_array_size(json_object_get(how, "command"))) {
        return fault_set(fault, FAULT_INVALID, NULL, "exec needs 'command'");
    }
    if (driver_program("fonda-room", room, sizeof(room), fault) < 0) {
        return -1;
    }
    if (obj_bool(how, "terminal")) {
        listener = listen_for_terminal(instance, path, sizeof(path), fault);
        if (listener < 0) {
            return -1;
        }
    }
    auto_free char *text = json_dumps(how, JSON_COMPACT);
    snprintf(pid, sizeof(pid), "%lld", (long long)obj_int(instance->spec, "pid"));
    char *argv[] = {room, (char *)(uintptr_t) "exec", (char *)(uintptr_t)instance->dir, pid, path, text,
                    NULL};
    int rc = run(instance, argv, path, listener, how, stream, fault);
    if (listener >= 0) {
        close(listener);
        unlink(path);
    }
    return rc;
}

static int copy(const struct driver_instance *instance, const char *verb, const json_t *how,
                struct driver_stream *stream, struct fault *fault)
{
    char room[2 * PATH_MAX], pid[24];
    const char *path = obj_text(how, "path"), *state = obj_text(instance->spec, "state");
    bool lives = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
    if (path[0] != '/') {
        return fault_set(fault, FAULT_INVALID, NULL, "'path' must be an absolute path in the container");
    }
    if (driver_program("fonda-room", room, sizeof(room), fault) < 0) {
        return -1;
    }
    snprintf(pid, sizeof(pid), "%lld", (long long)obj_int(instance->spec, "pid"));
    char *argv[] = {room,
                    (char *)(uintptr_t)verb,
                    (char *)(uintptr_t)instance->dir,
                    (char *)(uintptr_t)path,
                    lives ? pid : NULL,
                    NULL};
    return run(instance, argv, NULL, -1, how, stream, fault);
}

static int logs(const struct driver_instance *instance, const json_t *how, struct driver_stream *stream,
                struct fault *fault)
{
    char room[2 * PATH_MAX];
    if (driver_program("fonda-room", room, sizeof(room), fault) < 0) {
        return -1;
    }
    auto_free char *text = json_dumps(how, JSON_COMPACT);
    char *argv[] = {room, (char *)(uintptr_t) "logs", (char *)(uintptr_t)instance->dir, text, NULL};
    return run(instance, argv, NULL, -1, how, stream, fault);
}

int driver_container_stream(const struct driver_instance *instance, const char *verb, const json_t *how,
                            struct driver_stream *stream, struct fault *fault)
{
    *stream = (struct driver_stream){.fds = {-1, -1, -1}};
    const char *state = obj_text(instance->spec, "state");
    bool lives = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
    int rc;
    if (strcmp(verb, "logs") == 0) {
        rc = logs(instance, how, stream, fault);
    } else if (strcmp(verb, "export") == 0 || strcmp(verb, "import") == 0) {
        rc = copy(instance, verb, how, stream, fault);
    } else if (!lives) {
        rc = fault_set(fault, FAULT_STATE, "start it first", "instance '%s' is %s", instance->name, state);
    } else if (strcmp(verb, "attach") == 0) {
        rc = attach(instance, how, stream, fault);
    } else if (strcmp(verb, "exec") == 0) {
        rc = exec_in(instance, how, stream, fault);
    } else {
        rc = fault_set(fault, FAULT_INVALID, "attach, exec, logs, export, import",
                       "there is no stream '%.32s'", verb);
    }
    if (rc < 0) {
        driver_stream_done(stream);
    }
    return rc;
}

int driver_container_resize(const struct driver_instance *instance, struct driver_stream *stream,
                            unsigned rows, unsigned columns, struct fault *fault)
{
    if (stream->pid) {
        struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
        return ioctl(stream->fds[1], TIOCSWINSZ, &size) < 0
                   ? fault_set(fault, FAULT_STATE, NULL, "there is no terminal")
                   : 0;
    }
    return driver_control_call(
        instance, "resize", json_pack("{s:i, s:i}", "rows", (int)rows, "columns", (int)columns), NULL, fault);
}
