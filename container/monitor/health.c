/*
 * Health checks: a command that runs in the container every interval. `retries` failures in a row, or a check
 * that takes longer than its timeout, make it unhealthy; failures before the first success and within the
 * start period don't count.
 */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

const char *const health_names[] = {"none", "starting", "healthy", "unhealthy"};

static void set_status(struct monitor *m, enum health_status status)
{
    struct health *h = &m->health;
    bool changed = h->status != status;
    h->status = status;
    record_write(m, false);
    if (!changed) {
        return;
    }
    server_event(m, "health",
                 json_pack("{s:s, s:i}", "status", health_names[status], "failures", (int)h->failures));
    if (status == HEALTH_UNHEALTHY && m->health_action == HEALTH_KILL) {
        struct err err = {.code = 0};
        if (life_signal(m, SIGKILL, &err) < 0) { /* the restart policy does the rest */
            log_warning("%s", err.text);
        }
    } else if (status == HEALTH_UNHEALTHY && m->health_action == HEALTH_STOP) {
        life_stop(m, false);
    }
}

/* A check that hangs: killing fonda-oci alone would leave the command running, which then becomes our child.
 */
static void on_overdue(struct call *call)
{
    char text[16] = "";
    auto_close int fd = openat(call->m->dir_fd, "health.pid", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0) {
        pid_t pid = (pid_t)atoi(text);
        if (pid > 1) {
            kill(pid, SIGKILL); /* its parent is fonda-oci, which hasn't been waited for: the pid is still its
                                   own */
        }
    }
}

static void on_checked(struct call *call)
{
    struct monitor *m = call->m;
    struct health *h = &m->health;
    h->call = NULL;
    (void)unlinkat(m->dir_fd, "health.pid", 0);
    if (m->life != LIFE_RUNNING) {
        return;
    }
    h->last_ns = loop_wall_ns();
    h->last_status = call->status;
    snprintf(h->last_output, sizeof(h->last_output), "%s",
             call->text && *call->text ? call->text : call->message);
    loop_timer_set(&m->loop, &h->timer, (int64_t)m->o.health_interval_s * SECOND_NS);
    if (call->status == 0) {
        h->failures = 0;
        set_status(m, HEALTH_HEALTHY);
        return;
    }
    bool starting = h->status == HEALTH_STARTING &&
                    loop_now_ns() - m->started_mono_ns < (int64_t)m->o.health_start_s * SECOND_NS;
    h->failures += starting ? 0 : 1;
    set_status(m, h->failures >= m->o.health_retries ? HEALTH_UNHEALTHY : h->status);
}

static void on_due(struct loop_timer *timer)
{
    struct monitor *m = CONTAINER_OF(timer, struct monitor, health.timer);
    struct health *h = &m->health;
    if (m->life != LIFE_RUNNING || h->call) { /* paused: later */
        loop_timer_set(&m->loop, timer, (int64_t)m->o.health_interval_s * SECOND_NS);
        return;
    }
    char pid_file[64];
    snprintf(pid_file, sizeof(pid_file), "/proc/%d/fd/%d/health.pid", (int)getpid(), m->dir_fd);
    const char *const args[] = {"exec",    "--pid-file", pid_file,        m->o.id,
                                "/bin/sh", "-c",         m->o.health_cmd, NULL};
    struct err err = {.code = 0};
    h->call =
        oci_call(m, args, NULL, EXEC_OUTPUT_MAX, (unsigned)m->o.health_timeout_s, on_checked, NULL, &err);
    if (h->call) {
        h->call->overdue = on_overdue;
    } else {
        log_warning("health check: %s", err.text);
        loop_timer_set(&m->loop, timer, (int64_t)m->o.health_interval_s * SECOND_NS);
    }
}

void health_begin(struct monitor *m)
{
    struct health *h = &m->health;
    if (!m->o.health_cmd) {
        return;
    }
    h->status = HEALTH_STARTING;
    h->failures = 0;
    h->timer.fire = on_due;
    loop_timer_set(&m->loop, &h->timer, (int64_t)m->o.health_interval_s * SECOND_NS);
}

void health_end(struct monitor *m)
{
    loop_timer_stop(&m->loop, &m->health.timer);
}
