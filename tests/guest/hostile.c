/*
 * Random bytes as user code, under a supervisor that catches every exception and goes on; then deep nesting
 * of exceptions. The machine below must survive, and the supervisor must find its own state unharmed.
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

static void random_code(bool compat)
{
    uint8_t *code = page_alloc(), *stack = page_alloc_n(4);
    uint64_t code_va = compat ? 0x90000000 : CODE, stack_va = compat ? 0x90010000 : STACK;
    map(code_va, (uint64_t)code, PTE_P | PTE_W | PTE_U);
    for (unsigned i = 0; i < 4; i++) {
        map(stack_va + i * 4096, (uint64_t)stack + i * 4096ul, PTE_P | PTE_W | PTE_U);
    }
    unsigned odd = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        fill(code, round & 1);
        struct frame f = compat ? rt_user32(NULL) : rt_user(NULL);
        uint64_t *regs = &f.r15;
        for (unsigned i = 0; i < 15; i++) {
            switch (random64() % 4) {
            case 0: regs[i] = random64(); break;
            case 1: regs[i] = code_va + random64() % 4096; break;
            case 2: regs[i] = stack_va + random64() % 16384; break;
            default: regs[i] = random64() % 256; break;
            }
        }
        f.rip = code_va + random64() % 2048;
        f.rsp = stack_va + 8192;
        f.rflags = 2 | FL_IF | (random64() & (FL_CF | FL_ZF | FL_OF | FL_AC | (round % 7 == 0 ? FL_TF : 0)));
        *(volatile uint32_t *)0xfee00380 = 300000; /* one-shot: a bound on loops */
        rt_run(&f);
        *(volatile uint32_t *)0xfee00380 = 0;
        by_vector[f.vector & 0xff]++;
        bool sane = (f.cs & 3) == 3 && f.rflags & FL_IF && !(f.rflags & 0x3000);
        if (!sane && odd++ < 5) {
            rt_printf("# round %u: vector %lu error %lx at %lx:%lx flags %lx\n", round, f.vector, f.error,
                      f.cs, f.rip, f.rflags);
        }
    }
    is(odd, 0,
       compat ? "random 32-bit user code always traps from ring 3 with IF on and IOPL 0"
              : "random 64-bit user code always traps from ring 3 with IF on and IOPL 0");
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
    random_code(false);
    random_code(true);
    nesting();
    descriptor_tables();
}
