/*
 * Model-specific registers, CPUID, control registers, extended states, time stamp counter.
 */
#include "rt/rt.h"

SNIPPET(r_rdmsr, "rdmsr");
SNIPPET(r_wrmsr, "wrmsr");
SNIPPET(r_cr0, "mov %rax, %cr0");
SNIPPET(r_cr4, "mov %rax, %cr4");
SNIPPET(r_cr8, "mov %rax, %cr8");
SNIPPET(r_cr1, ".byte 0x0f, 0x20, 0xc8");
SNIPPET(r_xgetbv, "xgetbv");
SNIPPET(r_xsetbv, "xsetbv");
SNIPPET(r_xsave, "xsave (%rbx)");
SNIPPET(r_xrstor, "xrstor (%rbx)");
SNIPPET(r_xsaveopt, "xsaveopt (%rbx)");
SNIPPET(r_xsavec, "xsavec (%rbx)");
SNIPPET(r_vadd, "vaddps %ymm0, %ymm0, %ymm0");
SNIPPET(r_rdtsc, "rdtsc");
SNIPPET(r_rdtscp, "rdtscp");
SNIPPET(r_rdpid, ".byte 0xf3, 0x0f, 0xc7, 0xf8");
SNIPPET(r_rdfsbase, "rdfsbase %rax");
SNIPPET(r_wrgsbase, "wrgsbase %rax");
SNIPPET(r_rdrand, "rdrand %rax");
SNIPPET(r_popcnt, "popcnt %rax, %rcx");
SNIPPET(r_crc, "crc32q %rax, %rcx");
SNIPPET(r_movbe, "movbe (%rbx), %rax");
SNIPPET(r_andn, "andn %rax, %rbx, %rcx");
SNIPPET(r_bzhi, "bzhi %rax, %rbx, %rcx");
SNIPPET(r_adcx, "adcx %rax, %rcx");
SNIPPET(r_aes, "aesenc %xmm0, %xmm1");
SNIPPET(r_pclmul, "pclmulqdq $0, %xmm0, %xmm1");
SNIPPET(r_sse3, "haddps %xmm0, %xmm1");
SNIPPET(r_ssse3, "pshufb %xmm0, %xmm1");
SNIPPET(r_sse41, "pmulld %xmm0, %xmm1");
SNIPPET(r_sse42, "pcmpgtq %xmm0, %xmm1");
SNIPPET(r_cx16, "cmpxchg16b (%rbx)");
SNIPPET(r_sha, "sha256msg1 %xmm0, %xmm1");
SNIPPET(r_clflushopt, "clflushopt (%rbx)");
SNIPPET(r_invpcid, "mov $2, %eax\n invpcid (%rbx), %rax");
SNIPPET(r_monitor, "xor %ecx, %ecx\n xor %edx, %edx\n mov %rbx, %rax\n monitor");
SNIPPET(r_vmcall, "vmcall");
SNIPPET(r_vmxon, "vmxon (%rbx)");
SNIPPET(r_rdpmc, "rdpmc");
SNIPPET(r_wbinvd, "wbinvd");

static uint8_t area[4096] __attribute__((aligned(64))), area2[4096] __attribute__((aligned(64)));

static struct frame go(const void *code, uint64_t rax, uint64_t rcx, uint64_t rdx)
{
    struct frame f = rt_kernel(code);
    f.rax = rax;
    f.rcx = rcx;
    f.rdx = rdx;
    f.rbx = (uint64_t)area;
    rt_run(&f);
    return f;
}

static bool runs(const void *code)
{
    struct frame f = go(code, 0, 0, 0);
    return f.rip != (uint64_t)code;
}

static void msrs(void)
{
    struct frame f;
    static const struct {
        uint32_t msr;
        uint64_t value;
        const char *text;
    } plain[] = {
        {0xc0000081, 0x0023001000000000, "STAR"},
        {0xc0000082, 0xffffffff81000000, "LSTAR"},
        {0xc0000083, 0xffffffff81000040, "CSTAR"},
        {0xc0000084, 0x47700, "SFMASK"},
        {0xc0000100, 0x00007f0012345678, "FS base"},
        {0xc0000101, 0xffff888012345678, "GS base"},
        {0xc0000102, 0xffff88801234abcd, "kernel GS base"},
        {0x174, 0x10, "SYSENTER_CS"},
        {0x175, 0xffffc90000001000, "SYSENTER_ESP"},
        {0x176, 0xffffffff81000080, "SYSENTER_EIP"},
        {0x277, 0x0007040600070406, "PAT"},
    };
    for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        about(plain[i].text);
        uint64_t old = rdmsr(plain[i].msr);
        wrmsr(plain[i].msr, plain[i].value);
        is(rdmsr(plain[i].msr), plain[i].value, "reads back");
        wrmsr(plain[i].msr, old);
        is(rdmsr(plain[i].msr), old, "and is restored");
    }
    /* SDM vol. 2B, WRMSR: non-canonical addresses. */
    static const uint32_t addresses[] = {0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102, 0x175, 0x176};
    about("WRMSR");
    for (unsigned i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++) {
        f = go(r_wrmsr, 0, addresses[i], 0x00008000);
        trapped(&f, GP, 0, r_wrmsr, "non-canonical address: #GP");
        wrmsr(addresses[i], 0);
    }
    uint64_t efer = rdmsr(0xc0000080), pat = rdmsr(0x277), apic_base = rdmsr(0x1b);
    f = go(r_wrmsr, 0x02, 0x277, 0);
    trapped(&f, GP, 0, r_wrmsr, "a reserved memory type in PAT: #GP");
    f = go(r_wrmsr, 0xffffffff, 0xc0000080, 0xffffffff);
    trapped(&f, GP, 0, r_wrmsr, "reserved bits of EFER: #GP");
    /* SDM vol. 3A, 4.1.3: LME can't change while paging is on. */
    wrmsr(0xc0000080, efer);
    f = go(r_wrmsr, (uint32_t)efer & ~0x100u, 0xc0000080, 0);
    trapped(&f, GP, 0, r_wrmsr, "EFER.LME while paging is on: #GP");
    f = go(r_wrmsr, 1, 0x1b, 0xffffffff);
    trapped(&f, GP, 0, r_wrmsr, "reserved bits of IA32_APIC_BASE: #GP");
    wrmsr(0xc0000080, efer); /* a machine that took one of these would be left in a strange state */
    wrmsr(0x277, pat);
    wrmsr(0x1b, apic_base);
    about("unknown MSR");
    f = go(r_rdmsr, 0x11, 0x12345678, 0x22);
    trapped(&f, GP, 0, r_rdmsr, "RDMSR: #GP");
    ok(f.rax == 0x11 && f.rdx == 0x22, "RAX and RDX left");
    f = go(r_wrmsr, 0, 0x12345678, 0);
    trapped(&f, GP, 0, r_wrmsr, "WRMSR: #GP");
    about(NULL);
    f = go(r_rdmsr, ~0ull, 0xc0000080, ~0ull);
    ok(rt_done(f, r_rdmsr) && f.rax >> 32 == 0 && f.rdx >> 32 == 0,
       "RDMSR clears the upper halves of RAX and RDX");
    ok((f.rax & 0xd00) == 0xd00, "EFER has LME, LMA, NXE");
    f = rt_user(r_rdmsr);
    f.rcx = 0xc0000080;
    rt_run(&f);
    trapped(&f, GP, 0, r_rdmsr, "RDMSR at CPL 3: #GP");
    /* The bases are those of the segments. */
    static uint64_t word = 0x1234567890;
    uint64_t v;
    wrmsr(0xc0000100, (uint64_t)&word - 16);
    asm volatile("mov %%fs:16, %0" : "=r"(v));
    is(v, word, "the FS base is used by accesses");
    wrmsr(0xc0000101, (uint64_t)&word - 32);
    asm volatile("mov %%gs:32, %0" : "=r"(v));
    is(v, word, "the GS base too");
    wrmsr(0xc0000102, (uint64_t)&word - 48);
    asm volatile("swapgs\n mov %%gs:48, %0" : "=r"(v));
    is(v, word, "SWAPGS takes the kernel GS base");
    is(rdmsr(0xc0000102), (uint64_t)&word - 32, "and puts the old base there");
    asm volatile("swapgs");
    wrmsr(0xc0000101, 0);
    wrmsr(0xc0000100, 0);
    /* TSC */
    uint64_t a = rdtsc();
    bool rises = true;
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t b = rdtsc();
        rises &= b >= a;
        a = b;
    }
    ok(rises, "RDTSC never falls");
    uint64_t m = rdmsr(0x10);
    ok(m >= a && m - a < 1ull << 40, "IA32_TIME_STAMP_COUNTER is RDTSC's counter");
    wrmsr(0x10, 1ull << 40);
    a = rdtsc();
    ok(a >= 1ull << 40 && a < 1ull << 41, "writing it sets the counter");
    if (has(7, 0, 1, 1)) {
        uint64_t adjust = rdmsr(0x3b);
        wrmsr(0x3b, adjust + (1ull << 42));
        a = rdtsc();
        ok(a >= (1ull << 42) && a < (1ull << 43), "IA32_TSC_ADJUST moves the counter");
    } else {
        skip("IA32_TSC_ADJUST", "not in CPUID");
    }
    f = rt_user(r_rdtsc);
    rt_run(&f);
    ok(rt_done(f, r_rdtsc), "RDTSC at CPL 3 without CR4.TSD");
    write_cr4(read_cr4() | 4);
    f = rt_user(r_rdtsc);
    rt_run(&f);
    trapped(&f, GP, 0, r_rdtsc, "RDTSC at CPL 3 with CR4.TSD: #GP");
    f = go(r_rdtsc, 0, 0, 0);
    ok(rt_done(f, r_rdtsc), "at CPL 0 it is fine");
    write_cr4(read_cr4() & ~4ull);
    if (HAS_RDTSCP()) {
        wrmsr(0xc0000103, 0x5678);
        is(rdmsr(0xc0000103), 0x5678, "TSC_AUX reads back");
        f = go(r_rdtscp, 0, ~0ull, 0);
        is(f.rcx, 0x5678, "RDTSCP: ECX is TSC_AUX");
        if (has(7, 0, 2, 22)) {
            f = go(r_rdpid, 0, 0, 0);
            is(f.rax, 0x5678, "RDPID");
        } else {
            ok(!runs(r_rdpid), "RDPID without the feature: #UD");
        }
    } else {
        ok(!runs(r_rdtscp), "RDTSCP without the feature: #UD");
    }
}

static void features(void)
{
    static const struct {
        const char *code, *text;
        uint32_t leaf;
        unsigned reg, bit;
    } cases[] = {
        {r_sse3, "SSE3", 1, 2, 0},
        {r_pclmul, "PCLMULQDQ", 1, 2, 1},
        {r_monitor, "MONITOR", 1, 2, 3},
        {r_ssse3, "SSSE3", 1, 2, 9},
        {r_cx16, "CMPXCHG16B", 1, 2, 13},
        {r_sse41, "SSE4.1", 1, 2, 19},
        {r_sse42, "SSE4.2", 1, 2, 20},
        {r_movbe, "MOVBE", 1, 2, 22},
        {r_popcnt, "POPCNT", 1, 2, 23},
        {r_aes, "AES", 1, 2, 25},
        {r_rdrand, "RDRAND", 1, 2, 30},
        {r_crc, "CRC32", 1, 2, 20},
        {r_andn, "BMI1", 7, 1, 3},
        {r_bzhi, "BMI2", 7, 1, 8},
        {r_adcx, "ADX", 7, 1, 19},
        {r_sha, "SHA", 7, 1, 29},
        {r_clflushopt, "CLFLUSHOPT", 7, 1, 23},
        {r_invpcid, "INVPCID", 7, 1, 10},
        {r_vmxon, "VMX", 1, 2, 5},
    };
    memset(area, 0, sizeof(area));
    if (HAS_XSAVE()) { /* BMI's VEX forms need no OS support, but let AVX be on all the same */
        write_cr4(read_cr4() | 1 << 18);
    }
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool shown = has(cases[i].leaf, 0, cases[i].reg, cases[i].bit);
        about(cases[i].text);
        if (shown) {
            struct frame f = go(cases[i].code, 0, 0, 0);
            /* VMXON without CR4.VMXE is #UD whether or not it exists. */
            ok(f.rip != (uint64_t)cases[i].code || cases[i].code == r_vmxon, "in CPUID, and executes");
        } else {
            struct frame f = go(cases[i].code, 0, 0, 0);
            ok(f.vector == UD && !rt_done_at(&f, cases[i].code + 64), "not in CPUID: #UD");
        }
    }
    about(NULL);
    uint32_t out[4], out2[4];
    cpuid(0, 0, out);
    ok(out[0] >= 7, "CPUID: at least leaf 7");
    cpuid(out[0] + 100, 0, out2);
    cpuid(out[0], 0, out);
    ok(memcmp(out, out2, 16) == 0 || !vendor_intel(), "a leaf beyond the last reads as the last (Intel)");
    cpuid(0x80000000, 0, out);
    ok(out[0] >= 0x80000008, "CPUID: extended leaves to 0x80000008");
    cpuid(0x80000008, 0, out);
    ok((out[0] & 0xff) >= 36 && ((out[0] >> 8 & 0xff) == 48 || (out[0] >> 8 & 0xff) == 57),
       "MAXPHYADDR and 48 or 57 linear bits");
    ok(has(1, 0, 3, 4) && has(1, 0, 3, 6) && has(1, 0, 3, 8) && has(1, 0, 3, 9) && has(1, 0, 3, 13) &&
           has(1, 0, 3, 24) && has(1, 0, 3, 26),
       "TSC, PAE, CX8, APIC, PGE, FXSR, SSE2");
    ok(has(0x80000001, 0, 3, 29) && has(0x80000001, 0, 3, 20) && has(0x80000001, 0, 3, 11),
       "LM, NX, SYSCALL");
    ok(has(1, 0, 2, 31), "the hypervisor bit");
    uint32_t lo[4];
    asm volatile("cpuid" : "=a"(lo[0]), "=b"(lo[1]), "=c"(lo[2]), "=d"(lo[3]) : "a"(1), "c"(0));
    is(lo[2] >> 27 & 1, read_cr4() >> 18 & 1, "CPUID.OSXSAVE is CR4.OSXSAVE");
    struct frame f = rt_user(r_rdpmc);
    rt_run(&f);
    trapped(&f, GP, 0, r_rdpmc, "RDPMC at CPL 3 without CR4.PCE: #GP");
    ok(runs(r_wbinvd), "WBINVD at CPL 0");
}

static void control_registers(void)
{
    struct frame f;
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    about("CR0");
    f = go(r_cr0, (cr0 | 1u << 29) & ~(1ull << 30), 0, 0);
    trapped(&f, GP, 0, r_cr0, "NW without CD: #GP");
    f = go(r_cr0, cr0 | 1ull << 32, 0, 0);
    trapped(&f, GP, 0, r_cr0, "bit 32: #GP");
    write_cr0(cr0);
    write_cr0(cr0 | 1 << 6);
    is(read_cr0(), cr0, "reserved bits below 32 are ignored");
    write_cr0(cr0 & ~0x10ull);
    is(read_cr0(), cr0, "ET stays 1");
    write_cr0(cr0);
    about("CR4");
    write_cr4(cr4);
    static const struct {
        unsigned bit;
        uint32_t leaf;
        unsigned reg, feature;
        const char *text;
    } bits[] = {
        {11, 7, 2, 2, "UMIP"}, {16, 7, 1, 0, "FSGSBASE"}, {18, 1, 2, 26, "OSXSAVE"},
        {20, 7, 1, 7, "SMEP"}, {22, 7, 2, 3, "PKE"},
    };
    for (unsigned i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        about(bits[i].text);
        f = go(r_cr4, cr4 | 1ull << bits[i].bit, 0, 0);
        if (has(bits[i].leaf, 0, bits[i].reg, bits[i].feature)) {
            ok(rt_done(f, r_cr4), "in CPUID: CR4 accepts the bit");
        } else {
            trapped(&f, GP, 0, r_cr4, "not in CPUID: CR4 refuses the bit");
        }
        write_cr4(cr4);
    }
    about(NULL);
    f = go(r_cr1, 0, 0, 0);
    trapped(&f, UD, 0, r_cr1, "CR1: #UD");
    f = go(r_cr8, 16, 0, 0);
    trapped(&f, GP, 0, r_cr8, "CR8 above 15: #GP");
    write_cr8(9);
    is(read_cr8(), 9, "CR8 reads back");
    write_cr8(0);
    write_cr2(0x123456789abc);
    is(read_cr2(), 0x123456789abc, "CR2 reads back");
    /* LMSW can set PE, not clear it (SDM vol. 2A). */
    asm volatile("lmsw %w0" ::"r"(0));
    ok(read_cr0() & 1, "LMSW does not clear PE");
    write_cr0(cr0);
    /* FSGSBASE */
    if (HAS_FSGSBASE()) {
        ok(!runs(r_rdfsbase), "RDFSBASE without CR4.FSGSBASE: #UD");
        write_cr4(read_cr4() | 1 << 16);
        wrmsr(0xc0000100, 0x1234);
        f = go(r_rdfsbase, 0, 0, 0);
        is(f.rax, 0x1234, "RDFSBASE");
        f = rt_user(r_wrgsbase);
        f.rax = 0xabcd;
        rt_run(&f);
        ok(rt_done(f, r_wrgsbase) && rdmsr(0xc0000101) == 0xabcd, "WRGSBASE at CPL 3");
        f = go(r_wrgsbase, 1ull << 47, 0, 0);
        trapped(&f, GP, 0, r_wrgsbase, "WRGSBASE of a non-canonical address: #GP");
        wrmsr(0xc0000100, 0);
        wrmsr(0xc0000101, 0);
        write_cr4(cr4);
    } else {
        skip("FSGSBASE", "not in CPUID");
    }
}

static void xsave(void)
{
    struct frame f;
    if (!HAS_XSAVE()) {
        ok(!runs(r_xgetbv), "XGETBV without XSAVE: #UD");
        skip("XSAVE", "not in CPUID");
        return;
    }
    write_cr4(read_cr4() & ~(1ull << 18));
    ok(!runs(r_xgetbv), "XGETBV without CR4.OSXSAVE: #UD");
    ok(!runs(r_xsave), "XSAVE without CR4.OSXSAVE: #UD");
    ok(!runs(r_xsetbv), "XSETBV without CR4.OSXSAVE: #UD");
    write_cr4(read_cr4() | 1 << 18);
    uint32_t out[4];
    cpuid(0xd, 0, out);
    uint64_t all = (uint64_t)out[3] << 32 | out[0];
    /* SDM vol. 2B, XSETBV; vol. 1, 13.3. */
    f = go(r_xsetbv, 0, 0, 0);
    trapped(&f, GP, 0, r_xsetbv, "XCR0 without x87: #GP");
    f = go(r_xsetbv, 5, 0, 0);
    trapped(&f, GP, 0, r_xsetbv, "AVX without SSE: #GP");
    f = go(r_xsetbv, 7, 1, 0);
    trapped(&f, GP, 0, r_xsetbv, "XCR1: #GP");
    f = go(r_xsetbv, 3, 0, 0x80000000);
    trapped(&f, GP, 0, r_xsetbv, "bit 63: #GP");
    f = go(r_xgetbv, 0, 2, 0);
    trapped(&f, GP, 0, r_xgetbv, "XGETBV of XCR2: #GP");
    if (all >> 5 & 7) {
        f = go(r_xsetbv, 0x27, 0, 0);
        trapped(&f, GP, 0, r_xsetbv, "part of AVX-512: #GP");
    }
    f = rt_user(r_xsetbv);
    f.rax = 3;
    rt_run(&f);
    trapped(&f, GP, 0, r_xsetbv, "XSETBV at CPL 3: #GP");
    f = go(r_xsetbv, 3, 0, 0);
    ok(rt_done(f, r_xsetbv), "x87 and SSE");
    cpuid(0xd, 0, out);
    is(out[1], 576, "CPUID 0xd: 576 bytes for x87 and SSE");
    f = go(r_xgetbv, 0, 0, 0);
    is(f.rax, 3, "XGETBV reads XCR0");
    if (all & 4) {
        ok(!runs(r_vadd), "AVX without XCR0.AVX: #UD");
        f = go(r_xsetbv, 7, 0, 0);
        ok(rt_done(f, r_xsetbv) && runs(r_vadd), "AVX with XCR0.AVX");
        cpuid(0xd, 0, out);
        is(out[1], 832, "CPUID 0xd: 832 bytes with AVX");
    }
    uint64_t mask = all & 4 ? 7 : 3;
    /* XSAVE, XRSTOR: standard format (SDM vol. 1, 13.4). */
    uint64_t pattern[2] = {0x1111222233334444, 0x5555666677778888}, got[2];
    asm volatile("movups %0, %%xmm5" ::"m"(pattern));
    memset(area, 0xee, sizeof(area));
    memset(area + 512, 0, 64);
    f = go(r_xsave, mask, 0, 0);
    ok(rt_done(f, r_xsave) && memcmp(area + 160 + 80, pattern, 16) == 0, "XSAVE stores XMM5");
    ok(*(uint64_t *)(area + 512) & 2, "XSTATE_BV says so");
    asm volatile("xorps %xmm5, %xmm5");
    f = go(r_xrstor, mask, 0, 0);
    asm volatile("movups %%xmm5, %0" : "=m"(got));
    ok(rt_done(f, r_xrstor) && memcmp(got, pattern, 16) == 0, "XRSTOR loads it");
    *(uint64_t *)(area + 512) &= ~2ull;
    f = go(r_xrstor, mask, 0, 0);
    asm volatile("movups %%xmm5, %0" : "=m"(got));
    ok(got[0] == 0 && got[1] == 0, "XRSTOR initializes what XSTATE_BV lacks");
    *(uint64_t *)(area + 512) = 1ull << 60;
    f = go(r_xrstor, mask, 0, 0);
    trapped(&f, GP, 0, r_xrstor, "XRSTOR of a bit that XCR0 lacks: #GP");
    *(uint64_t *)(area + 512) = 3;
    *(uint64_t *)(area + 528) = 1;
    f = go(r_xrstor, mask, 0, 0);
    trapped(&f, GP, 0, r_xrstor, "XRSTOR with reserved header bytes: #GP");
    *(uint64_t *)(area + 528) = 0;
    *(uint32_t *)(area + 24) = 0xffffffff;
    f = go(r_xrstor, mask, 0, 0);
    trapped(&f, GP, 0, r_xrstor, "XRSTOR of reserved MXCSR bits: #GP");
    *(uint32_t *)(area + 24) = 0x1f80;
    f = rt_kernel(r_xsave);
    f.rax = 7;
    f.rbx = (uint64_t)area + 8;
    rt_run(&f);
    trapped(&f, GP, 0, r_xsave, "XSAVE to an address that is not a multiple of 64: #GP");
    write_cr0(read_cr0() | 8);
    f = go(r_xsave, 7, 0, 0);
    trapped(&f, NM, 0, r_xsave, "XSAVE with CR0.TS: #NM");
    asm volatile("clts");
    cpuid(0xd, 1, out);
    if (out[0] & 1) {
        asm volatile("movups %0, %%xmm6" ::"m"(pattern));
        memset(area2, 0, sizeof(area2));
        f = rt_kernel(r_xsaveopt);
        f.rax = mask;
        f.rbx = (uint64_t)area2;
        rt_run(&f);
        ok(rt_done(f, r_xsaveopt) && memcmp(area2 + 160 + 96, pattern, 16) == 0, "XSAVEOPT stores XMM6");
    } else {
        ok(!runs(r_xsaveopt), "XSAVEOPT without the feature: #UD");
    }
    if (out[0] & 2) {
        asm volatile("movups %0, %%xmm7" ::"m"(pattern));
        memset(area2, 0, sizeof(area2));
        f = rt_kernel(r_xsavec);
        f.rax = mask;
        f.rbx = (uint64_t)area2;
        rt_run(&f);
        ok(rt_done(f, r_xsavec) && memcmp(area2 + 160 + 112, pattern, 16) == 0, "XSAVEC stores XMM7");
        is(*(uint64_t *)(area2 + 520), 1ull << 63 | mask, "XCOMP_BV says compacted, and what");
        asm volatile("xorps %xmm7, %xmm7");
        f = rt_kernel(r_xrstor);
        f.rax = mask;
        f.rbx = (uint64_t)area2;
        rt_run(&f);
        asm volatile("movups %%xmm7, %0" : "=m"(got));
        ok(rt_done(f, r_xrstor) && memcmp(got, pattern, 16) == 0, "XRSTOR of the compacted format");
    } else {
        ok(!runs(r_xsavec), "XSAVEC without the feature: #UD");
    }
}

void test_main(void)
{
    msrs();
    control_registers();
    xsave();
    features();
}
