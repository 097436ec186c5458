/*
 * The translation of one block: decode up to where control leaves, find out where flags are live, generate.
 *
 *     bt_translate -> read_block (bt_decode, classify) -> find_live_flags -> gen_insn ... -> gen_cold_paths,
 * gen_exit_stubs
 *
 * A block ends at a control transfer, at an instruction whose function may change the mode or the mappings,
 * at the end of the page, or after BT_BLOCK_INSNS_MAX instructions. Only its last instruction may reach into
 * the next page.
 */
#include <errno.h>
#include <string.h>

#include "cpu/bt/gen.h"

#define SIDE_EXITS_MAX      2
#define LOOP_TURNS          8  /* of a short loop that runs often, in its block */
#define LOOP_INSNS_MAX      20 /* what is short */
#define SIDE_EXIT_BYTES_MAX 48 /* guest bytes of a block behind which it ends at the next jump */

size_t bt_translate_scratch_bytes(void)
{
    return sizeof(struct gen);
}

/* Whether stack and control transfer are generated inline: flat segments, and a stack as wide as the code. */
static bool flat_stack(uint32_t mode)
{
    return (mode & BT_MODE_CODE64) || (mode & (BT_MODE_FLAT | BT_MODE_CODE32 | BT_MODE_SS32)) ==
                                          (BT_MODE_FLAT | BT_MODE_CODE32 | BT_MODE_SS32);
}

static bool fpu_allowed(uint32_t mode, const struct bt_insn *in)
{
    if (!in->fpu) {
        return true;
    }
    return (!(mode & BT_MODE_NOFPU) || (mode & BT_MODE_FPU_CHECKED)) && (!in->avx || (mode & BT_MODE_AVX)) &&
           (!in->avx512 || (mode & BT_MODE_AVX512));
}

static enum gen_kind flow_kind(const struct bt_insn *in)
{
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
        return in->enc == BT_ENC_LEGACY && in->opcode == 0xff ? GEN_JMP_INDIRECT : GEN_JMP;
    case ZYDIS_MNEMONIC_CALL: return in->opcode == 0xff ? GEN_CALL_INDIRECT : GEN_CALL;
    case ZYDIS_MNEMONIC_RET: return GEN_RET;
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: return GEN_LOOP;
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ: return GEN_JRCXZ;
    default: break;
    }
    if (in->enc == BT_ENC_LEGACY &&
        ((in->map == 0 && (in->opcode & 0xf0) == 0x70) || (in->map == 1 && (in->opcode & 0xf0) == 0x80)) &&
        !in->has_modrm) {
        return GEN_JCC;
    }
    return GEN_COPY;
}

/* Stack and near control transfer: inline where possible, else by the function of the same instruction. */
static bool classify_flow(uint32_t mode, struct gen_insn *gi)
{
    struct bt_insn *in = &gi->in;
    bool inline_stack = flat_stack(mode) && !(mode & BT_MODE_SLOW);
    unsigned width = mode & BT_MODE_CODE64 ? 8 : 4;
    enum gen_kind kind = in->op.far ? GEN_COPY : flow_kind(in);
    switch (kind) {
    case GEN_JMP:
    case GEN_JCC:
    case GEN_LOOP:
    case GEN_JRCXZ:
        gi->kind = kind;
        gi->ends = true;
        return true;
    case GEN_CALL:
    case GEN_RET:
    case GEN_CALL_INDIRECT:
    case GEN_JMP_INDIRECT:
        if (!inline_stack || (!(mode & BT_MODE_CODE64) && in->op.opsize != width)) {
            return false;
        }
        gi->kind = kind;
        gi->ends = true;
        return true;
    default: break;
    }
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        if (!inline_stack || in->op.opsize != width ||
            (in->op.mnemonic == ZYDIS_MNEMONIC_POP && in->op.has_mem) || in->op.source == BT_SOURCE_SEG) {
            return false; /* segment registers, 16-bit operands, POP to memory */
        }
        gi->kind = in->op.mnemonic == ZYDIS_MNEMONIC_PUSH ? GEN_PUSH : GEN_POP;
        return true;
    case ZYDIS_MNEMONIC_LEAVE:
        if (!inline_stack || in->op.opsize != width) {
            return false;
        }
        gi->kind = GEN_LEAVE;
        return true;
    default: return false;
    }
}

/* Privileged instructions that kernels execute all day, at CPL 0 in 64-bit code. */
static bool classify_inline(uint32_t mode, struct gen_insn *gi)
{
    if ((mode & (BT_MODE_CPL0 | BT_MODE_CODE64 | BT_MODE_SLOW | BT_MODE_ONE)) !=
        (BT_MODE_CPL0 | BT_MODE_CODE64)) {
        return false;
    }
    switch (gi->in.op.mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_SWAPGS: gi->kind = GEN_INLINE; return true;
    case ZYDIS_MNEMONIC_PUSHFQ: gi->kind = GEN_PUSHF; return true;
    default: return false;
    }
}

void gen_classify(uint32_t mode, struct gen_insn *gi)
{
    struct bt_insn *in = &gi->in;
    gi->kind = GEN_OP;
    gi->ends = true;
    if (!in->valid) {
        gi->fn = in->too_long ? bt_op_gp : bt_op_ud;
        return;
    }
    if (!fpu_allowed(mode, in)) {
        gi->fn = bt_op_nm;
        return;
    }
    gi->ends = false;
    if (classify_flow(mode, gi)) {
        return;
    }
    if (classify_inline(mode, gi)) {
        return;
    }
    gi->fn = bt_op_lookup(in, &gi->ends);
    if (gi->fn) {
        gi->kind = gen_rep_fits(mode, in) ? GEN_REP : GEN_OP;
        return;
    }
    if (in->privileged) { /* never copied, whatever the decoder calls it */
        gi->fn = bt_op_ud;
        gi->ends = true;
        return;
    }
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR32:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1:
    case ZYDIS_MNEMONIC_CLDEMOTE:
    case ZYDIS_MNEMONIC_RDSSPD: /* no shadow stacks: a NOP */
    case ZYDIS_MNEMONIC_RDSSPQ: gi->kind = GEN_NOTHING; return;
    case ZYDIS_MNEMONIC_LEA: gi->kind = GEN_LEA; return;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        gi->kind = in->op.has_mem && !in->imm_bytes ? GEN_BIT_STRING : GEN_COPY;
        in->op.bit_string = gi->kind == GEN_BIT_STRING;
        return;
    default: gi->kind = GEN_COPY; return;
    }
}

/* What a mode that is not flat needs: memory operands through the bounce buffer, hence blocks of one. */
static uint32_t effective_mode(uint32_t mode, const struct bt_insn *in)
{
    bool segment = !(mode & BT_MODE_CODE64) && ((in->op.seg == X86_FS && !(mode & BT_MODE_FS_FLAT)) ||
                                                (in->op.seg == X86_GS && !(mode & BT_MODE_GS_FLAT)) ||
                                                (in->op.seg == X86_CS && in->op.access == X86_ACCESS_WRITE));
    if (in->op.has_mem && !in->agen && (!(mode & (BT_MODE_FLAT | BT_MODE_CODE64)) || segment)) {
        return mode | BT_MODE_SLOW;
    }
    return mode;
}

/* STI lets interrupts in behind the next instruction (SDM vol. 2B, "STI"). Inline, that is where the block
 * ends, by looking at irq_wait; where that instruction is not plain, or not in the block, STI goes through
 * its function. */
static void settle_sti(struct gen *g, unsigned *at)
{
    for (unsigned i = 0; i < g->n; i++) {
        struct gen_insn *gi = &g->insn[i];
        if (gi->kind != GEN_INLINE || gi->in.op.mnemonic != ZYDIS_MNEMONIC_STI) {
            continue;
        }
        const struct gen_insn *next = i + 1 < g->n ? &g->insn[i + 1] : NULL;
        if (next && !next->ends &&
            (next->kind == GEN_COPY || next->kind == GEN_LEA || next->kind == GEN_NOTHING ||
             next->kind == GEN_PUSH || next->kind == GEN_POP)) {
            g->irq_check = true;
        } else {
            gi->kind = GEN_OP;
            gi->fn = bt_op_lookup(&gi->in, &gi->ends);
            *at = (unsigned)(gi->in.op.rip - g->b->rip) + gi->in.op.len;
            g->n = i + 1;
        }
        return;
    }
}

/* A forward conditional jump in straight 64-bit code leaves the block at its side; the block goes on behind
 * it. */
static bool goes_on(const struct gen *g, const struct bt_insn *in, unsigned next)
{
    return (g->mode & BT_MODE_CODE64) && !(g->mode & (BT_MODE_ONE | BT_MODE_SLOW)) &&
           (int64_t)in->op.imm >= 0 && next < SIDE_EXIT_BYTES_MAX;
}

/* Returns 0, -EAGAIN when the first instruction needs bytes of the second page and code2 is NULL. */
static int read_block(struct gen *g, const uint8_t *code, unsigned avail, const uint8_t *code2)
{
    struct bt_vcpu *v = g->v;
    unsigned limit = MIN(avail, BT_BLOCK_BYTES_MAX), total = 0;
    unsigned max = g->mode & (BT_MODE_ONE | BT_MODE_SLOW) ? 1 : BT_BLOCK_INSNS_MAX;
    unsigned at = 0;
    unsigned side_exits = 0;
    bool after_sti = false;
    uint64_t cs_base = g->mode & BT_MODE_CODE64 ? 0 : v->cpu.s.seg[X86_CS].base;
    while (g->n < max && at < limit) {
        struct gen_insn *gi = &g->insn[g->n];
        if (total < limit && total < at + ZYDIS_MAX_INSTRUCTION_LENGTH) { /* most blocks are short */
            unsigned n = MIN(limit - total, 96);
            memcpy(g->bytes + total, code + total, n);
            total += n;
            if (total == avail && code2) {
                memcpy(g->bytes + total, code2, 16);
                total += 16;
            }
        }
        gi->mem_group = gi->stack_group = 0;
        gi->mem_offset = gi->stack_offset = 0;
        gi->fn = NULL;
        gi->again = false;
        unsigned len = bt_decode_cached(&g->decoded, &v->cpu, g->mode, g->b->rip + at, g->bytes + at,
                                        total - at, &gi->in);
        if (len == 0 || at + len > limit) {
            if (g->n > 0) {
                break; /* it reaches into the next page: a block of its own */
            }
            if (len == 0) {
                return -EAGAIN;
            }
        }
        gen_classify(effective_mode(g->mode, &gi->in), gi);
        if (v->debug_exec && bt_debug_exec_at(v, g->b->rip + at + cs_base)) {
            if (g->n > 0) {
                break;
            }
            gi->kind = GEN_OP;
            gi->ends = true;
            gi->fn = bt_op_stop;
        }
        if (gi->kind == GEN_JCC && side_exits < SIDE_EXITS_MAX && goes_on(g, &gi->in, at + len)) {
            gi->ends = false;
            side_exits++;
        }
        at += len;
        g->n++;
        if (gi->ends || after_sti) {
            break;
        }
        after_sti = gi->kind == GEN_INLINE && gi->in.op.mnemonic == ZYDIS_MNEMONIC_STI;
    }
    settle_sti(g, &at);
    g->b->guest_len = (uint16_t)at;
    g->b->insns = (uint16_t)g->n;
    return 0;
}

static bool is_short_loop(const struct gen *g)
{
    const struct gen_insn *last = &g->insn[g->n - 1];
    return (g->mode & BT_MODE_CODE64) && !(g->mode & (BT_MODE_ONE | BT_MODE_SLOW | BT_MODE_NOGROUP)) &&
           !g->irq_check && g->n <= LOOP_INSNS_MAX && last->kind == GEN_JCC &&
           gen_branch_target(g, &last->in) == g->b->rip;
}

/*
 * A short loop that runs often is in its block several times, one turn behind the other, so that its accesses
 * at constant distances share one check for all turns (groups.c).
 */
static void repeat_loop(struct gen *g)
{
    unsigned n = g->n, turns = MIN((unsigned)LOOP_TURNS, BT_BLOCK_INSNS_MAX / n);
    for (unsigned t = 1; t < turns; t++) {
        memcpy(g->insn + t * n, g->insn, n * sizeof(*g->insn));
    }
    for (unsigned t = 1; t < turns; t++) {
        g->insn[t * n - 1].again = true;
        g->insn[t * n - 1].ends = false;
    }
    g->n = n * turns;
}

static void find_live_flags(struct gen *g)
{
    uint32_t live = X86_FLAGS_ARITH;
    for (unsigned i = g->n; i-- > 0;) {
        struct gen_insn *gi = &g->insn[i];
        if (gi->kind == GEN_OP || gi->kind == GEN_REP) {
            gi->in.fl_read = X86_FLAGS_ARITH;
            gi->in.fl_kill = 0;
        }
        if (gi->kind == GEN_PUSHF || gi->kind == GEN_JCC) {
            gi->in.fl_read = X86_FLAGS_ARITH;
        }
        gi->in.live_after = live;
        live = (live & ~gi->in.fl_kill) | gi->in.fl_read;
    }
}

static void gen_insn(struct gen *g, const struct gen_insn *gi)
{
    const struct bt_insn *in = &gi->in;
    uint32_t mode = g->mode;
    g->mode = effective_mode(mode, in);
    g->op_flags_saved = g->flags_saved;
    g->mem_disp = 0;
    switch (gi->kind) {
    case GEN_COPY: gen_copy(g, in); break;
    case GEN_INLINE: gen_inline(g, in); break;
    case GEN_PUSHF: gen_pushf(g, in); break;
    case GEN_NOTHING: break;
    case GEN_LEA: gen_lea(g, in); break;
    case GEN_BIT_STRING: gen_bit_string(g, in); break;
    case GEN_PUSH: gen_push(g, in); break;
    case GEN_POP: gen_pop(g, in); break;
    case GEN_LEAVE: gen_leave(g, in); break;
    case GEN_CALL: gen_call(g, in); break;
    case GEN_CALL_INDIRECT: gen_call_indirect(g, in); break;
    case GEN_RET: gen_ret(g, in); break;
    case GEN_JMP_INDIRECT: gen_jmp_indirect(g, in); break;
    case GEN_JMP:
        gen_flags_end(g);
        gen_exit(g, gen_branch_target(g, in));
        break;
    case GEN_JCC: gen_jcc(g, in); break;
    case GEN_LOOP: gen_loop(g, in); break;
    case GEN_JRCXZ: gen_jrcxz(g, in); break;
    case GEN_REP: gen_rep(g, in, gi->fn); break;
    case GEN_OP: gen_call_op(g, in, gi->fn); break;
    }
    g->mode = mode;
}

/* One more run, without touching the flags. */
static void gen_count(struct gen *g)
{
    struct bt_vcpu *v = g->v;
    if (v->cells_used == v->cells_max) {
        g->e.full = true;
        return;
    }
    g->b->count = &v->cells[v->cells_used++];
    g->b->count->target = 0;
    emit_load(&g->e, H_S1, (uint64_t)&g->b->count->target);
    emit_lea(&g->e, H_S1, H_S1, 1);
    emit_store(&g->e, (uint64_t)&g->b->count->target, H_S1);
}

int bt_translate(struct bt_vcpu *v, struct bt_block *b, const uint8_t *code, unsigned avail,
                 const uint8_t *code2)
{
    struct gen *g = v->scratch;
    g->v = v;
    g->b = b;
    g->mode = b->mode;
    g->hot = v->engine->config.eager || v->site_heat[bt_site_hash(b->rip)] >= BT_SITE_HOT;
    g->n = g->ncold = g->nexits = g->nmaps = 0;
    g->flags_saved = g->irq_check = false;
    int r = read_block(g, code, avail, code2);
    if (r < 0) {
        return r;
    }
    if (g->hot && is_short_loop(g)) {
        repeat_loop(g);
    }
    find_live_flags(g);
    gen_find_groups(g);
    g->s2_group = -1;

    g->e = (struct emit){.p = v->code_rw + v->code_used,
                         .end = v->code_rw + v->code_size,
                         .rx_delta = (uint64_t)v->code_rx - (uint64_t)v->code_rw};
    g->start = g->e.p;
    b->code = v->code_used;
    b->indirect_from = b->indirect_to = b->indirect_back = 0;
    b->exits = v->exits + v->exits_used;
    b->nexits = 0;
    unsigned maps_first = g->nmaps;
    if (v->count_blocks) {
        gen_count(g);
    }
    for (g->at = 0; g->at < g->n; g->at++) {
        const struct gen_insn *gi = &g->insn[g->at];
        struct bt_map *m = &g->maps[g->nmaps++];
        m->host = (uint16_t)(g->e.p - g->start);
        m->guest = (uint16_t)(gi->in.op.rip - b->rip);
        gen_insn(g, gi);
        if (g->op_flags_saved) {
            m->guest |= BT_MAP_FLAGS_SAVED;
        }
    }
    const struct gen_insn *last = &g->insn[g->n - 1];
    if (!last->ends || last->kind == GEN_OP) {
        gen_flags_end(g);
        if (g->irq_check) {
            gen_irq_check(g, gen_next_rip(g, &last->in));
        }
        gen_exit(g, gen_next_rip(g, &last->in));
    }
    gen_cold_paths(g);
    gen_exit_stubs(g);
    if (g->e.full || v->maps_used + g->nmaps > v->maps_max || g->e.p - g->start > UINT16_MAX) {
        return -ENOSPC;
    }
    b->map = v->maps + v->maps_used;
    b->nmaps = (uint16_t)(g->nmaps - maps_first);
    memcpy(b->map, g->maps, g->nmaps * sizeof(struct bt_map));
    v->maps_used += g->nmaps;
    b->nexits = (uint8_t)g->nexits;
    v->exits_used += g->nexits;
    b->code_len = (uint32_t)(g->e.p - g->start);
    v->code_used = (uint32_t)align_up(v->code_used + b->code_len, 16);
    v->counters[BT_C_BLOCKS]++;
    v->counters[BT_C_INSNS] += b->insns;
    v->counters[BT_C_GUEST_BYTES] += b->guest_len;
    v->counters[BT_C_CODE_BYTES] += b->code_len;
    return 0;
}

bool bt_translated_what_is_there(const struct bt_vcpu *v, const struct bt_block *b, const uint8_t *code,
                                 unsigned avail, const uint8_t *code2)
{
    const struct gen *g = v->scratch;
    unsigned first = MIN(b->guest_len, avail);
    return memcmp(g->bytes, code, first) == 0 &&
           (first == b->guest_len || memcmp(g->bytes + first, code2, b->guest_len - first) == 0);
}
