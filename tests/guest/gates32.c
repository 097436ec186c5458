/*
 * Gates in 32-bit protected mode: interrupt and trap gates of both sizes from an outer level, call gates of
 * both sizes with parameters, and what is wrong with gates, stacks and selectors (SDM vol. 3A, 5.8, 6.12
 * and 6.13).
 */
#include "rt32/rt32.h"

#define GATE     SEL_FREE          /* the gate under test */
#define CODE1    (SEL_FREE + 0x08) /* code of level 1 */
#define DATA1    (SEL_FREE + 0x10) /* data of level 1 */
#define CONFORM  (SEL_FREE + 0x18) /* conforming code of level 0 */
#define ABSENT   (SEL_FREE + 0x20) /* code of level 0, not present */
#define ABSENT_D (SEL_FREE + 0x28) /* data of level 0, not present */
#define SMALL    (SEL_FREE + 0x30) /* a TSS without room for SS0:ESP0 */
#define ABSENT3  (SEL_FREE + 0x48) /* code of level 3, not present */
#define VECTOR   0x60

static uint8_t stack1[1024] __attribute__((aligned(16)));
static uint8_t stack16[1024] __attribute__((aligned(16)));

/* --- INT --- */

SNIPPET(g_int, "int $0x60\n g_int_next: nop");
LABEL(g_int_next);
/* The handlers note the frame and end in UD2. */
SNIPPET(g_handler, "mov %esp, %ebp\n mov (%ebp), %eax\n mov 4(%ebp), %ecx\n mov 8(%ebp), %edx\n"
                   "mov 12(%ebp), %esi\n mov 16(%ebp), %edi\n pushf\n pop %ebx");
SNIPPET(g_handler16, "mov %esp, %ebp\n movzwl (%ebp), %eax\n movzwl 2(%ebp), %ecx\n movzwl 4(%ebp), %edx\n"
                     "movzwl 6(%ebp), %esi\n movzwl 8(%ebp), %edi\n pushf\n pop %ebx");
SNIPPET(g_iret, "int $0x60\n mov $7, %edx");
SNIPPET(g_iret_handler, "mov $5, %ecx\n iret");

static void interrupts(void)
{
    about("INT");
    struct regs r = rt_user(g_int);
    uint32_t esp = r.esp;
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_handler), 0xee, 0);
    r.eflags |= FL_IF | FL_DF;
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(g_handler_end), "a 32-bit interrupt gate from CPL 3 leads to CPL 0");
    ok(r.eax == ADDRESS(g_int_next) && r.ecx == SEL_UCODE && r.edx == (FL_FIXED | FL_IF | FL_DF),
       "the frame: EIP, CS, EFLAGS (6.12.1)");
    ok(r.esi == esp && r.edi == SEL_UDATA, "then ESP and SS");
    is(r.ebp, rt_tss.esp0 - 20, "on the stack that the TSS names");
    is(r.ebx & (FL_IF | FL_TF | FL_NT | FL_DF), FL_DF, "IF is cleared (6.12.1.2)");
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_handler), 0xef, 0);
    r = rt_user(g_int);
    r.eflags |= FL_IF;
    rt_run(&r);
    is(r.ebx & FL_IF, FL_IF, "a trap gate leaves IF");
    rt_gdt[GATE / 8] = rt_desc(ADDRESS(g_handler16), 0xffff, 0x9b, 4); /* 32-bit code at the handler */
    rt_idt[VECTOR] = rt_gate(GATE, 0, 0xe6, 0);
    r = rt_user(g_int);
    r.eflags |= FL_IF;
    rt_run(&r);
    trapped(&r, UD, 0, (uint32_t)(g_handler16_end - g_handler16), "a 16-bit interrupt gate");
    ok(r.eax == (ADDRESS(g_int_next) & 0xffff) && r.ecx == SEL_UCODE && r.edx == (FL_FIXED | FL_IF) &&
           r.esi == (esp & 0xffff) && r.edi == SEL_UDATA,
       "its frame has words");
    is(r.ebp, rt_tss.esp0 - 10, "five of them");
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_iret_handler), 0xee, 0);
    r = rt_user(g_iret);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(g_iret_end), "IRET goes back to CPL 3");
    ok(r.cs == SEL_UCODE && r.ecx == 5 && r.edx == 7 && r.esp == esp && r.ss == SEL_UDATA, "with its stack");
    is(r.ds, SEL_UDATA, "data segments that CPL 3 may use are kept");

    about("INT, refused");
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_handler), 0x8e, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, GP, VECTOR * 8 + 2, ADDRESS(g_int), "a gate of DPL 0 from CPL 3: #GP (6.12.1.2)");
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_handler), 0x6e, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, NP, VECTOR * 8 + 2, ADDRESS(g_int), "a gate that is not present: #NP");
    rt_idt[VECTOR] = rt_gate(SEL_KCODE, ADDRESS(g_handler), 0xec, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, GP, VECTOR * 8 + 2, ADDRESS(g_int), "a call gate in the IDT: #GP");
    rt_idt[VECTOR] = rt_gate(0, ADDRESS(g_handler), 0xee, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, GP, 0, ADDRESS(g_int), "a null selector in the gate: #GP(0)");
    rt_idt[VECTOR] = rt_gate(SEL_KDATA, ADDRESS(g_handler), 0xee, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, GP, SEL_KDATA, ADDRESS(g_int), "data: #GP(selector)");
    rt_idt[VECTOR] = rt_gate(SEL_UCODE, ADDRESS(g_handler), 0x8e, 0);
    r = rt_kernel(g_int);
    rt_run(&r);
    trapped(&r, GP, SEL_UCODE & ~3u, ADDRESS(g_int), "code of an outer level: #GP(selector)");
    rt_idt[VECTOR] = rt_gate(ABSENT, ADDRESS(g_handler), 0xee, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, NP, ABSENT, ADDRESS(g_int), "code that is not present: #NP(selector)");
    rt_idt[VECTOR] = rt_gate(CONFORM, ADDRESS(g_handler), 0xee, 0);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(g_handler_end), "conforming code runs at the caller's level");
    ok((r.cs & 3) == 3 && r.ebp == esp - 12, "on the caller's stack, without SS:ESP");
    rt_idt_default(VECTOR, 0);
}

/* --- the inner stack, by an interrupt gate to level 1 (whose stack only these use) --- */

static void stacks(void)
{
    about("inner stack");
    rt_idt[VECTOR] = rt_gate(CODE1, ADDRESS(g_handler), 0xee, 0);
    struct regs r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(g_handler_end), "level 1 has SS1:ESP1");
    ok((r.cs & 3) == 1 && r.ebp == ADDRESS(stack1) + sizeof(stack1) - 20 && r.ss == (DATA1 | 1),
       "and uses it");
    static const struct {
        uint32_t ss1, esp1;
        unsigned vector;
        uint32_t error;
        const char *text;
    } bad[] = {
        {0, 0, TS, 0, "a null SS1: #TS(0) (6.13: EXT clear for INT n)"},
        {DATA1, 0, TS, DATA1, "RPL that is not the level: #TS(SS1)"},
        {(SEL_UDATA & ~3u) | 1, 0, TS, SEL_UDATA & ~3u, "DPL that is not the level: #TS(SS1)"},
        {CODE1 | 1, 0, TS, CODE1, "code: #TS(SS1)"},
        {0x1f9, 0, TS, 0x1f8, "an empty descriptor: #TS(SS1)"},
        {0xfff9, 0, TS, 0xfff8, "a selector beyond the table: #TS(SS1)"},
        {ABSENT_D | 1, 0, SS, ABSENT_D, "not present: #SS(SS1)"},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rt_tss.ss1 = bad[i].ss1;
        r = rt_user(g_int);
        rt_run(&r);
        trapped(&r, bad[i].vector, bad[i].error, ADDRESS(g_int), bad[i].text);
    }
    rt_tss.ss1 = DATA1 | 1;
    rt_gdt[DATA1 / 8] = rt_desc(0, 0xfff, 0xb3, 4);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, SS, DATA1, ADDRESS(g_int), "no room on the stack: #SS(SS1)");
    rt_gdt[DATA1 / 8] = rt_desc(0, 0xfffff, 0xb3, 0xc);
    rt_gdt[SMALL / 8] = rt_desc(ADDRESS(&rt_tss), 0x0d, 0x89, 0);
    rt_ltr(SMALL);
    r = rt_user(g_int);
    rt_run(&r);
    trapped(&r, TS, SMALL, ADDRESS(g_int), "a TSS that ends before SS1: #TS(TR)");
    rt_ltr(SEL_TSS);
    rt_idt_default(VECTOR, 0);
}

/* --- call gates --- */

SNIPPET(c_call, "pushl $0x111\n pushl $0x222\n pushl $0x333\n lcall $0x33, $0x12345678\n c_call_next: nop");
LABEL(c_call_next);
SNIPPET(c_call0, "lcall $0x30, $0\n c_call0_next: nop");
LABEL(c_call0_next);
SNIPPET(c_jump, "ljmp $0x33, $0");
SNIPPET(c_target,
        "mov %esp, %ebp\n mov (%ebp), %eax\n mov 4(%ebp), %ecx\n mov 8(%ebp), %edx\n mov 12(%ebp), %ebx\n"
        "mov 16(%ebp), %esi\n mov 20(%ebp), %edi");
SNIPPET(c_target16, "mov %esp, %ebp\n movzwl (%ebp), %eax\n movzwl 2(%ebp), %ecx\n movzwl 4(%ebp), %edx\n"
                    "movzwl 6(%ebp), %ebx\n movzwl 8(%ebp), %esi\n movzwl 10(%ebp), %edi");
SNIPPET(c_return, "mov $0x10, %eax\n mov %eax, %es\n lret $12");
SNIPPET(c_words, "pushw $0x11\n pushw $0x22\n lcall $0x33, $0\n c_words_next: nop");
LABEL(c_words_next);
SNIPPET(c_return16, "lretw $4");

static void call(const void *code, struct regs *r)
{
    *r = rt_user(code);
    rt_run(r);
}

static void call_gates(void)
{
    about("call gate");
    struct regs r;
    uint32_t esp = rt_user(c_call).esp;
    rt_gdt[GATE / 8] = rt_gate(SEL_KCODE, ADDRESS(c_target), 0xec, 3);
    call(c_call, &r);
    trapped(&r, UD, 0, ADDRESS(c_target_end), "a CALL from CPL 3 goes where the gate says (5.8.4)");
    ok(r.cs == SEL_KCODE && r.ss == SEL_KDATA, "at CPL 0");
    ok(r.eax == ADDRESS(c_call_next) && r.ecx == SEL_UCODE, "the return address on the inner stack");
    ok(r.edx == 0x333 && r.ebx == 0x222 && r.esi == 0x111, "above it the parameters");
    is(r.edi, esp - 12, "above them the caller's ESP");
    is(r.ebp, rt_tss.esp0 - 28, "on the stack that the TSS names (5.8.5)");
    rt_gdt[GATE / 8] = rt_gate(SEL_KCODE, ADDRESS(c_return), 0xec, 3);
    call(c_call, &r);
    trapped(&r, UD, 0, ADDRESS(c_call_end), "RET n goes back");
    ok(r.cs == SEL_UCODE && r.esp == esp && r.ss == SEL_UDATA,
       "and releases the parameters on both stacks (5.8.6)");
    ok(r.es == 0 && r.ds == SEL_UDATA, "a segment that CPL 3 may not use becomes null");
    rt_gdt[GATE / 8] = rt_gate(SEL_KCODE, ADDRESS(c_target), 0xec, 0);
    r = rt_kernel(c_call0);
    esp = r.esp;
    rt_run(&r);
    ok(r.vector == UD && r.eip == ADDRESS(c_target_end) && r.ebp == esp - 8 &&
           r.eax == ADDRESS(c_call0_next) && r.ecx == SEL_KCODE,
       "without a change of level the stack stays, and nothing is copied");

    about("16-bit call gate");
    esp = rt_user(c_words).esp;
    rt_gdt[CODE1 / 8] = rt_desc(ADDRESS(c_target16), 0xffff, 0x9b, 4); /* level 0 here */
    rt_gdt[GATE / 8] = rt_gate(CODE1, 0, 0xe4, 2);
    call(c_words, &r);
    trapped(&r, UD, 0, (uint32_t)(c_target16_end - c_target16), "CALL from CPL 3");
    ok(r.eax == (ADDRESS(c_words_next) & 0xffff) && r.ecx == SEL_UCODE, "IP and CS as words");
    ok(r.edx == 0x22 && r.ebx == 0x11, "parameters as words");
    ok(r.esi == ((esp - 4) & 0xffff) && r.edi == SEL_UDATA, "SP and SS as words");
    is(r.ebp, rt_tss.esp0 - 12, "twelve bytes in all");
    /* Back by a 16-bit RET: to code, and a stack, whose offsets have 16 bits. */
    static const uint16_t code_base_free = SEL_FREE + 0x38, stack_base_free = SEL_FREE + 0x40;
    rt_gdt[code_base_free / 8] = rt_desc(ADDRESS(c_words), 0xffff, 0xfb, 4);
    rt_gdt[stack_base_free / 8] = rt_desc(ADDRESS(stack16), sizeof(stack16) - 1, 0xf3, 0);
    rt_gdt[CODE1 / 8] = rt_desc(ADDRESS(c_return16), 0xffff, 0x9b, 4);
    r = rt_user(0);
    r.cs = code_base_free | 3;
    r.ss = stack_base_free | 3;
    r.esp = sizeof(stack16);
    rt_run(&r);
    trapped(&r, UD, 0, (uint32_t)(c_words_end - c_words), "RET n of 16 bits goes back");
    ok(r.cs == (code_base_free | 3) && (r.esp & 0xffff) == sizeof(stack16), "with SP where it was");
    rt_gdt[CODE1 / 8] = rt_desc(0, 0xfffff, 0xbb, 0xc);

    about("call gate, refused");
    static const struct {
        uint32_t selector;
        unsigned access, vector;
        uint32_t error;
        const char *text;
    } bad[] = {
        {SEL_KCODE, 0x8c, GP, GATE, "DPL 0 from CPL 3: #GP(gate) (5.8.4)"},
        {SEL_KCODE, 0x6c, NP, GATE, "not present: #NP(gate)"},
        {0, 0xec, GP, 0, "null selector: #GP(0)"},
        {SEL_KDATA, 0xec, GP, SEL_KDATA, "to data: #GP(selector)"},
        {0xfff8, 0xec, GP, 0xfff8, "beyond the table: #GP(selector)"},
        {ABSENT3, 0xec, NP, ABSENT3, "to code that is not present: #NP(selector)"},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rt_gdt[GATE / 8] = rt_gate(bad[i].selector, ADDRESS(c_target), bad[i].access, 0);
        r = rt_user(c_jump);
        rt_run(&r);
        trapped(&r, bad[i].vector, bad[i].error, ADDRESS(c_jump), bad[i].text);
    }
    rt_gdt[GATE / 8] = rt_gate(SEL_KCODE, ADDRESS(c_target), 0xec, 0);
    r = rt_user(c_jump);
    rt_run(&r);
    trapped(&r, GP, SEL_KCODE, ADDRESS(c_jump), "a JMP may not change the level: #GP(selector)");
    rt_gdt[GATE / 8] = rt_gate(CONFORM, ADDRESS(c_target), 0xec, 0);
    r = rt_user(c_jump);
    rt_run(&r);
    trapped(&r, UD, 0, ADDRESS(c_target_end), "but may reach conforming code");
    is(r.cs & 3, 3, "which runs at CPL 3");
    rt_gdt[GATE / 8] = rt_gate(SEL_UCODE, ADDRESS(c_target), 0x8c, 0);
    r = rt_kernel(c_call0);
    rt_run(&r);
    trapped(&r, GP, SEL_UCODE & ~3u, ADDRESS(c_call0), "to an outer level: #GP(selector)");
}

/* What lies where the upper half is in 32-bit gates does not count (SDM vol. 2A, CALL and INT n: EIP AND
 * FFFFH). */
static void offsets(void)
{
    about("16-bit gates");
    struct regs r;
    rt_gdt[CODE1 / 8] = rt_desc(ADDRESS(c_target16), 0xffff, 0x9b, 4);
    rt_gdt[GATE / 8] = rt_gate(CODE1, 0xdead0000, 0xe4, 2);
    call(c_words, &r);
    trapped(&r, UD, 0, (uint32_t)(c_target16_end - c_target16), "a call gate's offset has 16 bits");
    rt_idt[VECTOR] = rt_gate(CODE1, 0xdead0000, 0xe6, 0);
    call(g_int, &r);
    trapped(&r, UD, 0, (uint32_t)(c_target16_end - c_target16), "an interrupt gate's, too");
}

void test_main(void)
{
    rt_gdt[CODE1 / 8] = rt_desc(0, 0xfffff, 0xbb, 0xc);
    rt_gdt[DATA1 / 8] = rt_desc(0, 0xfffff, 0xb3, 0xc);
    rt_gdt[CONFORM / 8] = rt_desc(0, 0xfffff, 0x9f, 0xc);
    rt_gdt[ABSENT / 8] = rt_desc(0, 0xfffff, 0x1b, 0xc);
    rt_gdt[ABSENT3 / 8] = rt_desc(0, 0xfffff, 0x7b, 0xc);
    rt_gdt[ABSENT_D / 8] = rt_desc(0, 0xfffff, 0x33, 0xc);
    rt_tss.ss1 = DATA1 | 1;
    rt_tss.esp1 = ADDRESS(stack1) + sizeof(stack1);
    interrupts();
    stacks();
    call_gates();
    offsets();
}
