/*
 * Instructions executed by functions: the common part. Operands, the bounce buffer of BT_MODE_SLOW, the call
 * from translated code. General registers only.
 */
#include <Zydis/Zydis.h>

#include "cpu/bt/op.h"

uint64_t bt_op_ea(const struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t ea = (uint64_t)op->disp;
    if (op->rip_relative) {
        ea += op->rip + op->len;
    }
    if (op->base != BT_NO_REG) {
        ea += v->cpu.s.gpr[op->base];
    }
    if (op->index != BT_NO_REG) {
        ea += v->cpu.s.gpr[op->index] * op->scale;
    }
    return ea & op_mask(op->addrsize);
}

static void data_breakpoint(struct bt_vcpu *v, uint64_t va, unsigned size, bool write)
{
    if (__builtin_expect(v->cpu.s.dr7 & 0xff, 0)) {
        v->data_hits |= x86_match_breakpoint_data(&v->cpu, va, size, write);
    }
    if (__builtin_expect(v->debug_watch, 0)) {
        bt_debug_accessed(v, va, size, write);
    }
}

/* #AC (SDM vol. 3A, 6.15): at CPL 3 with CR0.AM and RFLAGS.AC. */
static int alignment_check(struct bt_vcpu *v, uint64_t va, unsigned size)
{
    if (__builtin_expect(bt_alignment_checked(v), 0) && size <= 8 && (size & (size - 1)) == 0 &&
        (va & (size - 1))) {
        return x86_raise_error(&v->cpu, X86_AC_EXC, 0);
    }
    return 0;
}

/* A misaligned operand that ends beyond what may be addressed is reported as misaligned. */
int op_linear(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write, bool stack,
              uint64_t *ret)
{
    unsigned access = write ? X86_ACCESS_WRITE : X86_ACCESS_READ;
    if (__builtin_expect((v->cpu.s.rflags & X86_AC) && size > 1, 0)) {
        if (x86_linear(&v->cpu, (enum x86_sreg)seg, offset, 1, access, stack, ret) < 0 ||
            alignment_check(v, *ret, size) < 0) {
            return -1;
        }
    }
    return x86_linear(&v->cpu, (enum x86_sreg)seg, offset, size, access, stack, ret);
}

int op_load(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool stack, uint64_t *ret)
{
    uint64_t va;
    if (op_linear(v, seg, offset, size, false, stack, &va) < 0 ||
        x86_load(&v->cpu, va, size, X86_ACCESS_READ | x86_access_mode(&v->cpu), ret) < 0) {
        return -1;
    }
    data_breakpoint(v, va, size, false);
    return 0;
}

int op_store(struct bt_vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool stack, uint64_t value)
{
    uint64_t va;
    if (op_linear(v, seg, offset, size, true, stack, &va) < 0 ||
        x86_store(&v->cpu, va, size, X86_ACCESS_WRITE | x86_access_mode(&v->cpu), value) < 0) {
        return -1;
    }
    data_breakpoint(v, va, size, true);
    return 0;
}

int op_rm_load(struct bt_vcpu *v, const struct bt_op *op, unsigned size, uint64_t *ret)
{
    if (op->has_mem) {
        return op_load(v, op->seg, bt_op_ea(v, op), size, op->stack_based, ret);
    }
    *ret = op_get(v, op->rm, size);
    return 0;
}

int op_rm_store(struct bt_vcpu *v, const struct bt_op *op, unsigned size, uint64_t value)
{
    if (op->has_mem) {
        return op_store(v, op->seg, bt_op_ea(v, op), size, op->stack_based, value);
    }
    op_set(v, op->rm, size, value);
    return 0;
}

unsigned op_stack_width(const struct bt_vcpu *v)
{
    return op_code64(v) ? 8 : v->cpu.s.seg[X86_SS].attr & X86_SEG_DB ? 4 : 2;
}

int op_push(struct bt_vcpu *v, unsigned size, uint64_t value)
{
    unsigned width = op_stack_width(v);
    uint64_t sp = (v->cpu.s.gpr[X86_RSP] - size) & op_mask(width);
    if (op_store(v, X86_SS, sp, size, true, value) < 0) {
        return -1;
    }
    op_set(v, X86_RSP, width, sp);
    return 0;
}

int op_pop(struct bt_vcpu *v, unsigned size, uint64_t *ret)
{
    unsigned width = op_stack_width(v);
    uint64_t sp = v->cpu.s.gpr[X86_RSP] & op_mask(width);
    if (op_load(v, X86_SS, sp, size, true, ret) < 0) {
        return -1;
    }
    op_set(v, X86_RSP, width, sp + size);
    return 0;
}

/* --- the bounce buffer --- */

static uint64_t active_elements(const struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned n = op->elem ? op->mem_size / op->elem : 1;
    uint64_t all = n >= 64 ? UINT64_MAX : (1ull << n) - 1;
    if (!op->masked) {
        return all;
    }
    if (op->packed) {
        unsigned active = (unsigned)__builtin_popcountll(v->kmask & all);
        return active >= 64 ? UINT64_MAX : (1ull << active) - 1;
    }
    uint64_t mask = v->kmask & all;
    for (unsigned lane = n; n && lane < op->mask_lanes; lane++) {
        mask |= (v->kmask >> lane & 1) << (lane % n);
    }
    return mask;
}

static bool element_active(const struct bt_vcpu *v, unsigned byte)
{
    return !v->bounce.masked || (v->bounce.mask >> (byte / v->bounce.elem) & 1);
}

/* Transfers the active parts of the operand between guest memory and the buffer. Runs of active bytes at a
 * time. */
static int bounce_transfer(struct bt_vcpu *v, uint8_t *buf, unsigned size, uint64_t va, bool write,
                           unsigned access)
{
    unsigned at = 0;
    if (size <= 8 && (size & (size - 1)) == 0 && !v->bounce.masked) { /* one access: devices tell */
        uint64_t value = 0;
        for (unsigned i = 0; i < size && write; i++) {
            value |= (uint64_t)buf[i] << i * 8;
        }
        int r =
            write ? x86_store(&v->cpu, va, size, access, value) : x86_load(&v->cpu, va, size, access, &value);
        for (unsigned i = 0; i < size && !write && r == 0; i++) {
            buf[i] = (uint8_t)(value >> i * 8);
        }
        return r;
    }
    while (at < size) {
        if (!element_active(v, at)) {
            at += v->bounce.elem;
            continue;
        }
        unsigned end = at;
        while (end < size && element_active(v, end)) {
            end += v->bounce.masked ? v->bounce.elem : size - end;
        }
        uint64_t from = op_code64(v) ? va + at : (uint32_t)(va + at);
        int r = write ? x86_store_buf(&v->cpu, from, buf + at, end - at, access)
                      : x86_load_buf(&v->cpu, from, buf + at, end - at, access);
        if (r < 0) {
            return -1;
        }
        at = end;
    }
    return 0;
}

/* Checks that every active byte may be written, before the operation runs: it must not fault half way. */
static int bounce_probe(struct bt_vcpu *v, uint64_t va, unsigned size, unsigned access)
{
    for (unsigned at = 0; at < size;) {
        unsigned step =
            MEM_PAGE_SIZE - (unsigned)((va + at) % MEM_PAGE_SIZE); /* to the next page, or element */
        if (v->bounce.masked) {
            step = MIN(step, v->bounce.elem - at % v->bounce.elem);
        }
        if (element_active(v, at)) {
            struct x86_walk w;
            if (x86_walk(&v->cpu, op_code64(v) ? va + at : (uint32_t)(va + at), access, &w) < 0) {
                return -1;
            }
        }
        at += step;
    }
    return 0;
}

static int bit_string_offset(const struct bt_vcpu *v, const struct bt_op *op, uint64_t *ea)
{
    int64_t bit = (int64_t)op_get(v, op->reg, op->opsize);
    unsigned shift = 64 - op->opsize * 8;
    bit = (int64_t)((uint64_t)bit << shift) >> shift;
    int64_t bits = op->opsize * 8;
    int64_t element = (bit - (bit & (bits - 1))) / bits;
    *ea = (*ea + (uint64_t)(element * op->opsize)) & op_mask(op->addrsize);
    return (int)(bit & (bits - 1));
}

static int bounce_begin(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t ea = bt_op_ea(v, op), va;
    unsigned size = op->mem_size ? op->mem_size : 1;
    bool write = op->access == X86_ACCESS_WRITE;
    if (op->bit_string) {
        v->tmp[0] = (uint64_t)bit_string_offset(v, op, &ea);
        size = op->opsize;
    }
    uint64_t active = active_elements(v, op);
    if (op->masked && active == 0) {
        va = ea; /* nothing is accessed */
    } else if (op->masked) {
        unsigned first = (unsigned)__builtin_ctzll(active), last = 63u - (unsigned)__builtin_clzll(active);
        uint64_t from = ea + first * op->elem;
        from = op_code64(v) ? from : (uint32_t)from;
        if (op_linear(v, op->seg, from, (last - first + 1) * op->elem, write, op->stack_based, &va) < 0) {
            return BT_RAISE;
        }
        va -= first * op->elem;
    } else if (op_linear(v, op->seg, ea, size, write, op->stack_based, &va) < 0) {
        return BT_RAISE;
    }
    if (op->aligned && active && va % MIN(size, size == 512 ? 16 : 64)) { /* FXSAVE: 16 */
        return bt_op_gp(v, op);
    }
    v->bounce.va = va;
    v->bounce.size = size;
    v->bounce.masked = op->masked;
    v->bounce.elem = op->elem ? op->elem : 1;
    v->bounce.mask = active;
    uint8_t *buf =
        v->bounce.buf + va % 64; /* the same alignment, so that aligned forms fault or not as they should */
    unsigned access = (write ? X86_ACCESS_WRITE : X86_ACCESS_READ) | x86_access_mode(&v->cpu);
    v->counters[BT_C_BOUNCED]++;
    /* Stores go straight to RAM where they can, so that locked ones are atomic. */
    v->bounce.direct = false;
    if (write && !op->masked && va % MEM_PAGE_SIZE + size <= MEM_PAGE_SIZE) {
        bool mmio;
        gpa_t gpa;
        v->bounce.ptr = (uint64_t)bt_cpu_ops.translate(&v->cpu, va, access, &mmio, &gpa);
        v->bounce.direct = v->bounce.ptr != 0;
        if (v->bounce.direct) {
            data_breakpoint(v, va, size, write);
            return BT_NEXT;
        }
        if (!mmio) {
            return BT_RAISE;
        }
    }
    if (write && bounce_probe(v, va, size, access) < 0) {
        return BT_RAISE;
    }
    if ((!write || op->mem_read) &&
        bounce_transfer(v, buf, size, va, false, X86_ACCESS_READ | x86_access_mode(&v->cpu)) < 0) {
        return BT_RAISE;
    }
    data_breakpoint(v, va, size, write);
    v->bounce.ptr = (uint64_t)buf;
    return BT_NEXT;
}

int bt_op_bounce_begin(struct bt_vcpu *v, const struct bt_op *op)
{
    int r = bounce_begin(v, op);
    if (r == BT_RAISE && op->waits) {
        bt_fpu_fault(v);
    }
    return r;
}

int bt_op_bounce_commit(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    if (!v->bounce.direct &&
        bounce_transfer(v, v->bounce.buf + v->bounce.va % 64, v->bounce.size, v->bounce.va, true,
                        X86_ACCESS_WRITE | x86_access_mode(&v->cpu)) < 0) {
        return BT_RAISE;
    }
    return BT_NEXT;
}

/* --- undefined and unavailable --- */

int bt_op_ud(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    x86_raise(&v->cpu, X86_UD);
    return BT_RAISE;
}

int bt_op_gp(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    x86_raise_error(&v->cpu, X86_GP, 0);
    return BT_RAISE;
}

/* An x87, MMX, SSE or AVX instruction in a mode that does not allow it (SDM vol. 3A, table 2-2 and 13.1; vol.
 * 2A, 2.4). */
int bt_op_nm(struct bt_vcpu *v, const struct bt_op *op)
{
    const struct x86_state *s = &v->cpu.s;
    bool avx_ready = (s->cr4 & X86_CR4_OSXSAVE) && (s->xcr0 & 6) == 6;
    if (op->avx && (!avx_ready || (op->avx512 && (s->xcr0 & 0xe0) != 0xe0))) {
        return bt_op_ud(v, op);
    }
    if (op->x87) {
        if (s->cr0 & (X86_CR0_EM | X86_CR0_TS)) {
            x86_raise(&v->cpu, X86_NM);
            return BT_RAISE;
        }
    } else if ((!op->avx && ((s->cr0 & X86_CR0_EM) || (op->sse && !(s->cr4 & X86_CR4_OSFXSR))))) {
        return bt_op_ud(v, op);
    }
    if (s->cr0 & X86_CR0_TS) {
        x86_raise(&v->cpu, X86_NM);
        return BT_RAISE;
    }
    /* Allowed after all: this block's mode was the coarse one. Run it natively. */
    v->mode_once |= BT_MODE_FPU_CHECKED | BT_MODE_ONE;
    return BT_AGAIN;
}

/* --- the call from translated code --- */

/* The block that follows, straight from the jump cache, when nothing else has to be looked at first. */
static int chain(struct bt_vcpu *v, int r)
{
    struct x86_cpu *cpu = &v->cpu;
    if (r == BT_DONE) {
        cpu->s.rip = cpu->next_rip;
    }
    bt_mode_update(v);
    const struct bt_jc_entry *e = bt_jc_slot(v, cpu->s.rip);
    bool quiet = !atomic_load_explicit(&v->pending, memory_order_relaxed) && !(v->irq_wait && v->iflag) &&
                 !cpu->s.nmi_pending && !cpu->s.sti_shadow && !cpu->s.movss_shadow && !v->mode_once &&
                 !(cpu->s.rflags & (X86_TF | X86_RF)) && !(cpu->s.dr7 & 0xff) && !v->debug_alone &&
                 !bt_alignment_checked(v);
    if (!quiet || e->neg_key + cpu->s.rip + v->mode_ctx != 0) {
        v->fill_jc = true;
        return BT_JUMP;
    }
    v->chain = e->target;
    bt_fpu_load(v);
    /* A kick that came in between poisoned ctx, or is about to: have it look at what runs next. */
    v->site = v->chain + 1;
    atomic_signal_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&v->pending, memory_order_relaxed)) {
        return BT_JUMP;
    }
    return BT_CHAIN;
}

int bt_op_dispatch(struct bt_vcpu *v, const struct bt_op *op)
{
    struct x86_cpu *cpu = &v->cpu;
    cpu->s.rip = op->rip;
    cpu->next_rip = op->rip + op->len;
    if (!op_code64(v)) {
        cpu->next_rip &= UINT32_MAX;
    }
    bt_flags_merge(v);
    v->killed = false;
    int r = op->fn(v, op);
    bt_flags_split(v);
    if (r == BT_NEXT && v->killed && op->fn != bt_op_bounce_begin) {
        r = BT_DONE; /* what follows in this block may have been overwritten */
    }
    if (r == BT_NEXT && (atomic_load_explicit(&v->pending, memory_order_relaxed) & BT_PENDING_CODE) &&
        op->fn != bt_op_bounce_begin) {
        r = BT_DONE; /* by another vCPU: serializing instructions see that */
    }
    if (r == BT_JUMP || r == BT_DONE) {
        return chain(v, r);
    }
    if (r == BT_NEXT) {
        if (atomic_load_explicit(&v->pending, memory_order_relaxed)) {
            bt_unlink_current(v, v->site);
        }
        bt_fpu_load(v);
    }
    return r;
}

bt_op_fn *bt_op_lookup(const struct bt_insn *in, bool *ret_ends)
{
    static bt_op_fn *(*const lookups[])(const struct bt_insn *, bool *) = {
        op_system_lookup, op_stack_lookup, op_string_lookup, op_legacy_lookup, op_fpu_lookup,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(lookups); i++) {
        bt_op_fn *fn = lookups[i](in, ret_ends);
        if (fn) {
            return fn;
        }
    }
    return NULL;
}
