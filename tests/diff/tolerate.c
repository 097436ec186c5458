/*
 * What the binary translator may do otherwise than the processor, item for item as docs/caveats-engine.md
 * lists it. Each is bound to the instruction that it concerns and to the values that it may have.
 *
 * Neighbours: compare.c, which calls this where results differ.
 */
#include <Zydis/Zydis.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/forms.h"

#define FSW_TOP 0x3800u
#define NO_STORE                                                                                             \
    0x19u /* invalid operation, overflow, underflow: unmasked, they keep the result from being stored */
#define CANONICAL_END (1ull << 47)
#define PAGE_OF(va)   ((va) & ~(uint64_t)(DIFF_PAGE - 1))

bool diff_memory_fault(const struct diff_result *r)
{
    return r->vector != X86_BP && r->vector != X86_DB && r->vector != X86_UD;
}

static bool decode(const struct diff_case *c, uint64_t offset, ZydisDecodedInstruction *z,
                   ZydisDecodedOperand *ops)
{
    if (offset >= c->code_length) {
        return false;
    }
    ZydisDecoder decoder;
    forms_decoder(forms_mode_of(c), &decoder);
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, c->code + offset, c->code_length - offset, z, ops));
}

static bool saves_x87_pointers(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64: return true;
    default: return false;
    }
}

/* Bytes of an operand that processors access in several steps, in an order of their own; 0: in one. */
static uint32_t stepwise_bytes(const ZydisDecodedInstruction *z)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_FLD:
    case ZYDIS_MNEMONIC_FSTP:
    case ZYDIS_MNEMONIC_FBLD:
    case ZYDIS_MNEMONIC_FBSTP: return 10;
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: return 32;
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FNSTENV: return 28;
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FNSAVE: return 108;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: return 512;
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64: return DIFF_XSAVE_BYTES;
    default: return z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? 16 : 0;
    }
}

/* Which byte's fault is reported, and what was stored before it. */
static void stepwise_fault(const struct diff_result *a, struct diff_result *b, uint32_t bytes)
{
    uint64_t distance = a->cr2 > b->cr2 ? a->cr2 - b->cr2 : b->cr2 - a->cr2;
    bool near = a->vector == X86_PF_EXC && b->vector == X86_PF_EXC && distance < bytes;
    bool edge = a->vector == X86_PF_EXC && (b->vector == X86_GP || b->vector == X86_SS_EXC) &&
                a->cr2 < CANONICAL_END && CANONICAL_END - a->cr2 < bytes;
    if (!near && !edge) {
        return;
    }
    b->vector = a->vector;
    b->error = a->error;
    b->cr2 = a->cr2;
    uint64_t end = PAGE_OF(a->cr2);
    for (uint64_t va = end - MIN(bytes, end); va < end; va++) {
        uint32_t at = diff_mem_offset(va);
        if (at != UINT32_MAX) {
            b->mem[at] = a->mem[at];
        }
    }
}

/* A far CALL that faults, for its stack or its selector: whether the return address was stored already. */
static void far_call_fault(const struct diff_case *c, const struct diff_result *a, struct diff_result *b)
{
    uint64_t rsp = b->gpr[X86_RSP];
    for (unsigned k = 1; k <= 16; k++) {
        uint64_t va = c->code16 ? DIFF_STACK_VA + ((rsp - k) & UINT16_MAX) : rsp - k;
        uint32_t at = diff_mem_offset(va);
        if (at != UINT32_MAX) {
            b->mem[at] = a->mem[at];
        }
    }
}

static bool stores_mmx(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    if (z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) {
        return true;
    }
    return z->operand_count_visible == 2 && ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
           ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && ops[1].reg.value >= ZYDIS_REGISTER_MM0 &&
           ops[1].reg.value <= ZYDIS_REGISTER_MM7;
}

/* The switch of the x87 unit to MMX (top of stack 0, all registers valid) made or not: b as if it had been
 * made. */
static void switch_to_mmx(const struct diff_result *a, struct diff_result *b)
{
    uint16_t fsw_a, fsw;
    memcpy(&fsw_a, a->xsave + DIFF_XS_FSW, 2);
    memcpy(&fsw, b->xsave + DIFF_XS_FSW, 2);
    if (!(a->xsave[DIFF_XS_BV] & 1) || (fsw_a & FSW_TOP)) {
        return;
    }
    if (!(b->xsave[DIFF_XS_BV] & 1)) { /* initial */
        static const uint8_t fcw[2] = {0x7f, 0x03};
        memset(b->xsave, 0, DIFF_XS_MXCSR);
        memset(b->xsave + DIFF_XS_ST, 0, 128);
        memcpy(b->xsave + DIFF_XS_FCW, fcw, 2);
        b->xsave[DIFF_XS_BV] |= 1;
        fsw = 0;
    }
    uint8_t st[128];
    unsigned top = (fsw & FSW_TOP) >> 11;
    for (unsigned i = 0; i < 8; i++) {
        memcpy(st + (top + i) % 8 * 16, b->xsave + DIFF_XS_ST + i * 16, 16);
    }
    memcpy(b->xsave + DIFF_XS_ST, st, sizeof(st));
    fsw = (uint16_t)(fsw & ~FSW_TOP);
    memcpy(b->xsave + DIFF_XS_FSW, &fsw, 2);
    b->xsave[DIFF_XS_FTW] |= a->xsave[DIFF_XS_FTW];
}

static bool stores_x87(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_FST:
    case ZYDIS_MNEMONIC_FSTP:
    case ZYDIS_MNEMONIC_FIST:
    case ZYDIS_MNEMONIC_FISTP:
    case ZYDIS_MNEMONIC_FISTTP:
    case ZYDIS_MNEMONIC_FBSTP: return true;
    default: return false;
    }
}

static void at_a_fault(const struct diff_case *c, const struct diff_result *a, struct diff_result *b)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (!diff_memory_fault(b) || !decode(c, b->rip - DIFF_CODE_VA - c->code_offset, &z, ops)) {
        return;
    }
    uint16_t fcw = 0x37f;
    if (b->xsave[DIFF_XS_BV] & 1) {
        memcpy(&fcw, b->xsave + DIFF_XS_FCW, 2);
    }
    if (stores_x87(z.mnemonic) && (~fcw & NO_STORE) && (a->rip != b->rip || a->vector == X86_MF)) {
        *b = *a; /* the processor saw that there is nothing to store, and did not touch memory */
        return;
    }
    if (z.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH && a->rip == b->rip && a->vector == X86_XM) {
        *b = *a; /* the conversion's own exception comes before the store's fault */
        return;
    }
    if (a->rip != b->rip || !diff_memory_fault(a)) {
        return;
    }
    if (stepwise_bytes(&z)) {
        stepwise_fault(a, b, stepwise_bytes(&z));
    }
    if (z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && z.avx.mask.reg != ZYDIS_REGISTER_K0 &&
        (ops[0].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        a->vector == X86_PF_EXC && b->vector == X86_PF_EXC && PAGE_OF(a->cr2) == PAGE_OF(b->cr2)) {
        b->cr2 = a->cr2; /* which of its bytes */
    }
    if (z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR && z.mnemonic == ZYDIS_MNEMONIC_CALL) {
        far_call_fault(c, a, b);
    }
    if (z.mnemonic == ZYDIS_MNEMONIC_POPA ||
        z.mnemonic == ZYDIS_MNEMONIC_POPAD) { /* some registers are loaded already */
        memcpy(b->gpr, a->gpr, sizeof(b->gpr));
    }
    if ((z.mnemonic == ZYDIS_MNEMONIC_XRSTOR || z.mnemonic == ZYDIS_MNEMONIC_XRSTOR64) &&
        a->vector == X86_GP && b->vector == X86_GP) {
        memcpy(b->xsave, a->xsave, sizeof(b->xsave)); /* some components are loaded already */
    }
    if (stores_mmx(&z, ops)) {
        switch_to_mmx(a, b);
    }
    if (z.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH) { /* what the conversion raised, before the store faulted */
        b->xsave[DIFF_XS_MXCSR] |= a->xsave[DIFF_XS_MXCSR] & 0x3f;
    }
}

/* The saved x87 pointers, in memory and in what was loaded from there. */
static void x87_pointers(const struct diff_case *c, const struct diff_result *a, struct diff_result *b)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    bool saved = false, loaded = false, restored = false, seen = false;
    for (uint32_t i = 0; i < c->insns; i++) {
        if (c->insn[i].offset < c->entry || !decode(c, c->insn[i].offset, &z, ops)) {
            continue;
        }
        for (unsigned k = 0; saved && k < z.operand_count; k++) {
            loaded |=
                ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && (ops[k].actions & ZYDIS_OPERAND_ACTION_MASK_READ);
        }
        restored |= saved && (z.mnemonic == ZYDIS_MNEMONIC_XRSTOR || z.mnemonic == ZYDIS_MNEMONIC_XRSTOR64);
        saved |= saves_x87_pointers(z.mnemonic);
    }
    for (uint32_t i = 0; saved && i < DIFF_MEM_BYTES; i++) {
        if (a->mem[i] != b->mem[i] && b->mem[i] == 0) {
            b->mem[i] = a->mem[i];
            seen = true;
        }
    }
    if (seen && restored) {
        *b = *a; /* as the header of another area they may make XRSTOR fault */
    } else if (seen && loaded && a->vector == b->vector && a->rip == b->rip) {
        uint64_t cr2 = b->cr2, error = b->error;
        *b = *a;
        b->cr2 = cr2;
        b->error = error;
    }
}

bool diff_tells_xinuse(const struct diff_case *c)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    for (uint32_t i = 0; i < c->insns; i++) {
        if (decode(c, c->insn[i].offset, &z, ops) && stepwise_bytes(&z) == DIFF_XSAVE_BYTES) {
            return true;
        }
    }
    return false;
}

void diff_tolerate_bt(const struct diff_case *c, const struct diff_result *a, struct diff_result *b)
{
    if (a->outcome != DIFF_EXCEPTION || b->outcome != DIFF_EXCEPTION) {
        return;
    }
    at_a_fault(c, a, b);
    x87_pointers(c, a, b);
}
