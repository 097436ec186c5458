/*
 * Hardware task switches, by JMP, CALL, interrupts and IRET, among 16- and 32-bit tasks.
 *
 * Neighbours: transfer.c and deliver.c decide that a switch is due and check the gate's privilege.
 *
 * Invariants
 *  1. Up to the commit nothing has changed; every page that the commit writes was found writable.
 *  2. The commit writes memory first, registers last. What goes wrong afterwards (segments of the new task)
 *     is the new task's exception; the registers that couldn't be loaded are null then.
 *
 * SDM vol. 3A, 7.3 and table 7-1.
 */
#include "cpu/x86/descriptor.h"

#define TABLE_READ  (X86_ACCESS_READ | X86_ACCESS_IMPLICIT)
#define TABLE_WRITE (X86_ACCESS_WRITE | X86_ACCESS_IMPLICIT)

/* SDM vol. 3A, figure 7-2 */
#define TSS32_BYTES 104u
#define TSS32_CR3   0x1cu
#define TSS32_SAVED 0x20u /* EIP, EFLAGS, 8 registers, 6 selectors: 4 bytes each */
#define TSS32_LDT   0x60u
#define TSS32_TRAP  0x64u
/* SDM vol. 3A, figure 7-10 */
#define TSS16_BYTES 44u
#define TSS16_SAVED 0x0eu /* IP, FLAGS, 8 registers, 4 selectors: 2 bytes each */
#define TSS16_LDT   0x2au

#define SAVED32 16u
#define SAVED16 14u

#define DR7_LOCAL 0x155ull /* L0-L3, LE */

/* The part of a TSS that a switch saves and loads. */
struct task_image {
    uint32_t fields[SAVED32]; /* EIP, EFLAGS, EAX... EDI, ES, CS, SS, DS, FS, GS */
    uint32_t cr3;
    uint16_t ldt;
    bool has_cr3; /* 32-bit TSSs have one */
    bool trap;
};
#define FIELD_EIP    0u
#define FIELD_EFLAGS 1u
#define FIELD_GPRS   2u
#define FIELD_SREGS  10u

static uint32_t get_field(const uint8_t *from, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        value |= (uint32_t)from[i] << (8 * i);
    }
    return value;
}

static int read_image(struct x86_cpu *cpu, uint32_t base, bool wide, struct task_image *ret)
{
    unsigned size = wide ? 4 : 2;
    unsigned count = wide ? SAVED32 : SAVED16;
    uint8_t tss[TSS32_BYTES];

    if (x86_load_buf(cpu, base, tss, wide ? TSS32_BYTES : TSS16_BYTES, TABLE_READ)) {
        return -1;
    }
    for (unsigned i = 0; i < SAVED32; i++) {
        ret->fields[i] = i < count ? get_field(tss + (wide ? TSS32_SAVED : TSS16_SAVED) + i * size, size) : 0;
    }
    ret->has_cr3 = wide;
    ret->cr3 = get_field(tss + TSS32_CR3, 4);
    ret->ldt = (uint16_t)get_field(tss + (wide ? TSS32_LDT : TSS16_LDT), 2);
    ret->trap = wide && (tss[TSS32_TRAP] & 1);
    return 0;
}

/* Saves the old task. */
static int write_image(struct x86_cpu *cpu, bool wide, uint32_t eip, uint32_t eflags)
{
    const struct x86_state *s = &cpu->s;
    unsigned size = wide ? 4 : 2;
    unsigned count = wide ? SAVED32 : SAVED16;
    uint8_t bytes[SAVED32 * 4];

    for (unsigned i = 0; i < count; i++) {
        uint32_t value = i == FIELD_EIP      ? eip
                         : i == FIELD_EFLAGS ? eflags
                         : i < FIELD_SREGS   ? (uint32_t)s->gpr[i - FIELD_GPRS]
                                             : s->seg[i - FIELD_SREGS].selector;

        for (unsigned j = 0; j < size; j++) {
            bytes[i * size + j] = (uint8_t)(value >> (8 * j));
        }
    }
    return x86_store_buf(cpu, (uint32_t)(s->tr.base + (wide ? TSS32_SAVED : TSS16_SAVED)), bytes,
                         count * size, TABLE_WRITE);
}

/* The new task's TSS descriptor (steps 1, 3 and 4). */
static int check_tss(struct x86_cpu *cpu, uint16_t selector, enum x86_task_how how, unsigned ext,
                     struct x86_desc *ret_desc)
{
    enum x86_vector bad = how == X86_TASK_IRET ? X86_TS : X86_GP;
    int load = x86_selector_null(selector) || (selector & 4) ? 1 : x86_desc_load(cpu, selector, ret_desc);
    unsigned type;

    if (load < 0) {
        return -1;
    }
    if (load || x86_long_mode(cpu)) {
        return x86_raise_selector(cpu, bad, selector, ext);
    }
    type = (unsigned)(ret_desc->lo >> 40) & 0x1f;
    if ((type & ~8u) != (how == X86_TASK_IRET ? X86_TYPE_TSS16_BUSY : X86_TYPE_TSS16)) {
        return x86_raise_selector(cpu, bad, selector, ext);
    }
    if (!x86_desc_present(ret_desc->lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, ext);
    }
    if (x86_desc_limit(ret_desc->lo) < (type & 8 ? TSS32_BYTES : TSS16_BYTES) - 1) {
        return x86_raise_selector(cpu, X86_TS, selector, ext);
    }
    return 0;
}

/* Sets or clears the busy bit in a TSS descriptor. */
static int write_busy(struct x86_cpu *cpu, uint32_t va, bool busy)
{
    uint64_t byte;

    if (x86_load(cpu, va + 5, 1, TABLE_READ, &byte)) {
        return -1;
    }
    byte = busy ? byte | X86_TYPE_TSS_BUSY : byte & ~(uint64_t)X86_TYPE_TSS_BUSY;
    return x86_store(cpu, va + 5, 1, TABLE_WRITE, byte);
}

/* Everything that the switch writes to memory (steps 5, 6, 8 and 10). */
static int write_memory(struct x86_cpu *cpu, const struct x86_desc *desc, enum x86_task_how how, uint32_t eip,
                        uint32_t eflags)
{
    bool nested = how == X86_TASK_CALL || how == X86_TASK_INT;
    bool old_wide = (cpu->s.tr.attr & 8) != 0;
    uint32_t old_saved = (uint32_t)(cpu->s.tr.base + (old_wide ? TSS32_SAVED : TSS16_SAVED));
    uint32_t old_desc = (uint32_t)(cpu->s.gdtr.base + (cpu->s.tr.selector & 0xfff8u));
    uint32_t new_desc = (uint32_t)desc->va;
    uint32_t new_base = x86_desc_base(desc->lo);

    if (x86_probe_write(cpu, old_saved, old_wide ? SAVED32 * 4 : SAVED16 * 2, X86_ACCESS_IMPLICIT) ||
        (nested && x86_probe_write(cpu, new_base, 2, X86_ACCESS_IMPLICIT)) ||
        (!nested && x86_probe_write(cpu, old_desc + 5, 1, X86_ACCESS_IMPLICIT)) ||
        (how != X86_TASK_IRET && x86_probe_write(cpu, new_desc + 5, 1, X86_ACCESS_IMPLICIT))) {
        return -1;
    }
    if ((!nested && write_busy(cpu, old_desc, false)) || write_image(cpu, old_wide, eip, eflags) ||
        (nested && x86_store(cpu, new_base, 2, TABLE_WRITE, cpu->s.tr.selector)) ||
        (how != X86_TASK_IRET && write_busy(cpu, new_desc, true))) {
        return -1;
    }
    return 0;
}

static int load_ldt(struct x86_cpu *cpu, uint16_t selector, unsigned ext)
{
    struct x86_desc desc;
    int load;

    if (x86_selector_null(selector)) {
        return 0;
    }
    load = selector & 4 ? 1 : x86_desc_load(cpu, selector, &desc);
    if (load < 0) {
        return -1;
    }
    if (load || ((desc.lo >> 40) & 0x1f) != X86_TYPE_LDT || !x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_TS, selector, ext);
    }
    x86_segment_fill(&cpu->s.ldtr, selector, desc.lo);
    return 0;
}

static int load_code(struct x86_cpu *cpu, uint16_t selector, unsigned ext)
{
    unsigned rpl = selector & 3u;
    struct x86_desc desc;
    unsigned dpl;
    int load = x86_selector_null(selector) ? 1 : x86_desc_load(cpu, selector, &desc);

    if (load < 0) {
        return -1;
    }
    if (load || !x86_desc_is_code(desc.lo)) {
        return x86_raise_selector(cpu, X86_TS, selector, ext);
    }
    dpl = x86_desc_dpl(desc.lo);
    if (x86_desc_is_conforming(desc.lo) ? dpl > rpl : dpl != rpl) {
        return x86_raise_selector(cpu, X86_TS, selector, ext);
    }
    if (!x86_desc_present(desc.lo)) {
        return x86_raise_selector(cpu, X86_NP, selector, ext);
    }
    if (x86_desc_mark_accessed(cpu, &desc)) {
        return -1;
    }
    x86_segment_fill(&cpu->s.seg[X86_CS], selector, desc.lo);
    return 0;
}

/* Step 13: the selectors are in the registers already, with null segments behind them. */
static int load_segments(struct x86_cpu *cpu, unsigned ext)
{
    static const uint8_t data[] = {X86_DS, X86_ES, X86_FS, X86_GS};
    struct x86_segment *seg = cpu->s.seg;

    if (load_ldt(cpu, cpu->s.ldtr.selector, ext)) {
        return -1;
    }
    if (!x86_vm86(cpu)) {
        if (load_code(cpu, seg[X86_CS].selector, ext) ||
            x86_stack_segment(cpu, seg[X86_SS].selector, cpu->cpl, X86_TS, false, ext, &seg[X86_SS])) {
            return -1;
        }
        for (unsigned i = 0; i < sizeof(data); i++) {
            if (x86_data_segment(cpu, seg[data[i]].selector, X86_TS, ext, &seg[data[i]])) {
                return -1;
            }
        }
    }
    return cpu->s.rip > seg[X86_CS].limit ? x86_raise_error(cpu, X86_GP, ext) : 0;
}

int x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_how how, uint32_t return_eip,
                    uint32_t flags, unsigned ext, struct x86_task_result *result)
{
    struct x86_state *s = &cpu->s;
    struct task_image image;
    struct x86_desc desc;

    if (check_tss(cpu, selector, how, ext, &desc) ||
        read_image(cpu, x86_desc_base(desc.lo), (x86_desc_type(desc.lo) & 8) != 0, &image) ||
        write_memory(cpu, &desc, how, return_eip, flags)) {
        return -1;
    }

    result->switched = true;
    result->trap = image.trap;
    x86_segment_fill(&s->tr, selector, desc.lo | (uint64_t)X86_TYPE_TSS_BUSY << 40);
    s->cr0 |= X86_CR0_TS;
    s->dr7 &= ~DR7_LOCAL;
    s->rip = image.fields[FIELD_EIP];
    s->rflags = (image.fields[FIELD_EFLAGS] & X86_FLAGS_DEFINED) | X86_FLAGS_FIXED;
    if (how == X86_TASK_CALL || how == X86_TASK_INT) {
        s->rflags |= X86_NT;
    }
    for (unsigned i = 0; i < 8; i++) {
        s->gpr[i] = image.fields[FIELD_GPRS + i];
    }
    for (unsigned i = 0; i < X86_SREGS; i++) {
        uint16_t sreg = (uint16_t)image.fields[FIELD_SREGS + i];

        if (x86_vm86(cpu)) {
            x86_segment_vm86(&s->seg[i], sreg);
        } else {
            x86_segment_null(&s->seg[i], sreg);
        }
    }
    cpu->cpl = x86_vm86(cpu) ? 3 : s->seg[X86_CS].selector & 3;
    x86_segment_null(&s->ldtr, image.ldt);
    if (image.has_cr3 && (s->cr0 & X86_CR0_PG)) {
        s->cr3 = image.cr3;
        cpu->ops->tlb_switch(cpu, true);
    }
    return load_segments(cpu, ext);
}
