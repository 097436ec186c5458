/*
 * Stack instructions and control transfer, where the segments are flat and the stack is 32 or 64 bits wide
 * (the rest is done by op_stack.c).
 *
 * Ways out of a block:
 *
 *     direct    jmp/jcc rel32 to the target's code, when the target lies on the same page: whoever runs this
 * block has the page mapped. Unlinked, it leads to its exit stub. checked   through a cell {-(ctx at
 * linking), host address}: the target lies on another page, whose mapping may have changed since. Flagless:
 * mov rcx, [cell]; mov r14, [ctx]; lea rcx, [rcx + r14]; jrcxz. indirect  through the jump cache, keyed by
 * target + ctx. call      one of these as a host CALL, so that the host's return stack predicts the RET;
 * behind it the landing, which checks that the guest returns where it was called from, in the same context.
 *     ret       a host RET with the guest's return address in r15.
 */
#include "cpu/bt/gen.h"
#include "cpu/bt/stubs.h"

static unsigned stack_bytes(const struct gen *g)
{
    return g->mode & BT_MODE_CODE64 ? 8 : 4;
}

static bool wide(const struct gen *g)
{
    return (g->mode & BT_MODE_CODE64) != 0;
}

/* rsp += delta, flags untouched. */
static void move_rsp(struct gen *g, int32_t delta)
{
    emit_rm(&g->e, wide(g), 0x8d, bt_host[X86_RSP], bt_host[X86_RSP], H_NONE, 1, delta);
}

/* The instruction's stack access, at [base + disp], as a member of its group. False: it has none. */
static bool stack_group(struct gen *g, const struct bt_insn *in, unsigned base, int32_t disp)
{
    const struct gen_insn *gi = &g->insn[g->at];
    if (gi->stack_group < 0) {
        return false;
    }
    if (!gen_group_known(g, gi->stack_group, gi->stack_offset)) {
        const struct gen_group *x = &g->group[gi->stack_group];
        gen_flags_save(g, in);
        emit_lea(&g->e, H_S2, base, disp + (int32_t)(x->min - gi->stack_offset));
        gen_check_span(g, gi->stack_group, true);
        gen_group_checked(g, gi->stack_group, gi->stack_offset);
    }
    return true;
}

/* r15: host address of the stack slot that a push writes; RSP is not changed yet. */
static void push_slot(struct gen *g, const struct bt_insn *in)
{
    unsigned n = stack_bytes(g);
    if (stack_group(g, in, bt_host[X86_RSP], -(int32_t)n)) {
        return;
    }
    gen_flags_save(g, in);
    emit_rm(&g->e, wide(g), 0x8d, H_S2, bt_host[X86_RSP], H_NONE, 1, -(int32_t)n);
    gen_check(g, in, n, true, true);
}

/* r15: host address of the top of the stack. */
static void pop_slot(struct gen *g, const struct bt_insn *in, unsigned base)
{
    if (stack_group(g, in, base, 0)) {
        return;
    }
    gen_flags_save(g, in);
    emit_rr(&g->e, wide(g), 0x8b, H_S2, base);
    gen_check(g, in, stack_bytes(g), false, true);
}

static void store_at_s2(struct gen *g, unsigned src)
{
    emit_rm(&g->e, wide(g), 0x89, src, H_S2, H_NONE, 1, g->mem_disp);
}

static void load_at_s2(struct gen *g, unsigned dst)
{
    if (dst == H_S2) {
        g->s2_group = -1;
    }
    emit_rm(&g->e, wide(g), 0x8b, dst, H_S2, H_NONE, 1, g->mem_disp);
}

/* mov [r15], constant */
static void store_const_at_s2(struct gen *g, uint64_t value)
{
    struct emit *e = &g->e;
    if (!wide(g) || (uint64_t)(int64_t)(int32_t)value == value) {
        emit_rm(e, wide(g), 0xc7, 0, H_S2, H_NONE, 1, g->mem_disp);
        emit32(e, (uint32_t)value);
    } else {
        emit_mov_imm(e, H_S0, value);
        store_at_s2(g, H_S0);
    }
}

void gen_push(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    if (in->op.has_mem) {
        gen_operand(g, in);
        load_at_s2(g, H_S2);
        emit_store(e, GA(g, tmp[0]), H_S2);
        push_slot(g, in);
        emit_load(e, H_S0, GA(g, tmp[0]));
        store_at_s2(g, H_S0);
    } else {
        push_slot(g, in);
        const struct bt_field *f = in->opc.gpr ? &in->opc : in->rm.gpr ? &in->rm : NULL;
        if (!f) {
            store_const_at_s2(g, in->op.imm);
        } else if (bt_host[f->reg] != H_NONE) {
            store_at_s2(g, bt_host[f->reg]);
        } else {
            emit_load(e, H_S0, gen_slot(g, f->reg));
            store_at_s2(g, H_S0);
        }
    }
    move_rsp(g, -(int32_t)stack_bytes(g));
    g->op_flags_saved = g->flags_saved;
}

/* Constant-time system instructions; the host's flags stay as they are. */
void gen_inline(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    uint64_t byte = in->op.mnemonic == ZYDIS_MNEMONIC_CLD ? GA(g, dflag) : GA(g, iflag);
    if (in->op.mnemonic == ZYDIS_MNEMONIC_SWAPGS) {
        emit_load(e, H_S0, GA(g, cpu.s.seg[X86_GS].base));
        emit_load(e, H_S1, GA(g, cpu.s.kernel_gs_base));
        emit_store(e, GA(g, cpu.s.seg[X86_GS].base), H_S1);
        emit_store(e, GA(g, cpu.s.kernel_gs_base), H_S0);
        return;
    }
    emit8(e, 0xc6); /* mov byte [flag], 0 or 1 */
    emit_rip_modrm(e, 0, byte, 1);
    emit8(e, in->op.mnemonic == ZYDIS_MNEMONIC_STI);
}

static void emit_exit_jump(struct gen *g, struct bt_exit *x, unsigned opcode);

/* Leaves through C when an interrupt waits for IF, which is on by now. */
void gen_irq_check(struct gen *g, uint64_t rip)
{
    struct emit *e = &g->e;
    emit_ra(e, false, 0x0fb6, H_RCX, GA(g, irq_wait));
    uint8_t *none = emit_jrcxz_fwd(e);
    struct bt_exit *x = gen_add_exit(g, rip);
    x->kind = BT_EXIT_NONE;
    emit_exit_jump(g, x, 0xe9);
    emit_here8(e, none);
}

/* or ecx, byte [flag] << by */
static void or_flag(struct gen *g, uint64_t flag, unsigned by)
{
    struct emit *e = &g->e;
    emit_ra(e, false, 0x0fb6, H_S1, flag);
    emit_rex(e, false, 0, 0, H_S1, false); /* shl r14d, by */
    emit8(e, 0xc1);
    emit8(e, 0xe0 | (H_S1 & 7));
    emit8(e, by);
    emit_rr(e, false, 0x0b, H_RCX, H_S1);
}

void gen_pushf(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    gen_flags_save(g, in); /* they are all live: read here */
    emit_ra(e, false, 0x0fb6, H_RCX, GA(g, aflags) + 1);
    static const uint8_t and_d5[] = {0x81, 0xe1, 0xd5, 0, 0, 0};
    emit_bytes(e, and_d5, sizeof(and_d5));
    or_flag(g, GA(g, aflags), 11);
    or_flag(g, GA(g, iflag), 9);
    or_flag(g, GA(g, dflag), 10);
    emit_load(e, H_S1, GA(g, cpu.s.rflags)); /* the rest, without RF and VM (SDM vol. 2B, "PUSHF") */
    emit_rex(e, true, 0, 0, H_S1, false);
    emit8(e, 0x81);
    emit8(e, 0xe0 | (H_S1 & 7));
    emit32(e, ~(uint32_t)(X86_FLAGS_ARITH | X86_IF | X86_DF | X86_RF | X86_VM) & INT32_MAX);
    emit_rr(e, true, 0x0b, H_RCX, H_S1);
    static const uint8_t or_2[] = {0x83, 0xc9, 0x02};
    emit_bytes(e, or_2, sizeof(or_2));
    emit_store(e, GA(g, tmp[0]), H_RCX);
    push_slot(g, in);
    emit_load(e, H_S0, GA(g, tmp[0]));
    store_at_s2(g, H_S0);
    move_rsp(g, -(int32_t)stack_bytes(g));
    g->op_flags_saved = g->flags_saved;
}

void gen_pop(struct gen *g, const struct bt_insn *in)
{
    const struct bt_field *f = in->opc.gpr ? &in->opc : &in->rm;
    pop_slot(g, in, bt_host[X86_RSP]);
    unsigned home = bt_host[f->reg];
    if (f->reg == X86_RSP) {
        load_at_s2(g, home);
    } else {
        load_at_s2(g, home == H_NONE ? H_S0 : home);
        if (home == H_NONE) {
            emit_store(&g->e, gen_slot(g, f->reg), H_S0);
        }
        move_rsp(g, (int32_t)stack_bytes(g));
    }
    g->op_flags_saved = g->flags_saved;
}

void gen_leave(struct gen *g, const struct bt_insn *in)
{
    pop_slot(g, in, bt_host[X86_RBP]);
    load_at_s2(g, H_S0);
    emit_rm(&g->e, wide(g), 0x8d, bt_host[X86_RSP], bt_host[X86_RBP], H_NONE, 1, (int32_t)stack_bytes(g));
    emit_mov(&g->e, bt_host[X86_RBP], H_S0);
    g->op_flags_saved = g->flags_saved;
}

uint64_t gen_branch_target(const struct gen *g, const struct bt_insn *in)
{
    uint64_t target = in->op.rip + in->op.len + in->op.imm;
    if (g->mode & BT_MODE_CODE64) {
        return target;
    }
    return in->op.opsize == 2 ? target & UINT16_MAX : target & UINT32_MAX;
}

static bool same_page(const struct gen *g, uint64_t rip)
{
    return (g->mode & BT_MODE_FLAT) && g->b->ram2 == UINT64_MAX && (rip ^ g->b->rip) < MEM_PAGE_SIZE;
}

/* Records an exit; its number. */
struct bt_exit *gen_add_exit(struct gen *g, uint64_t rip)
{
    if (g->b->exits + g->nexits == g->v->exits + g->v->exits_max) {
        g->e.full = true;
        g->nexits = 0;
    }
    struct bt_exit *x = &g->b->exits[g->nexits++];
    *x = (struct bt_exit){.rip = rip, .block = g->b, .kind = BT_EXIT_CHECKED};
    x->site = (uint32_t)(g->e.p - g->v->code_rw);
    return x;
}

/* The exit's rel32, which leads to its stub until it is patched. opcode: JMP, CALL, or Jcc with its 0F. */
static void emit_exit_jump(struct gen *g, struct bt_exit *x, unsigned opcode)
{
    emit_opcode(&g->e, opcode);
    x->jump = (uint32_t)(g->e.p - g->v->code_rw);
    emit32(&g->e, 0);
}

static struct bt_cell *add_cell(struct gen *g)
{
    struct bt_vcpu *v = g->v;
    if (v->cells_used == v->cells_max) {
        g->e.full = true;
        return &v->cells[0];
    }
    struct bt_cell *c = &v->cells[v->cells_used++];
    *c = (struct bt_cell){.neg_ctx = 1, .target = 0};
    return c;
}

/* Control goes to rip, by a jump or a host call. The exit's stub is emitted later, and patched in. */
static void emit_exit(struct gen *g, uint64_t rip, bool call)
{
    struct emit *e = &g->e;
    struct bt_exit *x = gen_add_exit(g, rip);
    if (same_page(g, rip)) {
        x->kind = BT_EXIT_DIRECT;
        emit_exit_jump(g, x, call ? 0xe8 : 0xe9);
        return;
    }
    x->cell = add_cell(g);
    emit_load(e, H_S0, (uint64_t)&x->cell->neg_ctx);
    emit_load(e, H_S1, GA(g, ctx));
    emit_rm(e, true, 0x8d, H_S0, H_S0, H_S1, 1, 0);
    uint8_t *hit = emit_jrcxz_fwd(e), *landing = NULL;
    emit_exit_jump(g, x, call ? 0xe8 : 0xe9);
    if (call) {
        emit8(e, 0xeb);
        landing = e->p;
        emit8(e, 0);
    }
    emit_here8(e, hit);
    emit8(e, 0xff); /* call or jmp [cell.target] */
    emit_rip_modrm(e, call ? 2 : 4, (uint64_t)&x->cell->target, 0);
    x->end = (uint32_t)(e->p - g->v->code_rw);
    if (landing) {
        emit_here8(e, landing);
    }
}

void gen_exit(struct gen *g, uint64_t rip)
{
    emit_exit(g, rip, false);
}

/* Behind a host call: where the matching RET lands, with the guest's return address in r15. The prediction
 * holds when that address and the context are what they were. */
static void emit_landing(struct gen *g, uint64_t rip)
{
    struct emit *e = &g->e;
    struct bt_exit *x = gen_add_exit(g, rip);
    x->kind = BT_EXIT_RETURN;
    x->cell = add_cell(g);
    emit_load(e, H_S0, (uint64_t)&x->cell->neg_ctx);
    emit_load(e, H_S1, GA(g, ctx));
    emit_rm(e, true, 0x8d, H_S0, H_S0, H_S2, 1, 0);
    emit_rm(e, true, 0x8d, H_S0, H_S0, H_S1, 1, 0);
    uint8_t *hit = emit_jrcxz_fwd(e);
    emit_exit_jump(g, x, 0xe9);
    emit_here8(e, hit);
    emit8(e, 0xff);
    emit_rip_modrm(e, 4, (uint64_t)&x->cell->target, 0);
    x->end = (uint32_t)(e->p - g->v->code_rw);
}

void gen_exit_stubs(struct gen *g)
{
    struct emit *e = &g->e;
    struct bt_vcpu *v = g->v;
    for (unsigned i = 0; i < g->nexits && !e->full; i++) {
        struct bt_exit *x = &g->b->exits[i];
        if (x->kind == BT_EXIT_GROUP) {
            continue;
        }
        x->stub = (uint32_t)(e->p - v->code_rw);
        emit_here32(e, v->code_rw + x->jump);
        if (x->kind == BT_EXIT_RETURN) {
            /* The right address, but no link (any more)? Else RET went somewhere else than its CALL came
             * from. */
            emit_mov_imm(e, H_S0, 0 - x->rip);
            emit_rm(e, true, 0x8d, H_S0, H_S0, H_S2, 1, 0);
            uint8_t *right = emit_jrcxz_fwd(e);
            emit_jmp(e, v->stub_lookup);
            emit_here8(e, right);
            emit_mov_imm(e, H_S1, (uint64_t)(x - v->exits));
            emit_jmp(e, v->stub_leave_return);
            continue;
        }
        emit_mov_imm(e, H_S1, (uint64_t)(x - v->exits));
        emit_jmp(e, v->stub_leave_link);
    }
}

/* r15: target. */
static void indirect_tail(struct gen *g, bool call)
{
    struct emit *e = &g->e;
    struct bt_vcpu *v = g->v;
    g->b->indirect_from = (uint32_t)(e->p - v->code_rw);
    uint8_t *hit = bt_emit_jc_probe(e, v);
    g->b->indirect_stub = (uint32_t)(e->p - v->code_rw);
    emit_mov_imm(e, H_S1, (uint64_t)(g->b - v->blocks));
    uint8_t *landing = NULL;
    if (call) {
        emit_call(e, v->stub_leave_indirect);
        g->b->indirect_back = (uint32_t)(e->p - v->code_rw);
        emit8(e, 0xeb);
        landing = e->p;
        emit8(e, 0);
    } else {
        emit_jmp(e, v->stub_leave_indirect);
    }
    emit_here8(e, hit);
    bt_emit_jc_go(e, v, call);
    g->b->indirect_to = (uint32_t)(e->p - v->code_rw);
    if (landing) {
        emit_here8(e, landing);
    }
}

void gen_call(struct gen *g, const struct bt_insn *in)
{
    push_slot(g, in);
    store_const_at_s2(g, gen_next_rip(g, in));
    move_rsp(g, -(int32_t)stack_bytes(g));
    gen_flags_end(g);
    emit_exit(g, gen_branch_target(g, in), true);
    emit_landing(g, gen_next_rip(g, in));
}

/* Target of an indirect jump or call into r15. */
static void indirect_target(struct gen *g, const struct bt_insn *in)
{
    if (in->op.has_mem) {
        gen_operand(g, in);
        load_at_s2(g, H_S2);
    } else {
        g->s2_group = -1;
        gen_load_gpr(g, H_S2, in->rm.reg);
        if (!wide(g)) {
            emit_mov32(&g->e, H_S2, H_S2);
        }
    }
}

void gen_call_indirect(struct gen *g, const struct bt_insn *in)
{
    indirect_target(g, in);
    emit_store(&g->e, GA(g, tmp[0]), H_S2);
    push_slot(g, in);
    store_const_at_s2(g, gen_next_rip(g, in));
    move_rsp(g, -(int32_t)stack_bytes(g));
    gen_flags_end(g);
    emit_load(&g->e, H_S2, GA(g, tmp[0]));
    g->b->rsp_moved = -(int32_t)stack_bytes(g);
    indirect_tail(g, true);
    emit_landing(g, gen_next_rip(g, in));
}

void gen_jmp_indirect(struct gen *g, const struct bt_insn *in)
{
    indirect_target(g, in);
    gen_flags_end(g);
    indirect_tail(g, false);
}

void gen_ret(struct gen *g, const struct bt_insn *in)
{
    pop_slot(g, in, bt_host[X86_RSP]);
    load_at_s2(g, H_S2);
    g->b->rsp_moved = (int32_t)(stack_bytes(g) + (in->imm_bytes ? (uint32_t)(in->op.imm & UINT16_MAX) : 0));
    move_rsp(g, g->b->rsp_moved);
    gen_flags_end(g);
    emit8(&g->e, 0xc7); /* mov dword [ret_block], number: for a RET to a non-canonical address */
    emit_rip_modrm(&g->e, 0, GA(g, ret_block), 4);
    emit32(&g->e, (uint32_t)(g->b - g->v->blocks));
    emit8(&g->e, 0xc3);
}

void gen_jcc(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    unsigned cc = in->opcode & 15;
    uint64_t target = gen_branch_target(g, in), next = gen_next_rip(g, in);
    gen_flags_end(g);
    if (g->insn[g->at].again) { /* its target follows */
        cc ^= 1;
        target = next;
    }
    if (same_page(g, target)) {
        struct bt_exit *x = gen_add_exit(g, target);
        x->kind = BT_EXIT_DIRECT;
        emit_exit_jump(g, x, 0x0f80 | cc);
    } else {
        uint8_t *skip = emit_jcc8_fwd(e, cc ^ 1);
        gen_exit(g, target);
        emit_here8(e, skip);
    }
    if (g->insn[g->at].ends) {
        gen_exit(g, next);
    }
}

/* rcx: the count register in the width of the address size, flags untouched. */
static void load_count(struct gen *g, const struct bt_insn *in)
{
    unsigned home = bt_host[X86_RCX];
    switch (in->op.addrsize) {
    case 8: emit_mov(&g->e, H_RCX, home); break;
    case 4: emit_mov32(&g->e, H_RCX, home); break;
    default: emit_rr(&g->e, false, 0x0fb7, H_RCX, home); break;
    }
}

void gen_loop(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    unsigned home = bt_host[X86_RCX];
    gen_flags_end(g);
    if (in->op.addrsize == 2) {
        emit_lea(e, H_S1, home, -1);
        emit8(e, 0x66);
        emit_rr(e, false, 0x8b, home, H_S1);
    } else {
        emit_rm(e, in->op.addrsize == 8, 0x8d, home, home, H_NONE, 1, -1);
    }
    load_count(g, in);
    uint8_t *done = emit_jrcxz_fwd(e), *done2 = NULL;
    if (in->opcode != 0xe2) { /* E0 LOOPNE, E1 LOOPE */
        done2 = emit_jcc8_fwd(e, in->opcode == 0xe0 ? CC_E : CC_NE);
    }
    gen_exit(g, gen_branch_target(g, in));
    emit_here8(e, done);
    if (done2) {
        emit_here8(e, done2);
    }
    gen_exit(g, gen_next_rip(g, in));
}

void gen_jrcxz(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    gen_flags_end(g);
    load_count(g, in);
    uint8_t *taken = emit_jrcxz_fwd(e);
    gen_exit(g, gen_next_rip(g, in));
    emit_here8(e, taken);
    gen_exit(g, gen_branch_target(g, in));
}
