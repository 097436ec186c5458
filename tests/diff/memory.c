/* The memory of a case: random contents, patches, code. */
#include <cpuid.h>
#include <sched.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/diff.h"

const char *const diff_cat_names[CAT_COUNT] = {
    "alu",   "shift",  "muldiv",    "bits",       "move", "stack",  "control", "string", "lock",  "x87",
    "mmx",   "sse",    "crypto",    "avx",        "fma",  "avx512", "mask",    "gather", "xsave", "segment",
    "fence", "prefix", "undefined", "privileged", "trap", "fault",  "mixed",   "compat",
};

const struct diff_xlayout *diff_xlayout(void)
{
    static struct diff_xlayout layout;
    if (layout.features == 0) {
        uint32_t a = 0, b = 0, c = 0, d = 0;
        uint32_t lo = 3, hi = 0;
        if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
            __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        }
        uint32_t *const where[8] = {
            [2] = &layout.ymm, [5] = &layout.opmask, [6] = &layout.zmm_hi256, [7] = &layout.hi16_zmm};
        uint64_t features = 3;
        for (unsigned i = 2; i < ARRAY_SIZE(where); i++) {
            if (where[i] && (lo & (1u << i))) {
                __cpuid_count(0xd, i, a, b, c, d);
                if (b + a <= DIFF_XSAVE_BYTES) {
                    *where[i] = b;
                    features |= 1ull << i;
                }
            }
        }
        layout.features = features;
        layout.same_xcr0 = features == (lo | (uint64_t)hi << 32);
    }
    return &layout;
}

void diff_stay_home(void)
{
    cpu_set_t allowed, home;
    CPU_ZERO(&home);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        for (int i = 0; i < CPU_SETSIZE; i++) {
            if (CPU_ISSET(i, &allowed)) {
                CPU_SET(i, &home);
                (void)sched_setaffinity(0, sizeof(home), &home);
                return;
            }
        }
    }
}

uint32_t diff_mem_offset(uint64_t va)
{
    if (va >= DIFF_DATA_VA && va < DIFF_RO_VA + DIFF_RO_PAGES * DIFF_PAGE) {
        return (uint32_t)va - DIFF_DATA_VA;
    }
    if (va >= DIFF_STACK_VA && va < DIFF_STACK_TOP) {
        return (uint32_t)va - DIFF_STACK_VA + (DIFF_DATA_PAGES + DIFF_RO_PAGES) * DIFF_PAGE;
    }
    return UINT32_MAX;
}

void diff_fill_memory(const struct diff_case *c, uint8_t *mem)
{
    if (c->mem_seed == 0) {
        memset(mem, 0, DIFF_MEM_BYTES);
    } else {
        struct rng r;
        rng_init(&r, c->mem_seed, 0);
        for (uint32_t i = 0; i < DIFF_MEM_BYTES; i += 8) {
            uint64_t v = rng_next(&r);
            /* Small and special values take part as well as noise. */
            switch (v & 15) {
            case 0: v = 0; break;
            case 1: v = ~0ull; break;
            case 2: v >>= 48; break;
            case 3: v = 0x3ff0000000000000ull; break; /* 1.0 */
            case 4: v = 0x7f80000000800001ull; break; /* infinity and a denormal in single precision */
            case 5: v = 0x8000000000000000ull; break;
            default: break;
            }
            memcpy(mem + i, &v, sizeof(v));
        }
    }
    for (uint32_t i = 0; i < c->patches && i < DIFF_PATCHES_MAX; i++) {
        const struct diff_patch *p = &c->patch[i];
        for (uint32_t k = 0; k < p->length && k < sizeof(p->bytes); k++) {
            uint32_t offset = diff_mem_offset((uint64_t)p->va + k);
            if (offset < DIFF_MEM_BYTES) {
                mem[offset] = p->bytes[k];
            }
        }
    }
}

uint32_t diff_code_range(const struct diff_case *c, uint32_t *ret_start)
{
    uint32_t end = c->code_offset + c->code_length + (c->open_end ? 0 : 1);
    *ret_start = c->code_offset;
    return MIN(end, DIFF_CODE_BYTES);
}

void diff_fill_code(const struct diff_case *c, uint8_t *buf)
{
    uint32_t start;
    uint32_t end = diff_code_range(c, &start);
    memset(buf, DIFF_MARKER, end - start);
    memcpy(buf, c->code, MIN(c->code_length, end - start));
}
