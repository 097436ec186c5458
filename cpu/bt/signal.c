/*
 * Signals: host faults in translated code, which are guest exceptions, and kicks. General registers only.
 *
 * A kick arrives while the vCPU thread is
 *  - in a block: its ways out are made to lead to C, and where it already is in the middle of one, it is
 *    moved to that way's unlinked path;
 *  - in C or in a stub: the block that it will return to or enter (site, enter_target) is treated the same,
 *    and whoever checks `pending` next sees it. ctx is poisoned, so that checked exits and the jump cache
 *    miss.
 */
#include <errno.h>
#include <string.h>
#include <ucontext.h>

#include "cpu/bt/bt_int.h"
#include "cpu/bt/regs.h"

static _Thread_local __attribute__((tls_model("initial-exec"))) struct bt_vcpu *bt_self;

static const int host_greg[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static bool in_code(const struct bt_vcpu *v, uint64_t pc)
{
    return pc - (uint64_t)v->code_rx < v->code_size;
}

void bt_unlink_current(struct bt_vcpu *v, uint64_t host_pc)
{
    v->ctx = v->ctx_poison;
    struct bt_block *b = bt_block_at(v, host_pc);
    if (b) {
        bt_unlink_out(v, b);
    }
}

static void on_kick(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)info;
    struct bt_vcpu *v = bt_self;
    if (!v) {
        return;
    }
    ucontext_t *uc = context;
    uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    v->ctx = v->ctx_poison;
    struct bt_block *b = bt_block_at(v, pc);
    if (pc > v->stub_lookup && pc < v->stub_lookup_end) {
        uc->uc_mcontext.gregs[REG_RIP] = (greg_t)v->stub_lookup_miss;
        return;
    }
    if (pc >= v->stub_site[0] && pc < v->stub_site_end) { /* it comes back to what lies on the stack */
        bt_unlink_current(v, *(const uint64_t *)uc->uc_mcontext.gregs[REG_RSP]);
    }
    if (!b) {
        bt_unlink_current(v, v->site);
        if (v->enter_target) {
            bt_unlink_out(v, v->enter_target);
        }
        return;
    }
    bt_unlink_out(v, b);
    uint32_t off = (uint32_t)(pc - (uint64_t)v->code_rx);
    /* Past the comparison with ctx already? Then take the path of a mismatch; its input is in memory or
     * constant. */
    for (unsigned i = 0; i < b->nexits; i++) {
        const struct bt_exit *x = &b->exits[i];
        /* A host CALL (E8) to the stub comes back to what is behind it: not to be made again. */
        bool back = v->code_rw[x->jump - 1] == 0xe8 && off == x->jump + 4;
        if ((x->kind == BT_EXIT_CHECKED || x->kind == BT_EXIT_RETURN) && off > x->site && off < x->end &&
            !back) {
            uint64_t to_stub = (uint64_t)v->code_rx + x->jump - 1; /* its jump or call to the stub */
            uc->uc_mcontext.gregs[REG_RIP] = (greg_t)to_stub;
        }
    }
    if (b->indirect_to && off > b->indirect_from && off < b->indirect_to && off != b->indirect_back) {
        uc->uc_mcontext.gregs[REG_RIP] = (greg_t)(uint64_t)(v->code_rx + b->indirect_stub);
    }
}

/* SDM vol. 3A table 6-1, as Linux hands it over in the signal frame. */
static void on_fault(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    struct bt_vcpu *v = bt_self;
    uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    if (v && in_code(v, pc) && (uint64_t)info->si_addr - v->ret_guard < MEM_PAGE_SIZE) {
        /* The return stack is full: forget it. RETs beyond will find their way by the jump cache. */
        uc->uc_mcontext.gregs[REG_RSP] = (greg_t)v->ret_bottom;
        return;
    }
    struct bt_block *b = v && in_code(v, pc) ? bt_block_at(v, pc) : NULL;
    if (!b) {
        /* Ours: let the default action, or whoever was there before, see it. */
        struct sigaction dfl = {.sa_handler = SIG_DFL};
        sigaction(sig, &dfl, NULL);
        return;
    }
    (void)info;
    for (unsigned g = 0; g < 16; g++) {
        if (bt_host[g] != H_NONE) {
            v->cpu.s.gpr[g] = (uint64_t)uc->uc_mcontext.gregs[host_greg[bt_host[g]]];
        }
    }
    if (!(bt_map_at(v, b, pc)->guest & BT_MAP_FLAGS_SAVED)) {
        uint64_t f = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
        v->aflags = (uint32_t)((f & 0xd5u) << 8 | ((f >> 11) & 1u));
    }
    v->cpu.s.rip = bt_rip_at(v, b, pc);
    v->fault_mode = b->mode;
    v->fault_vector = (int)uc->uc_mcontext.gregs[REG_TRAPNO];
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)v->stub_leave_fault;
}

static int install(int sig, void (*fn)(int, siginfo_t *, void *), struct err *err)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof(sa));
    sa.sa_sigaction = fn;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&sa.sa_mask);
    sigaddset(&sa.sa_mask, BT_SIGNAL_KICK);
    if (sigaction(sig, &sa, NULL) < 0) {
        return err_sys(err, -errno, "cannot install the handler of signal %d", sig);
    }
    return 0;
}

int bt_signals_install(struct err *err)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (unsigned i = 0; i < ARRAY_SIZE(faults); i++) {
        int r = install(faults[i], on_fault, err);
        if (r < 0) {
            return r;
        }
    }
    return install(BT_SIGNAL_KICK, on_kick, err);
}

int bt_signals_thread(struct bt_vcpu *v)
{
    if (bt_self == v) {
        return 0;
    }
    stack_t ss = {.ss_sp = v->signal_stack, .ss_size = v->signal_stack_size};
    if (sigaltstack(&ss, NULL) < 0) {
        return -errno;
    }
    v->thread = pthread_self();
    bt_self = v;
    return 0;
}

void bt_signals_thread_end(struct bt_vcpu *v)
{
    if (bt_self == v) {
        stack_t ss = {.ss_flags = SS_DISABLE};
        sigaltstack(&ss, NULL);
        bt_self = NULL;
    }
}

void bt_pend(struct bt_vcpu *v, uint32_t bit)
{
    uint32_t old = atomic_fetch_or(&v->pending, bit);
    if (!(old & bit) && v->in_run && bt_self != v) {
        pthread_kill(v->thread, BT_SIGNAL_KICK);
    }
}
