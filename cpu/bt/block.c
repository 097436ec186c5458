/*
 * The code cache: finding blocks, linking them, and taking them back.
 *
 *     looked up (hash) -> entered -> linked from others -> invalidated by a write to its bytes, or flushed
 * with all
 *
 * Invariants
 *  1. A block is in the hash, in the list of its page (or both pages), and claimed (smc.c), or it is dead.
 *  2. A link (a patched jump, a filled cell, a jump-cache entry) never leads to a dead block.
 *  3. Code is only reused after bt_code_flush, which happens outside of translated code.
 */
#include <errno.h>
#include <string.h>

#include "cpu/bt/bt_int.h"
#include "cpu/bt/emit.h"

#define HASH_BITS        18 /* a boot makes 100,000 blocks; to miss should cost one cache line */
#define HASH_SIZE        (1u << HASH_BITS)
#define FLUSH_ALL_BLOCKS 16384u                /* up to here, a flush goes from block to block */
#define JC_EMPTY         0x5bd1e9955bd1e995ull /* a neg_key that no rip + ctx is expected to meet */

/* What lies near together in a page lies near together in the table. */
static unsigned hash_of(uint64_t ram, uint64_t rip, uint32_t mode)
{
    uint64_t page = ram / MEM_PAGE_SIZE ^ (rip / MEM_PAGE_SIZE) << 20 ^ (uint64_t)mode << 40;
    uint64_t h = (page * 0x9e3779b97f4a7c15ull) >> (64 - HASH_BITS);
    return (unsigned)(h + rip % MEM_PAGE_SIZE / 4) & (HASH_SIZE - 1);
}

size_t bt_hash_bytes(void)
{
    return HASH_SIZE * sizeof(struct bt_block *);
}

void bt_jc_clear(struct bt_vcpu *v)
{
    for (unsigned i = 0; i < BIT(BT_JC_BITS); i++) {
        if (v->jc[i].neg_key != JC_EMPTY) {
            v->jc[i].neg_key = JC_EMPTY;
        }
    }
}

static void write_code32(struct bt_vcpu *v, uint32_t at, uint32_t value)
{
    __builtin_memcpy(v->code_rw + at, &value, 4);
}

static uint64_t code_address(const struct bt_vcpu *v, const struct bt_block *b)
{
    return (uint64_t)v->code_rx + b->code;
}

/* --- links
 * ------------------------------------------------------------------------------------------------------ */

/* Makes an exit lead to its stub. Leaves the target's list of links alone. */
static void exit_unpatch(struct bt_vcpu *v, struct bt_exit *x)
{
    if (x->kind == BT_EXIT_DIRECT || x->kind == BT_EXIT_GROUP) {
        write_code32(v, x->jump, x->stub - (x->jump + 4));
    } else if (x->kind != BT_EXIT_NONE) {
        x->cell->neg_ctx = 1; /* ctx is never ~0 */
    }
}

static void exit_forget(struct bt_exit *x)
{
    if (!x->to) {
        return;
    }
    for (struct bt_exit **p = &x->to->in; *p; p = &(*p)->next_in) {
        if (*p == x) {
            *p = x->next_in;
            break;
        }
    }
    x->to = NULL;
}

void bt_link(struct bt_vcpu *v, struct bt_exit *x, struct bt_block *to)
{
    if (x->to != to) {
        exit_forget(x);
        x->to = to;
        x->next_in = to->in;
        to->in = x;
    }
    if (x->kind == BT_EXIT_DIRECT || x->kind == BT_EXIT_GROUP) {
        write_code32(v, x->jump, to->code - (x->jump + 4));
    } else {
        x->cell->target = code_address(v, to);
        x->cell->neg_ctx =
            0 - v->mode_ctx -
            (x->kind == BT_EXIT_RETURN ? x->rip : 0); /* ctx itself may be poisoned at any moment */
    }
}

void bt_unlink_out(struct bt_vcpu *v, struct bt_block *b)
{
    for (unsigned i = 0; i < b->nexits; i++) {
        exit_unpatch(v, &b->exits[i]);
    }
}

/* --- pages
 * ----------------------------------------------------------------------------------------------------------
 */

static struct bt_block **page_link(struct bt_block *b, uint64_t page)
{
    return b->ram / MEM_PAGE_SIZE == page ? &b->page_next : &b->page2_next;
}

static void page_add(struct bt_vcpu *v, struct bt_block *b, uint64_t page)
{
    if (!v->page_blocks[page]) {
        v->code_pages[v->ncode_pages++] = (uint32_t)page;
    }
    *page_link(b, page) = v->page_blocks[page];
    v->page_blocks[page] = b;
}

static void page_remove(struct bt_vcpu *v, struct bt_block *b, uint64_t page)
{
    for (struct bt_block **p = &v->page_blocks[page]; *p; p = page_link(*p, page)) {
        if (*p == b) {
            *p = *page_link(b, page);
            break;
        }
    }
    if (!v->page_blocks[page]) {
        bt_code_release(v, page);
    }
}

static void block_kill(struct bt_vcpu *v, struct bt_block *b)
{
    struct bt_block **p = &v->hash[hash_of(b->ram, b->rip, b->mode)];
    while (*p && *p != b) {
        p = &(*p)->hash_next;
    }
    if (*p) {
        *p = b->hash_next;
    }
    while (b->in) {
        struct bt_exit *x = b->in;
        b->in = x->next_in;
        exit_unpatch(v, x);
        x->to = NULL;
    }
    bt_unlink_out(v, b);
    for (unsigned i = 0; i < b->nexits; i++) {
        exit_forget(&b->exits[i]);
    }
    struct bt_jc_entry *jc = bt_jc_slot(v, b->rip);
    if (jc->target == code_address(v, b)) {
        jc->neg_key = JC_EMPTY;
    }
    page_remove(v, b, b->ram / MEM_PAGE_SIZE);
    if (b->ram2 != UINT64_MAX) {
        page_remove(v, b, b->ram2 / MEM_PAGE_SIZE);
    }
    b->dead = true;
    v->killed = true;
    v->counters[BT_C_INVALIDATED]++;
}

/* Bytes of the block that lie on one page, as [*from, *to) RAM offsets. */
static void block_range(const struct bt_block *b, uint64_t page, uint64_t *from, uint64_t *to)
{
    uint64_t first = MIN(b->guest_len, MEM_PAGE_SIZE - b->ram % MEM_PAGE_SIZE);
    if (b->ram / MEM_PAGE_SIZE == page) {
        *from = b->ram;
        *to = b->ram + first;
    } else {
        *from = b->ram2;
        *to = b->ram2 + (b->guest_len - first);
    }
}

static bool block_overlaps(const struct bt_block *b, uint64_t page, uint64_t ram, uint64_t len)
{
    uint64_t from, to;
    block_range(b, page, &from, &to);
    return ram < to && from < ram + len;
}

bool bt_code_overlaps(struct bt_vcpu *v, uint64_t ram, uint64_t len)
{
    uint64_t page = ram / MEM_PAGE_SIZE;
    for (struct bt_block *b = v->page_blocks[page]; b; b = *page_link(b, page)) {
        if (block_overlaps(b, page, ram, len)) {
            return true;
        }
    }
    return false;
}

void bt_block_drop(struct bt_vcpu *v, struct bt_block *b)
{
    if (!b->dead) {
        block_kill(v, b);
    }
}

void bt_code_written(struct bt_vcpu *v, uint64_t ram, uint64_t len)
{
    uint64_t end = ram + len;
    while (ram < end) {
        uint64_t page = ram / MEM_PAGE_SIZE;
        uint64_t n = MIN(end - ram, MEM_PAGE_SIZE - ram % MEM_PAGE_SIZE);
        struct bt_block *next;
        for (struct bt_block *b = v->page_blocks[page]; b; b = next) {
            next = *page_link(b, page);
            if (block_overlaps(b, page, ram, n)) {
                block_kill(v, b);
                v->counters[BT_C_SMC]++;
            }
        }
        ram += n;
    }
}

static void page_forget(struct bt_vcpu *v, uint64_t page)
{
    if (v->page_blocks[page]) {
        v->page_blocks[page] = NULL;
        bt_code_release(v, page);
    }
}

/* Takes longer the more there is, but not by what a cache of 32 MiB may hold where it holds little. */
void bt_code_flush(struct bt_vcpu *v)
{
    uint64_t started = __builtin_ia32_rdtsc();
    for (uint32_t i = 0; i < v->ncode_pages; i++) {
        page_forget(v, v->code_pages[i]);
    }
    v->ncode_pages = 0;
    if (v->nblocks > FLUSH_ALL_BLOCKS) {
        memset(v->hash, 0, bt_hash_bytes());
        bt_jc_clear(v);
    } else {
        for (uint32_t i = 0; i < v->nblocks; i++) {
            const struct bt_block *b = &v->blocks[i];
            v->hash[hash_of(b->ram, b->rip, b->mode)] = NULL;
            bt_jc_slot(v, b->rip)->neg_key = JC_EMPTY;
        }
    }
    v->code_used = v->code_start;
    v->ops_used = 0;
    v->maps_used = 0;
    v->cells_used = 0;
    v->exits_used = 0;
    bt_sites_forget(v, v->nblocks > FLUSH_ALL_BLOCKS);
    v->nblocks = 0;
    v->ret_rsp = v->ret_bottom;
    v->site = 0;
    v->enter_target = NULL;
    v->counters[BT_C_FLUSHES]++;
    uint64_t took = __builtin_ia32_rdtsc() - started;
    v->tsc_flushing += took;
    v->tsc_longest_flush = MAX(v->tsc_longest_flush, took);
}

/* --- look-up
 * ------------------------------------------------------------------------------------------------------------
 */

struct bt_block *bt_block_at(struct bt_vcpu *v, uint64_t host_pc)
{
    uint64_t off = host_pc - (uint64_t)v->code_rx;
    if (off >= v->code_used || off < v->code_start || v->nblocks == 0) {
        return NULL;
    }
    uint32_t lo = 0, hi = v->nblocks;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (v->blocks[mid].code <= off) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    struct bt_block *b = &v->blocks[lo];
    return off >= b->code && off < b->code + b->code_len ? b : NULL;
}

const struct bt_map *bt_map_at(const struct bt_vcpu *v, const struct bt_block *b, uint64_t host_pc)
{
    uint64_t off = host_pc - (uint64_t)v->code_rx - b->code;
    unsigned lo = 0, hi = b->nmaps;
    while (hi - lo > 1) {
        unsigned mid = (lo + hi) / 2;
        if (b->map[mid].host <= off) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    return &b->map[lo];
}

uint64_t bt_rip_at(const struct bt_vcpu *v, const struct bt_block *b, uint64_t host_pc)
{
    return b->rip + (bt_map_at(v, b, host_pc)->guest & ~BT_MAP_FLAGS_SAVED);
}

/* RAM offset of the page that holds linear address va, for a fetch; UINT64_MAX when it is not RAM. -1 after a
 * fault. */
static int fetch_page(struct bt_vcpu *v, uint64_t va, uint64_t *ret_ram)
{
    uint64_t page = va & ~(uint64_t)(MEM_PAGE_SIZE - 1);
    struct bt_itlb_entry *t = &v->itlb[(va >> MEM_PAGE_SHIFT) & (BT_ITLB_SIZE - 1)];
    if (t->page == page && t->ctx == v->mode_ctx) {
        *ret_ram = t->ram;
        return 0;
    }
    struct x86_walk w;
    if (x86_walk(&v->cpu, page, X86_ACCESS_FETCH | x86_access_mode(&v->cpu), &w) < 0) {
        if (v->cpu.exc.vector == X86_PF_EXC) {
            v->cpu.exc.cr2 = va;
        }
        return -1;
    }
    bt_note_code_page(v, va, w.global);
    uint64_t ram = mem_ram_offset(v->cpu.mem, w.gpa);
    *t = (struct bt_itlb_entry){.page = page, .ctx = v->mode_ctx, .ram = ram};
    *ret_ram = ram;
    return 0;
}

static struct bt_block *block_new(struct bt_vcpu *v, uint64_t linear, uint64_t ram, uint32_t mode)
{
    static const uint8_t floating[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                         0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint64_t started = __builtin_ia32_rdtsc();
    bool flushed = false;
    const uint8_t *base = mem_ram_base(v->cpu.mem);
    unsigned avail = (unsigned)(MEM_PAGE_SIZE - linear % MEM_PAGE_SIZE);
    const uint8_t *code = base + ram;
    bool cached = ram != UINT64_MAX;
    if (!cached) { /* nothing there: the bus floats, and 0xff 0xff is no instruction */
        code = floating;
        avail = sizeof(floating);
    }
    bt_fpu_save(v);
    for (;;) {
        if (v->nblocks == v->blocks_max || flushed) {
            bt_code_flush(v);
        }
        struct bt_block *b = &v->blocks[v->nblocks];
        memset(b, 0, sizeof(*b));
        b->rip = v->cpu.s.rip;
        b->ram = ram;
        b->ram2 = UINT64_MAX;
        b->mode = mode;
        const uint8_t *code2 = NULL;
        int r = bt_translate(v, b, code, avail, NULL);
        if (r == -EAGAIN) {
            uint64_t ram2;
            if (fetch_page(v, linear + avail, &ram2) < 0) {
                return NULL;
            }
            code2 = ram2 == UINT64_MAX ? floating : base + ram2;
            b->ram2 = ram2 == UINT64_MAX ? UINT64_MAX - 1 : ram2;
            r = bt_translate(v, b, code, avail, code2);
        }
        if (r == -ENOSPC && !flushed) {
            flushed = true;
            continue;
        }
        v->nblocks++;
        if (!cached || b->ram2 == UINT64_MAX - 1) {
            b->dead = true; /* not of RAM: never found again */
            b->ram2 = UINT64_MAX;
        } else {
            unsigned h = hash_of(ram, b->rip, mode);
            b->hash_next = v->hash[h];
            v->hash[h] = b;
            uint64_t from, to;
            page_add(v, b, ram / MEM_PAGE_SIZE);
            block_range(b, ram / MEM_PAGE_SIZE, &from, &to);
            bt_code_claim(v, from, to - from);
            if (b->ram2 != UINT64_MAX) {
                page_add(v, b, b->ram2 / MEM_PAGE_SIZE);
                block_range(b, b->ram2 / MEM_PAGE_SIZE, &from, &to);
                bt_code_claim(v, from, to - from);
            }
            if (!bt_translated_what_is_there(v, b, code, avail, code2)) {
                block_kill(v, b); /* what was there a moment ago may be executed once more, and not again */
            }
        }
        v->tsc_translating += __builtin_ia32_rdtsc() - started;
        return b;
    }
}

/* Where the current RIP leads: linear address and RAM offset (UINT64_MAX: not RAM). False: a fault, in
 * cpu.exc. */
static bool fetch(struct bt_vcpu *v, uint32_t mode, uint64_t *ret_linear, uint64_t *ret_ram)
{
    struct x86_cpu *cpu = &v->cpu;
    uint64_t rip = cpu->s.rip, linear = rip;
    if (mode & BT_MODE_CODE64) {
        if (!x86_is_canonical(rip)) {
            x86_raise_error(cpu, X86_GP, 0);
            return false;
        }
    } else {
        if (rip > cpu->s.seg[X86_CS].limit) {
            x86_raise_error(cpu, X86_GP, 0);
            return false;
        }
        linear = (rip + cpu->s.seg[X86_CS].base) & UINT32_MAX;
    }
    uint64_t page_ram;
    if (fetch_page(v, linear, &page_ram) < 0) {
        return false;
    }
    *ret_linear = linear;
    *ret_ram = page_ram == UINT64_MAX ? UINT64_MAX : page_ram + linear % MEM_PAGE_SIZE;
    return true;
}

/* 1: *ret is the block; 0: there is none; -1: a fault, in cpu.exc. */
static int look_up(struct bt_vcpu *v, uint64_t linear, uint64_t ram, uint32_t mode, struct bt_block **ret)
{
    uint64_t rip = v->cpu.s.rip;
    if (ram == UINT64_MAX) {
        return 0;
    }
    for (struct bt_block *b = v->hash[hash_of(ram, rip, mode)]; b; b = b->hash_next) {
        if (b->ram != ram || b->rip != rip || b->mode != mode) {
            continue;
        }
        if (b->ram2 != UINT64_MAX) {
            uint64_t ram2;
            if (fetch_page(v, (linear | (MEM_PAGE_SIZE - 1)) + 1, &ram2) < 0) {
                return -1;
            }
            if (ram2 != b->ram2) {
                continue;
            }
        }
        *ret = b;
        return 1;
    }
    return 0;
}

struct bt_block *bt_block_find(struct bt_vcpu *v, uint32_t mode)
{
    struct bt_block *b;
    uint64_t linear, ram;
    return fetch(v, mode, &linear, &ram) && look_up(v, linear, ram, mode, &b) == 1 ? b : NULL;
}

struct bt_block *bt_block_get(struct bt_vcpu *v, uint32_t mode)
{
    struct bt_block *b;
    uint64_t linear, ram;
    if (!fetch(v, mode, &linear, &ram)) {
        return NULL;
    }
    int r = look_up(v, linear, ram, mode, &b);
    return r < 0 ? NULL : r == 1 ? b : block_new(v, linear, ram, mode);
}
