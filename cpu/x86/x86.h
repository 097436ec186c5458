/*
 * The system side of an x86-64 processor, in plain C, for engines that execute guest code themselves: page
 * walk, segmentation, exception and interrupt delivery, far transfers, system calls, control registers, MSRs,
 * CPUID.
 *
 * Neighbours: cpu/bt calls these for everything that is not plain computation; cpu/kvm uses the CPUID and MSR
 * tables only.
 *
 * How an instruction helper works: it returns 0 when the instruction completed, or -1 when it raised an
 * exception; then cpu->exc describes it and no architectural state has changed (but CR2 and the A/D bits, as
 * on hardware). The caller then calls x86_deliver(). While a helper runs, cpu->s.rip is the address of the
 * *current* instruction and cpu->next_rip of the one behind it; helpers that transfer control set cpu->s.rip,
 * all others leave it and the caller moves on. cpu->s.rflags is complete while a helper runs (arithmetic
 * flags too).
 *
 * Invariants
 *  1. cpu->cpl is the current privilege level: 0 in real mode, 3 in virtual-8086 mode.
 *  2. A change of CR0, CR3, CR4, EFER, CPL-independent paging state or an INVLPG reaches ops->tlb_* before
 *     the helper returns; a change of anything in x86_code_mode() needs no call, callers look at it after
 *     every helper.
 *  3. Guest data never makes these functions loop without bound, assert, or touch host memory outside of RAM.
 *
 * Threads: the vCPU's own.
 */
#ifndef FONDA_CPU_X86_X86_H
#define FONDA_CPU_X86_X86_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/engine.h"
#include "cpu/x86/state.h"
#include "mem/mem.h"

struct x86_cpu;

/* What the engine provides. */
struct x86_cpu_ops {
    /* Every cached translation; only the non-global ones when keep_global. */
    void (*tlb_flush)(struct x86_cpu *cpu, bool keep_global);
    /* CR3 was loaded (cpu->s.cr3 is new already). flush: drop the non-global translations of the new PCID. */
    void (*tlb_switch)(struct x86_cpu *cpu, bool flush);
    /* All non-global translations of one PCID. */
    void (*tlb_flush_pcid)(struct x86_cpu *cpu, uint16_t pcid);
    /* One page of the current PCID, and global ones (INVLPG); or of another PCID (INVPCID type 0). */
    void (*tlb_flush_page)(struct x86_cpu *cpu, uint64_t va, uint16_t pcid);
    /* Host pointer for a data access that lies within one page, or NULL after a fault (cpu->exc is set), or
     * NULL with *ret_mmio set and *ret_gpa filled when it is not RAM. access is X86_ACCESS_*. NULL op: page
     * walk. */
    void *(*translate)(struct x86_cpu *cpu, uint64_t va, unsigned access, bool *ret_mmio, gpa_t *ret_gpa);
    /* Host time stamp counter plus nothing: what RDTSC reads before the guest's offset. */
    uint64_t (*host_tsc)(struct x86_cpu *cpu);
};

struct x86_exception {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2; /* for #PF */
    uint64_t dr6; /* for #DB: the bits to set in DR6 */
};

/* CPUID leaves of one vCPU, made once by x86_cpuid_init. */
#define X86_CPUID_LEAVES_MAX 80
struct x86_cpuid_leaf {
    uint32_t leaf, subleaf;
    bool by_subleaf;
    uint32_t eax, ebx, ecx, edx;
};
struct x86_cpuid {
    unsigned count;
    struct x86_cpuid_leaf leaves[X86_CPUID_LEAVES_MAX];
    /* Derived, for quick checks. */
    uint64_t xcr0_mask; /* bits that XSETBV accepts */
    uint64_t cr4_mask;  /* bits that MOV CR4 accepts */
    uint64_t efer_mask;
    unsigned phys_bits;
    bool intel; /* vendor: decides SYSENTER in compatibility mode, SYSRET of non-canonical RIP, ... */
    /* CPUID.1:ECX, 1:EDX, 7.0:EBX, 7.0:ECX, 7.0:EDX, 0x80000001:ECX, :EDX, 0xd.1:EAX, 7.1:EAX as the guest
     * sees them */
    uint32_t f1_ecx, f1_edx, f7_ebx, f7_ecx, f7_edx, fe1_ecx, fe1_edx, fd1_eax, f71_eax;
};

struct x86_cpu {
    struct x86_state s;
    uint8_t cpl;
    bool in_delivery; /* an exception is being delivered (double-fault logic) */
    uint64_t next_rip;
    struct x86_exception exc; /* valid after a helper returned -1 */
    unsigned index;           /* vCPU number, = APIC id */
    struct mem *mem;
    struct x86_cpuid cpuid;
    struct vcpu_platform platform;
    const struct x86_cpu_ops *ops;
};

/* --- set-up --------------------------------------------------------------------------------------------- */

/* model: "host", "x86-64-v2", "x86-64-v3". What the engine can't execute is left out (AMX, XSAVES, PKU, VMX,
 * SVM, SGX, TSX, LA57, MONITOR...). Leaf 1 and 0xb carry index and vcpus; 0x40000000 KVM's paravirtual
 * leaves, with the features clocksource2, stable clock, nop I/O delay. Errors: -EINVAL unknown model,
 * -ENOTSUP when the host lacks a feature of the model (named in err). */
int x86_cpuid_init(struct x86_cpuid *cpuid, const struct engine_config *config, unsigned index,
                   struct err *err);
const char *const *x86_cpu_models(void); /* NULL-terminated */
void x86_cpu_reset(struct x86_cpu *cpu);
/* Recomputes cpl and the like after cpu->s was set from outside; refuses (-EINVAL) impossible state. */
int x86_cpu_adopt(struct x86_cpu *cpu, struct err *err);

/* --- memory --- */

#define X86_ACCESS_READ  0u
#define X86_ACCESS_WRITE 1u
#define X86_ACCESS_FETCH 2u
#define X86_ACCESS_USER  4u /* as CPL 3 (without it: as CPL < 3) */
#define X86_ACCESS_IMPLICIT                                                                                  \
    8u /* a supervisor access that SMAP's AC override does not reach (descriptor tables) */
#define X86_ACCESS_NO_AD 16u /* do not set accessed and dirty bits (debugger) */

struct x86_walk {
    gpa_t gpa;           /* of the byte asked for */
    uint64_t page_bytes; /* 4 KiB, 2 MiB, 4 MiB, 1 GiB */
    bool writable, user, executable, global;
    bool dirty; /* the leaf's dirty bit is set (after this access) */
};

/* Translates under the current paging mode (none, 32-bit, PAE, 4-level), checks permissions, reserved bits,
 * SMEP, SMAP, NX, WP; sets accessed and dirty bits atomically. -1 with #PF in cpu->exc. SDM vol. 3A ch. 4. */
int x86_walk(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret);

/* For a debugger: translates without access rights, A and D bits or exceptions. False: not mapped. */
bool x86_walk_quietly(const struct x86_cpu *cpu, uint64_t va, gpa_t *ret_gpa);

/* Linear-address access of 1-8 bytes (or any length for the _buf forms), may cross pages; all or nothing. */
int x86_load(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access, uint64_t *ret);
int x86_store(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access, uint64_t value);
int x86_load_buf(struct x86_cpu *cpu, uint64_t va, void *buf, unsigned size, unsigned access);
int x86_store_buf(struct x86_cpu *cpu, uint64_t va, const void *buf, unsigned size, unsigned access);
/* X86_ACCESS_USER when CPL is 3, else 0. */
static inline unsigned x86_access_mode(const struct x86_cpu *cpu)
{
    return cpu->cpl == 3 ? X86_ACCESS_USER : 0;
}

/* Logical to linear: adds the base, checks limit, type and presence in the legacy modes, canonicality in
 * 64-bit mode
 * (#SS for stack segment or, in 64-bit mode, for an address based on RSP/RBP as `stack` says; else #GP). */
int x86_linear(struct x86_cpu *cpu, enum x86_sreg sreg, uint64_t offset, unsigned size, unsigned access,
               bool stack, uint64_t *ret_va);

static inline bool x86_is_canonical(uint64_t va)
{
    return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

/* --- modes --- */

static inline bool x86_long_mode(const struct x86_cpu *cpu)
{
    return (cpu->s.efer & X86_EFER_LMA) != 0;
}
static inline bool x86_code64(const struct x86_cpu *cpu)
{
    return x86_long_mode(cpu) && (cpu->s.seg[X86_CS].attr & X86_SEG_L);
}
static inline bool x86_protected(const struct x86_cpu *cpu)
{
    return (cpu->s.cr0 & X86_CR0_PE) != 0;
}
static inline bool x86_vm86(const struct x86_cpu *cpu)
{
    return (cpu->s.rflags & X86_VM) != 0;
}

/* libc's memcpy and memset may use vector registers, which hold the guest's values while helpers run. */
static inline void x86_copy_bytes(void *to, const void *from, uint64_t size)
{
#ifdef __clang_analyzer__ /* which doesn't know what assembly writes */
    __builtin_memcpy(to, from, size);
#else
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
#endif
}

static inline void x86_zero_bytes(void *to, uint64_t size)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(0) : "memory");
}

/* --- exceptions and interrupts --- */

/* Records an exception in cpu->exc, with neither CR2 nor bits for DR6. */
void x86_note_exception(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error);
/* The same, for helpers to end with: all return -1, which is here so that compilers and analysers see it. */
static inline int x86_raise_error(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error)
{
    x86_note_exception(cpu, vector, error);
    return -1;
}
static inline int x86_raise(struct x86_cpu *cpu, enum x86_vector vector)
{
    return x86_raise_error(cpu, vector, 0);
}
static inline int x86_raise_pf(struct x86_cpu *cpu, uint64_t va, uint32_t error)
{
    x86_note_exception(cpu, X86_PF_EXC, error);
    cpu->exc.cr2 = va;
    return -1;
}
static inline int x86_raise_db(struct x86_cpu *cpu, uint64_t dr6_bits)
{
    x86_note_exception(cpu, X86_DB, 0);
    cpu->exc.dr6 = dr6_bits;
    return -1;
}

/* Delivers cpu->exc: pushes the frame, switches stacks (TSS, IST), turns into #DF on contributory pairs; for
 * faults the saved RIP is cpu->s.rip, for traps (#BP, #OF by INT3/INTO, #DB traps) cpu->next_rip as `trap`
 * says. Any mode (real, protected 16/32, vm86, long). Returns 0, or -1 for a triple fault (shutdown). SDM
 * vol. 3A ch. 6. #BP and #OF with trap set count as software interrupts (the gate's DPL is checked). Delivery
 * ends both shadows and HLT. RF is set in the saved flags for faults; for #DB only when dr6 has BD. */
int x86_deliver(struct x86_cpu *cpu, bool trap);
/* An external interrupt, or NMI when vector is 2 (NMIs are blocked then); saved RIP is cpu->s.rip. Returns 0
 * or -1 (shutdown). */
int x86_deliver_interrupt(struct x86_cpu *cpu, uint8_t vector);

/* --- instructions: control transfer --- */

enum x86_int_kind { X86_INT_N, X86_INT3, X86_INTO, X86_INT1 };
/* INT n, INT3, INTO, INT1: delivers through the IDT with the gate's DPL checked (not for INT1). INTO without
 * OF moves on. */
int x86_int(struct x86_cpu *cpu, enum x86_int_kind kind, uint8_t vector);
/* operand is the operand size in bytes: 2, 4, 8. Outside of long mode these, INT n and events may switch
 * tasks; an exception of the new task is then raised with the new task's state in place. */
int x86_iret(struct x86_cpu *cpu, unsigned operand);
int x86_far_jmp(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand);
int x86_far_call(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned operand);
int x86_far_ret(struct x86_cpu *cpu, unsigned operand, uint16_t pop_bytes);
int x86_syscall(struct x86_cpu *cpu);
int x86_sysret(struct x86_cpu *cpu, unsigned operand); /* 4 or 8 */
int x86_sysenter(struct x86_cpu *cpu);
int x86_sysexit(struct x86_cpu *cpu, unsigned operand);

/* --- instructions: system --- */

int x86_load_segment(struct x86_cpu *cpu, enum x86_sreg sreg,
                     uint16_t selector); /* MOV/POP/LxS; sets no shadow */
int x86_lldt(struct x86_cpu *cpu, uint16_t selector);
int x86_ltr(struct x86_cpu *cpu, uint16_t selector);
/* LGDT, LIDT: base already masked to 24 bits for 16-bit operands. */
int x86_lgdt(struct x86_cpu *cpu, uint64_t base, uint16_t limit);
int x86_lidt(struct x86_cpu *cpu, uint64_t base, uint16_t limit);
/* SGDT, SIDT, SLDT, STR, SMSW: only the UMIP check; the values are in cpu->s. */
int x86_check_umip(struct x86_cpu *cpu);
/* LAR, LSL, VERR, VERW: *ret_ok is ZF; *ret_value for LAR and LSL. */
int x86_lar(struct x86_cpu *cpu, uint16_t selector, bool *ret_ok, uint32_t *ret_value);
int x86_lsl(struct x86_cpu *cpu, uint16_t selector, bool *ret_ok, uint32_t *ret_value);
int x86_verr(struct x86_cpu *cpu, uint16_t selector, bool write, bool *ret_ok);

int x86_mov_from_cr(struct x86_cpu *cpu, unsigned cr, uint64_t *ret);
int x86_mov_to_cr(struct x86_cpu *cpu, unsigned cr, uint64_t value);
int x86_mov_from_dr(struct x86_cpu *cpu, unsigned dr, uint64_t *ret);
int x86_mov_to_dr(struct x86_cpu *cpu, unsigned dr, uint64_t value);
int x86_lmsw(struct x86_cpu *cpu, uint16_t value);
int x86_clts(struct x86_cpu *cpu);
int x86_rdmsr(struct x86_cpu *cpu, uint32_t msr, uint64_t *ret);
int x86_wrmsr(struct x86_cpu *cpu, uint32_t msr, uint64_t value);
int x86_xsetbv(struct x86_cpu *cpu, uint32_t index, uint64_t value);
int x86_xgetbv(struct x86_cpu *cpu, uint32_t index, uint64_t *ret);
int x86_rdtsc(struct x86_cpu *cpu, uint64_t *ret); /* CR4.TSD check, guest's value */
int x86_rdpmc(struct x86_cpu *cpu, uint32_t index, uint64_t *ret);
void x86_cpuid(struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf,
               uint32_t out[4]); /* eax, ebx, ecx, edx */
int x86_invlpg(struct x86_cpu *cpu, uint64_t va);
int x86_invpcid(struct x86_cpu *cpu, uint64_t type, uint64_t pcid, uint64_t va);
int x86_swapgs(struct x86_cpu *cpu);
int x86_fsgsbase(struct x86_cpu *cpu, enum x86_sreg sreg, bool write, unsigned operand, uint64_t *value);
int x86_cli(struct x86_cpu *cpu);
int x86_sti(struct x86_cpu *cpu); /* sets the shadow when IF was 0 */
/* The flags that POPF may change at this CPL and IOPL; -1 with #GP in vm86 with IOPL < 3. operand: 2, 4, 8.
 */
int x86_popf(struct x86_cpu *cpu, unsigned operand, uint64_t value);
int x86_pushf(struct x86_cpu *cpu, unsigned operand, uint64_t *ret);
int x86_clac_stac(struct x86_cpu *cpu, bool set);
/* #GP(0) unless the port(s) may be used: CPL <= IOPL, or the TSS's bitmap allows. */
int x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size);
/* #GP(0) unless CPL is 0 (HLT, WBINVD, INVD, ...). */
int x86_check_cpl0(struct x86_cpu *cpu);

/* --- debug --- */

/* Whether an enabled breakpoint of DR7 matches; returns the DR6 bits (0: none). */
uint64_t x86_match_breakpoint_exec(const struct x86_cpu *cpu, uint64_t linear_rip);
uint64_t x86_match_breakpoint_data(const struct x86_cpu *cpu, uint64_t va, unsigned size, bool write);

#endif
