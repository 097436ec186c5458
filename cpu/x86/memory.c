/*
 * Guest memory as instruction helpers see it: linear accesses of any size, and logical to linear translation.
 *
 * Neighbours: the engine's ops->translate (its TLB) or walk.c turns linear addresses into host pointers; what
 * is not RAM goes through mem_mmio_*. Segment loading, task switching and delivery are the main callers.
 *
 * Invariants
 *  1. A store translates every page it touches before it changes the first byte.
 *  2. Accesses of 1, 2, 4 or 8 bytes inside a page are one host access, so an aligned one is atomic.
 *  3. Outside of 64-bit code linear addresses wrap at 4 GiB.
 *
 * Threads: the vCPU's own.
 */
#include "base/util.h"
#include "cpu/x86/x86_int.h"

#define PAGE_MASK (MEM_PAGE_SIZE - 1u)

/* Pages that one store holds translated at a time; longer stores are made in pieces (the longest
 * architectural one, an XSAVE area, is shorter). */
#define SPANS_MAX   5u
#define STORE_PIECE ((SPANS_MAX - 1u) * MEM_PAGE_SIZE)

/* Guests may use any address; one host access all the same. */
typedef uint16_t __attribute__((aligned(1))) unaligned16;
typedef uint32_t __attribute__((aligned(1))) unaligned32;
typedef uint64_t __attribute__((aligned(1))) unaligned64;

/* Where the bytes of one page's part of an access are. */
struct span {
    uint8_t *host; /* NULL: not RAM */
    gpa_t gpa;     /* when host is NULL */
};

static int translate(struct x86_cpu *cpu, uint64_t va, unsigned access, struct span *ret)
{
    /* Fetches and a debugger's accesses must not pass through (nor fill) a data TLB. */
    if (cpu->ops->translate && !(access & (X86_ACCESS_FETCH | X86_ACCESS_NO_AD))) {
        bool mmio = false;
        gpa_t gpa = {0};
        ret->host = cpu->ops->translate(cpu, va, access, &mmio, &gpa);
        ret->gpa = gpa;
        return ret->host || mmio ? 0 : -1;
    }
    struct x86_walk walk;
    if (x86_walk(cpu, va, access, &walk) < 0) {
        return -1;
    }
    ret->host = mem_ram_ptr(cpu->mem, walk.gpa, NULL);
    ret->gpa = walk.gpa;
    return 0;
}

static uint64_t next_page(const struct x86_cpu *cpu, uint64_t va)
{
    uint64_t next = (va | PAGE_MASK) + 1;
    return x86_code64(cpu) || va > UINT32_MAX ? next : (uint32_t)next;
}

static unsigned bytes_to_page_end(uint64_t va)
{
    return MEM_PAGE_SIZE - (unsigned)(va & PAGE_MASK);
}

/* A device sees an access at the width that the instruction has, where that is a power of two. */
static unsigned mmio_part(unsigned left)
{
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void read_span(struct x86_cpu *cpu, const struct span *span, uint8_t *buf, unsigned size)
{
    if (span->host) {
        x86_copy_bytes(buf, span->host, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned part = mmio_part(size - done);
        uint64_t value = mem_mmio_read(cpu->mem, GPA(span->gpa.v + done), part);
        for (unsigned i = 0; i < part; i++) {
            buf[done++] = (uint8_t)(value >> (8 * i));
        }
    }
}

static void write_span(struct x86_cpu *cpu, const struct span *span, const uint8_t *buf, unsigned size)
{
    if (span->host) {
        x86_copy_bytes(span->host, buf, size);
        return;
    }
    for (unsigned done = 0; done < size;) {
        unsigned part = mmio_part(size - done);
        uint64_t value = 0;
        for (unsigned i = 0; i < part; i++) {
            value |= (uint64_t)buf[done + i] << (8 * i);
        }
        mem_mmio_write(cpu->mem, GPA(span->gpa.v + done), part, value);
        done += part;
    }
}

int x86_load_buf(struct x86_cpu *cpu, uint64_t va, void *buf, unsigned size, unsigned access)
{
    uint8_t *to = buf;
    while (size > 0) {
        struct span span;
        unsigned part = MIN(size, bytes_to_page_end(va));
        if (translate(cpu, va, access, &span) < 0) {
            return -1;
        }
        read_span(cpu, &span, to, part);
        to += part;
        size -= part;
        va = next_page(cpu, va);
    }
    return 0;
}

static int store_piece(struct x86_cpu *cpu, uint64_t va, const uint8_t *from, unsigned size, unsigned access)
{
    struct span spans[SPANS_MAX];
    unsigned parts[SPANS_MAX];
    unsigned count = 0;
    for (unsigned left = size; left > 0; count++) {
        parts[count] = MIN(left, bytes_to_page_end(va));
        if (translate(cpu, va, access, &spans[count]) < 0) {
            return -1;
        }
        left -= parts[count];
        va = next_page(cpu, va);
    }
    for (unsigned i = 0; i < count; i++) {
        write_span(cpu, &spans[i], from, parts[i]);
        from += parts[i];
    }
    return 0;
}

int x86_store_buf(struct x86_cpu *cpu, uint64_t va, const void *buf, unsigned size, unsigned access)
{
    const uint8_t *from = buf;
    access |= X86_ACCESS_WRITE;
    while (size > 0) {
        unsigned part = MIN(size, STORE_PIECE);
        if (store_piece(cpu, va, from, part, access) < 0) {
            return -1;
        }
        from += part;
        size -= part;
        va += part;
    }
    return 0;
}

int x86_load(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access, uint64_t *ret)
{
    struct span span;
    if (size > bytes_to_page_end(va) || (size & (size - 1)) != 0) {
        uint8_t buf[8] = {0};
        if (x86_load_buf(cpu, va, buf, MIN(size, 8u), access) < 0) {
            return -1;
        }
        __builtin_memcpy(ret, buf, 8);
        return 0;
    }
    if (translate(cpu, va, access, &span) < 0) {
        return -1;
    }
    if (!span.host) {
        *ret = mem_mmio_read(cpu->mem, span.gpa, size);
        return 0;
    }
    switch (size) {
    case 1: *ret = *(volatile uint8_t *)span.host; break;
    case 2: *ret = *(volatile unaligned16 *)(void *)span.host; break;
    case 4: *ret = *(volatile unaligned32 *)(void *)span.host; break;
    default: *ret = *(volatile unaligned64 *)(void *)span.host; break;
    }
    return 0;
}

int x86_store(struct x86_cpu *cpu, uint64_t va, unsigned size, unsigned access, uint64_t value)
{
    struct span span;
    access |= X86_ACCESS_WRITE;
    if (size > bytes_to_page_end(va) || (size & (size - 1)) != 0) {
        uint8_t buf[8];
        __builtin_memcpy(buf, &value, 8);
        return store_piece(cpu, va, buf, MIN(size, 8u), access);
    }
    if (translate(cpu, va, access, &span) < 0) {
        return -1;
    }
    if (!span.host) {
        mem_mmio_write(cpu->mem, span.gpa, size, value);
        return 0;
    }
    switch (size) {
    case 1: *(volatile uint8_t *)span.host = (uint8_t)value; break;
    case 2: *(volatile unaligned16 *)(void *)span.host = (uint16_t)value; break;
    case 4: *(volatile unaligned32 *)(void *)span.host = (uint32_t)value; break;
    default: *(volatile unaligned64 *)(void *)span.host = value; break;
    }
    return 0;
}

/* --- logical to linear --- */

/* Segment type bits of code and data segments (SDM vol. 3A, table 3-1). */
#define TYPE_CODE        0x8u
#define TYPE_EXPAND_DOWN 0x4u /* data */
#define TYPE_WRITABLE    0x2u /* data */
#define TYPE_READABLE    0x2u /* code */

/* Whether the segment's type lets this access pass (SDM vol. 3A, 5.5). Fetches pass: CS was checked when it
 * was loaded, and between setting CR0.PE and the far jump it still describes a real-mode segment. */
static bool type_allows(uint16_t attr, unsigned access)
{
    if (access & X86_ACCESS_FETCH) {
        return true;
    }
    if (access & X86_ACCESS_WRITE) {
        return (attr & (TYPE_CODE | TYPE_WRITABLE)) == TYPE_WRITABLE;
    }
    return (attr & (TYPE_CODE | TYPE_READABLE)) != TYPE_CODE;
}

/* Whether [offset, offset + size) lies within the limit (SDM vol. 3A, 5.3). An access may wrap at the end of
 * a 4 GiB segment; the SDM leaves that case to the processor, and processors let it pass. */
static bool limit_allows(const struct x86_segment *seg, uint32_t offset, unsigned size)
{
    uint64_t last = (uint64_t)offset + size - 1;
    if ((seg->attr & (TYPE_CODE | TYPE_EXPAND_DOWN)) == TYPE_EXPAND_DOWN) {
        uint64_t top = seg->attr & X86_SEG_DB ? UINT32_MAX : UINT16_MAX;
        return offset > seg->limit && last <= top;
    }
    return last <= seg->limit || seg->limit == UINT32_MAX;
}

int x86_linear(struct x86_cpu *cpu, enum x86_sreg sreg, uint64_t offset, unsigned size, unsigned access,
               bool stack, uint64_t *ret_va)
{
    const struct x86_segment *seg = &cpu->s.seg[sreg];
    if (x86_code64(cpu)) {
        uint64_t va = offset;
        if (sreg == X86_FS || sreg == X86_GS) {
            va += seg->base;
        }
        if (!x86_is_canonical(va) || !x86_is_canonical(va + (size ? size - 1 : 0))) {
            return x86_raise_error(cpu, stack || sreg == X86_SS ? X86_SS_EXC : X86_GP, 0);
        }
        *ret_va = va;
        return 0;
    }
    uint32_t offset32 = (uint32_t)offset;
    bool ok = limit_allows(seg, offset32, size ? size : 1);
    if (x86_protected(cpu) && !x86_vm86(cpu)) {
        ok = ok && (seg->attr & X86_SEG_P) && type_allows(seg->attr, access);
    }
    if (!ok) {
        return x86_raise_error(cpu, sreg == X86_SS ? X86_SS_EXC : X86_GP, 0);
    }
    *ret_va = (uint32_t)(seg->base + offset32);
    return 0;
}
