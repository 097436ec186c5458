/*
 * Memory operands and flags.
 *
 * A memory access in translated code, with the guest's address in r15:
 *
 *     rorx r14, r15, 8 ; and r14, [tlb_mask]     index of the entry, times 16
 *     lea  rcx, [r15 + size - 1]                 last byte: a page-crossing access misses
 *     and  rcx, -4096 ; or rcx, [asid]
 *     cmp  rcx, [r14 + table] ; jne cold
 *     add  r15, [r14 + table + 8]                host address
 *
 * or, in user mode, first with what the place found last (struct bt_site):
 *
 *     mov  rcx, r15 ; sub rcx, [site.page]       offset in the page, if it is that page
 *     cmp  rcx, 4096 - size ; ja cold
 *     add  r15, [site.addend]                    host address
 *
 * This destroys the host flags. Where the guest's are live there, they are saved once (LAHF, SETO) before the
 * first check and restored once before they are needed; the state in between is gen.flags_saved.
 */
#include "cpu/bt/gen.h"
#include "cpu/bt/stubs.h"

static uint32_t live_before(const struct bt_insn *in)
{
    return (in->live_after & ~in->fl_kill) | in->fl_read;
}

void gen_flags_save(struct gen *g, const struct bt_insn *in)
{
    if (g->flags_saved || !live_before(in)) {
        return;
    }
    bt_emit_flags_save(&g->e, g->v, H_S1);
    g->flags_saved = true;
}

static void flags_restore(struct gen *g)
{
    bt_emit_flags_restore(&g->e, g->v, H_S1);
    g->flags_saved = false;
}

void gen_flags_ready(struct gen *g, const struct bt_insn *in)
{
    if (g->flags_saved && (in->fl_read || (in->fl_write && (in->live_after & ~in->fl_kill)))) {
        flags_restore(g);
    }
    g->op_flags_saved = g->flags_saved;
    if (in->fl_write) {
        g->flags_saved = false;
    }
}

void gen_flags_end(struct gen *g)
{
    if (g->flags_saved) {
        flags_restore(g);
    }
}

void gen_load_gpr(struct gen *g, unsigned host, unsigned guest)
{
    if (bt_host[guest] == H_NONE) {
        emit_load(&g->e, host, gen_slot(g, guest));
    } else {
        emit_mov(&g->e, host, bt_host[guest]);
    }
}

void gen_store_gpr(struct gen *g, unsigned guest, unsigned host)
{
    if (bt_host[guest] == H_NONE) {
        emit_store(&g->e, gen_slot(g, guest), host);
    } else {
        emit_mov(&g->e, bt_host[guest], host);
    }
}

/* The host register that holds a base or index, loading it into tmp where it has none. */
static unsigned address_reg(struct gen *g, unsigned guest, unsigned tmp)
{
    if (guest == BT_NO_REG) {
        return H_NONE;
    }
    if (bt_host[guest] != H_NONE) {
        return bt_host[guest];
    }
    emit_load(&g->e, tmp, gen_slot(g, guest));
    return tmp;
}

void gen_ea(struct gen *g, const struct bt_op *op, unsigned dst)
{
    struct emit *e = &g->e;
    bool w = op->addrsize == 8;
    if (op->rip_relative || (op->base == BT_NO_REG && op->index == BT_NO_REG)) {
        uint64_t va = (uint64_t)op->disp + (op->rip_relative ? op->rip + op->len : 0);
        emit_mov_imm(e, dst, op->addrsize == 8 ? va : op->addrsize == 4 ? va & UINT32_MAX : va & UINT16_MAX);
        return;
    }
    unsigned base = address_reg(g, op->base, H_S0);
    unsigned index = address_reg(g, op->index, H_S1);
    int32_t disp = (int32_t)op->disp;
    if (index == H_NONE && disp == 0) {
        emit_rr(e, w, 0x8b, dst, base);
    } else {
        emit_rm(e, w, 0x8d, dst, base, index, op->scale ? op->scale : 1, disp);
    }
    if (op->addrsize == 2) {
        emit_rr(e, false, 0x0fb7, dst, dst);
    }
}

/* Linear addresses have 32 bits outside 64-bit mode. */
void gen_segment_base(struct gen *g, const struct bt_op *op)
{
    if (op->seg == X86_FS || op->seg == X86_GS) {
        emit_ra(&g->e, (g->mode & BT_MODE_CODE64) != 0, 0x03, H_S2, GA(g, cpu.s.seg[op->seg].base));
    }
}

static unsigned mmu_of(const struct gen *g)
{
    return g->mode & BT_MODE_USER ? BT_MMU_USER : g->mode & BT_MODE_AC ? BT_MMU_KERNEL_AC : BT_MMU_KERNEL;
}

uint8_t *gen_probe(struct gen *g, bool write)
{
    struct emit *e = &g->e;
    g->s2_group = -1;
    g->mem_disp = 0;
    struct bt_vcpu *v = g->v;
    unsigned mmu = mmu_of(g);
    uint64_t table = (uint64_t)(write ? v->tlb[mmu].write : v->tlb[mmu].read);

    if (v->has_bmi2) { /* rorx r14, r15, 8 */
        static const uint8_t rorx[] = {0xc4, 0x43, 0xfb, 0xf0, 0xf7, 0x08};
        emit_bytes(e, rorx, sizeof(rorx));
    } else {
        static const uint8_t shr[] = {0x49, 0xc1, 0xee, 0x08};
        emit_mov(e, H_S1, H_S2);
        emit_bytes(e, shr, sizeof(shr));
    }
    emit_ra(e, true, 0x23, H_S1, GA(g, tlb_mask));
    emit_rex(e, true, 0, 0, H_S0, false); /* and rcx, -4096 */
    emit8(e, 0x81);
    emit8(e, 0xe0 | H_S0);
    emit32(e, 0xfffff000u);
    emit_ra(e, true, 0x0b, H_S0, GA(g, asid[mmu]));
    emit_rm(e, true, 0x3b, H_S0, H_S1, H_NONE, 1, (int32_t)table);
    uint8_t *jcc = emit_jcc_fwd(e, CC_NE);
    emit_rm(e, true, 0x03, H_S2, H_S1, H_NONE, 1, (int32_t)table + 8);
    return jcc;
}

/* A new, empty site, or NULL where the access does without one. */
static struct bt_site *new_site(struct gen *g)
{
    struct bt_vcpu *v = g->v;
    if ((g->mode & (BT_MODE_USER | BT_MODE_ONE | BT_MODE_SLOW)) != BT_MODE_USER ||
        v->sites_used == v->sites_max || v->site_poly[bt_site_hash(g->insn[g->at].in.op.rip)] || !g->hot) {
        return NULL;
    }
    v->site_infos[v->sites_used] = (struct bt_site_info){0, 0};
    struct bt_site *s = &v->sites[v->sites_used++];
    *s = (struct bt_site){.page = BT_SITE_EMPTY, .addend = 0};
    return s;
}

static uint8_t *site_probe(struct gen *g, const struct bt_site *s, unsigned size)
{
    struct emit *e = &g->e;
    g->s2_group = -1;
    g->mem_disp = 0;
    emit_mov(e, H_S0, H_S2);
    emit_ra(e, true, 0x2b, H_S0, (uint64_t)&s->page);
    emit_rex(e, true, 0, 0, H_S0, false); /* cmp rcx, 4096 - size */
    emit8(e, 0x81);
    emit8(e, 0xf8 | H_S0);
    emit32(e, MEM_PAGE_SIZE - size);
    uint8_t *jcc = emit_jcc_fwd(e, CC_A);
    emit_ra(e, true, 0x03, H_S2, (uint64_t)&s->addend);
    return jcc;
}

static void emit_check(struct gen *g, unsigned size, bool write, uint32_t info)
{
    struct emit *e = &g->e;
    struct bt_site *site = size <= MEM_PAGE_SIZE ? new_site(g) : NULL;
    if (site) {
        uint8_t *jcc = site_probe(g, site, size);
        g->cold[g->ncold++] = (struct gen_cold){
            .jcc = jcc,
            .back = e->p,
            .info = size | (write ? GEN_INFO_WRITE : 0) | GEN_INFO_MMU(mmu_of(g)) | info | BT_INFO_SITE,
            .guest = (uint16_t)(g->insn[g->at].in.op.rip - g->b->rip),
            .flags_saved = g->flags_saved,
            .site = site,
        };
        return;
    }
    if (size > 1) {
        emit_lea(e, H_S0, H_S2, (int32_t)size - 1);
    } else {
        emit_mov(e, H_S0, H_S2);
    }
    uint8_t *jcc = gen_probe(g, write);
    g->cold[g->ncold++] = (struct gen_cold){
        .jcc = jcc,
        .back = e->p,
        .info = size | (write ? GEN_INFO_WRITE : 0) | GEN_INFO_MMU(mmu_of(g)) | info,
        .guest = (uint16_t)(g->insn[g->at].in.op.rip - g->b->rip),
        .flags_saved = g->flags_saved,
    };
}

void gen_check(struct gen *g, const struct bt_insn *in, unsigned size, bool write, bool stack)
{
    emit_check(g, size, write,
               (stack ? GEN_INFO_STACK : 0) | (in->masked_mem ? GEN_INFO_MASKED : 0) |
                   (in->op.aligned ? GEN_INFO_ALIGNED : 0) | (in->op.waits ? GEN_INFO_WAITS : 0));
}

void gen_check_span(struct gen *g, int group, bool stack)
{
    const struct gen_group *x = &g->group[group];
    emit_check(g, (unsigned)(x->max - x->min), x->write, GEN_INFO_GROUP | (stack ? GEN_INFO_STACK : 0));
}

/* A group's failed check may jump straight to the same instruction in a block without groups, once there is
 * one. */
static void emit_group_exit(struct gen *g, struct gen_cold *c)
{
    struct emit *e = &g->e;
    if (c->flags_saved) {
        flags_restore(g);
    }
    c->exit = gen_add_exit(g, g->b->rip + c->guest);
    c->exit->kind = BT_EXIT_GROUP;
    emit8(e, 0xe9);
    c->exit->jump = (uint32_t)(e->p - g->v->code_rw);
    emit32(e, 0);
    c->exit->stub = (uint32_t)(e->p - g->v->code_rw);
}

void gen_cold_paths(struct gen *g)
{
    struct emit *e = &g->e;
    for (unsigned i = 0; i < g->ncold; i++) {
        struct gen_cold *c = &g->cold[i];
        g->maps[g->nmaps++] = (struct bt_map){.host = (uint16_t)(e->p - g->start), .guest = c->guest};
        emit_here32(e, c->jcc);
        if (c->site) {
            emit_mov_imm(e, H_RCX, c->info);
            emit_mov_imm(e, H_S1, (uint64_t)c->site);
            emit_call(e, g->v->stub_site[(c->info & GEN_INFO_WRITE) != 0]);
            emit_jmp(e, (uint64_t)c->back + e->rx_delta);
            continue;
        }
        if (c->info & GEN_INFO_GROUP) {
            emit_group_exit(g, c);
        }
        emit_mov_imm(e, H_RCX, c->info);
        emit_call(e, g->v->stub_mem);
        if (c->exit) {
            c->exit->end = (uint32_t)(e->p - g->v->code_rw);
        }
        emit_jmp(e, (uint64_t)c->back + e->rx_delta);
    }
}

void gen_call_op(struct gen *g, const struct bt_insn *in, bt_op_fn *fn)
{
    struct bt_vcpu *v = g->v;
    if (v->ops_used + sizeof(struct bt_op) > v->ops_size) {
        g->e.full = true;
        return;
    }
    struct bt_op *op = (struct bt_op *)(void *)(v->ops + v->ops_used);
    v->ops_used += (uint32_t)sizeof(struct bt_op);
    *op = in->op;
    op->fn = fn;
    gen_flags_end(g);
    g->op_flags_saved = false;
    g->s2_group = -1;
    emit_mov_imm(&g->e, H_S1, (uint64_t)op);
    emit_call(&g->e, v->stub_op);
}

/* kmovw/kmovq [kmask], k */
static void store_opmask(struct gen *g, unsigned k)
{
    struct emit *e = &g->e;
    emit8(e, 0xc4);
    emit8(e, 0xe1);
    emit8(e, g->v->has_avx512bw ? 0xf8 : 0x78); /* W, pp none */
    emit8(e, 0x91);
    emit_rip_modrm(e, k, GA(g, kmask), 0);
}

/* VMASKMOV, VPMASKMOV: the sign bits of the mask register, as an opmask. vmovmskps/pd r14d, mask */
static void store_sign_mask(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    emit8(e, 0xc4);
    emit8(e, 0x41 | (in->raw_v & 8 ? 0 : 0x20) | 0x00);
    emit8(e, 0x78 | (unsigned)in->vex_l << 2 | (in->op.elem == 8 ? 1 : 0));
    emit8(e, 0x50);
    emit8(e, 0xc0 | (H_S1 & 7) << 3 | (in->raw_v & 7));
    emit_store(e, GA(g, kmask), H_S1);
}

void gen_operand(struct gen *g, const struct bt_insn *in)
{
    if (g->mode & BT_MODE_SLOW) {
        if (in->masked_mem) {
            if (in->op.mask_reg) {
                store_opmask(g, in->op.mask_reg);
            } else {
                store_sign_mask(g, in);
            }
        }
        gen_call_op(g, in, bt_op_bounce_begin);
        emit_load(&g->e, H_S2, GA(g, bounce.ptr));
        return;
    }
    const struct gen_insn *gi = &g->insn[g->at];
    if (gen_group_known(g, gi->mem_group, gi->mem_offset)) {
        return;
    }
    gen_flags_save(g, in);
    if (gi->mem_group >= 0) {
        const struct gen_group *x = &g->group[gi->mem_group];
        struct bt_op lowest = in->op;
        lowest.disp += x->min - gi->mem_offset;
        gen_ea(g, &lowest, H_S2);
        gen_check_span(g, gi->mem_group, in->op.stack_based);
        gen_group_checked(g, gi->mem_group, gi->mem_offset);
        return;
    }
    gen_ea(g, &in->op, H_S2);
    gen_segment_base(g, &in->op);
    gen_check(g, in, in->op.mem_size ? in->op.mem_size : 1, in->op.access == X86_ACCESS_WRITE,
              in->op.stack_based);
}

void gen_operand_done(struct gen *g, const struct bt_insn *in)
{
    if ((g->mode & BT_MODE_SLOW) && in->op.access == X86_ACCESS_WRITE) {
        gen_call_op(g, in, bt_op_bounce_commit);
    }
}
