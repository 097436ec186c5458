/*
 * Segment loads, LLDT, LTR, LGDT, LIDT, LAR, LSL, VERR, VERW: every check and its error code.
 */
#include "tests/unit/x86_fixture.h"

/* --- loads in the modes without descriptors --- */

static void test_real_mode(void **state)
{
    struct fixture *fix = *state;
    struct x86_segment *ds = &fix->cpu.s.seg[X86_DS];

    fix_real(fix);
    ds->limit = UINT32_MAX; /* as "unreal mode" leaves it */
    ds->attr = 0xc093;
    assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, 0xb800), 0);
    assert_int_equal(ds->base, 0xb8000);
    assert_int_equal(ds->limit, UINT32_MAX);
    assert_int_equal(ds->attr, 0xc093);
    assert_int_equal(ds->selector, 0xb800);

    x86_segment_null(ds, 0); /* a null segment that protected mode left behind becomes usable */
    assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, 1), 0);
    assert_int_equal(ds->base, 0x10);
    assert_int_equal(ds->limit, 0xffff);
    assert_int_equal(ds->attr, X86_ATTR_REAL);

    assert_raises(fix, x86_load_segment(&fix->cpu, X86_CS, 8), X86_UD, 0);
}

static void test_vm86(void **state)
{
    struct fixture *fix = *state;

    fix_vm86(fix, 0);
    assert_int_equal(x86_load_segment(&fix->cpu, X86_SS, 0xffff), 0);
    assert_int_equal(fix->cpu.s.seg[X86_SS].base, 0xffff0);
    assert_int_equal(fix->cpu.s.seg[X86_SS].limit, 0xffff);
    assert_int_equal(fix->cpu.s.seg[X86_SS].attr, 0xf3);
}

/* --- data segments --- */

struct load_case {
    uint16_t selector;
    uint32_t attr; /* of the descriptor, when selector is FREE; 0: leave the table alone */
    int vector;    /* -1: loads */
    uint32_t error;
};

static void run_cases(struct fixture *fix, enum x86_sreg sreg, const struct load_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct load_case *c = &cases[i];

        if (c->attr) {
            fix_set_desc(fix, c->selector, fix_desc(0x12345678, 0x54321, c->attr));
        }
        if (c->vector >= 0) {
            assert_raises(fix, x86_load_segment(&fix->cpu, sreg, c->selector), c->vector, c->error);
            continue;
        }
        assert_int_equal(x86_load_segment(&fix->cpu, sreg, c->selector), 0);
        assert_int_equal(fix->cpu.s.seg[sreg].selector, c->selector);
        if (c->attr) {
            assert_int_equal(fix->cpu.s.seg[sreg].base, 0x12345678);
            assert_int_equal(fix->cpu.s.seg[sreg].limit, c->attr & 0x8000 ? 0x54321fff : 0x54321);
            assert_int_equal(fix->cpu.s.seg[sreg].attr, c->attr | 1);
            assert_int_equal(x86_desc_attr(fix_desc_of(fix, c->selector)), c->attr | 1);
        }
    }
}

static void test_data_ring0(void **state)
{
    static const struct load_case cases[] = {
        {FREE, 0xc093, -1, 0},
        {FREE, 0x4092, -1, 0}, /* gets its accessed bit */
        {FREE, 0xc090, -1, 0}, /* read-only data */
        {FREE, 0xc09a, -1, 0}, /* readable code */
        {FREE | 3, 0xc0f3, -1, 0},
        {FREE, 0xc098, X86_GP, FREE},     /* execute-only code */
        {FREE, 0xc09c, X86_GP, FREE},     /* conforming, not readable */
        {FREE | 3, 0xc093, X86_GP, FREE}, /* RPL > DPL */
        {FREE | 3, 0xc09f, -1, 0},        /* conforming: RPL doesn't matter */
        {FREE, 0x0082, X86_GP, FREE},     /* a system segment */
        {FREE, 0x008b, X86_GP, FREE},
        {FREE, 0xc013, X86_NP, FREE},
        {FREE | 3, 0xc013, X86_GP, FREE}, /* privilege comes before presence */
        {FIX_GDT_LIMIT + 1, 0, X86_GP, FIX_GDT_LIMIT + 1},
        {IN_LDT, 0, -1, 0},
        {0x104, 0, X86_GP, 0x104}, /* beyond the LDT's limit */
        {0x107, 0, X86_GP, 0x104},
    };
    struct fixture *fix = *state;

    fix_protected(fix, 0);
    run_cases(fix, X86_DS, cases, sizeof(cases) / sizeof(cases[0]));
    run_cases(fix, X86_GS, cases, sizeof(cases) / sizeof(cases[0]));
    assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, IN_LDT), 0);
    assert_int_equal(fix->cpu.s.seg[X86_DS].base, 0x1234);

    for (uint16_t selector = 0; selector < 4; selector++) {
        assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, selector), 0);
        assert_int_equal(fix->cpu.s.seg[X86_DS].attr, 0);
        assert_int_equal(fix->cpu.s.seg[X86_DS].base, 0);
        assert_int_equal(fix->cpu.s.seg[X86_DS].selector, selector);
    }

    fix->cpu.s.gdtr.limit = KDATA + 6; /* the last byte of the descriptor lies outside */
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_DS, KDATA), X86_GP, KDATA);
    x86_segment_null(&fix->cpu.s.ldtr, 0);
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_DS, IN_LDT), X86_GP, IN_LDT);
}

static void test_data_ring3(void **state)
{
    static const struct load_case cases[] = {
        {FREE, 0xc0f3, -1, 0},        {FREE | 3, 0xc0f3, -1, 0},
        {FREE, 0xc093, X86_GP, FREE}, {FREE, 0xc0d3, X86_GP, FREE}, /* DPL 2 */
        {FREE | 3, 0xc0fb, -1, 0},    {FREE | 3, 0xc09b, X86_GP, FREE},
        {FREE | 3, 0xc09f, -1, 0},    {FREE | 3, 0xc073, X86_NP, FREE},
    };
    struct fixture *fix = *state;

    fix_protected(fix, 3);
    run_cases(fix, X86_ES, cases, sizeof(cases) / sizeof(cases[0]));
}

static void test_accessed_bit_faults(void **state)
{
    struct fixture *fix = *state;

    fix_long(fix, 0, false);
    fix->cpu.s.gdtr.base = FIX_READ_ONLY;
    fix_put(fix, FIX_READ_ONLY + KDATA, 8, fix_desc(0, 0xfffff, 0xc092));
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_DS, KDATA), X86_PF_EXC, X86_PF_P | X86_PF_W);
    fix->cpu.s.cr0 &= ~(uint64_t)X86_CR0_WP;
    assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, KDATA), 0);
    assert_int_equal(fix_get(fix, FIX_READ_ONLY + KDATA + 5, 1), 0x93);

    fix->cpu.s.gdtr.base = FIX_UNMAPPED;
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_DS, KDATA), X86_PF_EXC, 0);
    assert_int_equal(fix->cpu.exc.cr2, FIX_UNMAPPED + KDATA);
}

/* A user program's segment load reads supervisor pages (an implicit supervisor access). */
static void test_tables_are_supervisor(void **state)
{
    struct fixture *fix = *state;

    fix_long(fix, 3, false);
    fix_put(fix, FIX_PML4 + 0x3000 + (FIX_GDT >> 12) * 8, 8, FIX_GDT | 3);
    assert_int_equal(x86_load_segment(&fix->cpu, X86_DS, UDATA | 3), 0);
}

/* --- SS --- */

static void test_ss(void **state)
{
    static const struct load_case ring0[] = {
        {FREE, 0xc093, -1, 0},
        {FREE, 0x4096, -1, 0},            /* expand-down */
        {FREE | 1, 0xc093, X86_GP, FREE}, /* RPL */
        {FREE, 0xc0f3, X86_GP, FREE},     /* DPL */
        {FREE, 0xc091, X86_GP, FREE},     /* read-only */
        {FREE, 0xc09b, X86_GP, FREE},     /* code */
        {FREE, 0x0083, X86_GP, FREE},     /* system */
        {FREE, 0xc013, X86_SS_EXC, FREE},
        {0, 0, X86_GP, 0},
        {3, 0, X86_GP, 0},
        {FIX_GDT_LIMIT + 1, 0, X86_GP, FIX_GDT_LIMIT + 1},
        {IN_LDT, 0, X86_GP, IN_LDT}, /* DPL 3 */
    };
    static const struct load_case ring3[] = {
        {FREE | 3, 0xc0f2, -1, 0}, {FREE, 0xc0f3, X86_GP, FREE},         {FREE | 3, 0xc093, X86_GP, FREE},
        {IN_LDT | 3, 0, -1, 0},    {FREE | 3, 0xc073, X86_SS_EXC, FREE}, {3, 0, X86_GP, 0},
    };
    struct fixture *fix = *state;

    fix_protected(fix, 0);
    run_cases(fix, X86_SS, ring0, sizeof(ring0) / sizeof(ring0[0]));
    fix_protected(fix, 3);
    run_cases(fix, X86_SS, ring3, sizeof(ring3) / sizeof(ring3[0]));
}

static void test_ss_null_in_long_mode(void **state)
{
    struct fixture *fix = *state;

    fix_long(fix, 0, false);
    assert_int_equal(x86_load_segment(&fix->cpu, X86_SS, 0), 0);
    assert_int_equal(fix->cpu.s.seg[X86_SS].attr, 0);
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_SS, 1), X86_GP, 0); /* RPL isn't CPL */
    fix_long(fix, 3, false);
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_SS, 3), X86_GP, 0);
    fix_long(fix, 0, true);
    assert_raises(fix, x86_load_segment(&fix->cpu, X86_SS, 0), X86_GP, 0);
}

/* --- LDTR, TR, GDTR, IDTR --- */

static void test_lldt(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_real(fix);
    assert_raises(fix, x86_lldt(cpu, LDT), X86_UD, 0);
    fix_vm86(fix, 3);
    assert_raises(fix, x86_lldt(cpu, LDT), X86_UD, 0);
    fix_protected(fix, 3);
    assert_raises(fix, x86_lldt(cpu, LDT), X86_GP, 0);

    fix_protected(fix, 0);
    assert_raises(fix, x86_lldt(cpu, IN_LDT), X86_GP, IN_LDT);
    assert_raises(fix, x86_lldt(cpu, KDATA), X86_GP, KDATA);
    assert_raises(fix, x86_lldt(cpu, TSS), X86_GP, TSS);
    assert_raises(fix, x86_lldt(cpu, 0x200), X86_GP, 0x200);
    fix_set_desc(fix, FREE, fix_desc(FIX_LDT, 0xff, 0x02));
    assert_raises(fix, x86_lldt(cpu, FREE | 2), X86_NP, FREE);
    assert_int_equal(x86_lldt(cpu, 3), 0);
    assert_int_equal(cpu->s.ldtr.attr, 0);
    assert_int_equal(x86_lldt(cpu, LDT), 0);
    assert_int_equal(cpu->s.ldtr.base, FIX_LDT);
    assert_int_equal(cpu->s.ldtr.limit, 0xff);
    assert_int_equal(cpu->s.ldtr.selector, LDT);

    fix_long(fix, 0, false);
    fix_put(fix, FIX_GDT + LDT + 8, 8, 0xffff8000);
    assert_int_equal(x86_lldt(cpu, LDT), 0);
    assert_int_equal(cpu->s.ldtr.base, 0xffff800000000000 | FIX_LDT);
    fix_put(fix, FIX_GDT + LDT + 8, 8, 0x00008000); /* not canonical */
    assert_raises(fix, x86_lldt(cpu, LDT), X86_GP, LDT);
    fix_put(fix, FIX_GDT + LDT + 8, 8, 0x0000010000000000); /* type field of the second half */
    assert_raises(fix, x86_lldt(cpu, LDT), X86_GP, LDT);
    fix_put(fix, FIX_GDT + LDT + 8, 8, 0);
    cpu->s.gdtr.limit = LDT + 14; /* the sixteenth byte lies outside */
    assert_raises(fix, x86_lldt(cpu, LDT), X86_GP, LDT);
    cpu->s.gdtr.limit = LDT + 15;
    assert_int_equal(x86_lldt(cpu, LDT), 0);
}

static void test_ltr(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_real(fix);
    assert_raises(fix, x86_ltr(cpu, TSS), X86_UD, 0);
    fix_protected(fix, 3);
    assert_raises(fix, x86_ltr(cpu, TSS), X86_GP, 0);
    fix_protected(fix, 0);
    assert_raises(fix, x86_ltr(cpu, 0), X86_GP, 0);
    assert_raises(fix, x86_ltr(cpu, TSS), X86_GP, TSS); /* busy */
    assert_raises(fix, x86_ltr(cpu, LDT), X86_GP, LDT);
    assert_raises(fix, x86_ltr(cpu, IN_LDT), X86_GP, IN_LDT);
    assert_raises(fix, x86_ltr(cpu, 0x1000), X86_GP, 0x1000);
    fix_set_desc(fix, FREE, fix_desc(FIX_TSS_B, 0x67, 0x09));
    assert_raises(fix, x86_ltr(cpu, FREE), X86_NP, FREE);
    fix_set_desc(fix, FREE, fix_desc(FIX_TSS_B, 0x67, 0x89));
    assert_int_equal(x86_ltr(cpu, FREE), 0);
    assert_int_equal(cpu->s.tr.base, FIX_TSS_B);
    assert_int_equal(cpu->s.tr.attr, 0x8b);
    assert_int_equal(x86_desc_attr(fix_desc_of(fix, FREE)), 0x8b);
    fix_set_desc(fix, FREE, fix_desc(FIX_TSS_B, 0x2b, 0x81));
    assert_int_equal(x86_ltr(cpu, FREE), 0);
    assert_int_equal(cpu->s.tr.attr, 0x83);

    fix_long(fix, 0, false);
    fix_set_desc(fix, FREE, fix_desc(FIX_TSS_B, 0x2b, 0x81));
    fix_put(fix, FIX_GDT + FREE + 8, 8, 0);
    assert_raises(fix, x86_ltr(cpu, FREE), X86_GP, FREE); /* no 16-bit TSS in IA-32e mode */
    fix_set_desc(fix, FREE, fix_desc(FIX_TSS_B, 0x67, 0x89));
    fix_put(fix, FIX_GDT + FREE + 8, 8, 0xffffffff);
    assert_int_equal(x86_ltr(cpu, FREE), 0);
    assert_int_equal(cpu->s.tr.base, 0xffffffff00000000 | FIX_TSS_B);
}

static void test_lgdt(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_real(fix);
    assert_int_equal(x86_lgdt(cpu, 0x123456, 0x77), 0);
    assert_int_equal(cpu->s.gdtr.base, 0x123456);
    assert_int_equal(cpu->s.gdtr.limit, 0x77);
    fix_vm86(fix, 3);
    assert_raises(fix, x86_lgdt(cpu, 0, 0), X86_GP, 0);
    fix_long(fix, 3, false);
    assert_raises(fix, x86_lidt(cpu, 0, 0), X86_GP, 0);
    fix_long(fix, 0, false);
    assert_raises(fix, x86_lidt(cpu, 0x800000000000, 0), X86_GP, 0);
    assert_int_equal(x86_lidt(cpu, 0xffff800000000000, 0xfff), 0);
    assert_int_equal(cpu->s.idtr.base, 0xffff800000000000);
}

/* --- questions --- */

static void test_lar_lsl_types(void **state)
{
    static const uint32_t lar32 = 0x1a3e, lar64 = 0x1a04, lsl32 = 0x0a0e, lsl64 = 0x0a04;
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    for (unsigned mode = 0; mode < 2; mode++) {
        if (mode == 0) {
            fix_protected(fix, 0);
        } else {
            fix_long(fix, 0, false);
        }
        for (uint32_t type = 0; type < 16; type++) {
            uint32_t value = 0;
            bool ok;

            fix_set_desc(fix, FREE, fix_desc(0x11111111, 0x23456, 0x80 | type));
            assert_int_equal(x86_lar(cpu, FREE, &ok, &value), 0);
            assert_int_equal(ok, ((mode ? lar64 : lar32) >> type) & 1);
            assert_int_equal(value & ~0xf0000u, ok ? 0x8000 | type << 8 : 0); /* bits 19:16 are undefined */
            value = 7;
            assert_int_equal(x86_lsl(cpu, FREE, &ok, &value), 0);
            assert_int_equal(ok, ((mode ? lsl64 : lsl32) >> type) & 1);
            assert_int_equal(value, ok ? 0x23456 : 7);
        }
        for (uint32_t type = 0; type < 16; type++) {
            uint32_t value;
            bool ok;

            fix_set_desc(fix, FREE, fix_desc(0, 0x12345, 0xc010 | type)); /* presence isn't asked for */
            assert_int_equal(x86_lar(cpu, FREE, &ok, &value), 0);
            assert_true(ok);
            assert_int_equal(value & ~0xf0000u, 0xc01000 | type << 8);
            assert_int_equal(x86_lsl(cpu, FREE, &ok, &value), 0);
            assert_true(ok);
            assert_int_equal(value, 0x12345fff);
        }
    }
}

static void test_lar_privilege(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    uint32_t value;
    bool ok;

    fix_real(fix);
    assert_raises(fix, x86_lar(cpu, KCODE, &ok, &value), X86_UD, 0);
    fix_vm86(fix, 3);
    assert_raises(fix, x86_lsl(cpu, KCODE, &ok, &value), X86_UD, 0);
    assert_raises(fix, x86_verr(cpu, KCODE, false, &ok), X86_UD, 0);
    fix_protected(fix, 0);
    assert_int_equal(x86_lar(cpu, 0, &ok, &value), 0);
    assert_false(ok);
    assert_int_equal(x86_lar(cpu, KCODE | 1, &ok, &value), 0);
    assert_false(ok);
    assert_int_equal(x86_lar(cpu, CONFORMING | 3, &ok, &value), 0);
    assert_true(ok);
    assert_int_equal(x86_lar(cpu, 0x1000, &ok, &value), 0);
    assert_false(ok);
    fix_protected(fix, 3);
    assert_int_equal(x86_lsl(cpu, KDATA, &ok, &value), 0);
    assert_false(ok);
    assert_int_equal(x86_lsl(cpu, UDATA, &ok, &value), 0);
    assert_true(ok);
}

static void test_verr_verw(void **state)
{
    static const struct {
        uint16_t selector;
        uint8_t cpl;
        bool read, write;
    } cases[] = {
        {0, 0, false, false},         {KDATA, 0, true, true},
        {KDATA | 1, 0, false, false}, {KDATA, 3, false, false},
        {UDATA | 3, 3, true, true},   {KCODE, 0, true, false},
        {CODE_XO, 0, false, false},   {DATA_RO, 0, true, false},
        {TSS, 0, false, false},       {CONFORMING | 3, 3, true, false},
        {0x1000, 0, false, false},
    };
    struct fixture *fix = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool ok;

        fix_protected(fix, cases[i].cpl);
        assert_int_equal(x86_verr(&fix->cpu, cases[i].selector, false, &ok), 0);
        assert_int_equal(ok, cases[i].read);
        assert_int_equal(x86_verr(&fix->cpu, cases[i].selector, true, &ok), 0);
        assert_int_equal(ok, cases[i].write);
    }
}

static void test_limits(void **state)
{
    struct x86_segment up = {.limit = 0xfff, .attr = 0x4093};
    struct x86_segment down = {.limit = 0xfff, .attr = 0x4097};
    struct x86_segment down16 = {.limit = 0xfff, .attr = 0x0097};

    assert_true(x86_within_limit(&up, 0xffc, 4));
    assert_false(x86_within_limit(&up, 0xffd, 4));
    assert_false(x86_within_limit(&up, 0xffffffff, 4));
    assert_false(x86_within_limit(&down, 0xfff, 1));
    assert_true(x86_within_limit(&down, 0x1000, 4));
    assert_true(x86_within_limit(&down, 0xfffffffc, 4));
    assert_false(x86_within_limit(&down, 0xfffffffd, 4));
    assert_true(x86_within_limit(&down16, 0xfffe, 2));
    assert_false(x86_within_limit(&down16, 0xffff, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        fix_test(test_real_mode),
        fix_test(test_vm86),
        fix_test(test_data_ring0),
        fix_test(test_data_ring3),
        fix_test(test_accessed_bit_faults),
        fix_test(test_tables_are_supervisor),
        fix_test(test_ss),
        fix_test(test_ss_null_in_long_mode),
        fix_test(test_lldt),
        fix_test(test_ltr),
        fix_test(test_lgdt),
        fix_test(test_lar_lsl_types),
        fix_test(test_lar_privilege),
        fix_test(test_verr_verw),
        fix_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
