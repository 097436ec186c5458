/*
 * Task switches by JMP, CALL, INT and IRET: what is saved and loaded, busy bits, NT, back links, errors
 * before and after the switch.
 */
#include "tests/unit/x86_fixture.h"

#define TASK_B  FREE  /* its TSS descriptor */
#define TASK_16 FREE2 /* a 16-bit one */
#define GATE    FREE3
#define ENTRY   0x23450u

/* A 32-bit task at FIX_TSS_B that runs in ring 0 (or another one, by its selectors). */
static void set_task(struct fixture *fix, uint16_t cs, uint16_t data, uint32_t eflags)
{
    memset(fix_ptr(fix, FIX_TSS_B), 0, 0x68);
    fix_put(fix, FIX_TSS_B + 0x1c, 4, 0x345000);
    fix_put(fix, FIX_TSS_B + 0x20, 4, ENTRY);
    fix_put(fix, FIX_TSS_B + 0x24, 4, eflags);
    for (unsigned i = 0; i < 8; i++) {
        fix_put(fix, FIX_TSS_B + 0x28 + i * 4, 4, 0xb0000000 + i);
    }
    fix_put(fix, FIX_TSS_B + 0x38, 4, FIX_ISTACK);
    for (unsigned i = 0; i < 6; i++) {
        fix_put(fix, FIX_TSS_B + 0x48 + i * 4, 4, i == X86_CS ? cs : data);
    }
    fix_put(fix, FIX_TSS_B + 0x60, 4, LDT);
    fix_set_desc(fix, TASK_B, fix_desc(FIX_TSS_B, 0x67, 0x89));
}

static void start(struct fixture *fix, unsigned cpl)
{
    fix_protected(fix, cpl);
    for (unsigned i = 0; i < 8; i++) {
        fix->cpu.s.gpr[i] = 0xa0000000 + i;
    }
    fix->cpu.s.gpr[X86_RSP] = cpl == 3 ? FIX_USTACK : FIX_KSTACK - 0x100;
    fix->cpu.s.rflags = 0x202 | X86_CF;
    fix->cpu.s.dr7 = 0x7ff;
    fix_set_desc(fix, TSS, fix_desc(FIX_TSS, FIX_TSS_LIMIT, 0x8b));
    set_task(fix, KCODE, KDATA, 0x282);
}

static unsigned busy(struct fixture *fix, uint16_t selector)
{
    return x86_desc_type(fix_desc_of(fix, selector)) & 2;
}

static void check_saved(struct fixture *fix, uint32_t eip, uint32_t eflags)
{
    assert_int_equal(fix_get(fix, FIX_TSS + 0x20, 4), eip);
    assert_int_equal(fix_get(fix, FIX_TSS + 0x24, 4), eflags);
    for (unsigned i = 0; i < 8; i++) {
        if (i != X86_RSP) {
            assert_int_equal(fix_get(fix, FIX_TSS + 0x28 + i * 4, 4), 0xa0000000 + i);
        }
    }
    assert_int_equal(fix_get(fix, FIX_TSS + 0x38, 4), FIX_KSTACK - 0x100);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(fix_get(fix, FIX_TSS + 0x48 + i * 4, 4), i == X86_CS ? KCODE : KDATA);
    }
}

static void check_loaded(struct fixture *fix, uint32_t eflags)
{
    struct x86_state *s = &fix->cpu.s;

    assert_int_equal(s->rip, ENTRY);
    assert_int_equal(s->rflags, eflags);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(s->gpr[i], i == X86_RSP ? FIX_ISTACK : 0xb0000000 + i);
    }
    assert_int_equal(s->seg[X86_CS].selector, KCODE);
    assert_int_equal(s->seg[X86_CS].attr, 0xc09b);
    assert_int_equal(s->seg[X86_FS].attr, 0xc093);
    assert_int_equal(s->ldtr.selector, LDT);
    assert_int_equal(s->ldtr.base, FIX_LDT);
    assert_int_equal(s->tr.selector, TASK_B);
    assert_int_equal(s->tr.base, FIX_TSS_B);
    assert_int_equal(s->tr.attr, 0x8b);
    assert_true(s->cr0 & X86_CR0_TS);
    assert_int_equal(s->dr7, 0x6aa);
    assert_int_equal(fix->cpu.cpl, 0);
}

static void test_jmp(void **state)
{
    struct fixture *fix = *state;

    for (unsigned by_gate = 0; by_gate < 2; by_gate++) {
        start(fix, 0);
        fix_set_desc(fix, GATE, fix_gate(TASK_B, 0, 0x85, 0));
        fix_put(fix, FIX_TSS_B, 2, 0x7777);
        assert_int_equal(x86_far_jmp(&fix->cpu, by_gate ? GATE : TASK_B, 0, 4), 0);
        check_saved(fix, 0x7002, 0x202 | X86_CF);
        check_loaded(fix, 0x282);
        assert_false(busy(fix, TSS));
        assert_true(busy(fix, TASK_B));
        assert_int_equal(fix_get(fix, FIX_TSS_B, 2), 0x7777); /* no back link */
        assert_int_equal(fix->cpu.s.cr3, 0);                  /* paging is off */
    }
}

static void test_call_and_iret(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    start(fix, 0);
    assert_int_equal(x86_far_call(&fix->cpu, TASK_B, 0, 4), 0);
    check_saved(fix, 0x7002, 0x202 | X86_CF);
    check_loaded(fix, 0x282 | X86_NT);
    assert_true(busy(fix, TSS));
    assert_true(busy(fix, TASK_B));
    assert_int_equal(fix_get(fix, FIX_TSS_B, 2), TSS);

    fix->cpu.s.rip = 0x9000;
    fix->cpu.next_rip = 0x9001;
    s->nmi_blocked = true;
    assert_int_equal(x86_iret(&fix->cpu, 4), 0);
    assert_int_equal(s->rip, 0x7002);
    assert_int_equal(s->rflags, 0x202 | X86_CF);
    assert_int_equal(s->tr.selector, TSS);
    assert_false(s->nmi_blocked);
    assert_true(busy(fix, TSS));
    assert_false(busy(fix, TASK_B));
    assert_int_equal(fix_get(fix, FIX_TSS_B + 0x20, 4), 0x9001);
    assert_int_equal(fix_get(fix, FIX_TSS_B + 0x24, 4), 0x282); /* NT is clear in what is saved */
}

static void test_interrupt(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    start(fix, 0);
    fix_set_gate(fix, X86_GP, fix_gate(TASK_B, 0, 0x85, 0), 0);
    s->sti_shadow = true;
    x86_raise_error(&fix->cpu, X86_GP, 0x1230);
    assert_int_equal(x86_deliver(&fix->cpu, false), 0);
    check_saved(fix, 0x7000, 0x202 | X86_CF | X86_RF);
    assert_int_equal(s->gpr[X86_RSP], FIX_ISTACK - 4);
    assert_int_equal(fix_get(fix, FIX_ISTACK - 4, 4), 0x1230);
    assert_int_equal(s->rflags, 0x282 | X86_NT);
    assert_int_equal(fix_get(fix, FIX_TSS_B, 2), TSS);
    assert_false(s->sti_shadow);
    /* The gate's task is busy now: #GP with its selector and EXT, and again: double fault, triple fault. */
    assert_int_equal(x86_deliver(&fix->cpu, false), -1);

    start(fix, 3); /* a software interrupt is checked against the gate's DPL */
    fix_set_gate(fix, 0x80, fix_gate(TASK_B, 0, 0x85, 0), 0);
    assert_raises(fix, x86_int(&fix->cpu, X86_INT_N, 0x80), X86_GP, 0x80 * 8 + 2);
    fix_set_gate(fix, 0x80, fix_gate(TASK_B, 0, 0xe5, 0), 0);
    assert_int_equal(x86_int(&fix->cpu, X86_INT_N, 0x80), 0);
    assert_int_equal(fix_get(fix, FIX_TSS + 0x20, 4), 0x7002);
    assert_int_equal(fix->cpu.cpl, 0);
}

static void test_task16(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    start(fix, 0);
    fix_set_desc(fix, TASK_16, fix_desc(FIX_TSS_B + 0x100, 0x2b, 0x81));
    for (unsigned i = 0; i < 0x2c; i += 2) {
        fix_put(fix, FIX_TSS_B + 0x100 + i, 2, 0x1100 + i);
    }
    fix_put(fix, FIX_TSS_B + 0x10e, 2, 0x4321);
    fix_put(fix, FIX_TSS_B + 0x110, 2, 0x0246);
    for (unsigned i = 0; i < 4; i++) {
        fix_put(fix, FIX_TSS_B + 0x122 + i * 2, 2, i == X86_CS ? CODE16 : DATA16);
    }
    fix_put(fix, FIX_TSS_B + 0x12a, 2, 0);
    assert_int_equal(x86_far_call(&fix->cpu, TASK_16, 0, 2), 0);
    check_saved(fix, 0x7002, 0x202 | X86_CF);
    assert_int_equal(s->rip, 0x4321);
    assert_int_equal(s->rflags, 0x246 | X86_NT);
    assert_int_equal(s->gpr[X86_RAX], 0x1112);
    assert_int_equal(s->gpr[X86_RDI], 0x1120);
    assert_int_equal(s->seg[X86_CS].base, 0x100);
    assert_int_equal(s->seg[X86_GS].attr, 0);
    assert_int_equal(s->ldtr.attr, 0);
    assert_int_equal(s->tr.attr, 0x83);

    s->gpr[X86_RAX] = 0xffff5555; /* and back */
    fix->cpu.next_rip = 0x4444;
    assert_int_equal(x86_iret(&fix->cpu, 2), 0);
    assert_int_equal(s->rip, 0x7002);
    assert_int_equal(fix_get(fix, FIX_TSS_B + 0x10e, 2), 0x4444);
    assert_int_equal(fix_get(fix, FIX_TSS_B + 0x112, 2), 0x5555);
    assert_int_equal(fix_get(fix, FIX_TSS_B + 0x12a, 2), 0); /* the LDT isn't saved, nothing past DS is */
    assert_false(busy(fix, TASK_16));
}

static void test_vm86_task(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    start(fix, 0);
    set_task(fix, 0x1000, 0x2000, 0x202 | X86_VM);
    fix_put(fix, FIX_TSS_B + 0x20, 4, 0x55);
    assert_int_equal(x86_far_jmp(&fix->cpu, TASK_B, 0, 4), 0);
    assert_true(x86_vm86(&fix->cpu));
    assert_int_equal(fix->cpu.cpl, 3);
    assert_int_equal(s->seg[X86_CS].base, 0x10000);
    assert_int_equal(s->seg[X86_SS].base, 0x20000);
    assert_int_equal(s->seg[X86_SS].attr, 0xf3);
}

static void test_cr3_and_trap(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    start(fix, 0); /* 32-bit paging, one 4 MiB page */
    fix_put(fix, FIX_PML4, 4, 0x83);
    fix_put(fix, FIX_PML4 + 0x1000, 4, 0x83);
    s->cr3 = FIX_PML4;
    s->cr4 = X86_CR4_PSE;
    s->cr0 |= X86_CR0_PG;
    fix_put(fix, FIX_TSS_B + 0x1c, 4, FIX_PML4 + 0x1000);
    fix_put(fix, FIX_TSS_B + 0x64, 2, 1); /* T */
    assert_int_equal(x86_far_jmp(&fix->cpu, TASK_B, 0, 4), -1);
    assert_int_equal(fix->cpu.exc.vector, X86_DB);
    assert_int_equal(fix->cpu.exc.dr6, X86_DR6_BT);
    assert_int_equal(s->cr3, FIX_PML4 + 0x1000);
    assert_int_equal(fix->switches, 1);
    check_loaded(fix, 0x282);
    fix_set_gate(fix, X86_DB, fix_gate(KCODE, 0x5000, 0x8e, 0), 0);
    assert_int_equal(x86_deliver(&fix->cpu, false), 0);
    assert_int_equal(fix_get(fix, s->gpr[X86_RSP], 4), ENTRY);
    assert_int_equal(fix_get(fix, s->gpr[X86_RSP] + 8, 4), 0x282); /* no RF */
}

/* --- what is refused with nothing changed --- */

static void test_refused(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;

    start(fix, 3);
    assert_raises(fix, x86_far_jmp(cpu, TASK_B, 0, 4), X86_GP, TASK_B); /* TSS DPL < CPL */
    fix_set_desc(fix, GATE, fix_gate(TASK_B, 0, 0x85, 0));
    assert_raises(fix, x86_far_jmp(cpu, GATE, 0, 4), X86_GP, GATE);
    fix_set_desc(fix, GATE, fix_gate(TASK_B, 0, 0xe5, 0)); /* through a gate the TSS's DPL doesn't count */
    assert_int_equal(x86_far_jmp(cpu, GATE, 0, 4), 0);

    start(fix, 0);
    assert_raises(fix, x86_far_jmp(cpu, TASK_B | 1, 0, 4), X86_GP, TASK_B);
    assert_raises(fix, x86_far_jmp(cpu, TSS, 0, 4), X86_GP, TSS); /* busy */
    fix_set_desc(fix, TASK_B, fix_desc(FIX_TSS_B, 0x67, 0x09));
    assert_raises(fix, x86_far_call(cpu, TASK_B, 0, 4), X86_NP, TASK_B);
    fix_set_desc(fix, TASK_B, fix_desc(FIX_TSS_B, 0x66, 0x89));
    assert_raises(fix, x86_far_call(cpu, TASK_B, 0, 4), X86_TS, TASK_B);
    fix_set_desc(fix, TASK_16, fix_desc(FIX_TSS_B, 0x2a, 0x81));
    assert_raises(fix, x86_far_call(cpu, TASK_16, 0, 4), X86_TS, TASK_16);
    fix_set_desc(fix, GATE, fix_gate(TASK_B, 0, 0x05, 0));
    assert_raises(fix, x86_far_call(cpu, GATE, 0, 4), X86_NP, GATE);
    static const uint16_t bad[] = {0, IN_LDT, 0x1000, KDATA, LDT, TSS};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        fix_set_desc(fix, GATE, fix_gate(bad[i], 0, 0x85, 0));
        assert_raises(fix, x86_far_call(cpu, GATE, 0, 4), X86_GP, bad[i]);
        fix_set_gate(fix, 0x80, fix_gate(bad[i], 0, 0x85, 0), 0);
        assert_raises(fix, x86_int(cpu, X86_INT_N, 0x80), X86_GP, bad[i]);
    }
    static const uint16_t bad_links[] = {0, IN_LDT, 0x1000, KDATA, LDT, TASK_B};
    cpu->s.rflags |= X86_NT;
    for (size_t i = 0; i < sizeof(bad_links) / sizeof(bad_links[0]); i++) {
        set_task(fix, KCODE, KDATA, 2);
        fix_put(fix, FIX_TSS, 2, bad_links[i]);
        assert_raises(fix, x86_iret(cpu, 4), X86_TS, bad_links[i]); /* TASK_B: not busy */
    }
    fix_set_desc(fix, TASK_B, fix_desc(FIX_TSS_B, 0x67, 0x0b));
    assert_raises(fix, x86_iret(cpu, 4), X86_NP, TASK_B);
}

static void test_pages_checked_first(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    uint8_t gdt[FIX_GDT_LIMIT + 1];

    start(fix, 0); /* 32-bit paging with 4 KiB pages */
    fix_put(fix, FIX_PML4, 4, (FIX_PML4 + 0x1000) | 7);
    for (uint32_t page = 0; page < 512; page++) {
        fix_put(fix, FIX_PML4 + 0x1000 + page * 4, 4, page << 12 | 7);
    }
    cpu->s.cr3 = FIX_PML4;
    cpu->s.cr0 |= X86_CR0_PG | X86_CR0_WP;
    static const uint32_t pages[] = {FIX_TSS, FIX_TSS_B, FIX_GDT};
    for (unsigned i = 0; i < 3; i++) {
        fix_put(fix, FIX_PML4 + 0x1000 + (pages[i] >> 12) * 4, 4, pages[i] | 5); /* read-only */
        memcpy(gdt, fix_ptr(fix, FIX_GDT), sizeof(gdt));
        assert_raises(fix, x86_far_call(cpu, TASK_B, 0, 4), X86_PF_EXC, X86_PF_P | X86_PF_W);
        assert_memory_equal(gdt, fix_ptr(fix, FIX_GDT), sizeof(gdt));
        assert_int_equal(fix_get(fix, FIX_TSS + 0x20, 4), 0);
        assert_int_equal(fix_get(fix, FIX_TSS_B, 2), 0);
        fix_put(fix, FIX_PML4 + 0x1000 + (pages[i] >> 12) * 4, 4, pages[i] | 7);
    }
    fix_put(fix, FIX_TSS_B + 0x1c, 4, FIX_PML4);
    assert_int_equal(x86_far_call(cpu, TASK_B, 0, 4), 0);
}

/* --- what fails in the new task --- */

static void test_new_task_errors(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    static const struct {
        uint8_t field; /* offset in the TSS */
        uint32_t value;
        uint32_t attr; /* of FREE3 */
        int vector;
        uint32_t error;
    } cases[] = {
        {0x60, KDATA, 0, X86_TS, KDATA}, /* LDT */
        {0x60, IN_LDT, 0, X86_TS, IN_LDT},
        {0x60, 0x1000, 0, X86_TS, 0x1000},
        {0x60, FREE3, 0x0002, X86_TS, FREE3},
        {0x4c, 0, 0, X86_TS, 0}, /* CS */
        {0x4c, 0x1000, 0, X86_TS, 0x1000},
        {0x4c, KDATA, 0, X86_TS, KDATA},
        {0x4c, KCODE | 3, 0, X86_TS, KCODE},
        {0x4c, FREE3, 0xc0fb, X86_TS, FREE3},
        {0x4c, FREE3, 0xc0ff, X86_TS, FREE3},
        {0x4c, FREE3, 0xc01b, X86_NP, FREE3},
        {0x50, 0, 0, X86_TS, 0}, /* SS */
        {0x50, 0x1000, 0, X86_TS, 0x1000},
        {0x50, KDATA | 1, 0, X86_TS, KDATA},
        {0x50, UDATA, 0, X86_TS, UDATA},
        {0x50, DATA_RO, 0, X86_TS, DATA_RO},
        {0x50, FREE3, 0xc013, X86_SS_EXC, FREE3},
        {0x54, 0x1000, 0, X86_TS, 0x1000}, /* DS */
        {0x54, CODE_XO, 0, X86_TS, CODE_XO},
        {0x54, KDATA | 3, 0, X86_TS, KDATA},
        {0x5c, FREE3, 0xc013, X86_NP, FREE3}, /* GS */
        {0x5c, 3, 0, -1, 0},                  /* null is fine */
        {0x20, 0x100000, 0, -1, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(fix, 0);
        fix_put(fix, FIX_TSS_B + cases[i].field, 4, cases[i].value);
        fix_set_desc(fix, FREE3, fix_desc(0, 0xfffff, cases[i].attr));
        if (cases[i].vector < 0) {
            assert_int_equal(x86_far_jmp(cpu, TASK_B, 0, 4), 0);
            continue;
        }
        assert_int_equal(x86_far_jmp(cpu, TASK_B, 0, 4), -1);
        assert_int_equal(cpu->exc.vector, cases[i].vector);
        assert_int_equal(cpu->exc.error, cases[i].error);
        assert_int_equal(cpu->s.tr.selector, TASK_B); /* it is the new task's exception */
        assert_int_equal(cpu->s.rip, ENTRY);
        assert_int_equal(cpu->cpl, cpu->s.seg[X86_CS].selector & 3);
    }

    start(fix, 0);
    fix_set_desc(fix, FREE3, fix_desc(0, 0xff, 0x409b));
    fix_put(fix, FIX_TSS_B + 0x4c, 4, FREE3);
    assert_int_equal(x86_far_jmp(cpu, TASK_B, 0, 4), -1); /* EIP beyond the limit */
    assert_int_equal(cpu->exc.vector, X86_GP);
    assert_int_equal(cpu->exc.error, 0);

    start(fix, 0); /* during an interrupt: EXT, and the nested fault saves the new task's EIP */
    fix_put(fix, FIX_TSS_B + 0x54, 4, CODE_XO);
    fix_set_gate(fix, 0x30, fix_gate(TASK_B, 0, 0x85, 0), 0);
    fix_set_gate(fix, X86_TS, fix_gate(KCODE, 0x5000, 0x8e, 0), 0);
    assert_int_equal(x86_deliver_interrupt(cpu, 0x30), 0);
    assert_int_equal(cpu->s.rip, 0x5000);
    assert_int_equal(fix_get(fix, cpu->s.gpr[X86_RSP], 4), CODE_XO | 1);
    assert_int_equal(fix_get(fix, cpu->s.gpr[X86_RSP] + 4, 4), ENTRY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        fix_test(test_jmp),     fix_test(test_call_and_iret),       fix_test(test_interrupt),
        fix_test(test_task16),  fix_test(test_vm86_task),           fix_test(test_cr3_and_trap),
        fix_test(test_refused), fix_test(test_pages_checked_first), fix_test(test_new_task_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
