/*
 * A program and its streams: pipes or a terminal on one side, frames on the other.
 *
 *     program_run: begin() --fork--> child waits at `gate`
 *                    |  first: READY, waits for the order "go"
 *                    '-> opens the gate: child executes; what exec says comes through a close-on-exec pipe
 *                  relay() until the program has ended and its pipes are empty, or the host is gone
 */
#include "guest/init/init.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"
#include "container/exec_error.h"

#define LIST_MAX     2048
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct program {
    struct wire *wire;
    int orders; /* of the first program; -1: none */
    int input;  /* to the program; -1: closed */
    int outputs[2];
    int pid_fd;
    pid_t pid;
    bool terminal, input_full;
    int gate;    /* closing it lets the child go on */
    int failure; /* where the child says that exec failed: a negative errno */
    char path[4096];
    char *argv[LIST_MAX + 1];
    char *env[LIST_MAX + 2];
    unsigned argc, envc;
};

/* ---- what to run ---- */

static void set_env(struct program *p, const char *text)
{
    size_t len = strcspn(text, "=");
    for (unsigned i = 0; i < p->envc; i++) {
        if (strncmp(p->env[i], text, len + 1) == 0) {
            p->env[i] = (char *)(uintptr_t)text;
            return;
        }
    }
    if (p->envc < LIST_MAX) {
        p->env[p->envc++] = (char *)(uintptr_t)text;
    }
}

static int take_lists(struct program *p, const struct wire_texts *request, const struct user *user,
                      struct err *err)
{
    const char *text;
    char *home = NULL;
    size_t at = 0;
    while ((text = wire_get(request, "arg", &at)) && p->argc < LIST_MAX) {
        p->argv[p->argc++] = (char *)(uintptr_t)text;
    }
    for (at = 0; (text = wire_get(request, "env", &at));) {
        set_env(p, text);
    }
    if (user->home[0] && asprintf(&home, "HOME=%s", user->home) >= 0) {
        set_env(p, home);
    }
    for (at = 0; (text = wire_get(request, "more_env", &at));) {
        set_env(p, text);
    }
    return p->argc ? 0 : err_set(err, -EINVAL, "which program?");
}

static const char *path_of(const struct program *p)
{
    for (unsigned i = 0; i < p->envc; i++) {
        if (strncmp(p->env[i], "PATH=", 5) == 0) {
            return p->env[i] + 5;
        }
    }
    return DEFAULT_PATH;
}

/* As execvp looks it up, from the working directory. The message is exec_error's, the same as a container's.
 */
static int find_program(struct program *p, struct err *err)
{
    const char *name = p->argv[0];
    struct stat st;
    int rc = -ENOENT;
    if (strchr(name, '/')) {
        snprintf(p->path, sizeof(p->path), "%s", name);
        return access(p->path, X_OK) < 0                        ? exec_error(p->path, -errno, err)
               : stat(p->path, &st) == 0 && S_ISDIR(st.st_mode) ? exec_error(p->path, -EACCES, err)
                                                                : 0;
    }
    for (const char *at = path_of(p); *at; at += strcspn(at, ":"), at += *at == ':') {
        snprintf(p->path, sizeof(p->path), "%.*s/%s", (int)strcspn(at, ":"), at, name);
        if (stat(p->path, &st) == 0 && S_ISREG(st.st_mode)) {
            if (access(p->path, X_OK) == 0) {
                return 0;
            }
            rc = exec_error(p->path, -EACCES, err);
        }
    }
    return rc == -ENOENT ? err_sys(err, -ENOENT, "executable file '%s' not found in $PATH", name) : rc;
}

static int take_user(const struct wire_texts *request, struct user *ret_user, struct err *err)
{
    const char *name = wire_one(request, "user"), *group;
    size_t at = 0;
    *ret_user =
        (struct user){.uid = (uid_t)wire_number(request, "uid"), .gid = (gid_t)wire_number(request, "gid")};
    while ((group = wire_get(request, "group", &at)) && ret_user->group_count < GROUPS_MAX) {
        ret_user->groups[ret_user->group_count++] = (gid_t)strtoul(group, NULL, 10);
    }
    return name && name[0] ? user_find(name, ret_user, err) : 0;
}

/* "NUMBER SOFT HARD", the resource by its number here (resource.h is the same on both sides). */
static void set_limits(const struct wire_texts *request)
{
    const char *text;
    size_t at = 0;
    while ((text = wire_get(request, "rlimit", &at))) {
        unsigned resource;
        unsigned long long soft, hard;
        if (sscanf(text, "%u %llu %llu", &resource, &soft, &hard) == 3) {
            struct rlimit limit = {soft, hard};
            (void)setrlimit((int)resource, &limit);
        }
    }
}

/* ---- the child ---- */

static void become(struct program *p, const struct wire_texts *request, const struct user *user,
                   const int stdio[3], int gate, int failure)
{
    sigset_t none;
    char byte;
    int rc = 0;
    setsid();
    for (int i = 0; i < 3; i++) {
        dup2(stdio[i], i);
    }
    if (p->terminal) {
        ioctl(0, TIOCSCTTY, 0);
    }
    while (read(gate, &byte, 1) < 0 && errno == EINTR) {
    }
    set_limits(request);
    umask(022);
    if (p->terminal && user->uid) {
        (void)fchown(0, user->uid, (gid_t)-1);
    }
    if (setgroups(user->group_count, user->groups) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
        setresuid(user->uid, user->uid, user->uid) < 0) {
        rc = -errno;
    }
    for (int i = 1; i < 65; i++) {
        signal(i, SIG_DFL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (rc == 0) {
        execve(p->path, p->argv, p->env);
        rc = -errno;
    }
    (void)!write(failure, &rc, sizeof(rc));
    _exit(127);
}

/* The program's ends in stdio, ours in *p. All are above 2. */
static int make_streams(struct program *p, const struct wire_texts *request, int stdio[3], struct err *err)
{
    if (!p->terminal) {
        int pipes[3][2];
        for (int i = 0; i < 3; i++) {
            if (pipe2(pipes[i], O_CLOEXEC) < 0) {
                return err_sys(err, -errno, "cannot make a pipe");
            }
        }
        stdio[0] = pipes[0][0];
        stdio[1] = pipes[1][1];
        stdio[2] = pipes[2][1];
        p->input = pipes[0][1];
        p->outputs[0] = pipes[1][0];
        p->outputs[1] = pipes[2][0];
    } else {
        struct winsize size = {.ws_row = (unsigned short)wire_number(request, "rows"),
                               .ws_col = (unsigned short)wire_number(request, "columns")};
        int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlock = 0;
        int slave = master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0
                        ? -1
                        : ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (slave < 0) {
            return err_sys(err, -errno, "cannot make a terminal");
        }
        (void)ioctl(master, TIOCSWINSZ, &size);
        p->input = fcntl(master, F_DUPFD_CLOEXEC, 3);
        p->outputs[0] = master;
        stdio[0] = stdio[1] = stdio[2] = slave;
    }
    for (int i = 0; i < 2; i++) {
        if (p->outputs[i] >= 0) {
            (void)fcntl(p->outputs[i], F_SETFL, O_NONBLOCK);
        }
    }
    (void)fcntl(p->input, F_SETFL, O_NONBLOCK);
    return 0;
}

static int begin(struct program *p, const struct wire_texts *request, struct err *err)
{
    struct user user;
    int stdio[3], gate[2], failure[2];
    const char *cwd = wire_one(request, "cwd");
    int rc = take_user(request, &user, err);
    rc = rc < 0 ? rc : take_lists(p, request, &user, err);
    if (rc == 0 && chdir(cwd && cwd[0] ? cwd : "/") < 0) {
        rc = errno == ENOENT && boot_make_folders(cwd) == 0 && chdir(cwd) == 0
                 ? 0
                 : err_sys(err, -errno, "cannot enter the working directory '%s'", cwd);
    }
    rc = rc < 0 ? rc : find_program(p, err);
    rc = rc < 0 ? rc : make_streams(p, request, stdio, err);
    if (rc < 0) {
        return rc;
    }
    if (pipe2(gate, O_CLOEXEC) < 0 || pipe2(failure, O_CLOEXEC) < 0) {
        return err_sys(err, -errno, "cannot make a pipe");
    }
    p->pid = fork();
    if (p->pid < 0) {
        return err_sys(err, -errno, "cannot start a process");
    }
    if (p->pid == 0) {
        close(gate[1]);
        become(p, request, &user, stdio, gate[0], failure[1]);
    }
    for (int i = 0; i < (p->terminal ? 1 : 3); i++) {
        close(stdio[i]);
    }
    close(gate[0]);
    close(failure[1]);
    p->gate = gate[1];
    p->failure = failure[0];
    p->pid_fd = (int)syscall(SYS_pidfd_open, p->pid, 0);
    return p->pid_fd < 0 ? err_sys(err, -errno, "cannot watch a process") : 0;
}

static int open_gate(struct program *p, struct err *err)
{
    int code = 0;
    close(p->gate);
    ssize_t n = read(p->failure, &code, sizeof(code));
    close(p->failure);
    if (n != sizeof(code)) {
        return 0;
    }
    waitpid(p->pid, NULL, 0);
    return exec_error(p->path, code, err);
}

/* ---- relaying ---- */

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/* Takes in what the host sent, until the program's input is full. False: the host is gone. */
static bool take_frames(struct program *p)
{
    struct wire_frame frame;
    int rc;
    p->input_full = false;
    while ((rc = wire_next(p->wire, false, &frame)) > 0) {
        if (frame.kind == WIRE_INPUT && frame.size && p->input >= 0) {
            ssize_t n = write(p->input, frame.data, frame.size);
            if (n < 0 && errno == EAGAIN) {
                p->input_full = true;
                return true;
            }
            if (n >= 0 && (uint32_t)n < frame.size) {
                /* The rest becomes a frame of its own, in place. */
                uint32_t left = frame.size - (uint32_t)n;
                uint8_t *head = p->wire->in;
                memmove(head + WIRE_HEAD, head + WIRE_HEAD + n, p->wire->have - WIRE_HEAD - (size_t)n);
                p->wire->have -= (size_t)n;
                memcpy(head + 4, &left, 4);
                continue;
            }
        } else if (frame.kind == WIRE_INPUT && !frame.size && !p->terminal) {
            close_fd(&p->input);
        } else if (frame.kind == WIRE_SIZE && frame.size == 4 && p->terminal) {
            struct winsize size = {.ws_row = (unsigned short)(frame.data[0] | frame.data[1] << 8),
                                   .ws_col = (unsigned short)(frame.data[2] | frame.data[3] << 8)};
            (void)ioctl(p->outputs[0] >= 0 ? p->outputs[0] : p->input, TIOCSWINSZ, &size);
        }
        wire_take(p->wire, &frame);
    }
    return rc == 0;
}

/* One read of the program's; false: there is nothing now. */
static bool pass_output(struct program *p, int i)
{
    static uint8_t buf[WIRE_DATA_MAX];
    ssize_t n = p->outputs[i] < 0 ? 0 : read(p->outputs[i], buf, sizeof(buf));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    if (n <= 0) {
        close_fd(&p->outputs[i]); /* a terminal: EIO, when nobody has it open any more */
        return false;
    }
    return wire_put(p->wire, i ? WIRE_ERRORS : WIRE_OUTPUT, buf, (size_t)n) == 0;
}

/* "k" and a signal, from the process that serves a request "kill". */
static void take_order(struct program *p)
{
    unsigned char order[2];
    if (recv(p->orders, order, sizeof(order), MSG_DONTWAIT) == 2 && order[0] == 'k') {
        unsigned char reply = kill(p->pid, order[1]) == 0;
        (void)send(p->orders, &reply, 1, MSG_NOSIGNAL);
    }
}

static int relay(struct program *p)
{
    siginfo_t info = {0};
    for (;;) {
        if (!take_frames(p)) { /* first, as some came together with the request */
            return -EPIPE;
        }
        bool room = wire_room(p->wire);
        struct pollfd fds[] = {
            {.fd = p->wire->fd,
             .events = (short)((p->input_full ? 0 : POLLIN) | (p->wire->out_size ? POLLOUT : 0))},
            {.fd = room ? p->outputs[0] : -1, .events = POLLIN},
            {.fd = room ? p->outputs[1] : -1, .events = POLLIN},
            {.fd = p->input_full ? p->input : -1, .events = POLLOUT},
            {.fd = p->pid_fd, .events = POLLIN},
            {.fd = p->orders, .events = POLLIN},
        };
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR) {
            return -EIO;
        }
        if ((fds[0].revents & POLLIN) && wire_fill(p->wire) < 0) {
            return -EPIPE;
        }
        if ((fds[0].revents & (POLLERR | POLLNVAL)) || wire_flush(p->wire) < 0) {
            return -EPIPE;
        }
        for (int i = 0; i < 2; i++) {
            if (fds[1 + i].revents) {
                pass_output(p, i);
            }
        }
        if (fds[5].revents) {
            take_order(p);
        }
        if (fds[4].revents) {
            break;
        }
    }
    /* It has ended: what is in the pipes now is all that it said. */
    for (int i = 0; i < 2; i++) {
        while (wire_drain(p->wire) == 0 && pass_output(p, i)) {
        }
    }
    if (waitid(P_PIDFD, (id_t)p->pid_fd, &info, WEXITED) < 0) {
        return -EIO;
    }
    return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

/* Until "go"; other orders are for later. False: the host is gone. */
static bool await_go(struct program *p)
{
    for (;;) {
        struct pollfd fds[] = {{.fd = p->orders, .events = POLLIN}, {.fd = p->wire->fd, .events = POLLIN}};
        unsigned char order[2];
        /* Input may come before; a full buffer is left until the program takes it. */
        fds[1].fd = p->wire->have < sizeof(p->wire->in) ? fds[1].fd : -1;
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR) {
            return false;
        }
        if (fds[0].revents && recv(p->orders, order, sizeof(order), 0) >= 1 && order[0] == 'g') {
            return true;
        }
        if (fds[1].revents && wire_fill(p->wire) < 0) {
            return false;
        }
    }
}

/* As shells have it. */
static int tell_failure(struct wire *wire, const struct err *err)
{
    int status = err->code == -ENOENT ? 127 : 126;
    wire_fail(wire, status, err->text);
    return status;
}

int program_run(struct wire *wire, const struct wire_texts *request, bool first, int orders)
{
    static struct program program;
    struct program *p = &program;
    struct err err = {.code = 0};
    *p = (struct program){.wire = wire,
                          .orders = first ? orders : -1,
                          .input = -1,
                          .outputs = {-1, -1},
                          .terminal = wire_one(request, "terminal") != NULL};
    if (begin(p, request, &err) < 0) {
        return tell_failure(wire, &err);
    }
    if (first) {
        (void)wire_put(wire, WIRE_READY, NULL, 0);
        if (!await_go(p)) {
            kill(p->pid, SIGKILL);
            return 137;
        }
    }
    int rc = open_gate(p, &err);
    if (first) { /* whoever asked hears of it as well */
        char reply[ERR_TEXT_MAX + 1];
        reply[0] = rc < 0 ? 'f' : 's';
        snprintf(reply + 1, sizeof(reply) - 1, "%s", rc < 0 ? err.text : "");
        (void)send(orders, reply, strlen(reply), MSG_NOSIGNAL);
    }
    if (rc < 0) {
        return tell_failure(wire, &err);
    }
    (void)wire_put(wire, WIRE_STARTED, NULL, 0);
    int status = relay(p);
    if (status < 0) { /* nobody listens any more: as when a terminal is hung up */
        kill(p->pid, SIGHUP);
        return 129;
    }
    unsigned char byte = (unsigned char)status;
    if (first) {
        sync();
    }
    (void)wire_put(wire, WIRE_EXIT, &byte, 1);
    (void)wire_drain(wire);
    return status;
}
