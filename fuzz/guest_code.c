/*
 * Fuzzes the engine's decoder and translator: the input is guest code.
 *
 * The first byte chooses the mode (64-bit user, 64-bit kernel, 32-bit user, 16-bit real), the second the
 * general registers' seed; the rest is put where execution starts, over and over until the page is full. When
 * the code raises an exception, the run goes on one byte further, a bounded number of times. Kernel-mode code
 * may do what it likes to page tables, descriptor tables and control registers: the guest may die, the
 * process must not.
 *
 * Bounds: EXITS_MAX exits for an input; RUN_MS of time for a run, then a timer thread kicks the vCPU; when
 * that does not end the run within HANG_MS of the vCPU's own CPU time the process aborts, which is the
 * finding.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "cpu/x86/state.h"
#include "fuzz/fuzz.h"
#include "mem/mem.h"
#include "tests/diff/engines.h"

#define RAM_BYTES (4 * MiB)
#define EXITS_MAX 24
#define RUN_MS    20
#define HANG_MS   5000

/* Guest-physical, mapped one to one (2 MiB pages): the first is the code's, the second the kernel's. */
#define CODE      0x10000u
#define CODE_SIZE 0x1000u
#define DATA      0x20000u
#define STACK     0x40000u
#define KERNEL    0x200000u
#define PML4      (KERNEL + 0x0000)
#define PDPT      (KERNEL + 0x1000)
#define PD        (KERNEL + 0x2000)
#define GDT       (KERNEL + 0x3000)
#define IDT       (KERNEL + 0x4000)
#define STUBS     (KERNEL + 0x5000)
#define TSS       (KERNEL + 0x6000)
#define KSTACK    (KERNEL + 0x8000)

enum mode { MODE_USER64, MODE_KERNEL64, MODE_USER32, MODE_REAL, MODES };

static struct {
    const struct engine_ops *ops;
    struct engine *engine;
    struct vcpu *vcpu;
    struct mem *mem;
    _Atomic uint64_t deadline_ms; /* 0: nothing runs */
    clockid_t vcpu_clock;         /* CPU time of the thread that runs it */
} fuzz;

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t now_ms(void)
{
    return clock_ms(CLOCK_MONOTONIC);
}

static void *timer(void *opaque)
{
    uint64_t late = 0, cpu_ms = 0; /* the deadline that passed, and the vCPU's time then */
    for (;;) {
        usleep(RUN_MS * 1000 / 4);
        uint64_t deadline = atomic_load(&fuzz.deadline_ms);
        if (!deadline || now_ms() < deadline) {
            continue;
        }
        fuzz.ops->kick(fuzz.vcpu);
        uint64_t cpu_now = clock_ms(fuzz.vcpu_clock);
        if (late != deadline) {
            late = deadline;
            cpu_ms = cpu_now;
        } else if (cpu_now > cpu_ms + HANG_MS) {
            fprintf(stderr, "guest_code: a kick did not end the run\n");
            abort();
        }
    }
    return opaque;
}

static int irq_ack(void *opaque)
{
    return -1;
}
static bool irq_pending(void *opaque)
{
    return false;
}
static uint64_t cr8_read(void *opaque)
{
    return 0;
}
static void cr8_write(void *opaque, uint64_t value)
{
}
static int msr_read(void *opaque, uint32_t msr, uint64_t *ret_value)
{
    return -1;
}
static int msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    return -1;
}
static uint64_t hypercall(void *opaque, uint64_t nr, const uint64_t args[4])
{
    return 0;
}

static void start(void)
{
    const char *name = getenv("FONDA_TEST_ENGINE");
    struct err err = {0};
    fuzz.ops = diff_engine(name ? name : "bt");
    const struct vcpu_platform platform = {.irq_ack = irq_ack,
                                           .irq_pending = irq_pending,
                                           .cr8_read = cr8_read,
                                           .cr8_write = cr8_write,
                                           .msr_read = msr_read,
                                           .msr_write = msr_write,
                                           .hypercall = hypercall};
    if (!fuzz.ops) {
        fprintf(stderr, "guest_code: there is no engine '%s'\n", name ? name : "bt");
        exit(2);
    }
    pthread_t thread;
    if (mem_new(RAM_BYTES, &fuzz.mem, &err) == 0) {
        const struct engine_config config = {
            .mem = fuzz.mem, .vcpus = 1, .cpu_model = "host", .tsc_hz = 1000000000, .eager = true};
        if (fuzz.ops->create(&config, &fuzz.engine, &err) == 0 &&
            fuzz.ops->vcpu_create(fuzz.engine, 0, &platform, &fuzz.vcpu, &err) == 0 &&
            pthread_getcpuclockid(pthread_self(), &fuzz.vcpu_clock) == 0 &&
            pthread_create(&thread, NULL, timer, NULL) == 0) {
            pthread_detach(thread);
            return;
        }
    }
    fprintf(stderr, "guest_code: %s\n", err.text);
    exit(2);
}

static uint64_t descriptor(uint64_t attr, uint64_t base, uint64_t limit)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (attr & 0xf0ff) << 40 | ((limit >> 16) & 15) << 48;
}

static void write_kernel(void)
{
    static uint8_t image[0x8000];
    memset(image, 0, sizeof(image));
    uint64_t *q = (uint64_t *)(void *)image;
    q[(PML4 - KERNEL) / 8] = PDPT | 7;
    q[(PDPT - KERNEL) / 8] = PD | 7;
    q[(PD - KERNEL) / 8] = 0 | 0x87;          /* user, writable, 2 MiB */
    q[(PD - KERNEL) / 8 + 1] = KERNEL | 0x83; /* supervisor */
    uint64_t *gdt = q + (GDT - KERNEL) / 8;
    gdt[2] = descriptor(0xa09b, 0, 0xfffff);
    gdt[3] = descriptor(0xc093, 0, 0xfffff);
    gdt[4] = descriptor(0xc0fb, 0, 0xfffff);
    gdt[5] = descriptor(0xc0f3, 0, 0xfffff);
    gdt[6] = descriptor(0xa0fb, 0, 0xfffff);
    gdt[8] = descriptor(0x008b, TSS, 0x67);
    for (unsigned v = 0; v < 256; v++) {
        uint64_t handler = STUBS + v * 4;
        memcpy(image + handler - KERNEL, (const uint8_t[]){0xf4, 0xeb, 0xfd}, 3); /* again: hlt; jmp again */
        q[(IDT - KERNEL) / 8 + v * 2] =
            (handler & 0xffff) | 0x10ull << 16 | 0x8eull << 40 | ((handler >> 16) & 0xffff) << 48;
    }
    uint64_t rsp0 = KSTACK;
    memcpy(image + TSS - KERNEL + 4, &rsp0, 8);
    memcpy(image + TSS - KERNEL + 0x66, &(const uint16_t){0x68}, 2);
    (void)mem_write(fuzz.mem, GPA(KERNEL), image, sizeof(image));
}

static struct x86_segment segment(uint16_t selector, uint16_t attr, uint32_t limit, uint64_t base)
{
    return (struct x86_segment){.base = base, .limit = limit, .selector = selector, .attr = attr};
}

static void make_state(struct x86_state *s, enum mode mode, uint8_t seed)
{
    memset(s, 0, sizeof(*s));
    for (unsigned i = 0; i < 16; i++) {
        s->gpr[i] = (seed >> (i & 7)) & 1 ? DATA + i * 64u : (uint64_t)seed * 0x0101010101010101ull * i;
    }
    s->gpr[X86_RSP] = STACK;
    s->rflags = 2;
    s->pat = 0x0007040600070406ull;
    s->dr6 = 0xffff0ff0;
    s->dr7 = 0x400;
    s->xcr0 = 7;
    memcpy(s->xsave, &(const uint16_t){0x37f}, 2);
    memcpy(s->xsave + 24, &(const uint32_t){0x1f80}, 4);
    s->tr = segment(0x40, 0x8b, 0x67, TSS);
    s->gdtr = (struct x86_table){GDT, 0x7f};
    s->idtr = (struct x86_table){IDT, 0xfff};
    s->rip = CODE;
    if (mode == MODE_REAL) {
        s->cr0 = X86_CR0_ET;
        s->idtr = (struct x86_table){0, 0x3ff};
        s->rip = 0;
        s->gpr[X86_RSP] = 0xfff0;
        for (unsigned i = 0; i < X86_SREGS; i++) {
            s->seg[i] = segment(DATA >> 4, 0x93, 0xffff, DATA);
        }
        s->seg[X86_CS] = segment(CODE >> 4, 0x9b, 0xffff, CODE);
        return;
    }
    s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
    s->cr3 = PML4;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
    s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    bool user = mode != MODE_KERNEL64;
    uint16_t data = user ? 0x2b : 0x18;
    uint16_t attr = user ? 0xc0f3 : 0xc093;
    for (unsigned i = 0; i < X86_SREGS; i++) {
        s->seg[i] = segment(data, attr, 0xffffffff, 0);
    }
    s->seg[X86_CS] = mode == MODE_USER64   ? segment(0x33, 0xa0fb, 0xffffffff, 0)
                     : mode == MODE_USER32 ? segment(0x23, 0xc0fb, 0xffffffff, 0)
                                           : segment(0x10, 0xa09b, 0xffffffff, 0);
    if (!user) {
        s->gpr[X86_RSP] = KSTACK - 0x100;
    }
}

static bool run(struct vcpu_exit *exit)
{
    atomic_store(&fuzz.deadline_ms, now_ms() + RUN_MS);
    int error = fuzz.ops->run(fuzz.vcpu, exit);
    atomic_store(&fuzz.deadline_ms, 0);
    return error == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct x86_state state, now;
    static uint8_t code[CODE_SIZE];
    if (!fuzz.ops) {
        start();
    }
    if (size < 3) {
        return 0;
    }
    size_t n = MIN(size - 2, sizeof(code));
    for (size_t i = 0; i < sizeof(code); i++) {
        code[i] = data[2 + i % n];
    }
    make_state(&state, (enum mode)(data[0] % MODES), data[1]);
    write_kernel();
    (void)mem_write(fuzz.mem, GPA(CODE), code, sizeof(code));
    uint64_t first = state.rip;
    for (unsigned exits = 0; exits < EXITS_MAX; exits++) {
        struct vcpu_exit exit = {0};
        /* Whatever state the code leaves, the next run starts from a sound one. */
        state.rip = first + exits;
        if (fuzz.ops->set_state(fuzz.vcpu, &state) < 0 || !run(&exit)) {
            fprintf(stderr, "guest_code: the engine gave up\n");
            abort();
        }
        (void)fuzz.ops->get_state(fuzz.vcpu, &now);
        if (exit.reason == EXIT_KICK) {
            break;
        }
    }
    return 0;
}
