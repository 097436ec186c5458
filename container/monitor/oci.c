/* Child programs: fonda-oci mostly. Their errors come as JSON lines on descriptor 3 (fonda-oci --log). */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>

extern char **environ;

pid_t child_spawn(const char *path, char *const *argv, const int *stdio, const int *more, size_t count,
                  struct err *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, defaults;
    pid_t pid = -1;
    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    for (int fd = 0; fd < 3; fd++) {
        if (stdio[fd] >= 0) {
            posix_spawn_file_actions_adddup2(&actions, stdio[fd], fd);
        } else {
            posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
        }
    }
    /* Out of the way first: a source may have a number that is another one's target. */
    for (size_t i = 0; i < count; i++) {
        posix_spawn_file_actions_adddup2(&actions, more[i], 900 + (int)i);
    }
    for (size_t i = 0; i < count; i++) {
        posix_spawn_file_actions_adddup2(&actions, 900 + (int)i, 3 + (int)i);
        posix_spawn_file_actions_addclose(&actions, 900 + (int)i);
    }
    int rc = posix_spawn(&pid, path, &actions, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return rc ? err_sys(err, -rc, "cannot run '%s'", path) : pid;
}

/* The newest error of fonda-oci's log; warnings go to the monitor's own. */
static void take_message(struct call *call, const char *line, size_t size)
{
    json_t *o = json_loadb(line, size, 0, NULL);
    const char *level = json_string_value(json_object_get(o, "level"));
    const char *text = json_string_value(json_object_get(o, "msg"));
    if (level && text && strcmp(level, "error") == 0) {
        snprintf(call->message, sizeof(call->message), "%s", text);
    } else if (text) {
        log_warning("fonda-oci: %s", text);
    }
    json_decref(o);
}

static void read_messages(struct call *call)
{
    char text[4096];
    ssize_t n = read(call->log.fd, text, sizeof(text)); /* its lines are shorter, and each is one write */
    for (char *p = text; n > 0 && p < text + n;) {
        char *end = memchr(p, '\n', (size_t)(text + n - p));
        end = end ? end : text + n;
        take_message(call, p, (size_t)(end - p));
        p = end + 1;
    }
}

static void on_log(struct loop_source *source, uint32_t events)
{
    struct call *call = CONTAINER_OF(source, struct call, log);
    if (events & EPOLLIN) {
        read_messages(call);
    } else {
        loop_close(&call->m->loop, source);
    }
}

/* False at the end. What goes beyond the limit is read and left out. */
static bool read_output(struct call *call)
{
    char text[4096];
    ssize_t n = read(call->out.fd, text, sizeof(text));
    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    size_t take = MIN((size_t)n, call->limit - call->size);
    if (call->size + take >= call->room) {
        size_t room = MAX(call->room * 2, call->size + take + 1);
        char *bigger = realloc(call->text, room);
        take = bigger ? take : 0;
        call->text = bigger ? bigger : call->text;
        call->room = bigger ? room : call->room;
    }
    if (call->text) {
        memcpy(call->text + call->size, text, take);
        call->size += take;
        call->text[call->size] = '\0';
    }
    return true;
}

static void on_output(struct loop_source *source, uint32_t events)
{
    struct call *call = CONTAINER_OF(source, struct call, out);
    if (!read_output(call)) {
        loop_close(&call->m->loop, source);
    }
}

static void on_overdue(struct loop_timer *timer)
{
    struct call *call = CONTAINER_OF(timer, struct call, timer);
    call->timed_out = true;
    if (call->overdue) {
        call->overdue(call);
    }
    kill(call->pid, SIGKILL);
}

static int pipe_for_reading(struct monitor *m, struct loop_source *source, int *ret_write_end)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        return -errno;
    }
    (void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
    source->fd = fds[0];
    *ret_write_end = fds[1];
    return loop_add(&m->loop, source, EPOLLIN);
}

static void call_free(struct call *call)
{
    loop_timer_stop(&call->m->loop, &call->timer);
    loop_close(&call->m->loop, &call->out);
    loop_close(&call->m->loop, &call->log);
    free(call->text);
    free(call);
}

struct call *oci_call(struct monitor *m, const char *const *args, const int *stdio, size_t limit,
                      unsigned seconds, void (*done)(struct call *), void *opaque, struct err *err)
{
    const char *argv[28] = {"fonda-oci", "--log", "/proc/self/fd/3", "--log-format", "json"};
    size_t n = 5;
    auto_close int out = -1;
    auto_close int log = -1;
    if (m->o.oci_root) {
        argv[n++] = "--root";
        argv[n++] = m->o.oci_root;
    }
    while (*args && n < ARRAY_SIZE(argv) - 1) {
        argv[n++] = *args++;
    }
    struct call *call = calloc(1, sizeof(*call));
    if (!call) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    *call = (struct call){.m = m, .done = done, .opaque = opaque, .limit = limit, .timer.fire = on_overdue};
    call->out = (struct loop_source){.fd = -1, .ready = on_output};
    call->log = (struct loop_source){.fd = -1, .ready = on_log};
    int rc = pipe_for_reading(m, &call->log, &log);
    rc = rc < 0 || stdio ? rc : pipe_for_reading(m, &call->out, &out);
    const int captured[3] = {-1, out, limit == EXEC_OUTPUT_MAX ? out : -1};
    call->pid = rc < 0 ? err_sys(err, rc, "cannot make a pipe")
                       : child_spawn(m->o.oci, (char *const *)(uintptr_t)argv, stdio ? stdio : captured, &log,
                                     1, err);
    if (call->pid < 0) {
        call_free(call);
        return NULL;
    }
    call->next = m->calls;
    m->calls = call;
    loop_timer_set(&m->loop, &call->timer, (int64_t)seconds * SECOND_NS);
    return call;
}

bool call_ended(struct monitor *m, pid_t pid, int status)
{
    struct call **p = &m->calls;
    while (*p && (*p)->pid != pid) {
        p = &(*p)->next;
    }
    struct call *call = *p;
    if (!call) {
        return false;
    }
    *p = call->next;
    /* What is in the pipes now is all that it said; others may still hold their other ends. */
    errno = 0;
    for (unsigned i = 0;
         call->out.fd >= 0 && i < OCI_OUTPUT_MAX / 4096 && read_output(call) && errno != EAGAIN; i++) {
        errno = 0;
    }
    if (call->log.fd >= 0) {
        read_messages(call);
    }
    call->status = call->timed_out ? 124 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (call->status && !call->message[0]) {
        snprintf(call->message, sizeof(call->message), "fonda-oci %s",
                 call->timed_out ? "took too long" : "failed without a word");
    }
    call->done(call);
    call_free(call);
    return true;
}
