/*
 * Random system-mode cases: segment loads, looks at descriptors, far transfers, paging rights, flags. A case
 * is made from (seed, number) alone, so any machine makes the same; what came of it goes into a hash, of
 * which one line is printed for every 64 cases. tests/guest/sysrand runs this on two machines, compares the
 * lines, and has both print the cases of a line that differs.
 *
 * Left out is what the manual leaves undefined, and what QEMU is known to do otherwise (known.py): reserved
 * bits, non-canonical addresses, the error code of a read-modify-write, forbidden bits of control registers
 * and MSRs.
 */
#include "rt/rt.h"

#define LINE 64

/* Found by its first word, and filled in by the driver. */
volatile struct {
    uint64_t magic, seed, first, count, verbose;
} sysrand_config __attribute__((section(".data"), aligned(64))) = {0x5eed5eed0ddba11, 1, 0, 6400, 0};

#define SLOT_FIRST 40 /* GDT entries that are ours */
#define SLOT_END   64
#define VA         ((uint64_t)RT_ARENA + 0x600000)

static uint64_t rng_state, hash;
static bool loud;
static uint64_t *frame_page;

static uint64_t rng(void)
{
    /* splitmix64 */
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static unsigned pick(unsigned n)
{
    return (unsigned)(rng() % n);
}

static void say(const char *name, uint64_t value)
{
    hash = (hash ^ value) * 0x100000001b3ull;
    hash ^= hash >> 29;
    if (loud) {
        rt_printf(" %s=%lx", name, (unsigned long)value);
    }
}

static void outcome(const struct frame *f)
{
    say("vector", f->vector);
    say("error", f->error);
    if (f->vector == PF) {
        say("cr2", f->cr2);
    }
    say("cs", f->cs);
    say("rip", f->rip);
}

/* A descriptor whose base is 0, so that code of ours can run in it; sometimes with a small limit. */
static uint64_t descriptor(void)
{
    static const uint8_t system[] = {2,  9,  11, 12,
                                     14, 15, 0,  8}; /* no task gate: QEMU takes it for valid in long mode */
    bool is_system = pick(6) == 0;
    uint64_t type = is_system ? system[pick(sizeof(system))] : 0x10 | pick(16);
    if (!is_system) {
        type |= 1; /* accessed: whether a refused load sets it is not told apart here */
    }
    uint64_t attributes = type | (uint64_t)pick(4) << 5 | (uint64_t)(pick(8) != 0) << 7;
    uint64_t high = pick(16); /* AVL, L, D, G */
    if ((high & 6) == 6) {
        high &= ~4ull; /* L and D together: reserved */
    }
    bool code = (type & 0x18) == 0x18; /* whose limits have directed tests: QEMU checks none */
    uint64_t limit = pick(4) || code ? 0xfffff : pick(0x10000);
    if (code) {
        high |= 8;
    }
    return (limit & 0xffff) | attributes << 40 | (limit >> 16) << 48 | high << 52;
}

static uint16_t selector(void)
{
    if (pick(8) == 0) {
        return (uint16_t)pick(8); /* null, and the LDT's first */
    }
    return (uint16_t)((SLOT_FIRST + pick(SLOT_END - SLOT_FIRST)) << 3 | (pick(16) == 0 ? 4 : 0) | pick(4));
}

SNIPPET(r_ds, "mov %eax, %ds");
SNIPPET(r_es, "mov %eax, %es");
SNIPPET(r_fs, "mov %eax, %fs");
SNIPPET(r_gs, "mov %eax, %gs");
SNIPPET(r_ss, "mov %eax, %ss");
SNIPPET(r_lar, "lar %eax, %ecx\n pushf\n pop %rdx");
SNIPPET(r_lsl, "lsl %eax, %ecx\n pushf\n pop %rdx");
SNIPPET(r_verr, "verr %ax\n pushf\n pop %rdx");
SNIPPET(r_verw, "verw %ax\n pushf\n pop %rdx");
SNIPPET(r_lret, "push %rdx\n push %rsi\n push %rax\n push %rcx\n lretq");
SNIPPET(r_iret, "push %rdx\n push %rsi\n push %rdi\n push %rax\n push %rcx\n iretq");
SNIPPET(r_popf, "push %rax\n popf\n pushf\n pop %rcx");
SNIPPET(r_popf16, "push %rax\n popfw\n add $6, %rsp\n pushf\n pop %rcx");
SNIPPET(r_target, "nop");
SNIPPET(r_read, "mov (%rbx), %rax");
SNIPPET(r_write, "mov %rax, (%rbx)");
SNIPPET(r_push, "mov %rbx, %rsp\n push %rax");
SNIPPET(r_call, "call *%rbx");

static struct frame start(const void *code, bool user)
{
    return user ? rt_user(code) : rt_kernel(code);
}

static void segments(void)
{
    static const void *const loads[] = {r_ds, r_es, r_fs, r_gs, r_ss};
    unsigned which = pick(5);
    struct frame f = start(loads[which], pick(2));
    f.rax = selector();
    if (which == 4 && f.rax < 4 && !(f.cs & 3)) {
        f.rax = 0; /* QEMU loads a null SS with any RPL */
    }
    say("load", f.rax);
    rt_run(&f);
    outcome(&f);
    wrmsr(0xc0000100, 0), wrmsr(0xc0000101, 0);
    asm volatile("mov %0, %%ds\n mov %0, %%es\n mov %0, %%fs\n mov %0, %%gs" ::"r"(0));
}

static void looks(void)
{
    static const void *const codes[] = {r_lar, r_lsl, r_verr, r_verw};
    struct frame f = start(codes[pick(4)], pick(2));
    f.rax = selector();
    f.rcx = 0x5555;
    say("look", f.rax);
    rt_run(&f);
    outcome(&f);
    say("rcx", (uint32_t)f.rcx & ~0xf0000u); /* bits 19:16 of LAR's result are undefined */
    say("zf", f.rdx & FL_ZF);
}

static void transfers(void)
{
    bool user = pick(2);
    bool iret = pick(2);
    struct frame f = start(iret ? (const void *)r_iret : r_lret, user);
    f.rax = selector();
    f.rcx = (uint64_t)r_target_end; /* UD2 in every mode */
    f.rdx = pick(3) ? 0x10 : selector();
    f.rsi = (uint64_t)frame_page + 2048;
    f.rdi = 2 | (rng() & (FL_CF | FL_ZF | FL_DF | FL_AC | FL_NT | 0x3000));
    if (f.rdx < 4 || !(rt_gdt[f.rdx / 8 % 64] >> 47 & 1)) {
        f.rdx = 0x10; /* QEMU allows a null SS by the old CS, and raises #NP for one that is not present */
    }
    say("to", f.rax);
    say("ss", f.rdx);
    say("flags", f.rdi);
    rt_run(&f);
    outcome(&f);
    say("rsp-moved", f.vector == UD ? f.ss : 0);
    asm volatile("mov %0, %%ds\n mov %0, %%es\n mov %0, %%fs\n mov %0, %%gs" ::"r"(0));
}

static void paging(void)
{
    static const void *const codes[] = {r_read, r_write, r_push, r_call};
    unsigned what = pick(4);
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    uint64_t set4 = 0;
    set4 |= pick(2) && HAS_SMEP() ? 1ull << 20 : 0;
    set4 |= pick(2) && HAS_SMAP() ? 1ull << 21 : 0;
    map(VA, (uint64_t)frame_page, PTE_P | PTE_W | PTE_U);
    uint64_t old[4], *entry[4];
    for (unsigned level = 1; level <= 3; level++) {
        entry[level] = pte_of(VA, level);
        old[level] = *entry[level];
    }
    for (unsigned level = 1; level <= 3; level++) {
        uint64_t off = pick(5) == 0 ? PTE_W : pick(5) == 0 ? PTE_U : pick(12) == 0 ? PTE_P : 0;
        *entry[level] =
            (old[level] & ~(off | PTE_A | (level == 1 ? PTE_D : 0))) | (pick(5) == 0 ? PTE_NX : 0);
    }
    frame_page[0] = 0x0b0f0b0f0b0f0b0full; /* UD2 */
    struct frame f = start(codes[what], pick(2));
    f.rbx = VA + (what == 2 ? 8 : 0);
    f.rflags |= pick(2) && !(f.cs & 3) ? FL_AC : 0;
    uint64_t wp = pick(2) ? 1ull << 16 : 0;
    say("page", what);
    say("cr", set4 | wp);
    say("flags", f.rflags);
    for (unsigned level = 1; level <= 3; level++) {
        say("entry", *entry[level] & 0x8000000000000fffull);
    }
    invlpg(VA);
    write_cr0((cr0 & ~(1ull << 16)) | wp);
    write_cr4((cr4 & ~(3ull << 20)) | set4);
    rt_run(&f);
    write_cr4(cr4);
    write_cr0(cr0);
    outcome(&f);
    for (unsigned level = 1; level <= 3; level++) {
        /* Whether a walk that faults sets A on its way is the processor's choice. */
        say("ad", f.vector == PF ? 0 : *entry[level] & (PTE_A | PTE_D));
        *entry[level] = old[level];
    }
    invlpg(VA);
}

static void flags(void)
{
    struct frame f = start(pick(2) ? (const void *)r_popf : r_popf16, pick(2));
    f.rax =
        rng() & 0x3f7ed5 & ~(uint64_t)(FL_TF | 0x190000); /* not RF, VIF, VIP; single steps are elsewhere */
    f.rflags = (f.rflags & ~0x3000ull) | (uint64_t)pick(4) << 12;
    say("popf", f.rax);
    say("flags", f.rflags);
    rt_run(&f);
    outcome(&f);
    say("became", f.rcx & ~(uint64_t)0x10000);
}

void test_main(void)
{
    static void (*const kinds[])(void) = {segments, looks, transfers, paging, flags};
    uint64_t first = sysrand_config.first, count = sysrand_config.count;
    frame_page = page_alloc();
    asm volatile("lldt %w0" ::"r"(0)); /* a reset leaves one that can be used, with base 0 */
    loud = sysrand_config.verbose != 0;
    for (uint64_t n = first; n < first + count; n++) {
        if (n == first || n % LINE == 0) {
            hash = 0xcbf29ce484222325ull;
        }
        rng_state = sysrand_config.seed * 0xd1342543de82ef95ull;
        rng_state = rng() + n * 0xd1342543de82ef95ull;
        rng_state = rng(); /* streams of neighbours would else be one, shifted */
        for (unsigned slot = SLOT_FIRST; slot < SLOT_END; slot++) {
            rt_gdt[slot] = descriptor();
        }
        unsigned kind = pick(5);
        if (loud) {
            rt_printf("case %lu kind %u:", (unsigned long)n, kind);
        }
        kinds[kind]();
        if (loud) {
            rt_printf("\n");
        }
        if (n % LINE == LINE - 1) {
            rt_printf("hash %lx %lx\n", (unsigned long)(n / LINE), (unsigned long)hash);
        }
    }
    ok(true, "all cases ran");
}
