/*
 * The differential tester of user-mode instructions: what its parts share.
 *
 * A case is a short piece of user code with the whole state it starts from. It runs twice, under two runners
 * (the host CPU itself, and an execution engine), at the same virtual addresses, and ends with an exception:
 * INT3 behind the last instruction, or whatever the code raised. The two results are compared in every item.
 *
 * Neighbours: forms.c enumerates what can be encoded, gen*.c make cases, native.c and guest.c run them (each
 * in a process of its own, pool.c), compare.c tells results apart, reduce.c shortens, report.c prints, main.c
 * drives.
 *
 * Invariants
 *  1. A case depends on the seed, its index and the host's features only.
 *  2. The code of a case never contains the bytes of a system call, at whatever offset.
 *  3. Both runners see exactly the memory described here; everything else below 2^47 is unmapped for the
 *     code.
 */
#ifndef FONDA_TESTS_DIFF_DIFF_H
#define FONDA_TESTS_DIFF_DIFF_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cpu/x86/state.h"
#include "tests/diff/rng.h"

/* The memory of a case. What lies beside these pages is unmapped. */
#define DIFF_PAGE        4096u
#define DIFF_CODE_VA     0x10000000u /* readable and executable */
#define DIFF_CODE_PAGES  2u
#define DIFF_DATA_VA     0x20000000u /* readable and writable */
#define DIFF_DATA_PAGES  4u
#define DIFF_RO_VA       (DIFF_DATA_VA + DIFF_DATA_PAGES * DIFF_PAGE) /* readable */
#define DIFF_RO_PAGES    1u
#define DIFF_STACK_VA    0x30000000u /* readable and writable */
#define DIFF_STACK_PAGES 2u
#define DIFF_STACK_TOP   (DIFF_STACK_VA + DIFF_STACK_PAGES * DIFF_PAGE)
#define DIFF_CODE_BYTES  (DIFF_CODE_PAGES * DIFF_PAGE)

/* The pages in the order in which runners keep them: code, data, read-only, stack. */
#define DIFF_ARENA_PAGES (DIFF_CODE_PAGES + DIFF_DATA_PAGES + DIFF_RO_PAGES + DIFF_STACK_PAGES)
#define DIFF_ARENA_BYTES (DIFF_ARENA_PAGES * DIFF_PAGE)
#define DIFF_MEM_OFFSET  DIFF_CODE_BYTES /* of what is not code in the arena */
#define DIFF_MEM_BYTES   (DIFF_ARENA_BYTES - DIFF_MEM_OFFSET)

#define DIFF_CODE_MAX    320u
#define DIFF_INSNS_MAX   48u
#define DIFF_PATCHES_MAX 24u
#define DIFF_XSAVE_BYTES 2688u /* x87 to AVX-512 in the standard format */
#define DIFF_MARKER      0xccu /* INT3: ends a case, fills the code pages */

/* Offsets in the XSAVE area (SDM vol. 1, 13.4, 13.5); those of the extended parts come from CPUID. */
#define DIFF_XS_FCW   0
#define DIFF_XS_FSW   2
#define DIFF_XS_FTW   4
#define DIFF_XS_FOP   6
#define DIFF_XS_FIP   8
#define DIFF_XS_FDP   16
#define DIFF_XS_MXCSR 24
#define DIFF_XS_ST    32
#define DIFF_XS_XMM   160
#define DIFF_XS_BV    512
#define DIFF_XCR0_ALL 0xe7ull /* x87, SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM */

struct diff_xlayout {
    uint64_t features; /* of XCR0, within DIFF_XCR0_ALL */
    bool same_xcr0;    /* the host's XCR0 has nothing else */
    uint32_t ymm, opmask, zmm_hi256, hi16_zmm;
};
const struct diff_xlayout *diff_xlayout(void);

enum diff_cat {
    CAT_ALU,
    CAT_SHIFT,
    CAT_MULDIV,
    CAT_BITS,
    CAT_MOVE,
    CAT_STACK,
    CAT_CONTROL,
    CAT_STRING,
    CAT_LOCK,
    CAT_X87,
    CAT_MMX,
    CAT_SSE,
    CAT_CRYPTO,
    CAT_AVX,
    CAT_FMA,
    CAT_AVX512,
    CAT_MASK,
    CAT_GATHER,
    CAT_XSAVE,
    CAT_SEGMENT,
    CAT_FENCE,
    CAT_PREFIX,
    CAT_UNDEFINED,
    CAT_PRIVILEGED,
    CAT_TRAP,
    CAT_FAULT,
    CAT_MIXED,
    CAT_COMPAT,
    CAT_CODE16,
    CAT_COUNT,
};
extern const char *const diff_cat_names[CAT_COUNT];

struct diff_insn {
    uint16_t offset; /* in diff_case.code */
    uint16_t length;
};

/* Bytes that are put over the random contents of memory. */
struct diff_patch {
    uint32_t va;
    uint8_t length;
    uint8_t bytes[16];
};

struct diff_case {
    uint64_t seed;
    uint64_t index;
    uint32_t category;
    bool compat;          /* 32-bit or 16-bit code */
    bool code16;          /* 16-bit code, in segments of the local descriptor table */
    bool open_end;        /* the code runs off the last code page: no marker behind it */
    uint32_t code_offset; /* where the code is in the code pages */
    uint32_t code_length;
    uint32_t entry; /* offset in code of the first instruction to run */
    uint8_t code[DIFF_CODE_MAX];
    uint32_t insns;
    struct diff_insn insn[DIFF_INSNS_MAX];
    uint64_t mem_seed; /* 0: memory is zero before the patches */
    uint32_t patches;
    struct diff_patch patch[DIFF_PATCHES_MAX];
    uint64_t gpr[16];
    uint64_t rflags;
    uint64_t fs_base, gs_base;
    _Alignas(64) uint8_t xsave[DIFF_XSAVE_BYTES];
};

enum diff_outcome {
    DIFF_NONE,      /* not run */
    DIFF_EXCEPTION, /* the normal end */
    DIFF_TIMEOUT,   /* did not end by itself, but could be stopped */
    DIFF_HUNG,      /* the runner had to be killed */
    DIFF_CRASHED,   /* the runner died */
    DIFF_ERROR,     /* text says what */
};

struct diff_result {
    uint32_t outcome;
    uint32_t vector;
    uint64_t error;
    uint64_t cr2; /* for #PF, else 0 */
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint64_t fs_base, gs_base;
    uint16_t sel[X86_SREGS];
    char text[200];
    _Alignas(64) uint8_t xsave[DIFF_XSAVE_BYTES];
    uint8_t mem[DIFF_MEM_BYTES]; /* data, read-only, stack */
};

/* --- memory.c ------------------------------------------------------------------------------------------- */

/* Fills what is not code (DIFF_MEM_BYTES) as the case says. */
void diff_fill_memory(const struct diff_case *c, uint8_t *mem);
/* Offset in mem of a virtual address, or UINT32_MAX. */
uint32_t diff_mem_offset(uint64_t va);
/* The range of the code pages that a case occupies with its marker: [*ret_start, return value). */
uint32_t diff_code_range(const struct diff_case *c, uint32_t *ret_start);
/* Fills buf (the length of the range) with the code and its marker. */
void diff_fill_code(const struct diff_case *c, uint8_t *buf);

/* The local descriptor table: 16-bit segments over code, data and stack, then some with other limits and
 * types. Entry n has the selector DIFF_LDT_SEL(n). Fields as modify_ldt(2) has them. */
struct diff_ldt_entry {
    uint32_t base, limit;
    uint8_t contents; /* 0 data, 1 expand-down data, 2 code, 3 conforming code */
    bool wide, pages, read_exec_only, not_present;
};
enum {
    LDT_CODE16,
    LDT_DATA16,
    LDT_STACK16,
    LDT_DOWN32,
    LDT_DOWN16,
    LDT_CODE32,
    LDT_ABSENT,
    LDT_READ_ONLY,
    LDT_CODE_ONLY,
    LDT_COUNT
};
#define DIFF_LDT_SEL(n) ((uint16_t)((n) << 3 | 7))
extern const struct diff_ldt_entry diff_ldt[LDT_COUNT];
/* The case's RIP, in its code segment, as an address. */
static inline uint64_t diff_linear_rip(uint16_t cs, uint64_t rip)
{
    return cs == DIFF_LDT_SEL(LDT_CODE16) ? rip + DIFF_CODE_VA : rip;
}

/* The CPU that the native runner stays on: Linux shows its number in a segment limit (selector 0x7b). */
void diff_stay_home(void);

/* --- runners -------------------------------------------------------------------------------------------- */

struct diff_runner {
    const char *name;
    /* Called once in the runner's own process. 0, or -1 with text. */
    int (*init)(const char *argument, char *text, uint32_t text_size);
    void (*run)(const struct diff_case *c, struct diff_result *result);
    bool compat; /* can run 32-bit code */
};
extern const struct diff_runner diff_native;
extern const struct diff_runner diff_guest;

/* --- undefined.c ---------------------------------------------------------------------------------------- */

/* Arithmetic flags that are undefined where a case ends with end_rip. *ret_used: an instruction read one. */
uint32_t diff_undefined_flags(const struct diff_case *c, uint64_t end_rip, bool *ret_used);

/* --- tolerate.c ----------------------------------------------------------------------------------------- */

/* The case ended before its end marker, by an instruction that may have had a memory operand. */
bool diff_memory_fault(const struct diff_result *r);
/* The case may store which components of the state are in use. That changes when the host switches tasks:
 * with an MXCSR that isn't initial, XSAVES calls SSE in use (SDM vol. 1, 13.11), whatever it was. */
bool diff_tells_xinuse(const struct diff_case *c);
/* Gives b, the translator's result, the values of a where docs/caveats-engine.md says that they may differ.
 */
void diff_tolerate_bt(const struct diff_case *c, const struct diff_result *a, struct diff_result *b);

/* --- compare.c ------------------------------------------------------------------------------------------ */

/* Items that can be left out of the comparison, in the order of diff_item_names. */
enum diff_item {
    ITEM_RIP,
    ITEM_GPR,
    ITEM_ARITH, /* arithmetic flags */
    ITEM_FLAGS, /* the other flags */
    ITEM_RF,
    ITEM_ERROR,
    ITEM_CR2,
    ITEM_SEGMENTS,
    ITEM_X87,
    ITEM_FIP, /* last x87 instruction and operand pointers, last opcode */
    ITEM_MXCSR,
    ITEM_VECTORS,
    ITEM_OPMASK,
    ITEM_MEMORY,
    ITEM_COUNT,
};
extern const char *const diff_item_names[ITEM_COUNT];

/* Returns the set of differing items (bits by diff_item; bit 31: vector or outcome), 0 when equal. ignored is
 * a set of items. With out, prints what differs. */
#define DIFF_BIT_VECTOR (1u << 31)
/* In `ignored`: flags that the manual leaves undefined (undefined.c), and cases that depend on them. */
#define DIFF_IGNORE_UNDEFINED (1u << 30)
/* What the translator documents as different (docs/caveats-engine.md; tolerate.c). */
#define DIFF_IGNORE_BT (1u << 29)
struct diff_names {
    const char *a, *b;
};
uint32_t diff_compare(const struct diff_case *c, const struct diff_result *a, const struct diff_result *b,
                      uint32_t ignored, const struct diff_names *names, FILE *out);

#endif
