/*
 * The two machine states in which kernels are entered. The caller has reset the state; everything that a
 * protocol names is set here.
 */
#include "base/util.h"
#include "vm/boot/boot_int.h"

/* Descriptor attributes as struct x86_segment has them: present, accessed, flat. */
#define ATTR_CODE64 (X86_SEG_G | X86_SEG_L | X86_SEG_P | X86_SEG_S | 0xb)
#define ATTR_CODE32 (X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S | 0xb)
#define ATTR_DATA   (X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S | 0x3)
#define ATTR_TSS32  (X86_SEG_P | 0xb)

/* boot.rst, "64-bit Boot Protocol": __BOOT_CS is 0x10, __BOOT_DS 0x18. The others leave the selectors open.
 */
#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TSS  0x20
#define TSS_LIMIT     0x67

#define PTE_P  0x1u
#define PTE_W  0x2u
#define PTE_PS 0x80u /* SDM vol. 3A, table 4-18: a 2 MiB page */

/* SDM vol. 3A, 3.4.5. */
static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
    uint64_t raw_limit = attr & X86_SEG_G ? limit >> 12 : limit;
    return (raw_limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
           (raw_limit >> 16 & 0xf) << 48 | (uint64_t)(attr >> 12) << 52 | (uint64_t)(base >> 24) << 56;
}

static int set_segments(struct mem *mem, struct x86_state *state, uint16_t code_attr)
{
    const struct x86_segment code = {.limit = UINT32_MAX, .selector = SELECTOR_CODE, .attr = code_attr};
    const struct x86_segment data = {.limit = UINT32_MAX, .selector = SELECTOR_DATA, .attr = ATTR_DATA};
    for (unsigned i = 0; i < X86_SREGS; i++) {
        state->seg[i] = i == X86_CS ? code : data;
    }
    state->tr = (struct x86_segment){.limit = TSS_LIMIT, .selector = SELECTOR_TSS, .attr = ATTR_TSS32};
    state->ldtr = (struct x86_segment){0};
    const uint64_t gdt[] = {
        0,
        0,
        descriptor(0, UINT32_MAX, code_attr),
        descriptor(0, UINT32_MAX, ATTR_DATA),
        descriptor(0, TSS_LIMIT, ATTR_TSS32),
        0, /* the upper half of the TSS descriptor, in long mode */
    };
    state->gdtr = (struct x86_table){BOOT_GDT_BASE, sizeof(gdt) - 1};
    state->idtr = (struct x86_table){0, 0};
    return mem_write(mem, GPA(BOOT_GDT_BASE), gdt, sizeof(gdt));
}

int boot_state_protected(struct mem *mem, struct x86_state *state, uint64_t entry)
{
    state->rip = entry;
    state->rflags = 0x2;
    state->cr0 = X86_CR0_PE | X86_CR0_ET;
    state->cr3 = 0;
    state->cr4 = 0;
    state->efer = 0;
    return set_segments(mem, state, ATTR_CODE32);
}

int boot_state_long(struct mem *mem, struct x86_state *state, uint64_t entry)
{
    enum { DIRECTORIES = 4, ENTRIES = 512 };
    uint64_t table[ENTRIES] = {BOOT_PAGES_BASE + MEM_PAGE_SIZE + PTE_P + PTE_W};
    int rc = mem_write(mem, GPA(BOOT_PAGES_BASE), table, sizeof(table));
    for (unsigned i = 0; i < ENTRIES; i++) {
        table[i] = i < DIRECTORIES ? BOOT_PAGES_BASE + (2 + i) * MEM_PAGE_SIZE + PTE_P + PTE_W : 0;
    }
    if (rc == 0) {
        rc = mem_write(mem, GPA(BOOT_PAGES_BASE + MEM_PAGE_SIZE), table, sizeof(table));
    }
    for (unsigned d = 0; d < DIRECTORIES && rc == 0; d++) {
        for (unsigned i = 0; i < ENTRIES; i++) {
            table[i] = d * GiB + (uint64_t)i * 2 * MiB + PTE_P + PTE_W + PTE_PS;
        }
        rc = mem_write(mem, GPA(BOOT_PAGES_BASE + (2 + d) * MEM_PAGE_SIZE), table, sizeof(table));
    }
    state->rip = entry;
    state->rflags = 0x2;
    state->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
    state->cr3 = BOOT_PAGES_BASE;
    state->cr4 = X86_CR4_PAE;
    state->efer = X86_EFER_LME | X86_EFER_LMA;
    return rc == 0 ? set_segments(mem, state, ATTR_CODE64) : rc;
}
