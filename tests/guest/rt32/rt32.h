/*
 * The runtime of the 32-bit guests: the same idea as ../rt/rt.h, without long mode. Images are ELF32, entered
 * by PVH in flat protected mode; paging is off unless a test turns it on.
 *
 * rt_run() loads every register from a struct regs (with VM set in EFLAGS: virtual-8086 mode) and goes there
 * with IRET; the next trap ends the run, and the struct then holds the registers and the trap. Handlers run
 * on the stack that the CPU chose.
 */
#ifndef RT32_H
#define RT32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../rt/tap.h"

struct regs {
    /* As the trap found them: null after virtual-8086 mode. */
    uint32_t gs, fs, es, ds;
    uint32_t edi, esi, ebp, esp_pusha, ebx, edx, ecx, eax;
    uint32_t vector, error;
    uint32_t eip, cs, eflags, esp, ss;
    uint32_t vm_es, vm_ds, vm_fs, vm_gs; /* from the frame, when VM was set */
    uint32_t cr2;
    uint32_t frame_at; /* address of the frame's lowest byte: the error code's, where there is one */
};

/* Selectors; from SEL_FREE on tests put what they like into rt_gdt. */
#define SEL_KCODE 0x08
#define SEL_KDATA 0x10
#define SEL_UCODE 0x1b
#define SEL_UDATA 0x23
#define SEL_TSS   0x28
#define SEL_FREE  0x30

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF };

#define FL_FIXED 0x2u
#define FL_TF    0x100u
#define FL_IF    0x200u
#define FL_DF    0x400u
#define FL_IOPL3 0x3000u
#define FL_NT    0x4000u
#define FL_VM    0x20000u

/* SDM vol. 3A, figure 7-2 */
struct tss32 {
    uint16_t link, r0;
    uint32_t esp0;
    uint32_t ss0, esp1, ss1, esp2, ss2;
    uint32_t cr3, eip, eflags;
    uint32_t eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt;
    uint16_t trap, iomap;
    uint8_t map[8192 + 1];
} __attribute__((packed, aligned(128)));

extern uint64_t rt_gdt[64];
extern uint64_t rt_idt[256];
extern struct tss32 rt_tss;

/* A descriptor: access is its bytes 5, flags the upper half of byte 6 (8: 4 KiB units, 4: 32 bits). */
uint64_t rt_desc(uint32_t base, uint32_t limit, unsigned access, unsigned flags);
/* A gate of type 4 to 7 or 0xc to 0xf with P and DPL in access. */
uint64_t rt_gate(uint32_t selector, uint32_t offset, unsigned access, unsigned params);
/* The gate that rt_run() wants at a vector, with a privilege level. */
void rt_idt_default(unsigned vector, unsigned dpl);
void rt_ltr(uint32_t selector);

bool trapped(const struct regs *r, unsigned vector, uint32_t error, uint32_t eip, const char *text);

void rt_run(struct regs *r);
struct regs rt_kernel(const void *code); /* CPL 0, interrupts off, a stack of its own */
struct regs rt_user(const void *code);   /* CPL 3, flat */

void test_main(void); /* the program's own */

void *memset(void *p, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);

/* SNIPPET(name, "asm"): ends in a UD2 at name_end. SNIPPET16 is the same in 16-bit code. */
#define SNIPPET(name, text)                                                                                  \
    extern char name[], name##_end[];                                                                        \
    asm(".pushsection .text.snippets, \"ax\"\n.balign 16\n" #name ":\n" text "\n" #name                      \
        "_end: ud2\n.popsection\n")
#define SNIPPET16(name, text) SNIPPET(name, ".code16\n" text "\n.code32")
#define LABEL(name)           extern char name[]
#define ADDRESS(p)            ((uint32_t)(uintptr_t)(p))

#endif
