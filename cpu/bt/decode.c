/*
 * Decoding of guest instructions: Zydis' answer, reduced to what the generator needs.
 *
 * This is also where it is decided what may be copied into translated code at all: the allow list below names
 * the instruction-set extensions whose instructions compute on registers and memory only, and the CPUID bit
 * under which the guest may use them. Everything else is either executed by a function (op_*.c) or raises
 * #UD.
 */
#include <string.h>

#include <Zydis/Zydis.h>

#include "cpu/bt/bt_int.h"

/* Which CPUID word of struct x86_cpuid holds an extension's bit. */
enum cpuid_word { NEVER, ALWAYS, F1C, F1D, F7B, F7C, F7D, E1C, FD1, F71 };

struct extension {
    uint8_t word, bit;
    bool fpu, sse, avx, avx512;
};

static const struct extension extensions[ZYDIS_ISA_EXT_MAX_VALUE + 1] = {
    [ZYDIS_ISA_EXT_BASE] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_LONGMODE] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_PAUSE] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_CET] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_SMAP] = {F7B, 20, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_INVPCID] = {F7B, 10, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_RDTSCP] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_RDPID] = {F7C, 22, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_RDWRFSGS] = {F7B, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_XSAVE] = {F1C, 26, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_XSAVEC] = {FD1, 1, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_XSAVEOPT] = {FD1, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_VTX] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_SVM] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_X87] = {F1D, 0, 1, 0, 0, 0},
    [ZYDIS_ISA_EXT_MMX] = {F1D, 23, 1, 0, 0, 0},
    [ZYDIS_ISA_EXT_SSE] = {F1D, 25, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SSE2] = {F1D, 26, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SSE3] = {F1C, 0, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SSSE3] = {F1C, 9, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SSE4] = {F1C, 19, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SSE4A] = {NEVER, 0, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_AES] = {F1C, 25, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_PCLMULQDQ] = {F1C, 1, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_SHA] = {F7B, 29, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_GFNI] = {F7C, 8, 1, 1, 0, 0},
    [ZYDIS_ISA_EXT_AVX] = {F1C, 28, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_AVXAES] = {F1C, 25, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_AVX2] = {F7B, 5, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_AVX2GATHER] = {F7B, 5, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_FMA] = {F1C, 12, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_F16C] = {F1C, 29, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_VAES] = {F7C, 9, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_VPCLMULQDQ] = {F7C, 10, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_AVX_VNNI] = {F71, 4, 1, 0, 1, 0},
    [ZYDIS_ISA_EXT_AVX512EVEX] = {F7B, 16, 1, 0, 1, 1},
    [ZYDIS_ISA_EXT_AVX512VEX] = {F7B, 16, 1, 0, 1, 1},
    [ZYDIS_ISA_EXT_BMI1] = {F7B, 3, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_BMI2] = {F7B, 8, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_LZCNT] = {E1C, 5, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_MOVBE] = {F1C, 22, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_ADOX_ADCX] = {F7B, 19, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_RDRAND] = {F1C, 30, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_RDSEED] = {F7B, 18, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_CLFSH] = {F1D, 19, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_CLFLUSHOPT] = {F7B, 23, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_CLWB] = {F7B, 24, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_CLDEMOTE] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_PREFETCHWT1] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH] = {ALWAYS, 0, 0, 0, 0, 0},
    [ZYDIS_ISA_EXT_SERIALIZE] = {F7D, 14, 0, 0, 0, 0},
};

/* Whether CPUID shows the guest one bit of one of its words. */
static bool offered(const struct x86_cpuid *c, uint8_t word, uint8_t bit)
{
    switch (word) {
    case ALWAYS: return true;
    case F1C: return c->f1_ecx >> bit & 1;
    case F1D: return c->f1_edx >> bit & 1;
    case F7B: return c->f7_ebx >> bit & 1;
    case F7C: return c->f7_ecx >> bit & 1;
    case F7D: return c->f7_edx >> bit & 1;
    case E1C: return c->fe1_ecx >> bit & 1;
    case FD1: return c->fd1_eax >> bit & 1;
    case F71: return c->f71_eax >> bit & 1;
    default: return false;
    }
}

/* Finer AVX-512 subsets, by Zydis' ISA set, whose CPUID bit is not AVX512F's. */
static bool avx512_offered(const struct x86_cpuid *c, ZydisISASet set)
{
    const char *name = ZydisISASetGetString(set);
    static const struct {
        const char *part;
        uint8_t word, bit;
    } sets[] = {
        {"AVX512BW", F7B, 30},       {"AVX512CD", F7B, 28},      {"AVX512DQ", F7B, 17},
        {"AVX512_VBMI2", F7C, 6},    {"AVX512_VBMI", F7C, 1},    {"AVX512_IFMA", F7B, 21},
        {"AVX512_VNNI", F7C, 11},    {"AVX512_BITALG", F7C, 12}, {"AVX512_VPOPCNTDQ", F7C, 14},
        {"AVX512_GFNI", F7C, 8},     {"AVX512_VAES", F7C, 9},    {"AVX512_VPCLMULQDQ", F7C, 10},
        {"AVX512_BF16", F71, 5},     {"AVX512_FP16", F7D, 23},   {"AVX512_VP2INTERSECT", F7D, 8},
        {"AVX512ER", NEVER, 0},      {"AVX512PF", NEVER, 0},     {"AVX512_4VNNIW", NEVER, 0},
        {"AVX512_4FMAPS", NEVER, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(sets); i++) {
        if (strncmp(name, sets[i].part, strlen(sets[i].part)) == 0) {
            return offered(c, sets[i].word, sets[i].bit);
        }
    }
    return true;
}

/* Guest number of a general-purpose register of any width, or BT_NO_REG. */
static uint8_t gpr_number(ZydisRegister r, uint8_t *ret_size, bool *ret_high)
{
    *ret_high = false;
    if (r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15) {
        *ret_size = 8;
        return (uint8_t)(r - ZYDIS_REGISTER_RAX);
    }
    if (r >= ZYDIS_REGISTER_EAX && r <= ZYDIS_REGISTER_R15D) {
        *ret_size = 4;
        return (uint8_t)(r - ZYDIS_REGISTER_EAX);
    }
    if (r >= ZYDIS_REGISTER_AX && r <= ZYDIS_REGISTER_R15W) {
        *ret_size = 2;
        return (uint8_t)(r - ZYDIS_REGISTER_AX);
    }
    *ret_size = 1;
    if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL) {
        return (uint8_t)(r - ZYDIS_REGISTER_AL);
    }
    if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) {
        *ret_high = true;
        return (uint8_t)(r - ZYDIS_REGISTER_AH);
    }
    if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B) {
        return (uint8_t)(r - ZYDIS_REGISTER_SPL + 4);
    }
    return BT_NO_REG;
}

static enum x86_sreg segment_number(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES: return X86_ES;
    case ZYDIS_REGISTER_CS: return X86_CS;
    case ZYDIS_REGISTER_SS: return X86_SS;
    case ZYDIS_REGISTER_FS: return X86_FS;
    case ZYDIS_REGISTER_GS: return X86_GS;
    default: return X86_DS;
    }
}

static ZydisDecoder decoders[3]; /* 16, 32, 64 */
static pthread_once_t decoders_once = PTHREAD_ONCE_INIT;

static void decoders_init(void)
{
    ZydisDecoderInit(&decoders[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&decoders[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&decoders[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    /* TZCNT and LZCNT are decided by CPUID below; KNC's encodings overlap with AVX-512's. */
    for (unsigned i = 0; i < 3; i++) {
        ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
        ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
        ZydisDecoderEnableMode(&decoders[i], ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_TRUE);
    }
}

static void decode_memory(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o, struct bt_insn *in)
{
    struct bt_op *op = &in->op;
    uint8_t size;
    bool high;
    op->has_mem = true;
    op->seg = (uint8_t)segment_number(o->mem.segment);
    op->scale = o->mem.scale;
    op->base = op->index = BT_NO_REG;
    op->disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;
    if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
        op->rip_relative = true;
    } else if (o->mem.base != ZYDIS_REGISTER_NONE) {
        op->base = gpr_number(o->mem.base, &size, &high);
        op->stack_based = op->seg == X86_SS;
    }
    if (z->raw.sib.offset && z->raw.modrm.mod == 0 && z->raw.sib.base == 5) {
        op->base = BT_NO_REG; /* whatever REX.B says, which the decoder forgets with an address-size prefix */
        op->stack_based = false;
        op->disp = z->raw.disp.value;
    }
    if (o->mem.index != ZYDIS_REGISTER_NONE) {
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
            in->vsib = true;
            unsigned n = (unsigned)o->mem.index;
            op->vindex = (uint8_t)(n >= ZYDIS_REGISTER_ZMM0   ? n - ZYDIS_REGISTER_ZMM0
                                   : n >= ZYDIS_REGISTER_YMM0 ? n - ZYDIS_REGISTER_YMM0
                                                              : n - ZYDIS_REGISTER_XMM0);
        } else {
            op->index = gpr_number(o->mem.index, &size, &high);
        }
    }
    op->access = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? X86_ACCESS_WRITE : X86_ACCESS_READ;
    op->mem_read = (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0 ||
                   (o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) != 0;
    op->mem_size = (uint16_t)(o->size / 8);
    if (in->enc == BT_ENC_EVEX && z->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID && in->evex_b) {
        op->mem_size = (uint16_t)(o->element_size / 8);
    }
    op->elem = (uint8_t)(o->element_size / 8);
}

/* Which masks keep elements of the memory operand from being accessed, and what an element is (SDM vol.
 * 2A, 2.8: the types with "NF" access all of it whatever the mask). */
static void decode_mask(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, struct bt_insn *in)
{
    struct bt_op *op = &in->op;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: op->masked = true; return;
    default: break;
    }
    if (in->enc != BT_ENC_EVEX || !in->evex_aaa || in->vsib) {
        return;
    }
    switch (z->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E7NM:
    case ZYDIS_EXCEPTION_CLASS_E9NF: return;
    default: break;
    }
    op->masked = z->mnemonic != ZYDIS_MNEMONIC_VDBPSADBW && z->mnemonic != ZYDIS_MNEMONIC_VGF2P8AFFINEQB &&
                 z->mnemonic != ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB;
    if (!op->masked) {
        return;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ: op->packed = true; return;
    default: break;
    }
    /* Lanes are counted by the destination; those of a scalar, and of a comparison, by the operand itself. */
    unsigned lanes = op->mem_size / MAX(op->elem, 1);
    unsigned source_lanes = op->vlen / MAX(op->elem, 1);
    bool to_vector = ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                     (ops[0].reg.value < ZYDIS_REGISTER_K0 || ops[0].reg.value > ZYDIS_REGISTER_K7);
    bool broadcast = z->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID;
    if (broadcast) {
        bool converts = z->meta.category == ZYDIS_CATEGORY_CONVERT;
        op->mask_lanes = (uint8_t)(!to_vector ? source_lanes
                                   : converts ? MIN(ops[0].element_count, source_lanes)
                                              : ops[0].element_count);
        return;
    }
    if (to_vector && ops[0].element_count > lanes && lanes > 1) {
        if (op->mem_size * 8u < ops[0].size) {
            op->mask_lanes = (uint8_t)ops[0].element_count; /* VBROADCASTI32X4 and its kin */
        } else {
            /* A narrowing conversion; else the mask is finer than the operand's elements, and all of it is
             * read. */
            op->masked =
                z->meta.category == ZYDIS_CATEGORY_CONVERT && z->mnemonic != ZYDIS_MNEMONIC_VCVTNE2PS2BF16;
        }
    } else if (to_vector && ops[0].element_count < lanes && ops[0].element_count) {
        op->elem = (uint8_t)(op->mem_size / ops[0].element_count);
    }
}

static void decode_prefixes(const ZydisDecodedInstruction *z, struct bt_insn *in)
{
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        switch (z->raw.prefixes[i].value) {
        case 0xf0: in->lock = true; break;
        case 0x66: in->opsz66 = true; break;
        case 0xf2:
            in->mand_f2 = true;
            in->mand_f3 = false;
            break;
        case 0xf3:
            in->mand_f3 = true;
            in->mand_f2 = false;
            break;
        default: break;
        }
    }
    in->op.rep = in->mand_f3 ? 1 : in->mand_f2 ? 2 : 0;
}

static bool is_shift(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: return true;
    default: return false;
    }
}

/* Shifts and rotates leave the flags alone when the count is 0. */
static bool count_may_be_zero(const ZydisDecodedInstruction *z, const struct bt_insn *in)
{
    bool by_one = in->map == 0 && (in->opcode == 0xd0 || in->opcode == 0xd1);
    return is_shift(z->mnemonic) && !by_one &&
           (in->imm_bytes == 0 || (in->op.imm & (in->op.opsize == 8 ? 63 : 31)) == 0);
}

static void decode_encoding(const ZydisDecodedInstruction *z, struct bt_insn *in)
{
    in->has_modrm = (z->attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    in->opcode = z->opcode;
    uint8_t r = 0, x = 0, b = 0;
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        in->enc = BT_ENC_LEGACY;
        in->map = (uint8_t)z->opcode_map; /* default, 0F, 0F38, 0F3A are 0 to 3 */
        if (z->attributes & ZYDIS_ATTRIB_HAS_REX) {
            r = (uint8_t)(z->raw.rex.R << 3);
            b = (uint8_t)(z->raw.rex.B << 3);
            in->rex_w = z->raw.rex.W;
        }
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        in->enc = BT_ENC_VEX;
        in->map = z->raw.vex.m_mmmm;
        in->vex_pp = z->raw.vex.pp;
        in->vex_l = z->raw.vex.L;
        in->rex_w = z->raw.vex.W;
        r = (uint8_t)(!z->raw.vex.R << 3);
        b = (uint8_t)(!z->raw.vex.B << 3);
        in->raw_v = (uint8_t)(~z->raw.vex.vvvv & 15);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        in->enc = BT_ENC_EVEX;
        in->map = z->raw.evex.mmm;
        in->vex_pp = z->raw.evex.pp;
        in->rex_w = z->raw.evex.W;
        in->evex_ll = (uint8_t)(z->raw.evex.L2 << 1 | z->raw.evex.L);
        in->evex_b = z->raw.evex.b;
        in->evex_z = z->raw.evex.z;
        in->evex_aaa = z->raw.evex.aaa;
        r = (uint8_t)(!z->raw.evex.R << 3 | !z->raw.evex.R2 << 4);
        b = (uint8_t)(!z->raw.evex.B << 3);
        x = (uint8_t)(!z->raw.evex.X << 4);
        in->raw_v = (uint8_t)((~z->raw.evex.vvvv & 15) | !z->raw.evex.V2 << 4);
        break;
    default: in->enc = BT_ENC_OTHER; break;
    }
    if (in->has_modrm) {
        in->mod = z->raw.modrm.mod;
        in->op.modrm_reg = z->raw.modrm.reg;
        in->raw_reg = (uint8_t)(z->raw.modrm.reg | r);
        in->raw_rm = (uint8_t)(z->raw.modrm.rm | b | (in->mod == 3 ? x : 0));
    } else {
        in->raw_rm = (uint8_t)((z->opcode & 7) | b);
    }
    for (unsigned i = 0; i < 2; i++) {
        if (z->raw.imm[i].size) {
            if (!in->imm_bytes) {
                in->imm_off = z->raw.imm[i].offset;
            }
            in->imm_bytes = (uint8_t)(in->imm_bytes + z->raw.imm[i].size / 8);
        }
    }
    in->op.imm = z->raw.imm[0].value.u;
    in->imm_signed = z->raw.imm[0].is_signed;
    in->disp_off = z->raw.disp.offset;
    in->disp_bytes = z->raw.disp.size / 8;
    /* EVEX scales displacements; ENTER has two immediates; a shift's count says whether it writes flags. */
    in->plain = (in->enc == BT_ENC_LEGACY || in->enc == BT_ENC_VEX) && !z->raw.imm[1].size &&
                in->disp_bytes <= 4 && !(in->imm_bytes && is_shift(z->mnemonic));
}

static void decode_flags(const ZydisDecodedInstruction *z, struct bt_insn *in)
{
    if (!z->cpu_flags) {
        return;
    }
    const ZydisAccessedFlags *f = z->cpu_flags;
    in->fl_read = f->tested & X86_FLAGS_ARITH;
    in->fl_write = (f->modified | f->set_0 | f->set_1 | f->undefined) & X86_FLAGS_ARITH;
    in->fl_kill = in->fl_write;
    if (count_may_be_zero(z, in)) {
        in->fl_kill = 0;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR: in->fl_kill &= X86_CF | X86_OF; break;
    /* What the manual calls undefined here is in fact left as it was: keep what the processor keeps. */
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: in->fl_kill = X86_CF; break;
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV: in->fl_kill = 0; break;
    default: break;
    }
}

/* Implicit memory operands: the one that a segment prefix applies to is not ES:rDI of a string instruction.
 */
static bool implicit_segment_counts(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
    uint8_t size;
    bool high;
    bool maskmov = z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || z->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
                   z->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
    return maskmov ||
           (o->mem.base != ZYDIS_REGISTER_NONE && gpr_number(o->mem.base, &size, &high) != X86_RDI);
}

static void decode_operands(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops,
                            struct bt_insn *in)
{
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &ops[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64 ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP64 ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP32_32_64 ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP32 ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP16 ||
                o->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_32) {
                decode_memory(z, o, in);
                in->agen = o->mem.type == ZYDIS_MEMOP_TYPE_AGEN;
            } else if (!in->op.has_mem && implicit_segment_counts(z, o)) {
                in->op.seg = (uint8_t)segment_number(o->mem.segment);
            }
            continue;
        }
        if (o->type == ZYDIS_OPERAND_TYPE_POINTER) {
            in->op.imm = o->ptr.offset;
            in->op.disp = o->ptr.segment;
            continue;
        }
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER) {
            continue;
        }
        if (o->encoding == ZYDIS_OPERAND_ENCODING_MASK) {
            in->op.mask_reg = (uint8_t)(o->reg.value - ZYDIS_REGISTER_K0);
            continue;
        }
        struct bt_field f = {
            .rd = (o->actions & (ZYDIS_OPERAND_ACTION_MASK_READ | ZYDIS_OPERAND_ACTION_CONDWRITE)) != 0,
            .wr = (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0};
        f.reg = gpr_number(o->reg.value, &f.size, &f.high);
        f.gpr = f.reg != BT_NO_REG;
        /* With a zero source the destination stays as it was, whatever the manual leaves open. */
        f.rd |= z->mnemonic == ZYDIS_MNEMONIC_BSF || z->mnemonic == ZYDIS_MNEMONIC_BSR;
        if (f.gpr && f.wr) {
            in->gpr_written |= (uint16_t)(1u << f.reg);
        }
        if (o->reg.value >= ZYDIS_REGISTER_ES && o->reg.value <= ZYDIS_REGISTER_GS &&
            (z->mnemonic == ZYDIS_MNEMONIC_PUSH || z->mnemonic == ZYDIS_MNEMONIC_POP)) {
            in->op.source = BT_SOURCE_SEG;
            in->op.seg_reg = (uint8_t)segment_number(o->reg.value);
            continue;
        }
        in->is4 |= o->encoding == ZYDIS_OPERAND_ENCODING_IS4;
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG: in->reg = f; break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM: in->rm = f; break;
        case ZYDIS_OPERAND_ENCODING_NDSNDD: in->v = f; break;
        case ZYDIS_OPERAND_ENCODING_OPCODE: in->opc = f; break;
        default:
            if (f.gpr && f.reg == X86_RCX) {
                in->rcx_read |= f.rd;
                in->rcx_write |= f.wr;
            }
            break;
        }
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_PUSH && in->imm_bytes) {
        in->op.source = BT_SOURCE_IMM;
    }
    in->op.reg = in->raw_reg & 15;
    in->op.rm = in->raw_rm & 15;
}

/* Forms that long mode does not have, or that carry no ModRM, in the form that has one. */
static void normalize(const ZydisDecodedInstruction *z, struct bt_insn *in)
{
    if (in->enc != BT_ENC_LEGACY || in->map != 0) {
        return;
    }
    uint8_t opcode = in->opcode;
    if (opcode >= 0xa0 && opcode <= 0xa3) { /* MOV with a memory offset: 88-8B with rAX */
        in->opcode = (uint8_t)((opcode & 2 ? 0x88 : 0x8a) | (opcode & 1));
        in->has_modrm = true;
        in->mod = 0;
        in->raw_reg = 0;
        in->imm_bytes = 0;
        in->reg = (struct bt_field){
            .gpr = true, .reg = X86_RAX, .size = in->op.opsize, .rd = opcode & 2, .wr = !(opcode & 2)};
        in->rm.gpr = false;
    } else if (opcode == 0x82) { /* an alias of 80 */
        in->opcode = 0x80;
    } else if (opcode >= 0x40 && opcode <= 0x4f && !(z->attributes & ZYDIS_ATTRIB_HAS_REX) &&
               (z->mnemonic == ZYDIS_MNEMONIC_INC || z->mnemonic == ZYDIS_MNEMONIC_DEC)) {
        in->has_modrm = true;
        in->mod = 3;
        in->raw_rm = opcode & 7;
        in->raw_reg = opcode >= 0x48;
        in->opcode = 0xff;
        in->rm = in->opc;
        in->opc.gpr = false;
    }
}

/* Operands that must be aligned to their size, whose #GP comes before any page fault (SDM vol. 2A, 2.4,
 * tables 2-15 to 2-17). */
static bool needs_alignment(const ZydisDecodedInstruction *z, const struct bt_insn *in)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_CMPXCHG16B: return true;
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM: return false;
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA: return true;
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: return true;
    default: return in->enc == BT_ENC_LEGACY && in->legacy_sse && in->op.mem_size == 16;
    }
}

/* Where the processor accesses memory otherwise than the decoder's tables say. */
static void adjust_memory(const ZydisDecodedInstruction *z, struct bt_insn *in)
{
    struct bt_op *op = &in->op;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: op->mem_read = true; break; /* it leaves the last 96 bytes alone */
    case ZYDIS_MNEMONIC_FST:
    case ZYDIS_MNEMONIC_FSTP:
    case ZYDIS_MNEMONIC_FIST:
    case ZYDIS_MNEMONIC_FISTP:
    case ZYDIS_MNEMONIC_FISTTP:
    case ZYDIS_MNEMONIC_FBSTP: op->mem_read = true; break; /* an unmasked exception keeps them from storing */
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB: op->mem_size = 1; break; /* of the line only the byte addressed is checked */
    case ZYDIS_MNEMONIC_MOVSXD: op->mem_size = MIN(op->mem_size, op->opsize); break;
    default: break;
    }
}

/* x87 and MMX instructions that report an error of an earlier one before they access memory (SDM vol.
 * 1, 8.7). */
static bool waits_for_x87(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    for (unsigned i = 0; i < z->operand_count; i++) {
        if (ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ops[i].reg.value >= ZYDIS_REGISTER_MM0 &&
            ops[i].reg.value <= ZYDIS_REGISTER_MM7) {
            return true;
        }
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE: return false;
    default: return z->meta.category == ZYDIS_CATEGORY_X87_ALU;
    }
}

/* Outside of 64-bit mode VEX.W and EVEX.W do not widen general-purpose operands. */
static bool w_is_ignored(const ZydisDecodedInstruction *z, const struct bt_insn *in)
{
    if ((in->reg.gpr && in->reg.size == 4) || (in->rm.gpr && in->rm.size == 4) ||
        (in->v.gpr && in->v.size == 4)) {
        return true;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_VMOVD:
    case ZYDIS_MNEMONIC_VPINSRD:
    case ZYDIS_MNEMONIC_VPEXTRD:
    case ZYDIS_MNEMONIC_VPCMPESTRI: /* the lengths in EAX and EDX */
    case ZYDIS_MNEMONIC_VPCMPESTRM:
    case ZYDIS_MNEMONIC_VCVTSI2SD:
    case ZYDIS_MNEMONIC_VCVTSI2SS:
    case ZYDIS_MNEMONIC_VCVTUSI2SD:
    case ZYDIS_MNEMONIC_VCVTUSI2SS: return true;
    default: return false;
    }
}

/* Members of the SSE extensions that touch no vector state, so that CR0.TS and CR4.OSFXSR do not concern
 * them. */
static bool computes_without_fpu(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_MOVNTI: return true;
    default: return false;
    }
}

unsigned bt_decode(const struct x86_cpu *cpu, uint32_t mode, uint64_t rip, const uint8_t *bytes,
                   unsigned avail, struct bt_insn *in)
{
    pthread_once(&decoders_once, decoders_init);
    memset(in, 0, sizeof(*in));
    in->bytes = bytes;
    in->op.rip = rip;
    in->op.base = in->op.index = BT_NO_REG;

    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    const ZydisDecoder *decoder = &decoders[mode & BT_MODE_CODE64 ? 2 : mode & BT_MODE_CODE32 ? 1 : 0];
    ZyanStatus status = ZydisDecoderDecodeFull(decoder, bytes, avail, &z, ops);
    if (!ZYAN_SUCCESS(status)) {
        if (status == ZYDIS_STATUS_NO_MORE_DATA && avail < ZYDIS_MAX_INSTRUCTION_LENGTH) {
            return 0;
        }
        in->too_long = status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA;
        in->op.len = 1;
        return 1;
    }
    in->op.len = z.length;
    in->op.mnemonic = (uint16_t)z.mnemonic;
    in->op.opsize = (uint8_t)(z.operand_width / 8);
    in->op.addrsize = (uint8_t)(z.address_width / 8);
    in->op.vlen = (uint8_t)(z.avx.vector_length / 8);

    const struct extension *x = &extensions[z.meta.isa_ext];
    in->valid = offered(&cpu->cpuid, x->word, x->bit);
    in->fpu = x->fpu && !computes_without_fpu(z.mnemonic);
    in->legacy_sse = x->sse && in->fpu;
    in->avx = x->avx;
    in->avx512 = x->avx512;

    decode_prefixes(&z, in);
    decode_encoding(&z, in);
    if (in->enc == BT_ENC_OTHER) {
        in->valid = false;
        return z.length;
    }
    if (in->avx512 && !avx512_offered(&cpu->cpuid, z.meta.isa_set)) {
        in->valid = false;
    }
    decode_operands(&z, ops, in);
    normalize(&z, in);
    decode_flags(&z, in);
    if (in->op.has_mem) {
        decode_mask(&z, ops, in);
        in->op.aligned = needs_alignment(&z, in);
    }
    adjust_memory(&z, in);
    if (!(mode & BT_MODE_CODE64) && in->rex_w && in->enc != BT_ENC_LEGACY && w_is_ignored(&z, in)) {
        in->rex_w = false;
    }
    if (((z.meta.isa_ext == ZYDIS_ISA_EXT_VTX && z.mnemonic != ZYDIS_MNEMONIC_VMCALL) ||
         (z.meta.isa_ext == ZYDIS_ISA_EXT_SVM && z.mnemonic != ZYDIS_MNEMONIC_VMMCALL)) ||
        (z.meta.isa_ext == ZYDIS_ISA_EXT_CET && z.mnemonic != ZYDIS_MNEMONIC_ENDBR32 &&
         z.mnemonic != ZYDIS_MNEMONIC_ENDBR64 && z.mnemonic != ZYDIS_MNEMONIC_RDSSPD &&
         z.mnemonic != ZYDIS_MNEMONIC_RDSSPQ)) {
        in->valid = false;
    }
    in->privileged = (z.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) != 0;
    in->op.vreg = in->raw_reg;
    in->op.vmask = in->enc == BT_ENC_VEX && in->vsib ? in->raw_v : in->raw_rm;
    in->op.map = in->map;
    in->op.opcode = in->opcode;
    in->op.rex_w = in->rex_w;
    in->op.imm2 = (uint8_t)z.raw.imm[1].value.u;
    in->op.far = z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    if (in->opc.gpr) { /* PUSH, POP, and what else names its register in the opcode */
        in->op.rm = in->opc.reg;
    }
    in->masked_mem = in->op.masked;
    in->op.evex = in->enc == BT_ENC_EVEX;
    in->op.x87 = z.meta.isa_ext == ZYDIS_ISA_EXT_X87;
    in->op.waits = waits_for_x87(&z, ops);
    in->op.sse = in->legacy_sse;
    in->op.avx = in->avx;
    in->op.avx512 = in->avx512;
    return z.length;
}
