/*
 * REP MOVS and REP STOS in 64-bit code: the host's own, on host addresses, where the count is small, the
 * direction up, and both operands lie within a page that is in the TLB. Everything else goes to the function
 * in op_string.c.
 *
 *     cmp r13, most ; ja slow          the guest's RCX
 *     cmp byte [dflag], 0 ; jne slow
 *     probes of [rsi, rsi + n), [rdi, rdi + n)     else slow
 *     rep movs                         RSI, RDI host addresses meanwhile; it can't fault
 *     rsi += n, rdi += n, rcx = 0
 */
#include "cpu/bt/gen.h"
#include "cpu/bt/stubs.h"

bool gen_rep_fits(uint32_t mode, const struct bt_insn *in)
{
    return (mode & BT_MODE_CODE64) && !(mode & (BT_MODE_ONE | BT_MODE_SLOW)) && in->enc == BT_ENC_LEGACY &&
           in->map == 0 && !in->has_modrm && ((in->opcode & 0xfe) == 0xa4 || (in->opcode & 0xfe) == 0xaa) &&
           in->op.rep == 1 && in->op.addrsize == 8 && in->op.seg != X86_FS && in->op.seg != X86_GS;
}

/* r15: guest address in reg -> host address; the operand has r13 elements. */
static uint8_t *probe(struct gen *g, unsigned reg, unsigned size, bool write)
{
    emit_mov(&g->e, H_S2, reg);
    emit_rm(&g->e, true, 0x8d, H_S0, H_S2, bt_host[X86_RCX], size,
            -1); /* of no bytes: lies before, and misses */
    return gen_probe(g, write);
}

void gen_rep(struct gen *g, const struct bt_insn *in, bt_op_fn *fn)
{
    struct emit *e = &g->e;
    unsigned size = in->opcode & 1 ? in->op.opsize : 1, count = bt_host[X86_RCX];
    bool movs = (in->opcode & 0xfe) == 0xa4;
    uint8_t *slow[4];
    unsigned n = 0;

    gen_flags_save(g, in);
    emit_rex(e, true, 0, 0, count, false); /* cmp r13, imm32 */
    emit8(e, 0x81);
    emit8(e, 0xf8 | (count & 7));
    emit32(e, MEM_PAGE_SIZE / size);
    slow[n++] = emit_jcc_fwd(e, CC_A);
    emit8(e, 0x80); /* cmp byte [dflag], 0 */
    emit_rip_modrm(e, 7, GA(g, dflag), 1);
    emit8(e, 0);
    slow[n++] = emit_jcc_fwd(e, CC_NE);
    if (movs) {
        slow[n++] = probe(g, bt_host[X86_RSI], size, false);
        emit_store(e, GA(g, tmp[0]), H_S2);
    }
    slow[n++] = probe(g, bt_host[X86_RDI], size, true);

    emit_mov(e, H_S1, bt_host[X86_RDI]);
    emit_mov(e, H_RDI, H_S2);
    if (movs) {
        emit_mov(e, H_S2, bt_host[X86_RSI]);
        emit_load(e, H_RSI, GA(g, tmp[0]));
    }
    emit_mov(e, H_RCX, count);
    if (size == 2) {
        emit8(e, 0x66);
    }
    emit8(e, 0xf3);
    emit_rex(e, size == 8, 0, 0, 0, false);
    emit8(e, in->opcode);
    emit_rm(e, true, 0x8d, bt_host[X86_RDI], H_S1, count, size, 0);
    if (movs) {
        emit_rm(e, true, 0x8d, bt_host[X86_RSI], H_S2, count, size, 0);
    }
    emit_mov_imm(e, count, 0);
    if (g->flags_saved) {
        bt_emit_flags_restore(e, g->v, H_S1);
    }
    uint8_t *done = emit_jmp_fwd(e);
    for (unsigned i = 0; i < n; i++) {
        emit_here32(e, slow[i]);
    }
    gen_call_op(g, in, fn); /* restores the flags, too */
    emit_here32(e, done);
}
