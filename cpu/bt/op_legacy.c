/*
 * Instructions that 64-bit mode does not have, written out: decimal arithmetic, BOUND, ARPL, SALC (SDM vol.
 * 2A), and XLAT. General registers only.
 */
#include <Zydis/Zydis.h>

#include "cpu/bt/op.h"

static void set_flags(struct bt_vcpu *v, uint32_t mask, uint32_t value)
{
    v->cpu.s.rflags = (v->cpu.s.rflags & ~(uint64_t)mask) | (value & mask);
}

/* SF, ZF and PF of a byte. */
static uint32_t byte_flags(uint8_t r)
{
    return (r & 0x80 ? X86_SF : 0) | (r == 0 ? X86_ZF : 0) | (__builtin_parity(r) ? 0 : X86_PF);
}

static int op_daa_das(struct bt_vcpu *v, const struct bt_op *op)
{
    uint8_t al = (uint8_t)v->cpu.s.gpr[X86_RAX], old = al;
    bool cf = v->cpu.s.rflags & X86_CF, af = v->cpu.s.rflags & X86_AF,
         sub = op->mnemonic == ZYDIS_MNEMONIC_DAS;
    bool carry = false, adjust = false;
    if ((al & 15) > 9 || af) {
        carry = cf || (sub ? al < 6 : al > 0xf9);
        al = (uint8_t)(sub ? al - 6 : al + 6);
        adjust = true;
    }
    if (old > 0x99 || cf) {
        al = (uint8_t)(sub ? al - 0x60 : al + 0x60);
        carry = true;
    }
    op_set(v, X86_RAX, 1, al);
    set_flags(v, X86_CF | X86_AF | X86_SF | X86_ZF | X86_PF,
              (carry ? X86_CF : 0) | (adjust ? X86_AF : 0) | byte_flags(al));
    return BT_NEXT;
}

static int op_aaa_aas(struct bt_vcpu *v, const struct bt_op *op)
{
    uint16_t ax = (uint16_t)v->cpu.s.gpr[X86_RAX];
    bool adjust = (ax & 15) > 9 || (v->cpu.s.rflags & X86_AF);
    if (adjust) {
        ax = (uint16_t)(op->mnemonic == ZYDIS_MNEMONIC_AAS ? ax - 0x106 : ax + 0x106);
    }
    op_set(v, X86_RAX, 2, ax & 0xff0f);
    set_flags(v, X86_CF | X86_AF, adjust ? X86_CF | X86_AF : 0);
    return BT_NEXT;
}

static int op_aam(struct bt_vcpu *v, const struct bt_op *op)
{
    uint8_t al = (uint8_t)v->cpu.s.gpr[X86_RAX], base = (uint8_t)op->imm;
    if (base == 0) {
        x86_raise(&v->cpu, X86_DE);
        return BT_RAISE;
    }
    op_set(v, X86_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
    set_flags(v, X86_SF | X86_ZF | X86_PF, byte_flags((uint8_t)(al % base)));
    return BT_NEXT;
}

static int op_aad(struct bt_vcpu *v, const struct bt_op *op)
{
    uint16_t ax = (uint16_t)v->cpu.s.gpr[X86_RAX];
    uint8_t al = (uint8_t)((ax & 0xff) + (ax >> 8) * (uint8_t)op->imm);
    op_set(v, X86_RAX, 2, al);
    set_flags(v, X86_SF | X86_ZF | X86_PF, byte_flags(al));
    return BT_NEXT;
}

static int64_t sign_extend(uint64_t value, unsigned size)
{
    unsigned shift = 64 - size * 8;
    return (int64_t)(value << shift) >> shift;
}

static int op_bound(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t low, high, ea = bt_op_ea(v, op);
    if (op_load(v, op->seg, ea, op->opsize, op->stack_based, &low) < 0 ||
        op_load(v, op->seg, (ea + op->opsize) & op_mask(op->addrsize), op->opsize, op->stack_based, &high) <
            0) {
        return BT_RAISE;
    }
    int64_t index = sign_extend(op_get(v, op->reg, op->opsize), op->opsize);
    if (index < sign_extend(low, op->opsize) || index > sign_extend(high, op->opsize)) {
        x86_raise(&v->cpu, X86_BR);
        return BT_RAISE;
    }
    return BT_NEXT;
}

static int op_arpl(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t dst;
    if (!x86_protected(&v->cpu) || x86_vm86(&v->cpu)) {
        return bt_op_ud(v, op);
    }
    if (op_rm_load(v, op, 2, &dst) < 0) {
        return BT_RAISE;
    }
    uint64_t src = op_get(v, op->reg, 2);
    bool raise = (dst & 3) < (src & 3);
    if (raise && op_rm_store(v, op, 2, (dst & ~3ull) | (src & 3)) < 0) {
        return BT_RAISE;
    }
    set_flags(v, X86_ZF, raise ? X86_ZF : 0);
    return BT_NEXT;
}

static int op_salc(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    op_set(v, X86_RAX, 1, v->cpu.s.rflags & X86_CF ? 0xff : 0);
    return BT_NEXT;
}

static int op_xlat(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value, ea = (v->cpu.s.gpr[X86_RBX] + (v->cpu.s.gpr[X86_RAX] & 0xff)) & op_mask(op->addrsize);
    if (op_load(v, op->seg, ea, 1, false, &value) < 0) {
        return BT_RAISE;
    }
    op_set(v, X86_RAX, 1, value);
    return BT_NEXT;
}

bt_op_fn *op_legacy_lookup(const struct bt_insn *in, bool *ret_ends)
{
    (void)ret_ends;
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS: return op_daa_das;
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS: return op_aaa_aas;
    case ZYDIS_MNEMONIC_AAM: return op_aam;
    case ZYDIS_MNEMONIC_AAD: return op_aad;
    case ZYDIS_MNEMONIC_BOUND: return op_bound;
    case ZYDIS_MNEMONIC_ARPL: return op_arpl;
    case ZYDIS_MNEMONIC_SALC: return op_salc;
    case ZYDIS_MNEMONIC_XLAT: return op_xlat;
    default: return NULL;
    }
}
