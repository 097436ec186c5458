/*
 * Model-specific registers: one table of what exists, RDMSR and WRMSR over it.
 *
 * Neighbours: the machine's own MSRs (APIC, TSC deadline, KVM's) go to cpu->platform; cpuid.c announces the
 * features that make the others exist.
 *
 * Invariants
 *  1. What is not in the table, not of the guest's vendor, or not announced by CPUID raises #GP(0).
 *  2. The table is sorted by number.
 *  3. A write that raises changes nothing.
 *
 * Threads: the vCPU's own.
 */
#include <stddef.h>

#include "cpu/x86/msr.h"
#include "cpu/x86/x86_int.h"

#define VARIABLE_MTRRS 8
#define MTRR_CAP_FIX   BIT(8)
#define MTRR_CAP_WC    BIT(10)

/*
 * IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2): not vulnerable to any of the known speculation attacks,
 * enhanced IBRS. A guest's barriers and page-table isolation cannot act through an engine that translates its
 * code and walks its page tables in software; the host's mitigations and the jail of the process are what
 * separates. Offering the bits keeps the guest from paying for what would not help it.
 */
#define ARCH_CAP                                                                                             \
    (BIT64(0) /* RDCL_NO */ | BIT64(1) /* IBRS_ALL */ | BIT64(3) /* SKIP_L1DFL_VMENTRY */ |                  \
     BIT64(4) /* SSB_NO */ | BIT64(5) /* MDS_NO */ | BIT64(6) /* PSCHANGE_MC_NO */ | BIT64(8) /* TAA_NO */ | \
     BIT64(13) /* SBDR_SSDP_NO */ | BIT64(14) /* FBSDP_NO */ | BIT64(15) /* PSDP_NO */ |                     \
     BIT64(20) /* BHI_NO */ | BIT64(24) /* PBRSB_NO */ | BIT64(26) /* GDS_NO */ | BIT64(27) /* RFDS_NO */ |  \
     BIT64(62) /* ITS_NO */)

#define SPEC_CTRL_IBRS  BIT64(0)
#define SPEC_CTRL_STIBP BIT64(1)
#define PRED_CMD_IBPB   BIT64(0)

/* IA32_MISC_ENABLE (SDM vol. 4, table 2-2) */
#define MISC_ENABLE_FAST_STRINGS BIT64(0)
#define MISC_ENABLE_FIXED        (BIT64(11) | BIT64(12)) /* neither branch trace nor PEBS */

#define DEBUGCTL_KNOWN (BIT64(0) | BIT64(1)) /* LBR, BTF */

struct msr {
    uint32_t number;
    uint16_t field; /* offset in struct x86_state, for what has no reader or writer */
    enum { ANY_VENDOR, INTEL_ONLY, AMD_ONLY } vendor : 8;
    enum { PLAIN, CANONICAL, CONSTANT, WRITES_IGNORED } kind : 8;
    uint64_t detail; /* PLAIN: reserved bits, which raise when set; CONSTANT, WRITES_IGNORED: the value */
    /* Return -1 for #GP(0). */
    int (*read)(struct x86_cpu *cpu, uint32_t number, uint64_t *ret);
    int (*write)(struct x86_cpu *cpu, uint32_t number, uint64_t value);
};

/* --- readers and writers --- */

static int read_tsc(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    *ret = x86_guest_tsc(cpu);
    return 0;
}

/* A write to either of TSC and TSC_ADJUST moves both by the same amount (SDM vol. 3B, 18.17.3). */
static int write_tsc(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    uint64_t delta = value - x86_guest_tsc(cpu);
    cpu->s.tsc_offset += delta;
    cpu->s.tsc_adjust += delta;
    return 0;
}

static int write_tsc_adjust(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    cpu->s.tsc_offset += value - cpu->s.tsc_adjust;
    cpu->s.tsc_adjust = value;
    return 0;
}

static int write_efer(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    const uint64_t old = cpu->s.efer;
    /* LMA follows CR0.PG; writes to it are ignored (SDM vol. 3A, 2.2.1). */
    value = (value & ~(uint64_t)X86_EFER_LMA) | (old & X86_EFER_LMA);
    if (value & ~(cpu->cpuid.efer_mask | X86_EFER_LMA)) {
        return -1;
    }
    const uint64_t changed = old ^ value;
    if ((changed & X86_EFER_LME) && (cpu->s.cr0 & X86_CR0_PG)) {
        return -1;
    }
    cpu->s.efer = value;
    if (changed & X86_EFER_NXE) {
        cpu->ops->tlb_flush(cpu, false);
    }
    return 0;
}

static int read_spec_ctrl(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    if (!(cpu->cpuid.f7_edx & F7_EDX_SPEC_CTRL)) {
        return -1;
    }
    *ret = cpu->s.spec_ctrl;
    return 0;
}

static int write_spec_ctrl(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if (!(cpu->cpuid.f7_edx & F7_EDX_SPEC_CTRL) || (value & ~(SPEC_CTRL_IBRS | SPEC_CTRL_STIBP))) {
        return -1;
    }
    cpu->s.spec_ctrl = value;
    return 0;
}

static int read_write_only(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    return -1;
}

static int write_pred_cmd(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    return (cpu->cpuid.f7_edx & F7_EDX_SPEC_CTRL) && !(value & ~PRED_CMD_IBPB) ? 0 : -1;
}

static int read_arch_capabilities(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    if (!(cpu->cpuid.f7_edx & F7_EDX_ARCH_CAP)) {
        return -1;
    }
    *ret = ARCH_CAP;
    return 0;
}

static int write_read_only(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    return -1;
}

/* Bits 15:8 are the base frequency in units of 100 MHz; bit 31, CPUID faulting, is not offered. */
static int read_platform_info(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    uint32_t out[4];
    x86_cpuid(cpu, 0x16, 0, out);
    *ret = (uint64_t)MIN(out[0] / 100, 255u) << 8;
    return 0;
}

static int write_misc_enable(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if (value & ~(MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_FIXED)) {
        return -1;
    }
    cpu->s.misc_enable = value | MISC_ENABLE_FIXED;
    return 0;
}

/* Branch records and branch stepping are not recorded or done: the bits don't stick, so that a guest can
 * tell. */
static int write_debugctl(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    return value & ~DEBUGCTL_KNOWN ? -1 : 0;
}

bool x86_pat_valid(uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        uint8_t type = (uint8_t)(value >> (8 * i));
        if (type > 7 || type == 2 || type == 3) {
            return false;
        }
    }
    return true;
}

static int write_pat(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if (!x86_pat_valid(value)) {
        return -1;
    }
    cpu->s.pat = value;
    return 0;
}

/* UC, WC, WT, WP, WB (SDM vol. 3A, table 12-8) */
static bool mtrr_type_valid(uint8_t type)
{
    return type == 0 || type == 1 || (type >= 4 && type <= 6);
}

static uint64_t *mtrr_fixed(struct x86_cpu *cpu, uint32_t number)
{
    switch (number) {
    case MSR_MTRR_FIX_64K_00000: return &cpu->s.mtrr_fixed[0];
    case MSR_MTRR_FIX_16K_80000: return &cpu->s.mtrr_fixed[1];
    case MSR_MTRR_FIX_16K_A0000: return &cpu->s.mtrr_fixed[2];
    default: return &cpu->s.mtrr_fixed[3 + number - MSR_MTRR_FIX_4K_C0000];
    }
}

static int read_mtrr_fixed(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    *ret = *mtrr_fixed(cpu, number);
    return 0;
}

static int write_mtrr_fixed(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        if (!mtrr_type_valid((uint8_t)(value >> (8 * i)))) {
            return -1;
        }
    }
    *mtrr_fixed(cpu, number) = value;
    return 0;
}

static int read_mtrr_variable(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    unsigned i = (number - MSR_MTRR_PHYS_BASE0) / 2;
    *ret = number & 1 ? cpu->s.mtrr_mask[i] : cpu->s.mtrr_base[i];
    return 0;
}

static int write_mtrr_variable(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    unsigned i = (number - MSR_MTRR_PHYS_BASE0) / 2;
    bool is_mask = number & 1;
    /* Bits 11:8 of a base and 10:0 of a mask are reserved (SDM vol. 3A, figure 12-7). */
    uint64_t reserved = ~(BIT64(cpu->cpuid.phys_bits) - 1) | (is_mask ? 0x7ff : 0xf00);
    if ((value & reserved) || (!is_mask && !mtrr_type_valid((uint8_t)value))) {
        return -1;
    }
    *(is_mask ? &cpu->s.mtrr_mask[i] : &cpu->s.mtrr_base[i]) = value;
    return 0;
}

static int write_mtrr_def_type(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if ((value & ~0xcffull) || !mtrr_type_valid((uint8_t)value)) {
        return -1;
    }
    cpu->s.mtrr_def_type = value;
    return 0;
}

static bool has_tsc_aux(const struct x86_cpu *cpu)
{
    return (cpu->cpuid.fe1_edx & FE1_EDX_RDTSCP) || (cpu->cpuid.f7_ecx & F7_ECX_RDPID);
}

static int read_tsc_aux(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    if (!has_tsc_aux(cpu)) {
        return -1;
    }
    *ret = cpu->s.tsc_aux;
    return 0;
}

static int write_tsc_aux(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if (!has_tsc_aux(cpu) || value >> 32) {
        return -1;
    }
    cpu->s.tsc_aux = value;
    return 0;
}

/* --- the table --- */

#define FIELD(member) .field = offsetof(struct x86_state, member)
#define HIGH_RESERVED 0xffffffff00000000ull
#define MTRR_PAIR(n)  MTRR_VARIABLE(0x200 + 2 * (n)), MTRR_VARIABLE(0x201 + 2 * (n))
#define MTRR_VARIABLE(number)                                                                                \
    {                                                                                                        \
        number, .read = read_mtrr_variable, .write = write_mtrr_variable                                     \
    }
#define MTRR_FIXED(number)                                                                                   \
    {                                                                                                        \
        number, .read = read_mtrr_fixed, .write = write_mtrr_fixed                                           \
    }

static const struct msr msrs[] = {
    {MSR_TSC, .read = read_tsc, .write = write_tsc},
    {MSR_PLATFORM_ID, .vendor = INTEL_ONLY, .kind = CONSTANT},
    {MSR_EBL_CR_POWERON, .vendor = INTEL_ONLY, .kind = WRITES_IGNORED},
    /* Locked, with VMX and SGX off. */
    {MSR_FEATURE_CONTROL, .vendor = INTEL_ONLY, .kind = CONSTANT, .detail = 1},
    {MSR_TSC_ADJUST, FIELD(tsc_adjust), .write = write_tsc_adjust},
    {MSR_SPEC_CTRL, .read = read_spec_ctrl, .write = write_spec_ctrl},
    {MSR_PRED_CMD, .read = read_write_only, .write = write_pred_cmd},
    /* Microcode is the host's affair: updates vanish, the revision is 1. */
    {MSR_UCODE_WRITE, .vendor = INTEL_ONLY, .kind = WRITES_IGNORED},
    {MSR_UCODE_REV, .kind = WRITES_IGNORED, .detail = BIT64(32)},
    {MSR_PLATFORM_INFO, .vendor = INTEL_ONLY, .read = read_platform_info, .write = write_read_only},
    {MSR_MTRR_CAP, .kind = CONSTANT, .detail = VARIABLE_MTRRS | MTRR_CAP_FIX | MTRR_CAP_WC},
    {MSR_ARCH_CAPABILITIES, .read = read_arch_capabilities, .write = write_read_only},
    {MSR_SYSENTER_CS, FIELD(sysenter_cs)},
    {MSR_SYSENTER_ESP, FIELD(sysenter_esp), .kind = CANONICAL},
    {MSR_SYSENTER_EIP, FIELD(sysenter_eip), .kind = CANONICAL},
    /* No error-reporting banks: nothing reports machine checks to a guest. */
    {MSR_MCG_CAP, .kind = CONSTANT},
    {MSR_MCG_STATUS, FIELD(mcg_status), .detail = ~7ull},
    {MSR_PERF_STATUS, .vendor = INTEL_ONLY, .kind = CONSTANT},
    {MSR_MISC_ENABLE, .vendor = INTEL_ONLY, FIELD(misc_enable), .write = write_misc_enable},
    {MSR_DEBUGCTL, FIELD(debugctl), .write = write_debugctl},
    MTRR_PAIR(0),
    MTRR_PAIR(1),
    MTRR_PAIR(2),
    MTRR_PAIR(3),
    MTRR_PAIR(4),
    MTRR_PAIR(5),
    MTRR_PAIR(6),
    MTRR_PAIR(7),
    MTRR_FIXED(MSR_MTRR_FIX_64K_00000),
    MTRR_FIXED(MSR_MTRR_FIX_16K_80000),
    MTRR_FIXED(MSR_MTRR_FIX_16K_A0000),
    MTRR_FIXED(0x268),
    MTRR_FIXED(0x269),
    MTRR_FIXED(0x26a),
    MTRR_FIXED(0x26b),
    MTRR_FIXED(0x26c),
    MTRR_FIXED(0x26d),
    MTRR_FIXED(0x26e),
    MTRR_FIXED(0x26f),
    {MSR_PAT, FIELD(pat), .write = write_pat},
    {MSR_MTRR_DEF_TYPE, FIELD(mtrr_def_type), .write = write_mtrr_def_type},
    {MSR_EFER, FIELD(efer), .write = write_efer},
    {MSR_STAR, FIELD(star)},
    {MSR_LSTAR, FIELD(lstar), .kind = CANONICAL},
    {MSR_CSTAR, FIELD(cstar), .kind = CANONICAL},
    {MSR_SFMASK, FIELD(sfmask), .detail = HIGH_RESERVED},
    {MSR_FS_BASE, FIELD(seg[X86_FS].base), .kind = CANONICAL},
    {MSR_GS_BASE, FIELD(seg[X86_GS].base), .kind = CANONICAL},
    {MSR_KERNEL_GS_BASE, FIELD(kernel_gs_base), .kind = CANONICAL},
    {MSR_TSC_AUX, .read = read_tsc_aux, .write = write_tsc_aux},
    {MSR_SYSCFG, .vendor = AMD_ONLY, .kind = WRITES_IGNORED},
    {MSR_HWCR, .vendor = AMD_ONLY, .kind = WRITES_IGNORED, .detail = BIT64(24)}, /* TscFreqSel */
    {MSR_NB_CFG, .vendor = AMD_ONLY, .kind = WRITES_IGNORED},
    {MSR_PATCH_LOADER, .vendor = AMD_ONLY, .kind = WRITES_IGNORED},
    {MSR_INT_PENDING, .vendor = AMD_ONLY, .kind = WRITES_IGNORED},
    {MSR_LS_CFG, .vendor = AMD_ONLY, .kind = WRITES_IGNORED},
    {MSR_DE_CFG, .vendor = AMD_ONLY, .kind = WRITES_IGNORED, .detail = BIT64(1)}, /* LFENCE serializes */
};

static const struct msr *find_msr(const struct x86_cpu *cpu, uint32_t number)
{
    unsigned low = 0, high = ARRAY_SIZE(msrs);
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (msrs[middle].number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == ARRAY_SIZE(msrs) || msrs[low].number != number) {
        return NULL;
    }
    bool other_vendor = msrs[low].vendor == (cpu->cpuid.intel ? AMD_ONLY : INTEL_ONLY);
    return other_vendor ? NULL : &msrs[low];
}

static uint64_t *field_of(struct x86_cpu *cpu, const struct msr *msr)
{
    return (uint64_t *)(void *)((char *)&cpu->s + msr->field);
}

static bool is_platform_msr(const struct x86_cpu *cpu, uint32_t number)
{
    if (number >= MSR_X2APIC_FIRST && number <= MSR_X2APIC_LAST) {
        return (cpu->cpuid.f1_ecx & F1_ECX_X2APIC) != 0;
    }
    if (number == MSR_TSC_DEADLINE) {
        return (cpu->cpuid.f1_ecx & F1_ECX_TSC_DEADLINE) != 0;
    }
    return number == MSR_APIC_BASE || number == MSR_KVM_WALL_CLOCK_OLD || number == MSR_KVM_SYSTEM_TIME_OLD ||
           (number >= MSR_KVM_FIRST && number <= MSR_KVM_LAST);
}

static int read_msr(struct x86_cpu *cpu, uint32_t number, uint64_t *ret)
{
    if (is_platform_msr(cpu, number)) {
        return cpu->platform.msr_read(cpu->platform.opaque, number, ret);
    }
    const struct msr *msr = find_msr(cpu, number);
    if (!msr) {
        return -1;
    }
    if (msr->read) {
        return msr->read(cpu, number, ret);
    }
    bool fixed = msr->kind == CONSTANT || msr->kind == WRITES_IGNORED;
    *ret = fixed ? msr->detail : *field_of(cpu, msr);
    return 0;
}

static int write_msr(struct x86_cpu *cpu, uint32_t number, uint64_t value)
{
    if (is_platform_msr(cpu, number)) {
        return cpu->platform.msr_write(cpu->platform.opaque, number, value);
    }
    const struct msr *msr = find_msr(cpu, number);
    if (!msr) {
        return -1;
    }
    if (msr->write) {
        return msr->write(cpu, number, value);
    }
    switch (msr->kind) {
    case CONSTANT: return -1;
    case WRITES_IGNORED: return 0;
    case CANONICAL:
        if (!x86_is_canonical(value)) {
            return -1;
        }
        break;
    case PLAIN:
        if (value & msr->detail) {
            return -1;
        }
        break;
    }
    *field_of(cpu, msr) = value;
    return 0;
}

int x86_rdmsr(struct x86_cpu *cpu, uint32_t msr, uint64_t *ret)
{
    uint64_t value;
    if (cpu->cpl != 0 || read_msr(cpu, msr, &value) < 0) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    *ret = value;
    return 0;
}

int x86_wrmsr(struct x86_cpu *cpu, uint32_t msr, uint64_t value)
{
    if (cpu->cpl != 0 || write_msr(cpu, msr, value) < 0) {
        return x86_raise_error(cpu, X86_GP, 0);
    }
    return 0;
}
