/*
 * CPU rows on floating point: scalar and vector, the vector ones with their data in the first-level cache.
 *
 * All columns run the same instructions on the same values, so the results agree to the last bit.
 */
#include "bench.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t run_matmul(void)
{
    enum { N = 192 };
    static double a[N][N], b[N][N], c[N][N];
    uint64_t rng = 31, rounds = bench_scaled(30);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            a[i][j] = (double)(bench_random(&rng) >> 40) / 65536.0;
            b[i][j] = i == j ? 1.0 : 0.0;
        }
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < N; j++) {
                double sum = 0.0;
                for (int k = 0; k < N; k++) {
                    sum += a[i][k] * b[k][j];
                }
                c[i][j] = sum;
            }
        }
        /* The first product is by the identity; the next ones by what came out, shrunk. */
        if (r == 0 && memcmp(a, c, sizeof(a)) != 0) {
            bench_fail("identity");
        }
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < N; j++) {
                b[i][j] = c[j][i] * 0x1p-12;
            }
        }
    }
    bench_stop();
    return bench_hash(c, sizeof(c));
}

enum { V = 32 };

__attribute__((target("avx2"), noinline)) static void matmul_avx2(double a[V][V], double b[V][V],
                                                                  double c[V][V])
{
    for (int i = 0; i < V; i += 4) {
        for (int j = 0; j < V; j += 8) {
            __m256d acc[4][2];
            for (int x = 0; x < 4; x++) {
                acc[x][0] = acc[x][1] = _mm256_setzero_pd();
            }
            for (int k = 0; k < V; k++) {
                __m256d b0 = _mm256_load_pd(&b[k][j]), b1 = _mm256_load_pd(&b[k][j + 4]);
                for (int x = 0; x < 4; x++) {
                    __m256d m = _mm256_broadcast_sd(&a[i + x][k]);
                    acc[x][0] = _mm256_add_pd(acc[x][0], _mm256_mul_pd(m, b0));
                    acc[x][1] = _mm256_add_pd(acc[x][1], _mm256_mul_pd(m, b1));
                }
            }
            for (int x = 0; x < 4; x++) {
                _mm256_store_pd(&c[i + x][j], acc[x][0]);
                _mm256_store_pd(&c[i + x][j + 4], acc[x][1]);
            }
        }
    }
}

static uint64_t run_matmul_avx2(void)
{
    static double a[V][V] __attribute__((aligned(64))), b[V][V] __attribute__((aligned(64)));
    static double c[V][V] __attribute__((aligned(64)));
    uint64_t rng = 32, rounds = bench_scaled(15000);
    for (int i = 0; i < V; i++) {
        for (int j = 0; j < V; j++) {
            a[i][j] = (double)(bench_random(&rng) >> 40) / 65536.0;
            b[i][j] = i == j ? 1.0 : 0.0;
        }
    }
    matmul_avx2(a, b, c);
    if (memcmp(a, c, sizeof(a)) != 0) {
        bench_fail("identity");
    }
    for (int i = 0; i < V; i++) {
        for (int j = 0; j < V; j++) {
            b[i][j] = (double)(bench_random(&rng) >> 40) * 0x1p-30;
        }
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        matmul_avx2(a, b, c);
        b[r & 31][r >> 5 & 31] = c[r >> 5 & 31][r & 31] * 0x1p-16;
    }
    bench_stop();
    return bench_hash(c, sizeof(c));
}

/* A polynomial of degree 8 over 1,024 doubles (8 KiB), with a masked fix-up, in 512-bit registers. */
__attribute__((target("avx512f"), noinline)) static void poly_avx512(const double *x, double *y)
{
    static const double coefficient[9] = {0.5, -0.25, 0.125, 1.5, -1.0, 0.75, 0.0625, -0.5, 0.3125};
    for (int i = 0; i < 1024; i += 16) {
        __m512d x0 = _mm512_load_pd(x + i), x1 = _mm512_load_pd(x + i + 8);
        __m512d s0 = _mm512_set1_pd(coefficient[8]), s1 = s0;
        for (int k = 7; k >= 0; k--) {
            __m512d c = _mm512_set1_pd(coefficient[k]);
            s0 = _mm512_fmadd_pd(s0, x0, c);
            s1 = _mm512_fmadd_pd(s1, x1, c);
        }
        __mmask8 m = _mm512_cmp_pd_mask(s0, s1, _CMP_LT_OQ);
        s0 = _mm512_mask_add_pd(s0, m, s0, _mm512_load_pd(y + i));
        _mm512_store_pd(y + i, s0);
        _mm512_store_pd(y + i + 8, s1);
    }
}

static uint64_t run_poly_avx512(void)
{
    static double x[1024] __attribute__((aligned(64))), y[1024] __attribute__((aligned(64)));
    uint64_t rng = 33, rounds = bench_scaled(500000);
    for (int i = 0; i < 1024; i++) {
        x[i] = (double)(int64_t)bench_random(&rng) * 0x1p-63;
    }
    x[8] = 0.0;
    poly_avx512(x, y);
    if (y[8] != 0.5) {
        bench_fail("polynomial at 0");
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        x[r & 1023] = -x[r & 1023];
        poly_avx512(x, y);
        if ((r & 255) == 0) {
            memset(y, 0, sizeof(y));
        }
    }
    bench_stop();
    return bench_hash(y, sizeof(y));
}

static uint64_t run_mandelbrot(void)
{
    enum { SIZE = 200, LIMIT = 500 };
    uint64_t rounds = bench_scaled(10), total = 0;
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (int py = 0; py < SIZE; py++) {
            for (int px = 0; px < SIZE; px++) {
                double cr = -2.0 + 3.0 * px / SIZE + (double)r * 1e-6, ci = -1.5 + 3.0 * py / SIZE, zr = 0.0,
                       zi = 0.0;
                int n = 0;
                while (n < LIMIT && zr * zr + zi * zi < 4.0) {
                    double t = zr * zr - zi * zi + cr;
                    zi = 2.0 * zr * zi + ci;
                    zr = t;
                    n++;
                }
                total += (uint64_t)n;
            }
        }
    }
    bench_stop();
    return total;
}

struct body {
    double pos[3], vel[3], mass;
};

static double energy(const struct body *b, int n)
{
    double e = 0.0;
    for (int i = 0; i < n; i++) {
        e += 0.5 * b[i].mass *
             (b[i].vel[0] * b[i].vel[0] + b[i].vel[1] * b[i].vel[1] + b[i].vel[2] * b[i].vel[2]);
        for (int j = i + 1; j < n; j++) {
            double d2 = 0.0;
            for (int k = 0; k < 3; k++) {
                d2 += (b[i].pos[k] - b[j].pos[k]) * (b[i].pos[k] - b[j].pos[k]);
            }
            e -= b[i].mass * b[j].mass / sqrt(d2);
        }
    }
    return e;
}

static uint64_t run_nbody(void)
{
    enum { BODIES = 5 };
    struct body b[BODIES];
    uint64_t steps = bench_scaled(1500000);
    const double dt = 1e-4;
    /* A heavy body at rest and four light ones on circles around it. */
    for (int i = 0; i < BODIES; i++) {
        double radius = i * 1.7, speed = i ? sqrt(40.0 / radius) : 0.0;
        b[i] = (struct body){
            .pos = {radius, 0.0, 0.01 * i}, .vel = {0.0, speed, 0.0}, .mass = i ? 0.001 * i : 40.0};
    }
    double before = energy(b, BODIES);
    bench_start();
    for (uint64_t s = 0; s < steps; s++) {
        for (int i = 0; i < BODIES; i++) {
            for (int j = i + 1; j < BODIES; j++) {
                double d[3], d2 = 0.0;
                for (int k = 0; k < 3; k++) {
                    d[k] = b[i].pos[k] - b[j].pos[k];
                    d2 += d[k] * d[k];
                }
                double mag = dt / (d2 * sqrt(d2));
                for (int k = 0; k < 3; k++) {
                    b[i].vel[k] -= d[k] * b[j].mass * mag;
                    b[j].vel[k] += d[k] * b[i].mass * mag;
                }
            }
        }
        for (int i = 0; i < BODIES; i++) {
            for (int k = 0; k < 3; k++) {
                b[i].pos[k] += dt * b[i].vel[k];
            }
        }
    }
    bench_stop();
    if (fabs(energy(b, BODIES) - before) > 1e-3 * fabs(before)) {
        bench_fail("energy is not conserved");
    }
    return bench_hash(b, sizeof(b));
}

const struct bench_row bench_float_rows[] = {
    {"matmul", BENCH_CPU, run_matmul, NULL, "scalar matrix product, double, 192 x 192"},
    {"matmul-avx2", BENCH_CPU, run_matmul_avx2, "avx2", "AVX2 matrix product, data in L1"},
    {"poly-avx512", BENCH_CPU, run_poly_avx512, "avx512f", "AVX-512 polynomial with masks, data in L1"},
    {"mandelbrot", BENCH_CPU, run_mandelbrot, NULL, "scalar floating point, registers only"},
    {"nbody", BENCH_CPU, run_nbody, NULL, "scalar floating point with sqrt and divide"},
    {NULL, BENCH_CPU, NULL, NULL, NULL},
};
