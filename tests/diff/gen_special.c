/*
 * Hand-written pieces: what random forms reach seldom or not at all. Control flow (structured, so that every
 * path reaches the marker), flags by POPF, far transfers, the XSAVE family, traps, bytes that mean nothing.
 */
#include <string.h>

#include "base/util.h"
#include "tests/diff/gen_int.h"

#define EMIT(g, ...) gen_emit(g, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

#define PIECE_BYTES 160u
#define PIECE_INSNS 24u

static uint32_t mark(const struct gen *g)
{
    return g->c->code_length;
}

/* Fills in a relative displacement (of 1 or 4 bytes) that ends at `at`, to come here. */
static void land(struct gen *g, uint32_t at, unsigned bytes)
{
    int32_t disp = (int32_t)(g->c->code_length - at);
    memcpy(g->c->code + at - bytes, &disp, bytes);
}

/* One or two instructions to jump over or to. */
static void filler(struct gen *g)
{
    static const enum diff_cat simple[] = {CAT_ALU, CAT_MOVE, CAT_SHIFT, CAT_BITS};
    uint32_t n = 1 + rng_below(&g->r, 2);
    uint32_t faults = g->fault_percent;
    g->fault_percent = 0;
    for (uint32_t i = 0; i < n; i++) {
        (void)gen_form(g, simple[rng_below(&g->r, 4)]);
    }
    g->fault_percent = faults;
}

/* A register that filler code can't have written, holding an address whose place is filled in later. Returns
 * where the immediate is. */
static uint32_t load_address(struct gen *g, unsigned reg)
{
    if (g->c->compat) {
        (void)EMIT(g, (uint8_t)(0xb8 | reg), 0, 0, 0, 0);
    } else {
        (void)EMIT(g, (uint8_t)(0x40 | reg >> 3), (uint8_t)(0xb8 | (reg & 7)), 0, 0, 0, 0);
    }
    return mark(g) - 4;
}

static void land_address(struct gen *g, uint32_t at)
{
    uint32_t here = (uint32_t)gen_here(g);
    memcpy(g->c->code + at, &here, 4);
}

/* FF /2 or /4 through a register or through memory. */
static void indirect(struct gen *g, unsigned digit)
{
    unsigned reg = gen_reg(g);
    uint8_t rex = (uint8_t)(0x40 | reg >> 3);
    uint32_t at = load_address(g, reg);
    if (rng_percent(&g->r, 50)) {
        if (g->c->compat) {
            (void)EMIT(g, 0xff, (uint8_t)(0xc0 | digit << 3 | reg));
        } else {
            (void)EMIT(g, rex, 0xff, (uint8_t)(0xc0 | digit << 3 | (reg & 7)));
        }
    } else {
        /* mov [disp32], reg; then jmp or call [disp32] */
        uint32_t slot = DIFF_DATA_VA + rng_below(&g->r, 0x3ff0);
        uint8_t store[9] = {(uint8_t)(0x48 | (reg >> 3) << 2), 0x89, (uint8_t)(0x04 | (reg & 7) << 3), 0x25};
        uint8_t jump[7] = {0xff, (uint8_t)(0x04 | digit << 3), 0x25};
        memcpy(store + 4, &slot, 4);
        memcpy(jump + 3, &slot, 4);
        if (g->c->compat) {
            uint8_t narrow[6] = {0x89, (uint8_t)(0x05 | reg << 3)};
            memcpy(narrow + 2, &slot, 4);
            (void)gen_emit(g, narrow, 6);
            (void)gen_emit(g, jump, 7);
        } else {
            (void)gen_emit(g, store, 8);
            (void)gen_emit(g, jump, 7);
        }
    }
    if (digit == 4) {
        filler(g);
        land_address(g, at);
        return;
    }
    /* call: [over it] jmp end; f: ...; ret; end: */
    (void)EMIT(g, 0xe9, 0, 0, 0, 0);
    uint32_t over = mark(g);
    land_address(g, at);
    filler(g);
    (void)EMIT(g, 0xc3);
    land(g, over, 4);
}

static void near_call(struct gen *g)
{
    if (rng_percent(&g->r, 15)) {
        (void)EMIT(g, 0xf2, 0xe8, 0, 0, 0, 0); /* BND */
    } else if (rng_percent(&g->r, 10) && !g->c->compat) {
        (void)EMIT(g, 0x48, 0xe8, 0, 0, 0, 0);
    } else {
        (void)EMIT(g, 0xe8, 0, 0, 0, 0);
    }
    uint32_t at = mark(g);
    (void)EMIT(g, 0xeb, 0);
    uint32_t over = mark(g);
    land(g, at, 4);
    filler(g);
    switch (rng_below(&g->r, 4)) {
    case 0: (void)EMIT(g, 0xc2, (uint8_t)(rng_below(&g->r, 8) * 8), 0); break;
    case 1: (void)EMIT(g, 0xf3, 0xc3); break;
    case 2:
        (void)EMIT(g, 0x58); /* pop rax: drops the return address, and shows it */
        break;
    default: (void)EMIT(g, 0xc3); break;
    }
    land(g, over, 1);
}

static void push_ret(struct gen *g)
{
    (void)EMIT(g, 0x68, 0, 0, 0, 0);
    uint32_t at = mark(g) - 4;
    (void)EMIT(g, 0xc3);
    filler(g);
    land_address(g, at);
}

/* Far returns and IRET to the same privilege level, 64-bit and 32-bit code segments alike. */
static void far_return(struct gen *g)
{
    if (g->c->compat) {
        (void)EMIT(g, 0x6a, 0x23);
        (void)EMIT(g, 0x68, 0, 0, 0, 0);
        uint32_t at = mark(g) - 4;
        (void)EMIT(g, 0xcb);
        filler(g);
        land_address(g, at);
        return;
    }
    if (rng_percent(&g->r, 50)) {
        (void)EMIT(g, 0x6a, 0x33);
        (void)EMIT(g, 0x68, 0, 0, 0, 0);
        uint32_t at = mark(g) - 4;
        (void)EMIT(g, 0x48, 0xcb);
        filler(g);
        land_address(g, at);
        return;
    }
    uint32_t rsp = DIFF_STACK_VA + 0x800 + rng_below(&g->r, 64) * 8;
    uint8_t push_rsp[5] = {0x68};
    memcpy(push_rsp + 1, &rsp, 4);
    (void)EMIT(g, 0x6a, 0x2b); /* SS */
    (void)gen_emit(g, push_rsp, 5);
    (void)EMIT(g, 0x9c); /* RFLAGS as they are */
    (void)EMIT(g, 0x6a, 0x33);
    (void)EMIT(g, 0x68, 0, 0, 0, 0);
    uint32_t at = mark(g) - 4;
    (void)EMIT(g, 0x48, 0xcf);
    filler(g);
    land_address(g, at);
}

/* Into 32-bit code and back. */
static void mode_switch(struct gen *g)
{
    (void)EMIT(g, 0x6a, 0x23);
    (void)EMIT(g, 0x68, 0, 0, 0, 0);
    uint32_t at = mark(g) - 4;
    (void)EMIT(g, 0x48, 0xcb); /* retfq */
    land_address(g, at);
    /* 32-bit: inc eax; dec ecx; add edx, [disp32]; far jump back. In 64-bit mode the first two would be REX.
     */
    (void)EMIT(g, 0x40);
    (void)EMIT(g, 0x49);
    uint32_t slot = DIFF_DATA_VA + rng_below(&g->r, 0x3ff0);
    uint8_t add[6] = {0x03, 0x15};
    memcpy(add + 2, &slot, 4);
    (void)gen_emit(g, add, 6);
    if (rng_percent(&g->r, 90)) {
        (void)EMIT(g, 0xea, 0, 0, 0, 0, 0x33, 0);
        at = mark(g) - 6;
        land_address(g, at);
    }
    for (unsigned i = 0; i < 16; i++) {
        g->gpr_state[i] = GPR_LOST;
    }
}

static void counted_loop(struct gen *g)
{
    static const uint8_t opcodes[] = {0xe0, 0xe1, 0xe2, 0xe2};
    gen_set_gpr(g, X86_RCX, 1 + rng_below(&g->r, 12));
    uint32_t top = mark(g);
    /* The body leaves RCX alone: lea rax, [rax+rdx+3]; xor rdx, rax; or the like. */
    if (g->c->compat) {
        (void)EMIT(g, 0x8d, 0x44, 0x10, 0x03);
        (void)EMIT(g, 0x31, 0xc2);
    } else {
        (void)EMIT(g, 0x48, 0x8d, 0x44, 0x10, 0x03);
        (void)EMIT(g, 0x48, 0x31, 0xc2);
    }
    if (rng_percent(&g->r, 20)) {
        (void)EMIT(g, 0x67, opcodes[rng_below(&g->r, 4)], 0);
        if (g->c->compat) {
            /* LOOP by CX: the upper half of ECX is zero, so it counts the same. */
            g->gpr_state[X86_RCX] = GPR_LOST;
        }
    } else if (rng_percent(&g->r, 30)) {
        if (g->c->compat) {
            (void)EMIT(g, 0x49); /* dec ecx */
        } else {
            (void)EMIT(g, 0x48, 0xff, 0xc9);
        }
        (void)EMIT(g, 0x75, 0); /* jnz */
    } else {
        (void)EMIT(g, opcodes[rng_below(&g->r, 4)], 0);
    }
    g->c->code[mark(g) - 1] = (uint8_t)(top - mark(g));
    g->gpr_state[X86_RAX] = g->gpr_state[X86_RCX] = g->gpr_state[X86_RDX] = GPR_LOST;
}

static void conditional(struct gen *g)
{
    uint8_t cc = (uint8_t)rng_below(&g->r, 16);
    unsigned bytes = 1;
    switch (rng_below(&g->r, 6)) {
    case 0: (void)EMIT(g, 0x2e, (uint8_t)(0x70 | cc), 0); break; /* with a hint */
    case 1:
        (void)EMIT(g, 0x0f, (uint8_t)(0x80 | cc), 0, 0, 0, 0);
        bytes = 4;
        break;
    case 2:
        gen_set_gpr(g, X86_RCX, rng_percent(&g->r, 50) ? 0 : g->c->compat ? 1 : 1ull << 32);
        if (rng_percent(&g->r, 50)) {
            (void)EMIT(g, 0x67, 0xe3, 0);
        } else {
            (void)EMIT(g, 0xe3, 0);
        }
        break;
    default: (void)EMIT(g, (uint8_t)(0x70 | cc), 0); break;
    }
    uint32_t at = mark(g);
    filler(g);
    if (bytes == 1 && mark(g) - at > 127) {
        return; /* the displacement stays zero */
    }
    land(g, at, bytes);
}

static void wild_jump(struct gen *g)
{
    /* Nothing is executed there: data pages, unmapped pages, non-canonical addresses. */
    static const uint64_t wild[] = {
        DIFF_DATA_VA,    DIFF_DATA_VA + 0x1234, DIFF_STACK_VA + 8,     0x1000,
        0x4000000000ull, 0x0000800000000000ull, 0x8000000000000000ull, 0xf000000000000000ull};
    uint64_t target = wild[rng_below(&g->r, g->c->compat ? 4 : ARRAY_SIZE(wild))];
    unsigned reg = gen_reg(g);
    switch (rng_below(&g->r, 3)) {
    case 0:
        gen_set_gpr(g, reg, target);
        if (g->c->compat) {
            (void)EMIT(g, 0xff, (uint8_t)((rng_percent(&g->r, 50) ? 0xd0 : 0xe0) | reg));
        } else {
            (void)EMIT(g, (uint8_t)(0x40 | reg >> 3), 0xff,
                       (uint8_t)((rng_percent(&g->r, 50) ? 0xd0 : 0xe0) | (reg & 7)));
        }
        break;
    case 1: {
        uint32_t slot = DIFF_DATA_VA + rng_below(&g->r, 0x3f0) * 8;
        uint8_t jump[7] = {0xff, rng_percent(&g->r, 50) ? 0x14 : 0x24, 0x25};
        memcpy(jump + 3, &slot, 4);
        gen_patch(g, slot, &target, 8);
        (void)gen_emit(g, jump, 7);
        break;
    }
    default:
        if (g->gpr_state[X86_RSP] == GPR_KNOWN && g->c->insns == 0) {
            gen_patch(g, g->c->gpr[X86_RSP], &target, 8);
        }
        (void)EMIT(g, 0xc3);
        break;
    }
}

static void control(struct gen *g)
{
    if (g->gpr_state[X86_RSP] == GPR_LOST) {
        gen_set_gpr(g, X86_RSP, DIFF_STACK_VA + DIFF_PAGE);
    }
    switch (rng_below(&g->r, 14)) {
    case 0: {
        (void)EMIT(g, 0xeb, 0);
        uint32_t at = mark(g);
        filler(g);
        if (mark(g) - at < 128) {
            land(g, at, 1);
        }
        break;
    }
    case 1: {
        (void)EMIT(g, 0xe9, 0, 0, 0, 0);
        uint32_t at = mark(g);
        filler(g);
        land(g, at, 4);
        break;
    }
    case 2:
    case 3: near_call(g); break;
    case 4: indirect(g, 4); break;
    case 5: indirect(g, 2); break;
    case 6: push_ret(g); break;
    case 7:
        if (g->c->compat || rng_percent(&g->r, 60)) {
            far_return(g);
        } else {
            mode_switch(g);
        }
        break;
    case 8:
    case 9: counted_loop(g); break;
    case 10:
        if (rng_percent(&g->r, 40)) {
            wild_jump(g);
            break;
        }
        /* fallthrough */
    default: conditional(g); break;
    }
}

/* push imm32; popf with flags out of `mask`. */
static void popf(struct gen *g, uint32_t mask)
{
    uint32_t flags = (uint32_t)rng_next(&g->r) & mask;
    uint8_t push[5] = {0x68};
    memcpy(push + 1, &flags, 4);
    (void)gen_emit(g, push, 5);
    if (rng_percent(&g->r, 15)) {
        (void)EMIT(g, 0x66, 0x9d);
    } else {
        (void)EMIT(g, 0x9d);
    }
}

static bool stack(struct gen *g)
{
    switch (rng_below(&g->r, 8)) {
    case 0: popf(g, X86_FLAGS_ARITH | X86_DF | X86_IF | X86_IOPL | X86_VIF | X86_VIP | X86_RF); return true;
    case 1: {
        /* ENTER with levels, then LEAVE. */
        gen_set_gpr(g, X86_RBP, DIFF_STACK_VA + DIFF_PAGE + rng_below(&g->r, 100) * 8);
        (void)EMIT(g, 0xc8, (uint8_t)(rng_below(&g->r, 32) * 8), 0, (uint8_t)rng_below(&g->r, 34));
        if (rng_percent(&g->r, 60)) {
            (void)EMIT(g, 0xc9);
        }
        return true;
    }
    default: return false;
    }
}

static void trap(struct gen *g)
{
    switch (rng_below(&g->r, 8)) {
    case 0: popf(g, X86_TF | X86_FLAGS_ARITH); break;
    case 1:
        /* Single step into something. */
        (void)EMIT(g, 0x68, 0x02, 0x03, 0, 0);
        (void)EMIT(g, 0x9d);
        (void)gen_form(g, rng_percent(&g->r, 50) ? CAT_STRING : CAT_MOVE);
        break;
    case 2: popf(g, X86_AC | X86_ID | X86_NT | X86_FLAGS_ARITH); break;
    case 3: (void)EMIT(g, 0xcd, 0x03); break; /* int 3, two bytes */
    case 4: {
        uint8_t vector = (uint8_t)rng_next(&g->r);
        if (vector != 0x80) {
            (void)EMIT(g, 0xcd, vector);
        }
        break;
    }
    case 5: (void)EMIT(g, 0xcd, 0x04); break;
    case 6: (void)EMIT(g, 0xcc); break;
    default:
        (void)gen_form(g, rng_percent(&g->r, 50) ? CAT_MOVE : CAT_SSE);
        break; /* under AC: misaligned or not */
    }
}

/* [disp32] with a ModRM digit. */
static void emit_at(struct gen *g, bool wide, uint8_t digit, uint8_t opcode, uint32_t va)
{
    uint8_t buf[10];
    uint32_t n = 0;
    if (wide && !g->c->compat) {
        buf[n++] = 0x48;
    }
    buf[n++] = 0x0f;
    buf[n++] = opcode;
    if (g->c->compat) {
        buf[n++] = (uint8_t)(digit << 3 | 5);
    } else {
        buf[n++] = (uint8_t)(digit << 3 | 4);
        buf[n++] = 0x25;
    }
    memcpy(buf + n, &va, 4);
    (void)gen_emit(g, buf, n + 4);
}

static void set_mask(struct gen *g)
{
    uint64_t features = diff_xlayout()->features;
    gen_set_gpr(g, X86_RAX, rng_percent(&g->r, 40) ? features : rng_next(&g->r) & features);
    gen_set_gpr(g, X86_RDX, 0);
}

static bool xsave(struct gen *g)
{
    static const uint8_t zero[16] = {0};
    uint32_t area = DIFF_DATA_VA + rng_below(&g->r, 160) * 64;
    if (rng_percent(&g->r, 5)) {
        area += 8; /* #GP */
    }
    bool wide = rng_percent(&g->r, 50);
    switch (rng_below(&g->r, 8)) {
    case 0: /* FXSAVE, and perhaps back */
        emit_at(g, wide, 0, 0xae, area);
        (void)gen_form(g, rng_percent(&g->r, 50) ? CAT_SSE : CAT_X87);
        emit_at(g, wide, 1, 0xae, area);
        return true;
    case 1: { /* LDMXCSR and STMXCSR */
        uint32_t mxcsr = rng_below(&g->r, 65536) | (rng_percent(&g->r, 10) ? 0x10000 : 0);
        gen_patch(g, area, &mxcsr, 4);
        emit_at(g, false, 2, 0xae, area);
        (void)gen_form(g, CAT_SSE);
        emit_at(g, false, 3, 0xae, area + 4);
        return true;
    }
    case 2: return false;
    default: break;
    }
    for (unsigned i = 0; i < 64; i += 16) {
        gen_patch(g, area + DIFF_XS_BV + i, zero, 16); /* a valid header */
    }
    set_mask(g);
    bool compact = rng_percent(&g->r, 25);
    emit_at(g, wide, 4, compact ? 0xc7 : 0xae, area);
    static const enum diff_cat spoil[] = {CAT_SSE, CAT_AVX, CAT_X87, CAT_AVX512, CAT_MASK};
    for (uint32_t n = rng_below(&g->r, 4); n > 0; n--) {
        (void)gen_form(g, spoil[rng_below(&g->r, ARRAY_SIZE(spoil))]);
    }
    set_mask(g);
    if (rng_percent(&g->r, 70)) {
        emit_at(g, wide, 5, 0xae, area);
    }
    return true;
}

/* Bytes that the decoder does not know, LOCK where it must not be, instructions that are too long. */
static bool undefined(struct gen *g)
{
    struct rng *r = &g->r;
    uint8_t buf[24];
    for (unsigned i = 0; i < sizeof(buf); i += 8) {
        uint64_t v = rng_next(r);
        memcpy(buf + i, &v, 8);
    }
    uint32_t kind = rng_below(r, 8);
    switch (kind) {
    case 0: /* too long: 15 prefixes and more */
        memset(buf, 0x66, sizeof(buf));
        for (unsigned i = 0; i < 12; i++) {
            buf[i] = rng_percent(r, 50) ? 0x66 : 0x2e;
        }
        buf[12 + rng_below(r, 5)] = 0x90;
        return gen_emit(g, buf, 18);
    case 1: buf[0] = 0xf0; break;
    case 2: buf[0] = 0x0f; break;
    case 3: buf[0] = 0x0f, buf[1] = 0x38; break;
    case 4: buf[0] = 0xc4, buf[1] = (uint8_t)((buf[1] & 0xe0) | (1 + rng_below(r, 3))); break;
    case 5: buf[0] = 0xc5; break;
    case 6: buf[0] = 0x62, buf[1] = (uint8_t)((buf[1] & 0xf0) | (1 + rng_below(r, 3))), buf[2] |= 4; break;
    default: return false;
    }
    ZydisDecodedInstruction d;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(g->decoder, buf, 15, &d, ops))) {
        return forms_classify(&d) != CAT_COUNT && gen_emit(g, buf, d.length);
    }
    return gen_emit(g, buf, 15);
}

static bool string(struct gen *g)
{
    if (rng_percent(&g->r, 15)) {
        return rng_percent(&g->r, 50) ? EMIT(g, 0xfd) : EMIT(g, 0xfc); /* STD, CLD */
    }
    return false;
}

/* Room for the longest piece: what was begun must be completed. */
static bool has_room(const struct gen *g)
{
    const struct diff_case *c = g->c;
    uint32_t bytes = c->code_length + PIECE_BYTES;
    return bytes <= DIFF_CODE_MAX && c->code_offset + bytes <= DIFF_CODE_BYTES &&
           c->insns + PIECE_INSNS <= DIFF_INSNS_MAX;
}

bool gen_special(struct gen *g, enum diff_cat category)
{
    if (!has_room(g)) {
        return false;
    }
    switch (category) {
    case CAT_CONTROL: control(g); return true;
    case CAT_STACK: return stack(g);
    case CAT_TRAP: trap(g); return true;
    case CAT_XSAVE: return xsave(g);
    case CAT_UNDEFINED: return undefined(g);
    case CAT_STRING: return string(g);
    default: return false;
    }
}
