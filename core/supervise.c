/*
 * One thread that sees the processes of instances end, by their pidfds: children of this daemon, and those of
 * a former one, which are nobody's children any more.
 *
 *     watched --- the process ends ---> lingering --- its lock is free, or LINGER_MS ---> instance_ended()
 *
 * A machine in its jail is two processes: when the one outside is killed, the one inside goes a moment later,
 * and until then has the machine's disks. Whoever holds the instance's lock last is the end of it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/util.h"
#include "core/core_int.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

#define LINGER_MS      5000u
#define LINGER_POLL_MS 2

bool supervise_has(struct core *core, const char *id)
{
    for (unsigned i = 0; i < core->watched_count; i++) {
        if (strcmp(core->watched[i].id, id) == 0) {
            return true;
        }
    }
    return false;
}

int supervise_add(struct core *core, const char *id, pid_t pid, struct fault *fault)
{
    if (core->watched_count == core->watched_room) {
        unsigned room = core->watched_room ? 2 * core->watched_room : 16;
        struct watched *more = realloc(core->watched, room * sizeof(*more));
        if (!more) {
            return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
        }
        core->watched = more;
        core->watched_room = room;
    }
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct watched *watched = &core->watched[core->watched_count];
    snprintf(watched->id, sizeof(watched->id), "%s", id);
    watched->pid = pid;
    watched->pidfd = fd;
    watched->until_ms = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || epoll_ctl(core->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = errno;
        if (fd >= 0) {
            close(fd);
        }
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot watch process %d: %s", (int)pid,
                         strerror(error));
    }
    core->watched_count++;
    return 0;
}

/* The status that the process left: as our child's, or in the file that it wrote; -1: unknown. */
static int status_of(struct core *core, const struct watched *watched)
{
    siginfo_t info = {0};
    bool child = waitid(P_PIDFD, (id_t)watched->pidfd, &info, WEXITED) == 0;
    if (child && info.si_code != CLD_EXITED) { /* the monitor's own death says nothing of a container's end */
        return 128 + info.si_status;
    }
    if (child) {
        return info.si_status;
    }
    struct driver_instance paths;
    instance_paths(core, watched->id, &paths);
    FILE *file = fopen(paths.status, "re");
    int status = -1;
    if (file) {
        if (fscanf(file, "%d", &status) != 1) {
            status = -1;
        }
        fclose(file);
    }
    return status < 0 ? driver_container.exit_status(&paths) : status;
}

static void ended(struct core *core, int fd)
{
    for (unsigned i = 0; i < core->watched_count; i++) {
        struct watched *watched = &core->watched[i];
        if (watched->pidfd == fd) {
            watched->status = status_of(core, watched);
            watched->until_ms = monotonic_ms() + LINGER_MS;
            epoll_ctl(core->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
            close(fd);
            watched->pidfd = -1;
            return;
        }
    }
}

static bool lingers(struct core *core, const struct watched *watched)
{
    struct driver_instance paths;
    instance_paths(core, watched->id, &paths);
    return monotonic_ms() < watched->until_ms && driver_is_locked(&paths);
}

/* Returns whether some still linger. */
static bool settle(struct core *core)
{
    bool some = false;
    for (unsigned i = 0; i < core->watched_count;) {
        struct watched watched = core->watched[i];
        if (watched.pidfd < 0 && !lingers(core, &watched)) {
            core->watched[i] = core->watched[--core->watched_count];
            instance_ended(core, watched.id, watched.status);
        } else {
            some |= watched.pidfd < 0;
            i++;
        }
    }
    return some;
}

static void *supervisor(void *arg)
{
    struct core *core = arg;
    struct epoll_event events[16];
    for (bool some = false;;) {
        int n = epoll_wait(core->epoll_fd, events, ARRAY_SIZE(events), some ? LINGER_POLL_MS : -1);
        core_lock(core);
        if (core->closing) {
            core_unlock(core);
            return NULL;
        }
        for (int i = 0; i < n; i++) {
            ended(core, events[i].data.fd);
        }
        some = settle(core);
        core_unlock(core);
    }
}

int supervise_open(struct core *core, struct err *err)
{
    core->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    core->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = core->wake_fd};
    if (core->epoll_fd < 0 || core->wake_fd < 0 ||
        epoll_ctl(core->epoll_fd, EPOLL_CTL_ADD, core->wake_fd, &event) < 0) {
        return err_sys(err, -errno, "cannot watch processes");
    }
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * KiB);
    int rc = -pthread_create(&core->supervisor, &attr, supervisor, core);
    pthread_attr_destroy(&attr);
    core->supervising = rc == 0;
    return rc < 0 ? err_sys(err, rc, "cannot start a thread") : 0;
}

void supervise_close(struct core *core)
{
    if (core->supervising) {
        eventfd_t one = 1;
        core_lock(core);
        core->closing = true;
        core_unlock(core);
        eventfd_write(core->wake_fd, one);
        pthread_join(core->supervisor, NULL);
    }
    for (unsigned i = 0; i < core->watched_count; i++) {
        if (core->watched[i].pidfd >= 0) {
            close(core->watched[i].pidfd);
        }
    }
    free(core->watched);
    if (core->epoll_fd >= 0) {
        close(core->epoll_fd);
    }
    if (core->wake_fd >= 0) {
        close(core->wake_fd);
    }
}
