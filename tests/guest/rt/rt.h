/*
 * The runtime of the directed guests: TAP output on the serial port, traps, page tables, user mode.
 *
 * A test is mostly a snippet of assembly that is run with rt_run(): all registers are loaded from a struct
 * frame, the snippet executes in the mode that the frame's CS says, and the first trap that no handler takes
 * ends it; the frame then holds the trap (vector, error code, CR2, RIP, flags, all registers). A snippet that
 * runs to its end meets a UD2 there, so "it completed" is rt_done(). Snippets are position-independent, or
 * use absolute addresses knowingly: user mode sees the image at RT_ALIAS.
 *
 * Exceptions use IST 1, so that a snippet may have any RSP; interrupts (32-255) use the stack that they find.
 */
#ifndef RT_H
#define RT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rt_asm.h"
#include "tap.h"

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
    uint64_t cr2;      /* at the trap */
    uint64_t frame_at; /* address of the pushed frame's lowest byte (the error code's, where there is one) */
};

/* SNIPPET(name, "asm"): name is its start, name_end the UD2 behind it. Labels inside: declare with LABEL. */
#define LABEL(name) extern char name[]
#define SNIPPET(name, text)                                                                                  \
    extern char name[], name##_end[];                                                                        \
    asm(".pushsection .text.snippets, \"ax\"\n.balign 16\n" #name ":\n" text "\n" #name                      \
        "_end: ud2\n.popsection\n")

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };

#define FL_CF 0x1ull
#define FL_PF 0x4ull
#define FL_AF 0x10ull
#define FL_ZF 0x40ull
#define FL_SF 0x80ull
#define FL_TF 0x100ull
#define FL_IF 0x200ull
#define FL_DF 0x400ull
#define FL_OF 0x800ull
#define FL_NT 0x4000ull
#define FL_RF 0x10000ull
#define FL_VM 0x20000ull
#define FL_AC 0x40000ull

#define PTE_P    1ull
#define PTE_W    2ull
#define PTE_U    4ull
#define PTE_A    0x20ull
#define PTE_D    0x40ull
#define PTE_PS   0x80ull
#define PTE_G    0x100ull
#define PTE_NX   (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

/* --- checks, beside those of tap.h --- */
/* One check: the trap is vector with this error code (0 where there is none), and RIP is at (or at its
 * alias). */
bool trapped(const struct frame *f, unsigned vector, uint64_t error, const void *at, const char *text);

void test_main(void); /* the program's own */

/* --- snippets --- */
struct frame rt_kernel(const void *code); /* ring 0, 64-bit, own stack, all registers 0, interrupts off */
struct frame rt_user(const void *code); /* ring 3, 64-bit; code is the identity address, moved to the alias */
struct frame rt_user32(const void *code); /* ring 3, compatibility mode */
void rt_run(struct frame *f);
static inline uint64_t rt_alias(const void *p)
{
    return (uint64_t)p + RT_ALIAS;
}
bool rt_done_at(const struct frame *f, const void *end); /* #UD at end, or at its alias */
#define rt_done(f, name) rt_done_at(&(f), name##_end)

/* Takes a trap; true: resume from *f (as changed), false: end the snippet. cr2 is read at entry. */
typedef bool rt_handler(struct frame *f);
void rt_on(unsigned vector, rt_handler *handler); /* NULL: none */
uint64_t rt_trap_rsp(void);                       /* where the CPU left RSP at the last trap's entry */

/* Gates of the IDT. */
void rt_gate(unsigned vector, uint64_t offset, unsigned selector, unsigned type_attr, unsigned ist);
void rt_gate_default(unsigned vector);
void rt_gate_dpl(unsigned vector, unsigned dpl);
struct idt_entry {
    uint64_t lo, hi;
};
extern struct idt_entry rt_idt[256];
extern uint64_t rt_gdt[64];
struct tss64 {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7]; /* IST1 is [0] */
    uint64_t reserved2;
    uint16_t reserved3, iomap;
    uint8_t bitmap[8192 + 1];
} __attribute__((packed));
extern struct tss64 rt_tss;
extern char rt_vectors[]; /* 16 bytes each */

/* --- memory --- */
void *page_alloc(void); /* a zeroed 4 KiB frame; its address is also physical */
void *page_alloc_n(unsigned pages);
/* Maps one 4 KiB page, making tables (present, writable, user) on the way. Does not invalidate. */
void map(uint64_t va, uint64_t pa, uint64_t flags);
void map_large(uint64_t va, uint64_t pa, uint64_t flags, unsigned level); /* 2: 2 MiB, 3: 1 GiB */
uint64_t *
pte_of(uint64_t va,
       unsigned level); /* the entry at level 1 (PTE) to 4 (PML4E); NULL when the path ends before */

void *memset(void *p, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* --- CPU --- */
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    asm volatile("wrmsr" ::"c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
#define RT_CR(n)                                                                                             \
    static inline uint64_t read_cr##n(void)                                                                  \
    {                                                                                                        \
        uint64_t v;                                                                                          \
        asm volatile("mov %%cr" #n ", %0" : "=r"(v)::"memory");                                              \
        return v;                                                                                            \
    }                                                                                                        \
    static inline void write_cr##n(uint64_t v)                                                               \
    {                                                                                                        \
        asm volatile("mov %0, %%cr" #n ::"r"(v) : "memory");                                                 \
    }
RT_CR(0)
RT_CR(2)
RT_CR(3)
RT_CR(4)
RT_CR(8)
#undef RT_CR
#define RT_DR(n)                                                                                             \
    static inline uint64_t read_dr##n(void)                                                                  \
    {                                                                                                        \
        uint64_t v;                                                                                          \
        asm volatile("mov %%dr" #n ", %0" : "=r"(v)::"memory");                                              \
        return v;                                                                                            \
    }                                                                                                        \
    static inline void write_dr##n(uint64_t v)                                                               \
    {                                                                                                        \
        asm volatile("mov %0, %%dr" #n ::"r"(v) : "memory");                                                 \
    }
RT_DR(0)
RT_DR(1)
RT_DR(2)
RT_DR(3)
RT_DR(6)
RT_DR(7)
#undef RT_DR
static inline void invlpg(uint64_t va)
{
    asm volatile("invlpg (%0)" ::"r"(va) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    asm volatile("rdtsc" : "=a"(lo), "=d"(hi)::"memory");
    return (uint64_t)hi << 32 | lo;
}
static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
}
/* Whether CPUID has a bit: reg 0 eax .. 3 edx. */
bool has(uint32_t leaf, uint32_t sub, unsigned reg, unsigned bit);
#define HAS_PCID()     has(1, 0, 2, 17)
#define HAS_XSAVE()    has(1, 0, 2, 26)
#define HAS_X2APIC()   has(1, 0, 2, 21)
#define HAS_DEADLINE() has(1, 0, 2, 24)
#define HAS_FSGSBASE() has(7, 0, 1, 0)
#define HAS_SMEP()     has(7, 0, 1, 7)
#define HAS_INVPCID()  has(7, 0, 1, 10)
#define HAS_SMAP()     has(7, 0, 1, 20)
#define HAS_UMIP()     has(7, 0, 2, 2)
#define HAS_1G()       has(0x80000001, 0, 3, 26)
#define HAS_RDTSCP()   has(0x80000001, 0, 3, 27)
bool vendor_intel(void);

#endif
