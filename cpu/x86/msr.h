/*
 * Numbers of the model-specific registers that guests of this project meet (SDM vol. 4; AMD APM vol. 2,
 * appendix A).
 */
#ifndef FONDA_CPU_X86_MSR_H
#define FONDA_CPU_X86_MSR_H

enum x86_msr {
    MSR_TSC = 0x10,
    MSR_KVM_WALL_CLOCK_OLD = 0x11,
    MSR_KVM_SYSTEM_TIME_OLD = 0x12,
    MSR_PLATFORM_ID = 0x17,
    MSR_APIC_BASE = 0x1b,
    MSR_EBL_CR_POWERON = 0x2a,
    MSR_FEATURE_CONTROL = 0x3a,
    MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48,
    MSR_PRED_CMD = 0x49,
    MSR_UCODE_WRITE = 0x79,
    MSR_UCODE_REV = 0x8b,
    MSR_PLATFORM_INFO = 0xce,
    MSR_MTRR_CAP = 0xfe,
    MSR_ARCH_CAPABILITIES = 0x10a,
    MSR_FLUSH_CMD = 0x10b,
    MSR_MISC_FEATURES_ENABLES = 0x140,
    MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_MCG_CAP = 0x179,
    MSR_MCG_STATUS = 0x17a,
    MSR_MCG_CTL = 0x17b,
    MSR_PERF_STATUS = 0x198,
    MSR_MISC_ENABLE = 0x1a0,
    MSR_DEBUGCTL = 0x1d9,
    MSR_MTRR_PHYS_BASE0 = 0x200, /* base and mask alternate, eight pairs */
    MSR_MTRR_PHYS_MASK7 = 0x20f,
    MSR_MTRR_FIX_64K_00000 = 0x250,
    MSR_MTRR_FIX_16K_80000 = 0x258,
    MSR_MTRR_FIX_16K_A0000 = 0x259,
    MSR_MTRR_FIX_4K_C0000 = 0x268,
    MSR_MTRR_FIX_4K_F8000 = 0x26f,
    MSR_PAT = 0x277,
    MSR_MTRR_DEF_TYPE = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0,
    MSR_X2APIC_FIRST = 0x800,
    MSR_X2APIC_LAST = 0x8ff,
    MSR_KVM_FIRST = 0x4b564d00,
    MSR_KVM_LAST = 0x4b564dff,
};

/* These do not fit in an enumerator of type int. */
#define MSR_EFER           0xc0000080u
#define MSR_STAR           0xc0000081u
#define MSR_LSTAR          0xc0000082u
#define MSR_CSTAR          0xc0000083u
#define MSR_SFMASK         0xc0000084u
#define MSR_FS_BASE        0xc0000100u
#define MSR_GS_BASE        0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX        0xc0000103u
/* AMD */
#define MSR_SYSCFG       0xc0010010u
#define MSR_HWCR         0xc0010015u
#define MSR_NB_CFG       0xc001001fu
#define MSR_PATCH_LOADER 0xc0010020u
#define MSR_INT_PENDING  0xc0010055u
#define MSR_LS_CFG       0xc0011020u
#define MSR_DE_CFG       0xc0011029u

#endif
