/*
 * Kernel rows with two or more processes: fork, exec, and ways of handing over. Pairs share one CPU in every
 * column, so that each hand-over is a context switch.
 */
#include "bench.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(pid_t pid)
{
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        bench_fail("child failed");
    }
}

static uint64_t run_fork(void)
{
    uint64_t count = bench_scaled(600);
    bench_pin();
    bench_start();
    for (uint64_t i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            _exit(0);
        }
        reap(pid);
    }
    bench_stop();
    return count;
}

static uint64_t run_forkexec(void)
{
    uint64_t count = bench_scaled(300);
    char program[256];
    snprintf(program, sizeof(program), "%s/bin/busybox", bench_root());
    bench_pin();
    bench_start();
    for (uint64_t i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            execl(program, "true", (char *)NULL);
            _exit(127);
        }
        reap(pid);
    }
    bench_stop();
    return count;
}

static uint64_t run_pingpong(void)
{
    int there[2], back[2];
    uint64_t count = bench_scaled(40000);
    char byte = 0;
    bench_pin();
    if (pipe(there) != 0 || pipe(back) != 0) {
        bench_fail("pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        for (uint64_t i = 0; i < count; i++) {
            if (read(there[0], &byte, 1) != 1) {
                _exit(1);
            }
            byte++;
            if (write(back[1], &byte, 1) != 1) {
                _exit(1);
            }
        }
        _exit(0);
    }
    bench_start();
    for (uint64_t i = 0; i < count; i++) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) {
            bench_fail("pipe");
        }
    }
    bench_stop();
    reap(pid);
    if ((unsigned char)byte != (count & 0xff)) {
        bench_fail("lost bytes");
    }
    return count;
}

/* A word in memory that both processes see; even: the parent's turn. */
static _Atomic uint32_t *shared_word(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        bench_fail("mmap");
    }
    return p;
}

static void yield_turns(_Atomic uint32_t *word, uint32_t side, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        while ((atomic_load(word) & 1) != side) {
            sched_yield();
        }
        atomic_fetch_add(word, 1);
    }
}

static void futex_turns(_Atomic uint32_t *word, uint32_t side, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t now;
        while (((now = atomic_load(word)) & 1) != side) {
            syscall(SYS_futex, word, FUTEX_WAIT, now, NULL, NULL, 0);
        }
        atomic_fetch_add(word, 1);
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

static uint64_t take_turns(void (*turns)(_Atomic uint32_t *, uint32_t, uint64_t), uint64_t count)
{
    _Atomic uint32_t *word = shared_word();
    bench_pin();
    pid_t pid = fork();
    if (pid == 0) {
        turns(word, 1, count);
        _exit(0);
    }
    bench_start();
    turns(word, 0, count);
    bench_stop();
    reap(pid);
    if (atomic_load(word) != (uint32_t)(2 * count)) {
        bench_fail("turns lost");
    }
    return count;
}

static uint64_t run_ctxsw(void)
{
    return take_turns(yield_turns, bench_scaled(100000));
}

static uint64_t run_futex(void)
{
    return take_turns(futex_turns, bench_scaled(40000));
}

const struct bench_row bench_process_rows[] = {
    {"fork", BENCH_KERNEL, run_fork, NULL, "600 fork, exit, wait"},
    {"forkexec", BENCH_KERNEL, run_forkexec, NULL, "300 fork, exec of busybox true, wait"},
    {"pingpong", BENCH_KERNEL, run_pingpong, NULL,
     "40,000 round trips of a byte over two pipes, two processes"},
    {"ctxsw", BENCH_KERNEL, run_ctxsw, NULL, "200,000 switches between two processes by sched_yield"},
    {"futex", BENCH_KERNEL, run_futex, NULL, "40,000 futex round trips between two processes"},
    {NULL, BENCH_KERNEL, NULL, NULL, NULL},
};
