/*
 * The XSAVE family, gathers and scatters, and byte-masked stores. General registers only: the guest's vector
 * state is in the host's registers (XSAVE works on it directly) or, for gathers, in cpu.s.xsave.
 */
#include <Zydis/Zydis.h>

#include "cpu/bt/op.h"

#define XSAVE_LEGACY 512u
#define XSAVE_HEADER 576u /* end of the legacy region and the header (SDM vol. 1, 13.4) */

/* Bytes that the standard format takes for a set of components. */
static unsigned standard_size(const struct bt_vcpu *v, uint64_t components)
{
    unsigned size = XSAVE_HEADER;
    for (unsigned i = 2; i < ARRAY_SIZE(v->xsave_size); i++) {
        if (components >> i & 1) {
            size = MAX(size, v->xsave_offset[i] + v->xsave_size[i]);
        }
    }
    return MIN(size, X86_XSAVE_MAX);
}

static unsigned compact_size(const struct bt_vcpu *v, uint64_t components)
{
    unsigned size = XSAVE_HEADER;
    for (unsigned i = 2; i < ARRAY_SIZE(v->xsave_size); i++) {
        if (components >> i & 1) {
            size += v->xsave_size[i];
        }
    }
    return MIN(size, X86_XSAVE_MAX);
}

/* What all of them check first; the requested components in *ret_rfbm. */
static int xsave_prologue(struct bt_vcpu *v, const struct bt_op *op, uint64_t *ret_rfbm, uint64_t *ret_va)
{
    const struct x86_state *s = &v->cpu.s;
    if (!(s->cr4 & X86_CR4_OSXSAVE)) {
        return x86_raise(&v->cpu, X86_UD);
    }
    if (s->cr0 & X86_CR0_TS) {
        return x86_raise(&v->cpu, X86_NM);
    }
    if (x86_linear(&v->cpu, (enum x86_sreg)op->seg, bt_op_ea(v, op), XSAVE_HEADER, X86_ACCESS_WRITE,
                   op->stack_based, ret_va) < 0) {
        return -1;
    }
    if (*ret_va % 64) {
        return x86_raise_error(&v->cpu, X86_GP, 0);
    }
    *ret_rfbm = ((uint32_t)s->gpr[X86_RAX] | s->gpr[X86_RDX] << 32) & s->xcr0;
    return 0;
}

static void host_xsave(struct bt_vcpu *v, uint8_t *area, uint32_t rfbm, uint16_t mnemonic)
{
    bt_fpu_load(v);
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_XSAVEC:
        __asm__ volatile("xsavec (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory");
        break;
    case ZYDIS_MNEMONIC_XSAVEC64:
        __asm__ volatile("xsavec64 (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory");
        break;
    /* Never the address that XRSTOR loaded from, so that only what is in its initial state is left out. */
    case ZYDIS_MNEMONIC_XSAVEOPT:
        __asm__ volatile("xsaveopt (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory");
        break;
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        __asm__ volatile("xsaveopt64 (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory");
        break;
    case ZYDIS_MNEMONIC_XSAVE64:
        __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory");
        break;
    default: __asm__ volatile("xsave (%0)" : : "r"(area), "a"(rfbm), "d"(0) : "memory"); break;
    }
    bool all = mnemonic == ZYDIS_MNEMONIC_XSAVE || mnemonic == ZYDIS_MNEMONIC_XSAVE64;
    if ((rfbm & 1) &&
        (all ||
         (area[XSAVE_LEGACY] &
          1))) { /* the last x87 instruction's opcode and addresses are the host's: the guest gets zeros */
        static const uint8_t zeros[18];
        x86_copy_bytes(area + 6, zeros, sizeof(zeros));
    }
}

static int op_xsave(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t rfbm, va;
    if (xsave_prologue(v, op, &rfbm, &va) < 0) {
        return BT_RAISE;
    }
    bool compact = op->mnemonic == ZYDIS_MNEMONIC_XSAVEC || op->mnemonic == ZYDIS_MNEMONIC_XSAVEC64;
    unsigned size = compact ? compact_size(v, rfbm) : standard_size(v, rfbm);
    unsigned mode = x86_access_mode(&v->cpu);
    if (va % MEM_PAGE_SIZE + size <= MEM_PAGE_SIZE) {
        bool mmio = false;
        gpa_t gpa;
        uint8_t *area = bt_cpu_ops.translate(&v->cpu, va, X86_ACCESS_WRITE | mode, &mmio, &gpa);
        if (area) {
            host_xsave(v, area, (uint32_t)rfbm, op->mnemonic);
            return BT_NEXT;
        }
        if (!mmio) {
            return BT_RAISE;
        }
    }
    if (x86_load_buf(&v->cpu, va, v->xbuf, size, X86_ACCESS_WRITE | mode) < 0) {
        return BT_RAISE;
    }
    if (v->fpu_live) { /* an XRSTOR may have loaded from xbuf: from elsewhere now */
        bt_fpu_save(v);
    }
    host_xsave(v, v->xbuf, (uint32_t)rfbm, op->mnemonic);
    return op_done(x86_store_buf(&v->cpu, va, v->xbuf, size, X86_ACCESS_WRITE | mode), BT_NEXT);
}

static uint64_t header_field(const struct bt_vcpu *v, unsigned n)
{
    uint64_t value = 0;
    x86_copy_bytes(&value, v->xbuf + XSAVE_LEGACY + n * 8, 8);
    return value;
}

/* XRSTOR refuses what would load reserved bits (SDM vol. 1, 13.8). */
static bool xrstor_acceptable(const struct bt_vcpu *v, uint64_t rfbm, uint64_t *ret_size)
{
    uint64_t xstate_bv = header_field(v, 0), xcomp_bv = header_field(v, 1), xcr0 = v->cpu.s.xcr0;
    for (unsigned i = 2; i < (xcomp_bv >> 63 ? 8 : 3); i++) {
        if (header_field(v, i)) {
            return false;
        }
    }
    if (xcomp_bv >> 63) {
        uint64_t format = xcomp_bv & ~BIT64(63);
        if (!(v->cpu.cpuid.fd1_eax & 2) || (format & ~xcr0) || (xstate_bv & ~format)) {
            return false;
        }
        *ret_size = compact_size(v, format);
    } else {
        if (xcomp_bv || (xstate_bv & ~xcr0)) {
            return false;
        }
        *ret_size = standard_size(v, xstate_bv & rfbm);
    }
    if (rfbm & 6) {
        uint32_t mxcsr;
        x86_copy_bytes(&mxcsr, v->xbuf + 24, 4);
        bool loads = !(xcomp_bv >> 63) || (xstate_bv & rfbm & 2);
        if (loads && (mxcsr & ~v->mxcsr_mask)) {
            return false;
        }
    }
    return true;
}

static int op_xrstor(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t rfbm, va, size;
    unsigned access = X86_ACCESS_READ | x86_access_mode(&v->cpu);
    if (xsave_prologue(v, op, &rfbm, &va) < 0 ||
        x86_load_buf(&v->cpu, va, v->xbuf, XSAVE_HEADER, access) < 0) {
        return BT_RAISE;
    }
    if (!xrstor_acceptable(v, rfbm, &size)) {
        return bt_op_gp(v, op);
    }
    if (size > XSAVE_HEADER && x86_load_buf(&v->cpu, va + XSAVE_HEADER, v->xbuf + XSAVE_HEADER,
                                            (unsigned)size - XSAVE_HEADER, access) < 0) {
        return BT_RAISE;
    }
    bt_fpu_load(v);
    if (op->mnemonic == ZYDIS_MNEMONIC_XRSTOR64) {
        __asm__ volatile("xrstor64 (%0)" : : "r"(v->xbuf), "a"((uint32_t)rfbm), "d"(0) : "memory");
    } else {
        __asm__ volatile("xrstor (%0)" : : "r"(v->xbuf), "a"((uint32_t)rfbm), "d"(0) : "memory");
    }
    return BT_NEXT;
}

/* --- vector registers in the saved image --- */

/* Bytes [16 * part, +16) of vector register n; parts 0, 1, 2-3 are XMM, the upper half of YMM, of ZMM. NULL:
 * component unknown. */
static uint8_t *vector_part(struct bt_vcpu *v, unsigned n, unsigned part)
{
    uint8_t *x = v->cpu.s.xsave;
    if (n >= 16) {
        return x + v->xsave_offset[7] + (n - 16) * 64 + part * 16;
    }
    switch (part) {
    case 0: return x + 160 + n * 16;
    case 1: return x + v->xsave_offset[2] + n * 16;
    default: return x + v->xsave_offset[6] + n * 32 + (part - 2) * 16;
    }
}

/* XSTATE_BV of the saved image. */
static uint64_t header_bits(const struct bt_vcpu *v)
{
    uint64_t bits = 0;
    x86_copy_bytes(&bits, v->cpu.s.xsave + XSAVE_LEGACY, 8);
    return bits;
}

static void vector_get(struct bt_vcpu *v, unsigned n, uint8_t out[64])
{
    uint64_t components = header_bits(v);
    for (unsigned part = 0; part < 4; part++) {
        unsigned component = n >= 16 ? 7 : part == 0 ? 1 : part == 1 ? 2 : 6;
        if (components >> component & 1) {
            x86_copy_bytes(out + part * 16, vector_part(v, n, part), 16);
        } else {
            for (unsigned i = 0; i < 16; i++) {
                out[part * 16 + i] = 0;
            }
        }
    }
}

/* Components that are in their initial state have no valid image: write one before setting their bit. */
static void component_present(struct bt_vcpu *v, unsigned component)
{
    uint64_t *header = (uint64_t *)(void *)(v->cpu.s.xsave + XSAVE_LEGACY);
    if (header[0] >> component & 1) {
        return;
    }
    uint8_t *at = component == 1 ? v->cpu.s.xsave + 160 : v->cpu.s.xsave + v->xsave_offset[component];
    unsigned size = component == 1 ? 256 : v->xsave_size[component];
    for (unsigned i = 0; i < size; i++) {
        at[i] = 0;
    }
    header[0] |= BIT64(component);
}

static void vector_set(struct bt_vcpu *v, unsigned n, const uint8_t in[64])
{
    for (unsigned part = 0; part < 4; part++) {
        unsigned component = n >= 16 ? 7 : part == 0 ? 1 : part == 1 ? 2 : 6;
        if (!(v->xsave_mask >> component & 1)) {
            continue;
        }
        component_present(v, component);
        x86_copy_bytes(vector_part(v, n, part), in + part * 16, 16);
    }
}

static uint64_t opmask_get(struct bt_vcpu *v, unsigned k)
{
    uint64_t value = 0;
    if (header_bits(v) & BIT64(5)) {
        x86_copy_bytes(&value, v->cpu.s.xsave + v->xsave_offset[5] + k * 8, 8);
    }
    return value;
}

static void opmask_set(struct bt_vcpu *v, unsigned k, uint64_t value)
{
    component_present(v, 5);
    x86_copy_bytes(v->cpu.s.xsave + v->xsave_offset[5] + k * 8, &value, 8);
}

static bool lane_active(bool evex, uint64_t k, const uint8_t *mask, unsigned i, unsigned elem)
{
    return evex ? k >> i & 1 : mask[i * elem + elem - 1] >> 7;
}

/* VGATHER*, VPGATHER*, VSCATTER*, VPSCATTER*: element by element; a fault leaves what is done done, and its
 * mask bits clear (SDM vol. 2C, "VGATHERDPS"). */
static int op_gather(struct bt_vcpu *v, const struct bt_op *op)
{
    bt_fpu_save(v);
    unsigned elem = op->elem, index_size = op->opcode & 1 ? 8 : 4;
    unsigned n = op->vlen / MAX(elem, index_size);
    bool scatter = op->access == X86_ACCESS_WRITE;
    uint8_t data[64], index[64], mask[64];
    vector_get(v, op->vreg, data);
    vector_get(v, op->vindex, index);
    vector_get(v, op->evex ? 0 : op->vmask, mask);
    uint64_t k = op->evex ? opmask_get(v, op->mask_reg) : 0;
    uint64_t base = op->base != BT_NO_REG ? v->cpu.s.gpr[op->base] : 0;
    int result = BT_NEXT;
    bool loaded = false;
    for (unsigned i = 0; i < 64; i++) { /* a VEX mask becomes all ones or zeros per element */
        mask[i] = i < op->vlen && mask[i / elem * elem + elem - 1] >> 7 ? 0xff : 0;
    }
    for (unsigned i = 0; i < n && result == BT_NEXT; i++) {
        if (!lane_active(op->evex, k, mask, i, elem)) {
            continue;
        }
        int64_t offset = 0;
        x86_copy_bytes(&offset, index + i * index_size, index_size);
        if (index_size == 4) {
            offset = (int32_t)offset;
        }
        uint64_t ea = (base + (uint64_t)offset * op->scale + (uint64_t)op->disp) & op_mask(op->addrsize);
        uint64_t value = 0;
        x86_copy_bytes(&value, data + i * elem, elem);
        int r = scatter ? op_store(v, op->seg, ea, elem, op->stack_based, value)
                        : op_load(v, op->seg, ea, elem, op->stack_based, &value);
        if (r < 0) {
            result = BT_RAISE;
            break;
        }
        x86_copy_bytes(data + i * elem, &value, elem);
        loaded = true;
        k &= ~BIT64(i);
        for (unsigned j = 0; j < elem; j++) {
            mask[i * elem + j] = 0;
        }
    }
    if (result == BT_NEXT) {
        k = 0;
        for (unsigned i = 0; i < 64; i++) {
            mask[i] = 0;
            if (!scatter && i >= n * elem) {
                data[i] = 0; /* the destination is as wide as its elements; the rest is cleared */
            }
        }
    }
    for (unsigned i = op->vlen; i < 64 && loaded && !scatter; i++) {
        data[i] = 0;
    }
    if (!scatter) {
        vector_set(v, op->vreg, data);
    }
    if (op->evex) {
        opmask_set(v, op->mask_reg, k);
    } else {
        vector_set(v, op->vmask, mask);
    }
    return result;
}

/* Whether eight bytes may be written. */
static int maskmov_check(struct bt_vcpu *v, const struct bt_op *op, uint64_t ea)
{
    unsigned access = X86_ACCESS_WRITE | x86_access_mode(&v->cpu);
    uint64_t va;
    struct x86_walk w;
    if (op_linear(v, op->seg, ea, 8, true, false, &va) < 0 || x86_walk(&v->cpu, va, access, &w) < 0) {
        return -1;
    }
    uint64_t page = (va + 7) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    return page > va ? x86_walk(&v->cpu, page, access, &w) : 0;
}

/* MASKMOVQ, MASKMOVDQU, VMASKMOVDQU: bytes of the first operand, where the second has its top bit set, to
 * [rDI]. */
static int op_maskmov(struct bt_vcpu *v, const struct bt_op *op)
{
    bool mmx = op->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    if (mmx) { /* as every MMX instruction: top of stack 0, all registers valid (SDM vol. 1, 9.6.2) */
        bt_fpu_load(v);
        if (bt_fpu_fault(v)) {
            return BT_RAISE;
        }
        uint32_t low;
        __asm__ volatile("movd %%mm0, %0" : "=r"(low)); /* writes none of them */
    }
    bt_fpu_save(v);
    unsigned n = mmx ? 8 : 16;
    uint8_t data[64], mask[64];
    if (mmx) {
        x86_copy_bytes(data, v->cpu.s.xsave + 32 + (op->vreg & 7) * 16, 8);
        x86_copy_bytes(mask, v->cpu.s.xsave + 32 + (op->vmask & 7) * 16, 8);
    } else {
        vector_get(v, op->vreg, data);
        vector_get(v, op->vmask, mask);
    }
    /* Processors check all of it, whatever the mask, the upper half first. */
    uint64_t ea = v->cpu.s.gpr[X86_RDI];
    for (unsigned half = n / 8; half-- > 0;) {
        if (maskmov_check(v, op, (ea + half * 8) & op_mask(op->addrsize)) < 0) {
            return BT_RAISE;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        if ((mask[i] & 0x80) &&
            op_store(v, op->seg, (ea + i) & op_mask(op->addrsize), 1, false, data[i]) < 0) {
            return BT_RAISE;
        }
    }
    return BT_NEXT;
}

bt_op_fn *op_fpu_lookup(const struct bt_insn *in, bool *ret_ends)
{
    (void)ret_ends;
    switch (in->op.mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64: return op_xsave;
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64: return op_xrstor;
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: return op_maskmov;
    default: return in->vsib ? op_gather : NULL;
    }
}
