/*
 * Drives a fuzz target without libFuzzer: runs the files given as arguments, or random inputs for a bounded
 * time.
 *
 *     TARGET [--seconds N] [--seed N] [--runs N] [FILE...]
 *
 * The input that runs is kept in fuzz-last-input.bin (in the current folder) while it runs, so that it is
 * there when the target crashes; the file is removed at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "fuzz/fuzz.h"

#define INPUT_MAX 4096u
#define KEEP      "fuzz-last-input.bin"

static uint64_t next_random(uint64_t *state)
{
    /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int run_file(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "cannot open '%s': %s\n", path, strerror(errno));
        return 2;
    }
    size_t n = fread(data, 1, sizeof(data), f);
    fclose(f);
    (void)LLVMFuzzerTestOneInput(data, n);
    printf("%s: ran\n", path);
    return 0;
}

/* The kept input is a shared mapping, so it survives the process at no cost per run. */
static uint8_t *keep_open(int *ret_fd)
{
    int fd = open(KEEP, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, INPUT_MAX) < 0) {
        fprintf(stderr, "cannot write '%s': %s\n", KEEP, strerror(errno));
        exit(2);
    }
    uint8_t *p = mmap(NULL, INPUT_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "cannot map '%s': %s\n", KEEP, strerror(errno));
        exit(2);
    }
    *ret_fd = fd;
    return p;
}

static int run_random(uint64_t seed, uint64_t seconds, uint64_t runs)
{
    int fd;
    uint8_t *input = keep_open(&fd);
    uint64_t end = now_ms() + seconds * 1000, done = 0;
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    for (; done < runs && now_ms() < end; done++) {
        uint64_t state = seed + done * 0xd1342543de82ef95ull;
        size_t size = 8 + next_random(&state) % 200;
        for (size_t i = 0; i < size; i += 8) {
            uint64_t v = next_random(&state);
            memcpy(input + i, &v, 8);
        }
        if (ftruncate(fd, (off_t)size) < 0) {
            fprintf(stderr, "cannot cut '%s': %s\n", KEEP, strerror(errno));
            return 2;
        }
        (void)LLVMFuzzerTestOneInput(input, size);
    }
    close(fd);
    unlink(KEEP);
    printf("%" PRIu64 " inputs\n1 passed, 0 failed\n", done);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {{"seconds", required_argument, NULL, 's'},
                                          {"seed", required_argument, NULL, 'e'},
                                          {"runs", required_argument, NULL, 'r'},
                                          {NULL, 0, NULL, 0}};
    uint64_t seed = 0, seconds = 10, runs = UINT64_MAX;
    if (getrandom(&seed, 4, 0) < 0) {
        seed = 1;
    }
    int opt;
    while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (opt) {
        case 's': seconds = strtoull(optarg, NULL, 0); break;
        case 'e': seed = strtoull(optarg, NULL, 0); break;
        case 'r': runs = strtoull(optarg, NULL, 0); break;
        default: return 2;
        }
    }
    if (optind == argc) {
        return run_random(seed, seconds, runs);
    }
    for (int i = optind; i < argc; i++) {
        int status = run_file(argv[i]);
        if (status) {
            return status;
        }
    }
    return 0;
}
