/*
 * String instructions (SDM vol. 2, MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS), with and without REP. General
 * registers only.
 *
 * Registers are advanced after every element or chunk, so that a fault in the middle leaves them as the
 * processor does: RIP at the instruction, RCX counting what is left. MOVS and STOS go in chunks that stay
 * within a page on both sides, by the host's own REP MOVS/STOS on host addresses. A long REP looks for
 * interrupts now and then (BT_AGAIN).
 */
#include <Zydis/Zydis.h>

#include "cpu/bt/op.h"

#define ELEMENTS_PER_TURN 65536u

static uint64_t count_mask(const struct bt_op *op)
{
    return op_mask(op->addrsize);
}

static uint64_t count_left(const struct bt_vcpu *v, const struct bt_op *op)
{
    return op->rep ? v->cpu.s.gpr[X86_RCX] & count_mask(op) : 1;
}

static void advance(struct bt_vcpu *v, const struct bt_op *op, unsigned reg, uint64_t elements, unsigned size)
{
    uint64_t bytes = elements * size;
    uint64_t r = v->cpu.s.gpr[reg];
    r = v->cpu.s.rflags & X86_DF ? r - bytes : r + bytes;
    op_set(v, reg, op->addrsize, r);
}

static void count_down(struct bt_vcpu *v, const struct bt_op *op, uint64_t elements)
{
    if (op->rep) {
        op_set(v, X86_RCX, op->addrsize, v->cpu.s.gpr[X86_RCX] - elements);
    }
}

/* With a 32-bit address size in 64-bit mode, processors clear the upper halves of the registers before the
 * first element. */
static void begin(struct bt_vcpu *v, const struct bt_op *op, bool uses_rsi, bool uses_rdi)
{
    if (!op->rep || op->addrsize != 4 || !op_code64(v)) {
        return;
    }
    op_set(v, X86_RCX, 4, v->cpu.s.gpr[X86_RCX]);
    if (uses_rsi) {
        op_set(v, X86_RSI, 4, v->cpu.s.gpr[X86_RSI]);
    }
    if (uses_rdi) {
        op_set(v, X86_RDI, 4, v->cpu.s.gpr[X86_RDI]);
    }
}

static unsigned element_size(const struct bt_op *op)
{
    return op->opcode & 1 ? op->opsize : 1;
}

/* Elements that can be done at once from this host page on: at least 1 when the first lies within a page,
 * else 0. */
static uint64_t chunk_elements(const struct bt_vcpu *v, uint64_t va, unsigned size, uint64_t left)
{
    uint64_t in_page = va % MEM_PAGE_SIZE;
    uint64_t n = v->cpu.s.rflags & X86_DF ? (in_page + size <= MEM_PAGE_SIZE ? in_page / size + 1 : 0)
                                          : (MEM_PAGE_SIZE - in_page) / size;
    return MIN(n, left);
}

/* Linear address of seg:reg; checks `span` bytes in the direction of travel only where segments have limits.
 */
static int string_linear(struct bt_vcpu *v, const struct bt_op *op, unsigned seg, unsigned reg, unsigned size,
                         bool write, uint64_t *ret)
{
    uint64_t offset = v->cpu.s.gpr[reg] & op_mask(op->addrsize);
    return x86_linear(&v->cpu, (enum x86_sreg)seg, offset, size, write ? X86_ACCESS_WRITE : X86_ACCESS_READ,
                      false, ret);
}

/* Whether whole chunks may be done by host address: no limits to check per element, no breakpoints. */
static bool chunks_allowed(const struct bt_vcpu *v, const struct bt_op *op)
{
    return (v->mode & (BT_MODE_CODE64 | BT_MODE_FLAT)) && op->addrsize >= 4 && !(v->cpu.s.dr7 & 0xff) &&
           !v->debug_alone && !(v->cpu.s.rflags & X86_TF) && !bt_alignment_checked(v);
}

/* Keeps 32-bit offsets from wrapping inside of a chunk. */
static uint64_t limit_wrap(const struct bt_vcpu *v, const struct bt_op *op, unsigned reg, unsigned size,
                           uint64_t n)
{
    if (op->addrsize == 8) {
        return n;
    }
    uint64_t offset = v->cpu.s.gpr[reg] & UINT32_MAX;
    uint64_t room = v->cpu.s.rflags & X86_DF ? offset / size + 1 : (UINT32_MAX - offset) / size;
    return MIN(n, MAX(room, 1));
}

static void host_movs(uint8_t *dst, const uint8_t *src, uint64_t n, unsigned size, bool down)
{
    if (down) {
        __asm__ volatile("std" : : : "cc");
    }
    switch (size) {
    case 8: __asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory"); break;
    case 4: __asm__ volatile("rep movsl" : "+D"(dst), "+S"(src), "+c"(n) : : "memory"); break;
    case 2: __asm__ volatile("rep movsw" : "+D"(dst), "+S"(src), "+c"(n) : : "memory"); break;
    default: __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory"); break;
    }
    if (down) {
        __asm__ volatile("cld" : : : "cc");
    }
}

static void host_stos(uint8_t *dst, uint64_t value, uint64_t n, unsigned size, bool down)
{
    if (down) {
        __asm__ volatile("std" : : : "cc");
    }
    switch (size) {
    case 8: __asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    }
    if (down) {
        __asm__ volatile("cld" : : : "cc");
    }
}

/* Host pointer for a chunk, or NULL: fault (*ret_fault) or not RAM. */
static uint8_t *chunk_pointer(struct bt_vcpu *v, uint64_t va, bool write, bool *ret_fault)
{
    bool mmio = false;
    gpa_t gpa;
    unsigned access = (write ? X86_ACCESS_WRITE : X86_ACCESS_READ) | x86_access_mode(&v->cpu);
    uint8_t *p = bt_cpu_ops.translate(&v->cpu, va, access, &mmio, &gpa);
    *ret_fault = !p && !mmio;
    return p;
}

/* After one chunk or element of a REP: go on, finish, or look for interrupts first. */
static int next_turn(struct bt_vcpu *v, const struct bt_op *op, uint64_t *done, uint64_t n)
{
    *done += n;
    if (!op->rep || (v->cpu.s.gpr[X86_RCX] & count_mask(op)) == 0) {
        return BT_NEXT;
    }
    if (*done >= ELEMENTS_PER_TURN || atomic_load_explicit(&v->pending, memory_order_relaxed) ||
        (v->cpu.s.rflags & X86_TF) || v->debug_alone) {
        v->mid_string = true;
        return BT_AGAIN;
    }
    return -1;
}

static int op_movs(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = element_size(op);
    bool down = (v->cpu.s.rflags & X86_DF) != 0, fault;
    uint64_t left, done = 0;
    begin(v, op, true, true);
    while ((left = count_left(v, op)) > 0) {
        uint64_t src, dst, n = 0;
        /* Otherwise one element, which raises what there is to raise, in order. */
        if (op->rep && chunks_allowed(v, op) &&
            string_linear(v, op, op->seg, X86_RSI, size, false, &src) == 0 &&
            chunk_pointer(v, src, false, &fault) &&
            string_linear(v, op, X86_ES, X86_RDI, size, true, &dst) == 0) {
            n = MIN(chunk_elements(v, src, size, left), chunk_elements(v, dst, size, left));
            n = limit_wrap(v, op, X86_RSI, size, limit_wrap(v, op, X86_RDI, size, n));
        }
        uint8_t *from = n ? chunk_pointer(v, src, false, &fault) : NULL;
        if (n && !from && fault) {
            return BT_RAISE;
        }
        uint8_t *to = from ? chunk_pointer(v, dst, true, &fault) : NULL;
        if (from && !to && fault) {
            return BT_RAISE;
        }
        if (from && to) {
            host_movs(to, from, n, size, down);
        } else {
            uint64_t value;
            n = 1;
            if (op_load(v, op->seg, v->cpu.s.gpr[X86_RSI] & op_mask(op->addrsize), size, false, &value) < 0 ||
                op_store(v, X86_ES, v->cpu.s.gpr[X86_RDI] & op_mask(op->addrsize), size, false, value) < 0) {
                return BT_RAISE;
            }
        }
        advance(v, op, X86_RSI, n, size);
        advance(v, op, X86_RDI, n, size);
        count_down(v, op, n);
        int r = next_turn(v, op, &done, n);
        if (r >= 0) {
            return r;
        }
    }
    return BT_NEXT;
}

static int op_stos(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = element_size(op);
    bool down = (v->cpu.s.rflags & X86_DF) != 0, fault;
    uint64_t left, done = 0;
    begin(v, op, false, true);
    while ((left = count_left(v, op)) > 0) {
        uint64_t dst, n = 0;
        if (string_linear(v, op, X86_ES, X86_RDI, size, true, &dst) < 0) {
            return BT_RAISE;
        }
        if (op->rep && chunks_allowed(v, op)) {
            n = limit_wrap(v, op, X86_RDI, size, chunk_elements(v, dst, size, left));
        }
        uint8_t *to = n ? chunk_pointer(v, dst, true, &fault) : NULL;
        if (n && !to && fault) {
            return BT_RAISE;
        }
        if (to) {
            host_stos(to, v->cpu.s.gpr[X86_RAX], n, size, down);
        } else {
            n = 1;
            if (op_store(v, X86_ES, v->cpu.s.gpr[X86_RDI] & op_mask(op->addrsize), size, false,
                         op_get(v, X86_RAX, size)) < 0) {
                return BT_RAISE;
            }
        }
        advance(v, op, X86_RDI, n, size);
        count_down(v, op, n);
        int r = next_turn(v, op, &done, n);
        if (r >= 0) {
            return r;
        }
    }
    return BT_NEXT;
}

static int op_lods(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = element_size(op);
    uint64_t done = 0;
    begin(v, op, false, false);
    while (count_left(v, op) > 0) {
        uint64_t value;
        if (op_load(v, op->seg, v->cpu.s.gpr[X86_RSI] & op_mask(op->addrsize), size, false, &value) < 0) {
            return BT_RAISE;
        }
        op_set(v, X86_RAX, size, value);
        advance(v, op, X86_RSI, 1, size);
        count_down(v, op, 1);
        int r = next_turn(v, op, &done, 1);
        if (r >= 0) {
            return r;
        }
    }
    return BT_NEXT;
}

/* The arithmetic flags of a - b. */
static void compare(struct bt_vcpu *v, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t mask = op_mask(size), sign = 1ull << (size * 8 - 1), r = (a - b) & mask;
    uint64_t f = v->cpu.s.rflags & ~(uint64_t)X86_FLAGS_ARITH;
    f |= a < b ? X86_CF : 0;
    f |= __builtin_parity((unsigned)(r & 0xff)) ? 0 : X86_PF;
    f |= (a ^ b ^ r) & 0x10 ? X86_AF : 0;
    f |= r == 0 ? X86_ZF : 0;
    f |= r & sign ? X86_SF : 0;
    f |= (a ^ b) & (a ^ r) & sign ? X86_OF : 0;
    v->cpu.s.rflags = f;
}

/* REPE and REPNE end when ZF says so. */
static bool repeat_ends(const struct bt_vcpu *v, const struct bt_op *op)
{
    bool zf = (v->cpu.s.rflags & X86_ZF) != 0;
    return op->rep && zf != (op->rep == 1);
}

static int op_cmps(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = element_size(op);
    bool scas = (op->opcode & 0xfe) == 0xae;
    uint64_t done = 0;
    begin(v, op, false, false);
    while (count_left(v, op) > 0) {
        uint64_t a = op_get(v, X86_RAX, size), b;
        if (op_load(v, X86_ES, v->cpu.s.gpr[X86_RDI] & op_mask(op->addrsize), size, false, &b) < 0) {
            return BT_RAISE;
        }
        if (!scas &&
            op_load(v, op->seg, v->cpu.s.gpr[X86_RSI] & op_mask(op->addrsize), size, false, &a) < 0) {
            return BT_RAISE;
        }
        compare(v, a, b, size);
        if (!scas) {
            advance(v, op, X86_RSI, 1, size);
        }
        advance(v, op, X86_RDI, 1, size);
        count_down(v, op, 1);
        if (repeat_ends(v, op)) {
            return BT_NEXT;
        }
        int r = next_turn(v, op, &done, 1);
        if (r >= 0) {
            return r;
        }
    }
    return BT_NEXT;
}

static int op_ins_outs(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = op->opcode & 1 ? (op->opsize == 2 ? 2 : 4) : 1;
    bool out = (op->opcode & 2) != 0;
    uint16_t port = (uint16_t)v->cpu.s.gpr[X86_RDX];
    uint64_t done = 0;
    if (x86_check_io(&v->cpu, port, size) < 0) {
        return BT_RAISE;
    }
    while (count_left(v, op) > 0) {
        uint64_t value = 0;
        if (out) {
            if (op_load(v, op->seg, v->cpu.s.gpr[X86_RSI] & op_mask(op->addrsize), size, false, &value) < 0) {
                return BT_RAISE;
            }
        } else {
            /* The destination is checked before the port is read: a read cannot be taken back. */
            uint64_t va;
            struct x86_walk w;
            if (string_linear(v, op, X86_ES, X86_RDI, size, true, &va) < 0 ||
                x86_walk(&v->cpu, va, X86_ACCESS_WRITE | x86_access_mode(&v->cpu), &w) < 0 ||
                x86_walk(&v->cpu, va + size - 1, X86_ACCESS_WRITE | x86_access_mode(&v->cpu), &w) < 0) {
                return BT_RAISE;
            }
        }
        bt_fpu_save(v);
        v->counters[BT_C_PIO]++;
        if (out) {
            mem_pio_write(v->cpu.mem, port, size, (uint32_t)value);
        } else {
            value = mem_pio_read(v->cpu.mem, port, size);
            if (op_store(v, X86_ES, v->cpu.s.gpr[X86_RDI] & op_mask(op->addrsize), size, false, value) < 0) {
                return BT_RAISE;
            }
        }
        advance(v, op, out ? X86_RSI : X86_RDI, 1, size);
        count_down(v, op, 1);
        int r = next_turn(v, op, &done, 1);
        if (r >= 0) {
            return r == BT_NEXT ? BT_DONE : r;
        }
    }
    return BT_DONE;
}

bt_op_fn *op_string_lookup(const struct bt_insn *in, bool *ret_ends)
{
    if (in->enc != BT_ENC_LEGACY || in->map != 0 || in->has_modrm) {
        return NULL;
    }
    switch (in->opcode & 0xfe) {
    case 0x6c:
    case 0x6e: *ret_ends = true; return op_ins_outs;
    case 0xa4: return op_movs;
    case 0xa6:
    case 0xae: return op_cmps;
    case 0xaa: return op_stos;
    case 0xac: return op_lods;
    default: return NULL;
    }
}
