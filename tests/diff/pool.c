/*
 * The protocol: cases and results lie in memory that parent and child share. The parent writes the number of
 * cases into a pipe; the child runs them, telling in `progress` which one, and answers with a byte.
 */
#include "tests/diff/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/util.h"

#define CASE_LIMIT_MS 20000 /* without progress for so long, a runner is killed */
#define POLL_MS       1000
#define RESTARTS_MAX  2000

struct shared {
    _Atomic uint32_t progress; /* the case that runs */
    uint32_t first;
    struct diff_case cases[POOL_BATCH];
    struct diff_result results[POOL_BATCH];
    char text[200];
};

struct pool_worker {
    const struct diff_runner *runner;
    const char *argument;
    struct shared *shared;
    pid_t pid;
    int to_child, from_child;
    uint32_t count;
    unsigned restarts;
};

static void __attribute__((noreturn)) child(struct pool_worker *w, int in, int out)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct shared *s = w->shared;
    uint8_t answer = w->runner->init(w->argument, s->text, sizeof(s->text)) < 0;
    if (write(out, &answer, 1) != 1 || answer) {
        _exit(1);
    }
    uint32_t count;
    while (read(in, &count, sizeof(count)) == sizeof(count)) {
        for (uint32_t i = s->first; i < count; i++) {
            atomic_store(&s->progress, i);
            w->runner->run(&s->cases[i], &s->results[i]);
        }
        if (write(out, &answer, 1) != 1) {
            break;
        }
    }
    _exit(0);
}

static int spawn(struct pool_worker *w)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) < 0) {
        return -1;
    }
    if (pipe2(from, O_CLOEXEC) < 0) {
        close(to[0]);
        close(to[1]);
        return -1;
    }
    fflush(NULL);
    w->shared->text[0] = '\0';
    w->pid = fork();
    if (w->pid == 0) {
        close(to[1]);
        close(from[0]);
        child(w, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    w->to_child = to[1];
    w->from_child = from[0];
    uint8_t answer = 1;
    if (w->pid < 0 || read(w->from_child, &answer, 1) != 1 || answer) {
        fprintf(stderr, "diff: cannot start the runner %s%s%s: %s\n", w->runner->name, w->argument ? " " : "",
                w->argument ? w->argument : "", w->shared->text[0] ? w->shared->text : "its process died");
        return -1;
    }
    return 0;
}

static int reap(struct pool_worker *w)
{
    int status = 0;
    close(w->to_child);
    close(w->from_child);
    waitpid(w->pid, &status, 0);
    w->pid = -1;
    return status;
}

int pool_start(const struct diff_runner *runner, const char *argument, struct pool_worker **ret_worker)
{
    signal(SIGPIPE, SIG_IGN);
    struct pool_worker *w = calloc(1, sizeof(*w));
    if (!w) {
        return -1;
    }
    w->runner = runner;
    w->argument = argument;
    w->shared = mmap(NULL, sizeof(*w->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (w->shared == MAP_FAILED) {
        free(w);
        return -1;
    }
    if (spawn(w) < 0) {
        if (w->pid > 0) {
            reap(w);
        }
        munmap(w->shared, sizeof(*w->shared));
        free(w);
        return -1;
    }
    *ret_worker = w;
    return 0;
}

void pool_stop(struct pool_worker *w)
{
    if (!w) {
        return;
    }
    if (w->pid > 0) {
        kill(w->pid, SIGKILL);
        reap(w);
    }
    munmap(w->shared, sizeof(*w->shared));
    free(w);
}

static void send_work(struct pool_worker *w)
{
    /* A short write or a dead child shows in pool_wait. */
    if (write(w->to_child, &w->count, sizeof(w->count)) < 0) {
        return;
    }
}

void pool_submit(struct pool_worker *w, const struct diff_case *cases, uint32_t count)
{
    struct shared *s = w->shared;
    memcpy(s->cases, cases, count * sizeof(*cases));
    for (uint32_t i = 0; i < count; i++) {
        /* mem is written in full by whoever completes the case. */
        memset(&s->results[i], 0, offsetof(struct diff_result, mem));
    }
    s->first = 0;
    atomic_store(&s->progress, 0);
    w->count = count;
    send_work(w);
}

/* The process is gone or stuck in a case: blames that case, and goes on with a new one. */
static int replace(struct pool_worker *w, bool hung)
{
    struct shared *s = w->shared;
    if (hung) {
        kill(w->pid, SIGKILL);
    }
    int status = reap(w);
    uint32_t i = atomic_load(&s->progress);
    struct diff_result *r = &s->results[i];
    r->outcome = hung ? DIFF_HUNG : DIFF_CRASHED;
    if (!hung && WIFSIGNALED(status)) {
        snprintf(r->text, sizeof(r->text), "the runner died of signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    } else if (!hung) {
        snprintf(r->text, sizeof(r->text), "the runner exited with status %d", WEXITSTATUS(status));
    }
    s->first = i + 1;
    if (++w->restarts > RESTARTS_MAX) {
        fprintf(stderr, "diff: the runner %s had to be replaced too often\n", w->runner->name);
        return -1;
    }
    return spawn(w);
}

int pool_wait(struct pool_worker *w)
{
    struct shared *s = w->shared;
    uint32_t seen = UINT32_MAX;
    int quiet_ms = 0;
    for (;;) {
        struct pollfd p = {.fd = w->from_child, .events = POLLIN};
        int ready = poll(&p, 1, POLL_MS);
        if (ready < 0 && errno != EINTR) {
            return -1;
        }
        uint8_t answer;
        if (ready > 0 && read(w->from_child, &answer, 1) == 1) {
            return 0;
        }
        bool died = ready > 0;
        uint32_t now = atomic_load(&s->progress);
        quiet_ms = now == seen ? quiet_ms + POLL_MS : 0;
        seen = now;
        if (died || quiet_ms >= CASE_LIMIT_MS) {
            if (replace(w, !died) < 0) {
                return -1;
            }
            quiet_ms = 0;
            send_work(w);
        }
    }
}

const struct diff_result *pool_result(const struct pool_worker *w, uint32_t i)
{
    return &w->shared->results[i];
}
