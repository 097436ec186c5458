/*
 * The state after RESET, and the acceptance of state from outside (a snapshot, another engine, a boot
 * protocol).
 *
 * Neighbours: engines call x86_cpu_reset when they make a vCPU and x86_cpu_adopt in set_state.
 *
 * Invariant: whatever x86_cpu_adopt lets pass can be run and can be loaded into the host's registers: the
 * sender of a snapshot is not trusted.
 */
#include <errno.h>

#include "cpu/x86/x86_int.h"

#define SEG_DATA_RW   0x93 /* present, read and write, accessed */
#define SEG_CODE_RX   0x9b
#define SEG_LDT       0x82
#define SEG_TSS32     0x8b /* busy */
#define RESET_VECTOR  0xfff0
#define RESET_CS      0xf000
#define RESET_CS_BASE 0xffff0000u
#define RESET_LIMIT   0xffff
#define RESET_DR6     0xffff0ff0u
#define RESET_DR7     0x400u
#define RESET_PAT     0x0007040600070406ull
#define RESET_RDX     0x600u
/* Fast strings; neither branch trace nor PEBS (SDM vol. 4, table 2-2). */
#define RESET_MISC_ENABLE 0x1801u

/* Offsets in the XSAVE area (SDM vol. 1, 13.4). */
#define XSAVE_FCW        0
#define XSAVE_FTW        4
#define XSAVE_MXCSR      24
#define XSAVE_BV         512
#define XSAVE_COMP_BV    520
#define XSAVE_HEADER_END 576
#define RESET_FCW        0x0040
#define RESET_FTW        0xff /* all registers in use, holding zero */
#define RESET_MXCSR      0x1f80

/* MXCSR's bits on every processor with SSE2; DAZ included. AMD's MM (bit 17) goes with MISALIGNSSE. */
#define MXCSR_KNOWN         0xffffu
#define MXCSR_MM            BIT(17)
#define FE1_ECX_MISALIGNSSE BIT(7)

#define RFLAGS_KNOWN                                                                                         \
    (X86_FLAGS_ARITH | X86_TF | X86_IF | X86_DF | X86_IOPL | X86_NT | X86_RF | X86_VM | X86_AC | X86_VIF |   \
     X86_VIP | X86_ID)
#define RFLAGS_ONE 0x2u

static void put16(struct x86_state *state, unsigned offset, uint16_t value)
{
    __builtin_memcpy(&state->xsave[offset], &value, sizeof(value));
}

static void put32(struct x86_state *state, unsigned offset, uint32_t value)
{
    __builtin_memcpy(&state->xsave[offset], &value, sizeof(value));
}

static uint32_t get32(const struct x86_state *state, unsigned offset)
{
    uint32_t value;
    __builtin_memcpy(&value, &state->xsave[offset], sizeof(value));
    return value;
}

static uint64_t get64(const struct x86_state *state, unsigned offset)
{
    uint64_t value;
    __builtin_memcpy(&value, &state->xsave[offset], sizeof(value));
    return value;
}

/* The TSC counts on as the host's does (offset 0), so that vCPUs reset at different moments agree. */
void x86_state_reset(struct x86_state *state)
{
    x86_zero_bytes(state, sizeof(*state));
    state->gpr[X86_RDX] = RESET_RDX;
    state->rip = RESET_VECTOR;
    state->rflags = RFLAGS_ONE;
    for (unsigned i = 0; i < X86_SREGS; i++) {
        state->seg[i].limit = RESET_LIMIT;
        state->seg[i].attr = SEG_DATA_RW;
    }
    state->seg[X86_CS].selector = RESET_CS;
    state->seg[X86_CS].base = RESET_CS_BASE;
    state->seg[X86_CS].attr = SEG_CODE_RX;
    state->ldtr.limit = RESET_LIMIT;
    state->ldtr.attr = SEG_LDT;
    state->tr.limit = RESET_LIMIT;
    state->tr.attr = SEG_TSS32;
    state->gdtr.limit = RESET_LIMIT;
    state->idtr.limit = RESET_LIMIT;
    state->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
    state->dr6 = RESET_DR6;
    state->dr7 = RESET_DR7;
    state->xcr0 = XCR0_X87;
    state->pat = RESET_PAT;
    state->misc_enable = RESET_MISC_ENABLE;
    put16(state, XSAVE_FCW, RESET_FCW);
    state->xsave[XSAVE_FTW] = RESET_FTW;
    put32(state, XSAVE_MXCSR, RESET_MXCSR);
    put32(state, XSAVE_BV, XCR0_X87 | XCR0_SSE);
}

void x86_cpu_reset(struct x86_cpu *cpu)
{
    uint32_t out[4];
    x86_state_reset(&cpu->s);
    x86_cpuid(cpu, 1, 0, out);
    cpu->s.gpr[X86_RDX] = out[0];
    /* Processor 0 starts, the others wait (SDM vol. 3A, 9.4.3). */
    cpu->s.wait_for_sipi = cpu->index != 0;
    cpu->cpl = 0;
    cpu->in_delivery = false;
    cpu->next_rip = cpu->s.rip;
    if (cpu->ops) {
        cpu->ops->tlb_flush(cpu, false);
    }
}

/* --- state from outside --- */

static const char *check_control(const struct x86_cpu *cpu)
{
    const struct x86_state *s = &cpu->s;
    const bool pg = s->cr0 & X86_CR0_PG, lme = s->efer & X86_EFER_LME, lma = s->efer & X86_EFER_LMA;
    if (s->cr0 >> 32 || (pg && !(s->cr0 & X86_CR0_PE)) || ((s->cr0 & X86_CR0_NW) && !(s->cr0 & X86_CR0_CD))) {
        return "CR0";
    }
    if ((s->efer & ~cpu->cpuid.efer_mask) || lma != (lme && pg)) {
        return "EFER";
    }
    if ((s->cr4 & ~cpu->cpuid.cr4_mask) || (lma && !(s->cr4 & X86_CR4_PAE)) ||
        (!lma && (s->cr4 & X86_CR4_PCIDE))) {
        return "CR4";
    }
    if (s->cr3 >> cpu->cpuid.phys_bits) {
        return "CR3";
    }
    if ((s->rflags & ~(uint64_t)(RFLAGS_KNOWN | RFLAGS_ONE)) || !(s->rflags & RFLAGS_ONE) ||
        ((s->rflags & X86_VM) && (lma || !(s->cr0 & X86_CR0_PE)))) {
        return "RFLAGS";
    }
    if (!x86_xcr0_valid(cpu, s->xcr0)) {
        return "XCR0";
    }
    return NULL;
}

static const char *check_addresses(const struct x86_cpu *cpu)
{
    const struct x86_state *s = &cpu->s;
    const uint64_t canonical[] = {
        s->lstar,     s->cstar,     s->kernel_gs_base, s->sysenter_esp,     s->sysenter_eip,    s->gdtr.base,
        s->idtr.base, s->ldtr.base, s->tr.base,        s->seg[X86_FS].base, s->seg[X86_GS].base};
    for (unsigned i = 0; i < ARRAY_SIZE(canonical); i++) {
        if (!x86_is_canonical(canonical[i])) {
            return "a base address";
        }
    }
    for (unsigned i = X86_ES; i <= X86_DS; i++) {
        if (s->seg[i].base >> 32) {
            return "a segment base";
        }
    }
    const uint16_t cs = s->seg[X86_CS].attr;
    if (x86_long_mode(cpu) && (cs & X86_SEG_L) && (cs & X86_SEG_DB)) {
        return "CS";
    }
    if (x86_code64(cpu) ? !x86_is_canonical(s->rip) : s->rip >> 32 != 0) {
        return "RIP";
    }
    return NULL;
}

static const char *check_registers(const struct x86_cpu *cpu)
{
    const struct x86_state *s = &cpu->s;
    if (s->dr6 >> 32 || s->dr7 >> 32) {
        return "DR6 or DR7";
    }
    if (!x86_pat_valid(s->pat)) {
        return "IA32_PAT";
    }
    if (s->tsc_aux >> 32) {
        return "IA32_TSC_AUX";
    }
    uint32_t mxcsr = MXCSR_KNOWN | (cpu->cpuid.fe1_ecx & FE1_ECX_MISALIGNSSE ? MXCSR_MM : 0);
    if (get32(s, XSAVE_MXCSR) & ~mxcsr) {
        return "MXCSR";
    }
    /* What XRSTOR would refuse (SDM vol. 1, 13.8.1). */
    if (get64(s, XSAVE_BV) & ~cpu->cpuid.xcr0_mask) {
        return "XSTATE_BV";
    }
    for (unsigned i = XSAVE_COMP_BV; i < XSAVE_HEADER_END; i += 8) {
        if (get64(s, i) != 0) {
            return "the XSAVE header";
        }
    }
    return NULL;
}

/* SS.DPL is the CPL, except that a null SS (64-bit mode) has none; between setting CR0.PE and the far jump SS
 * still has what real mode gave it, which is 0. */
static uint8_t current_cpl(const struct x86_cpu *cpu)
{
    if (!x86_protected(cpu)) {
        return 0;
    }
    if (x86_vm86(cpu)) {
        return 3;
    }
    uint16_t ss = cpu->s.seg[X86_SS].attr;
    return (uint8_t)(ss ? (ss & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT : cpu->s.seg[X86_CS].selector & 3);
}

int x86_cpu_adopt(struct x86_cpu *cpu, struct err *err)
{
    const char *wrong = check_control(cpu);
    if (!wrong) {
        wrong = check_addresses(cpu);
    }
    if (!wrong) {
        wrong = check_registers(cpu);
    }
    if (wrong) {
        return err_set(err, -EINVAL, "processor state is impossible: %s has a value that no processor holds",
                       wrong);
    }
    cpu->cpl = current_cpl(cpu);
    cpu->in_delivery = false;
    cpu->next_rip = cpu->s.rip;
    if (cpu->ops) {
        cpu->ops->tlb_flush(cpu, false);
    }
    return 0;
}
