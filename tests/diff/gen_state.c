/*
 * The state that cases start from: values of general registers, and x87, SSE, AVX and AVX-512 registers that
 * hold every kind of number. No exception is pending in it.
 */
#include <string.h>

#include "base/util.h"
#include "tests/diff/gen_int.h"

uint64_t gen_value(struct gen *g)
{
    static const uint64_t special[] = {0,
                                       1,
                                       2,
                                       ~0ull,
                                       0x7f,
                                       0x80,
                                       0xff,
                                       0x7fff,
                                       0x8000,
                                       0xffff,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x100000000,
                                       1ull << 63,
                                       ~0ull >> 1,
                                       0x5555555555555555ull};
    uint64_t v = rng_next(&g->r);
    switch (rng_below(&g->r, 8)) {
    case 0: return special[rng_below(&g->r, ARRAY_SIZE(special))];
    case 1: return v & 0xff;
    case 2: return (uint64_t)((int64_t)v >> 32);
    case 3: return v >> 32;
    case 4: return DIFF_DATA_VA + (v & 0x3fff);
    default: return v;
    }
}

/* Eight bytes of a vector register: noise, integers, and floating point of all kinds. */
static uint64_t vector_value(struct rng *r)
{
    static const uint64_t doubles[] = {
        0,
        0x8000000000000000ull,
        0x3ff0000000000000ull, /* 1.0 */
        0xc000000000000000ull, /* -2.0 */
        0x7ff0000000000000ull, /* infinity */
        0xfff0000000000000ull,
        0x7ff8000000000001ull, /* quiet NaN */
        0x7ff0000000000001ull, /* signalling NaN */
        0x0000000000000001ull, /* denormals */
        0x000fffffffffffffull,
        0x0010000000000000ull, /* least normal */
        0x7fefffffffffffffull, /* greatest */
        0x41dfffffffc00000ull, /* 2^31 - 1 */
        0x43e0000000000000ull, /* 2^63 */
        0x3fb999999999999aull, /* 0.1 */
    };
    static const uint32_t floats[] = {0,          0x80000000, 0x3f800000, 0xc0000000, 0x7f800000,
                                      0xff800000, 0x7fc00001, 0x7f800001, 0x00000001, 0x007fffff,
                                      0x00800000, 0x7f7fffff, 0x4f000000, 0x3dcccccd};
    uint64_t v = rng_next(r);
    switch (rng_below(r, 8)) {
    case 0: return doubles[rng_below(r, ARRAY_SIZE(doubles))];
    case 1:
        return floats[rng_below(r, ARRAY_SIZE(floats))] | (uint64_t)floats[rng_below(r, ARRAY_SIZE(floats))]
                                                              << 32;
    case 2: return (v & 0x800fffffffffffffull) | (0x3f0ull + (v >> 52 & 0x1f)) << 52; /* doubles around 1 */
    case 3: return (v & 0x807fffff807fffffull) | 0x3f8000003f800000ull;               /* singles around 1 */
    case 4: return v & 0x000000ff000000ffull;
    default: return v;
    }
}

void gen_put(uint8_t *at, uint64_t value, unsigned bytes)
{
    memcpy(at, &value, bytes);
}

static void make_x87(struct gen *g, uint8_t *x)
{
    struct rng *r = &g->r;
    uint32_t fcw = 0x37f;
    if (rng_percent(r, 30)) {
        fcw = 0x7f | rng_below(r, 16) << 8;
    }
    if (rng_percent(r, 8)) {
        fcw &= ~rng_below(r, 64);
    }
    /* No exception is pending that is not masked. */
    uint32_t fsw = (rng_below(r, 65536) & 0x7f00) | (rng_percent(r, 30) ? rng_below(r, 64) & fcw : 0);
    uint32_t ftw = rng_percent(r, 60) ? 0xff : rng_below(r, 256);
    gen_put(x + DIFF_XS_FCW, fcw, 2);
    gen_put(x + DIFF_XS_FSW, fsw, 2);
    gen_put(x + DIFF_XS_FTW, ftw, 1);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t mantissa = rng_next(r);
        uint64_t exponent = rng_next(r) & 0xffff;
        switch (rng_below(r, 8)) {
        case 0: break; /* anything, unsupported formats too */
        case 1: mantissa = 0, exponent &= 0x8000; break;
        case 2: mantissa = 1ull << 63, exponent |= 0x7fff; break;  /* infinity */
        case 3: mantissa |= 3ull << 62, exponent |= 0x7fff; break; /* quiet NaN */
        case 4: mantissa &= ~0ull >> 1, exponent &= 0x8000; break; /* denormal */
        case 5:
            mantissa = (mantissa >> 40 | 1ull << 20) << 43, exponent = (exponent & 0x8000) | 0x4005;
            break;
        default: mantissa |= 1ull << 63, exponent = (exponent & 0x8000) | (0x3ff0 + (exponent & 31)); break;
        }
        gen_put(x + DIFF_XS_ST + i * 16, mantissa, 8);
        gen_put(x + DIFF_XS_ST + i * 16 + 8, exponent, 2);
    }
}

void gen_make_xsave(struct gen *g)
{
    struct rng *r = &g->r;
    const struct diff_xlayout *l = diff_xlayout();
    uint8_t *x = g->c->xsave;
    memset(x, 0, DIFF_XSAVE_BYTES);
    make_x87(g, x);
    uint32_t mxcsr = 0x1f80;
    if (rng_percent(r, 40)) {
        mxcsr |= rng_below(r, 65536) & 0xe07f; /* rounding, FTZ, DAZ, sticky flags */
    }
    if (rng_percent(r, 8)) {
        mxcsr &= ~(rng_below(r, 64) << 7);
        mxcsr &= ~0x3fu;
    }
    gen_put(x + DIFF_XS_MXCSR, mxcsr, 4);
    for (unsigned i = 0; i < 256; i += 8) {
        gen_put(x + DIFF_XS_XMM + i, vector_value(r), 8);
        if (l->ymm) {
            gen_put(x + l->ymm + i, vector_value(r), 8);
        }
    }
    if (l->opmask) {
        for (unsigned i = 0; i < 64; i += 8) {
            gen_put(x + l->opmask + i, rng_percent(r, 20) ? ~0ull : rng_next(r), 8);
        }
        for (unsigned i = 0; i < 512; i += 8) {
            gen_put(x + l->zmm_hi256 + i, vector_value(r), 8);
        }
        for (unsigned i = 0; i < 1024; i += 8) {
            gen_put(x + l->hi16_zmm + i, vector_value(r), 8);
        }
    }
    gen_put(x + DIFF_XS_BV, l->features, 8);
}
