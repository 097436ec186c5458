/*
 * A guest that tries to get out: random bytes as user code and jumps into the middle of instructions, under a
 * supervisor that catches every exception and goes on; more addresses than any TLB or cache of translations
 * holds; exceptions nested 10,000 deep, and until the stack ends. The machine below must survive, and the
 * supervisor must find its own state unharmed. tests/jail/run boots it in a jail, and looks at the process's
 * size.
 */
#include "rt/rt.h"

#define CODE   ((uint64_t)RT_ARENA + 0x10000)
#define STACK  ((uint64_t)RT_ARENA + 0x30000)
#define ROUNDS 3000

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545f4914f6cdd1d;
}

static volatile unsigned ticks;
static bool on_timer(struct frame *f)
{
    ticks++;
    *(volatile uint32_t *)0xfee000b0 = 0;
    return (f->cs & 3) == 0; /* ends user code that loops */
}

static unsigned by_vector[256];

static void fill(uint8_t *p, unsigned style)
{
    for (unsigned i = 0; i < 4096; i += 8) {
        uint64_t v = random64();
        memcpy(p + i, &v, 8);
    }
    if (style == 0) {
        return;
    }
    /* Sprinkle what random bytes seldom hit: two-byte opcodes, prefixes, vector encodings. */
    static const uint8_t starts[][4] = {
        {0x0f, 0x01}, {0x0f, 0x00}, {0x0f, 0xc7},       {0xf3, 0x0f},
        {0x66, 0x0f}, {0xc5, 0xf8}, {0xc4, 0xe2, 0x79}, {0x62, 0xf1, 0x7c, 0x48},
        {0x48, 0xcf}, {0x0f, 0x05}, {0x0f, 0x34},       {0xcd, 0x80},
        {0xf0, 0x48}, {0x0f, 0xae}, {0xff, 0x2b},       {0xca, 0x08, 0x00},
        {0x8e, 0xd0}, {0x9d},       {0x0f, 0x0b},       {0x67, 0xf3, 0xa4}};
    for (unsigned i = 0; i < 4096 - 16; i += 3 + (unsigned)(random64() % 13)) {
        const uint8_t *s = starts[random64() % (sizeof(starts) / sizeof(starts[0]))];
        memcpy(p + i, s, 2 + random64() % 3);
    }
}

/* Where user code lies and runs: one page, and four of stack. */
struct place {
    uint64_t code_va, stack_va;
    uint8_t *code;
    bool compat;
};

static struct place make_place(bool compat)
{
    struct place place = {compat ? 0x90000000 : CODE, compat ? 0x90010000 : STACK, page_alloc(), compat};
    uint8_t *stack = page_alloc_n(4);
    map(place.code_va, (uint64_t)place.code, PTE_P | PTE_W | PTE_U);
    for (unsigned i = 0; i < 4; i++) {
        map(place.stack_va + i * 4096, (uint64_t)stack + i * 4096ul, PTE_P | PTE_W | PTE_U);
    }
    return place;
}

/* Runs what lies at an offset, with random registers, until it traps. Whether it trapped as user code has to:
 * from ring 3, with IF on and IOPL 0. */
static bool run_at(const struct place *place, unsigned offset, bool step)
{
    struct frame f = place->compat ? rt_user32(NULL) : rt_user(NULL);
    uint64_t *regs = &f.r15;
    for (unsigned i = 0; i < 15; i++) {
        switch (random64() % 4) {
        case 0: regs[i] = random64(); break;
        case 1: regs[i] = place->code_va + random64() % 4096; break;
        case 2: regs[i] = place->stack_va + random64() % 16384; break;
        default: regs[i] = random64() % 256; break;
        }
    }
    f.rip = place->code_va + offset;
    f.rsp = place->stack_va + 8192;
    f.rflags = 2 | FL_IF | (random64() & (FL_CF | FL_ZF | FL_OF | FL_AC | (step ? FL_TF : 0)));
    *(volatile uint32_t *)0xfee00380 = 300000; /* one-shot: a bound on loops */
    rt_run(&f);
    *(volatile uint32_t *)0xfee00380 = 0;
    by_vector[f.vector & 0xff]++;
    bool sane = (f.cs & 3) == 3 && f.rflags & FL_IF && !(f.rflags & 0x3000);
    if (!sane) {
        rt_printf("# offset %u: vector %lu error %lx at %lx:%lx flags %lx\n", offset, f.vector, f.error, f.cs,
                  f.rip, f.rflags);
    }
    return sane;
}

static void say_vectors(void)
{
    unsigned kinds = 0;
    for (unsigned v = 0; v < 256; v++) {
        kinds += by_vector[v] != 0;
        if (by_vector[v]) {
            rt_printf("# vector %u: %u times\n", v, by_vector[v]);
        }
    }
    ok(by_vector[UD] && by_vector[GP] && by_vector[PF] && kinds >= 4, "several kinds of exception came");
    memset(by_vector, 0, sizeof(by_vector));
}

static void random_code(bool compat)
{
    struct place place = make_place(compat);
    unsigned odd = 0;
    for (unsigned round = 0; round < ROUNDS && odd < 5; round++) {
        fill(place.code, round & 1);
        odd += !run_at(&place, (unsigned)(random64() % 2048), round % 7 == 0);
    }
    is(odd, 0,
       compat ? "random 32-bit user code always traps from ring 3 with IF on and IOPL 0"
              : "random 64-bit user code always traps from ring 3 with IF on and IOPL 0");
    say_vectors();
}

/* --- jumps into the middle of instructions */

static uint64_t call(const void *p)
{
    uint64_t r;
    asm volatile("call *%1" : "=a"(r) : "r"(p), "a"(0) : "memory", "cc");
    return r;
}

/* mov $imm32, %eax; ret, whose operand is mov $i, %al; ret */
static void two_readings(void)
{
    uint8_t *code = page_alloc();
    unsigned wrong = 0;
    for (unsigned i = 0; i < 20000; i++) {
        uint8_t *at = code + i % 600 * 6;
        const uint8_t bytes[] = {0xb8, 0xb0, (uint8_t)i, 0xc3, 0x90, 0xc3};
        memcpy(at, bytes, sizeof(bytes));
        for (unsigned turn = 0; turn < 3; turn++) {
            wrong += call(at) != (0x90c300b0u | (i & 0xff) << 8);
            wrong += call(at + 1) != (i & 0xff);
        }
    }
    is(wrong, 0, "an instruction inside another: both readings of 20,000 versions are right");
}

static void middles(void)
{
    struct place place = make_place(false);
    unsigned odd = 0;
    two_readings();
    const uint8_t *own = (const uint8_t *)((uint64_t)test_main & ~0xfffull);
    for (unsigned i = 0; i < 4096 && odd < 5; i++) {
        memcpy(place.code, own, 4096); /* the code before may have written to it */
        odd += !run_at(&place, i, i % 7 == 0);
    }
    is(odd, 0, "a page of compiled code, entered at each of its 4,096 bytes");
    memset(by_vector, 0, sizeof(by_vector));
}

/* --- more addresses than anything caches */

/* 2^27 pages with four frames behind them: one table of each level, of which all entries lead to the next. */
#define WIDE    0x20000000000ull /* of 512 GiB: an entry of the PML4 */
#define TOUCHES 1000000u
#define CALLS   100000u

static uint8_t *frames[4];

static void map_wide(void)
{
    extern uint64_t rt_pml4[512];
    uint64_t *pdpt = page_alloc(), *pd = page_alloc(), *pt = page_alloc();
    for (unsigned i = 0; i < 4; i++) {
        frames[i] = page_alloc();
    }
    for (unsigned i = 0; i < 512; i++) {
        pdpt[i] = (uint64_t)pd | PTE_P | PTE_W;
        pd[i] = (uint64_t)pt | PTE_P | PTE_W;
        pt[i] = (uint64_t)frames[i % 4] | PTE_P | PTE_W;
    }
    rt_pml4[WIDE >> 39] = (uint64_t)pdpt | PTE_P | PTE_W;
}

static void wide(void)
{
    unsigned wrong = 0;
    map_wide();
    for (unsigned i = 0; i < TOUCHES; i++) {
        uint64_t page = random64() % (1 << 27), offset = random64() % 512 * 8;
        volatile uint64_t *at = (volatile uint64_t *)(WIDE + page * 4096 + offset);
        *at = i;
        wrong += *(volatile uint64_t *)(frames[page % 4] + offset) != i;
        if (i % 4096 == 0) {
            write_cr3(read_cr3());
        }
    }
    is(wrong, 0, "1,000,000 stores to as many pages each arrive in their frame");
    wrong = 0;
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t function[] = {0xb8, (uint8_t)i, 0x5a, 0, 0, 0xc3}; /* mov $imm, %eax; ret */
        memcpy(frames[i] + 128, function, sizeof(function));
    }
    for (unsigned i = 0; i < CALLS; i++) {
        uint64_t page = random64() % (1 << 27);
        wrong += call((const void *)(WIDE + page * 4096 + 128)) != (0x5a00 | page % 4);
    }
    is(wrong, 0, "100,000 calls of a function, each at another address");
}

/* --- exceptions inside exceptions */

SNIPPET(h_ud, "ud2\n nop");
static unsigned depth, deepest;

static bool nest(struct frame *f)
{
    if (++depth < 60) {
        asm volatile("ud2");
    }
    deepest = depth;
    f->rip += 2;
    return true;
}

static void nesting(void)
{
    rt_gate(UD, (uint64_t)rt_vectors + 16 * UD, RT_KCODE64, 0x8e, 0);
    rt_on(UD, nest);
    asm volatile("ud2");
    rt_on(UD, NULL);
    rt_gate_default(UD);
    is(deepest, 60, "60 exceptions inside one another");
    is(depth, 60, "and out again");
}

/* Handlers without C: each counts, and has the same exception again until there are nest_limit; then all
 * return behind their instruction of two bytes. A page fault leaves an error code. */
#define NEST_DEEP 10000u

extern char nest_ud[], nest_pf[], nest_int[];
uint64_t nest_count, nest_limit;
asm(".pushsection .text\n"
    "nest_ud: incq nest_count\n mov nest_limit, %rax\n cmp %rax, nest_count\n jae 1f\n ud2\n"
    "1: addq $2, (%rsp)\n iretq\n"
    "nest_pf: incq nest_count\n mov nest_limit, %rax\n cmp %rax, nest_count\n jae 1f\n testb %al, (%rdx)\n"
    "1: add $8, %rsp\n addq $2, (%rsp)\n iretq\n"
    "nest_int: incq nest_count\n mov nest_limit, %rax\n cmp %rax, nest_count\n jae 1f\n int $0x51\n"
    "1: iretq\n"
    ".popsection");

static uint8_t *nest_stack;
#define NEST_STACK_PAGES 160u

#define NEST(instruction)                                                                                    \
    ({                                                                                                       \
        nest_count = 0;                                                                                      \
        nest_limit = NEST_DEEP;                                                                              \
        uint64_t before_, after_;                                                                            \
        asm volatile("mov %%rsp, %%rbx\n mov %2, %%rsp\n mov %%rsp, %0\n " instruction                       \
                     "\n mov %%rsp, %1\n mov %%rbx, %%rsp"                                                   \
                     : "=&r"(before_), "=&r"(after_)                                                         \
                     : "r"(nest_stack + NEST_STACK_PAGES * 4096ul), "d"(RT_ARENA - 4096ull)                  \
                     : "rax", "rbx", "memory", "cc");                                                        \
        nest_count == NEST_DEEP &&before_ == after_;                                                         \
    })

SNIPPET(h_ud2, "ud2");

static void deep_nesting(void)
{
    nest_stack = page_alloc_n(NEST_STACK_PAGES);
    rt_gate(UD, (uint64_t)nest_ud, RT_KCODE64, 0x8e, 0);
    rt_gate(PF, (uint64_t)nest_pf, RT_KCODE64, 0x8e, 0);
    rt_gate(0x51, (uint64_t)nest_int, RT_KCODE64, 0x8e, 0);
    bool ud = NEST("ud2"), pf = NEST("testb %%al, (%%rdx)"), software = NEST("int $0x51");
    rt_gate_default(PF);
    rt_gate_default(0x51);
    ok(ud, "10,000 #UD inside one another, and out again");
    ok(pf, "10,000 #PF inside one another, and out again");
    ok(software, "10,000 INT n inside one another, and out again");
    /* No end but that of the stack, below which nothing is mapped; frames are aligned to 16 bytes. */
    for (unsigned i = 0; i < 16; i++) {
        map(STACK + 0x100000 + i * 4096, (uint64_t)nest_stack + i * 4096ul, PTE_P | PTE_W);
    }
    struct frame f = rt_kernel(h_ud2);
    f.rsp = STACK + 0x100000 + 16 * 4096;
    nest_count = 0;
    nest_limit = UINT64_MAX;
    rt_run(&f);
    rt_gate_default(UD);
    is(f.vector, PF, "#UD inside #UD until the stack ends: #PF");
    is(nest_count, 16 * 4096 / 48, "as many as it holds");
}

static void descriptor_tables(void)
{
    /* Random descriptors loaded from ring 0 and 3: whatever happens is an exception at most. */
    extern char h_load[];
    unsigned done = 0, faults = 0;
    for (unsigned i = 0; i < 2000; i++) {
        rt_gdt[RT_FREE / 8] = random64();
        rt_gdt[RT_FREE / 8 + 1] = 0;
        struct frame f = i & 1 ? rt_user(h_load) : rt_kernel(h_load);
        f.rax = RT_FREE | (random64() & 3);
        rt_run(&f);
        done += f.vector == UD;
        faults += f.vector != UD;
        asm volatile("mov %0, %%es" ::"r"(0));
        if (f.vector != UD && f.vector != GP && f.vector != NP) {
            ok(false, "loading ES with a random descriptor");
        }
    }
    rt_gdt[RT_FREE / 8] = 0;
    ok(done > 50 && faults > 50, "2,000 random descriptors loaded into ES");
}
SNIPPET(h_load, "mov %eax, %es");

void test_main(void)
{
    rt_printf("# seed %lx\n", seed);
    *(volatile uint32_t *)0xfee000f0 = 0x1ff;
    *(volatile uint32_t *)0xfee003e0 = 0xb;
    *(volatile uint32_t *)0xfee00320 = 0x40;
    rt_on(0x40, on_timer);
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull); /* SYSCALL is #UD */
    wrmsr(0x174, 0);
    about("random code");
    random_code(false);
    random_code(true);
    about("middle of instructions");
    middles();
    about("many addresses");
    wide();
    about("nested exceptions");
    nesting();
    deep_nesting();
    about("descriptors");
    descriptor_tables();
}
