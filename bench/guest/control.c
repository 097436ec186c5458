/*
 * CPU rows that are all control flow: interpreter dispatch, recursive and indirect calls, and code that runs
 * only once.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

/* A stack machine of nine instructions, dispatched by a switch as in small interpreters. */
enum op { OP_PUSH, OP_ADD, OP_SUB, OP_MUL, OP_LOAD, OP_STORE, OP_JUMP_IF, OP_XOR, OP_HALT };

static int64_t __attribute__((noinline)) interpret(const int32_t *code, int64_t *vars)
{
    int64_t stack[32], *sp = stack;
    for (const int32_t *pc = code;;) {
        switch (*pc++) {
        case OP_PUSH: *sp++ = *pc++; break;
        case OP_ADD: sp--, sp[-1] = (int64_t)((uint64_t)sp[-1] + (uint64_t)sp[0]); break;
        case OP_SUB: sp--, sp[-1] = (int64_t)((uint64_t)sp[-1] - (uint64_t)sp[0]); break;
        case OP_MUL: sp--, sp[-1] = (int64_t)((uint64_t)sp[-1] * (uint64_t)sp[0]); break;
        case OP_XOR: sp--, sp[-1] ^= sp[0]; break;
        case OP_LOAD: *sp++ = vars[*pc++]; break;
        case OP_STORE: vars[*pc++] = *--sp; break;
        case OP_JUMP_IF: pc = *--sp ? code + *pc : pc + 1; break;
        case OP_HALT: return vars[1];
        default: bench_fail("opcode");
        }
    }
}

static uint64_t run_interp(void)
{
    /* for (i = n; i; i--) acc = (acc * 31 + i) ^ (i - 7) */
    static const int32_t code[] = {
        OP_LOAD, 1,        OP_PUSH, 31,      OP_MUL,   OP_LOAD,    0,       OP_ADD,  OP_LOAD, 0,
        OP_PUSH, 7,        OP_SUB,  OP_XOR,  OP_STORE, 1,          OP_LOAD, 0,       OP_PUSH, 1,
        OP_SUB,  OP_STORE, 0,       OP_LOAD, 0,        OP_JUMP_IF, 0,       OP_HALT,
    };
    int64_t vars[2] = {(int64_t)bench_scaled(9000000), 1};
    int64_t small[2] = {3, 1};
    uint64_t acc = 1;
    for (uint64_t i = 3; i; i--) {
        acc = (acc * 31 + i) ^ (i - 7);
    }
    if ((uint64_t)interpret(code, small) != acc) {
        bench_fail("interpreter");
    }
    bench_start();
    int64_t result = interpret(code, vars);
    bench_stop();
    return (uint64_t)result;
}

static uint64_t __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls,no-inline")))
fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t run_fib(void)
{
    uint64_t rounds = bench_scaled(20), sum = 0;
    if (fib(20) != 6765) {
        bench_fail("fib(20)");
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        sum += fib(30 + (r & 1));
    }
    bench_stop();
    return sum;
}

typedef uint64_t (*step_fn)(uint64_t x);
#define STEP(n, expr)                                                                                        \
    static uint64_t __attribute__((noinline)) step##n(uint64_t x)                                            \
    {                                                                                                        \
        return expr;                                                                                         \
    }
STEP(0, x + 0x1234567)
STEP(1, x ^ (x >> 7))
STEP(2, x * 5 + 1)
STEP(3, ~x)
STEP(4, x ^ (x << 9))
STEP(5, x - 77)
STEP(6, (x >> 3) | (x << 61))
STEP(7, x * 0x9e3779b97f4a7c15ULL)

static uint64_t run_indirect(void)
{
    static step_fn const steps[8] = {step0, step1, step2, step3, step4, step5, step6, step7};
    static uint8_t order[512];
    uint64_t rng = 9, x = 1, rounds = bench_scaled(150000);
    for (size_t i = 0; i < sizeof(order); i++) {
        order[i] = bench_random(&rng) >> 61;
    }
    if (step3(step3(42)) != 42) {
        bench_fail("step");
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (size_t i = 0; i < sizeof(order); i++) {
            x = steps[order[i]](x);
        }
    }
    bench_stop();
    return x;
}

/* cold.S: bench_cold_count functions of bench_cold_stride bytes each; all different; each returns its
 * argument changed. */
extern const char bench_cold_code[], bench_cold_end[];
extern const uint64_t bench_cold_count, bench_cold_stride;

static uint64_t run_cold(void)
{
    uint64_t x = 1, touched = 0, count = bench_scaled(bench_cold_count);
    if (count > bench_cold_count) {
        count = bench_cold_count;
    }
    /* Bring the pages in first: reading them from the file is not what is measured. */
    for (const char *p = bench_cold_code; p < bench_cold_end; p += 4096) {
        touched += *(const volatile unsigned char *)p;
    }
    bench_start();
    for (uint64_t i = 0; i < count; i++) {
        step_fn fn;
        const char *at = bench_cold_code + i * bench_cold_stride;
        memcpy(&fn, &at, sizeof(fn));
        x = fn(x);
    }
    bench_stop();
    if (!touched) {
        bench_fail("no code");
    }
    return x;
}

const struct bench_row bench_control_rows[] = {
    {"interp", BENCH_CPU, run_interp, NULL, "bytecode interpreter loop, switch dispatch"},
    {"fib", BENCH_CPU, run_fib, NULL, "recursive calls"},
    {"indirect", BENCH_CPU, run_indirect, NULL, "calls through a table of 8 functions in random order"},
    {"cold-code", BENCH_COLD, run_cold, NULL,
     "40,000 different functions, each called once (11 instructions, 3 blocks)"},
    {NULL, BENCH_CPU, NULL, NULL, NULL},
};
