/*
 * The 32-bit runtime's C half: see rt32.h.
 */
#include "rt32.h"

#define STACK_BYTES 8192

#define ARRAY_WORDS(a) (sizeof(a) / sizeof((a)[0]))

struct tss32 rt_tss;
extern uint32_t rt_leave_esp;
extern char rt_vectors[]; /* 16 bytes each */

static char trap_stack[STACK_BYTES] __attribute__((aligned(16))); /* SS0:ESP0 */
static char kernel_stack[STACK_BYTES] __attribute__((aligned(16)));
static char user_stack[STACK_BYTES] __attribute__((aligned(16)));
static struct regs *active;

void rt_enter(const uint32_t *image);
void rt_trapped(const uint32_t *frame);
void rt_main(void);

void *memset(void *p, int c, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ((volatile uint8_t *)p)[i] = (uint8_t)c;
    }
    return p;
}

void *memcpy(void *d, const void *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ((volatile uint8_t *)d)[i] = ((const uint8_t *)s)[i];
    }
    return d;
}

/* --- checks --- */

bool trapped(const struct regs *r, unsigned vector, uint32_t error, uint32_t eip, const char *text)
{
    bool same = ok(r->vector == vector && r->error == error && r->eip == eip, text);
    if (!same) {
        rt_printf("#   got vector %u error 0x%x eip 0x%x cs 0x%x cr2 0x%x, want %u 0x%x 0x%x\n", r->vector,
                  r->error, r->eip, r->cs, r->cr2, vector, error, eip);
    }
    return same;
}

/* --- descriptors --- */

uint64_t rt_desc(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

uint64_t rt_gate(uint32_t selector, uint32_t offset, unsigned access, unsigned params)
{
    return (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)params << 32 | (uint64_t)access << 40 |
           (uint64_t)(offset >> 16) << 48;
}

void rt_idt_default(unsigned vector, unsigned dpl)
{
    rt_idt[vector] = rt_gate(SEL_KCODE, ADDRESS(rt_vectors) + vector * 16, 0x8e | dpl << 5, 0);
}

void rt_ltr(uint32_t selector)
{
    rt_gdt[selector / 8] &= ~(2ull << 40); /* not busy: LTR wants that */
    asm volatile("ltr %w0" ::"r"(selector));
}

/* --- running --- */

/* On the handler's stack: segments, PUSHA, vector, error code, and what the CPU pushed. */
void rt_trapped(const uint32_t *frame)
{
    struct regs *r = active;
    bool has_error;
    if (!r) {
        rt_printf("\nBail out! unexpected trap %u error %x at %x:%x\n", frame[12], frame[13], frame[15],
                  frame[14]);
        rt_exit(2);
    }
    active = NULL;
    memcpy(r, frame, offsetof(struct regs, esp));
    for (uint32_t *segment = &r->gs; segment <= &r->ds; segment++) {
        *segment &= 0xffff; /* the upper halves of pushed segment registers mean nothing */
    }
    r->cs &= 0xffff;
    has_error = r->vector == DF || (r->vector >= TS && r->vector <= PF) || r->vector == 17 || r->vector == 21;
    r->frame_at = ADDRESS(frame + (has_error ? 13 : 14));
    if (r->eflags & FL_VM) {
        memcpy(&r->esp, frame + 17, 6 * 4);
    } else if (r->cs & 3) {
        memcpy(&r->esp, frame + 17, 2 * 4);
        r->ss &= 0xffff;
    } else {
        r->esp = ADDRESS(frame + 17);
        asm volatile("mov %%ss, %0" : "=r"(r->ss));
    }
    asm volatile("mov %%cr2, %0" : "=r"(r->cr2));
}

void rt_run(struct regs *r)
{
    /* IRET itself may fault: the handler then runs below the image. */
    static uint32_t area[STACK_BYTES / 4];
    uint32_t *const image = area + ARRAY_WORDS(area) - 32;
    uint32_t *to = image;
    if (!(r->eflags & FL_VM) &&
        !(r->cs & 3)) { /* the same level: IRET takes no stack, so the image lies on it */
        to = (uint32_t *)(uintptr_t)r->esp - 15;
    }
    memcpy(to, r, 12 * 4);
    memcpy(to + 12, &r->eip, 9 * 4 - (to == image ? 0 : 6 * 4));
    active = r;
    rt_enter(to);
}

struct regs rt_kernel(const void *code)
{
    return (struct regs){.eip = ADDRESS(code),
                         .cs = SEL_KCODE,
                         .eflags = FL_FIXED,
                         .esp = ADDRESS(kernel_stack + STACK_BYTES - 256),
                         .ss = SEL_KDATA,
                         .ds = SEL_KDATA,
                         .es = SEL_KDATA};
}

struct regs rt_user(const void *code)
{
    return (struct regs){.eip = ADDRESS(code),
                         .cs = SEL_UCODE,
                         .eflags = FL_FIXED,
                         .esp = ADDRESS(user_stack + STACK_BYTES - 256),
                         .ss = SEL_UDATA,
                         .ds = SEL_UDATA,
                         .es = SEL_UDATA};
}

void rt_main(void)
{
    for (unsigned i = 0; i < 256; i++) {
        rt_idt_default(i, 0);
    }
    outb(0x21, 0xff); /* PICs masked: some tests set IF */
    outb(0xa1, 0xff);
    rt_tss.ss0 = SEL_KDATA;
    rt_tss.esp0 = ADDRESS(trap_stack + STACK_BYTES);
    rt_tss.iomap = offsetof(struct tss32, map);
    memset(rt_tss.map, 0xff, sizeof(rt_tss.map));
    rt_gdt[SEL_TSS / 8] = rt_desc(ADDRESS(&rt_tss), sizeof(rt_tss) - 1, 0x89, 0);
    rt_ltr(SEL_TSS);
    test_main();
    rt_finish();
}
