/* status.json: what the container was last, for those who come when the monitor is gone. */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

const char *const life_names[] = {"creating", "created", "running", "paused", "restarting", "stopped"};

static json_t *time_or_null(int64_t ns)
{
    return ns ? json_integer(ns) : json_null();
}

static json_t *health_json(const struct monitor *m)
{
    const struct health *h = &m->health;
    if (h->status == HEALTH_OFF) {
        return json_null();
    }
    /* What the check printed need not be text. */
    json_t *output = json_string(h->last_output);
    return json_pack("{s:s, s:i, s:o, s:i, s:o}", "status", health_names[h->status], "failures",
                     (int)h->failures, "checked_ns", time_or_null(h->last_ns), "exit_status", h->last_status,
                     "output", output ? output : json_string("(not text)"));
}

json_t *record_status(const struct monitor *m)
{
    json_t *end = m->has_exit ? json_pack("{s:i, s:i, s:o}", "status", m->exit_status, "signal",
                                          m->exit_signal, "time_ns", time_or_null(m->ended_ns))
                              : json_null();
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:o, s:i, s:b, s:s, s:o, s:I}", "kind", "container",
                     "id", m->o.id, "state", life_names[m->life], "pid", (int)m->pid, "monitor_pid",
                     (int)getpid(), "created_ns", time_or_null(m->created_ns), "started_ns",
                     time_or_null(m->started_ns), "exit", end, "restarts", (int)m->restarts, "terminal",
                     m->terminal, "error", m->error, "health", health_json(m), "log_lost_bytes",
                     (json_int_t)m->log.lost_bytes);
}

void record_write(const struct monitor *m, bool durable)
{
    json_t *o = record_status(m);
    char *text = json_dumps(o, JSON_INDENT(2));
    json_decref(o);
    auto_close int fd = openat(m->dir_fd, "status.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t size = text ? strlen(text) : 0;
    bool ok = fd >= 0 && text && write(fd, text, size) == (ssize_t)size && write(fd, "\n", 1) == 1;
    ok = ok && (!durable || fdatasync(fd) == 0);
    ok = ok && renameat(m->dir_fd, "status.new", m->dir_fd, "status.json") == 0;
    if (!ok) {
        log_warning("cannot write status.json: %s", strerror(errno));
    } else if (durable) {
        (void)fsync(m->dir_fd);
    }
    free(text);
}
