/*
 * Exceptions, interrupts and software interrupts in every mode: frames, state, error codes, double and triple
 * faults.
 */
#include "tests/unit/x86_fixture.h"

#define HANDLER 0x12340u

/* Gate attributes. */
#define INT64_GATE  0x8eu
#define TRAP64_GATE 0x8fu
#define INT16_GATE  0x86u
#define TRAP16_GATE 0x87u
#define DPL3        0x60u

static uint64_t frame(struct fixture *fix, unsigned index, unsigned size)
{
    return fix_get(fix, fix->cpu.s.seg[X86_SS].base + fix->cpu.s.gpr[X86_RSP] + index * size, size);
}

/* --- long mode --- */

static void set_gates64(struct fixture *fix)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        fix_set_gate(fix, vector, fix_gate(KCODE64, HANDLER + vector * 16, INT64_GATE, 0), 0xffffffff);
    }
}

static void check_frame64(struct fixture *fix, uint64_t rip, uint64_t cs, uint64_t rflags, uint64_t rsp,
                          uint64_t ss)
{
    unsigned at = 0;

    assert_int_equal(frame(fix, at++, 8), rip);
    assert_int_equal(frame(fix, at++, 8), cs);
    assert_int_equal(frame(fix, at++, 8), rflags);
    assert_int_equal(frame(fix, at++, 8), rsp);
    assert_int_equal(frame(fix, at++, 8), ss);
}

static void user_page_fault(struct fixture *fix)
{
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 3, false);
    set_gates64(fix);
    s->rflags = 0x202 | X86_TF | X86_NT | X86_AC | X86_CF;
    s->sti_shadow = s->movss_shadow = s->halted = true;
    x86_raise_pf(&fix->cpu, 0x7fffdeadbeef, X86_PF_U | X86_PF_W);
    assert_int_equal(x86_deliver(&fix->cpu, false), 0);
    assert_int_equal(s->cr2, 0x7fffdeadbeef);
    assert_int_equal(s->rip, 0xffffffff00000000 | (HANDLER + 14 * 16));
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 48);
    assert_int_equal(s->rflags, 2 | X86_AC | X86_CF);
    assert_int_equal(fix->cpu.cpl, 0);
    assert_int_equal(s->seg[X86_CS].selector, KCODE64);
    assert_int_equal(s->seg[X86_CS].attr, 0xa09b);
    assert_int_equal(s->seg[X86_SS].selector, 0);
    assert_int_equal(s->seg[X86_SS].attr, 0);
    assert_false(s->sti_shadow || s->movss_shadow || s->halted || fix->cpu.in_delivery);
    assert_int_equal(frame(fix, 0, 8), X86_PF_U | X86_PF_W);
    s->gpr[X86_RSP] += 8;
    check_frame64(fix, 0x7000, UCODE64 | 3, 0x202 | X86_TF | X86_NT | X86_AC | X86_CF | X86_RF, FIX_USTACK,
                  UDATA | 3);
}

static void test_long_page_fault(void **state)
{
    struct fixture *fix = *state;

    user_page_fault(fix);
    fix->ops.translate = fix_translate;
    user_page_fault(fix);
}

static void test_long_same_level(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 0, false);
    set_gates64(fix);
    s->gpr[X86_RSP] = FIX_KSTACK - 0x103; /* gets aligned to 16 */
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x30), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 0x110 - 40);
    assert_int_equal(s->seg[X86_SS].selector, KDATA); /* stays */
    check_frame64(fix, 0x7000, KCODE64, 0x202, FIX_KSTACK - 0x103, KDATA);
    assert_int_equal(s->rflags, 2);
    assert_false(s->nmi_blocked);

    fix_set_gate(fix, 0x31, fix_gate(KCODE64, HANDLER, TRAP64_GATE, 1), 0);
    s->rflags = 0x202;
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x31), 0);
    assert_int_equal(s->rflags, 0x202); /* a trap gate leaves IF */
    assert_int_equal(s->gpr[X86_RSP], FIX_ISTACK - 40);
    assert_int_equal(s->seg[X86_SS].selector, KDATA);

    assert_int_equal(x86_deliver_interrupt(&fix->cpu, X86_NMI), 0);
    assert_true(s->nmi_blocked);
}

static void test_long_conforming(void **state)
{
    struct fixture *fix = *state;

    fix_long(fix, 3, false);
    set_gates64(fix);
    fix_set_gate(fix, 0x40, fix_gate(CONFORMING64, HANDLER, INT64_GATE, 0), 0);
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x40), 0);
    assert_int_equal(fix->cpu.cpl, 3);
    assert_int_equal(fix->cpu.s.seg[X86_CS].selector, CONFORMING64 | 3);
    assert_int_equal(fix->cpu.s.gpr[X86_RSP], FIX_USTACK - 40);
}

static void test_long_from_compat(void **state)
{
    struct fixture *fix = *state;

    fix_long(fix, 3, true);
    set_gates64(fix);
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x40), 0);
    check_frame64(fix, 0x7000, UCODE | 3, 0x202, FIX_USTACK, UDATA | 3);
    assert_true(x86_code64(&fix->cpu));
}

/* Software interrupts fail without being doubled, so each rule shows in the error code. */
static void test_long_gate_rules(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    const uint32_t idt_error = 0x80 * 8 + 2;

    fix_long(fix, 3, false);
    set_gates64(fix);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, idt_error); /* DPL 0 */
    fix_set_gate(fix, 0x80, fix_gate(KCODE64, HANDLER, (INT64_GATE | DPL3) & 0x7f, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_NP, idt_error);
    for (unsigned type = 0; type < 0x20; type++) {
        if (type == 0xe || type == 0xf) {
            continue;
        }
        fix_set_gate(fix, 0x80, fix_gate(KCODE64, HANDLER, 0x80 | DPL3 | type, 0), 0);
        assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, idt_error);
    }
    cpu->s.idtr.limit = 0x80 * 16 + 14;
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, idt_error);
    cpu->s.idtr.limit = 0xfff;

    static const struct {
        uint16_t selector;
        uint64_t desc; /* for FREE */
        int vector;
        uint32_t error;
    } cases[] = {
        {0, 0, X86_GP, 0},
        {3, 0, X86_GP, 0},
        {0x1000, 0, X86_GP, 0x1000},
        {FREE, 0xa0fb, -1, 0},            /* ring 3 handler */
        {FREE, 0xc09b, X86_GP, FREE},     /* 32-bit code */
        {FREE, 0xe09b, X86_GP, FREE},     /* L and D */
        {FREE, 0xa093, X86_GP, FREE},     /* data */
        {FREE, 0x008b, X86_GP, FREE},     /* system */
        {FREE | 3, 0xa01b, X86_NP, FREE}, /* not present */
        {FREE | 3, 0xa09a, -1, 0},        /* the selector's RPL doesn't matter */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fix_long(fix, 3, false);
        fix_set_desc(fix, FREE, fix_desc(0, 0xfffff, (uint32_t)cases[i].desc));
        fix_set_gate(fix, 0x80, fix_gate(cases[i].selector, HANDLER, INT64_GATE | DPL3, 0), 0);
        if (cases[i].vector < 0) {
            assert_int_equal(x86_int(cpu, X86_INT_N, 0x80), 0);
            assert_int_equal(frame(fix, 0, 8), 0x7002);
            assert_int_equal(cpu->s.seg[X86_CS].attr, cases[i].desc | 1);
            assert_int_equal(x86_desc_attr(fix_desc_of(fix, FREE)), cases[i].desc | 1);
        } else {
            assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), cases[i].vector, cases[i].error);
        }
    }

    fix_long(fix, 0, false); /* a handler that is less privileged than the program */
    fix_set_gate(fix, 0x80, fix_gate(UCODE64, HANDLER, INT64_GATE, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, UCODE64);
}

static void test_long_stack_rules(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_long(fix, 3, false);
    fix_set_gate(fix, 0x80, fix_gate(KCODE64, HANDLER, INT64_GATE | DPL3, 0), 0x8000); /* RIP not canonical */
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, 0);
    fix_set_gate(fix, 0x80, fix_gate(KCODE64, HANDLER, INT64_GATE | DPL3, 0), 0);
    fix_put(fix, FIX_TSS + 4, 8, 0x800000000000 + 32); /* the frame straddles the canonical boundary */
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_SS_EXC, 0);
    fix_put(fix, FIX_TSS + 4, 8, FIX_UNMAPPED + 0x800);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_PF_EXC, X86_PF_W);
    fix_put(fix, FIX_TSS + 4, 8, FIX_READ_ONLY + 0x800);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_PF_EXC, X86_PF_W | X86_PF_P);
    fix_put(fix, FIX_TSS + 4, 8,
            FIX_UNMAPPED + 16); /* the upper half of the frame doesn't fit: nothing is written */
    memset(fix_ptr(fix, FIX_UNMAPPED - 64), 0x5a, 64);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_PF_EXC, X86_PF_W);
    assert_int_equal(fix_get(fix, FIX_UNMAPPED - 8, 8), 0x5a5a5a5a5a5a5a5a);
    fix_put(fix, FIX_TSS + 4, 8, FIX_KSTACK);
    cpu->s.tr.limit = 10;
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_TS, TSS);
    cpu->s.tr.limit = 11;
    assert_int_equal(x86_int(cpu, X86_INT_N, 0x80), 0);

    fix_long(fix, 3, false);
    fix_set_gate(fix, 0x80, fix_gate(KCODE64, HANDLER, INT64_GATE | DPL3, 7), 0);
    fix_put(fix, FIX_TSS + 84, 8, FIX_ISTACK); /* IST7 */
    cpu->s.tr.limit = 90;
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_TS, TSS);
    cpu->s.tr.limit = 91;
    assert_int_equal(x86_int(cpu, X86_INT_N, 0x80), 0);
    assert_int_equal(cpu->s.gpr[X86_RSP], FIX_ISTACK - 40);
}

/* Every errant delivery of an external event has the EXT bit set; seen by letting #GP's handler take it. */
static void test_ext_bit(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_long(fix, 3, false);
    set_gates64(fix);
    fix_set_gate(fix, 0x80, 0, 0);
    assert_int_equal(x86_deliver_interrupt(cpu, 0x80), 0);
    assert_int_equal(cpu->exc.vector, X86_GP);
    assert_int_equal(frame(fix, 0, 8), 0x80 * 8 + 3);
    cpu->s.gpr[X86_RSP] += 8;
    check_frame64(fix, 0x7000, UCODE64 | 3, 0x202 | X86_RF, FIX_USTACK, UDATA | 3);

    fix_long(fix, 3, false); /* INT1 isn't checked for privilege, and counts as external */
    fix_set_gate(fix, X86_DB, fix_gate(0, HANDLER, INT64_GATE, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT1, 0), X86_GP, 1);
    fix_set_gate(fix, X86_DB, fix_gate(KCODE64, HANDLER, INT64_GATE, 0), 0);
    assert_int_equal(x86_int(cpu, X86_INT1, 0), 0);
    assert_int_equal(frame(fix, 0, 8), 0x7002);

    fix_long(fix, 3, false);
    assert_raises(fix, x86_int(cpu, X86_INT3, 0), X86_GP, 3 * 8 + 2);
}

static void test_traps(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_long(fix, 0, false);
    set_gates64(fix);
    cpu->s.rflags |= X86_RF; /* between two elements of a string instruction the engine leaves it set */
    cpu->s.dr6 = 0xffff0ff5;
    cpu->s.dr7 = 0x2400;
    x86_raise_db(cpu, 0x4000);
    assert_int_equal(x86_deliver(cpu, true), 0);
    check_frame64(fix, 0x7002, KCODE64, 0x202 | X86_RF, FIX_KSTACK - 0x100, KDATA);
    assert_int_equal(cpu->s.dr6, 0xffff4ff0);
    assert_int_equal(cpu->s.dr7, 0x400);

    fix_long(fix, 0, false); /* a breakpoint on an instruction: RF isn't set */
    x86_raise_db(cpu, 2);
    assert_int_equal(x86_deliver(cpu, false), 0);
    check_frame64(fix, 0x7000, KCODE64, 0x202, FIX_KSTACK - 0x100, KDATA);
    fix_long(fix, 0, false); /* general detect: it is */
    x86_raise_db(cpu, X86_DR6_BD);
    assert_int_equal(x86_deliver(cpu, false), 0);
    check_frame64(fix, 0x7000, KCODE64, 0x202 | X86_RF, FIX_KSTACK - 0x100, KDATA);

    fix_long(fix, 3, false); /* #BP as an exception is still a software interrupt */
    set_gates64(fix);
    x86_raise(cpu, X86_BP);
    assert_int_equal(x86_deliver(cpu, true), 0);
    assert_int_equal(frame(fix, 0, 8), 3 * 8 + 2);
    cpu->s.gpr[X86_RSP] += 8;
    check_frame64(fix, 0x7000, UCODE64 | 3, 0x202 | X86_RF, FIX_USTACK, UDATA | 3);
}

static void test_into(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_long(fix, 0, false);
    assert_raises(fix, x86_int(cpu, X86_INTO, 0), X86_UD, 0);
    fix_long(fix, 0, true);
    set_gates64(fix);
    assert_int_equal(x86_int(cpu, X86_INTO, 0), 0);
    assert_int_equal(cpu->s.rip, 0x7002);
    assert_int_equal(cpu->s.gpr[X86_RSP], FIX_KSTACK - 0x100);
    cpu->s.rflags |= X86_OF;
    assert_int_equal(x86_int(cpu, X86_INTO, 0), 0);
    assert_int_equal(cpu->s.rip, 0xffffffff00000000 | (HANDLER + 4 * 16));
}

/* --- double and triple faults --- */

static void test_double_fault_table(void **state)
{
    /* what each first exception is: benign, contributory, page fault; -1: not one that has a row */
    static const int classes[] = {1, 0, 0, 0, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, 2, -1, 0, 0, 0, 0};
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    for (int first = 0; first < 20; first++) {
        if (classes[first] < 0) {
            continue;
        }
        /* The first one's gate is broken: #GP (contributory), or #PF where its stack isn't mapped. */
        for (int second = 1; second <= 2; second++) {
            int expected = second == 1 ? X86_GP : X86_PF_EXC;
            bool has_error;

            if (classes[first] == 2 || (classes[first] == 1 && second == 1)) {
                expected = X86_DF_EXC;
            }
            fix_long(fix, 3, false);
            set_gates64(fix);
            fix_put(fix, FIX_TSS + 44, 8, FIX_UNMAPPED + 0x100); /* IST2 */
            fix_set_gate(fix, (unsigned)first, second == 1 ? 0 : fix_gate(KCODE64, HANDLER, INT64_GATE, 2),
                         0xffffffff);
            x86_raise_error(cpu, (enum x86_vector)first, 0);
            has_error = cpu->exc.has_error;
            assert_int_equal(x86_deliver(cpu, false), 0);
            assert_int_equal(cpu->s.rip, 0xffffffff00000000 | (HANDLER + (unsigned)expected * 16));
            if (second == 2) {
                assert_int_equal(cpu->s.cr2, FIX_UNMAPPED + (has_error ? 0xd0 : 0xd8));
            }
            if (expected == X86_DF_EXC) {
                assert_int_equal(frame(fix, 0, 8), 0);
            }
        }
    }
}

static void test_serial_faults(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    fix_long(fix, 3, false); /* #UD, then #GP, whose gate is broken too: #GP + #GP makes #DF */
    set_gates64(fix);
    fix_set_gate(fix, X86_UD, 0, 0);
    fix_set_gate(fix, X86_GP, 0, 0);
    x86_raise(cpu, X86_UD);
    assert_int_equal(x86_deliver(cpu, false), 0);
    assert_int_equal(cpu->s.rip, 0xffffffff00000000 | (HANDLER + 8 * 16));

    fix_long(fix, 3, false); /* and #DF broken: shutdown, with nothing changed */
    fix_set_gate(fix, X86_DF_EXC, 0, 0);
    x86_raise(cpu, X86_UD);
    fix_mark(fix);
    assert_int_equal(x86_deliver(cpu, false), -1);
    fix_check_unchanged(fix, __FILE__, __LINE__);
    assert_false(cpu->in_delivery);
    fix_mark(fix);
    assert_int_equal(x86_deliver_interrupt(cpu, X86_UD), -1);
    fix_check_unchanged(fix, __FILE__, __LINE__);

    cpu->s.idtr.limit = 0;
    assert_int_equal(x86_deliver_interrupt(cpu, X86_NMI), -1);
    assert_false(cpu->s.nmi_blocked);
    x86_raise_error(cpu, X86_DF_EXC, 0);
    assert_int_equal(x86_deliver(cpu, false), -1);
}

/* --- protected mode --- */

static void test_protected_inner(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 3);
    fix_set_gate(fix, X86_GP, fix_gate(KCODE, 0x89abcdef, 0x8e, 0), 0);
    s->rflags = 0x202 | X86_TF | X86_NT | X86_AC;
    x86_raise_error(&fix->cpu, X86_GP, 0x1234);
    assert_int_equal(x86_deliver(&fix->cpu, false), 0);
    assert_int_equal(s->rip, 0x89abcdef);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 24);
    assert_int_equal(s->seg[X86_SS].selector, KDATA);
    assert_int_equal(s->seg[X86_SS].attr, 0xc093);
    assert_int_equal(s->seg[X86_CS].selector, KCODE);
    assert_int_equal(s->seg[X86_DS].selector, UDATA | 3);
    assert_int_equal(fix->cpu.cpl, 0);
    assert_int_equal(s->rflags, 2 | X86_AC);
    assert_int_equal(frame(fix, 0, 4), 0x1234);
    assert_int_equal(frame(fix, 1, 4), 0x7000);
    assert_int_equal(frame(fix, 2, 4), UCODE | 3);
    assert_int_equal(frame(fix, 3, 4), 0x202 | X86_TF | X86_NT | X86_AC | X86_RF);
    assert_int_equal(frame(fix, 4, 4), FIX_USTACK);
    assert_int_equal(frame(fix, 5, 4), UDATA | 3);

    fix_protected(fix, 3); /* to ring 1 */
    fix_set_gate(fix, 0x50, fix_gate(DPL1CODE, HANDLER, 0x8f, 0), 0);
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x50), 0);
    assert_int_equal(fix->cpu.cpl, 1);
    assert_int_equal(s->seg[X86_SS].selector, DPL1DATA | 1);
    assert_int_equal(s->seg[X86_CS].selector, DPL1CODE | 1);
    assert_int_equal(s->gpr[X86_RSP], FIX_ISTACK - 20);
    assert_int_equal(s->rflags, 0x202);
}

static void test_protected_same_level(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 0);
    fix_set_gate(fix, 0x21, fix_gate(KCODE, HANDLER, 0x8e, 0), 0);
    s->gpr[X86_RSP] = FIX_KSTACK - 1; /* not aligned by this mode */
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 13);
    assert_int_equal(frame(fix, 0, 4), 0x7002);
    assert_int_equal(frame(fix, 1, 4), KCODE);
    assert_int_equal(frame(fix, 2, 4), 0x202);
    assert_int_equal(s->rflags, 2);

    fix_protected(fix,
                  0); /* 16-bit gate: 16-bit slots, a 16-bit IP; ESP's upper half stays on a 16-bit stack */
    fix_set_gate(fix, 0x21, fix_gate(KCODE, 0xdeadbeef, TRAP16_GATE, 0), 0);
    fix_segment(fix, X86_SS, DATA16);
    s->gpr[X86_RSP] = 0xabcd0004; /* wraps */
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
    assert_int_equal(s->gpr[X86_RSP], 0xabcdfffe);
    assert_int_equal(s->rip, 0xbeef);
    assert_int_equal(fix_get(fix, 0xfffe, 2), 0x7002);
    assert_int_equal(fix_get(fix, 0, 2), KCODE);
    assert_int_equal(fix_get(fix, 2, 2), 0x202);
    assert_int_equal(s->rflags, 0x202);
}

static void test_protected_rules(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    static const struct {
        uint16_t selector;
        uint32_t esp0;
        uint16_t ss0;
        uint32_t ss_attr; /* for FREE2 */
        int vector;
        uint32_t error;
    } cases[] = {
        {KCODE, FIX_KSTACK, KDATA, 0, -1, 0},
        {0, FIX_KSTACK, KDATA, 0, X86_GP, 0},
        {UCODE, FIX_USTACK, KDATA, 0, -1, 0},
        {KDATA, FIX_KSTACK, KDATA, 0, X86_GP, KDATA},
        {0x1000, FIX_KSTACK, KDATA, 0, X86_GP, 0x1000},
        {KCODE, FIX_KSTACK, 0, 0, X86_TS, 0},
        {KCODE, FIX_KSTACK, 3, 0, X86_TS, 0},
        {KCODE, FIX_KSTACK, KDATA | 1, 0, X86_TS, KDATA},
        {KCODE, FIX_KSTACK, UDATA, 0, X86_TS, UDATA},
        {KCODE, FIX_KSTACK, KCODE, 0, X86_TS, KCODE},
        {KCODE, FIX_KSTACK, DATA_RO, 0, X86_TS, DATA_RO},
        {KCODE, FIX_KSTACK, 0x1000, 0, X86_TS, 0x1000},
        {KCODE, FIX_KSTACK, FREE2, 0x4013, X86_SS_EXC, FREE2}, /* not present */
        {KCODE, 0x1001, FREE2, 0x4093, X86_SS_EXC, FREE2},     /* limit 0xfff */
        {KCODE, 0x1000, FREE2, 0x4093, -1, 0},
        {KCODE, 0x13, FREE2, 0x4093, X86_SS_EXC, FREE2},   /* wraps to 4 GiB */
        {KCODE, 0x1010, FREE2, 0x4097, X86_SS_EXC, FREE2}, /* expand-down: must stay above the limit */
        {KCODE, 0x1014, FREE2, 0x4097, -1, 0},
        {CODE16, FIX_KSTACK, KDATA, 0, X86_GP, 0}, /* the offset lies beyond 64 KiB */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fix_protected(fix, 3);
        fix_put(fix, FIX_TSS + 4, 4, cases[i].esp0);
        fix_put(fix, FIX_TSS + 8, 4, cases[i].ss0);
        fix_set_desc(fix, FREE2, fix_desc(0, 0xfff, cases[i].ss_attr));
        fix_set_gate(fix, 0x80, fix_gate(cases[i].selector, HANDLER, 0xee, 0), 0);
        if (cases[i].vector < 0) {
            assert_int_equal(x86_int(cpu, X86_INT_N, 0x80), 0);
            assert_int_equal(cpu->s.rip, HANDLER);
        } else {
            assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), cases[i].vector, cases[i].error);
        }
    }

    fix_protected(fix, 3);
    fix_set_gate(fix, 0x80, fix_gate(KCODE, HANDLER, 0xee, 0), 0);
    cpu->s.tr.limit = 8;
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_TS, TSS);
    fix_protected(fix, 3);
    fix_set_gate(fix, 0x80, fix_gate(KCODE, HANDLER, 0x8e, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, 0x80 * 8 + 2);
    fix_set_gate(fix, 0x80, fix_gate(KCODE, HANDLER, 0x6e, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_NP, 0x80 * 8 + 2);
    fix_set_gate(fix, 0x80, fix_gate(KCODE, HANDLER, 0xec, 0), 0);
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, 0x80 * 8 + 2);
    cpu->s.idtr.limit = 0x80 * 8 + 6;
    assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, 0x80 * 8 + 2);
}

static void test_protected_tss16_stack(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 3);
    fix_set_desc(fix, TSS, fix_desc(FIX_TSS, 0x2b, 0x83));
    x86_segment_fill(&s->tr, TSS, fix_desc_of(fix, TSS));
    fix_put(fix, FIX_TSS + 2, 2, FIX_KSTACK);
    fix_put(fix, FIX_TSS + 4, 2, KDATA);
    fix_set_gate(fix, 0x21, fix_gate(KCODE, HANDLER, INT16_GATE, 0), 0);
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x21), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 10);
    assert_int_equal(frame(fix, 0, 2), 0x7000);
    assert_int_equal(frame(fix, 3, 2), FIX_USTACK);
    assert_int_equal(frame(fix, 4, 2), UDATA | 3);
    fix_protected(fix, 3);
    s->tr.limit = 4;
    s->tr.attr = 0x83;
    fix_set_gate(fix, 0x80, fix_gate(KCODE, HANDLER, 0xee, 0), 0);
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x80), X86_TS, TSS);
}

/* --- real mode and virtual-8086 mode --- */

static void test_real(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_real(fix);
    fix_put(fix, 0x21 * 4, 4, 0x12345678);
    s->seg[X86_SS].base = 0x1000;
    s->rflags = 0x202 | X86_TF | X86_AC | X86_CF;
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
    assert_int_equal(s->rip, 0x5678);
    assert_int_equal(s->seg[X86_CS].selector, 0x1234);
    assert_int_equal(s->seg[X86_CS].base, 0x12340);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 6);
    assert_int_equal(s->rflags, 2 | X86_CF);
    assert_int_equal(frame(fix, 0, 2), 0x7002);
    assert_int_equal(frame(fix, 1, 2), 0);
    assert_int_equal(frame(fix, 2, 2), 0x202 | X86_TF | X86_CF);

    fix_real(fix); /* no error codes in this mode */
    fix_put(fix, X86_GP * 4, 4, 0xf0000100);
    x86_raise_error(&fix->cpu, X86_GP, 0x55);
    assert_int_equal(x86_deliver(&fix->cpu, false), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 6);
    assert_int_equal(s->rip, 0x100);

    fix_real(fix);
    s->idtr.limit = 0x21 * 4 + 2;
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x21), X86_GP, 0x21 * 8 + 2);
    s->idtr.limit = 0x3ff;
    s->gpr[X86_RSP] = 5;
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x21), X86_SS_EXC, 0); /* a word at offset ffff */
    s->gpr[X86_RSP] = 4;
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
    assert_int_equal(s->gpr[X86_RSP], 0xfffe);
    s->idtr.limit = 0;
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 8), -1);
}

static void test_vm86_interrupt(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_vm86(fix, 0);
    fix_set_gate(fix, 0x30, fix_gate(KCODE, HANDLER, 0x8e, 0), 0);
    assert_int_equal(x86_deliver_interrupt(&fix->cpu, 0x30), 0);
    assert_int_equal(s->gpr[X86_RSP], FIX_KSTACK - 36);
    assert_int_equal(s->rflags, 2);
    assert_int_equal(fix->cpu.cpl, 0);
    static const uint32_t expected[] = {0x7000, 0x101, 0x202 | X86_VM, 0x1000, 0x102,
                                        0x100,  0x103, 0x104,          0x105};
    for (unsigned i = 0; i < 9; i++) {
        assert_int_equal(frame(fix, i, 4), expected[i]);
    }
    static const uint8_t nulls[] = {X86_ES, X86_DS, X86_FS, X86_GS};
    for (unsigned i = 0; i < sizeof(nulls); i++) {
        assert_int_equal(s->seg[nulls[i]].attr, 0);
        assert_int_equal(s->seg[nulls[i]].selector, 0);
    }

    fix_vm86(fix, 3);
    fix_set_gate(fix, 0x30, fix_gate(DPL1CODE, HANDLER, 0xee, 0), 0); /* must be ring 0 */
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x30), X86_GP, DPL1CODE);
    fix_set_gate(fix, 0x30, fix_gate(CONFORMING, HANDLER, 0xee, 0), 0);
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x30), X86_GP, CONFORMING);
    fix_set_gate(fix, 0x30, fix_gate(KCODE, HANDLER, 0xee, 0), 0);
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x30), 0);
    fix_vm86(fix, 2);
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x30), X86_GP, 0); /* IOPL < 3 */
    fix_set_gate(fix, X86_BP, fix_gate(KCODE, HANDLER, 0xee, 0), 0);
    assert_int_equal(x86_int(&fix->cpu, X86_INT3, 0), 0); /* doesn't care for IOPL */
}

static void test_vme(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    for (unsigned iopl = 0; iopl <= 3; iopl += 3) {
        fix_vm86(fix, iopl);
        s->cr4 = X86_CR4_VME;
        s->tr.limit = 0x200;
        fix_put(fix, FIX_TSS + 0x66, 2, 0x88); /* the redirection map is at 0x68 */
        fix_put(fix, FIX_TSS + 0x68, 8, 0);
        fix_put(fix, 0x21 * 4, 4, 0x20003000);
        s->rflags |= X86_VIF;
        assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
        assert_int_equal(s->seg[X86_CS].base, 0x20000);
        assert_int_equal(s->rip, 0x3000);
        assert_int_equal(fix->cpu.cpl, 3);
        assert_int_equal(frame(fix, 0, 2), 0x7002);
        assert_int_equal(frame(fix, 1, 2), 0x101);
        assert_int_equal(frame(fix, 2, 2), 0x202 | X86_IOPL);
        assert_int_equal(s->rflags, 2 | X86_VM | iopl << 12 | (iopl ? X86_VIF : X86_IF));
        fix_put(fix, FIX_TSS + 0x68 + 0x21 / 8, 1, 2); /* this one goes to the monitor */
        if (iopl == 0) {
            assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x21), X86_GP, 0);
        } else {
            fix_set_gate(fix, 0x21, fix_gate(KCODE, HANDLER, 0xee, 0), 0);
            assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x21), 0);
            assert_int_equal(fix->cpu.cpl, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        fix_test(test_long_page_fault),
        fix_test(test_long_same_level),
        fix_test(test_long_conforming),
        fix_test(test_long_from_compat),
        fix_test(test_long_gate_rules),
        fix_test(test_long_stack_rules),
        fix_test(test_ext_bit),
        fix_test(test_traps),
        fix_test(test_into),
        fix_test(test_double_fault_table),
        fix_test(test_serial_faults),
        fix_test(test_protected_inner),
        fix_test(test_protected_same_level),
        fix_test(test_protected_rules),
        fix_test(test_protected_tss16_stack),
        fix_test(test_real),
        fix_test(test_vm86_interrupt),
        fix_test(test_vme),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
