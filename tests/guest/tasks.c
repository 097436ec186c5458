/*
 * Hardware task switches (SDM vol. 3A, ch. 7): JMP, CALL, INT and exceptions through TSS descriptors and task
 * gates, IRET with NT, back links, busy bits, what is saved and loaded, and what is refused before and after
 * the switch.
 */
#include "rt32/rt32.h"

#define TASK     SEL_FREE          /* the other task's TSS */
#define GATE     (SEL_FREE + 0x08) /* a task gate to it */
#define TASK16   (SEL_FREE + 0x10) /* a 16-bit TSS */
#define LDT      (SEL_FREE + 0x18)
#define ABSENT   (SEL_FREE + 0x20) /* data of level 3, not present */
#define ABSENT_C (SEL_FREE + 0x28)
#define VECTOR   0x61

static struct tss32 task;
static struct {
    uint16_t link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds,
        ldt;
} __attribute__((packed)) task16;
static uint8_t stack0[1024] __attribute__((aligned(16))), stack3[1024] __attribute__((aligned(16)));
static uint64_t ldt[2];
static uint32_t directory[2][1024] __attribute__((aligned(4096)));

SNIPPET(t_call, "lcall $0x30, $0\n t_call_next: nop\n str %edx");
LABEL(t_call_next);
SNIPPET(t_jump, "ljmp $0x30, $0\n t_jump_next: nop\n str %edx");
LABEL(t_jump_next);
SNIPPET(t_gate, "lcall $0x3b, $0\n t_gate_next: nop\n str %edx");
LABEL(t_gate_next);
SNIPPET(t_gate_jump, "ljmp $0x3b, $0");
SNIPPET(t_int, "int $0x61\n t_int_next: nop\n str %edx");
LABEL(t_int_next);
SNIPPET(t_call16, "lcall $0x40, $0\n t_call16_next: nop\n str %edx");
LABEL(t_call16_next);
SNIPPET(t_self, "lcall $0x28, $0");
SNIPPET(t_ldt_selector, "lcall $0x34, $0");
/* Sets NT itself: the IRET of rt_run() would take it as its own. */
SNIPPET(t_nested, "pushf\n orl $0x4000, (%esp)\n popf\n t_nested_at: iret");
LABEL(t_nested_at);
SNIPPET(t_fault, "mov $0xfff8, %ecx\n t_fault_at: mov %ecx, %es\n t_fault_next: nop");
LABEL(t_fault_at);
LABEL(t_fault_next);

/* The other task. What it starts with is in the struct; it notes what it finds. */
SNIPPET(u_stop, "nop");
SNIPPET(u_back, "str %ebx\n iret\n u_back_again: nop");
LABEL(u_back_again);
SNIPPET(u_jump_back, "ljmp $0x28, $0\n u_jump_back_again: nop");
LABEL(u_jump_back_again);
SNIPPET(u_error, "pop %eax\n movl $t_fault_next, (%edi)\n iret");
SNIPPET(u_memory, "mov 0x400000, %eax\n iret");

static unsigned type_of(uint32_t selector)
{
    return (unsigned)(rt_gdt[selector / 8] >> 40) & 0xf;
}

/* Both tasks as they are before a test: ours runs, the other one is available and starts at code, at CPL 0.
 */
static void reset(const void *code)
{
    memset(&task, 0, offsetof(struct tss32, map));
    task.ss0 = SEL_KDATA;
    task.esp0 = ADDRESS(stack0) + sizeof(stack0);
    task.esp = ADDRESS(stack0) + sizeof(stack0) - 512;
    task.cs = SEL_KCODE;
    task.ss = task.ds = task.es = SEL_KDATA;
    task.eip = ADDRESS(code);
    task.eflags = FL_FIXED;
    task.iomap = offsetof(struct tss32, map);
    rt_tss.link = 0xeeee;
    rt_gdt[TASK / 8] = rt_desc(ADDRESS(&task), 0x67, 0x89, 0);
    rt_gdt[GATE / 8] = rt_gate(TASK, 0, 0xe5, 0);
    rt_idt[VECTOR] = rt_gate(TASK, 0, 0xe5, 0);
    rt_ltr(SEL_TSS);
    uint32_t none = 0;
    asm volatile("lldt %w0" ::"r"(none));
    asm volatile("clts");
}

/* The same with the other task at CPL 3, so that what fails there finds a stack. */
static void reset3(const void *code)
{
    reset(code);
    task.cs = SEL_UCODE;
    task.ss = task.ds = task.es = SEL_UDATA;
    task.esp = ADDRESS(stack3) + sizeof(stack3);
}

static uint16_t running(void)
{
    uint16_t tr;
    asm volatile("str %0" : "=r"(tr));
    return tr;
}

static uint32_t cr0(void)
{
    uint32_t v;
    asm volatile("mov %%cr0, %0" : "=r"(v));
    return v;
}

static struct regs go(const void *code)
{
    struct regs r = rt_kernel(code);
    r.eax = 0x1010, r.ebx = 0x2020, r.ecx = 0x3030, r.esi = 0x4040, r.edi = 0x5050, r.ebp = 0x6060;
    r.eflags |= FL_DF;
    rt_run(&r);
    return r;
}

static void switches(void)
{
    about("CALL to a TSS");
    reset(u_stop);
    task.eax = 0xa, task.ecx = 0xc, task.edx = 0xd, task.ebx = 0xb, task.ebp = 0xe, task.esi = 0x51,
    task.edi = 0xd1;
    task.fs = SEL_UDATA;
    struct regs r = go(t_call);
    uint32_t esp = rt_kernel(t_call).esp;
    trapped(&r, UD, 0, ADDRESS(u_stop_end), "the task runs (7.3)");
    is(running(), TASK, "TR names it");
    ok(r.eax == 0xa && r.ecx == 0xc && r.edx == 0xd && r.ebx == 0xb && r.ebp == 0xe && r.esi == 0x51 &&
           r.edi == 0xd1 && r.fs == SEL_UDATA && r.esp == task.esp,
       "with its registers");
    ok(type_of(SEL_TSS) == 0xb && type_of(TASK) == 0xb, "both tasks are busy (table 7-2)");
    is(r.eflags & (FL_NT | FL_DF), FL_NT, "NT is set, other flags are its own");
    is(task.link, SEL_TSS, "the back link names the caller");
    ok(cr0() & 8, "CR0.TS is set");
    ok(rt_tss.eip == ADDRESS(t_call_next) && rt_tss.eax == 0x1010 && rt_tss.ebx == 0x2020 &&
           rt_tss.ecx == 0x3030 && rt_tss.esi == 0x4040 && rt_tss.edi == 0x5050 && rt_tss.ebp == 0x6060 &&
           rt_tss.esp == esp,
       "the caller's registers are in its TSS");
    ok((rt_tss.eflags & (FL_DF | FL_NT)) == FL_DF && (rt_tss.cs & 0xffff) == SEL_KCODE &&
           (rt_tss.ds & 0xffff) == SEL_KDATA,
       "flags, without NT, and segments too");
    is(rt_tss.link, 0xeeee, "its own link is left");

    about("IRET with NT");
    reset(u_back);
    r = go(t_call);
    trapped(&r, UD, 0, ADDRESS(t_call_end), "goes back");
    ok((r.edx & 0xffff) == SEL_TSS && r.eax == 0x1010 && r.ebx == 0x2020 && r.esp == esp &&
           (r.eflags & FL_DF),
       "to the caller as it was");
    is(r.eflags & FL_NT, 0, "without NT");
    ok(type_of(SEL_TSS) == 0xb && type_of(TASK) == 9, "the callee is available again");
    ok(task.eip == ADDRESS(u_back_again) && task.ebx == TASK,
       "its TSS has where it goes on, and its registers");
    is(task.eflags & FL_NT, 0, "with NT clear in the saved flags (7.4)");
    r = go(t_call);
    trapped(&r, UD, 0, ADDRESS(u_back_end), "the next CALL goes on there");

    about("JMP to a TSS");
    reset(u_stop);
    task.link = 0x7777;
    r = go(t_jump);
    trapped(&r, UD, 0, ADDRESS(u_stop_end), "the task runs");
    ok(type_of(SEL_TSS) == 9 && type_of(TASK) == 0xb, "the old task is available");
    ok(!(r.eflags & FL_NT) && task.link == 0x7777, "no NT, no back link");
    reset(u_jump_back);
    r = go(t_jump);
    trapped(&r, UD, 0, ADDRESS(t_jump_end), "and back by another JMP");
    ok((r.edx & 0xffff) == SEL_TSS && task.eip == ADDRESS(u_jump_back_again) && type_of(TASK) == 9,
       "the same the other way");

    about("task gate");
    reset(u_back);
    r = go(t_gate);
    trapped(&r, UD, 0, ADDRESS(t_gate_end), "CALL and IRET");
    is(rt_tss.eip, ADDRESS(t_gate_next), "EIP was saved");
    reset(u_stop);
    r = go(t_gate_jump);
    trapped(&r, UD, 0, ADDRESS(u_stop_end), "JMP");
    reset(u_stop);
    r = rt_user(t_gate);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(u_stop_end), "from CPL 3 by a gate of DPL 3 to a TSS of DPL 0 (7.2.5)");
    ok(r.cs == SEL_KCODE && (rt_tss.cs & 0xffff) == SEL_UCODE && (rt_tss.ss & 0xffff) == SEL_UDATA,
       "to CPL 0");
    reset(u_back);
    r = rt_user(t_int);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(t_int_end), "INT n from CPL 3, and IRET");
    ok(r.cs == SEL_UCODE && r.ss == SEL_UDATA && (r.edx & 0xffff) == SEL_TSS, "back to CPL 3");
    reset(u_back);
    r = go(t_int);
    trapped(&r, UD, 0, ADDRESS(t_int_end), "INT n");
    ok(rt_tss.eip == ADDRESS(t_int_next) && task.link == SEL_TSS, "with a back link");
    reset(u_error);
    rt_idt[GP] = rt_gate(TASK, 0, 0x85, 0);
    task.edi = ADDRESS(&rt_tss.eip);
    r = go(t_fault);
    trapped(&r, UD, 0, ADDRESS(t_fault_end), "a fault");
    is(task.eax, 0xfff8, "the error code was on the task's stack (6.13)");
    is(task.esp, ADDRESS(stack0) + sizeof(stack0) - 512, "and nothing else");
    rt_idt_default(GP, 0);
}

static void more_state(void)
{
    about("16-bit TSS");
    reset(u_stop);
    rt_gdt[TASK16 / 8] = rt_desc(ADDRESS(&task16), sizeof(task16) - 1, 0x81, 0);
    uint32_t code16 = SEL_FREE + 0x30;
    rt_gdt[code16 / 8] = rt_desc(ADDRESS(u_back), 0xffff, 0x9b, 4);
    rt_gdt[code16 / 8 + 1] = rt_desc(ADDRESS(stack0), 0xffff, 0x93, 0);
    memset(&task16, 0, sizeof(task16));
    task16.cs = (uint16_t)code16;
    task16.ss = (uint16_t)(code16 + 8);
    task16.ds = task16.es = SEL_KDATA;
    task16.flags = FL_FIXED;
    task16.ax = 0x5678;
    task16.sp = sizeof(stack0);
    struct regs r = go(t_call16);
    trapped(&r, UD, 0, ADDRESS(t_call16_end), "CALL and IRET");
    ok(task16.link == SEL_TSS && task16.bx == TASK16 && task16.ip == u_back_again - u_back &&
           task16.ax == 0x5678,
       "what it saves are words");
    is(type_of(TASK16), 1, "it is available again");

    about("LDT");
    reset(u_stop);
    ldt[0] = rt_gdt[SEL_KDATA / 8];
    ldt[1] = rt_desc(0x1000, 0xffff, 0x93, 0);
    rt_gdt[LDT / 8] = rt_desc(ADDRESS(ldt), sizeof(ldt) - 1, 0x82, 0);
    task.ldt = LDT;
    task.gs = 0xc;
    r = go(t_call);
    uint16_t ldtr;
    asm volatile("sldt %0" : "=r"(ldtr));
    ok(r.vector == UD && ldtr == LDT && r.gs == 0xc, "LDTR is loaded first, then what selects from it (7.3)");

    about("debug registers");
    reset(u_stop);
    uint32_t dr7 = 0x355;
    asm volatile("mov %0, %%dr7" ::"r"(dr7 | 0xaa));
    asm volatile("mov %0, %%dr0\n mov %0, %%dr1\n mov %0, %%dr2\n mov %0, %%dr3" ::"r"(0xfffffff0));
    r = go(t_call);
    asm volatile("mov %%dr7, %0" : "=r"(dr7));
    is(dr7 & 0x1ff, 0xaa, "L0 to L3 and LE are cleared (vol. 3B, 17.2.4)");
    asm volatile("mov %0, %%dr7" ::"r"(0x400));
    reset(u_stop);
    task.trap = 1;
    r = go(t_call);
    trapped(&r, DB, 0, ADDRESS(u_stop), "T: #DB before the first instruction (7.2.1)");
    uint32_t dr6;
    asm volatile("mov %%dr6, %0" : "=r"(dr6));
    is(dr6 & 0x8000, 0x8000, "DR6.BT");
    asm volatile("mov %0, %%dr6" ::"r"(0));

    about("CR3");
    reset(u_memory);
    for (unsigned i = 0; i < 2; i++) {
        directory[i][0] = 0x83;
        directory[i][1] = 0x83; /* 4 MiB pages: the second one shows the first in one, itself in the other */
    }
    directory[1][1] = 0x400083;
    *(volatile uint32_t *)0x400000 = 0x0ddba11;
    uint32_t cr4, old_cr0 = cr0(), before = *(volatile uint32_t *)0;
    *(volatile uint32_t *)0 = 0x1234;
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" ::"r"(cr4 | 0x10));
    asm volatile("mov %0, %%cr3" ::"r"(directory[0]));
    asm volatile("mov %0, %%cr0" ::"r"(old_cr0 | 0x80000000));
    task.cr3 = ADDRESS(directory[1]);
    rt_tss.cr3 = ADDRESS(directory[0]);
    uint32_t here = *(volatile uint32_t *)0x400000, back;
    r = go(t_call);
    back = *(volatile uint32_t *)0x400000;
    asm volatile("mov %0, %%cr0" ::"r"(old_cr0));
    asm volatile("mov %0, %%cr4" ::"r"(cr4));
    *(volatile uint32_t *)0 = before;
    ok(r.vector == UD && task.eax == 0x0ddba11 && here == 0x1234, "is loaded, and the TLB with it (7.3)");
    is(back, 0x1234, "on the way back too");
    rt_tss.cr3 = 0;
}

/* Refused: everything stays in the old task. */
static void refused(void)
{
    about("refused");
    reset(u_stop);
    struct regs r = go(t_self);
    trapped(&r, GP, SEL_TSS, ADDRESS(t_self), "a CALL to the running, busy task: #GP(TSS) (table 7-1)");
    r = go(t_ldt_selector);
    trapped(&r, GP, TASK + 4, ADDRESS(t_ldt_selector), "a selector of the LDT: #GP(selector)");
    rt_gdt[TASK / 8] = rt_desc(ADDRESS(&task), 0x66, 0x89, 0);
    r = go(t_call);
    trapped(&r, TS, TASK, ADDRESS(t_call), "a limit below 67H: #TS(TSS)");
    is(running(), SEL_TSS, "in the old task");
    rt_gdt[TASK / 8] = rt_desc(ADDRESS(&task), 0x67, 0x09, 0);
    r = go(t_call);
    trapped(&r, NP, TASK, ADDRESS(t_call), "not present: #NP(TSS)");
    reset(u_stop);
    r = rt_user(t_call);
    rt_run(&r);
    trapped(&r, GP, TASK, ADDRESS(t_call), "a TSS of DPL 0 from CPL 3: #GP(TSS)");
    rt_gdt[GATE / 8] = rt_gate(TASK, 0, 0x85, 0);
    r = rt_user(t_gate);
    rt_run(&r);
    trapped(&r, GP, GATE, ADDRESS(t_gate), "a gate of DPL 0 from CPL 3: #GP(gate)");
    rt_gdt[GATE / 8] = rt_gate(TASK, 0, 0x65, 0);
    r = go(t_gate);
    trapped(&r, NP, GATE, ADDRESS(t_gate), "a gate that is not present: #NP(gate)");
    rt_gdt[GATE / 8] = rt_gate(SEL_KCODE, 0, 0xe5, 0);
    r = rt_kernel(t_gate_jump);
    rt_run(&r);
    trapped(&r, GP, SEL_KCODE, ADDRESS(t_gate_jump), "a gate to what is no TSS: #GP(selector)");
    rt_idt[VECTOR] = rt_gate(SEL_TSS, 0, 0x85, 0);
    r = go(t_int);
    trapped(&r, GP, SEL_TSS, ADDRESS(t_int), "INT n to a busy task: #GP(TSS)");
    about("IRET with NT, refused");
    static const struct {
        uint16_t link;
        const char *text;
    } links[] = {
        {TASK, "the back link names a task that isn't busy: #TS(TSS)"},
        {SEL_KCODE, "no TSS at all: #TS(selector)"},
        {0x200, "beyond the table: #TS(selector)"},
        {TASK + 4, "a selector of the LDT: #TS(selector)"},
    };
    for (unsigned i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
        reset(u_stop);
        rt_tss.link = links[i].link;
        r = go(t_nested);
        trapped(&r, TS, links[i].link & ~3u, ADDRESS(t_nested_at), links[i].text);
        is(r.eflags & FL_NT, FL_NT, "NT stays");
    }
}

/* The switch is made; what can't be loaded is the new task's exception. */
static void half_way(void)
{
    about("new task");
    static const struct {
        size_t at;
        uint32_t value;
        unsigned vector;
        uint32_t error;
        const char *text;
    } bad[] = {
        {offsetof(struct tss32, ldt), SEL_KDATA, TS, SEL_KDATA, "LDT: not an LDT: #TS(LDT) (table 7-1)"},
        {offsetof(struct tss32, cs), SEL_UDATA, TS, SEL_UDATA & ~3u, "CS: data: #TS(CS)"},
        {offsetof(struct tss32, cs), SEL_KCODE | 3, TS, SEL_KCODE, "CS: DPL is not RPL: #TS(CS)"},
        {offsetof(struct tss32, cs), ABSENT_C | 3, NP, ABSENT_C, "CS: not present: #NP(CS)"},
        {offsetof(struct tss32, ss), SEL_UCODE, TS, SEL_UCODE & ~3u, "SS: code: #TS(SS)"},
        {offsetof(struct tss32, ss), SEL_KDATA | 3, TS, SEL_KDATA, "SS: another level: #TS(SS)"},
        {offsetof(struct tss32, ss), ABSENT | 3, SS, ABSENT, "SS: not present: #SS(SS)"},
        {offsetof(struct tss32, ds), SEL_KDATA, TS, SEL_KDATA, "DS: of an inner level: #TS(DS)"},
        {offsetof(struct tss32, es), 0x1fb, TS, 0x1f8, "ES: an empty descriptor: #TS(ES)"},
        {offsetof(struct tss32, gs), ABSENT | 3, NP, ABSENT, "GS: not present: #NP(GS)"},
    };
    rt_gdt[ABSENT / 8] = rt_desc(0, 0xfffff, 0x73, 0xc);
    rt_gdt[ABSENT_C / 8] = rt_desc(0, 0xfffff, 0x7b, 0xc);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        reset3(u_stop);
        memcpy((uint8_t *)&task + bad[i].at, &bad[i].value, 4);
        struct regs r = go(t_call);
        trapped(&r, bad[i].vector, bad[i].error, ADDRESS(u_stop), bad[i].text);
        ok(running() == TASK && task.link == SEL_TSS && rt_tss.eip == ADDRESS(t_call_next),
           "in the new task");
    }
    reset3(u_stop);
    struct regs r = go(t_call);
    ok(r.vector == UD && r.cs == SEL_UCODE && r.ss == SEL_UDATA && r.esp == task.esp,
       "a task may start at CPL 3");
    reset3(u_stop);
    task.eflags = FL_FIXED | FL_VM;
    task.cs = 0x1000;
    task.ds = 0x2345;
    task.eip = 0;
    memcpy((void *)(uintptr_t)0x10000, "\x8c\xd8\x0f\x0b", 4); /* mov %ds, %ax; ud2 */
    r = go(t_call);
    ok(r.vector == UD && (r.eflags & FL_VM) && (r.eax & 0xffff) == 0x2345 && r.cs == 0x1000 && r.eip == 2,
       "or in virtual-8086 mode");
}

void test_main(void)
{
    switches();
    more_state();
    refused();
    half_way();
    reset(u_stop);
}
