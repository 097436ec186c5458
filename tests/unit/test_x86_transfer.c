/*
 * Far JMP, CALL, RET and IRET in every mode, call gates: checks, frames, stacks, flags.
 */
#include "tests/unit/x86_fixture.h"

#define TARGET 0x12340u

static uint64_t stack(struct fixture *fix, unsigned index, unsigned size)
{
    return fix_get(fix, fix->cpu.s.seg[X86_SS].base + fix->cpu.s.gpr[X86_RSP] + index * size, size);
}

/* Puts items on the current stack, the top first. */
static void put_stack(struct fixture *fix, unsigned size, unsigned count, const uint64_t *items)
{
    struct x86_state *s = &fix->cpu.s;

    for (unsigned i = 0; i < count; i++) {
        fix_put(fix, s->seg[X86_SS].base + s->gpr[X86_RSP] + i * size, size, items[i]);
    }
}
#define PUT_STACK(fix, size, ...)                                                                            \
    put_stack(fix, size, sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[]){__VA_ARGS__})

/* --- JMP and CALL --- */

static void test_real(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_real(fix);
    assert_int_equal(x86_far_jmp(&fix->cpu, 0xf000, 0xabcd1234, 2), 0);
    assert_int_equal(s->seg[X86_CS].base, 0xf0000);
    assert_int_equal(s->rip, 0x1234);
    assert_raises(fix, x86_far_jmp(&fix->cpu, 0, 0x10000, 4), X86_GP, 0);
    assert_int_equal(x86_far_call(&fix->cpu, 0x1000, 0x20, 2), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 4);
    assert_int_equal(stack(fix, 0, 2), 0x7002);
    assert_int_equal(stack(fix, 1, 2), 0xf000);
    assert_int_equal(x86_far_ret(&fix->cpu, 2, 6), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK + 6);
    assert_int_equal(s->seg[X86_CS].selector, 0xf000);
    assert_int_equal(s->rip, 0x7002);
    assert_int_equal(x86_far_call(&fix->cpu, 0x1000, 0x20, 4), 0);
    assert_int_equal(stack(fix, 1, 4), 0xf000);
    PUT_STACK(fix, 4, 0x10000, 0);
    assert_raises(fix, x86_far_ret(&fix->cpu, 4, 0), X86_GP, 0);
    s->gpr[X86_RSP] = 0xffff;
    assert_raises(fix, x86_far_ret(&fix->cpu, 2, 0), X86_SS_EXC, 0);
}

static void test_vm86(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_vm86(fix, 0);
    assert_int_equal(x86_far_call(&fix->cpu, 0x2000, 0x30, 2), 0);
    assert_int_equal(s->seg[X86_CS].base, 0x20000);
    assert_int_equal(s->seg[X86_CS].attr, 0xf3);
    assert_int_equal(fix->cpu.cpl, 3);
    assert_raises(fix, x86_far_jmp(&fix->cpu, 0x2000, 0x10000, 4), X86_GP, 0);
    assert_int_equal(x86_far_ret(&fix->cpu, 2, 0), 0);
    assert_int_equal(s->seg[X86_CS].selector, 0x101);
    assert_int_equal(s->gpr[X86_RSP], 0x1000);
}

static void test_direct_rules(void **state)
{
    struct fixture *fix = *state;
    static const struct {
        uint8_t cpl;
        uint8_t mode; /* 32: protected, 64: 64-bit */
        uint16_t selector;
        uint32_t attr;
        uint64_t offset;
        int vector;
        uint32_t error;
        uint16_t cs; /* what it becomes */
    } cases[] = {
        {0, 32, 0, 0, 0, X86_GP, 0, 0},
        {0, 32, 3, 0, 0, X86_GP, 0, 0},
        {0, 32, 0x1000, 0, 0, X86_GP, 0x1000, 0},
        {0, 32, FREE, 0xc09a, TARGET, -1, 0, FREE},
        {0, 32, FREE | 1, 0xc09b, TARGET, X86_GP, FREE, 0}, /* RPL > CPL */
        {0, 32, FREE | 3, 0xc0fb, TARGET, X86_GP, FREE, 0}, /* DPL != CPL */
        {3, 32, FREE | 3, 0xc0fb, TARGET, -1, 0, FREE | 3},
        {3, 32, FREE, 0xc0fb, TARGET, -1, 0, FREE | 3}, /* the RPL becomes the CPL */
        {3, 32, FREE, 0xc09b, TARGET, X86_GP, FREE, 0},
        {3, 32, FREE, 0xc09f, TARGET, -1, 0, FREE | 3}, /* conforming */
        {0, 32, FREE, 0xc0ff, TARGET, X86_GP, FREE, 0}, /* conforming, DPL > CPL */
        {0, 32, FREE, 0xc01b, TARGET, X86_NP, FREE, 0},
        {0, 32, FREE, 0xc093, TARGET, X86_GP, FREE, 0},
        {0, 32, FREE, 0x409b, 0x12345, -1, 0, FREE},
        {0, 32, FREE, 0x409b, 0x12346, X86_GP, 0, 0},   /* beyond the limit */
        {0, 32, FREE, 0x0082, TARGET, X86_GP, FREE, 0}, /* an LDT */
        {0, 32, FREE, 0x008e, TARGET, X86_GP, FREE, 0}, /* an interrupt gate */
        {0, 64, FREE, 0xa09b, 0xffff800000000000, -1, 0, FREE},
        {0, 64, FREE, 0xa09b, 0x0000800000000000, X86_GP, 0, 0},
        {0, 64, FREE, 0xe09b, TARGET, X86_GP, FREE, 0}, /* L and D */
        {0, 64, FREE, 0xc09b, TARGET, -1, 0, FREE},     /* to compatibility mode */
        {0, 64, FREE, 0xc09b, 0x100000000, X86_GP, 0, 0},
        {0, 64, FREE, 0x0089, TARGET, X86_GP, FREE, 0}, /* no task switches there */
        {0, 64, FREE, 0x0085, TARGET, X86_GP, FREE, 0},
        {0, 64, FREE, 0x0084, TARGET, X86_GP, FREE, 0}, /* nor 16-bit gates */
        {0, 32, FREE, 0xe09b, TARGET, -1, 0, FREE},     /* L means nothing in protected mode */
    };

    for (unsigned call = 0; call < 2; call++) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct x86_cpu *cpu = &fix->cpu;
            unsigned size = cases[i].mode == 64 ? 8 : 4;
            int ret;

            cpu->s.cr0 = 0;
            cpu->s.efer = 0;
            if (cases[i].mode == 64) {
                fix_long(fix, cases[i].cpl, false);
            } else {
                fix_protected(fix, cases[i].cpl);
            }
            fix_set_desc(fix, FREE, fix_desc(0, 0x12345, cases[i].attr));
            fix_put(fix, FIX_GDT + FREE + 8, 8, 0);
            fix_mark(fix);
            ret = call ? x86_far_call(cpu, cases[i].selector, cases[i].offset, size)
                       : x86_far_jmp(cpu, cases[i].selector, cases[i].offset, size);
            if (cases[i].vector >= 0) {
                assert_int_equal(ret, -1);
                assert_int_equal(cpu->exc.vector, cases[i].vector);
                assert_int_equal(cpu->exc.error, cases[i].error);
                fix_check_unchanged(fix, __FILE__, __LINE__);
                continue;
            }
            assert_int_equal(ret, 0);
            assert_int_equal(cpu->s.rip, cases[i].offset);
            assert_int_equal(cpu->s.seg[X86_CS].selector, cases[i].cs);
            assert_int_equal(cpu->s.seg[X86_CS].attr, cases[i].attr | 1);
            assert_int_equal(x86_desc_attr(fix_desc_of(fix, FREE)), cases[i].attr | 1);
            assert_int_equal(cpu->cpl, cases[i].cpl);
            assert_int_equal(cpu->s.gpr[X86_RSP], fix->before.s.gpr[X86_RSP] - (call ? 2 * size : 0));
            if (call) {
                assert_int_equal(stack(fix, 0, size), 0x7002);
                assert_int_equal(stack(fix, 1, size), fix->before.s.seg[X86_CS].selector);
            }
        }
    }
}

static void test_call_stack_faults(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_protected(fix, 0);
    fix_set_desc(fix, FREE, fix_desc(0, 0xfff, 0x4093));
    fix_segment(fix, X86_SS, FREE);
    assert_raises(fix, x86_far_call(cpu, KCODE, TARGET, 4), X86_SS_EXC, 0);
    fix_long(fix, 0, false);
    cpu->s.gpr[X86_RSP] = 0x800000000008;
    assert_raises(fix, x86_far_call(cpu, KCODE64, TARGET, 8), X86_SS_EXC, 0);
    cpu->s.gpr[X86_RSP] = FIX_UNMAPPED + 8;
    assert_raises(fix, x86_far_call(cpu, KCODE64, TARGET, 8), X86_PF_EXC, X86_PF_W);
    cpu->s.gpr[X86_RSP] = FIX_KSTACK;
    assert_int_equal(x86_far_call(cpu, KCODE64, TARGET, 2), 0);
    assert_int_equal(cpu->s.gpr[X86_RSP], FIX_KSTACK - 4);
    assert_int_equal(stack(fix, 0, 2), 0x7002);
}

/* --- call gates --- */

static void test_gate32_inner(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 3);
    fix_set_desc(fix, FREE, fix_gate(KCODE | 3, TARGET, 0xec, 3));
    PUT_STACK(fix, 4, 0x11111111, 0x22222222, 0x33333333);
    assert_int_equal(x86_far_call(&fix->cpu, FREE | 3, 0x999, 4), 0);
    assert_int_equal(s->rip, TARGET);
    assert_int_equal(s->seg[X86_CS].selector, KCODE);
    assert_int_equal(s->seg[X86_SS].selector, KDATA);
    assert_int_equal(fix->cpu.cpl, 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 28);
    static const uint32_t expected[] = {0x7002,     UCODE | 3,  0x11111111, 0x22222222,
                                        0x33333333, FIX_USTACK, UDATA | 3};
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(stack(fix, i, 4), expected[i]);
    }
    s->seg[X86_DS] = s->seg[X86_SS]; /* a kernel segment, which the return must drop */
    assert_int_equal(x86_far_ret(&fix->cpu, 4, 12), 0);
    assert_int_equal(s->rip, 0x7002);
    assert_int_equal(fix->cpu.cpl, 3);
    assert_int_equal(s->gpr[X86_RSP], FIX_USTACK + 12);
    assert_int_equal(s->seg[X86_SS].selector, UDATA | 3);
    assert_int_equal(s->seg[X86_DS].attr, 0);
    assert_int_equal(s->seg[X86_DS].selector, 0);
    assert_int_equal(s->seg[X86_ES].selector, UDATA | 3);
}

static void test_gate16_inner(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 3);
    fix_set_desc(fix, FREE, fix_gate(KCODE, 0xffff1234, 0xe4, 31));
    for (unsigned i = 0; i < 31; i++) {
        fix_put(fix, FIX_USTACK + i * 2, 2, 0x100 + i);
    }
    assert_int_equal(x86_far_call(&fix->cpu, FREE, 0, 4), 0);
    assert_int_equal(s->rip, 0x1234);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 70);
    assert_int_equal(stack(fix, 0, 2), 0x7002);
    assert_int_equal(stack(fix, 1, 2), UCODE | 3);
    for (unsigned i = 0; i < 31; i++) {
        assert_int_equal(stack(fix, 2 + i, 2), 0x100 + i);
    }
    assert_int_equal(stack(fix, 33, 2), FIX_USTACK);
    assert_int_equal(stack(fix, 34, 2), UDATA | 3);
}

static void test_gate_same_level(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 0);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0x84, 5)); /* no parameters are copied */
    assert_int_equal(x86_far_call(&fix->cpu, FREE, 0, 4), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 0x100 - 4);
    assert_int_equal(s->rip, TARGET & 0xffff);
    fix_protected(fix, 0);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0x8c, 0));
    assert_int_equal(x86_far_jmp(&fix->cpu, FREE, 0, 2), 0);
    assert_int_equal(s->rip, TARGET);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 0x100);
    fix_protected(fix, 3); /* conforming: the level stays */
    fix_set_desc(fix, FREE, fix_gate(CONFORMING, TARGET, 0xec, 0));
    assert_int_equal(x86_far_call(&fix->cpu, FREE, 0, 4), 0);
    assert_int_equal(fix->cpu.cpl, 3);
    assert_int_equal(s->seg[X86_CS].selector, CONFORMING | 3);
    assert_int_equal(s->gpr[X86_RSP], FIX_USTACK - 8);
}

static void test_gate_rules(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_protected(fix, 3);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0x8c, 0));
    assert_raises(fix, x86_far_call(cpu, FREE | 3, 0, 4), X86_GP, FREE); /* gate DPL < CPL */
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0x6c, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_NP, FREE);
    fix_set_desc(fix, FREE, fix_gate(3, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_GP, 0);
    fix_set_desc(fix, FREE, fix_gate(0x1000, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_GP, 0x1000);
    fix_set_desc(fix, FREE, fix_gate(KDATA, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_GP, KDATA);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_jmp(cpu, FREE, 0, 4), X86_GP, KCODE); /* JMP can't change the level */
    fix_set_desc(fix, FREE2, fix_desc(0, 0xfffff, 0xc01b));
    fix_set_desc(fix, FREE, fix_gate(FREE2, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_NP, FREE2);
    fix_set_desc(fix, FREE2, fix_desc(0, 0xfff, 0x409b));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_GP, 0); /* offset beyond the limit */
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0xec, 4));
    fix_put(fix, FIX_TSS + 8, 4, KDATA | 3);
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_TS, KDATA);
    fix_put(fix, FIX_TSS + 8, 4, FREE2);
    fix_set_desc(fix, FREE2, fix_desc(0, 0xfff, 0x4093));
    fix_put(fix, FIX_TSS + 4, 4, 31); /* 32 bytes needed */
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_SS_EXC, FREE2);
    fix_put(fix, FIX_TSS + 4, 4, 32);
    assert_int_equal(x86_far_call(cpu, FREE, 0, 4), 0);
    fix_protected(fix, 3); /* parameters beyond the caller's stack limit */
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0xec, 4));
    cpu->s.seg[X86_SS].limit = FIX_USTACK + 14;
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_SS_EXC, 0);
    fix_protected(fix, 0);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0x8c, 0));
    assert_raises(fix, x86_far_call(cpu, FREE | 1, 0, 4), X86_GP, FREE); /* gate DPL < RPL */
    fix_set_desc(fix, FREE, fix_gate(UCODE, TARGET, 0x8c, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 4), X86_GP, UCODE);
}

static void test_gate64(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    struct x86_state *s = &cpu->s;

    for (unsigned compat = 0; compat < 2; compat++) {
        fix_long(fix, 3, compat);
        fix_set_desc(fix, FREE, fix_gate(KCODE64, TARGET, 0xec, 0));
        fix_put(fix, FIX_GDT + FREE + 8, 8, 0xffff8000);
        fix_put(fix, FIX_TSS + 4, 8, FIX_KSTACK - 3); /* isn't aligned */
        assert_int_equal(x86_far_call(cpu, FREE, 0, 4), 0);
        assert_int_equal(s->rip, 0xffff800000000000 | TARGET);
        assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 35);
        assert_int_equal(s->seg[X86_SS].attr, 0);
        assert_int_equal(stack(fix, 0, 8), 0x7002);
        assert_int_equal(stack(fix, 1, 8), (compat ? UCODE : UCODE64) | 3);
        assert_int_equal(stack(fix, 2, 8), FIX_USTACK);
        assert_int_equal(stack(fix, 3, 8), UDATA | 3);
        assert_int_equal(x86_far_ret(cpu, 8, 0), 0);
        assert_int_equal(cpu->cpl, 3);
        assert_int_equal(s->gpr[X86_RSP], FIX_USTACK);
        assert_int_equal(x86_code64(cpu), !compat);
    }

    fix_long(fix, 3, false);
    fix_put(fix, FIX_TSS + 4, 8, 0x800000000000);
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_PF_EXC,
                  X86_PF_W); /* just below the hole: canonical */
    fix_put(fix, FIX_TSS + 4, 8, 0x800000000010);
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_SS_EXC, 0);
    s->tr.limit = 8;
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_TS, TSS);
    fix_put(fix, FIX_GDT + FREE + 8, 8, 0x8000);
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_GP, 0); /* target isn't canonical */
    fix_put(fix, FIX_GDT + FREE + 8, 8, 0x0000100000000000);
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_GP, FREE); /* type of the second half */
    fix_put(fix, FIX_GDT + FREE + 8, 8, 0);
    fix_set_desc(fix, FREE, fix_gate(KCODE, TARGET, 0xec, 0));
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_GP, KCODE); /* not 64-bit code */
    s->gdtr.limit = FREE + 14;
    assert_raises(fix, x86_far_call(cpu, FREE, 0, 8), X86_GP, FREE);

    fix_long(fix, 0, true); /* same level, from compatibility mode: the frame has 8-byte slots all the same */
    fix_set_desc(fix, FREE, fix_gate(KCODE64, TARGET, 0xec, 0));
    assert_int_equal(x86_far_call(cpu, FREE, 0, 4), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 0x110);
    assert_int_equal(stack(fix, 1, 8), KCODE);
}

/* --- RET and IRET --- */

/* The same rules hold for the code and stack segments of both. */
static void test_return_rules(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    static const struct {
        uint8_t cpl, mode;
        uint16_t cs;
        uint32_t cs_attr; /* of FREE */
        uint16_t ss;
        uint32_t ss_attr; /* of FREE2 */
        uint64_t rip;
        int vector;
        uint32_t error;
    } cases[] = {
        {0, 32, 0, 0, 0, 0, 0, X86_GP, 0},
        {0, 32, 0x1000, 0, 0, 0, 0, X86_GP, 0x1000},
        {0, 32, FREE, 0xc09a, 0, 0, TARGET, -1, 0},
        {0, 32, FREE, 0xc092, 0, 0, TARGET, X86_GP, FREE},
        {0, 32, FREE, 0x008c, 0, 0, TARGET, X86_GP, FREE},
        {0, 32, FREE, 0xc01b, 0, 0, TARGET, X86_NP, FREE},
        {0, 32, FREE, 0xc0fb, 0, 0, TARGET, X86_GP, FREE},
        {0, 32, FREE, 0xc0ff, 0, 0, TARGET, X86_GP, FREE},     /* conforming, DPL > RPL */
        {0, 32, FREE | 3, 0xc09b, 0, 0, TARGET, X86_GP, FREE}, /* DPL < RPL */
        {3, 32, FREE, 0xc09b, 0, 0, TARGET, X86_GP, FREE},     /* inwards */
        {0, 32, FREE, 0x409b, 0, 0, 0x12346, X86_GP, 0},
        {0, 32, FREE | 3, 0xc0fb, FREE2 | 3, 0xc0f2, TARGET, -1, 0},
        {0, 32, FREE | 3, 0xc09f, FREE2 | 3, 0xc0f2, TARGET, -1, 0}, /* conforming, outwards */
        {0, 32, FREE | 3, 0xc0fb, 3, 0, TARGET, X86_GP, 0},
        {0, 32, FREE | 3, 0xc0fb, FREE2, 0xc0f3, TARGET, X86_GP, FREE2},     /* RPL */
        {0, 32, FREE | 3, 0xc0fb, FREE2 | 3, 0xc093, TARGET, X86_GP, FREE2}, /* DPL */
        {0, 32, FREE | 3, 0xc0fb, FREE2 | 3, 0xc0f1, TARGET, X86_GP, FREE2}, /* read-only */
        {0, 32, FREE | 3, 0xc0fb, FREE2 | 3, 0xc073, TARGET, X86_SS_EXC, FREE2},
        {0, 32, FREE | 3, 0xc0fb, 0x1003, 0, TARGET, X86_GP, 0x1000},
        {0, 32, FREE | 3, 0x40fb, FREE2 | 3, 0xc0f3, 0x12346, X86_GP, 0},
        {0, 64, FREE | 3, 0xa0fb, FREE2 | 3, 0xc0f3, 0x7ffffffff000, -1, 0},
        {0, 64, FREE | 3, 0xa0fb, FREE2 | 3, 0xc0f3, 0x800000000000, X86_GP, 0},
        {0, 64, FREE | 3, 0xe0fb, FREE2 | 3, 0xc0f3, TARGET, X86_GP, FREE}, /* L and D */
        {0, 64, FREE | 3, 0xc0fb, FREE2 | 3, 0xc0f3, TARGET, -1, 0},        /* to compatibility mode */
        {0, 64, FREE | 3, 0xc0fb, FREE2 | 3, 0xc0f3, 0x100000000, X86_GP, 0},
        {0, 64, FREE | 3, 0xa0fb, 3, 0, TARGET, X86_GP, 0}, /* a null SS at ring 3 */
        {0, 64, FREE | 1, 0xa0bb, 1, 0, TARGET, -1, 0},     /* at ring 1 */
        {0, 64, FREE | 1, 0xc0bb, 1, 0, TARGET, X86_GP, 0}, /* not in compatibility mode */
    };

    for (unsigned iret = 0; iret < 2; iret++) {
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            unsigned size = cases[i].mode == 64 ? 8 : 4;
            bool outer = (cases[i].cs & 3) > cases[i].cpl;
            int ret;

            cpu->s.efer = 0;
            if (cases[i].mode == 64) {
                fix_long(fix, cases[i].cpl, false);
            } else {
                fix_protected(fix, cases[i].cpl);
            }
            fix_set_desc(fix, FREE, fix_desc(0, 0x12345, cases[i].cs_attr));
            fix_set_desc(fix, FREE2, fix_desc(0, 0xfffff, cases[i].ss_attr));
            if (iret) {
                PUT_STACK(fix, size, cases[i].rip, cases[i].cs, 0x246, FIX_USTACK, cases[i].ss);
            } else {
                PUT_STACK(fix, size, cases[i].rip, cases[i].cs, FIX_USTACK, cases[i].ss);
            }
            fix_mark(fix);
            ret = iret ? x86_iret(cpu, size) : x86_far_ret(cpu, size, 0);
            if (cases[i].vector >= 0) {
                assert_int_equal(ret, -1);
                assert_int_equal(cpu->exc.vector, cases[i].vector);
                assert_int_equal(cpu->exc.error, cases[i].error);
                fix_check_unchanged(fix, __FILE__, __LINE__);
                continue;
            }
            assert_int_equal(ret, 0);
            assert_int_equal(cpu->s.rip, cases[i].rip);
            assert_int_equal(cpu->s.seg[X86_CS].selector, cases[i].cs);
            assert_int_equal(cpu->s.seg[X86_CS].attr, cases[i].cs_attr | 1);
            assert_int_equal(cpu->cpl, cases[i].cs & 3);
            if (outer) {
                assert_int_equal(cpu->s.gpr[X86_RSP], FIX_USTACK);
                assert_int_equal(cpu->s.seg[X86_SS].selector, cases[i].ss);
                assert_int_equal(cpu->s.seg[X86_DS].attr, 0); /* the kernel's, DPL 0 */
            } else {
                assert_int_equal(cpu->s.gpr[X86_RSP], fix->before.s.gpr[X86_RSP] + (iret ? 3 : 2) * size);
            }
        }
    }
}

static void test_iret_flags(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;
    const uint64_t always = X86_FLAGS_ARITH | X86_TF | X86_DF | X86_NT | 2;
    const uint64_t wide = X86_RF | X86_AC | X86_ID;
    static const struct {
        uint8_t cpl, iopl, operand;
        uint64_t extra; /* beyond what is always loaded */
    } cases[] = {
        {0, 0, 4, X86_IF | X86_IOPL | X86_VIF | X86_VIP},
        {0, 0, 2, X86_IF | X86_IOPL},
        {3, 0, 4, 0},
        {3, 3, 4, X86_IF | X86_IOPL}, /* IOPL stays 3 */
        {3, 0, 2, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned size = cases[i].operand;

        fix_protected(fix, cases[i].cpl);
        s->rflags = 2 | (uint64_t)cases[i].iopl << 12;
        s->nmi_blocked = true;
        /* Everything but VM, which would be another return. */
        PUT_STACK(fix, size, TARGET & 0xffff, cases[i].cpl ? UCODE | 3 : KCODE, ~(uint64_t)X86_VM);
        assert_int_equal(x86_iret(&fix->cpu, size), 0);
        assert_int_equal(s->rflags, always | cases[i].extra | (size == 4 ? wide : 0));
        assert_false(s->nmi_blocked);

        fix_protected(fix, cases[i].cpl);
        s->rflags = 0x3f7fd7 & ~(uint64_t)(X86_VM | X86_NT | X86_IOPL);
        s->rflags |= (uint64_t)cases[i].iopl << 12;
        uint64_t kept = s->rflags & ~(always | cases[i].extra | (size == 4 ? wide : 0));
        if (cases[i].cpl == 3) {
            kept |= (uint64_t)cases[i].iopl << 12;
        }
        PUT_STACK(fix, size, TARGET & 0xffff, cases[i].cpl ? UCODE | 3 : KCODE, 0);
        assert_int_equal(x86_iret(&fix->cpu, size), 0);
        assert_int_equal(s->rflags, kept | 2);
    }
}

static void check_iret64_user(struct fixture *fix)
{
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 0, false);
    s->nmi_blocked = true;
    x86_segment_null(&s->seg[X86_FS], 0);
    s->seg[X86_FS].base =
        0x7f0000001000; /* as WRMSR left it: IRET must not clear the base of a null segment */
    s->gpr[X86_RSP] = FIX_KSTACK - 40;
    PUT_STACK(fix, 8, 0x7fffffffe000, UCODE64 | 3, 0x10246, 0x7ffc00001238, UDATA | 3);
    assert_int_equal(x86_iret(&fix->cpu, 8), 0);
    assert_int_equal(s->rip, 0x7fffffffe000);
    assert_int_equal(s->gpr[X86_RSP], 0x7ffc00001238);
    assert_int_equal(s->rflags, 0x10246);
    assert_int_equal(fix->cpu.cpl, 3);
    assert_int_equal(s->seg[X86_CS].attr, 0xa0fb);
    assert_int_equal(s->seg[X86_SS].attr, 0xc0f3);
    assert_int_equal(s->seg[X86_FS].base, 0x7f0000001000);
    assert_false(s->nmi_blocked);
}

static void test_iret64(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    struct x86_state *s = &cpu->s;

    check_iret64_user(fix);
    fix->ops.translate = fix_translate;
    check_iret64_user(fix);

    fix_long(fix, 0, false); /* the same level: SS:RSP are popped too, and may be null */
    PUT_STACK(fix, 8, 0xffffffff81000000, KCODE64, 2, FIX_ISTACK, 0);
    assert_int_equal(x86_iret(cpu, 8), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_ISTACK);
    assert_int_equal(s->seg[X86_SS].attr, 0);

    fix_long(fix, 0, false); /* 32-bit operands */
    PUT_STACK(fix, 4, 0x12345678, KCODE64, 2, FIX_ISTACK, KDATA);
    assert_int_equal(x86_iret(cpu, 4), 0);
    assert_int_equal(s->rip, 0x12345678);
    assert_int_equal(s->gpr[X86_RSP], FIX_ISTACK);

    fix_long(fix, 0, false); /* to a 16-bit stack: SP alone is loaded */
    fix_set_desc(fix, FREE, fix_desc(0, 0xffff, 0x00f3));
    s->gpr[X86_RSP] = 0x98000 - 40;
    PUT_STACK(fix, 8, TARGET, UCODE | 3, 2, 0x1234, FREE | 3);
    assert_int_equal(x86_iret(cpu, 8), 0);
    assert_int_equal(s->gpr[X86_RSP], 0x91234); /* the upper half is still the kernel's */

    fix_long(fix, 0, false);
    s->rflags |= X86_NT;
    assert_raises(fix, x86_iret(cpu, 8), X86_GP, 0);
    s->rflags &= ~(uint64_t)X86_NT;
    s->gpr[X86_RSP] = 0x800000000000 - 16;
    assert_raises(fix, x86_iret(cpu, 8), X86_PF_EXC, 0);
    s->gpr[X86_RSP] = 0x800000000000;
    assert_raises(fix, x86_iret(cpu, 8), X86_SS_EXC, 0);
    s->gpr[X86_RSP] = FIX_UNMAPPED - 32; /* the last slot isn't mapped */
    PUT_STACK(fix, 8, TARGET, KCODE64, 2, FIX_KSTACK);
    assert_raises(fix, x86_iret(cpu, 8), X86_PF_EXC, 0);
    assert_int_equal(cpu->exc.cr2, FIX_UNMAPPED);
}

static void test_iret_outer32(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 0); /* the flags are judged by the old CPL */
    s->gpr[X86_RSP] = 0x98000 - 20;
    fix_set_desc(fix, FREE, fix_desc(0x10000, 0xffff, 0x00f3));
    PUT_STACK(fix, 4, TARGET, UCODE | 3, 0x3202, 0x12345678, FREE | 3);
    s->seg[X86_GS] = s->seg[X86_CS]; /* code that doesn't conform: dropped */
    fix_segment(fix, X86_FS, CONFORMING);
    assert_int_equal(x86_iret(&fix->cpu, 4), 0);
    assert_int_equal(s->rflags, 0x3202);
    assert_int_equal(s->gpr[X86_RSP], 0x95678); /* a 16-bit stack keeps the upper half of ESP */
    assert_int_equal(s->seg[X86_SS].base, 0x10000);
    assert_int_equal(s->seg[X86_GS].attr, 0);
    assert_int_equal(s->seg[X86_FS].selector, CONFORMING);

    fix_protected(fix, 0); /* top of the frame beyond the limit */
    s->seg[X86_SS].limit = (uint32_t)s->gpr[X86_RSP] + 18;
    PUT_STACK(fix, 4, TARGET, UCODE | 3, 0x3202, FIX_USTACK, UDATA | 3);
    assert_raises(fix, x86_iret(&fix->cpu, 4), X86_SS_EXC, 0);
    PUT_STACK(fix, 4, TARGET, KCODE, 0x3202);
    assert_int_equal(x86_iret(&fix->cpu, 4), 0);
}

static void test_iret_vm86(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    struct x86_state *s = &cpu->s;

    fix_protected(fix, 0);
    PUT_STACK(fix, 4, 0x1234, 0x2000, 0x202 | X86_VM | X86_VIF, 0xabc0, 0x3000, 0x4000, 0x5000, 0x6000,
              0x7000);
    assert_int_equal(x86_iret(cpu, 4), 0);
    assert_int_equal(cpu->cpl, 3);
    assert_int_equal(s->rflags, 0x202 | X86_VM | X86_VIF);
    assert_int_equal(s->gpr[X86_RSP], 0xabc0);
    assert_int_equal(s->seg[X86_CS].base, 0x20000);
    assert_int_equal(s->seg[X86_SS].base, 0x30000);
    assert_int_equal(s->seg[X86_ES].base, 0x40000);
    assert_int_equal(s->seg[X86_DS].base, 0x50000);
    assert_int_equal(s->seg[X86_FS].base, 0x60000);
    assert_int_equal(s->seg[X86_GS].base, 0x70000);

    fix_protected(fix, 0);
    PUT_STACK(fix, 4, 0x10000, 0x2000, 0x202 | X86_VM, 0xabc0, 0, 0, 0, 0, 0);
    assert_raises(fix, x86_iret(cpu, 4), X86_GP, 0);
    s->seg[X86_SS].limit = (uint32_t)s->gpr[X86_RSP] + 34;
    assert_raises(fix, x86_iret(cpu, 4), X86_SS_EXC, 0);

    fix_protected(fix, 3); /* a user program can't */
    PUT_STACK(fix, 4, 0x1234, UCODE | 3, 0x202 | X86_VM);
    assert_int_equal(x86_iret(cpu, 4), 0);
    assert_false(x86_vm86(cpu));

    fix_vm86(fix, 3); /* within virtual-8086 mode */
    PUT_STACK(fix, 2, 0x55, 0x2222, 0x4fd7);
    assert_int_equal(x86_iret(cpu, 2), 0);
    assert_int_equal(s->rip, 0x55);
    assert_int_equal(s->seg[X86_CS].base, 0x22220);
    assert_int_equal(s->rflags, 0x7fd7 | X86_VM);
    fix_vm86(fix, 3);
    PUT_STACK(fix, 4, 0x55, 0x2222, UINT32_MAX & ~X86_IOPL);
    assert_int_equal(x86_iret(cpu, 4), 0);
    assert_int_equal(s->rflags, 0x7fd7 | X86_VM | X86_RF | X86_AC | X86_ID);
    fix_vm86(fix, 2);
    assert_raises(fix, x86_iret(cpu, 2), X86_GP, 0);

    fix_vm86(fix, 0); /* CR4.VME: VIF stands in for IF */
    s->cr4 = X86_CR4_VME;
    PUT_STACK(fix, 2, 0x55, 0x2222, 0x3202);
    assert_int_equal(x86_iret(cpu, 2), 0);
    assert_int_equal(s->rflags, 0x202 | X86_VM | X86_VIF);
    fix_vm86(fix, 0);
    PUT_STACK(fix, 2, 0x55, 0x2222, X86_TF);
    assert_raises(fix, x86_iret(cpu, 2), X86_GP, 0);
    s->rflags |= X86_VIP;
    PUT_STACK(fix, 2, 0x55, 0x2222, X86_IF);
    assert_raises(fix, x86_iret(cpu, 2), X86_GP, 0);
    assert_raises(fix, x86_iret(cpu, 4), X86_GP, 0);
}

static void test_iret_real(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_real(fix);
    s->nmi_blocked = true;
    PUT_STACK(fix, 2, 0x1234, 0x2000, 0xffff);
    assert_int_equal(x86_iret(&fix->cpu, 2), 0);
    assert_int_equal(s->rip, 0x1234);
    assert_int_equal(s->seg[X86_CS].base, 0x20000);
    assert_int_equal(s->rflags, 0x7fd7);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK + 6);
    assert_false(s->nmi_blocked);
    fix_real(fix);
    s->rflags |= X86_VIF;
    PUT_STACK(fix, 4, 0x1234, 0x2000, 0xffffffff);
    assert_int_equal(x86_iret(&fix->cpu, 4), 0);
    assert_int_equal(s->rflags, 0x257fd7 | X86_VIF);
    fix_real(fix);
    PUT_STACK(fix, 4, 0x10000, 0x2000, 2);
    assert_raises(fix, x86_iret(&fix->cpu, 4), X86_GP, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        fix_test(test_real),
        fix_test(test_vm86),
        fix_test(test_direct_rules),
        fix_test(test_call_stack_faults),
        fix_test(test_gate32_inner),
        fix_test(test_gate16_inner),
        fix_test(test_gate_same_level),
        fix_test(test_gate_rules),
        fix_test(test_gate64),
        fix_test(test_return_rules),
        fix_test(test_iret_flags),
        fix_test(test_iret64),
        fix_test(test_iret_outer32),
        fix_test(test_iret_vm86),
        fix_test(test_iret_real),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
