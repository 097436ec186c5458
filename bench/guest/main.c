/*
 * The benchmark program: `guest ROW [SCALE]` runs one row once and prints "ROW NANOSECONDS CHECKSUM", or "ROW
 * SKIP WHY" when this CPU cannot run it, or "ROW FAIL WHY". `guest --list` prints "ROW KIND WHAT" for all
 * rows.
 *
 * The same file runs on the host (column "native") and in the guests. BENCH_ROOT and BENCH_TMP in the
 * environment say where the stage and a tmpfs are.
 */
#include "bench.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct bench_row *const tables[] = {
    bench_integer_rows, bench_control_rows, bench_memory_rows,  bench_float_rows,
    bench_library_rows, bench_syscall_rows, bench_process_rows,
};

static const char *const kind_names[] = {
    [BENCH_CPU] = "cpu", [BENCH_KERNEL] = "kernel", [BENCH_COLD] = "cold"};

static const char *row_name = "?";
static double scale = 1.0;
static struct timespec started, stopped;

void bench_start(void)
{
    clock_gettime(CLOCK_MONOTONIC, &started);
}

void bench_stop(void)
{
    clock_gettime(CLOCK_MONOTONIC, &stopped);
}

void bench_fail(const char *why)
{
    printf("%s FAIL %s\n", row_name, why);
    exit(1);
}

uint64_t bench_scaled(uint64_t base)
{
    double n = (double)base * scale;
    return n < 1.0 ? 1 : (uint64_t)n;
}

const char *bench_tmp(void)
{
    const char *dir = getenv("BENCH_TMP");
    return dir ? dir : "/tmp";
}

const char *bench_root(void)
{
    const char *dir = getenv("BENCH_ROOT");
    return dir ? dir : "";
}

void bench_pin(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int cpu = sched_getcpu();
    CPU_SET(cpu < 0 ? 0 : cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0) {
        bench_fail("sched_setaffinity");
    }
}

uint64_t bench_hash(const void *data, size_t size)
{
    const unsigned char *p = data;
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ p[i]) * 0x100000001b3ULL;
    }
    return hash;
}

void bench_text(char *buf, size_t size)
{
    static const char *const words[] = {"room ",  "guest ", "table ", "and ", "the ",     "key ",
                                        "of a ",  "night ", "travel", "ing ", "evening ", "morning",
                                        ", that", " bell",  "s.\n",   "inn "};
    uint64_t rng = 12345;
    size_t at = 0;
    while (at < size) {
        uint64_t r = bench_random(&rng);
        char number[24];
        const char *word = words[r >> 60];
        if ((r & 0xf00) == 0) {
            snprintf(number, sizeof(number), "%u ", (unsigned)(r & 0xff) * 977);
            word = number;
        }
        size_t len = strlen(word);
        if (len > size - at) {
            len = size - at;
        }
        memcpy(buf + at, word, len);
        at += len;
    }
}

static int cpu_has(const char *flag)
{
    static char line[8192];
    FILE *f = fopen("/proc/cpuinfo", "r");
    int found = 0;
    while (f && !found && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "flags", 5) != 0) {
            continue;
        }
        for (char *word = strtok(line, " \t\n"); word; word = strtok(NULL, " \t\n")) {
            found |= strcmp(word, flag) == 0;
        }
        break;
    }
    if (f) {
        fclose(f);
    }
    return found;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: guest ROW [SCALE] | guest --list\n");
        return 2;
    }
    int list = strcmp(argv[1], "--list") == 0;
    if (argc == 3) {
        scale = strtod(argv[2], NULL);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (const struct bench_row *row = tables[t]; row->name; row++) {
            if (list) {
                printf("%s %s %s\n", row->name, kind_names[row->kind], row->what);
                continue;
            }
            if (strcmp(row->name, argv[1]) != 0) {
                continue;
            }
            row_name = row->name;
            if (row->needs && !cpu_has(row->needs)) {
                printf("%s SKIP no %s\n", row->name, row->needs);
                return 0;
            }
            uint64_t sum = row->run();
            long long ns =
                (stopped.tv_sec - started.tv_sec) * 1000000000LL + (stopped.tv_nsec - started.tv_nsec);
            printf("%s %lld %016llx\n", row->name, ns, (unsigned long long)sum);
            return 0;
        }
    }
    if (!list) {
        printf("%s FAIL no such row\n", argv[1]);
    }
    return list ? 0 : 1;
}
