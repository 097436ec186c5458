/*
 * Instructions that are re-encoded: the same operation, with guest registers replaced by where they live and
 * the memory operand by [r15].
 *
 * A register that has no host register, and AH, BH, CH, DH (whose encodings exclude REX and so most of what
 * is needed), go through a scratch register: loaded before, stored back after. Scratch registers are r14, rcx
 * and, when there is no memory operand, r15.
 */
#include "cpu/bt/gen.h"

struct role {
    const struct bt_field *f;
    uint8_t host;
    bool scratch;
};

struct copy {
    struct gen *g;
    const struct bt_insn *in;
    struct role reg, rm, v, opc;
    bool mem;  /* memory operand at [r15] */
    bool slot; /* rm is used in place, in its slot */
    bool rcx_taken, r14_taken, r15_taken;
};

static unsigned take_scratch(struct copy *c)
{
    if (!c->r14_taken) {
        c->r14_taken = true;
        return H_S1;
    }
    if (!c->r15_taken) {
        c->r15_taken = true;
        c->g->s2_group = -1;
        return H_S2;
    }
    c->rcx_taken = true;
    return H_S0;
}

/* High byte of a guest register, zero-extended, into dst; passes through ecx. */
static void load_high(struct gen *g, unsigned guest, unsigned dst)
{
    struct emit *e = &g->e;
    if (guest == X86_RCX) {
        emit_mov(e, H_RCX, bt_host[X86_RCX]);
        guest = H_RCX; /* CH of the host */
    }
    emit_rr(e, false, 0x0fb6, H_RCX, guest + 4);
    if (dst != H_RCX) {
        emit_mov32(e, dst, H_RCX);
    }
}

static void store_high(struct gen *g, unsigned guest, unsigned src)
{
    struct emit *e = &g->e;
    if (src != H_RCX) {
        emit_mov32(e, H_RCX, src);
    }
    if (guest == X86_RCX) {
        unsigned home = bt_host[X86_RCX];
        emit_rr(e, true, 0x87, H_RAX, home); /* xchg */
        emit_rr(e, false, 0x8a, 4, H_RCX);   /* mov ah, cl */
        emit_rr(e, true, 0x87, H_RAX, home);
    } else {
        emit_rr(e, false, 0x8a, guest + 4, H_RCX);
    }
}

static bool slot_form_allowed(const struct bt_insn *in)
{
    const struct bt_field *f = &in->rm;
    if (f->high || (f->wr && f->size == 4) || in->enc == BT_ENC_EVEX) {
        return false;
    }
    if (in->enc == BT_ENC_VEX) {
        return !in->fpu && !f->wr && f->size >= 4;
    }
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_XCHG: /* implies LOCK with a memory operand */
    case ZYDIS_MNEMONIC_BT:   /* a bit string with a memory operand */
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: return false;
    default: return !in->fpu;
    }
}

static void assign(struct copy *c, struct role *r, const struct bt_field *f, bool is_rm)
{
    r->f = f;
    if (!f->gpr) {
        return;
    }
    if (!f->high && bt_host[f->reg] != H_NONE) {
        r->host = bt_host[f->reg];
        return;
    }
    bool twice = is_rm && c->reg.f && c->reg.f->gpr && c->reg.f->reg == f->reg && (f->wr || c->reg.f->wr);
    if (is_rm && !c->mem && !twice && slot_form_allowed(c->in)) {
        c->slot = true;
        return;
    }
    /* The same register in two places shares its scratch. */
    struct role *others[] = {&c->reg, &c->rm, &c->v, &c->opc};
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        if (others[i] != r && others[i]->scratch && others[i]->f->reg == f->reg &&
            others[i]->f->high == f->high && !f->high) {
            r->host = others[i]->host;
            r->scratch = true;
            return;
        }
    }
    r->host = (uint8_t)take_scratch(c);
    r->scratch = true;
}

static void load_role(struct copy *c, const struct role *r)
{
    if (!r->scratch) {
        return;
    }
    if (r->f->high) {
        load_high(c->g, r->f->reg, r->host);
    } else if (r->f->rd || r->f->size < 4) {
        emit_load(&c->g->e, r->host, gen_slot(c->g, r->f->reg));
    }
}

static void store_role(struct copy *c, const struct role *r)
{
    if (!r->scratch || !r->f->wr) {
        return;
    }
    if (r->f->high) {
        store_high(c->g, r->f->reg, r->host);
    } else {
        emit_store(&c->g->e, gen_slot(c->g, r->f->reg), r->host);
    }
}

static bool byte_needs_rex(const struct role *r)
{
    return r->f && r->f->gpr && r->f->size == 1 && r->host >= 4 && r->host < 8;
}

static void encode_modrm(struct copy *c, unsigned reg, unsigned rm)
{
    struct emit *e = &c->g->e;
    if (c->mem) { /* [r15 + disp]; EVEX scales short displacements, so only long ones there */
        int32_t disp = c->g->mem_disp;
        unsigned mod = disp == 0 ? 0 : disp >= -128 && disp <= 127 && c->in->enc != BT_ENC_EVEX ? 1 : 2;
        emit8(e, mod << 6 | (reg & 7) << 3 | (H_S2 & 7));
        if (mod == 1) {
            emit8(e, (unsigned)disp);
        } else if (mod == 2) {
            emit32(e, (uint32_t)disp);
        }
    } else if (c->slot) {
        emit_rip_modrm(e, reg, gen_slot(c->g, c->in->rm.reg), c->in->imm_bytes);
    } else {
        emit8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
    }
}

/* 66 is no operand-size prefix to these, whether they have one or not. */
static bool has_fixed_size(const struct bt_insn *in)
{
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADOX:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
    case ZYDIS_MNEMONIC_CMPXCHG8B: return true;
    case ZYDIS_MNEMONIC_FLDENV: /* the only x87 instructions that have sizes */
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE: return false;
    default: return in->fpu;
    }
}

static void encode_legacy(struct copy *c, unsigned reg, unsigned rm)
{
    static const uint16_t maps[4] = {0, 0x0f, 0x0f38, 0x0f3a};
    const struct bt_insn *in = c->in;
    struct emit *e = &c->g->e;
    bool opsize = in->opsz66;
    if (!(c->g->mode & (BT_MODE_CODE64 | BT_MODE_CODE32)) && !has_fixed_size(in)) {
        opsize = in->op.opsize == 2; /* 16-bit code: the prefix means the opposite */
    }
    if (in->lock) {
        emit8(e, 0xf0);
    }
    if (opsize) {
        emit8(e, 0x66);
    }
    if (in->mand_f2 || in->mand_f3) {
        emit8(e, in->mand_f2 ? 0xf2 : 0xf3);
    }
    unsigned opcode = in->opcode, base = c->mem ? H_S2 : c->slot ? 0 : rm;
    if (in->opc.gpr) {
        base = c->opc.host;
        opcode = (opcode & ~7u) | (base & 7);
    } else if (!in->has_modrm) {
        base = 0;
        reg = 0;
    }
    emit_rex(e, in->rex_w, reg, 0, base,
             byte_needs_rex(&c->reg) || byte_needs_rex(&c->rm) || byte_needs_rex(&c->opc));
    if (in->map) {
        emit_opcode(e, maps[in->map]);
    }
    emit8(e, opcode);
    if (in->has_modrm) {
        encode_modrm(c, reg, rm);
    }
}

static void encode_vex(struct copy *c, unsigned reg, unsigned rm, unsigned vvvv)
{
    const struct bt_insn *in = c->in;
    struct emit *e = &c->g->e;
    unsigned base = c->mem ? H_S2 : c->slot ? 0 : rm;
    unsigned last = (~vvvv & 15) << 3 | (unsigned)in->vex_l << 2 | in->vex_pp;
    if (in->map == 1 && !in->rex_w && base < 8) {
        emit8(e, 0xc5);
        emit8(e, (reg & 8 ? 0 : 0x80) | last);
    } else {
        emit8(e, 0xc4);
        emit8(e, (reg & 8 ? 0 : 0x80u) | 0x40u | (base & 8 ? 0 : 0x20u) | in->map);
        emit8(e, (unsigned)in->rex_w << 7 | last);
    }
    emit8(e, in->opcode);
    if (in->has_modrm) {
        encode_modrm(c, reg, rm);
    }
}

static void encode_evex(struct copy *c, unsigned reg, unsigned rm, unsigned vvvv)
{
    const struct bt_insn *in = c->in;
    struct emit *e = &c->g->e;
    unsigned base = c->mem ? H_S2 : rm;
    emit8(e, 0x62);
    emit8(e, (reg & 8 ? 0 : 0x80u) | (!c->mem && (base & 16) ? 0 : 0x40u) | (base & 8 ? 0 : 0x20u) |
                 (reg & 16 ? 0 : 0x10u) | in->map);
    emit8(e, (unsigned)in->rex_w << 7 | (~vvvv & 15) << 3 | 4u | in->vex_pp);
    emit8(e, (unsigned)in->evex_z << 7 | (unsigned)in->evex_ll << 5 | (unsigned)in->evex_b << 4 |
                 (vvvv & 16 ? 0 : 8u) | in->evex_aaa);
    emit8(e, in->opcode);
    encode_modrm(c, reg, rm);
}

static void copy_operation(struct copy *c)
{
    struct gen *g = c->g;
    const struct bt_insn *in = c->in;
    c->r15_taken = c->mem;
    assign(c, &c->reg, &in->reg, false);
    assign(c, &c->rm, &in->rm, true);
    assign(c, &c->v, &in->v, false);
    assign(c, &c->opc, &in->opc, false);
    load_role(c, &c->reg);
    load_role(c, &c->rm);
    load_role(c, &c->v);
    load_role(c, &c->opc);
    if (in->rcx_read || in->rcx_write) {
        emit_mov(&g->e, H_RCX, bt_host[X86_RCX]);
    }

    unsigned reg = in->reg.gpr ? c->reg.host : in->raw_reg;
    unsigned rm = in->rm.gpr ? c->rm.host : in->raw_rm;
    unsigned vvvv = in->v.gpr ? c->v.host : in->raw_v;
    switch (in->enc) {
    case BT_ENC_VEX: encode_vex(c, reg, rm, vvvv); break;
    case BT_ENC_EVEX: encode_evex(c, reg, rm, vvvv); break;
    default: encode_legacy(c, reg, rm); break;
    }
    if (in->is4 && !(g->mode & BT_MODE_CODE64)) {
        emit8(&g->e, in->bytes[in->imm_off] & 0x7f); /* eight registers only */
    } else {
        emit_bytes(&g->e, in->bytes + in->imm_off, in->imm_bytes);
    }

    if (in->rcx_write) {
        emit_mov(&g->e, bt_host[X86_RCX], H_RCX);
    }
    store_role(c, &c->reg);
    store_role(c, &c->rm);
    store_role(c, &c->v);
    store_role(c, &c->opc);
}

/* mov word/dword/qword [r15 + at], 0 */
static void store_zero(struct gen *g, unsigned at, unsigned size)
{
    struct emit *e = &g->e;
    if (size == 2) {
        emit8(e, 0x66);
    }
    emit_rm(e, size == 8, 0xc7, 0, H_S2, H_NONE, 1, (int32_t)at + g->mem_disp);
    emit32(e, 0);
    if (size == 2) {
        e->p -= e->full ? 0 : 2; /* imm16 */
    }
}

/* The last x87 instruction's opcode and addresses are the host's: the guest gets zeros. */
static void clear_x87_pointers(struct gen *g, const struct bt_insn *in)
{
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
        store_zero(g, 6, 2);
        store_zero(g, 8, 8);
        store_zero(g, 16, 8);
        break;
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
        if (in->op.mem_size == 14 || in->op.mem_size == 94) {
            store_zero(g, 6, 8);
        } else {
            store_zero(g, 12, 8);
            store_zero(g, 20, 4);
            store_zero(g, 24, 2); /* followed by reserved bits, which are ones */
        }
        break;
    default: break;
    }
}

/* VZEROUPPER and VZEROALL outside of 64-bit mode leave registers 8 to 15 alone (SDM vol. 2C): the same, one
 * by one, by 128-bit VEX instructions, which clear what is above. */
static void zero_low_registers(struct gen *g, const struct bt_insn *in)
{
    bool all = in->op.mnemonic == ZYDIS_MNEMONIC_VZEROALL;
    for (unsigned i = 0; i < 8; i++) { /* vpxor i, i, i; vmovdqa i, i */
        emit8(&g->e, 0xc5);
        emit8(&g->e, all ? 0x81 | (~i & 15) << 3 : 0xf9);
        emit8(&g->e, all ? 0xef : 0x6f);
        emit8(&g->e, 0xc0 | i << 3 | i);
    }
}

void gen_copy(struct gen *g, const struct bt_insn *in)
{
    if (!(g->mode & BT_MODE_CODE64) &&
        (in->op.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || in->op.mnemonic == ZYDIS_MNEMONIC_VZEROALL)) {
        gen_flags_ready(g, in);
        zero_low_registers(g, in);
        return;
    }
    struct copy c = {.g = g, .in = in, .mem = in->op.has_mem && !in->agen};
    if (c.mem) {
        gen_operand(g, in);
    }
    gen_flags_ready(g, in);
    copy_operation(&c);
    if (c.mem) {
        clear_x87_pointers(g, in);
        gen_operand_done(g, in);
    }
}

/* BT, BTS, BTR, BTC with a memory operand and a register: the operand is the element of a bit string that the
 * register selects (SDM vol. 2A, "BT"). The host instruction then gets the bit number within that element. */
void gen_bit_string(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    unsigned size = in->op.opsize;
    if (g->mode & BT_MODE_SLOW) {
        gen_operand(g, in);
    } else {
        gen_flags_save(g, in);
        gen_ea(g, &in->op, H_S2);
        gen_load_gpr(g, H_S0, in->reg.reg);
        if (size == 2) {
            emit_rr(e, true, 0x0fbf, H_S0, H_S0); /* movsx rcx, cx */
        } else if (size == 4) {
            emit_rr(e, true, 0x63, H_S0, H_S0); /* movsxd rcx, ecx */
        }
        emit_rex(e, true, 0, 0, H_S0, false); /* sar rcx, log2(bits) */
        emit8(e, 0xc1);
        emit8(e, 0xf8 | H_S0);
        emit8(e, size == 2 ? 4 : size == 4 ? 5 : 6);
        emit_rm(e, in->op.addrsize == 8, 0x8d, H_S2, H_S2, H_S0, size, 0);
        gen_segment_base(g, &in->op);
        gen_check(g, in, size, in->op.access == X86_ACCESS_WRITE, in->op.stack_based);
    }
    /* Bit number: and ecx, bits - 1, before the flags come back. */
    if (!(g->mode & BT_MODE_SLOW)) {
        gen_load_gpr(g, H_S0, in->reg.reg);
        emit8(e, 0x83);
        emit8(e, 0xe0 | H_S0);
        emit8(e, size * 8 - 1);
    } else {
        emit_load(e, H_S0, GA(g, tmp[0]));
    }
    gen_flags_ready(g, in);
    if (in->lock) {
        emit8(e, 0xf0);
    }
    if (size == 2) {
        emit8(e, 0x66);
    }
    emit_rm(e, size == 8, 0x0f00u | in->opcode, H_S0, H_S2, H_NONE, 1, 0);
    gen_operand_done(g, in);
}

void gen_lea(struct gen *g, const struct bt_insn *in)
{
    struct emit *e = &g->e;
    unsigned home = bt_host[in->reg.reg];
    unsigned size = in->reg.size;
    g->op_flags_saved = g->flags_saved;
    if (size == 8 && in->op.addrsize == 8 && home != H_NONE) {
        gen_ea(g, &in->op, home);
        return;
    }
    gen_ea(g, &in->op, H_S2);
    g->s2_group = -1;
    if (size == 2) {
        if (home == H_NONE) {
            emit8(e, 0x66);
            emit_ra(e, false, 0x89, H_S2, gen_slot(g, in->reg.reg));
        } else {
            emit8(e, 0x66);
            emit_rr(e, false, 0x8b, home, H_S2);
        }
        return;
    }
    if (size == 4) {
        emit_mov32(e, H_S2, H_S2);
    }
    gen_store_gpr(g, in->reg.reg, H_S2);
}
