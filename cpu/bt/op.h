/*
 * Shared by the files of instructions that are executed by functions (op_*.c): operands.
 *
 * All of them run with all guest registers in cpu.s, and are compiled for general registers only.
 */
#ifndef FONDA_CPU_BT_OP_H
#define FONDA_CPU_BT_OP_H

#include "cpu/bt/bt_int.h"

static inline uint64_t op_mask(unsigned size)
{
    return size == 8 ? UINT64_MAX : (1ull << size * 8) - 1;
}

static inline uint64_t op_get(const struct bt_vcpu *v, unsigned reg, unsigned size)
{
    return v->cpu.s.gpr[reg] & op_mask(size);
}

/* As the processor writes: 32-bit results clear the upper half, narrower ones keep the rest. */
static inline void op_set(struct bt_vcpu *v, unsigned reg, unsigned size, uint64_t value)
{
    uint64_t *r = &v->cpu.s.gpr[reg];
    switch (size) {
    case 8: *r = value; break;
    case 4: *r = (uint32_t)value; break;
    case 2: *r = (*r & ~0xffffull) | (value & 0xffff); break;
    default: *r = (*r & ~0xffull) | (value & 0xff); break;
    }
}

/* For BT_RAISE after a helper of cpu/x86 returned -1. */
static inline int op_done(int r, int ok)
{
    return r < 0 ? BT_RAISE : ok;
}

static inline bool op_code64(const struct bt_vcpu *v)
{
    return (v->mode & BT_MODE_CODE64) != 0;
}

/* The linear address of seg:offset, after the checks of segment, canonicality and alignment. 0, or -1 with
 * cpu.exc set. */
int op_linear(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write, bool stack,
              uint64_t *ret);
/* Memory at seg:offset. 0, or -1 with cpu.exc set. */
int op_load(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool stack, uint64_t *ret);
int op_store(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool stack, uint64_t value);
/* The memory operand, or the register that ModRM.rm names. */
int op_rm_load(struct bt_vcpu *v, const struct bt_op *op, unsigned size, uint64_t *ret);
int op_rm_store(struct bt_vcpu *v, const struct bt_op *op, unsigned size, uint64_t value);

/* The stack: width of its pointer, pushes and pops that change RSP only when all succeeded. */
unsigned op_stack_width(const struct bt_vcpu *v); /* 2, 4, 8 */
int op_push(struct bt_vcpu *v, unsigned size, uint64_t value);
int op_pop(struct bt_vcpu *v, unsigned size, uint64_t *ret);

/* op_string.c, op_stack.c, op_legacy.c, op_system.c, op_fpu.c: their part of bt_op_lookup. */
bt_op_fn *op_string_lookup(const struct bt_insn *in, bool *ret_ends);
bt_op_fn *op_stack_lookup(const struct bt_insn *in, bool *ret_ends);
bt_op_fn *op_legacy_lookup(const struct bt_insn *in, bool *ret_ends);
bt_op_fn *op_system_lookup(const struct bt_insn *in, bool *ret_ends);
bt_op_fn *op_fpu_lookup(const struct bt_insn *in, bool *ret_ends);

#endif
