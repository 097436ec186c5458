/*
 * The small system instructions: flags, I/O permission, SWAPGS, FS and GS base, privilege checks.
 *
 * Neighbours: engines call these for the instructions of the same names.
 *
 * Virtual-mode extensions (CR4.VME, CR4.PVI) are not offered, so CLI, STI, PUSHF and POPF know IOPL only.
 */
#include "cpu/x86/x86_int.h"

#define TSS_IO_MAP_BASE   0x66u
#define TSS_MIN_LIMIT     0x67u /* of 32-bit and 64-bit TSSs (SDM vol. 3A, 8.2.1 and 8.7) */
#define SEG_TYPE_TSS      0x9u
#define SEG_TYPE_TSS_BUSY 0xbu

static int gp0(struct x86_cpu *cpu)
{
    return x86_raise_error(cpu, X86_GP, 0);
}

static unsigned iopl(const struct x86_cpu *cpu)
{
    return (cpu->s.rflags & X86_IOPL) >> 12;
}

int x86_check_cpl0(struct x86_cpu *cpu)
{
    return cpu->cpl == 0 ? 0 : gp0(cpu);
}

int x86_check_umip(struct x86_cpu *cpu)
{
    return (cpu->s.cr4 & X86_CR4_UMIP) && cpu->cpl != 0 ? gp0(cpu) : 0;
}

/* SDM vol. 1, 20.5.2 (vol. 3A, 21.3.3 for virtual-8086 mode, where IOPL does not matter). */
int x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
    if (!x86_vm86(cpu) && cpu->cpl <= iopl(cpu)) {
        return 0;
    }
    const struct x86_segment *tr = &cpu->s.tr;
    const uint16_t type = tr->attr & X86_SEG_TYPE;
    if (!(tr->attr & X86_SEG_P) || (type != SEG_TYPE_TSS && type != SEG_TYPE_TSS_BUSY) ||
        tr->limit < TSS_MIN_LIMIT) {
        return gp0(cpu);
    }
    uint64_t map, bits;
    if (x86_load(cpu, tr->base + TSS_IO_MAP_BASE, 2, X86_ACCESS_READ | X86_ACCESS_IMPLICIT, &map) < 0) {
        return -1;
    }
    /* The processor reads two bytes, whatever the size. */
    const uint64_t offset = map + port / 8;
    if (offset + 1 > tr->limit) {
        return gp0(cpu);
    }
    if (x86_load(cpu, tr->base + offset, 2, X86_ACCESS_READ | X86_ACCESS_IMPLICIT, &bits) < 0) {
        return -1;
    }
    return bits >> (port & 7) & ((1u << size) - 1) ? gp0(cpu) : 0;
}

/* --- flags --- */

static bool may_change_if(const struct x86_cpu *cpu)
{
    return x86_vm86(cpu) ? iopl(cpu) == 3 : cpu->cpl <= iopl(cpu);
}

int x86_cli(struct x86_cpu *cpu)
{
    if (!may_change_if(cpu)) {
        return gp0(cpu);
    }
    cpu->s.rflags &= ~(uint64_t)X86_IF;
    return 0;
}

int x86_sti(struct x86_cpu *cpu)
{
    if (!may_change_if(cpu)) {
        return gp0(cpu);
    }
    if (!(cpu->s.rflags & X86_IF)) {
        cpu->s.rflags |= X86_IF;
        cpu->s.sti_shadow = true;
    }
    return 0;
}

/* SDM vol. 2B, POPF, table 4-16 */
int x86_popf(struct x86_cpu *cpu, unsigned operand, uint64_t value)
{
    if (x86_vm86(cpu) && iopl(cpu) < 3) {
        return gp0(cpu);
    }
    uint64_t mask = X86_FLAGS_ARITH | X86_TF | X86_DF | X86_NT;
    if (operand > 2) {
        mask |= X86_AC | X86_ID;
    }
    if (may_change_if(cpu)) {
        mask |= X86_IF;
    }
    if (cpu->cpl == 0) {
        mask |= X86_IOPL;
    }
    cpu->s.rflags = (cpu->s.rflags & ~(mask | X86_RF)) | (value & mask);
    return 0;
}

int x86_pushf(struct x86_cpu *cpu, unsigned operand, uint64_t *ret)
{
    if (x86_vm86(cpu) && iopl(cpu) < 3) {
        return gp0(cpu);
    }
    uint64_t value = cpu->s.rflags & ~(uint64_t)(X86_VM | X86_RF);
    *ret = operand == 2 ? (uint16_t)value : value;
    return 0;
}

int x86_clac_stac(struct x86_cpu *cpu, bool set)
{
    if (!(cpu->cpuid.f7_ebx & F7_EBX_SMAP) || cpu->cpl != 0) {
        return x86_raise(cpu, X86_UD);
    }
    if (set) {
        cpu->s.rflags |= X86_AC;
    } else {
        cpu->s.rflags &= ~(uint64_t)X86_AC;
    }
    return 0;
}

/* --- FS and GS base --- */

int x86_swapgs(struct x86_cpu *cpu)
{
    if (!x86_code64(cpu)) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    uint64_t base = cpu->s.seg[X86_GS].base;
    cpu->s.seg[X86_GS].base = cpu->s.kernel_gs_base;
    cpu->s.kernel_gs_base = base;
    return 0;
}

int x86_fsgsbase(struct x86_cpu *cpu, enum x86_sreg sreg, bool write, unsigned operand, uint64_t *value)
{
    if (!x86_code64(cpu) || !(cpu->s.cr4 & X86_CR4_FSGSBASE)) {
        return x86_raise(cpu, X86_UD);
    }
    uint64_t *base = &cpu->s.seg[sreg].base;
    if (!write) {
        *value = operand == 8 ? *base : (uint32_t)*base;
        return 0;
    }
    uint64_t new = operand == 8 ? *value : (uint32_t)*value;
    if (!x86_is_canonical(new)) {
        return gp0(cpu);
    }
    *base = new;
    return 0;
}
