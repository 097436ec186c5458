/*
 * The device's side of a split virtqueue: virtio 1.2 section 2.7, with indirect descriptors (2.7.5.3) and
 * event indices (2.7.7.2, 2.7.10).
 *
 * Everything in the ring is the guest's and may change at any moment: each field is read once into a copy,
 * and the copy is checked. A chain has at most as many descriptors as the ring has entries, each inside of
 * RAM. What breaks a rule latches `broken`: the queue gives no further chains, and the device asks for a
 * reset.
 *
 * Threads: one at a time, the main loop. struct vq_setup is the transport's, under mem_lock().
 *
 * Invariants
 *  1. While live, the three areas lie inside of RAM and are aligned as 2.7 asks.
 *  2. All segments of a chain point into RAM; device-readable ones come first.
 *  3. Chains popped and not yet pushed never exceed the ring's size, as the driver's index is checked
 *     against ours.
 */
#ifndef FONDA_DEV_VIRTIO_QUEUE_H
#define FONDA_DEV_VIRTIO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "mem/mem.h"

struct state;

#define VQ_SIZE_MAX 256u /* entries of a ring, and so descriptors of a chain */

/* As the driver wrote it. */
struct vq_setup {
    uint16_t size;
    bool enabled;
    uint64_t desc, driver, device; /* guest-physical */
};

struct vq {
    struct mem *mem;
    uint16_t size;
    bool live, broken;
    bool indirect, event_idx;
    const char *why; /* while broken: which rule */
    uint8_t *desc;   /* host pointers to the areas */
    uint8_t *avail, *used;
    uint16_t next_avail;  /* the next entry of the available ring to take */
    uint16_t next_used;   /* the used index as the driver last saw it */
    uint16_t signal_used; /* the used index at the last decision about an interrupt */
    uint64_t chains;      /* counter: popped */
};

/* One request: segs[0 .. out_count) are for the device to read, the next in_count to write. */
struct vq_chain {
    uint16_t head;
    uint16_t out_count, in_count;
    uint64_t out_bytes, in_bytes; /* each below 4 GiB */
    struct iovec segs[VQ_SIZE_MAX];
};

static inline struct iovec *vq_in(struct vq_chain *chain)
{
    return chain->segs + chain->out_count;
}

/* Starts a queue as the driver has set it up. Returns 0, or -EINVAL with vq broken. */
int vq_start(struct vq *vq, struct mem *mem, const struct vq_setup *setup, bool indirect, bool event_idx);
void vq_stop(struct vq *vq);

/* Saves or loads a queue's indices; when loading, vq was started as the driver has set it up. */
void vq_state(struct vq *vq, struct state *s);

/* Takes the next chain. Returns 1, 0 when there is none, or -EBADMSG when the queue is (now) broken. */
int vq_pop(struct vq *vq, struct vq_chain *chain);
/* Puts back the last n chains that were popped, if none of them was filled. */
void vq_unpop(struct vq *vq, unsigned n);

/* Returns a chain to the driver, with the bytes that were written from its first writable byte on. */
void vq_push(struct vq *vq, const struct vq_chain *chain, uint32_t written);
/* The same in two steps, so that several chains appear at once: fill the nth (from 0), then publish all n. */
void vq_fill(struct vq *vq, const struct vq_chain *chain, uint32_t written, unsigned nth);
void vq_flush(struct vq *vq, unsigned n);

/* Whether the driver wants an interrupt for what was published since the last call. */
bool vq_wants_interrupt(struct vq *vq);
/* Asks the driver for notifications, or tells it that none is needed. The first returns true when chains came
 * in meanwhile: the caller then has to look again. */
bool vq_enable_notify(struct vq *vq);
void vq_disable_notify(struct vq *vq);
/* Asks to be notified of chains beyond those that are there and don't suffice. Whoever calls it then has to
 * look again, as some may have come meanwhile. */
void vq_await_more(struct vq *vq);
bool vq_empty(const struct vq *vq);

/* Latches `broken` with a reason that a person can read; why is kept by reference. Returns -EBADMSG. */
int vq_break(struct vq *vq, const char *why);

/* Bytes between segments and a buffer, starting `offset` bytes in. Return how many were copied. */
uint64_t viov_read(const struct iovec *iov, unsigned count, uint64_t offset, void *buf, uint64_t len);
uint64_t viov_write(const struct iovec *iov, unsigned count, uint64_t offset, const void *buf, uint64_t len);
/* The part [offset, offset + len) of segments as segments of their own; returns how many. ret has room for
 * count. */
unsigned viov_slice(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t len,
                    struct iovec *ret);
uint64_t viov_bytes(const struct iovec *iov, unsigned count);

#endif
