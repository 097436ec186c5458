/*
 * Control registers, XCR0, and the instructions that invalidate translations.
 *
 * Neighbours: engines call these for the instructions of the same names; walk.c reads what is written here.
 *
 * Invariants
 *  1. Every check comes before the first change.
 *  2. A change that the SDM lists as invalidating translations (vol. 3A, 4.10.4.1), and every change of a
 *     bit that a cached permission depends on (CR0.WP, CR4.SMEP and SMAP, EFER.NXE), flushes through
 *     ops->tlb_*.
 *  3. EFER.LMA is EFER.LME and CR0.PG, always.
 *
 * Threads: the vCPU's own.
 */
#include "cpu/x86/x86_int.h"

#define CR0_KNOWN                                                                                            \
    (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | \
     X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)

#define CR3_NOFLUSH   BIT64(63)
#define CR3_PCID_MASK 0xfffu

#define SEG_TYPE_TSS16      1u
#define SEG_TYPE_TSS16_BUSY 3u

static int gp0(struct x86_cpu *cpu)
{
    return x86_raise_error(cpu, X86_GP, 0);
}

static uint16_t current_pcid(const struct x86_cpu *cpu)
{
    return cpu->s.cr4 & X86_CR4_PCIDE ? (uint16_t)(cpu->s.cr3 & CR3_PCID_MASK) : 0;
}

/* Whether PAE's four PDPTEs have no reserved bit set where present: the condition of loading them (SDM vol.
 * 3A, 4.4.1). What is not RAM reads as all ones, so it fails. */
static bool pdptes_valid(const struct x86_cpu *cpu, uint64_t cr3)
{
    uint64_t reserved = ~(BIT64(cpu->cpuid.phys_bits) - 1) | 0x1e6;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t *slot = mem_ram_ptr(cpu->mem, GPA((cr3 & 0xffffffe0u) + 8 * i), NULL);
        uint64_t pdpte = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : ~0ull;
        if ((pdpte & 1) && (pdpte & reserved)) {
            return false;
        }
    }
    return true;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
    return (cr0 & X86_CR0_PG) && (cr4 & X86_CR4_PAE) && !(efer & X86_EFER_LME);
}

/* What setting CR0.PG with EFER.LME requires (SDM vol. 3A, 10.8.5). */
static bool may_enter_long_mode(const struct x86_cpu *cpu)
{
    uint16_t tr_type = cpu->s.tr.attr & X86_SEG_TYPE;
    return (cpu->s.cr4 & X86_CR4_PAE) && !(cpu->s.seg[X86_CS].attr & X86_SEG_L) &&
           tr_type != SEG_TYPE_TSS16 && tr_type != SEG_TYPE_TSS16_BUSY;
}

static int set_cr0(struct x86_cpu *cpu, uint64_t value)
{
    const uint64_t old = cpu->s.cr0;
    if (value >> 32) {
        return gp0(cpu);
    }
    /* Reserved bits of the lower half are ignored, ET reads as one (SDM vol. 3A, 2.5). */
    value = (value & CR0_KNOWN) | X86_CR0_ET;
    if ((value & X86_CR0_PG) && !(value & X86_CR0_PE)) {
        return gp0(cpu);
    }
    if ((value & X86_CR0_NW) && !(value & X86_CR0_CD)) {
        return gp0(cpu);
    }
    const uint64_t changed = old ^ value;
    uint64_t efer = cpu->s.efer;
    if (changed & X86_CR0_PG) {
        if (value & X86_CR0_PG) {
            if (efer & X86_EFER_LME) {
                if (!may_enter_long_mode(cpu)) {
                    return gp0(cpu);
                }
                efer |= X86_EFER_LMA;
            }
        } else {
            if (x86_code64(cpu) || (cpu->s.cr4 & X86_CR4_PCIDE)) {
                return gp0(cpu);
            }
            efer &= ~(uint64_t)X86_EFER_LMA;
        }
    }
    if ((changed & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)) && pae_paging(value, cpu->s.cr4, efer) &&
        !pdptes_valid(cpu, cpu->s.cr3)) {
        return gp0(cpu);
    }
    cpu->s.cr0 = value;
    cpu->s.efer = efer;
    if (changed & (X86_CR0_PG | X86_CR0_PE | X86_CR0_WP)) {
        cpu->ops->tlb_flush(cpu, false);
    }
    return 0;
}

static int set_cr3(struct x86_cpu *cpu, uint64_t value)
{
    bool flush = true;
    if ((cpu->s.cr4 & X86_CR4_PCIDE) && (value & CR3_NOFLUSH)) {
        flush = false;
        value &= ~CR3_NOFLUSH;
    }
    if (value >> cpu->cpuid.phys_bits) {
        return gp0(cpu);
    }
    if (pae_paging(cpu->s.cr0, cpu->s.cr4, cpu->s.efer) && !pdptes_valid(cpu, value)) {
        return gp0(cpu);
    }
    cpu->s.cr3 = value;
    cpu->ops->tlb_switch(cpu, flush);
    return 0;
}

static int set_cr4(struct x86_cpu *cpu, uint64_t value)
{
    const uint64_t changed = cpu->s.cr4 ^ value;
    if (value & ~cpu->cpuid.cr4_mask) {
        return gp0(cpu);
    }
    if (x86_long_mode(cpu) && !(value & X86_CR4_PAE)) {
        return gp0(cpu);
    }
    if ((changed & value & X86_CR4_PCIDE) && (!x86_long_mode(cpu) || (cpu->s.cr3 & CR3_PCID_MASK))) {
        return gp0(cpu);
    }
    const uint64_t paging = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP;
    if ((changed & paging) && pae_paging(cpu->s.cr0, value, cpu->s.efer) && !pdptes_valid(cpu, cpu->s.cr3)) {
        return gp0(cpu);
    }
    cpu->s.cr4 = value;
    if (changed & (paging | X86_CR4_SMAP | X86_CR4_PCIDE)) {
        cpu->ops->tlb_flush(cpu, false);
    }
    return 0;
}

int x86_mov_from_cr(struct x86_cpu *cpu, unsigned cr, uint64_t *ret)
{
    uint64_t value;
    switch (cr) {
    case 0: value = cpu->s.cr0; break;
    case 2: value = cpu->s.cr2; break;
    case 3: value = cpu->s.cr3; break;
    case 4: value = cpu->s.cr4; break;
    case 8: value = 0; break;
    default: return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    if (cr == 8) {
        value = cpu->platform.cr8_read(cpu->platform.opaque);
    }
    *ret = x86_code64(cpu) ? value : (uint32_t)value;
    return 0;
}

int x86_mov_to_cr(struct x86_cpu *cpu, unsigned cr, uint64_t value)
{
    if (cr != 0 && cr != 2 && cr != 3 && cr != 4 && cr != 8) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    if (!x86_code64(cpu)) {
        value = (uint32_t)value;
    }
    switch (cr) {
    case 0: return set_cr0(cpu, value);
    case 2: cpu->s.cr2 = value; return 0;
    case 3: return set_cr3(cpu, value);
    case 4: return set_cr4(cpu, value);
    default:
        if (value > 15) {
            return gp0(cpu);
        }
        cpu->platform.cr8_write(cpu->platform.opaque, value);
        return 0;
    }
}

int x86_lmsw(struct x86_cpu *cpu, uint16_t value)
{
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    /* Loads PE, MP, EM and TS, but can't clear PE (SDM vol. 2A, LMSW). */
    const uint64_t loaded = X86_CR0_MP | X86_CR0_EM | X86_CR0_TS;
    return set_cr0(cpu, (cpu->s.cr0 & ~loaded) | (value & (loaded | X86_CR0_PE)));
}

int x86_clts(struct x86_cpu *cpu)
{
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    cpu->s.cr0 &= ~(uint64_t)X86_CR0_TS;
    return 0;
}

/* --- XCR0 --- */

bool x86_xcr0_valid(const struct x86_cpu *cpu, uint64_t value)
{
    if ((value & ~cpu->cpuid.xcr0_mask) || !(value & XCR0_X87)) {
        return false;
    }
    if ((value & XCR0_AVX) && !(value & XCR0_SSE)) {
        return false;
    }
    uint64_t avx512 = value & XCR0_AVX512;
    return !avx512 || (avx512 == XCR0_AVX512 && (value & XCR0_AVX));
}

int x86_xsetbv(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
    if (!(cpu->s.cr4 & X86_CR4_OSXSAVE)) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0 || index != 0 || !x86_xcr0_valid(cpu, value)) {
        return gp0(cpu);
    }
    cpu->s.xcr0 = value;
    return 0;
}

/* XINUSE of the registers as they are now: the guest's, while a helper runs. */
static uint64_t host_xinuse(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return low | (uint64_t)high << 32;
}

int x86_xgetbv(struct x86_cpu *cpu, uint32_t index, uint64_t *ret)
{
    if (!(cpu->s.cr4 & X86_CR4_OSXSAVE)) {
        return x86_raise(cpu, X86_UD);
    }
    if (index == 0) {
        *ret = cpu->s.xcr0;
        return 0;
    }
    if (index == 1 && (cpu->cpuid.fd1_eax & FD1_EAX_XGETBV1)) {
        *ret = host_xinuse() & cpu->s.xcr0;
        return 0;
    }
    return gp0(cpu);
}

/* --- invalidation --- */

int x86_invlpg(struct x86_cpu *cpu, uint64_t va)
{
    if (cpu->cpl != 0) {
        return gp0(cpu);
    }
    /* A non-canonical address makes INVLPG do nothing (SDM vol. 2A, INVLPG). */
    if (!x86_code64(cpu)) {
        va = (uint32_t)va;
    } else if (!x86_is_canonical(va)) {
        return 0;
    }
    cpu->ops->tlb_flush_page(cpu, va, current_pcid(cpu));
    return 0;
}

/* SDM vol. 2A, INVPCID, table 3-52 */
enum invpcid_type { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL, INVPCID_ALL_BUT_GLOBAL };

int x86_invpcid(struct x86_cpu *cpu, uint64_t type, uint64_t pcid, uint64_t va)
{
    if (!(cpu->cpuid.f7_ebx & F7_EBX_INVPCID)) {
        return x86_raise(cpu, X86_UD);
    }
    if (cpu->cpl != 0 || type > INVPCID_ALL_BUT_GLOBAL || (pcid & ~(uint64_t)CR3_PCID_MASK)) {
        return gp0(cpu);
    }
    bool uses_pcid = type == INVPCID_ADDRESS || type == INVPCID_CONTEXT;
    if (uses_pcid && pcid != 0 && !(cpu->s.cr4 & X86_CR4_PCIDE)) {
        return gp0(cpu);
    }
    switch ((enum invpcid_type)type) {
    case INVPCID_ADDRESS:
        if (!x86_is_canonical(va)) {
            return gp0(cpu);
        }
        cpu->ops->tlb_flush_page(cpu, va, (uint16_t)pcid);
        break;
    case INVPCID_CONTEXT: cpu->ops->tlb_flush_pcid(cpu, (uint16_t)pcid); break;
    case INVPCID_ALL: cpu->ops->tlb_flush(cpu, false); break;
    case INVPCID_ALL_BUT_GLOBAL: cpu->ops->tlb_flush(cpu, true); break;
    }
    return 0;
}
