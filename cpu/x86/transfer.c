/*
 * Far transfers: JMP, CALL and RET to another segment, through call gates, task gates and TSSs; IRET.
 *
 * Neighbours: segment.c and stack.c check segments and stacks; task.c switches tasks; deliver.c makes the
 * frames that x86_iret takes apart.
 *
 * Invariant: everything is read and checked, and frames are written, before the first register changes (a
 * task switch excepted, see task.c).
 *
 * x86_iret with 8-byte operands is the hot path: one look at the frame, two descriptors.
 *
 * SDM vol. 2A, CALL, IRET, JMP; vol. 2B, RET; vol. 3A, 5.8; vol. 3B, 20.2 (virtual-8086 mode).
 */
#include "cpu/x86/descriptor.h"

/* Flags that IRET loads always, with operands of 4 or 8 bytes, and at CPL 0 (SDM vol. 2A, IRET). */
#define IRET_FLAGS      (X86_FLAGS_ARITH | X86_TF | X86_DF | X86_NT)
#define IRET_FLAGS_WIDE (X86_RF | X86_AC | X86_ID)
#define FLAGS_VIRTUAL   (X86_VIF | X86_VIP)

static uint64_t operand_mask(unsigned operand)
{
    return operand == 8 ? UINT64_MAX : operand == 4 ? UINT32_MAX : UINT16_MAX;
}

/* Whether a code descriptor makes 64-bit code. */
static bool code_is_64(const struct x86_cpu *cpu, uint64_t lo)
{
    return x86_long_mode(cpu) && x86_desc_is_long(lo);
}

/* L and D at once have no meaning in IA-32e mode. */
static bool code_is_reserved(const struct x86_cpu *cpu, uint64_t lo)
{
    return x86_long_mode(cpu) && x86_desc_is_long(lo) && x86_desc_is_db(lo);
}

static int check_target(struct x86_cpu *cpu, uint64_t lo, uint64_t rip)
{
    bool ok = code_is_64(cpu, lo) ? x86_is_canonical(rip) : rip <= x86_desc_limit(lo);

    return ok ? 0 : x86_raise_error(cpu, X86_GP, 0);
}

/* CS and RIP as the target of a transfer that passed every check. */
static void enter(struct x86_cpu *cpu, uint16_t selector, uint64_t lo, unsigned cpl, uint64_t rip)
{
    x86_segment_fill(&cpu->s.seg[X86_CS], (uint16_t)((selector & 0xfffc) | cpl), lo);
    cpu->cpl = (uint8_t)cpl;
    cpu->s.rip = rip;
}

/* Pushes onto a 64-bit stack, values[0] first: all or nothing. */
static int push64(struct x86_cpu *cpu, uint64_t rsp, const uint64_t *values, unsigned count, unsigned size,
                  unsigned access, uint64_t *ret_rsp)
{
    uint8_t bytes[4 * 8];

    rsp -= count * size;
    if (!x86_is_canonical(rsp) || !x86_is_canonical(rsp + count * size - 1)) {
        return x86_raise_error(cpu, X86_SS_EXC, 0);
    }
    for (unsigned i = 0; i < count; i++) {
        for (unsigned j = 0; j < size; j++) {
            bytes[(count - 1 - i) * size + j] = (uint8_t)(values[i] >> (8 * j));
        }
    }
    if (x86_store_buf(cpu, rsp, bytes, count * size, access | X86_ACCESS_WRITE)) {
        return -1;
    }
    *ret_rsp = rsp;
    return 0;
}

/* Pushes CS and the return address onto the current stack; moves RSP. wide: the stack is a 64-bit one. */
static int push_return(struct x86_cpu *cpu, unsigned size, bool wide)
{
    uint64_t rsp = cpu->s.gpr[X86_RSP];

    if (wide) {
        uint64_t values[2] = {cpu->s.seg[X86_CS].selector, cpu->next_rip};

        if (push64(cpu, rsp, values, 2, size, x86_access_mode(cpu), &rsp)) {
            return -1;
        }
    } else {
        uint32_t items[2] = {cpu->s.seg[X86_CS].selector, (uint32_t)cpu->next_rip};
        uint32_t esp = 0;

        if (x86_push_frame(cpu, &cpu->s.seg[X86_SS], (uint32_t)rsp, items, 2, size, x86_access_mode(cpu), 0,
                           &esp)) {
            return -1;
        }
        rsp = esp;
    }
    x86_set_sp(cpu, &cpu->s.seg[X86_SS], wide, rsp);
    return 0;
}

/* --- JMP and CALL --- */

static int branch_8086(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand, bool call)
{
    struct x86_segment *cs = &cpu->s.seg[X86_CS];

    if (offset > cs->limit) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (call && push_return(cpu, operand, false)) {
        return -1;
    }
    if (x86_vm86(cpu)) {
        x86_segment_vm86(cs, selector);
    } else {
        x86_segment_real(cs, selector);
    }
    cpu->s.rip = offset;
    return 0;
}

/* A CALL through a gate to an inner level: new stack, old SS:RSP, parameters, return address. */
static int call_inner(struct x86_cpu *cpu, uint64_t gate, unsigned new_cpl)
{
    const struct x86_segment *seg = cpu->s.seg;
    unsigned size = x86_desc_type(gate) & 8 ? 4 : 2;
    unsigned params = (unsigned)(gate >> 32) & 0x1f;
    struct x86_segment ss;
    uint32_t items[X86_FRAME_MAX];
    uint32_t esp;
    unsigned count = 0;

    if (x86_long_mode(cpu)) {
        uint64_t values[4] = {seg[X86_SS].selector, cpu->s.gpr[X86_RSP], seg[X86_CS].selector, cpu->next_rip};
        uint64_t rsp;

        if (x86_inner_stack64(cpu, new_cpl, 0, &rsp) || push64(cpu, rsp, values, 4, 8, 0, &rsp)) {
            return -1;
        }
        x86_segment_null(&cpu->s.seg[X86_SS], (uint16_t)new_cpl);
        cpu->s.gpr[X86_RSP] = rsp;
        return 0;
    }
    if (x86_inner_stack(cpu, new_cpl, 0, &ss, &esp)) {
        return -1;
    }
    items[count++] = seg[X86_SS].selector;
    items[count++] = (uint32_t)cpu->s.gpr[X86_RSP];
    for (unsigned i = params; i-- > 0;) {
        uint64_t value;

        if (x86_peek_stack(cpu, i, size, 0, &value)) {
            return -1;
        }
        items[count++] = (uint32_t)value;
    }
    items[count++] = seg[X86_CS].selector;
    items[count++] = (uint32_t)cpu->next_rip;
    if (x86_push_frame(cpu, &ss, esp, items, count, size, 0, ss.selector & 0xfffcu, &esp)) {
        return -1;
    }
    cpu->s.seg[X86_SS] = ss;
    cpu->s.gpr[X86_RSP] = esp;
    return 0;
}

/* SDM vol. 3A, 5.8.3 and 5.8.4 */
static int through_call_gate(struct x86_cpu *cpu, uint16_t gate_selector, const struct x86_desc *gate,
                             bool call)
{
    bool long_mode = x86_long_mode(cpu);
    bool wide_gate = (x86_desc_type(gate->lo) & 8) != 0;
    uint16_t selector = x86_gate_selector(gate->lo);
    uint64_t rip = wide_gate ? x86_gate_offset(gate->lo) | gate->hi << 32 : gate->lo & 0xffff;
    struct x86_desc code;
    bool conforming;
    unsigned dpl = x86_desc_dpl(gate->lo);
    unsigned new_cpl = cpu->cpl;
    int load;

    if (dpl < cpu->cpl || dpl < (gate_selector & 3u)) {
        return x86_raise_selector(cpu, X86_GP, gate_selector, 0);
    }
    if (!x86_desc_present(gate->lo)) {
        return x86_raise_selector(cpu, X86_NP, gate_selector, 0);
    }
    if (x86_selector_null(selector)) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    load = x86_desc_load(cpu, selector, &code);
    if (load < 0) {
        return -1;
    }
    conforming = x86_desc_is_conforming(code.lo);
    dpl = x86_desc_dpl(code.lo);
    if (load || !x86_desc_is_code(code.lo) || dpl > cpu->cpl || (!call && !conforming && dpl != cpu->cpl) ||
        (long_mode && (!x86_desc_is_long(code.lo) || x86_desc_is_db(code.lo)))) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (!x86_desc_present(code.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    if (check_target(cpu, code.lo, rip) || x86_desc_mark_accessed(cpu, &code)) {
        return -1;
    }
    if (call) {
        if (!conforming && dpl < cpu->cpl) {
            new_cpl = dpl;
            if (call_inner(cpu, gate->lo, new_cpl)) {
                return -1;
            }
        } else if (push_return(cpu, long_mode ? 8 : wide_gate ? 4 : 2, long_mode)) {
            return -1;
        }
    }
    enter(cpu, selector, code.lo, new_cpl, rip);
    return 0;
}

static int to_task(struct x86_cpu *cpu, uint16_t selector, bool call)
{
    struct x86_task_result result = {0};

    if (x86_task_switch(cpu, selector, call ? X86_TASK_CALL : X86_TASK_JMP, (uint32_t)cpu->next_rip,
                        (uint32_t)cpu->s.rflags, 0, &result)) {
        return -1;
    }
    return x86_task_trap(cpu, &result);
}

/* The selector is one of a system descriptor: a gate or a TSS. */
static int branch_system(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *desc, bool call)
{
    unsigned type = x86_desc_type(desc->lo);
    unsigned dpl = x86_desc_dpl(desc->lo);
    int load;

    if (x86_long_mode(cpu)) {
        load = type == X86_TYPE_CALL32 ? x86_desc_load_system(cpu, selector, desc) : 1;
        if (load < 0) {
            return -1;
        }
        return load ? x86_raise_selector(cpu, X86_GP, selector, 0)
                    : through_call_gate(cpu, selector, desc, call);
    }
    switch (type) {
    case X86_TYPE_CALL16:
    case X86_TYPE_CALL32: return through_call_gate(cpu, selector, desc, call);
    case X86_TYPE_TASK_GATE:
    case X86_TYPE_TSS16:
    case X86_TYPE_TSS32: break;
    default: return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (dpl < cpu->cpl || dpl < (selector & 3u)) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (type != X86_TYPE_TASK_GATE) {
        return to_task(cpu, selector, call);
    }
    if (!x86_desc_present(desc->lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    return to_task(cpu, x86_gate_selector(desc->lo), call);
}

static int far_branch(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand, bool call)
{
    struct x86_desc desc;
    unsigned dpl;
    bool allowed;
    int load;

    offset &= operand_mask(operand);
    if (!x86_protected(cpu) || x86_vm86(cpu)) {
        return branch_8086(cpu, selector, offset, operand, call);
    }
    if (x86_selector_null(selector)) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    load = x86_desc_load(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    if (load) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (x86_desc_is_system(desc.lo)) {
        return branch_system(cpu, selector, &desc, call);
    }
    dpl = x86_desc_dpl(desc.lo);
    allowed =
        x86_desc_is_conforming(desc.lo) ? dpl <= cpu->cpl : (selector & 3u) <= cpu->cpl && dpl == cpu->cpl;
    if (!x86_desc_is_code(desc.lo) || code_is_reserved(cpu, desc.lo) || !allowed) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    if (check_target(cpu, desc.lo, offset) || x86_desc_mark_accessed(cpu, &desc) ||
        (call && push_return(cpu, operand, x86_code64(cpu)))) {
        return -1;
    }
    enter(cpu, selector, desc.lo, cpu->cpl, offset);
    return 0;
}

int x86_far_jmp(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand)
{
    return far_branch(cpu, selector, offset, operand, false);
}

int x86_far_call(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand)
{
    return far_branch(cpu, selector, offset, operand, true);
}

/* --- RET and IRET --- */

/* The code segment that a return goes to. Doesn't set the accessed bit. */
static inline int return_code_segment(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *ret_desc)
{
    unsigned rpl = selector & 3u;
    unsigned dpl;
    int load;

    if (x86_selector_null(selector)) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    load = x86_desc_load(cpu, selector, ret_desc);
    if (load < 0) {
        return -1;
    }
    dpl = x86_desc_dpl(ret_desc->lo);
    if (load || !x86_desc_is_code(ret_desc->lo) || rpl < cpu->cpl ||
        (x86_desc_is_conforming(ret_desc->lo) ? dpl > rpl : dpl != rpl) ||
        code_is_reserved(cpu, ret_desc->lo)) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (!x86_desc_present(ret_desc->lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    return 0;
}

int x86_far_ret(struct x86_cpu *cpu, unsigned operand, uint16_t pop_bytes)
{
    bool protected = x86_protected(cpu) && !x86_vm86(cpu);
    struct x86_segment ss = cpu->s.seg[X86_SS];
    bool wide = x86_code64(cpu);
    struct x86_desc code;
    uint64_t rip;
    uint64_t cs;
    uint64_t new_ss;
    uint64_t rsp;
    unsigned rpl;

    /* Processors read CS first, which shows when both fault. */
    if (x86_peek_stack(cpu, 1, operand, 0, &cs) || x86_peek_stack(cpu, 0, operand, 0, &rip)) {
        return -1;
    }
    if (!protected) {
        if (branch_8086(cpu, (uint16_t)cs, rip, operand, false)) {
            return -1;
        }
        x86_set_sp(cpu, &ss, false, cpu->s.gpr[X86_RSP] + 2 * operand + pop_bytes);
        return 0;
    }
    if (return_code_segment(cpu, (uint16_t)cs, &code)) {
        return -1;
    }
    rsp = cpu->s.gpr[X86_RSP] + 2 * operand;
    rpl = cs & 3;
    if (rpl > cpu->cpl) {
        wide = code_is_64(cpu, code.lo);
        if (x86_peek_stack(cpu, 2, operand, pop_bytes, &rsp) ||
            x86_peek_stack(cpu, 3, operand, pop_bytes, &new_ss) ||
            x86_stack_segment(cpu, (uint16_t)new_ss, rpl, X86_GP, wide && rpl != 3, 0, &ss)) {
            return -1;
        }
    }
    if (check_target(cpu, code.lo, rip) || x86_desc_mark_accessed(cpu, &code)) {
        return -1;
    }
    if (rpl > cpu->cpl) {
        cpu->s.seg[X86_SS] = ss;
        x86_drop_segments(cpu, rpl);
    }
    x86_set_sp(cpu, &ss, wide, rsp + pop_bytes);
    enter(cpu, (uint16_t)cs, code.lo, rpl, rip);
    return 0;
}

static void set_flags(struct x86_cpu *cpu, uint64_t value, uint64_t mask)
{
    cpu->s.rflags = (cpu->s.rflags & ~mask) | (value & mask) | X86_FLAGS_FIXED;
}

static int iret_8086(struct x86_cpu *cpu, unsigned operand)
{
    struct x86_segment *cs = &cpu->s.seg[X86_CS];
    uint64_t mask = X86_FLAGS_DEFINED & ~(uint64_t)(X86_VM | FLAGS_VIRTUAL) & operand_mask(operand);
    bool vm86 = x86_vm86(cpu);
    bool trusted = !vm86 || (cpu->s.rflags & X86_IOPL) == X86_IOPL;
    uint64_t values[3];

    if (!trusted && (operand != 2 || !(cpu->s.cr4 & X86_CR4_VME))) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        if (x86_peek_stack(cpu, i, operand, 0, &values[i])) {
            return -1;
        }
    }
    if (values[0] > cs->limit) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (vm86) {
        mask &= ~(uint64_t)X86_IOPL;
    }
    if (!trusted) {
        /* VIF stands in for IF (SDM vol. 3B, 20.3.3.4). */
        if ((values[2] & X86_TF) || ((values[2] & X86_IF) && (cpu->s.rflags & X86_VIP))) {
            return x86_raise_error(cpu, X86_GP, 0);
        }
        mask = (mask & ~(uint64_t)X86_IF) | X86_VIF;
        values[2] |= values[2] & X86_IF ? X86_VIF : 0;
    }
    if (vm86) {
        x86_segment_vm86(cs, (uint16_t)values[1]);
    } else {
        x86_segment_real(cs, (uint16_t)values[1]);
    }
    cpu->s.rip = values[0];
    x86_set_sp(cpu, &cpu->s.seg[X86_SS], false, cpu->s.gpr[X86_RSP] + 3 * operand);
    set_flags(cpu, values[2], mask);
    cpu->s.nmi_blocked = false;
    return 0;
}

/* The frame also holds ESP, SS, ES, DS, FS, GS (SDM vol. 3B, figure 20-4). frame: EIP, CS, EFLAGS. */
static int iret_to_vm86(struct x86_cpu *cpu, const uint64_t *frame)
{
    static const uint8_t order[] = {X86_SS, X86_ES, X86_DS, X86_FS, X86_GS};
    uint64_t values[6]; /* ESP and the selectors in that order */

    for (unsigned i = 0; i < 6; i++) {
        if (x86_peek_stack(cpu, 3 + i, 4, 0, &values[i])) {
            return -1;
        }
    }
    if (frame[0] > 0xffff) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    x86_segment_vm86(&cpu->s.seg[X86_CS], (uint16_t)frame[1]);
    for (unsigned i = 0; i < sizeof(order); i++) {
        x86_segment_vm86(&cpu->s.seg[order[i]], (uint16_t)values[1 + i]);
    }
    cpu->s.rip = frame[0];
    cpu->s.gpr[X86_RSP] = values[0];
    cpu->s.rflags = (frame[2] & X86_FLAGS_DEFINED) | X86_FLAGS_FIXED;
    cpu->cpl = 3;
    cpu->s.nmi_blocked = false;
    return 0;
}

/* NT says that this task was called by another one, which the TSS names. */
static int iret_task(struct x86_cpu *cpu)
{
    struct x86_task_result result = {0};
    uint64_t link;

    if (x86_long_mode(cpu)) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (x86_load(cpu, (uint32_t)cpu->s.tr.base, 2, X86_ACCESS_READ | X86_ACCESS_IMPLICIT, &link) ||
        x86_task_switch(cpu, (uint16_t)link, X86_TASK_IRET, (uint32_t)cpu->next_rip,
                        (uint32_t)cpu->s.rflags & ~X86_NT, 0, &result)) {
        return -1;
    }
    cpu->s.nmi_blocked = false;
    return x86_task_trap(cpu, &result);
}

/* The first `count` items of a frame. */
static inline int read_frame(struct x86_cpu *cpu, unsigned operand, unsigned count, uint64_t *ret)
{
    if (operand == 8) {
        uint64_t rsp = cpu->s.gpr[X86_RSP];
        const struct x86_quad *from =
            x86_is_canonical(rsp) ? x86_quick_ptr(cpu, rsp, 5 * 8, X86_ACCESS_READ | x86_access_mode(cpu))
                                  : NULL;

        if (from) {
            for (unsigned i = 0; i < 5; i++) {
                ret[i] = from[i].v;
            }
            return 0;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (x86_peek_stack(cpu, i, operand, 0, &ret[i])) {
            return -1;
        }
    }
    return 0;
}

int x86_iret(struct x86_cpu *cpu, unsigned operand)
{
    struct x86_state *s = &cpu->s;
    bool wide = x86_code64(cpu);
    bool to_wide;
    struct x86_segment ss;
    struct x86_desc code;
    uint64_t frame[5]; /* RIP, CS, RFLAGS, RSP, SS */
    uint64_t mask = IRET_FLAGS;
    unsigned rpl;
    bool outer;

    if (!x86_protected(cpu) || x86_vm86(cpu)) {
        return iret_8086(cpu, operand);
    }
    if (s->rflags & X86_NT) {
        return iret_task(cpu);
    }
    if (read_frame(cpu, operand, wide ? 5 : 3, frame)) {
        return -1;
    }
    if (operand == 4 && (frame[2] & X86_VM) && cpu->cpl == 0 && !x86_long_mode(cpu)) {
        return iret_to_vm86(cpu, frame);
    }
    if (return_code_segment(cpu, (uint16_t)frame[1], &code)) {
        return -1;
    }
    rpl = frame[1] & 3;
    outer = rpl > cpu->cpl;
    to_wide = code_is_64(cpu, code.lo);
    if (outer && !wide &&
        (x86_peek_stack(cpu, 3, operand, 0, &frame[3]) || x86_peek_stack(cpu, 4, operand, 0, &frame[4]))) {
        return -1;
    }
    /* 64-bit mode pops SS:RSP even when the level stays (SDM vol. 3A, 6.14.4). */
    if ((outer || wide) &&
        x86_stack_segment(cpu, (uint16_t)frame[4], rpl, X86_GP, to_wide && rpl != 3, 0, &ss)) {
        return -1;
    }
    if (check_target(cpu, code.lo, frame[0]) || x86_desc_mark_accessed(cpu, &code)) {
        return -1;
    }

    if (operand != 2) {
        mask |= IRET_FLAGS_WIDE;
    }
    if (cpu->cpl <= (s->rflags & X86_IOPL) >> 12) {
        mask |= X86_IF;
    }
    if (cpu->cpl == 0) {
        mask |= X86_IOPL | (operand != 2 ? FLAGS_VIRTUAL : 0);
    }
    set_flags(cpu, frame[2], mask);
    if (outer || wide) {
        s->seg[X86_SS] = ss;
        x86_set_sp(cpu, &ss, to_wide, frame[3]);
    } else {
        x86_set_sp(cpu, &s->seg[X86_SS], false, s->gpr[X86_RSP] + 3 * operand);
    }
    if (outer) {
        x86_drop_segments(cpu, rpl);
    }
    enter(cpu, (uint16_t)frame[1], code.lo, rpl, frame[0]);
    s->nmi_blocked = false;
    return 0;
}
