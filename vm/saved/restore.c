/* The way back: see save.h. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/state.h"
#include "base/thread.h"
#include "base/util.h"
#include "cpu/engine.h"
#include "mem/guard.h"
#include "vm/host_int.h"
#include "vm/machine.h"
#include "vm/saved/file.h"
#include "vm/saved/machine.h"
#include "vm/saved/options.h"
#include "vm/saved/save.h"

/* Chunks between two looks at whether the guest fetches for itself: while it does, and while it does not. */
#define FILL_AHEAD    4u
#define FILL_PIECES   16u
#define FILL_PAUSE_NS 300000

struct restoring {
    struct saved_reader *reader;
    struct guard *guard; /* NULL: all memory was there before the guest ran */
    pthread_t thread;
    bool thread_runs;
    _Atomic bool stop;
};

/* --- memory -----------------------------------------------------------------------------------------------
 */

/* Signal handlers. */
static int fetch(void *opaque, unsigned lane, uint64_t chunk, uint8_t *buf, uint64_t len)
{
    const struct restoring *restoring = opaque;
    return saved_read_chunk(restoring->reader, lane, chunk, buf, len);
}

/* The file was checked as a whole, so it has changed since, or its disk fails: the guest can't go on. */
static void fatal(void *opaque, uint64_t chunk, int error)
{
    static const char text[] =
        "fonda: error: the saved machine's file can't be read any more, or was changed: the "
        "machine ends\n";
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(VM_STATUS_HOST);
}

/* While the guest fetches for itself, only what is next to that is fetched for it, a piece at a time: the
 * processors are the guest's. */
static void *filler_main(void *opaque)
{
    struct restoring *restoring = opaque;
    thread_enter("fill", NULL);
    uint64_t seen = 0;
    while (!atomic_load(&restoring->stop)) {
        uint64_t touches = guard_touches(restoring->guard);
        unsigned pieces = touches != seen ? FILL_AHEAD : FILL_PIECES;
        for (unsigned i = 0; i < pieces; i++) {
            if (!guard_fill_next(restoring->guard)) {
                return NULL;
            }
        }
        if (touches != seen) {
            seen = touches;
            const struct timespec pause = {0, FILL_PAUSE_NS};
            nanosleep(&pause, NULL);
        }
    }
    return NULL;
}

/* What the machine's making has put there (ACPI tables) goes: the saved memory has its own. */
static int clear_ram(struct mem *mem, struct err *err)
{
    uint64_t low = mem_ram_low_bytes(mem), high = mem_ram_bytes(mem) - low;
    int rc = mem_ram_discard(mem, GPA(0), low);
    if (rc == 0 && high > 0) {
        rc = mem_ram_discard(mem, GPA(MEM_HIGH_RAM), high);
    }
    return rc < 0 ? err_sys(err, rc, "cannot clear the machine's memory") : 0;
}

static int fill_now(struct host *host, struct saved_reader *reader, struct err *err)
{
    uint64_t chunk_bytes = saved_head(reader)->chunk_bytes, ram = mem_ram_bytes(host->mem);
    for (uint64_t i = 0; i < saved_chunks(reader); i++) {
        uint64_t at = i * chunk_bytes, len = MIN(chunk_bytes, ram - at);
        int rc =
            saved_present(reader)[i] ? saved_read_chunk(reader, 0, i, mem_ram_base(host->mem) + at, len) : 0;
        if (rc < 0) {
            return err_set(err, rc, "the memory at %#llx is damaged", (unsigned long long)at);
        }
    }
    return 0;
}

static int fill_lazily(struct host *host, struct restoring *restoring, struct err *err)
{
    const struct guard_config config = {.mem = host->mem,
                                        .chunk_bytes = saved_head(restoring->reader)->chunk_bytes,
                                        .lanes = saved_lanes(restoring->reader),
                                        .fetch = fetch,
                                        .fatal = fatal,
                                        .opaque = restoring};
    int rc = guard_new(&config, &restoring->guard, err);
    return rc < 0 ? rc : guard_fill(restoring->guard, saved_present(restoring->reader), err);
}

/* The handler's mappings have a limit, so a file with very small chunks is filled at once too. */
static int bring_memory(struct host *host, struct restoring *restoring, struct err *err)
{
    int rc = clear_ram(host->mem, err);
    if (rc < 0) {
        return rc;
    }
    bool lazily = host->engine->user_mode_access && saved_chunks(restoring->reader) <= GUARD_CHUNKS_MAX;
    return lazily ? fill_lazily(host, restoring, err) : fill_now(host, restoring->reader, err);
}

/* --- the machine ------------------------------------------------------------------------------------------
 */

static int load_sections(struct host *host, const struct saved_head *head, struct err *err)
{
    struct state *s;
    int rc = state_new_reader(head->sections, head->sections_len, &s, err);
    if (rc < 0) {
        return rc;
    }
    machine_freeze(host->machine);
    machine_state(host->machine, s);
    rc = state_finish(s, err);
    state_free(s);
    return rc;
}

int host_restore(struct host *host, struct saved_reader *saved, struct err *err)
{
    const struct saved_head *head = saved_head(saved);
    if (head->ram_bytes != mem_ram_bytes(host->mem)) {
        return err_set(err, -EBADMSG, "its memory and its configuration differ in size");
    }
    int rc = saved_options_check_disks(head->config, host->devices, err);
    if (rc < 0) {
        return err_prefix(err, "'%s' can't be restored", host->config->restore);
    }
    struct restoring *restoring = calloc(1, sizeof(*restoring));
    if (!restoring) {
        return err_sys(err, -ENOMEM, "cannot restore the machine");
    }
    restoring->reader = saved;
    host->restoring = restoring;
    rc = bring_memory(host, restoring, err);
    if (rc == 0) {
        rc = load_sections(host, head, err);
    }
    if (rc == 0) {
        rc = machine_thaw(host->machine, err);
    }
    if (rc == 0) {
        rc = machine_resume_start(host->machine, err);
    }
    if (rc < 0) {
        err_prefix(err, "'%s' can't be restored", host->config->restore);
    } else if (restoring->guard) {
        restoring->thread_runs = pthread_create(&restoring->thread, NULL, filler_main, restoring) == 0;
    }
    return rc;
}

static void end_restoring(struct host *host, bool complete)
{
    struct restoring *restoring = host->restoring;
    if (!restoring) {
        return;
    }
    atomic_store(&restoring->stop, !complete);
    if (restoring->thread_runs) {
        pthread_join(restoring->thread, NULL);
    }
    while (complete && restoring->guard && guard_fill_next(restoring->guard)) {
    }
    guard_free(restoring->guard);
    free(restoring);
    host->restoring = NULL;
}

void host_restore_finish(struct host *host)
{
    end_restoring(host, true);
}

void host_restore_done(struct host *host)
{
    end_restoring(host, true); /* chips that write at their end must find memory */
}
