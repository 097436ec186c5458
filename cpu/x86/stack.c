/*
 * Stacks, as far as the processor itself pushes and pops: frames, inner stacks from the TSS, the stack
 * pointer's width.
 *
 * Neighbours: deliver.c, transfer.c and task.c; the 64-bit paths of the former two write their frames
 * themselves.
 *
 * Invariant: a frame is written as a whole or not at all.
 *
 * SDM vol. 3A, 6.12 and 5.8; vol. 1, 6.2.
 */
#include "cpu/x86/descriptor.h"

#define TABLE_READ (X86_ACCESS_READ | X86_ACCESS_IMPLICIT)

static bool tss_is_32(const struct x86_cpu *cpu)
{
    return (cpu->s.tr.attr & 8) != 0;
}

/* SDM vol. 2A, INT n: "identify stack-segment selector for new privilege level in current TSS". */
int x86_inner_stack(struct x86_cpu *cpu, unsigned cpl, unsigned ext, struct x86_segment *ret_seg,
                    uint32_t *ret_esp)
{
    bool wide = tss_is_32(cpu);
    unsigned size = wide ? 4 : 2;
    uint32_t offset = wide ? cpl * 8 + 4 : cpl * 4 + 2;
    uint32_t base = (uint32_t)cpu->s.tr.base;
    uint64_t esp;
    uint64_t ss;

    /* The selector's two bytes are the last ones that are read. */
    if (offset + size + 1 > cpu->s.tr.limit) {
        return x86_raise_selector(cpu, X86_TS, cpu->s.tr.selector, ext);
    }
    if (x86_load(cpu, base + offset, size, TABLE_READ, &esp) ||
        x86_load(cpu, base + offset + size, 2, TABLE_READ, &ss) ||
        x86_stack_segment(cpu, (uint16_t)ss, cpl, X86_TS, false, ext, ret_seg)) {
        return -1;
    }
    *ret_esp = (uint32_t)esp;
    return 0;
}

int x86_inner_stack64(struct x86_cpu *cpu, unsigned slot, unsigned ext, uint64_t *ret_rsp)
{
    uint32_t offset = slot * 8 + 4; /* SDM vol. 3A, figure 7-11: RSP0 at 4, IST1 at 36 */

    if (offset + 7 > cpu->s.tr.limit) {
        return x86_raise_selector(cpu, X86_TS, cpu->s.tr.selector, ext);
    }
    return x86_table_load(cpu, cpu->s.tr.base + offset, ret_rsp);
}

int x86_probe_write(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access)
{
    struct x86_walk walk;
    uint64_t last = va + size - 1;

    if (x86_walk(cpu, va, access | X86_ACCESS_WRITE, &walk)) {
        return -1;
    }
    if (((va ^ last) & ~(uint64_t)(MEM_PAGE_SIZE - 1)) == 0) {
        return 0;
    }
    last = x86_long_mode(cpu) ? last : (uint32_t)last;
    return x86_walk(cpu, last & ~(uint64_t)(MEM_PAGE_SIZE - 1), access | X86_ACCESS_WRITE, &walk);
}

/* A frame on a 16-bit stack may wrap from SP 0 to the segment's end; it then consists of two runs of items.
 */
int x86_push_frame(struct x86_cpu *cpu, const struct x86_segment *ss, uint32_t esp, const uint32_t *items,
                   unsigned count, unsigned size, unsigned access, uint32_t ss_error, uint32_t *ret_esp)
{
    uint32_t mask = ss->attr & X86_SEG_DB ? UINT32_MAX : UINT16_MAX;
    uint32_t sp = esp & mask;
    unsigned low_count =
        sp / size < count ? (unsigned)(sp / size) : count; /* items below sp without wrapping */
    unsigned high_count = count - low_count;
    uint32_t low = sp - low_count * size;
    uint32_t high = (sp - count * size) & mask;
    uint8_t bytes[X86_FRAME_MAX * 4];

    if ((low_count && !x86_within_limit(ss, low, low_count * size)) ||
        (high_count && !x86_within_limit(ss, high, high_count * size))) {
        return x86_raise_error(cpu, X86_SS_EXC, ss_error);
    }
    for (unsigned i = 0; i < count; i++) {
        uint8_t *to = bytes + (count - 1 - i) * size;

        for (unsigned j = 0; j < size; j++) {
            to[j] = (uint8_t)(items[i] >> (8 * j));
        }
    }
    if (low_count && high_count &&
        x86_probe_write(cpu, (uint32_t)(ss->base + low), low_count * size, access)) {
        return -1;
    }
    if (high_count && x86_store_buf(cpu, (uint32_t)(ss->base + high), bytes, high_count * size,
                                    access | X86_ACCESS_WRITE)) {
        return -1;
    }
    if (low_count && x86_store_buf(cpu, (uint32_t)(ss->base + low), bytes + high_count * size,
                                   low_count * size, access | X86_ACCESS_WRITE)) {
        return -1;
    }
    *ret_esp = high_count ? high : low;
    return 0;
}

int x86_peek_stack(struct x86_cpu *cpu, unsigned index, unsigned size, unsigned skip, uint64_t *ret)
{
    const struct x86_segment *ss = &cpu->s.seg[X86_SS];
    uint64_t sp = cpu->s.gpr[X86_RSP] + index * size + skip;
    uint64_t va = sp;

    if (x86_code64(cpu)) {
        if (!x86_is_canonical(va) || !x86_is_canonical(va + size - 1)) {
            return x86_raise_error(cpu, X86_SS_EXC, 0);
        }
    } else {
        sp &= ss->attr & X86_SEG_DB ? UINT32_MAX : UINT16_MAX;
        if (!x86_within_limit(ss, (uint32_t)sp, size)) {
            return x86_raise_error(cpu, X86_SS_EXC, 0);
        }
        va = (uint32_t)(ss->base + sp);
    }
    return x86_load(cpu, va, size, x86_access_mode(cpu), ret);
}

void x86_set_sp(struct x86_cpu *cpu, const struct x86_segment *ss, bool code64, uint64_t sp)
{
    uint64_t *rsp = &cpu->s.gpr[X86_RSP];

    if (code64) {
        *rsp = sp;
    } else if (ss->attr & X86_SEG_DB) {
        *rsp = (uint32_t)sp;
    } else {
        *rsp = (*rsp & 0xffff0000) | (sp & 0xffff);
    }
}
