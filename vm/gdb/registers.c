/* See registers.h. */
#include "vm/gdb/registers.h"

#include <cpuid.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

enum kind {
    KIND_GPR,
    KIND_RIP,
    KIND_EFLAGS,
    KIND_SELECTOR,
    KIND_ST,
    KIND_X87, /* fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop */
    KIND_XMM, /* 0-31 */
    KIND_MXCSR,
    KIND_FS_BASE,
    KIND_GS_BASE,
    KIND_YMMH, /* 0-31 */
    KIND_K,
    KIND_ZMMH, /* 0-31 */
    KIND_SYSTEM,
};

/* The legacy area of an XSAVE image, and its header (SDM vol. 1, 10.5.1 and 13.4). */
#define FX_CONTROL   0
#define FX_STATUS    2
#define FX_TAGS      4
#define FX_OPCODE    6
#define FX_IP        8
#define FX_DP        16
#define FX_MXCSR     24
#define FX_ST        32
#define FX_XMM       160
#define XSTATE_BV    512
#define MXCSR_RESET  0x1f80u
#define X87_RESET    0x037fu /* FCW */
#define COMPONENT(n) (1ull << (n))

enum {
    SYS_CR0,
    SYS_CR2,
    SYS_CR3,
    SYS_CR4,
    SYS_CR8,
    SYS_EFER,
    SYS_K_GS_BASE,
    SYS_XCR0,
    SYS_DR0,
    SYS_DR6 = SYS_DR0 + 4,
    SYS_DR7
};

/* --- the table and target.xml --- */

static void xml(struct gdb_registers *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(r->xml + r->xml_len, sizeof(r->xml) - r->xml_len, format, args);
    va_end(args);
    r->xml_len = MIN(r->xml_len + (size_t)MAX(n, 0), sizeof(r->xml) - 1);
}

static void add(struct gdb_registers *r, enum kind kind, unsigned index, unsigned bytes, const char *type,
                const char *format, ...)
{
    if (r->count == GDB_REGISTERS_MAX) {
        return;
    }
    struct gdb_register *reg = &r->reg[r->count++];
    *reg = (struct gdb_register){.bytes = (uint8_t)bytes, .kind = (uint8_t)kind, .index = (uint8_t)index};
    va_list args;
    va_start(args, format);
    vsnprintf(reg->name, sizeof(reg->name), format, args);
    va_end(args);
    xml(r, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>", reg->name, bytes * 8, type);
}

static void add_core(struct gdb_registers *r)
{
    /* gdb's order, as numbers of the encoding */
    static const struct {
        const char *name;
        uint8_t number;
    } gprs[] = {{"rax", X86_RAX}, {"rbx", X86_RBX}, {"rcx", X86_RCX}, {"rdx", X86_RDX},
                {"rsi", X86_RSI}, {"rdi", X86_RDI}, {"rbp", X86_RBP}, {"rsp", X86_RSP}};
    static const struct {
        const char *name;
        uint8_t number;
    } segments[] = {{"cs", X86_CS}, {"ss", X86_SS}, {"ds", X86_DS},
                    {"es", X86_ES}, {"fs", X86_FS}, {"gs", X86_GS}};
    static const char *const x87[] = {"fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"};
    static const char *const flags[22] = {
        [0] = "CF",  [2] = "PF",   [4] = "AF",   [6] = "ZF",  [7] = "SF",  [8] = "TF",
        [9] = "IF",  [10] = "DF",  [11] = "OF",  [14] = "NT", [16] = "RF", [17] = "VM",
        [18] = "AC", [19] = "VIF", [20] = "VIP", [21] = "ID"};
    xml(r, "<feature name=\"org.gnu.gdb.i386.core\"><flags id=\"i386_eflags\" size=\"4\">");
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
        if (flags[i]) {
            xml(r, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", flags[i], i, i);
        }
    }
    xml(r, "</flags>");
    for (size_t i = 0; i < ARRAY_SIZE(gprs); i++) {
        add(r, KIND_GPR, gprs[i].number, 8, i >= 6 ? "data_ptr" : "int64", "%s", gprs[i].name);
    }
    for (unsigned i = 8; i < 16; i++) {
        add(r, KIND_GPR, i, 8, "int64", "r%u", i);
    }
    add(r, KIND_RIP, 0, 8, "code_ptr", "rip");
    add(r, KIND_EFLAGS, 0, 4, "i386_eflags", "eflags");
    for (size_t i = 0; i < ARRAY_SIZE(segments); i++) {
        add(r, KIND_SELECTOR, segments[i].number, 4, "int32", "%s", segments[i].name);
    }
    for (unsigned i = 0; i < 8; i++) {
        add(r, KIND_ST, i, 10, "i387_ext", "st%u", i);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(x87); i++) {
        add(r, KIND_X87, i, 4, "int", "%s", x87[i]);
    }
    xml(r, "</feature>");
}

static void vec128(struct gdb_registers *r)
{
    xml(r,
        "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" "
        "count=\"2\"/>"
        "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
        "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
        "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>"
        "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>"
        "<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>"
        "<field name=\"uint128\" type=\"uint128\"/></union>");
}

static void add_vectors(struct gdb_registers *r)
{
    xml(r, "<feature name=\"org.gnu.gdb.i386.sse\">");
    vec128(r);
    xml(r, "<flags id=\"i386_mxcsr\" size=\"4\">");
    static const char *const flags[16] = {"IE", "DE", "ZE", "OE", "UE", "PE", "DAZ",
                                          "IM", "DM", "ZM", "OM", "UM", "PM", [15] = "FZ"};
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
        if (flags[i]) {
            xml(r, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", flags[i], i, i);
        }
    }
    xml(r, "</flags>");
    for (unsigned i = 0; i < 16; i++) {
        add(r, KIND_XMM, i, 16, "vec128", "xmm%u", i);
    }
    add(r, KIND_MXCSR, 0, 4, "i386_mxcsr", "mxcsr");
    xml(r, "</feature><feature name=\"org.gnu.gdb.i386.segments\">");
    add(r, KIND_FS_BASE, 0, 8, "int", "fs_base");
    add(r, KIND_GS_BASE, 0, 8, "int", "gs_base");
    xml(r, "</feature>");
    if (r->ymm_at) {
        xml(r, "<feature name=\"org.gnu.gdb.i386.avx\">");
        for (unsigned i = 0; i < 16; i++) {
            add(r, KIND_YMMH, i, 16, "uint128", "ymm%uh", i);
        }
        xml(r, "</feature>");
    }
    if (r->high16_at) {
        xml(r, "<feature name=\"org.gnu.gdb.i386.avx512\">");
        vec128(r);
        xml(r, "<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>");
        for (unsigned i = 0; i < 8; i++) {
            add(r, KIND_K, i, 8, "uint64", "k%u", i);
        }
        for (unsigned i = 0; i < 32; i++) {
            add(r, KIND_ZMMH, i, 32, "v2ui128", "zmm%uh", i);
        }
        for (unsigned i = 16; i < 32; i++) {
            add(r, KIND_XMM, i, 16, "vec128", "xmm%u", i);
        }
        for (unsigned i = 16; i < 32; i++) {
            add(r, KIND_YMMH, i, 16, "uint128", "ymm%uh", i);
        }
        xml(r, "</feature>");
    }
}

static void add_system(struct gdb_registers *r)
{
    static const char *const names[] = {"cr0",  "cr2", "cr3", "cr4", "cr8", "efer", "k_gs_base",
                                        "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6",  "dr7"};
    xml(r, "<feature name=\"org.fonda.x86.system\">");
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        add(r, KIND_SYSTEM, i, 8, "int64", "%s", names[i]);
    }
    xml(r, "</feature>");
}

/* Where the standard format has a component (SDM vol. 1, 13.5): CPUID 0DH. */
static uint32_t component_at(unsigned component)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(0xd, component, &a, &b, &c, &d) && a ? b : 0;
}

void gdb_registers_init(struct gdb_registers *r)
{
    memset(r, 0, sizeof(*r));
    r->ymm_at = component_at(2);
    r->opmask_at = component_at(5);
    r->zmm_high_at = component_at(6);
    r->high16_at = r->opmask_at && r->zmm_high_at ? component_at(7) : 0;
    xml(r, "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">"
           "<architecture>i386:x86-64</architecture>");
    add_core(r);
    add_vectors(r);
    add_system(r);
    xml(r, "</target>");
}

/* --- values --- */

/* The 16 bits of FTW from the 8 that XSAVE keeps (SDM vol. 1, table 10-1). */
static uint16_t full_tags(const uint8_t *image)
{
    uint16_t status, tags = 0;
    memcpy(&status, image + FX_STATUS, 2);
    unsigned top = status >> 11 & 7;
    for (unsigned physical = 0; physical < 8; physical++) {
        unsigned tag = 3; /* empty */
        if (image[FX_TAGS] >> physical & 1) {
            const uint8_t *st = image + FX_ST + 16 * ((physical - top) & 7);
            uint64_t mantissa;
            uint16_t exponent;
            memcpy(&mantissa, st, 8);
            memcpy(&exponent, st + 8, 2);
            exponent &= 0x7fff;
            if (exponent == 0 && mantissa == 0) {
                tag = 1;
            } else if (exponent == 0 || exponent == 0x7fff || !(mantissa >> 63)) {
                tag = 2;
            } else {
                tag = 0;
            }
        }
        tags |= (uint16_t)(tag << (2 * physical));
    }
    return tags;
}

/* A component in its initial state is not in the image: its registers read as that state. Fills the x87 and
 * SSE components in, so that the image can be looked at; `write`: for good. */
static void materialize(uint8_t *image, unsigned component, uint32_t at, uint32_t bytes)
{
    uint64_t present;
    memcpy(&present, image + XSTATE_BV, 8);
    if (present & COMPONENT(component)) {
        return;
    }
    memset(image + at, 0, bytes);
    present |= COMPONENT(component);
    memcpy(image + XSTATE_BV, &present, 8);
    if (component == 0) {
        uint16_t control = X87_RESET;
        memset(image, 0, FX_MXCSR);
        memcpy(image + FX_CONTROL, &control, 2);
    }
}

/* The bytes of the XSAVE image that a register is, in an image where its component is present. */
static uint8_t *vector_bytes(const struct gdb_registers *r, const struct gdb_register *reg, uint8_t *image)
{
    unsigned i = reg->index;
    switch (reg->kind) {
    case KIND_ST: materialize(image, 0, FX_ST, 128); return image + FX_ST + 16 * i;
    case KIND_XMM:
        if (i < 16) {
            materialize(image, 1, FX_XMM, 256);
            return image + FX_XMM + 16 * i;
        }
        materialize(image, 7, r->high16_at, 1024);
        return image + r->high16_at + 64 * (i - 16);
    case KIND_YMMH:
        if (i < 16) {
            materialize(image, 2, r->ymm_at, 256);
            return image + r->ymm_at + 16 * i;
        }
        materialize(image, 7, r->high16_at, 1024);
        return image + r->high16_at + 64 * (i - 16) + 16;
    case KIND_K: materialize(image, 5, r->opmask_at, 64); return image + r->opmask_at + 8 * i;
    case KIND_ZMMH:
        if (i < 16) {
            materialize(image, 6, r->zmm_high_at, 512);
            return image + r->zmm_high_at + 32 * i;
        }
        materialize(image, 7, r->high16_at, 1024);
        return image + r->high16_at + 64 * (i - 16) + 32;
    default: return NULL;
    }
}

static uint64_t *system_member(struct x86_state *state, unsigned index)
{
    switch (index) {
    case SYS_CR0: return &state->cr0;
    case SYS_CR2: return &state->cr2;
    case SYS_CR3: return &state->cr3;
    case SYS_CR4: return &state->cr4;
    case SYS_EFER: return &state->efer;
    case SYS_K_GS_BASE: return &state->kernel_gs_base;
    case SYS_XCR0: return &state->xcr0;
    case SYS_DR6: return &state->dr6;
    case SYS_DR7: return &state->dr7;
    case SYS_CR8: return NULL;
    default: return &state->dr[index - SYS_DR0];
    }
}

static uint32_t x87_get(const uint8_t *image, unsigned index)
{
    static const struct {
        uint8_t at, bytes;
    } fields[] = {{FX_CONTROL, 2}, {FX_STATUS, 2}, {0, 0},     {FX_IP + 4, 2},
                  {FX_IP, 4},      {FX_DP + 4, 2}, {FX_DP, 4}, {FX_OPCODE, 2}};
    uint32_t value = 0;
    if (index == 2) {
        return full_tags(image);
    }
    memcpy(&value, image + fields[index].at, fields[index].bytes);
    return value;
}

static void x87_set(uint8_t *image, unsigned index, uint32_t value)
{
    static const uint8_t at[] = {FX_CONTROL, FX_STATUS, 0, FX_IP + 4, FX_IP, FX_DP + 4, FX_DP, FX_OPCODE};
    if (index == 2) {
        image[FX_TAGS] = 0;
        for (unsigned i = 0; i < 8; i++) {
            image[FX_TAGS] |= (uint8_t)(((value >> (2 * i) & 3) != 3) << i);
        }
        return;
    }
    memcpy(image + at[index], &value, index == 4 || index == 6 ? 4 : 2);
}

/* Every register that is not vector state, as a number. False: not one. */
static bool plain_get(const struct gdb_register *reg, struct x86_state *state, uint64_t cr8, uint64_t *ret)
{
    uint32_t mxcsr = MXCSR_RESET;
    switch (reg->kind) {
    case KIND_GPR: *ret = state->gpr[reg->index]; return true;
    case KIND_RIP: *ret = state->rip; return true;
    case KIND_EFLAGS: *ret = (uint32_t)state->rflags; return true;
    case KIND_SELECTOR: *ret = state->seg[reg->index].selector; return true;
    case KIND_X87:
        materialize(state->xsave, 0, FX_ST, 128);
        *ret = x87_get(state->xsave, reg->index);
        return true;
    case KIND_MXCSR:
        memcpy(&mxcsr, state->xsave + FX_MXCSR, 4);
        *ret = mxcsr;
        return true;
    case KIND_FS_BASE: *ret = state->seg[X86_FS].base; return true;
    case KIND_GS_BASE: *ret = state->seg[X86_GS].base; return true;
    case KIND_SYSTEM: *ret = reg->index == SYS_CR8 ? cr8 : *system_member(state, reg->index); return true;
    default: return false;
    }
}

size_t gdb_register_get(const struct gdb_registers *r, const struct x86_state *state, uint64_t cr8,
                        unsigned number, uint8_t value[GDB_REGISTER_BYTES_MAX])
{
    if (number >= r->count) {
        return 0;
    }
    const struct gdb_register *reg = &r->reg[number];
    struct x86_state copy = *state; /* in which what is missing is filled in */
    uint64_t plain;
    if (plain_get(reg, &copy, cr8, &plain)) {
        memcpy(value, &plain, reg->bytes);
    } else {
        memcpy(value, vector_bytes(r, reg, copy.xsave), reg->bytes);
    }
    return reg->bytes;
}

bool gdb_register_set(const struct gdb_registers *r, struct x86_state *state, unsigned number,
                      const uint8_t *value)
{
    if (number >= r->count) {
        return false;
    }
    const struct gdb_register *reg = &r->reg[number];
    uint64_t v = 0;
    memcpy(&v, value, MIN(reg->bytes, sizeof(v)));
    switch (reg->kind) {
    case KIND_GPR: state->gpr[reg->index] = v; return true;
    case KIND_RIP:
        state->halted &= state->rip == v; /* sent elsewhere, it goes on */
        state->rip = v;
        return true;
    case KIND_EFLAGS: state->rflags = (state->rflags & ~(uint64_t)UINT32_MAX) | v | 2; return true;
    case KIND_SELECTOR: return state->seg[reg->index].selector == v; /* a descriptor can't be told so */
    case KIND_X87:
        materialize(state->xsave, 0, FX_ST, 128);
        x87_set(state->xsave, reg->index, (uint32_t)v);
        return true;
    case KIND_MXCSR:
        materialize(state->xsave, 1, FX_XMM, 256);
        memcpy(state->xsave + FX_MXCSR, value, 4);
        return true;
    case KIND_FS_BASE: state->seg[X86_FS].base = v; return true;
    case KIND_GS_BASE: state->seg[X86_GS].base = v; return true;
    case KIND_SYSTEM:
        if (reg->index == SYS_CR8) {
            return false;
        }
        *system_member(state, reg->index) = v;
        return true;
    default: memcpy(vector_bytes(r, reg, state->xsave), value, reg->bytes); return true;
    }
}
