/*
 * Loops over memory in user mode, and what ends them: faults in the middle are precise (SDM vol. 3A, 6.6),
 * and what an access found once does not outlive INVLPG, a load of CR3, or a page that became code
 * (4.10.4, 11.6).
 */
#include "rt/rt.h"

#define VA         ((uint64_t)RT_ARENA + 0x80000000)
#define PAGES      4u
#define USER       (PTE_P | PTE_W | PTE_U)
#define BAD        0x8000000000000000ull /* not canonical */
#define PF_WRITE   2u
#define PF_USER    4u
#define PF_PRESENT 1u

static uint8_t *frames[PAGES + 1]; /* of VA's pages, not neighbours of one another; one to spare */

SNIPPET(l_bytes, "1: movzbl (%rdi), %eax\n add %rax, %rdx\n inc %rdi\n dec %rcx\n jnz 1b");
SNIPPET(l_store, "1: mov %rax, (%rdi)\n add $8, %rdi\n inc %rax\n cmp %rsi, %rdi\n jne 1b");
SNIPPET(l_odd, "1: add (%rdi), %rdx\n add $3, %rdi\n dec %rcx\n jnz 1b");
SNIPPET(l_down, "1: mov -8(%rdi,%rcx,8), %rax\n add %rax, %rdx\n dec %rcx\n jnz 1b");
SNIPPET(l_modify, "1: addl $1, (%rdi,%rdx,4)\n inc %rdx\n cmp %rcx, %rdx\n jb 1b");
SNIPPET(l_carry, "clc\n 1: mov (%rdi), %rax\n adc %rax, (%rsi)\n lea 8(%rdi), %rdi\n lea 8(%rsi), %rsi\n dec "
                 "%rcx\n jnz 1b");
SNIPPET(l_find, "1: cmpb $0, (%rdi)\n je 2f\n inc %rdi\n cmp %rsi, %rdi\n jne 1b\n 2: nop");
SNIPPET(l_two, "1: mov (%rsi), %al\n mov %al, (%rdi)\n inc %rsi\n inc %rdi\n dec %rcx\n jnz 1b");
SNIPPET(
    l_push,
    "1: push %rcx\n dec %rcx\n jnz 1b\n mov %rdx, %rcx\n 2: pop %rax\n add %rax, %rbx\n dec %rcx\n jnz 2b");
SNIPPET(l_once, "mov (%rdi), %rax");
SNIPPET(l_stack, "mov (%rsp), %rax");
SNIPPET(l_put, "1: movb %al, (%rdi)\n dec %rcx\n jnz 1b");
SNIPPET(l_call, "call *%rdi");

static void map_all(void)
{
    for (unsigned i = 0; i < PAGES; i++) {
        map(VA + i * 4096, (uint64_t)frames[i], USER);
        invlpg(VA + i * 4096);
    }
    for (uint64_t i = 0; i < PAGES * 4096; i++) {
        frames[i / 4096][i % 4096] = (uint8_t)(i * 7 + i / 4096);
    }
}

static uint64_t byte_at(uint64_t i)
{
    return (uint8_t)(i * 7 + i / 4096);
}

static struct frame run(const void *code, uint64_t rdi, uint64_t rsi, uint64_t rcx, uint64_t rdx)
{
    struct frame f = rt_user(code);
    f.rdi = rdi;
    f.rsi = rsi;
    f.rcx = rcx;
    f.rdx = rdx;
    rt_run(&f);
    return f;
}

static void faults(void)
{
    map_all();
    *pte_of(VA + 3 * 4096, 1) = 0;
    invlpg(VA + 3 * 4096);
    uint64_t sum = 0;
    for (uint64_t i = 5; i < 3 * 4096; i++) {
        sum += byte_at(i);
    }
    struct frame f = run(l_bytes, VA + 5, 0, 20000, 0);
    trapped(&f, PF, PF_USER, l_bytes, "a loop of loads runs into a page that is not there");
    ok(f.cr2 == VA + 3 * 4096 && f.rdi == f.cr2 && f.rcx == 20000 - (3 * 4096 - 5) && f.rdx == sum,
       "registers are those of the last turn that was done");

    f = run(l_find, VA + 3 * 4096 - 40, VA + 5 * 4096, 0, 0);
    ok(f.vector == PF || f.rdi < VA + 3 * 4096, "a search ends at what it finds, or by the fault");

    *pte_of(VA + 2 * 4096, 1) &= ~PTE_W;
    invlpg(VA + 2 * 4096);
    f = run(l_store, VA + 24, VA + 6 * 4096, 0, 0);
    trapped(&f, PF, PF_USER | PF_WRITE | PF_PRESENT, l_store, "a loop of stores runs into a read-only page");
    bool right = f.rdi == VA + 2 * 4096 && f.rax == (2 * 4096 - 24) / 8;
    for (uint64_t i = 3; i < 2 * 512; i++) {
        right &= ((uint64_t *)(void *)frames[i / 512])[i % 512] == i - 3;
    }
    ok(right && frames[2][0] == byte_at(2 * 4096), "all stores in front of it were made, and none behind");

    map_all();
    *pte_of(VA + 3 * 4096, 1) = 0;
    invlpg(VA + 3 * 4096);
    f = run(l_odd, VA + 1, 0, 100000, 0);
    uint64_t at = VA + 1 + (3 * 4096 - 8) / 3 * 3;
    while (at + 8 <= VA + 3 * 4096) {
        at += 3;
    }
    trapped(&f, PF, PF_USER, l_odd, "accesses across pages, until the second one is missing");
    ok(f.rdi == at && f.cr2 == VA + 3 * 4096, "at the first that reaches into it");

    *pte_of(VA, 1) = 0;
    invlpg(VA);
    f = run(l_down, VA, 0, 1024, 0);
    trapped(&f, PF, PF_USER, l_down, "a loop that goes down runs into a page that is not there");
    ok(f.rcx == 512 && f.cr2 == VA + 4088, "at its highest element");

    map_all();
    *pte_of(VA + 4096, 1) &= ~PTE_W;
    invlpg(VA + 4096);
    memset(frames[0], 0, 4096);
    f = run(l_modify, VA, 0, 2000, 0);
    trapped(&f, PF, PF_USER | PF_WRITE | PF_PRESENT, l_modify,
            "read-modify-writes run into a read-only page");
    right = f.rdx == 1024;
    for (unsigned i = 0; i < 1024; i++) {
        right &= ((uint32_t *)(void *)frames[0])[i] == 1;
    }
    ok(right, "each element was changed once");
}

static void results(void)
{
    map_all();
    for (unsigned i = 0; i < 512; i++) { /* carries through all of it */
        ((uint64_t *)(void *)frames[0])[i] = ~0ull;
        ((uint64_t *)(void *)frames[1])[i] = i == 0;
    }
    struct frame f = run(l_carry, VA, VA + 4096, 512, 0);
    bool right = rt_done(f, l_carry);
    for (unsigned i = 0; i < 512; i++) {
        right &= ((uint64_t *)(void *)frames[1])[i] == 0;
    }
    ok(right, "a carry lives from turn to turn");

    map_all();
    f = run(l_two, VA + 1, VA, 3 * 4096, 0); /* each byte becomes the first */
    right = rt_done(f, l_two);
    for (uint64_t i = 0; i <= 3 * 4096; i++) {
        right &= frames[i / 4096][i % 4096] == 0;
    }
    ok(right, "a copy onto itself, a byte further on");

    f = rt_user(l_push);
    f.rsp = VA + 3 * 4096 + 80;
    f.rcx = f.rdx = 1000;
    rt_run(&f);
    ok(rt_done(f, l_push) && f.rbx == 500500 && f.rsp == VA + 3 * 4096 + 80, "pushes and pops over pages");

    static unsigned steps;
    steps = 0;
    f = rt_user(l_bytes);
    f.rdi = VA;
    f.rcx = 50;
    f.rflags |= FL_TF;
    for (; steps < 1000; steps++) {
        rt_run(&f);
        if (f.vector != DB) {
            break;
        }
    }
    is(steps, 250, "50 turns of five instructions, one by one");
}

static void read_is(uint64_t value, const char *text)
{
    struct frame f = run(l_once, VA, 0, 0, 0);
    ok(rt_done(f, l_once) && f.rax == value, text);
}

static void remaps(void)
{
    map_all();
    *(uint64_t *)(void *)frames[0] = 11;
    *(uint64_t *)(void *)frames[PAGES] = 22;
    for (unsigned i = 0; i < 50; i++) {
        run(l_once, VA, 0, 0, 0);
    }
    read_is(11, "a load");
    map(VA, (uint64_t)frames[PAGES], USER);
    invlpg(VA);
    read_is(22, "behind INVLPG the page is another");
    map(VA, (uint64_t)frames[0], USER);
    write_cr3(read_cr3());
    read_is(11, "and behind a load of CR3");
    *pte_of(VA, 1) = 0;
    invlpg(VA);
    struct frame f = run(l_once, VA, 0, 0, 0);
    trapped(&f, PF, PF_USER, l_once, "and it is gone");

    map_all();
    f = run(l_put, VA, 0, 1000, 0);
    ok(rt_done(f, l_put), "a store again and again");
    *pte_of(VA, 1) &= ~PTE_W;
    invlpg(VA);
    f = run(l_put, VA, 0, 1000, 0);
    trapped(&f, PF, PF_USER | PF_WRITE | PF_PRESENT, l_put, "and then the page is read-only");
    map(VA, (uint64_t)frames[0], USER & ~PTE_U);
    invlpg(VA);
    f = run(l_once, VA, 0, 0, 0);
    trapped(&f, PF, PF_USER | PF_PRESENT, l_once, "and the supervisor's");
}

/* Data that becomes code, and code that is changed, through the same place in the program. */
static void becomes_code(void)
{
    static const uint8_t function[] = {0xb0, 0x01, 0xc3}; /* mov $1, %al; ret */
    map_all();
    bool right = true;
    for (unsigned i = 0; i < 200 && right; i++) {
        memcpy(frames[1] + 64, function, sizeof(function));
        struct frame f = rt_user(l_put); /* its immediate, by user mode */
        f.rdi = VA + 4096 + 65;
        f.rax = i;
        f.rcx = 3;
        rt_run(&f);
        right &= rt_done(f, l_put);
        f = run(l_call, VA + 4096 + 64, 0, 0, 0);
        right &= rt_done(f, l_call) && (f.rax & 0xff) == (uint8_t)i;
    }
    ok(right, "a function is written and called in turn");
}

static void not_canonical(void)
{
    struct frame f = run(l_once, BAD, 0, 0, 0);
    trapped(&f, GP, 0, l_once, "a load from a non-canonical address");
    f = run(l_once, BAD + 8, 0, 0, 0);
    trapped(&f, GP, 0, l_once, "and from another");
    f = rt_user(l_stack);
    f.rsp = BAD;
    rt_run(&f);
    trapped(&f, SS, 0, l_stack, "through the stack pointer it is #SS");
}

void test_main(void)
{
    for (unsigned i = 0; i <= PAGES; i++) {
        page_alloc();
        frames[i] = page_alloc();
    }
    faults();
    results();
    remaps();
    becomes_code();
    not_canonical();
}
