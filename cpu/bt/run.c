/*
 * The dispatcher: enters translated code, and deals with why it came back. General registers only.
 *
 *     bt_run
 *       +-- serve_pending      kicks, NMIs, interrupts
 *       +-- bt_block_get       look up or translate what is at RIP
 *       +-- enter              the stub; returns an enum bt_leave
 *       +-- after_*            link, fill the jump cache, deliver exceptions, execute one instruction slowly
 */
#include <errno.h>

#include "base/clock.h"
#include "cpu/bt/bt_int.h"

static void note(struct bt_vcpu *v, unsigned what, unsigned vector)
{
    v->last[v->last_at++ % BT_LAST_EXITS] =
        (struct bt_last_exit){.rip = v->cpu.s.rip, .what = (uint16_t)what, .vector = (uint16_t)vector};
}

static unsigned enter(struct bt_vcpu *v, const struct bt_block *b)
{
    union {
        uint64_t address;
        unsigned (*call)(struct bt_vcpu *v, uint64_t host);
    } stub = {.address = v->stub_enter};
    bt_fpu_load(v);
    return stub.call(v, (uint64_t)v->code_rx + b->code);
}

/* Control goes elsewhere than where the last block left for: that exit must not be linked to the handler. */
static void after_delivery(struct bt_vcpu *v)
{
    bt_flags_split(v);
    bt_mode_update(v);
    v->mode_once = 0;
    v->link_from = NULL;
    v->fill_jc = false;
}

/* Delivers cpu.exc. False: triple fault. */
static bool deliver(struct bt_vcpu *v, bool trap)
{
    v->counters[BT_C_EXCEPTIONS]++;
    v->counters[BT_C_PAGE_FAULTS] += v->cpu.exc.vector == X86_PF_EXC;
    note(v, BT_EVENT_EXCEPTION, v->cpu.exc.vector);
    bt_flags_merge(v);
    int r = x86_deliver(&v->cpu, trap);
    after_delivery(v);
    return r == 0;
}

/* The same for a fault; false with *exit set when it ends the machine. */
static bool deliver_or_stop(struct bt_vcpu *v, struct vcpu_exit *exit)
{
    if (deliver(v, false)) {
        return true;
    }
    exit->reason = EXIT_SHUTDOWN;
    return false;
}

static bool deliver_interrupt(struct bt_vcpu *v, uint8_t vector)
{
    v->counters[BT_C_IRQS]++;
    if (v->mode & BT_MODE_USER) {
        bt_site_sample(v);
    }
    note(v, BT_EVENT_INTERRUPT, vector);
    v->cpu.s.halted = false;
    bt_flags_merge(v);
    int r = x86_deliver_interrupt(&v->cpu, vector);
    after_delivery(v);
    return r == 0;
}

enum served { SERVED_RUN, SERVED_EXIT, SERVED_SHUTDOWN };

static enum served serve_pending(struct bt_vcpu *v, struct vcpu_exit *exit)
{
    struct x86_cpu *cpu = &v->cpu;
    if (atomic_load_explicit(&v->pending, memory_order_relaxed) & BT_PENDING_DROP) {
        bt_fpu_save(v);
        bt_drop_queue_serve(v);
    }
    uint32_t bits = atomic_fetch_and(&v->pending, BT_PENDING_DROP);
    v->ctx = v->mode_ctx;
    if (bits & BT_PENDING_CODE) {
        bt_fpu_save(v);
        bt_code_queue_serve(v);
    }
    if (bits & BT_PENDING_NMI) {
        cpu->s.nmi_pending = true;
    }
    if (bits & BT_PENDING_IRQ) {
        v->irq_wait = true;
    }
    /* A debugger's step is one of the program, not of what interrupts it. */
    bool hold = v->debug.step && !cpu->s.halted;
    if (hold) {
        v->irq_wait = true;
    }
    if (!hold && cpu->s.nmi_pending && !cpu->s.nmi_blocked && !cpu->s.movss_shadow && !v->mode_once) {
        cpu->s.nmi_pending = false;
        cpu->s.nmi_blocked = true;
        if (!deliver_interrupt(v, X86_NMI)) {
            return SERVED_SHUTDOWN;
        }
    }
    if (!hold && v->irq_wait && v->iflag && !cpu->s.sti_shadow && !cpu->s.movss_shadow &&
        !(v->mode_once & ~BT_MODE_NOGROUP)) {
        bt_fpu_save(v);
        int vector = cpu->platform.irq_ack(cpu->platform.opaque);
        if (vector < 0) {
            v->irq_wait = false;
        } else if (!deliver_interrupt(v, (uint8_t)vector)) {
            return SERVED_SHUTDOWN;
        }
    }
    if (bits & BT_PENDING_KICK) {
        v->counters[BT_C_EXIT_KICK]++;
        exit->reason = EXIT_KICK;
        return SERVED_EXIT;
    }
    return SERVED_RUN;
}

/* An exit without a link. */
static void after_link(struct bt_vcpu *v)
{
    struct bt_exit *x = &v->exits[v->leave_arg];
    v->cpu.s.rip = x->rip;
    v->counters[BT_C_EXIT_LINK]++;
    if (!x->block->dead && x->kind != BT_EXIT_NONE && (x->block->mode & ~BT_MODE_NOGROUP) == v->mode) {
        v->link_from = x;
        v->link_flushes = v->counters[BT_C_FLUSHES];
    }
}

/* RET, JMP and CALL to a non-canonical address fault before they did anything (SDM vol. 2, "JMP", "RET"). */
static void after_indirect(struct bt_vcpu *v, bool ret)
{
    struct bt_block *b = &v->blocks[ret ? v->ret_block : v->leave_arg];
    if (ret && v->leave_arg != BT_NO_EXIT && !v->exits[v->leave_arg].block->dead) {
        v->link_from = &v->exits[v->leave_arg];
        v->link_flushes = v->counters[BT_C_FLUSHES];
    }
    v->counters[BT_C_EXIT_INDIRECT]++;
    v->cpu.s.rip = v->ind_rip;
    v->fill_jc = true;
    if (!x86_is_canonical(v->ind_rip) && (b->mode & BT_MODE_CODE64)) {
        v->cpu.s.rip = b->rip + (b->map[b->insns - 1u].guest & ~BT_MAP_FLAGS_SAVED);
        v->cpu.s.gpr[X86_RSP] -= (uint64_t)(int64_t)b->rsp_moved;
        v->fill_jc = false;
        v->link_from = NULL;
        x86_raise_error(&v->cpu, X86_GP, 0);
        v->raised = true;
    }
}

static void after_fault(struct bt_vcpu *v)
{
    v->counters[BT_C_EXIT_FAULT]++;
    if (v->fault_vector == X86_XM && !(v->cpu.s.cr4 & X86_CR4_OSXMMEXCPT)) {
        x86_raise(&v->cpu, X86_UD);
    } else if (v->fault_vector == X86_GP && (v->fault_mode & BT_MODE_USER) &&
               !(v->fault_mode & BT_MODE_SLOW)) {
        v->mode_once =
            BT_MODE_ONE | BT_MODE_SLOW; /* an empty site may have let the address pass: #GP or #SS? */
        return;
    } else if (v->fault_vector == X86_GP) {
        x86_raise_error(&v->cpu, X86_GP, 0);
    } else {
        x86_raise(&v->cpu, (enum x86_vector)v->fault_vector);
    }
    v->raised = true;
}

static void site_rip(struct bt_vcpu *v)
{
    struct bt_block *b = bt_block_at(v, v->site - 1);
    v->cpu.s.rip = b ? bt_rip_at(v, b, v->site - 1) : v->cpu.s.rip;
}

/* The group check that failed at `site` is to lead to the block that runs next. */
static void note_group_exit(struct bt_vcpu *v)
{
    struct bt_block *b = bt_block_at(v, v->site);
    uint32_t off = (uint32_t)(v->site - (uint64_t)v->code_rx);
    for (unsigned i = 0; b && i < b->nexits; i++) {
        if (b->exits[i].kind == BT_EXIT_GROUP && b->exits[i].end == off && !b->dead) {
            v->link_from = &b->exits[i];
            v->link_flushes = v->counters[BT_C_FLUSHES];
        }
    }
}

/* What an op, or the memory slow path, asked for. False: leave bt_run with *exit. */
static bool after_result(struct bt_vcpu *v, int result, struct vcpu_exit *exit)
{
    struct x86_cpu *cpu = &v->cpu;
    switch (result) {
    case BT_JUMP: /* chain() in op.c did the rest */
    case BT_AGAIN: return true;
    case BT_RAISE: v->raised = true; return true;
    case BT_SLOW:
        v->counters[BT_C_EXIT_SLOW]++;
        v->mode_once = BT_MODE_ONE | BT_MODE_SLOW;
        return true;
    case BT_NOGROUP:
        v->counters[BT_C_EXIT_NOGROUP]++;
        v->mode_once = BT_MODE_NOGROUP;
        note_group_exit(v);
        return true;
    case BT_STOP:
        exit->reason = EXIT_DEBUG;
        exit->debug = v->stop;
        v->stop = (struct engine_stop){.step = false};
        return false;
    case BT_HALT:
        cpu->s.rip = cpu->next_rip;
        cpu->s.halted = true;
        cpu->s.sti_shadow = cpu->s.movss_shadow = false; /* HLT is past it: what comes in next is to wake */
        v->counters[BT_C_HALTS]++;
        return true;
    default: exit->reason = EXIT_SHUTDOWN; return false;
    }
}

/* Instruction breakpoints (SDM vol. 3B, 17.3.1.1). */
static bool breakpoint_hit(struct bt_vcpu *v)
{
    struct x86_cpu *cpu = &v->cpu;
    if (cpu->s.rflags & X86_RF) {
        return false;
    }
    uint64_t linear = cpu->s.rip + (v->mode & BT_MODE_CODE64 ? 0 : cpu->s.seg[X86_CS].base);
    uint64_t hit = x86_match_breakpoint_exec(cpu, linear);
    if (hit) {
        x86_raise_db(cpu, hit);
    }
    return hit != 0;
}

/* After an instruction that ran alone and completed: single step, data breakpoints. */
static bool debug_traps(struct bt_vcpu *v, bool was_tf, bool was_rf)
{
    struct x86_cpu *cpu = &v->cpu;
    uint64_t bits = v->data_hits | (was_tf ? BIT64(14) : 0);
    v->data_hits = 0;
    if (was_rf) { /* one instruction's worth; what IRET has just set stays */
        cpu->s.rflags &= ~(uint64_t)X86_RF;
    }
    cpu->s.rflags |= v->mid_string ? X86_RF : 0;
    if (!bits || cpu->s.movss_shadow) {
        v->data_hits = cpu->s.movss_shadow ? bits & 0xf : 0;
        return true;
    }
    cpu->next_rip = cpu->s.rip;
    x86_raise_db(cpu, bits);
    return deliver(v, true);
}

static bool debugging(const struct bt_vcpu *v)
{
    return (v->cpu.s.rflags & X86_TF) || (v->cpu.s.dr7 & 0xff) || (v->cpu.s.rflags & X86_RF) ||
           v->debug_alone;
}

/* One turn: look up, enter, deal with the exit. False: leave with *exit. */
static bool turn(struct bt_vcpu *v, struct vcpu_exit *exit)
{
    struct x86_cpu *cpu = &v->cpu;
    uint32_t once = v->mode_once;
    v->mode_once = 0;
    bool was_tf = false, was_rf = false, alone = false;
    if (cpu->s.sti_shadow || cpu->s.movss_shadow) {
        once |= BT_MODE_ONE;
    }
    if (__builtin_expect(debugging(v), 0)) {
        was_tf = (cpu->s.rflags & X86_TF) != 0;
        was_rf = (cpu->s.rflags & X86_RF) != 0;
        alone = true;
        once |= BT_MODE_ONE | ((cpu->s.dr7 & 0xff) || v->debug_watch ? BT_MODE_SLOW : 0);
        if ((cpu->s.dr7 & 0xff) && !cpu->s.movss_shadow && breakpoint_hit(v)) {
            return deliver_or_stop(v, exit) && !bt_debug_stops(v, exit);
        }
    }
    if (bt_alignment_checked(v)) {
        once |= BT_MODE_SLOW; /* alignment checks */
    }
    struct bt_exit *from = v->link_from;
    bool fill = v->fill_jc;
    v->link_from = NULL;
    v->fill_jc = false;
    struct bt_block *b = bt_block_get(v, v->mode | once);
    if (!b) {
        return deliver_or_stop(v, exit) && !bt_debug_stops(v, exit);
    }
    if (!(once & ~BT_MODE_NOGROUP) && !b->dead) {
        if (from && !once == (from->kind != BT_EXIT_GROUP) && v->link_flushes == v->counters[BT_C_FLUSHES] &&
            !from->block->dead) {
            bt_link(v, from, b);
        }
        if (fill && !once) {
            *bt_jc_slot(v, cpu->s.rip) = (struct bt_jc_entry){.neg_key = 0 - (cpu->s.rip + v->mode_ctx),
                                                              .target = (uint64_t)v->code_rx + b->code};
        }
    }
    bool shadow = cpu->s.sti_shadow || cpu->s.movss_shadow;
    v->site = 0;
    v->ctx = v->mode_ctx; /* a signal whose reason was served already may have poisoned it */
    v->enter_target = b;
    atomic_signal_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&v->pending, memory_order_relaxed) && !shadow && !once) {
        v->enter_target = NULL;
        return true; /* served on the next turn */
    }
    cpu->s.sti_shadow = cpu->s.movss_shadow = false;
    v->raised = false;
    v->op_result = BT_NEXT;
    v->no_step = v->mid_string = false;
    unsigned why = enter(v, b);
    v->enter_target = NULL;
    switch (why) {
    case BT_LEAVE_LINK: after_link(v); break;
    case BT_LEAVE_INDIRECT: after_indirect(v, false); break;
    case BT_LEAVE_RETURN: after_indirect(v, true); break;
    case BT_LEAVE_FAULT: after_fault(v); break;
    case BT_LEAVE_MEM:
        site_rip(v);
        if (!after_result(v, v->op_result, exit)) {
            return false;
        }
        break;
    default:
        v->counters[BT_C_EXIT_OP]++;
        if (!after_result(v, v->op_result, exit)) {
            return false;
        }
        break;
    }
    if (v->raised) {
        v->data_hits = 0;
        v->stop.point = false; /* the access did not happen */
        return deliver_or_stop(v, exit) && !bt_debug_stops(v, exit);
    }
    bool completed = alone && !(v->mode_once & BT_MODE_SLOW) && why != BT_LEAVE_MEM &&
                     (v->op_result != BT_AGAIN || v->mid_string);
    if (completed && !v->no_step && !debug_traps(v, was_tf, was_rf)) {
        exit->reason = EXIT_SHUTDOWN;
        return false;
    }
    return !completed || !bt_debug_stops(v, exit);
}

static bool wakes(struct bt_vcpu *v)
{
    struct x86_cpu *cpu = &v->cpu;
    if (cpu->s.nmi_pending && !cpu->s.nmi_blocked) {
        return true;
    }
    return v->iflag && cpu->platform.irq_pending(cpu->platform.opaque);
}

int bt_run(struct vcpu *vcpu, struct vcpu_exit *exit)
{
    struct bt_vcpu *v = (struct bt_vcpu *)(void *)vcpu;
    int r = bt_signals_thread(v);
    if (r < 0) {
        return r;
    }
    uint64_t started = clock_host_ns(), started_tsc = __builtin_ia32_rdtsc();
    v->in_run = true;
    exit->reason = EXIT_KICK;
    bt_mode_update(v);
    v->irq_wait = true; /* look once: what was raised before run() began is not signalled again */
    for (;;) {
        if (atomic_load(&v->pending) || v->irq_wait || v->cpu.s.nmi_pending) {
            enum served s = serve_pending(v, exit);
            if (s == SERVED_SHUTDOWN) {
                exit->reason = EXIT_SHUTDOWN;
            }
            if (s != SERVED_RUN) {
                break;
            }
        }
        if (v->cpu.s.halted) {
            bt_fpu_save(v);
            if (!wakes(v)) {
                exit->reason = EXIT_HLT;
                exit->hlt_if = v->iflag;
                break;
            }
            v->irq_wait = true;
            continue;
        }
        if (!turn(v, exit)) {
            break;
        }
    }
    v->in_run = false;
    bt_fpu_save(v);
    if (exit->reason == EXIT_SHUTDOWN) {
        v->mode_once = 0;
    }
    v->counters[BT_C_NS_RUN] += clock_host_ns() - started;
    v->tsc_running += __builtin_ia32_rdtsc() - started_tsc;
    return 0;
}
