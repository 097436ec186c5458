/*
 * Runs a case under an execution engine: a machine without devices, one vCPU in 64-bit user mode, whose
 * kernel is a table of HLT instructions, one for each exception vector.
 *
 * The machine's descriptor table equals Linux's in what user code can see of it, so that segment loads, LAR,
 * LSL and VERR give what they give natively.
 *
 * Threads: run() on the runner's only thread; a watchdog thread kicks the vCPU out of endless cases.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "cpu/engine.h"
#include "mem/mem.h"
#include "tests/diff/diff.h"
#include "tests/diff/engines.h"

#define RAM_BYTES (4 * MiB)

/* Guest-physical layout. */
#define GPA_PML4      0x1000u
#define GPA_PDPT_LOW  0x2000u
#define GPA_PD_LOW    0x3000u
#define GPA_PT        0x4000u /* three: code, data, stack */
#define GPA_PDPT_HIGH 0x7000u
#define GPA_PD_HIGH   0x8000u
#define GPA_PT_HIGH   0x9000u
#define GPA_KERNEL    0x10000u /* the kernel's pages, in the order below */
#define GPA_ARENA     0x100000u

#define KERNEL_VA 0xffff800000000000ull
enum { K_GDT, K_IDT, K_STUBS, K_TSS, K_STACK, K_LDT, K_PAGES };
#define KERNEL_PAGE(k) (KERNEL_VA + (uint64_t)(k)*DIFF_PAGE)
#define STUB_BYTES     16u

/* Page table entries (SDM vol. 3A, 4.5). */
#define PTE_P  0x1ull
#define PTE_W  0x2ull
#define PTE_U  0x4ull
#define PTE_AD 0x60ull
#define PTE_NX (1ull << 63)

/* Linux's selectors. */
#define SEL_KERNEL_CS 0x10
#define SEL_USER_CS32 0x23
#define SEL_USER_DS   0x2b
#define SEL_USER_CS   0x33
#define SEL_TSS       0x40
#define SEL_LDT       0x50
#define SEL_CPU       0x7b
#define GDT_ENTRIES   16

#define ATTR_CODE64 0xa0fbu /* G, L, P, DPL 3, code, accessed */
#define ATTR_CODE32 0xc0fbu
#define ATTR_DATA   0xc0f3u
#define ATTR_TSS    0x008bu
#define ATTR_LDT    0x0082u

#define WATCH_MS    250
#define WATCH_TICKS 16 /* looks at the same running case before it is kicked */

static struct {
    const struct engine_ops *ops;
    struct engine *engine;
    struct vcpu *vcpu;
    struct mem *mem;
    struct x86_state base; /* what every case starts from */
    uint32_t code_start, code_end;
    _Atomic uint64_t running; /* number of the case that runs, 0 between cases */
    uint64_t runs;
    _Atomic bool kicked;
} guest;

static int no_irq(void *opaque)
{
    return -1;
}

static bool no_irq_pending(void *opaque)
{
    return false;
}

static uint64_t no_cr8(void *opaque)
{
    return 0;
}

static void no_cr8_write(void *opaque, uint64_t value)
{
}

static int no_msr_read(void *opaque, uint32_t msr, uint64_t *ret_value)
{
    return -1;
}

static int no_msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    return -1;
}

static uint64_t no_hypercall(void *opaque, uint64_t nr, const uint64_t args[4])
{
    return (uint64_t)-ENOSYS;
}

static void *watch(void *opaque)
{
    uint64_t seen = 0;
    unsigned ticks = 0;
    for (;;) {
        usleep(WATCH_MS * 1000);
        uint64_t now = atomic_load(&guest.running);
        if (now == 0 || now != seen) {
            seen = now;
            ticks = 0;
        } else if (++ticks >= WATCH_TICKS) {
            atomic_store(&guest.kicked, true);
            guest.ops->kick(guest.vcpu);
            ticks = 0;
        }
    }
    return opaque;
}

static uint64_t *table(uint32_t gpa)
{
    return mem_ram_ptr(guest.mem, GPA(gpa), NULL);
}

static void map_user(uint32_t pt, uint32_t va, uint32_t gpa, uint32_t pages, uint64_t bits)
{
    table(GPA_PD_LOW)[(va >> 21) & 511] = pt | PTE_P | PTE_W | PTE_U | PTE_AD;
    for (uint32_t i = 0; i < pages; i++) {
        table(pt)[((va >> 12) & 511) + i] = (gpa + (uint64_t)i * DIFF_PAGE) | bits | PTE_P | PTE_U | PTE_AD;
    }
}

static void build_page_tables(void)
{
    table(GPA_PML4)[0] = GPA_PDPT_LOW | PTE_P | PTE_W | PTE_U | PTE_AD;
    table(GPA_PDPT_LOW)[0] = GPA_PD_LOW | PTE_P | PTE_W | PTE_U | PTE_AD;
    uint32_t gpa = GPA_ARENA;
    map_user(GPA_PT, DIFF_CODE_VA, gpa, DIFF_CODE_PAGES, 0);
    gpa += DIFF_CODE_PAGES * DIFF_PAGE;
    map_user(GPA_PT + 0x1000, DIFF_DATA_VA, gpa, DIFF_DATA_PAGES, PTE_W | PTE_NX);
    gpa += DIFF_DATA_PAGES * DIFF_PAGE;
    map_user(GPA_PT + 0x1000, DIFF_RO_VA, gpa, DIFF_RO_PAGES, PTE_NX);
    gpa += DIFF_RO_PAGES * DIFF_PAGE;
    map_user(GPA_PT + 0x2000, DIFF_STACK_VA, gpa, DIFF_STACK_PAGES, PTE_W | PTE_NX);

    table(GPA_PML4)[(KERNEL_VA >> 39) & 511] = GPA_PDPT_HIGH | PTE_P | PTE_W | PTE_AD;
    table(GPA_PDPT_HIGH)[0] = GPA_PD_HIGH | PTE_P | PTE_W | PTE_AD;
    table(GPA_PD_HIGH)[0] = GPA_PT_HIGH | PTE_P | PTE_W | PTE_AD;
    for (uint32_t i = 0; i < K_PAGES; i++) {
        table(GPA_PT_HIGH)[i] = (GPA_KERNEL + (uint64_t)i * DIFF_PAGE) | PTE_P | PTE_W | PTE_AD;
    }
}

static uint64_t descriptor(uint32_t attr, uint64_t base, uint32_t limit)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
           (uint64_t)((limit >> 16) & 15) << 48 | ((base >> 24) & 0xff) << 56;
}

/* As Linux makes a descriptor of it: accessed, DPL 3, available to software. */
static uint32_t ldt_attr(unsigned i)
{
    const struct diff_ldt_entry *e = &diff_ldt[i];
    return 0x1071u | (e->read_exec_only ? 0 : 2u) | e->contents * 4u | (e->not_present ? 0 : X86_SEG_P) |
           (e->wide ? X86_SEG_DB : 0) | (e->pages ? X86_SEG_G : 0);
}

/* Linux's per-CPU descriptor, as user code on the native runner's CPU sees it. */
static uint64_t cpu_descriptor(void)
{
    cpu_set_t allowed;
    bool restore = sched_getaffinity(0, sizeof(allowed), &allowed) == 0;
    diff_stay_home();
    uint32_t rights = 0, limit = 0, selector = SEL_CPU;
    __asm__("larl %1, %0" : "+r"(rights) : "r"(selector) : "cc");
    __asm__("lsll %1, %0" : "+r"(limit) : "r"(selector) : "cc");
    if (restore) {
        (void)sched_setaffinity(0, sizeof(allowed), &allowed);
    }
    uint32_t attr = (rights >> 8) & 0xf0ff;
    return descriptor(attr, 0, attr & X86_SEG_G ? limit >> 12 : limit);
}

static void build_kernel(void)
{
    uint64_t *gdt = table(GPA_KERNEL + K_GDT * DIFF_PAGE);
    gdt[1] = descriptor(0xc09b, 0, 0xfffff);
    gdt[2] = descriptor(0xa09b, 0, 0xfffff);
    gdt[3] = descriptor(0xc093, 0, 0xfffff);
    gdt[4] = descriptor(ATTR_CODE32, 0, 0xfffff);
    gdt[5] = descriptor(ATTR_DATA, 0, 0xfffff);
    gdt[6] = descriptor(ATTR_CODE64, 0, 0xfffff);
    gdt[8] = descriptor(ATTR_TSS, KERNEL_PAGE(K_TSS), 0x67);
    gdt[9] = KERNEL_PAGE(K_TSS) >> 32;
    gdt[SEL_CPU >> 3] = cpu_descriptor();
    uint64_t *ldt = table(GPA_KERNEL + K_LDT * DIFF_PAGE);
    for (unsigned i = 0; i < LDT_COUNT; i++) {
        ldt[i] = descriptor(ldt_attr(i), diff_ldt[i].base, diff_ldt[i].limit);
    }
    gdt[SEL_LDT >> 3] = descriptor(ATTR_LDT, KERNEL_PAGE(K_LDT), LDT_COUNT * 8 - 1);
    gdt[(SEL_LDT >> 3) + 1] = KERNEL_PAGE(K_LDT) >> 32;

    uint8_t *stubs = (uint8_t *)table(GPA_KERNEL + K_STUBS * DIFF_PAGE);
    uint64_t *idt = table(GPA_KERNEL + K_IDT * DIFF_PAGE);
    for (unsigned v = 0; v < 256; v++) {
        static const uint8_t stub[] = {0xf4, 0xeb, 0xfd}; /* again: hlt; jmp again */
        memcpy(stubs + v * STUB_BYTES, stub, sizeof(stub));
        uint64_t handler = KERNEL_PAGE(K_STUBS) + v * STUB_BYTES;
        /* Interrupt gates; INT3 and INTO may come from user mode, as in Linux. */
        uint64_t type = v == X86_BP || v == X86_OF_EXC ? 0xee : 0x8e;
        idt[v * 2] = (handler & 0xffff) | (uint64_t)SEL_KERNEL_CS << 16 | type << 40 |
                     ((handler >> 16) & 0xffff) << 48;
        idt[v * 2 + 1] = handler >> 32;
    }
    uint8_t *tss = (uint8_t *)table(GPA_KERNEL + K_TSS * DIFF_PAGE);
    uint64_t rsp0 = KERNEL_PAGE(K_STACK + 1);
    uint16_t no_bitmap = 0x68;
    memcpy(tss + 4, &rsp0, sizeof(rsp0)); /* SDM vol. 3A, figure 8-11 */
    memcpy(tss + 0x66, &no_bitmap, sizeof(no_bitmap));
}

static void set_segment(struct x86_segment *seg, uint16_t selector, uint16_t attr)
{
    *seg = (struct x86_segment){.selector = selector, .limit = 0xffffffff, .attr = attr};
}

static void set_ldt_segment(struct x86_segment *seg, unsigned i)
{
    *seg = (struct x86_segment){.base = diff_ldt[i].base,
                                .limit = diff_ldt[i].limit,
                                .selector = DIFF_LDT_SEL(i),
                                .attr = (uint16_t)ldt_attr(i)};
}

static void build_state(struct x86_state *s)
{
    memset(s, 0, sizeof(*s));
    s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
    s->cr3 = GPA_PML4;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
    s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    s->xcr0 = diff_xlayout()->features;
    s->pat = 0x0007040600070406ull; /* SDM vol. 3A, 11.12.4 */
    s->misc_enable = 1;
    s->dr6 = 0xffff0ff0;
    s->dr7 = 0x400;
    set_segment(&s->seg[X86_CS], SEL_USER_CS, ATTR_CODE64);
    set_segment(&s->seg[X86_SS], SEL_USER_DS, ATTR_DATA);
    s->tr = (struct x86_segment){
        .base = KERNEL_PAGE(K_TSS), .limit = 0x67, .selector = SEL_TSS, .attr = ATTR_TSS};
    s->ldtr = (struct x86_segment){
        .base = KERNEL_PAGE(K_LDT), .limit = LDT_COUNT * 8 - 1, .selector = SEL_LDT, .attr = ATTR_LDT};
    s->gdtr = (struct x86_table){KERNEL_PAGE(K_GDT), GDT_ENTRIES * 8 - 1};
    s->idtr = (struct x86_table){KERNEL_PAGE(K_IDT), 0xfff};
}

static int guest_init(const char *argument, char *text, uint32_t text_size)
{
    struct err err = {0};
    bool eager = strcmp(argument, "bt-eager") == 0;
    guest.ops = diff_engine(eager ? "bt" : argument);
    if (!guest.ops) {
        snprintf(text, text_size, "there is no engine '%s'", argument);
        return -1;
    }
    const struct vcpu_platform platform = {
        .irq_ack = no_irq,
        .irq_pending = no_irq_pending,
        .cr8_read = no_cr8,
        .cr8_write = no_cr8_write,
        .msr_read = no_msr_read,
        .msr_write = no_msr_write,
        .hypercall = no_hypercall,
    };
    if (guest.ops->probe(&err) < 0 || mem_new(RAM_BYTES, &guest.mem, &err) < 0) {
        snprintf(text, text_size, "%.190s", err.text);
        return -1;
    }
    const struct engine_config config = {
        .mem = guest.mem, .vcpus = 1, .cpu_model = "host", .tsc_hz = 1000000000, .eager = eager};
    if (guest.ops->create(&config, &guest.engine, &err) < 0 ||
        guest.ops->vcpu_create(guest.engine, 0, &platform, &guest.vcpu, &err) < 0) {
        snprintf(text, text_size, "%.190s", err.text);
        return -1;
    }
    build_page_tables();
    build_kernel();
    build_state(&guest.base);
    memset(mem_ram_ptr(guest.mem, GPA(GPA_ARENA), NULL), DIFF_MARKER, DIFF_CODE_BYTES);
    pthread_t thread;
    if (pthread_create(&thread, NULL, watch, NULL) != 0) {
        snprintf(text, text_size, "cannot start the watchdog");
        return -1;
    }
    pthread_detach(thread);
    return 0;
}

static void write_memory(const struct diff_case *c)
{
    static uint8_t buf[MAX(DIFF_CODE_BYTES, DIFF_MEM_BYTES)];
    if (guest.code_end > guest.code_start) {
        memset(buf, DIFF_MARKER, guest.code_end - guest.code_start);
        (void)mem_write(guest.mem, GPA(GPA_ARENA + guest.code_start), buf, guest.code_end - guest.code_start);
    }
    guest.code_end = diff_code_range(c, &guest.code_start);
    diff_fill_code(c, buf);
    (void)mem_write(guest.mem, GPA(GPA_ARENA + guest.code_start), buf, guest.code_end - guest.code_start);
    diff_fill_memory(c, buf);
    (void)mem_write(guest.mem, GPA(GPA_ARENA + DIFF_MEM_OFFSET), buf, DIFF_MEM_BYTES);
}

static void load_state(const struct diff_case *c, struct x86_state *s)
{
    *s = guest.base;
    memcpy(s->gpr, c->gpr, sizeof(s->gpr));
    s->rip = DIFF_CODE_VA + c->code_offset + c->entry;
    s->rflags = c->rflags;
    s->seg[X86_FS].base = c->fs_base;
    s->seg[X86_GS].base = c->gs_base;
    memcpy(s->xsave, c->xsave, DIFF_XSAVE_BYTES);
    if (c->code16) {
        s->rip -= DIFF_CODE_VA;
        set_ldt_segment(&s->seg[X86_CS], LDT_CODE16);
        set_ldt_segment(&s->seg[X86_SS], LDT_STACK16);
        set_ldt_segment(&s->seg[X86_DS], LDT_DATA16);
        set_ldt_segment(&s->seg[X86_ES], LDT_DATA16);
    } else if (c->compat) {
        set_segment(&s->seg[X86_CS], SEL_USER_CS32, ATTR_CODE32);
        set_segment(&s->seg[X86_DS], SEL_USER_DS, ATTR_DATA);
        set_segment(&s->seg[X86_ES], SEL_USER_DS, ATTR_DATA);
    }
}

static bool has_error_code(unsigned vector)
{
    /* SDM vol. 3A, table 6-1. */
    return vector == X86_DF_EXC || (vector >= X86_TS && vector <= X86_PF_EXC) || vector == X86_AC_EXC ||
           vector == 21;
}

/* Reads the exception frame of the handler that halted. */
static void record(const struct x86_state *s, struct diff_result *r)
{
    memcpy(r->gpr, s->gpr, sizeof(r->gpr));
    r->rip = s->rip;
    r->rflags = s->rflags;
    for (unsigned i = 0; i < X86_SREGS; i++) {
        r->sel[i] = s->seg[i].selector;
    }
    r->fs_base = s->seg[X86_FS].base;
    r->gs_base = s->seg[X86_GS].base;
    memcpy(r->xsave, s->xsave, DIFF_XSAVE_BYTES);
    if (r->outcome != DIFF_EXCEPTION) {
        return;
    }
    uint64_t stub = s->rip - 1 - KERNEL_PAGE(K_STUBS);
    uint64_t words = s->gpr[X86_RSP] - KERNEL_PAGE(K_STACK);
    if (stub >= DIFF_PAGE || stub % STUB_BYTES != 0 || words > DIFF_PAGE - 40 || words % 8 != 0) {
        r->outcome = DIFF_ERROR;
        snprintf(r->text, sizeof(r->text), "halted at 0x%llx with RSP 0x%llx, not in an exception handler",
                 (unsigned long long)s->rip, (unsigned long long)s->gpr[X86_RSP]);
        return;
    }
    r->vector = (uint32_t)(stub / STUB_BYTES);
    uint64_t expected = DIFF_PAGE - (has_error_code(r->vector) ? 48 : 40);
    if (words != expected) {
        r->outcome = DIFF_ERROR;
        snprintf(r->text, sizeof(r->text), "the frame of vector %u is %llu bytes long", r->vector,
                 (unsigned long long)(DIFF_PAGE - words));
        return;
    }
    uint64_t frame[6];
    memcpy(frame, (uint8_t *)table(GPA_KERNEL + K_STACK * DIFF_PAGE) + DIFF_PAGE - sizeof(frame),
           sizeof(frame));
    r->error = has_error_code(r->vector) ? frame[0] : 0;
    r->sel[X86_CS] = (uint16_t)frame[2];
    r->rip = diff_linear_rip(r->sel[X86_CS], frame[1]);
    r->rflags = frame[3];
    r->gpr[X86_RSP] = frame[4];
    r->sel[X86_SS] = (uint16_t)frame[5];
    r->cr2 = r->vector == X86_PF_EXC ? s->cr2 : 0;
}

static void guest_run(const struct diff_case *c, struct diff_result *result)
{
    static struct x86_state state;
    write_memory(c);
    load_state(c, &state);
    struct vcpu_exit exit = {0};
    int error = guest.ops->set_state(guest.vcpu, &state);
    atomic_store(&guest.kicked, false);
    atomic_store(&guest.running, ++guest.runs);
    while (error == 0) {
        error = guest.ops->run(guest.vcpu, &exit);
        if (exit.reason != EXIT_KICK || atomic_load(&guest.kicked)) {
            break;
        }
    }
    atomic_store(&guest.running, 0);
    if (error == 0) {
        error = guest.ops->get_state(guest.vcpu, &state);
    }
    if (error < 0) {
        result->outcome = DIFF_ERROR;
        snprintf(result->text, sizeof(result->text), "the engine failed: %s", strerror(-error));
        return;
    }
    switch (exit.reason) {
    case EXIT_HLT: result->outcome = DIFF_EXCEPTION; break;
    case EXIT_KICK: result->outcome = DIFF_TIMEOUT; break;
    case EXIT_SHUTDOWN:
        result->outcome = DIFF_ERROR;
        snprintf(result->text, sizeof(result->text), "triple fault");
        break;
    case EXIT_DEBUG: /* nobody asked for a stop */
    case EXIT_ERROR:
        result->outcome = DIFF_ERROR;
        snprintf(result->text, sizeof(result->text), "%.199s", exit.text);
        break;
    }
    record(&state, result);
    (void)mem_read(guest.mem, GPA(GPA_ARENA + DIFF_MEM_OFFSET), result->mem, DIFF_MEM_BYTES);
}

const struct diff_runner diff_guest = {.name = "guest", .init = guest_init, .run = guest_run, .compat = true};
