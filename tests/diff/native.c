/*
 * Runs a case on the host CPU itself.
 *
 * How: the runner raises SIGTRAP with an INT3. The handler replaces the interrupted context (general
 * registers, flags, CS and SS, the whole XSAVE area) by the state of the case and returns into it: the kernel
 * loads everything at once. Whatever the case ends with is a signal too; its handler records the context and
 * puts the runner's own back. No instruction of ours runs between the state of the case and its first
 * instruction.
 *
 * What the kernel's context lacks (FS and GS bases, the data segment registers) the handler's assembly saves
 * and loads. It also gives C its thread pointer back before C runs, and clears AC and NT, which signal
 * delivery leaves.
 *
 * Invariants
 *  1. phase says whose context a signal interrupts: PHASE_RUNNER (ours) or PHASE_CASE.
 *  2. The handlers run on an alternate stack: RSP belongs to the case.
 *
 * Threads: the one thread of the runner's process.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

#include "base/util.h"
#include "tests/diff/diff.h"

/* arch_prctl(2); asm/prctl.h clashes with nothing but isn't always there. */
#define ARCH_SET_GS 0x1001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define ARCH_GET_GS 0x1004

/* uc_flags (asm/ucontext.h): without the last, sigreturn replaces an SS that it finds odd. */
#define UC_SIGCONTEXT_SS     2u
#define UC_STRICT_RESTORE_SS 4u

#define USER_CS   0x33 /* Linux's user segments; cpu model and distribution don't change them */
#define USER_CS32 0x23
#define USER_DS   0x2b

#define FP_SW_MAGIC_OFFSET 464 /* struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size */
#define FP_SW_MAGIC        0x46505853u
#define FP_SW_XFEATURES    472
#define FP_SW_XSTATE_SIZE  480

#define TICK_US       50000 /* of CPU time */
#define TICKS_MAX     4     /* ticks after which a case counts as endless */
#define HANDLER_STACK (128 * 1024)

enum phase { PHASE_RUNNER, PHASE_CASE };

/* Shared with the assembly below. */
extern uint64_t native_host_fs_, native_fs_, native_next_fs_;
extern uint16_t native_sel_[4], native_next_sel_[2];
void native_entry_(int sig, siginfo_t *info, void *context);
void native_signal_(int sig, siginfo_t *info, void *context);

uint64_t native_host_fs_, native_fs_, native_next_fs_;
uint16_t native_sel_[4];      /* DS, ES, FS, GS as interrupted */
uint16_t native_next_sel_[2]; /* DS, ES to go on with */

/* clang-format off */
__asm__(".text\n"
        ".globl native_entry_\n"
        ".type native_entry_, @function\n"
        "native_entry_:\n"
        "    pushfq\n"
        "    andq $-0x44001, (%rsp)\n" /* AC, NT */
        "    popfq\n"
        "    cld\n"
        "    subq $8, %rsp\n"
        "    movq %rdi, %rbx\n"
        "    movq %rsi, %r12\n"
        "    movq %rdx, %r13\n"
        "    movw %ds, native_sel_(%rip)\n"
        "    movw %es, native_sel_+2(%rip)\n"
        "    movw %fs, native_sel_+4(%rip)\n"
        "    movw %gs, native_sel_+6(%rip)\n"
        "    movl $158, %eax\n" /* arch_prctl */
        "    movl $0x1003, %edi\n"
        "    leaq native_fs_(%rip), %rsi\n"
        "    syscall\n"
        "    movl $158, %eax\n"
        "    movl $0x1002, %edi\n"
        "    movq native_host_fs_(%rip), %rsi\n"
        "    syscall\n"
        "    movl %ebx, %edi\n"
        "    movq %r12, %rsi\n"
        "    movq %r13, %rdx\n"
        "    call native_signal_\n"
        "    movw native_next_sel_(%rip), %ax\n"
        "    movw %ax, %ds\n"
        "    movw native_next_sel_+2(%rip), %ax\n"
        "    movw %ax, %es\n"
        "    movl $158, %eax\n"
        "    movl $0x1002, %edi\n"
        "    movq native_next_fs_(%rip), %rsi\n"
        "    syscall\n"
        "    addq $8, %rsp\n"
        "    ret\n"
        ".size native_entry_, .-native_entry_\n");
/* clang-format on */

static struct {
    volatile enum phase phase;
    const struct diff_case *c;
    struct diff_result *result;
    gregset_t runner; /* our context, while the case has the CPU */
    uint64_t runner_gs;
    unsigned ticks;
    uint8_t *arena;                /* the pages of the case, writable */
    uint32_t code_start, code_end; /* what the last case left in the code pages */
} native;

static void arch_set(int what, uint64_t value)
{
    (void)syscall(SYS_arch_prctl, what, value);
}

static uint64_t arch_get(int what)
{
    uint64_t value = 0;
    (void)syscall(SYS_arch_prctl, what, &value);
    return value;
}

static uint32_t frame_xstate_size(const uint8_t *fp)
{
    uint32_t magic, size = 0;
    memcpy(&magic, fp + FP_SW_MAGIC_OFFSET, sizeof(magic));
    if (magic == FP_SW_MAGIC) {
        memcpy(&size, fp + FP_SW_XSTATE_SIZE, sizeof(size));
    }
    return MIN(size, DIFF_XSAVE_BYTES);
}

/* Puts a state in the XSAVE standard format into a signal frame. */
static void frame_load_xsave(uint8_t *fp, const uint8_t *xsave)
{
    uint32_t size = frame_xstate_size(fp);
    memcpy(fp, xsave, FP_SW_MAGIC_OFFSET);
    if (size <= 576) {
        return;
    }
    uint64_t frame_features, bv;
    memcpy(&frame_features, fp + FP_SW_XFEATURES, sizeof(frame_features));
    memcpy(&bv, xsave + DIFF_XS_BV, sizeof(bv));
    memset(fp + DIFF_XS_BV, 0, 64);
    bv &= frame_features;
    memcpy(fp + DIFF_XS_BV, &bv, sizeof(bv));
    memcpy(fp + 576, xsave + 576, size - 576);
}

static void frame_save_xsave(const uint8_t *fp, uint8_t *xsave)
{
    uint32_t size = frame_xstate_size(fp);
    memset(xsave, 0, DIFF_XSAVE_BYTES);
    memcpy(xsave, fp, FP_SW_MAGIC_OFFSET);
    if (size <= 576) {
        uint64_t bv = 3;
        memcpy(xsave + DIFF_XS_BV, &bv, sizeof(bv));
        return;
    }
    memcpy(xsave + DIFF_XS_BV, fp + DIFF_XS_BV, 8);
    memcpy(xsave + 576, fp + 576, size - 576);
}

/* Where ucontext keeps the registers, in encoding order. */
static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void load_case(ucontext_t *uc)
{
    const struct diff_case *c = native.c;
    greg_t *g = uc->uc_mcontext.gregs;
    memcpy(native.runner, g, sizeof(native.runner));
    for (unsigned i = 0; i < 16; i++) {
        g[greg_of[i]] = (greg_t)c->gpr[i];
    }
    g[REG_RIP] = (greg_t)(DIFF_CODE_VA + c->code_offset + c->entry);
    g[REG_EFL] = (greg_t)c->rflags;
    /* CS in bits 0-15, SS in bits 48-63. */
    uint64_t cs = c->compat ? USER_CS32 : USER_CS;
    g[REG_CSGSFS] = (greg_t)(cs | ((uint64_t)USER_DS << 48));
    uc->uc_flags |= UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    frame_load_xsave((uint8_t *)uc->uc_mcontext.fpregs, c->xsave);
    native_next_fs_ = c->fs_base;
    native_next_sel_[0] = native_next_sel_[1] = c->compat ? USER_DS : 0;
    native.runner_gs = arch_get(ARCH_GET_GS);
    arch_set(ARCH_SET_GS, c->gs_base);
    native.phase = PHASE_CASE;
}

static void record(const ucontext_t *uc)
{
    struct diff_result *r = native.result;
    const greg_t *g = uc->uc_mcontext.gregs;
    for (unsigned i = 0; i < 16; i++) {
        r->gpr[i] = (uint64_t)g[greg_of[i]];
    }
    r->rip = (uint64_t)g[REG_RIP];
    r->rflags = (uint64_t)g[REG_EFL];
    r->vector = (uint32_t)g[REG_TRAPNO];
    r->error = (uint64_t)g[REG_ERR];
    r->cr2 = r->vector == X86_PF_EXC ? (uint64_t)g[REG_CR2] : 0;
    r->sel[X86_CS] = (uint16_t)g[REG_CSGSFS];
    r->sel[X86_SS] = (uint16_t)((uint64_t)g[REG_CSGSFS] >> 48);
    r->sel[X86_DS] = native_sel_[0];
    r->sel[X86_ES] = native_sel_[1];
    r->sel[X86_FS] = native_sel_[2];
    r->sel[X86_GS] = native_sel_[3];
    r->fs_base = native_fs_;
    r->gs_base = arch_get(ARCH_GET_GS);
    frame_save_xsave((const uint8_t *)uc->uc_mcontext.fpregs, r->xsave);
}

static void load_runner(ucontext_t *uc)
{
    memcpy(uc->uc_mcontext.gregs, native.runner, sizeof(native.runner));
    uc->uc_flags |= UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    /* The initial state: what the compiler expects of control words, the rest is clobbered. */
    static const uint8_t initial[DIFF_XSAVE_BYTES] = {
        [DIFF_XS_FCW] = 0x7f, [DIFF_XS_FCW + 1] = 0x03, [DIFF_XS_MXCSR] = 0x80, [DIFF_XS_MXCSR + 1] = 0x1f};
    frame_load_xsave((uint8_t *)uc->uc_mcontext.fpregs, initial);
    native_next_fs_ = native_host_fs_;
    native_next_sel_[0] = native_next_sel_[1] = 0;
    arch_set(ARCH_SET_GS, native.runner_gs);
    native.phase = PHASE_RUNNER;
}

/* Called by the assembly, with our FS base. Signal handler. */
void native_signal_(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    native_next_fs_ = native_fs_;
    native_next_sel_[0] = native_sel_[0];
    native_next_sel_[1] = native_sel_[1];
    if (sig == SIGVTALRM) {
        if (native.phase == PHASE_CASE && ++native.ticks >= TICKS_MAX) {
            record(uc);
            native.result->outcome = DIFF_TIMEOUT;
            load_runner(uc);
        }
        return;
    }
    if (native.phase == PHASE_CASE) {
        record(uc);
        native.result->outcome = DIFF_EXCEPTION;
        load_runner(uc);
        return;
    }
    if (sig == SIGTRAP && native.c) {
        load_case(uc);
        return;
    }
    /* A fault of the runner itself. */
    signal(sig, SIG_DFL);
}

static int native_init(const char *argument, char *text, uint32_t text_size)
{
    diff_stay_home();
    int fd = memfd_create("diff-native", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, DIFF_ARENA_BYTES) < 0) {
        snprintf(text, text_size, "cannot make the memory: %s", strerror(errno));
        return -1;
    }
    native.arena = mmap(NULL, DIFF_ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (native.arena == MAP_FAILED) {
        snprintf(text, text_size, "cannot map the memory: %s", strerror(errno));
        return -1;
    }
    static const struct {
        uint32_t va, pages;
        int prot;
    } maps[] = {
        {DIFF_CODE_VA, DIFF_CODE_PAGES, PROT_READ | PROT_EXEC},
        {DIFF_DATA_VA, DIFF_DATA_PAGES, PROT_READ | PROT_WRITE},
        {DIFF_RO_VA, DIFF_RO_PAGES, PROT_READ},
        {DIFF_STACK_VA, DIFF_STACK_PAGES, PROT_READ | PROT_WRITE},
    };
    off_t offset = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(maps); i++) {
        size_t bytes = (size_t)maps[i].pages * DIFF_PAGE;
        void *p = mmap((void *)(uintptr_t)maps[i].va, bytes, maps[i].prot, MAP_SHARED | MAP_FIXED_NOREPLACE,
                       fd, offset);
        if (p == MAP_FAILED) {
            snprintf(text, text_size, "cannot map 0x%x: %s", maps[i].va, strerror(errno));
            return -1;
        }
        offset += (off_t)bytes;
        /* Present before the first case: a fault's error code says whether the page was. */
        (void)mlock(p, bytes);
        for (size_t k = 0; k < bytes; k += DIFF_PAGE) {
            (void)*(volatile const uint8_t *)((uint8_t *)p + k);
        }
    }
    memset(native.arena, DIFF_MARKER, DIFF_CODE_BYTES);

    static uint8_t stack[HANDLER_STACK];
    stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)};
    if (sigaltstack(&ss, NULL) < 0) {
        snprintf(text, text_size, "cannot set a signal stack: %s", strerror(errno));
        return -1;
    }
    native_host_fs_ = arch_get(ARCH_GET_FS);
    struct sigaction sa = {.sa_sigaction = native_entry_, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&sa.sa_mask);
    static const int signals[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP, SIGVTALRM};
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        sigaction(signals[i], &sa, NULL);
    }
    struct itimerval tick = {.it_interval = {.tv_usec = TICK_US}, .it_value = {.tv_usec = TICK_US}};
    setitimer(ITIMER_VIRTUAL, &tick, NULL);
    return 0;
}

/* Runs the case: the INT3 brings us into the handler, and we go on behind it when the case ended.
 * The red zone stays untouched, and the flags that a context switch keeps (ID, NT, AC) start from zero. */
static void enter_case(void)
{
    __asm__ volatile("leaq -128(%%rsp), %%rsp\n\tpushq $0x202\n\tpopfq\n\tint3\n\tleaq 128(%%rsp), %%rsp" ::
                         : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                           "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void native_run(const struct diff_case *c, struct diff_result *result)
{
    if (native.code_end > native.code_start) {
        memset(native.arena + native.code_start, DIFF_MARKER, native.code_end - native.code_start);
    }
    native.code_end = diff_code_range(c, &native.code_start);
    diff_fill_code(c, native.arena + native.code_start);
    diff_fill_memory(c, native.arena + DIFF_MEM_OFFSET);
    native.c = c;
    native.result = result;
    native.ticks = 0;
    enter_case();
    native.c = NULL;
    memcpy(result->mem, native.arena + DIFF_MEM_OFFSET, DIFF_MEM_BYTES);
}

const struct diff_runner diff_native = {
    .name = "native", .init = native_init, .run = native_run, .compat = true};
