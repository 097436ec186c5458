/*
 * The whole architectural state of one x86-64 vCPU, the same under every engine.
 *
 * Names follow the Intel SDM. Segment attributes use the layout of a descriptor's second doubleword shifted
 * right by 8 and masked with 0xf0ff (type, S, DPL, P, AVL, L, D/B, G), as KVM's and VMX's access rights do.
 */
#ifndef FONDA_CPU_X86_STATE_H
#define FONDA_CPU_X86_STATE_H

#include <stdbool.h>
#include <stdint.h>

enum x86_gpr {
    X86_RAX,
    X86_RCX,
    X86_RDX,
    X86_RBX,
    X86_RSP,
    X86_RBP,
    X86_RSI,
    X86_RDI,
    X86_R8,
    X86_R9,
    X86_R10,
    X86_R11,
    X86_R12,
    X86_R13,
    X86_R14,
    X86_R15,
};

/* Instruction-encoding order (SDM vol. 2A, table B-8). */
enum x86_sreg { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_SREGS };

struct x86_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, granularity applied */
    uint16_t selector;
    uint16_t attr; /* see above; 0 means a null, unusable segment */
};

#define X86_SEG_TYPE      0x000f
#define X86_SEG_S         0x0010
#define X86_SEG_DPL       0x0060
#define X86_SEG_DPL_SHIFT 5
#define X86_SEG_P         0x0080
#define X86_SEG_AVL       0x1000
#define X86_SEG_L         0x2000
#define X86_SEG_DB        0x4000
#define X86_SEG_G         0x8000

struct x86_table {
    uint64_t base;
    uint16_t limit;
};

#define X86_XSAVE_MAX                                                                                        \
    4096 /* room for x87, SSE, AVX and AVX-512 state in the standard format (2,688 bytes)                    \
          */

struct x86_state {
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags;
    struct x86_segment seg[X86_SREGS];
    struct x86_segment ldtr, tr;
    struct x86_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4; /* CR8 is the LAPIC's */
    uint64_t dr[4], dr6, dr7;
    uint64_t xcr0;
    /* MSRs */
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, misc_enable, spec_ctrl, tsc_offset, tsc_adjust, debugctl;
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    uint64_t mcg_status, mcg_ctl;
    /* What is between instructions. */
    bool sti_shadow;   /* interrupts held back until after the next instruction */
    bool movss_shadow; /* the same, and debug exceptions too */
    bool nmi_pending, nmi_blocked;
    bool halted; /* in HLT */
    bool wait_for_sipi;
    /* x87, SSE, AVX, AVX-512 in the XSAVE standard format. */
    _Alignas(64) uint8_t xsave[X86_XSAVE_MAX];
};

/* RFLAGS (SDM vol. 1, 3.4.3) */
#define X86_CF          0x0001u
#define X86_PF          0x0004u
#define X86_AF          0x0010u
#define X86_ZF          0x0040u
#define X86_SF          0x0080u
#define X86_TF          0x0100u
#define X86_IF          0x0200u
#define X86_DF          0x0400u
#define X86_OF          0x0800u
#define X86_IOPL        0x3000u
#define X86_NT          0x4000u
#define X86_RF          0x10000u
#define X86_VM          0x20000u
#define X86_AC          0x40000u
#define X86_VIF         0x80000u
#define X86_VIP         0x100000u
#define X86_ID          0x200000u
#define X86_FLAGS_ARITH (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)

/* Control registers (SDM vol. 3A, 2.5) */
#define X86_CR0_PE 0x1u
#define X86_CR0_MP 0x2u
#define X86_CR0_EM 0x4u
#define X86_CR0_TS 0x8u
#define X86_CR0_ET 0x10u
#define X86_CR0_NE 0x20u
#define X86_CR0_WP 0x10000u
#define X86_CR0_AM 0x40000u
#define X86_CR0_NW 0x20000000u
#define X86_CR0_CD 0x40000000u
#define X86_CR0_PG 0x80000000u

#define X86_CR4_VME        0x1u
#define X86_CR4_PVI        0x2u
#define X86_CR4_TSD        0x4u
#define X86_CR4_DE         0x8u
#define X86_CR4_PSE        0x10u
#define X86_CR4_PAE        0x20u
#define X86_CR4_MCE        0x40u
#define X86_CR4_PGE        0x80u
#define X86_CR4_PCE        0x100u
#define X86_CR4_OSFXSR     0x200u
#define X86_CR4_OSXMMEXCPT 0x400u
#define X86_CR4_UMIP       0x800u
#define X86_CR4_LA57       0x1000u
#define X86_CR4_FSGSBASE   0x10000u
#define X86_CR4_PCIDE      0x20000u
#define X86_CR4_OSXSAVE    0x40000u
#define X86_CR4_SMEP       0x100000u
#define X86_CR4_SMAP       0x200000u
#define X86_CR4_PKE        0x400000u

#define X86_EFER_SCE 0x1u
#define X86_EFER_LME 0x100u
#define X86_EFER_LMA 0x400u
#define X86_EFER_NXE 0x800u

/* Exceptions (SDM vol. 3A, table 6-1) */
enum x86_vector {
    X86_DE = 0,
    X86_DB = 1,
    X86_NMI = 2,
    X86_BP = 3,
    X86_OF_EXC = 4,
    X86_BR = 5,
    X86_UD = 6,
    X86_NM = 7,
    X86_DF_EXC = 8,
    X86_TS = 10,
    X86_NP = 11,
    X86_SS_EXC = 12,
    X86_GP = 13,
    X86_PF_EXC = 14,
    X86_MF = 16,
    X86_AC_EXC = 17,
    X86_MC = 18,
    X86_XM = 19,
};

/* #PF error code (SDM vol. 3A, 4.7) */
#define X86_PF_P    0x1u
#define X86_PF_W    0x2u
#define X86_PF_U    0x4u
#define X86_PF_RSVD 0x8u
#define X86_PF_I    0x10u
#define X86_PF_PK   0x20u

/* Sets the state after RESET (SDM vol. 3A, table 9-1). */
void x86_state_reset(struct x86_state *state);

#endif
