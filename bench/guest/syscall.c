/*
 * Kernel rows within one process: system calls, memory mapping, page faults, signals, files.
 */
#include "bench.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t run_getpid(void)
{
    uint64_t calls = bench_scaled(1000000), wrong = 0;
    long pid = getpid();
    bench_start();
    for (uint64_t i = 0; i < calls; i++) {
        wrong += syscall(SYS_getpid) != pid;
    }
    bench_stop();
    if (wrong) {
        bench_fail("getpid");
    }
    return calls;
}

static uint64_t run_readwrite(void)
{
    char buf[64];
    uint64_t calls = bench_scaled(400000);
    int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
    if (zero < 0 || null < 0) {
        bench_fail("/dev/zero, /dev/null");
    }
    bench_start();
    for (uint64_t i = 0; i < calls; i++) {
        if (read(zero, buf, sizeof(buf)) != sizeof(buf) || write(null, buf, sizeof(buf)) != sizeof(buf)) {
            bench_fail("read, write");
        }
    }
    bench_stop();
    return calls;
}

static uint64_t run_pipe_self(void)
{
    char buf[64] = "0123456789";
    int fd[2];
    uint64_t calls = bench_scaled(200000);
    if (pipe(fd) != 0) {
        bench_fail("pipe");
    }
    bench_start();
    for (uint64_t i = 0; i < calls; i++) {
        if (write(fd[1], buf, sizeof(buf)) != sizeof(buf) || read(fd[0], buf, sizeof(buf)) != sizeof(buf)) {
            bench_fail("pipe");
        }
    }
    bench_stop();
    return calls ^ bench_hash(buf, sizeof(buf));
}

static uint64_t run_mmap(void)
{
    enum { PAGES = 64 };
    uint64_t rounds = bench_scaled(4000), sum = 0;
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        char *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            bench_fail("mmap");
        }
        for (int i = 0; i < PAGES; i++) {
            p[i * 4096] = (char)(r + (uint64_t)i);
        }
        sum += (unsigned char)p[(r % PAGES) * 4096];
        munmap(p, PAGES * 4096);
    }
    bench_stop();
    return sum;
}

/* First touch of fresh pages. Returns the sum of what they held, which must be 0. */
static uint64_t touch(size_t size, int timed)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        bench_fail("mmap");
    }
    madvise(p, size, MADV_NOHUGEPAGE);
    uint64_t sum = 0;
    if (timed) {
        bench_start();
    }
    for (size_t at = 0; at < size; at += 4096) {
        sum += (unsigned char)p[at + 8];
        p[at] = p[at + 8] = 1;
    }
    if (timed) {
        bench_stop();
    }
    munmap(p, size);
    return sum;
}

static uint64_t run_pagefault(void)
{
    size_t size = bench_scaled(256) << 20;
    /* The pass before makes sure that the machine under this kernel has its memory in place already. */
    uint64_t sum = touch(size, 0) + touch(size, 1);
    if (sum) {
        bench_fail("fresh pages are not zero");
    }
    return size;
}

static uint64_t run_files(void)
{
    char path[256], data[100] = {0};
    uint64_t files = bench_scaled(30000);
    snprintf(path, sizeof(path), "%s/bench-%d.tmp", bench_tmp(), getpid());
    bench_start();
    for (uint64_t i = 0; i < files; i++) {
        int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
        if (fd < 0 || write(fd, data, sizeof(data)) != sizeof(data) || close(fd) != 0 || unlink(path) != 0) {
            bench_fail(path);
        }
    }
    bench_stop();
    return files;
}

static volatile sig_atomic_t signals;

static void on_signal(int number)
{
    (void)number;
    signals++;
}

static uint64_t run_signal(void)
{
    uint64_t count = bench_scaled(150000);
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_signal;
    sigaction(SIGUSR1, &action, NULL);
    pid_t pid = getpid();
    bench_start();
    for (uint64_t i = 0; i < count; i++) {
        kill(pid, SIGUSR1);
    }
    bench_stop();
    if ((uint64_t)signals != count) {
        bench_fail("signals lost");
    }
    return count;
}

const struct bench_row bench_syscall_rows[] = {
    {"getpid", BENCH_KERNEL, run_getpid, NULL, "1,000,000 getpid calls"},
    {"readwrite", BENCH_KERNEL, run_readwrite, NULL,
     "64-byte read of /dev/zero and write to /dev/null, 400,000 pairs"},
    {"pipe-self", BENCH_KERNEL, run_pipe_self, NULL,
     "64 bytes into a pipe and out again, one process, 200,000 times"},
    {"mmap", BENCH_KERNEL, run_mmap, NULL, "mmap, touch 64 pages, munmap, 4,000 times"},
    {"pagefault", BENCH_KERNEL, run_pagefault, NULL,
     "first touch of 256 MiB, 4 KiB pages, each read then written"},
    {"files", BENCH_KERNEL, run_files, NULL, "create, write 100 bytes, close, delete on tmpfs, 30,000 times"},
    {"signal", BENCH_KERNEL, run_signal, NULL, "150,000 signals to oneself"},
    {NULL, BENCH_KERNEL, NULL, NULL, NULL},
};
