/*
 * The differential tester itself: that a difference in any item is found, that cases are reproducible, and
 * that a failing case is reduced to the instruction that is to blame.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "tests/diff/gen.h"
#include "tests/diff/reduce.h"

static const struct diff_names names = {"a", "b"};

static void put_bv(struct diff_result *r, uint64_t bv)
{
    memcpy(r->xsave + DIFF_XS_BV, &bv, sizeof(bv));
}

static void finds_each_item(void **state)
{
    static struct diff_case c;
    static struct diff_result a, b;
    a.outcome = DIFF_EXCEPTION;
    a.vector = X86_BP;
    put_bv(&a, DIFF_XCR0_ALL);
    const struct {
        uint32_t offset;
        uint8_t bit;
        uint32_t expected;
    } changes[] = {
        {offsetof(struct diff_result, rip), 0, BIT(ITEM_RIP)},
        {offsetof(struct diff_result, gpr) + 15 * 8 + 7, 7, BIT(ITEM_GPR)},
        {offsetof(struct diff_result, rflags), 0, BIT(ITEM_ARITH)},
        {offsetof(struct diff_result, rflags) + 1, 2, BIT(ITEM_FLAGS)},
        {offsetof(struct diff_result, rflags) + 2, 0, BIT(ITEM_RF)},
        {offsetof(struct diff_result, error), 1, BIT(ITEM_ERROR)},
        {offsetof(struct diff_result, cr2) + 4, 1, BIT(ITEM_CR2)},
        {offsetof(struct diff_result, sel) + X86_GS * 2, 3, BIT(ITEM_SEGMENTS)},
        {offsetof(struct diff_result, fs_base), 3, BIT(ITEM_SEGMENTS)},
        {offsetof(struct diff_result, xsave) + DIFF_XS_FSW, 0, BIT(ITEM_X87)},
        {offsetof(struct diff_result, xsave) + DIFF_XS_ST + 7 * 16 + 9, 7, BIT(ITEM_X87)},
        {offsetof(struct diff_result, xsave) + DIFF_XS_FIP + 2, 7, BIT(ITEM_FIP)},
        {offsetof(struct diff_result, xsave) + DIFF_XS_MXCSR, 5, BIT(ITEM_MXCSR)},
        {offsetof(struct diff_result, xsave) + DIFF_XS_XMM + 15 * 16 + 15, 7, BIT(ITEM_VECTORS)},
        {offsetof(struct diff_result, mem), 0, BIT(ITEM_MEMORY)},
        {offsetof(struct diff_result, mem) + DIFF_MEM_BYTES - 1, 7, BIT(ITEM_MEMORY)},
        {offsetof(struct diff_result, vector), 1, DIFF_BIT_VECTOR},
    };
    assert_int_equal(diff_compare(&c, &a, &a, 0, &names, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(changes); i++) {
        b = a;
        ((uint8_t *)&b)[changes[i].offset] ^= (uint8_t)(1u << changes[i].bit);
        assert_int_equal(diff_compare(&c, &a, &b, 0, &names, NULL), changes[i].expected);
        uint32_t ignored = changes[i].expected & ~DIFF_BIT_VECTOR;
        assert_int_equal(diff_compare(&c, &a, &b, ignored, &names, NULL), changes[i].expected & ~ignored);
    }
}

static void compares_extended_state_by_value(void **state)
{
    static struct diff_case c;
    static struct diff_result a, b;
    a.outcome = b.outcome = DIFF_EXCEPTION;
    /* x87 with the initial control word is what an absent x87 part means. */
    put_bv(&a, 1);
    a.xsave[DIFF_XS_FCW] = 0x7f;
    a.xsave[DIFF_XS_FCW + 1] = 0x03;
    assert_int_equal(diff_compare(&c, &a, &b, 0, &names, NULL), 0);
    /* What an absent part leaves in memory does not count. */
    b.xsave[DIFF_XS_XMM] = 1;
    assert_int_equal(diff_compare(&c, &a, &b, 0, &names, NULL), 0);
    put_bv(&b, 2);
    assert_int_equal(diff_compare(&c, &a, &b, 0, &names, NULL), BIT(ITEM_VECTORS));
}

static void makes_the_same_case_again(void **state)
{
    static struct diff_case a, b;
    struct generator *generator = generator_new();
    for (unsigned cat = 0; cat < CAT_COUNT; cat++) {
        generator_make(generator, 7, cat, (enum diff_cat)cat, &a);
        generator_make(generator, 7, cat + 1000u, (enum diff_cat)cat, &b);
        assert_memory_not_equal(a.gpr, b.gpr, sizeof(a.gpr));
        generator_make(generator, 7, cat, (enum diff_cat)cat, &b);
        assert_memory_equal(&a, &b, sizeof(a));
        assert_true(a.insns > 0);
    }
    generator_free(generator);
}

static void never_makes_a_system_call(void **state)
{
    static struct diff_case c;
    struct generator *generator = generator_new();
    for (uint64_t i = 0; i < 3000; i++) {
        generator_make(generator, 11, i, CAT_COUNT, &c);
        for (uint32_t k = 0; k + 1 < c.code_length; k++) {
            unsigned pair = c.code[k] << 8 | c.code[k + 1];
            assert_true(pair != 0x0f05 && pair != 0x0f34 && pair != 0xcd80);
        }
    }
    generator_free(generator);
}

/* A runner pair that differs where the code has a byte 0xa5 and RCX is not zero. */
static uint32_t blame(void *opaque, const struct diff_case *c)
{
    (*(unsigned *)opaque)++;
    const uint8_t *at = memchr(c->code + c->entry, 0xa5, c->code_length - c->entry);
    return at && c->gpr[X86_RCX] ? BIT(ITEM_GPR) : 0;
}

static void reduces_to_the_cause(void **state)
{
    static struct diff_case c;
    const uint8_t code[] = {0x48, 0x01, 0xd8, 0x48, 0xa5, 0x48, 0x29, 0xd8, 0x90};
    memcpy(c.code, code, sizeof(code));
    c.code_length = sizeof(code);
    c.insns = 4;
    c.insn[0] = (struct diff_insn){0, 3};
    c.insn[1] = (struct diff_insn){3, 2};
    c.insn[2] = (struct diff_insn){5, 3};
    c.insn[3] = (struct diff_insn){8, 1};
    for (unsigned i = 0; i < 16; i++) {
        c.gpr[i] = 0x1234567890ull + i;
    }
    c.rflags = 0x202 | X86_FLAGS_ARITH;
    c.mem_seed = 99;
    unsigned runs = 0;
    reduce_case(&c, blame, &runs);
    char name[64];
    reduce_name(&c, name, sizeof(name));
    assert_string_equal(name, "movsq");
    assert_int_equal(c.entry, 3);
    assert_int_equal(c.code_length, 5);
    assert_int_equal(c.gpr[X86_RCX], 1);
    assert_int_equal(c.gpr[X86_RBX], 0);
    assert_int_equal(c.rflags, 0x202);
    assert_int_equal(c.mem_seed, 0);
    assert_true(runs < 500);
}

static void keeps_a_case_in_a_file(void **state)
{
    static struct diff_case a, b;
    struct generator *generator = generator_new();
    generator_make(generator, 3, 1, CAT_AVX512, &a);
    generator_free(generator);
    char path[] = "/tmp/fonda-diff-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(case_save(&a, path), 0);
    assert_int_equal(case_load(&b, path), 0);
    unlink(path);
    b.seed = a.seed; /* not kept: the file stands for itself */
    b.index = a.index;
    assert_memory_equal(&a, &b, sizeof(a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_each_item),           cmocka_unit_test(compares_extended_state_by_value),
        cmocka_unit_test(makes_the_same_case_again), cmocka_unit_test(never_makes_a_system_call),
        cmocka_unit_test(reduces_to_the_cause),      cmocka_unit_test(keeps_a_case_in_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
