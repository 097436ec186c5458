/*
 * Self-modifying and cross-modifying code. The processor notices stores to code it is about to execute when
 * the store and the fetch use the same linear address (SDM vol. 3A, 11.6); through another linear address a
 * serializing instruction is needed (8.1.3), which these tests execute.
 */
#include "rt/rt.h"

#define VA ((uint64_t)RT_ARENA + 0x80000000)

static uint8_t *code; /* identity address of two pages, also mapped at VA */

static inline void serialize(void)
{
    uint32_t out[4];
    cpuid(0, 0, out);
}

static uint64_t call(const void *p)
{
    uint64_t r;
    asm volatile("call *%1"
                 : "=a"(r)
                 : "r"(p)
                 : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
    return r;
}

/* mov $imm, %eax; ret */
static unsigned emit_const(uint8_t *p, uint32_t value)
{
    p[0] = 0xb8;
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
    return 6;
}

static void rewrite(void)
{
    bool right = true;
    for (uint32_t i = 0; i < 5000; i++) {
        emit_const(code, i);
        right &= call(code) == i;
    }
    ok(right, "a function rewritten and called 5,000 times");
    /* Only the immediate changes. */
    right = true;
    for (uint32_t i = 0; i < 5000; i++) {
        *(volatile uint32_t *)(code + 1) = i * 3;
        right &= call(code) == i * 3;
    }
    ok(right, "only its immediate operand changes");
    /* Functions one after the other over the page, like a JIT. */
    right = true;
    for (unsigned round = 0; round < 8; round++) {
        for (unsigned i = 0; i + 6 <= 4096; i += 6) {
            emit_const(code + i, i + round);
        }
        for (unsigned i = 0; i + 6 <= 4096; i += 6) {
            right &= call(code + i) == i + round;
        }
    }
    ok(right, "a page of 682 functions, written and called 8 times");
    right = true;
    for (unsigned i = 0; i + 6 <= 4096; i += 6) { /* write and call alternate */
        emit_const(code + i, i ^ 0x55);
        right &= call(code + i) == (i ^ 0x55);
    }
    ok(right, "written and called alternately");
}

/* Stores into the instructions ahead in the same straight line. */
SNIPPET(m_ahead, "lea 1f(%rip), %rbx\n movb $7, 1(%rbx)\n 1: mov $1, %eax");
SNIPPET(m_ahead_far, "lea 1f(%rip), %rbx\n movb $9, 1(%rbx)\n jmp 1f\n .skip 64, 0x90\n 1: mov $1, %eax");
/* Behind: the loop's earlier part is changed for the next round. */
SNIPPET(
    m_behind,
    "xor %esi, %esi\n mov $10, %ecx\n 1: mov $1, %eax\n add %eax, %esi\n lea 1b(%rip), %rbx\n incb 1(%rbx)\n"
    "dec %ecx\n jnz 1b");
/* The instruction's own bytes: the store changes it after it was executed. */
SNIPPET(m_self, "xor %ecx, %ecx\n 1: lea 1b(%rip), %rbx\n movb $0x90, (2f-1b)(%rbx)\n 2: push %rax");
SNIPPET(m_self_own, "m_own_at: movw $0x05eb, m_own_at(%rip)\n nop"); /* turns itself into jmp +5 */
SNIPPET(m_rep,
        "lea 1f(%rip), %rdi\n mov $4, %ecx\n mov $0x90, %al\n cld\n rep stosb\n 1: inc %esi\n inc %esi");
SNIPPET(m_rep_over, "lea 2f(%rip), %rdi\n mov $8, %ecx\n mov $0x90, %al\n cld\n 2: rep stosb\n inc %esi\n "
                    "inc %esi\n inc %esi\n"
                    "jmp 3f\n 3:");
/* A conditional jump turned over by its own block. */
SNIPPET(
    m_jcc,
    "lea 1f(%rip), %rbx\n xor %eax, %eax\n cmp $0, %eax\n movb $0x75, (%rbx)\n 1: je 2f\n mov $5, %eax\n 2:");
/* A call's target patched by the callee's caller. */
SNIPPET(m_call, "xor %esi, %esi\n call 9f\n lea 9f(%rip), %rbx\n movb $0xc3, (%rbx)\n call 9f\n jmp 8f\n 9: "
                "inc %esi\n ret\n 8:");
/* The return address's code is changed by the callee. */
SNIPPET(m_ret, "call 9f\n 1: mov $1, %eax\n jmp 8f\n 9: mov (%rsp), %rbx\n movb $77, 1(%rbx)\n ret\n 8:");
SNIPPET(m_push, "lea 1f+8(%rip), %rdx\n mov %rsp, %rbp\n mov %rdx, %rsp\n mov (%rsp), %r8\n mov -8(%rsp), "
                "%rax\n and $0xffffff00, %eax\n"
                "mov $0x9090909090909090, %rax\n push %rax\n mov %rbp, %rsp\n 1: inc %esi\n inc %esi\n inc "
                "%esi\n inc %esi\n nop");

static void in_line(void)
{
    struct frame f;
    f = rt_kernel(m_ahead);
    rt_run(&f);
    is(f.rax, 7, "a store into the next instruction");
    f = rt_kernel(m_ahead_far);
    rt_run(&f);
    is(f.rax, 9, "a store behind a jump ahead");
    f = rt_kernel(m_behind);
    rt_run(&f);
    is(f.rsi, 55, "a loop that changes its own start");
    f = rt_kernel(m_self);
    rt_run(&f);
    ok(rt_done(f, m_self) && f.rsp == rt_kernel(0).rsp,
       "a store into the following instruction's first byte");
    f = rt_kernel(m_self_own);
    rt_run(&f);
    trapped(&f, UD, 0, m_self_own_end, "an instruction that changes itself is executed as it was");
    ok(*(uint16_t *)m_self_own == 0x05eb, "and the bytes are changed");
    f = rt_kernel(m_rep);
    rt_run(&f);
    is(f.rsi, 0, "rep stosb over the instructions behind it");
    f = rt_kernel(m_rep_over);
    f.rcx = 0;
    rt_run(&f);
    /* Whether the instruction finishes as it was, or stops where it was overwritten, is the processor's
     * choice. */
    ok(rt_done(f, m_rep_over) && (f.rcx != 0 || f.rsi == 0), "rep stosb over itself and what follows");
    f = rt_kernel(m_jcc);
    rt_run(&f);
    is(f.rax, 5, "a conditional jump turned over just before it");
    f = rt_kernel(m_call);
    rt_run(&f);
    is(f.rsi, 1, "a function changed between two calls");
    f = rt_kernel(m_ret);
    rt_run(&f);
    is(f.rax, 77, "code at a return address changed by the callee");
    f = rt_kernel(m_push);
    rt_run(&f);
    is(f.rsi, 0, "code changed by a push");
}

static void user_mode(void)
{
    /* The same from ring 3, through the user's mapping. */
    extern char mu_ahead[], mu_ahead_end[];
    struct frame f = rt_user(mu_ahead);
    rt_run(&f);
    ok(rt_done_at(&f, mu_ahead_end) && f.rax == 21, "user code that changes itself");
}
SNIPPET(mu_ahead, "lea 1f(%rip), %rbx\n movb $21, 1(%rbx)\n 1: mov $1, %eax");

static void data_beside(void)
{
    /* Code that writes data in its own page: must stay right, whatever it costs. */
    uint8_t *p = code;
    /* 1: incl 64(%rip) ... ; dec %ecx; jnz 1b; mov counter, %eax; ret */
    static const uint8_t loop[] = {0xb9, 0x10, 0x27, 0x00, 0x00,       /* mov $10000, %ecx */
                                   0xff, 0x05, 0x35, 0x00, 0x00, 0x00, /* incl code+64 */
                                   0xff, 0xc9,                         /* dec %ecx */
                                   0x75, 0xf6,                         /* jnz */
                                   0x8b, 0x05, 0x2b, 0x00, 0x00, 0x00, /* mov code+64, %eax */
                                   0xc3};
    memcpy(p, loop, sizeof(loop));
    memset(p + 64, 0, 4);
    is(call(p), 10000, "10,000 stores to data beside the running code");
    emit_const(p + 128, 1);
    bool right = true;
    for (uint32_t i = 0; i < 3000; i++) {
        *(volatile uint32_t *)(p + 192) = i;
        right &= call(p + 128) == 1 && *(volatile uint32_t *)(p + 192) == i;
    }
    ok(right, "data and code of one page used in turn");
}

static void aliases(void)
{
    /* SDM vol. 3A, 11.6: another linear address: serialize. */
    map(VA, (uint64_t)code, PTE_P | PTE_W);
    map(VA + 0x1000, (uint64_t)code + 0x1000, PTE_P | PTE_W);
    bool right = true;
    for (uint32_t i = 0; i < 2000; i++) {
        emit_const((uint8_t *)VA, i);
        serialize();
        right &= call(code) == i;
        emit_const(code, i + 5);
        serialize();
        right &= call((void *)VA) == i + 5;
    }
    ok(right, "code changed through another linear address");
    /* Remapped to another frame. */
    uint8_t *other = page_alloc();
    emit_const(code, 100);
    emit_const(other, 200);
    right = true;
    for (unsigned i = 0; i < 500; i++) {
        map(VA, (uint64_t)(i & 1 ? other : code), PTE_P | PTE_W);
        invlpg(VA);
        right &= call((void *)VA) == (i & 1 ? 200u : 100u);
    }
    ok(right, "a code page remapped 500 times, with INVLPG");
    /* Same, and the frame's contents change while it is not mapped. */
    right = true;
    for (unsigned i = 0; i < 200; i++) {
        uint8_t *which = i & 1 ? other : code;
        emit_const(which, i);
        map(VA, (uint64_t)which, PTE_P | PTE_W);
        invlpg(VA);
        right &= call((void *)VA) == i;
    }
    ok(right, "and rewritten before each remapping");
    map(VA, (uint64_t)code, PTE_P | PTE_W);
    invlpg(VA);
    /* Same linear address in two address spaces with different code. */
    uint64_t old = read_cr3();
    uint64_t *root = page_alloc();
    memcpy(root, (void *)(old & PTE_ADDR), 4096);
    root[RT_ARENA >> 39 & 511] = 0;
    write_cr3((uint64_t)root);
    map(VA, (uint64_t)other, PTE_P);
    emit_const(code, 1);
    emit_const(other, 2);
    right = true;
    for (unsigned i = 0; i < 200; i++) {
        write_cr3(i & 1 ? (uint64_t)root : old);
        right &= call((void *)VA) == (i & 1 ? 2u : 1u);
    }
    write_cr3(old);
    ok(right, "one linear address with other code in each of two address spaces");
    /* Made unexecutable, then executable again. */
    extern char m_callx[];
    map(VA, (uint64_t)code, PTE_P | PTE_NX);
    invlpg(VA);
    struct frame f = rt_kernel(m_callx);
    f.rbx = VA;
    rt_run(&f);
    trapped(&f, PF, 0x11, (void *)VA, "code made unexecutable after it ran");
    map(VA, (uint64_t)code, PTE_P);
    invlpg(VA);
    is(call((void *)VA), 1, "and executable again");
}
SNIPPET(m_callx, "call *%rbx");

static void crossing(void)
{
    /* An instruction over two pages, each half changed in turn. */
    uint8_t *at = code + 4096 - 3;
    bool right = true;
    for (uint32_t i = 0; i < 1000; i++) {
        emit_const(at, 0);
        at[1] = (uint8_t)i; /* in the first page */
        right &= (call(at) & 0xff) == (uint8_t)i;
        at[4] = (uint8_t)(i * 7); /* in the second */
        right &= call(at) >> 24 == (uint8_t)(i * 7);
    }
    ok(right, "an instruction over two pages, changed in either");
    /* Its second page remapped. */
    uint8_t *p1 = page_alloc(), *p2 = page_alloc();
    p1[0] = p1[1] = 0, p1[2] = 0xc3;
    p2[0] = p2[1] = 0x11, p2[2] = 0xc3;
    emit_const(at, 0x00000033);
    right = true;
    for (unsigned i = 0; i < 200; i++) {
        map(VA + 0x1000, (uint64_t)(i & 1 ? p2 : p1), PTE_P | PTE_W);
        invlpg(VA + 0x1000);
        right &= call((void *)(VA + 4096 - 3)) == (i & 1 ? 0x11110033u : 0x33u);
    }
    ok(right, "and its second page remapped");
}

static void overlapping(void)
{
    /* Jumps into the middle of an instruction: b8 b0 05 c3 90 is mov $imm, and from its second byte mov $5,
     * %al; ret. */
    static const uint8_t bytes[] = {0xb8, 0xb0, 0x05, 0xc3, 0x90, 0xc3};
    memcpy(code, bytes, sizeof(bytes));
    bool right = true;
    for (unsigned i = 0; i < 100; i++) {
        right &= call(code) == 0x90c305b0;
        right &= (call(code + 1) & 0xff) == 5;
    }
    ok(right, "the same bytes executed at two alignments");
    code[2] = 6;
    ok(call(code) == 0x90c306b0 && (call(code + 1) & 0xff) == 6, "and changed for both");
    /* lock prefix skipped: the form used by kernels' alternatives. */
    static const uint8_t locked[] = {0x74, 0x01, 0xf0, 0xff, 0x07, 0xc3}; /* je +1; lock incl (%rdi); ret */
    memcpy(code, locked, sizeof(locked));
    uint32_t n = 0;
    asm volatile("xor %%eax, %%eax\n call *%1\n or $1, %%eax\n call *%1"
                 :
                 : "D"(&n), "r"(code)
                 : "rax", "memory");
    is(n, 2, "a jump over a prefix");
}

static void by_copy(void)
{
    /* Code arrives by string and vector stores, by locked instructions and by the page tables' A/D updates
     * (not code). */
    uint8_t image[16];
    bool right = true;
    for (uint32_t i = 0; i < 500; i++) {
        emit_const(image, i);
        memcpy(code, image, 6);
        right &= call(code) == i;
    }
    ok(right, "code written by rep movsb");
    right = true;
    for (uint32_t i = 0; i < 500; i++) {
        emit_const(image, i ^ 0xffff);
        uint64_t q;
        memcpy(&q, image, 8);
        asm volatile("xchg %0, (%1)" : "+r"(q) : "r"(code) : "memory");
        right &= call(code) == (i ^ 0xffff);
    }
    ok(right, "code written by xchg");
    right = true;
    for (uint32_t i = 0; i < 500; i++) {
        emit_const(image, i + 99);
        asm volatile("movups (%0), %%xmm0\n movups %%xmm0, (%1)" ::"r"(image), "r"(code) : "memory");
        right &= call(code) == i + 99;
    }
    ok(right, "code written by a vector store");
    emit_const(code, 0);
    for (uint32_t i = 0; i < 500; i++) {
        asm volatile("lock incl 1(%0)" ::"r"(code) : "memory");
        right &= call(code) == i + 1;
    }
    ok(right, "code changed by lock inc");
}

void test_main(void)
{
    code = page_alloc_n(2);
    rewrite();
    in_line();
    user_mode();
    data_beside();
    aliases();
    crossing();
    overlapping();
    by_copy();
}
