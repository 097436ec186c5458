/* The container's life: the diagram of monitor.h. */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#define BACKOFF_FIRST_NS (SECOND_NS / 10) /* doubles with every restart */
#define BACKOFF_LAST_NS  (60 * SECOND_NS)
#define BACKOFF_STEPS    10u
#define STEADY_NS        (10 * SECOND_NS) /* who ran for so long starts from the first delay again */
#define STATUS_NO_START  125              /* exit status of a container that could not be started */

static void finish(struct monitor *m);
static void child_ended(struct monitor *m, int status);
static int restart_now(struct monitor *m, struct err *err);

void life_set(struct monitor *m, enum life life)
{
    m->life = life;
    record_write(m, life == LIFE_RUNNING || life == LIFE_STOPPED);
    server_event(m, "state", json_pack("{s:s}", "state", life_names[life]));
}

/* To whoever started this program; once. */
static void report(struct monitor *m, const char *text)
{
    if (m->report_fd >= 0) {
        (void)!write(m->report_fd, *text ? text : "\n", *text ? strlen(text) : 1);
        close(m->report_fd);
        m->report_fd = -1;
    }
}

/* --- the end --- */

static bool wants_restart(const struct monitor *m)
{
    if (m->stopping || m->quitting || m->never_ran || m->restart == RESTART_NO) {
        return false;
    }
    return m->restart == RESTART_ALWAYS ||
           (m->exit_status != 0 && (m->restart_limit == 0 || m->restarts < m->restart_limit));
}

static void on_backoff(struct loop_timer *timer)
{
    struct monitor *m = CONTAINER_OF(timer, struct monitor, restart_timer);
    struct err err = {.code = 0};
    m->restarts++;
    if (restart_now(m, &err) < 0) {
        snprintf(m->error, sizeof(m->error), "%s", err.text);
        finish(m);
    }
}

static void on_deleted(struct call *call)
{
    struct monitor *m = call->m;
    if (call->status) {
        log_warning("cannot clear container '%s' away: %s", m->o.id, call->message);
    }
    if (!wants_restart(m)) {
        finish(m);
        return;
    }
    bool steady = m->started_mono_ns && loop_now_ns() - m->started_mono_ns >= STEADY_NS;
    m->attempt = steady ? 0 : m->attempt;
    int64_t delay = MIN(BACKOFF_FIRST_NS << MIN(m->attempt, BACKOFF_STEPS), BACKOFF_LAST_NS);
    m->attempt++;
    life_set(m, LIFE_RESTARTING);
    loop_timer_set(&m->loop, &m->restart_timer, delay);
}

/* The run is over: the container is cleared away, whatever is left of it. */
static void clear_away(struct monitor *m)
{
    const char *const args[] = {"delete", "--force", m->o.id, NULL};
    struct err err = {.code = 0};
    health_end(m);
    memory_end(m);
    loop_timer_stop(&m->loop, &m->stop_timer);
    streams_drain(m);
    if (m->netd > 0) {
        kill(m->netd, SIGTERM);
    }
    loop_close(&m->loop, &m->netd_ready);
    m->pid = 0;
    m->has_exit = true;
    m->ended_ns = loop_wall_ns();
    (void)unlinkat(m->dir_fd, "pid", 0);
    record_write(m, true);
    server_event(m, "exit",
                 json_pack("{s:i, s:i, s:i, s:b}", "status", m->exit_status, "signal", m->exit_signal,
                           "restarts", (int)m->restarts, "restarting", wants_restart(m)));
    if (!oci_call(m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, on_deleted, NULL, &err)) {
        log_warning("%s", err.text);
        finish(m);
    }
}

static void finish(struct monitor *m)
{
    if (m->stop_job == JOB_RUNNING) {
        m->stop_job = JOB_DONE;
    }
    logfile_close(&m->log);
    life_set(m, LIFE_STOPPED);
    if (m->stop_job == JOB_DONE) {
        server_event(m, "job", methods_job_json(m));
        methods_job_ended(m);
    }
    report(m, m->error);
    streams_end(m);
}

static void child_ended(struct monitor *m, int status)
{
    m->exit_signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    m->exit_status = m->exit_signal ? 128 + m->exit_signal : WEXITSTATUS(status);
    clear_away(m);
}

static void start_failed(struct monitor *m, const char *why)
{
    snprintf(m->error, sizeof(m->error), "%s", why);
    log_warning("%s", why);
}

/* --- start --- */

static void on_started(struct call *call)
{
    struct monitor *m = call->m;
    m->starting = false;
    if (call->status) {
        start_failed(m, call->message);
        if (m->child_ended) {
            child_ended(m, m->child_status);
        } else {
            kill(m->pid, SIGKILL);
        }
        return;
    }
    m->never_ran = false;
    m->error[0] = '\0';
    m->started_ns = loop_wall_ns();
    m->started_mono_ns = loop_now_ns();
    life_set(m, LIFE_RUNNING);
    report(m, "");
    if (m->child_ended) {
        child_ended(m, m->child_status);
        return;
    }
    health_begin(m);
    if (m->stopping) {
        life_stop(m, m->quitting);
    }
}

int life_start(struct monitor *m, struct err *err)
{
    const char *const args[] = {"start", m->o.id, NULL};
    if (m->starting) {
        return err_set(err, -EALREADY, "container '%s' is being started", m->o.id);
    }
    m->starting = oci_call(m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, on_started, NULL, err) != NULL;
    return m->starting ? 0 : err->code;
}

static void created(struct monitor *m)
{
    struct err err = {.code = 0};
    life_set(m, LIFE_CREATED);
    if (m->o.hold && m->never_ran && !m->stopping) {
        report(m, "");
    } else if (life_start(m, &err) < 0) {
        start_failed(m, err.text);
        kill(m->pid, SIGKILL);
    }
}

/* fonda-netd says "ok" or what is wrong. */
static void on_netd_ready(struct loop_source *source, uint32_t events)
{
    struct monitor *m = CONTAINER_OF(source, struct monitor, netd_ready);
    char text[ERR_TEXT_MAX];
    ssize_t n = read(source->fd, text, sizeof(text) - 1);
    loop_close(&m->loop, source);
    text[MAX(n, 0)] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (strcmp(text, "ok") == 0) {
        created(m);
        return;
    }
    start_failed(m, *text ? text : "fonda-netd ended early");
    kill(m->pid, SIGKILL);
}

static int start_netd(struct monitor *m, struct err *err)
{
    static const int stdio[3] = {-1, -1, 2};
    char pid[16];
    int pair[2];
    int fds[3] = {-1, -1, -1}; /* where it reports, user namespace, network namespace */
    const char *argv[2 * OPTION_LIST_MAX + 6] = {"fonda-netd", "--pid", pid, "--namespaces"};
    size_t n = 4;
    snprintf(pid, sizeof(pid), "%d", (int)m->pid);
    for (unsigned i = 0; i < m->o.publish.count; i++) {
        argv[n++] = "--publish";
        argv[n++] = m->o.publish.values[i];
    }
    int rc = receiver_take(m, &m->ns, "ns.sock", fds + 1, 2, err);
    if (rc < 0) {
        return rc;
    }
    rc = pipe2(pair, O_CLOEXEC) < 0 ? err_sys(err, -errno, "cannot make a pipe") : 0;
    if (rc == 0) {
        fds[0] = pair[1];
        m->netd_ready = (struct loop_source){.fd = pair[0], .ready = on_netd_ready};
        m->netd = child_spawn(m->o.netd, (char *const *)(uintptr_t)argv, stdio, fds, 3, err);
        rc = m->netd < 0 ? m->netd : loop_add(&m->loop, &m->netd_ready, EPOLLIN);
    }
    for (unsigned i = 0; i < 3; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    return rc;
}

static bool has_netd(const struct monitor *m)
{
    return m->o.network && strcmp(m->o.network, "user") == 0;
}

static int read_pid(const struct monitor *m)
{
    char text[16] = "";
    auto_close int fd = openat(m->dir_fd, "pid", O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 ? atoi(text) : 0;
}

static void on_created(struct call *call)
{
    struct monitor *m = call->m;
    struct err err = {.code = 0};
    int *stdio = call->opaque;
    streams_created(m, stdio);
    if (call->status) {
        start_failed(m, call->message);
        m->exit_status = STATUS_NO_START;
        m->exit_signal = 0;
        clear_away(m);
        return;
    }
    m->pid = read_pid(m);
    memory_begin(m);
    for (unsigned i = 0; i < ENDED_MAX; i++) {
        if (m->ended[i].pid == m->pid) { /* it was killed before we knew it */
            start_failed(m, "the container's first process ended before it was started");
            child_ended(m, m->ended[i].status);
            return;
        }
    }
    int rc = m->terminal ? streams_take_terminal(m, &err) : 0;
    if (rc == 0 && has_netd(m)) {
        rc = start_netd(m, &err);
    } else if (rc == 0) {
        created(m);
    }
    if (rc < 0) {
        start_failed(m, err.text);
        kill(m->pid, SIGKILL);
    }
}

static int restart_now(struct monitor *m, struct err *err)
{
    static int stdio[3];
    char pid_file[64];
    char console[64];
    char ns[64];
    const char *args[12] = {"create", "--bundle", m->o.bundle, "--pid-file", pid_file};
    size_t n = 5;
    memset(stdio, -1, sizeof(stdio));
    memset(m->ended, 0, sizeof(m->ended));
    m->child_ended = false;
    m->pid = 0;
    m->started_mono_ns = 0;
    snprintf(pid_file, sizeof(pid_file), "/proc/%d/fd/%d/pid", (int)getpid(), m->dir_fd);
    snprintf(console, sizeof(console), "/proc/%d/fd/%d/console.sock", (int)getpid(), m->dir_fd);
    if (m->terminal) {
        args[n++] = "--console-socket";
        args[n++] = console;
    }
    int rc = 0;
    if (has_netd(m)) {
        snprintf(ns, sizeof(ns), "/proc/%d/fd/%d/ns.sock", (int)getpid(), m->dir_fd);
        args[n++] = "--namespace-socket";
        args[n++] = ns;
        rc = receiver_listen(m, &m->ns, "ns.sock", err);
    }
    args[n++] = m->o.id;
    rc = rc < 0 ? rc : streams_prepare(m, stdio, err);
    if (rc < 0) {
        return rc;
    }
    m->life = LIFE_CREATING;
    m->created_ns = loop_wall_ns();
    record_write(m, false);
    return oci_call(m, args, stdio, 1, OCI_SECONDS, on_created, stdio, err) ? 0 : err->code;
}

static void on_cleared(struct call *call)
{
    struct err err = {.code = 0};
    if (restart_now(call->m, &err) < 0) {
        start_failed(call->m, err.text);
        finish(call->m);
    }
}

int life_begin(struct monitor *m, struct err *err)
{
    /* What a monitor that was killed has left. */
    const char *const args[] = {"delete", "--force", m->o.id, NULL};
    m->never_ran = true;
    m->restart_timer.fire = on_backoff;
    return oci_call(m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, on_cleared, NULL, err) ? 0 : err->code;
}

/* --- signals --- */

static void ignore_result(struct call *call)
{
    if (call->status) {
        log_warning("%s", call->message);
    }
}

int life_signal(struct monitor *m, int signal, struct err *err)
{
    if (m->pid <= 0) {
        return err_set(err, -ESRCH, "container '%s' is %s", m->o.id, life_names[m->life]);
    }
    if (m->life == LIFE_PAUSED && signal == SIGKILL) { /* the runtime knows how to kill what is frozen */
        const char *const args[] = {"kill", m->o.id, "KILL", NULL};
        return oci_call(m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, ignore_result, NULL, err) ? 0 : err->code;
    }
    return kill(m->pid, signal) < 0 ? err_sys(err, -errno, "cannot signal container '%s'", m->o.id) : 0;
}

static void on_stop_timeout(struct loop_timer *timer)
{
    life_stop(CONTAINER_OF(timer, struct monitor, stop_timer), true);
}

static void on_resumed_to_stop(struct call *call)
{
    if (call->m->life == LIFE_PAUSED) {
        life_set(call->m, LIFE_RUNNING);
        life_stop(call->m, call->status != 0);
    }
}

void life_stop(struct monitor *m, bool force)
{
    struct err err = {.code = 0};
    m->stopping = true;
    m->stop_job = JOB_RUNNING;
    if (m->life == LIFE_RESTARTING) {
        loop_timer_stop(&m->loop, &m->restart_timer);
        finish(m);
        return;
    }
    int rc = 0;
    if (m->life == LIFE_CREATED || (force && m->pid > 0)) {
        rc = life_signal(m, SIGKILL, &err);
    } else if (m->life == LIFE_PAUSED) {
        const char *const args[] = {"resume", m->o.id, NULL};
        rc = oci_call(m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, on_resumed_to_stop, NULL, &err) ? 0
                                                                                                  : err.code;
    } else if (m->life == LIFE_RUNNING && m->pid > 0) {
        rc = life_signal(m, m->stop_signal, &err);
        m->stop_timer.fire = on_stop_timeout;
        loop_timer_set(&m->loop, &m->stop_timer, (int64_t)m->o.stop_timeout_s * SECOND_NS);
    }
    if (rc < 0) {
        log_warning("%s", err.text);
    }
}

void life_quit(struct monitor *m)
{
    m->quitting = true;
    life_stop(m, true);
}

/* --- children --- */

static void netd_ended(struct monitor *m)
{
    m->netd = 0;
    if (m->pid > 0 && m->life != LIFE_CREATING) {
        log_warning("fonda-netd ended: container '%s' has no network until it is restarted", m->o.id);
        server_event(m, "network", json_pack("{s:s}", "state", "down"));
    }
}

void life_reap(struct monitor *m)
{
    pid_t pid;
    int status;
    while (!m->loop.ended && (pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == m->pid) {
            m->child_ended = true;
            m->child_status = status;
            if (!m->starting) {
                child_ended(m, status);
            }
        } else if (pid == m->netd) {
            netd_ended(m);
        } else if (!call_ended(m, pid, status)) {
            m->ended[m->ended_next++ % ENDED_MAX] = (struct ended){pid, status};
        }
    }
}
