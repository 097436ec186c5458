/*
 * CPU rows on integers: hashing, sorting, a hash table, division and multiplication as public-key code does
 * them.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

/* SHA-256, FIPS 180-4, in plain C. */
static const uint32_t sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t ror32(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

static void sha_block(uint32_t state[8], const uint8_t *p)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 |
               p[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = ror32(w[i - 15], 7) ^ ror32(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = ror32(w[i - 2], 17) ^ ror32(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 =
            h + (ror32(e, 6) ^ ror32(e, 11) ^ ror32(e, 25)) + ((e & f) ^ (~e & g)) + sha_k[i] + w[i];
        uint32_t t2 = (ror32(a, 2) ^ ror32(a, 13) ^ ror32(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

static void sha_init(uint32_t state[8])
{
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(state, first, sizeof(first));
}

static uint64_t run_sha256(void)
{
    static uint8_t data[65536];
    uint32_t state[8];

    /* FIPS 180-4's example "abc", padded by hand. */
    memcpy(data, "abc\x80", 4);
    data[63] = 24;
    sha_init(state);
    sha_block(state, data);
    if (state[0] != 0xba7816bf || state[7] != 0xf20015ad) {
        bench_fail("SHA-256 of abc");
    }

    uint64_t rng = 1;
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)bench_random(&rng);
    }
    uint64_t rounds = bench_scaled(900);
    sha_init(state);
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (size_t at = 0; at < sizeof(data); at += 64) {
            sha_block(state, data + at);
        }
    }
    bench_stop();
    return bench_hash(state, sizeof(state));
}

static void quicksort(uint32_t *a, long lo, long hi)
{
    while (lo < hi) {
        uint32_t pivot = a[lo + (hi - lo) / 2];
        long i = lo, j = hi;
        while (i <= j) {
            while (a[i] < pivot) {
                i++;
            }
            while (a[j] > pivot) {
                j--;
            }
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - lo < hi - i) {
            quicksort(a, lo, j);
            lo = i;
        } else {
            quicksort(a, i, hi);
            hi = j;
        }
    }
}

static uint64_t run_quicksort(void)
{
    size_t n = 1 << 20;
    uint64_t rounds = bench_scaled(3);
    uint32_t *a = malloc(n * sizeof(*a)), *src = malloc(n * sizeof(*src));
    if (!a || !src) {
        bench_fail("memory");
    }
    uint64_t rng = 7;
    for (size_t i = 0; i < n; i++) {
        src[i] = (uint32_t)(bench_random(&rng) >> 16);
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        memcpy(a, src, n * sizeof(*a));
        a[0] ^= (uint32_t)r;
        quicksort(a, 0, (long)n - 1);
    }
    bench_stop();
    for (size_t i = 1; i < n; i++) {
        if (a[i - 1] > a[i]) {
            bench_fail("not sorted");
        }
    }
    return bench_hash(a, n * sizeof(*a));
}

/* Sorting pointers to short strings with a comparison by callback: calls, data-dependent branches, two loads
 * a step. */
static int compare_strings(const void *a, const void *b)
{
    const unsigned char *x = *(const unsigned char *const *)a, *y = *(const unsigned char *const *)b;
    while (*x && *x == *y) {
        x++, y++;
    }
    return *x - *y;
}

static void merge_sort(const void **a, const void **scratch, size_t n,
                       int (*compare)(const void *, const void *))
{
    if (n < 2) {
        return;
    }
    size_t half = n / 2, i = 0, j = half, k = 0;
    merge_sort(a, scratch, half, compare);
    merge_sort(a + half, scratch, n - half, compare);
    while (i < half && j < n) {
        scratch[k++] = compare(&a[i], &a[j]) <= 0 ? a[i++] : a[j++];
    }
    while (i < half) {
        scratch[k++] = a[i++];
    }
    memcpy(a, scratch, k * sizeof(*a));
}

static uint64_t run_sort_strings(void)
{
    size_t n = 50000;
    uint64_t rounds = bench_scaled(18);
    char(*names)[16] = malloc(n * sizeof(*names));
    const void **a = malloc(n * sizeof(*a)), **scratch = malloc(n * sizeof(*a));
    if (!names || !a || !scratch) {
        bench_fail("memory");
    }
    uint64_t rng = 11, sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t r = bench_random(&rng);
        for (int c = 0; c < 15; c++, r >>= 4) {
            names[i][c] = (char)('a' + (r & (c < 3 ? 1 : 15)));
        }
        names[i][15] = 0;
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (size_t i = 0; i < n; i++) {
            a[i] = names[(i * 7919 + r) % n];
        }
        merge_sort(a, scratch, n, compare_strings);
        sum += (uint64_t)((const char *)a[n / 3])[7];
    }
    bench_stop();
    for (size_t i = 1; i < n; i++) {
        if (compare_strings(&a[i - 1], &a[i]) > 0) {
            bench_fail("not sorted");
        }
    }
    return sum ^ bench_hash(a[n / 2], 15);
}

static uint64_t run_hashtable(void)
{
    size_t slots = 1 << 18, mask = slots - 1;
    uint64_t rounds = bench_scaled(16000000), rng = 3, hits = 0, sum = 0;
    struct {
        uint64_t key, value;
    } *table = calloc(slots, sizeof(*table));
    if (!table) {
        bench_fail("memory");
    }
    bench_start();
    /* 160,000 keys in 262,144 slots, linear probing; every third access is an update. */
    for (uint64_t r = 0; r < rounds; r++) {
        uint64_t key = bench_random(&rng) % 160000 + 1;
        size_t at = (key * 0x9e3779b97f4a7c15ULL) >> 46;
        while (table[at].key && table[at].key != key) {
            at = (at + 1) & mask;
        }
        if (table[at].key == key) {
            hits++;
        }
        table[at].key = key;
        if (r % 3 == 0) {
            table[at].value += r;
        } else {
            sum ^= table[at].value;
        }
    }
    bench_stop();
    size_t used = 0;
    for (size_t i = 0; i < slots; i++) {
        used += table[i].key != 0;
    }
    if (used + hits != rounds) {
        bench_fail("lost keys");
    }
    return sum ^ hits;
}

/* Modular exponentiation: 64-bit numbers with the divide instruction, 1,024-bit ones with Montgomery's
 * method. */
static uint64_t mod_mul(uint64_t a, uint64_t b, uint64_t m)
{
    return (uint64_t)((unsigned __int128)a * b % m);
}

static uint64_t mod_pow(uint64_t base, uint64_t exponent, uint64_t m)
{
    uint64_t result = 1;
    for (base %= m; exponent; exponent >>= 1) {
        if (exponent & 1) {
            result = mod_mul(result, base, m);
        }
        base = mod_mul(base, base, m);
    }
    return result;
}

enum { LIMBS = 16 };

static void mont_mul(uint64_t out[LIMBS], const uint64_t a[LIMBS], const uint64_t b[LIMBS],
                     const uint64_t n[LIMBS], uint64_t n0)
{
    uint64_t t[LIMBS + 2] = {0};
    for (int i = 0; i < LIMBS; i++) {
        unsigned __int128 carry = 0;
        for (int j = 0; j < LIMBS; j++) {
            carry += (unsigned __int128)a[j] * b[i] + t[j];
            t[j] = (uint64_t)carry;
            carry >>= 64;
        }
        carry += t[LIMBS];
        t[LIMBS] = (uint64_t)carry;
        t[LIMBS + 1] = (uint64_t)(carry >> 64);
        uint64_t m = t[0] * n0;
        carry = (unsigned __int128)m * n[0] + t[0];
        carry >>= 64;
        for (int j = 1; j < LIMBS; j++) {
            carry += (unsigned __int128)m * n[j] + t[j];
            t[j - 1] = (uint64_t)carry;
            carry >>= 64;
        }
        carry += t[LIMBS];
        t[LIMBS - 1] = (uint64_t)carry;
        t[LIMBS] = t[LIMBS + 1] + (uint64_t)(carry >> 64);
    }
    /* n has its top bit clear here, so t < 2n and one conditional subtraction is enough. */
    uint64_t diff[LIMBS], borrow = 0;
    for (int j = 0; j < LIMBS; j++) {
        unsigned __int128 d = (unsigned __int128)t[j] - n[j] - borrow;
        diff[j] = (uint64_t)d;
        borrow = (uint64_t)(d >> 64) & 1;
    }
    memcpy(out, borrow ? t : diff, sizeof(diff));
}

static uint64_t run_modexp(void)
{
    /* Fermat: a^(p-1) = 1 mod p, with p = 2^61 - 1. */
    const uint64_t p = (1ULL << 61) - 1;
    uint64_t rounds = bench_scaled(6000), rng = 5, sum = 0;
    uint64_t n[LIMBS], x[LIMBS];
    for (int i = 0; i < LIMBS; i++) {
        n[i] = bench_random(&rng);
        x[i] = bench_random(&rng);
    }
    n[0] |= 1;
    n[LIMBS - 1] >>= 1;
    x[LIMBS - 1] >>= 2;
    uint64_t inverse = n[0];
    for (int i = 0; i < 5; i++) {
        inverse *= 2 - n[0] * inverse;
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        uint64_t a = bench_random(&rng) % (p - 2) + 2;
        if (mod_pow(a, p - 1, p) != 1) {
            bench_fail("Fermat");
        }
        sum += mod_pow(a, r | 1, p ^ (r << 1));
        for (int i = 0; i < 64; i++) {
            mont_mul(x, x, x, n, 0 - inverse);
        }
    }
    bench_stop();
    return sum ^ bench_hash(x, sizeof(x));
}

const struct bench_row bench_integer_rows[] = {
    {"sha256", BENCH_CPU, run_sha256, NULL, "SHA-256 in plain C"},
    {"quicksort", BENCH_CPU, run_quicksort, NULL, "quicksort of 1 Mi random 32-bit numbers"},
    {"sort-strings", BENCH_CPU, run_sort_strings, NULL,
     "merge sort of short strings, comparison by callback"},
    {"hashtable", BENCH_CPU, run_hashtable, NULL, "open-addressing hash table, 4 MiB"},
    {"modexp", BENCH_CPU, run_modexp, NULL, "modular exponentiation: 64-bit div, 1024-bit Montgomery mul"},
    {NULL, BENCH_CPU, NULL, NULL, NULL},
};
