/* See guard.h. */
#include "mem/guard.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

#define AHEAD_CHUNKS 8u /* that the filler fetches behind one that was touched */
#define NOWHERE      UINT64_MAX

/* BUSY: a thread fetches it or copies it aside. ASIDE: its frozen bytes lie in `aside`. */
enum chunk_state { PRESENT, ABSENT, FROZEN, ASIDE, BUSY };

struct guard {
    struct guard_config config;
    uint8_t *ram;
    uint64_t ram_bytes, chunks;
    unsigned chunk_shift;
    _Atomic uint64_t left;    /* chunks that are absent or frozen */
    _Atomic uint64_t touched; /* the chunk that a touch fetched last; NOWHERE: the filler has seen it */
    _Atomic uint64_t touches; /* how many were fetched so */
    uint64_t next, ahead, ahead_end; /* guard_fill_next: in order; behind what was touched */
    _Atomic uint8_t *states;
    _Atomic uint32_t ends;  /* a chunk was BUSY and is no more; threads sleep on it */
    _Atomic uint32_t lanes; /* bit i: lane i is in use */
    uint8_t *bufs;          /* a chunk for each lane, for filling */
    uint8_t *aside;         /* as large as RAM, taken by the page as needed; NULL: never frozen */
    struct sigaction before;
};

static struct guard *_Atomic the_guard;
static _Atomic unsigned inside; /* threads that use the_guard now; guard_free waits for them */

/* Whoever works on a chunk must not be interrupted by a handler that could want it. */
static void block_signals(sigset_t *old)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, old);
}

static void unblock_signals(const sigset_t *old)
{
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

/* Something has ended since `seen` was read, or will wake us. */
static void wait_for_end(struct guard *guard, uint32_t seen)
{
    syscall(SYS_futex, &guard->ends, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void tell_end(struct guard *guard)
{
    atomic_fetch_add(&guard->ends, 1);
    syscall(SYS_futex, &guard->ends, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static uint64_t chunk_len(const struct guard *guard, uint64_t chunk)
{
    return MIN(guard->config.chunk_bytes, guard->ram_bytes - (chunk << guard->chunk_shift));
}

static uint8_t *chunk_at(const struct guard *guard, uint64_t chunk)
{
    return guard->ram + (chunk << guard->chunk_shift);
}

static int write_all(int fd, const uint8_t *bytes, uint64_t len, uint64_t offset)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, bytes, len, (off_t)offset);
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        bytes += n;
        len -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static uint8_t state_of(const struct guard *guard, uint64_t chunk)
{
    return atomic_load(&guard->states[chunk]);
}

static bool make_busy(struct guard *guard, uint64_t chunk, enum chunk_state from)
{
    uint8_t expected = (uint8_t)from;
    return atomic_compare_exchange_strong(&guard->states[chunk], &expected, BUSY);
}

/* Who made it busy. */
static void set_done(struct guard *guard, uint64_t chunk, enum chunk_state state)
{
    atomic_store(&guard->states[chunk], (uint8_t)state);
    tell_end(guard);
}

static void open_up(struct guard *guard, uint64_t chunk)
{
    if (mprotect(chunk_at(guard, chunk), chunk_len(guard, chunk), PROT_READ | PROT_WRITE) < 0) {
        guard->config.fatal(guard->config.opaque, chunk, -errno);
    }
}

static unsigned take_lane(struct guard *guard)
{
    for (;;) {
        uint32_t seen = atomic_load(&guard->ends), used = atomic_load(&guard->lanes);
        unsigned lane = (unsigned)__builtin_ctz(~used);
        if (lane >= guard->config.lanes) {
            wait_for_end(guard, seen);
        } else if (atomic_compare_exchange_strong(&guard->lanes, &used, used | 1u << lane)) {
            return lane;
        }
    }
}

/* Of a chunk that this thread made busy. */
static void fill(struct guard *guard, uint64_t chunk)
{
    uint64_t len = chunk_len(guard, chunk);
    unsigned lane = take_lane(guard);
    uint8_t *buf = guard->bufs + ((uint64_t)lane << guard->chunk_shift);
    int rc = guard->config.fetch(guard->config.opaque, lane, chunk, buf, len);
    if (rc == 0) {
        rc = write_all(mem_ram_fd(guard->config.mem), buf, len, chunk << guard->chunk_shift);
    }
    if (rc < 0) {
        guard->config.fatal(guard->config.opaque, chunk, rc);
    }
    atomic_fetch_and(&guard->lanes, ~(1u << lane));
    open_up(guard, chunk);
    atomic_fetch_sub(&guard->left, 1);
    set_done(guard, chunk, PRESENT);
}

/* Of a chunk that this thread made busy. Reading it is still allowed. */
static void set_aside(struct guard *guard, uint64_t chunk)
{
    memcpy(guard->aside + (chunk << guard->chunk_shift), chunk_at(guard, chunk), chunk_len(guard, chunk));
    open_up(guard, chunk);
    atomic_fetch_sub(&guard->left, 1);
    set_done(guard, chunk, ASIDE);
}

/* Fetched for whoever touches it, who will touch more of it: one call maps all of its pages. */
static void fill_touched(struct guard *guard, uint64_t chunk)
{
    fill(guard, chunk);
    (void)madvise(chunk_at(guard, chunk), chunk_len(guard, chunk), MADV_POPULATE_READ);
    atomic_store(&guard->touched, chunk);
    atomic_fetch_add(&guard->touches, 1);
}

/* With signals blocked: makes a chunk usable. */
static void make_ready(struct guard *guard, uint64_t chunk, bool write)
{
    for (;;) {
        uint32_t seen = atomic_load(&guard->ends);
        uint8_t state = state_of(guard, chunk);
        if (state == BUSY) {
            wait_for_end(guard, seen);
        } else if (state == ABSENT) {
            if (make_busy(guard, chunk, ABSENT)) {
                fill_touched(guard, chunk);
            }
        } else if (state == FROZEN && write) {
            if (make_busy(guard, chunk, FROZEN)) {
                set_aside(guard, chunk);
            }
        } else {
            return;
        }
    }
}

static bool is_ready(const struct guard *guard, uint64_t chunk, bool write)
{
    uint8_t state = state_of(guard, chunk);
    return state == PRESENT || state == ASIDE || (state == FROZEN && !write);
}

static void prepare(void *opaque, uint64_t ram_offset, uint64_t len, bool write)
{
    atomic_fetch_add(&inside, 1);
    struct guard *guard = atomic_load(&the_guard);
    bool needed = guard && guard == opaque && atomic_load(&guard->left) > 0;
    for (uint64_t chunk = needed ? ram_offset >> guard->chunk_shift : 0;
         needed && chunk <= (ram_offset + len - 1) >> guard->chunk_shift; chunk++) {
        if (!is_ready(guard, chunk, write)) {
            sigset_t old;
            block_signals(&old);
            make_ready(guard, chunk, write);
            unblock_signals(&old);
        }
    }
    atomic_fetch_sub(&inside, 1);
}

/* x86: bit 1 of the page fault's error code says that it was a write (Intel SDM vol. 3A 4.7). */
static bool was_write(const void *context)
{
#if defined(__x86_64__)
    const ucontext_t *uc = context;
    return uc->uc_mcontext.gregs[REG_ERR] & 2;
#else
    return true;
#endif
}

/* A fault that is ours is one in RAM; when another thread was faster, the access just runs again. A fault
 * that finds its chunk as it should be is not ours: it comes again and again otherwise. */
static bool on_touch(struct guard *guard, uint64_t address, bool write)
{
    uint64_t offset = address - (uint64_t)guard->ram;
    if (offset >= guard->ram_bytes) {
        return false;
    }
    make_ready(guard, offset >> guard->chunk_shift, write);
    return true;
}

/* Without a guard any more, the fault was one that it has served: the access runs again, under whichever
 * handler is there now. */
static void on_fault(int sig, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    atomic_fetch_add(&inside, 1);
    struct guard *guard = atomic_load(&the_guard);
    bool ours = !guard || (info->si_code == SEGV_ACCERR &&
                           on_touch(guard, (uint64_t)info->si_addr, was_write(context)));
    struct sigaction before = {0};
    if (guard) {
        before = guard->before;
    }
    atomic_fetch_sub(&inside, 1);
    errno = saved_errno;
    if (!ours && (before.sa_flags & SA_SIGINFO)) {
        before.sa_sigaction(sig, info, context);
    } else if (!ours) {
        struct sigaction dfl = {.sa_handler = SIG_DFL};
        sigaction(sig, &dfl, NULL); /* the access runs again, and ends the process */
    }
}

uint64_t guard_chunk_bytes(uint64_t ram_bytes)
{
    uint64_t chunk = GUARD_CHUNK_MIN;
    while ((ram_bytes + chunk - 1) / chunk > GUARD_CHUNKS_MAX) {
        chunk *= 2;
    }
    return chunk;
}

int guard_new(const struct guard_config *config, struct guard **ret_guard, struct err *err)
{
    uint64_t ram_bytes = mem_ram_bytes(config->mem);
    if (atomic_load(&the_guard)) {
        return err_set(err, -EBUSY, "the machine's memory is being restored or saved already");
    }
    struct guard *guard = calloc(1, sizeof(*guard));
    if (!guard) {
        return err_sys(err, -ENOMEM, "cannot guard the machine's memory");
    }
    guard->config = *config;
    guard->ram = mem_ram_base(config->mem);
    guard->ram_bytes = ram_bytes;
    guard->chunk_shift = (unsigned)__builtin_ctzll(config->chunk_bytes);
    guard->chunks = (ram_bytes + config->chunk_bytes - 1) >> guard->chunk_shift;
    guard->config.lanes = MIN(MAX(config->lanes, 1u), GUARD_LANES_MAX);
    guard->touched = NOWHERE;
    guard->states = calloc(guard->chunks, 1);
    guard->bufs = config->fetch ? malloc(guard->config.lanes * config->chunk_bytes) : NULL;
    if (!guard->states || (config->fetch && !guard->bufs)) {
        guard_free(guard);
        return err_sys(err, -ENOMEM, "cannot guard the machine's memory");
    }
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigfillset(&sa.sa_mask);
    atomic_store(&the_guard, guard);
    if (sigaction(SIGSEGV, &sa, &guard->before) < 0) {
        int rc = -errno;
        atomic_store(&the_guard, NULL);
        guard_free(guard);
        return err_sys(err, rc, "cannot guard the machine's memory");
    }
    mem_set_prepare(config->mem, prepare, guard);
    *ret_guard = guard;
    return 0;
}

void guard_free(struct guard *guard)
{
    if (!guard) {
        return;
    }
    if (atomic_load(&the_guard) == guard) {
        guard_thaw(guard);
        mem_set_prepare(guard->config.mem, NULL, NULL);
        sigaction(SIGSEGV, &guard->before, NULL);
        atomic_store(&the_guard, NULL);
        while (atomic_load(&inside) > 0) {
            sched_yield();
        }
    }
    if (guard->aside) {
        munmap(guard->aside, guard->ram_bytes);
    }
    free((void *)guard->states);
    free(guard->bufs);
    free(guard);
}

int guard_fill(struct guard *guard, const uint8_t *wanted, struct err *err)
{
    guard->next = guard->ahead = guard->ahead_end = 0;
    for (uint64_t first = 0, end; first < guard->chunks; first = end) {
        for (end = first; end < guard->chunks && !wanted[end] == !wanted[first]; end++) {
            atomic_store(&guard->states[end], wanted[end] ? ABSENT : PRESENT);
            atomic_fetch_add(&guard->left, wanted[end] ? 1 : 0);
        }
        uint64_t bytes = MIN(end << guard->chunk_shift, guard->ram_bytes) - (first << guard->chunk_shift);
        if (wanted[first] && mprotect(chunk_at(guard, first), bytes, PROT_NONE) < 0) {
            return err_sys(err, -errno, "cannot guard the machine's memory");
        }
    }
    return 0;
}

/* What the guest touches next is likely near what it touched last. */
static uint64_t choose(struct guard *guard)
{
    uint64_t touched = atomic_exchange(&guard->touched, NOWHERE);
    if (touched != NOWHERE) {
        guard->ahead = touched + 1;
        guard->ahead_end = MIN(guard->ahead + AHEAD_CHUNKS, guard->chunks);
    }
    for (; guard->ahead < guard->ahead_end; guard->ahead++) {
        if (state_of(guard, guard->ahead) == ABSENT) {
            return guard->ahead;
        }
    }
    while (guard->next < guard->chunks && state_of(guard, guard->next) != ABSENT) {
        guard->next++;
    }
    return guard->next;
}

bool guard_fill_next(struct guard *guard)
{
    uint64_t chunk = choose(guard);
    if (chunk == guard->chunks) {
        return false;
    }
    sigset_t old;
    block_signals(&old);
    if (make_busy(guard, chunk, ABSENT)) {
        fill(guard, chunk);
    }
    unblock_signals(&old);
    return true;
}

uint64_t guard_touches(const struct guard *guard)
{
    return atomic_load(&guard->touches);
}

int guard_freeze(struct guard *guard, struct err *err)
{
    if (atomic_load(&guard->left) > 0) {
        return err_set(err, -EBUSY, "the machine's memory is being restored or saved already");
    }
    if (!guard->aside) {
        void *aside = mmap(NULL, guard->ram_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (aside == MAP_FAILED) {
            return err_sys(err, -errno, "cannot make room for copies of the machine's memory");
        }
        guard->aside = aside;
    }
    for (uint64_t chunk = 0; chunk < guard->chunks; chunk++) {
        atomic_store(&guard->states[chunk], FROZEN);
    }
    atomic_store(&guard->left, guard->chunks);
    if (mprotect(guard->ram, guard->ram_bytes, PROT_READ) < 0) {
        int rc = -errno;
        guard_thaw(guard);
        return err_sys(err, rc, "cannot guard the machine's memory");
    }
    return 0;
}

void guard_take(struct guard *guard, uint64_t chunk, uint8_t *buf)
{
    uint64_t len = chunk_len(guard, chunk);
    uint8_t *aside = guard->aside + (chunk << guard->chunk_shift);
    sigset_t old;
    block_signals(&old);
    for (;;) {
        uint32_t seen = atomic_load(&guard->ends);
        uint8_t state = state_of(guard, chunk);
        if (state == BUSY) {
            wait_for_end(guard, seen);
        } else if (state != FROZEN) {
            break; /* aside, and stays so: only we take it */
        } else if (make_busy(guard, chunk, FROZEN)) {
            memcpy(buf, chunk_at(guard, chunk), len);
            open_up(guard, chunk);
            atomic_fetch_sub(&guard->left, 1);
            set_done(guard, chunk, PRESENT);
            unblock_signals(&old);
            return;
        }
    }
    memcpy(buf, aside, len);
    madvise(aside, len, MADV_DONTNEED);
    atomic_store(&guard->states[chunk], PRESENT);
    unblock_signals(&old);
}

void guard_thaw(struct guard *guard)
{
    sigset_t old;
    bool frozen = false;
    block_signals(&old);
    for (uint64_t chunk = 0; chunk < guard->chunks; chunk++) {
        uint32_t seen = atomic_load(&guard->ends);
        while (state_of(guard, chunk) == BUSY) {
            wait_for_end(guard, seen);
            seen = atomic_load(&guard->ends);
        }
        if (make_busy(guard, chunk, FROZEN)) {
            frozen = true;
            atomic_fetch_sub(&guard->left, 1);
            set_done(guard, chunk, PRESENT); /* writable below: until then a write faults again and again */
        } else if (state_of(guard, chunk) == ASIDE) {
            atomic_store(&guard->states[chunk], PRESENT);
        }
    }
    if (frozen) {
        mprotect(guard->ram, guard->ram_bytes, PROT_READ | PROT_WRITE);
    }
    if (guard->aside) {
        munmap(guard->aside, guard->ram_bytes);
        guard->aside = NULL;
    }
    unblock_signals(&old);
}
