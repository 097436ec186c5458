/*
 * The emitter: writes host instructions into the code cache.
 *
 * Only what the generator needs; operands are host register numbers and absolute host addresses, which become
 * RIP-relative ones. Running out of room sets `full` and stops writing; the caller checks once at the end.
 */
#ifndef FONDA_CPU_BT_EMIT_H
#define FONDA_CPU_BT_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct emit {
    uint8_t *p, *end;  /* in the writable alias */
    uint64_t rx_delta; /* host address that will execute = (uint64_t)p + rx_delta */
    bool full;
};

enum host_reg {
    H_RAX,
    H_RCX,
    H_RDX,
    H_RBX,
    H_RSP,
    H_RBP,
    H_RSI,
    H_RDI,
    H_R8,
    H_R9,
    H_R10,
    H_R11,
    H_R12,
    H_R13,
    H_R14,
    H_R15,
    H_NONE = 0xff,
};

/* Condition codes (SDM vol. 1, appendix B) */
enum {
    CC_O,
    CC_NO,
    CC_B,
    CC_AE,
    CC_E,
    CC_NE,
    CC_BE,
    CC_A,
    CC_S,
    CC_NS,
    CC_P,
    CC_NP,
    CC_L,
    CC_GE,
    CC_LE,
    CC_G
};

static inline uint64_t emit_rx(const struct emit *e)
{
    return (uint64_t)e->p + e->rx_delta;
}

static inline void emit8(struct emit *e, unsigned b)
{
    if (e->p < e->end) {
        *e->p++ = (uint8_t)b;
    } else {
        e->full = true;
    }
}

static inline void emit32(struct emit *e, uint32_t v)
{
    if (e->end - e->p >= 4) {
        memcpy(e->p, &v, 4);
        e->p += 4;
    } else {
        e->full = true;
    }
}

static inline void emit64(struct emit *e, uint64_t v)
{
    emit32(e, (uint32_t)v);
    emit32(e, (uint32_t)(v >> 32));
}

static inline void emit_bytes(struct emit *e, const uint8_t *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        emit8(e, bytes[i]);
    }
}

static inline void emit_rex(struct emit *e, bool w, unsigned reg, unsigned index, unsigned base, bool force)
{
    unsigned rex = 0x40u | (unsigned)w << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1);
    if (rex != 0x40 || force) {
        emit8(e, rex);
    }
}

/* Opcode as up to three bytes, most significant first: 0x8b, 0x0fb6, 0x0f38f1. */
static inline void emit_opcode(struct emit *e, unsigned opcode)
{
    if (opcode > 0xffff) {
        emit8(e, opcode >> 16);
    }
    if (opcode > 0xff) {
        emit8(e, opcode >> 8);
    }
    emit8(e, opcode);
}

/* op reg, rm (both registers); w: 64 bits. */
static inline void emit_rr(struct emit *e, bool w, unsigned opcode, unsigned reg, unsigned rm)
{
    emit_rex(e, w, reg, 0, rm, false);
    emit_opcode(e, opcode);
    emit8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* ModRM and displacement of [rip -> addr]; trailing: immediate bytes that follow. */
static inline void emit_rip_modrm(struct emit *e, unsigned reg, uint64_t addr, unsigned trailing)
{
    emit8(e, 0x05 | (reg & 7) << 3);
    emit32(e, (uint32_t)(addr - (emit_rx(e) + 4 + trailing)));
}

/* op reg, [addr] */
static inline void emit_ra(struct emit *e, bool w, unsigned opcode, unsigned reg, uint64_t addr)
{
    emit_rex(e, w, reg, 0, 0, false);
    emit_opcode(e, opcode);
    emit_rip_modrm(e, reg, addr, 0);
}

/* ModRM, SIB and displacement of [base + index * scale + disp]; base and index may be H_NONE. */
static inline void emit_mem_modrm(struct emit *e, unsigned reg, unsigned base, unsigned index, unsigned scale,
                                  int32_t disp)
{
    static const uint8_t log2s[9] = {0, 0, 1, 0, 2, 0, 0, 0, 3};
    if (base == H_NONE) {
        emit8(e, 0x04 | (reg & 7) << 3);
        emit8(e, (unsigned)log2s[scale] << 6 | (index == H_NONE ? 4 : index & 7) << 3 | 5);
        emit32(e, (uint32_t)disp);
        return;
    }
    bool sib = index != H_NONE || (base & 7) == 4;
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    emit8(e, mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib) {
        emit8(e, (unsigned)log2s[scale] << 6 | (index == H_NONE ? 4 : index & 7) << 3 | (base & 7));
    }
    if (mod == 1) {
        emit8(e, (unsigned)disp);
    } else if (mod == 2) {
        emit32(e, (uint32_t)disp);
    }
}

/* op reg, [base + index * scale + disp] */
static inline void emit_rm(struct emit *e, bool w, unsigned opcode, unsigned reg, unsigned base,
                           unsigned index, unsigned scale, int32_t disp)
{
    emit_rex(e, w, reg, index == H_NONE ? 0 : index, base == H_NONE ? 0 : base, false);
    emit_opcode(e, opcode);
    emit_mem_modrm(e, reg, base, index, scale, disp);
}

static inline void emit_mov(struct emit *e, unsigned dst, unsigned src)
{
    emit_rr(e, true, 0x8b, dst, src);
}

static inline void emit_mov32(struct emit *e, unsigned dst, unsigned src)
{
    emit_rr(e, false, 0x8b, dst, src);
}

static inline void emit_load(struct emit *e, unsigned dst, uint64_t addr)
{
    emit_ra(e, true, 0x8b, dst, addr);
}

static inline void emit_store(struct emit *e, uint64_t addr, unsigned src)
{
    emit_ra(e, true, 0x89, src, addr);
}

static inline void emit_load32(struct emit *e, unsigned dst, uint64_t addr)
{
    emit_ra(e, false, 0x8b, dst, addr);
}

static inline void emit_store32(struct emit *e, uint64_t addr, unsigned src)
{
    emit_ra(e, false, 0x89, src, addr);
}

static inline void emit_lea(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
    emit_rm(e, true, 0x8d, dst, base, H_NONE, 1, disp);
}

/* The shortest MOV of a 64-bit constant; leaves the flags alone. */
static inline void emit_mov_imm(struct emit *e, unsigned dst, uint64_t v)
{
    if (v <= UINT32_MAX) {
        emit_rex(e, false, 0, 0, dst, false);
        emit8(e, 0xb8 | (dst & 7));
        emit32(e, (uint32_t)v);
    } else if ((uint64_t)(int64_t)(int32_t)v == v) {
        emit_rex(e, true, 0, 0, dst, false);
        emit8(e, 0xc7);
        emit8(e, 0xc0 | (dst & 7));
        emit32(e, (uint32_t)v);
    } else {
        emit_rex(e, true, 0, 0, dst, false);
        emit8(e, 0xb8 | (dst & 7));
        emit64(e, v);
    }
}

static inline void emit_jmp(struct emit *e, uint64_t target)
{
    emit8(e, 0xe9);
    emit32(e, (uint32_t)(target - (emit_rx(e) + 4)));
}

static inline void emit_call(struct emit *e, uint64_t target)
{
    emit8(e, 0xe8);
    emit32(e, (uint32_t)(target - (emit_rx(e) + 4)));
}

/* jcc rel32 to be patched; returns where its displacement is. */
static inline uint8_t *emit_jcc_fwd(struct emit *e, unsigned cc)
{
    emit8(e, 0x0f);
    emit8(e, 0x80 | cc);
    uint8_t *at = e->p;
    emit32(e, 0);
    return at;
}

static inline uint8_t *emit_jmp_fwd(struct emit *e)
{
    emit8(e, 0xe9);
    uint8_t *at = e->p;
    emit32(e, 0);
    return at;
}

/* Short forward jumps: JRCXZ, or Jcc with the condition given. Patch with emit_here8. */
static inline uint8_t *emit_jrcxz_fwd(struct emit *e)
{
    emit8(e, 0xe3);
    uint8_t *at = e->p;
    emit8(e, 0);
    return at;
}

static inline uint8_t *emit_jcc8_fwd(struct emit *e, unsigned cc)
{
    emit8(e, 0x70 | cc);
    uint8_t *at = e->p;
    emit8(e, 0);
    return at;
}

static inline void emit_here8(struct emit *e, uint8_t *at)
{
    if (!e->full) {
        *at = (uint8_t)(e->p - (at + 1));
    }
}

static inline void emit_here32(struct emit *e, uint8_t *at)
{
    if (!e->full) {
        uint32_t v = (uint32_t)(e->p - (at + 4));
        memcpy(at, &v, 4);
    }
}

#endif
