/*
 * Debug exceptions: single step, breakpoints, general detect (SDM vol. 3B, chapter 17).
 */
#include "rt/rt.h"

/* Steps over a snippet with TF and notes each RIP. */
static uint64_t trace[256], trace_dr6[256];
static unsigned traced;

static bool on_db(struct frame *f)
{
    if (traced < 256) {
        trace[traced] = f->rip;
        trace_dr6[traced] = read_dr6();
    }
    traced++;
    write_dr6(0xffff0ff0);
    return traced < 256;
}

static void step(const void *code, struct frame *f)
{
    traced = 0;
    write_dr6(0xffff0ff0);
    f->rflags |= FL_TF;
    rt_on(DB, on_db);
    rt_run(f);
    rt_on(DB, NULL);
}

static bool traced_as(const uint64_t *want, unsigned n)
{
    bool same = traced == n;
    for (unsigned i = 0; i < n && i < traced; i++) {
        same &= trace[i] == want[i] || trace[i] == want[i] + RT_ALIAS;
    }
    if (!same) {
        for (unsigned i = 0; i < traced && i < 20; i++) {
            rt_printf("# step %u: rip %lx, want %lx\n", i, trace[i], i < n ? want[i] : 0);
        }
    }
    return same;
}
#define WANT(...) traced_as((uint64_t[]){__VA_ARGS__}, sizeof((uint64_t[]){__VA_ARGS__}) / 8)

SNIPPET(d_plain, "nop\n d1: mov $1, %eax\n d2: lea 5(%rax), %rcx\n d3: push %rax\n d4: pop %rdx");
LABEL(d1);
LABEL(d2);
LABEL(d3);
LABEL(d4);
SNIPPET(d_jump, "jmp 1f\n nop\n 1: d_j1: call 2f\n d_j2: jmp 3f\n 2: d_j3: ret\n 3:");
LABEL(d_j1);
LABEL(d_j2);
LABEL(d_j3);
SNIPPET(d_movss, "mov %ss, %eax\n d_m1: mov %eax, %ss\n d_m2: nop\n d_m3: nop");
LABEL(d_m1);
LABEL(d_m3);
SNIPPET(d_rep, "rep movsb\n d_r1: nop");
LABEL(d_r1);
SNIPPET(d_popf, "pushq $2\n d_p1: popfq\n d_p2: nop\n nop");
LABEL(d_p1);
LABEL(d_p2);
SNIPPET(d_popf_on, "pushq $0x102\n popfq\n d_po1: nop\n d_po2: pushq $2\n d_po3: popfq\n d_po4: nop");
LABEL(d_po2);
LABEL(d_po3);
LABEL(d_po4);
SNIPPET(d_int3, "nop\n d_i1: int3\n d_i2: nop");
LABEL(d_i1);
LABEL(d_i2);
SNIPPET(d_pushf, "pushfq\n d_pf1: pop %rax");
LABEL(d_pf1);
SNIPPET(d_fault, "nop\n d_f1: mov (%rbx), %eax");
LABEL(d_f1);
SNIPPET(d_loop, "mov $3, %ecx\n d_l1: dec %ecx\n d_l2: jnz d_l1");
LABEL(d_l1);
LABEL(d_l2);
SNIPPET(d_syscall, "d_s0: syscall\n d_s1: nop");
LABEL(d_s1);
asm(".text\n d_sc: d_sc0: nop\n d_sc1: sysretq\n");
LABEL(d_sc);
LABEL(d_sc1);
SNIPPET(d_cpuid, "xor %eax, %eax\n d_c1: cpuid\n d_c2: rdtsc\n d_c3: mov %cr0, %rax\n d_c4: nop");
LABEL(d_c1);
LABEL(d_c2);
LABEL(d_c3);
LABEL(d_c4);

static bool on_bp(struct frame *f)
{
    return true;
}

static void single_step(void)
{
    struct frame f = rt_kernel(d_plain);
    step(d_plain, &f);
    ok(WANT((uint64_t)d1, (uint64_t)d2, (uint64_t)d3, (uint64_t)d4, (uint64_t)d_plain_end),
       "TF: #DB after each instruction, RIP of the next");
    ok((trace_dr6[0] & 0xe00f) == 0x4000, "DR6.BS");
    ok(f.rflags & FL_TF, "TF is in the frame");
    f = rt_user(d_plain);
    step(d_plain, &f);
    ok(WANT((uint64_t)d1, (uint64_t)d2, (uint64_t)d3, (uint64_t)d4, (uint64_t)d_plain_end),
       "TF in user mode");
    f = rt_kernel(d_jump);
    step(d_jump, &f);
    ok(WANT((uint64_t)d_j1, (uint64_t)d_j3, (uint64_t)d_j2, (uint64_t)d_jump_end), "TF over jmp, call, ret");
    f = rt_kernel(d_loop);
    step(d_loop, &f);
    ok(WANT((uint64_t)d_l1, (uint64_t)d_l2, (uint64_t)d_l1, (uint64_t)d_l2, (uint64_t)d_l1, (uint64_t)d_l2,
            (uint64_t)d_loop_end),
       "TF over a loop");
    f = rt_kernel(d_movss);
    step(d_movss, &f);
    ok(WANT((uint64_t)d_m1, (uint64_t)d_m3, (uint64_t)d_movss_end),
       "MOV SS holds the trap back by one instruction");
    static uint8_t from[8] = {1, 2, 3, 4}, to[8];
    f = rt_kernel(d_rep);
    f.rcx = 3;
    f.rsi = (uint64_t)from;
    f.rdi = (uint64_t)to;
    step(d_rep, &f);
    ok(WANT((uint64_t)d_rep, (uint64_t)d_rep, (uint64_t)d_r1, (uint64_t)d_rep_end),
       "REP MOVSB: a trap after each iteration");
    f = rt_kernel(d_popf);
    step(d_popf, &f);
    ok(WANT((uint64_t)d_p1, (uint64_t)d_p2), "POPF that clears TF still traps behind itself");
    f = rt_kernel(d_popf_on);
    traced = 0;
    rt_on(DB, on_db);
    rt_run(&f);
    rt_on(DB, NULL);
    ok(WANT((uint64_t)d_po2, (uint64_t)d_po3, (uint64_t)d_po4),
       "POPF that sets TF traps one instruction later");
    rt_on(BP, on_bp);
    f = rt_kernel(d_int3);
    step(d_int3, &f);
    rt_on(BP, NULL);
    ok(WANT((uint64_t)d_i1, (uint64_t)d_int3_end),
       "INT3 under TF: no trap in the handler, nor right behind its IRET");
    f = rt_kernel(d_pushf);
    step(d_pushf, &f);
    ok(f.rax & FL_TF, "PUSHF stores TF");
    f = rt_kernel(d_fault);
    f.rbx = RT_ARENA;
    step(d_fault, &f);
    ok(f.vector == PF && traced == 1, "a faulting instruction does not trap");
    f = rt_kernel(d_cpuid);
    step(d_cpuid, &f);
    ok(WANT((uint64_t)d_c1, (uint64_t)d_c2, (uint64_t)d_c3, (uint64_t)d_c4, (uint64_t)d_cpuid_end),
       "TF over cpuid, rdtsc, mov from cr0");
    /* SYSCALL: SFMASK decides whether the handler is stepped; the trap behind SYSCALL is taken with TF as it
     * became. */
    wrmsr(0xc0000081, (uint64_t)RT_UCODE32 << 48 | (uint64_t)RT_KCODE64 << 32);
    wrmsr(0xc0000082, (uint64_t)d_sc);
    wrmsr(0xc0000084, FL_TF | FL_IF);
    f = rt_user(d_syscall);
    step(d_syscall, &f);
    ok(traced >= 1 && trace[traced - 1] == rt_alias(d_syscall_end), "SYSCALL under TF comes back stepping");
    bool inside = false;
    for (unsigned i = 0; i < traced && i < 256; i++) {
        inside |= trace[i] == (uint64_t)d_sc1;
    }
    ok(!inside, "the handler is not stepped when SFMASK clears TF");
}

static uint64_t data[4] __attribute__((aligned(64)));

SNIPPET(b_exec, "nop\n b_at: mov $1, %eax\n nop");
LABEL(b_at);
SNIPPET(b_write, "mov %eax, (%rbx)\n b_w1: nop");
LABEL(b_w1);
SNIPPET(b_read, "mov (%rbx), %eax\n b_r1: nop");
LABEL(b_r1);
SNIPPET(b_write8, "movb $1, (%rbx)\n b_b1: nop");
LABEL(b_b1);
SNIPPET(b_rep, "rep stosb\n b_s1: nop");
LABEL(b_s1);
SNIPPET(b_push, "push %rax\n b_p1: nop");
LABEL(b_p1);

static uint64_t dr7_of(unsigned n, unsigned type, unsigned len)
{
    return 0x400 | 1ull << (2 * n) | (uint64_t)(type | len << 2) << (16 + 4 * n);
}

static void breakpoints(void)
{
    struct frame f;
    for (unsigned n = 0; n < 4; n++) {
        static const char *const names[] = {"DR0", "DR1", "DR2", "DR3"};
        about(names[n]);
        n == 0   ? write_dr0((uint64_t)b_at)
        : n == 1 ? write_dr1((uint64_t)b_at)
        : n == 2 ? write_dr2((uint64_t)b_at)
                 : write_dr3((uint64_t)b_at);
        write_dr6(0xffff0ff0);
        write_dr7(dr7_of(n, 0, 0));
        f = rt_kernel(b_exec);
        rt_run(&f);
        write_dr7(0x400);
        trapped(&f, DB, 0, b_at, "execution breakpoint is a fault");
        is(f.rax, 0, "the instruction has not run");
        is(read_dr6() & 0xe00f, 1u << n, "DR6 says which");
        /* RF (17.3.1.1): IRET with RF set passes the breakpoint once. */
        write_dr7(dr7_of(n, 0, 0));
        f = rt_kernel(b_at);
        f.rflags |= FL_RF;
        rt_run(&f);
        write_dr7(0x400);
        ok(rt_done(f, b_exec) && f.rax == 1, "RF passes it");
        uint64_t at = (uint64_t)&data[1];
        n == 0 ? write_dr0(at) : n == 1 ? write_dr1(at) : n == 2 ? write_dr2(at) : write_dr3(at);
        static const struct {
            const char *code, *next;
            unsigned type, len;
            int offset;
            bool hit;
            const char *text;
        } cases[] = {
            {b_write, b_w1, 1, 3, 0, true, "write breakpoint, 4 bytes: a trap behind the store"},
            {b_read, b_r1, 1, 3, 0, false, "write breakpoint: reads pass"},
            {b_read, b_r1, 3, 3, 0, true, "read-write breakpoint: a read"},
            {b_write, b_w1, 3, 3, 0, true, "read-write breakpoint: a write"},
            {b_write, b_w1, 1, 0, -3, true, "1 byte: a store that reaches it"},
            {b_write, b_w1, 1, 0, -4, false, "1 byte: a store that ends before it"},
            {b_write8, b_b1, 1, 3, 3, true, "4 bytes: a store to the last one"},
            {b_write8, b_b1, 1, 3, 4, false, "4 bytes: a store behind"},
            {b_write8, b_b1, 1, 2, 7, true, "8 bytes: a store to the last one"},
            {b_write8, b_b1, 1, 1, 1, true, "2 bytes: a store to the last one"},
            {b_write8, b_b1, 1, 1, 2, false, "2 bytes: a store behind"},
        };
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            write_dr6(0xffff0ff0);
            f = rt_kernel(cases[i].code);
            f.rbx = at + (uint64_t)cases[i].offset;
            write_dr7(dr7_of(n, cases[i].type, cases[i].len));
            rt_run(&f);
            write_dr7(0x400);
            if (cases[i].hit) {
                trapped(&f, DB, 0, cases[i].next, cases[i].text);
                is(read_dr6() & 0xe00f, 1u << n, "DR6 says which");
            } else {
                ok(f.vector == UD, cases[i].text);
            }
        }
    }
    about(NULL);
    write_dr0((uint64_t)&data[1] + 2);
    write_dr7(dr7_of(0, 1, 0));
    f = rt_kernel(b_rep);
    f.rdi = (uint64_t)&data[1];
    f.rcx = 8;
    rt_run(&f);
    write_dr7(0x400);
    ok(f.vector == DB && (f.rip == (uint64_t)b_rep ? f.rcx == 5 : f.rip == (uint64_t)b_s1),
       "a data breakpoint inside REP STOSB");
    f = rt_kernel(b_push);
    write_dr0(f.rsp - 8);
    write_dr7(dr7_of(0, 1, 2));
    rt_run(&f);
    write_dr7(0x400);
    trapped(&f, DB, 0, b_p1, "a data breakpoint on the stack, by push");
    /* User mode. */
    write_dr0(rt_alias(b_at));
    write_dr7(dr7_of(0, 0, 0));
    f = rt_user(b_exec);
    rt_run(&f);
    write_dr7(0x400);
    trapped(&f, DB, 0, b_at, "execution breakpoint in user mode");
    write_dr0(rt_alias(&data[1]));
    write_dr7(dr7_of(0, 1, 2));
    f = rt_user(b_write);
    f.rbx = rt_alias(&data[1]);
    rt_run(&f);
    write_dr7(0x400);
    trapped(&f, DB, 0, b_w1, "write breakpoint in user mode");
    /* Disabled ones are silent; DR6 may still be set (17.2.3), so it is not looked at. */
    f = rt_kernel(b_write);
    f.rbx = (uint64_t)&data[1];
    rt_run(&f);
    ok(rt_done(f, b_write), "a disabled breakpoint is silent");
}

SNIPPET(g_read, "g_at: mov %dr0, %rax");
SNIPPET(g_dr4, "g_dr4_at: mov %db4, %rax");
SNIPPET(g_dr7, "g_dr7_at: mov %rax, %dr7");
SNIPPET(g_dr6, "g_dr6_at: mov %rax, %dr6");

static void registers(void)
{
    struct frame f;
    write_dr6(0xffff0ff0);
    write_dr7(0x2400);
    f = rt_kernel(g_read);
    rt_run(&f);
    trapped(&f, DB, 0, g_read, "DR7.GD: an access to a debug register is #DB, a fault");
    ok(read_dr6() & 0x2000, "DR6.BD");
    ok(!(read_dr7() & 0x2000), "GD is cleared on entry to the handler");
    f = rt_user(g_read);
    rt_run(&f);
    trapped(&f, GP, 0, g_read, "mov from DR0 at CPL 3: #GP");
    write_cr4(read_cr4() | 8);
    f = rt_kernel(g_dr4);
    rt_run(&f);
    trapped(&f, UD, 0, g_dr4, "DR4 with CR4.DE: #UD");
    write_cr4(read_cr4() & ~8ull);
    f = rt_kernel(g_dr4);
    rt_run(&f);
    ok(rt_done(f, g_dr4) && f.rax == read_dr6(), "DR4 without CR4.DE is DR6");
    f = rt_kernel(g_dr7);
    f.rax = 1ull << 32;
    rt_run(&f);
    trapped(&f, GP, 0, g_dr7, "DR7 bit 32: #GP");
    f = rt_kernel(g_dr6);
    f.rax = 1ull << 32;
    rt_run(&f);
    trapped(&f, GP, 0, g_dr6, "DR6 bit 32: #GP");
    write_dr7(0);
    is(read_dr7(), 0x400, "DR7 bit 10 reads 1");
    write_dr6(0);
    is(read_dr6() & 0xfffe0ff0, 0xfffe0ff0, "DR6's fixed bits read 1"); /* bit 16 is RTM */
    write_dr0(0x123456789abcdef0);
    is(read_dr0(), 0x123456789abcdef0, "DR0 holds 64 bits");
    write_dr0(0);
}

void test_main(void)
{
    single_step();
    breakpoints();
    registers();
}
