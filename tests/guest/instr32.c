/*
 * Instructions that exist outside of 64-bit mode only, and 16- and 32-bit forms of others, in compatibility
 * mode: BCD, PUSHA, POPA, BOUND, INTO, ARPL, LES, SALC, ENTER, address-size prefixes, segment overrides; with
 * a 32-bit and a 16-bit code segment.
 */
#include "rt/rt.h"

#define SNIPPET32(name, text) SNIPPET(name, ".code32\n" text "\n.code64")
#define SNIPPET16(name, text) SNIPPET(name, ".code16\n" text "\n.code64")
#define AFLAGS                (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

SNIPPET32(z_daa, "daa");
SNIPPET32(z_das, "das");
SNIPPET32(z_aaa, "aaa");
SNIPPET32(z_aas, "aas");
SNIPPET32(z_aam, "aam");
SNIPPET32(z_aam0, ".byte 0xd4, 0");
SNIPPET32(z_aad, "aad");
SNIPPET32(z_salc, ".byte 0xd6");
SNIPPET32(z_pusha, "pusha\n mov %esp, %edi\n popl %edi\n popl %esi\n popl %ebp\n popl %edx\n popl %ebx");
SNIPPET32(z_popa,
          "pushl $1\n pushl $2\n pushl $3\n pushl $4\n pushl $5\n pushl $6\n pushl $7\n pushl $8\n popa");
SNIPPET32(z_pushaw, "mov %esp, %ebp\n pushaw\n sub %esp, %ebp\n popaw");
SNIPPET32(z_bound, "bound %eax, (%ebx)");
SNIPPET32(z_into, "into\n z_into_next: nop");
LABEL(z_into_next);
SNIPPET32(z_arpl, "arpl %cx, %ax\n setz %dl");
SNIPPET32(z_les, "les (%ebx), %eax\n mov %es, %ecx");
SNIPPET32(z_lds_bad, "lds (%ebx), %eax");
SNIPPET32(z_enter, "mov %esp, %esi\n enter $16, $0\n mov %ebp, %edi\n leave\n sub %esp, %esi");
SNIPPET32(z_enter3, "mov %ebx, %ebp\n mov %esp, %esi\n enter $8, $3\n sub %esp, %esi");
SNIPPET32(z_jcxz, "mov $0x10000, %ecx\n xor %eax, %eax\n jcxz 1f\n inc %eax\n 1: jecxz 2f\n inc %edx\n 2:");
SNIPPET32(z_loopw, "mov $0x10003, %ecx\n xor %eax, %eax\n 1: inc %eax\n addr16 loop 1b");
SNIPPET32(z_loop, "mov $5, %ecx\n xor %eax, %eax\n 1: inc %eax\n loop 1b");
SNIPPET32(z_loope, "mov $5, %ecx\n xor %eax, %eax\n 1: inc %eax\n cmp $3, %eax\n loopne 1b");
SNIPPET32(z_push16, "mov %esp, %esi\n pushw $0x1234\n popw %ax\n sub %esp, %esi");
SNIPPET32(z_push_seg, "mov %esp, %esi\n push %ds\n sub %esp, %esi\n pop %eax");
SNIPPET32(z_inc, "mov $0xffffffff, %eax\n inc %eax\n .byte 0x66, 0x48");
SNIPPET32(z_addr16, "movl $0x12345678, %ecx\n mov $0xffff0010, %ebx\n addr16 lea 0x20(%bx), %eax");
SNIPPET32(z_fs, "mov %ecx, %fs\n mov %fs:(%ebx), %eax");
SNIPPET32(z_xlat, "xlat");
SNIPPET32(z_rex, ".byte 0x48, 0x89, 0xc8"); /* dec %eax; mov %ecx, %eax */
SNIPPET32(z_wrap, "mov $0xfffffff0, %ebx\n lea 0x20(%ebx), %eax");
SNIPPET32(z_82, ".byte 0x82, 0xc0, 5"); /* add $5, %al */
SNIPPET32(z_strings, "cld\n rep movsw");

static struct frame go(const void *code, uint64_t rax, uint64_t flags)
{
    struct frame f = rt_user32(code);
    f.rax = rax;
    f.rflags |= flags;
    f.rcx = 3;
    rt_run(&f);
    return f;
}

static void bcd(void)
{
    static const struct {
        const char *code, *text;
        uint32_t ax, flags, want, want_flags, mask;
    } cases[] = {
        /* SDM vol. 2A and 2B; flags given as undefined are not compared. */
        {z_daa, "daa 0x79+0x35", 0xae, 0, 0x14, FL_CF | FL_AF | FL_PF, AFLAGS & ~FL_OF},
        {z_daa, "daa 0x0f", 0x0f, 0, 0x15, FL_AF, AFLAGS & ~FL_OF},
        {z_daa, "daa with CF", 0x00, FL_CF, 0x60, FL_CF | FL_PF, AFLAGS & ~FL_OF},
        {z_daa, "daa with AF", 0x10, FL_AF, 0x16, FL_AF, AFLAGS & ~FL_OF},
        {z_daa, "daa 0x99", 0x99, 0, 0x99, FL_SF | FL_PF, AFLAGS & ~FL_OF},
        {z_daa, "daa 0x9a", 0x9a, 0, 0x00, FL_CF | FL_AF | FL_ZF | FL_PF, AFLAGS & ~FL_OF},
        {z_das, "das 0x35-0x47", 0xee, FL_CF | FL_AF, 0x88, FL_CF | FL_AF | FL_SF | FL_PF, AFLAGS & ~FL_OF},
        {z_das, "das 0x05 with AF", 0x05, FL_AF, 0xff, FL_CF | FL_AF | FL_SF | FL_PF, AFLAGS & ~FL_OF},
        {z_aaa, "aaa 0x0b", 0x0b, 0, 0x101, FL_CF | FL_AF, FL_CF | FL_AF},
        {z_aaa, "aaa 0x05", 0x05, FL_CF, 0x05, 0, FL_CF | FL_AF},
        {z_aaa, "aaa 0xfa: the carry goes to AH by AX + 0x106", 0xfa, 0, 0x200, FL_CF | FL_AF, FL_CF | FL_AF},
        {z_aas, "aas 0x0f", 0x20f, 0, 0x109, FL_CF | FL_AF, FL_CF | FL_AF},
        {z_aas, "aas 0x03 with AF", 0x203, FL_AF, 0x00d, FL_CF | FL_AF, FL_CF | FL_AF},
        {z_aam, "aam 79", 79, 0, 0x709, FL_PF, FL_SF | FL_ZF | FL_PF},
        {z_aad, "aad 0x0709", 0x709, 0, 79, 0, FL_SF | FL_ZF | FL_PF},
        {z_salc, "salc with CF", 0x1234, FL_CF, 0x12ff, FL_CF, AFLAGS},
        {z_salc, "salc without", 0x12ff, 0, 0x1200, 0, AFLAGS},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        about(cases[i].text);
        struct frame f = go(cases[i].code, cases[i].ax, cases[i].flags);
        is(f.rax & 0xffff, cases[i].want, "AX");
        is(f.rflags & cases[i].mask, cases[i].want_flags, "flags");
    }
    about(NULL);
    struct frame f = go(z_aam0, 5, 0);
    trapped(&f, DE, 0, z_aam0, "aam 0: #DE");
}

static void stack(void)
{
    struct frame f = rt_user32(z_pusha);
    uint64_t sp = f.rsp;
    f.rax = 1, f.rcx = 2, f.rdx = 3, f.rbx = 4, f.rbp = 5, f.rsi = 6, f.rdi = 7;
    rt_run(&f);
    ok(f.rdi == 7 && f.rsi == 6 && f.rbp == 5 && f.rdx == (uint32_t)sp && f.rbx == 4,
       "PUSHA: EDI, ESI, EBP, the old ESP, EBX from the top");
    f = go(z_popa, 0, 0);
    ok(f.rax == 1 && f.rcx == 2 && f.rdx == 3 && f.rbx == 4 && f.rbp == 6 && f.rsi == 7 && f.rdi == 8 &&
           (uint32_t)f.rsp == (uint32_t)sp,
       "POPA: all but ESP");
    f = go(z_pushaw, 0, 0);
    ok(rt_done(f, z_pushaw), "PUSHAW and POPAW");
    f = go(z_enter, 0, 0);
    ok(f.rsi == 0 && f.rdi == (uint32_t)(sp - 4), "ENTER and LEAVE");
    f = rt_user32(z_enter3);
    f.rbx = f.rsp - 256;
    rt_run(&f);
    is(f.rsi, 4 + 12 + 8, "ENTER of level 3 pushes three frame pointers");
    f = go(z_push16, 0xaaaa0000, 0);
    ok(f.rax == 0xaaaa1234 && f.rsi == 0, "PUSHW and POPW");
    f = go(z_push_seg, 0, 0);
    is(f.rsi, 4, "PUSH DS takes 4 bytes");
}

static void traps(void)
{
    static int32_t range[2] = {-5, 10};
    struct frame f = rt_user32(z_bound);
    f.rbx = rt_alias(range);
    f.rax = 10;
    rt_run(&f);
    ok(rt_done(f, z_bound), "BOUND: the upper bound is inside");
    f = rt_user32(z_bound);
    f.rbx = rt_alias(range);
    f.rax = 11;
    rt_run(&f);
    trapped(&f, BR, 0, z_bound, "BOUND: above: #BR, a fault");
    f = rt_user32(z_bound);
    f.rbx = rt_alias(range);
    f.rax = (uint32_t)-6;
    rt_run(&f);
    trapped(&f, BR, 0, z_bound, "BOUND: below, signed: #BR");
    f = go(z_into, 0, 0);
    ok(rt_done(f, z_into), "INTO without OF");
    f = go(z_into, 0, FL_OF);
    trapped(&f, GP, OF * 8 + 2, z_into, "INTO at CPL 3 with a gate of DPL 0: #GP");
    rt_gate_dpl(OF, 3);
    f = go(z_into, 0, FL_OF);
    trapped(&f, OF, 0, z_into_next, "INTO with OF: #OF, a trap");
    rt_gate_dpl(OF, 0);
    static struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) far_pointer = {0x12345678, RT_UDATA};
    f = rt_user32(z_les);
    f.rbx = rt_alias(&far_pointer);
    rt_run(&f);
    ok(f.rax == 0x12345678 && (f.rcx & 0xffff) == RT_UDATA, "LES");
    far_pointer.selector = 0xfff8;
    f = rt_user32(z_lds_bad);
    f.rbx = rt_alias(&far_pointer);
    f.rax = 5;
    rt_run(&f);
    trapped(&f, GP, 0xfff8, z_lds_bad, "LDS of a bad selector: #GP(sel)");
    is(f.rax, 5, "the register is left");
    asm volatile("mov %0, %%es\n mov %0, %%ds" ::"r"(0));
    f = go(z_arpl, 0x10, 0);
    ok(f.rax == 0x13 && (f.rdx & 0xff) == 1, "ARPL raises RPL and sets ZF");
    f = go(z_arpl, 0x13, FL_ZF);
    ok(f.rax == 0x13 && (f.rdx & 0xff) == 0, "ARPL with nothing to do clears ZF");
}

static void sizes(void)
{
    struct frame f = go(z_jcxz, 0, 0);
    ok(f.rax == 0 && f.rdx == 1, "JCXZ looks at CX, JECXZ at ECX");
    f = go(z_loopw, 0, 0);
    ok(f.rax == 3 && f.rcx == 0x10000, "LOOP with a 16-bit address size counts CX");
    f = go(z_loop, 0, 0);
    is(f.rax, 5, "LOOP");
    f = go(z_loope, 0, 0);
    ok(f.rax == 3 && f.rcx == 2, "LOOPNE");
    f = go(z_inc, 0, 0);
    is(f.rax, 0xffff, "INC and DEC by their short forms, the latter of 16 bits");
    f = go(z_addr16, 0, 0);
    is(f.rax, 0x30, "16-bit addressing wraps at 64 KiB");
    f = go(z_wrap, 0, 0);
    is(f.rax, 0x10, "32-bit addressing wraps at 4 GiB");
    f = go(z_82, 10, 0);
    is(f.rax, 15, "opcode 82");
    f = go(z_rex, 9, 0);
    is(f.rax, 3, "40-4f are INC and DEC");
    static uint8_t table[256], from[16] = {1, 2, 3, 4, 5, 6}, to[16];
    table[200] = 99;
    f = rt_user32(z_xlat);
    f.rbx = rt_alias(table);
    f.rax = 200;
    asm volatile("mov %0, %%ds" ::"r"(RT_UDATA));
    rt_run(&f);
    is(f.rax, 99, "XLAT");
    f = rt_user32(z_fs);
    f.rcx = RT_UDATA;
    f.rbx = rt_alias(from);
    rt_run(&f);
    is(f.rax, 0x04030201, "FS override");
    asm volatile("mov %0, %%es" ::"r"(RT_UDATA));
    f = rt_user32(z_strings);
    f.rsi = rt_alias(from);
    f.rdi = rt_alias(to);
    f.rcx = 3;
    rt_run(&f);
    ok(memcmp(from, to, 6) == 0 && f.rcx == 0 && f.rsi == rt_alias(from) + 6, "REP MOVSW");
    /* Upper halves: zero or kept is undefined across the mode switch, so only the lower ones are looked at.
     */
    asm volatile("mov %0, %%es\n mov %0, %%ds\n mov %0, %%fs" ::"r"(0));
}

/* 16-bit code segment in compatibility mode, with its base at the snippet. */
SNIPPET16(w_add, "mov $0x1234, %ax\n addw $0x1111, %ax\n addl $0x10000, %eax");
SNIPPET16(w_call, "call 1f\n mov $5, %cx\n jmp 2f\n 1: mov %sp, %dx\n ret\n 2:");
SNIPPET16(w_jump, "mov $3, %cx\n xor %ax, %ax\n 1: inc %ax\n loop 1b\n jcxz 2f\n xor %ax, %ax\n 2:");
SNIPPET16(w_push, "mov %sp, %si\n push %ax\n pushl %eax\n sub %sp, %si\n popl %ecx\n pop %dx");
SNIPPET16(w_addr, "mov $0x8000, %bx\n mov $0x8005, %si\n lea (%bx,%si), %ax\n lea 0xfff0(%bx), %cx");

static void code16(void)
{
    const char *snippets[] = {w_add, w_call, w_jump, w_push, w_addr};
    const char *ends[] = {w_add_end, w_call_end, w_jump_end, w_push_end, w_addr_end};
    for (unsigned i = 0; i < 5; i++) {
        uint64_t base = rt_alias(snippets[i]);
        rt_gdt[RT_FREE / 8] = 0x0000fb000000ffff | (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
        struct frame f = rt_user32(snippets[i]);
        f.cs = RT_FREE | 3;
        f.rip = 0;
        f.rax = 0xabcd;
        rt_run(&f);
        ok(f.vector == UD && f.rip == (uint64_t)(ends[i] - snippets[i]), "16-bit code runs to its end");
        switch (i) {
        case 0: is(f.rax & 0xffffffff, 0x12345, "16-bit operands by default, 32 with a prefix"); break;
        case 1:
            ok((f.rcx & 0xffff) == 5 && (uint16_t)f.rdx == (uint16_t)(rt_user32(0).rsp - 2),
               "near call pushes 2 bytes");
            break;
        case 2: is(f.rax & 0xffff, 3, "LOOP and JCXZ use CX"); break;
        case 3:
            ok((f.rsi & 0xffff) == 6 && (f.rdx & 0xffff) == 0xabcd, "PUSH takes 2 bytes, with a prefix 4");
            break;
        default:
            ok((f.rax & 0xffff) == 5 && (f.rcx & 0xffff) == 0x7ff0, "16-bit address arithmetic wraps");
            break;
        }
    }
    rt_gdt[RT_FREE / 8] = 0;
}

void test_main(void)
{
    bcd();
    stack();
    traps();
    sizes();
    code16();
}
