/*
 * The core: everything that fondad does, without HTTP. Objects live in the store; changes go through here, so
 * that names, quotas, references, events and jobs fit together.
 *
 *     daemon/ handler --core_lock--> object.c, user.c: one transaction, an event --core_unlock-->
 *                     --core_lock--> instance.c: a change and a job ------------> worker thread (job.c)
 *                                                                                    instance_jobs.c
 *                                                                                    driver_vm.c -->
 * fonda-vmm supervise.c: one thread that sees processes end
 *
 * Threads: functions say whether they want the lock held ("locked") or not ("unlocked"). Job functions run on
 * worker threads, unlocked, at most one per target at a time. The lock is held briefly: for a transaction,
 * never while waiting for an instance.
 */
#ifndef FONDA_CORE_CORE_H
#define FONDA_CORE_CORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/driver.h"
#include "core/fault.h"
#include "core/model.h"
#include "core/store/store.h"

struct core;
struct job;

struct core_config {
    const char *state_dir;  /* made if it isn't there */
    const char *backup_dir; /* NULL: "backups" in the state directory */
    /* Something happened that waiters should look at (an event, a job's end). Any thread; must not block. */
    void (*wake)(void *opaque);
    void *opaque;
    bool no_autostart;
};

/* Opens the store, finds running instances again, ends what the last daemon left half done, starts the
 * workers. Errors: those of store_open, of directories and threads. */
int core_open(const struct core_config *config, struct core **ret_core, struct err *err);
/* Ends workers (running jobs end as failed; instances go on). */
void core_close(struct core *core);

void core_lock(struct core *core);
void core_unlock(struct core *core);
struct store *core_store(struct core *core); /* locked */
const char *core_state_dir(const struct core *core);
uint64_t core_uptime_ms(const struct core *core);

/* ---- callers ---- */

enum role { ROLE_NONE, ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN };

/* Who asks. Filled by user_from_*. */
struct caller {
    char name[64];
    char from[64]; /* "unix", or an address */
    enum role role;
    json_t *grants;              /* instance name to role; NULL: none */
    bool session, session_local; /* signed in by a one-time link; as the daemon's own administrator */
    char session_name[64];
};

void caller_done(struct caller *caller);
/* A peer of the unix socket: the daemon's own user and root are administrators. Locked. */
int user_from_uid(struct core *core, unsigned uid, struct caller *ret_caller, struct fault *fault);
int user_from_token(struct core *core, const char *token, struct caller *ret_caller, struct fault *fault);
int user_from_name(struct core *core, const char *name, struct caller *ret_caller, struct fault *fault);
/* The caller's role on one instance (its own, or the grant, whichever is more). */
enum role caller_role(const struct caller *caller, const char *instance);
const char *role_name(enum role role);
enum role role_parse(const char *name);
/* Makes a new token for a user; the old one is void. Locked. free() the token. */
int user_new_token(struct core *core, const struct caller *caller, const char *name, char **ret_token,
                   struct fault *fault);
/* Whether owner may have `more`: an instance (members cpus, memory), or something on disks (member size).
 * Locked. */
int quota_check(struct core *core, const char *owner, const struct object_type *type, const json_t *more,
                const char *except, struct fault *fault);

/* ---- signing in with a browser (signin.c) ---- */

#define SIGNIN_CODE_LEN   48
#define SESSION_PREFIX    "fonda_session_"
#define SESSION_TOKEN_LEN (sizeof(SESSION_PREFIX) - 1 + 64)
#define SESSIONS_MAX      64u

/* A code that somebody can sign in with as this caller: once, within five minutes. ret_code has
 * SIGNIN_CODE_LEN + 1 bytes. Locked. */
int signin_code(struct core *core, const struct caller *caller, char *ret_code, struct fault *fault);
/* Makes a code a session of 12 hours; ret_token has SESSION_TOKEN_LEN + 1 bytes. Locked. Errors:
 * FAULT_UNAUTHORIZED. */
int signin_redeem(struct core *core, const char *code, struct caller *ret_caller, char *ret_token,
                  struct fault *fault);
/* Locked. Errors: FAULT_UNAUTHORIZED. */
int user_from_session(struct core *core, const char *token, struct caller *ret_caller, struct fault *fault);
/* The caller's session ends; does nothing where it came by other ways. Locked. */
void signin_end(struct core *core, const struct caller *caller);

/* ---- objects ---- */

/* The stored object; json_decref it. Locked. */
int object_get(struct core *core, const struct object_type *type, const char *name, json_t **ret_object,
               uint64_t *ret_version, struct fault *fault);
/* Stores a changed object and, with an event type, an event; within a transaction if one runs. Locked. */
int object_put(struct core *core, const struct object_type *type, json_t *object, uint64_t expected,
               const char *event, const char *who, struct fault *fault);
/* Create, change (a merge patch that field_check has passed), delete, by the kind's own rules. Instances
 * are created and deleted by jobs (below). Locked. */
int object_create(struct core *core, const struct object_type *type, json_t *in, const struct caller *caller,
                  struct fault *fault);
int object_change(struct core *core, const struct object_type *type, const char *name, const json_t *patch,
                  uint64_t expected, const struct caller *caller, json_t **ret_object, struct fault *fault);
int object_delete(struct core *core, const struct object_type *type, const char *name, uint64_t expected,
                  const struct caller *caller, struct fault *fault);

/* ---- events ---- */

#define EVENTS_LOG  "events"
#define AUDIT_LOG   "audit"
#define EVENTS_KEEP 10000u
#define AUDIT_KEEP  100000u

/* "instance.started", "instances/web". data is taken over, may be NULL. Locked. */
int event_add(struct core *core, const char *type, const struct object_type *of, const char *name,
              const char *who, json_t *data, struct fault *fault);
/* Locked. */
void audit_add(struct core *core, const struct caller *caller, const char *method, const char *path,
               int status);

/* ---- jobs ---- */

#define JOBS_OPEN_MAX 256u
#define JOBS_KEEP     1000u
#define JOB_WORKERS   4u

struct job_type {
    const char *name; /* "instance.start" */
    /* Worker thread, unlocked. */
    int (*run)(struct core *core, struct job *job, struct fault *fault);
};

/* Adds a job; args is taken over. ret_name (at least 24 bytes) gets its name. Within the transaction that is
 * running: job_kick() behind its commit. Locked. Errors: FAULT_LIMIT. */
int job_add(struct core *core, const struct job_type *type, const struct object_type *of, const char *target,
            const char *who, json_t *args, char *ret_name, struct fault *fault);
void job_kick(struct core *core);
/* The transaction that job_add was part of failed. Locked. */
void job_forget(struct core *core, const char *name);
int job_cancel(struct core *core, const char *name, struct fault *fault);
/* As it is now, progress included. Locked. */
int job_get(struct core *core, const char *name, json_t **ret_job, uint64_t *ret_version,
            struct fault *fault);
bool job_ended(struct core *core, const char *name); /* locked */
unsigned job_count_open(struct core *core);          /* locked */

/* Grows with each step, line and percent of any open job. Locked. */
uint64_t job_serial(const struct core *core);
/* The open jobs that changed behind `serial`, as job_get shows them. Locked. */
json_t *jobs_changed(struct core *core, uint64_t serial);

/* For job functions; unlocked. */
const char *job_target(const struct job *job); /* the name alone; changes by job_retarget */
const char *job_who(const struct job *job);
const json_t *job_args(const struct job *job);
void job_step(struct core *core, struct job *job, unsigned done, unsigned steps, const char *step);
void job_bytes(struct job *job, uint64_t done, uint64_t total);
void job_log(struct core *core, struct job *job, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
bool job_canceled(const struct job *job);

/* ---- instances: each checks, changes the state and adds a job; locked, in one transaction ---- */

int instance_create(struct core *core, json_t *in, const struct caller *caller, char *ret_job,
                    struct fault *fault);
int instance_start(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault);
/* A container whose program waits until somebody attaches; machines start as ever. */
int instance_start_held(struct core *core, const char *name, const char *who, char *ret_job,
                        struct fault *fault);
int instance_stop(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                  struct fault *fault);
int instance_restart(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                     struct fault *fault);
int instance_pause(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault);
int instance_resume(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault);
/* volumes: those that nothing else uses go too. */
int instance_delete(struct core *core, const char *name, uint64_t expected, bool volumes, const char *who,
                    char *ret_job, struct fault *fault);
/* Its memory goes into a file, and its process ends. */
int instance_save(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault);
/* how: {name, mode, snapshot} (model_clone). */
int instance_clone(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                   char *ret_job, struct fault *fault);
/* The snapshot of an instance, by its id; json_decref it. Locked. */
int snapshot_get(struct core *core, const char *instance_id, const char *name, json_t **ret_row,
                 uint64_t *ret_version, struct fault *fault);
/* how: model_snapshot_request, and "schedule". */
int snapshot_create(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                    struct fault *fault);
int snapshot_delete(struct core *core, const char *name, const char *snapshot, const char *who, char *ret_job,
                    struct fault *fault);
/* how: model_restore. */
int snapshot_restore(struct core *core, const char *name, const char *snapshot, const json_t *how,
                     const char *who, char *ret_job, struct fault *fault);
/* in: model_template, checked; it becomes the row. */
int template_create(struct core *core, json_t *in, const struct caller *caller, char *ret_job,
                    struct fault *fault);
/* A new instance; how: model_template_use. */
int template_use(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                 char *ret_job, struct fault *fault);
/* At once. */
int template_delete(struct core *core, const char *name, uint64_t expected, const struct caller *caller,
                    struct fault *fault);
/* how: model_export, model_import; model_backup_request, and "schedule"; model_backup_restore. */
int instance_export(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                    struct fault *fault);
int instance_import(struct core *core, const json_t *how, const struct caller *caller, char *ret_job,
                    struct fault *fault);
int backup_create(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                  struct fault *fault);
int backup_restore(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                   char *ret_job, struct fault *fault);
int backup_verify(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault);
/* At once. */
int backup_delete(struct core *core, const char *name, uint64_t expected, const char *who,
                  struct fault *fault);
/* in: model_schedule, checked; it becomes the row. At once. */
int schedule_create(struct core *core, json_t *in, const struct caller *caller, struct fault *fault);
/* At once. */
int instance_rename(struct core *core, const char *name, const char *new_name, uint64_t expected,
                    const struct caller *caller, struct fault *fault);
/* What drivers need; free with instance_driver_done. Locked. */
int instance_driver(struct core *core, const char *name, struct driver_instance *ret_instance,
                    const struct driver_ops **ret_ops, struct fault *fault);
void instance_driver_done(struct driver_instance *instance);
/* ---- what instances used (history.c) ---- */

/* span: "hour" (every 10 s), "day" (every minute) or "month" (every 15 minutes). Locked. */
int history_read(struct core *core, const char *name, const char *span, json_t **ret_history,
                 struct fault *fault);
/* Somebody looks at an instance: it is sampled each second until history_unwatch(id). ret_id: 32 bytes.
 * Locked. */
int history_watch(struct core *core, const char *name, char *ret_id, struct fault *fault);
void history_unwatch(struct core *core, const char *id);
/* The latest sample as JSON, if it is newer than *serial; else NULL. free() it. Locked. */
char *history_latest(struct core *core, const char *id, uint64_t *serial);

/* Unlocked; blocks. */
int instance_stats(const struct driver_instance *instance, const struct driver_ops *ops, json_t **ret_stats,
                   struct fault *fault);

#endif
