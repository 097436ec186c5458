/*
 * What CPUID hides does not execute: #UD for an instruction of each feature that is off, under every CPU
 * model (SDM vol. 2, each instruction's "CPUID Feature Flag" and exceptions); control-register bits and MSRs
 * of hidden features fault. And unprivileged instructions that show system state (SGDT to RDPID) show the
 * guest's.
 */
#include "rt/rt.h"

static uint8_t area[4096] __attribute__((aligned(64)));

enum { EAX, EBX, ECX, EDX };

#define FEATURES(F)                                                                                          \
    F(sse3, 1, 0, ECX, 0, "haddps %xmm0, %xmm1")                                                             \
    F(pclmulqdq, 1, 0, ECX, 1, "pclmulqdq $0, %xmm0, %xmm1")                                                 \
    F(monitor, 1, 0, ECX, 3, "mov %rbx, %rax\n xor %ecx, %ecx\n xor %edx, %edx\n monitor")                   \
    F(ssse3, 1, 0, ECX, 9, "pshufb %xmm0, %xmm1")                                                            \
    F(fma, 1, 0, ECX, 12, "vfmadd132ps %ymm0, %ymm1, %ymm2")                                                 \
    F(cx16, 1, 0, ECX, 13, "cmpxchg16b (%rbx)")                                                              \
    F(sse41, 1, 0, ECX, 19, "pmulld %xmm0, %xmm1")                                                           \
    F(sse42, 1, 0, ECX, 20, "pcmpgtq %xmm0, %xmm1")                                                          \
    F(crc32, 1, 0, ECX, 20, "crc32q %rax, %rcx")                                                             \
    F(movbe, 1, 0, ECX, 22, "movbe (%rbx), %rax")                                                            \
    F(popcnt, 1, 0, ECX, 23, "popcnt %rax, %rcx")                                                            \
    F(aes, 1, 0, ECX, 25, "aesenc %xmm0, %xmm1")                                                             \
    F(xsave, 1, 0, ECX, 26, "xor %ecx, %ecx\n xgetbv")                                                       \
    F(avx, 1, 0, ECX, 28, "vaddps %ymm0, %ymm1, %ymm2")                                                      \
    F(f16c, 1, 0, ECX, 29, "vcvtph2ps %xmm0, %ymm1")                                                         \
    F(rdrand, 1, 0, ECX, 30, "rdrand %rax")                                                                  \
    F(fsgsbase, 7, 0, EBX, 0, "rdfsbase %rax")                                                               \
    F(bmi1, 7, 0, EBX, 3, "andn %rax, %rbx, %rcx")                                                           \
    F(avx2, 7, 0, EBX, 5, "vpaddd %ymm0, %ymm1, %ymm2")                                                      \
    F(bmi2, 7, 0, EBX, 8, "pdep %rax, %rbx, %rcx")                                                           \
    F(invpcid, 7, 0, EBX, 10, "mov $2, %eax\n invpcid (%rbx), %rax")                                         \
    F(rtm, 7, 0, EBX, 11, "xbegin 1f\n 1: nop")                                                              \
    F(avx512f, 7, 0, EBX, 16, "vpaddd %zmm0, %zmm1, %zmm2")                                                  \
    F(avx512dq, 7, 0, EBX, 17, "vpmullq %zmm0, %zmm1, %zmm2")                                                \
    F(rdseed, 7, 0, EBX, 18, "rdseed %rax")                                                                  \
    F(adx, 7, 0, EBX, 19, "adcx %rax, %rcx")                                                                 \
    F(smap, 7, 0, EBX, 20, "clac")                                                                           \
    F(avx512ifma, 7, 0, EBX, 21, "vpmadd52luq %zmm0, %zmm1, %zmm2")                                          \
    F(clflushopt, 7, 0, EBX, 23, "clflushopt (%rbx)")                                                        \
    F(clwb, 7, 0, EBX, 24, "clwb (%rbx)")                                                                    \
    F(avx512cd, 7, 0, EBX, 28, "vplzcntd %zmm0, %zmm1")                                                      \
    F(sha, 7, 0, EBX, 29, "sha256msg1 %xmm0, %xmm1")                                                         \
    F(avx512bw, 7, 0, EBX, 30, "vpaddb %zmm0, %zmm1, %zmm2")                                                 \
    F(avx512vl, 7, 0, EBX, 31, "vpaddd %xmm16, %xmm17, %xmm18")                                              \
    F(avx512vbmi, 7, 0, ECX, 1, "vpermb %zmm0, %zmm1, %zmm2")                                                \
    F(pku, 7, 0, ECX, 4, "xor %ecx, %ecx\n rdpkru")                                                          \
    F(waitpkg, 7, 0, ECX, 5, "xor %eax, %eax\n xor %edx, %edx\n xor %ecx, %ecx\n tpause %ecx")               \
    F(avx512vbmi2, 7, 0, ECX, 6, "vpcompressb %zmm0, %zmm1")                                                 \
    F(gfni, 7, 0, ECX, 8, "gf2p8mulb %xmm0, %xmm1")                                                          \
    F(vaes, 7, 0, ECX, 9, "vaesenc %ymm0, %ymm1, %ymm2")                                                     \
    F(vpclmulqdq, 7, 0, ECX, 10, "vpclmulqdq $0, %ymm0, %ymm1, %ymm2")                                       \
    F(avx512vnni, 7, 0, ECX, 11, "vpdpbusd %zmm0, %zmm1, %zmm2")                                             \
    F(avx512bitalg, 7, 0, ECX, 12, "vpopcntb %zmm0, %zmm1")                                                  \
    F(avx512vpopcntdq, 7, 0, ECX, 14, "vpopcntd %zmm0, %zmm1")                                               \
    F(rdpid, 7, 0, ECX, 22, ".byte 0xf3, 0x0f, 0xc7, 0xf8")                                                  \
    F(movdiri, 7, 0, ECX, 27, "movdiri %rax, (%rbx)")                                                        \
    F(movdir64b, 7, 0, ECX, 28, "movdir64b (%rbx), %rbx")                                                    \
    F(serialize, 7, 0, EDX, 14, ".byte 0x0f, 0x01, 0xe8")                                                    \
    F(avxvnni, 7, 1, EAX, 4, "{vex} vpdpbusd %ymm0, %ymm1, %ymm2")                                           \
    F(avx512bf16, 7, 1, EAX, 5, "vdpbf16ps %zmm0, %zmm1, %zmm2")                                             \
    F(sse4a, 0x80000001, 0, ECX, 6, "extrq $1, $1, %xmm0")                                                   \
    F(xop, 0x80000001, 0, ECX, 11, "vphaddbd %xmm0, %xmm1")                                                  \
    F(fma4, 0x80000001, 0, ECX, 16, "vfmaddps %xmm0, %xmm1, %xmm2, %xmm3")                                   \
    F(tbm, 0x80000001, 0, ECX, 21, "blcfill %eax, %ecx")                                                     \
    F(rdtscp, 0x80000001, 0, EDX, 27, "rdtscp")                                                              \
    F(vmx, 1, 0, ECX, 5, "vmxoff")                                                                           \
    F(svm, 0x80000001, 0, ECX, 2, "clgi")

#define DEFINE(name, leaf, sub, reg, bit, text) SNIPPET(f_##name, text);
FEATURES(DEFINE)
#define ENTRY(name, leaf, sub, reg, bit, text) {#name, leaf, sub, reg, bit, f_##name},
static const struct {
    const char *name;
    uint32_t leaf, sub;
    unsigned reg, bit;
    const char *code;
} features[] = {FEATURES(ENTRY)};

static uint64_t xcr0;

/* Everything on that can be: AVX and the like need it. */
static void enable_states(void)
{
    if (!HAS_XSAVE()) {
        return;
    }
    uint32_t out[4];
    write_cr4(read_cr4() | 1u << 18);
    cpuid(0xd, 0, out);
    xcr0 = out[0] & 0xe7;
    asm volatile("xsetbv" ::"c"(0), "a"((uint32_t)xcr0), "d"(0));
}

static struct frame go(const void *code, bool user)
{
    struct frame f = user ? rt_user(code) : rt_kernel(code);
    f.rbx = (uint64_t)area + (user ? RT_ALIAS : 0);
    rt_run(&f);
    return f;
}

static bool hidden(unsigned i)
{
    return !has(features[i].leaf, features[i].sub, features[i].reg, features[i].bit);
}

/* The #UD is of the instruction, not of the one behind the snippet. */
static void instructions(void)
{
    if (HAS_FSGSBASE()) {
        write_cr4(read_cr4() | 1u << 16);
    }
    for (unsigned i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        struct frame f = go(features[i].code, false);
        about(features[i].name);
        bool ran = rt_done_at(&f, f.rip == 0 ? features[i].code : (const void *)f.rip) && f.vector == UD;
        const uint8_t *at = (const uint8_t *)f.rip;
        bool at_end = ran && at[0] == 0x0f && at[1] == 0x0b;
        if (hidden(i)) {
            ok(f.vector == UD && !at_end, "hidden by CPUID: #UD");
        } else if (features[i].code != f_vmx && features[i].code != f_svm) {
            ok(at_end || f.vector == GP, "offered by CPUID: executes");
        }
    }
    about(NULL);
}

SNIPPET(f_cr4, "mov %rax, %cr4");
SNIPPET(f_rdmsr, "rdmsr");

static void control_bits(void)
{
    static const struct {
        const char *name;
        unsigned bit;
        uint32_t leaf;
        unsigned reg, feature;
    } bits[] = {
        {"CR4.UMIP", 11, 7, ECX, 2},   {"CR4.LA57", 12, 7, ECX, 16},    {"CR4.FSGSBASE", 16, 7, EBX, 0},
        {"CR4.PCIDE", 17, 1, ECX, 17}, {"CR4.OSXSAVE", 18, 1, ECX, 26}, {"CR4.SMEP", 20, 7, EBX, 7},
        {"CR4.SMAP", 21, 7, EBX, 20},  {"CR4.PKE", 22, 7, ECX, 3},      {"CR4.CET", 23, 7, ECX, 7},
        {"CR4.PKS", 24, 7, ECX, 31},   {"CR4.VMXE", 13, 1, ECX, 5},     {"CR4.SMXE", 14, 1, ECX, 6}};
    for (unsigned i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        about(bits[i].name);
        if (has(bits[i].leaf, 0, bits[i].reg, bits[i].feature)) {
            skip("hidden: #GP(0)", "it is offered");
            continue;
        }
        struct frame f = rt_kernel(f_cr4);
        uint64_t cr4 = read_cr4();
        f.rax = cr4 | 1ull << bits[i].bit;
        rt_run(&f);
        write_cr4(cr4);
        trapped(&f, GP, 0, f_cr4, "hidden: #GP(0)");
    }
    /* SDM vol. 3A, 4.1.4, 4.5: no 5-level paging means 48 bits of linear address. */
    about("5-level paging");
    uint32_t out[4];
    cpuid(0x80000008, 0, out);
    is(out[0] >> 8 & 0xff, has(7, 0, ECX, 16) ? 57 : 48, "CPUID: the width of linear addresses");
    about("MSRs of hidden features");
    static const struct {
        const char *name;
        uint32_t msr, leaf, sub;
        unsigned reg, feature;
    } msrs[] = {{"IA32_XSS", 0xda0, 0xd, 1, EAX, 3},
                {"IA32_U_CET", 0x6a0, 7, 0, ECX, 7},
                {"IA32_PKRS", 0x6e1, 7, 0, ECX, 31},
                {"IA32_UMWAIT_CONTROL", 0xe1, 7, 0, ECX, 5},
                {"IA32_TSC_DEADLINE", 0x6e0, 1, 0, ECX, 24},
                {"IA32_VMX_BASIC", 0x480, 1, 0, ECX, 5},
                {"IA32_TSX_CTRL", 0x122, 7, 0, EBX, 11},
                {"TSC_AUX", 0xc0000103, 0x80000001, 0, EDX, 27},
                {"LASTBRANCH_TOS", 0x1c9, 1, 0, EDX, 31},
                {"IA32_LBR_CTL", 0x14ce, 7, 0, EDX, 19},
                {"IA32_PERF_GLOBAL_CTRL", 0x38f, 0xa, 0, EAX, 1}};
    for (unsigned i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++) {
        if (has(msrs[i].leaf, msrs[i].sub, msrs[i].reg, msrs[i].feature)) {
            continue;
        }
        about(msrs[i].name);
        struct frame f = rt_kernel(f_rdmsr);
        f.rcx = msrs[i].msr;
        rt_run(&f);
        trapped(&f, GP, 0, f_rdmsr, "its feature is hidden: #GP(0)");
    }
    about(NULL);
}

/* --- ring 3 sees the guest's state, not the host's --- */

SNIPPET(u_sgdt, "sgdt (%rbx)");
SNIPPET(u_sidt, "sidt (%rbx)");
SNIPPET(u_sldt, "sldt %rax");
SNIPPET(u_str, "str %rax");
SNIPPET(u_smsw, "smsw %rax");
SNIPPET(u_pushf, "pushf\n pop %rax");
SNIPPET(u_popf,
        "pushf\n pop %rax\n mov %rax, %rcx\n xor $0x3200, %rax\n push %rax\n popf\n pushf\n pop %rax");
SNIPPET(u_segments, "mov %cs, %eax\n mov %ds, %ecx\n mov %es, %edx\n mov %fs, %esi\n mov %gs, %edi");
SNIPPET(u_lar, "lar %rcx, %rax\n setz %dl");
SNIPPET(u_lsl, "lsl %rcx, %rax\n setz %dl");
SNIPPET(u_verr, "verr %cx\n setz %dl");
SNIPPET(u_verw, "verw %cx\n setz %dl");
SNIPPET(u_cpuid, "cpuid");
SNIPPET(u_rdtsc, "rdtsc");

static struct frame with_rcx(const void *code, bool user, uint64_t rax, uint64_t rcx)
{
    struct frame f = user ? rt_user(code) : rt_kernel(code);
    f.rax = rax;
    f.rcx = rcx;
    rt_run(&f);
    return f;
}

static void tables(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdt, idt;
    uint16_t ldt, tr;
    asm volatile("sgdt %0\n sidt %1\n sldt %2\n str %3" : "=m"(gdt), "=m"(idt), "=m"(ldt), "=m"(tr));
    struct frame f = go(u_sgdt, true);
    ok(rt_done(f, u_sgdt) && memcmp(area, &gdt, 10) == 0, "SGDT at CPL 3: the guest's");
    ok(gdt.base == (uint64_t)rt_gdt, "which is the one that was loaded");
    f = go(u_sidt, true);
    ok(rt_done(f, u_sidt) && memcmp(area, &idt, 10) == 0, "SIDT at CPL 3: the guest's");
    f = go(u_sldt, true);
    is(f.rax & 0xffff, ldt, "SLDT at CPL 3");
    f = go(u_str, true);
    is(f.rax & 0xffff, tr, "STR at CPL 3");
    f = go(u_smsw, true);
    is(f.rax & 0xffff, read_cr0() & 0xffff, "SMSW at CPL 3");
    if (!HAS_UMIP()) {
        skip("UMIP", "not in CPUID");
        return;
    }
    /* SDM vol. 3A, 2.5, CR4.UMIP. */
    static const void *const codes[] = {u_sgdt, u_sidt, u_sldt, u_str, u_smsw};
    static const char *const names[] = {"UMIP: SGDT", "UMIP: SIDT", "UMIP: SLDT", "UMIP: STR", "UMIP: SMSW"};
    write_cr4(read_cr4() | 1u << 11);
    for (unsigned i = 0; i < 5; i++) {
        about(names[i]);
        f = go(codes[i], true);
        trapped(&f, GP, 0, codes[i], "at CPL 3: #GP(0)");
        f = go(codes[i], false);
        ok(f.vector == UD, "at CPL 0 it is fine");
    }
    about(NULL);
    write_cr4(read_cr4() & ~(1ull << 11));
}

static void flags_and_selectors(void)
{
    struct frame f = go(u_pushf, true);
    is(f.rax & 0x3200, f.rflags & 0x3200, "PUSHF at CPL 3: IF and IOPL are the guest's");
    f = go(u_popf, true);
    is(f.rax & 0x3200, f.rcx & 0x3200, "POPF at CPL 3: changes neither IF nor IOPL");
    f = go(u_segments, true);
    is(f.rax & 0xffff, f.cs, "MOV from CS at CPL 3");
    static const struct {
        const char *name;
        const void *code;
    } looks[] = {{"LAR", u_lar}, {"LSL", u_lsl}, {"VERR", u_verr}, {"VERW", u_verw}};
    for (unsigned i = 0; i < 4; i++) {
        bool same = true;
        for (uint64_t selector = 0; selector < 64 * 8; selector += 8) {
            /* Privilege checks aside, both levels look into the same table: those with DPL 3 are seen by
             * both. */
            uint64_t entry = rt_gdt[selector / 8];
            if ((entry >> 45 & 3) != 3 || !(entry >> 47 & 1) || !(entry >> 44 & 1)) {
                continue;
            }
            struct frame u = with_rcx(looks[i].code, true, 0, selector | 3);
            struct frame k = with_rcx(looks[i].code, false, 0, selector | 3);
            same &= u.rax == k.rax && (u.rdx & 1) == (k.rdx & 1);
        }
        about(looks[i].name);
        ok(same, "at CPL 3 sees the guest's descriptors");
    }
    about(NULL);
}

static void identity(void)
{
    bool same = true;
    static const uint32_t leaves[] = {0,          1,          7,          0xd,       0x40000000,
                                      0x80000000, 0x80000001, 0x80000002, 0x80000008};
    for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
        struct frame u = with_rcx(u_cpuid, true, leaves[i], 0);
        uint32_t out[4];
        cpuid(leaves[i], 0, out);
        same &= (uint32_t)u.rax == out[0] && (uint32_t)u.rbx == out[1] && (uint32_t)u.rcx == out[2] &&
                (uint32_t)u.rdx == out[3];
    }
    ok(same, "CPUID at CPL 3 says what it says at CPL 0");
    uint64_t before = rdtsc();
    struct frame f = go(u_rdtsc, true);
    uint64_t value = f.rdx << 32 | (uint32_t)f.rax, after = rdtsc();
    ok(before <= value && value <= after, "RDTSC at CPL 3 is the guest's counter");
    if (HAS_RDTSCP()) {
        wrmsr(0xc0000103, 0x1234);
        f = go(f_rdtscp, true);
        is((uint32_t)f.rcx, 0x1234, "RDTSCP at CPL 3: the guest's TSC_AUX");
        if (has(7, 0, ECX, 22)) {
            f = go(f_rdpid, true);
            is(f.rax, 0x1234, "RDPID at CPL 3: the guest's TSC_AUX");
        }
    }
}

/* SDM vol. 2A, "INVPCID": types above 3, reserved bits of the descriptor, PCIDs while CR4.PCIDE is off. */
SNIPPET(i_invpcid, "invpcid (%rbx), %rax");

static struct frame invpcid(uint64_t type, uint64_t low, uint64_t va)
{
    static uint64_t descriptor[2] __attribute__((aligned(16)));
    descriptor[0] = low;
    descriptor[1] = va;
    struct frame f = rt_kernel(i_invpcid);
    f.rax = type;
    f.rbx = (uint64_t)descriptor;
    rt_run(&f);
    return f;
}

static void invpcid_forms(void)
{
    if (!HAS_INVPCID()) {
        skip("INVPCID", "not in CPUID");
        return;
    }
    static const struct {
        const char *name;
        uint64_t type, low, va;
        bool good;
    } forms[] = {
        {"type 4", 4, 0, 0, false},
        {"a type beyond 32 bits", 1ull << 32, 0, 0, false},
        {"type 0, PCID 0", 0, 0, 0x1000, true},
        {"type 0, non-canonical", 0, 0, 1ull << 48, false},
        {"type 1, non-canonical: not looked at", 1, 0, 1ull << 48, true},
        {"type 2, non-canonical: not looked at", 2, 0, 1ull << 48, true},
        {"type 1, bit 12 of the PCID", 1, 0x1000, 0, false},
        {"type 0, bit 63 of the PCID", 0, 1ull << 63, 0, false},
        {"type 0, PCID 1 with CR4.PCIDE off", 0, 1, 0, false},
        {"type 1, PCID 1 with CR4.PCIDE off", 1, 1, 0, false},
        {"type 3", 3, 0, 0, true},
    };
    for (unsigned i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        about(forms[i].name);
        struct frame f = invpcid(forms[i].type, forms[i].low, forms[i].va);
        if (forms[i].good) {
            ok(rt_done(f, i_invpcid), "INVPCID is fine");
        } else {
            trapped(&f, GP, 0, i_invpcid, "INVPCID: #GP(0)");
        }
    }
    about(NULL);
    struct frame f = go(i_invpcid, true);
    ok(f.vector == GP && f.error == 0, "INVPCID at CPL 3: #GP(0)");
}

void test_main(void)
{
    enable_states();
    instructions();
    tables();
    flags_and_selectors();
    identity();
    invpcid_forms();
    control_bits();
}
