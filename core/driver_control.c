/*
 * What all drivers share whose processes speak the control protocol: forking with the lock, waiting for the
 * socket, calls.
 *
 * The lock: start() takes flock() on the instance's lock file and lets the child inherit the descriptor.
 * flock belongs to the open file, so it is held until the last copy of the descriptor is closed: the child's,
 * when it ends, however it ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "base/util.h"
#include "control/client.h"
#include "core/core_int.h"

#define CALL_TIMEOUT_MS    5000
#define START_TIMEOUT_MS   20000
#define RESTORE_TIMEOUT_MS 120000 /* under kvm, all memory is read first */
#define OUTPUT_TAIL        400

static void sleep_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

/* ---- the process ---- */

static void child(const struct driver_instance *instance, char *const *argv, int lock_fd)
{
    char path[2 * DRIVER_PATH_MAX], pid[16];
    setsid();
    snprintf(path, sizeof(path), "%s/output", instance->dir);
    int in = open("/dev/null", O_RDONLY);
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    int len = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    if (in < 0 || out < 0 || ftruncate(lock_fd, 0) < 0 || pwrite(lock_fd, pid, (size_t)len, 0) != len) {
        _exit(127);
    }
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    /* Number 3 is the lock; nothing else of the daemon's is inherited. */
    if (lock_fd != 3) {
        dup2(lock_fd, 3);
    } else {
        fcntl(3, F_SETFD, 0);
    }
    close_range(4, ~0u, 0);
    signal(SIGPIPE, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(argv[0], argv);
    dprintf(2, "cannot run '%s': %s\n", argv[0], strerror(errno));
    _exit(127);
}

int driver_spawn(const struct driver_instance *instance, char *const *argv, pid_t *ret_pid,
                 struct fault *fault)
{
    auto_close int lock_fd = open(instance->lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock_fd < 0) {
        struct err err = {0};
        err_sys(&err, -errno, "cannot open '%s'", instance->lock);
        return fault_from_err(fault, &err);
    }
    if (flock(lock_fd, LOCK_EX | LOCK_NB) < 0) {
        return fault_set(fault, FAULT_STATE, NULL, "instance '%s' has a process already", instance->name);
    }
    unlink(instance->status);
    /* Empty as long as no process was started with it: recover.c can tell whether one was. */
    if (ftruncate(lock_fd, 0) < 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot write '%s': %s", instance->lock,
                         strerror(errno));
    }
    pid_t pid = fork();
    if (pid < 0) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot start a process: %s", strerror(errno));
    }
    if (pid == 0) {
        child(instance, argv, lock_fd);
    }
    *ret_pid = pid;
    return 0;
}

/* The last line that a process that failed wrote. */
static void output_tail(const struct driver_instance *instance, char *buf, size_t size)
{
    char path[2 * DRIVER_PATH_MAX], text[OUTPUT_TAIL + 1];
    snprintf(path, sizeof(path), "%s/output", instance->dir);
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    ssize_t n = end < 0 ? -1 : pread(fd, text, OUTPUT_TAIL, MAX(end - OUTPUT_TAIL, (off_t)0));
    text[n > 0 ? n : 0] = '\0';
    size_t len = strlen(text);
    while (len && text[len - 1] == '\n') {
        text[--len] = '\0';
    }
    const char *line = strrchr(text, '\n');
    snprintf(buf, size, "%s", line ? line + 1 : text);
}

/* Whether it serves its socket: it listens; or, if it has to answer, its main loop runs. */
static bool is_ready(const struct driver_instance *instance, bool answers)
{
    struct control_client *client = NULL;
    if (control_connect(instance->control, &client, NULL) < 0) {
        return false;
    }
    bool ready = !answers || control_client_call(client, "status", NULL, CALL_TIMEOUT_MS, NULL, NULL) == 0;
    control_client_free(client);
    return ready;
}

static int await(const struct driver_instance *instance, pid_t pid, bool answers, unsigned timeout_ms,
                 struct fault *fault)
{
    uint64_t until = monotonic_ms() + timeout_ms;
    for (long pause = 1; monotonic_ms() < until; pause = MIN(2 * pause, 20l)) {
        if (is_ready(instance, answers)) {
            return 0;
        }
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid) {
            char tail[OUTPUT_TAIL + 1];
            output_tail(instance, tail, sizeof(tail));
            waitpid(pid, NULL, 0);
            return fault_set(fault, FAULT_INVALID, "change the instance, then start it again",
                             "it did not start: %s", tail[0] ? tail : "its process ended at once");
        }
        sleep_ms(pause);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return fault_set(fault, FAULT_TIMEOUT, "see its output file",
                     "the process of '%s' did not get ready in %u s", instance->name, timeout_ms / 1000);
}

int driver_await(const struct driver_instance *instance, pid_t pid, struct fault *fault)
{
    return await(instance, pid, false, START_TIMEOUT_MS, fault);
}

int driver_await_answer(const struct driver_instance *instance, pid_t pid, struct fault *fault)
{
    return await(instance, pid, true, RESTORE_TIMEOUT_MS, fault);
}

/* Whoever listens is the peer (unix(7), SO_PEERCRED). */
pid_t driver_server(const struct driver_instance *instance)
{
    struct control_client *client = NULL;
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    if (control_connect(instance->control, &client, NULL) < 0) {
        return 0;
    }
    int rc = getsockopt(control_client_fd(client), SOL_SOCKET, SO_PEERCRED, &peer, &len);
    control_client_free(client);
    return rc < 0 ? 0 : peer.pid;
}

/* ---- calls ---- */

int driver_control_call(const struct driver_instance *instance, const char *method, json_t *params,
                        json_t **ret_result, struct fault *fault)
{
    struct control_client *client = NULL;
    struct err err = {0};
    if (control_connect(instance->control, &client, &err) < 0) {
        json_decref(params);
        return fault_set(fault, FAULT_UNAVAILABLE, "if it stays so: fonda stop --force", "instance '%s': %s",
                         instance->name, err.text);
    }
    int rc = control_client_call(client, method, params, CALL_TIMEOUT_MS, ret_result, &err);
    bool refused = rc == -EREMOTEIO;
    control_client_free(client);
    if (rc < 0) {
        return fault_set(fault, refused ? FAULT_STATE : FAULT_UNAVAILABLE, NULL, "instance '%s': %s",
                         instance->name, err.text);
    }
    return 0;
}

#define JOB_TIMEOUT_MS  120000 /* of one answer: under kvm, the machine's process writes memory meanwhile */
#define JOB_POLL_MS     20
#define JOB_POLL_MAX_MS 250

static int job_call(struct control_client *client, const char *method, const char *job, json_t **ret,
                    struct err *err)
{
    return control_client_call(client, method, json_pack("{s:s}", "job", job), JOB_TIMEOUT_MS, ret, err);
}

/* Until the job has ended; ret is how. */
static int follow_job(struct control_client *client, const char *job, const struct driver_progress *progress,
                      json_t **ret, struct err *err)
{
    bool canceled = false;
    for (long pause = JOB_POLL_MS;; pause = MIN(2 * pause, (long)JOB_POLL_MAX_MS)) {
        json_t *now = NULL;
        int rc = job_call(client, "job_status", job, &now, err);
        if (rc < 0) {
            return rc;
        }
        if (strcmp(obj_text(now, "state"), "running") != 0) {
            *ret = now;
            return 0;
        }
        if (progress && progress->bytes) {
            progress->bytes(progress->opaque, obj_int(now, "done"), obj_int(now, "total"));
        }
        json_decref(now);
        if (!canceled && progress && progress->canceled && progress->canceled(progress->opaque)) {
            canceled = true;
            job_call(client, "job_cancel", job, NULL, NULL);
        }
        sleep_ms(pause);
    }
}

int driver_control_job(const struct driver_instance *instance, const char *method, json_t *params,
                       const struct driver_progress *progress, json_t **ret_result, struct fault *fault)
{
    struct control_client *client = NULL;
    struct err err = {0};
    json_t *reply = NULL, *end = NULL;
    if (control_connect(instance->control, &client, &err) < 0) {
        json_decref(params);
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "instance '%s': %s", instance->name, err.text);
    }
    int rc = control_client_call(client, method, params, JOB_TIMEOUT_MS, &reply, &err);
    rc = rc ? rc : follow_job(client, obj_text(reply, "job"), progress, &end, &err);
    const json_t *error = json_object_get(end, "error");
    if (rc == -EREMOTEIO) {
        bool busy = strcmp(control_client_code(client), "busy") == 0;
        rc = fault_set(fault, busy ? FAULT_BUSY : FAULT_STATE, NULL, "instance '%s': %s", instance->name,
                       err.text);
    } else if (rc < 0) {
        rc = fault_set(fault, FAULT_UNAVAILABLE, NULL, "instance '%s': %s", instance->name, err.text);
    } else if (error && progress && progress->canceled && progress->canceled(progress->opaque)) {
        rc = fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    } else if (error) {
        bool full = strcmp(obj_text(error, "code"), "no_space") == 0;
        rc = fault_set(fault, full ? FAULT_NO_SPACE : FAULT_STATE, full ? "make room, then try again" : NULL,
                       "instance '%s': %s", instance->name, obj_text(error, "message"));
    } else if (ret_result) {
        *ret_result = json_incref(json_object_get(end, "result"));
    }
    json_decref(reply);
    json_decref(end);
    control_client_free(client);
    return rc;
}

bool driver_is_locked(const struct driver_instance *instance)
{
    auto_close int fd = open(instance->lock, O_RDWR | O_CLOEXEC);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0;
}

/* Who holds the lock; 0: nobody. */
static pid_t lock_holder(const struct driver_instance *instance)
{
    auto_close int fd = open(instance->lock, O_RDWR | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0) {
        return 0;
    }
    for (unsigned tries = 0; tries < 100; tries++) {
        char text[16] = "";
        ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
        int pid = n > 0 ? atoi(text) : 0;
        if (pid > 0) {
            return pid;
        }
        sleep_ms(5); /* between the fork and its first lines */
    }
    return 0;
}

int driver_control_status(const struct driver_instance *instance, struct driver_status *ret_status,
                          struct fault *fault)
{
    json_t *result = NULL;
    if (driver_control_call(instance, "status", NULL, &result, fault) < 0) {
        return -1;
    }
    ret_status->state = strcmp(obj_text(result, "state"), "paused") == 0 ? DRIVER_PAUSED : DRIVER_RUNNING;
    json_decref(result);
    return 0;
}

int driver_control_adopt(const struct driver_instance *instance, struct driver_status *ret_status,
                         struct fault *fault)
{
    pid_t pid = lock_holder(instance);
    ret_status->state = DRIVER_DEAD;
    if (!pid) {
        return 0;
    }
    ret_status->pid = pid;
    ret_status->state = DRIVER_RUNNING;
    /* One that was just forked may need a moment until it listens. */
    uint64_t until = monotonic_ms() + START_TIMEOUT_MS;
    for (;;) {
        struct fault why = {0};
        if (driver_control_status(instance, ret_status, &why) == 0) {
            return 0;
        }
        if (lock_holder(instance) != pid) {
            ret_status->state = DRIVER_DEAD;
            return 0;
        }
        if (monotonic_ms() > until) {
            *fault = why; /* it lives, and does not answer: a kill will end it */
            return -1;
        }
        sleep_ms(10);
    }
}

int driver_control_stop(const struct driver_instance *instance, struct fault *fault)
{
    return driver_control_call(instance, "stop", json_pack("{s:b}", "force", 0), NULL, fault);
}

/* By the lock: what holds it is the instance's process, whatever pids mean by now. */
int driver_control_kill(const struct driver_instance *instance, struct fault *fault)
{
    pid_t pid = lock_holder(instance);
    if (pid && kill(pid, SIGKILL) < 0 && errno != ESRCH) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot end process %d: %s", (int)pid, strerror(errno));
    }
    return 0;
}

int driver_control_pause(const struct driver_instance *instance, struct fault *fault)
{
    return driver_control_call(instance, "pause", NULL, NULL, fault);
}

int driver_control_resume(const struct driver_instance *instance, struct fault *fault)
{
    return driver_control_call(instance, "resume", NULL, NULL, fault);
}

int driver_control_stats(const struct driver_instance *instance, json_t **ret_stats, struct fault *fault)
{
    return driver_control_call(instance, "stats", NULL, ret_stats, fault);
}

int driver_control_attach(const struct driver_instance *instance, const char *channel, int *ret_fd,
                          char *first, size_t size, size_t *ret_first, struct fault *fault)
{
    struct control_client *client = NULL;
    struct err err = {0};
    if (control_connect(instance->control, &client, &err) < 0) {
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "instance '%s': %s", instance->name, err.text);
    }
    int rc = control_client_call(client, "attach", json_pack("{s:s}", "channel", channel), CALL_TIMEOUT_MS,
                                 NULL, &err);
    if (rc == 0) {
        *ret_first = control_client_take(client, first, size);
        *ret_fd = fcntl(control_client_fd(client), F_DUPFD_CLOEXEC, 0);
        rc = *ret_fd < 0 ? -errno : 0;
    }
    control_client_free(client);
    return rc < 0 ? fault_set(fault, FAULT_STATE, NULL, "instance '%s': %s", instance->name, err.text) : 0;
}

int driver_control_remove(const struct driver_instance *instance, struct fault *fault)
{
    return 0; /* everything lies in the instance's directory */
}
