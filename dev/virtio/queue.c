/* See queue.h. Section numbers are those of virtio 1.2. */
#include "dev/virtio/queue.h"

#include <errno.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"

#define DESC_BYTES 16u
/* 2.7.5 */
#define DESC_NEXT     1u
#define DESC_WRITE    2u
#define DESC_INDIRECT 4u
/* 2.7.6, 2.7.8 */
#define RING_FLAGS         0u
#define RING_IDX           2u
#define RING_ENTRIES       4u
#define USED_ENTRY_BYTES   8u
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY     1u

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};
_Static_assert(sizeof(struct desc) == DESC_BYTES, "2.7.5");

/* The areas are aligned to 2 at least (vq_start), so that these are single accesses. */
static uint16_t ring_load(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)(const void *)at, __ATOMIC_ACQUIRE);
}

static void ring_store(const struct vq *vq, uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, value, __ATOMIC_RELEASE);
    mem_ram_written(vq->mem, (uint64_t)(at - mem_ram_base(vq->mem)), 2);
}

int vq_break(struct vq *vq, const char *why)
{
    if (!vq->broken) {
        vq->broken = true;
        vq->why = why;
    }
    return -EBADMSG;
}

/* --- life --- */

static uint8_t *area(struct mem *mem, uint64_t gpa, uint64_t bytes, uint64_t align)
{
    uint64_t avail;
    uint8_t *ptr = mem_ram_ptr(mem, GPA(gpa), &avail);
    return ptr && avail >= bytes && gpa % align == 0 ? ptr : NULL;
}

static uint8_t *used_event(const struct vq *vq) /* 2.7.7.2: behind the available ring */
{
    return vq->avail + RING_ENTRIES + 2u * vq->size;
}

static uint8_t *avail_event(const struct vq *vq) /* 2.7.10: behind the used ring */
{
    return vq->used + RING_ENTRIES + USED_ENTRY_BYTES * vq->size;
}

int vq_start(struct vq *vq, struct mem *mem, const struct vq_setup *setup, bool indirect, bool event_idx)
{
    *vq = (struct vq){.mem = mem, .size = setup->size, .indirect = indirect, .event_idx = event_idx};
    if (setup->size == 0 || setup->size > VQ_SIZE_MAX || (setup->size & (setup->size - 1))) {
        vq_break(vq, "the size is not a power of two within the limit");
        return -EINVAL;
    }
    vq->desc = area(mem, setup->desc, (uint64_t)DESC_BYTES * setup->size, 16);
    vq->avail = area(mem, setup->driver, 6 + 2ull * setup->size, 2);
    vq->used = area(mem, setup->device, 6 + (uint64_t)USED_ENTRY_BYTES * setup->size, 4);
    if (!vq->desc || !vq->avail || !vq->used) {
        vq_break(vq, "an area is not aligned, or not in RAM");
        return -EINVAL;
    }
    vq->live = true; /* and all indices start at 0 */
    return 0;
}

void vq_stop(struct vq *vq)
{
    vq->live = false;
}

void vq_state(struct vq *vq, struct state *s)
{
    bool live = vq->live, broken = vq->broken;
    state_field(s, "live", &live);
    state_require(s, !live || vq->live, "live");
    state_field(s, "broken", &broken);
    state_field(s, "next_avail", &vq->next_avail);
    state_field(s, "next_used", &vq->next_used);
    state_field(s, "signal_used", &vq->signal_used);
    if (state_loaded(s)) {
        vq->live = live;
        if (broken) {
            vq_break(vq, "it was broken when it was saved");
        }
    }
}

/* --- taking chains --- */

/* Copies a descriptor; the barrier keeps the compiler from reading the guest's memory a second time. */
static struct desc load_desc(const uint8_t *table, unsigned index)
{
    struct desc desc;
    memcpy(&desc, table + index * DESC_BYTES, sizeof(desc));
    __asm__ volatile("" : "+m"(desc));
    return desc;
}

/* Adds one buffer to a chain. */
static int add_segment(struct vq *vq, struct vq_chain *chain, const struct desc *desc)
{
    unsigned count = chain->out_count + chain->in_count;
    uint64_t avail;
    uint8_t *ptr = mem_ram_ptr(vq->mem, GPA(desc->addr), &avail);
    bool write = desc->flags & DESC_WRITE;
    uint64_t *bytes = write ? &chain->in_bytes : &chain->out_bytes;
    if (desc->len == 0) {
        return vq_break(vq, "a descriptor has no bytes");
    }
    if (!ptr || avail < desc->len) {
        return vq_break(vq, "a buffer is not in RAM");
    }
    if (!write && chain->in_count) {
        return vq_break(vq, "a readable buffer follows a writable one");
    }
    if (count == VQ_SIZE_MAX || *bytes + desc->len > UINT32_MAX) {
        return vq_break(vq, "a chain is too long");
    }
    mem_ram_prepare(vq->mem, (uint64_t)(ptr - mem_ram_base(vq->mem)), desc->len, write);
    chain->segs[count] = (struct iovec){ptr, desc->len};
    *bytes += desc->len;
    if (write) {
        chain->in_count++;
    } else {
        chain->out_count++;
    }
    return 0;
}

/* Follows a table's chain from `index` on. An indirect descriptor ends it and is returned in ret_indirect. */
static int walk(struct vq *vq, struct vq_chain *chain, const uint8_t *table, unsigned entries, unsigned index,
                unsigned hops, struct desc *ret_indirect)
{
    ret_indirect->len = 0;
    for (;;) {
        if (index >= entries) {
            return vq_break(vq, "a descriptor index is beyond its table");
        }
        if (hops-- == 0) {
            return vq_break(vq, "a chain has a loop, or more descriptors than the ring");
        }
        const struct desc desc = load_desc(table, index);
        if (desc.flags & DESC_INDIRECT) {
            *ret_indirect = desc;
            return 0;
        }
        int rc = add_segment(vq, chain, &desc);
        if (rc < 0 || !(desc.flags & DESC_NEXT)) {
            return rc;
        }
        index = desc.next;
    }
}

static int walk_indirect(struct vq *vq, struct vq_chain *chain, const struct desc *indirect)
{
    unsigned entries = indirect->len / DESC_BYTES;
    if (!vq->indirect || (indirect->flags & DESC_NEXT)) {
        return vq_break(vq, "an indirect descriptor where none may be");
    }
    if (entries == 0 || indirect->len % DESC_BYTES || entries > 65536) {
        return vq_break(vq, "an indirect table has a bad size");
    }
    uint64_t avail;
    const uint8_t *table = mem_ram_ptr(vq->mem, GPA(indirect->addr), &avail);
    if (!table || avail < indirect->len) {
        return vq_break(vq, "an indirect table is not in RAM");
    }
    struct desc nested;
    int rc = walk(vq, chain, table, entries, 0, vq->size, &nested);
    if (rc == 0 && nested.len) {
        return vq_break(vq, "an indirect table inside of another");
    }
    return rc;
}

bool vq_empty(const struct vq *vq)
{
    return !vq->live || vq->broken || ring_load(vq->avail + RING_IDX) == vq->next_avail;
}

int vq_pop(struct vq *vq, struct vq_chain *chain)
{
    if (vq->broken) {
        return -EBADMSG;
    }
    if (!vq->live) {
        return 0;
    }
    uint16_t waiting = (uint16_t)(ring_load(vq->avail + RING_IDX) - vq->next_avail);
    if (waiting == 0) {
        return 0;
    }
    if (waiting > vq->size) {
        return vq_break(vq, "the available index ran ahead of the ring");
    }
    chain->head = ring_load(vq->avail + RING_ENTRIES + 2u * (vq->next_avail & (vq->size - 1u)));
    chain->out_count = chain->in_count = 0;
    chain->out_bytes = chain->in_bytes = 0;
    struct desc indirect = {0};
    int rc = walk(vq, chain, vq->desc, vq->size, chain->head, vq->size, &indirect);
    if (rc == 0 && (indirect.flags & DESC_INDIRECT)) {
        rc = walk_indirect(vq, chain, &indirect);
    }
    if (rc < 0) {
        return rc;
    }
    vq->next_avail++;
    vq->chains++;
    return 1;
}

void vq_unpop(struct vq *vq, unsigned n)
{
    vq->next_avail = (uint16_t)(vq->next_avail - n);
    vq->chains -= n;
}

/* --- giving them back --- */

void vq_fill(struct vq *vq, const struct vq_chain *chain, uint32_t written, unsigned nth)
{
    if (!vq->live || vq->broken) {
        return;
    }
    uint64_t left = written;
    for (unsigned i = 0; i < chain->in_count && left; i++) {
        const struct iovec *seg = &chain->segs[chain->out_count + i];
        uint64_t bytes = MIN(left, seg->iov_len);
        mem_ram_written(vq->mem, (uint64_t)((uint8_t *)seg->iov_base - mem_ram_base(vq->mem)), bytes);
        left -= bytes;
    }
    const uint32_t entry[2] = {chain->head, written};
    unsigned slot = (vq->next_used + nth) & (vq->size - 1u);
    uint8_t *at = vq->used + RING_ENTRIES + slot * USED_ENTRY_BYTES;
    memcpy(at, entry, sizeof(entry));
    mem_ram_written(vq->mem, (uint64_t)(at - mem_ram_base(vq->mem)), sizeof(entry));
}

void vq_flush(struct vq *vq, unsigned n)
{
    if (vq->live && !vq->broken) {
        vq->next_used = (uint16_t)(vq->next_used + n);
        ring_store(vq, vq->used + RING_IDX, vq->next_used);
    }
}

void vq_push(struct vq *vq, const struct vq_chain *chain, uint32_t written)
{
    vq_fill(vq, chain, written, 0);
    vq_flush(vq, 1);
}

/* --- telling one another --- */

/* 2.7.10: whether `event` lies in (before, now]. */
static bool passed(uint16_t event, uint16_t now, uint16_t before)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

bool vq_wants_interrupt(struct vq *vq)
{
    uint16_t before = vq->signal_used, now = vq->next_used;
    if (!vq->live || vq->broken || before == now) {
        return false;
    }
    /* Pairs with the barrier between the driver's store to used_event (or flags) and its load of the used
     * index: either it sees what was published, or we see that it wants to be told. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    vq->signal_used = now;
    if (vq->event_idx) {
        return passed(ring_load(used_event(vq)), now, before);
    }
    return !(ring_load(vq->avail + RING_FLAGS) & AVAIL_NO_INTERRUPT);
}

static void ask_for_notify(struct vq *vq, uint16_t event)
{
    if (vq->event_idx) {
        ring_store(vq, avail_event(vq), event);
    } else {
        ring_store(vq, vq->used + RING_FLAGS, 0);
    }
    /* Pairs with the barrier between the driver's store to the available index and its load of avail_event.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool vq_enable_notify(struct vq *vq)
{
    if (!vq->live || vq->broken) {
        return false;
    }
    ask_for_notify(vq, vq->next_avail);
    return !vq_empty(vq);
}

void vq_await_more(struct vq *vq)
{
    if (vq->live && !vq->broken) {
        ask_for_notify(vq, ring_load(vq->avail + RING_IDX));
    }
}

void vq_disable_notify(struct vq *vq)
{
    /* With event indices there is nothing to do: avail_event stays behind. */
    if (vq->live && !vq->broken && !vq->event_idx) {
        ring_store(vq, vq->used + RING_FLAGS, USED_NO_NOTIFY);
    }
}

/* --- segments --- */

unsigned viov_slice(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t len, struct iovec *ret)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count && len; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint64_t bytes = MIN(iov[i].iov_len - offset, len);
        ret[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + offset, bytes};
        len -= bytes;
        offset = 0;
    }
    return n;
}

static uint64_t viov_copy(const struct iovec *iov, unsigned count, uint64_t offset, uint8_t *buf,
                          uint64_t len, bool to_iov)
{
    uint64_t done = 0;
    for (unsigned i = 0; i < count && done < len; i++) {
        if (offset >= iov[i].iov_len) {
            offset -= iov[i].iov_len;
            continue;
        }
        uint64_t bytes = MIN(iov[i].iov_len - offset, len - done);
        uint8_t *at = (uint8_t *)iov[i].iov_base + offset;
        memcpy(to_iov ? at : buf + done, to_iov ? buf + done : at, bytes);
        done += bytes;
        offset = 0;
    }
    return done;
}

uint64_t viov_read(const struct iovec *iov, unsigned count, uint64_t offset, void *buf, uint64_t len)
{
    return viov_copy(iov, count, offset, buf, len, false);
}

uint64_t viov_write(const struct iovec *iov, unsigned count, uint64_t offset, const void *buf, uint64_t len)
{
    /* Only read from, as the direction says. */
    return viov_copy(iov, count, offset, (uint8_t *)(uintptr_t)buf, len, true);
}

uint64_t viov_bytes(const struct iovec *iov, unsigned count)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}
