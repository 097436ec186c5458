/*
 * The runtime's C half: see rt.h.
 */
#include "rt.h"

#define IST_BYTES           16384
#define SNIPPET_STACK_BYTES 16384
#define POOL_PAGES          2048

struct idt_entry rt_idt[256];
struct tss64 rt_tss;
static rt_handler *handlers[256];
static char ist_stack[IST_BYTES] __attribute__((aligned(4096)));
static char trap_stack[IST_BYTES] __attribute__((aligned(4096))); /* RSP0 */
static char snippet_stack[SNIPPET_STACK_BYTES] __attribute__((aligned(4096)));
static char pool[POOL_PAGES * 4096] __attribute__((aligned(4096)));
static unsigned pool_used;
static struct frame *active;
static uint64_t last_trap_rsp;

extern uint64_t rt_pml4[512];
extern uint64_t rt_leave_rsp;
extern char rt_low_image[], rt_low_start[], rt_low_size[];
void rt_enter(struct frame *f);
int rt_dispatch(struct frame *f, uint64_t cr2);
void rt_main(void);

bool trapped(const struct frame *f, unsigned vector, uint64_t error, const void *at, const char *text)
{
    bool same =
        f->vector == vector && f->error == error && (f->rip == (uint64_t)at || f->rip == rt_alias(at));
    if (!ok(same, text)) {
        rt_printf("#   got vector %lu error 0x%lx rip 0x%lx cr2 0x%lx, want %u 0x%lx 0x%lx\n", f->vector,
                  f->error, f->rip, f->cr2, vector, error, (uint64_t)at);
    }
    return same;
}

/* --- traps --- */

void rt_gate(unsigned vector, uint64_t offset, unsigned selector, unsigned type_attr, unsigned ist)
{
    rt_idt[vector].lo = (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)ist << 32 |
                        (uint64_t)type_attr << 40 | (offset >> 16 & 0xffff) << 48;
    rt_idt[vector].hi = offset >> 32;
}

void rt_gate_default(unsigned vector)
{
    /* 8e: present interrupt gate, DPL 0 (SDM vol. 3A, 6.14.1) */
    rt_gate(vector, (uint64_t)rt_vectors + vector * 16, RT_KCODE64, 0x8e, vector < 32 ? 1 : 0);
}

void rt_gate_dpl(unsigned vector, unsigned dpl)
{
    rt_idt[vector].lo = (rt_idt[vector].lo & ~(3ull << 45)) | (uint64_t)dpl << 45;
}

void rt_on(unsigned vector, rt_handler *handler)
{
    handlers[vector] = handler;
}

uint64_t rt_trap_rsp(void)
{
    return last_trap_rsp;
}

int rt_dispatch(struct frame *f, uint64_t cr2)
{
    bool has_error =
        f->vector == DF || (f->vector >= TS && f->vector <= PF) || f->vector == AC || f->vector == 21;
    last_trap_rsp = (uint64_t)&f->error + (has_error ? 0 : 8);
    if (handlers[f->vector & 0xff] && handlers[f->vector & 0xff](f)) {
        return 1;
    }
    if (active) {
        memcpy(active, f, offsetof(struct frame, cr2));
        active->cr2 = cr2;
        active->frame_at = (uint64_t)&f->error + (has_error ? 0 : 8);
        return 0;
    }
    rt_printf("\nBail out! unexpected trap %lu error %lx at %lx:%lx cr2 %lx rsp %lx\n", f->vector, f->error,
              f->cs, f->rip, cr2, f->rsp);
    rt_exit(2);
}

void rt_run(struct frame *f)
{
    struct frame *outer = active;
    uint64_t outer_rsp = rt_leave_rsp;
    active = f;
    rt_enter(f);
    active = outer;
    rt_leave_rsp = outer_rsp;
}

static struct frame new_frame(const void *code, uint64_t offset, uint64_t cs, uint64_t ss)
{
    return (struct frame){
        .rip = (uint64_t)code + offset,
        .cs = cs,
        .ss = ss,
        .rflags = 2,
        .rsp = (uint64_t)snippet_stack + SNIPPET_STACK_BYTES / 2 + offset,
    };
}

struct frame rt_kernel(const void *code)
{
    return new_frame(code, 0, RT_KCODE64, RT_KDATA);
}

struct frame rt_user(const void *code)
{
    return new_frame(code, RT_ALIAS, RT_UCODE64, RT_UDATA);
}

struct frame rt_user32(const void *code)
{
    return new_frame(code, RT_ALIAS, RT_UCODE32, RT_UDATA);
}

bool rt_done_at(const struct frame *f, const void *end)
{
    return f->vector == UD && (f->rip == (uint64_t)end || f->rip == rt_alias(end));
}

/* --- memory --- */

void *page_alloc_n(unsigned pages)
{
    if (pool_used + pages > POOL_PAGES) {
        rt_printf("Bail out! out of pages\n");
        rt_exit(2);
    }
    void *p = pool + pool_used * 4096ul;
    pool_used += pages;
    return memset(p, 0, pages * 4096ul);
}

void *page_alloc(void)
{
    return page_alloc_n(1);
}

static uint64_t *entry_of(uint64_t va, unsigned level, bool make)
{
    uint64_t *table = (uint64_t *)(read_cr3() & PTE_ADDR);
    for (unsigned l = 4;; l--) {
        uint64_t *e = &table[va >> (3 + 9 * l) & 511];
        if (l == level) {
            return e;
        }
        if (!(*e & PTE_P)) {
            if (!make) {
                return NULL;
            }
            *e = (uint64_t)page_alloc() | PTE_P | PTE_W | PTE_U;
        } else if (*e & PTE_PS) {
            return NULL;
        }
        table = (uint64_t *)(*e & PTE_ADDR);
    }
}

void map(uint64_t va, uint64_t pa, uint64_t flags)
{
    *entry_of(va, 1, true) = pa | flags;
}

void map_large(uint64_t va, uint64_t pa, uint64_t flags, unsigned level)
{
    *entry_of(va, level, true) = pa | flags | PTE_PS;
}

uint64_t *pte_of(uint64_t va, unsigned level)
{
    return entry_of(va, level, false);
}

void *memset(void *p, int c, size_t n)
{
    void *d = p;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return p;
}

void *memcpy(void *d, const void *s, size_t n)
{
    void *to = d;
    asm volatile("rep movsb" : "+D"(to), "+S"(s), "+c"(n)::"memory");
    return d;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;
    for (; n; n--, x++, y++) {
        if (*x != *y) {
            return *x < *y ? -1 : 1;
        }
    }
    return 0;
}

bool has(uint32_t leaf, uint32_t sub, unsigned reg, unsigned bit)
{
    uint32_t out[4];
    cpuid(leaf & 0x80000000, 0, out);
    if (leaf > out[0]) {
        return false;
    }
    cpuid(leaf, sub, out);
    return out[reg] >> bit & 1;
}

bool vendor_intel(void)
{
    uint32_t out[4];
    cpuid(0, 0, out);
    return out[1] == 0x756e6547;
}

/* --- start --- */

void rt_main(void)
{
    memcpy(rt_low_start, rt_low_image, (size_t)rt_low_size);
    for (unsigned v = 0; v < 256; v++) {
        rt_gate_default(v);
    }
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idtr = {sizeof(rt_idt) - 1, (uint64_t)rt_idt};
    asm volatile("lidt %0" ::"m"(idtr));
    rt_tss.rsp[0] = (uint64_t)trap_stack + IST_BYTES;
    rt_tss.ist[0] = (uint64_t)ist_stack + IST_BYTES;
    rt_tss.iomap = offsetof(struct tss64, bitmap);
    memset(rt_tss.bitmap, 0xff, sizeof(rt_tss.bitmap));
    uint64_t base = (uint64_t)&rt_tss, limit = sizeof(rt_tss) - 1;
    rt_gdt[RT_TSS / 8] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    rt_gdt[RT_TSS / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" ::"r"(RT_TSS));
    /* 115200 baud, 8N1, FIFO on */
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x80);
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    outb(COM1 + 2, 7);
    /* PICs masked */
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    test_main();
    rt_finish();
}
