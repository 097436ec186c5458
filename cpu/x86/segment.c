/*
 * Segmentation: descriptors, segment-register loads, LDTR, TR, GDTR, IDTR, and the instructions that ask
 * about selectors.
 *
 * Neighbours: descriptor.h is what deliver.c, transfer.c and task.c use of this; memory.c does the accesses.
 *
 * Invariant: a load changes the register only after every check passed and the accessed or busy bit was
 * written.
 *
 * SDM vol. 3A ch. 3, 5 and 7; vol. 2A MOV, LAR, LSL; vol. 2B VERR.
 */
#include "cpu/x86/descriptor.h"

#define TABLE_WRITE (X86_ACCESS_WRITE | X86_ACCESS_IMPLICIT)

int x86_desc_load_system(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *ret)
{
    int ret_load = x86_desc_load(cpu, selector, ret);
    uint32_t limit = selector & 4 ? cpu->s.ldtr.limit : cpu->s.gdtr.limit;

    if (ret_load || !x86_long_mode(cpu) || !x86_desc_is_system(ret->lo)) {
        return ret_load;
    }
    if ((selector & 0xfff8u) + 15 > limit) {
        return 1;
    }
    if (x86_table_load(cpu, ret->va + 8, &ret->hi)) {
        return -1;
    }
    return (ret->hi >> 40) & 0x1f ? 1 : 0;
}

int x86_desc_mark(struct x86_cpu *cpu, struct x86_desc *desc)
{
    uint64_t lo = desc->lo | ((uint64_t)X86_TYPE_ACCESSED << 40);

    if (x86_store(cpu, desc->va + 5, 1, TABLE_WRITE, (lo >> 40) & 0xff)) {
        return -1;
    }
    desc->lo = lo;
    return 0;
}

/* Only the base changes: limit, granularity and size stay what the last protected-mode load made them. A
 * segment that was null becomes usable. */
void x86_segment_real(struct x86_segment *seg, uint16_t selector)
{
    if (!seg->attr) {
        seg->limit = 0xffff;
    }
    seg->attr = (uint16_t)((seg->attr & (X86_SEG_AVL | X86_SEG_DB | X86_SEG_G)) | X86_ATTR_REAL);
    seg->base = (uint32_t)selector << 4;
    seg->selector = selector;
}

/* SDM vol. 3B, 20.1.1 */
void x86_segment_vm86(struct x86_segment *seg, uint16_t selector)
{
    seg->base = (uint32_t)selector << 4;
    seg->limit = 0xffff;
    seg->selector = selector;
    seg->attr = X86_ATTR_VM86;
}

int x86_stack_segment(struct x86_cpu *cpu, uint16_t selector, unsigned cpl, enum x86_vector bad, bool null_ok,
                      unsigned ext, struct x86_segment *ret_seg)
{
    struct x86_desc desc;
    int load;

    if (x86_selector_null(selector)) {
        if (!null_ok) {
            return x86_raise_error(cpu, bad, ext);
        }
        x86_segment_null(ret_seg, selector);
        return 0;
    }
    load = x86_desc_load(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    if (load || (selector & 3u) != cpl || !x86_desc_is_writable_data(desc.lo) ||
        x86_desc_dpl(desc.lo) != cpl) {
        return x86_raise_selector(cpu, bad, selector, ext);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_SS_EXC, selector, ext);
    }
    if (x86_desc_mark_accessed(cpu, &desc)) {
        return -1;
    }
    x86_segment_fill(ret_seg, selector, desc.lo);
    return 0;
}

int x86_data_segment(struct x86_cpu *cpu, uint16_t selector, enum x86_vector bad, unsigned ext,
                     struct x86_segment *ret_seg)
{
    struct x86_desc desc;
    unsigned dpl;
    int load;

    if (x86_selector_null(selector)) {
        x86_segment_null(ret_seg, selector);
        return 0;
    }
    load = x86_desc_load(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    if (load || x86_desc_is_system(desc.lo) ||
        (x86_desc_is_code(desc.lo) && !(x86_desc_type(desc.lo) & X86_TYPE_WRITE))) {
        return x86_raise_selector(cpu, bad, selector, ext);
    }
    dpl = x86_desc_dpl(desc.lo);
    if (!x86_desc_is_conforming(desc.lo) && ((selector & 3u) > dpl || cpu->cpl > dpl)) {
        return x86_raise_selector(cpu, bad, selector, ext);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, ext);
    }
    if (x86_desc_mark_accessed(cpu, &desc)) {
        return -1;
    }
    x86_segment_fill(ret_seg, selector, desc.lo);
    return 0;
}

int x86_load_segment(struct x86_cpu *cpu, enum x86_sreg sreg, uint16_t selector)
{
    struct x86_segment *seg = &cpu->s.seg[sreg];

    if (sreg == X86_CS) {
        return x86_raise(cpu, X86_UD);
    }
    if (!x86_protected(cpu)) {
        x86_segment_real(seg, selector);
        return 0;
    }
    if (x86_vm86(cpu)) {
        x86_segment_vm86(seg, selector);
        return 0;
    }
    if (sreg == X86_SS) {
        /* 64-bit mode lets rings 0 to 2 run with a null SS whose RPL is the CPL (SDM vol. 3A, 5.4.1.1). */
        bool null_ok = x86_code64(cpu) && cpu->cpl < 3 && (selector & 3u) == cpu->cpl;

        return x86_stack_segment(cpu, selector, cpu->cpl, X86_GP, null_ok, 0, seg);
    }
    return x86_data_segment(cpu, selector, X86_GP, 0, seg);
}

/* Code segments that conform stay usable at any level (SDM vol. 2A, IRET; vol. 2B, RET). */
void x86_drop_segments(struct x86_cpu *cpu, unsigned cpl)
{
    static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

    for (unsigned i = 0; i < sizeof(data); i++) {
        struct x86_segment *seg = &cpu->s.seg[data[i]];
        bool conforming = (seg->attr & 0x1c) == 0x1c;

        if (seg->attr && !conforming && (unsigned)(seg->attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT < cpl) {
            x86_segment_null(seg, 0);
        }
    }
}

bool x86_within_limit(const struct x86_segment *seg, uint32_t offset, uint32_t size)
{
    uint64_t last = (uint64_t)offset + size - 1;

    if ((seg->attr & (X86_SEG_S | X86_TYPE_CODE | X86_TYPE_CONFORMING)) ==
        (X86_SEG_S | X86_TYPE_CONFORMING)) {
        return offset > seg->limit && last <= (seg->attr & X86_SEG_DB ? 0xffffffffu : 0xffffu);
    }
    return last <= seg->limit;
}

/* --- LDTR, TR, GDTR, IDTR --- */

static int check_table_load(struct x86_cpu *cpu)
{
    if (!x86_protected(cpu) || x86_vm86(cpu)) {
        return x86_raise(cpu, X86_UD);
    }
    return cpu->cpl ? x86_raise_error(cpu, X86_GP, 0) : 0;
}

/* Fills LDTR or TR; refuses a base that is not canonical. */
static int fill_system(struct x86_cpu *cpu, struct x86_segment *seg, uint16_t selector,
                       const struct x86_desc *desc)
{
    uint64_t base = x86_desc_base(desc->lo) | desc->hi << 32;

    if (!x86_is_canonical(base)) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    x86_segment_fill(seg, selector, desc->lo);
    seg->base = base;
    return 0;
}

int x86_lldt(struct x86_cpu *cpu, uint16_t selector)
{
    struct x86_segment seg;
    struct x86_desc desc;
    int load;

    if (check_table_load(cpu)) {
        return -1;
    }
    if (x86_selector_null(selector)) {
        x86_segment_null(&cpu->s.ldtr, selector);
        return 0;
    }
    if (selector & 4) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    load = x86_desc_load_system(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    if (load || !x86_desc_is_system(desc.lo) || x86_desc_type(desc.lo) != X86_TYPE_LDT) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    if (fill_system(cpu, &seg, selector, &desc)) {
        return -1;
    }
    cpu->s.ldtr = seg;
    return 0;
}

int x86_ltr(struct x86_cpu *cpu, uint16_t selector)
{
    struct x86_segment seg;
    struct x86_desc desc;
    unsigned type;
    int load;

    if (check_table_load(cpu)) {
        return -1;
    }
    if (x86_selector_null(selector) || (selector & 4)) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    load = x86_desc_load_system(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    type = x86_desc_type(desc.lo);
    if (load || !x86_desc_is_system(desc.lo) ||
        (type != X86_TYPE_TSS32 && (type != X86_TYPE_TSS16 || x86_long_mode(cpu)))) {
        return x86_raise_selector(cpu, X86_GP, selector, 0);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, 0);
    }
    desc.lo |= (uint64_t)X86_TYPE_TSS_BUSY << 40;
    if (fill_system(cpu, &seg, selector, &desc) ||
        x86_store(cpu, desc.va + 5, 1, TABLE_WRITE, (desc.lo >> 40) & 0xff)) {
        return -1;
    }
    cpu->s.tr = seg;
    return 0;
}

static int load_table(struct x86_cpu *cpu, struct x86_table *table, uint64_t base, uint16_t limit)
{
    if (cpu->cpl || (x86_code64(cpu) && !x86_is_canonical(base))) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    table->base = base;
    table->limit = limit;
    return 0;
}

int x86_lgdt(struct x86_cpu *cpu, uint64_t base, uint16_t limit)
{
    return load_table(cpu, &cpu->s.gdtr, base, limit);
}

int x86_lidt(struct x86_cpu *cpu, uint64_t base, uint16_t limit)
{
    return load_table(cpu, &cpu->s.idtr, base, limit);
}

/* --- LAR, LSL, VERR, VERW --- */

/* Sets *ret_ok when there is such a descriptor. */
static int ask(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *ret_desc, bool *ret_ok)
{
    int load;

    if (!x86_protected(cpu) || x86_vm86(cpu)) {
        return x86_raise(cpu, X86_UD);
    }
    if (x86_selector_null(selector)) {
        *ret_ok = false;
        return 0;
    }
    load = x86_desc_load(cpu, selector, ret_desc);
    if (load < 0) {
        return -1;
    }
    *ret_ok = load == 0;
    return 0;
}

/* Whether CPL and RPL let the program see this descriptor. */
static bool visible(const struct x86_cpu *cpu, uint16_t selector, uint64_t lo)
{
    unsigned dpl = x86_desc_dpl(lo);

    return x86_desc_is_conforming(lo) || (cpu->cpl <= dpl && (selector & 3u) <= dpl);
}

/* The system types that LAR and LSL accept (SDM vol. 2A, tables 3-53 and 3-54). */
#define LAR_TYPES      0x1a3eu /* 1-5, 9, b, c */
#define LAR_TYPES_LONG 0x1a04u /* 2, 9, b, c */
#define LSL_TYPES      0x0a0eu /* 1-3, 9, b */
#define LSL_TYPES_LONG 0x0a04u /* 2, 9, b */

/* What both begin with: whether the descriptor is there, may be seen, and is of a type that has an answer. */
static int ask_value(struct x86_cpu *cpu, uint16_t selector, uint32_t types, uint64_t *ret_lo, bool *ret_ok)
{
    struct x86_desc desc;
    bool ok = false;

    if (ask(cpu, selector, &desc, &ok)) {
        return -1;
    }
    *ret_ok = ok && visible(cpu, selector, desc.lo) &&
              (!x86_desc_is_system(desc.lo) || ((types >> x86_desc_type(desc.lo)) & 1));
    *ret_lo = *ret_ok ? desc.lo : 0;
    return 0;
}

int x86_lar(struct x86_cpu *cpu, uint16_t selector, bool *ret_ok, uint32_t *ret_value)
{
    uint64_t lo;

    if (ask_value(cpu, selector, x86_long_mode(cpu) ? LAR_TYPES_LONG : LAR_TYPES, &lo, ret_ok)) {
        return -1;
    }
    if (*ret_ok) { /* bits 19:16 are undefined by the manual, and the limit's on processors */
        *ret_value = (uint32_t)(lo >> 32) & 0x00ffff00;
    }
    return 0;
}

int x86_lsl(struct x86_cpu *cpu, uint16_t selector, bool *ret_ok, uint32_t *ret_value)
{
    uint64_t lo;

    if (ask_value(cpu, selector, x86_long_mode(cpu) ? LSL_TYPES_LONG : LSL_TYPES, &lo, ret_ok)) {
        return -1;
    }
    if (*ret_ok) {
        *ret_value = x86_desc_limit(lo);
    }
    return 0;
}

int x86_verr(struct x86_cpu *cpu, uint16_t selector, bool write, bool *ret_ok)
{
    struct x86_desc desc;
    bool ok = false;

    if (ask(cpu, selector, &desc, &ok)) {
        return -1;
    }
    if (ok) {
        bool code = x86_desc_is_code(desc.lo);
        bool readable = !code || (x86_desc_type(desc.lo) & X86_TYPE_WRITE);

        ok = !x86_desc_is_system(desc.lo) && visible(cpu, selector, desc.lo) &&
             (write ? x86_desc_is_writable_data(desc.lo) : readable);
    }
    *ret_ok = ok;
    return 0;
}
