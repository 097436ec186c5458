/*
 * Inside cpu/x86: descriptors, stacks and task switches, as segment.c, deliver.c, transfer.c and task.c share
 * them.
 *
 * Invariants
 *  1. Table accesses (GDT, LDT, IDT, TSS) are implicit supervisor accesses, whatever the CPL.
 *  2. Nothing here changes architectural registers but where the comment says so.
 *
 * Threads: the vCPU's own.
 */
#ifndef FONDA_CPU_X86_DESCRIPTOR_H
#define FONDA_CPU_X86_DESCRIPTOR_H

#include <stddef.h>

#include "cpu/x86/x86.h"

/* System descriptor types (SDM vol. 3A, table 3-2). */
enum x86_system_type {
    X86_TYPE_TSS16 = 1,
    X86_TYPE_LDT = 2,
    X86_TYPE_TSS16_BUSY = 3,
    X86_TYPE_CALL16 = 4,
    X86_TYPE_TASK_GATE = 5,
    X86_TYPE_INT16 = 6,
    X86_TYPE_TRAP16 = 7,
    X86_TYPE_TSS32 = 9, /* and the 64-bit one */
    X86_TYPE_TSS32_BUSY = 0xb,
    X86_TYPE_CALL32 = 0xc, /* and the 64-bit one */
    X86_TYPE_INT32 = 0xe,
    X86_TYPE_TRAP32 = 0xf,
};

/* Type bits of code and data descriptors (SDM vol. 3A, table 3-1). */
#define X86_TYPE_ACCESSED   0x1u
#define X86_TYPE_WRITE      0x2u /* data: writable; code: readable */
#define X86_TYPE_CONFORMING 0x4u /* data: expand-down */
#define X86_TYPE_CODE       0x8u
#define X86_TYPE_TSS_BUSY   0x2u

/* Attributes of the segments that SYSCALL and its kin, real mode and virtual-8086 mode make up. */
#define X86_ATTR_CODE64_USER   0xa0fbu
#define X86_ATTR_CODE64_KERNEL 0xa09bu
#define X86_ATTR_CODE32_USER   0xc0fbu
#define X86_ATTR_CODE32_KERNEL 0xc09bu
#define X86_ATTR_DATA_USER     0xc0f3u
#define X86_ATTR_DATA_KERNEL   0xc093u
#define X86_ATTR_REAL          0x0093u
#define X86_ATTR_VM86          0x00f3u

/* RFLAGS bits that exist; bit 1 is always set. */
#define X86_FLAGS_DEFINED 0x3f7fd5ull
#define X86_FLAGS_FIXED   0x2ull

#define X86_DR6_BD 0x2000ull
#define X86_DR6_BT 0x8000ull

struct x86_desc {
    uint64_t lo;
    uint64_t hi; /* the second half of a 16-byte descriptor */
    uint64_t va;
};

static inline uint32_t x86_desc_attr(uint64_t lo)
{
    return (uint32_t)(lo >> 40) & 0xf0ff;
}
static inline unsigned x86_desc_type(uint64_t lo)
{
    return (unsigned)(lo >> 40) & 0xf;
}
static inline unsigned x86_desc_dpl(uint64_t lo)
{
    return (unsigned)(lo >> 45) & 3;
}
static inline bool x86_desc_present(uint64_t lo)
{
    return (lo >> 47) & 1;
}
static inline bool x86_desc_is_system(uint64_t lo)
{
    return !((lo >> 44) & 1);
}
static inline bool x86_desc_is_code(uint64_t lo)
{
    return ((lo >> 43) & 3) == 3;
}
static inline bool x86_desc_is_writable_data(uint64_t lo)
{
    return ((lo >> 41) & 0xd) == 0x9;
}
static inline bool x86_desc_is_conforming(uint64_t lo)
{
    return ((lo >> 42) & 7) == 7;
}
static inline bool x86_desc_is_long(uint64_t lo)
{
    return (lo >> 53) & 1;
}
static inline bool x86_desc_is_db(uint64_t lo)
{
    return (lo >> 54) & 1;
}
static inline uint32_t x86_desc_base(uint64_t lo)
{
    return (uint32_t)((lo >> 16) & 0xffffff) | (uint32_t)((lo >> 56) << 24);
}
static inline uint32_t x86_desc_limit(uint64_t lo)
{
    uint32_t limit = (uint32_t)(lo & 0xffff) | ((uint32_t)(lo >> 32) & 0xf0000);

    return (lo >> 55) & 1 ? (limit << 12) | 0xfff : limit;
}
static inline bool x86_selector_null(uint16_t selector)
{
    return (selector & 0xfffc) == 0;
}

/* The host address of [va, va + size) in guest RAM, by the engine's quick translation; NULL when there is no
 * such thing (crosses a page, faults, is not RAM): take the checked path then, which raises what there is to
 * raise. */
static inline void *x86_quick_ptr(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access)
{
    bool mmio = false;
    gpa_t gpa;

    if (!cpu->ops->translate || (va & (MEM_PAGE_SIZE - 1)) > MEM_PAGE_SIZE - size) {
        return NULL;
    }
    return cpu->ops->translate(cpu, va, access, &mmio, &gpa);
}

/* A quadword of guest memory at any alignment: the compiler makes one plain access of it. */
struct x86_quad {
    uint64_t v;
} __attribute__((packed, may_alias));

/* A quadword of a system table. */
static inline int x86_table_load(struct x86_cpu *cpu, uint64_t va, uint64_t *ret)
{
    const struct x86_quad *ptr = x86_quick_ptr(cpu, va, 8, X86_ACCESS_READ | X86_ACCESS_IMPLICIT);

    if (ptr) {
        *ret = ptr->v;
        return 0;
    }
    return x86_load(cpu, va, 8, X86_ACCESS_READ | X86_ACCESS_IMPLICIT, ret);
}

/* #vector with a selector as its error code. */
static inline int x86_raise_selector(struct x86_cpu *cpu, enum x86_vector vector, uint16_t selector,
                                     unsigned ext)
{
    return x86_raise_error(cpu, vector, (selector & 0xfffcu) | ext);
}

/* Reads the 8-byte descriptor of a selector that is not null. Returns 0, -1 with an exception raised, or 1
 * when the selector lies beyond its table's limit (then lo is 0); what that means is the caller's. */
static inline int x86_desc_load(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *ret)
{
    uint64_t base = cpu->s.gdtr.base;
    uint32_t limit = cpu->s.gdtr.limit;

    if (selector & 4) {
        if (!cpu->s.ldtr.attr) {
            ret->lo = 0;
            return 1;
        }
        base = cpu->s.ldtr.base;
        limit = cpu->s.ldtr.limit;
    }
    if ((selector | 7u) > limit) {
        ret->lo = 0;
        return 1;
    }
    ret->va = base + (selector & 0xfff8u);
    if (!x86_long_mode(cpu)) {
        ret->va = (uint32_t)ret->va;
    }
    ret->hi = 0;
    return x86_table_load(cpu, ret->va, &ret->lo);
}

/* The same for a system descriptor, which has 16 bytes in IA-32e mode. Returns 1 also when the second half's
 * type field isn't zero (SDM vol. 3A, 7.2.3). */
int x86_desc_load_system(struct x86_cpu *cpu, uint16_t selector, struct x86_desc *ret);

/* Sets the accessed bit, in memory and in desc, if it is clear. */
int x86_desc_mark(struct x86_cpu *cpu, struct x86_desc *desc);
static inline int x86_desc_mark_accessed(struct x86_cpu *cpu, struct x86_desc *desc)
{
    return (desc->lo >> 40) & X86_TYPE_ACCESSED ? 0 : x86_desc_mark(cpu, desc);
}

/* Fills a segment register's hidden part. Changes *seg only. */
static inline void x86_segment_fill(struct x86_segment *seg, uint16_t selector, uint64_t lo)
{
    seg->base = x86_desc_base(lo);
    seg->limit = x86_desc_limit(lo);
    seg->selector = selector;
    seg->attr = (uint16_t)x86_desc_attr(lo);
}
static inline void x86_segment_flat(struct x86_segment *seg, uint16_t selector, uint16_t attr)
{
    seg->base = 0;
    seg->limit = UINT32_MAX;
    seg->selector = selector;
    seg->attr = attr;
}
static inline void x86_segment_null(struct x86_segment *seg, uint16_t selector)
{
    seg->base = 0;
    seg->limit = 0;
    seg->selector = selector;
    seg->attr = 0;
}
void x86_segment_real(struct x86_segment *seg, uint16_t selector);
void x86_segment_vm86(struct x86_segment *seg, uint16_t selector);

/* Checks a stack segment for privilege level cpl (null, limits, RPL, type, DPL, present) and fills *ret_seg.
 * bad is the vector for all but "not present", which is #SS. null_ok: a null selector gives a null segment.
 */
int x86_stack_segment(struct x86_cpu *cpu, uint16_t selector, unsigned cpl, enum x86_vector bad, bool null_ok,
                      unsigned ext, struct x86_segment *ret_seg);

/* The same for DS, ES, FS or GS at the current level; null is fine, "not present" is #NP. */
int x86_data_segment(struct x86_cpu *cpu, uint16_t selector, enum x86_vector bad, unsigned ext,
                     struct x86_segment *ret_seg);

/* After a return to an outer level: data segments that the new level may not use become null. Changes cpu->s.
 */
void x86_drop_segments(struct x86_cpu *cpu, unsigned cpl);

/* Whether every byte of [offset, offset + size) lies within a segment's limit. */
bool x86_within_limit(const struct x86_segment *seg, uint32_t offset, uint32_t size);

/* --- stacks --- */

/* SS0-2:ESP0-2 of the current 16- or 32-bit TSS, checked. */
int x86_inner_stack(struct x86_cpu *cpu, unsigned cpl, unsigned ext, struct x86_segment *ret_seg,
                    uint32_t *ret_esp);
/* RSP0-2 (slot 0-2) or IST1-7 (slot 4-10) of the current 64-bit TSS; not checked for canonicality. */
int x86_inner_stack64(struct x86_cpu *cpu, unsigned slot, unsigned ext, uint64_t *ret_rsp);

/* Room for a virtual-8086 frame or a call gate's 31 parameters. */
#define X86_FRAME_MAX 40

/* Pushes items[0] first, each of size 2 or 4 bytes, onto a legacy stack: all or nothing. On a limit violation
 * #SS with the error code given. *ret_esp gets the new stack pointer. */
int x86_push_frame(struct x86_cpu *cpu, const struct x86_segment *ss, uint32_t esp, const uint32_t *items,
                   unsigned count, unsigned size, unsigned access, uint32_t ss_error, uint32_t *ret_esp);
/* Reads item number `index` of a legacy or 64-bit current stack (0 is on the top), `skip` bytes further up;
 * moves nothing. */
int x86_peek_stack(struct x86_cpu *cpu, unsigned index, unsigned size, unsigned skip, uint64_t *ret);
/* Sets RSP, ESP or SP as the stack segment says. Changes cpu->s. */
void x86_set_sp(struct x86_cpu *cpu, const struct x86_segment *ss, bool code64, uint64_t sp);

/* Makes sure that a store to [va, va + size) would not fault. */
int x86_probe_write(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access);

/* --- task switches (task.c) --- */

enum x86_task_how { X86_TASK_JMP, X86_TASK_CALL, X86_TASK_INT, X86_TASK_IRET };

struct x86_task_result {
    bool switched; /* an exception that is raised now belongs to the new task, whose state cpu->s has */
    bool trap;     /* the new TSS's T bit */
};

/* Switches to the task whose TSS selector is given (SDM vol. 3A, 7.3). return_eip and flags are saved in the
 * old TSS. Checks the selector and descriptor itself. Unlike other helpers it can raise an exception after
 * the switch. result must be zeroed by the caller. */
int x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_how how, uint32_t return_eip,
                    uint32_t flags, unsigned ext, struct x86_task_result *result);
/* What remains after a completed switch: #DB when the T bit was set. */
static inline int x86_task_trap(struct x86_cpu *cpu, const struct x86_task_result *result)
{
    return result->trap ? x86_raise_db(cpu, X86_DR6_BT) : 0;
}

/* --- gates --- */

static inline uint16_t x86_gate_selector(uint64_t lo)
{
    return (uint16_t)(lo >> 16);
}
static inline uint32_t x86_gate_offset(uint64_t lo)
{
    return (uint32_t)(lo & 0xffff) | ((uint32_t)(lo >> 32) & 0xffff0000);
}

#endif
