/*
 * The software TLB, address-space numbers, and code contexts. Compiled for general registers only.
 *
 * An entry's tag carries a 12-bit address-space number (asid), so that flushing an address space means taking
 * a new number. PCIDs map to asids; supervisor accesses with SMAP in force use a number of their own
 * (kernel_asid), because all they can reach is supervisor pages, which systems map globally: it changes on a
 * CR3 load only when a non-global page was cached under it.
 *
 * A context (ctx) is to code what an asid is to data: links across pages and jump-cache entries are valid for
 * the one context they were made in. asid_ctx[] holds the contexts of user code, kernel_ctx that of
 * supervisor code.
 */
#include "cpu/bt/bt_int.h"

static uint64_t mix64(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static uint64_t new_ctx(struct bt_vcpu *v)
{
    return mix64(++v->next_ctx * 0x9e3779b97f4a7c15ull);
}

static void wipe(struct bt_vcpu *v)
{
    bt_sites_empty(v);
    for (unsigned m = 0; m < BT_MMU_COUNT; m++) {
        for (unsigned i = 0; i < 1u << v->tlb_bits; i++) {
            v->tlb[m].read[i].tag = 0;
            v->tlb[m].write[i].tag = 0;
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(v->pcid_asid); i++) {
        v->pcid_asid[i] = 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(v->large_bloom); i++) {
        v->large_bloom[i] = v->huge_bloom[i] = 0;
    }
    v->next_asid = 1;
}

static uint16_t current_pcid(const struct bt_vcpu *v)
{
    return v->cpu.s.cr4 & X86_CR4_PCIDE ? (uint16_t)(v->cpu.s.cr3 & 0xfff) : 0;
}

/* A number that no cached entry carries. When they run out, everything is dropped and counting starts over.
 */
static uint16_t new_asid(struct bt_vcpu *v)
{
    if (v->next_asid >= 4096) {
        wipe(v);
        v->kernel_asid = v->next_asid++;
        v->asid[BT_MMU_KERNEL] = v->kernel_asid;
    }
    uint16_t asid = v->next_asid++;
    v->asid_ctx[asid] = new_ctx(v);
    return asid;
}

static void use_asid(struct bt_vcpu *v, bool fresh)
{
    uint16_t pcid = current_pcid(v);
    if (fresh || !v->pcid_asid[pcid]) {
        uint16_t asid = new_asid(v);
        v->pcid_asid[pcid] = asid;
    }
    v->cur_asid = v->pcid_asid[pcid];
    if (v->asid[BT_MMU_USER] != v->cur_asid) {
        bt_sites_empty(v);
    }
    v->asid[BT_MMU_USER] = v->asid[BT_MMU_KERNEL_AC] = v->cur_asid;
}

static void new_kernel_asid(struct bt_vcpu *v)
{
    v->kernel_asid = new_asid(v);
    v->asid[BT_MMU_KERNEL] = v->kernel_asid;
    v->k_nonglobal = false;
    if (!v->pcid_asid[current_pcid(v)]) { /* numbers ran out just now */
        use_asid(v, true);
    }
}

static void drop_kernel_nonglobal(struct bt_vcpu *v, bool global_too)
{
    if (global_too || v->k_nonglobal) {
        new_kernel_asid(v);
    }
    if (global_too || v->k_code_nonglobal) {
        v->kernel_ctx = new_ctx(v);
        v->k_code_nonglobal = false;
    }
}

static void op_tlb_flush(struct x86_cpu *cpu, bool keep_global)
{
    struct bt_vcpu *v = bt_of(cpu);
    v->counters[BT_C_TLB_FLUSH]++;
    for (unsigned i = 0; i < ARRAY_SIZE(v->pcid_asid); i++) {
        v->pcid_asid[i] = 0;
    }
    use_asid(v, true);
    drop_kernel_nonglobal(v, !keep_global);
}

static void op_tlb_switch(struct x86_cpu *cpu, bool flush)
{
    struct bt_vcpu *v = bt_of(cpu);
    v->counters[BT_C_TLB_SWITCH]++;
    use_asid(v, flush);
    drop_kernel_nonglobal(v, false);
}

static void op_tlb_flush_pcid(struct x86_cpu *cpu, uint16_t pcid)
{
    struct bt_vcpu *v = bt_of(cpu);
    v->pcid_asid[pcid & 0xfff] = 0;
    if (pcid == current_pcid(v)) {
        use_asid(v, true);
        drop_kernel_nonglobal(v, false);
    }
}

static unsigned bloom_bit(uint64_t region)
{
    return (unsigned)(mix64(region) & 1023);
}

static bool bloom_has(const uint64_t *bloom, uint64_t region)
{
    unsigned bit = bloom_bit(region);
    return bloom[bit / 64] >> (bit % 64) & 1;
}

static void bloom_add(uint64_t *bloom, uint64_t region)
{
    unsigned bit = bloom_bit(region);
    bloom[bit / 64] |= 1ull << (bit % 64);
}

static void drop_index(struct bt_vcpu *v, uint64_t va)
{
    unsigned i = (unsigned)(va >> MEM_PAGE_SHIFT) & ((1u << v->tlb_bits) - 1);
    for (unsigned m = 0; m < BT_MMU_COUNT; m++) {
        v->tlb[m].read[i].tag = 0;
        v->tlb[m].write[i].tag = 0;
    }
}

static void op_tlb_flush_page(struct x86_cpu *cpu, uint64_t va, uint16_t pcid)
{
    struct bt_vcpu *v = bt_of(cpu);
    v->counters[BT_C_TLB_PAGE]++;
    if (pcid != current_pcid(v)) {
        v->pcid_asid[pcid & 0xfff] = 0;
        return;
    }
    if (bloom_has(v->huge_bloom, va >> 30)) {
        use_asid(v, true);
        drop_kernel_nonglobal(v, true);
        return;
    }
    if (bloom_has(v->large_bloom, va >> 21)) {
        uint64_t base = va & ~(2 * MiB - 1);
        bt_sites_empty(v);
        for (unsigned i = 0; i < 512; i++) {
            drop_index(v, base + i * (uint64_t)MEM_PAGE_SIZE);
        }
    } else {
        drop_index(v, va);
        if (v->site_pages[bt_site_page_slot(va)]) {
            bt_sites_empty(v);
        }
    }
    unsigned bit = (unsigned)(mix64(va >> 21) & 0xffff);
    if (v->code_bloom[bit / 64] >> (bit % 64) & 1) {
        v->asid_ctx[v->cur_asid] = new_ctx(v);
        v->kernel_ctx = new_ctx(v);
    }
}

void bt_note_code_page(struct bt_vcpu *v, uint64_t va, bool global)
{
    unsigned bit = (unsigned)(mix64(va >> 21) & 0xffff);
    v->code_bloom[bit / 64] |= 1ull << (bit % 64);
    if (!global && v->cpu.cpl != 3) {
        v->k_code_nonglobal = true;
    }
}

static uint64_t op_host_tsc(struct x86_cpu *cpu)
{
    (void)cpu;
    return __builtin_ia32_rdtsc();
}

void bt_tlb_forget_page(struct bt_vcpu *v, uint64_t ram_page)
{
    uint32_t *slots = v->write_slots[ram_page];
    bool many = slots[1] == BT_WRITE_SLOT_MANY;
    for (unsigned i = 0; i < 2; i++) {
        if (slots[i] && !many) {
            uint32_t at = slots[i] - BT_WRITE_SLOT;
            if (at >> 16 == BT_MMU_USER) {
                bt_sites_empty(v);
            }
            v->tlb[at >> 16].write[at & 0xffff].tag = 0;
        }
        slots[i] = 0;
    }
    if (!many) {
        return;
    }
    bt_sites_empty(v);
    uint64_t host = (uint64_t)mem_ram_base(v->cpu.mem) + ram_page * MEM_PAGE_SIZE;
    for (unsigned m = 0; m < BT_MMU_COUNT; m++) {
        for (unsigned i = 0; i < 1u << v->tlb_bits; i++) {
            struct bt_tlb_entry *t = &v->tlb[m].write[i];
            if (t->tag && (t->tag & ~0xfffull) + t->addend == host) {
                t->tag = 0;
            }
        }
    }
}

void bt_tlb_forget_writes(struct bt_vcpu *v)
{
    bt_sites_empty(v);
    for (unsigned m = 0; m < BT_MMU_COUNT; m++) {
        for (unsigned i = 0; i < 1u << v->tlb_bits; i++) {
            v->tlb[m].write[i].tag = 0;
        }
    }
}

/* Doubles the tables when 64Ki misses come within 25 ms of host time (taking the TSC for 2 GHz: a heuristic
 * only). */
static void maybe_grow(struct bt_vcpu *v)
{
    if (++v->misses_window < 65536) {
        return;
    }
    uint64_t now = __builtin_ia32_rdtsc();
    if (v->tlb_bits < BT_TLB_BITS_MAX && now - v->tlb_since_tsc < 50000000) {
        wipe(v);
        v->tlb_bits++;
        wipe(v);
        v->tlb_mask = ((1ull << v->tlb_bits) - 1) << 4;
        v->kernel_asid = new_asid(v);
        v->asid[BT_MMU_KERNEL] = v->kernel_asid;
        uint64_t ctx = v->asid_ctx[v->cur_asid];
        use_asid(v, true);
        v->asid_ctx[v->cur_asid] = ctx; /* code did not move */
        v->counters[BT_C_TLB_GROW]++;
    }
    v->misses_window = 0;
    v->tlb_since_tsc = now;
}

unsigned bt_mmu_index(const struct bt_vcpu *v)
{
    return v->mode & BT_MODE_USER ? BT_MMU_USER : v->mode & BT_MODE_AC ? BT_MMU_KERNEL_AC : BT_MMU_KERNEL;
}

/* Whether the write entry that a slot stands for is (still) one for this RAM page. */
static bool slot_holds(const struct bt_vcpu *v, uint32_t slot, uint64_t ram_page)
{
    uint32_t at = slot - BT_WRITE_SLOT;
    const struct bt_tlb_entry *t = &v->tlb[at >> 16].write[at & 0xffff];
    return t->tag &&
           (t->tag & ~0xfffull) + t->addend == (uint64_t)mem_ram_base(v->cpu.mem) + ram_page * MEM_PAGE_SIZE;
}

/* The entry is in the TLB; `slot` is where. */
static void note_write_entry(struct bt_vcpu *v, uint64_t ram_page, uint32_t slot)
{
    uint32_t *slots = v->write_slots[ram_page];
    if (slots[1] == BT_WRITE_SLOT_MANY || slots[0] == slot || slots[1] == slot) {
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (slots[i] == 0 || !slot_holds(v, slots[i], ram_page)) {
            if (slots[i] && (slots[i] - BT_WRITE_SLOT) >> 16 == BT_MMU_USER) {
                bt_sites_empty(v); /* one may have outlived the entry */
            }
            slots[i] = slot;
            return;
        }
    }
    slots[1] = BT_WRITE_SLOT_MANY;
}

/* Walks, and enters what may be cached. Host address, or NULL: fault (cpu.exc), or not RAM (*ret_mmio). A
 * page that holds code gets no write entry; *ret_code tells. */
static uint8_t *fill(struct bt_vcpu *v, unsigned mmu, uint64_t va, unsigned access, bool *ret_mmio,
                     gpa_t *ret_gpa, uint64_t *ret_ram, bool *ret_code)
{
    struct x86_walk w;
    *ret_mmio = *ret_code = false;
    if (x86_walk(&v->cpu, va, access, &w) < 0) {
        return NULL;
    }
    *ret_gpa = w.gpa;
    uint64_t ram = mem_ram_offset(v->cpu.mem, w.gpa);
    if (ram == UINT64_MAX) {
        *ret_mmio = true;
        return NULL;
    }
    *ret_ram = ram;
    uint8_t *host = mem_ram_base(v->cpu.mem) + ram;
    maybe_grow(v);
    if (w.page_bytes >= GiB) {
        bloom_add(v->huge_bloom, va >> 30);
    } else if (w.page_bytes > MEM_PAGE_SIZE) {
        bloom_add(v->large_bloom, va >> 21);
    }
    if (mmu == BT_MMU_KERNEL && !w.global) {
        v->k_nonglobal = true;
    }
    unsigned i = (unsigned)(va >> MEM_PAGE_SHIFT) & ((1u << v->tlb_bits) - 1);
    uint64_t page = va & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    struct bt_tlb_entry entry = {.tag = page | v->asid[mmu], .addend = (uint64_t)host - va};
    v->tlb[mmu].read[i] = entry;
    if (access & X86_ACCESS_WRITE) {
        uint64_t ram_page = ram / MEM_PAGE_SIZE;
        if (bt_write_claim(v, ram_page)) {
            *ret_code = true;
        } else {
            v->tlb[mmu].write[i] = entry;
            note_write_entry(v, ram_page, BT_WRITE_SLOT + (mmu << 16) + i);
        }
    }
    return host;
}

/* Host address of a byte of RAM that may be accessed without more ado, or NULL. */
static uint8_t *plain_ram(struct bt_vcpu *v, unsigned mmu, uint64_t va, unsigned access)
{
    unsigned i = (unsigned)(va >> MEM_PAGE_SHIFT) & ((1u << v->tlb_bits) - 1);
    const struct bt_tlb_entry *t = access & X86_ACCESS_WRITE ? &v->tlb[mmu].write[i] : &v->tlb[mmu].read[i];
    if (t->tag == ((va & ~(uint64_t)(MEM_PAGE_SIZE - 1)) | v->asid[mmu])) {
        return (uint8_t *)(va + t->addend); /* NOLINT(performance-no-int-to-ptr) */
    }
    bool mmio, code;
    gpa_t gpa;
    uint64_t ram;
    uint8_t *host = fill(v, mmu, va, access, &mmio, &gpa, &ram, &code);
    return host && code ? NULL : host;
}

/*
 * An access across two pages. Where these are neighbours in RAM, too, it is one access there; a load can have
 * a copy of the bytes, as long as nothing else uses the address. BT_SLOW: neither, or a page that faults or
 * is not plain RAM.
 */
static int miss_crossing(struct bt_vcpu *v, unsigned mmu, uint64_t va, unsigned size, unsigned access,
                         bool group)
{
    uint64_t second = (va | (MEM_PAGE_SIZE - 1)) + 1;
    if (v->mode & BT_MODE_CODE64 ? !x86_is_canonical(va + size - 1) : second > UINT32_MAX) {
        return BT_SLOW;
    }
    uint8_t *low = plain_ram(v, mmu, va, access), *high = low ? plain_ram(v, mmu, second, access) : NULL;
    if (!high) {
        return BT_SLOW;
    }
    unsigned in_first = (unsigned)(second - va);
    if (low + in_first == high) {
        v->tmp[3] = (uint64_t)low;
        return BT_NEXT;
    }
    if ((access & X86_ACCESS_WRITE) || group || size > 64) {
        return BT_SLOW;
    }
    uint8_t *copy = v->crossing + va % 64; /* aligned as the operand is */
    for (unsigned i = 0; i < size; i++) {
        copy[i] = i < in_first ? low[i] : high[i - in_first];
    }
    v->tmp[3] = (uint64_t)copy;
    return BT_NEXT;
}

static int miss(struct bt_vcpu *v, uint64_t va, uint32_t info)
{
    unsigned size = info & 0x7fff, mmu = info >> 16 & 3;
    bool write = (info & 0x8000) != 0;
    int r = BT_NEXT;
    v->counters[BT_C_TLB_MISS]++;
    if (info & 0x80000) { /* what the mask leaves out does not fault */
        return BT_SLOW;
    }
    bool misaligned = (info & 0x100000) && va % (size == 512 ? 16 : size) != 0; /* FXSAVE: 16 */
    if (misaligned && size != 512) {
        x86_raise_error(&v->cpu, X86_GP, 0);
        return BT_RAISE;
    }
    if ((v->mode & BT_MODE_CODE64) && !x86_is_canonical(va)) {
        x86_raise_error(&v->cpu, info & 0x40000 ? X86_SS_EXC : X86_GP, 0);
        return info & 0x200000 ? BT_NOGROUP : BT_RAISE;
    }
    if (misaligned) {
        x86_raise_error(&v->cpu, X86_GP, 0);
        return BT_RAISE;
    }
    bool mmio, code, group = (info & 0x200000) != 0;
    unsigned access =
        (write ? X86_ACCESS_WRITE : X86_ACCESS_READ) | (mmu == BT_MMU_USER ? X86_ACCESS_USER : 0);
    if ((va & (MEM_PAGE_SIZE - 1)) + size > MEM_PAGE_SIZE) {
        r = miss_crossing(v, mmu, va, size, access, group);
        return r == BT_SLOW && group ? BT_NOGROUP : r;
    }
    gpa_t gpa;
    uint64_t ram = 0;
    uint8_t *host = fill(v, mmu, va, access, &mmio, &gpa, &ram, &code);
    if (!host) {
        return group ? BT_NOGROUP : mmio ? BT_SLOW : BT_RAISE;
    }
    if (code && (bt_code_overlaps(v, ram, size) || bt_code_overlaps_others(v, ram, size))) {
        return group ? BT_NOGROUP : BT_SLOW;
    }
    v->tmp[3] = (uint64_t)host;
    if (atomic_load_explicit(&v->pending, memory_order_relaxed)) {
        bt_unlink_current(v, v->site);
    }
    return r;
}

int bt_tlb_miss(struct bt_vcpu *v, uint64_t va, uint32_t info)
{
    int r = miss(v, va, info);
    if ((info & BT_INFO_POLY) || ((info & BT_INFO_SITE) && r == BT_NOGROUP)) {
        bt_site_refused(v, (info & BT_INFO_POLY) != 0);
    }
    if (r == BT_RAISE && (info & 0x400000)) {
        bt_fpu_fault(v);
    }
    return r;
}

/* A function is about to write somewhere in this page. */
static void write_code_page(struct bt_vcpu *v, uint64_t ram)
{
    uint64_t page = align_down(ram, MEM_PAGE_SIZE);
    bt_code_written(v, page, MEM_PAGE_SIZE);
    bt_fpu_save(v);
    bt_code_notify(v->engine, v, page, MEM_PAGE_SIZE);
}

static void *op_translate(struct x86_cpu *cpu, uint64_t va, unsigned access, bool *ret_mmio, gpa_t *ret_gpa)
{
    struct bt_vcpu *v = bt_of(cpu);
    bool write = (access & X86_ACCESS_WRITE) != 0;
    if ((access & (X86_ACCESS_IMPLICIT | X86_ACCESS_FETCH | X86_ACCESS_NO_AD)) ||
        !(access & X86_ACCESS_USER) != !(v->mode & BT_MODE_USER)) {
        struct x86_walk w;
        *ret_mmio = false;
        if (x86_walk(cpu, va, access, &w) < 0) {
            return NULL;
        }
        *ret_gpa = w.gpa;
        uint64_t ram = mem_ram_offset(cpu->mem, w.gpa);
        if (ram == UINT64_MAX) {
            *ret_mmio = true;
            return NULL;
        }
        if (write && bt_write_claim(v, ram / MEM_PAGE_SIZE)) {
            write_code_page(v, ram);
        }
        return mem_ram_base(cpu->mem) + ram;
    }
    unsigned mmu = bt_mmu_index(v);
    unsigned i = (unsigned)(va >> MEM_PAGE_SHIFT) & ((1u << v->tlb_bits) - 1);
    const struct bt_tlb_entry *t = write ? &v->tlb[mmu].write[i] : &v->tlb[mmu].read[i];
    if (t->tag == ((va & ~(uint64_t)(MEM_PAGE_SIZE - 1)) | v->asid[mmu])) {
        *ret_mmio = false;
        return (void *)(va + t->addend);
    }
    bool code;
    uint64_t ram = 0;
    uint8_t *host = fill(v, mmu, va, access, ret_mmio, ret_gpa, &ram, &code);
    if (host && code) {
        write_code_page(v, ram);
    }
    return host;
}

const struct x86_cpu_ops bt_cpu_ops = {
    .tlb_flush = op_tlb_flush,
    .tlb_switch = op_tlb_switch,
    .tlb_flush_pcid = op_tlb_flush_pcid,
    .tlb_flush_page = op_tlb_flush_page,
    .translate = op_translate,
    .host_tsc = op_host_tsc,
};

void bt_tlb_init(struct bt_vcpu *v)
{
    v->tlb_bits = BT_TLB_BITS_MIN;
    v->tlb_mask = ((1ull << v->tlb_bits) - 1) << 4;
    wipe(v);
    v->kernel_ctx = new_ctx(v);
    v->ctx_poison = new_ctx(v);
    use_asid(v, true);
    new_kernel_asid(v);
}

/* --- modes
 * ----------------------------------------------------------------------------------------------------------
 */

/* Present, writable, expand-up data of 4 GiB. Accesses that wrap around at its end "may or may not" fault
 * (SDM vol. 3A, 5.3); these do not. */
static bool no_checks(const struct x86_segment *s)
{
    return s->limit == UINT32_MAX && (s->attr & X86_SEG_P) && (s->attr & X86_SEG_S) && (s->attr & 0xe) == 0x2;
}

static bool segment_flat(const struct x86_segment *s)
{
    return s->base == 0 && no_checks(s);
}

static uint32_t compute_mode(const struct bt_vcpu *v)
{
    const struct x86_cpu *cpu = &v->cpu;
    const struct x86_state *s = &cpu->s;
    uint32_t mode = 0;
    if (cpu->cpl == 3) {
        mode |= BT_MODE_USER;
    } else {
        if (!(s->cr4 & X86_CR4_SMAP) || (s->rflags & X86_AC)) {
            mode |= BT_MODE_AC;
        }
        if (cpu->cpl == 0) {
            mode |= BT_MODE_CPL0;
        }
    }
    if (x86_code64(cpu)) {
        mode |= BT_MODE_CODE64 | BT_MODE_FLAT;
    } else {
        const struct x86_segment *cs = &s->seg[X86_CS], *ss = &s->seg[X86_SS];
        if (cs->attr & X86_SEG_DB) {
            mode |= BT_MODE_CODE32;
        }
        if (ss->attr & X86_SEG_DB) {
            mode |= BT_MODE_SS32;
        }
        if (x86_protected(cpu) && !x86_vm86(cpu) && cs->base == 0 && cs->limit == UINT32_MAX &&
            segment_flat(ss) && segment_flat(&s->seg[X86_DS]) && segment_flat(&s->seg[X86_ES])) {
            mode |= BT_MODE_FLAT;
            if (no_checks(&s->seg[X86_FS])) {
                mode |= BT_MODE_FS_FLAT;
            }
            if (cpu->cpl == 3 && no_checks(&s->seg[X86_GS])) {
                mode |= BT_MODE_GS_FLAT;
            }
        }
    }
    if ((s->cr0 & (X86_CR0_TS | X86_CR0_EM)) || !(s->cr4 & X86_CR4_OSFXSR)) {
        mode |= BT_MODE_NOFPU;
    }
    if ((s->cr4 & X86_CR4_OSXSAVE) && (s->xcr0 & 6) == 6) {
        mode |= BT_MODE_AVX;
        if ((s->xcr0 & 0xe0) == 0xe0) {
            mode |= BT_MODE_AVX512;
        }
    }
    return mode;
}

void bt_mode_update(struct bt_vcpu *v)
{
    v->mode = compute_mode(v);
    uint64_t base = v->mode & BT_MODE_USER ? v->asid_ctx[v->cur_asid] : v->kernel_ctx;
    uint64_t key = base + (uint64_t)v->mode * 0x9e3779b97f4a7c15ull;
    if (!(v->mode & BT_MODE_CODE64)) {
        key += v->cpu.s.seg[X86_CS].base * 0xd6e8feb86659fd93ull + v->cpu.s.seg[X86_CS].limit;
    }
    v->mode_ctx = mix64(key) | 1;
    v->ctx = v->mode_ctx;
}
