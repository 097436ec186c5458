/*
 * Random forms: fills the open fields of an encoding with random bits, lets Zydis say which registers and
 * which memory it uses, and steers the memory operands into the pages of the case by giving base and index
 * registers the fitting values.
 */
#include "tests/diff/gen.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/gen_int.h"

struct generator {
    struct forms *forms[FORMS_MODES];
    ZydisDecoder decoder[FORMS_MODES];
};

#define ATTEMPTS 40

/* --- appending --- */

uint64_t gen_here(const struct gen *g)
{
    return DIFF_CODE_VA + g->c->code_offset + g->c->code_length;
}

unsigned gen_reg(struct gen *g)
{
    for (;;) {
        unsigned reg = rng_below(&g->r, g->c->compat ? 8 : 16);
        if (reg != X86_RSP) {
            return reg;
        }
    }
}

static int gpr_id(const struct gen *g, ZydisRegister reg)
{
    ZydisRegister wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return wide >= ZYDIS_REGISTER_RAX && wide <= ZYDIS_REGISTER_R15 ? (int)(wide - ZYDIS_REGISTER_RAX) : -1;
}

static int vector_id(ZydisRegister reg)
{
    ZydisRegister wide = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return wide >= ZYDIS_REGISTER_ZMM0 && wide <= ZYDIS_REGISTER_ZMM31 ? (int)(wide - ZYDIS_REGISTER_ZMM0)
                                                                       : -1;
}

static void note_writes(struct gen *g, const ZydisDecodedInstruction *d, const ZydisDecodedOperand *ops)
{
    for (unsigned i = 0; i < d->operand_count; i++) {
        if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER ||
            !(ops[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            continue;
        }
        int id = gpr_id(g, ops[i].reg.value);
        if (id >= 0 && id != X86_RSP) {
            g->gpr_state[id] = GPR_LOST;
        } else if (id == X86_RSP && ops[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
            g->gpr_state[id] = GPR_LOST;
        }
        id = vector_id(ops[i].reg.value);
        if (id >= 0) {
            g->vector_lost |= BIT(id);
        }
    }
}

bool gen_emit(struct gen *g, const uint8_t *bytes, uint32_t length)
{
    struct diff_case *c = g->c;
    if (c->code_length + length > DIFF_CODE_MAX || c->insns == DIFF_INSNS_MAX ||
        c->code_offset + c->code_length + length > DIFF_CODE_BYTES) {
        return false;
    }
    memcpy(c->code + c->code_length, bytes, length);
    c->insn[c->insns++] = (struct diff_insn){(uint16_t)c->code_length, (uint16_t)length};
    c->code_length += length;
    ZydisDecodedInstruction d;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(g->decoder, bytes, length, &d, ops))) {
        note_writes(g, &d, ops);
    }
    return true;
}

void gen_set_gpr(struct gen *g, unsigned reg, uint64_t value)
{
    if (g->c->compat) {
        value &= 0xffffffff;
    }
    if (g->gpr_state[reg] == GPR_FREE) {
        g->c->gpr[reg] = value;
    } else if (g->gpr_state[reg] == GPR_LOST || g->gpr_value[reg] != value) {
        uint8_t buf[10] = {(uint8_t)(0x48 | reg >> 3), (uint8_t)(0xb8 | (reg & 7))};
        memcpy(buf + 2, &value, 8);
        bool emitted;
        if (g->c->code16) {
            buf[0] = 0x66;
            emitted = gen_emit(g, buf, 6);
        } else if (g->c->compat) {
            emitted = gen_emit(g, buf + 1, 5);
        } else if (value >> 32 == 0) {
            buf[0] = (uint8_t)(0x40 | reg >> 3);
            emitted = gen_emit(g, buf, 6);
        } else {
            emitted = gen_emit(g, buf, 10);
        }
        if (!emitted) {
            return;
        }
    }
    g->gpr_state[reg] = GPR_KNOWN;
    g->gpr_value[reg] = value;
}

void gen_patch(struct gen *g, uint64_t va, const void *bytes, uint32_t length)
{
    struct diff_case *c = g->c;
    struct diff_patch *p = &c->patch[c->patches];
    if (c->patches == DIFF_PATCHES_MAX || length > sizeof(p->bytes) || va > UINT32_MAX) {
        return;
    }
    p->va = (uint32_t)va;
    p->length = (uint8_t)length;
    memcpy(p->bytes, bytes, length);
    c->patches++;
}

/* --- memory operands --- */

uint64_t gen_target(struct gen *g, uint32_t size)
{
    struct rng *r = &g->r;
    const uint64_t ro_end = DIFF_RO_VA + DIFF_RO_PAGES * DIFF_PAGE;
    if (size == 0 || size > 512) {
        size = 512;
    }
    if (rng_percent(r, g->fault_percent)) {
        uint64_t shift = 1 + rng_below(r, size);
        switch (rng_below(r, 8)) {
        case 0: return DIFF_RO_VA - shift;                          /* into the read-only page */
        case 1: return DIFF_RO_VA + rng_below(r, DIFF_PAGE - size); /* in it */
        case 2: return ro_end - shift;                              /* out of it */
        case 3: return DIFF_DATA_VA - shift;                        /* into the first page from below */
        case 4: return DIFF_STACK_TOP - shift;
        case 5:
            return g->c->compat ? rng_next(r) & 0xffffffff
                                : 0x0000800000000000ull - shift; /* the canonical edge */
        case 6: return rng_next(r) & ~7ull;
        default: return DIFF_CODE_VA + rng_below(r, DIFF_CODE_BYTES - size);
        }
    }
    uint32_t room = DIFF_DATA_PAGES * DIFF_PAGE - size;
    uint32_t offset = rng_below(r, room + 1);
    switch (rng_below(r, 8)) {
    case 0: /* anywhere */ break;
    case 1: /* over a page boundary */
        offset = DIFF_PAGE * (1 + rng_below(r, DIFF_DATA_PAGES - 1)) - rng_below(r, size + 1);
        break;
    case 2: /* over a cache line */ offset = (offset & ~63u) + 64 - rng_below(r, size + 1); break;
    case 3: return DIFF_STACK_VA + (rng_below(r, DIFF_STACK_PAGES * DIFF_PAGE - size) & ~63u);
    default: /* aligned */
        if ((size & (size - 1)) == 0) {
            offset &= ~(size - 1);
        } else {
            offset &= ~63u;
        }
        break;
    }
    return DIFF_DATA_VA + MIN(offset, room);
}

/* Bits of each element of a VSIB index. */
static unsigned vsib_bits(ZydisMnemonic m)
{
    const char *name = ZydisMnemonicGetString(m);
    const char *at = strstr(name, "gather");
    if (!at) {
        at = strstr(name, "scatter");
        at = at ? at + 1 : NULL;
    }
    return at && at[6] == 'q' ? 64 : 32;
}

static void set_vector_index(struct gen *g, unsigned id, unsigned bits)
{
    if (g->vector_lost & BIT(id)) {
        return;
    }
    const struct diff_xlayout *l = diff_xlayout();
    uint8_t *x = g->c->xsave;
    for (unsigned i = 0; i < 64; i += bits / 8) {
        uint64_t v = (uint64_t)rng_range(&g->r, -300, 300);
        uint8_t *at = i < 16 ? x + DIFF_XS_XMM + id * 16 + i : x + l->ymm + id * 16 + i - 16;
        if (i >= 32) {
            at = x + l->zmm_hi256 + id * 32 + i - 32;
        }
        if (id >= 16) {
            at = x + l->hi16_zmm + (id - 16) * 64 + i;
        }
        if (i < 16 || id >= 16 || (i < 32 ? l->ymm : l->zmm_hi256)) {
            gen_put(at, v, bits / 8);
        }
    }
    g->vector_lost |= BIT(id);
}

/* Gives base and index of a memory operand the values that make it access `target`. When the address is a
 * displacement alone, returns true, with what it must be in *ret_disp. */
static bool steer(struct gen *g, const ZydisDecodedInstruction *d, const ZydisDecodedOperand *op,
                  uint64_t target, uint64_t *ret_disp)
{
    struct rng *r = &g->r;
    const ZydisDecodedOperandMem *m = &op->mem;
    if (g->c->code16) {
        target -= m->segment == ZYDIS_REGISTER_SS   ? DIFF_STACK_VA
                  : m->segment == ZYDIS_REGISTER_CS ? DIFF_CODE_VA
                                                    : DIFF_DATA_VA;
        target = target > UINT16_MAX ? rng_next(r) & 0x1fff : target;
    }
    if (m->segment == ZYDIS_REGISTER_FS) {
        target -= g->c->fs_base;
    } else if (m->segment == ZYDIS_REGISTER_GS) {
        target -= g->c->gs_base;
    }
    uint64_t scale = m->scale ? m->scale : 1;
    uint64_t disp = m->disp.has_displacement ? (uint64_t)m->disp.value : 0;
    int base = m->base == ZYDIS_REGISTER_NONE ? -1 : gpr_id(g, m->base);
    int index = -1;
    if (m->index != ZYDIS_REGISTER_NONE) {
        if (m->type == ZYDIS_MEMOP_TYPE_VSIB) {
            int id = vector_id(m->index);
            if (id >= 0) {
                set_vector_index(g, (unsigned)id, vsib_bits(d->mnemonic));
            }
        } else if (ZydisRegisterGetClass(m->index) != ZYDIS_REGCLASS_GPR8) {
            index = gpr_id(g, m->index);
        }
    }
    uint64_t noise = d->address_width == 32 && !g->c->compat ? rng_next(r) << 32 : 0;
    uint64_t offset_mask = d->address_width == 64 ? UINT64_MAX : (1ull << d->address_width) - 1;
    if (d->address_width == 16) {
        noise = rng_next(r) & 0xffff0000;
    }
    if (index >= 0 && index == base) {
        uint64_t v = (target - disp) / (1 + scale);
        gen_set_gpr(g, (unsigned)base, (v & offset_mask) | noise);
        return false;
    }
    uint64_t index_value = 0;
    if (index >= 0) {
        if (g->gpr_state[index] == GPR_KNOWN) {
            index_value = g->gpr_value[index];
        } else {
            bool small = base < 0 || rng_percent(r, 60);
            index_value = small ? (uint64_t)rng_range(r, -64, 64) : rng_next(r);
            gen_set_gpr(g, (unsigned)index, index_value);
        }
    }
    uint64_t rest = target - index_value * scale;
    if (base >= 0) {
        uint64_t v = rest - disp;
        gen_set_gpr(g, (unsigned)base, (v & offset_mask) | noise);
        return false;
    }
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
        /* Relative to the end of the instruction, which the caller knows. */
        *ret_disp = rest;
        return true;
    }
    *ret_disp = rest;
    return m->base == ZYDIS_REGISTER_NONE;
}

/* --- forms --- */

static uint8_t random_modrm(struct gen *g, const struct form *f, uint8_t *sib, bool *ret_sib)
{
    struct rng *r = &g->r;
    uint8_t reg = f->reg == FORM_ANY ? (uint8_t)rng_below(r, 8) : f->reg;
    uint8_t rm = f->rm == FORM_ANY ? (uint8_t)rng_below(r, 8) : f->rm;
    uint8_t mod = f->modrm == FORM_REG ? 3 : (uint8_t)rng_below(r, 3);
    if (f->category == CAT_GATHER && mod != 3) {
        rm = 4;
    }
    *sib = (uint8_t)rng_next(r);
    *ret_sib = mod != 3 && rm == 4;
    return (uint8_t)(mod << 6 | reg << 3 | rm);
}

static uint32_t add_prefixes(struct gen *g, const struct form *f, uint8_t *buf)
{
    static const uint8_t odd[] = {0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e,
                                  0x26, 0x64, 0x65, 0x48, 0x41, 0x4f, 0x40};
    struct rng *r = &g->r;
    uint32_t n = 0;
    if (g->odd_prefixes) {
        uint32_t count = rng_percent(r, 10) ? 8 + rng_below(r, 7) : 1 + rng_below(r, 4);
        for (uint32_t i = 0; i < count; i++) {
            uint8_t byte = odd[rng_below(r, ARRAY_SIZE(odd))];
            if (!g->c->compat || (byte & 0xf0) != 0x40) {
                buf[n++] = byte;
            }
        }
    }
    bool memory = f->modrm == FORM_MEM || f->category == CAT_STRING;
    if (memory && rng_percent(r, 10)) {
        static const uint8_t segments[] = {0x64, 0x65, 0x64, 0x65, 0x64, 0x65, 0x2e, 0x36, 0x3e, 0x26};
        buf[n++] = segments[rng_below(r, ARRAY_SIZE(segments))];
    }
    if (rng_percent(r, memory ? 7 : 1) && !(g->c->compat && !g->c->code16 && memory)) {
        buf[n++] = 0x67;
    }
    if (g->lock) {
        buf[n++] = 0xf0;
    }
    return n;
}

/* Writes an encoding of f with random operands and, behind it, random bytes for immediates. */
static void random_encoding(struct gen *g, const struct form *f, uint8_t buf[48])
{
    struct rng *r = &g->r;
    for (unsigned i = 0; i < 48; i += 8) {
        gen_put(buf + i, rng_next(r), 8);
    }
    uint8_t sib;
    bool has_sib;
    uint8_t modrm = random_modrm(g, f, &sib, &has_sib);
    uint8_t x = g->c->compat ? 0 : (uint8_t)rng_next(r); /* bits for R, X, B, R', V' */
    uint8_t vvvv = (uint8_t)rng_below(r, 16);
    if (g->c->compat) {
        vvvv |= 8;
    }
    if (rng_percent(r, 25)) {
        vvvv = 15; /* what instructions without this operand demand */
        x &= (uint8_t)~0x10;
    }
    uint8_t *p = buf + add_prefixes(g, f, buf);
    switch (f->encoding) {
    case FORM_LEGACY:
        if (f->prefix & FORM_PREFIX_66) {
            *p++ = 0x66;
        }
        if (f->prefix & FORM_PREFIX_F3) {
            *p++ = 0xf3;
        }
        if (f->prefix & FORM_PREFIX_F2) {
            *p++ = 0xf2;
        }
        if (!g->c->compat && (f->w || rng_percent(r, 50))) {
            *p++ = (uint8_t)(0x40 | f->w << 3 | (x & 7));
        }
        if (f->map) {
            *p++ = 0x0f;
        }
        if (f->map > 1) {
            *p++ = f->map == 2 ? 0x38 : 0x3a;
        }
        break;
    case FORM_VEX:
        if (f->map == 1 && !f->w && !(x & 3) && rng_percent(r, 70)) {
            *p++ = 0xc5;
            *p++ = (uint8_t)((~x & 4) << 5 | vvvv << 3 | f->l << 2 | f->prefix);
        } else {
            *p++ = 0xc4;
            *p++ = (uint8_t)((~x & 7) << 5 | f->map);
            *p++ = (uint8_t)(f->w << 7 | vvvv << 3 | f->l << 2 | f->prefix);
        }
        break;
    case FORM_EVEX:
        *p++ = 0x62;
        *p++ = (uint8_t)((~x & 7) << 5 | (~x & 8) << 1 | f->map);
        *p++ = (uint8_t)(f->w << 7 | vvvv << 3 | 4 | f->prefix);
        *p++ = (uint8_t)((rng_percent(r, 30) ? 0x80 : 0) | f->l << 5 | f->b << 4 | (~x & 0x10) >> 1 |
                         (rng_percent(r, 35) ? 0 : rng_below(r, 8)));
        break;
    }
    *p++ = f->opcode;
    if (f->modrm != FORM_NO_MODRM) {
        *p++ = modrm;
        if (has_sib) {
            *p++ = sib;
        }
    }
}

static bool is_bit_test(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTC || m == ZYDIS_MNEMONIC_BTR ||
           m == ZYDIS_MNEMONIC_BTS;
}

static uint64_t random_selector(struct gen *g)
{
    static const uint16_t selectors[] = {0,    1,    3,    0x08, 0x10,   0x18, 0x20, 0x23, 0x28,
                                         0x2b, 0x2b, 0x2b, 0x30, 0x33,   0x33, 0x38, 0x40, 0x43,
                                         0x50, 0x63, 0x73, 0x80, 0xfffb, 0x07, 0x2c};
    if (rng_percent(&g->r, 30)) {
        return DIFF_LDT_SEL(rng_below(&g->r, LDT_COUNT + 1));
    }
    return selectors[rng_below(&g->r, ARRAY_SIZE(selectors))];
}

/* Registers that decide what an instruction does. */
static void prepare(struct gen *g, const ZydisDecodedInstruction *d, const ZydisDecodedOperand *ops)
{
    struct rng *r = &g->r;
    if (d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
        uint64_t count = rng_below(r, rng_percent(r, 5) ? 5000 : 40);
        if (d->address_width == 32 && !g->c->compat) {
            count |= rng_next(r) << 32;
        }
        gen_set_gpr(g, X86_RCX, count);
    }
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
        /* Most quotients fit. */
        if (rng_percent(r, 80)) {
            uint64_t low = d->operand_width == 8 ? 0x7f : d->operand_width == 16 ? 0x7fff : 0x7fffffff;
            gen_set_gpr(g, X86_RDX, 0);
            gen_set_gpr(g, X86_RAX, rng_next(r) & low);
        }
        break;
    case ZYDIS_MNEMONIC_XGETBV:
        /* XCR0 itself can be compared where the host has no state that no guest gets (AMX, PKRU). */
        gen_set_gpr(g, X86_RCX, diff_xlayout()->same_xcr0 && rng_percent(r, 80) ? 0 : 2 + rng_below(r, 1000));
        break;
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_RDMSR: gen_set_gpr(g, X86_RCX, rng_below(r, 0x20)); break;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_MOV: {
        const ZydisDecodedOperand *source =
            &ops[d->mnemonic == ZYDIS_MNEMONIC_VERR || d->mnemonic == ZYDIS_MNEMONIC_VERW ? 0 : 1];
        bool to_sreg = ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                       ZydisRegisterGetClass(ops[0].reg.value) == ZYDIS_REGCLASS_SEGMENT;
        int id = source->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_id(g, source->reg.value) : -1;
        if (id >= 0 && (d->mnemonic != ZYDIS_MNEMONIC_MOV || to_sreg) && rng_percent(r, 85)) {
            gen_set_gpr(g, (unsigned)id, random_selector(g) | (rng_next(r) << 16));
        }
        break;
    }
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE: {
        int id = gpr_id(g, ops[0].reg.value);
        if (id >= 0 && rng_percent(r, 75)) {
            gen_set_gpr(g, (unsigned)id, (uint64_t)((int64_t)(rng_next(r) << 16) >> 16));
        }
        break;
    }
    default: break;
    }
    if (is_bit_test(d->mnemonic) && ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER && rng_percent(r, 85)) {
        int id = gpr_id(g, ops[1].reg.value);
        if (id >= 0) {
            gen_set_gpr(g, (unsigned)id, (uint64_t)rng_range(r, -20000, 20000));
        }
    }
}

/* Half of the compare-and-exchanges find what they expect. */
static void help_cmpxchg(struct gen *g, const ZydisDecodedInstruction *d)
{
    bool pair = d->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B || d->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
    if ((!pair && d->mnemonic != ZYDIS_MNEMONIC_CMPXCHG) || rng_percent(&g->r, 50) ||
        g->gpr_state[X86_RAX] == GPR_LOST || (pair && g->gpr_state[X86_RDX] == GPR_LOST)) {
        return;
    }
    uint8_t bytes[16];
    unsigned half = d->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;
    memcpy(bytes, &g->c->gpr[X86_RAX], 8);
    memcpy(bytes + half, &g->c->gpr[X86_RDX], 8);
    if (g->gpr_state[X86_RAX] == GPR_KNOWN) {
        memcpy(bytes, &g->gpr_value[X86_RAX], half);
    }
    gen_patch(g, g->target, bytes, pair ? half * 2 : 8);
}

static bool emit_steered(struct gen *g, uint8_t *bytes, const ZydisDecodedInstruction *d,
                         const ZydisDecodedOperand *ops)
{
    uint64_t disp = 0;
    bool patch_disp = false, relative = false;
    prepare(g, d, ops);
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *op = &ops[i];
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN) {
            continue;
        }
        bool hidden = op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
        if (hidden && gpr_id(g, op->mem.base) == X86_RSP) {
            /* The stack is where it should be unless code moved it; sometimes that stays so. */
            if (g->gpr_state[X86_RSP] == GPR_LOST && rng_percent(&g->r, 80)) {
                gen_set_gpr(g, X86_RSP, DIFF_STACK_VA + DIFF_PAGE + (rng_below(&g->r, 128) * 8));
            }
            continue;
        }
        uint64_t target = gen_target(g, op->size / 8);
        if (op->size >= 128 && op->size <= 512 && rng_percent(&g->r, 75)) {
            target &= ~(op->size / 8 - 1ull); /* most SSE instructions demand it */
        }
        if (d->meta.category == ZYDIS_CATEGORY_STRINGOP && g->target && rng_percent(&g->r, 40)) {
            target = g->target + (uint64_t)rng_range(&g->r, -40, 40); /* overlapping source and destination */
        }
        if (steer(g, d, op, target, &disp) && !hidden) {
            patch_disp = true;
            relative = op->mem.base != ZYDIS_REGISTER_NONE;
        }
        g->target = target;
    }
    help_cmpxchg(g, d);
    if (patch_disp && d->raw.disp.size == 32 && d->raw.disp.offset) {
        if (relative) {
            disp -= gen_here(g) + d->length;
        }
        memcpy(bytes + d->raw.disp.offset, &disp, 4);
    } else if (patch_disp && d->raw.disp.size == 64) {
        memcpy(bytes + d->raw.disp.offset, &disp, 8);
    } else if (patch_disp && d->raw.disp.size == 16) {
        memcpy(bytes + d->raw.disp.offset, &disp, 2);
    }
    return gen_emit(g, bytes, d->length);
}

bool gen_form(struct gen *g, enum diff_cat category)
{
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        const struct form *f = forms_pick(g->forms, &g->r, category);
        if (!f) {
            return false;
        }
        if (g->want_memory && f->modrm != FORM_MEM && f->category != CAT_STRING) {
            continue;
        }
        uint8_t bytes[48];
        random_encoding(g, f, bytes);
        ZydisDecodedInstruction d;
        ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(g->decoder, bytes, 15, &d, ops))) {
            continue;
        }
        enum diff_cat found = forms_classify(&d);
        if (found == CAT_COUNT || (d.mnemonic != f->mnemonic && !g->odd_prefixes)) {
            continue;
        }
        return emit_steered(g, bytes, &d, ops);
    }
    return false;
}

/* --- cases --- */

static const enum diff_cat mixable[] = {CAT_ALU,  CAT_ALU,   CAT_SHIFT,   CAT_MULDIV, CAT_BITS,
                                        CAT_MOVE, CAT_MOVE,  CAT_STACK,   CAT_STRING, CAT_X87,
                                        CAT_MMX,  CAT_SSE,   CAT_AVX,     CAT_AVX512, CAT_CRYPTO,
                                        CAT_FMA,  CAT_FENCE, CAT_CONTROL, CAT_MASK};

static void append(struct gen *g, enum diff_cat category)
{
    if (category == CAT_MIXED || category == CAT_FAULT || category == CAT_COMPAT || category == CAT_CODE16) {
        category = mixable[rng_below(&g->r, ARRAY_SIZE(mixable))];
    } else if (category == CAT_PREFIX) {
        g->odd_prefixes = true;
        category = mixable[rng_below(&g->r, 9)];
    }
    if (category == CAT_LOCK) {
        static const enum diff_cat lockable[] = {CAT_ALU, CAT_BITS, CAT_MOVE};
        g->lock = true;
        /* The decoder refuses LOCK where the instruction does not take it. */
        if (!gen_form(g, lockable[rng_below(&g->r, 3)])) {
            g->lock = false;
        }
        g->lock = false;
        return;
    }
    if (!gen_special(g, category)) {
        (void)gen_form(g, category);
    }
    g->odd_prefixes = false;
}

static bool has_syscall(const struct diff_case *c)
{
    for (uint32_t i = 0; i + 1 < c->code_length; i++) {
        const uint8_t *p = c->code + i;
        if ((p[0] == 0x0f && (p[1] == 0x05 || p[1] == 0x34)) || (p[0] == 0xcd && p[1] == 0x80)) {
            return true;
        }
    }
    return false;
}

/* Lets the code run off the last page, sometimes in the middle of an instruction. */
static void pad_to_end(struct gen *g)
{
    uint8_t pad[64];
    uint32_t n = DIFF_CODE_BYTES - g->c->code_offset - g->c->code_length;
    if (n > 0 && n <= sizeof(pad)) {
        memset(pad, 0x90, n);
        if (rng_percent(&g->r, 50)) {
            pad[n - 1] = 0xe8; /* CALL without its displacement */
        }
        g->c->open_end = gen_emit(g, pad, n);
    }
}

static void make(struct gen *g, enum diff_cat category)
{
    struct rng *r = &g->r;
    struct diff_case *c = g->c;
    for (unsigned i = 0; i < 16; i++) {
        c->gpr[i] = gen_value(g);
        g->gpr_state[i] = GPR_FREE;
    }
    c->gpr[X86_RSP] = (c->code16 ? 0 : DIFF_STACK_VA) + DIFF_PAGE + rng_below(r, 256) * 8;
    if (rng_percent(r, 5)) {
        c->gpr[X86_RSP] += rng_below(r, 8);
    }
    g->gpr_state[X86_RSP] = GPR_KNOWN;
    g->gpr_value[X86_RSP] = c->gpr[X86_RSP];
    if (c->compat) {
        for (unsigned i = 0; i < 16; i++) {
            c->gpr[i] = i < 8 ? c->gpr[i] & 0xffffffff : 0;
        }
    } else {
        c->fs_base = DIFF_DATA_VA + (rng_next(r) & 0x1fff);
        c->gs_base =
            rng_percent(r, 50) ? DIFF_DATA_VA + (rng_next(r) & 0x1fff) : rng_next(r) & 0x7ffeffffffffull;
    }
    c->rflags = 0x202 | (rng_next(r) & X86_FLAGS_ARITH);
    if (rng_percent(r, category == CAT_STRING ? 30 : 4)) {
        c->rflags |= X86_DF;
    }
    if (rng_percent(r, category == CAT_TRAP ? 30 : 0)) {
        c->rflags |= X86_AC;
    }
    gen_make_xsave(g);
    c->mem_seed = rng_next(r) | 1;
    c->code_offset = rng_percent(r, 10) ? DIFF_PAGE - rng_below(r, 40)
                                        : rng_below(r, DIFF_CODE_BYTES - DIFF_CODE_MAX - 64);
    if (rng_percent(r, 1)) {
        c->open_end = true;
        c->code_offset = DIFF_CODE_BYTES - 1 - rng_below(r, 60);
    }
    uint32_t count = rng_percent(r, 60) ? 1 + rng_below(r, 3) : 1 + rng_below(r, 12);
    for (uint32_t i = 0; i < count; i++) {
        bool last = i + 1 == count;
        g->fault_percent = !last ? 1 : category == CAT_FAULT ? 100 : 8;
        g->want_memory = last && category == CAT_FAULT;
        append(g, category);
    }
    if (c->open_end) {
        pad_to_end(g);
    }
}

void generator_make(struct generator *generator, uint64_t seed, uint64_t index, enum diff_cat category,
                    struct diff_case *c)
{
    if (category == CAT_COUNT) {
        category = (enum diff_cat)(index % CAT_COUNT);
    }
    for (uint64_t attempt = 0;; attempt++) {
        struct gen g = {.c = c};
        memset(c, 0, sizeof(*c));
        c->seed = seed;
        c->index = index;
        c->category = category;
        c->code16 = category == CAT_CODE16;
        c->compat = category == CAT_COMPAT || c->code16;
        g.forms = generator->forms[forms_mode_of(c)];
        g.decoder = &generator->decoder[forms_mode_of(c)];
        rng_init(&g.r, seed + (uint64_t)category * 0x9e3779b97f4a7c15ull, index * 64 + attempt);
        make(&g, category);
        if (c->insns > 0 && !has_syscall(c)) {
            return;
        }
    }
}

struct generator *generator_new(void)
{
    struct generator *generator = calloc(1, sizeof(*generator));
    if (!generator) {
        fprintf(stderr, "diff: out of memory\n");
        exit(1);
    }
    for (unsigned i = 0; i < FORMS_MODES; i++) {
        generator->forms[i] = forms_new((enum forms_mode)i);
        forms_decoder((enum forms_mode)i, &generator->decoder[i]);
    }
    return generator;
}

void generator_free(struct generator *generator)
{
    if (generator) {
        for (unsigned i = 0; i < FORMS_MODES; i++) {
            forms_free(generator->forms[i]);
        }
        free(generator);
    }
}

void generator_list(const struct generator *generator, FILE *out)
{
    for (unsigned i = 0; i < CAT_COUNT; i++) {
        uint32_t mnemonics, narrow_mnemonics;
        uint32_t n = forms_count(generator->forms[0], (enum diff_cat)i, &mnemonics);
        uint32_t narrow = forms_count(generator->forms[1], (enum diff_cat)i, &narrow_mnemonics);
        fprintf(out, "%-11s %5u encodings of %3u instructions; in 32-bit code %5u of %3u\n",
                diff_cat_names[i], n, mnemonics, narrow, narrow_mnemonics);
    }
}
