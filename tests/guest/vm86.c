/*
 * Virtual-8086 mode (SDM vol. 3B, ch. 20): entry and return by IRET, what its program sees, what IOPL and the
 * I/O permission bitmap decide, exceptions and interrupts out of it, what is undefined or privileged there.
 *
 * Programs are 16-bit snippets, copied to CODE; CS:IP is CODE/16:0.
 */
#include "rt32/rt32.h"

#define CODE  0x10000u
#define DATA  0x20000u
#define STACK 0x30000u
#define SP    0xff00u

#define LOW(label, name) ((uint32_t)((label) - (name)))

static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t table[1024] __attribute__((aligned(4096)));

/* A program with IOPL and other flags. Traps' EIP is an offset in it. */
static struct regs prepare(const char *code, const char *end, uint32_t flags)
{
    memcpy((void *)(uintptr_t)CODE, code, (size_t)(end - code) + 2);
    return (struct regs){.cs = CODE / 16,
                         .eflags = FL_FIXED | FL_VM | flags,
                         .ss = STACK / 16,
                         .esp = SP,
                         .vm_ds = DATA / 16,
                         .vm_es = 0x3456,
                         .vm_fs = 0x4567,
                         .vm_gs = 0x5678};
}

static struct regs go(const char *code, const char *end, uint32_t flags)
{
    struct regs r = prepare(code, end, flags);
    rt_run(&r);
    return r;
}
#define GO(name, flags) go(name, name##_end, flags)
#define END(name)       LOW(name##_end, name)

SNIPPET16(v_look, "mov %cs, %ax\n mov %ds, %bx\n mov %es, %cx\n mov %fs, %dx\n mov %gs, %si\n mov %ss, %di\n"
                  "movw $0x4242, 0x10\n mov $0x2001, %bp\n mov %bp, %es\n mov %es:0, %bp");
SNIPPET16(v_stack, "mov $0x1234, %ax\n push %ax\n pushl $0x56789abc\n mov %sp, %bx\n call 1f\n jmp 2f\n 1: "
                   "mov %sp, %cx\n ret\n 2:");
SNIPPET16(
    v_far,
    "push %cs\n push $(1f - v_far)\n lret\n nop\n 1: lcall $0x0fff, $(2f - v_far + 16)\n v_far_back: nop\n"
    "2: mov %cs, %ax\n pop %bx\n pop %cx");
LABEL(v_far_back);
SNIPPET16(v_cli, "cli");
SNIPPET16(v_sti, "sti");
SNIPPET16(v_pushf, "pushf");
SNIPPET16(v_pushfl, "pushfl");
SNIPPET16(v_popf, "popf");
SNIPPET16(v_popfl, "popfl");
SNIPPET16(v_iret, "iret");
SNIPPET16(v_iretl, "iretl");
SNIPPET16(v_int, "int $0x60\n v_int_next: nop");
LABEL(v_int_next);
SNIPPET16(v_int3, "int3\n v_int3_next: nop");
LABEL(v_int3_next);
SNIPPET16(v_into, "into\n v_into_next: nop");
LABEL(v_into_next);
SNIPPET16(v_flags, "pushf\n pop %ax\n sti\n pushf\n pop %bx\n cli\n pushf\n pop %cx\n pushl $0x7202\n "
                   "popfl\n pushfl\n pop %edx");
SNIPPET16(v_noiopl, "pushw $0x0202\n popf\n pushf\n pop %ax\n pushl $0x23002\n popfl\n pushfl\n pop %ebx");
SNIPPET16(v_doiret, "pushw $0x3202\n push %cs\n pushw $(1f - v_doiret)\n iret\n nop\n 1: pushf\n pop %ax");
SNIPPET16(v_out, "mov $0x3ff, %dx\n mov $0x5a, %al\n v_out_at: out %al, %dx\n in %dx, %al");
LABEL(v_out_at);
SNIPPET16(v_outw, "mov $0x3ff, %dx\n v_outw_at: out %ax, %dx");
LABEL(v_outw_at);
SNIPPET16(v_ins, "mov $0x3ff, %dx\n mov $0, %di\n mov $2, %cx\n v_ins_at: rep insb");
LABEL(v_ins_at);
SNIPPET16(v_hlt, "hlt");
SNIPPET16(v_cr0, "mov %eax, %cr0");
SNIPPET16(v_getcr0, "mov %cr0, %eax");
SNIPPET16(v_dr7, "mov %eax, %dr7");
SNIPPET16(v_clts, "clts");
SNIPPET16(v_lgdt, "lgdt 0");
SNIPPET16(v_lidt, "lidt 0");
SNIPPET16(v_lmsw, "lmsw %ax");
SNIPPET16(v_invlpg, "invlpg 0");
SNIPPET16(v_wbinvd, "wbinvd");
SNIPPET16(v_rdmsr, "rdmsr");
SNIPPET16(v_lldt, "lldt %ax");
SNIPPET16(v_ltr, "ltr %ax");
SNIPPET16(v_sldt, "sldt %ax");
SNIPPET16(v_str, "str %ax");
SNIPPET16(v_lar, "lar %ax, %bx");
SNIPPET16(v_lsl, "lsl %ax, %bx");
SNIPPET16(v_verr, "verr %ax");
SNIPPET16(v_arpl, "arpl %ax, %bx");
SNIPPET16(v_sgdt, "sgdt 0\n smsw %ax\n sidt 8");
SNIPPET16(v_limit, "mov 0xffff, %ax");
SNIPPET16(v_limit32, "mov $0x10000, %ebx\n v_limit32_at: addr32 mov (%ebx), %al");
LABEL(v_limit32_at);
SNIPPET16(v_pushlimit, "mov $1, %sp\n v_pushlimit_at: push %ax");
LABEL(v_pushlimit_at);
SNIPPET16(v_lods, "mov $0xfffe, %si\n mov $2, %cx\n v_lods_at: rep lodsw\n lodsb\n v_lods_word: lodsw");
LABEL(v_lods_word);
SNIPPET16(v_step, "nop\n v_step_next: nop");
LABEL(v_step_next);
SNIPPET16(v_page, "mov %ds:0, %al\n mov $0x4000, %bx\n mov %bx, %ds\n v_page_at: mov %al, %ds:0x123");
LABEL(v_page_at);
SNIPPET16(v_null, "xor %ax, %ax\n mov %ax, %ds\n mov %ax, %ss\n mov 0x500, %ax");
SNIPPET16(v_lds, "lds 0, %bx\n mov %ds, %ax");

SNIPPET(v_monitor, "mov $9, %ecx\n iret");

static void sees(void)
{
    about("IRET to virtual-8086 mode");
    *(volatile uint16_t *)(uintptr_t)(DATA + 0x10) = 0;
    struct regs r = GO(v_look, 0);
    trapped(&r, UD, 0, END(v_look), "the program runs (20.2.5)");
    ok((r.eax & 0xffff) == CODE / 16 && (r.ebx & 0xffff) == DATA / 16 && (r.ecx & 0xffff) == 0x3456 &&
           (r.edx & 0xffff) == 0x4567 && (r.esi & 0xffff) == 0x5678 && (r.edi & 0xffff) == STACK / 16,
       "with the selectors of the frame");
    is(*(volatile uint16_t *)(uintptr_t)(DATA + 0x10), 0x4242,
       "a segment's base is 16 times its selector (20.2.1)");
    is(r.ebp & 0xffff, 0x4242, "also of one that it loads");
    about("exception out of it");
    ok((r.eflags & FL_VM) && r.cs == CODE / 16, "VM is set in the saved flags (20.2.6)");
    ok(r.esp == SP && r.ss == STACK / 16, "SS:ESP are saved");
    ok(r.vm_ds == DATA / 16 && r.vm_es == 0x2001 && r.vm_fs == 0x4567 && r.vm_gs == 0x5678,
       "and the data segments");
    ok(r.ds == 0 && r.es == 0 && r.fs == 0 && r.gs == 0, "which are null for the handler");
    is(r.frame_at, rt_tss.esp0 - 36, "on the stack of level 0: nine doublewords");
    r = GO(v_stack, 0);
    ok(r.vector == UD && (r.ebx & 0xffff) == SP - 6 && (r.ecx & 0xffff) == SP - 8,
       "pushes and near calls are of 16 bits");
    ok(*(uint16_t *)(uintptr_t)(STACK + SP - 2) == 0x1234 &&
           *(uint32_t *)(uintptr_t)(STACK + SP - 6) == 0x56789abc,
       "or 32 with a prefix");
    r = GO(v_far, 0);
    trapped(&r, UD, 0, LOW(v_far_end, v_far) + 16, "far calls and returns load CS plainly");
    ok((r.eax & 0xffff) == 0x0fff && (r.ebx & 0xffff) == LOW(v_far_back, v_far) &&
           (r.ecx & 0xffff) == CODE / 16,
       "and push it");
    r = GO(v_null, 0);
    ok(r.vector == UD && r.vm_ds == 0 && r.ss == 0, "0 is a segment like others");
    *(uint32_t *)(uintptr_t)DATA = 0xfff81234;
    r = GO(v_lds, 0);
    ok(r.vector == UD && (r.eax & 0xffff) == 0xfff8 && (r.ebx & 0xffff) == 0x1234, "LDS loads any selector");
    r = prepare(v_look, v_look_end, 0);
    r.eip = 0x10000;
    /* SDM vol. 2A, IRET, RETURN-TO-VIRTUAL-8086-MODE: the code segment's limit is 0FFFFH */
    rt_run(&r);
    ok(r.vector == GP && r.error == 0, "EIP above 0FFFFH: #GP(0)");
}

static void sensitive(void)
{
    static const struct {
        const char *code, *end, *text;
    } list[] = {
        {v_cli, v_cli_end, "CLI"},          {v_sti, v_sti_end, "STI"},       {v_pushf, v_pushf_end, "PUSHF"},
        {v_popf, v_popf_end, "POPF"},       {v_int, v_int_end, "INT n"},     {v_iret, v_iret_end, "IRET"},
        {v_pushfl, v_pushfl_end, "PUSHFD"}, {v_popfl, v_popfl_end, "POPFD"}, {v_iretl, v_iretl_end, "IRETD"},
    };
    about("IOPL below 3: #GP(0) (20.2.7)");
    rt_idt_default(0x60, 3);
    for (uint32_t iopl = 0; iopl < 3; iopl++) {
        for (unsigned i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
            struct regs r = go(list[i].code, list[i].end, iopl << 12);
            trapped(&r, GP, 0, 0, list[i].text);
        }
    }
    about("IOPL 3");
    struct regs r = GO(v_flags, FL_IOPL3);
    trapped(&r, UD, 0, END(v_flags), "CLI, STI, PUSHF and POPF work");
    ok((r.eax & 0xffff) == 0x3002 && (r.ebx & 0xffff) == 0x3202 && (r.ecx & 0xffff) == 0x3002, "on IF");
    is(r.edx, 0x7202, "PUSHFD has neither VM nor RF; POPFD sets NT and IF, not IOPL");
    r = GO(v_noiopl, FL_IOPL3);
    ok(r.vector == UD && (r.eax & 0xffff) == 0x3202, "POPF leaves IOPL");
    ok((r.ebx & 0xffff) == 0x3002 && (r.eflags & FL_VM), "POPFD leaves VM");
    r = GO(v_doiret, FL_IOPL3);
    trapped(&r, UD, 0, END(v_doiret), "IRET goes on as in real mode");
    is(r.eax & 0xffff, 0x3202, "with its flags");
    r = GO(v_int, FL_IOPL3 | FL_IF);
    trapped(&r, 0x60, 0, LOW(v_int_next, v_int), "INT n goes to the protected-mode handler (20.3.1.2)");
    ok((r.eflags & (FL_VM | FL_IF)) == (FL_VM | FL_IF), "with the flags before it");
    rt_idt_default(0x60, 0);
    r = GO(v_int, FL_IOPL3);
    trapped(&r, GP, 0x60 * 8 + 2, 0, "if the gate has DPL 3; else #GP(vector)");
    rt_idt[0x60] = rt_gate(SEL_UCODE, 0x1000, 0xee, 0);
    r = GO(v_int, FL_IOPL3);
    trapped(&r, GP, SEL_UCODE & ~3u, 0, "and leads to level 0; else #GP(selector) (20.3.1)");
    rt_idt[0x60] = rt_gate(SEL_KCODE, ADDRESS(v_monitor), 0xee, 0);
    r = GO(v_int, FL_IOPL3);
    trapped(&r, UD, 0, END(v_int), "the handler's IRET goes back");
    ok((r.eflags & FL_VM) && r.ecx == 9 && r.vm_ds == DATA / 16 && r.vm_gs == 0x5678 && r.esp == SP,
       "with everything restored");
    rt_idt_default(0x60, 0);
    about("INT3 and INTO, whatever IOPL is");
    rt_idt_default(BP, 3);
    rt_idt_default(OF, 3);
    r = GO(v_int3, 0);
    trapped(&r, BP, 0, LOW(v_int3_next, v_int3), "INT3");
    r = GO(v_into, 0x800);
    trapped(&r, OF, 0, LOW(v_into_next, v_into), "INTO");
    rt_idt_default(BP, 0);
    r = GO(v_int3, FL_IOPL3);
    trapped(&r, GP, BP * 8 + 2, 0, "the gate's DPL counts: #GP");
    rt_idt_default(OF, 0);
}

static void ports(void)
{
    about("I/O");
    rt_tss.map[0x3ff / 8] = 0x7f;
    struct regs r = GO(v_out, 0);
    trapped(&r, UD, 0, END(v_out), "the permission bitmap allows a port at IOPL 0 (20.2.8.1)");
    is(r.eax & 0xff, 0x5a, "which was reached");
    r = GO(v_outw, 0);
    trapped(&r, GP, 0, LOW(v_outw_at, v_outw), "a word takes two bits: #GP(0)");
    r = GO(v_ins, 0);
    ok(r.vector == UD && *(uint16_t *)(uintptr_t)(0x34560) == 0x5a5a, "INS");
    rt_tss.map[0x3ff / 8] = 0xff;
    r = GO(v_out, FL_IOPL3);
    trapped(&r, GP, 0, LOW(v_out_at, v_out), "and refuses one at IOPL 3: #GP(0)");
    r = GO(v_ins, FL_IOPL3);
    trapped(&r, GP, 0, LOW(v_ins_at, v_ins), "INS too");
}

static void privileged(void)
{
    static const struct {
        const char *code, *end;
        unsigned vector;
        const char *text;
    } list[] = {
        {v_hlt, v_hlt_end, GP, "HLT: #GP(0) (20.2.7)"},
        {v_cr0, v_cr0_end, GP, "MOV to CR0: #GP(0)"},
        {v_getcr0, v_getcr0_end, GP, "MOV from CR0: #GP(0)"},
        {v_dr7, v_dr7_end, GP, "MOV to DR7: #GP(0)"},
        {v_clts, v_clts_end, GP, "CLTS: #GP(0)"},
        {v_lgdt, v_lgdt_end, GP, "LGDT: #GP(0)"},
        {v_lidt, v_lidt_end, GP, "LIDT: #GP(0)"},
        {v_lmsw, v_lmsw_end, GP, "LMSW: #GP(0)"},
        {v_invlpg, v_invlpg_end, GP, "INVLPG: #GP(0)"},
        {v_wbinvd, v_wbinvd_end, GP, "WBINVD: #GP(0)"},
        {v_rdmsr, v_rdmsr_end, GP, "RDMSR: #GP(0)"},
        {v_lldt, v_lldt_end, UD, "LLDT: #UD (vol. 2, virtual-8086 mode exceptions)"},
        {v_ltr, v_ltr_end, UD, "LTR: #UD"},
        {v_sldt, v_sldt_end, UD, "SLDT: #UD"},
        {v_str, v_str_end, UD, "STR: #UD"},
        {v_lar, v_lar_end, UD, "LAR: #UD"},
        {v_lsl, v_lsl_end, UD, "LSL: #UD"},
        {v_verr, v_verr_end, UD, "VERR: #UD"},
        {v_arpl, v_arpl_end, UD, "ARPL: #UD"},
    };
    about("not here");
    for (unsigned i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        struct regs r = go(list[i].code, list[i].end, FL_IOPL3);
        trapped(&r, list[i].vector, 0, 0, list[i].text);
    }
    about(NULL);
    struct regs r = GO(v_sgdt, 0);
    trapped(&r, UD, 0, END(v_sgdt), "SGDT, SIDT and SMSW work");
    is(r.eax & 1, 1, "SMSW shows PE");
}

static void faults(void)
{
    about("faults");
    struct regs r = GO(v_limit, 0);
    trapped(&r, GP, 0, 0, "a word at offset 0FFFFH: #GP(0) (20.1.1)");
    r = GO(v_limit32, 0);
    trapped(&r, GP, 0, LOW(v_limit32_at, v_limit32), "an effective address above 0FFFFH: #GP(0)");
    r = GO(v_pushlimit, 0);
    trapped(&r, SS, 0, LOW(v_pushlimit_at, v_pushlimit), "a push across the limit: #SS(0)");
    *(uint8_t *)(uintptr_t)(DATA + 0x2) = 7;
    r = GO(v_lods, 0);
    ok(r.vector == UD && (r.esi & 0xffff) == 5, "string instructions wrap SI at 64 KiB");
    r = GO(v_step, FL_TF);
    trapped(&r, DB, 0, LOW(v_step_next, v_step), "TF: #DB after each instruction");
    asm volatile("mov %0, %%dr6" ::"r"(0));

    uint32_t cr0;
    for (uint32_t i = 0; i < 1024; i++) {
        table[i] = i << 12 | 7;
    }
    table[0x40] = 0x40000 | 3;
    directory[0] = ADDRESS(table) | 7;
    asm volatile("mov %0, %%cr3" ::"r"(directory));
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" ::"r"(cr0 | 0x80000000));
    r = GO(v_page, 0);
    asm volatile("mov %0, %%cr0" ::"r"(cr0));
    trapped(&r, PF, 7, LOW(v_page_at, v_page),
            "a supervisor's page: #PF, user, write, present (it runs at CPL 3)");
    is(r.cr2, 0x40123, "CR2 is linear");
}

/* CR4.VME lets INT n, CLI and STI do without the monitor (20.3); where CPUID does not offer it, the bit is
 * reserved. */
SNIPPET(k_vme, "mov %cr4, %eax\n or $1, %eax\n mov %eax, %cr4");

static void extensions(void)
{
    uint32_t a = 1, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    about("VME");
    if (!(d & 2)) {
        struct regs r = rt_kernel(k_vme);
        rt_run(&r);
        ok(r.vector == GP && r.error == 0, "CR4.VME without the feature: #GP(0) (vol. 3A, 2.5)");
        return;
    }
    struct regs r = rt_kernel(k_vme);
    rt_run(&r);
    ok(r.vector == UD, "CR4.VME can be set");
    rt_idt_default(0x60, 3);
    r = GO(v_cli, 0);
    ok(r.vector == UD && !(r.eflags & 0x80000), "CLI at IOPL 0 clears VIF");
    r = GO(v_sti, 0);
    ok(r.vector == UD && (r.eflags & 0x80000), "STI sets it");
    asm volatile("mov %%cr4, %0\n and $~1, %0\n mov %0, %%cr4" : "=&r"(a));
    rt_idt_default(0x60, 0);
}

void test_main(void)
{
    sees();
    sensitive();
    ports();
    privileged();
    faults();
    extensions();
}
