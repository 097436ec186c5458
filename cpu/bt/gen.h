/*
 * Shared by the generator's files: translate.c (blocks), gen_mem.c (addresses, flags), gen_copy.c
 * (instructions that are re-encoded), gen_flow.c (stack and control transfer).
 */
#ifndef FONDA_CPU_BT_GEN_H
#define FONDA_CPU_BT_GEN_H

#include <Zydis/Zydis.h>

#include "cpu/bt/bt_int.h"
#include "cpu/bt/emit.h"
#include "cpu/bt/regs.h"

/* A memory access' way to bt_tlb_miss, emitted behind the block. */
struct gen_cold {
    uint8_t *jcc;  /* displacement of the jump to it */
    uint8_t *back; /* where the hot path goes on */
    uint32_t info;
    uint16_t guest; /* offset of the instruction in the block */
    bool flags_saved;
    struct bt_site *site;
    struct bt_exit *exit; /* of a group */
};

/* How an instruction is translated. */
enum gen_kind {
    GEN_COPY,
    GEN_NOTHING,
    GEN_LEA,
    GEN_PUSH,
    GEN_POP,
    GEN_LEAVE,
    GEN_CALL,
    GEN_CALL_INDIRECT,
    GEN_RET,
    GEN_JMP,
    GEN_JMP_INDIRECT,
    GEN_JCC,
    GEN_LOOP,
    GEN_JRCXZ,
    GEN_BIT_STRING,
    GEN_OP,
    GEN_INLINE,
    GEN_PUSHF,
    GEN_REP, /* REP MOVS, REP STOS */
};

struct gen_insn {
    struct bt_insn in;
    enum gen_kind kind;
    bool ends;
    bool again; /* a jump back to the block's start, behind which the same instructions follow */
    int8_t mem_group, stack_group;    /* or -1 */
    int64_t mem_offset, stack_offset; /* relative to the group's value */
    bt_op_fn *fn;
};

/* Accesses that share one check (groups.c). */
#define GEN_GROUPS_MAX 8
struct gen_group {
    uint32_t base, index; /* value numbers */
    uint8_t scale;
    bool write, checked;
    unsigned count;
    unsigned jumps;   /* conditional jumps in front of its first access */
    int64_t min, max; /* [min, max) relative to the value */
};

struct gen {
    struct bt_vcpu *v;
    struct bt_block *b;
    struct emit e;
    uint8_t *start;
    uint32_t mode;
    bool hot;            /* runs often */
    unsigned n, at;      /* instructions; the current one */
    bool flags_saved;    /* the guest's arithmetic flags are in v->aflags, not in the host's flags */
    bool irq_check;      /* the block ends in the shadow of STI */
    bool op_flags_saved; /* the same, while the current instruction's own operation executes */
    unsigned ngroups;
    int s2_group;     /* whose host address r15 holds, or -1 */
    int32_t mem_disp; /* the operand is at [r15 + this] */
    struct gen_group group[GEN_GROUPS_MAX];
    unsigned ncold, nexits, nmaps;
    struct gen_cold cold[BT_BLOCK_INSNS_MAX * 3];
    struct bt_map maps[BT_BLOCK_INSNS_MAX * 4];
    struct gen_insn insn[BT_BLOCK_INSNS_MAX];
    uint8_t bytes[BT_BLOCK_BYTES_MAX + 32];
    struct bt_decode_cache decoded;
};

#define GEN_INFO_WRITE   0x8000u
#define GEN_INFO_MMU(n)  ((uint32_t)(n) << 16)
#define GEN_INFO_STACK   0x40000u
#define GEN_INFO_MASKED  0x80000u
#define GEN_INFO_ALIGNED 0x100000u
#define GEN_INFO_GROUP   0x200000u
#define GEN_INFO_WAITS   0x400000u

#define GA(g, field) ((uint64_t) & (g)->v->field)

static inline uint64_t gen_slot(const struct gen *g, unsigned guest_reg)
{
    return (uint64_t)&g->v->cpu.s.gpr[guest_reg];
}

static inline uint64_t gen_next_rip(const struct gen *g, const struct bt_insn *in)
{
    uint64_t next = in->op.rip + in->op.len;
    return g->mode & BT_MODE_CODE64 ? next : next & UINT32_MAX;
}

/* translate.c: how the instruction in gi->in is translated; sets gi->kind, ends and fn. */
void gen_classify(uint32_t mode, struct gen_insn *gi);

/* gen_string.c: whether the instruction is one for gen_rep, and its code; fn is for what the code cannot do.
 */
bool gen_rep_fits(uint32_t mode, const struct bt_insn *in);
void gen_rep(struct gen *g, const struct bt_insn *in, bt_op_fn *fn);

/* gen_mem.c */
void gen_flags_save(struct gen *g, const struct bt_insn *in);    /* before host flags are destroyed */
void gen_flags_ready(struct gen *g, const struct bt_insn *in);   /* before the instruction's own operation */
void gen_flags_end(struct gen *g);                               /* before leaving the block */
void gen_load_gpr(struct gen *g, unsigned host, unsigned guest); /* 64 bits, flags untouched */
void gen_store_gpr(struct gen *g, unsigned guest, unsigned host);
void gen_ea(struct gen *g, const struct bt_op *op, unsigned dst); /* offset into dst; uses rcx, r14 */
void gen_segment_base(struct gen *g,
                      const struct bt_op *op); /* adds that of FS, GS to r15; destroys host flags */
/* r15: guest address -> host address; destroys rcx, r14 and the host flags. */
void gen_check(struct gen *g, const struct bt_insn *in, unsigned size, bool write, bool stack);
/* r15: guest address -> host address when the access up to the byte at rcx is in the TLB; else jumps: returns
 * where that jump's displacement is. Destroys rcx, r14 and the host flags. */
uint8_t *gen_probe(struct gen *g, bool write);
/* The same for a group's whole span; what it cannot do leaves with BT_NOGROUP. */
void gen_check_span(struct gen *g, int group, bool stack);
/* The memory operand's host address in r15 (+ mem_disp), flags taken care of. In BT_MODE_SLOW through the
 * bounce buffer. */
void gen_operand(struct gen *g, const struct bt_insn *in);
void gen_operand_done(struct gen *g, const struct bt_insn *in);
void gen_cold_paths(struct gen *g);
void gen_call_op(struct gen *g, const struct bt_insn *in, bt_op_fn *fn);

/* groups.c */
void gen_find_groups(struct gen *g);
/* True when the group's check was made: r15 and mem_disp then lead to the access. */
bool gen_group_known(struct gen *g, int group, int64_t offset);
/* After the check of the whole span: r15 is the host address of its lowest byte. */
void gen_group_checked(struct gen *g, int group, int64_t offset);

/* gen_copy.c */
void gen_copy(struct gen *g, const struct bt_insn *in);
void gen_bit_string(struct gen *g, const struct bt_insn *in);
void gen_lea(struct gen *g, const struct bt_insn *in);

/* gen_flow.c */
void gen_push(struct gen *g, const struct bt_insn *in);
void gen_pushf(struct gen *g, const struct bt_insn *in);
void gen_inline(struct gen *g, const struct bt_insn *in);
void gen_irq_check(struct gen *g, uint64_t rip);
void gen_pop(struct gen *g, const struct bt_insn *in);
void gen_leave(struct gen *g, const struct bt_insn *in);
void gen_call(struct gen *g, const struct bt_insn *in);
void gen_call_indirect(struct gen *g, const struct bt_insn *in);
void gen_ret(struct gen *g, const struct bt_insn *in);
void gen_jmp_indirect(struct gen *g, const struct bt_insn *in);
void gen_jcc(struct gen *g, const struct bt_insn *in);
void gen_loop(struct gen *g, const struct bt_insn *in);
void gen_jrcxz(struct gen *g, const struct bt_insn *in);
void gen_exit(struct gen *g, uint64_t rip);
struct bt_exit *gen_add_exit(struct gen *g, uint64_t rip);
void gen_exit_stubs(struct gen *g);
uint64_t gen_branch_target(const struct gen *g, const struct bt_insn *in);

#endif
