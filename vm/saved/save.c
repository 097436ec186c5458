/* The way out: see save.h. */
#include "vm/saved/save.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/state.h"
#include "base/thread.h"
#include "base/util.h"
#include "block/block.h"
#include "control/control.h"
#include "cpu/engine.h"
#include "mem/guard.h"
#include "vm/devices.h"
#include "vm/host_int.h"
#include "vm/hotplug.h"
#include "vm/machine.h"
#include "vm/machine_int.h"
#include "vm/saved/file.h"
#include "vm/saved/machine.h"
#include "vm/saved/options.h"
#include "vm/saved/snapshot.h"

#define TELL_MS         100u
#define PROGRESS_CHUNKS 512u /* between two events about progress */

/* One machine being saved: from the pause to the end of the job. */
struct saving {
    struct host *host;
    struct control_job *job;
    bool snapshot; /* the machine goes on; otherwise it ends when all is saved */
    bool paused;   /* by us, still */
    char path[PATH_MAX], name[SNAPSHOT_NAME_MAX + 1];
    struct saved_writer *writer;
    struct guard *guard;
    uint64_t chunk_bytes, chunks, pause_ns, pause_began_ns, file_bytes;
    uint8_t *buf;
    pthread_t thread;
    bool thread_runs;
    uv_async_t async;
    _Atomic uint64_t done;
    _Atomic bool cancelled, finished;
    struct err err; /* the thread's, until it is finished */
};

/* --- the end ----------------------------------------------------------------------------------------------
 */

static void let_go(struct saving *saving)
{
    if (saving->paused) {
        saving->paused = false;
        saving->pause_ns = uv_hrtime() - saving->pause_began_ns;
        host_unpause(saving->host, false);
    }
}

static void on_saved_timer(uv_timer_t *timer)
{
    struct host *host = timer->data;
    machine_request_stop(host->machine, VM_STATUS_OFF);
}

/* A small machine is saved before whoever asked for it can ask for the job's end: there is time for that. */
static void end_soon(struct host *host)
{
    host->saved = true;
    host->saved_timer.data = host;
    uv_timer_init(&host->loop, &host->saved_timer);
    uv_timer_start(&host->saved_timer, on_saved_timer, TELL_MS, 0);
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* Everything behind the memory: the file in its place, or nothing of it left. */
static void finish(struct saving *saving)
{
    struct host *host = saving->host;
    if (saving->thread_runs) {
        pthread_join(saving->thread, NULL);
    }
    if (saving->snapshot && saving->err.code) {
        snapshot_delete_disks(host->devices, saving->name, NULL);
    }
    guard_free(saving->guard);
    bool ends = !saving->snapshot && !saving->err.code;
    if (!ends) {
        let_go(saving);
    }
    host->saving = NULL;
    control_job_end(saving->job,
                    json_pack("{s:s, s:I, s:I}", "file", saving->path, "bytes",
                              (json_int_t)saving->file_bytes, "pause_ns", (json_int_t)saving->pause_ns),
                    saving->err.code ? &saving->err : NULL);
    free(saving->buf);
    uv_close((uv_handle_t *)&saving->async, on_closed);
    if (ends) {
        end_soon(host);
    }
    host_state_event(host);
}

static void on_async(uv_async_t *async)
{
    struct saving *saving = async->data;
    if (atomic_load(&saving->finished)) {
        finish(saving);
    } else {
        control_job_progress(saving->job, atomic_load(&saving->done) * saving->chunk_bytes,
                             saving->chunks * saving->chunk_bytes);
    }
}

static void on_cancel(void *opaque)
{
    struct saving *saving = opaque;
    atomic_store(&saving->cancelled, true);
}

void host_save_cancel(struct host *host)
{
    if (host->saving) {
        atomic_store(&host->saving->cancelled, true);
        finish(host->saving);
    }
}

/* --- memory -----------------------------------------------------------------------------------------------
 */

static void write_memory(struct saving *saving)
{
    int rc = 0;
    for (uint64_t i = 0; i < saving->chunks && rc == 0; i++) {
        const uint8_t *bytes = mem_ram_base(saving->host->mem) + i * saving->chunk_bytes;
        if (saving->guard) {
            guard_take(saving->guard, i, saving->buf);
            bytes = saving->buf;
        }
        rc = saved_write_chunk(saving->writer, bytes, &saving->err);
        if (rc == 0 && atomic_load(&saving->cancelled)) {
            rc = err_set(&saving->err, -ECANCELED, "saving was cancelled");
        }
        atomic_store(&saving->done, i + 1);
        if (saving->thread_runs && i % PROGRESS_CHUNKS == PROGRESS_CHUNKS - 1) {
            uv_async_send(&saving->async);
        }
    }
    if (rc == 0) {
        saved_commit(saving->writer, &saving->file_bytes, &saving->err);
    } else {
        saved_abort(saving->writer);
    }
    saving->writer = NULL;
}

static void *writer_main(void *opaque)
{
    struct saving *saving = opaque;
    thread_enter("save", NULL);
    write_memory(saving);
    atomic_store(&saving->finished, true);
    uv_async_send(&saving->async);
    return NULL;
}

static int freeze_memory(struct saving *saving)
{
    const struct guard_config config = {.mem = saving->host->mem, .chunk_bytes = saving->chunk_bytes};
    int rc = guard_new(&config, &saving->guard, &saving->err);
    return rc < 0 ? rc : guard_freeze(saving->guard, &saving->err);
}

/* --- the beginning ----------------------------------------------------------------------------------------
 */

/* Devices, vCPUs and the file's beginning. The machine stands still, and its clock. */
static int begin_file(struct saving *saving)
{
    struct host *host = saving->host;
    struct state *s = state_new_writer();
    if (!s) {
        return err_sys(&saving->err, -ENOMEM, "cannot save the machine");
    }
    machine_state(host->machine, s);
    struct saved_head head = {.ram_bytes = mem_ram_bytes(host->mem),
                              .chunk_bytes = (uint32_t)saving->chunk_bytes};
    head.sections = state_encoded(s, &head.sections_len);
    int rc = state_error(s, &saving->err);
    char *config = saved_options_json(host->config, host->devices, host->engine->name, host->machine->tsc_hz);
    head.config = config;
    if (rc == 0 && !config) {
        rc = err_set(&saving->err, -EINVAL, "the machine's options can't be saved: some are no UTF-8");
    }
    if (rc == 0) {
        rc = saved_create(saving->path, &head, &saving->writer, &saving->err);
    }
    free(config);
    state_free(s);
    return rc;
}

/* Snapshots of disks wait for the host's disk several times. What is flushed while the vCPUs still run, they
 * need not wait for; nothing is written behind it, as the main loop does that. A disk that can't be flushed
 * will say so soon enough. */
static void flush_disks(struct host *host)
{
    for (unsigned i = 0; i < devices_disks(host->devices); i++) {
        (void)blk_flush(devices_disk(host->devices, i));
    }
}

/* From the pause to the memory's turn. On failure nothing is left behind. */
static int begin(struct saving *saving)
{
    struct host *host = saving->host;
    host_restore_finish(host);
    if (saving->snapshot) {
        flush_disks(host);
    }
    saving->pause_began_ns = uv_hrtime();
    int rc = host_pause(host, false, &saving->err);
    if (rc < 0) {
        return rc;
    }
    saving->paused = true;
    mem_lock(host->mem);
    pc_serial_flush(machine_pc(host->machine)); /* what it holds would be said by both machines */
    mem_unlock(host->mem);
    devices_settle(host->devices);
    rc = saving->snapshot ? snapshot_save_disks(host->devices, saving->name, &saving->err) : 0;
    if (rc < 0) {
        return rc;
    }
    rc = begin_file(saving);
    if (rc == 0 && host->engine->user_mode_access) {
        rc = freeze_memory(saving);
    }
    if (rc < 0) {
        saved_abort(saving->writer);
        saving->writer = NULL;
        if (saving->snapshot) {
            snapshot_delete_disks(host->devices, saving->name, NULL);
        }
    }
    return rc;
}

static bool may_save(struct host *host, struct control_call *call)
{
    if (host->saving || host->saved) {
        control_fail(call, "busy", "wait for it, or cancel its job", "the machine is being saved already");
        return false;
    }
    if (host->config->ephemeral) {
        control_fail(call, "not_supported", "run it without --ephemeral",
                     "an ephemeral machine's disks are thrown away, so its state is no use");
        return false;
    }
    return true;
}

static struct saving *new_saving(struct host *host, const char *path, const char *name)
{
    struct saving *saving = calloc(1, sizeof(*saving));
    if (!saving) {
        return NULL;
    }
    saving->host = host;
    saving->snapshot = name != NULL;
    saving->chunk_bytes = guard_chunk_bytes(mem_ram_bytes(host->mem));
    saving->chunks = (mem_ram_bytes(host->mem) + saving->chunk_bytes - 1) / saving->chunk_bytes;
    saving->buf = malloc(saving->chunk_bytes);
    snprintf(saving->path, sizeof(saving->path), "%s", path);
    snprintf(saving->name, sizeof(saving->name), "%s", name ? name : "");
    saving->job =
        saving->buf ? control_job_new(host->control, name ? "snapshot" : "save", on_cancel, saving) : NULL;
    if (!saving->job || uv_async_init(&host->loop, &saving->async, on_async) < 0) {
        if (saving->job) {
            control_job_end(saving->job, NULL, NULL);
        }
        free(saving->buf);
        free(saving);
        return NULL;
    }
    saving->async.data = saving;
    host->saving = saving;
    return saving;
}

/* Without a thread (there is none to be had, or the engine's accesses can't be guarded) the machine stands
 * until its memory is written. */
static void start(struct saving *saving)
{
    if (saving->guard) {
        if (saving->snapshot) {
            let_go(saving);
        }
        saving->thread_runs = true;
        if (pthread_create(&saving->thread, NULL, writer_main, saving) == 0) {
            return;
        }
        saving->thread_runs = false;
    }
    write_memory(saving);
    finish(saving);
}

static void save(struct host *host, const char *path, const char *name, struct control_call *call)
{
    struct saving *saving = new_saving(host, path, name);
    if (!saving) {
        control_fail(call, "no_memory", NULL, "too many jobs, or no memory");
        return;
    }
    control_reply_job(call, saving->job);
    if (begin(saving) < 0) {
        finish(saving);
    } else {
        start(saving);
    }
}

void host_save(struct host *host, const char *path, struct control_call *call)
{
    if (path[0] != '/' || strlen(path) >= PATH_MAX - sizeof(".partial")) {
        control_fail(call, "bad_params", NULL, "'file' is no absolute path");
    } else if (may_save(host, call)) {
        save(host, path, NULL, call);
    }
}

/* The disks alone: their snapshots are all there is to do. */
static void snapshot_disks(struct host *host, const char *name, struct control_call *call)
{
    struct err err = {0};
    struct control_job *job = control_job_new(host->control, "snapshot", NULL, NULL);
    if (!job) {
        control_fail(call, "no_memory", NULL, "too many jobs, or no memory");
        return;
    }
    uint64_t began_ns = uv_hrtime();
    char own[SNAPSHOT_NAME_MAX + 1]; /* the reply takes the call's parameters along */
    snprintf(own, sizeof(own), "%s", name);
    control_reply_job(call, job);
    if (host_pause(host, false, &err) == 0) {
        devices_settle(host->devices);
        snapshot_save_disks(host->devices, own, &err);
        host_unpause(host, false);
    }
    control_job_end(job, json_pack("{s:I}", "pause_ns", (json_int_t)(uv_hrtime() - began_ns)),
                    err.code ? &err : NULL);
}

void host_snapshot_save(struct host *host, const struct snapshot_request *request, struct control_call *call)
{
    char path[PATH_MAX];
    struct err err = {0};
    bool kept = request->file || !request->memory; /* by the caller */
    if (!may_save(host, call)) {
        return;
    }
    int rc = kept ? snapshot_check(host->devices, request->name, !request->memory, &err)
                  : snapshot_path(host->devices, request->name, path, sizeof(path), &err);
    if (request->file) {
        snprintf(path, sizeof(path), "%s", request->file);
    }
    if (rc < 0) {
        control_fail_err(call, &err);
    } else if (request->memory && access(path, F_OK) == 0) {
        control_fail(call, "exists", "delete it first, or take another name",
                     "there is a snapshot '%s' already", request->name);
    } else {
        snapshot_delete_disks(host->devices, request->name, NULL); /* of one that was not completed */
        if (request->memory) {
            save(host, path, request->name, call);
        } else {
            snapshot_disks(host, request->name, call);
        }
    }
}
