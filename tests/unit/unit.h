/*
 * What the unit tests share: cmocka with the headers that it wants first, and reproducible random numbers.
 *
 * unit_seed() prints the seed; FONDA_TEST_SEED=<number> in the environment repeats a run.
 */
#ifndef FONDA_TESTS_UNIT_UNIT_H
#define FONDA_TESTS_UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static inline uint64_t unit_seed(void)
{
    const char *text = getenv("FONDA_TEST_SEED");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)ts.tv_sec * 1000003u + (uint64_t)ts.tv_nsec;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

/* splitmix64 */
static inline uint64_t unit_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#endif
