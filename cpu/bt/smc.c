/*
 * Code that is overwritten: what vCPUs and devices tell one another, so that a translation never outlives its
 * bytes.
 *
 *     A translates                                 B writes
 *     bt_code_claim: bits into page.code           bt_write_claim: bit into page.writers
 *     writers other than A? ask, and wait          code there? then no write entry, and each write looks
 *     are the bytes still those translated?        bytes that were translated: bt_code_notify before the
 * write
 *
 * Both are atomic read-modify-writes followed by a look at the other word, so at least one sees the other. B
 * answers in its dispatcher, where it is never between looking and writing; so once A went on, whatever B
 * writes is either in the bytes that A compares, or notified. B's notice is pending in A before the write,
 * and looked at by A's serializing instructions and interrupts (SDM vol. 3A, 9.1.3, "Handling Self- and
 * Cross-Modifying Code").
 *
 * Invariants
 *  1. A vCPU with a block of a page has its bit, and the chunks of the block, in page.code.
 *  2. A vCPU with a write entry for a page has its bit in page.writers, and page.code was 0 when it was
 *     entered.
 *  3. Nobody waits for a vCPU that is outside of bt_run: it serves its queues before it executes anything.
 */
#include <sched.h>

#include "cpu/bt/bt_int.h"

#define SPINS_BEFORE_YIELD 2000u

static uint64_t chunk_bits(uint64_t ram, uint64_t len)
{
    unsigned first = (unsigned)(ram % MEM_PAGE_SIZE / BT_CHUNK_BYTES);
    unsigned last = (unsigned)((ram + len - 1) % MEM_PAGE_SIZE / BT_CHUNK_BYTES);
    return ((2ull << last) - (1ull << first)) << 32;
}

/* Has the other vCPU drop its write entries for the page. Returns the ticket to wait for. */
static uint64_t ask_to_drop(struct bt_vcpu *other, uint64_t ram_page)
{
    struct bt_engine *e = other->engine;
    pthread_mutex_lock(&e->lock);
    if (other->ndrop_queue < ARRAY_SIZE(other->drop_queue)) {
        other->drop_queue[other->ndrop_queue] = ram_page;
    }
    other->ndrop_queue++;
    uint64_t ticket = ++other->drops_asked;
    pthread_mutex_unlock(&e->lock);
    bt_pend(other, BT_PENDING_DROP);
    return ticket;
}

/* Serves what is asked of v meanwhile: the other may be waiting for v. */
static void wait_for_drop(struct bt_vcpu *v, struct bt_vcpu *other, uint64_t ticket)
{
    for (unsigned spins = 0; atomic_load(&other->drops_done) < ticket && atomic_load(&other->in_run);
         spins++) {
        bt_drop_queue_serve(v);
        if (spins < SPINS_BEFORE_YIELD) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}

void bt_drop_queue_serve(struct bt_vcpu *v)
{
    if (!(atomic_load_explicit(&v->pending, memory_order_relaxed) & BT_PENDING_DROP)) {
        return;
    }
    atomic_fetch_and(&v->pending, ~BT_PENDING_DROP);
    struct bt_engine *e = v->engine;
    pthread_mutex_lock(&e->lock);
    if (v->ndrop_queue > ARRAY_SIZE(v->drop_queue)) {
        bt_tlb_forget_writes(v); /* the bits in `writers` stay: to be asked again does no harm */
    } else {
        for (unsigned i = 0; i < v->ndrop_queue; i++) {
            bt_tlb_forget_page(v, v->drop_queue[i]);
            atomic_fetch_and(&e->pages[v->drop_queue[i]].writers, ~(uint32_t)BIT(v->index));
        }
    }
    v->ndrop_queue = 0;
    atomic_store(&v->drops_done, v->drops_asked);
    pthread_mutex_unlock(&e->lock);
}

void bt_code_claim(struct bt_vcpu *v, uint64_t ram, uint64_t len)
{
    uint64_t page = ram / MEM_PAGE_SIZE;
    struct bt_page *p = &v->engine->pages[page];
    uint64_t bits = BIT64(v->index) | chunk_bits(ram, len);
    if ((atomic_load(&p->code) & bits) == bits) {
        return; /* whoever writes there looks */
    }
    atomic_fetch_or(&p->code, bits);
    uint32_t writers = atomic_load(&p->writers);
    if (writers & BIT(v->index)) {
        bt_tlb_forget_page(v, page);
        atomic_fetch_and(&p->writers, ~(uint32_t)BIT(v->index));
    }
    writers &= ~(uint32_t)BIT(v->index);
    uint64_t tickets[ARRAY_SIZE(v->engine->vcpus)];
    for (uint32_t left = writers; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);
        tickets[i] = ask_to_drop(v->engine->vcpus[i], page);
    }
    for (uint32_t left = writers; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);
        wait_for_drop(v, v->engine->vcpus[i], tickets[i]);
    }
}

void bt_code_release(struct bt_vcpu *v, uint64_t ram_page)
{
    struct bt_page *p = &v->engine->pages[ram_page];
    uint64_t old = atomic_load(&p->code), left;
    do {
        left = old & ~BIT64(v->index);
        left = left & UINT32_MAX ? left : 0; /* the chunks go with the last vCPU */
    } while (!atomic_compare_exchange_weak(&p->code, &old, left));
}

bool bt_write_claim(struct bt_vcpu *v, uint64_t ram_page)
{
    struct bt_page *p = &v->engine->pages[ram_page];
    if (!(atomic_load_explicit(&p->writers, memory_order_relaxed) & BIT(v->index))) {
        atomic_fetch_or(&p->writers, (uint32_t)BIT(v->index));
    }
    return atomic_load(&p->code) != 0;
}

bool bt_code_overlaps_others(const struct bt_vcpu *v, uint64_t ram, uint64_t len)
{
    uint64_t code = atomic_load(&v->engine->pages[ram / MEM_PAGE_SIZE].code);
    return (code & UINT32_MAX & ~BIT64(v->index)) && (code & chunk_bits(ram, len));
}

/* Under engine->lock. Ranges of one page become one. */
static void queue_code(struct bt_vcpu *v, uint64_t ram, uint64_t len)
{
    for (unsigned i = 0; i < v->ncode_queue; i++) {
        struct bt_range *q = &v->code_queue[i];
        if (q->ram / MEM_PAGE_SIZE == ram / MEM_PAGE_SIZE) {
            uint64_t end = MAX(q->ram + q->len, ram + len);
            q->ram = MIN(q->ram, ram);
            q->len = end - q->ram;
            return;
        }
    }
    if (v->ncode_queue == ARRAY_SIZE(v->code_queue)) {
        v->code_queue_full = true;
    } else {
        v->code_queue[v->ncode_queue++] = (struct bt_range){.ram = ram, .len = len};
    }
}

void bt_code_notify(struct bt_engine *e, const struct bt_vcpu *except, uint64_t ram, uint64_t len)
{
    uint32_t told = 0;
    for (uint64_t end = ram + len, n; ram < end; ram += n) {
        n = MIN(end - ram, MEM_PAGE_SIZE - ram % MEM_PAGE_SIZE);
        uint64_t code = atomic_load(&e->pages[ram / MEM_PAGE_SIZE].code);
        uint32_t vcpus = (uint32_t)code & ~(except ? (uint32_t)BIT(except->index) : 0);
        if (!vcpus || !(code & chunk_bits(ram, n))) {
            continue;
        }
        pthread_mutex_lock(&e->lock);
        for (uint32_t left = vcpus; left; left &= left - 1) {
            queue_code(e->vcpus[__builtin_ctz(left)], ram, n);
        }
        pthread_mutex_unlock(&e->lock);
        told |= vcpus;
    }
    for (; told; told &= told - 1) {
        bt_pend(e->vcpus[__builtin_ctz(told)], BT_PENDING_CODE);
    }
}

void bt_code_queue_serve(struct bt_vcpu *v)
{
    pthread_mutex_lock(&v->engine->lock);
    if (v->code_queue_full) {
        bt_code_flush(v);
    } else {
        for (unsigned i = 0; i < v->ncode_queue; i++) {
            bt_code_written(v, v->code_queue[i].ram, v->code_queue[i].len);
        }
    }
    v->ncode_queue = 0;
    v->code_queue_full = false;
    pthread_mutex_unlock(&v->engine->lock);
}
