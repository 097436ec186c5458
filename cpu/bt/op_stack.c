/*
 * Stack instructions and control transfer that are not generated inline: 16-bit operands, segments that are not flat, segment
 * registers, flags, far transfers. General registers only.
 */
#include <Zydis/Zydis.h>

#include "cpu/bt/op.h"

/* In 64-bit mode pushes and near branches are 64 bits wide, or 16 with a prefix where the decoder says so. */
static unsigned operand(const struct bt_vcpu *v, const struct bt_op *op)
{
    if (op_code64(v)) {
        return op->opsize == 2 ? 2 : 8;
    }
    return op->opsize;
}

static int jump_to(struct bt_vcpu *v, unsigned size, uint64_t rip)
{
    if (op_code64(v)) {
        if (!x86_is_canonical(rip)) {
            x86_raise_error(&v->cpu, X86_GP, 0);
            return BT_RAISE;
        }
        v->cpu.s.rip = rip;
        return BT_JUMP;
    }
    rip &= op_mask(size);
    if (rip > v->cpu.s.seg[X86_CS].limit) {
        x86_raise_error(&v->cpu, X86_GP, 0);
        return BT_RAISE;
    }
    v->cpu.s.rip = rip;
    return BT_JUMP;
}

static int op_push_general(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t value;
    if (op->source == BT_SOURCE_IMM) {
        value = op->imm;
    } else if (op->source == BT_SOURCE_SEG) {
        value = v->cpu.s.seg[op->seg_reg].selector;
        if (size == 4) { /* a 32-bit push of a selector writes its 16 bits only */
            unsigned width = op_stack_width(v);
            uint64_t sp = (v->cpu.s.gpr[X86_RSP] - 4) & op_mask(width);
            if (op_store(v, X86_SS, sp, 2, true, value) < 0) {
                return BT_RAISE;
            }
            op_set(v, X86_RSP, width, sp);
            return BT_NEXT;
        }
    } else if (op_rm_load(v, op, size, &value) < 0) {
        return BT_RAISE;
    }
    return op_done(op_push(v, size, value & op_mask(size)), BT_NEXT);
}

static int op_pop_general(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t value, old = v->cpu.s.gpr[X86_RSP];
    if (op_pop(v, size, &value) < 0) {
        return BT_RAISE;
    }
    if (op->source == BT_SOURCE_SEG) {
        if (x86_load_segment(&v->cpu, (enum x86_sreg)op->seg_reg, (uint16_t)value) < 0) {
            v->cpu.s.gpr[X86_RSP] = old;
            return BT_RAISE;
        }
        v->cpu.s.movss_shadow = op->seg_reg == X86_SS;
        return BT_DONE;
    }
    /* The address of POP m uses RSP after the increment. */
    if (op_rm_store(v, op, size, value) < 0) {
        v->cpu.s.gpr[X86_RSP] = old;
        return BT_RAISE;
    }
    return BT_NEXT;
}

static int op_pushf(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t value;
    if (x86_pushf(&v->cpu, size, &value) < 0) {
        return BT_RAISE;
    }
    return op_done(op_push(v, size, value), BT_NEXT);
}

static int op_popf(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t value, old = v->cpu.s.gpr[X86_RSP], before = v->cpu.s.rflags;
    if (op_pop(v, size, &value) < 0) {
        return BT_RAISE;
    }
    if (x86_popf(&v->cpu, size, value) < 0) {
        v->cpu.s.gpr[X86_RSP] = old;
        return BT_RAISE;
    }
    uint64_t changed = before ^ v->cpu.s.rflags;
    bool enabled = (changed & v->cpu.s.rflags & X86_IF) && v->irq_wait;
    return enabled || (changed & (X86_TF | X86_AC | X86_NT)) ? BT_DONE : BT_NEXT;
}

static int op_pusha(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = op->opsize;
    uint64_t old = v->cpu.s.gpr[X86_RSP];
    for (unsigned r = 0; r < 8; r++) {
        uint64_t value = r == X86_RSP ? old : v->cpu.s.gpr[r];
        if (op_push(v, size, value & op_mask(size)) < 0) {
            v->cpu.s.gpr[X86_RSP] = old;
            return BT_RAISE;
        }
    }
    return BT_NEXT;
}

static int op_popa(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = op->opsize;
    uint64_t old = v->cpu.s.gpr[X86_RSP], values[8];
    for (unsigned r = 8; r-- > 0;) {
        if (op_pop(v, size, &values[r]) < 0) {
            v->cpu.s.gpr[X86_RSP] = old;
            return BT_RAISE;
        }
    }
    for (unsigned r = 0; r < 8; r++) {
        if (r != X86_RSP) {
            op_set(v, r, size, values[r]);
        }
    }
    return BT_NEXT;
}

/* ENTER (SDM vol. 2A): imm16 bytes of locals, imm8 modulo 32 levels of nesting. */
static int op_enter(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op), width = op_stack_width(v);
    unsigned level = op->imm2 & 31;
    uint64_t old_sp = v->cpu.s.gpr[X86_RSP], bp = v->cpu.s.gpr[X86_RBP];
    if (op_push(v, size, bp & op_mask(size)) < 0) {
        return BT_RAISE;
    }
    uint64_t frame = v->cpu.s.gpr[X86_RSP];
    for (unsigned i = 1; i < level; i++) {
        uint64_t value;
        bp -= size;
        if (op_load(v, X86_SS, bp & op_mask(width), size, true, &value) < 0 || op_push(v, size, value) < 0) {
            v->cpu.s.gpr[X86_RSP] = old_sp;
            return BT_RAISE;
        }
    }
    if (level && op_push(v, size, frame & op_mask(size)) < 0) {
        v->cpu.s.gpr[X86_RSP] = old_sp;
        return BT_RAISE;
    }
    uint64_t sp = (v->cpu.s.gpr[X86_RSP] - (op->imm & 0xffff)) & op_mask(width), probe;
    /* The processor checks that the new top of the stack is writable. */
    if (x86_linear(&v->cpu, X86_SS, sp, size, X86_ACCESS_WRITE, true, &probe) < 0) {
        v->cpu.s.gpr[X86_RSP] = old_sp;
        return BT_RAISE;
    }
    struct x86_walk w;
    if (x86_walk(&v->cpu, probe, X86_ACCESS_WRITE | x86_access_mode(&v->cpu), &w) < 0) {
        v->cpu.s.gpr[X86_RSP] = old_sp;
        return BT_RAISE;
    }
    op_set(v, X86_RBP, size, frame);
    op_set(v, X86_RSP, width, sp);
    return BT_NEXT;
}

static int op_leave(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op), width = op_stack_width(v);
    uint64_t value, frame = v->cpu.s.gpr[X86_RBP] & op_mask(width);
    if (op_load(v, X86_SS, frame, size, true, &value) < 0) {
        return BT_RAISE;
    }
    op_set(v, X86_RSP, width, frame + size);
    op_set(v, X86_RBP, size, value);
    return BT_NEXT;
}

static int op_call(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t target, old = v->cpu.s.gpr[X86_RSP];
    if (op->opcode == 0xff) {
        if (op_rm_load(v, op, size, &target) < 0) {
            return BT_RAISE;
        }
    } else {
        target = (op->rip + op->len + op->imm) & op_mask(size);
    }
    if (op_push(v, size, v->cpu.next_rip & op_mask(size)) < 0) {
        return BT_RAISE;
    }
    int r = jump_to(v, size, target);
    if (r == BT_RAISE) {
        v->cpu.s.gpr[X86_RSP] = old;
    }
    return r;
}

static int op_ret(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op), width = op_stack_width(v);
    uint64_t target, old = v->cpu.s.gpr[X86_RSP];
    if (op_pop(v, size, &target) < 0) {
        return BT_RAISE;
    }
    int r = jump_to(v, size, target);
    if (r == BT_RAISE) {
        v->cpu.s.gpr[X86_RSP] = old;
        return r;
    }
    if (op->opcode == 0xc2) {
        op_set(v, X86_RSP, width, v->cpu.s.gpr[X86_RSP] + (op->imm & 0xffff));
    }
    return r;
}

static int op_jmp(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = operand(v, op);
    uint64_t target;
    if (op_rm_load(v, op, size, &target) < 0) {
        return BT_RAISE;
    }
    return jump_to(v, size, target);
}

/* Far pointers: in the instruction (9A, EA) or in memory (FF /3, FF /5; LDS and its kin). */
static int far_pointer(struct bt_vcpu *v, const struct bt_op *op, unsigned size, uint64_t *ret_offset, uint64_t *ret_selector)
{
    if (!op->has_mem) {
        *ret_offset = op->imm & op_mask(size);
        *ret_selector = (uint64_t)op->disp & 0xffff;
        return 0;
    }
    uint64_t ea = bt_op_ea(v, op);
    if (op_load(v, op->seg, ea, size, op->stack_based, ret_offset) < 0) {
        return -1;
    }
    return op_load(v, op->seg, (ea + size) & op_mask(op->addrsize), 2, op->stack_based, ret_selector);
}

static int op_far(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t offset, selector;
    if (op->opcode == 0xca || op->opcode == 0xcb) {
        return op_done(x86_far_ret(&v->cpu, op->opsize, op->opcode == 0xca ? (uint16_t)op->imm : 0), BT_JUMP);
    }
    if (far_pointer(v, op, op->opsize, &offset, &selector) < 0) {
        return BT_RAISE;
    }
    bool call = op->opcode == 0x9a || (op->opcode == 0xff && op->modrm_reg == 3);
    int r = call ? x86_far_call(&v->cpu, (uint16_t)selector, offset, op->opsize)
                 : x86_far_jmp(&v->cpu, (uint16_t)selector, offset, op->opsize);
    return op_done(r, BT_JUMP);
}

static int op_load_far(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t offset, selector;
    enum x86_sreg sreg;
    switch (op->mnemonic) {
    case ZYDIS_MNEMONIC_LDS: sreg = X86_DS; break;
    case ZYDIS_MNEMONIC_LES: sreg = X86_ES; break;
    case ZYDIS_MNEMONIC_LSS: sreg = X86_SS; break;
    case ZYDIS_MNEMONIC_LFS: sreg = X86_FS; break;
    default: sreg = X86_GS; break;
    }
    if (far_pointer(v, op, op->opsize, &offset, &selector) < 0 ||
        x86_load_segment(&v->cpu, sreg, (uint16_t)selector) < 0) {
        return BT_RAISE;
    }
    op_set(v, op->reg, op->opsize, offset);
    return BT_DONE;
}

bt_op_fn *op_stack_lookup(const struct bt_insn *in, bool *ret_ends)
{
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: return op_push_general;
    case ZYDIS_MNEMONIC_POP: *ret_ends = in->op.source == BT_SOURCE_SEG; return op_pop_general;
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ: return op_pushf;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ: *ret_ends = true; return op_popf;
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD: return op_pusha;
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD: return op_popa;
    case ZYDIS_MNEMONIC_ENTER: return op_enter;
    case ZYDIS_MNEMONIC_LEAVE: return op_leave;
    default: break;
    }
    *ret_ends = true;
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_CALL: return in->op.far ? op_far : op_call;
    case ZYDIS_MNEMONIC_RET: return in->op.far ? op_far : op_ret;
    case ZYDIS_MNEMONIC_JMP: return in->op.far ? op_far : op_jmp;
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS: return op_load_far;
    default: *ret_ends = false; return NULL;
    }
}
