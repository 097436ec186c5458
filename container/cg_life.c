/* Who is in the container's cgroups; killing, freezing. */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "container/cg.h"
#include "container/fault.h"
#include "container/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define CG_WAIT_MS 10000

/* The hierarchy whose process list counts: v2, or else one that every container is in. */
static const struct cg_hierarchy *main_hierarchy(const struct cg *cg)
{
    const struct cg_hierarchy *best = NULL;
    for (size_t i = 0; i < cg->count; i++) {
        if (cg->h[i].fd >= 0 && (cg->h[i].v2 || !best)) {
            best = &cg->h[i];
        }
    }
    return best;
}

static const struct cg_hierarchy *v1_freezer(const struct cg *cg)
{
    for (size_t i = 0; i < cg->count; i++) {
        if (!cg->h[i].v2 && cg->h[i].fd >= 0 && strstr(cg->h[i].controllers, ",freezer,")) {
            return &cg->h[i];
        }
    }
    return NULL;
}

static const struct cg_hierarchy *v2_with(const struct cg *cg, const char *file)
{
    for (size_t i = 0; i < cg->count; i++) {
        if (cg->h[i].v2 && cg->h[i].fd >= 0 && faccessat(cg->h[i].fd, file, F_OK, 0) == 0) {
            return &cg->h[i];
        }
    }
    return NULL;
}

struct pid_list {
    pid_t *v;
    size_t count;
    size_t room;
};

static int list_pids(int dirfd, struct pid_list *list, unsigned depth)
{
    int fd = openat(dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f) {
        return errno == ENOENT || errno == ENODEV ? 0 : -errno;
    }
    int pid;
    int rc = 0;
    while (rc == 0 && fscanf(f, "%d", &pid) == 1) {
        if (list->count == list->room) {
            size_t room = list->room ? list->room * 2 : 64;
            pid_t *v = reallocarray(list->v, room, sizeof(*v));
            if (!v) {
                rc = -ENOMEM;
                break;
            }
            list->v = v;
            list->room = room;
        }
        list->v[list->count++] = pid;
    }
    fclose(f);
    fd = rc < 0 || depth > 64 ? -1 : openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; dir && rc == 0 && (e = readdir(dir));) {
        if (e->d_type == DT_DIR && e->d_name[0] != '.') {
            auto_close int sub = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = sub < 0 ? 0 : list_pids(sub, list, depth + 1);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return rc;
}

int cg_pids(const struct cg *cg, pid_t **ret_pids, size_t *ret_count, struct err *err)
{
    const struct cg_hierarchy *h = main_hierarchy(cg);
    struct pid_list list = {NULL, 0, 0};
    if (!h) {
        return err_set(err, -ENOENT, "the container has no cgroup");
    }
    int rc = list_pids(h->fd, &list, 0);
    if (rc < 0) {
        free(list.v);
        return err_sys(err, rc, "cannot read the processes of cgroup '%s%s'", h->mount, cg->path);
    }
    *ret_pids = list.v;
    *ret_count = list.count;
    return 0;
}

static bool events_say(int fd, const char *line)
{
    char text[256];
    return cg_read(fd, "cgroup.events", text, sizeof(text)) > 0 && strstr(text, line);
}

bool cg_populated(const struct cg *cg)
{
    const struct cg_hierarchy *v2 = v2_with(cg, "cgroup.events");
    if (v2) {
        return events_say(v2->fd, "populated 1");
    }
    auto_free pid_t *pids = NULL;
    size_t count = 0;
    return cg_pids(cg, &pids, &count, NULL) == 0 && count > 0;
}

bool cg_frozen(const struct cg *cg)
{
    char text[256];
    const struct cg_hierarchy *h = v2_with(cg, "cgroup.freeze");
    if (h && cg_read(h->fd, "cgroup.freeze", text, sizeof(text)) > 0 && text[0] == '1') {
        return true;
    }
    h = v1_freezer(cg);
    return h && cg_read(h->fd, "freezer.state", text, sizeof(text)) > 0 && strcmp(text, "THAWED") != 0;
}

static int64_t now_ms(void)
{
    return (int64_t)(clock_host_ns() / 1000000);
}

/* cgroup v1 freezer: FREEZING may need another try while processes fork (kernel freezer-subsystem.rst). */
static int freeze_v1(const struct cg_hierarchy *h, bool freeze)
{
    const char *wanted = freeze ? "FROZEN" : "THAWED";
    int64_t end = now_ms() + CG_WAIT_MS;
    do {
        char text[64];
        int rc = write_file_at(h->fd, "freezer.state", wanted);
        if (rc == 0 && (rc = cg_read(h->fd, "freezer.state", text, sizeof(text))) > 0 &&
            !strcmp(text, wanted)) {
            return 0;
        }
        if (rc < 0) {
            return rc;
        }
        usleep(1000);
    } while (now_ms() < end);
    write_file_at(h->fd, "freezer.state", "THAWED");
    return -ETIMEDOUT;
}

static int freeze_v2(const struct cg_hierarchy *h, bool freeze)
{
    int64_t end = now_ms() + CG_WAIT_MS;
    auto_close int fd = openat(h->fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
    int rc = write_file_at(h->fd, "cgroup.freeze", freeze ? "1" : "0");
    while (rc == 0 && freeze && !events_say(h->fd, "frozen 1")) {
        struct pollfd p = {.fd = fd, .events = POLLPRI};
        if (now_ms() >= end) {
            write_file_at(h->fd, "cgroup.freeze", "0");
            return -ETIMEDOUT;
        }
        poll(&p, 1, 10);
    }
    return rc;
}

int cg_freeze(struct cg *cg, bool freeze, struct err *err)
{
    const struct cg_hierarchy *v2 = v2_with(cg, "cgroup.freeze");
    const struct cg_hierarchy *v1 = v1_freezer(cg);
    int rc = -ENOENT;
    if (v2) {
        rc = freeze_v2(v2, freeze);
    }
    /* Thawing takes away what others may have frozen by v1; freezing needs one of the two. */
    if (v1 && (!v2 || !freeze)) {
        rc = freeze_v1(v1, freeze);
    }
    if (rc == -ENOENT) {
        return err_set(err, -EOPNOTSUPP,
                       "the container can't be %s: it has neither a cgroup2 nor a v1 freezer cgroup",
                       freeze ? "paused" : "resumed");
    }
    return rc < 0 ? err_sys(err, rc, "cannot %s the container", freeze ? "pause" : "resume") : 0;
}

int cg_signal(struct cg *cg, int signal, struct err *err)
{
    auto_free pid_t *pids = NULL;
    size_t count = 0;
    int rc = cg_pids(cg, &pids, &count, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        if (pids[i] > 0 && kill(pids[i], signal) < 0 && errno != ESRCH) {
            rc = err_sys(err, -errno, "cannot signal process %d", (int)pids[i]);
        }
    }
    return rc;
}

/* Who sits in somebody else's frozen v1 cgroup can't die there: takes them into the container's own, which is
 * thawed. */
static void take_from_freezers(struct cg *cg, const struct cg_hierarchy *freezer)
{
    auto_free pid_t *pids = NULL;
    size_t count = 0;
    if (!freezer || cg_pids(cg, &pids, &count, NULL) < 0) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        char text[24];
        snprintf(text, sizeof(text), "%d", (int)pids[i]);
        int rc = write_file_at(freezer->fd, "cgroup.procs", text);
        if (rc < 0 && rc != -ESRCH) {
            log_debug("cannot move process %s to the container's freezer cgroup: %s", text, strerror(-rc));
        }
    }
}

int cg_kill(struct cg *cg, struct err *err)
{
    int64_t end = now_ms() + CG_WAIT_MS;
    const struct cg_hierarchy *v2 = v2_with(cg, "cgroup.kill");
    const struct cg_hierarchy *freezer = v1_freezer(cg);
    unsigned pause_us = 200;
    if (!main_hierarchy(cg)) {
        return 0;
    }
    while (cg_populated(cg)) {
        int rc;
        if (v2) {
            rc = write_file_at(v2->fd, "cgroup.kill", "1");
            rc = rc < 0 ? err_sys(err, rc, "cannot kill the processes of the container") : 0;
        } else {
            /* Frozen, nobody can fork away between being listed and being killed. */
            if (freezer) {
                write_file_at(freezer->fd, "freezer.state", "FROZEN");
            }
            rc = cg_signal(cg, SIGKILL, err);
        }
        if (freezer) {
            write_file_at(freezer->fd, "freezer.state", "THAWED");
        }
        if (rc < 0) {
            return rc;
        }
        if (now_ms() > end) {
            return err_set(err, -ETIMEDOUT, "processes of the container are still there %d s after SIGKILL",
                           CG_WAIT_MS / 1000);
        }
        usleep(pause_us);
        pause_us = MIN(pause_us * 2, 20000u);
        if (pause_us == 20000) {
            take_from_freezers(cg, freezer);
        }
    }
    return 0;
}
