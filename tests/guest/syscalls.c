/*
 * Ways into the supervisor and back: SYSCALL and SYSRET, SYSENTER and SYSEXIT, INT n, IRET; from 64-bit and
 * compatibility code.
 */
#include "rt/rt.h"

#define NONCANONICAL 0x0000800000000000ull
#define STAR         0xc0000081
#define LSTAR        0xc0000082
#define CSTAR        0xc0000083
#define SFMASK       0xc0000084
#define SYSENTER_CS  0x174
#define SYSENTER_ESP 0x175
#define SYSENTER_EIP 0x176

/* Kernel entry for SYSCALL: keeps what it finds and goes back. */
extern uint64_t sc_rcx, sc_r11, sc_rsp, sc_flags, sc_cs, sc_ss;
asm(".bss\n .balign 8\n sc_rcx: .skip 8\n sc_r11: .skip 8\n sc_rsp: .skip 8\n sc_flags: .skip 8\n"
    "sc_cs: .skip 8\n sc_ss: .skip 8\n .skip 512\n sc_stack:\n .text\n");
asm(".text\n"
    "sc_probe:\n mov %rcx, sc_rcx\n mov %r11, sc_r11\n mov %rsp, sc_rsp\n mov $sc_stack, %rsp\n pushfq\n pop "
    "sc_flags\n"
    "mov %cs, sc_cs\n mov %ss, sc_ss\n mov sc_rcx, %rcx\n mov sc_rsp, %rsp\n ret_insn: sysretq\n"
    "sc_entry32:\n mov %rcx, sc_rcx\n mov %r11, sc_r11\n mov %rsp, sc_rsp\n mov %cs, sc_cs\n mov %ss, "
    "sc_ss\n sysretl\n"
    "sc_hold: mov %rcx, sc_rcx\n sc_hold_at: ud2\n"
    /* SYSENTER */
    "se_probe: mov %rsp, sc_rsp\n mov %cs, sc_cs\n mov %ss, sc_ss\n pushfq\n pop sc_flags\n .byte 0x48\n "
    "sysexitl\n"
    "se_probe32: mov %rsp, sc_rsp\n mov %cs, sc_cs\n mov %ss, sc_ss\n sysexitl\n");
LABEL(sc_probe);
LABEL(sc_entry32);
LABEL(sc_hold);
LABEL(sc_hold_at);
LABEL(ret_insn);
LABEL(se_probe);
LABEL(se_probe32);

SNIPPET(y_syscall, "y_syscall_at: syscall\n y_syscall_next: nop");
LABEL(y_syscall_at);
LABEL(y_syscall_next);
SNIPPET(y_cs, "syscall\n mov %cs, %eax\n mov %ss, %edx");
SNIPPET(y_sysret, "y_sysret_at: sysretq");
SNIPPET(y_sysretl, "y_sysretl_at: sysretl");
SNIPPET(y_sysenter, "y_sysenter_at: sysenter\n y_sysenter_next: mov %cs, %eax\n mov %ss, %edx");
LABEL(y_sysenter_next);
SNIPPET(y_sysexit, ".byte 0x48\n sysexitl");
SNIPPET(y_sysexitl, "sysexitl");
SNIPPET(y_iretq, "iretq");
SNIPPET(y_where, "mov %cs, %eax\n mov %ss, %edx\n pushfq\n pop %rsi");
SNIPPET(y_int, "int $0x80\n y_int_next: nop");
LABEL(y_int_next);

SNIPPET(y32_syscall, ".code32\n syscall\n .code64");
SNIPPET(y32_sysenter, ".code32\n sysenter\n y32_sysenter_next: mov %cs, %eax\n mov %ss, %edx\n .code64");
LABEL(y32_sysenter_next);
SNIPPET(y32_int, ".code32\n mov %cs, %eax\n int $0x80\n y32_int_next: nop\n .code64");
LABEL(y32_int_next);
SNIPPET(y32_where, ".code32\n mov %cs, %eax\n mov %ss, %edx\n .code64");

static void syscall64(void)
{
    struct frame f;
    /* SDM vol. 2B, SYSCALL and SYSRET; vol. 3A, 5.8.8. */
    wrmsr(STAR, (uint64_t)(RT_UCODE32) << 48 | (uint64_t)RT_KCODE64 << 32);
    wrmsr(LSTAR, (uint64_t)sc_probe);
    wrmsr(SFMASK, FL_IF | FL_DF | FL_CF | FL_TF | FL_AC);
    f = rt_user(y_syscall);
    f.rflags |= FL_CF | FL_ZF | FL_DF | FL_IF | FL_AC | FL_OF;
    uint64_t rsp = f.rsp;
    rt_run(&f);
    ok(rt_done(f, y_syscall), "SYSCALL and SYSRET come back");
    is(sc_rcx, rt_alias(y_syscall_next), "RCX is the next instruction");
    is(sc_r11 & 0x3f7fd7, FL_CF | FL_ZF | FL_DF | FL_IF | FL_AC | FL_OF | 2, "R11 has the flags");
    is(sc_rsp, rsp, "RSP is left");
    is(sc_flags & (FL_CF | FL_DF | FL_IF | FL_AC), 0, "SFMASK clears flags");
    is(sc_flags & (FL_ZF | FL_OF), FL_ZF | FL_OF, "and leaves the others");
    is(sc_cs, RT_KCODE64, "CS from STAR[47:32]");
    is(sc_ss, RT_KDATA, "SS is CS + 8");
    is(f.rflags & 0x3e7fd7, FL_CF | FL_ZF | FL_DF | FL_IF | FL_AC | FL_OF | 2,
       "SYSRET restores the flags from R11");
    f = rt_user(y_cs);
    rt_run(&f);
    is(f.rax, RT_UCODE64, "SYSRET: CS is STAR[63:48] + 16, RPL 3");
    is(f.rdx, RT_UDATA, "SYSRET: SS is STAR[63:48] + 8, RPL 3");
    /* RPL of STAR does not matter. */
    wrmsr(STAR, (uint64_t)(RT_UCODE32 & ~3) << 48 | (uint64_t)(RT_KCODE64 | 3) << 32);
    f = rt_user(y_cs);
    rt_run(&f);
    ok(f.rax == RT_UCODE64 && f.rdx == RT_UDATA, "SYSRET forces RPL 3");
    is(sc_cs, RT_KCODE64, "SYSCALL forces RPL 0");
    wrmsr(STAR, (uint64_t)(RT_UCODE32) << 48 | (uint64_t)RT_KCODE64 << 32);
    /* SYSCALL at CPL 0 works as well. */
    wrmsr(LSTAR, (uint64_t)sc_hold);
    f = rt_kernel(y_syscall);
    rt_run(&f);
    trapped(&f, UD, 0, sc_hold_at, "SYSCALL at CPL 0");
    f = rt_user(y_syscall);
    rt_run(&f);
    ok(f.cs == RT_KCODE64 && f.vector == UD && f.rip == (uint64_t)sc_hold_at,
       "SYSCALL ends at LSTAR with CPL 0");
    is(sc_rcx, rt_alias(y_syscall_next), "RCX again");
    /* Not enabled. */
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
    f = rt_user(y_syscall);
    rt_run(&f);
    trapped(&f, UD, 0, y_syscall_at, "SYSCALL without EFER.SCE: #UD");
    f = rt_kernel(y_sysret);
    rt_run(&f);
    trapped(&f, UD, 0, y_sysret, "SYSRET without EFER.SCE: #UD");
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
    f = rt_user(y_sysret);
    rt_run(&f);
    trapped(&f, GP, 0, y_sysret, "SYSRET at CPL 3: #GP");
    /* The flags image: RF and VM are not loaded; reserved bits read as defined. */
    f = rt_kernel(y_sysret);
    f.rcx = rt_alias(y_where);
    f.r11 = 0xffffffffffffffffull & ~(FL_TF | FL_NT);
    f.rsp = rt_user(0).rsp;
    rt_run(&f);
    ok(f.cs == RT_UCODE64 && rt_done(f, y_where), "SYSRET with all flags set in R11");
    is(f.rsi & (FL_VM | FL_RF | 0xffffffffffc08028ull), 0, "VM, RF and reserved bits are clear");
    is(f.rsi & 0x3000, 0x3000, "IOPL is loaded");
    /* A non-canonical RCX: Intel faults before the switch (SDM vol. 2B, SYSRET); AMD after it. */
    f = rt_kernel(y_sysret);
    f.rcx = NONCANONICAL;
    f.r11 = 2;
    rt_run(&f);
    ok(f.vector == GP && f.error == 0, "SYSRET to a non-canonical RIP: #GP(0)");
    if (vendor_intel()) {
        ok((f.cs & 3) == 0 && f.rip == (uint64_t)y_sysret, "  at the SYSRET with CPL 0 (Intel)");
    } else {
        ok((f.cs & 3) == 3 && f.rip == NONCANONICAL, "  at the target with CPL 3 (AMD)");
    }
    /* SYSRET with a 32-bit operand: compatibility mode. */
    f = rt_kernel(y_sysretl);
    f.rcx = 0xdeadbeef00000000ull | rt_alias(y32_where);
    f.r11 = 2 | FL_CF;
    f.rsp = rt_user(0).rsp;
    rt_run(&f);
    ok(rt_done(f, y32_where), "SYSRET to compatibility mode, RCX[63:32] ignored");
    is(f.rax & 0xffff, RT_UCODE32, "CS is STAR[63:48], RPL 3");
    is(f.rdx & 0xffff, RT_UDATA, "SS is STAR[63:48] + 8");
    ok(f.rflags & FL_CF, "flags from R11");
    /* R11 and RCX after a round trip. */
    wrmsr(LSTAR, (uint64_t)sc_probe);
    f = rt_user(y_syscall);
    rt_run(&f);
    is(f.rcx, rt_alias(y_syscall_next), "RCX stays the return address");
}

SNIPPET(y_wrmsr, "y_wrmsr_at: wrmsr");

static void msr_rules(void)
{
    static const struct {
        uint32_t msr;
        const char *text;
    } cases[] = {
        {LSTAR, "LSTAR"}, {CSTAR, "CSTAR"}, {SYSENTER_ESP, "SYSENTER_ESP"}, {SYSENTER_EIP, "SYSENTER_EIP"}};
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        about(cases[i].text);
        uint64_t old = rdmsr(cases[i].msr);
        struct frame f = rt_kernel(y_wrmsr);
        f.rcx = cases[i].msr;
        f.rdx = 0x8000;
        rt_run(&f);
        trapped(&f, GP, 0, y_wrmsr, "a non-canonical address: #GP");
        is(rdmsr(cases[i].msr), old, "unchanged");
        wrmsr(cases[i].msr, 0xffff800012345678ull);
        is(rdmsr(cases[i].msr), 0xffff800012345678ull, "a canonical address reads back");
        wrmsr(cases[i].msr, old);
    }
    about(NULL);
}

static void sysenter(void)
{
    struct frame f;
    /* SDM vol. 2B, SYSENTER and SYSEXIT; on AMD SYSENTER is invalid in long mode (APM vol. 3). */
    if (!vendor_intel()) {
        f = rt_user(y_sysenter);
        rt_run(&f);
        if (f.vector == UD && f.rip == rt_alias(y_sysenter)) {
            ok(true, "SYSENTER in long mode: #UD (AMD)");
            return;
        }
    }
    wrmsr(SYSENTER_CS, 0);
    f = rt_user(y_sysenter);
    rt_run(&f);
    trapped(&f, GP, 0, y_sysenter, "SYSENTER with a null IA32_SYSENTER_CS: #GP(0)");
    static char stack[512] __attribute__((aligned(16)));
    uint64_t top = (uint64_t)stack + sizeof(stack);
    wrmsr(SYSENTER_CS, RT_KCODE64 | 3);
    wrmsr(SYSENTER_ESP, top);
    wrmsr(SYSENTER_EIP, (uint64_t)se_probe);
    f = rt_user(y_sysenter);
    f.rflags |= FL_IF | FL_CF;
    f.rdx = rt_alias(y_sysenter_next);
    f.rcx = f.rsp - 64;
    uint64_t want_rsp = f.rcx;
    rt_run(&f);
    ok(rt_done(f, y_sysenter), "SYSENTER and SYSEXIT with 64-bit operand");
    is(sc_rsp, top, "RSP from the MSR");
    is(sc_cs, RT_KCODE64, "CS from the MSR, RPL 0");
    is(sc_ss, RT_KDATA, "SS is CS + 8");
    ok(!(sc_flags & FL_IF) && (sc_flags & FL_CF), "IF cleared, other flags kept");
    is(f.rax, RT_UCODE64, "SYSEXIT: CS is the MSR's + 32, RPL 3");
    is(f.rdx, RT_UDATA2, "SYSEXIT: SS is the MSR's + 40, RPL 3");
    is(f.rsp, want_rsp, "RSP from RCX");
    ok(!(f.rflags & FL_IF), "SYSEXIT does not restore IF");
    /* From compatibility mode, back with a 32-bit operand. */
    wrmsr(SYSENTER_EIP, (uint64_t)se_probe32);
    f = rt_user32(y32_sysenter);
    f.rdx = rt_alias(y32_sysenter_next);
    f.rcx = f.rsp - 64;
    want_rsp = f.rcx;
    rt_run(&f);
    ok(rt_done(f, y32_sysenter), "SYSENTER and SYSEXIT from compatibility mode");
    is(f.rax & 0xffff, RT_UCODE32, "CS is the MSR's + 16");
    is(f.rdx & 0xffff, RT_UDATA, "SS is the MSR's + 24");
    is(sc_cs, RT_KCODE64, "the kernel ran in 64-bit mode");
    is(f.rsp, want_rsp, "ESP from ECX");
    /* SYSEXIT: rules. */
    f = rt_user(y_sysexit);
    rt_run(&f);
    trapped(&f, GP, 0, y_sysexit, "SYSEXIT at CPL 3: #GP(0)");
    f = rt_kernel(y_sysexit);
    f.rdx = NONCANONICAL;
    rt_run(&f);
    trapped(&f, GP, 0, y_sysexit, "SYSEXIT to a non-canonical RIP: #GP(0)");
    f = rt_kernel(y_sysexit);
    f.rcx = NONCANONICAL;
    rt_run(&f);
    trapped(&f, GP, 0, y_sysexit, "SYSEXIT with a non-canonical RSP: #GP(0)");
    wrmsr(SYSENTER_CS, 0);
    f = rt_kernel(y_sysexitl);
    rt_run(&f);
    trapped(&f, GP, 0, y_sysexitl, "SYSEXIT with a null IA32_SYSENTER_CS: #GP(0)");
    wrmsr(SYSENTER_CS, RT_KCODE64);
}

static void syscall_compat(void)
{
    struct frame f = rt_user32(y32_syscall);
    wrmsr(CSTAR, (uint64_t)sc_entry32);
    rt_run(&f);
    if (vendor_intel()) {
        /* SDM vol. 2B, SYSCALL: only in 64-bit mode. */
        ok(f.vector == UD && f.rip == rt_alias(y32_syscall), "SYSCALL from compatibility mode: #UD (Intel)");
    } else {
        ok(rt_done(f, y32_syscall), "SYSCALL from compatibility mode by CSTAR (AMD)");
        is(sc_cs, RT_KCODE64, "which ran in 64-bit mode");
    }
}

static void int_and_iret(void)
{
    struct frame f;
    rt_gate_dpl(0x80, 3);
    f = rt_user(y_int);
    f.rflags |= FL_IF | FL_CF;
    rt_run(&f);
    trapped(&f, 0x80, 0, y_int_next, "INT n at CPL 3 through a gate of DPL 3");
    ok(f.cs == RT_UCODE64 && f.ss == RT_UDATA && f.rsp == rt_user(0).rsp, "frame has CS, SS, RSP");
    is(f.rflags & 0x3f7fd7, FL_IF | FL_CF | 2, "and the flags");
    is(f.frame_at, rt_tss.rsp[0] - 40, "on RSP0");
    f = rt_user32(y32_int);
    rt_run(&f);
    trapped(&f, 0x80, 0, y32_int_next, "INT n from compatibility mode");
    ok(f.cs == RT_UCODE32 && f.ss == RT_UDATA, "frame has CS and SS");
    is(f.rax & 0xffff, RT_UCODE32, "it ran with the 32-bit CS");
    rt_gate_dpl(0x80, 0);

    /* IRETQ (SDM vol. 2A, IRET; vol. 3A, 6.14.3): pops SS:RSP always, null SS in ring 0 is fine. */
    static uint64_t image[5];
    f = rt_kernel(y_iretq);
    uint64_t to_rsp = f.rsp - 128;
    f.rsp = (uint64_t)image;
    image[0] = (uint64_t)y_where, image[1] = RT_KCODE64, image[2] = 2 | FL_ZF, image[3] = to_rsp,
    image[4] = 0;
    rt_run(&f);
    ok(rt_done(f, y_where), "IRETQ within ring 0 with a null SS");
    is(f.rdx, 0, "SS is null");
    is(f.rsp, to_rsp, "RSP is popped");
    static const struct {
        uint64_t rip_add, cs, ss, error;
        const char *text;
    } bad[] = {
        {0, 0, RT_KDATA, 0, "a null CS: #GP(0)"},
        {0, RT_UCODE64, 0, 0, "to ring 3 with a null SS of RPL 0: #GP"},
        {0, RT_UCODE64, RT_KDATA, RT_KDATA, "to ring 3 with a ring-0 SS: #GP(SS)"},
        {0, RT_KDATA, RT_KDATA, RT_KDATA, "a data segment as CS: #GP(CS)"},
        {0, RT_KCODE64 | 3, RT_UDATA, RT_KCODE64, "CS of DPL 0 with RPL 3: #GP(CS)"},
        {0, 0xfff8, RT_KDATA, 0xfff8, "CS beyond the table: #GP(CS)"},
        {NONCANONICAL, RT_KCODE64, RT_KDATA, 0, "a non-canonical RIP: #GP(0)"},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        about("IRETQ");
        f = rt_kernel(y_iretq);
        f.rsp = (uint64_t)image;
        image[0] = bad[i].rip_add ? bad[i].rip_add : (uint64_t)y_where;
        image[1] = bad[i].cs, image[2] = 2, image[3] = to_rsp, image[4] = bad[i].ss;
        rt_run(&f);
        trapped(&f, GP, bad[i].error, y_iretq, bad[i].text);
        is(f.rsp, (uint64_t)image, "RSP left");
    }
    about(NULL);
    rt_gdt[RT_FREE / 8] = 0x00af1b000000ffff; /* 64-bit code, not present */
    f = rt_kernel(y_iretq);
    f.rsp = (uint64_t)image;
    image[0] = (uint64_t)y_where, image[1] = RT_FREE, image[2] = 2, image[3] = to_rsp, image[4] = RT_KDATA;
    rt_run(&f);
    trapped(&f, NP, RT_FREE, y_iretq, "IRETQ to a CS that is not present: #NP(CS)");
    rt_gdt[RT_FREE / 8] = 0;
    f = rt_kernel(y_iretq);
    f.rflags |= FL_NT;
    f.rsp = (uint64_t)image;
    rt_run(&f);
    trapped(&f, GP, 0, y_iretq, "IRETQ with NT set in long mode: #GP(0)");
    /* IRET at CPL 3 can't raise privilege or IOPL, nor change IF. */
    f = rt_user(y_iretq);
    f.rsp = rt_alias(image);
    image[0] = rt_alias(y_where), image[1] = RT_UCODE64, image[2] = 2 | 0x3000 | FL_IF | FL_CF,
    image[3] = rt_user(0).rsp, image[4] = RT_UDATA;
    rt_run(&f);
    ok(rt_done(f, y_where), "IRETQ within ring 3");
    is(f.rsi & (0x3000 | FL_IF | FL_CF), FL_CF, "which changes neither IOPL nor IF");
    f = rt_user(y_iretq);
    f.rsp = rt_alias(image);
    image[1] = RT_KCODE64, image[4] = RT_KDATA;
    rt_run(&f);
    trapped(&f, GP, RT_KCODE64, y_iretq, "IRETQ from ring 3 to ring 0: #GP(CS)");
    /* From ring 0 to compatibility mode. */
    f = rt_kernel(y_iretq);
    f.rsp = (uint64_t)image;
    image[0] = rt_alias(y32_where), image[1] = RT_UCODE32, image[2] = 2, image[3] = rt_user(0).rsp,
    image[4] = RT_UDATA;
    rt_run(&f);
    ok(rt_done(f, y32_where) && (f.rax & 0xffff) == RT_UCODE32, "IRETQ to compatibility mode");
    /* IRET to a less privileged ring nulls data segments of a higher privilege (SDM vol. 2A, IRET). */
    uint64_t ds;
    asm volatile("mov %0, %%es" ::"r"(RT_KDATA));
    f = rt_user(y_where);
    rt_run(&f);
    asm volatile("mov %%es, %0" : "=r"(ds));
    is(ds & 0xffff, 0, "a ring-0 ES is nulled on the way to ring 3");
    asm volatile("mov %0, %%es" ::"r"(RT_UDATA));
    f = rt_user(y_where);
    rt_run(&f);
    asm volatile("mov %%es, %0" : "=r"(ds));
    is(ds & 0xffff, RT_UDATA, "a ring-3 ES stays");
    asm volatile("mov %0, %%es" ::"r"(0));
}

static void many(void)
{
    /* A loop of system calls in user mode: state must survive each. */
    extern char y_loop[], y_loop_end[];
    wrmsr(LSTAR, (uint64_t)sc_probe);
    struct frame f = rt_user(y_loop);
    f.rbx = 20000;
    f.rsi = 0;
    rt_run(&f);
    ok(rt_done_at(&f, y_loop_end), "20,000 system calls");
    is(f.rsi, 20000, "each returned");
    is(f.rbx, 0, "registers survive");
}
SNIPPET(y_loop, "1: syscall\n inc %rsi\n dec %rbx\n jnz 1b");

void test_main(void)
{
    syscall64();
    msr_rules();
    sysenter();
    syscall_compat();
    int_and_iret();
    many();
}
