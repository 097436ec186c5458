/*
 * Several processors: start by INIT and SIPI (SDM vol. 3A, 9.4), interprocessor interrupts, locked
 * instructions, memory ordering (9.2), cross-modifying code (9.1.3), TLB shoot-downs (5.10.5).
 *
 * Processor 0 gives orders: a function that all the others run, in step. Waits spin with PAUSE and are
 * bounded.
 */
#include "rt/rt.h"

#define CPUS_MAX   4u
#define TRAMPOLINE 0x8000ull /* SIPI vector 8 */
#define APIC       0xfee00000ull
#define ICR_LOW    0x300
#define ICR_HIGH   0x310
#define EOI        0xb0
#define SVR        0xf0
#define IPI_VECTOR 0x60
#define VA         ((uint64_t)RT_ARENA)
#define HALTS      200u
#define STORM      60u
#define BESIDE     150u
#define SPINS_MAX  4000000000ull

static volatile unsigned online;       /* processors that arrived in ap_main, ever */
static volatile unsigned order_number; /* counts orders; the others run `order` once for each */
static void (*volatile order)(unsigned cpu);
static volatile unsigned done[CPUS_MAX];
static volatile uint64_t ipis[CPUS_MAX];
static unsigned cpus;
static uint8_t *code;

char ap_stacks[CPUS_MAX + 1][16384] __attribute__((aligned(16)));
unsigned ap_next = 1;
struct {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed)) ap_idtr;

/* From real mode at TRAMPOLINE to ap_main(index), with processor 0's page tables, GDT and IDT. */
asm(".pushsection .rodata\n"
    ".globl ap_trampoline, ap_trampoline_end\n"
    "ap_trampoline:\n"
    ".code16\n"
    "  cli\n  cld\n  xor %ax, %ax\n  mov %ax, %ds\n"
    "  lgdtl 0x8000 + (9f - ap_trampoline)\n"
    "  mov $1, %eax\n  mov %eax, %cr0\n"
    "  ljmpl $0x38, $(0x8000 + (1f - ap_trampoline))\n"
    ".code32\n"
    "1: mov $0x10, %ax\n  mov %ax, %ds\n  mov %ax, %es\n  mov %ax, %ss\n"
    "  mov $0x6a0, %eax\n  mov %eax, %cr4\n"
    "  mov $rt_pml4, %eax\n  mov %eax, %cr3\n"
    "  mov $0xc0000080, %ecx\n  mov $0x901, %eax\n  xor %edx, %edx\n  wrmsr\n"
    "  mov $0x80010033, %eax\n  mov %eax, %cr0\n"
    "  ljmpl $0x08, $ap_start64\n"
    ".balign 8\n"
    "9: .word 0x1ff\n  .long rt_gdt\n"
    "ap_trampoline_end:\n"
    ".code64\n.popsection\n"
    ".pushsection .text\n"
    "ap_start64:\n"
    "  mov $1, %eax\n  lock xadd %eax, ap_next\n"
    "  mov %eax, %edi\n  inc %eax\n  shl $14, %eax\n  lea ap_stacks(%eax), %rsp\n"
    "  lidt ap_idtr\n  fninit\n  call ap_main\n"
    ".popsection\n");
extern char ap_trampoline[], ap_trampoline_end[];

static inline void apic_write(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(APIC + reg) = value;
}
static inline uint32_t apic_read(unsigned reg)
{
    return *(volatile uint32_t *)(APIC + reg);
}
static inline void relax(void)
{
    asm volatile("pause" ::: "memory");
}
static inline void serialize(void)
{
    uint32_t out[4];
    cpuid(0, 0, out);
}

#define WAIT(condition)                                                                                      \
    ({                                                                                                       \
        uint64_t spins_ = 0;                                                                                 \
        while (!(condition) && ++spins_ < SPINS_MAX) {                                                       \
            relax();                                                                                         \
        }                                                                                                    \
        spins_ < SPINS_MAX;                                                                                  \
    })

static unsigned my_id(void)
{
    return apic_read(0x20) >> 24;
}

static void send_ipi(unsigned apic_id, uint32_t low)
{
    apic_write(ICR_HIGH, apic_id << 24);
    apic_write(ICR_LOW, low);
}

/* No TSS on the others, so no IST: a handler of its own, on the stack that it finds. */
__attribute__((interrupt)) static void on_ipi(void *frame)
{
    (void)frame;
    ipis[*(volatile uint32_t *)(APIC + 0x20) >> 24]++; /* no calls here: they may destroy registers */
    *(volatile uint32_t *)(APIC + EOI) = 0;
}

__attribute__((used)) void ap_main(unsigned index)
{
    (void)index;
    unsigned cpu = my_id(), seen = order_number;
    apic_write(SVR, 0x1ff);
    __atomic_fetch_add(&online, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        while (order_number == seen) {
            relax();
        }
        seen++;
        order(cpu);
        __atomic_store_n(&done[cpu], seen, __ATOMIC_SEQ_CST);
    }
}

/* All processors run fn, this one too. */
static bool everybody(void (*fn)(unsigned cpu))
{
    order = fn;
    __atomic_fetch_add(&order_number, 1, __ATOMIC_SEQ_CST);
    fn(0);
    bool all = true;
    for (unsigned i = 1; i < cpus; i++) {
        all &= WAIT(done[i] == order_number);
    }
    return all;
}

static void start_others(void)
{
    memcpy((void *)TRAMPOLINE, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    asm volatile("sidt %0" : "=m"(ap_idtr));
    rt_gate(IPI_VECTOR, (uint64_t)on_ipi, RT_KCODE64, 0x8e, 0);
    apic_write(SVR, 0x1ff);
    for (unsigned i = 1; i < CPUS_MAX; i++) {
        send_ipi(i, 0x4500); /* INIT, assert */
        send_ipi(i, 0x4600 | TRAMPOLINE >> 12);
    }
    WAIT(online == CPUS_MAX - 1);
    cpus = online + 1;
    is(cpus, CPUS_MAX, "INIT and SIPI start the other processors");
    /* A second SIPI is ignored by a processor that runs. */
    for (unsigned i = 1; i < cpus; i++) {
        send_ipi(i, 0x4600 | TRAMPOLINE >> 12);
    }
    is(online + 1, cpus, "a SIPI to a running processor is ignored");
}

/* --- locked instructions */

#define ROUNDS 5000u

static struct {
    volatile uint64_t inc, xadd, cas, bits, split_pad[7];
    volatile uint64_t wide[2] __attribute__((aligned(16)));
    char line[128] __attribute__((aligned(64)));
} locked __attribute__((aligned(64)));

static void do_locked(unsigned cpu)
{
    uint64_t *split = (uint64_t *)(locked.line + 60); /* over two cache lines */
    for (unsigned i = 0; i < ROUNDS; i++) {
        asm volatile("lock incq %0" : "+m"(locked.inc));
        uint64_t n = 3;
        asm volatile("lock xaddq %0, %1" : "+r"(n), "+m"(locked.xadd));
        uint64_t old = locked.cas;
        while (!__atomic_compare_exchange_n(&locked.cas, &old, old + 1, false, __ATOMIC_SEQ_CST,
                                            __ATOMIC_SEQ_CST)) {
        }
        asm volatile("lock btcq %1, %0" : "+m"(locked.bits) : "r"((uint64_t)cpu));
        asm volatile("lock addq $1, %0" : "+m"(*split));
        uint64_t lo = locked.wide[0], hi = locked.wide[1];
        bool won;
        do {
            asm volatile("lock cmpxchg16b %1"
                         : "=@ccz"(won), "+m"(locked.wide), "+a"(lo), "+d"(hi)
                         : "b"(lo + 1), "c"(hi + 2)
                         : "memory");
        } while (!won);
    }
}

static void atomics(void)
{
    ok(everybody(do_locked), "all finish");
    is(locked.inc, (uint64_t)cpus * ROUNDS, "lock inc by all");
    is(locked.xadd, 3ull * cpus * ROUNDS, "lock xadd");
    is(locked.cas, (uint64_t)cpus * ROUNDS, "lock cmpxchg");
    is(locked.bits, 0, "lock btc, an even number of times each");
    uint64_t split;
    memcpy(&split, locked.line + 60, 8);
    is(split, (uint64_t)cpus * ROUNDS, "lock add over two cache lines");
    ok(locked.wide[0] == (uint64_t)cpus * ROUNDS && locked.wide[1] == 2ull * cpus * ROUNDS,
       "lock cmpxchg16b");
}

/* --- memory ordering */

static struct {
    volatile uint64_t data __attribute__((aligned(64)));
    volatile uint64_t flag __attribute__((aligned(64)));
    volatile uint64_t bad __attribute__((aligned(64)));
} litmus;

/* SDM vol. 3A, 9.2.3.2: stores are seen in order, loads are not reordered. */
static void message_passing(unsigned cpu)
{
    if (cpu == 0) {
        for (uint64_t i = 1; i <= 100000; i++) {
            litmus.data = i;
            litmus.flag = i;
        }
    } else {
        uint64_t flag;
        do {
            flag = litmus.flag;
            if (litmus.data < flag) {
                litmus.bad++;
            }
        } while (flag < 100000);
    }
}

/* 9.2.3.9: locked instructions have a total order, so of two processors one sees the other's store. */
static volatile uint64_t turn_x[2], turn_arrived;
static volatile uint64_t turn_saw[2];

static void store_buffers(unsigned cpu)
{
    if (cpu > 1) {
        return;
    }
    for (unsigned i = 1; i <= 400; i++) {
        uint64_t mine = i;
        asm volatile("xchg %0, %1" : "+r"(mine), "+m"(turn_x[cpu]) : : "memory");
        turn_saw[cpu] = turn_x[!cpu];
        __atomic_fetch_add(&turn_arrived, 1, __ATOMIC_SEQ_CST);
        WAIT(turn_arrived >= 4ull * i - 2);
        if (cpu == 0 && turn_saw[0] < i && turn_saw[1] < i) {
            litmus.bad++;
        }
        __atomic_fetch_add(&turn_arrived, 1, __ATOMIC_SEQ_CST);
        WAIT(turn_arrived >= 4ull * i);
    }
}

static void ordering(void)
{
    everybody(message_passing);
    is(litmus.bad, 0, "message passing: stores and loads keep their order");
    everybody(store_buffers);
    is(litmus.bad, 0, "locked stores of two processors are seen by one of them");
}

/* --- code that another processor changes */

/* mov $imm, %eax; ret */
static void emit_const(uint8_t *p, uint32_t value)
{
    p[0] = 0xb8;
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
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

static volatile uint64_t round_no, acks, wrong;
static uint8_t *writer_view;

#define CODE_ROUNDS 150u

/* The algorithm of SDM vol. 3A, 9.1.3: store, flag; wait for the flag, serialize, execute. */
static void cross_modify(unsigned cpu)
{
    for (uint64_t i = 1; i <= CODE_ROUNDS; i++) {
        if (cpu == 0) {
            emit_const(writer_view + 64, (uint32_t)(i * 7));
            round_no = i;
            WAIT(acks == i * (cpus - 1));
        } else {
            WAIT(round_no == i);
            serialize();
            if (call(code + 64) != (uint32_t)(i * 7)) {
                __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
            }
            __atomic_fetch_add(&acks, 1, __ATOMIC_SEQ_CST);
        }
    }
}

/* The executing processors run the code all the time; an interrupt is what serializes them. */
static void by_interrupt(unsigned cpu)
{
    if (cpu == 0) {
        for (uint64_t i = 1; i <= CODE_ROUNDS; i++) {
            uint32_t before[CPUS_MAX];
            emit_const(code + 128, (uint32_t)i);
            for (unsigned c = 1; c < cpus; c++) {
                before[c] = (uint32_t)ipis[c];
            }
            send_ipi(0, 0xc4000 | IPI_VECTOR); /* all but this one */
            for (unsigned c = 1; c < cpus; c++) {
                WAIT((uint32_t)ipis[c] != before[c]);
            }
            round_no = i;
            WAIT(acks == i * (cpus - 1));
        }
        round_no = UINT64_MAX;
        return;
    }
    asm volatile("sti");
    uint64_t acked = 0;
    while (acked < CODE_ROUNDS) {
        relax();
        uint64_t want = round_no; /* set after the interrupt was taken: what is executed now is new */
        uint64_t got = call(code + 128);
        if (want > acked && want != UINT64_MAX) {
            if (got != (uint32_t)want) {
                __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
            }
            acked = want;
            __atomic_fetch_add(&acks, 1, __ATOMIC_SEQ_CST);
        }
    }
    asm volatile("cli");
}

/* Each processor writes and calls functions of its own, interleaved in one page. */
static void shared_page(unsigned cpu)
{
    uint8_t *mine = code + 256 + cpu * 16;
    for (uint32_t i = 0; i < 100; i++) {
        for (unsigned j = 0; j < 4; j++) {
            emit_const(mine + j * 64 * 4, i + j + cpu);
        }
        for (unsigned j = 0; j < 4; j++) {
            if (call(mine + j * 64 * 4) != i + j + cpu) {
                __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
            }
        }
    }
}

/* All call one function and count, by locked instructions, right beside it. */
static void data_beside(unsigned cpu)
{
    (void)cpu;
    for (unsigned i = 0; i < BESIDE; i++) {
        if (call(code + 1536) != 77) {
            __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
        }
        asm volatile("lock incq %0" : "+m"(*(uint64_t *)(code + 1544)));
        asm volatile("lock incq %0" : "+m"(*(uint64_t *)(code + 2048 + 1024)));
    }
}

/* Nobody waits for anybody: one processor changes an instruction that all others run meanwhile. Every version
 * of it has the same length and ends in the same RET, and its operand consists of four equal bytes, so that a
 * mixture of two would show. Processor 0 also does so from inside the function whose next instruction it is.
 */
#define PATCHES 3000u
#define PATCHED (3072 + 9) /* the operand of the MOV, 7 bytes further on, is aligned */

static volatile unsigned patchers;

static bool four_equal(uint64_t value)
{
    return value == (value & 0xff) * 0x01010101u;
}

static void patch_running(unsigned cpu)
{
    /* mov %edi, 1(%rip), the operand of what follows; mov $imm32, %eax; ret */
    static const uint8_t function[] = {0x89, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3};
    static const uint8_t same[] = {0xb8, 0x05, 0x0d, 0x35}; /* MOV, ADD, OR, XOR of EAX, which is 0 */
    uint8_t *at = code + PATCHED;
    if (cpu == 0) {
        memcpy(at, function, sizeof(function));
        round_no = 1;
    } else {
        WAIT(round_no == 1);
        serialize();
    }
    for (uint32_t i = 0; cpu == 0 ? i < PATCHES : patchers == 0; i++) {
        uint64_t value = (i & 0x7f) * 0x01010101u, got;
        if (cpu == 0 && i % 2 == 0) {
            at[6] = same[i / 2 % 4];
        }
        asm volatile("call *%1"
                     : "=a"(got)
                     : "r"(at + (cpu == 0 ? 0 : 6)), "D"(value), "a"(0)
                     : "memory", "cc");
        if (cpu == 0 ? got != value : !four_equal(got)) {
            __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
        }
    }
    if (cpu == 0) {
        patchers = 1;
    }
}

static bool code_round(void (*fn)(unsigned cpu), const char *text)
{
    round_no = acks = wrong = 0;
    bool all = everybody(fn);
    ok(all, "all finish");
    is(wrong, 0, text);
    return all;
}

static void cross_modifying(void)
{
    writer_view = code;
    code_round(cross_modify, "code changed by another processor");
    map(VA, (uint64_t)code, PTE_P | PTE_W);
    writer_view = (uint8_t *)VA;
    code_round(cross_modify, "and through another linear address");
    emit_const(code + 128, 0);
    code_round(by_interrupt, "code that runs while it is changed, then an interrupt");
    code_round(shared_page, "functions of all processors, written and called in one page");
    code_round(patch_running, "a function patches itself 3,000 times while the others run it");
    emit_const(code + 1536, 77);
    code_round(data_beside, "code stays right beside data that all write");
    is(*(uint64_t *)(code + 1544), cpus * (uint64_t)BESIDE, "locked increments in the function's own chunk");
    is(*(uint64_t *)(code + 3072), cpus * (uint64_t)BESIDE, "and elsewhere in its page");
}

/* --- TLBs */

static void shoot_down(unsigned cpu)
{
    static uint8_t *frames[2];
    if (cpu == 0) {
        frames[0] = page_alloc();
        frames[1] = page_alloc();
        *(volatile uint64_t *)frames[0] = 0;
        *(volatile uint64_t *)frames[1] = 1;
        round_no = 1;
    }
    for (uint64_t i = 2; i < 150; i++) {
        if (cpu == 0) {
            WAIT(acks == (i - 2) * (cpus - 1));
            map(VA + 0x10000, (uint64_t)frames[i & 1], PTE_P | PTE_W);
            invlpg(VA + 0x10000);
            round_no = i;
        } else {
            WAIT(round_no == i);
            invlpg(VA + 0x10000);
            if (*(volatile uint64_t *)(VA + 0x10000) != (i & 1)) {
                __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
            }
            __atomic_fetch_add(&acks, 1, __ATOMIC_SEQ_CST);
        }
    }
}

/* --- interrupts and halts */

/* Sleeps until each interrupt: STI keeps one from coming between itself and HLT (SDM vol. 2, "STI"). */
static void sleepers(unsigned cpu)
{
    if (cpu == 0) {
        for (unsigned i = 1; i <= HALTS; i++) {
            uint64_t before[CPUS_MAX];
            for (unsigned c = 1; c < cpus; c++) {
                before[c] = ipis[c];
                send_ipi(c, 0x4000 | IPI_VECTOR);
            }
            for (unsigned c = 1; c < cpus; c++) {
                if (!WAIT(ipis[c] == before[c] + 1)) {
                    wrong++;
                    return;
                }
            }
        }
        return;
    }
    uint64_t first = ipis[cpu];
    while (ipis[cpu] - first < HALTS) {
        asm volatile("cli");
        if (ipis[cpu] - first < HALTS) {
            asm volatile("sti\n hlt");
        }
    }
    asm volatile("cli");
}

/* Every processor interrupts every other, itself too. */
static volatile unsigned senders_left;

static void storm(unsigned cpu)
{
    uint64_t mine = ipis[cpu];
    asm volatile("sti");
    for (unsigned i = 0; i < STORM; i++) {
        uint64_t before = ipis[(cpu + 1) % cpus];
        send_ipi((cpu + 1) % cpus, 0x4000 | IPI_VECTOR);
        if (!WAIT(ipis[(cpu + 1) % cpus] > before)) {
            wrong++;
        }
    }
    __atomic_fetch_sub(&senders_left, 1, __ATOMIC_SEQ_CST);
    WAIT(senders_left == 0);
    asm volatile("cli");
    if (ipis[cpu] - mine != STORM) {
        __atomic_fetch_add(&wrong, 1, __ATOMIC_SEQ_CST);
    }
}

static void interrupts(void)
{
    code_round(sleepers, "200 interrupts wake each halted processor");
    senders_left = cpus;
    code_round(storm, "60 interrupts around the ring arrive, each once");
}

static void restart(void)
{
    unsigned before = online, next = ap_next;
    send_ipi(1, 0x4500);
    send_ipi(1, 0x4600 | TRAMPOLINE >> 12);
    WAIT(online == before + 1);
    is(online, before + 1, "INIT and SIPI start a running processor anew");
    is(ap_next, next + 1, "from the start vector");
}

void test_main(void)
{
    code = page_alloc_n(2);
    about("start");
    start_others();
    if (cpus < 2) {
        return;
    }
    about("atomics");
    atomics();
    about("ordering");
    ordering();
    about("code");
    cross_modifying();
    about("TLB");
    code_round(shoot_down, "a page remapped 150 times, with INVLPG on all");
    about("interrupts");
    interrupts();
    about("restart");
    restart();
}
