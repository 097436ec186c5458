/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, as Intel and as AMD have them.
 */
#include "tests/unit/x86_fixture.h"

static void set_msrs(struct fixture *fix)
{
    struct x86_state *s = &fix->cpu.s;

    s->star = 0x0023001000401234; /* SYSRET base 0x23, SYSCALL base 0x10, legacy EIP */
    s->lstar = 0xffffffff81000000;
    s->cstar = 0xffffffff82000000;
    s->sfmask = X86_IF | X86_TF | X86_DF | X86_AC;
    s->sysenter_cs = 0x10;
    s->sysenter_esp = 0xffff888000001000;
    s->sysenter_eip = 0xffffffff83000000;
}

static void check_segment(const struct x86_segment *seg, uint16_t selector, uint16_t attr)
{
    assert_int_equal(seg->selector, selector);
    assert_int_equal(seg->attr, attr);
    assert_int_equal(seg->base, 0);
    assert_int_equal(seg->limit, UINT32_MAX);
}

static void test_syscall_long(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 3, false);
    set_msrs(fix);
    s->rflags = 0x202 | X86_DF | X86_RF | X86_CF;
    fix->cpu.next_rip = 0x7fff00000002;
    assert_int_equal(x86_syscall(&fix->cpu), 0);
    assert_int_equal(s->rip, 0xffffffff81000000);
    assert_int_equal(s->gpr[X86_RCX], 0x7fff00000002);
    assert_int_equal(s->gpr[X86_R11], 0x202 | X86_DF | X86_CF);
    assert_int_equal(s->rflags, 2 | X86_CF);
    assert_int_equal(s->gpr[X86_RSP], FIX_USTACK);
    assert_int_equal(fix->cpu.cpl, 0);
    check_segment(&s->seg[X86_CS], 0x10, 0xa09b);
    check_segment(&s->seg[X86_SS], 0x18, 0xc093);
}

static void test_syscall_refused(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 3, false);
    set_msrs(fix);
    s->efer &= ~(uint64_t)X86_EFER_SCE;
    assert_raises(fix, x86_syscall(&fix->cpu), X86_UD, 0);
    assert_raises(fix, x86_sysret(&fix->cpu, 8), X86_UD, 0);
    fix_long(fix, 3, true);
    assert_raises(fix, x86_syscall(&fix->cpu), X86_UD, 0); /* Intel, compatibility mode */
    fix_long(fix, 0, true);
    assert_raises(fix, x86_sysret(&fix->cpu, 4), X86_UD, 0);
    s->efer = X86_EFER_SCE;
    fix_protected(fix, 3);
    assert_raises(fix, x86_syscall(&fix->cpu), X86_UD, 0);
    fix->cpu.cpuid.intel = false;
    fix_real(fix);
    assert_raises(fix, x86_syscall(&fix->cpu), X86_UD, 0);
    fix_vm86(fix, 3);
    assert_raises(fix, x86_syscall(&fix->cpu), X86_UD, 0);
}

static void test_syscall_amd(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix->cpu.cpuid.intel = false;
    fix_long(fix, 3, true);
    set_msrs(fix);
    assert_int_equal(x86_syscall(&fix->cpu), 0);
    assert_int_equal(s->rip, 0xffffffff82000000);
    assert_int_equal(s->gpr[X86_RCX], 0x7002);
    check_segment(&s->seg[X86_CS], 0x10, 0xa09b);

    s->efer = X86_EFER_SCE; /* legacy mode */
    s->cr0 &= ~(uint64_t)X86_CR0_PG;
    fix_protected(fix, 3);
    assert_int_equal(x86_syscall(&fix->cpu), 0);
    assert_int_equal(s->rip, 0x00401234);
    assert_int_equal(s->rflags, 2);
    assert_int_equal(fix->cpu.cpl, 0);
    check_segment(&s->seg[X86_CS], 0x10, 0xc09b);
    check_segment(&s->seg[X86_SS], 0x18, 0xc093);
    s->gpr[X86_RCX] = 0x123400005678;
    assert_int_equal(x86_sysret(&fix->cpu, 4), 0);
    assert_int_equal(s->rip, 0x5678);
    assert_int_equal(s->rflags, 0x202);
    check_segment(&s->seg[X86_CS], 0x23, 0xc0fb);
}

static void test_sysret(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 0, false);
    set_msrs(fix);
    s->gpr[X86_RCX] = 0x00007fffdeadbeef;
    s->gpr[X86_R11] = UINT64_MAX;
    assert_int_equal(x86_sysret(&fix->cpu, 8), 0);
    assert_int_equal(s->rip, 0x00007fffdeadbeef);
    assert_int_equal(s->rflags, 0x3c7fd7);
    assert_int_equal(fix->cpu.cpl, 3);
    check_segment(&s->seg[X86_CS], 0x33, 0xa0fb);
    check_segment(&s->seg[X86_SS], 0x2b, 0xc0f3);
    assert_raises(fix, x86_sysret(&fix->cpu, 8), X86_GP, 0); /* CPL 3 now */

    fix_long(fix, 0, false);
    s->gpr[X86_RCX] = 0xabcd00001000;
    s->gpr[X86_R11] = 0;
    assert_int_equal(x86_sysret(&fix->cpu, 4), 0);
    assert_int_equal(s->rip, 0x1000);
    assert_int_equal(s->rflags, 2);
    check_segment(&s->seg[X86_CS], 0x23, 0xc0fb);

    fix_long(fix, 0, false);
    s->gpr[X86_RCX] = 0x0000800000000000;
    assert_raises(fix, x86_sysret(&fix->cpu, 8), X86_GP, 0);
    fix->cpu.cpuid.intel = false; /* AMD faults at CPL 3, when it fetches */
    assert_int_equal(x86_sysret(&fix->cpu, 8), 0);
    assert_int_equal(s->rip, 0x0000800000000000);
    assert_int_equal(fix->cpu.cpl, 3);
}

static void test_sysenter(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 3, true);
    set_msrs(fix);
    s->rflags |= X86_RF;
    assert_int_equal(x86_sysenter(&fix->cpu), 0);
    assert_int_equal(s->rip, 0xffffffff83000000);
    assert_int_equal(s->gpr[X86_RSP], 0xffff888000001000);
    assert_int_equal(s->rflags, 2);
    assert_int_equal(fix->cpu.cpl, 0);
    check_segment(&s->seg[X86_CS], 0x10, 0xa09b);
    check_segment(&s->seg[X86_SS], 0x18, 0xc093);

    s->cr0 &= ~(uint64_t)X86_CR0_PG;
    s->efer = 0;
    fix_vm86(fix, 0);
    assert_int_equal(x86_sysenter(&fix->cpu), 0);
    assert_int_equal(s->rip, 0x83000000);
    assert_int_equal(s->gpr[X86_RSP], 0x1000);
    assert_int_equal(s->rflags, 2); /* VM is off */
    check_segment(&s->seg[X86_CS], 0x10, 0xc09b);

    s->sysenter_cs = 3;
    assert_raises(fix, x86_sysenter(&fix->cpu), X86_GP, 0);
    s->sysenter_cs = 0x10;
    fix_real(fix);
    assert_raises(fix, x86_sysenter(&fix->cpu), X86_GP, 0);
    fix->cpu.cpuid.intel = false;
    fix_long(fix, 3, false);
    assert_raises(fix, x86_sysenter(&fix->cpu), X86_UD, 0);
    assert_raises(fix, x86_sysexit(&fix->cpu, 4), X86_UD, 0);
}

static void test_sysexit(void **state)
{
    struct fixture *fix = *state;
    struct x86_state *s = &fix->cpu.s;

    fix_long(fix, 3, false);
    set_msrs(fix);
    assert_raises(fix, x86_sysexit(&fix->cpu, 4), X86_GP, 0);
    fix_long(fix, 0, false);
    s->gpr[X86_RCX] = 0x123456789000;
    s->gpr[X86_RDX] = 0x400000401000;
    assert_int_equal(x86_sysexit(&fix->cpu, 4), 0);
    assert_int_equal(s->gpr[X86_RSP], 0x56789000);
    assert_int_equal(s->rip, 0x401000);
    check_segment(&s->seg[X86_CS], 0x23, 0xc0fb);
    check_segment(&s->seg[X86_SS], 0x2b, 0xc0f3);

    fix_long(fix, 0, false);
    s->gpr[X86_RCX] = 0x123456789000;
    assert_int_equal(x86_sysexit(&fix->cpu, 8), 0);
    assert_int_equal(s->rip, 0x400000401000);
    assert_int_equal(s->gpr[X86_RSP], 0x123456789000);
    check_segment(&s->seg[X86_CS], 0x33, 0xa0fb);
    check_segment(&s->seg[X86_SS], 0x3b, 0xc0f3);

    fix_long(fix, 0, false);
    s->gpr[X86_RDX] = 0x800000000000;
    assert_raises(fix, x86_sysexit(&fix->cpu, 8), X86_GP, 0);
    s->gpr[X86_RDX] = 0;
    s->gpr[X86_RCX] = 0x800000000000;
    assert_raises(fix, x86_sysexit(&fix->cpu, 8), X86_GP, 0);
    s->sysenter_cs = 0;
    assert_raises(fix, x86_sysexit(&fix->cpu, 4), X86_GP, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        fix_test(test_syscall_long), fix_test(test_syscall_refused), fix_test(test_syscall_amd),
        fix_test(test_sysret),       fix_test(test_sysenter),        fix_test(test_sysexit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
