/*
 * Range locks: which requests may be under way at the same time. See block_provider.h.
 *
 * The list is in order of arrival and holds who has the lock and who waits. A lock is free to go when no earlier one
 * conflicts, so nobody starves. Lists are as long as a device's queue is deep.
 */
#include "block/block_provider.h"

void range_locks_init(struct range_locks *locks, struct blk_loop *loop)
{
    *locks = (struct range_locks){.loop = loop};
    co_queue_init(&locks->waiters);
}

static bool conflicts(const struct range_lock *a, const struct range_lock *b)
{
    return (a->exclusive || b->exclusive) && a->start < b->end && b->start < a->end;
}

static void append(struct range_locks *locks, struct range_lock *lock, uint64_t start, uint64_t end, bool exclusive)
{
    *lock = (struct range_lock){.start = start, .end = end, .exclusive = exclusive, .prev = locks->last};
    *(locks->last ? &locks->last->next : &locks->first) = lock;
    locks->last = lock;
}

static bool blocked(const struct range_lock *lock)
{
    for (const struct range_lock *l = lock->prev; l; l = l->prev) {
        if (conflicts(l, lock)) {
            return true;
        }
    }
    return false;
}

void range_lock(struct range_locks *locks, struct range_lock *lock, uint64_t start, uint64_t end, bool exclusive)
{
    append(locks, lock, start, end, exclusive);
    while (blocked(lock)) {
        co_queue_wait(&locks->waiters, locks->loop);
    }
}

bool range_trylock(struct range_locks *locks, struct range_lock *lock, uint64_t start, uint64_t end, bool exclusive)
{
    append(locks, lock, start, end, exclusive);
    if (!blocked(lock)) {
        return true;
    }
    range_unlock(locks, lock);
    return false;
}

void range_unlock(struct range_locks *locks, struct range_lock *lock)
{
    *(lock->prev ? &lock->prev->next : &locks->first) = lock->next;
    *(lock->next ? &lock->next->prev : &locks->last) = lock->prev;
    co_queue_wake_all(&locks->waiters, locks->loop);
}
