/*
 * CPUID: what the guest's processor says of itself.
 *
 * A feature is offered when it is in the table below; everything else is left out, with the reason beside the
 * table's section. The engine itself does the system side of the processor (paging, MSRs, TSC...), so those
 * bits do not depend on the host; user-mode instruction sets run on the host's processor, so the host must
 * have them.
 *
 * Neighbours: cr.c, msr.c and walk.c look at the derived masks; cpu/kvm hands the leaves to the kernel. The
 * local APIC's timer runs at CPUID_APIC_BUS_KHZ.
 *
 * Invariants
 *  1. The leaves don't change after x86_cpuid_init. What depends on state (OSXSAVE, the sizes of leaf 0xd)
 *     is put in by x86_cpuid.
 *  2. Two hosts of one vendor that can offer a named model offer the same instruction sets.
 *
 * Threads: x86_cpuid_init any; x86_cpuid the vCPU's own.
 */
#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "cpu/x86/x86_int.h"

/* Levels of the psABI (x86-64 psABI 1.0, table 3.1). */
enum level { V1, V2, V3, BEYOND };

static const char *const model_names[] = {"host", "x86-64-v2", "x86-64-v3", NULL};
static const enum level model_levels[] = {BEYOND, V2, V3};

const char *const *x86_cpu_models(void)
{
    return model_names;
}

/* --- what may be offered --- */

enum reg { EAX, EBX, ECX, EDX };

enum word { F1C, F1D, F7B, F7C, F7D, F71A, FD1A, FE1C, FE1D, FE8B, FE21A, FE21C, WORDS };

static const struct {
    uint32_t leaf, subleaf;
    enum reg reg;
} words[WORDS] = {
    [F1C] = {0x1, 0, ECX},         [F1D] = {0x1, 0, EDX},          [F7B] = {0x7, 0, EBX},
    [F7C] = {0x7, 0, ECX},         [F7D] = {0x7, 0, EDX},          [F71A] = {0x7, 1, EAX},
    [FD1A] = {0xd, 1, EAX},        [FE1C] = {0x80000001, 0, ECX},  [FE1D] = {0x80000001, 0, EDX},
    [FE8B] = {0x80000008, 0, EBX}, [FE21A] = {0x80000021, 0, EAX}, [FE21C] = {0x80000021, 0, ECX},
};

enum policy {
    HOST,       /* runs on the host's processor */
    ENGINE,     /* done by the engine */
    ENGINE_AMD, /* the same, announced this way by AMD only */
    X2APIC,     /* as configured */
    SMP,        /* more than one vCPU */
    SMP_AMD,
};

struct feature {
    uint8_t word, bit;
    uint8_t policy, level;
    uint8_t xcr0; /* the state it needs enabled on the host */
    const char *name;
};

#define AVX_STATE    XCR0_AVX
#define AVX512_STATE (XCR0_AVX | XCR0_AVX512)

static const struct feature features[] = {
    /*
     * Leaf 1, ECX. Left out: MONITOR (MWAIT would keep a vCPU thread busy), VMX, SMX (no nesting), DTES64,
     * DS-CPL, PDCM (no performance monitoring), EIST, TM2 (frequency and heat are the host's), CNXT-ID, SDBG,
     * xTPR, DCA.
     */
    {F1C, 0, HOST, V2, 0, "sse3"},
    {F1C, 1, HOST, BEYOND, 0, "pclmulqdq"},
    {F1C, 9, HOST, V2, 0, "ssse3"},
    {F1C, 12, HOST, V3, AVX_STATE, "fma"},
    {F1C, 13, HOST, V2, 0, "cx16"},
    {F1C, 17, ENGINE, V1, 0, "pcid"},
    {F1C, 19, HOST, V2, 0, "sse4_1"},
    {F1C, 20, HOST, V2, 0, "sse4_2"},
    {F1C, 21, X2APIC, V1, 0, "x2apic"},
    {F1C, 22, HOST, V3, 0, "movbe"},
    {F1C, 23, HOST, V2, 0, "popcnt"},
    {F1C, 24, ENGINE, V1, 0, "tsc_deadline_timer"},
    {F1C, 25, HOST, BEYOND, 0, "aes"},
    {F1C, 26, HOST, V3, XCR0_X87, "xsave"},
    {F1C, 28, HOST, V3, AVX_STATE, "avx"},
    {F1C, 29, HOST, V3, AVX_STATE, "f16c"},
    {F1C, 30, HOST, BEYOND, 0, "rdrand"},
    {F1C, 31, ENGINE, V1, 0, "hypervisor"},
    /*
     * Leaf 1, EDX. Left out: VME (virtual interrupts of 8086 tasks; plain virtual-8086 mode works), PSN, DS,
     * ACPI, TM, PBE (performance monitoring, heat).
     */
    {F1D, 0, HOST, V1, 0, "fpu"},
    {F1D, 2, ENGINE, V1, 0, "de"},
    {F1D, 3, ENGINE, V1, 0, "pse"},
    {F1D, 4, ENGINE, V1, 0, "tsc"},
    {F1D, 5, ENGINE, V1, 0, "msr"},
    {F1D, 6, ENGINE, V1, 0, "pae"},
    {F1D, 7, ENGINE, V1, 0, "mce"},
    {F1D, 8, HOST, V1, 0, "cx8"},
    {F1D, 9, ENGINE, V1, 0, "apic"},
    {F1D, 11, ENGINE, V1, 0, "sep"},
    {F1D, 12, ENGINE, V1, 0, "mtrr"},
    {F1D, 13, ENGINE, V1, 0, "pge"},
    {F1D, 14, ENGINE, V1, 0, "mca"},
    {F1D, 15, HOST, V1, 0, "cmov"},
    {F1D, 16, ENGINE, V1, 0, "pat"},
    {F1D, 17, ENGINE, V1, 0, "pse36"},
    {F1D, 19, HOST, V1, 0, "clflush"},
    {F1D, 23, HOST, V1, 0, "mmx"},
    {F1D, 24, HOST, V1, 0, "fxsr"},
    {F1D, 25, HOST, V1, 0, "sse"},
    {F1D, 26, HOST, V1, 0, "sse2"},
    {F1D, 27, ENGINE, V1, 0, "ss"}, /* guest memory is always coherent, whatever its type */
    {F1D, 28, SMP, V1, 0, "ht"},
    /*
     * Leaf 7, EBX. Left out: SGX, HLE, RTM (a transaction cannot span what the translator puts between
     * instructions), MPX (gone from processors), RDT-M, RDT-A, PT, AVX512PF, AVX512ER (Xeon Phi only).
     */
    {F7B, 0, ENGINE, V1, 0, "fsgsbase"},
    {F7B, 1, ENGINE, V1, 0, "tsc_adjust"},
    {F7B, 3, HOST, V3, 0, "bmi1"},
    {F7B, 5, HOST, V3, AVX_STATE, "avx2"},
    {F7B, 6, HOST, BEYOND, 0, "fdp_excptn_only"},
    {F7B, 7, ENGINE, V1, 0, "smep"},
    {F7B, 8, HOST, V3, 0, "bmi2"},
    {F7B, 9, HOST, BEYOND, 0, "erms"},
    {F7B, 10, ENGINE, V1, 0, "invpcid"},
    {F7B, 13, HOST, BEYOND, 0, "zero_fcs_fds"},
    {F7B, 16, HOST, BEYOND, AVX512_STATE, "avx512f"},
    {F7B, 17, HOST, BEYOND, AVX512_STATE, "avx512dq"},
    {F7B, 18, HOST, BEYOND, 0, "rdseed"},
    {F7B, 19, HOST, BEYOND, 0, "adx"},
    {F7B, 20, ENGINE, V1, 0, "smap"},
    {F7B, 21, HOST, BEYOND, AVX512_STATE, "avx512ifma"},
    {F7B, 23, HOST, BEYOND, 0, "clflushopt"},
    {F7B, 24, HOST, BEYOND, 0, "clwb"},
    {F7B, 28, HOST, BEYOND, AVX512_STATE, "avx512cd"},
    {F7B, 29, HOST, BEYOND, 0, "sha_ni"},
    {F7B, 30, HOST, BEYOND, AVX512_STATE, "avx512bw"},
    {F7B, 31, HOST, BEYOND, AVX512_STATE, "avx512vl"},
    /*
     * Leaf 7, ECX. Left out: PKU, OSPKE, PKS (the TLB does not carry keys), WAITPKG (as MONITOR), CET (shadow
     * stacks), LA57, RDPID (reads an MSR of the host), TME, KL, BUS_LOCK_DETECT, MOVDIR64B (two memory
     * operands), ENQCMD, SGX_LC, PREFETCHWT1.
     */
    {F7C, 1, HOST, BEYOND, AVX512_STATE, "avx512vbmi"},
    {F7C, 2, ENGINE, V1, 0, "umip"},
    {F7C, 6, HOST, BEYOND, AVX512_STATE, "avx512_vbmi2"},
    {F7C, 8, HOST, BEYOND, 0, "gfni"},
    {F7C, 9, HOST, BEYOND, AVX_STATE, "vaes"},
    {F7C, 10, HOST, BEYOND, AVX_STATE, "vpclmulqdq"},
    {F7C, 11, HOST, BEYOND, AVX512_STATE, "avx512_vnni"},
    {F7C, 12, HOST, BEYOND, AVX512_STATE, "avx512_bitalg"},
    {F7C, 14, HOST, BEYOND, AVX512_STATE, "avx512_vpopcntdq"},
    {F7C, 25, HOST, BEYOND, 0, "cldemote"},
    /*
     * Leaf 7, EDX. SPEC_CTRL, STIBP and ARCH_CAPABILITIES let a kernel see that it needs no work-arounds
     * (msr.c). Left out: FSRM (a string instruction has a fixed cost in the engine; short copies should not
     * use one), UINTR, MD_CLEAR, FLUSH_L1D, SSBD, SRBDS_CTRL (nothing to work around), TSXLDTRK,
     * RTM_ALWAYS_ABORT, HYBRID, PCONFIG, ARCH_LBR, IBT, AMX (8 KiB of state for each thread),
     * CORE_CAPABILITIES, AVX512_4VNNIW and 4FMAPS (Xeon Phi only).
     */
    {F7D, 8, HOST, BEYOND, AVX512_STATE, "avx512_vp2intersect"},
    {F7D, 14, HOST, BEYOND, 0, "serialize"},
    {F7D, 23, HOST, BEYOND, AVX512_STATE, "avx512_fp16"},
    {F7D, 26, ENGINE, V1, 0, "spec_ctrl"},
    {F7D, 27, ENGINE, V1, 0, "stibp"},
    {F7D, 29, ENGINE, V1, 0, "arch_capabilities"},
    /* Leaf 7.1, EAX. Left out: what the decoder does not know (SHA512, SM3, SM4, CMPCCXADD, AVX-IFMA...),
     * FRED, LKGS, LAM, and the hints on short strings (as FSRM). */
    {F71A, 4, HOST, BEYOND, AVX_STATE, "avx_vnni"},
    {F71A, 5, HOST, BEYOND, AVX512_STATE, "avx512_bf16"},
    /* Leaf 0xd.1, EAX. Left out: XSAVES (supervisor state, of which there is none), XFD (AMX). */
    {FD1A, 0, HOST, BEYOND, XCR0_X87, "xsaveopt"},
    {FD1A, 1, HOST, BEYOND, XCR0_X87, "xsavec"},
    {FD1A, 2, HOST, BEYOND, XCR0_X87, "xgetbv1"},
    /*
     * Leaf 0x80000001, ECX. Left out: SVM, SKINIT (no nesting), EXTAPIC, CR8_LEGACY (LOCK MOV CR0), OSVW,
     * IBS, LWP, the performance counters, XOP, FMA4, TBM (gone since Zen), MONITORX (as MONITOR).
     */
    {FE1C, 0, HOST, V2, 0, "lahf_lm"},
    {FE1C, 1, SMP_AMD, V1, 0, "cmp_legacy"},
    {FE1C, 5, HOST, V3, 0, "abm"},
    {FE1C, 6, HOST, BEYOND, 0, "sse4a"},
    {FE1C, 7, HOST, BEYOND, 0, "misalignsse"},
    {FE1C, 8, HOST, BEYOND, 0, "3dnowprefetch"},
    {FE1C, 22, ENGINE_AMD, V1, 0, "topoext"},
    /* Leaf 0x80000001, EDX. AMD's copy of leaf 1 is added in code. Left out: FFXSR, 3DNow. */
    {FE1D, 11, ENGINE, V1, 0, "syscall"},
    {FE1D, 20, ENGINE, V1, 0, "nx"},
    {FE1D, 22, HOST, BEYOND, 0, "mmxext"},
    {FE1D, 26, ENGINE, V1, 0, "pdpe1gb"},
    {FE1D, 27, ENGINE, V1, 0, "rdtscp"},
    {FE1D, 29, ENGINE, V1, 0, "lm"},
    /*
     * AMD's leaves 0x80000008 and 0x80000021: the same story as ARCH_CAPABILITIES. Linux 6.1 has no notion of
     * automatic IBRS, but believes IBRS_ALL of ARCH_CAPABILITIES from any vendor, which is why leaf 7
     * above offers that to all. Left out: CLZERO (implicit memory operand), IRPERF, RDPRU, WBNOINVD, INVLPGB,
     * PSFD, the SSBD bits, AUTOIBRS.
     */
    {FE8B, 2, HOST, BEYOND, 0, "xsaveerptr"},
    {FE8B, 12, ENGINE_AMD, V1, 0, "ibpb"},
    {FE8B, 14, ENGINE_AMD, V1, 0, "ibrs"},
    {FE8B, 15, ENGINE_AMD, V1, 0, "amd_stibp"},
    {FE8B, 26, ENGINE_AMD, V1, 0, "amd_ssb_no"},
    {FE8B, 29, ENGINE_AMD, V1, 0, "btc_no"},
    {FE21A, 0, ENGINE_AMD, V1, 0, "no_nested_data_bp"},
    {FE21A, 2, ENGINE_AMD, V1, 0, "lfence_rdtsc"},
    {FE21A, 6, ENGINE_AMD, V1, 0, "null_sel_clr_base"},
    {FE21A, 29, ENGINE_AMD, V1, 0, "srso_no"},
    {FE21C, 1, ENGINE_AMD, V1, 0, "tsa_sq_no"},
    {FE21C, 2, ENGINE_AMD, V1, 0, "tsa_l1_no"},
};

/* Bits that AMD repeats from leaf 1's EDX in leaf 0x80000001's (APM vol. 3, E.4.2). */
#define AMD_COPIED_EDX 0x0183f3ffu

/* KVM's features (Linux Documentation/virt/kvm/x86/cpuid.rst): clock, no I/O delay, clock with the newer
 * MSRs, stable clock. No steal time, asynchronous page faults, EOI or TLB flushes by shared memory. */
#define KVM_FEATURES (BIT(0) | BIT(1) | BIT(3) | BIT(24))

#define LEAF_BASIC_MAX_INTEL 0x1fu
#define LEAF_BASIC_MAX_AMD   0xdu
#define LEAF_EXT_MAX_INTEL   0x80000008u
#define LEAF_EXT_MAX_AMD     0x80000021u
#define LEAF_KVM             0x40000000u
#define LEAF_KVM_FEATURES    0x40000001u
#define LEAF_TIMING          0x40000010u

/* The local APIC's bus clock, as KVM has it. */
#define CPUID_APIC_BUS_KHZ 1000000u

/* The last four letters of "AuthenticAMD" and "HygonGenuine"; all others are taken to be as Intel. */
#define VENDOR_ECX_AMD   0x444d4163u
#define VENDOR_ECX_HYGON 0x656e6975u

#define VIRTUAL_BITS     48u
#define XSAVE_HEADER_END 576u /* legacy region and header (SDM vol. 1, 13.4) */
#define XSTATE_FIRST     2u
#define XSTATE_LAST      7u
#define CACHE_LEAVES_MAX 8u
#define TOPOLOGY_CORE    2u
#define TOPOLOGY_THREAD  1u

/* --- the host --- */

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    out[0] = out[1] = out[2] = out[3] = 0;
    if (leaf <= (uint32_t)__get_cpuid_max(leaf & 0x80000000u, NULL)) {
        __cpuid_count(leaf, subleaf, out[EAX], out[EBX], out[ECX], out[EDX]);
    }
}

static uint64_t host_xcr0(void)
{
    uint32_t out[4];
    host_cpuid(1, 0, out);
    if (!(out[ECX] & F1_ECX_OSXSAVE)) {
        return 0;
    }
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (uint64_t)high << 32;
}

/* --- building --- */

struct build {
    struct x86_cpuid *cpuid;
    const struct engine_config *config;
    unsigned index;
    enum level level;
    bool amd;
    uint32_t words[WORDS];
};

static void add_leaf(struct build *b, uint32_t leaf, bool by_subleaf, uint32_t subleaf,
                     const uint32_t regs[4])
{
    struct x86_cpuid *cpuid = b->cpuid;
    if (cpuid->count < X86_CPUID_LEAVES_MAX) {
        cpuid->leaves[cpuid->count++] = (struct x86_cpuid_leaf){
            .leaf = leaf,
            .subleaf = subleaf,
            .by_subleaf = by_subleaf,
            .eax = regs[EAX],
            .ebx = regs[EBX],
            .ecx = regs[ECX],
            .edx = regs[EDX],
        };
    }
}

#define ADD(b, leaf, ...)          add_leaf(b, leaf, false, 0, (const uint32_t[4]){__VA_ARGS__})
#define ADD_SUB(b, leaf, sub, ...) add_leaf(b, leaf, true, sub, (const uint32_t[4]){__VA_ARGS__})

static void add_from_host(struct build *b, uint32_t leaf)
{
    uint32_t regs[4];
    host_cpuid(leaf, 0, regs);
    add_leaf(b, leaf, false, 0, regs);
}

static bool offered(const struct build *b, const struct feature *f, bool on_host)
{
    switch ((enum policy)f->policy) {
    case HOST: return on_host;
    case ENGINE: return true;
    case ENGINE_AMD: return b->amd;
    case X2APIC: return b->config->apic_x2apic;
    case SMP: return b->config->vcpus > 1;
    case SMP_AMD: return b->amd && b->config->vcpus > 1;
    }
    return false;
}

/* Fills b->words. */
static int choose_features(struct build *b, const char *model, struct err *err)
{
    const uint64_t xcr0 = host_xcr0();
    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (f->level > b->level) {
            continue;
        }
        uint32_t host[4];
        host_cpuid(words[f->word].leaf, words[f->word].subleaf, host);
        bool on_host = (host[words[f->word].reg] & BIT(f->bit)) && (xcr0 & f->xcr0) == f->xcr0;
        if (offered(b, f, on_host)) {
            b->words[f->word] |= BIT(f->bit);
        } else if (f->policy == HOST && b->level != BEYOND) {
            return err_set(err, -ENOTSUP, "cpu model '%s' needs '%s', which this host lacks", model, f->name);
        }
    }
    if (!(b->words[F1C] & F1_ECX_XSAVE)) {
        b->words[FD1A] = 0;
    }
    if (b->amd) {
        b->words[FE1D] |= b->words[F1D] & AMD_COPIED_EDX;
    }
    return 0;
}

/* Bits that hold the numbers 0 to count - 1. */
static unsigned bits_for(unsigned count)
{
    unsigned bits = 0;
    while ((1u << bits) < count) {
        bits++;
    }
    return bits;
}

/* Intel's leaf 4, AMD's 0x8000001d: the host's caches, shared as the guest's topology has it: levels 1 and 2
 * by one core, the others by all. */
static void add_caches(struct build *b, uint32_t leaf)
{
    const unsigned id_bits = bits_for(b->config->vcpus);
    for (unsigned i = 0; i < CACHE_LEAVES_MAX; i++) {
        uint32_t regs[4];
        host_cpuid(leaf, i, regs);
        if ((regs[EAX] & 0x1f) == 0) {
            break;
        }
        unsigned level = regs[EAX] >> 5 & 7;
        uint32_t sharing = level <= 2 ? 0 : MIN((1u << id_bits) - 1, 0xfffu);
        uint32_t cores = b->amd ? 0 : MIN((1u << id_bits) - 1, 0x3fu);
        regs[EAX] = (regs[EAX] & 0x3fffu) | sharing << 14 | cores << 26;
        add_leaf(b, leaf, true, i, regs);
    }
}

static void add_topology(struct build *b, uint32_t leaf)
{
    ADD_SUB(b, leaf, 0, 0, 1, TOPOLOGY_THREAD << 8 | 0, b->index);
    ADD_SUB(b, leaf, 1, bits_for(b->config->vcpus), b->config->vcpus, TOPOLOGY_CORE << 8 | 1, b->index);
}

static void add_xsave(struct build *b)
{
    struct x86_cpuid *cpuid = b->cpuid;
    if (!(b->words[F1C] & F1_ECX_XSAVE)) {
        return;
    }
    uint32_t size = XSAVE_HEADER_END;
    for (unsigned i = XSTATE_FIRST; i <= XSTATE_LAST; i++) {
        uint32_t regs[4];
        host_cpuid(0xd, i, regs);
        if (cpuid->xcr0_mask & BIT(i)) {
            size = MAX(size, regs[EAX] + regs[EBX]);
        }
    }
    /* EBX of both is filled in by x86_cpuid. */
    ADD_SUB(b, 0xd, 0, (uint32_t)cpuid->xcr0_mask, 0, size, 0);
    ADD_SUB(b, 0xd, 1, b->words[FD1A], 0, 0, 0);
    for (unsigned i = XSTATE_FIRST; i <= XSTATE_LAST; i++) {
        uint32_t regs[4];
        host_cpuid(0xd, i, regs);
        if (cpuid->xcr0_mask & BIT(i)) {
            ADD_SUB(b, 0xd, i, regs[EAX], regs[EBX], regs[ECX] & 2, 0);
        }
    }
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/*
 * Leaf 0x15: TSC = crystal * EBX / EAX. Kernels take the crystal for the APIC timer's clock too, so it is
 * that, where the quotient stays exact in their 32-bit kHz arithmetic (a TSC of whole MHz); else the crystal
 * is the TSC itself, halved until it fits in 32 bits.
 */
static void add_timing(struct build *b)
{
    const uint64_t hz = b->config->tsc_hz;
    if (hz == 0) {
        return;
    }
    const uint64_t apic_hz = CPUID_APIC_BUS_KHZ * 1000ull;
    const uint64_t divisor = gcd(hz, apic_hz);
    uint64_t numerator = hz / divisor, denominator = apic_hz / divisor, crystal = apic_hz;
    if (numerator * CPUID_APIC_BUS_KHZ > UINT32_MAX) {
        numerator = denominator = 1;
        for (crystal = hz; crystal > UINT32_MAX; crystal /= 2) {
            numerator *= 2;
        }
    }
    if (!b->amd) {
        ADD(b, 0x15, (uint32_t)denominator, (uint32_t)numerator, (uint32_t)crystal, 0);
        uint32_t mhz = (uint32_t)MIN((hz + 500000) / 1000000, (uint64_t)UINT16_MAX);
        ADD(b, 0x16, mhz, mhz, 100, 0);
    }
    ADD(b, LEAF_TIMING, (uint32_t)MIN((hz + 500) / 1000, (uint64_t)UINT32_MAX), CPUID_APIC_BUS_KHZ, 0, 0);
}

static void add_basic(struct build *b)
{
    uint32_t regs[4];
    host_cpuid(0, 0, regs);
    ADD(b, 0, b->amd ? LEAF_BASIC_MAX_AMD : LEAF_BASIC_MAX_INTEL, regs[EBX], regs[ECX], regs[EDX]);
    host_cpuid(1, 0, regs);
    /* APIC id, room for logical processors, CLFLUSH line size. */
    uint32_t ids = MIN(1u << bits_for(b->config->vcpus), 255u);
    uint32_t ebx = (b->index & 0xff) << 24 | ids << 16 | (regs[EBX] & 0xff00);
    ADD(b, 1, regs[EAX], ebx, b->words[F1C], b->words[F1D]);
    if (!b->amd) {
        add_from_host(b, 2);
        add_caches(b, 4);
    }
    ADD(b, 6, BIT(2) /* ARAT: the APIC timer never stops */, 0, 0, 0);
    ADD_SUB(b, 7, 0, 1, b->words[F7B], b->words[F7C], b->words[F7D]);
    ADD_SUB(b, 7, 1, b->words[F71A], 0, 0, 0);
    add_topology(b, 0xb);
    add_xsave(b);
    if (!b->amd) {
        add_topology(b, 0x1f);
    }
}

static void add_extended(struct build *b)
{
    uint32_t regs[4], vendor[4];
    host_cpuid(0, 0, vendor);
    if (b->amd) {
        ADD(b, 0x80000000u, LEAF_EXT_MAX_AMD, vendor[EBX], vendor[ECX], vendor[EDX]);
    } else {
        ADD(b, 0x80000000u, LEAF_EXT_MAX_INTEL, 0, 0, 0);
    }
    host_cpuid(0x80000001u, 0, regs);
    ADD(b, 0x80000001u, b->amd ? regs[EAX] : 0, b->amd ? regs[EBX] : 0, b->words[FE1C], b->words[FE1D]);
    for (uint32_t leaf = 0x80000002u; leaf <= 0x80000006u; leaf++) {
        add_from_host(b, leaf);
    }
    ADD(b, 0x80000007u, 0, 0, 0, BIT(8) /* invariant TSC */);
    uint32_t id_bits = bits_for(b->config->vcpus);
    uint32_t cores = b->amd ? id_bits << 12 | MIN(b->config->vcpus - 1, 255u) : 0;
    ADD(b, 0x80000008u, VIRTUAL_BITS << 8 | b->cpuid->phys_bits, b->words[FE8B], cores, 0);
    if (b->amd) {
        add_caches(b, 0x8000001du);
        ADD(b, 0x8000001eu, b->index, b->index & 0xff, 0, 0);
        ADD(b, 0x80000021u, b->words[FE21A], 0, b->words[FE21C], 0);
    }
}

static void derive(struct build *b)
{
    struct x86_cpuid *cpuid = b->cpuid;
    uint32_t regs[4];
    cpuid->intel = !b->amd;
    cpuid->f1_ecx = b->words[F1C];
    cpuid->f1_edx = b->words[F1D];
    cpuid->f7_ebx = b->words[F7B];
    cpuid->f7_ecx = b->words[F7C];
    cpuid->f7_edx = b->words[F7D];
    cpuid->f71_eax = b->words[F71A];
    cpuid->fd1_eax = b->words[FD1A];
    cpuid->fe1_ecx = b->words[FE1C];
    cpuid->fe1_edx = b->words[FE1D];

    host_cpuid(0x80000008u, 0, regs);
    cpuid->phys_bits = MAX(MIN(regs[EAX] & 0xff, 52u), 36u);

    cpuid->xcr0_mask = XCR0_X87 | XCR0_SSE;
    if (b->words[F1C] & BIT(28)) {
        cpuid->xcr0_mask |= XCR0_AVX;
    }
    if (b->words[F7B] & BIT(16)) {
        cpuid->xcr0_mask |= XCR0_AVX512;
    }
    cpuid->cr4_mask = X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE |
                      X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_UMIP | X86_CR4_FSGSBASE |
                      X86_CR4_PCIDE | X86_CR4_SMEP | X86_CR4_SMAP;
    if (b->words[F1C] & F1_ECX_XSAVE) {
        cpuid->cr4_mask |= X86_CR4_OSXSAVE;
    }
    cpuid->efer_mask = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
}

int x86_cpuid_init(struct x86_cpuid *cpuid, const struct engine_config *config, unsigned index,
                   struct err *err)
{
    struct build b = {.cpuid = cpuid, .config = config, .index = index};
    const char *model = config->cpu_model ? config->cpu_model : "host";
    unsigned i = 0;
    while (model_names[i] && strcmp(model_names[i], model) != 0) {
        i++;
    }
    if (!model_names[i]) {
        return err_set(err, -EINVAL, "unknown cpu model '%s'; there are: host, x86-64-v2, x86-64-v3", model);
    }
    b.level = model_levels[i];
    uint32_t vendor[4];
    host_cpuid(0, 0, vendor);
    b.amd = vendor[ECX] == VENDOR_ECX_AMD || vendor[ECX] == VENDOR_ECX_HYGON;

    int status = choose_features(&b, model, err);
    if (status < 0) {
        return status;
    }
    x86_zero_bytes(cpuid, sizeof(*cpuid));
    derive(&b);
    add_basic(&b);
    ADD(&b, LEAF_KVM, LEAF_TIMING, 0x4b4d564b, 0x564b4d56, 0x4d); /* "KVMKVMKVM" */
    ADD(&b, LEAF_KVM_FEATURES, KVM_FEATURES, 0, 0, 0);
    add_timing(&b);
    add_extended(&b);
    return 0;
}

/* --- the instruction --- */

static const struct x86_cpuid_leaf *find_leaf(const struct x86_cpuid *cpuid, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < cpuid->count; i++) {
        const struct x86_cpuid_leaf *l = &cpuid->leaves[i];
        if (l->leaf == leaf && (!l->by_subleaf || l->subleaf == subleaf)) {
            return l;
        }
    }
    return NULL;
}

/* Bytes of the XSAVE area with the components of mask, in the standard or the compacted format (SDM vol.
 * 1, 13.4). */
static uint32_t xsave_size(const struct x86_cpuid *cpuid, uint64_t mask, bool compacted)
{
    uint32_t size = XSAVE_HEADER_END;
    for (unsigned i = XSTATE_FIRST; i <= XSTATE_LAST; i++) {
        const struct x86_cpuid_leaf *l = mask & BIT(i) ? find_leaf(cpuid, 0xd, i) : NULL;
        if (!l) {
            continue;
        }
        if (compacted) {
            size = (l->ecx & 2 ? (uint32_t)align_up(size, 64) : size) + l->eax;
        } else {
            size = MAX(size, l->eax + l->ebx);
        }
    }
    return size;
}

void x86_cpuid(struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct x86_cpuid *cpuid = &cpu->cpuid;
    const uint32_t basic_max = cpuid->intel ? LEAF_BASIC_MAX_INTEL : LEAF_BASIC_MAX_AMD;
    const uint32_t ext_max = cpuid->intel ? LEAF_EXT_MAX_INTEL : LEAF_EXT_MAX_AMD;
    const bool hypervisor = leaf >> 28 == 4;
    const bool beyond = leaf & 0x80000000u ? leaf > ext_max : leaf > basic_max && !hypervisor;
    if (beyond && cpuid->intel) {
        /* Intel processors answer with the highest basic leaf (SDM vol. 2A, CPUID). */
        leaf = basic_max;
    }
    out[0] = out[1] = out[2] = out[3] = 0;
    const struct x86_cpuid_leaf *l = find_leaf(cpuid, leaf, subleaf);
    if (l) {
        out[EAX] = l->eax;
        out[EBX] = l->ebx;
        out[ECX] = l->ecx;
        out[EDX] = l->edx;
    }
    switch (leaf) {
    case 0x1:
        if (cpu->s.cr4 & X86_CR4_OSXSAVE) {
            out[ECX] |= F1_ECX_OSXSAVE;
        }
        break;
    case 0xb:
    case 0x1f:
        /* Levels beyond the last one repeat the subleaf and the id. */
        if (!l && find_leaf(cpuid, leaf, 0)) {
            out[ECX] = subleaf & 0xff;
            out[EDX] = cpu->index;
        }
        break;
    case 0xd:
        if (l && subleaf <= 1) {
            out[EBX] = subleaf == 0 || (l->eax & 0xa) ? xsave_size(cpuid, cpu->s.xcr0, subleaf == 1) : 0;
        }
        break;
    default: break;
    }
}
