/*
 * Delivery of exceptions, interrupts and software interrupts, in every mode.
 *
 * Neighbours: engines call x86_deliver after a helper returned -1 or a fault was found in guest code; stack.c
 * and segment.c find the inner stack; task.c does what a task gate asks for.
 *
 * Invariants
 *  1. The frame's place is checked and translated before anything changes, and the registers change after
 *     the frame was written: a delivery that fails leaves the state as it was (but CR2, DR6 and DR7.GD).
 *  2. A failed delivery is followed by a bounded number of others, then by shutdown.
 *
 * deliver_long is the path of every page fault and interrupt of a 64-bit guest: straight-line, a handful of
 * loads.
 *
 * SDM vol. 3A ch. 6 and vol. 2A, INT n; for virtual-8086 mode vol. 3B ch. 20.
 */
#include "cpu/x86/descriptor.h"

#define DEBUGCTL_LBR 0x1ull
#define DEBUGCTL_BTF 0x2ull
#define DR6_TRAPS    0xfull
#define DR7_GD       0x2000ull

/* A chain of exceptions during delivery has at most four links; only task gates whose tasks trap at once (the
 * T bit) make longer ones. Past this bound the processor shuts down. */
#define NESTED_MAX 16

struct event {
    uint8_t vector;
    bool has_error;
    bool software; /* INT n, INT3, INTO: the gate's DPL counts */
    bool switched; /* a task switch took place: what fails now belongs to the new task */
    uint8_t ext;   /* bit 0 of the error codes that the delivery itself raises (SDM vol. 3A, 6.13) */
    uint32_t error;
    uint64_t rip;   /* to save */
    uint64_t flags; /* to save */
};

/* Error code of a fault in the IDT entry. */
static int raise_gate(struct x86_cpu *cpu, enum x86_vector vector, const struct event *event)
{
    return x86_raise_error(cpu, vector, ((uint32_t)event->vector << 3) | 2u | event->ext);
}

static void clear_shadows(struct x86_cpu *cpu)
{
    cpu->s.sti_shadow = false;
    cpu->s.movss_shadow = false;
}

/* The code segment of an interrupt or trap gate; null is checked here too. Returns the level it runs at in
 * *ret_cpl. */
static inline int gate_code_segment(struct x86_cpu *cpu, uint16_t selector, const struct event *event,
                                    bool long_mode, struct x86_desc *ret_desc, unsigned *ret_cpl)
{
    int load;
    uint64_t lo;

    if (x86_selector_null(selector)) {
        return x86_raise_error(cpu, X86_GP, event->ext);
    }
    load = x86_desc_load(cpu, selector, ret_desc);
    if (load < 0) {
        return -1;
    }
    lo = ret_desc->lo;
    if (load || !x86_desc_is_code(lo) || x86_desc_dpl(lo) > cpu->cpl ||
        (long_mode && (!x86_desc_is_long(lo) || x86_desc_is_db(lo)))) {
        return x86_raise_selector(cpu, X86_GP, selector, event->ext);
    }
    if (!x86_desc_present(lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, event->ext);
    }
    *ret_cpl = x86_desc_is_conforming(lo) ? cpu->cpl : x86_desc_dpl(lo);
    return 0;
}

/* --- long mode --- */

/* SDM vol. 3A, 6.14 */
static int deliver_long(struct x86_cpu *cpu, struct event *event)
{
    struct x86_state *s = &cpu->s;
    uint32_t offset = (uint32_t)event->vector * 16;
    struct x86_desc code;
    uint64_t gate;
    uint64_t gate_high;
    struct x86_quad frame[6];
    uint64_t rip;
    uint64_t rsp = s->gpr[X86_RSP];
    struct x86_quad *to;
    struct x86_quad *at;
    uint16_t selector;
    unsigned ist;
    unsigned new_cpl = cpu->cpl;
    unsigned slots = event->has_error ? 6 : 5;
    unsigned access;

    if (offset + 15 > s->idtr.limit) {
        return raise_gate(cpu, X86_GP, event);
    }
    if (x86_table_load(cpu, s->idtr.base + offset, &gate) ||
        x86_table_load(cpu, s->idtr.base + offset + 8, &gate_high)) {
        return -1;
    }
    if (((gate >> 40) & 0x1e) != X86_TYPE_INT32 || (event->software && x86_desc_dpl(gate) < cpu->cpl)) {
        return raise_gate(cpu, X86_GP, event);
    }
    if (!x86_desc_present(gate)) {
        return raise_gate(cpu, X86_NP, event);
    }
    selector = x86_gate_selector(gate);
    if (gate_code_segment(cpu, selector, event, true, &code, &new_cpl)) {
        return -1;
    }
    ist = (unsigned)(gate >> 32) & 7;
    if ((ist || new_cpl != cpu->cpl) && x86_inner_stack64(cpu, ist ? ist + 3 : new_cpl, event->ext, &rsp)) {
        return -1;
    }
    rsp = (rsp & ~15ull) - slots * 8;
    if (!x86_is_canonical(rsp) || !x86_is_canonical(rsp + slots * 8 - 1)) {
        return x86_raise_error(cpu, X86_SS_EXC, event->ext);
    }
    rip = x86_gate_offset(gate) | gate_high << 32;
    if (!x86_is_canonical(rip)) {
        return x86_raise_error(cpu, X86_GP, event->ext);
    }
    if (x86_desc_mark_accessed(cpu, &code)) {
        return -1;
    }

    access = X86_ACCESS_WRITE | (new_cpl == 3 ? X86_ACCESS_USER : 0);
    to = x86_quick_ptr(cpu, rsp, slots * 8, access);
    at = to ? to : frame;
    if (event->has_error) {
        (at++)->v = event->error;
    }
    at[0].v = event->rip;
    at[1].v = s->seg[X86_CS].selector;
    at[2].v = event->flags;
    at[3].v = s->gpr[X86_RSP];
    at[4].v = s->seg[X86_SS].selector;
    if (!to && x86_store_buf(cpu, rsp, frame, slots * 8, access)) {
        return -1;
    }

    if (new_cpl != cpu->cpl) {
        x86_segment_null(&s->seg[X86_SS], (uint16_t)new_cpl);
        cpu->cpl = (uint8_t)new_cpl;
    }
    x86_segment_fill(&s->seg[X86_CS], (uint16_t)((selector & 0xfffc) | new_cpl), code.lo);
    s->gpr[X86_RSP] = rsp;
    s->rip = rip;
    s->rflags &= ~(uint64_t)(X86_TF | X86_NT | X86_RF | X86_VM | (x86_desc_type(gate) & 1 ? 0 : X86_IF));
    return 0;
}

/* --- real mode, and interrupts that virtual-8086 mode redirects to its own program --- */

/* Vectors through a real-mode table at linear address `table`. flags is what is pushed. */
static int vector_8086(struct x86_cpu *cpu, uint64_t table, const struct event *event, uint32_t flags,
                       bool real)
{
    uint32_t items[3] = {flags & 0xffff, cpu->s.seg[X86_CS].selector, (uint32_t)event->rip & 0xffff};
    struct x86_segment *ss = &cpu->s.seg[X86_SS];
    uint64_t entry;
    uint32_t esp;

    if (x86_load(cpu, (uint32_t)(table + event->vector * 4u), 4, X86_ACCESS_READ | X86_ACCESS_IMPLICIT,
                 &entry) ||
        x86_push_frame(cpu, ss, (uint32_t)cpu->s.gpr[X86_RSP], items, 3, 2, x86_access_mode(cpu), 0, &esp)) {
        return -1;
    }
    if (real) {
        x86_segment_real(&cpu->s.seg[X86_CS], (uint16_t)(entry >> 16));
    } else {
        x86_segment_vm86(&cpu->s.seg[X86_CS], (uint16_t)(entry >> 16));
    }
    x86_set_sp(cpu, ss, false, esp);
    cpu->s.rip = entry & 0xffff;
    return 0;
}

static int deliver_real(struct x86_cpu *cpu, const struct event *event)
{
    if (event->vector * 4u + 3 > cpu->s.idtr.limit) {
        return x86_raise_error(cpu, X86_GP, ((uint32_t)event->vector << 3) | 2u | event->ext);
    }
    if (vector_8086(cpu, cpu->s.idtr.base, event, (uint32_t)event->flags, true)) {
        return -1;
    }
    cpu->s.rflags &= ~(uint64_t)(X86_IF | X86_TF | X86_RF | X86_AC);
    return 0;
}

/* INT n in virtual-8086 mode. Returns 1 when the protected-mode handler is to get it (SDM vol. 3B, 20.3,
 * table 20-2). */
static int vm86_int_n(struct x86_cpu *cpu, const struct event *event)
{
    bool trusted = (cpu->s.rflags & X86_IOPL) == X86_IOPL;
    uint64_t map_base;
    uint64_t byte;
    uint32_t flags = (uint32_t)event->flags;

    if (!(cpu->s.cr4 & X86_CR4_VME)) {
        return trusted ? 1 : x86_raise_error(cpu, X86_GP, 0);
    }
    /* The redirection bitmap is the 32 bytes below the I/O bitmap of a 32-bit TSS (figure 20-5). */
    if (!(cpu->s.tr.attr & 8) || cpu->s.tr.limit < 0x67) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (x86_load(cpu, (uint32_t)cpu->s.tr.base + 0x66, 2, X86_ACCESS_READ | X86_ACCESS_IMPLICIT, &map_base)) {
        return -1;
    }
    map_base += event->vector / 8u;
    if (map_base < 32 || map_base - 32 > cpu->s.tr.limit) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (x86_load(cpu, (uint32_t)(cpu->s.tr.base + map_base - 32), 1, X86_ACCESS_READ | X86_ACCESS_IMPLICIT,
                 &byte)) {
        return -1;
    }
    if ((byte >> (event->vector & 7)) & 1) {
        return trusted ? 1 : x86_raise_error(cpu, X86_GP, 0);
    }
    if (!trusted) {
        flags = (flags & ~X86_IF) | X86_IOPL | (cpu->s.rflags & X86_VIF ? X86_IF : 0);
    }
    if (vector_8086(cpu, 0, event, flags, false)) {
        return -1;
    }
    cpu->s.rflags &= ~(uint64_t)(X86_TF | X86_RF | X86_NT | (trusted ? X86_IF : X86_VIF));
    return 0;
}

/* --- protected mode --- */

/* Fills items with what an interrupt or trap gate pushes, first pushed first. Returns how many. */
static unsigned gate_frame(const struct x86_cpu *cpu, const struct event *event, bool vm86, bool inner,
                           uint32_t *items)
{
    const struct x86_segment *seg = cpu->s.seg;
    unsigned count = 0;

    if (vm86) {
        items[count++] = seg[X86_GS].selector;
        items[count++] = seg[X86_FS].selector;
        items[count++] = seg[X86_DS].selector;
        items[count++] = seg[X86_ES].selector;
    }
    if (inner) {
        items[count++] = seg[X86_SS].selector;
        items[count++] = (uint32_t)cpu->s.gpr[X86_RSP];
    }
    items[count++] = (uint32_t)event->flags;
    items[count++] = seg[X86_CS].selector;
    items[count++] = (uint32_t)event->rip;
    if (event->has_error) {
        items[count++] = event->error;
    }
    return count;
}

static int deliver_gate(struct x86_cpu *cpu, const struct event *event, uint64_t gate)
{
    unsigned type = x86_desc_type(gate);
    bool wide = (type & 8) != 0;
    bool vm86 = x86_vm86(cpu);
    uint16_t selector = x86_gate_selector(gate);
    uint32_t eip = wide ? x86_gate_offset(gate) : (uint32_t)(gate & 0xffff);
    struct x86_segment ss = cpu->s.seg[X86_SS];
    uint32_t esp = (uint32_t)cpu->s.gpr[X86_RSP];
    uint32_t ss_error = event->ext;
    uint32_t items[X86_FRAME_MAX];
    struct x86_desc code;
    unsigned new_cpl = cpu->cpl;
    unsigned count;
    bool inner;

    if (gate_code_segment(cpu, selector, event, false, &code, &new_cpl)) {
        return -1;
    }
    if (vm86 && new_cpl != 0) {
        return x86_raise_selector(cpu, X86_GP, selector, event->ext);
    }
    inner = new_cpl != cpu->cpl;
    if (inner) {
        if (x86_inner_stack(cpu, new_cpl, event->ext, &ss, &esp)) {
            return -1;
        }
        ss_error = (ss.selector & 0xfffcu) | event->ext;
    }
    count = gate_frame(cpu, event, vm86, inner, items);
    if (eip > x86_desc_limit(code.lo)) {
        return x86_raise_error(cpu, X86_GP, event->ext);
    }
    if (x86_desc_mark_accessed(cpu, &code) ||
        x86_push_frame(cpu, &ss, esp, items, count, wide ? 4 : 2, new_cpl == 3 ? X86_ACCESS_USER : 0,
                       ss_error, &esp)) {
        return -1;
    }

    if (vm86) {
        x86_segment_null(&cpu->s.seg[X86_GS], 0);
        x86_segment_null(&cpu->s.seg[X86_FS], 0);
        x86_segment_null(&cpu->s.seg[X86_DS], 0);
        x86_segment_null(&cpu->s.seg[X86_ES], 0);
    }
    if (inner) {
        cpu->s.seg[X86_SS] = ss;
        /* The whole of ESP is loaded, also when the stack has 16 bits. */
        if (!(ss.attr & X86_SEG_DB)) {
            esp &= 0xffff;
        }
        cpu->s.gpr[X86_RSP] = esp;
        cpu->cpl = (uint8_t)new_cpl;
    } else {
        x86_set_sp(cpu, &ss, false, esp);
    }
    x86_segment_fill(&cpu->s.seg[X86_CS], (uint16_t)((selector & 0xfffc) | new_cpl), code.lo);
    cpu->s.rip = eip;
    cpu->s.rflags &= ~(uint64_t)(X86_TF | X86_NT | X86_RF | X86_VM | (type & 1 ? 0 : X86_IF));
    return 0;
}

/* An interrupt through a task gate: the error code goes to the new task's stack. */
static int deliver_task(struct x86_cpu *cpu, struct event *event, uint64_t gate)
{
    struct x86_task_result result = {0};
    int ret = x86_task_switch(cpu, x86_gate_selector(gate), X86_TASK_INT, (uint32_t)event->rip,
                              (uint32_t)event->flags, event->ext, &result);

    event->switched = result.switched;
    if (ret) {
        return -1;
    }
    if (event->has_error) {
        bool wide = (cpu->s.tr.attr & 8) != 0;
        uint32_t esp;

        if (x86_push_frame(cpu, &cpu->s.seg[X86_SS], (uint32_t)cpu->s.gpr[X86_RSP], &event->error, 1,
                           wide ? 4 : 2, x86_access_mode(cpu), event->ext, &esp)) {
            return -1;
        }
        x86_set_sp(cpu, &cpu->s.seg[X86_SS], false, esp);
    }
    return x86_task_trap(cpu, &result);
}

static int deliver_protected(struct x86_cpu *cpu, struct event *event)
{
    uint32_t offset = (uint32_t)event->vector * 8;
    uint64_t gate;

    if (offset + 7 > cpu->s.idtr.limit) {
        return raise_gate(cpu, X86_GP, event);
    }
    if (x86_table_load(cpu, (uint32_t)(cpu->s.idtr.base + offset), &gate)) {
        return -1;
    }
    switch ((gate >> 40) & 0x1f) {
    case X86_TYPE_TASK_GATE:
    case X86_TYPE_INT16:
    case X86_TYPE_TRAP16:
    case X86_TYPE_INT32:
    case X86_TYPE_TRAP32: break;
    default: return raise_gate(cpu, X86_GP, event);
    }
    if (event->software && x86_desc_dpl(gate) < cpu->cpl) {
        return raise_gate(cpu, X86_GP, event);
    }
    if (!x86_desc_present(gate)) {
        return raise_gate(cpu, X86_NP, event);
    }
    if (x86_desc_type(gate) == X86_TYPE_TASK_GATE) {
        return deliver_task(cpu, event, gate);
    }
    return deliver_gate(cpu, event, gate);
}

/* --- the order of events --- */

static int deliver_event(struct x86_cpu *cpu, struct event *event)
{
    int ret;

    if (x86_long_mode(cpu)) {
        ret = deliver_long(cpu, event);
    } else if (x86_protected(cpu)) {
        ret = deliver_protected(cpu, event);
    } else {
        ret = deliver_real(cpu, event);
    }
    if (ret == 0) {
        clear_shadows(cpu);
        cpu->s.halted = false;
    }
    return ret;
}

/* #DE, #TS, #NP, #SS, #GP (SDM vol. 3A, table 6-4). */
static bool is_contributory(unsigned vector)
{
    return ((1u << X86_DE) | (1u << X86_TS) | (1u << X86_NP) | (1u << X86_SS_EXC) | (1u << X86_GP)) >>
               vector &
           1;
}

/* The second of two exceptions turns into #DF (SDM vol. 3A, table 6-5). */
static bool makes_double_fault(unsigned first, unsigned second)
{
    if (first == X86_PF_EXC) {
        return second == X86_PF_EXC || is_contributory(second);
    }
    return is_contributory(first) && is_contributory(second);
}

/* RF in the saved flags: set by faults, of which #DB is one when DR7.GD caused it; breakpoints on
 * instructions, traps and aborts leave it (SDM vol. 3B, 17.3.1.1). */
static bool sets_rf(const struct x86_exception *exc)
{
    if (exc->vector == X86_DB) {
        return (exc->dr6 & X86_DR6_BD) != 0;
    }
    return exc->vector != X86_DF_EXC && exc->vector != X86_MC;
}

/* What an exception leaves in the registers even if its delivery fails. */
static void note_exception(struct x86_cpu *cpu, const struct x86_exception *exc)
{
    if (exc->vector == X86_PF_EXC) {
        cpu->s.cr2 = exc->cr2;
    } else if (exc->vector == X86_DB) {
        cpu->s.dr6 = (cpu->s.dr6 & ~DR6_TRAPS) | exc->dr6;
        cpu->s.dr7 &= ~DR7_GD;
        cpu->s.debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF);
    }
}

/* Delivers event, and whatever its delivery raises. first is its vector when it is an exception, else a
 * benign one. */
static int deliver_all(struct x86_cpu *cpu, struct event *event, unsigned first)
{
    unsigned left = NESTED_MAX;

    while (deliver_event(cpu, event)) {
        struct x86_exception exc = cpu->exc;

        if (first == X86_DF_EXC || --left == 0) {
            return -1;
        }
        if (exc.vector == X86_PF_EXC || exc.vector == X86_DB) {
            note_exception(cpu, &exc);
        }
        if (makes_double_fault(first, exc.vector)) {
            exc = (struct x86_exception){.vector = X86_DF_EXC, .has_error = true};
            cpu->exc = exc;
        }
        first = exc.vector;
        if (event->software || event->switched) {
            event->rip = cpu->s.rip;
        }
        event->vector = exc.vector;
        event->has_error = exc.has_error;
        event->error = exc.error;
        event->software = false;
        event->switched = false;
        event->ext = 1;
        event->flags = cpu->s.rflags | (sets_rf(&exc) ? X86_RF : 0);
    }
    return 0;
}

int x86_deliver(struct x86_cpu *cpu, bool trap)
{
    struct x86_exception *exc = &cpu->exc;
    struct event event = {
        .vector = exc->vector,
        .has_error = exc->has_error,
        .software = trap && (exc->vector == X86_BP || exc->vector == X86_OF_EXC),
        .error = exc->error,
        .rip = trap ? cpu->next_rip : cpu->s.rip,
        .flags = cpu->s.rflags,
    };
    int ret;

    event.ext = !event.software;
    if (trap && exc->vector != X86_DB) { /* between two elements of a string instruction #DB saves RF set */
        event.flags &= ~(uint64_t)X86_RF;
    } else if (sets_rf(exc)) {
        event.flags |= X86_RF;
    }
    note_exception(cpu, exc);
    cpu->in_delivery = true;
    ret = deliver_all(cpu, &event, exc->vector);
    cpu->in_delivery = false;
    return ret;
}

int x86_deliver_interrupt(struct x86_cpu *cpu, uint8_t vector)
{
    struct event event = {.vector = vector, .ext = 1, .rip = cpu->s.rip, .flags = cpu->s.rflags};
    bool nmi_blocked = cpu->s.nmi_blocked;
    int ret;

    if (vector == X86_NMI) {
        cpu->s.nmi_blocked = true;
    }
    cpu->in_delivery = true;
    ret = deliver_all(cpu, &event, X86_NMI);
    cpu->in_delivery = false;
    if (ret) {
        cpu->s.nmi_blocked = nmi_blocked;
    }
    return ret;
}

int x86_int(struct x86_cpu *cpu, enum x86_int_kind kind, uint8_t vector)
{
    static const uint8_t fixed[] = {[X86_INT3] = X86_BP, [X86_INTO] = X86_OF_EXC, [X86_INT1] = X86_DB};
    struct event event = {
        .vector = kind == X86_INT_N ? vector : fixed[kind],
        .software = kind != X86_INT1,
        .ext = kind == X86_INT1,
        .rip = cpu->next_rip,
        .flags = cpu->s.rflags & ~(uint64_t)X86_RF,
    };
    int ret = 1;

    if (kind == X86_INTO) {
        if (x86_code64(cpu)) {
            return x86_raise(cpu, X86_UD);
        }
        if (!(cpu->s.rflags & X86_OF)) {
            cpu->s.rip = cpu->next_rip;
            return 0;
        }
    }
    if (kind == X86_INT_N && x86_protected(cpu) && x86_vm86(cpu)) {
        ret = vm86_int_n(cpu, &event);
    }
    if (ret == 0) {
        clear_shadows(cpu);
    } else if (ret == 1) {
        ret = deliver_event(cpu, &event);
    }
    return ret;
}
