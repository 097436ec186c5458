/*
 * The enumeration. Each candidate encoding is decoded with every ModRM digit; where all digits give the same
 * instruction the field is a register number and the form keeps it open, else each digit is a form of its
 * own.
 */
#include "tests/diff/forms.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/diff/offered.h"

struct forms {
    struct form *form; /* sorted by category, then mnemonic */
    uint32_t count, room;
    /* Per category: where each mnemonic's forms start; one more entry ends the last. */
    uint32_t *start[CAT_COUNT];
    uint32_t mnemonics[CAT_COUNT];
    ZydisDecoder decoder;
    bool compat;
};

/* Mnemonics that never are generated as they are: their results differ between runs or machines, they enter
 * the kernel, or they need the care of gen_special.c. */
static bool excluded(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS: return true;
    default: return false;
    }
}

static bool privileged(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLTS:
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT:
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LTR:
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD: return true;
    default: return false;
    }
}

/* Names a segment register or a control or debug register among its operands. */
static enum diff_cat by_registers(const ZydisDecodedInstruction *d)
{
    if (d->opcode_map == ZYDIS_OPCODE_MAP_0F && d->opcode >= 0x20 && d->opcode <= 0x23) {
        return CAT_PRIVILEGED;
    }
    bool mov_sreg = d->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (d->opcode == 0x8c || d->opcode == 0x8e);
    return mov_sreg ? CAT_SEGMENT : CAT_MOVE;
}

static enum diff_cat classify_vector(const ZydisDecodedInstruction *d)
{
    switch (d->meta.category) {
    case ZYDIS_CATEGORY_KMASK: return CAT_MASK;
    case ZYDIS_CATEGORY_GATHER:
    case ZYDIS_CATEGORY_SCATTER:
    case ZYDIS_CATEGORY_AVX2GATHER: return CAT_GATHER;
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2: return CAT_BITS;
    case ZYDIS_CATEGORY_VFMA: return d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? CAT_AVX512 : CAT_FMA;
    case ZYDIS_CATEGORY_AES:
    case ZYDIS_CATEGORY_VAES:
    case ZYDIS_CATEGORY_PCLMULQDQ:
    case ZYDIS_CATEGORY_VPCLMULQDQ:
    case ZYDIS_CATEGORY_GFNI: return CAT_CRYPTO;
    default: break;
    }
    if (d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        return CAT_AVX512;
    }
    return d->meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX ? CAT_MASK : CAT_AVX;
}

static enum diff_cat classify_base(const ZydisDecodedInstruction *d)
{
    switch (d->meta.category) {
    case ZYDIS_CATEGORY_BINARY:
        switch (d->mnemonic) {
        case ZYDIS_MNEMONIC_MUL:
        case ZYDIS_MNEMONIC_IMUL:
        case ZYDIS_MNEMONIC_DIV:
        case ZYDIS_MNEMONIC_IDIV: return CAT_MULDIV;
        default: return CAT_ALU;
        }
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_ADOX_ADCX: return CAT_ALU;
    case ZYDIS_CATEGORY_DECIMAL:
        return d->mnemonic == ZYDIS_MNEMONIC_AAM || d->mnemonic == ZYDIS_MNEMONIC_AAD ? CAT_MULDIV : CAT_ALU;
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_SHIFT: return CAT_SHIFT;
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_LZCNT: return CAT_BITS;
    case ZYDIS_CATEGORY_DATAXFER: return by_registers(d);
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_SEMAPHORE: return CAT_MOVE;
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_POP: return CAT_STACK;
    case ZYDIS_CATEGORY_STRINGOP: return CAT_STRING;
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_RDWRFSGS: return CAT_SEGMENT;
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_CLFLUSHOPT:
    case ZYDIS_CATEGORY_CLWB:
    case ZYDIS_CATEGORY_CLDEMOTE:
    case ZYDIS_CATEGORY_SERIALIZE:
    case ZYDIS_CATEGORY_MOVDIR: return CAT_FENCE;
    case ZYDIS_CATEGORY_SYSTEM:
        /* What is left of the system instructions may run in user mode. */
        return d->mnemonic == ZYDIS_MNEMONIC_LAR || d->mnemonic == ZYDIS_MNEMONIC_LSL ||
                       d->mnemonic == ZYDIS_MNEMONIC_VERR || d->mnemonic == ZYDIS_MNEMONIC_VERW ||
                       d->mnemonic == ZYDIS_MNEMONIC_ARPL
                   ? CAT_SEGMENT
                   : CAT_COUNT;
    case ZYDIS_CATEGORY_MISC:
        switch (d->mnemonic) {
        case ZYDIS_MNEMONIC_LEA: return CAT_ALU;
        case ZYDIS_MNEMONIC_ENTER:
        case ZYDIS_MNEMONIC_LEAVE: return CAT_STACK;
        case ZYDIS_MNEMONIC_XLAT: return CAT_MOVE;
        case ZYDIS_MNEMONIC_UD0:
        case ZYDIS_MNEMONIC_UD1:
        case ZYDIS_MNEMONIC_UD2: return CAT_UNDEFINED;
        case ZYDIS_MNEMONIC_CLFLUSH:
        case ZYDIS_MNEMONIC_LFENCE:
        case ZYDIS_MNEMONIC_MFENCE:
        case ZYDIS_MNEMONIC_SFENCE:
        case ZYDIS_MNEMONIC_PAUSE: return CAT_FENCE;
        default: return CAT_COUNT;
        }
    case ZYDIS_CATEGORY_SSE:
        /* CRC32 and POPCNT are filed here. */
        return CAT_BITS;
    default: return CAT_COUNT;
    }
}

enum diff_cat forms_classify(const ZydisDecodedInstruction *d)
{
    if (excluded(d->mnemonic) || !offered_by_guest(d->meta.isa_set)) {
        return CAT_COUNT;
    }
    if (privileged(d->mnemonic)) {
        return CAT_PRIVILEGED;
    }
    if (d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX || d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        return classify_vector(d);
    }
    if (d->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
        return CAT_COUNT;
    }
    switch (d->mnemonic) {
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_POPCNT: return CAT_BITS;
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_MOVNTI: return CAT_FENCE;
    case ZYDIS_MNEMONIC_MOVBE: return CAT_MOVE;
    case ZYDIS_MNEMONIC_XGETBV: return CAT_XSAVE;
    default: break;
    }
    switch (d->meta.isa_set) {
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_SSE3X87: return CAT_X87;
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64: return CAT_XSAVE;
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSSE3MMX: return CAT_MMX;
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42: return CAT_SSE;
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_SHA:
    case ZYDIS_ISA_SET_GFNI: return CAT_CRYPTO;
    default: return classify_base(d);
    }
}

/* --- enumeration --- */

static uint32_t encode(const struct form *f, uint8_t modrm, uint8_t *buf)
{
    uint8_t *p = buf;
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
        if (f->w) {
            *p++ = 0x48;
        }
        if (f->map) {
            *p++ = 0x0f;
        }
        if (f->map > 1) {
            *p++ = f->map == 2 ? 0x38 : 0x3a;
        }
        break;
    case FORM_VEX:
        *p++ = 0xc4;
        *p++ = (uint8_t)(0xe0 | f->map);
        *p++ = (uint8_t)(f->w << 7 | 0x78 | f->l << 2 | f->prefix);
        break;
    case FORM_EVEX:
        *p++ = 0x62;
        *p++ = (uint8_t)(0xf0 | f->map);
        *p++ = (uint8_t)(f->w << 7 | 0x7c | f->prefix);
        *p++ = (uint8_t)(f->l << 5 | f->b << 4 | 8);
        break;
    }
    *p++ = f->opcode;
    *p++ = modrm;
    memset(p, 0, 12);
    return (uint32_t)(p - buf) + 12;
}

static bool decode(const struct forms *fs, const struct form *f, uint8_t modrm, ZydisDecodedInstruction *d)
{
    uint8_t buf[32];
    uint32_t length = encode(f, modrm, buf);
    if (ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&fs->decoder, NULL, buf, MIN(length, 15u), d))) {
        return true;
    }
    if (f->encoding == FORM_LEGACY) {
        return false;
    }
    /* Gathers and the like want a mask register and a SIB byte, others a vvvv that isn't the destination. */
    unsigned at = f->encoding == FORM_VEX ? 4 : 5;
    if (modrm < 0xc0) {
        buf[at] = (uint8_t)((modrm & 0x38) | 4);
        buf[at + 1] = 0x08;
    }
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        if (f->encoding == FORM_EVEX) {
            buf[3] = (uint8_t)((buf[3] & ~7u) | 1);
        }
        if (ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&fs->decoder, NULL, buf, MIN(length, 15u), d))) {
            return true;
        }
        buf[2] = (uint8_t)((buf[2] & ~0x78u) | 0x50);
    }
    return false;
}

static void add(struct forms *fs, const struct form *f)
{
    if (fs->count == fs->room) {
        fs->room = fs->room ? fs->room * 2 : 4096;
        fs->form = realloc(fs->form, fs->room * sizeof(*fs->form));
        if (!fs->form) {
            fprintf(stderr, "diff: out of memory\n");
            exit(1);
        }
    }
    fs->form[fs->count++] = *f;
}

/* What a ModRM byte selects: the mnemonic and its category, or 0. */
static uint32_t meaning(const struct forms *fs, const struct form *f, uint8_t modrm)
{
    ZydisDecodedInstruction d;
    if (!decode(fs, f, modrm, &d)) {
        return 0;
    }
    enum diff_cat category = forms_classify(&d);
    return category == CAT_COUNT ? 0 : (uint32_t)d.mnemonic << 8 | category;
}

static void add_meaning(struct forms *fs, struct form f, uint32_t m, uint8_t modrm, uint8_t reg, uint8_t rm)
{
    if (m) {
        f.mnemonic = (uint16_t)(m >> 8);
        f.category = (uint8_t)m;
        f.modrm = modrm;
        f.reg = reg;
        f.rm = rm;
        add(fs, &f);
    }
}

static bool all_equal(const uint32_t *v, unsigned n)
{
    for (unsigned i = 1; i < n; i++) {
        if (v[i] != v[0]) {
            return false;
        }
    }
    return true;
}

static void enumerate(struct forms *fs, const struct form *f)
{
    ZydisDecodedInstruction d;
    bool known = false, modrm = false;
    for (unsigned i = 0; i < 16 && !known; i++) {
        known = decode(fs, f, (uint8_t)((i & 7) << 3 | (i < 8 ? 0x03 : 0xc3)), &d);
        modrm = known && (d.attributes & ZYDIS_ATTRIB_HAS_MODRM);
    }
    if (!known) {
        return;
    }
    if (!modrm) {
        add_meaning(fs, *f, meaning(fs, f, 0), FORM_NO_MODRM, FORM_ANY, FORM_ANY);
        return;
    }
    uint32_t by_reg[8], by_rm[8];
    for (unsigned reg = 0; reg < 8; reg++) {
        by_reg[reg] = meaning(fs, f, (uint8_t)(reg << 3 | 3));
    }
    if (all_equal(by_reg, 8)) {
        add_meaning(fs, *f, by_reg[0], FORM_MEM, FORM_ANY, FORM_ANY);
    } else {
        for (unsigned reg = 0; reg < 8; reg++) {
            add_meaning(fs, *f, by_reg[reg], FORM_MEM, (uint8_t)reg, FORM_ANY);
        }
    }
    bool open = true;
    uint32_t first = meaning(fs, f, 0xc0);
    for (unsigned byte = 0xc0; byte < 0x100 && open; byte++) {
        open = meaning(fs, f, (uint8_t)byte) == first;
    }
    if (open) {
        add_meaning(fs, *f, first, FORM_REG, FORM_ANY, FORM_ANY);
        return;
    }
    for (unsigned reg = 0; reg < 8; reg++) {
        for (unsigned rm = 0; rm < 8; rm++) {
            by_rm[rm] = meaning(fs, f, (uint8_t)(0xc0 | reg << 3 | rm));
        }
        if (all_equal(by_rm, 8)) {
            add_meaning(fs, *f, by_rm[0], FORM_REG, (uint8_t)reg, FORM_ANY);
            continue;
        }
        for (unsigned rm = 0; rm < 8; rm++) {
            add_meaning(fs, *f, by_rm[rm], FORM_REG, (uint8_t)reg, (uint8_t)rm);
        }
    }
}

static bool is_prefix(const struct forms *fs, uint8_t byte)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
    case 0x0f: return true;
    default: return !fs->compat && (byte & 0xf0) == 0x40;
    }
}

static void enumerate_legacy(struct forms *fs)
{
    static const uint8_t prefixes[] = {0,
                                       FORM_PREFIX_66,
                                       FORM_PREFIX_F3,
                                       FORM_PREFIX_F2,
                                       FORM_PREFIX_66 | FORM_PREFIX_F3,
                                       FORM_PREFIX_66 | FORM_PREFIX_F2};
    for (unsigned map = 0; map < 4; map++) {
        for (unsigned opcode = 0; opcode < 256; opcode++) {
            if (map == 0 && is_prefix(fs, (uint8_t)opcode)) {
                continue;
            }
            for (unsigned i = 0; i < ARRAY_SIZE(prefixes); i++) {
                for (unsigned w = 0; w < (fs->compat ? 1 : 2); w++) {
                    const struct form f = {.encoding = FORM_LEGACY,
                                           .map = (uint8_t)map,
                                           .prefix = prefixes[i],
                                           .opcode = (uint8_t)opcode,
                                           .w = (uint8_t)w};
                    enumerate(fs, &f);
                }
            }
        }
    }
}

static void enumerate_vex(struct forms *fs, enum form_encoding encoding)
{
    unsigned maps = encoding == FORM_VEX ? 3 : 6;
    unsigned lengths = encoding == FORM_VEX ? 2 : 3;
    for (unsigned i = 0; i < maps * 256u * 4 * 2 * lengths * 2; i++) {
        unsigned k = i;
        struct form f = {.encoding = (uint8_t)encoding};
        f.w = (uint8_t)(k % 2), k /= 2;
        f.b = (uint8_t)(k % 2), k /= 2;
        f.l = (uint8_t)(k % lengths), k /= lengths;
        f.prefix = (uint8_t)(k % 4), k /= 4;
        f.opcode = (uint8_t)k, k /= 256;
        f.map = (uint8_t)(k + 1);
        if (encoding == FORM_VEX && f.b) {
            continue;
        }
        enumerate(fs, &f);
    }
}

static int compare_forms(const void *pa, const void *pb)
{
    const struct form *a = pa, *b = pb;
    if (a->category != b->category) {
        return a->category < b->category ? -1 : 1;
    }
    if (a->mnemonic != b->mnemonic) {
        return a->mnemonic < b->mnemonic ? -1 : 1;
    }
    return memcmp(a, b, sizeof(*a));
}

static void index_forms(struct forms *fs)
{
    qsort(fs->form, fs->count, sizeof(*fs->form), compare_forms);
    uint32_t i = 0;
    for (unsigned cat = 0; cat < CAT_COUNT; cat++) {
        uint32_t *start = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 2, sizeof(*start));
        if (!start) {
            fprintf(stderr, "diff: out of memory\n");
            exit(1);
        }
        uint32_t n = 0;
        for (; i < fs->count && fs->form[i].category == cat; i++) {
            if (n == 0 || fs->form[i].mnemonic != fs->form[i - 1].mnemonic) {
                start[n++] = i;
            }
        }
        start[n] = i;
        fs->start[cat] = start;
        fs->mnemonics[cat] = n;
    }
}

void forms_decoder(enum forms_mode mode, ZydisDecoder *decoder)
{
    static const ZydisMachineMode modes[FORMS_MODES] = {
        ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_MACHINE_MODE_LONG_COMPAT_16};
    static const ZydisStackWidth widths[FORMS_MODES] = {ZYDIS_STACK_WIDTH_64, ZYDIS_STACK_WIDTH_32,
                                                        ZYDIS_STACK_WIDTH_16};
    ZydisDecoderInit(decoder, modes[mode], widths[mode]);
}

struct forms *forms_new(enum forms_mode mode)
{
    struct forms *fs = calloc(1, sizeof(*fs));
    if (!fs) {
        fprintf(stderr, "diff: out of memory\n");
        exit(1);
    }
    fs->compat = mode != FORMS_64;
    forms_decoder(mode, &fs->decoder);
    enumerate_legacy(fs);
    enumerate_vex(fs, FORM_VEX);
    enumerate_vex(fs, FORM_EVEX);
    index_forms(fs);
    return fs;
}

void forms_free(struct forms *fs)
{
    if (fs) {
        for (unsigned cat = 0; cat < CAT_COUNT; cat++) {
            free(fs->start[cat]);
        }
        free(fs->form);
        free(fs);
    }
}

const struct form *forms_pick(const struct forms *fs, struct rng *r, enum diff_cat category)
{
    if (fs->mnemonics[category] == 0) {
        return NULL;
    }
    const uint32_t *start = fs->start[category] + rng_below(r, fs->mnemonics[category]);
    return &fs->form[start[0] + rng_below(r, start[1] - start[0])];
}

uint32_t forms_count(const struct forms *fs, enum diff_cat category, uint32_t *ret_mnemonics)
{
    uint32_t n = fs->mnemonics[category];
    *ret_mnemonics = n;
    return n ? fs->start[category][n] - fs->start[category][0] : 0;
}
