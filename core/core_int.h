/*
 * Inside core/: the core itself, and what its files call of one another.
 */
#ifndef FONDA_CORE_CORE_INT_H
#define FONDA_CORE_CORE_INT_H

#include <pthread.h>

#include "core/core.h"

struct watched {
    char id[32];
    pid_t pid;
    int pidfd;         /* -1: it has ended */
    int status;        /* of one that has ended, while somebody still holds its lock ... */
    uint64_t until_ms; /* ... which is waited for until then */
};

struct signin {
    char code[SIGNIN_CODE_LEN + 1], user[64];
    bool local;
    uint64_t expires_ms; /* monotonic; 0: free */
};

struct track;

struct core {
    struct core_config config;
    char *state_dir, *backup_dir;
    struct store *store;
    uint64_t opened_ms;
    pthread_mutex_t lock;

    /* job.c */
    struct job *jobs; /* open ones, oldest first */
    unsigned job_open;
    int64_t job_last; /* greatest number so far */
    pthread_cond_t job_cond;
    pthread_t workers[JOB_WORKERS];
    unsigned worker_count;
    bool closing;
    unsigned trim_in; /* events until the next trim */

    uint64_t job_serial;

    /* signin.c */
    struct signin signins[16];

    /* history.c */
    struct track *tracks;
    pthread_t sampler;
    pthread_cond_t sampler_cond;
    bool sampling;

    /* schedule.c */
    pthread_t scheduler;
    pthread_cond_t scheduler_cond;
    bool scheduling;

    /* supervise.c */
    pthread_t supervisor;
    bool supervising;
    int epoll_fd, wake_fd;
    struct watched *watched;
    unsigned watched_count, watched_room;
};

int jobs_open(struct core *core, struct err *err); /* ends those of the last daemon; starts workers */
void jobs_close(struct core *core);

int history_open(struct core *core, struct err *err);
void history_close(struct core *core);

int schedule_open(struct core *core, struct err *err);
void schedule_close(struct core *core);
/* What a change of a schedule's row means for its next time. Locked. */
int schedule_changed(struct core *core, json_t *schedule, struct fault *fault);
/* Schedules of an instance go with it. Locked. */
void schedule_forget(struct core *core, const char *instance_id);
/* They show its new name. Locked, in a transaction. */
int schedule_rename(struct core *core, const char *instance_id, const char *name, struct fault *fault);

int supervise_open(struct core *core, struct err *err);
void supervise_close(struct core *core);
/* The process of instance `id` is watched until it ends. Locked. */
int supervise_add(struct core *core, const char *id, pid_t pid, struct fault *fault);
/* Whether the process of `id` is still watched: it has not ended, or its end has not been seen. Locked. */
bool supervise_has(struct core *core, const char *id);

/* Adopts what runs, cleans up what the last daemon left half done. Before workers start; locked. */
int recover(struct core *core, struct err *err);
void recover_autostart(struct core *core);

/* The name of the instance with this id; free() it. NULL: none. Locked. */
char *instance_name_of(struct core *core, const char *id);
/* What a machine has unless said otherwise; a container has no limits. */
void instance_kind_defaults(json_t *in);
/* Whether a container's members have the forms that they must have. Errors: FAULT_INVALID, with the member's
 * name. */
int container_spec_check(const json_t *spec, struct fault *fault);
/* Makes the store's references those of the instance's members. Locked, in a transaction. */
int instance_link(struct core *core, const json_t *instance, struct fault *fault);
/* An instance's process ended; status -1: unknown. Locked. */
void instance_ended(struct core *core, const char *id, int status);
/* Sets the state (and reason) of an instance, with an event. Locked. */
int instance_set_state(struct core *core, const char *name, const char *state, const char *reason,
                       const char *event, const char *who, struct fault *fault);
void instance_paths(struct core *core, const char *id, struct driver_instance *instance);
void volume_path(struct core *core, const json_t *volume, char *buf, size_t size);
int volume_make(struct core *core, const json_t *volume, struct fault *fault);

/* One transaction for changes and their jobs; job: what job_add named, "": none. Locked. */
int core_begin(struct core *core, struct fault *fault);
int core_end(struct core *core, int rc, const char *job, struct fault *fault);
/* The instance, when its state is one of those in `allowed` (separated by " or ") and it isn't going back to
 * a snapshot. Locked. */
int instance_in_state(struct core *core, const char *name, const char *verb, const char *allowed,
                      json_t **ret_instance, struct fault *fault);
/* Errors: FAULT_BUSY: an open job copies its disks. verb: "start", "be deleted". Locked. */
int instance_not_held(struct core *core, const json_t *instance, const char *verb, struct fault *fault);
/* Errors: FAULT_BUSY: there are linked copies. Locked. */
int instance_not_base(struct core *core, const json_t *instance, struct fault *fault);
int volume_not_base(struct core *core, const char *name, struct fault *fault);
/* Removes everything of an instance that is not wanted any more, but its snapshots and volumes. Unlocked. */
int instance_forget(struct core *core, const char *name, const char *who, struct fault *fault);
/* Parts of jobs on instances, unlocked. Starts its process (state: starting), from memory unless that is
 * NULL; ends it by force (state: stopped). */
int instance_start_process(struct core *core, struct job *job, const char *memory, struct fault *fault);
int instance_end_process(struct core *core, struct job *job, const struct driver_instance *instance,
                         const struct driver_ops *ops, struct fault *fault);
/* Takes a template back that is half made. Locked. */
void template_undo(struct core *core, const char *name);
/* The disks that it writes to, in their order: a new array of {"path", "format" (may be ""), "volume"
 * (absent: a file of the host's)}. Locked. */
json_t *instance_disks(struct core *core, const json_t *spec);
/* As long as the job is open, `id` (of an instance or template) is being copied. Locked. */
void job_hold(struct core *core, const char *job, const char *id);
/* The open job that holds it; NULL: none. Locked. */
const char *job_holding(struct core *core, const char *id);
bool job_open_for(struct core *core, const struct object_type *of, const char *name); /* locked */

/* Removes a directory and everything in it; it is fine when there is none. */
int tree_remove(const char *path);
int make_dirs(const char *path);
/* 12 random hexadecimal digits. */
void random_id(char *buf);
/* 128 random bits, as machine-id(5) wants them: 33 bytes. */
void random_machine_id(char *buf, size_t size);
uint64_t monotonic_ms(void);

extern const struct job_type job_instance_create, job_instance_start, job_instance_stop, job_instance_restart,
    job_instance_pause, job_instance_resume, job_instance_delete, job_instance_clone, job_instance_save,
    job_template_create, job_instance_apply;

/* live.c: makes a machine's disks, NICs and memory what they should be; the lists of texts are used up.
 * Worker, unlocked. */
int live_apply_machine(const struct driver_instance *instance, json_t *disks, json_t *nics,
                       struct fault *fault);

/* limit.c: limits of machines through control groups. The limits that a specification asks for, as fonda-cg
 * takes them: a new object, empty without any. */
json_t *limit_wanted(const json_t *spec);
int limit_check(const json_t *spec, struct fault *fault);
/* Of a machine that runs. Errors: FAULT_STATE: it has no group, or the host can't. Worker, unlocked. */
int limit_apply_live(const struct driver_instance *instance, struct fault *fault);
/* Removes the groups that processes of the instance in `dir` have left; it must have none. The first does so
 * on a thread of its own, the second waits: worker, unlocked. */
void limit_clear_aside(const char *dir);
int limit_clear(const struct driver_instance *instance, struct fault *fault);

#endif
