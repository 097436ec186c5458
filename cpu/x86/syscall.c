/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT.
 *
 * Neighbours: deliver.c has the system calls that are interrupts.
 *
 * Invariant: no descriptor is read; CS and SS get fixed attributes.
 *
 * Where the vendors differ cpuid.intel decides: Intel has SYSCALL and SYSRET in 64-bit mode only and refuses
 * a RCX that is not canonical, AMD has SYSENTER and SYSEXIT outside of long mode only. AMD's SYSRET leaves
 * SS's hidden part alone; here it becomes a flat one for both.
 *
 * SDM vol. 2B, SYSCALL, SYSENTER, SYSEXIT, SYSRET; AMD APM vol. 3, the same.
 */
#include "cpu/x86/descriptor.h"

/* What SYSRET takes from R11: all but RF and VM. */
#define SYSRET_FLAGS (X86_FLAGS_DEFINED & ~(uint64_t)(X86_RF | X86_VM))

static void set_segments(struct x86_cpu *cpu, uint16_t cs, uint16_t cs_attr, uint16_t ss, uint16_t ss_attr)
{
    x86_segment_flat(&cpu->s.seg[X86_CS], cs, cs_attr);
    x86_segment_flat(&cpu->s.seg[X86_SS], ss, ss_attr);
    cpu->cpl = (uint8_t)((ss_attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT);
}

/* AMD's SYSCALL outside of long mode: the target is STAR's low half. */
static int syscall_legacy(struct x86_cpu *cpu)
{
    struct x86_state *s = &cpu->s;
    uint16_t selector = (uint16_t)(s->star >> 32) & 0xfffc;

    if (!x86_protected(cpu) || x86_vm86(cpu)) {
        return x86_raise(cpu, X86_UD);
    }
    s->gpr[X86_RCX] = (uint32_t)cpu->next_rip;
    s->rip = (uint32_t)s->star;
    s->rflags &= ~(uint64_t)(X86_IF | X86_VM | X86_RF);
    set_segments(cpu, selector, X86_ATTR_CODE32_KERNEL, (uint16_t)(selector + 8), X86_ATTR_DATA_KERNEL);
    return 0;
}

int x86_syscall(struct x86_cpu *cpu)
{
    struct x86_state *s = &cpu->s;
    bool code64 = x86_code64(cpu);
    uint16_t selector = (uint16_t)(s->star >> 32) & 0xfffc;

    if (!(s->efer & X86_EFER_SCE) || (cpu->cpuid.intel && !code64)) {
        return x86_raise(cpu, X86_UD);
    }
    if (!x86_long_mode(cpu)) {
        return syscall_legacy(cpu);
    }
    s->gpr[X86_RCX] = code64 ? cpu->next_rip : (uint32_t)cpu->next_rip;
    s->gpr[X86_R11] = s->rflags & ~(uint64_t)X86_RF;
    s->rflags = (s->rflags & ~(s->sfmask | X86_RF)) | X86_FLAGS_FIXED;
    s->rip = code64 ? s->lstar : s->cstar;
    set_segments(cpu, selector, X86_ATTR_CODE64_KERNEL, (uint16_t)(selector + 8), X86_ATTR_DATA_KERNEL);
    return 0;
}

int x86_sysret(struct x86_cpu *cpu, unsigned operand)
{
    struct x86_state *s = &cpu->s;
    bool long_mode = x86_long_mode(cpu);
    uint16_t selector = (uint16_t)(s->star >> 48) | 3;
    uint64_t rip = s->gpr[X86_RCX];

    if (!(s->efer & X86_EFER_SCE) || (cpu->cpuid.intel && !x86_code64(cpu))) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0 || !x86_protected(cpu) ||
        (operand == 8 && cpu->cpuid.intel && !x86_is_canonical(rip))) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    if (long_mode) {
        s->rflags = (s->gpr[X86_R11] & SYSRET_FLAGS) | X86_FLAGS_FIXED;
    } else {
        s->rflags |= X86_IF;
    }
    if (operand == 8) {
        s->rip = rip;
        set_segments(cpu, (uint16_t)(selector + 16), X86_ATTR_CODE64_USER, (uint16_t)(selector + 8),
                     X86_ATTR_DATA_USER);
    } else {
        s->rip = (uint32_t)rip;
        set_segments(cpu, selector, X86_ATTR_CODE32_USER, (uint16_t)(selector + 8), X86_ATTR_DATA_USER);
    }
    return 0;
}

/* Whether IA32_SYSENTER_CS holds a selector, and the mode and the vendor have the instruction. Raises what's
 * due. */
static int check_sysenter(struct x86_cpu *cpu)
{
    if (!cpu->cpuid.intel && x86_long_mode(cpu)) {
        return x86_raise(cpu, X86_UD);
    }
    if (!x86_protected(cpu) || x86_selector_null((uint16_t)cpu->s.sysenter_cs)) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    return 0;
}

int x86_sysenter(struct x86_cpu *cpu)
{
    struct x86_state *s = &cpu->s;
    bool long_mode = x86_long_mode(cpu);
    uint16_t selector = (uint16_t)s->sysenter_cs & 0xfffc;

    if (check_sysenter(cpu)) {
        return -1;
    }
    s->rflags &= ~(uint64_t)(X86_VM | X86_IF | X86_RF);
    s->gpr[X86_RSP] = long_mode ? s->sysenter_esp : (uint32_t)s->sysenter_esp;
    s->rip = long_mode ? s->sysenter_eip : (uint32_t)s->sysenter_eip;
    set_segments(cpu, selector, long_mode ? X86_ATTR_CODE64_KERNEL : X86_ATTR_CODE32_KERNEL,
                 (uint16_t)(selector + 8), X86_ATTR_DATA_KERNEL);
    return 0;
}

int x86_sysexit(struct x86_cpu *cpu, unsigned operand)
{
    struct x86_state *s = &cpu->s;
    uint16_t selector = (uint16_t)((uint16_t)s->sysenter_cs + (operand == 8 ? 32 : 16)) | 3;
    uint64_t rsp = s->gpr[X86_RCX];
    uint64_t rip = s->gpr[X86_RDX];

    if (check_sysenter(cpu)) {
        return -1;
    }
    if (cpu->cpl != 0 || (operand == 8 && (!x86_is_canonical(rsp) || !x86_is_canonical(rip)))) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    s->gpr[X86_RSP] = operand == 8 ? rsp : (uint32_t)rsp;
    s->rip = operand == 8 ? rip : (uint32_t)rip;
    set_segments(cpu, selector, operand == 8 ? X86_ATTR_CODE64_USER : X86_ATTR_CODE32_USER,
                 (uint16_t)(selector + 8), X86_ATTR_DATA_USER);
    return 0;
}
