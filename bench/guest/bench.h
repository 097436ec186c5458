/*
 * What a benchmark row is, and the stopwatch that rows share.
 *
 * Every row is a function that prepares its data, calls bench_start(), does the work, calls bench_stop(),
 * checks its own result and returns a checksum. One process runs one row once. The checksum depends only on
 * the row and its scale, so the driver compares it between columns: a machine that computes something else
 * has not run the benchmark.
 *
 * Invariants:
 *  1. Only the work lies between bench_start() and bench_stop().
 *  2. No result depends on time, addresses, or the CPU model.
 *  3. A wrong result ends in bench_fail(), never in a number.
 */
#ifndef BENCH_GUEST_BENCH_H
#define BENCH_GUEST_BENCH_H

#include <stddef.h>
#include <stdint.h>

enum bench_kind {
    BENCH_CPU,    /* user code that makes no system call: counts in the geometric mean */
    BENCH_KERNEL, /* dominated by system calls, faults, and switches */
    BENCH_COLD,   /* code that runs once: measures translation itself */
};

struct bench_row {
    const char *name;
    enum bench_kind kind;
    uint64_t (*run)(void);
    const char *needs; /* CPU feature as /proc/cpuinfo spells it, or NULL */
    const char *what;  /* one line for --list */
};

/* The tables of the files beside this one, in the order of the report. Each ends with a NULL name. */
extern const struct bench_row bench_integer_rows[];
extern const struct bench_row bench_control_rows[];
extern const struct bench_row bench_memory_rows[];
extern const struct bench_row bench_float_rows[];
extern const struct bench_row bench_library_rows[];
extern const struct bench_row bench_syscall_rows[];
extern const struct bench_row bench_process_rows[];

void bench_start(void);
void bench_stop(void);
_Noreturn void bench_fail(const char *why);

/* base times the scale given on the command line, at least 1. */
uint64_t bench_scaled(uint64_t base);

/* Directory for scratch files (tmpfs), and the directory that holds bin/ and lib/ of the stage. */
const char *bench_tmp(void);
const char *bench_root(void);

/* Keep this process, and those it forks later, on one CPU, so that the host measures what a one-CPU guest
 * does. */
void bench_pin(void);

/* Repeatable pseudo-random numbers (xorshift64*, Vigna 2016). */
static inline uint64_t bench_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dULL;
}

/* FNV-1a, for checksums over results. */
uint64_t bench_hash(const void *data, size_t size);

/* Fills buf with size bytes of text that compresses about 3:1. */
void bench_text(char *buf, size_t size);

#endif
