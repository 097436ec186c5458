/*
 * The page walk: linear to guest-physical under no paging, 32-bit, PAE and 4-level paging (SDM vol. 3A ch.
 * 4).
 *
 * Neighbours: the translator calls x86_walk on every TLB miss, memory.c when the engine has no TLB. Paging
 * structures are read straight from guest RAM; one that lies elsewhere reads as all ones, as an empty bus
 * does.
 *
 * Invariants
 *  1. All checks come before the first accessed or dirty bit is set: a walk that faults changes nothing.
 *  2. Entries are read once and changed by compare-exchange only; when one changed meanwhile, the walk
 *     starts over, a bounded number of times.
 *  3. PAE's PDPTEs are read from memory in each walk, as AMD processors do (APM vol. 2, 5.3.2), instead of
 *     being latched by MOV CR3.
 *
 * Threads: the vCPU's own; other vCPUs may change the same entries.
 */
#include "base/util.h"
#include "cpu/x86/x86_int.h"

/* Paging-structure entries (SDM vol. 3A, tables 4-5 to 4-20). */
#define PTE_P  0x1ull
#define PTE_RW 0x2ull
#define PTE_US 0x4ull
#define PTE_A  0x20ull
#define PTE_D  0x40ull
#define PTE_PS 0x80ull
#define PTE_G  0x100ull
#define PTE_XD (1ull << 63)

#define LEVELS_MAX 4

/* Walks that found an entry changed under them start over this often; then they go on without setting A and
 * D. Only a guest that rewrites its tables in a tight loop on another vCPU gets there. */
#define RETRIES_MAX 1000

#define RETRY 1

__attribute__((cold, noinline)) static int fault(struct x86_cpu *cpu, uint64_t va, unsigned access,
                                                 uint32_t error)
{
    if (access & X86_ACCESS_WRITE) {
        error |= X86_PF_W;
    }
    if (access & X86_ACCESS_USER) {
        error |= X86_PF_U;
    }
    /* The I/D bit exists only where fetches are told from reads at all (SDM vol. 3A, 4.7). */
    bool tells_fetch =
        (cpu->s.cr4 & X86_CR4_SMEP) || ((cpu->s.cr4 & X86_CR4_PAE) && (cpu->s.efer & X86_EFER_NXE));
    if ((access & X86_ACCESS_FETCH) && tells_fetch) {
        error |= X86_PF_I;
    }
    return x86_raise_pf(cpu, va, error);
}

/* Access rights (SDM vol. 3A, 4.6.1). all has the R/W and U/S bits that every entry of the walk has. */
static inline bool permitted(const struct x86_cpu *cpu, unsigned access, uint64_t all, bool nx)
{
    if ((access & X86_ACCESS_FETCH) && nx) {
        return false;
    }
    if (access & X86_ACCESS_USER) {
        return (all & PTE_US) && ((all & PTE_RW) || !(access & X86_ACCESS_WRITE));
    }
    if ((access & X86_ACCESS_WRITE) && !(all & PTE_RW) && (cpu->s.cr0 & X86_CR0_WP)) {
        return false;
    }
    if (!(all & PTE_US)) {
        return true;
    }
    if (access & X86_ACCESS_FETCH) {
        return !(cpu->s.cr4 & X86_CR4_SMEP);
    }
    if (!(cpu->s.cr4 & X86_CR4_SMAP)) {
        return true;
    }
    /* A supervisor access made at CPL 3 is an implicit one. */
    return (cpu->s.rflags & X86_AC) && !(access & X86_ACCESS_IMPLICIT) && cpu->cpl != 3;
}

/* --- 64-bit entries: 4-level paging and the lower two levels of PAE --- */

struct step {
    uint64_t *slot; /* NULL: outside of RAM */
    uint64_t entry;
};

/* Sets A in the steps and D in the last one if `dirty`. Returns 0 or RETRY. */
__attribute__((noinline)) static int set_accessed(const struct step *steps, unsigned count, bool dirty)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t old = steps[i].entry;
        uint64_t new = old | PTE_A | (dirty && i == count - 1 ? PTE_D : 0);
        if (new != old && !__atomic_compare_exchange_n(steps[i].slot, &old, new, false, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
            return RETRY;
        }
    }
    return 0;
}

/* Walks from the table that bits [shift + 8 : shift] of va index. reserved: bits that no entry may have. */
static inline int walk_tables(struct x86_cpu *cpu, uint64_t va, unsigned access, uint64_t table,
                              unsigned shift, uint64_t reserved, struct x86_walk *ret)
{
    const struct mem *mem = cpu->mem;
    const uint64_t address_mask = (BIT64(cpu->cpuid.phys_bits) - 1) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    struct step steps[LEVELS_MAX];
    unsigned count = 0;
    uint64_t all = ~0ull, any = 0, entry;

    for (;;) {
        uint64_t *slot = mem_ram_ptr(mem, GPA(table | ((va >> shift & 511) << 3)), NULL);
        entry = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : ~0ull;
        steps[count].slot = slot;
        steps[count].entry = entry;
        count++;
        if (!(entry & PTE_P)) {
            return fault(cpu, va, access, 0);
        }
        if (entry & reserved) {
            return fault(cpu, va, access, X86_PF_P | X86_PF_RSVD);
        }
        all &= entry;
        any |= entry;
        if (shift == MEM_PAGE_SHIFT) {
            break;
        }
        if (entry & PTE_PS) {
            bool allowed = shift == 21 || (shift == 30 && (cpu->cpuid.fe1_edx & FE1_EDX_PDPE1GB));
            /* Bit 12 is PAT, the other bits below the frame must be clear. */
            uint64_t below = (BIT64(shift) - 1) & ~0x1fffull;
            if (!allowed || (entry & below)) {
                return fault(cpu, va, access, X86_PF_P | X86_PF_RSVD);
            }
            break;
        }
        table = entry & address_mask;
        shift -= 9;
    }

    bool nx = (any & PTE_XD) != 0;
    if (!permitted(cpu, access, all, nx)) {
        return fault(cpu, va, access, X86_PF_P);
    }
    bool write = (access & X86_ACCESS_WRITE) != 0;
    ret->dirty = (entry & PTE_D) != 0;
    if (!((all & PTE_A) && (ret->dirty || !write)) && !(access & X86_ACCESS_NO_AD)) {
        if (set_accessed(steps, count, write)) {
            return RETRY;
        }
        ret->dirty |= write;
    }
    uint64_t offset_mask = BIT64(shift) - 1;
    ret->gpa = GPA((entry & address_mask & ~offset_mask) | (va & offset_mask));
    ret->page_bytes = BIT64(shift);
    ret->writable = (all & PTE_RW) != 0;
    ret->user = (all & PTE_US) != 0;
    ret->executable = !nx;
    ret->global = (entry & PTE_G) && (cpu->s.cr4 & X86_CR4_PGE);
    return 0;
}

static int walk_4level(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret)
{
    uint64_t above = BIT64(52) - BIT64(cpu->cpuid.phys_bits);
    uint64_t reserved = above | (cpu->s.efer & X86_EFER_NXE ? 0 : PTE_XD);
    uint64_t table = cpu->s.cr3 & (BIT64(cpu->cpuid.phys_bits) - 1) & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    return walk_tables(cpu, va, access, table, 39, reserved, ret);
}

static int walk_pae(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret)
{
    uint64_t above = BIT64(63) - BIT64(cpu->cpuid.phys_bits);
    /* CR3 holds a 32-byte aligned address (SDM vol. 3A, table 4-7). */
    uint64_t *slot = mem_ram_ptr(cpu->mem, GPA((cpu->s.cr3 & 0xffffffe0u) | (va >> 30 << 3)), NULL);
    uint64_t pdpte = slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : ~0ull;
    if (!(pdpte & PTE_P)) {
        return fault(cpu, va, access, 0);
    }
    /* Bits 1, 2, 5 to 8 and those above the address width (SDM vol. 3A, table 4-8). */
    if (pdpte & (above | PTE_XD | 0x1e6)) {
        return fault(cpu, va, access, X86_PF_P | X86_PF_RSVD);
    }
    uint64_t reserved = above | (cpu->s.efer & X86_EFER_NXE ? 0 : PTE_XD);
    return walk_tables(cpu, va, access, pdpte & ~(uint64_t)(MEM_PAGE_SIZE - 1), 21, reserved, ret);
}

/* --- 32-bit entries --- */

static uint32_t load32(uint32_t *slot)
{
    return slot ? __atomic_load_n(slot, __ATOMIC_RELAXED) : ~0u;
}

/* Sets bits in an entry that was read as `entry`. Returns 0 or RETRY. */
static int set_bits32(uint32_t *slot, uint32_t entry, uint32_t bits)
{
    uint32_t new = entry | bits;
    if (new != entry &&
        !__atomic_compare_exchange_n(slot, &entry, new, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        return RETRY;
    }
    return 0;
}

/* Bits 21:13 of a 4 MiB entry that must be clear: with PSE-36, bits 20:13 are address bits 39:32 as far as
 * the processor's address reaches (SDM vol. 3A, table 4-4). */
static uint32_t large32_reserved(const struct x86_cpu *cpu)
{
    unsigned bits = MIN(cpu->cpuid.phys_bits, 40u);
    unsigned used = cpu->cpuid.f1_edx & F1_EDX_PSE36 && bits > 32 ? bits - 32 : 0;
    return 0x3fe000u & ~(((1u << used) - 1) << 13);
}

static int walk_32(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret)
{
    uint32_t *slots[2];
    uint32_t entries[2];
    uint64_t cr3 = cpu->s.cr3 & 0xfffff000u;
    slots[0] = mem_ram_ptr(cpu->mem, GPA(cr3 | (va >> 22 << 2)), NULL);
    entries[0] = load32(slots[0]);
    if (!(entries[0] & PTE_P)) {
        return fault(cpu, va, access, 0);
    }
    bool large = (entries[0] & PTE_PS) && (cpu->s.cr4 & X86_CR4_PSE);
    unsigned leaf = large ? 0 : 1;
    uint64_t all = entries[0];
    if (large) {
        if (entries[0] & large32_reserved(cpu)) {
            return fault(cpu, va, access, X86_PF_P | X86_PF_RSVD);
        }
    } else {
        slots[1] = mem_ram_ptr(cpu->mem, GPA((entries[0] & 0xfffff000u) | ((va >> 12 & 1023) << 2)), NULL);
        entries[1] = load32(slots[1]);
        if (!(entries[1] & PTE_P)) {
            return fault(cpu, va, access, 0);
        }
        all &= entries[1];
    }
    if (!permitted(cpu, access, all, false)) {
        return fault(cpu, va, access, X86_PF_P);
    }
    bool write = (access & X86_ACCESS_WRITE) != 0;
    ret->dirty = (entries[leaf] & PTE_D) != 0;
    if (!(access & X86_ACCESS_NO_AD)) {
        uint32_t leaf_bits = PTE_A | (write ? PTE_D : 0);
        if ((!large && set_bits32(slots[0], entries[0], PTE_A)) ||
            set_bits32(slots[leaf], entries[leaf], leaf_bits)) {
            return RETRY;
        }
        ret->dirty |= write;
    }
    if (large) {
        uint64_t high = (uint64_t)(entries[0] >> 13 & 0xff) << 32;
        ret->gpa = GPA(high | (entries[0] & 0xffc00000u) | (va & 0x3fffff));
        ret->page_bytes = 4 * MiB;
    } else {
        ret->gpa = GPA((entries[1] & 0xfffff000u) | (va & 0xfff));
        ret->page_bytes = MEM_PAGE_SIZE;
    }
    ret->writable = (all & PTE_RW) != 0;
    ret->user = (all & PTE_US) != 0;
    ret->executable = true;
    ret->global = (entries[leaf] & PTE_G) && (cpu->s.cr4 & X86_CR4_PGE);
    return 0;
}

/* --- all modes --- */

static int walk_once(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret)
{
    if (x86_long_mode(cpu)) {
        return walk_4level(cpu, va, access, ret);
    }
    return cpu->s.cr4 & X86_CR4_PAE ? walk_pae(cpu, va, access, ret) : walk_32(cpu, va, access, ret);
}

int x86_walk(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_walk *ret)
{
    if (x86_long_mode(cpu)) {
        if (!x86_is_canonical(va)) {
            return x86_raise_error(cpu, X86_GP, 0);
        }
    } else {
        va = (uint32_t)va;
        if (!(cpu->s.cr0 & X86_CR0_PG)) {
            *ret = (struct x86_walk){.gpa = GPA(va),
                                     .page_bytes = MEM_PAGE_SIZE,
                                     .writable = true,
                                     .user = true,
                                     .executable = true,
                                     .dirty = true};
            return 0;
        }
    }
    int status = walk_once(cpu, va, access, ret);
    for (unsigned i = 0; status == RETRY && i < RETRIES_MAX; i++) {
        status = walk_once(cpu, va, access, ret);
    }
    if (status == RETRY) {
        status = walk_once(cpu, va, access | X86_ACCESS_NO_AD, ret);
    }
    return status;
}

bool x86_walk_quietly(const struct x86_cpu *cpu, uint64_t va, gpa_t *ret_gpa)
{
    struct x86_cpu quiet;
    x86_copy_bytes(&quiet, cpu, sizeof(quiet));
    quiet.s.cr4 &= ~(uint64_t)X86_CR4_SMAP;
    struct x86_walk walk;
    if (x86_walk(&quiet, va, X86_ACCESS_READ | X86_ACCESS_NO_AD, &walk) < 0) {
        return false;
    }
    *ret_gpa = walk.gpa;
    return true;
}
