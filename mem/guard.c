/* See guard.h. */
#include "mem/guard.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"

enum chunk_state { PRESENT, ABSENT, FROZEN, ASIDE /* its frozen bytes lie in `aside` */ };

struct guard {
    struct guard_config config;
    uint8_t *ram;
    uint64_t ram_bytes, chunks;
    unsigned chunk_shift;
    atomic_flag
        lock; /* taken in signal handlers, with all signals blocked or by threads that get none there */
    _Atomic uint64_t left; /* chunks that are absent or frozen */
    uint64_t next;         /* guard_fill_next */
    _Atomic uint8_t *states;
    uint8_t *buf;   /* one chunk, for filling */
    uint8_t *aside; /* as large as RAM, taken by the page as needed; NULL: never frozen */
    struct sigaction before;
};

static struct guard *_Atomic the_guard;

static void lock(struct guard *guard)
{
    while (atomic_flag_test_and_set_explicit(&guard->lock, memory_order_acquire)) {
        sched_yield();
    }
}

static void unlock(struct guard *guard)
{
    atomic_flag_clear_explicit(&guard->lock, memory_order_release);
}

/* A thread that holds the lock must not be interrupted by a handler that could want it. */
static void lock_blocked(struct guard *guard, sigset_t *old)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, old);
    lock(guard);
}

static void unlock_blocked(struct guard *guard, const sigset_t *old)
{
    unlock(guard);
    pthread_sigmask(SIG_SETMASK, old, NULL);
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

static void set_state(struct guard *guard, uint64_t chunk, enum chunk_state state, bool done)
{
    atomic_store_explicit(&guard->states[chunk], (uint8_t)state, memory_order_release);
    if (done) {
        atomic_fetch_sub(&guard->left, 1);
    }
}

static void open_up(struct guard *guard, uint64_t chunk)
{
    if (mprotect(chunk_at(guard, chunk), chunk_len(guard, chunk), PROT_READ | PROT_WRITE) < 0) {
        guard->config.fatal(guard->config.opaque, chunk, -errno);
    }
}

/* Under the lock. */
static void fill(struct guard *guard, uint64_t chunk)
{
    uint64_t len = chunk_len(guard, chunk);
    int rc = guard->config.fetch(guard->config.opaque, chunk, guard->buf, len);
    if (rc == 0) {
        rc = write_all(mem_ram_fd(guard->config.mem), guard->buf, len, chunk << guard->chunk_shift);
    }
    if (rc < 0) {
        guard->config.fatal(guard->config.opaque, chunk, rc);
    }
    open_up(guard, chunk);
    set_state(guard, chunk, PRESENT, true);
}

/* Under the lock. Reading a frozen chunk is allowed. */
static void set_aside(struct guard *guard, uint64_t chunk)
{
    memcpy(guard->aside + (chunk << guard->chunk_shift), chunk_at(guard, chunk), chunk_len(guard, chunk));
    open_up(guard, chunk);
    set_state(guard, chunk, ASIDE, true);
}

static uint8_t state_of(const struct guard *guard, uint64_t chunk)
{
    return atomic_load_explicit(&guard->states[chunk], memory_order_acquire);
}

/* Under the lock: makes a chunk usable. */
static void make_ready(struct guard *guard, uint64_t chunk, bool write)
{
    uint8_t state = state_of(guard, chunk);
    if (state == ABSENT) {
        fill(guard, chunk);
    } else if (state == FROZEN && write) {
        set_aside(guard, chunk);
    }
}

static void prepare(void *opaque, uint64_t ram_offset, uint64_t len, bool write)
{
    struct guard *guard = opaque;
    if (atomic_load(&guard->left) == 0) {
        return;
    }
    for (uint64_t chunk = ram_offset >> guard->chunk_shift;
         chunk <= (ram_offset + len - 1) >> guard->chunk_shift; chunk++) {
        uint8_t state = state_of(guard, chunk);
        if (state == ABSENT || (state == FROZEN && write)) {
            sigset_t old;
            lock_blocked(guard, &old);
            make_ready(guard, chunk, write);
            unlock_blocked(guard, &old);
        }
    }
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
    lock(guard);
    make_ready(guard, offset >> guard->chunk_shift, write);
    unlock(guard);
    return true;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    struct guard *guard = atomic_load(&the_guard);
    if (guard && info->si_code == SEGV_ACCERR &&
        on_touch(guard, (uint64_t)info->si_addr, was_write(context))) {
        errno = saved_errno;
        return;
    }
    errno = saved_errno;
    if (guard && (guard->before.sa_flags & SA_SIGINFO)) {
        guard->before.sa_sigaction(sig, info, context);
    } else {
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
    guard->states = calloc(guard->chunks, 1);
    guard->buf = malloc(config->chunk_bytes);
    if (!guard->states || !guard->buf) {
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
    }
    if (guard->aside) {
        munmap(guard->aside, guard->ram_bytes);
    }
    free((void *)guard->states);
    free(guard->buf);
    free(guard);
}

int guard_fill(struct guard *guard, const uint8_t *wanted, struct err *err)
{
    guard->next = 0;
    for (uint64_t first = 0, end; first < guard->chunks; first = end) {
        for (end = first; end < guard->chunks && !wanted[end] == !wanted[first]; end++) {
            set_state(guard, end, wanted[end] ? ABSENT : PRESENT, false);
            atomic_fetch_add(&guard->left, wanted[end] ? 1 : 0);
        }
        uint64_t bytes = MIN(end << guard->chunk_shift, guard->ram_bytes) - (first << guard->chunk_shift);
        if (wanted[first] && mprotect(chunk_at(guard, first), bytes, PROT_NONE) < 0) {
            return err_sys(err, -errno, "cannot guard the machine's memory");
        }
    }
    return 0;
}

bool guard_fill_next(struct guard *guard)
{
    while (guard->next < guard->chunks && state_of(guard, guard->next) != ABSENT) {
        guard->next++;
    }
    if (guard->next == guard->chunks) {
        return false;
    }
    sigset_t old;
    lock_blocked(guard, &old);
    make_ready(guard, guard->next, false);
    unlock_blocked(guard, &old);
    return true;
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
        set_state(guard, chunk, FROZEN, false);
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
    lock_blocked(guard, &old);
    if (state_of(guard, chunk) == FROZEN) {
        memcpy(buf, chunk_at(guard, chunk), len);
        open_up(guard, chunk);
        set_state(guard, chunk, PRESENT, true);
    } else {
        memcpy(buf, aside, len);
        madvise(aside, len, MADV_DONTNEED);
        set_state(guard, chunk, PRESENT, false);
    }
    unlock_blocked(guard, &old);
}

void guard_thaw(struct guard *guard)
{
    sigset_t old;
    lock_blocked(guard, &old);
    bool frozen = false;
    for (uint64_t chunk = 0; chunk < guard->chunks; chunk++) {
        uint8_t state = state_of(guard, chunk);
        frozen |= state == FROZEN;
        if (state == FROZEN || state == ASIDE) {
            set_state(guard, chunk, PRESENT, state == FROZEN);
        }
    }
    if (frozen) {
        mprotect(guard->ram, guard->ram_bytes, PROT_READ | PROT_WRITE);
    }
    if (guard->aside) {
        munmap(guard->aside, guard->ram_bytes);
        guard->aside = NULL;
    }
    unlock_blocked(guard, &old);
}
