/*
 * Guest RAM that is filled when it is first touched (a machine that is being restored), or copied aside
 * before it is first written (a snapshot of a machine that runs on). Both by page protection and SIGSEGV, so
 * that it needs no privilege and no kernel feature; the machine's engine must touch guest memory as an
 * ordinary part of the process, through mem_ram_base()'s mapping.
 *
 *     guard_fill:    ABSENT, no access --touch, or the filler's turn--> fetch() --> present
 *     guard_freeze:  FROZEN, read-only --write--> copied aside --> present
 *                                      --guard_take--> present
 *
 * RAM is cut into chunks, all of one size. Before the host's kernel accesses RAM on the process's behalf,
 * mem_ram_prepare() does what the signal would have.
 *
 * Threads: guard_new, guard_free, guard_freeze while nothing else touches RAM; guard_take and guard_fill_all
 * on one thread of the caller's choice; the rest happens in whichever thread touches.
 *
 * Invariants
 *  1. Who changes a chunk's protection has made its state BUSY before (by compare-and-swap), with signals
 *     blocked, and touches no other guarded memory through the mapping until it no longer is: filling goes
 *     through the memfd. So several chunks are fetched at the same time, and nobody waits in a circle.
 *  2. One guard per process.
 */
#ifndef FONDA_MEM_GUARD_H
#define FONDA_MEM_GUARD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/mem.h"

#define GUARD_CHUNK_MIN  (64u << 10)
#define GUARD_LANES_MAX  16u
#define GUARD_CHUNKS_MAX 16384u /* at most as many mappings does a guard make: vm.max_map_count is 65,530 */

struct guard;

struct guard_config {
    struct mem *mem;
    uint64_t chunk_bytes; /* a power of two, guard_chunk_bytes() or more */
    unsigned lanes;       /* how many fetches may run at a time; 0: one */
    /* guard_fill: puts chunk n's bytes (len of them) into buf. Runs in signal handlers, one at a time in each
     * lane: system calls and plain computation only. An error ends the process: fatal() says why, and does
     * not return. NULL: only guard_freeze is used. */
    int (*fetch)(void *opaque, unsigned lane, uint64_t chunk, uint8_t *buf, uint64_t len);
    void (*fatal)(void *opaque, uint64_t chunk, int error);
    void *opaque;
};

/* The smallest chunk size for that much RAM. */
uint64_t guard_chunk_bytes(uint64_t ram_bytes);

/* Installs the handler; engines have installed theirs before. Errors: -ENOMEM, -EBUSY (there is one already),
 * those of sigaction. */
int guard_new(const struct guard_config *config, struct guard **ret_guard, struct err *err);
/* What is absent stays unreadable; what is frozen becomes writable. NULL is accepted. */
void guard_free(struct guard *guard);

/* Every chunk for which wanted[n] is set is absent from now on. Errors: -errno of mprotect. */
int guard_fill(struct guard *guard, const uint8_t *wanted, struct err *err);
/* Fetches one absent chunk: one behind the last that was touched, or the next in turn. False: none is absent
 * any more (some may still be on their way in other threads). */
bool guard_fill_next(struct guard *guard);
/* How many chunks were fetched because they were touched. */
uint64_t guard_touches(const struct guard *guard);

/* All RAM is frozen as it is now. Nothing may be absent. Errors: -EBUSY, -ENOMEM, -errno of mprotect. */
int guard_freeze(struct guard *guard, struct err *err);
/* Copies chunk n, as it was at guard_freeze, into buf; the chunk is not frozen any more. */
void guard_take(struct guard *guard, uint64_t chunk, uint8_t *buf);
/* The rest need not be kept (the snapshot is complete, or given up). */
void guard_thaw(struct guard *guard);

#endif
