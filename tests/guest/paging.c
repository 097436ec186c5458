/*
 * 4-level paging: sizes, permissions, SMEP, SMAP, WP, NX, accessed and dirty bits, reserved bits,
 * invalidation, PCID.
 *
 * After every change of a present entry that adds restrictions or moves a page the guest invalidates; what a
 * stale TLB would show is not tested, as it is not defined.
 */
#include "rt/rt.h"

#define VA ((uint64_t)RT_ARENA + 0x40000000)

SNIPPET(p_r, "p_r_at: mov (%rbx), %rax");
SNIPPET(p_w, "p_w_at: mov %rax, (%rbx)");
SNIPPET(p_rmw, "p_rmw_at: lock addq $1, (%rbx)");
SNIPPET(p_x, "p_x_at: call *%rbx");
SNIPPET(p_stac_r, "stac\n mov (%rbx), %rax\n clac");
SNIPPET(p_stac_w, "stac\n movq $5, (%rbx)\n clac");
SNIPPET(p_iretq, "p_iretq_at: iretq");
SNIPPET(p_push, "p_push_at: push %rax");
SNIPPET(p_clac_r, "stac\n clac\n p_clac_at: mov (%rbx), %rax");
LABEL(p_clac_at);
SNIPPET(p_stac_user, "p_stac_user_at: stac");

SNIPPET(p_ldt_load, "stac\n mov $4, %eax\n p_ldt_at: mov %eax, %es");
LABEL(p_ldt_at);

static uint8_t *frame; /* the frame that tests map */

static struct frame go(struct frame f, uint64_t rbx)
{
    f.rbx = rbx;
    f.rax = 0x5a5a;
    rt_run(&f);
    return f;
}

static uint64_t fault_of(struct frame f, const void *at)
{
    return f.vector == PF && (f.rip == (uint64_t)at || f.rip == rt_alias(at)) ? f.error
           : f.vector == UD                                                   ? 0x1000 /* completed */
                                                                              : 0x2000 + f.vector;
}
#define DONE 0x1000

static void set(uint64_t va, uint64_t flags)
{
    map(va, (uint64_t)frame, flags);
    invlpg(va);
}

static void permissions(void)
{
    /* SDM vol. 3A, 4.6 and 4.7. */
    static const struct {
        uint64_t flags;
        const char *name;
        uint64_t kr, kw, ur, uw;
    } cases[] = {
        {PTE_P | PTE_W | PTE_U, "user page", DONE, DONE, DONE, DONE},
        {PTE_P | PTE_U, "user read-only page", DONE, 3, DONE, 7},
        {PTE_P | PTE_W, "supervisor page", DONE, DONE, 5, 7},
        {PTE_P, "supervisor read-only page", DONE, 3, 5, 7},
        {0, "missing page", 0, 2, 4, 6},
        {PTE_W | PTE_U, "missing page with other bits set", 0, 2, 4, 6},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        about(cases[i].name);
        set(VA, cases[i].flags);
        is(fault_of(go(rt_kernel(p_r), VA), p_r), cases[i].kr, "supervisor read");
        is(fault_of(go(rt_kernel(p_w), VA), p_w), cases[i].kw, "supervisor write");
        is(fault_of(go(rt_user(p_r), VA), p_r), cases[i].ur, "user read");
        is(fault_of(go(rt_user(p_w), VA), p_w), cases[i].uw, "user write");
    }
    about("CR0.WP off");
    write_cr0(read_cr0() & ~(1ull << 16));
    set(VA, PTE_P);
    is(fault_of(go(rt_kernel(p_w), VA), p_w), DONE, "supervisor writes a read-only page");
    set(VA, PTE_P | PTE_U);
    is(fault_of(go(rt_kernel(p_w), VA), p_w), DONE, "supervisor writes a user's read-only page");
    is(fault_of(go(rt_user(p_w), VA), p_w), 7, "user still may not");
    write_cr0(read_cr0() | 1 << 16);
    is(fault_of(go(rt_kernel(p_w), VA), p_w), 3, "and on again: it may not");
    about(NULL);

    /* Rights are the intersection of all levels. */
    set(VA, PTE_P | PTE_W | PTE_U);
    for (unsigned level = 2; level <= 4; level++) {
        static const char *const names[] = {"", "", "level 2", "level 3", "level 4"};
        about(names[level]);
        uint64_t *e = pte_of(VA, level), old = *e;
        *e = old & ~PTE_W;
        write_cr3(read_cr3());
        invlpg(VA);
        is(fault_of(go(rt_kernel(p_w), VA), p_w), 3, "read-only there");
        *e = old & ~PTE_U;
        invlpg(VA);
        is(fault_of(go(rt_user(p_r), VA), p_r), 5, "supervisor there");
        *e = old | PTE_NX;
        invlpg(VA);
        *frame = 0xc3; /* ret */
        is(fault_of(go(rt_kernel(p_x), VA), (void *)VA), 0x11, "no execution there");
        *e = old & ~PTE_P;
        invlpg(VA);
        is(fault_of(go(rt_user(p_w), VA), p_w), 6, "missing there");
        *e = old;
        invlpg(VA);
        is(fault_of(go(rt_user(p_w), VA), p_w), DONE, "and back");
    }
    about(NULL);
}

static void execute(void)
{
    /* SDM vol. 3A, 4.6.1: NX, SMEP. */
    *frame = 0xc3;
    set(VA, PTE_P | PTE_W | PTE_U);
    is(fault_of(go(rt_kernel(p_x), VA), (void *)VA), DONE, "supervisor executes a user page without SMEP");
    struct frame f = go(rt_user(p_x), VA);
    ok(rt_done(f, p_x), "user executes it");
    set(VA, PTE_P | PTE_W | PTE_U | PTE_NX);
    is(fault_of(go(rt_kernel(p_x), VA), (void *)VA), 0x11, "NX: supervisor fetch");
    f = go(rt_user(p_x), VA);
    is(fault_of(f, (void *)VA), 0x15, "NX: user fetch");
    is(f.cr2, VA, "CR2 of the fetch");
    set(VA, PTE_P | PTE_W);
    is(fault_of(go(rt_user(p_x), VA), (void *)VA), 0x15, "user fetch from a supervisor page");
    set(VA, 0);
    is(fault_of(go(rt_user(p_x), VA), (void *)VA), 0x14, "user fetch from a missing page");
    if (!HAS_SMEP()) {
        skip("SMEP", "not in CPUID");
    } else {
        *frame = 0xc3;
        set(VA, PTE_P | PTE_W | PTE_U);
        write_cr4(read_cr4() | 1 << 20);
        is(fault_of(go(rt_kernel(p_x), VA), (void *)VA), 0x11, "SMEP: supervisor fetch from a user page");
        f = go(rt_user(p_x), VA);
        ok(rt_done(f, p_x), "SMEP: user fetch is fine");
        write_cr4(read_cr4() & ~(1ull << 20));
        is(fault_of(go(rt_kernel(p_x), VA), (void *)VA), DONE, "SMEP off again");
    }
    /* An instruction that crosses into a page that can't be executed faults at its own address; CR2 is the
     * page's. */
    map(VA + 0x1000, (uint64_t)page_alloc(), PTE_P | PTE_W | PTE_U | PTE_NX);
    set(VA, PTE_P | PTE_W | PTE_U);
    frame[4094] = 0xb8; /* mov $imm32, %eax */
    f = go(rt_kernel(p_x), VA + 4094);
    is(fault_of(f, (void *)(VA + 4094)), 0x11, "an instruction that crosses into an NX page");
    is(f.cr2, VA + 0x1000, "CR2 is the second page");
    map(VA + 0x1000, 0, 0);
    invlpg(VA + 0x1000);
    f = go(rt_user(p_x), VA + 4094);
    is(fault_of(f, (void *)(VA + 4094)), 0x14, "and into a missing page");
    is(f.cr2, VA + 0x1000, "CR2 is the second page");
    frame[4095] = 0xc3;
    f = go(rt_user(p_x), VA + 4095);
    ok(rt_done(f, p_x), "an instruction that ends at the page's end needs nothing behind it");
    /* EFER.NXE off: bit 63 is reserved. */
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
    *pte_of(VA, 1) |= PTE_NX;
    invlpg(VA);
    is(fault_of(go(rt_kernel(p_r), VA), p_r), 9, "NXE off: bit 63 is reserved");
    *pte_of(VA, 1) &= ~PTE_NX;
    invlpg(VA);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
}

static void smap(void)
{
    if (!HAS_SMAP()) {
        skip("SMAP", "not in CPUID");
        return;
    }
    /* SDM vol. 3A, 4.6.1: explicit supervisor accesses to user pages need AC; implicit ones fail regardless.
     */
    set(VA, PTE_P | PTE_W | PTE_U);
    write_cr4(read_cr4() | 1 << 21);
    is(fault_of(go(rt_kernel(p_r), VA), p_r), 1, "SMAP: supervisor read of a user page");
    is(fault_of(go(rt_kernel(p_w), VA), p_w), 3, "SMAP: supervisor write");
    struct frame f = go(rt_kernel(p_stac_r), VA);
    ok(rt_done(f, p_stac_r), "SMAP: read between stac and clac");
    f = go(rt_kernel(p_stac_w), VA);
    ok(rt_done(f, p_stac_w), "SMAP: write between stac and clac");
    f = go(rt_kernel(p_clac_r), VA);
    is(fault_of(f, p_clac_at), 1, "SMAP: read behind clac");
    f = rt_kernel(p_r);
    f.rflags |= FL_AC;
    f = go(f, VA);
    ok(rt_done(f, p_r), "SMAP: AC from the flags image of IRET");
    f = go(rt_user(p_r), VA);
    ok(rt_done(f, p_r), "SMAP: user reads its page");
    f = rt_kernel(p_push);
    f.rsp = VA + 64;
    f = go(f, VA);
    is(fault_of(f, p_push), 3, "SMAP: push to a user page");
    /* A descriptor table is read implicitly: AC does not help. */
    *(uint64_t *)frame = 0x00cf93000000ffff;
    rt_gdt[RT_FREE / 8] =
        7 | (VA & 0xffffff) << 16 | 0x82ull << 40 | (VA >> 24 & 0xff) << 56; /* LDT of 8 bytes */
    rt_gdt[RT_FREE / 8 + 1] = VA >> 32;
    asm volatile("lldt %w0" ::"r"(RT_FREE));
    f = go(rt_kernel(p_ldt_load), VA);
    is(fault_of(f, p_ldt_at), 1, "SMAP: a descriptor in a user page, with AC set");
    asm volatile("lldt %w0" ::"r"(0));
    write_cr4(read_cr4() & ~(1ull << 21));
    f = go(rt_kernel(p_r), VA);
    ok(rt_done(f, p_r), "SMAP off again");
    f = go(rt_user(p_stac_user), VA);
    ok(f.vector == UD && f.rip == rt_alias(p_stac_user), "stac at CPL 3: #UD");
}

static void accessed_dirty(void)
{
    /* SDM vol. 3A, 4.8. */
    set(VA, PTE_P | PTE_W | PTE_U);
    for (unsigned level = 1; level <= 4; level++) {
        *pte_of(VA, level) &= ~(PTE_A | PTE_D);
    }
    write_cr3(read_cr3());
    go(rt_kernel(p_r), VA);
    for (unsigned level = 1; level <= 4; level++) {
        ok(*pte_of(VA, level) & PTE_A, "a read sets A at each level");
        ok(!(*pte_of(VA, level) & PTE_D), "and D nowhere");
    }
    go(rt_kernel(p_w), VA);
    ok(*pte_of(VA, 1) & PTE_D, "a write sets D");
    ok(!(*pte_of(VA, 2) & PTE_D) && !(*pte_of(VA, 3) & PTE_D), "in the last level only");
    set(VA, PTE_P | PTE_W | PTE_U);
    go(rt_kernel(p_rmw), VA);
    is(*pte_of(VA, 1) & (PTE_A | PTE_D), PTE_A | PTE_D, "a locked add sets both");
    set(VA, PTE_P | PTE_U);
    go(rt_kernel(p_w), VA);
    ok(!(*pte_of(VA, 1) & PTE_D), "a refused write does not set D");
    set(VA, PTE_P | PTE_W | PTE_U);
    *frame = 0xc3;
    go(rt_kernel(p_x), VA);
    ok((*pte_of(VA, 1) & (PTE_A | PTE_D)) == PTE_A, "a fetch sets A, not D");
    /* Reads first, so the TLB has the page without D; the write must still set it. */
    set(VA, PTE_P | PTE_W | PTE_U);
    go(rt_kernel(p_r), VA);
    ok(!(*pte_of(VA, 1) & PTE_D), "read before write: D clear");
    go(rt_kernel(p_w), VA);
    ok(*pte_of(VA, 1) & PTE_D, "write after read: D set");
    *pte_of(VA, 1) &= ~PTE_D;
    invlpg(VA);
    go(rt_kernel(p_w), VA);
    ok(*pte_of(VA, 1) & PTE_D, "cleared, invalidated, written: D set again");
}

static void reserved(void)
{
    uint32_t out[4];
    cpuid(0x80000008, 0, out);
    unsigned bits = out[0] & 0xff;
    set(VA, PTE_P | PTE_W | PTE_U);
    if (bits < 52) {
        *pte_of(VA, 1) |= 1ull << bits;
        invlpg(VA);
        /* SDM vol. 3A, 4.7: RSVD comes with P. */
        is(fault_of(go(rt_kernel(p_r), VA), p_r), 9,
           "a physical-address bit beyond MAXPHYADDR: supervisor read");
        is(fault_of(go(rt_user(p_w), VA), p_w), 0xf, "and user write");
        *pte_of(VA, 1) &= ~(1ull << bits);
        invlpg(VA);
    } else {
        skip("reserved address bits", "MAXPHYADDR is 52");
    }
    uint64_t *e = pte_of(VA, 4), old = *e;
    *e = old | PTE_PS;
    write_cr3(read_cr3());
    is(fault_of(go(rt_kernel(p_r), VA), p_r), 9, "PS in a PML4 entry is reserved");
    *e = old;
    write_cr3(read_cr3());
    uint64_t big = RT_ARENA + 0x8000000000;
    map_large(big, 0x200000 | 0x2000, PTE_P | PTE_W, 2);
    is(fault_of(go(rt_kernel(p_r), big), p_r), 9, "bit 13 of a 2 MiB entry is reserved");
    *pte_of(big, 2) = 0;
    invlpg(big);
    if (!HAS_1G()) {
        *pte_of(big, 3) = PTE_P | PTE_W | PTE_PS;
        write_cr3(read_cr3());
        is(fault_of(go(rt_kernel(p_r), big), p_r), 9, "PS in a PDPT entry is reserved without 1 GiB pages");
        *pte_of(big, 3) = 0;
        write_cr3(read_cr3());
    }
}

static void large(void)
{
    uint64_t va2 = RT_ARENA + 0x10000000000;
    volatile uint64_t *mark = (volatile uint64_t *)frame;
    *mark = 0x1122334455667788;
    uint64_t pa = (uint64_t)frame, base = pa & ~0x1fffffull, off = pa & 0x1fffff;
    map_large(va2, base, PTE_P | PTE_W | PTE_U, 2);
    struct frame f = go(rt_user(p_r), va2 + off);
    is(f.rax, 0x1122334455667788, "2 MiB page: read");
    is(*pte_of(va2, 2) & (PTE_A | PTE_D), PTE_A, "A in its entry");
    f = go(rt_user(p_w), va2 + off);
    is(*mark, 0x5a5a, "2 MiB page: write");
    ok(*pte_of(va2, 2) & PTE_D, "D in its entry");
    *pte_of(va2, 2) &= ~PTE_W;
    invlpg(va2 + 0x1ff000); /* any address in the page will do (SDM vol. 3A, 4.10.4.1) */
    is(fault_of(go(rt_kernel(p_w), va2 + off), p_w), 3, "INVLPG of another address in the large page");
    /* Split: the same addresses by 4 KiB pages. */
    *pte_of(va2, 2) = 0;
    invlpg(va2);
    map(va2 + off, pa, PTE_P | PTE_W | PTE_U);
    f = go(rt_user(p_r), va2 + off);
    is(f.rax, 0x5a5a, "split into 4 KiB pages: read");
    is(fault_of(go(rt_user(p_r), va2 + off + 0x1000), p_r), 4, "split: the neighbour is gone");
    if (!HAS_1G()) {
        skip("1 GiB pages", "not in CPUID");
        return;
    }
    uint64_t va1 = RT_ARENA + 0x18000000000;
    map_large(va1, 0, PTE_P | PTE_W | PTE_U, 3);
    f = go(rt_user(p_r), va1 + pa);
    is(f.rax, 0x5a5a, "1 GiB page: read");
    f = go(rt_kernel(p_rmw), va1 + pa);
    is(*mark, 0x5a5b, "1 GiB page: locked add");
    ok(*pte_of(va1, 3) & PTE_D, "D in its entry");
    *pte_of(va1, 3) |= PTE_NX;
    invlpg(va1);
    is(fault_of(go(rt_user(p_x), va1 + pa), (void *)(va1 + pa)), 0x15, "1 GiB page: NX");
}

static void crossing(void)
{
    /* An access over two pages needs both; nothing is written when one refuses. */
    uint8_t *a = page_alloc(), *b = page_alloc();
    memset(a, 0x11, 4096);
    memset(b, 0x22, 4096);
    map(VA + 0x10000, (uint64_t)a, PTE_P | PTE_W | PTE_U);
    map(VA + 0x11000, (uint64_t)b, PTE_P | PTE_W | PTE_U);
    uint64_t at = VA + 0x11000 - 3;
    struct frame f = go(rt_user(p_r), at);
    is(f.rax, 0x2222222222111111, "read across two frames");
    f = go(rt_user(p_w), at);
    ok(a[4093] == 0x5a && a[4094] == 0x5a && b[0] == 0 && b[4] == 0 && b[5] == 0x22,
       "write across two frames");
    map(VA + 0x11000, (uint64_t)b, PTE_P | PTE_U);
    invlpg(VA + 0x11000);
    memset(a, 0x11, 4096);
    f = go(rt_user(p_w), at);
    is(fault_of(f, p_w), 7, "second page read-only");
    is(f.cr2, VA + 0x11000, "CR2 is the second page");
    ok(a[4093] == 0x11 && a[4095] == 0x11, "first page untouched");
    map(VA + 0x11000, (uint64_t)b, PTE_P | PTE_W);
    invlpg(VA + 0x11000);
    is(fault_of(go(rt_user(p_r), at), p_r), 5, "second page supervisor");
    f = go(rt_kernel(p_r), at);
    ok(rt_done(f, p_r), "which the supervisor may read");
    map(VA + 0x11000, (uint64_t)b, PTE_P | PTE_W | PTE_U);
    map(VA + 0x10000, (uint64_t)a, PTE_P | PTE_U);
    invlpg(VA + 0x11000);
    invlpg(VA + 0x10000);
    memset(b, 0x22, 4096);
    f = go(rt_user(p_w), at);
    is(fault_of(f, p_w), 7, "first page read-only");
    is(f.cr2, at, "CR2 is the access's first byte");
    ok(b[0] == 0x22, "second page untouched");
}

static void aliases(void)
{
    /* Two linear pages of one frame; a page table edited through another mapping of it. */
    volatile uint64_t *x = (volatile uint64_t *)(VA + 0x20000), *y = (volatile uint64_t *)(VA + 0x31000);
    map((uint64_t)x, (uint64_t)frame, PTE_P | PTE_W);
    map((uint64_t)y, (uint64_t)frame, PTE_P | PTE_W);
    bool same = true;
    for (unsigned i = 0; i < 1000; i++) {
        *x = i;
        same &= *y == i;
        *y = i + 7;
        same &= *x == i + 7;
    }
    ok(same, "stores through one alias are read through the other");
    uint64_t *table = (uint64_t *)((uint64_t)pte_of(VA, 1) & ~0xfffull);
    volatile uint64_t *window = (volatile uint64_t *)(VA + 0x40000);
    map((uint64_t)window, (uint64_t)table, PTE_P | PTE_W);
    uint8_t *other = page_alloc();
    *(uint64_t *)other = 0xabcdef;
    *x = 1;
    unsigned slot = (unsigned)((uint64_t)x >> 12 & 511);
    window[slot] = (uint64_t)other | PTE_P | PTE_W;
    invlpg((uint64_t)x);
    is(*x, 0xabcdef, "a PTE changed through an alias of its table, after INVLPG");
    window[slot] = (uint64_t)frame | PTE_P | PTE_W;
    write_cr3(read_cr3());
    is(*x, *y, "and after a CR3 write");
    bool right = true;
    for (unsigned i = 0; i < 200; i++) { /* remap in a loop: the TLB must follow each time */
        uint8_t *to = i & 1 ? other : frame;
        window[slot] = (uint64_t)to | PTE_P | PTE_W;
        invlpg((uint64_t)x);
        *x = i;
        right &= *(uint64_t *)to == i;
    }
    ok(right, "200 remappings, each followed by INVLPG");
    /* Not present to present needs no invalidation (SDM vol. 3A, 4.10.4.3). */
    uint64_t fresh = VA + 0x50000;
    is(fault_of(go(rt_kernel(p_r), fresh), p_r), 0, "a missing page");
    map(fresh, (uint64_t)other, PTE_P | PTE_W);
    struct frame f = go(rt_kernel(p_r), fresh);
    ok(rt_done(f, p_r), "is there once its entry is, without invalidation");
}

static uint64_t *copy_root(void)
{
    uint64_t *root = page_alloc();
    memcpy(root, (void *)(read_cr3() & PTE_ADDR), 4096);
    root[RT_ARENA >> 39 & 511] = 0;
    return root;
}

static void address_spaces(void)
{
    uint64_t old = read_cr3();
    uint8_t *mine = page_alloc(), *theirs = page_alloc();
    *(uint64_t *)mine = 111;
    *(uint64_t *)theirs = 222;
    volatile uint64_t *v = (volatile uint64_t *)(VA + 0x60000);
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W);
    uint64_t *root = copy_root();
    is(*v, 111, "first address space");
    write_cr3((uint64_t)root);
    map((uint64_t)v, (uint64_t)theirs, PTE_P | PTE_W);
    is(*v, 222, "second address space after a CR3 write");
    bool right = true;
    for (unsigned i = 0; i < 100; i++) {
        write_cr3(i & 1 ? (uint64_t)root : old);
        right &= *v == (i & 1 ? 222 : 111);
    }
    ok(right, "100 switches");
    write_cr3(old);
    is(*v, 111, "and back");

    /* Global pages survive CR3 writes, not INVLPG nor a change of CR4.PGE (SDM vol. 3A, 4.10.2.4). What stays
     * in a TLB is not guaranteed, so only the invalidations are checked. */
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W | PTE_G);
    invlpg((uint64_t)v);
    is(*v, 111, "global page");
    map((uint64_t)v, (uint64_t)theirs, PTE_P | PTE_W | PTE_G);
    invlpg((uint64_t)v);
    is(*v, 222, "INVLPG drops a global translation");
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W | PTE_G);
    write_cr4(read_cr4() & ~0x80ull);
    write_cr4(read_cr4() | 0x80);
    is(*v, 111, "a change of CR4.PGE drops global translations");
    map((uint64_t)v, (uint64_t)theirs, PTE_P | PTE_W);
    invlpg((uint64_t)v);
    is(*v, 222, "not global any more");
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W);
    write_cr3(read_cr3());
    is(*v, 111, "so a CR3 write drops it");
    /* CR0.WP, CR4.SMEP and others take effect at once; a CR0.PG round trip is in the modes guest. */
}

SNIPPET(p_cr3_bit63, "p_cr3_at: mov %rbx, %cr3");
SNIPPET(p_cr4, "p_cr4_at: mov %rbx, %cr4");
SNIPPET(p_invpcid, "p_invpcid_at: invpcid (%rbx), %rax");

static void pcid(void)
{
    struct frame f;
    if (!HAS_PCID()) {
        f = rt_kernel(p_cr4);
        f.rbx = read_cr4() | 1 << 17;
        rt_run(&f);
        trapped(&f, GP, 0, p_cr4, "CR4.PCIDE without the feature: #GP");
        skip("PCID", "not in CPUID");
        return;
    }
    uint64_t old = read_cr3();
    /* SDM vol. 3A, 4.10.1: PCIDE needs CR3[11:0] = 0 when it is set. */
    write_cr3(old | 0x18);
    f = rt_kernel(p_cr4);
    f.rbx = read_cr4() | 1 << 17;
    rt_run(&f);
    trapped(&f, GP, 0, p_cr4, "CR4.PCIDE with CR3[11:0] not 0: #GP");
    write_cr3(old);
    write_cr4(read_cr4() | 1 << 17);
    ok(read_cr4() >> 17 & 1, "CR4.PCIDE set");
    uint8_t *mine = page_alloc(), *theirs = page_alloc(), *third = page_alloc();
    *(uint64_t *)mine = 1;
    *(uint64_t *)theirs = 2;
    *(uint64_t *)third = 3;
    volatile uint64_t *v = (volatile uint64_t *)(VA + 0x70000);
    uint64_t *root = copy_root();
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W);
    uint64_t space_a = old | 1, space_b = (uint64_t)root | 2, noflush = 1ull << 63;
    write_cr3(space_b);
    map((uint64_t)v, (uint64_t)theirs, PTE_P | PTE_W);
    is(read_cr3(), space_b, "CR3 reads back with PCID");
    bool right = true;
    for (unsigned i = 0; i < 100; i++) {
        write_cr3((i & 1 ? space_b : space_a) | (i > 4 ? noflush : 0));
        right &= *v == (i & 1 ? 2 : 1);
    }
    ok(right, "100 switches with two PCIDs, without flush");
    is(read_cr3() >> 63, 0, "bit 63 is not stored");
    /* A flush of one PCID by a CR3 write without bit 63. */
    write_cr3(space_a | noflush);
    map((uint64_t)v, (uint64_t)third, PTE_P | PTE_W);
    write_cr3(space_a);
    is(*v, 3, "a CR3 write without bit 63 flushes that PCID");
    /* INVLPG: the current PCID. */
    map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W);
    invlpg((uint64_t)v);
    is(*v, 1, "INVLPG works in the current PCID");
    if (!HAS_INVPCID()) {
        skip("INVPCID", "not in CPUID");
    } else {
        /* SDM vol. 2A, INVPCID: 0 one address, 1 one PCID, 2 all with globals, 3 all but globals. */
        static struct {
            uint64_t pcid, address;
        } descriptor;
        for (uint64_t type = 0; type < 4; type++) {
            static const char *const names[] = {"INVPCID type 0, another PCID",
                                                "INVPCID type 1, another PCID", "INVPCID type 2",
                                                "INVPCID type 3"};
            write_cr3(space_a);
            map((uint64_t)v, (uint64_t)mine, PTE_P | PTE_W | (type == 2 ? PTE_G : 0));
            invlpg((uint64_t)v);
            uint64_t before = *v;
            uint64_t *entry = pte_of((uint64_t)v, 1);
            write_cr3(space_b | noflush);
            *entry =
                (uint64_t)third | PTE_P | PTE_W; /* behind the back of PCID 1; the table is identity-mapped */
            descriptor.pcid = type < 2 ? 1 : 0;
            descriptor.address = type == 0 ? (uint64_t)v : 0;
            f = rt_kernel(p_invpcid);
            f.rax = type;
            f.rbx = (uint64_t)&descriptor;
            rt_run(&f);
            ok(rt_done(f, p_invpcid), names[type]);
            write_cr3(space_a | noflush);
            ok(before == 1 && *v == 3, "  the translation is gone");
        }
        f = rt_kernel(p_invpcid);
        f.rax = 4;
        f.rbx = (uint64_t)&descriptor;
        rt_run(&f);
        trapped(&f, GP, 0, p_invpcid, "INVPCID type 4: #GP");
        descriptor.pcid = 0x1000;
        f = rt_kernel(p_invpcid);
        f.rbx = (uint64_t)&descriptor;
        rt_run(&f);
        trapped(&f, GP, 0, p_invpcid, "INVPCID with reserved bits: #GP");
        descriptor.pcid = 1;
        descriptor.address = 0x800000000000;
        f = rt_kernel(p_invpcid);
        f.rbx = (uint64_t)&descriptor;
        rt_run(&f);
        trapped(&f, GP, 0, p_invpcid, "INVPCID type 0 of a non-canonical address: #GP");
        f = rt_user(p_invpcid);
        f.rbx = rt_alias(&descriptor);
        rt_run(&f);
        trapped(&f, GP, 0, p_invpcid, "INVPCID at CPL 3: #GP");
    }
    write_cr3(old);
    write_cr4(read_cr4() & ~(1ull << 17));
    f = rt_kernel(p_cr3_bit63);
    f.rbx = old | noflush;
    rt_run(&f);
    trapped(&f, GP, 0, p_cr3_bit63, "CR3 bit 63 without PCIDE: #GP");
}

static void many(void)
{
    /* More pages than any TLB has entries, twice, with each page's own value. */
    enum { PAGES = 1536 };
    uint64_t base = VA + 0x1000000;
    uint8_t *frames = page_alloc_n(16);
    for (unsigned i = 0; i < PAGES; i++) {
        map(base + i * 4096ul, (uint64_t)frames + (i % 16) * 4096ul, PTE_P | PTE_W);
    }
    bool right = true;
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < PAGES; i++) {
            *(volatile uint64_t *)(base + i * 4096ul + 8 * (i / 16)) = i * 3 + round;
        }
        for (unsigned i = 0; i < PAGES; i++) {
            right &= *(volatile uint64_t *)(base + i * 4096ul + 8 * (i / 16)) == i * 3 + round;
        }
    }
    ok(right, "1,536 pages, written and read back twice");
}

void test_main(void)
{
    frame = page_alloc();
    permissions();
    execute();
    smap();
    accessed_dirty();
    reserved();
    large();
    crossing();
    aliases();
    address_spaces();
    pcid();
    many();
}
