/*
 * What the files of this folder share and callers need not see: CPUID bit names and checks.
 */
#ifndef FONDA_CPU_X86_X86_INT_H
#define FONDA_CPU_X86_X86_INT_H

#include "base/util.h"
#include "cpu/x86/x86.h"

/* CPUID bits that decide what the system side of the processor accepts (SDM vol. 2A, CPUID, tables 3-10 and
 * 3-11). */
#define F1_ECX_PCID         BIT(17)
#define F1_ECX_X2APIC       BIT(21)
#define F1_ECX_TSC_DEADLINE BIT(24)
#define F1_ECX_XSAVE        BIT(26)
#define F1_ECX_OSXSAVE      BIT(27)
#define F1_EDX_MTRR         BIT(12)
#define F1_EDX_PAT          BIT(16)
#define F1_EDX_PSE36        BIT(17)
#define F7_EBX_FSGSBASE     BIT(0)
#define F7_EBX_TSC_ADJUST   BIT(1)
#define F7_EBX_SMAP         BIT(20)
#define F7_EBX_INVPCID      BIT(10)
#define F7_ECX_RDPID        BIT(22)
#define F7_EDX_SPEC_CTRL    BIT(26)
#define F7_EDX_STIBP        BIT(27)
#define F7_EDX_FLUSH_L1D    BIT(28)
#define F7_EDX_ARCH_CAP     BIT(29)
#define F7_EDX_SSBD         BIT(31)
#define FE1_EDX_SYSCALL     BIT(11)
#define FE1_EDX_NX          BIT(20)
#define FE1_EDX_PDPE1GB     BIT(26)
#define FE1_EDX_RDTSCP      BIT(27)
#define FE1_EDX_LM          BIT(29)
#define FD1_EAX_XGETBV1     BIT(2)

/* XCR0 (SDM vol. 1, 13.3) */
#define XCR0_X87    0x1u
#define XCR0_SSE    0x2u
#define XCR0_AVX    0x4u
#define XCR0_AVX512 0xe0u

uint64_t x86_guest_tsc(struct x86_cpu *cpu);
/* What XSETBV accepts (SDM vol. 1, 13.3). */
bool x86_xcr0_valid(const struct x86_cpu *cpu, uint64_t value);
/* Whether every field of an IA32_PAT value is a memory type (SDM vol. 3A, 12.12.2). */
bool x86_pat_valid(uint64_t value);

#endif
