/*
 * A processor with two megabytes of RAM, descriptor tables and page tables, for the tests of cpu/x86.
 *
 * Neighbours: test_x86_*.c. No engine is behind it: translations are walked each time, unless a test sets
 * fix->ops.translate.
 */
#ifndef FONDA_TESTS_UNIT_X86_FIXTURE_H
#define FONDA_TESTS_UNIT_X86_FIXTURE_H

#include <stdlib.h>
#include <string.h>

#include "cpu/x86/descriptor.h"
#include "tests/unit/unit.h"

/* Where things are in guest RAM. Linear addresses are physical ones. */
#define FIX_RAM       0x200000u
#define FIX_GDT       0x1000u
#define FIX_LDT       0x2000u
#define FIX_IDT       0x3000u
#define FIX_TSS       0x4000u
#define FIX_TSS_B     0x5000u /* a second task */
#define FIX_KSTACK    0x9000u /* tops; each stack has a page */
#define FIX_USTACK    0xb000u
#define FIX_ISTACK    0xd000u  /* IST1 */
#define FIX_UNMAPPED  0x20000u /* in long mode: a page that is not present */
#define FIX_READ_ONLY 0x21000u
#define FIX_PML4      0x100000u
#define FIX_GDT_LIMIT 0x1ffu
#define FIX_TSS_LIMIT 0x67u

/* Selectors. */
enum {
    KCODE = 0x08,
    KDATA = 0x10,
    UCODE = 0x18,
    UDATA = 0x20,
    KCODE64 = 0x28,
    UCODE64 = 0x30,
    TSS = 0x38,
    LDT = 0x48,
    CONFORMING = 0x58,
    CODE16 = 0x60,
    DATA16 = 0x68,
    CODE_XO = 0x70,
    DATA_RO = 0x78,
    CONFORMING64 = 0x80,
    DPL1CODE = 0x88,
    DPL1DATA = 0x90,
    FREE = 0xa0,
    FREE2 = 0xb0,
    FREE3 = 0xc0, /* for the tests; two entries each */
    IN_LDT = 0x0c,
};

struct fixture {
    struct x86_cpu cpu;
    struct x86_cpu_ops ops;
    struct x86_cpu before;
    struct mem *mem;
    unsigned switches; /* tlb_switch calls */
};

static struct fixture *fix_of(struct x86_cpu *cpu)
{
    return (struct fixture *)(void *)((char *)cpu - offsetof(struct fixture, cpu));
}

static inline uint8_t *fix_ptr(struct fixture *fix, uint64_t addr)
{
    return mem_ram_base(fix->mem) + addr;
}
static inline uint64_t fix_get(struct fixture *fix, uint64_t addr, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, fix_ptr(fix, addr), size);
    return value;
}
static inline void fix_put(struct fixture *fix, uint64_t addr, unsigned size, uint64_t value)
{
    memcpy(fix_ptr(fix, addr), &value, size);
}

/* A code, data, TSS or LDT descriptor; limit is the 20-bit field, attr as in struct x86_segment. */
static inline uint64_t fix_desc(uint32_t base, uint32_t limit, uint32_t attr)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)attr << 40 |
           (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(base >> 24) << 56;
}
/* A gate. attr is the byte with P, DPL and type; extra is the parameter count or the IST. */
static inline uint64_t fix_gate(uint16_t selector, uint32_t offset, uint32_t attr, uint32_t extra)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)extra << 32 | (uint64_t)attr << 40 |
           (uint64_t)(offset >> 16) << 48;
}
static inline void fix_set_desc(struct fixture *fix, uint16_t selector, uint64_t lo)
{
    fix_put(fix, (selector & 4 ? FIX_LDT : FIX_GDT) + (selector & 0xfff8u), 8, lo);
}
static inline uint64_t fix_desc_of(struct fixture *fix, uint16_t selector)
{
    return fix_get(fix, (selector & 4 ? FIX_LDT : FIX_GDT) + (selector & 0xfff8u), 8);
}
/* An IDT entry, of the size that the current mode has. */
static inline void fix_set_gate(struct fixture *fix, unsigned vector, uint64_t lo, uint64_t hi)
{
    if (x86_long_mode(&fix->cpu)) {
        fix_put(fix, FIX_IDT + vector * 16, 8, lo);
        fix_put(fix, FIX_IDT + vector * 16 + 8, 8, hi);
    } else {
        fix_put(fix, FIX_IDT + vector * 8, 8, lo);
    }
}

static void fix_tlb_flush(struct x86_cpu *cpu, bool keep_global)
{
}
static void fix_tlb_switch(struct x86_cpu *cpu, bool flush)
{
    fix_of(cpu)->switches++;
}
static void fix_tlb_flush_pcid(struct x86_cpu *cpu, uint16_t pcid)
{
}
static void fix_tlb_flush_page(struct x86_cpu *cpu, uint64_t va, uint16_t pcid)
{
}
static uint64_t fix_host_tsc(struct x86_cpu *cpu)
{
    return 0;
}

/* A translate op, as an engine without a TLB would have it. */
static inline void *fix_translate(struct x86_cpu *cpu, uint64_t va, unsigned access, bool *ret_mmio,
                                  gpa_t *ret_gpa)
{
    struct x86_walk walk;
    void *ptr;

    if (x86_walk(cpu, va, access, &walk)) {
        return NULL;
    }
    ptr = mem_ram_ptr(cpu->mem, walk.gpa, NULL);
    *ret_mmio = !ptr;
    *ret_gpa = walk.gpa;
    return ptr;
}

static inline void fix_segment(struct fixture *fix, enum x86_sreg sreg, uint16_t selector)
{
    x86_segment_fill(&fix->cpu.s.seg[sreg], selector, fix_desc_of(fix, selector));
}

/* Identity page tables for all of RAM, user-accessible. */
static void fix_page_tables(struct fixture *fix)
{
    fix_put(fix, FIX_PML4, 8, (FIX_PML4 + 0x1000) | 7);
    fix_put(fix, FIX_PML4 + 0x1000, 8, (FIX_PML4 + 0x2000) | 7);
    fix_put(fix, FIX_PML4 + 0x2000, 8, (FIX_PML4 + 0x3000) | 7);
    for (uint64_t page = 0; page < 512; page++) {
        uint64_t flags = page << 12 == FIX_UNMAPPED ? 0 : page << 12 == FIX_READ_ONLY ? 5 : 7;

        fix_put(fix, FIX_PML4 + 0x3000 + page * 8, 8, page << 12 | flags);
    }
}

static void fix_tables(struct fixture *fix)
{
    struct x86_state *s = &fix->cpu.s;

    fix_set_desc(fix, KCODE, fix_desc(0, 0xfffff, 0xc09b));
    fix_set_desc(fix, KDATA, fix_desc(0, 0xfffff, 0xc093));
    fix_set_desc(fix, UCODE, fix_desc(0, 0xfffff, 0xc0fb));
    fix_set_desc(fix, UDATA, fix_desc(0, 0xfffff, 0xc0f3));
    fix_set_desc(fix, KCODE64, fix_desc(0, 0xfffff, 0xa09b));
    fix_set_desc(fix, UCODE64, fix_desc(0, 0xfffff, 0xa0fb));
    fix_set_desc(fix, TSS, fix_desc(FIX_TSS, FIX_TSS_LIMIT, 0x8b));
    fix_set_desc(fix, LDT, fix_desc(FIX_LDT, 0xff, 0x82));
    fix_set_desc(fix, CONFORMING, fix_desc(0, 0xfffff, 0xc09f));
    fix_set_desc(fix, CODE16, fix_desc(0x100, 0xffff, 0x009b));
    fix_set_desc(fix, DATA16, fix_desc(0, 0xffff, 0x0093));
    fix_set_desc(fix, CODE_XO, fix_desc(0, 0xfffff, 0xc099));
    fix_set_desc(fix, DATA_RO, fix_desc(0, 0xfffff, 0xc091));
    fix_set_desc(fix, CONFORMING64, fix_desc(0, 0xfffff, 0xa09f));
    fix_set_desc(fix, DPL1CODE, fix_desc(0, 0xfffff, 0xc0bb));
    fix_set_desc(fix, DPL1DATA, fix_desc(0, 0xfffff, 0xc0b3));
    fix_set_desc(fix, IN_LDT, fix_desc(0x1234, 0xfff, 0x40f3));
    s->gdtr = (struct x86_table){FIX_GDT, FIX_GDT_LIMIT};
    s->idtr = (struct x86_table){FIX_IDT, 0xfff};
    x86_segment_fill(&s->tr, TSS, fix_desc_of(fix, TSS));
    x86_segment_fill(&s->ldtr, LDT, fix_desc_of(fix, LDT));
}

static void fix_segments(struct fixture *fix, uint16_t code, uint16_t data, unsigned cpl)
{
    static const uint8_t sregs[] = {X86_ES, X86_SS, X86_DS, X86_FS, X86_GS};

    fix_segment(fix, X86_CS, (uint16_t)(code | cpl));
    for (unsigned i = 0; i < sizeof(sregs); i++) {
        fix_segment(fix, sregs[i], (uint16_t)(data | cpl));
    }
    fix->cpu.cpl = (uint8_t)cpl;
    fix->cpu.s.gpr[X86_RSP] = cpl == 3 ? FIX_USTACK : FIX_KSTACK - 0x100;
    fix->cpu.s.rip = 0x7000;
    fix->cpu.next_rip = 0x7002;
    fix->cpu.s.rflags = 0x202;
}

static inline void fix_protected(struct fixture *fix, unsigned cpl)
{
    fix->cpu.s.cr0 = X86_CR0_PE | X86_CR0_NE | X86_CR0_ET;
    fix_tables(fix);
    /* ESP0, SS0, ESP1, SS1 */
    fix_put(fix, FIX_TSS + 4, 4, FIX_KSTACK);
    fix_put(fix, FIX_TSS + 8, 4, KDATA);
    fix_put(fix, FIX_TSS + 12, 4, FIX_ISTACK);
    fix_put(fix, FIX_TSS + 16, 4, DPL1DATA | 1);
    fix_segments(fix, cpl == 3 ? UCODE : KCODE, cpl == 3 ? UDATA : KDATA, cpl);
}

static inline void fix_long(struct fixture *fix, unsigned cpl, bool compat)
{
    struct x86_state *s = &fix->cpu.s;

    fix_page_tables(fix);
    s->cr0 = X86_CR0_PE | X86_CR0_NE | X86_CR0_ET | X86_CR0_PG | X86_CR0_WP;
    s->cr4 = X86_CR4_PAE;
    s->cr3 = FIX_PML4;
    s->efer = X86_EFER_LMA | X86_EFER_LME | X86_EFER_SCE | X86_EFER_NXE;
    fix_tables(fix);
    fix_put(fix, FIX_TSS + 4, 8, FIX_KSTACK);
    fix_put(fix, FIX_TSS + 36, 8, FIX_ISTACK);
    fix_segments(fix, cpl == 3 ? (compat ? UCODE : UCODE64) : (compat ? KCODE : KCODE64),
                 cpl == 3 ? UDATA : KDATA, cpl);
}

static inline void fix_real(struct fixture *fix)
{
    struct x86_state *s = &fix->cpu.s;

    for (unsigned i = 0; i < X86_SREGS; i++) {
        s->seg[i] = (struct x86_segment){0, 0xffff, 0, X86_ATTR_REAL};
    }
    s->cr0 = X86_CR0_ET;
    s->idtr = (struct x86_table){0, 0x3ff};
    s->gpr[X86_RSP] = FIX_KSTACK;
    s->rip = 0x7000;
    s->rflags = 0x202;
    fix->cpu.cpl = 0;
    fix->cpu.next_rip = 0x7002;
}

static inline void fix_vm86(struct fixture *fix, unsigned iopl)
{
    struct x86_state *s = &fix->cpu.s;

    fix_protected(fix, 3);
    for (unsigned i = 0; i < X86_SREGS; i++) {
        x86_segment_vm86(&s->seg[i], (uint16_t)(0x100 + i));
    }
    s->gpr[X86_RSP] = 0x1000;
    s->rflags = 0x202 | X86_VM | iopl << 12;
}

static int fix_setup(void **state)
{
    struct fixture *fix = aligned_alloc(64, (sizeof(*fix) + 63) & ~63ull);
    struct err err;

    assert_non_null(fix);
    memset(fix, 0, sizeof(*fix));
    assert_int_equal(mem_new(FIX_RAM, &fix->mem, &err), 0);
    fix->ops = (struct x86_cpu_ops){
        .tlb_flush = fix_tlb_flush,
        .tlb_switch = fix_tlb_switch,
        .tlb_flush_pcid = fix_tlb_flush_pcid,
        .tlb_flush_page = fix_tlb_flush_page,
        .host_tsc = fix_host_tsc,
    };
    fix->cpu.mem = fix->mem;
    fix->cpu.ops = &fix->ops;
    fix->cpu.cpuid.intel = true;
    fix->cpu.cpuid.phys_bits = 40;
    *state = fix;
    return 0;
}

static int fix_teardown(void **state)
{
    struct fixture *fix = *state;

    mem_free(fix->mem);
    free(fix);
    return 0;
}

/* Remembers the state, to compare with. */
static inline void fix_mark(struct fixture *fix)
{
    memcpy(&fix->before, &fix->cpu, sizeof(fix->cpu));
}
/* Nothing but CR2 changed since fix_mark(). */
static inline void fix_check_unchanged(struct fixture *fix, const char *file, int line)
{
    fix->before.s.cr2 = fix->cpu.s.cr2;
    _assert_int_equal((uintmax_t)memcmp(&fix->before.s, &fix->cpu.s, sizeof(fix->cpu.s)), 0, file, line);
    _assert_int_equal(fix->before.cpl, fix->cpu.cpl, file, line);
}

/* call raises vector with an error code, and changes nothing. */
#define assert_raises(fix, call, vec, code)                                                                  \
    do {                                                                                                     \
        fix_mark(fix);                                                                                       \
        assert_int_equal(call, -1);                                                                          \
        assert_int_equal((fix)->cpu.exc.vector, vec);                                                        \
        assert_int_equal((fix)->cpu.exc.error, code);                                                        \
        fix_check_unchanged(fix, __FILE__, __LINE__);                                                        \
    } while (0)

#define fix_test(f) cmocka_unit_test_setup_teardown(f, fix_setup, fix_teardown)

#endif
