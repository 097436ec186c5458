/*
 * cpu/x86/walk.c against a naive walker: random page tables, modes, rights and accesses; results, faults and
 * every byte of RAM are compared. Directed cases follow.
 */
#include "tests/unit/x86_cpu.h"

#include <pthread.h>

#define RAM_BYTES  (1 * MiB)
#define POOL_PAGES 12 /* tables lie here, often on top of each other */
#define CASES      150000

/* --- the reference: one description of each mode, no short cuts, plain reads and writes --- */

struct level {
    unsigned shift, bits;
    bool may_be_large;
    bool is_pdpte; /* PAE's: no rights, no A bit */
};

struct format {
    const char *name;
    unsigned entry_bytes, levels;
    struct level level[4];
};

static const struct format formats[] = {
    {"32-bit", 4, 2, {{22, 10, true, false}, {12, 10, false, false}}},
    {"PAE", 8, 3, {{30, 2, false, true}, {21, 9, true, false}, {12, 9, false, false}}},
    {"4-level",
     8,
     4,
     {{39, 9, false, false}, {30, 9, true, false}, {21, 9, true, false}, {12, 9, false, false}}},
};

static const struct format *format_of(const struct x86_cpu *cpu)
{
    if (!(cpu->s.cr0 & X86_CR0_PG)) {
        return NULL;
    }
    return cpu->s.efer & X86_EFER_LMA ? &formats[2] : cpu->s.cr4 & X86_CR4_PAE ? &formats[1] : &formats[0];
}

struct outcome {
    bool faults;
    uint32_t error;
    struct x86_walk walk;
};

static uint64_t bit_range(unsigned high, unsigned low) /* both included; empty when high < low */
{
    uint64_t mask = 0;
    for (unsigned i = low; i <= high && i < 64; i++) {
        mask |= 1ull << i;
    }
    return mask;
}

/* Tables 4-4 to 4-20 of SDM vol. 3A, row by row. */
static uint64_t reserved_bits(const struct x86_cpu *cpu, const struct format *f, const struct level *l,
                              bool large)
{
    unsigned m = cpu->cpuid.phys_bits;
    if (f == &formats[0]) {
        unsigned m40 = m > 40 ? 40 : m;
        return large ? bit_range(21, m40 - 19) | 1u << 21 : 0;
    }
    uint64_t r = bit_range(f == &formats[1] ? 62 : 51, m);
    if (!(cpu->s.efer & X86_EFER_NXE) || l->is_pdpte) {
        r |= 1ull << 63;
    }
    if (l->is_pdpte) {
        return r | bit_range(2, 1) | bit_range(8, 5);
    }
    if (large) {
        return r | bit_range(l->shift - 1, 13);
    }
    if (l->shift == 39 || (l->shift == 30 && !l->may_be_large)) {
        r |= 1u << 7;
    }
    return r;
}

static struct outcome reference(struct x86_cpu *cpu, uint64_t va, unsigned access)
{
    struct outcome out = {0};
    const struct format *f = format_of(cpu);
    const bool write = access & X86_ACCESS_WRITE, fetch = access & X86_ACCESS_FETCH;
    const bool as_user = access & X86_ACCESS_USER;
    uint32_t error = (write ? 2 : 0) | (as_user ? 4 : 0);
    if (fetch && ((cpu->s.cr4 & X86_CR4_SMEP) || (f != &formats[0] && (cpu->s.efer & X86_EFER_NXE)))) {
        error |= 16;
    }
    if (!f) {
        out.walk = (struct x86_walk){GPA((uint32_t)va), 4096, true, true, true, false, true};
        return out;
    }
    if (f != &formats[2]) {
        va = (uint32_t)va;
    }
    uint64_t table = f == &formats[0]   ? cpu->s.cr3 & 0xfffff000
                     : f == &formats[1] ? cpu->s.cr3 & 0xffffffe0
                                        : cpu->s.cr3 & bit_range(cpu->cpuid.phys_bits - 1, 12);
    bool w = true, u = true, x = true;
    uint64_t slots[4], entry = 0;
    unsigned n;
    bool large = false;
    for (n = 0; n < f->levels; n++) {
        const struct level *l = &f->level[n];
        slots[n] = table + (va >> l->shift & ((1u << l->bits) - 1)) * f->entry_bytes;
        entry = 0;
        if (mem_read(cpu->mem, GPA(slots[n]), &entry, f->entry_bytes) < 0) {
            entry = f->entry_bytes == 4 ? UINT32_MAX : UINT64_MAX;
        }
        out.error = error;
        if (!(entry & 1)) {
            out.faults = true;
            return out;
        }
        large = l->may_be_large && (entry & 0x80) && (f != &formats[0] || (cpu->s.cr4 & X86_CR4_PSE));
        if (entry & reserved_bits(cpu, f, l, large)) {
            out.faults = true;
            out.error |= 1 | 8;
            return out;
        }
        if (!l->is_pdpte) {
            w &= (entry & 2) != 0;
            u &= (entry & 4) != 0;
            x &= f == &formats[0] || !(entry >> 63);
        }
        if (large || n == f->levels - 1) {
            break;
        }
        table = entry & (f == &formats[0] ? 0xfffff000 : bit_range(cpu->cpuid.phys_bits - 1, 12));
    }
    bool ok;
    bool smap_stops = (cpu->s.cr4 & X86_CR4_SMAP) && u &&
                      (!(cpu->s.rflags & X86_AC) || (access & X86_ACCESS_IMPLICIT) || cpu->cpl == 3);
    if (as_user) {
        ok = u && (!write || w) && (!fetch || x);
    } else if (fetch) {
        ok = x && !(u && (cpu->s.cr4 & X86_CR4_SMEP));
    } else {
        ok = !smap_stops && (!write || w || !(cpu->s.cr0 & X86_CR0_WP));
    }
    if (!ok) {
        out.faults = true;
        out.error |= 1;
        return out;
    }
    if (!(access & X86_ACCESS_NO_AD)) {
        for (unsigned i = 0; i <= n; i++) {
            uint64_t e = 0;
            if (f->level[i].is_pdpte || mem_read(cpu->mem, GPA(slots[i]), &e, f->entry_bytes) < 0) {
                continue;
            }
            e |= 0x20 | (write && i == n ? 0x40 : 0);
            assert_int_equal(mem_write(cpu->mem, GPA(slots[i]), &e, f->entry_bytes), 0);
        }
        entry |= write ? 0x40 : 0;
    }
    const struct level *l = &f->level[n];
    uint64_t low = (1ull << l->shift) - 1;
    uint64_t frame;
    if (f == &formats[0]) {
        frame = large ? (entry & 0xffc00000) | (entry >> 13 & 0xff) << 32 : entry & 0xfffff000;
    } else {
        frame = entry & bit_range(cpu->cpuid.phys_bits - 1, l->shift);
    }
    out.walk = (struct x86_walk){GPA(frame | (va & low)),
                                 low + 1,
                                 w,
                                 u,
                                 x,
                                 (entry & 0x100) && (cpu->s.cr4 & X86_CR4_PGE),
                                 entry & 0x40};
    return out;
}

/* --- random cases --- */

static uint64_t seed;

static uint64_t rnd(void)
{
    return unit_random(&seed);
}

static bool chance(unsigned percent)
{
    return rnd() % 100 < percent;
}

static uint64_t random_entry(unsigned entry_bytes, unsigned phys_bits)
{
    uint64_t entry = rnd() % POOL_PAGES << 12;
    if (chance(3)) {
        entry = (rnd() & bit_range(phys_bits - 1, 12)) | RAM_BYTES;
    }
    entry |= chance(95) ? 1 : 0;
    entry |= chance(80) ? 2 : 0;
    entry |= chance(60) ? 4 : 0;
    entry |= rnd() & 0xf78; /* PWT, PCD, A, D, G, ignored ones */
    entry |= chance(15) ? 0x80 : 0;
    if (entry & 0x80 && chance(80)) {
        entry &= ~(uint64_t)0x3fe000;
    }
    if (entry_bytes == 8) {
        entry |= chance(10) ? 1ull << 63 : 0;
        entry |= chance(10) ? rnd() & bit_range(62, 52) : 0;
        entry |= chance(3) ? rnd() & bit_range(51, phys_bits) : 0;
    }
    return entry;
}

static void random_cpu(struct x86_cpu *cpu)
{
    static const unsigned widths[] = {36, 39, 40, 46, 48, 52};
    static const uint64_t cr4_bits[] = {X86_CR4_PSE, X86_CR4_PGE, X86_CR4_SMEP, X86_CR4_SMAP};
    cpu->cpuid.phys_bits = widths[rnd() % ARRAY_SIZE(widths)];
    cpu->s.cr0 = X86_CR0_PE | X86_CR0_PG | (chance(70) ? X86_CR0_WP : 0);
    cpu->s.cr4 = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(cr4_bits); i++) {
        cpu->s.cr4 |= chance(50) ? cr4_bits[i] : 0;
    }
    cpu->s.efer = chance(70) ? X86_EFER_NXE : 0;
    cpu->s.rflags = 2 | (chance(50) ? X86_AC : 0);
    cpu->cpl = chance(50) ? 3 : 0;
    unsigned mode = (unsigned)(rnd() % 16);
    if (mode == 0) {
        cpu->s.cr0 &= ~(uint64_t)X86_CR0_PG;
    } else if (mode >= 4 && mode < 8) {
        cpu->s.cr4 |= X86_CR4_PAE;
    } else if (mode >= 8) {
        cpu->s.cr4 |= X86_CR4_PAE;
        cpu->s.efer |= X86_EFER_LME | X86_EFER_LMA;
    }
    cpu->s.cr3 = rnd() % POOL_PAGES << 12 | (rnd() & 0x18);
    if (format_of(cpu) == &formats[1]) {
        cpu->s.cr3 |= rnd() & 0xfe0;
    }
    if (chance(1)) {
        cpu->s.cr3 |= RAM_BYTES;
    }
}

/* Fills the entries on the way of va, so that walks get far. */
static void random_tables(struct x86_cpu *cpu, uint64_t va)
{
    const struct format *f = format_of(cpu);
    if (!f) {
        return;
    }
    if (f != &formats[2]) {
        va = (uint32_t)va;
    }
    uint64_t table = f == &formats[1] ? cpu->s.cr3 & 0xffffffe0 : cpu->s.cr3 & 0xfffff000;
    for (unsigned n = 0; n < f->levels; n++) {
        const struct level *l = &f->level[n];
        uint64_t entry = random_entry(f->entry_bytes, cpu->cpuid.phys_bits);
        if (l->is_pdpte) {
            entry &= chance(97) ? ~(bit_range(2, 1) | bit_range(8, 5)) : UINT64_MAX;
            entry &= chance(97) ? ~bit_range(62, 52) : UINT64_MAX;
            entry &= chance(80) ? ~bit_range(63, 63) : UINT64_MAX;
        } else if (f == &formats[1] && chance(80)) {
            entry &= ~bit_range(62, 52);
        }
        uint64_t slot = table + (va >> l->shift & ((1u << l->bits) - 1)) * f->entry_bytes;
        if (mem_write(cpu->mem, GPA(slot), &entry, f->entry_bytes) < 0) {
            return;
        }
        table = entry & 0xfffff000;
    }
}

static uint64_t random_va(void)
{
    uint64_t va = rnd();
    return (uint64_t)((int64_t)(va << 16) >> 16);
}

static void test_random(void **state)
{
    static const unsigned kinds[] = {X86_ACCESS_READ, X86_ACCESS_WRITE, X86_ACCESS_FETCH};
    struct mem *mem;
    struct x86_cpu cpu;
    unsigned faults = 0, large = 0;
    assert_int_equal(mem_new(RAM_BYTES, &mem, NULL), 0);
    cpu_init(&cpu, mem);
    uint8_t *ram = mem_ram_base(mem);
    const size_t pool_bytes = POOL_PAGES * 4096;
    uint8_t *before = malloc(pool_bytes), *expected = malloc(pool_bytes);
    assert_non_null(before);
    assert_non_null(expected);
    seed = unit_seed();
    for (unsigned i = 0; i < CASES; i++) {
        random_cpu(&cpu);
        uint64_t va = random_va();
        random_tables(&cpu, va);
        unsigned access = kinds[rnd() % 3];
        access |= chance(50) ? X86_ACCESS_USER : chance(30) ? X86_ACCESS_IMPLICIT : 0;
        access |= chance(10) ? X86_ACCESS_NO_AD : 0;

        memcpy(before, ram, pool_bytes);
        struct outcome want = reference(&cpu, va, access);
        memcpy(expected, ram, pool_bytes);
        memcpy(ram, before, pool_bytes);

        struct x86_walk got = {0};
        bool faulted = x86_walk(&cpu, va, access, &got) < 0;
        bool same = faulted == want.faults && memcmp(ram, expected, pool_bytes) == 0;
        if (same && faulted) {
            uint64_t cr2 = cpu.s.efer & X86_EFER_LMA ? va : (uint32_t)va;
            same = cpu.exc.vector == X86_PF_EXC && cpu.exc.has_error && cpu.exc.error == want.error &&
                   cpu.exc.cr2 == cr2;
        } else if (same) {
            same = got.gpa.v == want.walk.gpa.v && got.page_bytes == want.walk.page_bytes &&
                   got.writable == want.walk.writable && got.user == want.walk.user &&
                   got.executable == want.walk.executable && got.global == want.walk.global &&
                   got.dirty == want.walk.dirty;
        }
        if (!same) {
            fail_msg("case %u: va %#llx access %#x cr0 %#llx cr3 %#llx cr4 %#llx efer %#llx phys_bits %u: %s "
                     "%#x gpa %#llx, "
                     "expected %s %#x gpa %#llx",
                     i, (unsigned long long)va, access, (unsigned long long)cpu.s.cr0,
                     (unsigned long long)cpu.s.cr3, (unsigned long long)cpu.s.cr4,
                     (unsigned long long)cpu.s.efer, cpu.cpuid.phys_bits, faulted ? "fault" : "ok",
                     cpu.exc.error, (unsigned long long)got.gpa.v, want.faults ? "fault" : "ok", want.error,
                     (unsigned long long)want.walk.gpa.v);
        }
        faults += faulted;
        large += !faulted && got.page_bytes > 4096;
    }
    /* The mix must reach all of it. */
    assert_in_range(faults, CASES / 5, CASES * 4 / 5);
    assert_true(large > CASES / 50);
    free(before);
    free(expected);
    mem_free(mem);
}

/* --- directed cases --- */

/* Identity-maps the first 2 MiB as user pages, writable: PML4 at 0x1000, PDPT 0x2000, PD 0x3000, PT 0x4000.
 */
static uint64_t *map_4level(struct mem *mem)
{
    uint64_t *ram = (uint64_t *)(void *)mem_ram_base(mem);
    ram[0x1000 / 8] = 0x2007;
    ram[0x2000 / 8] = 0x3007;
    ram[0x3000 / 8] = 0x4007;
    uint64_t *pt = &ram[0x4000 / 8];
    for (unsigned i = 0; i < 512; i++) {
        pt[i] = (uint64_t)i << 12 | 7;
    }
    return pt;
}

static void test_rights(void **state)
{
    struct mem *mem;
    struct x86_cpu cpu;
    struct x86_walk w;
    assert_int_equal(mem_new(RAM_BYTES, &mem, NULL), 0);
    cpu_init(&cpu, mem);
    cpu_enter_long_mode(&cpu, 0x1000);
    uint64_t *pt = map_4level(mem);

    /* A read sets A on every level, a write D on the last. */
    assert_int_equal(x86_walk(&cpu, 0x5123, X86_ACCESS_READ, &w), 0);
    assert_int_equal(w.gpa.v, 0x5123);
    assert_false(w.dirty);
    assert_int_equal(pt[5], 0x5027);
    assert_int_equal(*(uint64_t *)mem_ram_ptr(mem, GPA(0x1000), NULL), 0x2027);
    assert_int_equal(x86_walk(&cpu, 0x5123, X86_ACCESS_WRITE, &w), 0);
    assert_true(w.dirty);
    assert_int_equal(pt[5], 0x5067);

    /* SMAP: a user page needs AC, and an explicit access from below CPL 3. */
    cpu.s.cr4 |= X86_CR4_SMAP;
    expect_exception(&cpu, x86_walk(&cpu, 0x5000, X86_ACCESS_READ, &w), X86_PF_EXC, X86_PF_P);
    assert_int_equal(cpu.exc.cr2, 0x5000);
    cpu.s.rflags |= X86_AC;
    assert_int_equal(x86_walk(&cpu, 0x5000, X86_ACCESS_READ, &w), 0);
    expect_exception(&cpu, x86_walk(&cpu, 0x5000, X86_ACCESS_WRITE | X86_ACCESS_IMPLICIT, &w), X86_PF_EXC,
                     X86_PF_P | X86_PF_W);
    cpu.cpl = 3;
    expect_exception(&cpu, x86_walk(&cpu, 0x5000, X86_ACCESS_READ, &w), X86_PF_EXC, X86_PF_P);
    assert_int_equal(x86_walk(&cpu, 0x5000, X86_ACCESS_READ | X86_ACCESS_USER, &w), 0);
    cpu.cpl = 0;

    /* SMEP and NX. */
    assert_int_equal(x86_walk(&cpu, 0x5000, X86_ACCESS_FETCH, &w), 0);
    cpu.s.cr4 |= X86_CR4_SMEP;
    expect_exception(&cpu, x86_walk(&cpu, 0x5000, X86_ACCESS_FETCH, &w), X86_PF_EXC, X86_PF_P | X86_PF_I);
    pt[6] |= 1ull << 63;
    expect_exception(&cpu, x86_walk(&cpu, 0x6000, X86_ACCESS_FETCH | X86_ACCESS_USER, &w), X86_PF_EXC,
                     X86_PF_P | X86_PF_I | X86_PF_U);
    cpu.s.efer &= ~(uint64_t)X86_EFER_NXE;
    expect_exception(&cpu, x86_walk(&cpu, 0x6000, X86_ACCESS_READ, &w), X86_PF_EXC, X86_PF_P | X86_PF_RSVD);
    cpu.s.efer |= X86_EFER_NXE;

    /* WP. */
    pt[7] = 0x7001;
    expect_exception(&cpu, x86_walk(&cpu, 0x7000, X86_ACCESS_WRITE, &w), X86_PF_EXC, X86_PF_P | X86_PF_W);
    assert_int_equal(pt[7], 0x7001);
    cpu.s.cr0 &= ~(uint64_t)X86_CR0_WP;
    assert_int_equal(x86_walk(&cpu, 0x7000, X86_ACCESS_WRITE, &w), 0);
    assert_false(w.writable);
    expect_exception(&cpu, x86_walk(&cpu, 0x7000, X86_ACCESS_READ | X86_ACCESS_USER, &w), X86_PF_EXC,
                     X86_PF_P | X86_PF_U);

    /* Not canonical, not present, tables on nothing. */
    expect_exception(&cpu, x86_walk(&cpu, 1ull << 47, X86_ACCESS_READ, &w), X86_GP, 0);
    expect_exception(&cpu, x86_walk(&cpu, 1ull << 30, X86_ACCESS_WRITE, &w), X86_PF_EXC, X86_PF_W);
    cpu.s.cr3 = 0x40000000;
    expect_exception(&cpu, x86_walk(&cpu, 0x5000, X86_ACCESS_READ, &w), X86_PF_EXC, X86_PF_P | X86_PF_RSVD);
    mem_free(mem);
}

static void test_large_pages(void **state)
{
    struct mem *mem;
    struct x86_cpu cpu;
    struct x86_walk w;
    assert_int_equal(mem_new(RAM_BYTES, &mem, NULL), 0);
    cpu_init(&cpu, mem);
    cpu_enter_long_mode(&cpu, 0x1000);
    map_4level(mem);
    uint64_t *pdpt = mem_ram_ptr(mem, GPA(0x2000), NULL);
    cpu.cpuid.phys_bits = 40;

    pdpt[1] = 0x4000000187; /* 1 GiB at 256 GiB, global */
    assert_int_equal(x86_walk(&cpu, 0x52345678, X86_ACCESS_READ, &w), 0);
    assert_int_equal(w.gpa.v, 0x4012345678);
    assert_int_equal(w.page_bytes, GiB);
    assert_true(w.global);
    cpu.cpuid.fe1_edx &= ~BIT(26);
    expect_exception(&cpu, x86_walk(&cpu, 0x52345678, X86_ACCESS_READ, &w), X86_PF_EXC,
                     X86_PF_P | X86_PF_RSVD);

    /* PSE-36: bits 20:13 of a 4 MiB entry are address bits 39:32. */
    uint32_t *pd = mem_ram_ptr(mem, GPA(0x8000), NULL);
    pd[1] = 0x00c00000 | 0xab << 13 | 0x87;
    cpu.s.efer = 0;
    cpu.s.cr4 = X86_CR4_PSE;
    cpu.s.cr3 = 0x8000;
    assert_int_equal(x86_walk(&cpu, 0x00412345, X86_ACCESS_READ, &w), 0);
    assert_int_equal(w.gpa.v, 0xab00c12345);
    assert_int_equal(w.page_bytes, 4 * MiB);
    cpu.cpuid.phys_bits = 36;
    expect_exception(&cpu, x86_walk(&cpu, 0x00412345, X86_ACCESS_READ, &w), X86_PF_EXC,
                     X86_PF_P | X86_PF_RSVD);
    mem_free(mem);
}

/* One entry that serves all four levels: setting A for the first makes the copies of the others stale. */
static void test_self_map(void **state)
{
    struct mem *mem;
    struct x86_cpu cpu;
    struct x86_walk w;
    assert_int_equal(mem_new(RAM_BYTES, &mem, NULL), 0);
    cpu_init(&cpu, mem);
    cpu_enter_long_mode(&cpu, 0x1000);
    uint64_t *entry = mem_ram_ptr(mem, GPA(0x1000), NULL);
    *entry = 0x1003;
    assert_int_equal(x86_walk(&cpu, 0x20, X86_ACCESS_WRITE, &w), 0);
    assert_int_equal(w.gpa.v, 0x1020);
    assert_true(w.dirty);
    assert_int_equal(*entry, 0x1063);
    mem_free(mem);
}

/* A vCPU sets A and D of an entry while another thread changes other bits: nothing may be lost. */
struct race {
    struct x86_cpu cpu;
    uint64_t *pte;
};

static void *change_entry(void *opaque)
{
    struct race *race = opaque;
    for (unsigned i = 0; i < 20000; i++) {
        /* Software clears A and D, and counts in the ignored bits 62:52. */
        uint64_t old = __atomic_load_n(race->pte, __ATOMIC_RELAXED), new;
        do {
            new = (old & ~0x60ull) + (1ull << 52);
        } while (
            !__atomic_compare_exchange_n(race->pte, &old, new, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    }
    return NULL;
}

static void test_race(void **state)
{
    struct mem *mem;
    struct race race;
    assert_int_equal(mem_new(RAM_BYTES, &mem, NULL), 0);
    cpu_init(&race.cpu, mem);
    cpu_enter_long_mode(&race.cpu, 0x1000);
    race.pte = &map_4level(mem)[5];
    race.cpu.s.efer |= X86_EFER_NXE;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, change_entry, &race), 0);
    for (unsigned i = 0; i < 20000; i++) {
        struct x86_walk w;
        assert_int_equal(x86_walk(&race.cpu, 0x5000, X86_ACCESS_WRITE, &w), 0);
        assert_int_equal(w.gpa.v, 0x5000);
    }
    pthread_join(thread, NULL);
    /* The count, less what ran over into bit 63. */
    assert_int_equal(*race.pte >> 52 & 0x7ff, 20000 % 2048);
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),   cmocka_unit_test(test_rights), cmocka_unit_test(test_large_pages),
        cmocka_unit_test(test_self_map), cmocka_unit_test(test_race),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
