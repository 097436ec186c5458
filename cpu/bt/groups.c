/*
 * Groups: memory accesses of one block that lie at constant distances from one another, so that one TLB check
 * serves all.
 *
 * A pass over the decoded block gives every register a value number and a distance from it: PUSH, POP, ADD r,
 * imm, LEA r, [r + disp] and MOV r, r keep the number, everything else makes a new one. Accesses through the
 * same numbers form a group as long as it spans at most GROUP_SPAN_MAX bytes. The first access checks the
 * whole span and keeps the host address of its lowest byte in v->group[]; the others use that. Where the span
 * crosses a page, or the page does not allow all of it, the first access leaves and the rest of the block
 * runs as one translated without groups (BT_MODE_NOGROUP).
 */
#include "cpu/bt/gen.h"

#define GROUP_SPAN_MAX 512

struct value {
    uint32_t number;
    int64_t distance;
};

struct pass {
    struct gen *g;
    struct value reg[16];
    uint32_t next;
    unsigned jumps; /* conditional jumps passed */
};

static void renew(struct pass *p, unsigned reg)
{
    p->reg[reg] = (struct value){.number = p->next++, .distance = 0};
}

static int8_t join(struct pass *p, struct value base, struct value index, unsigned scale, int64_t offset,
                   unsigned size, bool write)
{
    struct gen *g = p->g;
    for (unsigned i = 0; i < g->ngroups; i++) {
        struct gen_group *x = &g->group[i];
        if (x->base != base.number || x->index != index.number || x->scale != scale) {
            continue;
        }
        if (write && !x->write && x->jumps != p->jumps) {
            continue; /* maybe it is never written */
        }
        int64_t min = MIN(x->min, offset), max = MAX(x->max, offset + (int64_t)size);
        if (max - min <= GROUP_SPAN_MAX) {
            x->min = min;
            x->max = max;
            x->write |= write;
            x->count++;
            return (int8_t)i;
        }
    }
    if (g->ngroups == GEN_GROUPS_MAX) {
        return -1;
    }
    g->group[g->ngroups] = (struct gen_group){.base = base.number,
                                              .index = index.number,
                                              .scale = (uint8_t)scale,
                                              .min = offset,
                                              .max = offset + size,
                                              .write = write,
                                              .jumps = p->jumps,
                                              .count = 1};
    return (int8_t)g->ngroups++;
}

static void join_operand(struct pass *p, struct gen_insn *gi)
{
    const struct bt_op *op = &gi->in.op;
    static const struct value none = {0, 0};
    if (!op->has_mem || gi->in.agen || gi->in.vsib || gi->in.masked_mem || op->rip_relative ||
        op->addrsize != 8 || op->base == BT_NO_REG || op->seg == X86_FS || op->seg == X86_GS ||
        op->mem_size == 0 || op->mem_size > 64) {
        return;
    }
    struct value base = p->reg[op->base], index = op->index == BT_NO_REG ? none : p->reg[op->index];
    int64_t offset = op->disp + base.distance + index.distance * op->scale;
    gi->mem_group = join(p, base, index, op->index == BT_NO_REG ? 0 : op->scale, offset, op->mem_size,
                         op->access == X86_ACCESS_WRITE);
    gi->mem_offset = offset;
}

static void join_stack(struct pass *p, struct gen_insn *gi, unsigned reg, int64_t disp, bool write)
{
    static const struct value none = {0, 0};
    gi->stack_offset = p->reg[reg].distance + disp;
    gi->stack_group = join(p, p->reg[reg], none, 0, gi->stack_offset, 8, write);
}

/* ADD, SUB, INC, DEC of a 64-bit register by a constant, LEA from it, MOV between two. */
static bool keeps_number(struct pass *p, const struct gen_insn *gi)
{
    const struct bt_insn *in = &gi->in;
    int64_t by;
    if (gi->kind == GEN_LEA && in->reg.size == 8 && in->op.addrsize == 8 && in->op.base != BT_NO_REG &&
        in->op.index == BT_NO_REG && !in->op.rip_relative) {
        p->reg[in->reg.reg] = p->reg[in->op.base];
        p->reg[in->reg.reg].distance += in->op.disp;
        return true;
    }
    if (gi->kind != GEN_COPY || in->enc != BT_ENC_LEGACY || in->map != 0 || in->op.has_mem || !in->rm.gpr ||
        in->rm.size != 8) {
        return false;
    }
    switch (in->opcode) {
    case 0x81:
    case 0x83:
        if (in->op.modrm_reg != 0 && in->op.modrm_reg != 5) {
            return false;
        }
        by = (int64_t)in->op.imm;
        by = in->opcode == 0x83 ? (int8_t)by : (int32_t)by;
        p->reg[in->rm.reg].distance += in->op.modrm_reg == 0 ? by : -by;
        return true;
    case 0xff:
        if (in->op.modrm_reg > 1) {
            return false;
        }
        p->reg[in->rm.reg].distance += in->op.modrm_reg == 0 ? 1 : -1;
        return true;
    case 0x89: p->reg[in->rm.reg] = p->reg[in->reg.reg]; return true;
    case 0x8b: p->reg[in->reg.reg] = p->reg[in->rm.reg]; return true;
    default: return false;
    }
}

void gen_find_groups(struct gen *g)
{
    struct pass p = {.g = g, .next = 1};
    g->ngroups = 0;
    bool usable = (g->mode & BT_MODE_CODE64) && !(g->mode & (BT_MODE_SLOW | BT_MODE_ONE | BT_MODE_NOGROUP));
    for (unsigned r = 0; r < 16; r++) {
        renew(&p, r);
    }
    for (unsigned i = 0; i < g->n; i++) {
        struct gen_insn *gi = &g->insn[i];
        const struct bt_insn *in = &gi->in;
        gi->mem_group = gi->stack_group = -1;
        if (!usable) {
            continue;
        }
        switch (gi->kind) {
        case GEN_COPY: join_operand(&p, gi); break;
        case GEN_JMP_INDIRECT: join_operand(&p, gi); break;
        case GEN_PUSH:
        case GEN_PUSHF:
        case GEN_CALL:
        case GEN_CALL_INDIRECT:
            if (gi->kind != GEN_CALL && gi->kind != GEN_PUSHF) {
                join_operand(&p, gi);
            }
            join_stack(&p, gi, X86_RSP, -8, true);
            p.reg[X86_RSP].distance -= 8;
            break;
        case GEN_POP:
        case GEN_RET:
            join_stack(&p, gi, X86_RSP, 0, false);
            p.reg[X86_RSP].distance += 8;
            if (gi->kind == GEN_POP) {
                renew(&p, in->opc.gpr ? in->opc.reg : in->rm.reg);
            }
            break;
        case GEN_LEAVE:
            join_stack(&p, gi, X86_RBP, 0, false);
            p.reg[X86_RSP] = p.reg[X86_RBP];
            p.reg[X86_RSP].distance += 8;
            renew(&p, X86_RBP);
            break;
        case GEN_JCC: p.jumps++; break;
        case GEN_REP:
        case GEN_OP:
            for (unsigned r = 0; r < 16; r++) {
                renew(&p, r);
            }
            break;
        default: break;
        }
        if (gi->kind == GEN_COPY || gi->kind == GEN_LEA || gi->kind == GEN_BIT_STRING) {
            if (!keeps_number(&p, gi)) {
                for (unsigned r = 0; r < 16; r++) {
                    if (in->gpr_written >> r & 1) {
                        renew(&p, r);
                    }
                }
            }
        }
    }
    for (unsigned i = 0; i < g->n; i++) { /* alone is no group */
        struct gen_insn *gi = &g->insn[i];
        if (gi->mem_group >= 0 && g->group[gi->mem_group].count < 2) {
            gi->mem_group = -1;
        }
        if (gi->stack_group >= 0 && g->group[gi->stack_group].count < 2) {
            gi->stack_group = -1;
        }
    }
}

bool gen_group_known(struct gen *g, int group, int64_t offset)
{
    if (group < 0 || !g->group[group].checked) {
        return false;
    }
    if (g->s2_group != group) {
        emit_load(&g->e, H_S2, GA(g, group[group]));
        g->s2_group = group;
    }
    g->mem_disp = (int32_t)(offset - g->group[group].min);
    return true;
}

void gen_group_checked(struct gen *g, int group, int64_t offset)
{
    struct gen_group *x = &g->group[group];
    emit_store(&g->e, GA(g, group[group]), H_S2);
    x->checked = true;
    g->s2_group = group;
    g->mem_disp = (int32_t)(offset - x->min);
}
