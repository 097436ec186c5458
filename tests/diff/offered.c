/*
 * Instruction sets, as Zydis names them, and the CPUID bits that announce them (SDM vol. 2A, CPUID).
 *
 * Sets that are missing here are never generated: those that no engine offers (TSX, AMX, MPX, SGX, VMX, SVM,
 * PKU, WAITPKG, CET, UINTR, XSAVES), AMD's and Knights-only ones, and those whose results differ from run to
 * run (RDRAND, RDTSC).
 */
#include "tests/diff/offered.h"

#include <stdint.h>
#include <stdlib.h>

#include "base/util.h"
#include "cpu/x86/x86.h"
#include "tests/diff/diff.h"

enum word { ALWAYS, F1_ECX, F1_EDX, F7_EBX, F7_ECX, F7_EDX, F71_EAX, FE1_ECX, FD1_EAX, WORDS };

#define VL  1u /* needs AVX512VL too */
#define X4  2u /* needs AVX state in XCR0 */
#define X64 4u /* needs AVX-512 state in XCR0 */

struct entry {
    ZydisISASet set;
    uint8_t word, bit, needs;
};

#define EVEX_VL(name, word, bit)                                                                             \
    {ZYDIS_ISA_SET_##name##_128, word, bit, X64 | VL}, {ZYDIS_ISA_SET_##name##_256, word, bit, X64 | VL},    \
    {                                                                                                        \
        ZYDIS_ISA_SET_##name##_512, word, bit, X64                                                           \
    }

static const struct entry table[] = {
    {ZYDIS_ISA_SET_I86, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I186, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I286REAL, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I286PROTECTED, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I386, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I486, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_I486REAL, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_PENTIUMREAL, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_PPRO, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_LONGMODE, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_FAT_NOP, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_PAUSE, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_PREFETCH_NOP, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_SSE_PREFETCH, ALWAYS, 0, 0},
    {ZYDIS_ISA_SET_LAHF, FE1_ECX, 0, 0},
    {ZYDIS_ISA_SET_CMOV, F1_EDX, 15, 0},
    {ZYDIS_ISA_SET_FCMOV, F1_EDX, 15, 0},
    {ZYDIS_ISA_SET_X87, F1_EDX, 0, 0},
    {ZYDIS_ISA_SET_PENTIUMMMX, F1_EDX, 23, 0},
    {ZYDIS_ISA_SET_FXSAVE, F1_EDX, 24, 0},
    {ZYDIS_ISA_SET_FXSAVE64, F1_EDX, 24, 0},
    {ZYDIS_ISA_SET_CLFSH, F1_EDX, 19, 0},
    {ZYDIS_ISA_SET_SSE, F1_EDX, 25, 0},
    {ZYDIS_ISA_SET_SSEMXCSR, F1_EDX, 25, 0},
    {ZYDIS_ISA_SET_SSE2, F1_EDX, 26, 0},
    {ZYDIS_ISA_SET_SSE2MMX, F1_EDX, 26, 0},
    {ZYDIS_ISA_SET_SSE3, F1_ECX, 0, 0},
    {ZYDIS_ISA_SET_SSE3X87, F1_ECX, 0, 0},
    {ZYDIS_ISA_SET_PCLMULQDQ, F1_ECX, 1, 0},
    {ZYDIS_ISA_SET_SSSE3, F1_ECX, 9, 0},
    {ZYDIS_ISA_SET_SSSE3MMX, F1_ECX, 9, 0},
    {ZYDIS_ISA_SET_FMA, F1_ECX, 12, X4},
    {ZYDIS_ISA_SET_CMPXCHG16B, F1_ECX, 13, 0},
    {ZYDIS_ISA_SET_SSE4, F1_ECX, 19, 0},
    {ZYDIS_ISA_SET_SSE42, F1_ECX, 20, 0},
    {ZYDIS_ISA_SET_MOVBE, F1_ECX, 22, 0},
    {ZYDIS_ISA_SET_POPCNT, F1_ECX, 23, 0},
    {ZYDIS_ISA_SET_AES, F1_ECX, 25, 0},
    {ZYDIS_ISA_SET_AVXAES, F1_ECX, 25, X4},
    {ZYDIS_ISA_SET_XSAVE, F1_ECX, 26, 0},
    {ZYDIS_ISA_SET_AVX, F1_ECX, 28, X4},
    {ZYDIS_ISA_SET_F16C, F1_ECX, 29, X4},
    {ZYDIS_ISA_SET_LZCNT, FE1_ECX, 5, 0},
    {ZYDIS_ISA_SET_XSAVEC, FD1_EAX, 1, 0},
    {ZYDIS_ISA_SET_RDWRFSGS, F7_EBX, 0, 0},
    {ZYDIS_ISA_SET_BMI1, F7_EBX, 3, 0},
    {ZYDIS_ISA_SET_AVX2, F7_EBX, 5, X4},
    {ZYDIS_ISA_SET_AVX2GATHER, F7_EBX, 5, X4},
    {ZYDIS_ISA_SET_BMI2, F7_EBX, 8, 0},
    {ZYDIS_ISA_SET_ADOX_ADCX, F7_EBX, 19, 0},
    {ZYDIS_ISA_SET_CLFLUSHOPT, F7_EBX, 23, 0},
    {ZYDIS_ISA_SET_CLWB, F7_EBX, 24, 0},
    {ZYDIS_ISA_SET_SHA, F7_EBX, 29, 0},
    {ZYDIS_ISA_SET_GFNI, F7_ECX, 8, 0},
    {ZYDIS_ISA_SET_AVX_GFNI, F7_ECX, 8, X4},
    {ZYDIS_ISA_SET_VAES, F7_ECX, 9, X4},
    {ZYDIS_ISA_SET_VPCLMULQDQ, F7_ECX, 10, X4},
    {ZYDIS_ISA_SET_CLDEMOTE, F7_ECX, 25, 0},
    {ZYDIS_ISA_SET_MOVDIR, F7_ECX, 27, 0},
    {ZYDIS_ISA_SET_SERIALIZE, F7_EDX, 14, 0},
    {ZYDIS_ISA_SET_AVX_VNNI, F71_EAX, 4, X4},
    EVEX_VL(AVX512F, F7_EBX, 16),
    {ZYDIS_ISA_SET_AVX512F_128N, F7_EBX, 16, X64},
    {ZYDIS_ISA_SET_AVX512F_SCALAR, F7_EBX, 16, X64},
    {ZYDIS_ISA_SET_AVX512F_KOP, F7_EBX, 16, X64},
    EVEX_VL(AVX512DQ, F7_EBX, 17),
    {ZYDIS_ISA_SET_AVX512DQ_128N, F7_EBX, 17, X64},
    {ZYDIS_ISA_SET_AVX512DQ_SCALAR, F7_EBX, 17, X64},
    {ZYDIS_ISA_SET_AVX512DQ_KOP, F7_EBX, 17, X64},
    EVEX_VL(AVX512_IFMA, F7_EBX, 21),
    EVEX_VL(AVX512CD, F7_EBX, 28),
    EVEX_VL(AVX512BW, F7_EBX, 30),
    {ZYDIS_ISA_SET_AVX512BW_128N, F7_EBX, 30, X64},
    {ZYDIS_ISA_SET_AVX512BW_KOP, F7_EBX, 30, X64},
    EVEX_VL(AVX512_VBMI, F7_ECX, 1),
    EVEX_VL(AVX512_VBMI2, F7_ECX, 6),
    EVEX_VL(AVX512_GFNI, F7_ECX, 8),
    EVEX_VL(AVX512_VAES, F7_ECX, 9),
    EVEX_VL(AVX512_VPCLMULQDQ, F7_ECX, 10),
    EVEX_VL(AVX512_VNNI, F7_ECX, 11),
    EVEX_VL(AVX512_BITALG, F7_ECX, 12),
    EVEX_VL(AVX512_VPOPCNTDQ, F7_ECX, 14),
    EVEX_VL(AVX512_VP2INTERSECT, F7_EDX, 8),
    EVEX_VL(AVX512_BF16, F71_EAX, 5),
    EVEX_VL(AVX512_FP16, F7_EDX, 23),
    {ZYDIS_ISA_SET_AVX512_FP16_128N, F7_EDX, 23, X64},
    {ZYDIS_ISA_SET_AVX512_FP16_SCALAR, F7_EDX, 23, X64},
};

/* What the engines offer under the model "host". */
static void read_words(uint32_t words[WORDS])
{
    const struct engine_config config = {.vcpus = 1, .cpu_model = "host", .tsc_hz = 1000000000};
    static struct x86_cpuid cpuid;
    struct err err = {0};
    if (x86_cpuid_init(&cpuid, &config, 0, &err) < 0) {
        fprintf(stderr, "diff: %s\n", err.text);
        exit(1);
    }
    words[ALWAYS] = 1;
    words[F1_ECX] = cpuid.f1_ecx;
    words[F1_EDX] = cpuid.f1_edx;
    words[F7_EBX] = cpuid.f7_ebx;
    words[F7_ECX] = cpuid.f7_ecx;
    words[F7_EDX] = cpuid.f7_edx;
    words[F71_EAX] = cpuid.f71_eax;
    words[FE1_ECX] = cpuid.fe1_ecx;
    words[FD1_EAX] = cpuid.fd1_eax;
}

bool offered_by_guest(ZydisISASet set)
{
    static bool ready;
    static bool offered[ZYDIS_ISA_SET_MAX_VALUE + 1];
    if (!ready) {
        uint32_t words[WORDS] = {0};
        read_words(words);
        uint64_t xcr0 = diff_xlayout()->features;
        bool vl = (words[F7_EBX] >> 31) != 0;
        for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
            const struct entry *e = &table[i];
            bool state = (!(e->needs & VL) || vl) && (!(e->needs & X4) || (xcr0 & 4)) &&
                         (!(e->needs & X64) || (xcr0 & DIFF_XCR0_ALL) == DIFF_XCR0_ALL);
            offered[e->set] = state && ((words[e->word] >> e->bit) & 1);
        }
        ready = true;
    }
    return offered[set];
}
